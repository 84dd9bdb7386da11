"""Structured logs on standard error: one event a line, as text for people or JSON for machines.

Rule of this file: how things are logged, never what. An outage must not write a line for each request.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Hashable
from typing import Final

import structlog

from degrade.deadline import Ticker
from gateway.config import Log

SELDOM_SECONDS: Final = 10.0
"""Between two lines about the same thing: soon enough for who watches, few enough for who stores."""


class Seldom:
    """When to tell of what happens again and again: at once, then every ``SELDOM_SECONDS`` at most.

    A thing is told of by what it is called; the names are the caller's to keep few.
    """

    def __init__(self, ticker: Ticker) -> None:
        self._ticker = ticker
        self._told: dict[Hashable, tuple[float, int]] = {}  # when last, and how often since

    def times(self, name: Hashable) -> int:
        """It has happened: how often since it was last told of, this time included, or 0 not to tell now."""
        now = self._ticker()
        told = self._told.get(name)
        if told is None or now - told[0] >= SELDOM_SECONDS:
            self._told[name] = (now, 0)
            return 1 if told is None else told[1] + 1
        self._told[name] = (told[0], told[1] + 1)
        return 0


def set_up(config: Log, worker: int | None = None) -> None:
    """Configure structlog for the whole process; called once, by the composition root.

    ``worker``: this process's number among those of a supervisor, told with each event.
    """
    render: structlog.typing.Processor
    if config.format == "json":
        render = structlog.processors.JSONRenderer()
    else:
        render = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            *([] if worker is None else [_of_worker(worker)]),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.level.upper())),
        # One write with its newline: workers share a standard error, and two writes let lines run together.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _of_worker(worker: int) -> structlog.typing.Processor:
    def add(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["worker"] = worker
        return event

    return add
