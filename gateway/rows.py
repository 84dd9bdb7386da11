"""Rows of a route's answers: kept one by one, found one by one, and asked for only where they are missing.

Rule of this file: what a row is is ``tiers/rows.py``'s, where it is true ``cache/digest.py``'s, and how long
``cache/response.py``'s; here is what they come to for a batch. A row that several requests miss at the same time is
asked for once: each request waits for the fills that its rows are in, its own and others'.

A row is kept by itself, so what rows have in common with the answer that they came in is one object for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Final

import msgspec

from cache.bounded import Bounded
from cache.digest import Key, RowDigester
from cache.entry import Entry, Found, Freshness
from cache.flight import Flights
from cache.memo import Memo
from cache.policy import POLICIES, Policy
from cache.response import ResponseCache
from degrade.deadline import Ticker
from degrade.ladder import Failure
from gateway.config import CacheConfig
from gateway.fitting import Expected
from gateway.row import Asked, Assembled, Borrowed, Elsewhere, Filling, Lender, Made, Row
from tiers.cascade import CascadeAnswer
from tiers.inference import (
    Form,
    InferRequest,
    InferResponse,
    Tensor,
    UpstreamError,
    parameters_size,
)
from tiers.rows import Plan, is_row, join_rows, plan_of, split_rows, take_rows
from tiers.v2.forms import FORMS_MAX

ROW_OVERHEAD_BYTES: Final = 448
"""What a row costs beyond its key and its bytes: objects' heads, bookkeeping of cache and policy."""

FILLS_MAX: Final = 4096
"""Fills of one route's rows under way at once; beyond it callers ask for themselves."""

PLANS_MAX: Final = 256
"""Shapes of answers that are remembered."""


Ask = Callable[[InferRequest, int], Awaitable[CascadeAnswer]]
"""Asks the tiers for a request of so many rows."""


class _Fill:
    """Rows that are asked for now. ``outcome``: what came of it, for those who find that it has just ended."""

    __slots__ = ("names", "outcome", "run")

    def __init__(self, names: Sequence[_Name], run: Callable[[], Coroutine[object, object, Filling]]) -> None:
        self.names = names
        self.run = run
        self.outcome: Filling | UpstreamError | None = None


_Name = tuple[bytes, int, int]
"""A row's key, the epoch it is asked in, and the ticket of the cache."""


