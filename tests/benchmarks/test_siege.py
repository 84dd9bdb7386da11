"""The siege's measurement says what it measured at every door, and compares answers."""

from __future__ import annotations

import asyncio

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


async def test_who_is_answered_only_when_the_time_is_over_is_measured_too() -> None:
    async def ask() -> bytes:
        await asyncio.sleep(0.01)
        return b"a"

    assert await p99([ask, ask], 0.0) > 9_000.0
