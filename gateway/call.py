"""A request as a door hands it over, and what it gets back.

Rule of this file: values, and one decision that depends on them alone; what happens in between is ``pipeline.py``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Generic

import msgspec

from cache.digest import Key
from cache.entry import Entry
from degrade.deadline import Deadline
from degrade.gate import Claim, Priority
from gateway.admission.auth import Caller
from gateway.admission.quota import Quota, Verdict
from gateway.codec.http import CacheDirectives
from gateway.notes import UNNOTED
from gateway.service import Allowance, Q, R, Served, Service
from tiers.inference import Provenance

Dues = tuple[tuple[str, Quota], ...]
"""Quotas that a request uses up, each with whose it is: a caller's name, or "" for everyone's."""


class Call(msgspec.Struct, Generic[Q, R], frozen=True):
    """One request as a door hands it over. ``note``: a block in which it counts as in work."""

    route: Service[Q, R]
    caller: Caller
    request: Q
    directives: CacheDirectives
    deadline: Deadline
    note: AbstractContextManager[object] = UNNOTED


class Answer(msgspec.Struct, Generic[R], frozen=True):
    """What a door writes. ``key`` and ``entry`` are there when a wire form may be attached to them."""

    response: R
    provenance: Provenance
    quota: Verdict | None = None
    key: Key | None = None
    entry: Entry[Served[R]] | None = None

    @property
    def comes_again(self) -> bool:
        """Whether its request has come before. A wire form is for bytes that do: most answers are never asked for
        twice, and would pay for one in time and memory."""
        return self.entry is not None and self.provenance.cache == "hit"


def claim_of(route: Service[Q, R], caller: Caller) -> Claim:
    """For whom a request waits: a tenant's callers have one turn together, and who has no tenant one of his own. What
    is said of a caller goes before what is said of a route."""
    return Claim(caller.owner, priority_of(route, caller))


def priority_of(route: Service[Q, R], caller: Caller) -> Priority:
    """The priority of such a claim."""
    return route.priority if caller.priority is None else caller.priority


def labelled(provenance: Provenance, level: int) -> Provenance:
    """What is told of an answer that was made at a brownout level. A fresh hit is what it always is."""
    if not level or provenance.cache == "hit":
        return provenance
    return msgspec.structs.replace(provenance, brownout=level)


def dues(allowances: Sequence[Allowance], caller: Caller, works: bool) -> Dues:
    """The quotas that a request uses up, which depend on whether it puts work on a server (``works``)."""
    asked = tuple(
        [
            (caller.name if allowance.per_caller else "", allowance.quota)
            for allowance in allowances
            if works or allowance.hits_count
        ]
    )
    if caller.quota is not None and (works or caller.hits_count):
        return (*asked, (caller.name, caller.quota))
    return asked
