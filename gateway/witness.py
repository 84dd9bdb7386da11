"""Under which turn answers of a shared store are true of the models as they are, by the word of who watches them.

An epoch counts what one process has seen. What several share has *turns*: a random word in the store, part of every
answer's key. Whoever sees a model change, or is told to purge, puts a new word there, and nobody finds what was kept
under the old one. A process believes a word that it did not write only when it has made sure that no model has changed
since somebody who watched them wrote down what they looked like: beside the word lies the last look at every model on
every replica, which is gone a minute after the last who watched. So answers outlive the process that made them, and
none outlives its model unseen.

Rule of this file: it decides which word holds, and asks the store for nothing else. Without a word that holds, nothing
is read or left there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from cache.sealed import sealed, unsealed, value_of
from cache.stores.store import OF_ONE_KEY, Found, Store, StoreError
from degrade.deadline import Ticker
from gateway.background import came
from tiers.facts import Sight, changed

ROUND_SECONDS: Final = 1.0
"""How often the word is read: a purge by another process is known after that."""
BELIEVED_SECONDS: Final = 3.0
"""A word that could not be read again for so long holds no more."""
WATCHED_SECONDS: Final = 60.0
"""For how long looks are left for who comes next: longer, and a model that was loaded again unseen may have done as
much as it had before, which is how a change would show."""
REST_SECONDS: Final = WATCHED_SECONDS / 3
"""Looks that say what lies there already may be left again after this, so that models that rest cost no writing: in a
store of one host. Of several, each tells by how new the others' are how far its clock is from theirs."""
TURN_SECONDS: Final = 30 * 86400.0
"""After so long a word is forgotten, and with it what was kept under it: a name that nobody uses must not stay."""
ROUNDS_UNWATCHED_MAX: Final = 3
"""A word whose looks are another's is being replaced; one that stays so was left by somebody who died at it."""
SKEW_SECONDS_MAX: Final = 5.0
"""How far another host's clock may be before ours: answers would look that much younger."""
LOOKS_BYTES_MAX: Final = 1024 * 1024
ENDED_MAX: Final = 64
"""Words remembered as ended, should a store that has lost its last writes show one again."""

Looks = Mapping[str, tuple[float, Sight]]
"""The last look at each model on each replica, and when it began (monotonic seconds)."""


class Watch(msgspec.Struct, frozen=True, array_like=True):
    """What who watches leaves for who comes: the word it is about, the time (Unix), and looks."""

    turn: bytes
    at: float
    sights: dict[str, Sight]


class Clocks(msgspec.Struct, frozen=True):
    """``ticker``: monotonic seconds; ``wall``: Unix seconds; ``word``: one that nobody has had."""

    ticker: Ticker
    wall: Ticker
    word: Callable[[], bytes]


