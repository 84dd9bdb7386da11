"""Copies of a service's answers, or of their rows, in the snapshot: what is written, and what is read of it again.

Rule of this file: it joins what others decide. What lies on the disk, and whether it is whole, is
``degrade/snapshot.py``'s, what is copied as bytes ``copied.py``'s, whether the models are still the same
``witness.py``'s, what was purged ``purges.py``'s.

A copy is found under the digest that the original has in memory, so it is as much one tenant's. It says under which
*word* it was made: as long as that is the witness's, its models are as they were, and it is what it would be in memory.
If nobody can tell, or the word is another, it is an old answer at most; where there is no witness nobody ever can. When
a service was purged is on the disk, too: what was made before is found by nobody, after a restart neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar

import msgspec
from blake3 import blake3

from cache.entry import Entry
from cache.journal import Journal
from cache.memo import Memo
from cache.response import ResponseCache
from cache.stores.store import Store
from degrade.calendar import Calendar
from degrade.record import PAYLOAD_BYTES_MAX, Good, Record, Terms, age, doubted, name_of, packed
from gateway.purges import WORDS_SECONDS, Purges, purge_key
from gateway.reads import LOOK_SECONDS_MAX, LookTime
from gateway.service import Wire
from gateway.witness import REST_SECONDS, Clocks, Looks, Witness

V = TypeVar("V")
Cache = ResponseCache[V, Wire] | ResponseCache[V, None]

KEYS_MAX: Final = 65_536
"""Of one shelf, noted until they are written: some 10 MB at most."""
TURN_BYTES: Final = 256 * 1024
"""Made ready in one turn of the event loop: some 0.2 ms."""
FINGERPRINT_BYTES: Final = 16
SERVERS_BYTES: Final = 8
READ_MAX: Final = 64
READ_BYTES_MAX: Final = 4 * 1024 * 1024
READ_SECONDS: Final = 1.0
"""A copy that was read is not read anew for so long, and so many of them: one request asks for its own up to five
times on its way down the ladder, and reading one may take a millisecond. Whether it may still be used is looked at each
time."""

LOOK_SECONDS_MIN: Final = 0.015
"""Also where a request's time is over: what is there is its answer. One request looks up to six times."""
LOOK_SHARE: Final = 0.25
"""Of the time that a request has left: models are still to be asked."""

_OUTCOMES: Final = ("fresh", "stale", "unknown", "absent")


class Pending(msgspec.Struct, frozen=True):
    """A record that is to be written under its name, packed, and sealed or not yet. ``is_end``: only where there is one
    that it puts an end to."""

    name: bytes
    written: bytes
    is_sealed: bool = False
    is_end: bool = False


class Copied(Protocol):
    """What is copied, a few at a time."""

    def __len__(self) -> int:
        """How many wait."""

    @property
    def forgotten(self) -> int:
        """How many found no room to wait in, from the start: they are copied when they are made anew."""

    def take(self, count: int) -> Sequence[Pending] | None:
        """Some of them, made ready; ``count`` steps at most are taken (each to a key, or over some that a sweep leaves
        out), and TURN_BYTES made or little more. None if nothing was looked at: none waits, or nobody can make
        them now."""

    def again(self) -> None:
        """What was taken since the last call of this or of ``written`` was not written."""

    def written(self) -> None:
        """It was."""

    def sweep(self, bytes_max: int) -> None:
        """A new generation has begun: so much of what has been used is to be in it too."""


class Records(Protocol):
    """Where records lie; ``Reads`` in life."""

    async def read(
        self, kind: str, source: str, keys: Sequence[bytes], terms: Terms[V], now: float, time: LookTime
    ) -> list[Good[V] | None]:
        """What is kept under each key, if it is good, read; nothing where that is not known in ``time``. ``now``: Unix
        seconds."""


