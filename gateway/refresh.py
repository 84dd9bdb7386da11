"""Refreshes: what is fetched behind callers' backs, while they have an answer that will do.

Rule of this file: once for a key at a time, and so many at once for a route as it allows; a refresh that fails is told,
and nobody waits for one. What is fetched, and how, is ``pipeline.py``'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

from cache.digest import Key
from cache.flight import Abandoned
from gateway.call import Call
from gateway.operate.telemetry import Telemetry
from gateway.service import Q, R
from tiers.inference import Rejected, UpstreamError


class Refreshes:
    """Those of a process that are under way. Belongs to one event loop."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, call: Call[Q, R], key: Key, fetch: Callable[[], Awaitable[object]]) -> None:
        """Fetch the key's answer anew, unless that goes on already or the route's ``refreshes_max`` do."""
        route = call.route
        if key in route.refreshing or len(route.refreshing) >= route.refreshes_max:
            return
        route.refreshing.add(key)
        working = ExitStack()
        working.enter_context(call.note)  # its caller is gone before it has begun
        task = asyncio.create_task(self._fetched(call, key, fetch))
        task.add_done_callback(lambda _: working.close())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _fetched(self, call: Call[Q, R], key: Key, fetch: Callable[[], Awaitable[object]]) -> None:
        route = call.route
        try:
            await fetch()
        except (UpstreamError, Rejected, Abandoned) as error:
            self._telemetry.refresh_failed(route.name, str(error))
        except TimeoutError:
            self._telemetry.refresh_failed(route.name, "its time was over")
        except Exception as bug:  # nobody awaits this task: unseen otherwise
            self._telemetry.refresh_failed(route.name, f"bug: {bug!r}")
            raise
        finally:
            route.refreshing.discard(key)
