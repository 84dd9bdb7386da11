"""From a judged head and a whole body to the bytes of an answer: what both lanes of the HTTP door share.

Rule of this file: it joins codec and pipeline and knows no socket and no server library, so that a rule
cannot hold on one lane only. A head is *judged* once: what it asks for and all of it that decides the
answer's bytes. The same head need not be judged again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Final, TypeVar

import msgspec

from cache.digest import work_digest
from cache.entry import Entry
from degrade.deadline import Deadline, Ticker
from gateway.admission.auth import Caller
from gateway.admission.quota import Verdict, ratelimit_value
from gateway.call import Answer, Call
from gateway.codec import dialect as dialects
from gateway.codec import http as codec
from gateway.codec.dialect import PROTOCOL, Asked, Dialect, Told
from gateway.codec.http import Buffer
from gateway.doors.aside import Aside
from gateway.doors.buffered import Buffered, Held
from gateway.doors.posting import AnyQuestion, Posting
from gateway.doors.question import Fields, Question, Reply
from gateway.notes import UNNOTED, Notes
from gateway.pipeline import Pipeline, WireAnswer
from gateway.problem import (
    Problem,
    Refused,
    deadly,
    too_large,
)
from gateway.provenance import of_hit
from gateway.route import Route
from gateway.service import Heading, Response, Served, Watched, Wire
from tiers.inference import InferRequest, InferResponse, Provenance
from tiers.v2.request import WireForm

T = TypeVar("T")

ASIDE_BYTES: Final = 256 * 1024
"""Messages above this, and all that are compressed, are read and written aside: JSON of this size takes some 20 ms
of the event loop, and nobody knows how large a compressed one is before it is inflated."""

LOOKED_UP_BYTES: Final = 4 * 2**20
"""Bodies above this are put together and digested aside too: a millisecond, or two, for each MiB."""

DIGEST_SECONDS_MAX: Final = 5.0
"""For the digest of a large body that has none yet: whoever is in line before it has no longer."""

_NOT_NOTED: Final[AbstractContextManager[AbstractContextManager[object]]] = contextlib.nullcontext(UNNOTED)

HEADINGS_MAX: Final = 1024
"""Beginnings of hits remembered, about 600 bytes each: one for each model, version and size of answer."""


class Made(msgspec.Struct, frozen=True):
    """An answer, its bytes in the form that was asked for, and the header fields that describe them."""

    answer: Answer[InferResponse]
    ready: bytes
    headers: Fields


class _Work(msgspec.Struct, frozen=True):
    """What a request in work holds: bytes, and the note of it."""

    held: Held
    note: AbstractContextManager[object]


class Exchange:
    """Answers questions through the pipeline."""

    def __init__(self, pipeline: Pipeline, ticker: Ticker, buffered: Buffered) -> None:
        self._pipeline = pipeline
        self._ticker = ticker
        self._buffered = buffered
        self._aside = Aside()
        self._headings: dict[Heading, Heading] = {}
        self.recall_wire = pipeline.recall_wire
        """`recall` for who knows the wire digest of a body already."""
        self.notes: Notes | None = None
        """Where requests in work are noted; None where nobody would read it."""

    def recall(
        self, question: AnyQuestion, body: bytes | memoryview, now: float
    ) -> tuple[WireAnswer | None, bytes | None]:
        """A hit by the exact bytes, if there is one, and the wire digest to remember an answer under.

        Raises Refused when a quota that hits use up is spent.
        """
        digester = question.digester
        if digester is None:
            return None, None
        wire = digester.key(body)
        return self._pipeline.recall_wire(question.route, question.hit_dues, wire, now), wire

    async def recall_aside(
        self, question: AnyQuestion, body: bytes | memoryview, seconds: float
    ) -> tuple[WireAnswer | None, bytes | None]:
        """The same for a large body, whose digest is made aside, within ``seconds``."""
        digester = question.digester
        if digester is None:
            return None, None
        wire = await self._aside.run(partial(digester.key, body), question.caller.name, seconds)
        return self._pipeline.recall_wire(question.route, question.hit_dues, wire, self._ticker()), wire

    def charge(self, route: Route | None, caller: Caller) -> Verdict | None:
        """Charge a request that is passed through: every quota of caller and route, or none. Raises Refused."""
        return self._pipeline.till.charge_passing(() if route is None else route.allowances, caller)

    async def answer(self, question: AnyQuestion, body: bytes, wire: bytes | None, began: float) -> Reply:
        """Answer what is not recalled, within the route's time from ``began``. Raises Refused."""
        if isinstance(question, Posting):
            return await self._posted(question, body, wire, began)
        made = await self.make(question, body, wire, began)
        provenance = codec.provenance_headers(made.answer.provenance, self._ticker() - began)
        fields = [*made.headers, *provenance, *quota_fields(made.answer.quota)]
        return Reply(200, fields, made.ready, made.answer.provenance.cache)

    async def _posted(self, posting: Posting, body: bytes, wire: bytes | None, began: float) -> Reply:
        endpoint = posting.route
        post = msgspec.structs.replace(posting.post, body=body)
        deadline = Deadline.after(began, endpoint.timeout)
        with await self.noted(endpoint.name, body, wire, posting.caller) as note:
            call = Call(endpoint, posting.caller, post, posting.directives, deadline, note)
            answer = await self._pipeline.answer(call)
        page = answer.response
        if wire is not None and answer.entry is not None and answer.comes_again:
            heading = self._heading(page.fields, len(page.body), answer.entry)
            self._pipeline.attach_wire(endpoint, answer, wire, Wire(page.body, heading), is_entrys=True)
        provenance = codec.provenance_headers(answer.provenance, self._ticker() - began)
        fields = [*page.fields, *provenance, *quota_fields(answer.quota)]
        return Reply(page.status, fields, page.body, answer.provenance.cache)

    async def make(self, question: Question, body: Buffer, wire: bytes | None, began: float) -> Made:
        """The same, before it is said in the words of a protocol."""
        with Held(self._buffered) as held:
            if self.notes is None:
                return await self._make(question, body, wire, began, _Work(held, UNNOTED))
            with await self.noted(question.route.name, body, wire, question.caller) as note:
                return await self._make(question, body, wire, began, _Work(held, note))

    async def noted(
        self, service: str, body: Buffer, wire: bytes | None, caller: Caller
    ) -> AbstractContextManager[AbstractContextManager[object]]:
        """A block in which a request is in work, should this worker die of it; what it gives is for the ``Call``.

        Raises Refused (422) for one that others have died of."""
        notes = self.notes
        if notes is None:
            return _NOT_NOTED
        digest = partial(work_digest, service, caller.owner, body, wire)
        large = wire is None and len(body) > LOOKED_UP_BYTES
        named = await self._aside.run(digest, caller.name, DIGEST_SECONDS_MAX) if large else digest()
        seconds = notes.refused(named, self._ticker())
        if seconds:
            raise Refused(deadly(named.hex(), seconds))
        return notes.note(named)

    async def aside(self, work: Callable[[], T], caller: str, seconds: float) -> T:
        """Work on a large message where nobody else waits for it (see ``Aside``). Raises Refused."""
        return await self._aside.run(work, caller, seconds)

    def close(self) -> None:
        """Read nothing more."""
        self._aside.close()

    async def _make(
        self, question: Question, body: Buffer, wire: bytes | None, began: float, work: _Work
    ) -> Made:
        deadline = Deadline.after(began, question.route.timeout)
        decoded, form = await self._decoded(question, body, deadline, work.held)
        deadline = sooner(deadline, decoded, self._ticker())
        call = Call(question.route, question.caller, decoded, question.directives, deadline, work.note)
        answer = await self._pipeline.answer(call)
        told = Told(answer.response, answer.provenance, form, decoded.id, question.answer_coding)
        if answer.response.size > ASIDE_BYTES:
            seconds = call.deadline.remaining(self._ticker())
            encode = partial(_encoded, question.dialect, told)
            ready, headers = await self._aside.run(encode, question.caller.name, seconds)
        else:
            ready, headers = _encoded(question.dialect, told)
        # A request with an id is never the same bytes again.
        if wire is not None and answer.entry is not None and answer.comes_again and not decoded.id:
            heading = self._heading(tuple(headers), len(ready), answer.entry)
            self._pipeline.attach_wire(question.route, answer, wire, Wire(ready, heading))
        return Made(answer, ready, headers)

    async def _decoded(
        self, question: Question, body: Buffer, deadline: Deadline, held: Held
    ) -> tuple[InferRequest, WireForm]:
        """The request in a body: at once if that is little work, else aside, where nobody else waits for it."""
        route, coding, limits = question.route, question.body.content_encoding, question.route.body_limits
        facts = None
        if question.dialect.plain:
            self._pipeline.till.refuse_spent(question.hit_dues)
            facts = await self._pipeline.facts(route, question.version, deadline)
        asked = Asked(route.name, question.version, question.body.json_length, facts)
        if coding is None and len(body) <= ASIDE_BYTES:
            return dialects.decode(body, question.dialect, asked, limits)
        decode = partial(dialects.decode, dialect=question.dialect, asked=asked, limits=limits)
        self._pipeline.till.refuse_spent(question.hit_dues)
        name = question.caller.name
        if coding is not None:
            inflate = partial(codec.inflate, body, coding, limits.bytes_max)
            inflated = await self._aside.run(inflate, name, deadline.remaining(self._ticker()))
            held.add(0 if inflated is body else len(inflated))
        else:
            inflated = body
        return await self._aside.run(partial(decode, inflated), name, deadline.remaining(self._ticker()))

    def _heading(
        self, headers: tuple[tuple[str, str], ...], body_bytes: int, entry: Entry[Served[Response]]
    ) -> Heading:
        """How an entry's hits begin: one object for all entries that begin alike, for they are many."""
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers]).replace("%", "%%")
        begun = f"HTTP/1.1 200 OK\r\n{lines}Content-Length: {body_bytes}\r\n".encode("utf-8", "surrogateescape")
        heading = Heading(headers, begun + codec.hit_lines(of_hit(entry, entry.stored_at)))
        if len(self._headings) >= HEADINGS_MAX:
            self._headings.clear()
        return self._headings.setdefault(heading, heading)


