"""One Triton over HTTP: the only place where a connection's faults are given a meaning (statuses: ``refusal.py``).

Rule of this file: whatever happens on the wire leaves here as an answer, UpstreamError or Rejected.
Requests carry nothing the caller did not ask for, bodies are never decompressed, and a target goes out byte
for byte as given. It must not choose a replica, count failures or know a route.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import quote, urlsplit

from msgspec import Struct
from msgspec.structs import replace

from degrade.deadline import Deadline
from degrade.ladder import Failure
from tiers.backends.answer import AnswerHead
from tiers.backends.arrival import Arrival, ConnectionFault, Fault
from tiers.backends.call import Call, Reply, Streamed, json_length_of
from tiers.backends.connection import Connection, ConnectionBounds, died_of_age
from tiers.backends.connections import Address, Connections, ConnectionsOptions
from tiers.backends.fields import JOINED_BYTES_MAX, IllFormed, LineTooLong, Outgoing, RequestHeads
from tiers.backends.judging import judged, timeout_of
from tiers.backends.refusal import refusal
from tiers.backends.relaying import Line, Listener, Place, Relaying
from tiers.inference import NOT_ASKED, InferRequest, InferResponse, Rejected, UpstreamError
from tiers.v2.forms import RequestWriter, ResponseForms
from tiers.v2.message import BEYOND_LIMITS, Limits, Malformed

_REPEATABLE: Final = frozenset({"GET", "HEAD"})
_INFER_HEADS_MAX: Final = 1024
_CALLS_MAX: Final = 1024
_CALL_BYTES_MAX: Final = 4096
"""Heads of calls that pass through remembered, and of what size: about 5 MiB for each replica at most."""
ASKING_CONNECTIONS_MAX: Final = 8
"""For what callers ask about models: small calls that come one after the other."""
PROBING_CONNECTIONS_MAX: Final = 4
"""For probes and looks at models, each one at a time; as many again for those whose connection is just closing."""


class TritonOptions(Struct, frozen=True):
    """Bounds of one replica's client. Times in seconds."""

    connections_max: int = 256
    """Connections for inference; further calls wait for one within their own deadline, in order."""
    passthrough_connections_max: int = 256
    """Connections for all that is streamed or changes the server: apart, so that slow callers there take
    none from inference, and neither of them any from probes."""
    passthrough_wait: float = 10.0
    """How long such a call may wait for one: its own deadline may be minutes."""
    waiting_max: int = 10_000
    """Calls that may wait for a connection; more are refused as an overload."""
    connect_timeout: float = 1.0
    """A Triton that is there accepts at once; waiting longer only delays the next replica."""
    keepalive_timeout: float = 60.0
    """Shorter than the 75 s after which Triton closes an idle connection, so it seldom closes first."""
    stream_idle_timeout: float = 300.0
    """How long a passed-through answer may be silent between two pieces, and how long a call without a
    deadline may take."""
    header_bytes_max: int = 64 * 1024
    """Of an answer's head."""
    stream_bytes_max: int = 256 * 1024
    """Of a passed-through answer that may wait here for the caller to take it."""
    answer_bytes_max: int = 256 * 1024 * 1024
    limits: Limits = Limits()


class _Known(Struct, frozen=True):
    """A call that is passed through with bodies of one length, and its head as bytes. ``small``: the two go out as one;
    ``again``: it may be sent twice; ``answered``: its answer may have a body. It keeps the call, so that no other can
    have its id."""

    call: Call
    length: int
    head: bytes
    small: bool
    again: bool
    answered: bool


