"""The second level of a route's cache: what another process may have been answered already, in a store that they share.

Rule of this file: it joins what others decide. Which word is part of every key says ``witness.py``, what lies under a
key ``parcel.py`` and ``cache/sealed.py``, who writes it and when ``cache/behind.py``. Nothing here raises: what the
store does not give, or gives broken, late or too old, is not there, and is counted.

A key is 16 bytes of BLAKE3 over the word, which is true of one route under one configuration and of its models as they
are, and over the digest that the answer has here: so it is as much one tenant's, and as hard to meet by another.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import msgspec
from blake3 import blake3

from cache.behind import Behind, BehindOptions, Later, Pairs
from cache.entry import Entry
from cache.sealed import VERSION, sealed, unsealed
from cache.stores.store import Store, StoreError
from gateway import parcel
from gateway.background import kept
from gateway.fitting import TEXTS_MAX, texts
from gateway.row import Row
from gateway.service import Served
from gateway.witness import ROUND_SECONDS, SKEW_SECONDS_MAX, Clocks, Looks, Witness
from tiers.inference import InferResponse

VALUE_BYTES_MAX: Final = 1024 * 1024
"""Of one answer: a larger one would hold up the store and every reader for milliseconds, and take long to fetch."""
ROWS_ASKED_MAX: Final = 1024
"""Rows of one batch that are looked for: more would not come within a look-up's time, and hold up those of others. More
are written in several goes."""
SCOPE_BYTES: Final = 16
OVERHEAD_BYTES: Final = 256
"""What a value takes in the queue beside its data."""

_OUTCOMES: Final = ("hit", "miss", "old", "broken", "corrupt", "failed", "large")
"""What cannot be read is broken; corrupt is what can be, and is no answer to the request."""


class Shared(msgspec.Struct, frozen=True):
    """What of a route is the same wherever its answers are shared. ``told``: all of its configuration, and of its
    backends', that decides an answer."""

    name: str
    told: bytes
    ttl: float
    seconds: float
    """What a look-up may take."""


