"""Where a route keeps its answers, and how a request finds its own: in memory, whole or row by row, and on the disk.

Rule of this file: it looks, and asks nobody. How long an answer holds is ``cache/entry.py``'s, what it is good for then
``recall.py``'s and the ladder's; what becomes of rows is ``rows.py``'s, whether copies may be believed ``copies.py``'s.
"""

from __future__ import annotations

import msgspec

from cache.digest import Key
from cache.entry import Entry, Found, Freshness
from cache.response import ResponseCache
from gateway.admission.auth import Caller
from gateway.admission.validate import Validator
from gateway.config import Route as RouteConfig
from gateway.copies import Copies
from gateway.identity import Identity, stateful
from gateway.learning import Learning
from gateway.lent import Lent
from gateway.problem import Refused
from gateway.row import Asked, Row
from gateway.rows import Rows
from gateway.service import ENTRY_OVERHEAD_BYTES, NO_EPOCH, Served, Wire, cache_of
from tiers.inference import InferRequest, InferResponse
from tiers.rows import batch_size


class Shelves:
    """One route's. ``cache`` None: nothing is kept; ``rows`` None: nothing but whole answers. ``copied`` and
    ``copied_rows``: what is on the disk of both."""

    def __init__(
        self,
        name: str,
        config: RouteConfig,
        identity: Identity,
        learning: Learning,
        validator: Validator,
    ) -> None:
        cache = config.cache
        self.cache: ResponseCache[Served[InferResponse], Wire] | None = cache_of(cache)
        self.rows = None if cache is None or not cache.rows else Rows(name, cache)
        self.finds_rows = self.rows is not None and config.features is None
        """Whether a request's rows are looked for before it is asked: with features, their keys are known after a
        look-up in tables alone."""
        self.copied: Copies[Served[InferResponse]] | None = None
        self.copied_rows: Copies[Row] | None = None
        self._ttl = 0.0 if cache is None else float(cache.ttl)  # one object for all entries
        self._max_stale = 0.0 if cache is None else float(cache.max_stale)
        self._identity = identity
        self._learning = learning
        self._validator = validator
        self._has_several = len(config.tiers) > 1

    def go_on(self, before: Shelves) -> None:
        """Take over what another has in memory."""
        self.cache, self.rows = before.cache, before.rows

    def copy(self, copied: Copies[Served[InferResponse]], rows: Copies[Row] | None) -> None:
        """Leave copies of answers, and of rows where those are kept, on the disk, and take those that are there."""
        assert self.cache is not None
        assert rows is None or self.rows is not None
        self.copied, self.copied_rows = copied, rows
        copied.watch(self.cache)
        if rows is not None and self.rows is not None:
            rows.watch(self.rows.cache)

    async def find(
        self, caller: Caller, request: InferRequest, key: Key, now: float, until: float
    ) -> Found[Served[InferResponse]] | None:
        """What is kept of an answer: as it was given once, as its rows are, or as it was copied to the disk. The epoch
        may have turned meanwhile, and somebody else's answer may have come: that is found then. ``until``: the
        request has time, monotonic seconds."""
        assert self.cache is not None
        if self.rows is None and self.copied is None:
            return self.cache.find(key, now)
        found = await self._here(caller, request, key, now, until)
        return found if found is not None else await self._copied(key, now, until)

    async def kept(
        self, caller: Caller, request: InferRequest, key: Key, now: float, until: float
    ) -> Found[Served[InferResponse]] | None:
        """What was copied of an answer, or of its rows, whatever its models are now: an old one, of no epoch that is
        now."""
        copy = None if self.copied is None else await self.copied.find(key.digest, now, until)
        if copy is not None:
            entry = self.entry(copy.value, NO_EPOCH, copy.made_at)
        else:
            rows = None if self.copied_rows is None else self._known_rows(request)
            if self.rows is None or self.copied_rows is None or rows is None:
                return None
            asked = self.asked(caller, request, key, rows)
            lent = Lent(self.copied_rows, now, until, is_old=True)
            await lent.look(list(dict.fromkeys(asked.keys)))
            made = self.rows.lent(asked, lent)
            if made is None:
                return None
            entry = self.entry(made.served(), NO_EPOCH, made.made_at)
        freshness = entry.freshness(now, key.epoch)
        return None if freshness is Freshness.DEAD else Found(entry, freshness, is_copy=True)

    def asked(self, caller: Caller, request: InferRequest, key: Key, rows: int) -> Asked:
        """A request of so many rows as those. There are ``rows``."""
        assert self.rows is not None
        request, tenant = self._identity.for_all(request), self._identity.tenant(caller)
        facts = self._learning.known(request.version)
        several = self._has_several and facts is not None
        names = frozenset([output.name for output in facts.outputs]) if several and facts is not None else None
        return Asked(request, self.rows.keys(tenant, request, rows), key.epoch, outputs=names)

    def entry(self, served: Served[InferResponse], epoch: int, now: float) -> Entry[Served[InferResponse]]:
        """An entry for an answer that was made in ``epoch``."""
        response = served.response.compact()
        if response is not served.response:
            served = msgspec.structs.replace(served, response=response)
        size = response.size + ENTRY_OVERHEAD_BYTES
        return Entry(served, size, now, self._ttl, self._max_stale, epoch)

    def forget(self) -> None:
        """Drop what is in memory."""
        for shelf in (self.cache, None if self.rows is None else self.rows.cache):
            if shelf is not None:
                shelf.purge()  # its queues are circles that nobody else would cut

    async def _here(
        self, caller: Caller, request: InferRequest, key: Key, now: float, until: float
    ) -> Found[Served[InferResponse]] | None:
        assert self.cache is not None
        found = self.cache.find(key, now)
        rows = None if found is not None and found.freshness is Freshness.FRESH else self._known_rows(request)
        if self.rows is None or rows is None:
            return found
        asked, lent = self.asked(caller, request, key, rows), None
        if self.copied_rows is not None and (lacking := self.rows.lacking(asked, now)):
            lent, before = Lent(self.copied_rows, now, until), self.cache.peek(key.digest)
            await lent.look(lacking)
            if self.cache.peek(key.digest) is not before:
                return self.cache.find(key, now)
        made = self.rows.whole(asked, now, lent)
        if made is None:
            return found
        entry = self.entry(made.served(), made.epoch, made.made_at)
        freshness = entry.freshness(now, key.epoch)
        if freshness is Freshness.FRESH:
            if lent is None or not lent.is_unsure:
                self.cache.store(key, entry, self.cache.ticket())
        elif found is not None or freshness is Freshness.DEAD:
            return found
        return Found(entry, freshness, is_copy=lent is not None and lent.count > 0)

    async def _copied(self, key: Key, now: float, until: float) -> Found[Served[InferResponse]] | None:
        """The copy of an answer, if it may be served as if it had been here all the time."""
        copied = self.copied
        copy = None if copied is None else await copied.find(key.digest, now, until)
        if self.cache is None or copied is None:
            return None
        if self.cache.peek(key.digest) is not None:
            return self.cache.find(key, now)
        if copy is None or not (copy.is_same or copied.standing.trusts(copy.word)):
            return None
        entry = self.entry(copy.value, key.epoch, copy.made_at)
        freshness = entry.freshness(now, key.epoch)
        if freshness is Freshness.DEAD:
            return None
        if copy.is_same:  # else it must not stay, should its models turn out to be others
            self.cache.store(key, entry, self.cache.ticket())
        return Found(entry, freshness, is_copy=True)

    def _known_rows(self, request: InferRequest) -> int | None:
        """How many rows a request has whose answers may be here; None where that is not to be known, or it is to be
        refused."""
        if not self.finds_rows:
            return None
        facts = self._learning.known(request.version)
        rows = batch_size(request)
        if facts is None or facts.max_batch < 1 or stateful(facts) or not rows:
            return None
        try:
            self._validator.check(request, facts)
        except Refused:
            return None  # who admits it says why
        return rows
