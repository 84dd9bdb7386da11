"""The till: the quotas that a request uses up, charged together: all of them or none, before any work is done for it.

Rule of this file: it knows whose quotas they are and what is told of one that is spent; how many tokens are left is
``admission/ratelimit.py``'s, and when a request pays is ``pipeline.py``'s to say.
"""

from __future__ import annotations

from collections.abc import Sequence

from degrade.deadline import Ticker
from gateway.admission.auth import Caller
from gateway.admission.quota import Quota, Verdict
from gateway.admission.ratelimit import Limiter
from gateway.problem import Refused, quota
from gateway.service import Allowance

Dues = tuple[tuple[str, Quota], ...]
"""Quotas that a request uses up, each with whose it is: a caller's name, or "" for everyone's."""


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


class Till:
    """One for all routes and doors of a process. Whatever is charged raises Refused (429) if a quota is spent,
    and then nothing has been charged."""

    def __init__(self, limiter: Limiter, ticker: Ticker) -> None:
        self._limiter = limiter
        self._ticker = ticker

    def charge(self, allowances: Sequence[Allowance], caller: Caller, works: bool, now: float) -> Verdict | None:
        """Charge every quota that the request uses up, and if it puts work on a server (``works``) the others too. The
        one with least left, None if there is none."""
        owed = dues(allowances, caller, works)
        return self.pay(owed, now) if owed else None

    def charge_passing(self, allowances: Sequence[Allowance], caller: Caller) -> Verdict | None:
        """The same for a request that goes by the pipeline: it is work, and there is no telling before."""
        return self.charge(allowances, caller, True, self._ticker())

    def pay(self, owed: Dues, now: float) -> Verdict:
        """Charge these; the one with least left."""
        verdict = self._limiter.check_all(owed, now)
        if not verdict.allowed:
            raise _spent(verdict)
        return verdict

    def refuse_spent(self, owed: Dues) -> None:
        """Before much is spent on reading a request: refuse it if a quota that it will use up is spent already. Charges
        nothing."""
        now = self._ticker()
        for key, owned in owed:
            verdict = self._limiter.peek(key, owned, now)
            if not verdict.allowed:
                raise _spent(verdict)


def _spent(verdict: Verdict) -> Refused:
    detail = f"Quota {verdict.quota.name} is spent; try again in {verdict.retry_after:.3g} s."
    return Refused(quota(detail, verdict.retry_after), verdict)
