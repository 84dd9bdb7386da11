"""A request as a door hands it over, and what it gets back.

Rule of this file: values, and what follows from them alone; what happens in between is ``pipeline.py``'s.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Generic

import msgspec

from cache.digest import Key
from cache.entry import Entry
from degrade.deadline import Deadline
from degrade.gate import Claim, Priority
from gateway.admission.auth import Caller
from gateway.admission.quota import Verdict
from gateway.codec.http import CacheDirectives
from gateway.notes import UNNOTED
from gateway.service import Q, R, Served, Service
from tiers.inference import Provenance


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
