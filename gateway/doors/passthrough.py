"""Pass-through: a request goes to a backend as it came, its answer comes back as it is, part by part.

Rule of this file: nothing is decoded, cached or judged here. What is bounded: the body and each silence in
it, the wait for the answer's head, and (by the backend) each silence in the answer; how long a caller may
take to read it is the connection's to bound. A call that changes servers goes to every replica, or a load
balancer in front would have changed one of them by chance.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from time import perf_counter
from typing import Final

import msgspec
from aiohttp import HttpVersion11, web

from degrade.deadline import Deadline, Ticker
from degrade.ladder import Failure
from gateway.admission.auth import Caller
from gateway.admission.forwarded import Origin, Proxies
from gateway.admission.quota import Verdict
from gateway.codec import http as codec
from gateway.config_server import Server
from gateway.doors.exchange import quota_fields
from gateway.doors.onward import passed_on, withheld
from gateway.doors.origin import origin_of
from gateway.doors.path import Target
from gateway.doors.question import Headers
from gateway.problem import Problem, Refused, head_too_large, malformed, timed_out, too_large, unavailable
from tiers.backends.call import Call, Reply
from tiers.inference import Rejected, UpstreamError
from tiers.pool import Pool
from tiers.v2.message import JSON_LENGTH_HEADER
from tiers.v2.sequence import sequence_of

UNTYPED: Final = web.ResponseKey("untyped", bool)
"""Set on a response that came without a Content-Type: aiohttp would make one up."""

CHANGE_BYTES_MAX: Final = 256 * 2**20
"""A call to every replica is held in memory; loads may carry whole model files."""

RELAYED_BYTES_MAX: Final = 1024 * 1024
"""Bodies above this are streamed, by the other lane: holding them back until they are whole would cost more
than a connection to the replica does."""

CHANGES_MAX: Final = 4
"""Such calls under way at once: they are rare, and may be large."""


class Broken(Exception):
    """An answer whose head is already sent cannot be finished."""


class Passing(msgspec.Struct, frozen=True):
    """One request on its way through: where to, since when (``perf_counter`` seconds), which quota it used
    up. ``bytes_max`` is a route's bound on the body, and ``limit`` what that is called; None: the server's."""

    target: Target
    pool: Pool
    began: float
    quota: Verdict | None = None
    bytes_max: int | None = None
    limit: str = "server.passthrough_bytes_max"


class Passage(msgspec.Struct, frozen=True):
    """A judged head that is passed through; ``call`` has no body yet. ``works``: it puts work on a model, and
    so uses its caller's quota up. ``plain``: an infer request without a content coding, which can be looked into."""

    call: Call
    caller: Caller
    works: bool
    plain: bool = False
    json_length: str | None = None

    def by(self, name: str) -> Passage:
        """The same, by the caller of this name, who shows no key."""
        return msgspec.structs.replace(self, caller=msgspec.structs.replace(self.caller, name=name))

    def sequence(self, body: bytes) -> str:
        """The sequence that a request with this body belongs to; "" for none."""
        return sequence_of(json_part(body, self.json_length)) if self.plain else ""

    def told(self, proxies: Proxies, origin: Origin) -> Passage:
        """The same, with what a replica is told of where it comes from."""
        headers = proxies.told(self.call.headers, origin)
        return msgspec.structs.replace(self, call=msgspec.structs.replace(self.call, headers=headers))


