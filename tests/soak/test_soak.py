"""A short soak: that the load is right, all that it asks is answered rightly, and what is looked at is there."""

from __future__ import annotations

import signal

import pytest

from examples.tritonserver import READY_SECONDS, TritonServer
from tests.soak.__main__ import KINDS, Look, judged, main, table
from tests.soak.slope import SAMPLES_MIN


def looks(memory: float) -> list[Look]:
    """As many as are needed, the memory rising by so much each time."""
    return [
        Look(float(number), {"memory": 2**26 + memory * number, "files": 40.0, "threads": 9.0, "tasks": 20.0})
        for number in range(SAMPLES_MIN)
    ]


def test_what_grows_is_said_to() -> None:
    assert "GROWS" not in table(judged(looks(0.0)))
    told = table(judged(looks(2.0**20)))
    assert told.count("GROWS") == 1
    assert "| resident memory, MiB | 75.50 |" in told


@pytest.mark.parametrize("arguments", [["--rate", "0"], ["--settle", "1"], ["--minutes", "0.1"]])
def test_what_cannot_be_judged_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


class Killed(TritonServer):
    """Ends as soon as it is up."""

    def start(self, ready_seconds: float = READY_SECONDS) -> None:
        super().start(ready_seconds)
        assert self._child is not None
        self._child.signal_group(signal.SIGKILL)


def test_a_triton_that_ends_ends_the_soak(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tests.soak.__main__.TritonServer", Killed)
    assert main(["--minutes", "5", "--seed", "1"]) == 1
    assert "Triton ended after 0." in capsys.readouterr().out


@pytest.mark.timeout(180)
def test_half_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    # Memory and pools settle for minutes: of half a one nothing is to be read but that a few in a hundred do not leak.
    code = main(["--minutes", "0.6", "--settle", "0.3", "--slack", "16", "--seed", "1"])
    told = capsys.readouterr().out
    assert "wrong:" not in told
    for word in ("miss", "hit", "bypass", "stale", "ranked", "scored", "left", "quota", "invalid"):
        assert f"{word} " in told, f"nothing of the kind was asked: {told}"
    assert all(kind.title in told for kind in KINDS.values())
    assert code == 0, told
