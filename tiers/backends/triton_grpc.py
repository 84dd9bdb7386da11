"""One Triton over gRPC: the only place where grpc's faults and statuses are given a meaning.

Rule of this file: messages are bytes on both sides; whatever happens on the wire leaves here as an answer,
RpcRefused (the server's own words), UpstreamError or Rejected. It must not choose a replica, count failures or know
a route. As a replica it answers what is asked of it in HTTP's words too (``over_grpc.py``), so that a backend that
is configured with nothing else serves every door.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import grpc
import msgspec
from grpc import aio
from msgspec import Struct

from degrade.deadline import Deadline
from degrade.ladder import Failure
from tiers.backends.call import Call, Reply, Streamed
from tiers.backends.judging import judged, timeout_of
from tiers.backends.over_grpc import Carrier, asked_over_grpc, whole
from tiers.backends.refusal import refusal
from tiers.backends.relaying import Listener, Place
from tiers.backends.rpc import HTTP_STATUSES, Conversation, Metadata, Rpc, RpcRefused, RpcReply
from tiers.inference import NOT_ASKED, InferRequest, InferResponse, UpstreamError
from tiers.v2.message import BEYOND_LIMITS, Limits, Malformed
from tiers.v2.proto import encode_request
from tiers.v2.proto_response import ResponseReader

PROBING_CALLS_MAX: Final = 12

_OF_CONNECTIONS: Final = (
    "failed to connect to all addresses",
    "Socket closed",
    "recvmsg:",
    "sendmsg:",
    "Connection reset",
    "Broken pipe",
    "Endpoint",
    "GOAWAY",
    "Stream removed",
    "Transport closed",
    "keepalive",
    "ping timeout",
    "Too many pings",
    "DNS resolution failed",
    "Name resolution",
    "Handshake",
    "Channel closed",
    "Cancelling all calls",
)
"""What grpc itself says with UNAVAILABLE, which servers use too. The state of the channel tells as well; these words
are for the moment in which it has connected again already."""

_RECONNECT_MILLISECONDS: Final = 100
_RECONNECT_MILLISECONDS_MAX: Final = 200
"""Probes and breakers decide when a replica is tried: grpc's own patience of up to two minutes would hide it. No longer
than a probe's pause (``tiers/watch.py``), or the one that could tell that it is back would be told of its last end."""

_FOUND_SECONDS: Final = 1.0
"""Since when a probe has reached the replica, for calls to be patient with a lane that has not connected again."""
_PATIENCE_SECONDS: Final = 0.5
"""Theirs, and a probe's: twice the longest wait of grpc's between two tries, with what it adds by chance."""


class GrpcOptions(Struct, frozen=True):
    """Bounds of one replica's client. Times in seconds."""

    calls_max: int = 256
    """Calls for inference at once; further ones wait within their own deadline, in order."""
    passthrough_calls_max: int = 256
    """Calls at once of all that passes through, apart from inference, as over HTTP; and as many open streams, apart
    from both: they may stay for ever."""
    passthrough_wait: float = 10.0
    waiting_max: int = 10_000
    connect_timeout: float = 1.0
    message_bytes_max: int = 256 * 1024 * 1024
    metadata_bytes_max: int = 64 * 1024
    keepalive: float = 310.0
    """Triton cuts who pings oftener than every 300 s."""
    keepalive_timeout: float = 20.0
    silence_max: float = 300.0
    """How long a call without a deadline may take."""
    limits: Limits = Limits()