class Rows:
    """The rows of one route."""

    def __init__(self, name: str, config: CacheConfig) -> None:
        bytes_max = int(config.rows_bytes_max)
        policy: Policy[Entry[Row]] = POLICIES[config.policy](bytes_max)
        self.cache: ResponseCache[Row, None] = ResponseCache(Bounded(bytes_max, policy), wires_per_entry_max=0)
        self.flights: Flights[_Fill, Filling] = Flights(FILLS_MAX)
        self._name = name
        self._ttl, self._max_stale = float(config.ttl), float(config.max_stale)
        self._digesters: Memo[tuple[Form, str, str], RowDigester] = Memo(FORMS_MAX)
        self._plans: Memo[object, Plan] = Memo(PLANS_MAX)
        self._under_way: dict[_Name, _Fill] = {}
        self.second: Elsewhere | None = None

    def keys(self, tenant: str, request: InferRequest, rows: int) -> list[bytes]:
        """A key for each of a request's ``rows``, which its inputs must have. None of its parameters is one caller's
        own."""
        inputs = sorted(request.inputs, key=_name)
        known = None if request.form is None else (request.form, tenant, request.version)
        digester = None if known is None else self._digesters.get(known)
        if digester is None:
            digester = RowDigester(
                route=self._name,
                tenant=tenant,
                version=request.version,
                inputs=plan_of(inputs).tensors,
                parameters=request.parameters,
                outputs=[(output.name, output.parameters) for output in request.outputs],
            )
            if known is not None:
                self._digesters.put(known, digester)
        return digester.keys(split_rows(inputs, rows))

    def lacking(self, asked: Asked, now: float) -> list[bytes]:
        """The keys of the rows of a batch that are not here, each once. No use of those that are."""
        entries = [(key, self.cache.peek(key)) for key in dict.fromkeys(asked.keys)]
        return [
            key for key, entry in entries if entry is None or entry.freshness(now, asked.epoch) is Freshness.DEAD
        ]

    def whole(self, asked: Asked, now: float, lender: Lender | None = None) -> Assembled | None:
        """The answer to a batch, if all of its rows are here, or are lent, are of one and the same model, and fit
        together; however old they are. What is lent and may stay is here from then on, whether it makes a whole or
        not."""
        rows: dict[bytes, Entry[Row]] = {}
        of: set[int | bytes] = set()  # epochs, and words: nobody can tell if one of these is one of those
        keys = list(dict.fromkeys(asked.keys))
        for key, fresh in zip(keys, self.cache.fresh(keys, asked.epoch, now), strict=True):
            found = Found(fresh, Freshness.FRESH) if fresh else self.cache.find(Key(key, asked.epoch), now)
            if found is not None:
                rows[key] = found.entry
                of.add(found.entry.epoch)
            elif lender is None:
                return None
            elif (lent := lender.row(key)) is not None:
                rows[key] = self._borrowed(asked, key, lent)
                of.add(lent.epoch if lent.stays else lent.word)
        return self._of_one(asked, rows, len(of))

    def lent(self, asked: Asked, lender: Lender) -> Assembled | None:
        """The answer to a batch, if all of its rows are lent, are of one and the same model, and fit together."""
        found = {key: lent for key in dict.fromkeys(asked.keys) if (lent := lender.row(key)) is not None}
        rows = {key: self._borrowed(asked, key, lent) for key, lent in found.items()}
        return self._of_one(asked, rows, len({lent.word for lent in found.values()}))

    def _of_one(self, asked: Asked, rows: Mapping[bytes, Entry[Row]], models: int) -> Assembled | None:
        """What they come to, all of them being there, if they are of one of ``models``."""
        is_whole = models == 1 and all(key in rows for key in asked.keys) and _fit(rows)
        return self._assembled(asked, rows, len(asked.keys), []) if is_whole else None

    def _borrowed(self, asked: Asked, key: bytes, lent: Borrowed) -> Entry[Row]:
        made = msgspec.structs.replace(lent.row.made, plan=self._one_of(lent.row.made.plan))
        said = parameters_size(made.parameters)
        entry = self._keep(asked, key, Row(lent.row.data, made), lent.made_at, said)
        if lent.epoch != entry.epoch:
            entry = msgspec.structs.replace(entry, epoch=lent.epoch)
        if lent.stays:
            self.cache.store(Key(key, lent.epoch), entry, self.cache.ticket())
        return entry

    async def answer(self, asked: Asked, ask: Ask, seconds: float, ticker: Ticker) -> Assembled:
        """The answer to a batch, within ``seconds``. Raises what ``ask`` raises, Abandoned, and TimeoutError.

        Rows that do not fit together are of models that differ: one has just changed, two replicas serve two versions,
        or two tiers give their outputs in another order. The whole batch is then asked for, as if nothing were known.
        """
        until = ticker() + seconds
        rows = self._kept(asked, ticker())
        kept = sum([key in rows for key in asked.keys])
        missing = list(dict.fromkeys([key for key in asked.keys if key not in rows]))
        fills = self._fills(asked, missing, ask, ticker)
        fillings = await self._filled(fills, seconds) if missing else []
        for filling in fillings:
            rows.update(filling.rows)
        if not _fit({key: rows[key] for key in asked.keys}):
            asked = msgspec.structs.replace(asked, reuse=False)
            fills = self._fills(asked, list(dict.fromkeys(asked.keys)), ask, ticker)
            told = [msgspec.structs.replace(filling, elsewhere=frozenset()) for filling in fillings]
            (whole,) = await self._filled(fills, max(until - ticker(), 0.0))
            kept, rows, fillings = 0, dict(whole.rows), [*told, whole]
        return self._assembled(asked, rows, kept, fillings)

    async def close(self) -> None:
        """Give up fills under way, and what is kept."""
        await self.flights.close()
        self.cache.purge()

    def _kept(self, asked: Asked, now: float) -> dict[bytes, Entry[Row]]:
        if not asked.reuse:
            return {}
        found = self.cache.fresh(asked.keys, asked.epoch, now)
        return {key: entry for key, entry in zip(asked.keys, found, strict=True) if entry is not None}

    def _fills(self, asked: Asked, missing: Sequence[bytes], ask: Ask, ticker: Ticker) -> list[_Fill]:
        """Those under way that these rows are in, and one for those that nobody asks for yet."""
        ticket = self.cache.ticket()
        fills: dict[_Fill, None] = {}
        own: list[bytes] = []
        for key in missing:
            fill = self._under_way.get((key, asked.epoch, ticket)) if asked.reuse else None
            if fill is None:
                own.append(key)
            else:
                fills[fill] = None
        if own:
            fills[self._begin(asked, own, ticket, ask, ticker)] = None
        return list(fills)

    async def _filled(self, fills: Sequence[_Fill], seconds: float) -> list[Filling]:
        """Wait for all of them."""
        joined = [asyncio.ensure_future(self._joined(fill, seconds)) for fill in fills]
        try:
            return await asyncio.gather(*joined)
        finally:
            for each in joined:
                each.cancel()
            await asyncio.gather(*joined, return_exceptions=True)
            for fill in fills:
                if fill not in self.flights:
                    self._ended(fill)  # it may never have run

    async def _joined(self, fill: _Fill, seconds: float) -> Filling:
        if isinstance(fill.outcome, UpstreamError):
            raise fill.outcome
        if fill.outcome is not None:
            return _others(fill.outcome)
        filling, led = await self.flights.join(fill, fill.run, seconds)
        return filling if led else _others(filling)

    def _begin(self, asked: Asked, keys: Sequence[bytes], ticket: int, ask: Ask, ticker: Ticker) -> _Fill:
        """A fill for these rows, which others find from now on if it may be reused."""

        async def run() -> Filling:
            try:
                fill.outcome = outcome = await self._brought(asked, keys, ticket, ask, ticker)
                return outcome
            except UpstreamError as error:
                fill.outcome = error
                raise
            finally:
                self._ended(fill)

        fill = _Fill([(key, asked.epoch, ticket) for key in keys], run)
        if asked.reuse:
            self._under_way.update(dict.fromkeys(fill.names, fill))
        return fill

    def _ended(self, fill: _Fill) -> None:
        """Nobody new finds it."""
        for name in fill.names:
            if self._under_way.get(name) is fill:
                del self._under_way[name]

    async def _brought(self, asked: Asked, keys: Sequence[bytes], ticket: int, ask: Ask, ticker: Ticker) -> Filling:
        """What the second level has of these rows, and what the tiers say of the others."""
        second = self.second
        turn = None if second is None else second.turn
        if second is None or turn is None:
            return self._kept_of(asked, keys, ticket, await self._ask(asked, keys, ask), ticker())
        expected = asked.expected if asked.reuse else None
        found = {} if expected is None else await second.rows(turn, keys, _judge(expected))
        known = self._kept_again(asked, found, ticket)
        missing = [key for key in keys if key not in known]
        if not missing:
            return Filling(known, elsewhere=frozenset(known))
        new = self._kept_of(asked, missing, ticket, await self._ask(asked, missing, ask), ticker())
        if asked.keep and not (new.degraded or new.has_nan):
            second.keep_rows(turn, new.rows)
        return msgspec.structs.replace(new, rows={**known, **new.rows}, elsewhere=frozenset(known))

    def _kept_again(
        self, asked: Asked, found: Mapping[bytes, tuple[Row, float]], ticket: int
    ) -> dict[bytes, Entry[Row]]:
        """Rows of the second level, kept here too: as old as they are."""
        made: dict[int, Made] = {}
        known = {}
        for key, (row, made_at) in found.items():
            ours = made.get(id(row.made))
            if ours is None:
                ours = made[id(row.made)] = msgspec.structs.replace(row.made, plan=self._one_of(row.made.plan))
            said = parameters_size(ours.parameters)  # whole: nobody knows how many rows came with them
            known[key] = self._keep(asked, key, Row(row.data, ours), made_at, said)
            self.cache.store(Key(key, asked.epoch), known[key], ticket)
        return known

    def _keep(self, asked: Asked, key: bytes, row: Row, made_at: float, said: int) -> Entry[Row]:
        size = ROW_OVERHEAD_BYTES + len(key) + len(row.data) + said
        return Entry(row, size, made_at, self._ttl, self._max_stale, asked.epoch)

    async def _ask(self, asked: Asked, keys: Sequence[bytes], ask: Ask) -> CascadeAnswer:
        """Ask the tiers for these rows of a batch."""
        places: dict[bytes, int] = {}
        for place, key in enumerate(asked.keys):
            places.setdefault(key, place)
        whole = len(keys) == len(asked.keys)
        request = asked.request if whole else take_rows(asked.request, [places[key] for key in keys])
        return await ask(request, len(keys))

    def _kept_of(self, asked: Asked, keys: Sequence[bytes], ticket: int, answer: CascadeAnswer, now: float) -> Filling:
        """The rows of an answer, kept if it may stay."""
        outputs = [each for each in answer.response.outputs if asked.outputs is None or each.name in asked.outputs]
        if not outputs:
            raise UpstreamError(Failure.BROKEN, f"an answer of {answer.tier} holds no output that all tiers have")
        data = split_rows(outputs, len(keys))
        plan = self._one_of(plan_of(outputs))
        is_ones = len(answer.shares) == 1  # which says nothing of rows if it went straight to the last tier
        filled, escalated = {}, 0
        for share in answer.shares:
            places = range(len(keys)) if is_ones else share.rows
            escalated += len(places) if share.position > 0 else 0
            made = Made(plan, share.parameters, share.tier, share.version, share.position)
            said = parameters_size(share.parameters) // max(1, len(places))
            for place in places:
                key = keys[place]
                entry = filled[key] = self._keep(asked, key, Row(data[place], made), now, said)
                if asked.keep and answer.may_stay:
                    self.cache.store(Key(key, asked.epoch), entry, ticket)
        assert len(filled) == len(keys), "a row that is no tier's"
        return Filling(
            filled, escalated, answer.tier_rows, answer.passed, answer.degraded, has_nan=answer.has_nan
        )

    def _one_of(self, plan: Plan) -> Plan:
        """What rows have in common: one object for all plans that are alike."""
        said = tuple([tuple([(name, type(value), value) for name, value in each.items()]) for each in plan.parameters])
        known = plan.tensors, said  # with types: 1 and True are equal, and two values
        held = self._plans.get(known)
        if held is None:
            held = plan
            self._plans.put(known, held)
        return held

    def _assembled(
        self, asked: Asked, rows: Mapping[bytes, Entry[Row]], kept: int, fillings: Sequence[Filling]
    ) -> Assembled:
        entries = [rows[key] for key in asked.keys]
        outputs = join_rows(entries[0].value.made.plan, [entry.value.data for entry in entries])
        made = max([entry.value.made for entry in reversed(entries)], key=_position)  # the largest tier's last row's
        elsewhere = frozenset[bytes]().union(*[filling.elsewhere for filling in fillings])
        found = sum([key in elsewhere for key in asked.keys]) if elsewhere else 0
        return Assembled(
            response=InferResponse(self._name, made.version, outputs, parameters=made.parameters),
            tier=made.tier,
            escalated=sum([entry.value.made.position > 0 for entry in entries]),
            kept=kept + found,
            made_at=min([entry.stored_at for entry in entries]),
            epoch=min([entry.epoch for entry in entries]),
            escalated_now=sum([filling.escalated for filling in fillings]),
            tier_rows=tuple([each for filling in fillings for each in filling.tier_rows]),
            passed=tuple([each for filling in fillings for each in filling.passed]),
            degraded=any(filling.degraded for filling in fillings),
            elsewhere=found,
            has_nan=any(filling.has_nan for filling in fillings),
        )


def _judge(expected: Expected) -> Callable[[Row], bool]:
    """Whether a row of the second level can be one of the answer's; what several have in common is judged once."""
    judged: dict[int, tuple[Made, bool]] = {}

    def fits(row: Row) -> bool:
        made = row.made
        held = judged.get(id(made))
        if held is None:
            fit = expected.fits_rows(made.plan, made.position, made.tier, made.version)
            held = judged[id(made)] = made, fit  # held, or another might be given its identity
        return held[1] and is_row(made.plan, row.data)

    return fits


def _others(filling: Filling) -> Filling:
    """Another one's fill, which has been counted."""
    return msgspec.structs.replace(filling, escalated=0, tier_rows=())


def _fit(rows: Mapping[bytes, Entry[Row]]) -> bool:
    """Whether one answer can be made of these: they have the same outputs, and each tier's are of one version of it."""
    made = {id(row.value.made): row.value.made for row in rows.values()}.values()
    versions = {(each.tier, each.version) for each in made}
    return len({id(each.plan) for each in made}) == 1 and len(versions) == len({tier for tier, _ in versions})


def _position(made: Made) -> int:
    return made.position


def _name(tensor: Tensor) -> str:
    return tensor.name