class Passthrough:
    """The way through. ``loaded`` is told of a model that was loaded or unloaded, before the caller hears
    of it; ``keys_are_ours`` says that credentials were meant for us, and stay here."""

    def __init__(
        self, server: Server, ticker: Ticker, loaded: Callable[[str], None], keys_are_ours: bool, proxies: Proxies
    ) -> None:
        self._proxies = proxies
        self._loaded = loaded
        self._bytes_max = int(server.passthrough_bytes_max)
        self._timeout = float(server.passthrough_timeout)
        self._silence = float(server.body_timeout)
        self._changes = asyncio.Semaphore(CHANGES_MAX)
        self._ticker = ticker
        self._withheld = withheld(keys_are_ours)

    async def answer(self, request: web.BaseRequest, passing: Passing) -> web.StreamResponse:
        """Send the request on and stream the answer back. Raises Refused, or Broken once it has begun."""
        if (request.content_length or 0) > self._bound(passing):
            raise Refused(self._too_large(passing))
        await ask_for_body(request)
        deadline = Deadline.after(self._ticker(), self._timeout)
        try:
            if passing.target.changes is not None and len(passing.pool.replicas) > 1:
                return await self._everywhere(request, passing, deadline)
            return await self._forwarded(request, passing, deadline)
        except Rejected as error:
            raise unsendable(error) from error
        except UpstreamError as error:
            self._tell(passing.target)  # it may have happened all the same
            raise unanswered(request.method, passing.target.raw, error) from error

    async def _forwarded(self, request: web.BaseRequest, passing: Passing, deadline: Deadline) -> web.StreamResponse:
        parts = self._parts(request, passing) if request.body_exists else None
        # Triton answers HEAD with a body, which no client can read: ask it as GET, and keep the head
        # (RFC 9110 section 9.3.2: it is the same head).
        only_head = request.method == "HEAD"
        method = "GET" if only_head and passing.target.raw.startswith("/v2") else request.method
        body: bytes | AsyncIterator[bytes] | None = parts
        sequence = ""
        if parts is not None and self._may_be_of_a_sequence(request, passing):
            body = b"".join([part async for part in parts])
            sequence = sequence_of(json_part(body, request.headers.get(JSON_LENGTH_HEADER)))
        call = Call(method, passing.target.raw, self._headers(request), body)
        response = web.StreamResponse()
        try:
            async with passing.pool.forward(call, deadline, sequence) as reply:
                self._tell(passing.target)
                response.set_status(reply.status)
                response.headers.extend(reply.headers)
                response.headers.extend(_provenance(passing))
                if "Content-Type" not in response.headers:
                    response[UNTYPED] = True
                await response.prepare(request)
                if not only_head:
                    async for part in reply.chunks:
                        await response.write(part)
                await response.write_eof()
        except (UpstreamError, Refused) as error:  # Refused: the caller's body failed, after the answer began
            if response.prepared:
                raise Broken(str(error)) from error
            raise
        return response

    def _may_be_of_a_sequence(self, request: web.BaseRequest, passing: Passing) -> bool:
        """Whether it must be looked into before a replica is chosen: only where there is a choice."""
        if len(passing.pool.replicas) == 1 or (request.content_length or math.inf) > RELAYED_BYTES_MAX:
            return False
        return is_plain(request.method, passing.target, request.headers)

    async def _everywhere(self, request: web.BaseRequest, passing: Passing, deadline: Deadline) -> web.Response:
        """The same call at every replica: the first failure is the answer, or else the last success."""
        chosen: Reply | None = None
        failed: UpstreamError | None = None
        bounded = msgspec.structs.replace(
            passing, bytes_max=min(CHANGE_BYTES_MAX, self._bytes_max), limit="what all replicas can be sent"
        )
        try:
            async with asyncio.timeout(deadline.remaining(self._ticker())), self._changes:
                body = b"".join([part async for part in self._parts(request, bounded)])
                call = Call(request.method, passing.target.raw, self._headers(request), body or None)
                outcomes = await passing.pool.each(call, deadline)
        except TimeoutError:
            detail = f"no end within server.passthrough_timeout ({self._timeout:g} s)"
            raise UpstreamError(Failure.TIMEOUT, detail) from None
        self._tell(passing.target)
        for _, outcome in outcomes:
            if isinstance(outcome, UpstreamError):
                failed = failed or outcome
            elif chosen is None or chosen.status < 400:
                chosen = outcome
        if failed is not None and (chosen is None or chosen.status < 400):
            raise failed
        assert chosen is not None, "a pool has a replica"
        response = web.Response(body=chosen.body, status=chosen.status)
        for name, value in (*chosen.headers, *_provenance(passing)):
            if name.lower() not in ("content-length", "content-type"):
                response.headers.add(name, value)
            elif name.lower() == "content-type":
                response.headers[name] = value
        if "Content-Type" not in response.headers:
            response[UNTYPED] = True
        return response

    def _tell(self, target: Target) -> None:
        if target.loads:
            self._loaded(target.loads)

    def _headers(self, request: web.BaseRequest) -> tuple[tuple[str, str], ...]:
        told = passed_on(request.headers.items(), self._withheld)
        return self._proxies.told(told, origin_of(request.transport))

    async def _parts(self, request: web.BaseRequest, passing: Passing) -> AsyncIterator[bytes]:
        bytes_max, size = self._bound(passing), 0
        while True:
            try:
                async with asyncio.timeout(self._silence):
                    part = await request.content.readany()
            except TimeoutError:
                detail = f"Nothing of the body came within server.body_timeout ({self._silence:g} s)."
                raise Refused(timed_out(detail)) from None
            if not part:
                return
            size += len(part)
            if size > bytes_max:
                raise Refused(self._too_large(passing))
            yield part

    def _bound(self, passing: Passing) -> int:
        return self._bytes_max if passing.bytes_max is None else passing.bytes_max

    def _too_large(self, passing: Passing) -> Problem:
        bytes_max = self._bound(passing)
        return too_large(f"The body is larger than {passing.limit} ({bytes_max} bytes).", bytes_max)


def is_plain(method: str, target: Target, headers: Headers) -> bool:
    """Whether a request is one for inference that can be looked into."""
    return target.kind == "infer" and method == "POST" and "Content-Encoding" not in headers


def json_part(body: bytes, length: str | None) -> bytes:
    """The JSON part of an infer request's body; nothing if its length cannot be read."""
    if length is None:
        return body
    return body[: int(length)] if length.isascii() and length.isdigit() and len(length) < 20 else b""


def unsendable(error: Rejected) -> Refused:
    """A request that cannot be written as one: the caller's fault."""
    said = str(error)
    return Refused(head_too_large(said) if error.status == 431 else malformed(said, "unsendable"))


def unanswered(method: str, raw: str, error: UpstreamError) -> Refused:
    """No replica answered: 503, and when to come back."""
    return Refused(unavailable(f"No replica answered {method} {raw}: {error}.", max(1.0, error.retry_after)))


async def ask_for_body(request: web.BaseRequest) -> None:
    """Answer ``Expect: 100-continue``, if the caller waits to be asked (RFC 9110 section 10.1.1)."""
    expected = request.headers.get("Expect")
    if expected is None or request.version < HttpVersion11:
        return
    if expected.lower() != "100-continue":
        raise Refused(Problem("expectation", 417, "Expectation failed", f"Expect: {expected[:64]} is not known here."))
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _provenance(passing: Passing) -> list[tuple[str, str]]:
    told = codec.provenance_headers(codec.PASSED, perf_counter() - passing.began)
    return [*told, *quota_fields(passing.quota)]
