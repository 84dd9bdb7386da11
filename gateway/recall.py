"""What a cached answer is good for: the decision between the look-up and the backend.

Rule of this file: pure. It sees what the cache found, what the request's Cache-Control asks (RFC 9111
section 5.2.1) and the route's policy, and returns an action with a one-word reason; that word is the
metric label, the log field and part of the provenance. It knows no tensor, no socket and no clock.
"""

from __future__ import annotations

import enum
from typing import Final, TypeVar

import msgspec

from cache.entry import Found, Freshness
from gateway.codec.http import NO_DIRECTIVES, CacheDirectives

V = TypeVar("V")

BROWNED: Final = "brownout"
"""Why an old answer is served before anyone is asked."""


class Action(enum.Enum):
    """What to do about an answer."""

    SERVE = "serve"
    """Serve the entry that was found."""
    REFRESH = "refresh"
    """Serve the entry that was found, and fetch a new one behind the caller's back."""
    FETCH = "fetch"
    """Ask the tiers; callers of the same key wait for one flight."""
    FETCH_ALONE = "fetch-alone"
    """Ask the tiers for this caller only: it may not take another's answer, or not leave one."""
    REFUSE = "refuse"
    """The caller wants a cached answer or none (504)."""


class Recall(msgspec.Struct, frozen=True):
    """An action, the cache state it means (hit, stale, miss), and why."""

    action: Action
    state: str
    reason: str


class RecallRules(msgspec.Struct, frozen=True):
    """``refresh`` is how many seconds after its ttl an entry is served while a new one is fetched."""

    refresh: float


ABSENT: Final = Recall(Action.FETCH, "miss", "absent")
"""What most misses are: one value for all of them."""


def recall(found: Found[V] | None, directives: CacheDirectives, rules: RecallRules, epoch: int, now: float) -> Recall:
    """Decide what ``found`` is good for. ``epoch`` is the route's present one.

    An entry of an earlier epoch is never served here, whatever the caller tolerates: its age may be
    small but its model is gone. Only the ladder serves it, when nothing else is left. A caller who says
    anything of ages or storing gets no refresh behind its back: max-age without max-stale wants nothing
    stale, no-store wants nothing kept.
    """
    if found is None and directives is NO_DIRECTIVES:
        return ABSENT
    if directives.no_cache:
        return _without_answer(directives, Action.FETCH_ALONE, "no-cache")
    fetch = Action.FETCH_ALONE if directives.no_store else Action.FETCH
    if found is None:
        return _without_answer(directives, fetch, "absent")
    entry = found.entry
    age = entry.age(now)
    too_old = directives.max_age is not None and age > directives.max_age
    if found.freshness is Freshness.FRESH:
        if too_old:
            return _without_answer(directives, fetch, "max-age")
        return Recall(Action.SERVE, "hit", "snapshot" if found.is_copy else "fresh")
    if entry.epoch != epoch:
        return _without_answer(directives, fetch, "epoch")
    staleness = -entry.ttl_left(now)
    if directives.max_stale is not None and staleness <= directives.max_stale and not too_old:
        return Recall(Action.SERVE, "stale", "max-stale")
    if staleness <= rules.refresh and directives == NO_DIRECTIVES:
        return Recall(Action.REFRESH, "stale", "revalidating")
    return _without_answer(directives, fetch, "expired")


def unrefreshed(choice: Recall) -> Recall:
    """A decision in a brownout: nothing is fetched behind a caller's back."""
    return Recall(Action.SERVE, choice.state, choice.reason) if choice.action is Action.REFRESH else choice


def stale_first(choice: Recall, found: Found[V] | None, directives: CacheDirectives, now: float) -> Recall:
    """A decision in a brownout, where a route allows it: an entry that has expired is served as the ladder would serve
    it in the end. Not one of an earlier epoch, whose model is gone."""
    if choice.reason != "expired" or found is None or not tolerates(found, directives, now):
        return choice
    return Recall(Action.SERVE, "stale", BROWNED)


def tolerates(found: Found[V], directives: CacheDirectives, now: float) -> bool:
    """Whether the caller would have ``found`` when the tiers give nothing, however stale it is.

    Who says nothing leaves it to the route. ``max-stale`` bounds the staleness; ``max-age`` bounds the age,
    and alone it wants nothing stale (RFC 9111 sections 5.2.1.1 and 5.2.1.2).
    """
    if directives.no_cache:
        return False
    entry = found.entry
    if directives.max_age is not None and entry.age(now) > directives.max_age:
        return False
    if found.freshness is Freshness.FRESH:
        return True
    if directives.max_stale is None:
        return directives.max_age is None
    return -entry.ttl_left(now) <= directives.max_stale


def _without_answer(directives: CacheDirectives, fetch: Action, reason: str) -> Recall:
    if directives.only_if_cached:
        return Recall(Action.REFUSE, "miss", "only-if-cached")
    return Recall(fetch, "miss", reason)