class SecondLevel:
    """One route's. Belongs to one event loop. ``outcomes`` counts what was looked for: each answer, each row."""

    def __init__(self, shared: Shared, store: Store, clocks: Clocks, options: BehindOptions) -> None:
        self.outcomes: Counter[str] = Counter(dict.fromkeys(_OUTCOMES, 0))
        self._shared = shared
        self._store = store
        self._clocks = clocks
        self._scope = scope = scope_of(shared)
        self.behind = Behind(store, shared.ttl, options)
        self.witness = Witness(scope.hex().encode(), store, clocks, options.seconds)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def turn(self) -> bytes | None:
        """What holds now; None: nothing is to be looked for or left. Who asks the models takes it along, and leaves
        their answer only under that."""
        return self.witness.turn

    @property
    def state(self) -> str:
        """Why it is used or not, in one word."""
        return self.witness.state

    @property
    def is_used(self) -> bool:
        return self.turn is not None

    @property
    def counts(self) -> Mapping[str, int]:
        """What became of all that was looked for, and of all that was left."""
        return {**self.outcomes, **{f"write_{word}": count for word, count in self.behind.outcomes.items()}}

    @property
    def waiting(self) -> int:
        """Writes that wait."""
        return len(self.behind)

    def end_turn(self) -> None:
        """Nothing that anybody has left is true any more."""
        self.witness.end_turn()

    def doubt(self) -> None:
        """See ``Witness.doubt``."""
        self.witness.doubt()

    @property
    def is_settled(self) -> bool:
        """Whether that is known in the store, of every turn that has been ended."""
        return self.witness.is_settled

    async def settled(self, seconds: float) -> bool:
        """Whether that is known in the store, waiting ``seconds`` for it at most."""
        return await self.witness.settled(seconds)

    def watch(self, looks: Callable[[], Looks | None], on_change: Callable[[], None]) -> None:
        """``looks``: the last look at every model that its answers are made by; None while one is not known.
        ``on_change``: see ``Witness``."""
        self.witness.looks, self.witness.on_change = looks, on_change

    def start(self) -> None:
        """Begin to watch, and to write."""
        if not self._tasks:
            self._tasks = [kept(self.witness.run, ROUND_SECONDS), kept(lambda *_: self.behind.run(), ROUND_SECONDS)]

    async def close(self) -> None:
        """End both; what waits to be written is lost."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def answer(
        self, turn: bytes, digest: bytes, fits: Callable[[Served[InferResponse]], bool]
    ) -> tuple[Served[InferResponse], float] | None:
        """A fresh answer, and when it was made (monotonic seconds). ``fits``: whether it can be one."""
        key = self._key(turn, b"answer", digest)
        (held,) = await self._held(turn, [key])
        if held is None:
            return None
        found = parcel.unpacked(self._shared.name, held)
        if found is None or not fits(found.served):
            self.outcomes["broken" if found is None else "corrupt"] += 1
            return None
        made_at = self._made_at(found.made_at)
        return None if made_at is None else (found.served, made_at)

    def keep_answer(self, turn: bytes, digest: bytes, served: Served[InferResponse], made_at: float) -> None:
        """Leave an answer that was made at ``made_at`` (monotonic seconds), if ``turn`` holds still."""
        size = served.response.size if texts(served.response) <= TEXTS_MAX else VALUE_BYTES_MAX + 1
        if not self._fits(turn, size):
            return
        key, at = self._key(turn, b"answer", digest), self._wall(made_at)

        def make() -> Pairs:
            packed = parcel.packed(served, at)
            return [] if packed is None else [(key, sealed(key, packed))]

        self.behind.put(Later(make, size + OVERHEAD_BYTES))

    async def rows(
        self, turn: bytes, digests: Sequence[bytes], fits: Callable[[Row], bool]
    ) -> Mapping[bytes, tuple[Row, float]]:
        """Those of these rows that are there, fresh; as `answer`, all by one question. Of very many the last are not
        looked for, and are misses."""
        self.outcomes["miss"] += max(0, len(digests) - ROWS_ASKED_MAX)
        digests = digests[:ROWS_ASKED_MAX]
        keys = [self._key(turn, b"row", digest) for digest in digests]
        reader, rows = parcel.Rows(), {}
        for digest, held in zip(digests, await self._held(turn, keys), strict=True):
            if held is None:
                continue
            found = reader.unpacked(held)
            if found is None or not fits(found[0]):
                self.outcomes["broken" if found is None else "corrupt"] += 1
            elif (made_at := self._made_at(found[1])) is not None:
                rows[digest] = found[0], made_at
        return rows

    def keep_rows(self, turn: bytes, rows: Mapping[bytes, Entry[Row]]) -> None:
        """Leave rows that were just made, if ``turn`` holds still."""
        rows = {digest: entry for digest, entry in rows.items() if self._fits(turn, entry.size)}
        if not rows:
            return
        kept = [(digest, entry, self._wall(entry.stored_at)) for digest, entry in rows.items()]
        for start in range(0, len(kept), ROWS_ASKED_MAX):  # as many as a store can take within a write's time
            some = kept[start : start + ROWS_ASKED_MAX]
            self.behind.put(Later(partial(self._pairs, turn, some), sum([entry.size for _, entry, _ in some])))

    def _pairs(self, turn: bytes, rows: Sequence[tuple[bytes, Entry[Row], float]]) -> Pairs:
        in_common: dict[int, bytes | None] = {}
        pairs = []
        for digest, entry, at in rows:
            row = entry.value
            if id(row.made) not in in_common:
                in_common[id(row.made)] = parcel.packed_made(row.made)
            made = in_common[id(row.made)]
            packed = None if made is None else parcel.packed_row(row, made, at)
            if packed is not None:
                key = self._key(turn, b"row", digest)
                pairs.append((key, sealed(key, packed)))
        return pairs

    async def _held(self, turn: bytes, keys: Sequence[bytes]) -> list[bytes | None]:
        """What was sealed under these keys."""
        nothing: list[bytes | None] = [None] * len(keys)
        try:
            found = await self._store.get_many(keys, self._shared.seconds)
        except StoreError:
            self.outcomes["failed"] += len(keys)
            return nothing
        if self.turn != turn:  # a model has changed meanwhile
            self.outcomes["miss"] += len(keys)
            return nothing
        return [self._opened(key, each) for key, each in zip(keys, found, strict=True)]

    def _opened(self, key: bytes, held: bytes | StoreError | None) -> bytes | None:
        if held is None or isinstance(held, StoreError):
            self.outcomes["miss" if held is None else "failed"] += 1
            return None
        value = unsealed(key, held, 2 * VALUE_BYTES_MAX)
        if value is None:
            self.outcomes["broken"] += 1
        return value

    def _made_at(self, at: float) -> float | None:
        """By our clock, of what was made then (Unix seconds); None for what is not fresh, or from a time that has not
        come yet."""
        age = self._clocks.wall() - at
        if not -SKEW_SECONDS_MAX <= age <= self._shared.ttl:
            self.outcomes["old"] += 1
            return None
        self.outcomes["hit"] += 1
        return self._clocks.ticker() - max(0.0, age)

    def _fits(self, turn: bytes, size: int) -> bool:
        if size > VALUE_BYTES_MAX:
            self.outcomes["large"] += 1
        return size <= VALUE_BYTES_MAX and self.turn == turn

    def _wall(self, made_at: float) -> float:
        return self._clocks.wall() - (self._clocks.ticker() - made_at)

    def _key(self, turn: bytes, kind: bytes, digest: bytes) -> bytes:
        return b"tailrace:" + blake3(b"\0".join((self._scope, turn, kind, digest))).digest(SCOPE_BYTES)


def scope_of(shared: Shared) -> bytes:
    """Where such a route's answers are: nowhere that another one's would be found."""
    told = msgspec.msgpack.encode(("tailrace second", VERSION, parcel.LAYOUT, shared.name, shared.told, shared.ttl))
    return blake3(told).digest(SCOPE_BYTES)
