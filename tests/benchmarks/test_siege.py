"""The siege's measurement says what it measured at every door, and compares answers."""

from __future__ import annotations

import pytest

from benchmarks.crowd import main
from benchmarks.siege import DOORS, Wrong, p99


def test_a_short_siege(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["siege", "flood", "--rounds", "1", "--seconds", "0.2"]) == 0
    printed = capsys.readouterr().out
    for door in DOORS:
        assert f"| flood | {door} | " in printed


def test_another_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["siege", "nonsense"])
    assert "there are idle, slow, deaf, flood" in capsys.readouterr().err


async def test_another_answer_than_the_first_is_wrong() -> None:
    answers = iter([b"a", b"a", b"b"])

    async def ask() -> bytes:
        return next(answers)

    with pytest.raises(Wrong):
        await p99([ask], 5.0)
