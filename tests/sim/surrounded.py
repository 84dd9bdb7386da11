"""What a gateway would take of this machine by itself, and what it says into its log, are the world's while it runs.

Rule of this file: it puts things in place of others for as long as a block lasts, and looks on. It decides nothing.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import structlog

from cache.stores.merge import MergeOptions
from cache.stores.store import StoreError
from degrade.breaker import Breaker, Leave, Permit
from degrade.gate import Gate
from degrade.gate import Permit as GatePermit
from degrade.guard import Guarded
from gateway.strain import Strain
from gateway.witness import Witness
from tests.sim.loop import LIFE, Inline
from tests.sim.network import OWNER

if TYPE_CHECKING:
    from tests.sim.world import World


Patches = tuple[Any, ...]
"""Of ``unittest.mock``, not started yet."""


@contextmanager
def surrounded(world: World) -> Iterator[None]:
    """What the gateways would take of this machine is the world's; and what they log."""
    patches = (
        mock.patch("gateway.doors.aside.ThreadPoolExecutor", Inline),
        *of_breakers(world),
        *of_gates(world),
        *of_stores(world),
        *of_words(world),
    )
    structlog.configure(processors=[log_of(world)], cache_logger_on_first_use=False)
    try:
        for patch in patches:
            patch.start()
        yield
    finally:
        for patch in patches:
            patch.stop()
        structlog.reset_defaults()


def log_of(world: World) -> Callable[[Any, str, dict[str, Any]], Any]:
    """The log's last word: it is the world's to tell, and what should never be said is a bug."""

    def heard(_: Any, level: str, event: dict[str, Any]) -> Any:
        words = {name: value for name, value in event.items() if name not in ("exc_info", "level")}
        world.note("log", level, sorted(words.items(), key=str))
        named = event.get("event", "")
        if named == "breaker":
            world.met[f"breaker {event['state']}"] += 1
        if named == "epoch":
            world.met["epoch turned"] += 1
        if named in ("bug", "background task failed", "background task died") or "exc_info" in event:
            if world.violated:
                raise structlog.DropEvent
            world.bugs.append(f"{named}: {''.join(traceback.format_exception(*sys.exc_info()))[-1500:]}")
        raise structlog.DropEvent

    return heard


def of_breakers(world: World) -> Patches:
    """Every permit and every leave of a breaker is the world's to count."""
    acquire, begin, end = Breaker.acquire, Breaker.begin, Breaker.end

    def acquired(self: Breaker, now: float) -> Permit | None:
        permit = acquire(self, now)
        if permit is not None:
            world.permits.append((LIFE.get(), permit))
        return permit

    def begun(self: Breaker, now: float) -> Leave | None:
        leave = begin(self, now)
        world.leaves[LIFE.get()] += leave is not None
        return leave

    def ended(self: Breaker, leave: Leave, ok: bool | None, now: float, cause: str = "") -> None:
        world.leaves[LIFE.get()] -= 1
        end(self, leave, ok, now, cause)

    return (
        mock.patch.object(Breaker, "acquire", acquired),
        mock.patch.object(Breaker, "begin", begun),
        mock.patch.object(Breaker, "end", ended),
    )


def of_gates(world: World) -> Patches:
    """So is every permit of a gate; and which brownout level it was, and when."""
    permit_of, look = Gate._permit, Strain.look

    def permitted(self: Gate, holder: Any, now: float) -> GatePermit:
        permit = permit_of(self, holder, now)
        world.gate_permits.append((LIFE.get(), permit))
        return permit

    def looked(self: Strain, lag: float) -> None:
        look(self, lag)
        for name, home in self._backends().items():
            world.levels.setdefault((OWNER.get(), name), []).append((world.loop.now, home.pool.gates.level))

    return mock.patch.object(Gate, "_permit", permitted), mock.patch.object(Strain, "look", looked)


def of_stores(world: World) -> Patches:
    """What a store's failures were, by kind; in some worlds only few keys are asked of one together."""

    def heeded(whole: Any) -> Any:
        async def asked(*args: Any) -> Any:
            try:
                found = await whole(*args)
            except StoreError as error:
                world.met[f"store {error.kind}"] += 1
                raise
            for each in found or ():
                if isinstance(each, StoreError):
                    world.met[f"store {each.kind}"] += 1
            return found

        return asked

    narrow = world.scene.seed % 4 == 0

    def merging(keys_max: int = 1024, flights_max: int = 4) -> MergeOptions:
        return MergeOptions(keys_max, 1 if narrow else flights_max, 3 if narrow else 262_144)

    return (
        mock.patch.object(Guarded, "get_many", heeded(Guarded.get_many)),
        mock.patch.object(Guarded, "put_many", heeded(Guarded.put_many)),
        mock.patch("gateway.stores.MergeOptions", merging),
    )


def of_words(world: World) -> Patches:
    """What each round comes to that reads a word."""
    round_ = Witness.round

    async def went(self: Witness) -> None:
        began = world.loop.now
        await round_(self)
        world.rounds.setdefault(self, []).append((began, world.loop.now, self.state))

    return (mock.patch.object(Witness, "round", went),)
