"""Copies of a route's answers in the snapshot: what is written, and what is read of it again.

Rule of this file: it joins what others decide. What lies on the disk, and whether it is whole, is
``degrade/snapshot.py``'s, an answer as bytes ``parcel.py``'s, whether the models are still the same ``witness.py``'s.

A copy is found under the digest that the answer has in memory, so it is as much one tenant's. It says under which
*word* it was made: as long as that is the witness's, its models are as they were, and it is what it would be in memory.
If nobody can tell, or the word is another, it is an old answer at most. When a route was purged is on the disk, too:
what was made before is found by nobody, after a restart neither.
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Final, Protocol

import msgspec
import numpy as np
from blake3 import blake3

from cache.entry import Entry
from cache.journal import Journal
from cache.response import ResponseCache
from cache.stores.store import Found, Store, StoreError
from degrade.calendar import Calendar
from degrade.record import PAYLOAD_BYTES_MAX, Record, Terms, age, name_of, packed
from degrade.snapshot import Snapshot
from gateway import parcel
from gateway.config import Route as RouteConfig
from gateway.service import Served, Wire
from gateway.witness import Clocks, Looks, Witness
from tiers.inference import InferResponse

KEYS_MAX: Final = 65_536
"""Of one route or table, noted until they are written: some 10 MB at most."""
WORDS: Final = "words"
"""The folder beside the generations where words are, and when routes were purged."""
WORDS_SECONDS: Final = 1.0
"""What reading or writing a word may take: a small file."""
TURN_BYTES: Final = 256 * 1024
"""Made ready in one turn of the event loop: some 0.2 ms."""
FINGERPRINT_BYTES: Final = 16
ASIDE: Final = ("quota", "caller_quota", "degrade", "default", "timeout", "priority", "brownout")
"""What of a route decides no answer."""
FLOATS: Final[Mapping[str, str]] = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
"""Datatypes that can be something else than a number."""

HURRY_SECONDS: Final = 0.1
"""Until what could not be written is tried again: somebody who purges waits for it."""
_AT: Final = struct.Struct("<d")

_OUTCOMES: Final = ("fresh", "stale", "unknown", "absent")


class Pending(msgspec.Struct, frozen=True):
    """A record that is to be written under its name, packed, and sealed or not yet."""

    name: bytes
    written: bytes
    is_sealed: bool = False


class Copied(Protocol):
    """What is copied, a few at a time."""

    def __len__(self) -> int:
        """How many wait."""

    def take(self, count: int) -> Sequence[Pending]:
        """Some of them, made ready; ``count`` keys at most are looked at, and TURN_BYTES of them or little more."""

    def again(self) -> None:
        """What was taken since the last call of this or of ``written`` was not written."""

    def written(self) -> None:
        """It was."""

    def sweep(self, bytes_max: int) -> None:
        """A new generation has begun: so much of what has been used is to be in it too."""


class Copy(msgspec.Struct, frozen=True):
    """An answer, and when it was made (monotonic seconds). ``is_same``: its models are as they were then."""

    served: Served[InferResponse]
    made_at: float
    is_same: bool


class CopyRules(msgspec.Struct, frozen=True):
    """``fingerprint``: of all that an operator says of the route and that decides an answer. ``scope``: that, and the
    servers that are asked. ``trusts``: a copy is fresh as long as nobody can tell whether its models are the same."""

    name: str
    fingerprint: bytes
    scope: bytes
    seconds_max: float
    trusts: bool


def purge_key(source: str) -> bytes:
    """Under which it is said when a route was purged. By its name alone, as its records are: whatever else of it
    changes, what was purged stays so."""
    return b"tailrace:%b:purge" % blake3(source.encode()).hexdigest(FINGERPRINT_BYTES).encode()


def purged_at(found: Found) -> float:
    """When it was, in Unix seconds. Of a mark that is damaged nobody knows: everything was. Raises struct.error."""
    if isinstance(found, StoreError):
        return math.inf
    at: float = -math.inf if found is None else _AT.unpack(found)[0]
    return at


class Purges:
    """When the last purge was (Unix seconds), on the disk. Until that has been read, no copy may be used."""

    def __init__(self, key: bytes, store: Store, calendar: Calendar) -> None:
        self._key = key
        self._store = store
        self._calendar = calendar
        self._told = True
        self._settled = asyncio.Event()
        self._settled.set()
        self.at: float | None = None
        """None: not known yet."""

    def purge(self) -> None:
        """Nothing that was made before now is to be found any more."""
        self.at, self._told = self._calendar.now(), False
        self._settled.clear()

    async def round(self) -> None:
        """Read when it was, or write what is not written yet."""
        try:
            (found,) = await self._store.get_many([self._key], WORDS_SECONDS)
            read = purged_at(found)
            if read == math.inf:
                self.purge()
                read = -math.inf
            self.at = at = max(read, -math.inf if self.at is None else self.at)
            if math.isfinite(at):
                self._calendar.reach(at)  # a clock that was set back
            if at > read:
                await self._store.put_many([(self._key, _AT.pack(at))], None, WORDS_SECONDS)
        except (StoreError, struct.error):
            return  # what could not be written is tried again
        if self.at == at:
            self._told = True
            self._settled.set()

    async def run(self, interval: float, sleep: Callable[[float], Awaitable[None]]) -> None:
        while True:
            await self.round()
            await sleep(interval if self._told else min(interval, HURRY_SECONDS))

    async def settled(self, seconds: float) -> bool:
        """Whether every purge is on the disk, waiting ``seconds`` for it at most."""
        if not self._told:
            await self.round()
        try:
            async with asyncio.timeout(seconds):
                await self._settled.wait()
        except TimeoutError:
            return False
        return True


class AnswerCopies:
    """One route's. Belongs to one event loop."""

    def __init__(self, rules: CopyRules, snapshot: Snapshot, calendar: Calendar, store: Store, clocks: Clocks) -> None:
        scope = rules.scope.hex().encode()
        self.rules = rules
        self.outcomes: Counter[str] = Counter(dict.fromkeys(_OUTCOMES, 0))
        self.witness = Witness(scope, store, clocks, WORDS_SECONDS)
        self._source = f"routes/{rules.name}"
        self.purges = Purges(purge_key(self._source), store, calendar)
        self.epoch: Callable[[], int] = lambda: 0
        self.schema: Callable[[], bytes | None] = lambda: None
        self._snapshot = snapshot
        self._calendar = calendar
        self._ticker = clocks.ticker
        self._cache: ResponseCache[Served[InferResponse], Wire] | None = None
        self._sweep: Iterator[bytes] | None = None
        self._sweep_bytes = 0
        self._taken: list[bytes] = []
        self._wordless: Journal[bytes] = Journal(KEYS_MAX)
        self._terms: Terms | None = None
        self._of = b""  # the schema in them

    def watch(
        self,
        cache: ResponseCache[Served[InferResponse], Wire],
        epoch: Callable[[], int],
        looks: Callable[[], Looks | None],
        schema: Callable[[], bytes | None],
    ) -> None:
        """``looks``: see ``Witness``; ``epoch``: the route's; ``schema``: what its models take and give, None while
        nobody knows."""
        self._cache, self.epoch, self.witness.looks, self.schema = cache, epoch, looks, schema
        if cache.journal is None:
            cache.journal = Journal(KEYS_MAX)

    def find(self, digest: bytes, now: float) -> Copy | None:
        """What is kept of an answer. ``now``: monotonic seconds."""
        terms = self._terms_now()
        if terms is None:
            return None
        at = self._calendar.now()
        record = self._snapshot.find("answer", self._source, digest, terms, at)
        unpacked = None if record is None else parcel.unpacked(self.rules.name, record.payload)
        if record is None or unpacked is None:
            self.outcomes["absent"] += 1
            return None
        turn = self.witness.turn
        is_same = turn is not None and record.word == turn
        self.outcomes["fresh" if is_same else "unknown" if self._is_unknown(turn) else "stale"] += 1
        return Copy(unpacked.served, now - age(record, at), is_same)

    @property
    def state(self) -> str:
        """Whether copies are those of the models as they are, or why nobody knows, in one word."""
        return "unread" if self.purges.at is None else self.witness.state

    def purge(self) -> None:
        """No copy that there is may be found any more."""
        self.purges.purge()

    async def settled(self, seconds: float) -> bool:
        """Whether that is on the disk, waiting ``seconds`` for it at most."""
        return await self.purges.settled(seconds)

    def trusts(self) -> bool:
        """Whether a copy of models that nobody can ask is as good as one of models that are the same."""
        return self.rules.trusts and self._is_unknown(self.witness.turn)

    def _is_unknown(self, turn: bytes | None) -> bool:
        return turn is None and self.witness.state in ("unread", "unknown-model", "considering", "unreachable")

    def __len__(self) -> int:
        journal = None if self._cache is None else self._cache.journal
        wordless = 0 if self.witness.turn is None else len(self._wordless)
        return (0 if journal is None else len(journal)) + wordless + (self._sweep is not None)

    def take(self, count: int) -> list[Pending]:
        cache, terms = self._cache, self._terms_now()
        if cache is None or cache.journal is None or terms is None:
            return []
        turn, epoch = self.witness.turn, self.epoch()
        if turn is not None and len(self._wordless):  # they were written before there was a word, and now there is one
            cache.journal.note_all(self._wordless.take(count))
        made: list[Pending] = []
        size = 0
        for _ in range(count):
            digest = None if size > TURN_BYTES else self._next(cache.journal)
            if digest is None:
                break
            self._taken.append(digest)
            if turn is None:
                self._wordless.note(digest)
            entry = cache.peek(digest)
            if entry is not None and entry.size <= PAYLOAD_BYTES_MAX:
                word = turn if turn is not None and entry.epoch == epoch else b""
                pending = self._pending(digest, entry, word, terms)
                made += [] if pending is None else [pending]
                size += entry.size
        return made

    def _next(self, journal: Journal[bytes]) -> bytes | None:
        """What is new, and then what the sweep has."""
        if len(journal):
            return journal.take(1)[0]
        digest = None if self._sweep is None or self._sweep_bytes <= 0 else next(self._sweep, None)
        if digest is None:
            self._sweep = None
        elif self._cache is not None and (entry := self._cache.peek(digest)) is not None:
            self._sweep_bytes -= entry.size
        return digest

    def again(self) -> None:
        taken, self._taken = self._taken, []
        if self._cache is not None and self._cache.journal is not None:
            self._cache.journal.note_all(taken)

    def written(self) -> None:
        self._taken = []

    def sweep(self, bytes_max: int) -> None:
        self._sweep = None if self._cache is None else self._cache.used()
        self._sweep_bytes = bytes_max

    def _pending(
        self, digest: bytes, entry: Entry[Served[InferResponse]], word: bytes, terms: Terms
    ) -> Pending | None:
        """The entry as a record; None if it is one of those that nobody could read."""
        now = self._calendar.now()
        made_at = now - max(0.0, self._ticker() - entry.stored_at)
        payload = parcel.packed(entry.value, made_at)
        if payload is None or len(payload) > PAYLOAD_BYTES_MAX or not _is_finite(entry.value.response):
            return None
        record = Record("answer", self._source, digest, terms.fingerprint, word, made_at, now, payload)
        return Pending(name_of("answer", self._source, digest), packed(record))

    def _terms_now(self) -> Terms | None:
        """What a copy must be now; None as long as nobody knows what was purged, or what the models are."""
        at, schema = self.purges.at, self.schema()
        if at is None or schema is None:
            return None
        if self._terms is None or self._terms.made_after != at or self._of is not schema:
            fingerprint = blake3(self.rules.fingerprint + schema).digest(FINGERPRINT_BYTES)
            self._terms, self._of = Terms(fingerprint, self.rules.seconds_max, self._is_sound, at), schema
        return self._terms

    def _is_sound(self, payload: bytes) -> bool:
        unpacked = parcel.unpacked(self.rules.name, payload)
        return unpacked is not None and _is_finite(unpacked.served.response)


def fingerprint_of(name: str, route: RouteConfig) -> bytes:
    """Of all that an operator says of a route and that decides its answers, wherever its servers are: a copy is good on
    another host too."""
    told = msgspec.to_builtins(route, enc_hook=str)  # durations and sizes
    for key in (*ASIDE, "cache"):  # of which two keys do
        told.pop(key)
    cache = None if route.cache is None else (route.cache.shared, route.cache.rows)
    written = msgspec.msgpack.encode(("tailrace answer", parcel.LAYOUT, name, told, cache), order="sorted")
    return blake3(written).digest(FINGERPRINT_BYTES)


def _is_finite(response: InferResponse) -> bool:
    """Whether all of its numbers are numbers."""
    for output in response.outputs:
        kind = FLOATS.get(output.datatype)
        if kind is not None and output.data:
            try:
                numbers = np.frombuffer(output.data, kind)
            except ValueError:
                return False
            if not np.isfinite(numbers).all():
                return False
    return True
