"""What must not come back: models that have become others, rows that were deleted, answers that were purged.

Rule of this file: as ``invariants.py``. What a gateway can know is what it has been told, and the ledger has that too:
when a look at a model had come to it, and what its own answers have said of a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise, permutations
from typing import TYPE_CHECKING, Final

from tests.sim import faults
from tests.sim.client import Told
from tests.sim.ledger import Execution

if TYPE_CHECKING:
    from tests.sim.world import Process, World

SLACK_SECONDS: Final = 0.1
"""For the way of bytes and what waits for its turn; what the event loop was stalled for comes on top."""
OLD_OF_NOW: Final = frozenset({"revalidating", "max-stale", "brownout"})
"""Why an old answer is given that is of the models as they are: what is of others is only for need."""
FORGETTING: Final = frozenset({faults.DISK_ROTS, faults.DISK_GONE})
"""After these nobody can say what a disk should still know."""


def executions(world: World, told: Told) -> list[Execution]:
    """What each row of an answer is of."""
    return [made for row in told.output("y") if (made := world.ledger.of(row[0])) is not None]


def looked_up(world: World, told: Told, made: Execution) -> float:
    """When the rows of an execution were looked up, at the earliest: it may have waited for its turn."""
    timeout = world.scene.bounds[told.question.route].timeout
    if told.state in ("hit", "stale"):
        return made.began - timeout
    return told.asked - (timeout if "collapsed" in told.fields.get("cache-status", "") else 0.0)


# -- models -----------------------------------------------------------------------------------------


def no_model_that_is_gone(world: World, told: Told) -> Iterator[str]:
    """A model that every replica has been seen without is never called fresh, nor served as an old answer while nobody
    has failed. A copy of another life's answer is held against what was seen once a round: until then it may
    be. And as long as no word holds, where a route says that a copy is as good, and this life has not seen both."""
    is_fresh = told.state == "hit" or (told.state == "stale" and told.labels.get("reason") in OLD_OF_NOW)
    if told.status != 200 or not is_fresh:
        return
    born = max([at for at in _process(world, told).begun if at <= told.asked], default=0.0)
    for made in executions(world, told):
        hosts = [host for host, triton in world.tritons.items() if made.model in triton.models]
        seen = [_seen(world, told, host, made) for host in hosts]
        last = max([math.inf if at is None else at for at in seen], default=math.inf)
        is_own = made.asker == told.gateway and made.arrived > born and told.labels.get("reason") != "snapshot"
        is_copy = bool(world.scene.disks) and not is_own
        if last < told.asked - SLACK_SECONDS and (not is_copy or _is_known(world, told, made, last)):
            yield f"execution {made.serial} is of generation {made.generation}, seen gone at {seen}"


def _trusts(world: World, route: str) -> bool:
    caches = [config.routes[route].cache for config in world.scene.configs]
    return any(cache is not None and cache.snapshot == "fresh" for cache in caches)


def _seen(world: World, told: Told, host: str, made: Execution) -> float | None:
    """When a gateway saw another model in the place of this execution's; None: it has not yet."""
    looks = world.ledger.shown.get((told.gateway, host, made.model), [])
    before = [each for each in looks if each[0] <= told.asked]
    return next((at for at, generation in before if generation > made.generation), None)


def _is_known(world: World, told: Told, made: Execution, last: float) -> bool:
    """Whether the gateway, as it was configured then, knew that a model has changed since: it has seen it happen, or
    since the ``last`` look that shows it there has been a round, after which a word held."""
    process = _process(world, told)
    since = max([at for at in process.begun if at <= told.asked], default=told.asked)
    until = told.asked - SLACK_SECONDS - world.stalled(told.asked, told.answered)
    looks = world.ledger.shown.get((told.gateway, made.replica, made.model), [])
    seen = [generation for at, generation in looks if since <= at < until]
    if any(one <= made.generation < other for one, other in pairwise(seen)):
        return True
    route = process.gateway.routes.get(told.question.route)
    copies = None if route is None else route.copies
    rounds = [] if copies is None or copies.witness is None else world.rounds.get(copies.witness, [])
    rounds = [each for each in rounds if each[0] > last + SLACK_SECONDS]
    since_then = {state for _, ended, state in rounds if ended >= until}
    before = [state for _, ended, state in rounds if ended < until]
    trusts = _trusts(world, told.question.route)
    return bool(before) and (not trusts or {before[-1], *since_then} == {"held"})


