"""The demo runs to its end on few digits, shows what it claims, and leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from examples import demo, tritonserver
from examples.child import group_members

ROOT = Path(demo.__file__).resolve().parents[1]


def children():
    """The processes that this one started and that still live."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_the_demo_shows_what_it_claims_and_stops_everything(digits, capsys):
    before = children()
    assert demo.main(keep=False, digits_max=48) == 0, capsys.readouterr().out
    shown = capsys.readouterr().out
    for words in (
        "second pass answered without Triton",
        "100.0%",
        "cache=hit",
        "cache=stale",
        "HTTP 503 Service Unavailable",
        "fresh answers",
        "--keep",
    ):
        assert words in shown
    assert children() == before


def test_without_triton_the_demo_says_so_in_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(tritonserver.ENVIRONMENT_VARIABLE, str(tmp_path))
    assert demo.main(keep=False) == 1
    assert "make triton" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_stops_everything(digits, number):
    program = "import sys; from examples import demo; sys.exit(demo.main(False))"
    command = [sys.executable, "-u", "-c", program]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    mine = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    assert running.stdout is not None
    assert any("Triton at" in line for line in running.stdout), "it ended before both were up"
    groups = [int(pid) for pid in mine.read_text().split()]
    running.send_signal(number)
    running.communicate(timeout=30)
    assert running.returncode == 130
    assert len(groups) == 4, "Triton, the gateway, and a guard for each"
    assert [group_members(group) for group in groups] == [{}, {}, {}, {}]