class Witness:
    """The turn of one scope of a store. Belongs to one event loop; `run` keeps it."""

    def __init__(
        self, scope: bytes, store: Store, clocks: Clocks, seconds: float, rest_seconds: float = 0.0
    ) -> None:
        """``seconds``: what a read or a write may take. ``rest_seconds``: see ``REST_SECONDS``."""
        self._turn_key = b"tailrace:%b:turn" % scope
        self._watch_key = b"tailrace:%b:watch" % scope
        self._store = store
        self.looks: Callable[[], Looks | None] = lambda: None
        """At every model that answers are made by; None while one is not known."""
        self.on_change: Callable[[], None] = self.end_turn
        """Called when what was taken under a word that held here is, or may be, another model's: it held while one
        could not be reached, and nothing but the looks of those who had left it would tell. Must end the turn."""
        self._clocks = clocks
        self._seconds = seconds
        self._rest_seconds = rest_seconds
        self._turn: bytes | None = None
        self._confirmed = 0.0
        self._candidate: tuple[bytes, float] | None = None  # a word, and when it was first read
        self._carried: dict[str, Sight] = {}  # others' looks that we could not hold one of our own against yet
        self._unwatched = 0
        self._has_held = False
        self._taken = b""  # the word under which something may have been taken before all was looked at
        self._last: bytes | None = None  # the word that held here last; b"": it has ended
        self._ended: deque[bytes] = deque(maxlen=ENDED_MAX)
        self._asked_ends = self._done_ends = 0
        self._hurry = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self.state = "unread"
        """Why there is a turn or none, in one word."""

    @property
    def turn(self) -> bytes | None:
        """The word under which answers are true now; None: no answer of the store's is."""
        if self._turn is None or self._clocks.ticker() - self._confirmed > BELIEVED_SECONDS:
            return None
        return self._turn

    def end_turn(self) -> None:
        """Nothing that is kept is true any more: a model has changed, or somebody purges. At once here; elsewhere as
        soon as the store takes the new word, and they read it."""
        self._drop("ended")
        self._taken = self._last = b""
        self._asked_ends += 1
        self._settled.clear()
        self._hurry.set()

    def doubt(self) -> None:
        """A replica may have answered as another model before it was looked at for the first time. Nobody can tell, for
        what it has done since hides what it was, so the turn ends; unless nothing has been kept under any: so it is at
        a start, where the first requests come beside the first looks."""
        if self._has_held:
            self.end_turn()

    def may_hold(self, word: bytes) -> bool:
        """Whether for all that is known here a word may be the one that holds now, though nobody can tell."""
        return self._last is None or word == self._last != b""

    @property
    def is_settled(self) -> bool:
        """Whether all ends of turns are in the store."""
        return self._settled.is_set()

    async def settled(self, seconds: float) -> bool:
        """Whether all ends of turns are in the store, waiting ``seconds`` for it at most."""
        return await came(self._settled, seconds)

    async def run(self, interval: float, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Go round for ever, ``interval`` seconds apart, or at once when a turn is ended."""
        while True:
            self._hurry.clear()
            await self.round()
            resting = asyncio.ensure_future(sleep(interval))
            hurried = asyncio.ensure_future(self._hurry.wait())
            try:
                await asyncio.wait((resting, hurried), return_when=asyncio.FIRST_COMPLETED)
                if self._hurry.is_set() and self.state == "unreachable":
                    await resting  # the store's fault: it would be asked without a pause
            finally:
                for task in (resting, hurried):
                    task.cancel()
                await asyncio.gather(resting, hurried, return_exceptions=True)

    async def round(self) -> None:
        """Read the word, and decide whether it holds."""
        looks = self.looks()
        try:
            if not looks:
                await self._end_unseen()
                return
            turn, held = map(_there, await self._store.get_many([self._turn_key, self._watch_key], self._seconds))
            if isinstance(turn, StoreError) or isinstance(held, StoreError):
                raise StoreError("unavailable")
            await self._judge(turn, _read(self._watch_key, held), looks)
        except StoreError:
            self.state = "unreachable"  # the word goes on for as long as it is believed

    async def _judge(self, turn: bytes | None, watch: Watch | None, looks: Looks) -> None:
        if self._taken and self._carried and (turn != self._taken or self._has_changed(looks)):
            self.on_change()
        if self._asked_ends > self._done_ends or turn is None or turn in self._ended:
            await self._begin(looks)
        elif watch is not None and watch.at - self._clocks.wall() > SKEW_SECONDS_MAX:
            self._drop("clock")
        elif turn == self._turn:
            await self._confirm(turn, looks, watch)
        else:
            await self._consider(turn, watch, looks)

    async def _consider(self, turn: bytes, watch: Watch | None, looks: Looks) -> None:
        """Another's word: it holds if what was looked at since does not differ from what its watchers saw."""
        self._drop("considering")
        if watch is None or watch.turn != turn:
            self._unwatched += 1
            if watch is None or self._unwatched >= ROUNDS_UNWATCHED_MAX:
                await self._begin(looks)
            return
        self._unwatched = 0
        if self._candidate is None or self._candidate[0] != turn:
            self._candidate, self._carried = (turn, self._clocks.ticker()), dict(watch.sights)
            self._taken = b""
        if self._has_changed(looks):
            await self._begin(looks)
        elif all(name not in self._carried or sight.lost for name, (_, sight) in looks.items()):
            await self._confirm(turn, looks, watch)  # whom we cannot reach is held against theirs when it is back

    def _has_changed(self, looks: Looks) -> bool:
        """Whether a look since the word was read shows another model than theirs."""
        since = 0.0 if self._candidate is None else self._candidate[1]
        for name, theirs in list(self._carried.items()):
            began, ours = looks.get(name, (-1.0, theirs))
            if began <= since or ours.lost:
                continue
            if changed(theirs, ours):
                return True
            del self._carried[name]
        return False

    async def _confirm(self, turn: bytes, looks: Looks, watch: Watch | None) -> None:
        """The word holds; say what we see, unless that is said. An end asked for meanwhile is seen to in the next
        round."""
        ends, read = self._asked_ends, self._clocks.ticker()
        if watch is None or not self._says(watch, turn, looks):
            await self._leave(turn, looks)
        if self._asked_ends == ends:
            self._turn, self._confirmed, self.state, self._unwatched = turn, read, "held", 0
            self._has_held, self._taken, self._last = True, turn, turn

    async def _begin(self, looks: Looks) -> None:
        """A new word, of our own: all that is under it will have been made from now on."""
        self._drop("ended")
        ends, turn, read = self._asked_ends, self._clocks.word(), self._clocks.ticker()
        self._carried, self._candidate, self._unwatched, self._taken = {}, None, 0, b""
        self._has_held = True
        await self._leave(turn, looks)  # first: a word without looks is nobody's
        await self._store.put_many([(self._turn_key, turn)], TURN_SECONDS, self._seconds)
        self._done_ends = ends
        if self._asked_ends == ends:
            self._turn, self._confirmed, self.state, self._last = turn, read, "held", turn
            self._settled.set()

    async def _end_unseen(self) -> None:
        """Without a look at the models no word holds here; what is to be ended for others is all the same."""
        self._drop("unknown-model")
        ends = self._asked_ends
        if ends > self._done_ends:
            await self._store.put_many([(self._turn_key, self._clocks.word())], TURN_SECONDS, self._seconds)
            self._done_ends = ends
            if self._asked_ends == ends:
                self._settled.set()

    def _says(self, watch: Watch, turn: bytes, looks: Looks) -> bool:
        """Whether somebody has left the very same lately."""
        is_new = 0.0 <= self._clocks.wall() - watch.at < self._rest_seconds
        return is_new and watch.turn == turn and watch.sights == self._seen(looks)

    def _seen(self, looks: Looks) -> dict[str, Sight]:
        return {name: sight for name, (_, sight) in looks.items()} | self._carried

    async def _leave(self, turn: bytes, looks: Looks) -> None:
        written = msgspec.msgpack.encode(Watch(turn, self._clocks.wall(), self._seen(looks)))
        pair = self._watch_key, sealed(self._watch_key, written)
        await self._store.put_many([pair], WATCHED_SECONDS, self._seconds)

    def _drop(self, why: str) -> None:
        if self._turn is not None and why == "ended":
            self._ended.append(self._turn)
        self._turn, self.state = None, why


def _there(found: Found) -> Found:
    """What is damaged is nothing: it is written over."""
    return None if isinstance(found, StoreError) and found.kind in OF_ONE_KEY else found


def _read(key: bytes, held: bytes | None) -> Watch | None:
    value = None if held is None else unsealed(key, held, LOOKS_BYTES_MAX)
    return None if value is None else value_of(Watch, value)
