"""What must hold, whatever fails: each in a function of its own, which says what does not.

Rule of this file: it looks and changes nothing. Each function yields what is wrong, in words; nothing is right. What an
answer was made of is known from the ledger (each execution of a model has a number, which is in its answer), so that no
bound is guessed: an answer is as old as the execution that it names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import TYPE_CHECKING, Any, Final

from degrade.brownout import STALE_FIRST
from tests.sim import faults
from tests.sim.client import Told
from tests.sim.gone import (
    SLACK_SECONDS,
    executions,
    features,
    no_model_that_is_gone,
    nothing_outlives_a_purge,
    rows_are_of_one_model,
    what_is_deleted_stays_so,
)
from tests.sim.ledger import Execution, Row, fingerprint, scores
from tests.sim.scene import CALLERS, COHERENT, ITEM_MAX_STALE, MODELS, TABLE_TIMEOUT, TABLE_TTL
from tests.sim.world import Violated
from tests.sim.writers import check

if TYPE_CHECKING:
    from tests.sim.world import World

STATUSES: Final = frozenset({200, 429, 500, 503, 504})

WANTED_OLD: Final = frozenset({"revalidating", "max-stale"})
"""Why an old answer is given that no failure brings: it is renewed behind its caller, or he would have it so old."""

OfAnswer = Callable[["World", Told], Iterator[str]]


def _age(told: Told, made: Execution) -> float:
    """How old an answer was when it was given: since all of it had come to the gateway."""
    return told.answered - made.arrived


def _made_before(world: World, told: Told, made: Execution) -> float:
    """How old the answer is that an execution is in: where several tiers have a part in it, it was made with the
    last."""
    if len(MODELS[told.question.route]) == 1:
        return _age(told, made)
    return min(_age(told, each) for each in executions(world, told))


def _slack(world: World, told: Told) -> float:
    """What a clock of the world's may be off by: the event loop's stalls; other processes' answers, and copies, are
    dated by the civil clock, which may have been set."""
    seconds = SLACK_SECONDS + world.stalled(told.asked - 5.0, told.answered) + world.on_the_way(told)
    if told.question.route.startswith("second") or world.scene.disks:
        seconds += world.stepped
    return seconds


# -- of an answer -----------------------------------------------------------------------------------


def answers_are_true(world: World, told: Told) -> Iterator[str]:
    """Each row of an answer is what a model of the route said to that very row, and nobody spoiled it."""
    if told.status != 200:
        return
    question = told.question
    names = tuple(each["name"] for each in told.document["outputs"])
    due = question.outputs or (("y", "p", "f") if question.user else ("y", "p"))
    made_by = executions(world, told)
    if not question.outputs and any(made.flawed == faults.MISSING for made in made_by):
        due = tuple(name for name in due if name in names)  # a model may leave out what nobody has named
    if sorted(names) != sorted(due):
        yield f"outputs {names} where {due} were asked for"
        return
    rows, features, sure = told.output("y"), told.output("f"), told.output("p")
    if len(rows) != len(question.rows):
        yield f"{len(rows)} rows where {len(question.rows)} were asked for"
        return
    for place, (serial, generation, said, first) in enumerate(rows):
        made = world.ledger.of(serial)
        if made is None or made.model not in MODELS[question.route] or made.generation != generation:
            yield f"row {place} names execution {serial}, which is none of this route's"
            continue
        asked = _row(question.rows[place], question.scale) if not features else (*map(int, features[place]), 0)
        if asked not in made.rows or said != fingerprint(made.model, generation, asked) or first != asked[0]:
            yield f"row {place} of execution {serial} is no answer to {asked}"
        if made.flawed == faults.SHAPE:
            yield f"row {place} is of execution {serial}, whose answer was broken ({made.flawed})"
        if sure and made.flawed != faults.NAN and not _close(sure[place], scores(made.model, asked)):
            yield f"row {place} of execution {serial} has scores {sure[place]}"


def _row(key: int, scale: int) -> Row:
    return (key, key * 7, scale)


def _close(one: list[float], other: tuple[float, ...]) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(one, other, strict=True))


def answers_are_of_one_tenant(world: World, told: Told) -> Iterator[str]:
    """What was asked for one tenant is never another's answer, but where a route says that it is everybody's."""
    route = told.question.route
    if any((cache := config.routes[route].cache) is not None and cache.shared for config in world.scene.configs):
        return
    tenant = CALLERS[told.question.caller]
    for made in executions(world, told):
        owner = world.tenants.setdefault((route, made.serial), tenant)
        if owner != tenant:
            yield f"execution {made.serial} was tenant {owner}'s and is told to {tenant}"


def nothing_old_is_unlabelled(world: World, told: Told) -> Iterator[str]:
    """What is called fresh is no older than the route's ttl; what is old says so, and how old it is."""
    if told.status != 200:
        return
    bounds, slack = world.scene.bounds[told.question.route], _slack(world, told)
    lasted = told.answered - told.asked
    for made in executions(world, told):
        age = _made_before(world, told, made)
        if told.state == "hit" and age > bounds.ttl + slack:
            yield f"execution {made.serial} is {age:.2f} s old and called fresh; ttl {bounds.ttl}"
        if told.state == "stale" and age > bounds.ttl + bounds.max_stale + slack:
            yield f"execution {made.serial} is {age:.2f} s old; max_stale {bounds.max_stale}"
        if told.state in ("hit", "stale"):
            said = int(told.fields.get("age", -10))
            if said + 1 + slack < age:
                yield f"execution {made.serial} is {age:.2f} s old and said to be {said}"
        if told.state in ("miss", "bypass"):
            kept = bounds.ttl if "kept" in told.labels else 0.0
            if made.began < told.asked - bounds.timeout - kept - slack and not told.labels.get("steps"):
                yield f"execution {made.serial} began {told.asked - made.began:.2f} s before it was asked for"
            if age > kept + bounds.timeout + lasted + slack:
                yield f"execution {made.serial} is {age:.2f} s old and called new"


