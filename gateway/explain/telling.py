"""What a caller of a route would get under given conditions, and why: one request through the real pipeline.

Rule of this file: it asks, and puts what came of it into words; everything that it tells of an answer is what the
answer says itself. It asks twice: at first, when nobody has learnt of the conditions yet, and once the breakers have,
which open after many callers have met the same. Where chance says which replica is asked, the least lucky caller's
answer is told.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Mapping, Sequence
from typing import Final, Protocol

import msgspec
import numpy as np

from cache.digest import Key
from degrade.deadline import Deadline
from degrade.ladder import TABLE, Failure, Step
from gateway.admission.auth import Caller
from gateway.admission.ratelimit import Limiter
from gateway.call import Answer, Call
from gateway.codec.http import NO_DIRECTIVES, provenance_headers
from gateway.config import Config, InputRule
from gateway.config import Route as RouteConfig
from gateway.explain.conditions import LEVELS, Condition, concerns
from gateway.explain.keeping import CopiedRows, Keeping
from gateway.explain.world import Loop, Seen, World, datatype_of, deafen, home, input_names, table
from gateway.homes import pool_options
from gateway.operate.telemetry import Telemetry
from gateway.pipeline import Pipeline
from gateway.problem import Problem, Refused
from gateway.route import Route
from gateway.standing import Retired
from gateway.tables import Ids, Table
from gateway.till import Till
from gateway.units import Seconds
from tiers.cascade import TIER_SHARE
from tiers.datatype import pack
from tiers.inference import InferRequest, InferResponse, Provenance, Tensor

CROWD: Final = 16
"""Callers at once who meet the same before the second look: as many as the breakers of a few replicas need."""
CROWDS: Final = 4
"""One after the other, so that breakers stay open longer than a caller waits."""
CHANCES: Final = 4
"""Seeds that are tried for the least lucky caller."""
CALLER: Final = Caller("someone", "")
DEGRADED: Final = "tailrace_degraded"


COPIES_AS: Final = {"none": "empty", "fresh": "fresh", "unknown": "fresh", "old": "old"}
"""How old a copy is, in the words for what is held."""


class Rung(msgspec.Struct, frozen=True):
    """A step of a route's ladder and what bounds it."""

    step: Step
    bound: str


class Outcome(msgspec.Struct, frozen=True):
    """What a caller got, and after how many ``seconds``. ``asked``: everyone who was asked for it; ``steps``: each
    failure and the step after it; ``problem`` None: an answer."""

    asked: tuple[Seen, ...]
    steps: tuple[tuple[str, str], ...]
    problem: Problem | None
    provenance: Provenance
    seconds: float

    @property
    def gist(self) -> tuple[object, ...]:
        """What two outcomes have in common that are told as one."""
        told, problem = self.provenance, self.problem
        refused = None if problem is None else (problem.status, problem.slug)
        return (refused, told.cache, told.reason, told.tier, told.steps, told.degraded)


class Calling(Protocol):
    """Asks the pipeline for the answer to a request by its number."""

    def __call__(self, number: int) -> Coroutine[object, object, Answer[InferResponse]]: ...


def explain(config: Config, name: str, conditions: Sequence[Condition]) -> str:
    """The text for an operator. The route is one of the configuration's."""
    first, later = (least_lucky(config, name, conditions, crowds) for crowds in (0, CROWDS))
    when = ", ".join(f"{each.name} {each.state}" for each in conditions) or "nothing is wrong"
    lines = [f"route {name}, when {when}"]
    if first.gist == later.gist:
        lines += _told(first)
    else:
        lines += ["", "At first:", *_told(first)]
        lines += ["", f"After {CROWD * CROWDS} callers who met the same:", *_told(later)]
    route = config.routes[name]
    lines += ["", "Its ladder (degrade), in order:"]
    taken = {step for outcome in (first, later) for _, step in outcome.steps}
    failures = {Failure(failure) for failure, _ in first.steps}
    for rung in rungs(config, route):
        lines.append(f"  {rung.step.value:<8} {rung.bound}{_verdict(rung.step, taken, failures)}")
    for each in conditions:
        if not concerns(each, config, route):
            lines += ["", f'"{each.name} {each.state}" is nothing to this route: it neither asks nor has that.']
    is_said = any(each.kind == "second" or (each.kind, each.name) == ("stores", "redis") for each in conditions)
    if route.cache is not None and route.cache.second is not None and not is_said:
        lines += ["", 'The second level is taken to have nothing of it; say "second fresh" for the other case.']
    return "\n".join(lines)


