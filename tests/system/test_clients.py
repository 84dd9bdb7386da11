"""docs/clients.md does what it says: its configuration, its code in its order, and what that prints."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "clients.md").read_text()
MODULES = ROOT / ".cache" / "javascript"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PRINTED = ("text", "json")
SECONDS = 60.0


def blocks() -> list[tuple[str, str, str]]:
    """Language, code, and what it prints."""
    found = [(match[1], match[2]) for match in BLOCK.finditer(DOCUMENT)]
    made = []
    for index, (language, code) in enumerate(found):
        if language in PRINTED or language == "toml":
            continue
        follows = found[index + 1] if index + 1 < len(found) else ("", "")
        assert follows[0] in PRINTED, f"what does this print?\n{code}"
        made.append((language, code, follows[1]))
    return made


def command(language: str, code: str) -> list[str]:
    """How a reader would run it."""
    if language == "sh":
        return ["bash", "-euo", "pipefail", "-c", code]
    if language == "python":
        return [sys.executable, "-c", code]
    assert language == "js", language
    node = shutil.which("node")
    assert node is not None, "Node is not here: make javascript"
    assert (MODULES / "node_modules").is_dir(), "its packages are not here: make javascript"
    return [node, "--input-type=module", "-e", code]


def test_there_is_code_in_each_language() -> None:
    languages = [language for language, _, _ in blocks()]
    assert {language: languages.count(language) for language in set(languages)} == {"sh": 2, "python": 8, "js": 2}


def test_the_code_prints_what_stands_below_it(
    triton: Any, gateway_factory: Callable[..., Any], tmp_path: Path
) -> None:
    (config,) = [match[2] for match in BLOCK.finditer(DOCUMENT) if match[1] == "toml"]
    config = config.replace("http://127.0.0.1:8000", triton.http_url)
    gateway = gateway_factory(config, ("--http", "127.0.0.1:0", "--rpc", "127.0.0.1:0"))
    rpc_port = gateway.rpc_address.rpartition(":")[2]
    environ = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    for language, written, printed in blocks():
        code = written.replace("127.0.0.1:8080", gateway.http_address).replace("8082", rpc_port)
        code = code.replace("127.0.0.1:8081", gateway.grpc_address)
        ran = subprocess.run(
            command(language, code),
            cwd=MODULES if language == "js" else tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert ran.returncode == 0, f"{code}\n{ran.stderr}"
        told = re.sub(r"ttl=\d+", "ttl=599", ran.stdout)
        assert told.split() == printed.split(), code


@pytest.mark.parametrize("name", ["rpc_in_flight_max", "rpc", "grpc_message_bytes_max", "grpc_stream_idle_timeout"])
def test_keys_that_the_page_names_are_keys(name: str) -> None:
    from gateway.config_server import Server

    assert f"server.{name}" in DOCUMENT
    assert name in Server.__struct_fields__