class TritonHttp:
    """One replica. Make it inside a running event loop and close it there."""

    def __init__(self, url: str, options: TritonOptions) -> None:
        """``url`` is http://HOST:PORT or https://HOST:PORT; ValueError if it is not."""
        self.url = url.rstrip("/")
        self._options = options
        self._loop = asyncio.get_running_loop()
        address, authority = _address(self.url)
        self._request_heads = RequestHeads(authority)
        self._infer_heads: dict[tuple[str, str], bytes] = {}
        self._authority = authority.encode()
        self._writer = RequestWriter()
        self._forms = ResponseForms(options.limits)
        bounds = ConnectionBounds(options.header_bytes_max, options.answer_bytes_max, options.stream_bytes_max)

        def connections(limit: str, connections_max: int, wait: float = math.inf) -> Connections:
            times = options.connect_timeout, options.keepalive_timeout
            shared = ConnectionsOptions(connections_max, options.waiting_max, wait, limit, *times)
            return Connections(address, shared, bounds)

        self._inferring = connections("connections_max", options.connections_max)
        self._passing = connections(
            "passthrough_connections_max", options.passthrough_connections_max, options.passthrough_wait
        )
        self._line = Line(self._passing, lambda fault, head: self._error(fault, head, math.inf))
        self._calls: dict[int, _Known] = {}
        self._asking = connections("for questions", ASKING_CONNECTIONS_MAX)
        self._probing = connections("for probes", PROBING_CONNECTIONS_MAX)

    @property
    def connections(self) -> tuple[Connections, ...]:
        """Those for inference, for what is passed through, for questions, and for probes."""
        return self._inferring, self._passing, self._asking, self._probing

    async def close(self) -> None:
        for connections in self.connections:
            await connections.close()

    async def infer(self, request: InferRequest, deadline: Deadline, now: float) -> InferResponse:
        """Ask the model. Raises Rejected (4xx) or UpstreamError.

        A safe request whose kept connection closes before any answer is sent once more, on a fresh
        connection: Triton closes idle connections, and that says nothing about its health.
        """
        remaining = deadline.remaining(now)
        parts, json_length = self._writer.encode(request, timeout_of(request, remaining))
        size = sum([len(part) if isinstance(part, bytes) else part.nbytes for part in parts])
        head = self._infer_head(request.model, request.version)
        lengths = b"Content-Length: %d\r\nInference-Header-Content-Length: %d\r\n\r\n" % (size, json_length)
        safe = not (request.in_sequence or request.in_shared_memory)
        outgoing = Outgoing(head + lengths, tuple(parts))
        reply = await self._buffered(self._inferring, outgoing, remaining, safe)
        return self._answer(request, reply)

    async def exchange(self, call: Call, deadline: Deadline, now: float) -> Reply:
        """A small call with its whole answer, whatever its status. Raises UpstreamError, and Rejected for
        what cannot be written as an HTTP request.

        Only GET, HEAD and ``again`` are sent again after a kept connection closes without an answer. What is more than
        a question shares the connections of what is passed through, and probes have some of their own.
        """
        asks = call.method in _REPEATABLE and call.body is None
        connections = self._probing if call.probe else self._asking if asks else self._passing
        if call.work:
            connections = self._inferring
        if call.anew:
            connections.hang_up()
        return await self._buffered(
            connections, self._outgoing(call), deadline.remaining(now), asks or call.again
        )

    @asynccontextmanager
    async def stream(self, call: Call, deadline: Deadline, now: float) -> AsyncIterator[Streamed]:
        """Pass a request through: hop-by-hop fields go, everything else stays as it is, both ways.

        The deadline bounds the wait for the answer's head, ``stream_idle_timeout`` each wait for a piece.
        Raises UpstreamError, Rejected for what cannot be written as an HTTP request, and whatever the
        caller's own body raises, as itself. Leaving the block early closes the connection, which cancels
        the work. GET and HEAD are sent again after a kept connection closes without an answer.
        """
        remaining = deadline.remaining(now)
        outgoing = self._outgoing(call)
        again = call.method in _REPEATABLE and outgoing.upload is None
        until = self._until(remaining)
        connections = self._passing
        connection = await self._connection(connections, until, remaining)
        upload: asyncio.Task[None] | None = None
        try:
            while True:
                arrival = connection.send(outgoing, whole=False)
                upload = self._upload(connection, outgoing, arrival)
                try:
                    head = await arrival.beginning(until)
                    break
                except ConnectionFault as fault:
                    if not (again and died_of_age(connection, fault)):
                        raise self._error(fault, None, remaining) from fault
                again = False
                connection = await self._renewed(connections, connection, until, remaining)
            yield Streamed(head.status, head.headers, self._chunks(connection, arrival, head))
        except IllFormed as error:
            raise Rejected(400, f"cannot be sent: {error}") from error
        finally:
            connections.release(connection)
            if upload is not None:
                await _end(upload)

    def relay(self, call: Call, body: bytes, listener: Listener, place: Place, seconds: float) -> Relaying:
        """Pass a call with this body through by callbacks (see ``stream``). ``seconds``: to wait for a connection.

        Raises Rejected for what cannot be written as an HTTP request.
        """
        known = self._calls.get(id(call))
        if known is None or known.length != len(body):
            known = self._know(call, len(body))
        head, parts = (known.head + body, ()) if known.small else (known.head, (body,))
        outgoing = Outgoing(head, parts, answer_has_body=known.answered)
        relaying = Relaying(self._line, outgoing, known.again, listener, place, seconds)
        relaying.start()
        return relaying

    def _know(self, call: Call, length: int) -> _Known:
        """A call with a body of so many bytes. The requests of one caller's connection are the very same call again and
        again, so it is known by which one it is: to look at all of its fields would take three times as long."""
        outgoing = self._outgoing(replace(call, body=bytes(length) if length else None))
        again = not length and call.method in _REPEATABLE
        known = _Known(call, length, outgoing.head, length <= JOINED_BYTES_MAX, again, outgoing.answer_has_body)
        if len(outgoing.head) <= _CALL_BYTES_MAX:
            if len(self._calls) >= _CALLS_MAX:
                self._calls.clear()
            self._calls[id(call)] = known
        return known

    async def _buffered(
        self, connections: Connections, outgoing: Outgoing, remaining: float, again: bool
    ) -> Reply:
        until = self._until(remaining)
        connection = connections.take()
        if connection is None:
            connection = await self._connection(connections, until, remaining)
        arrival: Arrival | None = None
        upload: asyncio.Task[None] | None = None
        try:
            arrival = connection.send(outgoing, whole=True)
            upload = self._upload(connection, outgoing, arrival)
            try:
                head, body = await arrival.all(until)
            except ConnectionFault as fault:
                if upload is not None or not (again and died_of_age(connection, fault)):
                    raise
                connection = await self._renewed(connections, connection, until, remaining)
                arrival = connection.send(outgoing, whole=True)
                head, body = await arrival.all(until)
        except ConnectionFault as fault:
            raise self._error(fault, arrival.head if arrival is not None else None, remaining) from fault
        except IllFormed as error:
            raise Rejected(400, f"cannot be sent: {error}") from error
        finally:
            connections.release(connection)
            if upload is not None:
                await _end(upload)
        return Reply(head.status, head.headers, body, head.length is not None or head.chunked)

    def _upload(self, connection: Connection, outgoing: Outgoing, arrival: Arrival) -> asyncio.Task[None] | None:
        """What sends a body that is an iterable, while its answer may already come."""
        if outgoing.upload is None:
            return None
        return self._loop.create_task(connection.upload(outgoing.upload, outgoing.length, arrival))

    async def _connection(self, connections: Connections, until: float, remaining: float) -> Connection:
        try:
            return await connections.acquire(until)
        except asyncio.CancelledError as left:
            left.add_note(NOT_ASKED)
            raise
        except ConnectionFault as fault:
            raise self._error(fault, None, remaining) from fault

    async def _renewed(
        self, connections: Connections, connection: Connection, until: float, remaining: float
    ) -> Connection:
        try:
            return await connections.renew(connection, until)
        except ConnectionFault as fault:
            error = self._error(fault, None, remaining)
            error.drops = 1  # not of age, then: it may be gone because of what it was sent
            raise error from fault

    async def _chunks(self, connection: Connection, arrival: Arrival, head: AnswerHead) -> AsyncIterator[bytes]:
        try:
            while piece := await connection.more(arrival, self._options.stream_idle_timeout):
                yield piece
        except ConnectionFault as fault:
            if fault.fault is Fault.SILENT:
                message = f"{self.url} fell silent in its answer"
                raise UpstreamError(Failure.TIMEOUT, message, head.status) from fault
            raise self._error(fault, head, math.inf) from fault

    def _infer_head(self, model: str, version: str) -> bytes:
        """The head of a request to infer, up to the two lengths."""
        head = self._infer_heads.get((model, version))
        if head is None:
            target = f"/v2/models/{quote(model, safe='')}"
            if version:
                target += f"/versions/{quote(version, safe='')}"
            head = b"POST %b/infer HTTP/1.1\r\nHost: %b\r\nContent-Type: application/octet-stream\r\n" % (
                target.encode(),
                self._authority,
            )
            if len(self._infer_heads) >= _INFER_HEADS_MAX:
                self._infer_heads.clear()
            self._infer_heads[model, version] = head
        return head

    def _outgoing(self, call: Call) -> Outgoing:
        try:
            return self._request_heads.outgoing(call.method, call.target, call.headers, call.body)
        except LineTooLong as error:
            raise Rejected(431, f"cannot be sent: {error}") from error
        except IllFormed as error:
            raise Rejected(400, f"cannot be sent: {error}") from error

    def _seconds(self, remaining: float) -> float:
        return self._options.stream_idle_timeout if math.isinf(remaining) else remaining

    def _until(self, remaining: float) -> float:
        if remaining <= 0.0:  # what cannot be answered in time must not put work on a model
            raise self._timed_out(remaining)
        return self._loop.time() + self._seconds(remaining)

    def _error(self, fault: ConnectionFault, head: AnswerHead | None, remaining: float) -> UpstreamError:
        """What a connection's fault means for a replica."""
        status = None if head is None else head.status
        if fault.fault is Fault.REFUSED:
            message = f"{self.url} does not accept connections: {fault.detail}"
            return UpstreamError(Failure.UNREACHABLE, message, before_answer=True)
        if fault.fault is Fault.CLOSED:
            message = f"{self.url} closed the connection before any answer"
            return UpstreamError(Failure.DROPPED, message, before_answer=True)
        if fault.fault is Fault.CROWDED:
            message = f"no connection to {self.url} was free: {fault.detail}"
            return UpstreamError(Failure.OVERLOADED, message, before_answer=True)
        if fault.fault is Fault.SILENT:
            return self._timed_out(remaining)
        if fault.fault is Fault.OVERSIZED:
            return UpstreamError(Failure.OVERSIZED, self._oversized(), status)
        if fault.fault is Fault.NONSENSE:
            return UpstreamError(Failure.BROKEN, f"{self.url} answered nonsense: {fault.detail}", status)
        return UpstreamError(Failure.BROKEN, f"{self.url} broke off its answer", status)

    def _oversized(self) -> str:
        return f"{self.url} answers with more than {self._options.answer_bytes_max} bytes, the most that one may have"

    def _timed_out(self, remaining: float) -> UpstreamError:
        return UpstreamError(Failure.TIMEOUT, f"{self.url} did not answer within {remaining:.3g} s")

    def _answer(self, request: InferRequest, reply: Reply) -> InferResponse:
        if reply.status != 200:
            raise refusal(self.url, request, reply.status, reply.body)
        try:
            length = json_length_of(reply.headers)
            response = self._forms.decode(reply.body, length, request.regions)
        except (Malformed, ValueError) as error:
            if isinstance(error, Malformed) and error.reason in BEYOND_LIMITS:
                raise UpstreamError(Failure.OVERSIZED, f"{self.url} answers with too much: {error}", 200) from error
            raise UpstreamError(Failure.BROKEN, f"{self.url} answered what is no inference: {error}", 200) from error
        return judged(self.url, request, response)


async def _end(upload: asyncio.Task[None]) -> None:
    """Its connection is closed or its answer whole: nothing is waiting for it, and what it raised was told."""
    upload.cancel()
    await asyncio.wait((upload,))
    if not upload.cancelled():
        upload.exception()


def _address(url: str) -> tuple[Address, str]:
    """Where ``url`` leads, and its Host field (RFC 9110 section 7.2)."""
    parts = urlsplit(url)
    host, secure = parts.hostname, parts.scheme == "https"
    if parts.scheme not in {"http", "https"} or not host or parts.username is not None or parts.path or parts.query:
        raise ValueError(f"{url!r} is not http://HOST:PORT")
    default = 443 if secure else 80
    port = parts.port or default
    shown = f"[{host}]" if ":" in host else host
    return Address(host, port, secure), shown if port == default else f"{shown}:{port}"
