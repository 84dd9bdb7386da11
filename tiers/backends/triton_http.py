"""One Triton over HTTP: the only place where the HTTP client's exceptions and Triton's statuses are known.

Rule of this file: whatever happens on the wire leaves here as an answer, UpstreamError or Rejected.
Requests carry nothing the caller did not ask for (no default User-Agent or Accept, no cookies,
no proxies from the environment), bodies are never decompressed, and a target goes out byte for byte
as given. It must not choose a replica, count failures or know a route.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import quote

import aiohttp
import msgspec
from msgspec import Struct
from yarl import URL

from degrade.deadline import Deadline
from degrade.ladder import Failure
from tiers.inference import InferRequest, InferResponse, Rejected, UpstreamError
from tiers.v2 import Limits, Malformed, decode_response, encode_request

Headers = tuple[tuple[str, str], ...]
Body = bytes | AsyncIterable[bytes] | None

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
_MICROSECONDS: Final = 1_000_000
_MESSAGE_CHARS_MAX: Final = 500  # of an upstream's error text: enough for a person, too little for a flood
_AUTOMATIC: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
_ABSENT: Final = re.compile(
    r"unknown model|not ready|not at ready state|no available version|is not available|is unloading",
    re.IGNORECASE,
)
_UNKNOWN_VERSION: Final = re.compile(r" version \d+ is not found")


class TritonOptions(Struct, frozen=True):
    """Bounds of one replica's client. Times in seconds."""

    connections_max: int = 256
    """Connections to the replica; further calls wait for one within their own deadline."""
    connect_timeout: float = 1.0
    """A Triton that is there accepts at once; waiting longer only delays the next replica."""
    keepalive_timeout: float = 60.0
    """Shorter than the 75 s after which Triton closes an idle connection, so it seldom closes first."""
    stream_idle_timeout: float = 300.0
    """How long a passed-through answer may be silent between two pieces."""
    answer_bytes_max: int = 256 * 1024 * 1024
    limits: Limits = Limits()


class Call(Struct, frozen=True):
    """An HTTP request for a replica. ``target`` is the raw path and query, sent verbatim, from its "/" on."""

    method: str
    target: str
    headers: Headers = ()
    body: Body = None


class Reply(Struct, frozen=True):
    """A whole answer. ``headers`` are without hop-by-hop fields; ``body`` is as encoded by the replica."""

    status: int
    headers: Headers
    body: bytes


class Streamed(Struct, frozen=True):
    """An answer under way. ``chunks`` may be read once; UpstreamError when the replica breaks off."""

    status: int
    headers: Headers
    chunks: AsyncIterator[bytes]


class _Upload:
    """A caller's body on its way up, which remembers how it failed: the HTTP client would make that look
    like a fault of the connection, and so of the replica."""

    __slots__ = ("_body", "fault", "response")

    def __init__(self, body: AsyncIterable[bytes]) -> None:
        self._body = body
        self.fault: Exception | None = None
        self.response: aiohttp.ClientResponse | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._body:
                yield piece
        except Exception as error:
            self.fault = error
            if self.response is not None:  # its reader would not hear of this, and wait for ever
                self.response.close()
            raise


class _Trace:
    """Whether the request's connection had been used before (a replica may just have closed that one)."""

    __slots__ = ("reused",)

    def __init__(self) -> None:
        self.reused = False


def end_to_end(headers: Iterable[tuple[str, str]]) -> Headers:
    """The headers without the hop-by-hop ones: RFC 9110 section 7.6.1, and any Proxy-* field."""
    pairs = tuple(headers)
    named = {
        token.strip().lower() for name, value in pairs if name.lower() == "connection" for token in value.split(",")
    }
    return tuple(
        (name, value)
        for name, value in pairs
        if name.lower() not in _HOP_BY_HOP and name.lower() not in named and not name.lower().startswith("proxy-")
    )


