"""Where an answer comes from, as it is told with it: of an entry, of the tiers, or of nobody.

Rule of this file: it only says what has been decided and done; a label is made nowhere else.
"""

from __future__ import annotations

import msgspec

from cache.entry import Entry
from degrade.ladder import Failure, Step
from gateway.recall import Action, Recall
from gateway.service import Filled, R, Response, Served
from tiers.inference import Provenance

_FRESH = Recall(Action.SERVE, "hit", "fresh")
_SECOND = Recall(Action.SERVE, "hit", "second")


def of_hit(entry: Entry[Served[Response]], now: float) -> Provenance:
    """A fresh hit's."""
    return of_entry(entry, _FRESH, now)


def of_entry(entry: Entry[Served[Response]], choice: Recall, now: float, steps: tuple[str, ...] = ()) -> Provenance:
    """What is kept, and was chosen for this reason; ``steps`` of the ladder led to it, which makes it degraded."""
    served = entry.value
    # RFC 9211: a ttl that is not negative says fresh. An entry whose epoch has turned has time left all the same.
    ttl_left = entry.ttl_left(now) if choice.state == "hit" else min(entry.ttl_left(now), -1.0)
    return Provenance(
        cache=choice.state,
        reason=choice.reason,
        tier=served.tier,
        version=served.response.version,
        age=entry.age(now),
        ttl_left=ttl_left,
        rows=served.rows,
        rows_escalated=served.rows_escalated,
        tables=served.tables,
        steps=steps,
        degraded=bool(steps),
    )


def of_fill(filled: Filled[R], led: bool, choice: Recall, now: float) -> Provenance:
    """What the tiers gave, or another gateway had kept; ``led``: for this request, and not for one that it joined."""
    if filled.again is not None:
        return of_entry(filled.again, _SECOND, now)
    served, entry = filled.served, filled.entry
    return Provenance(
        cache=choice.state,
        reason="partial" if filled.rows_kept else choice.reason,
        tier=served.tier,
        version=served.response.version,
        age=now - filled.made_at if filled.rows_kept and filled.made_at is not None else 0.0,
        rows_kept=filled.rows_kept,
        tables=served.tables,
        ttl_left=None if entry is None else entry.ttl_left(now),
        rows=served.rows,
        rows_escalated=served.rows_escalated,
        steps=filled.steps,
        stored=entry is not None,
        collapsed=not led,
        degraded=filled.degraded,
    )


def of_none(failure: Failure, cache: str, step: Step | None = None) -> Provenance:
    """Nobody has answered, for this reason: a refusal's, or that of what is declared (``step``)."""
    steps = () if step is None else (step.value,)
    return Provenance(cache=cache, reason=failure.value, steps=steps, degraded=True)


def of_look(choice: Recall) -> Provenance:
    """What a request that is refused after the look-up has met so far."""
    return Provenance(cache=choice.state, reason=choice.reason)


def at_level(provenance: Provenance, level: int) -> Provenance:
    """The same, made at a brownout level. A fresh hit is what it always is."""
    if not level or provenance.cache == "hit":
        return provenance
    return msgspec.structs.replace(provenance, brownout=level)