class _Lane:
    """A connection of its own, and how many calls may be on it."""

    def __init__(self, url: str, target: str, options: GrpcOptions, calls_max: int, wait: float) -> None:
        self._url = url
        self._calls_max = calls_max
        self._wait = wait
        self._free = asyncio.Semaphore(calls_max)
        self._waiting = 0
        self._waiting_max = options.waiting_max
        self._silence_max = options.silence_max
        self.channel = aio.insecure_channel(target, options=_channel_options(options))
        self._turning: asyncio.Future[None] | None = None

    async def enter(self, remaining: float) -> float:
        """Wait for a place; what is left of the time then. Whoever has entered leaves. Raises UpstreamError."""
        if remaining <= 0.0:
            raise self._timed_out(remaining)
        if not self._free.locked():
            await self._free.acquire()
            return min(remaining, self._silence_max)
        if self._waiting >= self._waiting_max:
            raise self._crowded(f"{self._waiting} calls wait already")
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._waiting += 1
        try:
            async with asyncio.timeout(min(remaining, self._wait)):
                await self._free.acquire()
        except TimeoutError:
            raise self._crowded(f"{self._calls_max} are in work") from None
        except asyncio.CancelledError as left:
            left.add_note(NOT_ASKED)
            raise
        finally:
            self._waiting -= 1
        return max(0.001, min(remaining - (loop.time() - began), self._silence_max))

    def leave(self) -> None:
        self._free.release()

    async def connected(self, seconds: float) -> None:
        """Wait until grpc has connected again, if its last try failed; no longer than this, and then go on."""
        state = self.channel.get_state()
        if state is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            return
        if self._turning is None or self._turning.done():  # one for all who wait: grpc forgets none before its end
            self._turning = asyncio.ensure_future(self.channel.wait_for_state_change(state))
        await asyncio.wait((self._turning,), timeout=seconds)

    async def close(self) -> None:
        await self.channel.close()
        if self._turning is not None:
            self._turning.cancel()
            await asyncio.gather(self._turning, return_exceptions=True)

    async def unary(self, rpc: Rpc, remaining: float) -> RpcReply:
        """One call. Raises RpcRefused and UpstreamError."""
        seconds = await self.enter(remaining)
        try:
            make: aio.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(rpc.path)
            call = make(rpc.message, timeout=seconds, metadata=rpc.metadata or None)
            try:
                message = await call
                return RpcReply(message, _pairs(await call.initial_metadata()), _pairs(await call.trailing_metadata()))
            except aio.AioRpcError as error:
                late = call.time_remaining() == 0.0  # a server that minds it too ends the call in the same moment
                raise self._timed_out(remaining) if late else self.meaning(error, remaining) from error
        finally:
            self.leave()

    def meaning(self, error: aio.AioRpcError, remaining: float) -> RpcRefused | UpstreamError:
        """What a status other than OK is: the server's answer, or that there is none."""
        code, said = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE and self._is_of_connection(said):
            if said.startswith(("failed to connect", "DNS", "Name resolution")):
                message = f"{self._url} does not accept connections: {said}"
                return UpstreamError(Failure.UNREACHABLE, message, before_answer=True)
            message = f"{self._url} closed the connection before any answer: {said}"
            return UpstreamError(Failure.DROPPED, message, before_answer=True)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return self._timed_out(remaining)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in said:
            return UpstreamError(Failure.OVERSIZED, f"{self._url} answers with too much: {said}")
        if code is grpc.StatusCode.CANCELLED:
            return UpstreamError(Failure.BROKEN, f"{self._url} broke off its answer: {said}")
        return RpcRefused(code, said, _pairs(error.trailing_metadata()))

    def _is_of_connection(self, said: str) -> bool:
        state = self.channel.get_state()
        return state is not grpc.ChannelConnectivity.READY or said.startswith(_OF_CONNECTIONS)

    def _timed_out(self, remaining: float) -> UpstreamError:
        return UpstreamError(Failure.TIMEOUT, f"{self._url} did not answer within {remaining:.3g} s")

    def _crowded(self, why: str) -> UpstreamError:
        return UpstreamError(Failure.OVERLOADED, f"no call to {self._url} was free: {why}", before_answer=True)


class TritonGrpc:
    """One replica. Make it inside a running event loop and close it there."""

    def __init__(self, target: str, options: GrpcOptions) -> None:
        """``target`` is HOST:PORT, [V6]:PORT or unix:PATH."""
        self.url = f"grpc://{target}"
        self._options = options
        self._answers = ResponseReader(options.limits)

        def lane(calls_max: int, wait: float = math.inf) -> _Lane:
            return _Lane(self.url, target, options, calls_max, wait)

        self._inferring = lane(options.calls_max)
        self._passing = lane(options.passthrough_calls_max, options.passthrough_wait)
        self._streaming = lane(options.passthrough_calls_max, options.passthrough_wait)
        self._probing = lane(PROBING_CALLS_MAX)
        self._found_at = -math.inf
        """When a probe was answered last, by the loop's time."""

    async def close(self) -> None:
        for lane in (self._inferring, self._passing, self._streaming, self._probing):
            await lane.close()

    async def infer(self, request: InferRequest, deadline: Deadline, now: float) -> InferResponse:
        """Ask the model. Raises Rejected (the caller's fault) or UpstreamError."""
        loop = asyncio.get_running_loop()
        came, remaining = loop.time(), deadline.remaining(now)
        if came - self._found_at < _FOUND_SECONDS:
            await self._inferring.connected(min(_PATIENCE_SECONDS, remaining))
            remaining -= loop.time() - came
        rpc = Rpc("ModelInfer", encode_request(request, timeout_of(request, remaining)))
        try:
            reply = await self._inferring.unary(rpc, remaining)
        except RpcRefused as refused:
            body = msgspec.json.encode({"error": refused.details})
            raise refusal(self.url, request, HTTP_STATUSES.get(refused.code.name, 500), body) from refused
        try:
            response = self._answers.decode(reply.message, request.regions)
        except Malformed as fault:
            if fault.reason in BEYOND_LIMITS:
                raise UpstreamError(Failure.OVERSIZED, f"{self.url} answers with too much: {fault}", 200) from fault
            raise UpstreamError(Failure.BROKEN, f"{self.url} answered what is no inference: {fault}", 200) from fault
        return judged(self.url, request, response)

    async def unary(self, rpc: Rpc, deadline: Deadline, now: float) -> RpcReply:
        """A call passed through. Raises RpcRefused and UpstreamError."""
        return await self._passing.unary(rpc, deadline.remaining(now))

    def converse(self, rpc: Rpc, deadline: Deadline, now: float) -> Conversation:
        """A stream passed through."""
        return _Stream(self._streaming, rpc, deadline.remaining(now))

    async def exchange(self, call: Call, deadline: Deadline, now: float) -> Reply:
        """A call in HTTP's words with its whole answer. Raises UpstreamError, and Rejected for what has no
        counterpart in gRPC."""
        lane = self._probing if call.probe else self._passing
        remaining = deadline.remaining(now)
        if call.probe:
            await lane.connected(min(_PATIENCE_SECONDS, remaining))
        reply = await asked_over_grpc(call, lambda rpc: lane.unary(rpc, remaining))
        if call.probe:
            self._found_at = asyncio.get_running_loop().time()
        return reply

    @asynccontextmanager
    async def stream(self, call: Call, deadline: Deadline, now: float) -> AsyncIterator[Streamed]:
        """The same for a call whose body and answer may come in pieces; they are held as a whole."""
        collected = msgspec.structs.replace(call, body=await whole(call.body, self._options.message_bytes_max))
        reply = await self.exchange(collected, deadline, now)

        async def chunks() -> AsyncIterator[bytes]:
            yield reply.body

        yield Streamed(reply.status, reply.headers, chunks())

    def relay(self, call: Call, body: bytes, listener: Listener, place: Place, seconds: float) -> Carrier:
        """The same by callbacks."""
        whole_call = msgspec.structs.replace(call, body=body or None)
        carrier = Carrier(lambda: self.exchange(whole_call, Deadline(self._options.silence_max), 0.0), listener, place)
        carrier.start()
        return carrier