class TritonHttp:
    """One replica. Make it inside a running event loop and close it there."""

    def __init__(self, url: str, options: TritonOptions) -> None:
        self.url = url.rstrip("/")
        self._options = options
        self._session = _session(options, fresh=False)
        # A request that died on a kept connection is sent again on one that cannot be an old one.
        self._fresh = _session(options, fresh=True)

    async def close(self) -> None:
        await self._session.close()
        await self._fresh.close()

    async def infer(self, request: InferRequest, deadline: Deadline, now: float) -> InferResponse:
        """Ask the model. Raises Rejected (4xx) or UpstreamError.

        A safe request whose kept connection closes before any answer is sent once more, on a fresh
        connection: Triton closes idle connections, and that says nothing about its health.
        """
        remaining = deadline.remaining(now)
        parts, json_length = encode_request(_with_timeout(request, remaining))
        target = f"/v2/models/{quote(request.model, safe='')}"
        if request.version:
            target += f"/versions/{quote(request.version, safe='')}"
        headers = (("Content-Type", "application/octet-stream"), (HEADER_LENGTH, str(json_length)))
        call = Call("POST", target + "/infer", headers, b"".join(parts))
        safe = not (request.in_sequence or request.in_shared_memory)
        reply = await self._buffered(call, remaining, safe)
        return self._answer(request, reply)

    async def exchange(self, call: Call, deadline: Deadline, now: float) -> Reply:
        """A small call with its whole answer, whatever its status. Raises UpstreamError.

        Only GET and HEAD are sent again after a kept connection closes without an answer.
        """
        return await self._buffered(call, deadline.remaining(now), call.method in {"GET", "HEAD"})

    @asynccontextmanager
    async def stream(self, call: Call, deadline: Deadline, now: float) -> AsyncIterator[Streamed]:
        """Pass a request through: hop-by-hop fields go, everything else stays as it is, both ways.

        The deadline bounds the wait for the answer's head, ``stream_idle_timeout`` each wait for a piece.
        Raises UpstreamError, and whatever the caller's own body raises, as itself.
        Leaving the block early closes the connection, which cancels the work.
        """
        upload = _Upload(call.body) if isinstance(call.body, AsyncIterable) else None
        sent = call if upload is None else msgspec.structs.replace(call, body=upload)
        try:
            response = await self._open(self._session, sent, deadline.remaining(now), _Trace())
            if upload is not None:
                upload.response = response
            try:
                yield Streamed(response.status, end_to_end(response.headers.items()), self._chunks(response))
            finally:
                if not response.content.at_eof():
                    response.close()
                response.release()
        except UpstreamError:
            if upload is not None and upload.fault is not None:
                raise upload.fault from None
            raise

    async def _buffered(self, call: Call, remaining: float, again: bool) -> Reply:
        if remaining <= 0.0:  # what cannot be answered in time must not put work on a model
            raise self._timed_out(remaining)
        try:
            async with asyncio.timeout(_bound(remaining)):
                trace = _Trace()
                try:
                    return await self._whole(self._session, call, trace)
                except UpstreamError as error:
                    if not (again and trace.reused and error.before_answer):
                        raise
                return await self._whole(self._fresh, call, trace)
        except TimeoutError as error:
            raise self._timed_out(remaining) from error

    async def _whole(self, session: aiohttp.ClientSession, call: Call, trace: _Trace) -> Reply:
        response = await self._open(session, call, None, trace)
        try:
            body = await self._body(response)
        finally:
            if not response.content.at_eof():
                response.close()
            response.release()
        return Reply(response.status, end_to_end(response.headers.items()), body)

    async def _open(
        self, session: aiohttp.ClientSession, call: Call, remaining: float | None, trace: _Trace
    ) -> aiohttp.ClientResponse:
        """Send and wait for the answer's head."""
        headers = [pair for pair in end_to_end(call.headers) if pair[0].lower() not in {"host", "expect"}]
        # The client keeps fields of one name apart only if they are written alike.
        written: dict[str, str] = {}
        headers = [(written.setdefault(name.lower(), name), value) for name, value in headers]
        if not isinstance(call.body, AsyncIterable):
            headers = [pair for pair in headers if pair[0].lower() != "content-length"]
        try:
            async with asyncio.timeout(None if remaining is None else _bound(remaining)):
                return await session.request(
                    call.method,
                    URL(self.url + call.target, encoded=True),
                    data=call.body,
                    headers=headers,
                    allow_redirects=False,
                    trace_request_ctx=trace,
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise UpstreamError(
                Failure.UNREACHABLE, f"{self.url} does not accept connections: {error}", before_answer=True
            ) from error
        except aiohttp.ClientResponseError as error:  # bytes that are not HTTP
            raise UpstreamError(Failure.BROKEN, f"{self.url} answered nonsense: {error.message}") from error
        except TimeoutError as error:
            if remaining is None:
                raise
            raise self._timed_out(remaining) from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError(
                Failure.UNREACHABLE, f"{self.url} closed the connection before any answer", before_answer=True
            ) from error

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        bytes_max = self._options.answer_bytes_max
        if (response.content_length or 0) > bytes_max:
            raise UpstreamError(Failure.BROKEN, f"{self.url} answers with more than {bytes_max} bytes", response.status)
        pieces: list[bytes] = []
        size = 0
        async for piece in self._chunks(response):
            size += len(piece)
            if size > bytes_max:
                raise UpstreamError(
                    Failure.BROKEN, f"{self.url} answers with more than {bytes_max} bytes", response.status
                )
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for piece in response.content.iter_any():
                yield piece
        except aiohttp.SocketTimeoutError as error:
            raise UpstreamError(Failure.TIMEOUT, f"{self.url} fell silent in its answer", response.status) from error
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError):  # the deadline around us, not the socket
                raise
            raise UpstreamError(Failure.BROKEN, f"{self.url} broke off its answer", response.status) from error

    def _timed_out(self, remaining: float) -> UpstreamError:
        return UpstreamError(Failure.TIMEOUT, f"{self.url} did not answer within {remaining:.3g} s")

    def _answer(self, request: InferRequest, reply: Reply) -> InferResponse:
        if reply.status != 200:
            raise refusal(self.url, request, reply)
        try:
            length = next((int(value) for name, value in reply.headers if name.lower() == HEADER_LENGTH.lower()), None)
            response = decode_response(reply.body, length, self._options.limits)
        except (Malformed, ValueError) as error:
            raise UpstreamError(Failure.BROKEN, f"{self.url} answered what is no inference: {error}", 200) from error
        fault = _fault(request, response)
        if fault:
            raise UpstreamError(Failure.BROKEN, f"{self.url} answered {fault}", 200)
        return response