def rungs(config: Config, route: RouteConfig) -> tuple[Rung, ...]:
    """A route's ladder, and what bounds each step: the configuration, and the parts that take it."""
    backends = [config.backends[tier.backend] for tier in route.tiers]
    retries = pool_options(backends[0])
    counts = dict.fromkeys(len(each.http or each.grpc) for each in backends)
    several = f"one other of {' or '.join(map(str, counts))} replicas"
    others = several if max(counts) > 1 else "there is no other replica"
    cache = route.cache
    old = "nothing is cached"
    if cache is not None:
        old = f"up to cache.max_stale ({cache.max_stale}) beyond cache.ttl ({cache.ttl})"
        old = old if cache.max_stale > 0 else "never: cache.max_stale is 0s"
    bounds = {
        Step.REPLICA: f"{others}; "
        f"retries are {retries.retry_ratio:.0%} of requests at most, and {retries.retry_floor_per_second:g} a second",
        Step.TIER: f"{len(route.tiers)} of them; one before another has {TIER_SHARE:.0%} of the time left",
        Step.STALE: old,
        Step.SNAPSHOT: _copied(config, route),
        Step.DEFAULT: _declared(route),
        Step.REFUSE: f"at the latest after routes.timeout ({Seconds(route.timeout)})",
    }
    order = [Step(step) for step in route.degrade]
    return tuple(Rung(step, bounds.get(step, "")) for step in (*order, Step.REFUSE))


def _copied(config: Config, route: RouteConfig) -> str:
    """What a route has of earlier processes."""
    cache = route.cache
    if config.snapshot is None:
        return "nothing is copied: there is no [snapshot]"
    if cache is None or cache.snapshot == "off":
        return f"nothing is copied: {'nothing is cached' if cache is None else 'cache.snapshot is off'}"
    return "what an earlier process has left, within the same ages; say snapshot fresh, unknown or old"


def _declared(route: RouteConfig) -> str:
    """What a route has for when everything else has failed."""
    if not route.default:
        return "none is declared"
    each = ", of each row" if any(output.is_by_row for output in route.default.values()) else ""
    return f"what is declared ({', '.join(route.default)}{each})"


def _verdict(step: Step, taken: set[str], failures: set[Failure]) -> str:
    """Whether it was taken, and if not what speaks against it."""
    if step.value in taken:
        return "; taken"
    if failures and step is not Step.REFUSE and all(step not in TABLE[failure] for failure in failures):
        return f"; makes no sense after {', '.join(sorted(failure.value for failure in failures))}"
    return ""


# -- asking -------------------------------------------------------------------------------------------------


def least_lucky(config: Config, name: str, conditions: Sequence[Condition], crowds: int = 0) -> Outcome:
    """The outcome in which the most had to be asked."""
    found = [_look(config, name, conditions, crowds, seed) for seed in range(CHANCES)]
    return max(found, key=lambda outcome: (len(outcome.asked), len(outcome.steps)))


def _look(config: Config, name: str, conditions: Sequence[Condition], crowds: int, seed: int) -> Outcome:
    world = World(conditions)
    with asyncio.Runner(loop_factory=lambda: Loop(world.ticker)) as runner:
        return runner.run(look(world, config, name, crowds, seed))


async def look(world: World, config: Config, name: str, crowds: int, seed: int) -> Outcome:
    """What one request of a route comes to, after ``crowds`` of others have met the same conditions. To be run in a
    ``Loop`` of the world's."""
    settings = msgspec.structs.replace(config.routes[name], quota=None, caller_quota=None)
    homes = {tier.backend: home(world, config, tier.backend, settings, random.Random(seed)) for tier in settings.tiers}
    named = () if settings.features is None else settings.features.tables
    tables = {each: table(world, each, config.tables[each]) for each in named}
    places = [homes[tier.backend] for tier in settings.tiers]
    route = Route(name, settings, places, int(config.server.body_bytes_max), tables)
    telemetry = Telemetry(world.ticker)
    pipeline = Pipeline(Till(Limiter(1), world.ticker), telemetry, world.ticker, random.Random(seed))
    keeping = Keeping(world, config, route)

    def call(number: int) -> Coroutine[object, object, Answer[InferResponse]]:
        deadline = Deadline.after(world.now, route.timeout)
        return pipeline.answer(Call(route, CALLER, _request(settings, number), NO_DIRECTIVES, deadline))

    async def together(crowd: int) -> None:
        others = range(1 + crowd * CROWD, 1 + (crowd + 1) * CROWD)
        await asyncio.gather(*(call(number) for number in others), return_exceptions=True)

    try:
        await world.live(route.learning.facts(Deadline.after(world.now, route.timeout)))
        await world.live(keeping.begin())
        await _prepare(world, route, tables, call, keeping, _request(settings, 0))
        world.ill = True
        for each in tables.values():
            deafen(world, each)
        for place in homes.values():
            place.pool.gates.level = LEVELS.get(world.state("brownout", "brownout"), 0)
        for crowd in range(crowds):
            await world.live(together(crowd))
        world.seen.clear()
        began, before, problem = world.now, _steps(telemetry), None
        try:
            told = (await world.live(call(0))).provenance
        except Refused as refused:
            problem, told = refused.problem, refused.provenance or Provenance()
        steps = tuple([step for step, count in _steps(telemetry).items() if count > before.get(step, 0)])
        return Outcome(tuple(world.seen), steps, problem, told, world.now - began)
    finally:
        await keeping.close()
        await pipeline.close()
        await Retired(tuple(homes.values()), (route,), tuple(tables.values())).close()