class _Stream:
    """A ModelStreamInfer with this server."""

    def __init__(self, lane: _Lane, rpc: Rpc, remaining: float) -> None:
        self._lane = lane
        self._rpc = rpc
        self._remaining = remaining
        self._entered = False
        self._call: aio.StreamStreamCall[bytes, bytes] | None = None
        self._began = asyncio.Event()

    async def send(self, message: bytes) -> None:
        if self._call is None:
            await self._lane.enter(self._remaining)
            self._entered = True
            seconds = None if math.isinf(self._remaining) else self._remaining
            make: aio.StreamStreamMultiCallable[bytes, bytes] = self._lane.channel.stream_stream(self._rpc.path)
            self._call = make(timeout=seconds, metadata=self._rpc.metadata or None)
            self._began.set()
        try:
            await self._call.write(message)
        except aio.AioRpcError as error:
            raise self._lane.meaning(error, self._remaining) from error
        except (asyncio.InvalidStateError, aio.InternalError):
            await self._told()  # it has ended; whoever reads the answers learns why

    async def end(self) -> None:
        self._began.set()
        if self._call is not None and not self._call.done():
            with contextlib.suppress(aio.InternalError):  # it is ending in this moment
                await self._call.done_writing()

    async def answers(self) -> AsyncIterator[bytes]:
        await self._began.wait()
        if self._call is None:
            return
        try:
            while isinstance(answer := await self._call.read(), bytes):
                yield answer
        except aio.AioRpcError as error:
            raise self._lane.meaning(error, self._remaining) from error
        await self._told()

    def cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()
        if self._entered:
            self._entered = False
            self._lane.leave()

    async def _told(self) -> None:
        """Raises what the stream ended with, if that was not OK."""
        assert self._call is not None
        code = await self._call.code()
        if code is not grpc.StatusCode.OK:
            details = await self._call.details()
            trailing = await self._call.trailing_metadata()
            error = aio.AioRpcError(code, aio.Metadata(), trailing or aio.Metadata(), details)
            raise self._lane.meaning(error, self._remaining)


def _pairs(metadata: object) -> Metadata:
    """Metadata without what is gRPC's own."""
    if metadata is None:
        return ()
    pairs: list[tuple[str, str | bytes]] = list(metadata)  # type: ignore[call-overload]  # aio.Metadata iterates so
    return tuple((name, value) for name, value in pairs if not name.startswith("grpc-"))


def _channel_options(options: GrpcOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", options.message_bytes_max),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", options.metadata_bytes_max),
        ("grpc.keepalive_time_ms", int(options.keepalive * 1000)),
        ("grpc.keepalive_timeout_ms", int(options.keepalive_timeout * 1000)),
        ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MILLISECONDS),
        ("grpc.min_reconnect_backoff_ms", max(_RECONNECT_MILLISECONDS, int(options.connect_timeout * 1000))),
        ("grpc.max_reconnect_backoff_ms", _RECONNECT_MILLISECONDS_MAX),
        ("grpc.use_local_subchannel_pool", 1),  # each lane has a connection of its own
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
    ]
