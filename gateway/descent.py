"""The ladder below the tiers: what is left for a request when those who were asked have given nothing.

    an old answer in memory -> a copy in the snapshot -> the declared default -> a problem that says why

Rule of this file: it decides, and does nothing. It looks at what is kept, asks ``degrade/ladder.py`` which step that
makes, and says what that step serves; ``pipeline.py`` serves it, counts it and labels it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, Generic

import msgspec

from cache.digest import Key
from cache.entry import Found
from degrade.ladder import Failure, Remains, Step, next_step
from gateway.call import Call
from gateway.problem import (
    Problem,
    answer_too_large,
    deadline_exceeded,
    model_failed,
    overloaded,
    unavailable,
)
from gateway.recall import tolerates
from gateway.service import Q, R, Served
from tiers.inference import UpstreamError

RETRY_AFTER_SECONDS: Final = 1.0
"""When to come back after the ladder's end, if no breaker knows better."""
RETRY_SPREAD: Final = 2.0
"""Retry-After is spread up to this factor, so that those who were refused do not return as one wave."""

_REPLICA, _TIER = Step.REPLICA, Step.TIER  # those that pool and cascade take, the others being the pipeline's


class Descent(msgspec.Struct, Generic[R], frozen=True):
    """The step that is taken, and what it serves: ``found`` of what is kept (STALE, SNAPSHOT), or what ``default``
    makes of what is declared (DEFAULT). ``fault``: why there is no default where one is declared; "" if that was not
    the reason."""

    step: Step
    found: Found[Served[R]] | None = None
    default: Callable[[], R] | None = None
    fault: str = ""


async def descended(call: Call[Q, R], key: Key | None, failure: Failure, now: float) -> Descent[R]:
    """What a request comes to whose tiers have failed so; ``key`` is of the epoch that is now, None for what has
    none."""
    older, copied = await _older(call, key, now), await _copied(call, key, now)
    kept = {Step.STALE: older, Step.SNAPSHOT: copied}
    steps = call.route.steps
    above = steps[: steps.index(Step.DEFAULT)] if Step.DEFAULT in steps else steps
    is_needed = all(kept.get(step) is None for step in above)  # the request is held against the models for it
    declared = _declared(call) if is_needed else ""
    is_there = not isinstance(declared, str)
    remains = Remains(
        replica=False, tier=False, stale=older is not None, snapshot=copied is not None, default=is_there,
        time=not call.deadline.expired(now),
    )  # fmt: skip
    step = next_step(failure, remains, steps)
    if isinstance(declared, str):
        return Descent(step, kept.get(step), None, declared)
    return Descent(step, kept.get(step), declared)


async def tiers_steps(call: Call[Q, R], key: Key | None, now: float) -> tuple[Step, ...]:
    """The ladder's steps that the tiers may take: those before the first of ours that has something to serve. Where
    they have none behind it, nobody looks."""
    steps = call.route.steps
    for place, step in enumerate(steps):
        if step is _REPLICA or step is _TIER:
            continue
        if _REPLICA not in steps[place:] and _TIER not in steps[place:]:
            break
        is_ours = (
            (step is Step.STALE and await _older(call, key, now) is not None)
            or (step is Step.SNAPSHOT and await _copied(call, key, now) is not None)
            or (step is Step.DEFAULT and not isinstance(_declared(call), str))
        )
        if is_ours:
            return steps[:place]
    return steps


def problem_of(title: str, error: UpstreamError, chance: random.Random, fault: str = "") -> Problem:
    """What a caller is told at the ladder's end. ``title``: how the service is called; ``fault``: what is wrong with
    its default, if that was the reason."""
    retry_after = max(RETRY_AFTER_SECONDS, error.retry_after) * chance.uniform(1.0, RETRY_SPREAD)
    beside = f" No default is given: {fault}." if fault else ""
    detail = f"{title} has no answer ({error.failure.value}: {error}), and no older one is kept.{beside}"
    if error.failure in (Failure.TIMEOUT, Failure.LATE):
        return deadline_exceeded(detail, retry_after)
    if error.failure is Failure.SHED:
        return overloaded(detail, retry_after)
    if error.failure is Failure.RAISED:
        return model_failed(detail)
    if error.failure is Failure.OVERSIZED:
        return answer_too_large(detail)
    return unavailable(detail, retry_after)


async def _older(call: Call[Q, R], key: Key | None, now: float) -> Found[Served[R]] | None:
    """What is kept in memory, if there is something and the caller would have it."""
    if key is None or call.route.cache is None:
        return None
    found = await call.route.find(call.caller, call.request, key, now, call.deadline.at)
    return found if found is not None and tolerates(found, call.directives, now) else None


async def _copied(call: Call[Q, R], key: Key | None, now: float) -> Found[Served[R]] | None:
    """What earlier processes have left, likewise."""
    if key is None or Step.SNAPSHOT not in call.route.steps:
        return None
    found = await call.route.kept(call.caller, call.request, key, now, call.deadline.at)
    return found if found is not None and tolerates(found, call.directives, now) else None


def _declared(call: Call[Q, R]) -> Callable[[], R] | str:
    """What makes the declared default, or why there is none. It is no answer that anybody was given before, so what a
    caller says of the age of those does not matter."""
    return call.route.declared(call.request) if Step.DEFAULT in call.route.steps else ""