class Form(Protocol[V]):
    """What is copied as bytes, and back (``copied.py``). ``kind``: the records'."""

    @property
    def kind(self) -> str: ...

    def packed(self, value: V, made_at: float) -> bytes | None:
        """None for what nobody could read, or is not to be believed later: numbers that are none. ``made_at``: Unix
        seconds."""

    def read(self, payload: bytes) -> V | None:
        """None for what is none, or is not to be believed."""


class Copy(msgspec.Struct, Generic[V], frozen=True):
    """What was copied, and when it was made (monotonic seconds). ``is_same``: its models are as they were then.
    ``word``: of which servers, and under which of their turns, it was made."""

    value: V
    made_at: float
    is_same: bool
    word: bytes

    @property
    def turn(self) -> bytes:
        """Under which it was made; b"": nobody knows."""
        return self.word[SERVERS_BYTES:]


class CopyRules(msgspec.Struct, frozen=True):
    """``source``: whose copies ("routes/digits"). ``fingerprint``: of all that an operator says of it and that decides
    an answer. ``scope``: that, and the servers that are asked. ``trusts``: a copy is fresh as long as nobody can tell
    whether its models are the same. ``is_watched``: somebody can, now and then. ``servers``: which are asked, in
    SERVERS_BYTES; what others have answered is another's answer, however much of its configuration is alike."""

    source: str
    fingerprint: bytes
    scope: bytes
    seconds_max: float
    trusts: bool
    is_watched: bool = True
    servers: bytes = bytes(SERVERS_BYTES)


class Standing:
    """What of a service says whether its copies may be used, whatever they are copies of. ``outcomes`` counts
    look-ups: each of an answer, each of a row, however often a request makes the same one on its way. ``large``: how
    many answers were not copied when they were made, for they have more than PAYLOAD_BYTES_MAX."""

    def __init__(
        self, rules: CopyRules, calendar: Calendar, store: Store, clocks: Clocks, purges: Purges | None = None
    ) -> None:
        """``purges``: of whoever has this name, under this configuration or another; None: this one's alone."""
        self.rules = rules
        self.calendar = calendar
        self.ticker = clocks.ticker
        self.outcomes: Counter[str] = Counter(dict.fromkeys(_OUTCOMES, 0))
        self.large = 0
        scope = rules.scope.hex().encode()
        self.witness = Witness(scope, store, clocks, WORDS_SECONDS, REST_SECONDS) if rules.is_watched else None
        self.purges = Purges(purge_key(rules.source), store, calendar) if purges is None else purges
        self.epoch: Callable[[], int] = lambda: 0
        self._schema: Callable[[], bytes | None] = lambda: None
        self._like: bytes | None = None
        self.alike_since = 0
        """The epoch since which its models have taken and given what they do now: what is older is another model's,
        and fits what that one gave."""

    def watch(
        self,
        epoch: Callable[[], int],
        looks: Callable[[], Looks | None],
        schema: Callable[[], bytes | None],
        on_change: Callable[[], None] | None = None,
    ) -> None:
        """``looks`` and ``on_change``: see ``Witness``; ``epoch``: the service's; ``schema``: what its models take and
        give, None while nobody knows."""
        self.epoch, self._schema = epoch, schema
        if self.witness is not None:
            self.witness.looks = looks
            self.witness.on_change = on_change or self.witness.end_turn

    def schema(self) -> bytes | None:
        """What its models take and give now."""
        schema = self._schema()
        if schema is not None and schema != self._like:
            self._like, self.alike_since = schema, self.epoch()
        return schema

    @property
    def turn(self) -> bytes | None:
        """The word that holds now of the models as they are."""
        return None if self.witness is None else self.witness.turn

    def word(self, turn: bytes | None) -> bytes:
        """What a copy says of what it was made by: which servers, and under which word, if there was one."""
        return self.rules.servers + (turn or b"")

    @property
    def state(self) -> str:
        """Whether copies are those of the models as they are, or why nobody knows, in one word."""
        if self.purges.at is None:
            return "unread"
        return "unwatched" if self.witness is None else self.witness.state

    def end_turn(self) -> None:
        """No copy is of the models as they are, in an epoch that has begun just now."""
        self.schema()
        if self.witness is not None:
            self.witness.end_turn()

    def doubt(self) -> None:
        """See ``Witness.doubt``; an epoch has begun just now."""
        self.schema()
        if self.witness is not None:
            self.witness.doubt()

    def trusts(self, word: bytes) -> bool:
        """Whether a copy that was made under ``word``, of models that nobody can ask, is as good as one of models that
        are the same. Not if other servers have answered it, nor if those are known to have become others: a word has
        ended here then, and the next one only cannot be written or read."""
        witness = self.witness
        if witness is None or not (self.rules.trusts and self.is_unknown and word.startswith(self.rules.servers)):
            return False
        return witness.may_hold(word[SERVERS_BYTES:])

    @property
    def is_unknown(self) -> bool:
        """Whether nobody can tell, so far or for now, if the models are the same."""
        witness = self.witness
        if witness is None:
            return False
        return witness.turn is None and witness.state in ("unread", "unknown-model", "considering", "unreachable")