def recalled(hit: WireAnswer) -> Reply:
    """A hit by its bytes as a reply."""
    fields = [*hit.wire.heading.headers, *codec.provenance_headers(hit.provenance), *quota_fields(hit.quota)]
    return Reply(200, fields, hit.wire.body, "hit")


def refusal(refused: Refused, dialect: Dialect = PROTOCOL) -> Reply:
    """A refusal as a reply, in the form that the answer would have had."""
    problem = refused.problem
    body, described = dialects.problem_body(problem, dialect)
    provenance = refused.provenance or Provenance(cache="none", reason=problem.slug)
    fields = [*described, *codec.provenance_headers(provenance), *quota_fields(refused.verdict)]
    return Reply(problem.status, fields, body, "problem")


def quota_fields(verdict: Verdict | None) -> Fields:
    """RateLimit and RateLimit-Policy of the quota that is nearest to its end."""
    if verdict is None:
        return []
    return [("RateLimit", ratelimit_value(verdict)), ("RateLimit-Policy", verdict.quota.policy)]


def body_too_large(route: Watched, bytes_max: int) -> Problem:
    """413, naming the key whose limit was crossed."""
    return too_large(f"The body is larger than {route.limit} ({bytes_max} bytes).", bytes_max)


def _encoded(dialect: Dialect, told: Told) -> tuple[bytes, Fields]:
    parts, headers = dialects.encode(dialect, told)
    return b"".join(parts), headers


def sooner(deadline: Deadline, request: InferRequest, now: float) -> Deadline:
    """The request's own timeout (Triton's ``timeout`` parameter, microseconds) shortens the deadline."""
    timeout = request.parameters.get("timeout")
    if isinstance(timeout, int) and not isinstance(timeout, bool) and timeout > 0:
        return deadline.sooner(Deadline.after(now, timeout / 1e6))
    return deadline
