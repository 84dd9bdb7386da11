"""Structured logs on standard error: one event a line, as text for people or JSON for machines."""

from __future__ import annotations

import logging
import sys

import structlog

from gateway.config import Log


def set_up(config: Log) -> None:
    """Configure structlog for the whole process; called once, by the composition root."""
    render: structlog.typing.Processor
    if config.format == "json":
        render = structlog.processors.JSONRenderer()
    else:
        render = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