class Copies(Generic[V]):
    """Of one shelf of a service: its answers, or its rows. Belongs to one event loop."""

    def __init__(self, standing: Standing, records: Records, form: Form[V]) -> None:
        self.standing = standing
        self._records = records
        self._form = form
        self._cache: Cache[V] | None = None
        self._sweep: Iterator[bytes | None] | None = None
        self._sweep_bytes = 0
        self._taken: list[bytes] = []
        self._wordless: Journal[bytes] = Journal(KEYS_MAX)
        self._terms: Terms[V] | None = None
        self._of = b""  # the schema in them
        self._read: Memo[bytes, tuple[Good[V], float]] = Memo(READ_MAX, READ_BYTES_MAX)

    def watch(self, cache: Cache[V]) -> None:
        """Copy what is stored there from now on."""
        self._cache = cache
        if cache.journal is None:
            cache.journal = Journal(KEYS_MAX)

    async def find(self, digest: bytes, now: float, until: float) -> Copy[V] | None:
        """What is kept under a digest. ``now``, and ``until`` when the request has time: monotonic seconds."""
        return self.judged((await self.read([digest], now, until)).get(digest), now)

    async def read(self, digests: Sequence[bytes], now: float, until: float) -> dict[bytes, Good[V]]:
        """What lies on the disk under each digest, if there is something, to be ``judged`` when it is used: what was
        read a moment ago, or what is read now. ``now``, ``until``: monotonic seconds."""
        terms, standing = self._terms_now(), self.standing
        found: dict[bytes, Good[V]] = {}
        if terms is None:
            return found
        at = standing.calendar.now()
        for digest in digests:
            held = self._read.get(digest)
            if held is not None and 0.0 <= now - held[1] <= READ_SECONDS and not doubted(held[0].record, terms, at):
                found[digest] = held[0]
        missing = [digest for digest in digests if digest not in found]
        if missing:
            seconds = min(LOOK_SECONDS_MAX, max(LOOK_SECONDS_MIN, LOOK_SHARE * (until - now)))
            time = LookTime(seconds, seconds)
            told = await self._records.read(self._form.kind, standing.rules.source, missing, terms, at, time)
            for digest, good in zip(missing, told, strict=True):
                if good is not None:
                    found[digest] = good
                    self._read.put(digest, (good, now), len(good.record.payload))
        return found

    def judged(self, good: Good[V] | None, now: float) -> Copy[V] | None:
        """What was read, as of now: there may have been a purge, or another model, since."""
        standing, terms = self.standing, self._terms_now()
        at = standing.calendar.now()
        if terms is None:
            return None
        if good is None or doubted(good.record, terms, at):
            standing.outcomes["absent"] += 1
            return None
        turn, word = standing.turn, good.record.word
        is_same = turn is not None and word == standing.word(turn)
        standing.outcomes["fresh" if is_same else "unknown" if standing.is_unknown else "stale"] += 1
        return Copy(good.value, now - age(good.record, at), is_same, word)

    def __len__(self) -> int:
        journal = None if self._cache is None else self._cache.journal
        wordless = 0 if self.standing.turn is None else len(self._wordless)
        return (0 if journal is None else len(journal)) + wordless + (self._sweep is not None)

    @property
    def forgotten(self) -> int:
        journal = None if self._cache is None else self._cache.journal
        return 0 if journal is None else journal.forgotten

    def take(self, count: int) -> list[Pending] | None:
        cache, terms, standing = self._cache, self._terms_now(), self.standing
        if cache is None or cache.journal is None or terms is None or not len(self):
            return None
        turn, epoch = standing.turn, standing.epoch()
        if turn is not None and len(self._wordless):  # they were written before there was a word, and now there is one
            cache.journal.note_all(self._wordless.take(count))
        made: list[Pending] = []
        size = 0
        for digest in islice(self._next(cache, cache.journal), count):
            if digest is None:
                continue
            entry = cache.peek(digest)
            is_alike = entry is not None and entry.epoch >= standing.alike_since
            if entry is not None and entry.size > PAYLOAD_BYTES_MAX:
                standing.large += is_alike
                continue  # nor looked at again when there is a word, or when this pass was in vain
            self._taken.append(digest)
            if turn is None and standing.witness is not None:
                self._wordless.note(digest)
            if entry is not None and is_alike:
                word = standing.word(turn if entry.epoch == epoch else None)
                pending = self._pending(digest, entry, word, terms)
                made += [] if pending is None else [pending]
                size += entry.size
                if size > TURN_BYTES:
                    break
        return made

    def _next(self, cache: Cache[V], journal: Journal[bytes]) -> Iterator[bytes | None]:
        """What is new, and then what the sweep has; None is a step of that over what it leaves out."""
        while len(journal):
            yield from journal.take(1)
        for digest in self._sweep or ():
            if self._sweep_bytes <= 0:
                break
            entry = None if digest is None else cache.peek(digest)
            if entry is not None and entry.size > PAYLOAD_BYTES_MAX:
                yield None  # it has never been copied, and takes no room from what is
                continue
            self._sweep_bytes -= 0 if entry is None else entry.size
            yield digest
        self._sweep = None

    def again(self) -> None:
        taken, self._taken = self._taken, []
        if self._cache is not None and self._cache.journal is not None:
            self._cache.journal.note_all(taken)

    def written(self) -> None:
        self._taken = []

    def sweep(self, bytes_max: int) -> None:
        self._sweep = None if self._cache is None else self._cache.used()
        self._sweep_bytes = bytes_max

    def _pending(self, digest: bytes, entry: Entry[V], word: bytes, terms: Terms[V]) -> Pending | None:
        """The entry as a record; None if it is one of those that nobody could read."""
        standing, kind = self.standing, self._form.kind
        now = standing.calendar.now()
        made_at = now - max(0.0, standing.ticker() - entry.stored_at)
        payload = self._form.packed(entry.value, made_at)
        if payload is None or len(payload) > PAYLOAD_BYTES_MAX:
            standing.large += payload is not None
            return None
        source = standing.rules.source
        record = Record(kind, source, digest, terms.fingerprint, word, made_at, now, payload)
        return Pending(name_of(kind, source, digest), packed(record))

    def _terms_now(self) -> Terms[V] | None:
        """What a copy must be now; None as long as nobody knows what was purged, or what the models are."""
        standing = self.standing
        at, schema = standing.purges.at, standing.schema()
        if at is None or schema is None:
            return None
        if self._terms is None or self._terms.made_after != at or self._of is not schema:
            fingerprint = blake3(standing.rules.fingerprint + schema).digest(FINGERPRINT_BYTES)
            self._terms, self._of = Terms(fingerprint, standing.rules.seconds_max, self._form.read, at), schema
        return self._terms
