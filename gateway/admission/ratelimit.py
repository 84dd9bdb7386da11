"""Quotas by GCRA: who may ask how often, decided from one number per caller.

The generic cell rate algorithm (ITU-T I.371, a leaky bucket kept as a time): a cell stores the
*theoretical arrival time*, the moment by which all that was consumed has been earned back. Each
request moves it by one emission interval T = per / rate, and conforms while it stays within
``burst * T`` of now. So in any window of t seconds at most ``burst + t / T`` requests pass. Times
are whole nanoseconds, and T is rounded up: no sum of floats ever opens or closes a quota.

Rule of this file: pure, ``now`` is an argument. It must know neither HTTP (how a quota is told is
``quota.py``'s) nor who the callers are. Memory is bounded: a cell whose time has come is equal to no
cell at all, so it may be dropped; while every remembered cell is active, newcomers share one cell
per quota (and take its debt along) instead of pushing an active one out, which would give its owner
a fresh burst.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Hashable, Sequence
from typing import Final

from gateway.admission.quota import NANOSECONDS, Quota, Verdict

RECLAIM_STEPS_MAX: Final = 64
"""Cells looked at to make room for a newcomer: bounds the work of one request, not the memory."""


_Cell = tuple[Hashable, str]


class Limiter:
    """Cells of up to ``keys_max`` (key, quota name) pairs. One thread, no waiting."""

    def __init__(self, keys_max: int = 100_000) -> None:
        if keys_max < 1:
            raise ValueError("keys_max is at least 1")
        self._keys_max = keys_max
        self._times: dict[_Cell, int] = {}
        # One item per cell, by a time that its cell has reached or passed: the earliest are the
        # candidates for dropping. The counter keeps keys from being compared.
        self._oldest: list[tuple[int, int, _Cell]] = []
        self._inserted = 0
        self._shared: dict[str, int] = {}

    def __len__(self) -> int:
        """Cells remembered; at most ``keys_max``."""
        return len(self._times)

    def check(self, key: Hashable, quota: Quota, now: float, cost: int = 1) -> Verdict:
        """Consumes ``cost`` requests of ``quota`` for ``key`` if they conform, else nothing.

        ``now`` is in monotonic seconds. Raises ValueError for a negative cost.
        """
        cell = (key, quota.name)
        now_ns = _whole(now)
        verdict, time = _judge(quota, self._time(cell), now_ns, cost)
        if verdict.allowed and cost:
            self._store(cell, time, now_ns)
        return verdict

    def peek(self, key: Hashable, quota: Quota, now: float) -> Verdict:
        """What `check` would say now, with nothing consumed; ``remaining`` counts the request in question."""
        now_ns = _whole(now)
        time = self._time((key, quota.name))
        state, _ = _judge(quota, time, now_ns, 0)
        asked, _ = _judge(quota, time, now_ns, 1)
        return Verdict(asked.allowed, state.remaining, state.reset, asked.retry_after, quota)

    def check_all(self, pairs: Sequence[tuple[Hashable, Quota]], now: float) -> Verdict:
        """Consumes one request from every pair, or from none; the most constraining verdict.

        That is the refusal with the longest wait, else the quota with the least left. Raises
        ValueError for no pairs: with no quota there is no verdict.
        """
        now_ns = int(now * NANOSECONDS)
        if len(pairs) == 1:  # almost every request: the same as below, without its calls
            key, quota = pairs[0]
            cell = (key, quota.name)
            known = self._times.get(cell)
            if known is not None:
                interval = quota.interval_ns
                after = (known if known > now_ns else now_ns) + interval
                left = now_ns + quota.burst * interval - after
                if left >= 0:
                    self._times[cell] = after
                    return Verdict(True, left // interval, (after - now_ns) / NANOSECONDS, 0.0, quota)
            return self.check(key, quota, now)
        if not pairs:
            raise ValueError("check_all needs at least one quota")
        planned: dict[_Cell, int] = {}
        verdicts: list[Verdict] = []
        for key, quota in pairs:
            cell = (key, quota.name)
            time = planned.get(cell)
            verdict, time = _judge(quota, self._time(cell) if time is None else time, now_ns, 1)
            verdicts.append(verdict)
            planned[cell] = time
        refused = [verdict for verdict in verdicts if not verdict.allowed]
        if refused:
            return max(refused, key=lambda verdict: verdict.retry_after)
        for cell, time in planned.items():
            self._store(cell, time, now_ns)
        return min(verdicts, key=lambda verdict: (verdict.remaining, -verdict.reset))

    def forget(self, names: Collection[str]) -> None:
        """Drops the cells of these quotas: they were counted at another rate, and a debt under a slow one would be
        paid off at its pace for ever after. Whoever was in debt begins anew."""
        for name in names:
            self._shared.pop(name, None)
        self._times = {cell: time for cell, time in self._times.items() if cell[1] not in names}
        self._oldest = [noted for noted in self._oldest if noted[2] in self._times]
        heapq.heapify(self._oldest)

    def _time(self, cell: _Cell) -> int:
        time = self._times.get(cell)
        return self._shared.get(cell[1], -(2**63)) if time is None else time

    def _store(self, cell: _Cell, time: int, now_ns: int) -> None:
        if cell in self._times:
            self._times[cell] = time
        elif len(self._times) < self._keys_max or self._reclaim(now_ns):
            self._times[cell] = time
            self._inserted += 1
            heapq.heappush(self._oldest, (time, self._inserted, cell))
        else:
            self._shared[cell[1]] = max(time, self._shared.get(cell[1], time))

    def _reclaim(self, now_ns: int) -> bool:
        """Drops one cell that is idle by ``now_ns``; False when none was found."""
        for _ in range(RECLAIM_STEPS_MAX):
            noted, inserted, cell = self._oldest[0]
            if noted > now_ns:
                return False
            time = self._times[cell]
            if time <= now_ns:
                heapq.heappop(self._oldest)
                del self._times[cell]
                return True
            heapq.heapreplace(self._oldest, (time, inserted, cell))
        return False


def _whole(now: float) -> int:
    return int(now * NANOSECONDS)


def _judge(quota: Quota, time: int, now_ns: int, cost: int) -> tuple[Verdict, int]:
    """The verdict on ``cost``, and the cell's time after it (unchanged when refused)."""
    if cost < 0:
        raise ValueError("a cost is not negative")
    interval = quota.interval_ns
    capacity = quota.burst * interval
    # A cell written under a larger quota of the same name owes no more than this one can ask.
    latest = now_ns + capacity
    before = now_ns if time < now_ns else time if time < latest else latest
    after = before + cost * interval
    if after <= latest:
        return Verdict(True, (latest - after) // interval, (after - now_ns) / NANOSECONDS, 0.0, quota), after
    wait = math.inf if cost > quota.burst else (after - latest) / NANOSECONDS
    return Verdict(False, (latest - before) // interval, (before - now_ns) / NANOSECONDS, wait, quota), before
