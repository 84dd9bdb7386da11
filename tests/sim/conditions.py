"""What must hold of the gateways themselves, whatever fails: at every moment, once all is well, and at their end.

Rule of this file: as ``invariants.py``, which says what must hold of each answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from msgspec import structs

from cache.entry import Freshness
from gateway.config import QuotaConfig
from gateway.copies import Copies
from gateway.reads import Reads
from gateway.route import Route
from tests.sim import faults
from tests.sim.client import Told
from tests.sim.invariants import SLACK_SECONDS
from tests.sim.scene import CALLERS
from tests.sim.world import Violated

if TYPE_CHECKING:
    from tests.sim.world import Process, World

TASKS_MAX: Final = 400
QUOTA_SLACK: Final = 1
"""Requests beyond a quota, for when exactly one was charged is not seen from outside."""
ON_THE_WAY_SECONDS: Final = 0.05
"""What was asked so shortly before a limiter began anew may have been charged by either."""

OfWorld = Callable[["World"], Iterator[str]]


# -- of every moment --------------------------------------------------------------------------------


def memory_is_bounded(world: World) -> Iterator[str]:
    """Caches keep to their bytes, flights and tasks to their numbers, and what is counted is never less than none."""
    for process in _living(world):
        gateway = process.gateway
        for name, route in gateway.routes.items():
            for shelf in (route.cache, route.row_cache):
                if shelf is not None and not 0 <= shelf.bytes_used <= shelf.bytes_max:
                    yield f"{name} keeps {shelf.bytes_used} of {shelf.bytes_max} bytes"
            if route.refreshes > max(route.refreshes_max, 1):
                yield f"{name} refreshes {route.refreshes} at once"
            if route.second is not None and route.second.waiting > 4096:
                yield f"{name} leaves {route.second.waiting} writes waiting"
        for home in gateway.homes.values():
            for model, gate in home.pool.gates:
                if gate.in_flight < 0 or gate.waiting < 0:
                    yield f"{model}: {gate.in_flight} in flight, {gate.waiting} wait"
        if gateway.buffered.bytes < 0:
            yield f"{gateway.buffered.bytes} bytes are buffered"
    if world.loop.tasks > TASKS_MAX:
        yield f"{world.loop.tasks} tasks"


def nothing_is_a_bug(world: World) -> Iterator[str]:
    """No exception that nobody expected: not in the log, and not in a task that nobody waits for."""
    yield from world.bugs
    yield from world.loop.wrong


def flights_land(world: World) -> Iterator[str]:
    """A flight that is known has somebody who waits for it."""
    for process in _living(world):
        for name, route in process.gateway.routes.items():
            if len(route.flights) and not route.flights.waiters:
                yield f"{name} has {len(route.flights)} flights for nobody"


OF_MOMENT: Final[tuple[OfWorld, ...]] = (memory_is_bounded, nothing_is_a_bug, flights_land)


# -- of the calm ------------------------------------------------------------------------------------


def breakers_close(world: World) -> Iterator[str]:
    """Once all is well and asked, nothing is left out of rotation."""
    for process in _living(world):
        for name, home in process.gateway.homes.items():
            for state in home.pool.states():
                if state.breaker != "closed" or state.models_open or not state.ready:
                    yield f"{process.name} {name}: {state}"
        for name, table in process.gateway.standing.tables.items():
            if table.state != "closed" or not table.is_live:
                yield f"{process.name} table {name}: {table.state}, live {table.is_live}"


def nothing_is_under_way(world: World) -> Iterator[str]:
    """When nobody asks, nobody is asked: no flight, no call, no byte held."""
    for process in _living(world):
        gateway = process.gateway
        for name, route in gateway.routes.items():
            if len(route.flights) or route.refreshing:
                yield f"{name}: {len(route.flights)} flights, {len(route.refreshing)} refreshes"
            rows = route.shelves.rows
            if rows is not None and (len(rows.flights) or rows._under_way):
                yield f"{name}: {len(rows.flights)} fills of rows"
        for name, home in gateway.homes.items():
            busy = [state for state in home.pool.states() if state.in_flight > 1]  # one may be a probe
            if busy:
                yield f"{name}: {busy}"
            for model, gate in home.pool.gates:
                if gate.in_flight or gate.waiting:
                    yield f"{name}/{model}: {gate.in_flight} in flight, {gate.waiting} wait"
        if gateway.buffered.bytes:
            yield f"{gateway.buffered.bytes} bytes are buffered"


def permits_end(world: World) -> Iterator[str]:
    """Leave to make a call has been given back, once the call is over, to breakers and to gates."""
    open_ = [permit for _, permit in world.permits if not permit._ended]
    few = 2 * len(world.tritons) * len(world.processes)  # probes and looks may be under way
    if len(open_) > few:
        yield f"{len(open_)} of {len(world.permits)} permits have not ended"
    if not 0 <= world.leaves.total() <= few:
        yield f"breakers have given leave {world.leaves.total()} times more than it has ended"
    at_gates = [permit for _, permit in world.gate_permits if permit._gate is not None]
    if at_gates:
        yield f"{len(at_gates)} of {len(world.gate_permits)} permits of gates have not ended"


def levels_fall(world: World) -> Iterator[str]:
    """When there is no longer too much to do, everything is done as always."""
    for process in _living(world):
        levels = process.gateway._strain.levels
        if any(levels.values()):
            yield f"{process.name} is at levels {levels}"


def quotas_are_kept(world: World) -> Iterator[str]:
    """In any span of time no more is let through than the quota says, by what its limiter counts as one life."""
    configs = world.scene.configs
    for process in world.processes:
        told = [each for each in world.told if each.gateway == process.name and each.status != 429 and each.status]
        told = [each for each in told if not world.on_the_way(each)]  # when those were charged is not seen from outside
        told = [each for each in told if each.labels.get("reason") != "passthrough"]  # by none of our routes
        for kind in world.scene.kinds:
            routes = [config.routes[kind] for config in configs]
            since, until = process.without.get(kind, (math.inf, math.inf))  # who asks then asks no route of ours
            of_route = [each for each in told if each.question.route == kind]
            of_route = [each for each in of_route if each.answered < since or each.asked > until]
            yield from _quota(world, process, of_route, [each.quota for each in routes], f"{kind}'s")
            for caller in CALLERS:
                own = [each for each in of_route if each.question.caller == caller]
                yield from _quota(world, process, own, [each.caller_quota for each in routes], f"{kind}'s of {caller}")
        for caller in CALLERS:
            own = [each for each in told if each.question.caller == caller]
            yield from _quota(world, process, own, [config.callers[caller].quota for config in configs], f"{caller}'s")


def _worked(told: Told) -> bool:
    """Whether it put work on a model, as far as can be seen from outside."""
    return told.state in ("miss", "bypass") and told.labels.get("reason") != "only-if-cached"


def _quota(
    world: World, process: Process, told: list[Told], quotas: list[QuotaConfig | None], name: str
) -> Iterator[str]:
    kept = [quota for quota in quotas if quota is not None]
    if not kept:
        return
    rate = max(quota.rate / float(quota.per) for quota in kept)
    burst = max(quota.burst_size for quota in kept)
    counts = all(quota.hits_count for quota in kept)
    # Somewhere between its question and its answer: who asks while nobody knows the models waits for them first.
    charged = sorted([(each.answered, each.asked) for each in told if counts or _worked(each)])
    for begins, ends in pairwise([*process.begun, math.inf]):
        times = [each for each in charged if begins <= each[1] < ends - ON_THE_WAY_SECONDS]
        for first in sorted(asked for _, asked in times):
            within = [answered for answered, asked in times if asked >= first]
            for count, last in enumerate(within, 1):
                span = last - first + world.stalled(first, last)
                if count > burst + rate * span + QUOTA_SLACK:
                    yield f"quota {name}: {count} in {span:.2f} s; burst {burst}, rate {rate}"
                    return


def copies_are_written(world: World) -> Iterator[str]:
    """Once the disk is well, everything that was made since is on it, and good."""
    for process in _living(world):
        snapshots = process.gateway.snapshots
        if snapshots is None:
            continue
        if snapshots.waiting or snapshots.age > 2.0 * snapshots.interval + SLACK_SECONDS:
            yield f"{process.name}: {snapshots.waiting} wait, and the last pass was {snapshots.age:.2f} s ago"
        for name, route in process.gateway.routes.items():
            for copies in (route.shelves.copied, route.shelves.copied_rows):
                lost = [] if copies is None else list(_lost(world, route, copies, 2.0 * snapshots.interval))
                if lost:
                    yield f"{process.name}: {len(lost)} of {name} are not there, the first made at {lost[0]:.3f}"


def _lost(world: World, route: Route, copies: Copies[Any], seconds: float) -> Iterator[float]:
    """When those were made that are fresh in memory, and of which there is no copy. What was copied before the weather
    was over may have rotted since, or left a disk that is small; a mark that has rotted counts as a purge of copies."""
    cache, now = copies._cache, world.loop.now
    assert cache is not None
    loses = any(world.weather.struck[kind] for kind in (faults.DISK_ROTS, faults.DISK_GONE))
    since = world.scene.ends if loses or any(disk.is_small for disk in world.disks.values()) else 0.0
    shared = any(disk.users > 1 for disk in world.disks.values())
    for node in list(cache._entries.walk()):
        entry, at = node.value, copies.standing.purges.at
        if at is None or copies.standing.calendar.at(entry.stored_at) <= at:
            continue
        if not since < entry.stored_at < now - seconds or entry.freshness(now, route.epoch) is not Freshness.FRESH:
            continue
        if copies._form.packed(entry.value, 0.0) is not None and not _is_there(copies, node.key, shared):
            yield entry.stored_at


def _is_there(copies: Copies[Any], digest: bytes, shared: bool) -> bool:
    """Whether it lies on the disk, whoever has to wait for that. One of two gateways that have ``shared`` it may have
    left its own in the place of the other's, which has been purged alone since."""
    terms, standing, reads = copies._terms_now(), copies.standing, copies._records
    assert isinstance(reads, Reads)
    if terms is not None and shared:
        terms = structs.replace(terms, made_after=-math.inf)
    place = copies._form.kind, standing.rules.source, digest
    return terms is not None and reads._directory.find(*place, terms, standing.calendar.now()) is not None


