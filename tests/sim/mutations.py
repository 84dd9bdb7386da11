"""Bugs planted on purpose: what a slip of the hand could make of the product, and which the world must notice.

Rule of this file: each is one small change to one decision, under a name that says what is wrong with it. A mutation
that no invariant notices is a hole in those, or in what the world does.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count, islice
from typing import Any, Final
from unittest import mock

import msgspec

from cache.digest import Key
from cache.entry import Entry, Freshness
from cache.flight import Flights
from cache.response import ResponseCache
from cache.sealed import OVERHEAD_BYTES, unsealed
from cache.table import NearTable
from degrade import breaker, record
from degrade.brownout import Brownout
from degrade.gate import Gate
from degrade.gate import Permit as GatePermit
from degrade.ladder import Step
from gateway import copies, descent, identity, pipeline, provenance, recall, witness
from gateway.copies import Standing
from gateway.doors import exchange
from gateway.doors.buffered import Held
from gateway.identity import Identity
from gateway.lent import Lent
from gateway.pipeline import Pipeline
from gateway.purges import Marks
from gateway.refresh import Refreshes
from gateway.route import Route
from gateway.rows import Rows
from gateway.second import SecondLevel
from gateway.service import NO_EPOCH
from gateway.shelves import Shelves
from gateway.snapshots import Snapshots
from gateway.table_copies import RowCopies
from gateway.till import Till
from gateway.witness import Witness
from tests.sim.scene import scene
from tests.sim.world import Report, run
from tiers import cascade
from tiers.seat import Judged, Seated

SEEDS_MAX: Final = 400
"""Of the worlds that have what a mutation is about: so many are looked at before it is said to be unnoticed."""

Patches = tuple[tuple[object, str, Any], ...]


class Mutation(msgspec.Struct, frozen=True):
    """``kinds``: it can only be noticed in worlds that have one of these routes; empty: in any. ``first``: a seed where
    it was noticed when that was last tried, to begin with. ``needs``: it can only be noticed where the scene has all of
    these."""

    name: str
    patches: Patches
    kinds: tuple[str, ...] = ()
    first: int = 0
    needs: tuple[str, ...] = ()

    @contextmanager
    def planted(self) -> Iterator[None]:
        """The product with this bug, as long as the block lasts."""
        with ExitStack() as stack:
            for where, name, other in self.patches:
                stack.enter_context(mock.patch.object(where, name, other))
            yield


def noticed(mutation: Mutation) -> Report | None:
    """The first world in which it is noticed; None: it is not."""

    def fits(seed: int) -> bool:
        plan = scene(seed)
        return (not mutation.kinds or bool(set(mutation.kinds) & set(plan.kinds))) and all(
            getattr(plan, each) for each in mutation.needs
        )

    worlds = (seed for seed in count() if fits(seed))
    for seed in (mutation.first, *islice(worlds, SEEDS_MAX)):
        with mutation.planted():
            report = run(seed)
        if report.violation:
            return report
    return None


# -- what is wrong ----------------------------------------------------------------------------------


def _expired_is_fresh(self: Entry[Any], now: float, epoch: int) -> Freshness:
    age = now - self.stored_at
    return Freshness.FRESH if age <= self.ttl + self.max_stale and epoch == self.epoch else Freshness.DEAD


def _old_as_new(real: Callable[..., Any]) -> Callable[..., Any]:
    def told(*args: Any) -> Any:
        return msgspec.structs.replace(real(*args), cache="hit", reason="fresh", degraded=False, steps=(), ttl_left=1.0)

    return told


def _young(real: Callable[..., Any]) -> Callable[..., Any]:
    def told(*args: Any) -> Any:
        return msgspec.structs.replace(real(*args), age=0.0)

    return told


def _twice(real: Callable[..., None]) -> Callable[..., None]:
    def settle(*args: Any) -> None:
        real(*args)
        real(*args)

    return settle


def _never(*_: Any) -> None:
    return None


def _now_as_then(self: Route, _: Any, __: Any, key: Key, ___: Any) -> Key:
    return Key(key.digest, self.epoch)


def _swapped(real: Callable[..., Any]) -> Callable[..., Any]:
    def merge(rows: int, parts: Any) -> Any:
        return real(rows, [(answer, tuple(reversed(indices))) for answer, indices in parts])

    return merge


def _as_a_hit(real: Callable[..., Any]) -> Callable[..., Any]:
    def charge(self: Till, allowances: Any, caller: Any, works: bool, now: float) -> Any:
        return real(self, allowances, caller, False, now)

    return charge


def _without_ticket(self: ResponseCache[Any, Any]) -> int:
    entries = len(self._entries)
    self._entries.clear()
    self._wires.clear()
    return entries


def _never_closes(self: Any, ok: bool | None, now: float) -> None:
    self._running -= 1


def _as_if_whole(real: Callable[..., Any]) -> Callable[..., Any]:
    async def ask(*args: Any) -> Any:
        return msgspec.structs.replace(await real(*args), degraded=False)

    return ask


def _deaf_to(**ignored: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def made(real: Callable[..., Any]) -> Callable[..., Any]:
        def decide(found: Any, directives: Any, rules: Any, epoch: int, now: float) -> Any:
            return real(found, msgspec.structs.replace(directives, **ignored), rules, epoch, now)

        return decide

    return made


def _keeps_flights(self: Flights[Any, Any], key: Any, flight: Any) -> None:
    if sys.exc_info()[0] is None and self._flights.get(key) is flight:  # no error is on its way out of the fill
        del self._flights[key]


async def _unrefreshed(self: Refreshes, call: Any, key: Key, fetch: Callable[[], Awaitable[Any]]) -> None:
    with contextlib.suppress(Exception):
        await fetch()


def _keeps_rows_for_ever(self: Any, asked: Any, key: bytes, row: Any, made_at: float, said: int) -> Any:
    return Entry(row, 100, made_at, 3600.0, 3600.0, asked.epoch)


def _all_held(self: Held, *_: Any) -> None:
    return None


def _believing(real: Callable[..., str], **believed: Any) -> Callable[..., str]:
    def doubted(held: Any, terms: Any, now: float) -> str:
        return real(held, msgspec.structs.replace(terms, **believed), now)

    return doubted


def _for_ever(real: Callable[..., Any]) -> Callable[..., Any]:
    def entry(self: Shelves, served: Any, epoch: int, now: float) -> Any:
        made = real(self, served, epoch, now)
        return Entry(served, made.size, now, made.ttl, 1e9, epoch) if epoch == NO_EPOCH else made

    return entry


def _without_age(*_: Any) -> float:
    return 0.0


def _as_it_lies(key: bytes, held: bytes, bytes_max: int) -> bytes | None:
    return unsealed(key, held, bytes_max) or held[OVERHEAD_BYTES:]


def _without_steps(real: Callable[..., Any]) -> Callable[..., Any]:
    def cached(*args: Any) -> Any:
        return real(*args[:6], *(() if args[6:] == ((Step.SNAPSHOT.value,),) else args[6:]))

    return cached


async def _gives_up(self: Snapshots, interval: float, sleep: Any) -> None:
    while await self.copy(sleep) in ("written", "idle", "busy"):
        await sleep(interval)
    await sleep(1e6)


def _forgetting(real: Callable[..., Any]) -> Callable[..., Any]:
    def standing(self: Snapshots, rules: Any) -> Any:
        self.marks._of.clear()
        return real(self, rules)

    return standing


def _if_copied(self: Marks, name: str | None) -> None:
    for source, purges in list(self._of.items()):
        if name is None or source.endswith(f"/{name}"):
            purges.purge()


def _only_rises(real: Callable[..., Any]) -> Callable[..., Any]:
    def observe(self: Brownout, signals: Any, now: float) -> Any:
        level, turned = self.level, real(self, signals, now)
        self.level = max(level, self.level)
        return turned

    return observe


def _whatever_epoch(real: Callable[..., Any]) -> Callable[..., Any]:
    def stale_first(choice: Any, *args: Any) -> Any:
        return real(msgspec.structs.replace(choice, reason="expired") if choice.reason == "epoch" else choice, *args)

    return stale_first


def _sure(real: Callable[..., Any]) -> Callable[..., Any]:
    def row(self: Lent, key: bytes) -> Any:
        lent = real(self, key)
        self.is_unsure = False
        return lent

    return row


def _silently(self: Seated, *_: Any) -> None:
    """As ``left``, but the breaker is not told."""
    self.leave = None
    if self.in_flight:
        self.in_flight = False
        self.seat.in_flight -= 1


_UNPURGED: Final = _believing(record.doubted, made_after=-math.inf)
_AGELESS: Final = _believing(record.doubted, seconds_max=math.inf)


def _telling(of_entry: Callable[..., Any]) -> tuple[tuple[Any, str, Any], ...]:
    return ((provenance, "of_entry", of_entry), (pipeline, "of_entry", of_entry))


MUTATIONS: Final = (
    Mutation("expired is served as fresh", ((Entry, "freshness", _expired_is_fresh),), first=21),
    Mutation("the label is forgotten", _telling(_old_as_new(provenance.of_entry)), first=21),
    Mutation("an old answer says it is young", _telling(_young(provenance.of_entry)), first=14),
    Mutation("a permit ends twice", ((Judged, "_settle", _twice(Judged._settle)),)),
    Mutation("a permit never ends", ((Judged, "_settle", _never),)),
    Mutation(
        "an invalidation during a fill is ignored",
        ((NearTable, "ticket", lambda _: 1 << 40),),
        ("ranked",),
        first=848,
    ),
    Mutation("distrust is ignored", ((NearTable, "distrust", _never),), ("ranked",), first=144),
    Mutation("the ladder has an old answer for everybody", ((descent, "tolerates", lambda *_: True),), first=14),
    Mutation("an epoch's turn during a fill is ignored", ((Route, "settled", _now_as_then),), first=37),
    Mutation("an epoch never turns", ((Route, "turn", _never),), first=7),
    Mutation("tenants share keys", ((Identity, "tenant", lambda *_: ""),)),
    Mutation("requested outputs are no part of the key", ((identity, "_asked", lambda _: []),)),
    Mutation(
        "rows are merged in another order",
        ((cascade, "merge_rows", _swapped(cascade.merge_rows)),),
        ("cascade",),
        first=2,
    ),
    Mutation("a flight stays after its failure", ((Flights, "_forget", _keeps_flights),), first=2),
    Mutation(
        "a quota is not charged for a miss",
        ((Till, "charge", _as_a_hit(Till.charge)),),
        ("limited",),
        first=56,
    ),
    Mutation("a caller's deadline is not passed on", ((exchange, "sooner", lambda deadline, *_: deadline),)),
    Mutation("a purge leaves tickets valid", ((ResponseCache, "purge", _without_ticket),), first=16),
    Mutation(
        "a purge is not told to the second level",
        ((SecondLevel, "end_turn", _never),),
        ("second", "secondrows"),
        first=21,
    ),
    Mutation("a breaker never closes", ((breaker._HalfOpen, "end", _never_closes),), first=8),
    Mutation("a degraded answer is kept", ((Route, "ask", _as_if_whole(Route.ask)),), ("cascade", "ranked"), first=146),
    Mutation("no-cache is ignored", ((pipeline, "recall", _deaf_to(no_cache=False)(recall.recall)),), first=4),
    Mutation("max-age is ignored", ((pipeline, "recall", _deaf_to(max_age=None)(recall.recall)),), first=21),
    Mutation("a refresh is never over", ((Refreshes, "_fetched", _unrefreshed),), first=21),
    Mutation("rows are kept for ever", ((Rows, "_keep", _keeps_rows_for_ever),), ("rows", "secondrows"), first=4),
    Mutation("bytes of requests are never given back", ((Held, "__exit__", _all_held),), first=4),
    Mutation(
        "copies of any age are served",
        ((record, "doubted", _AGELESS), (copies, "doubted", _AGELESS), (Shelves, "entry", _for_ever(Shelves.entry))),
        needs=("disks",),
        first=167,
    ),
    Mutation(
        "a copy says that it is young",
        ((record, "age", _without_age), (copies, "age", _without_age)),
        needs=("disks",),
        first=11,
    ),
    Mutation(
        "a purge of copies is ignored",
        ((record, "doubted", _UNPURGED), (copies, "doubted", _UNPURGED)),
        needs=("disks",),
        first=14,
    ),
    Mutation("a copy's seal is not checked", ((record, "unsealed", _as_it_lies),), needs=("disks",), first=77),
    Mutation(
        "a copy is served without its label",
        ((Pipeline, "_cached", _without_steps(Pipeline._cached)),),
        needs=("disks",),
        first=5,
    ),
    Mutation(
        "after a pass that failed there is no other",
        ((Snapshots, "_run", _gives_up),),
        needs=("disks",),
        first=11,
    ),
    Mutation(
        "a copy is as good as its model, whatever that is now",
        ((Witness, "end_turn", _never), (witness, "changed", lambda *_: False)),
        needs=("disks",),
        first=14,
    ),
    Mutation(
        "a reload forgets a purge that is not on the disk yet",
        ((Snapshots, "_standing", _forgetting(Snapshots._standing)),),
        needs=("disks",),
        first=2427,
    ),
    Mutation(
        "a copy is fresh whose model is known to be another",
        ((Standing, "trusts", lambda self, *_: self.rules.trusts),),
        needs=("trusts", "rolls"),
        first=120,
    ),
    Mutation(
        "what is made of copies of which nobody can tell stays",
        ((Lent, "row", _sure(Lent.row)),),
        ("rows", "secondrows"),
        needs=("trusts", "rolls"),
        first=2150,
    ),
    Mutation(
        "that a row is gone is not written",
        ((RowCopies, "note_gone", _never),),
        ("ranked",),
        needs=("disks",),
        first=77,
    ),
    Mutation(
        "in a brownout an old answer comes first whatever its epoch",
        ((pipeline, "stale_first", _whatever_epoch(recall.stale_first)),),
        needs=("crowds", "rolls"),
        first=37,
    ),
    Mutation(
        "a purge of what is not copied just then leaves no mark",
        ((Marks, "purge", _if_copied),),
        needs=("disks",),
        first=122,
    ),
    Mutation("a permit of a gate is given back twice", ((Gate, "_freed", _twice(Gate._freed)),)),
    Mutation(
        "a permit of a gate is never given back",
        tuple((GatePermit, how, _never) for how in ("succeeded", "silent", "dropped", "ignored")),
    ),
    Mutation(
        "leave for what passes through never ends",
        ((Seated, "left", _silently), (Seated, "answered", _silently)),
        needs=("passers",),
        first=2,
    ),
    Mutation(
        "a brownout level never falls",
        ((Brownout, "observe", _only_rises(Brownout.observe)),),
        needs=("crowds",),
        first=93,
    ),
    Mutation("a brownout is not told", ((pipeline, "at_level", lambda said, _: said),), needs=("crowds",), first=93),
    Mutation("old answers first at any level", ((pipeline, "STALE_FIRST", 0),), needs=("crowds",), first=93),
)