def directives_are_kept(world: World, told: Told) -> Iterator[str]:
    """Cache-Control of the request: no-cache, max-age and only-if-cached."""
    if told.status != 200:
        return
    directives, slack = told.question.directives, _slack(world, told)
    lasted = told.answered - told.asked
    if directives == "only-if-cached" and told.state not in ("hit", "stale"):
        yield f"only-if-cached, and it was a {told.state}"
    for made in executions(world, told):
        age = _made_before(world, told, made)
        if "no-cache" in directives and made.began < told.asked:
            yield f"no-cache, and execution {made.serial} is older"
        looked = lasted if world.scene.disks else 0.0  # while it waits for a disk, another's answer may come
        if directives == "only-if-cached" and made.began > told.asked + slack + looked:
            yield f"only-if-cached, and execution {made.serial} is newer"
        for part in directives.split(", "):
            if part.startswith("max-age=") and age > int(part[8:]) + lasted + slack:
                yield f"{directives}, and execution {made.serial} is {age:.2f} s old"


def nothing_degraded_is_unlabelled(world: World, told: Told) -> Iterator[str]:
    """A row that the small model was unsure of is only ever told with the word degraded."""
    if told.status != 200 or "degraded" in told.labels:
        return
    if told.state == "stale" and ("steps" in told.labels or told.labels.get("reason") not in WANTED_OLD):
        yield "a stale answer by the ladder that is not called degraded"
    rows = told.output("y")
    for key, made in zip(told.question.rows, executions(world, told), strict=False):
        score = scores(made.model, _row(key, told.question.scale))
        if made.model == "small" and score[0] - score[1] < 0.5 and len(rows) == len(told.question.rows):
            yield f"row {key} is the small model's, which was unsure of it"


def features_are_as_labelled(world: World, told: Told) -> Iterator[str]:
    """Each row that the model was given is the table's, no older than its label says; defaults are counted."""
    tables = told.tables
    for table, key, part, at in features(world, told):
        yield from _feature(world, table, key, part, at, tables.get(table, {}))


def _feature(
    world: World, table: str, key: int, part: list[float], at: float, label: dict[str, int]
) -> Iterator[str]:
    own, version, sum_ = map(int, part)
    if part == [0.0, 0.0, 0.0]:
        if not label.get("absent") and not label.get("lost"):
            yield f"{table} {key} is a default, and its label does not say so: {label}"
        return
    if own != key or sum_ != check(key, version):
        yield f"{table} {key} was given the row {part}"
        return
    ends = world.ledger.superseded(table, key, version)
    old = label.get("age", 0) + 1.0
    bound = (COHERENT if table == "user" else TABLE_TTL) + TABLE_TIMEOUT
    slack = SLACK_SECONDS + world.stalled(at - 5.0, at) + (world.stepped if label.get("snapshot") else 0.0)
    if ends is None:
        yield f"{table} {key} never was at version {version}"
    elif table == "item" and label.get("snapshot") and old > TABLE_TTL + ITEM_MAX_STALE + 1.0 + slack:
        yield f"{table} {key} is a copy of {old - 1.0} s before"
    elif not label.get("stale") and not label.get("snapshot") and ends < at - bound - slack:
        yield f"{table} {key} at version {version} was over {at - ends:.2f} s before, and is called fresh"
    elif ends < at - old - slack - bound:
        yield f"{table} {key} at version {version} was over {at - ends:.2f} s before; label {label}"


