"""What stands behind the peers: a real Triton, or the static upstream that only answers.

Rule of this file: each is a context manager of an ``Upstream``, which says how many requests it computed;
nothing here is measured or knows a peer.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

from benchmarks.native import program
from benchmarks.scenarios import CACHE_BYTES_MAX, MODEL, WORK_MODEL
from examples.child import Child
from examples.ports import Held
from examples.tritonserver import TritonEnvironment, TritonOptions, TritonServer, find_environment

HERE: Final = Path(__file__).parent
READY_SECONDS: Final = 20.0
ANSWER_SECONDS_MAX: Final = 10.0


class PeerFailed(RuntimeError):
    """A server did not come up, or does not say what it counted; the message holds what it wrote."""


class Counts(Struct, frozen=True):
    """What an upstream counted for a model."""

    succeeded: int
    cache_hits: int
    cache_misses: int


class Upstream(Struct, frozen=True):
    """A server that computes, or does as if. ``group`` is its process group."""

    port: int
    group: int
    environment: TritonEnvironment | None = None
    """A Triton's, to start another like it."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def counts(self, model: str) -> Counts:
        """Raises PeerFailed."""
        try:
            with urllib.request.urlopen(f"{self.url}/v2/models/{model}/stats", timeout=ANSWER_SECONDS_MAX) as answer:
                parts = [version["inference_stats"] for version in json.loads(answer.read())["model_stats"]]
        except (OSError, ValueError, KeyError) as error:
            raise PeerFailed(f"no statistics of {model}: {error!r}") from error
        names = ("success", "cache_hit", "cache_miss")
        return Counts(*(sum(part[name]["count"] for part in parts) for name in names))

    def version(self) -> str:
        with urllib.request.urlopen(f"{self.url}/v2", timeout=ANSWER_SECONDS_MAX) as answer:
            return str(json.loads(answer.read())["version"])


@contextmanager
def triton(*, response_cache: bool, environment: TritonEnvironment | None = None) -> Iterator[Upstream]:
    """A real Triton with the models of benchmarks/peers/triton."""
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as directory:
        repository = Path(directory, "models")
        for model in (MODEL, WORK_MODEL):
            shutil.copytree(HERE / "triton" / model, repository / model, ignore=shutil.ignore_patterns("__pycache__"))
            if response_cache:
                config = repository / model / "config.pbtxt"
                config.write_text(config.read_text() + (HERE / "triton" / "response_cache.pbtxt").read_text())
        options = TritonOptions(
            repositories=(repository,), response_cache_bytes=CACHE_BYTES_MAX if response_cache else 0
        )
        with TritonServer(options, environment or find_environment()) as server:
            yield Upstream(server.http_port, server.pid, server.environment)


@contextmanager
def static() -> Iterator[Upstream]:
    """native/echo.c: as fast as a server can be, and right. It says of itself what Triton says of MODEL."""
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as directory, Held() as held:
        path, (port,) = Path(directory, "facts"), held.numbers
        path.write_bytes(records(FACTS))
        with listening([str(program("echo")), str(port), str(path)], directory, port) as group:
            yield Upstream(port, group)


ANSWER: Final = {
    "model_name": MODEL,
    "model_version": "1",
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 10], "parameters": {"binary_data_size": 40}}],
}
FACTS: Final[Mapping[str, object]] = {
    "answer": ANSWER,
    "/v2": {"name": "static", "version": "static", "extensions": ["binary_tensor_data", "statistics"]},
    "/v2/health/ready": {},
    f"/v2/models/{MODEL}/ready": {},
    f"/v2/models/{MODEL}": {
        "name": MODEL,
        "versions": ["1"],
        "platform": "python",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 10]}],
    },
    f"/v2/models/{MODEL}/config": {
        "name": MODEL,
        "backend": "python",
        "max_batch_size": 64,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [10]}],
    },
}
"""By path, what native/echo.c answers; the JSON part of every infer answer is "answer"."""


def records(facts: Mapping[str, object]) -> bytes:
    """The file that native/echo.c reads: NAME SPACE LENGTH LF BYTES LF, again and again."""
    found = b""
    for name, value in facts.items():
        text = json.dumps(value, separators=(",", ":")).encode()
        found += f"{name} {len(text)}\n".encode() + text + b"\n"
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def listening(command: list[str], directory: str, port: int, seconds: float = READY_SECONDS) -> Iterator[int]:
    """A command that listens on ``port`` within ``seconds``; its process group. Raises PeerFailed."""
    environ = dict(os.environ) | {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"}
    try:
        child = Child(command, environ, Path(directory), "peer")
    except OSError as error:
        raise PeerFailed(f"{command[0]} cannot be started: {error}") from error
    try:
        end = time.monotonic() + seconds
        while True:
            if not child.running or time.monotonic() > end:
                raise PeerFailed(f"{command[0]} did not come up:\n{child.log()[-4000:]}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield child.pid
    finally:
        child.stop()
