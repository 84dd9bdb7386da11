"""What an outage repeats is told of at once, and then seldom, with how often it was."""

from __future__ import annotations

import io
import sys

import pytest
import structlog

from gateway.config import Log
from gateway.operate.log import SELDOM_SECONDS, Seldom, set_up


def test_told_at_once_then_seldom_with_how_often_it_was() -> None:
    now = [100.0]
    seldom = Seldom(lambda: now[0])
    assert [seldom.times("a") for _ in range(5)] == [1, 0, 0, 0, 0]
    now[0] += SELDOM_SECONDS
    assert [seldom.times("a") for _ in range(2)] == [5, 0]
    now[0] += SELDOM_SECONDS
    assert seldom.times("a") == 2


def test_each_thing_is_told_of_by_itself() -> None:
    seldom = Seldom(lambda: 0.0)
    assert [seldom.times("a"), seldom.times("b"), seldom.times("a")] == [1, 1, 0]


class Written(io.StringIO):
    """A standard error that keeps each write by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return len(text)


def test_a_line_is_one_write_so_that_those_of_several_workers_do_not_run_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written, before = Written(), structlog.get_config()
    monkeypatch.setattr(sys, "stderr", written)
    try:
        set_up(Log(format="json"), worker=1)
        log = structlog.get_logger("tailrace")
        log.info("one")
        log.info("two")
    finally:
        structlog.configure(**before)
    assert [text.count("\n") for text in written.writes] == [1, 1]
    assert all(text.startswith("{") and text.endswith("}\n") for text in written.writes)
