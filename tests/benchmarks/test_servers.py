"""Other model servers: one question in JSON with one right answer, and only what is installed is started."""

from __future__ import annotations

import importlib.util
import json
import struct
from pathlib import Path

import pytest

from benchmarks import servers
from benchmarks.check import plain_fault
from benchmarks.questions import ANSWER_VALUES, plain_question, wire
from benchmarks.scenarios import MODEL, SMALL, TITLES

ASKED = plain_question(SMALL)


def model_answer() -> dict[str, object]:
    """What the model that all of them have makes of the question."""
    spec = importlib.util.spec_from_file_location("echo", servers.SCRIPTS / "echo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, object] = module.answer(json.loads(ASKED.body))
    return found


def test_the_question_is_the_same_in_fp32_and_in_json() -> None:
    data = json.loads(ASKED.body)["inputs"][0]["data"]
    assert struct.pack(f"<{ANSWER_VALUES}f", *data[:ANSWER_VALUES]) == ASKED.answer
    assert list(struct.unpack(f"<{ANSWER_VALUES}f", ASKED.answer)) == data[:ANSWER_VALUES]


def test_the_question_is_sent_as_json() -> None:
    sent = wire(ASKED, MODEL, 8080)
    assert b"Content-Type: application/json\r\n" in sent.text
    assert b"Inference-Header" not in sent.text
    assert (sent.serial_at, sent.digits_at) == (-1, -1)


def test_the_models_answer_is_right() -> None:
    assert plain_fault(ASKED, MODEL, 200, json.dumps(model_answer()).encode()) == ""


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (500, b"{}", "status 500"),
        (200, b"{}", "unreadable"),
        (200, b'{"model_name":"bench_fp32","outputs":[]}', "unreadable"),
        (200, json.dumps(model_answer() | {"model_name": "other"}).encode(), "wrong outputs"),
        (200, json.dumps(model_answer()).replace("-1.0", "-1.5").encode(), "wrong values"),
    ],
)
def test_what_is_wrong_is_seen(status: int, body: bytes, said: str) -> None:
    assert said in plain_fault(ASKED, MODEL, status, body)


@pytest.mark.parametrize("name", servers.SERVERS)
def test_every_server_has_a_title_and_a_script(name: str, tmp_path: Path) -> None:
    assert name in TITLES
    assert (servers.SCRIPTS / f"{name}_server.py").exists()
    line = servers.command(name, 8080, tmp_path)
    assert line[0] == str(tmp_path / name / "bin" / "python")
    assert "8080" in line


def test_only_what_was_installed_to_its_end_is_started(tmp_path: Path) -> None:
    assert servers.installed(tmp_path) == []
    (tmp_path / "mosec").mkdir()
    (tmp_path / "litserve").mkdir()
    (tmp_path / "litserve" / ".stamp").touch()
    assert servers.installed(tmp_path) == ["litserve"]