async def _prepare(
    world: World, route: Route, tables: Mapping[str, Table], call: Calling, keeping: Keeping, request: InferRequest
) -> None:
    """Hold what is assumed to be held, from when all was well."""
    cache = route.cache
    held, copied = world.held("cache"), world.held("snapshot")
    if cache is not None and (held, copied, world.held("second")) != ("empty", "none", "empty"):
        config = route.config.cache
        assert config is not None
        ttl, max_stale, refresh = float(config.ttl), float(config.max_stale), float(config.refresh)
        await world.live(call(0))
        await world.live(keeping.left(_age(COPIES_AS[copied], ttl, max_stale)))
        key = Key(route.digest(CALLER, request), route.epoch)
        entry = cache.peek(key.digest)
        cache.purge()
        if route.row_cache is not None:
            route.row_cache.purge()
        if entry is not None and held != "empty":
            aged = msgspec.structs.replace(entry, stored_at=world.now - _age(held, ttl, max_stale, refresh))
            cache.store(key, aged, cache.ticket())
    for each in tables.values():
        lives = float(each.config.ttl), float(each.config.max_stale)
        began = world.now - _age(world.held("rows"), *lives)
        each.near.put(_ids(each.config.ids, 0), np.zeros((1, *each.shape), np.float32), began, each.near.ticket())
        if each.config.is_copied and copied != "none" and _age(COPIES_AS[copied], *lives) <= sum(lives):
            each.copies = CopiedRows(each.shape, _age(COPIES_AS[copied], *lives))


def _age(held: str, ttl: float, max_stale: float, refresh: float = 0.0) -> float:
    """Seconds that something has been held: in the middle of what counts as old, or beyond all use."""
    return {"fresh": 0.0, "old": ttl + ((refresh + max_stale) / 2 or 1.0)}.get(held, ttl + max_stale + 1.0)


def _request(route: RouteConfig, number: int) -> InferRequest:
    """A request of one row; another number makes another request."""
    tensors = []
    for name in input_names(route):
        datatype = datatype_of(route, name)
        value: object = str(number) if datatype == "BYTES" else _value(route.inputs.get(name), number)
        tensors.append(Tensor(name, datatype, (1, 1), pack([value], datatype)))
    for name, entity in () if route.features is None else route.features.entities.items():
        value = str(number) if entity.datatype == "BYTES" else number
        tensors.append(Tensor(name, entity.datatype, (1,), pack([value], entity.datatype)))
    return InferRequest("m", tuple(tensors))


def _value(rule: InputRule | None, number: int) -> float:
    """A number that the route takes."""
    share = number / (CROWD * CROWDS + 1)
    if rule is None or (rule.min is None and rule.max is None):
        return float(number)
    low = rule.min if rule.min is not None else (rule.max or 0.0) - 1.0
    high = rule.max if rule.max is not None else low + 1.0
    return low + (high - low) * share


def _ids(kind: str, number: int) -> Ids:
    return np.array([number], np.int64) if kind == "integer" else [str(number).encode()]


def _steps(telemetry: Telemetry) -> dict[tuple[str, str], int]:
    """Every failure and the step after it, and how often that was."""
    family = next(each for each in telemetry.collect() if each.name == DEGRADED)
    return {(each.labels["failure"], each.labels["step"]): int(each.value) for each in family.samples}


# -- telling ------------------------------------------------------------------------------------------------


def _told(outcome: Outcome) -> list[str]:
    asked = [f"  asked  {seen.who}, {seen.what}: {seen.came}" for seen in outcome.asked]
    lines = asked or ["  nobody is asked"]
    lines += [f"  step   after {failure}: {step}" for failure, step in outcome.steps]
    told, after = outcome.provenance, f" after {outcome.seconds:.3g} s" if outcome.seconds else ""
    if outcome.problem is not None:
        lines.append(f"  gets  {after} {outcome.problem.status} {outcome.problem.slug}: {outcome.problem.detail}")
        lines += [f"         {name}: {value}" for name, value in outcome.problem.headers() if name == "Retry-After"]
    else:
        place = "the snapshot" if "snapshot" in (told.reason, *told.steps) else "the cache"
        place = "the second level" if told.reason == "second" else place
        kind = {"hit": f"a fresh answer from {place}", "stale": f"an old answer from {place}"}
        is_declared = Step.DEFAULT.value in told.steps
        said = "the declared default" if is_declared else f"{kind.get(told.cache, 'an answer')}, of {told.tier}"
        less = ", which is less than health would give" if told.degraded else ""
        lines.append(f"  gets  {after} 200: {said}{less}")
    lines += [f"         {name}: {value}" for name, value in provenance_headers(told, outcome.seconds)]
    return lines