def rows_are_of_one_model(world: World, told: Told) -> Iterator[str]:
    """Rows that stand together in one answer are of one generation of a model, as far as the gateway that asked for
    them has seen it change in between. What is asked for while that is seen may be of both: new, and of rows that were
    there."""
    if told.status != 200:
        return
    made = {each.serial: each for each in executions(world, told)}
    for one, other in permutations(made.values(), 2):
        if one.model != other.model or one.generation >= other.generation:
            continue
        looks = world.ledger.shown.get((told.gateway, one.replica, one.model), [])
        seen = next((at for at, generation in looks if generation > one.generation), None)
        if seen is None or {one.asker, other.asker} != {told.gateway}:
            continue
        known = seen + SLACK_SECONDS + world.stalled(seen, other.began)
        is_new = told.state in ("miss", "bypass")
        if one.arrived < seen and known < (min(told.asked, other.began) if is_new else other.began):
            yield (
                f"executions {one.serial} and {other.serial} are of generations {one.generation} and "
                f"{other.generation}; that was seen {other.began - seen:.2f} s before the second"
            )


# -- rows of tables -----------------------------------------------------------------------------------


def what_is_deleted_stays_so(world: World, told: Told) -> Iterator[str]:
    """A row of which a gateway has said that its store has none is told no more: not by the copy on its disk either,
    when the store is away. What was not on the disk yet when a process ended may be forgotten."""
    for table, key, version, since in _rows(world, told):
        ends = world.ledger.superseded(table, key, version) if version else None
        if ends is None or ends > since:
            continue
        for each in world.told:
            if each.gateway != told.gateway or each.answered >= since:
                continue
            was_gone = (table, key, 0) in [row[:3] for row in _rows(world, each) if row[3] > ends]
            if was_gone and not _forgotten(world, _process(world, told), each.answered, told.asked):
                yield (
                    f"{table} {key} at version {version} was over {since - ends:.2f} s before, and said to be gone "
                    f"{since - each.answered:.2f} s before; label {told.tables.get(table)}"
                )
                return


def _rows(world: World, told: Told) -> Iterator[tuple[str, int, int, float]]:
    """Rows of tables in an answer that was made just now: each with its version (0: there was none), and since when it
    may have been looked up. Not those of which it is not told whether they were absent or lost."""
    if told.state not in ("miss", "bypass"):
        return
    for table, key, part, at in features(world, told):
        label = told.tables.get(table, {})
        if part[1] or (label.get("absent") and not label.get("lost")):
            yield table, key, int(part[1]), at


def features(world: World, told: Told) -> Iterator[tuple[str, int, list[float], float]]:
    """Rows of tables that an answer was made of, as the model was given them, and since when each may have been looked
    up."""
    if told.status != 200 or not told.question.user:
        return
    for place, (row, made) in enumerate(zip(told.output("f"), executions(world, told), strict=False)):
        at = looked_up(world, told, made)
        yield "user", told.question.user, row[:3], at
        yield "item", told.question.rows[place], row[3:], at


def _forgotten(world: World, process: Process, since: float, until: float) -> bool:
    """Whether a gateway may have forgotten what it knew ``since`` then: one of its lives has ended before that was
    written, or the disk has."""
    disk = process.disk
    ends = [at for at in (*process.killed, *process.ended) if since <= at <= until]
    if disk is None or not ends:
        return bool(ends)
    snapshot = world.scene.configs[0].snapshot
    assert snapshot is not None
    written = since + 2.0 * float(snapshot.interval) + SLACK_SECONDS + world.stalled(since, until)
    spells = [spell for spell in world.weather.at(disk.place) if spell.begins <= until]
    if any(spell.kind in FORGETTING for spell in spells) or sum(each.disk is disk for each in world.processes) > 1:
        return True
    return any(at < written or any(spell.ends >= since for spell in spells) for at in ends)


# -- answers ------------------------------------------------------------------------------------------


def nothing_outlives_a_purge(world: World, told: Told) -> Iterator[str]:
    """Who asks after a purge gets nothing that was begun before it."""
    purges = [at for at in world.purges.get((told.gateway, told.question.route), []) if at < told.asked]
    if told.status != 200 or not purges:
        return
    for made in executions(world, told):
        if made.began < purges[-1]:
            yield f"execution {made.serial} began {purges[-1] - made.began:.3f} s before a purge that came first"


def _process(world: World, told: Told) -> Process:
    return next(each for each in world.processes if each.name == told.gateway)