def _bound(remaining: float) -> float | None:
    return None if math.isinf(remaining) else remaining


def refusal(url: str, request: InferRequest, reply: Reply) -> UpstreamError | Rejected:
    """What a status other than 200 means.

    The caller's model is known to exist, so a replica that says it does not is restarting or reloading:
    BROKEN, not the caller's fault. A version the model never had is the caller's fault.
    """
    message = _message(reply)
    status = reply.status
    if status in {429, 503}:
        return UpstreamError(Failure.OVERLOADED, f"{url} is overloaded: {message}", status)
    if status in {400, 404}:
        wrong_version = request.version and _UNKNOWN_VERSION.search(message)
        foreign = status == 404 and not _error_member(reply)
        if not wrong_version and (foreign or _ABSENT.search(message)):
            return UpstreamError(Failure.BROKEN, f"{url} does not have the model ready: {message}", status)
    if 400 <= status < 500:
        return Rejected(status, message)
    return UpstreamError(Failure.BROKEN, f"{url} failed with {status}: {message}", status)


def _error_member(reply: Reply) -> str:
    try:
        error = msgspec.json.decode(reply.body, type=dict[str, object]).get("error")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
    return error if isinstance(error, str) else ""


def _message(reply: Reply) -> str:
    text = _error_member(reply) or reply.body[:_MESSAGE_CHARS_MAX].decode("utf-8", "replace").strip()
    return text[:_MESSAGE_CHARS_MAX] or f"status {reply.status}"


def _fault(request: InferRequest, response: InferResponse) -> str:
    """What makes a well-formed answer not the answer to this request; empty if nothing does."""
    if response.model != request.model:
        return f"for model {response.model!r} where {request.model!r} was asked"
    if request.version and response.version != request.version:
        return f"for version {response.version!r} where {request.version!r} was asked"
    held = {output.name for output in response.outputs}
    missing = [output.name for output in request.outputs if output.name not in held]
    return f"without output {missing[0]!r}" if missing else ""


def _with_timeout(request: InferRequest, remaining: float) -> InferRequest:
    """The remaining time as Triton's ``timeout`` parameter (microseconds), unless the caller's is sooner."""
    if math.isinf(remaining):
        return request
    microseconds = max(1, int(remaining * _MICROSECONDS))
    own = request.parameters.get("timeout")
    if isinstance(own, int) and 0 < own < microseconds:
        return request
    return msgspec.structs.replace(request, parameters={**request.parameters, "timeout": microseconds})


def _session(options: TritonOptions, *, fresh: bool) -> aiohttp.ClientSession:
    connector = (
        aiohttp.TCPConnector(limit=options.connections_max, force_close=True)
        if fresh
        else aiohttp.TCPConnector(limit=options.connections_max, keepalive_timeout=options.keepalive_timeout)
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=_AUTOMATIC,
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=options.connect_timeout, sock_read=options.stream_idle_timeout
        ),
        trace_configs=[_reuse_trace()],
    )


def _reuse_trace() -> aiohttp.TraceConfig:
    async def reused(
        session: aiohttp.ClientSession, context: object, params: aiohttp.TraceConnectionReuseconnParams
    ) -> None:
        trace = getattr(context, "trace_request_ctx", None)
        if isinstance(trace, _Trace):
            trace.reused = True

    config = aiohttp.TraceConfig()
    config.on_connection_reuseconn.append(reused)
    return config