OF_CALM: Final[tuple[OfWorld, ...]] = (
    breakers_close,
    nothing_is_under_way,
    permits_end,
    quotas_are_kept,
    levels_fall,
    copies_are_written,
)


# -- of the end -------------------------------------------------------------------------------------


def nothing_is_left(world: World) -> Iterator[str]:
    """A gateway that has stopped has no task and no connection, and has given back every permit."""
    tasks = [task for task in world.tasks() if not task.done()]
    if tasks:
        yield f"{len(tasks)} tasks, the first {tasks[0].get_coro()}"
    owned = [side for side in world.network.open if side.owner.startswith("gateway")]
    if owned:
        yield f"{len(owned)} connections, the first to {owned[0]._place}"
    open_ = [permit for _, permit in world.permits if not permit._ended]
    open_at_gates = [permit for _, permit in world.gate_permits if permit._gate is not None]
    if open_ or open_at_gates or world.leaves.total():
        told = f"{len(open_)} permits, {len(open_at_gates)} of gates and leave {world.leaves.total()} times"
        yield f"{told} have not ended"


OF_END: Final[tuple[OfWorld, ...]] = (nothing_is_left, nothing_is_a_bug)
OF_SILENCE: Final[tuple[OfWorld, ...]] = (nothing_is_a_bug,)


def of_moment(world: World) -> None:
    _all(world, OF_MOMENT)


def of_calm(world: World) -> None:
    _all(world, OF_CALM)


def of_end(world: World) -> None:
    _all(world, OF_END)


def of_silence(world: World) -> None:
    """After the loop has ended: what was heard of only then."""
    _all(world, OF_SILENCE)


def _all(world: World, invariants: tuple[OfWorld, ...]) -> None:
    for invariant in invariants:
        for what in invariant(world):
            raise Violated(invariant.__name__, what)


def _living(world: World) -> list[Process]:
    return [process for process in world.processes if process.up]