def deadlines_are_kept(world: World, told: Told) -> Iterator[str]:
    """Whoever waits is told something within the route's time, or its own if that is shorter."""
    question = told.question
    if told.left:
        return
    if told.lost:
        if not world.may_break(told) and not world.met_an_end(told):
            yield f"no answer: {told.lost}"
        return
    bound = world.scene.bounds[question.route].timeout
    bound = min(bound, question.timeout) if question.timeout else bound
    lasted = told.answered - told.asked
    if lasted > bound + SLACK_SECONDS + world.stalled(told.asked, told.answered) + world.on_the_way(told):
        yield f"took {lasted:.3f} s of {bound:.3f} s (status {told.status})"


def refusals_are_expected(world: World, told: Told) -> Iterator[str]:
    """A request that is as it should be is answered, or refused for a reason that is not its own."""
    if told.status == 408 and world.on_the_way(told):
        return
    if told.status and told.status not in STATUSES:
        yield f"status {told.status}: {told.document}"
    if told.status == 500 and "urn:tailrace:problem:internal" in str(told.document):
        yield f"a bug of ours: {told.document}"
    if told.status == 504 and "cached" in str(told.document.get("type")) and "only-if" not in told.question.directives:
        yield "not cached, and it need not have been"


def all_is_well_again(world: World, told: Told) -> Iterator[str]:
    """Some time after the last fault every route answers, fresh, by the models as they are."""
    if not world.calm:
        return
    if told.status == 429 and told.question.route == "limited":
        return
    if told.status == 200 and told.labels.get("reason") == "revalidating":
        return
    if told.status != 200 or "degraded" in told.labels or told.state not in ("hit", "miss", "bypass"):
        yield f"status {told.status} {told.fields.get('tailrace-provenance')}: {str(told.document)[:300]}"
        return
    for made in executions(world, told):
        present = world.tritons[made.replica].models[made.model].generation
        if made.generation != present:
            yield f"execution {made.serial} is of generation {made.generation}; it is {present}"


def levels_are_told(world: World, told: Told) -> Iterator[str]:
    """An answer says at which brownout level it was made, but for a hit, which is what it always is; an old one is
    given first at a level that asks for it, by a route that allows it."""
    labels = told.labels
    if told.state in ("", "none"):  # it was refused before it had come so far
        return
    said, possible = int(labels.get("brownout", 0)), _levels(world, told)
    if said not in (possible if told.state != "hit" else {0}):
        yield f"it says level {said}, and it was {sorted(possible)}"
    if labels.get("reason") != "brownout":
        return
    routes = [config.routes[told.question.route] for config in world.scene.configs]
    if said < STALE_FIRST or not any("stale" in route.brownout for route in routes):
        yield f"an old answer first at level {said}"
    if "stale" not in labels.get("steps", "") or "degraded" not in labels:
        yield "an old answer first that does not say so"


def _levels(world: World, told: Told) -> set[int]:
    """At which levels of its route it may have been asked."""
    backends = {tier.backend for config in world.scene.configs for tier in config.routes[told.question.route].tiers}
    since = told.asked - world.stalled(told.asked, told.answered)
    found: list[set[int]] = []
    for backend in backends:
        looks = world.levels[told.gateway, backend]
        after = [level for at, level in looks if since <= at <= told.answered]
        before = [level for at, level in looks if at < since]
        found.append({*after, *before[-1:]})
    return {max(each) for each in product(*found)}


OF_ANSWER: Final[tuple[OfAnswer, ...]] = (
    answers_are_true,
    answers_are_of_one_tenant,
    nothing_old_is_unlabelled,
    directives_are_kept,
    no_model_that_is_gone,
    rows_are_of_one_model,
    nothing_outlives_a_purge,
    what_is_deleted_stays_so,
    nothing_degraded_is_unlabelled,
    features_are_as_labelled,
    deadlines_are_kept,
    refusals_are_expected,
    all_is_well_again,
    levels_are_told,
)


def of_answer(world: World, told: Told) -> None:
    """Raises Violated."""
    if told.status != 200 and world.had_no_route(told):  # it was passed on, as what no route serves is
        return
    for invariant in OF_ANSWER:
        for what in invariant(world, told):
            raise Violated(invariant.__name__, f"{what}; {_shown(told)}")


def of_passing(world: World, told: Told) -> None:
    """What passes through is what the server says, once all is well; before it may be cut short as the server's was."""
    is_theirs = told.status == 200 and told.document is not None and told.document.get("name") == told.question.route
    if not is_theirs and (world.calm or told.status not in (0, 200, 502, 503, 504)):
        raise Violated("what_passes_is_theirs", f"status {told.status} {told.document} {told.lost}")


def _shown(told: Told) -> str:
    label: Any = told.fields.get("tailrace-provenance")
    return f"{told.question} asked {told.asked:.4f}, answered {told.answered:.4f} by {told.gateway}: {label}"
