"""Tests of our own connections run on uvloop and on asyncio's loop: they differ in when they write and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

ON_BOTH_LOOPS = frozenset({"test_connection.py", "test_connections.py", "test_triton_http.py"})


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    both = {"uvloop": uvloop.new_event_loop} if item.path.name in ON_BOTH_LOOPS else {}
    return {"asyncio": asyncio.new_event_loop, **both}
