"""The gRPC door: the whole of Triton's ``inference.GRPCInferenceService``, and the routes in front of it.

Rule of this file: one generic handler of raw bytes for every RPC. It reads a message, finds what it asks for, hands it
to the pipeline or passes it through, and writes what comes back. Messages are the codec's, every decision about an
answer the pipeline's, streams ``grpc_stream.py``'s.

Every RPC is served as a stream of messages, also those of one: only so are the wait for a slow caller's message and
the wait for it to take its answer ours to bound. On the wire it is the same.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from functools import partial
from typing import Any, Final

import grpc
import msgspec
import structlog
from google.protobuf.message import Message
from grpc import aio
from multidict import CIMultiDict
from tritonclient.grpc import service_pb2

from degrade.deadline import Deadline
from degrade.ladder import Failure
from gateway.admission.auth import Caller
from gateway.admission.forwarded import Origin
from gateway.admission.quota import Verdict
from gateway.codec import grpc as codec
from gateway.codec.http import PASSED, parse_cache_control
from gateway.config_server import Server, Switch
from gateway.doors.about import metadata, model_ready
from gateway.doors.buffered import Held
from gateway.doors.grpc_infer import Asking, Inferring
from gateway.doors.grpc_sockets import Sockets
from gateway.doors.grpc_stream import Streaming, StreamPorts
from gateway.doors.onward import withheld
from gateway.doors.passthrough import CHANGES_MAX
from gateway.doors.ports import Ports
from gateway.doors.question import check_version, identify
from gateway.doors.reception import Reception
from gateway.doors.rpcs import Method
from gateway.operate.telemetry import PASSTHROUGH
from gateway.problem import (
    Problem,
    Refused,
    answer_too_large,
    deadline_exceeded,
    forbidden,
    internal,
    malformed,
    timed_out,
    unavailable,
)
from gateway.route import Route
from tiers.backends.rpc import HTTP_STATUSES, Metadata, Rpc, RpcRefused, RpcReply
from tiers.inference import Provenance, Rejected, UpstreamError
from tiers.rpc import RpcPool
from tiers.v2.proto import identified

VIA: Final = ("via", "2.0 tailrace")
DEADLINE_WORDS: Final = "Deadline Exceeded"
OWN_SECONDS: Final = 0.1
"""A call whose own deadline is that near is told so in the words of its own library, which says it in this moment."""
Context = aio.ServicerContext[Any, Any]

_log = structlog.get_logger("tailrace")


class Said(msgspec.Struct, frozen=True):
    """What a call comes to: its answer's message (None: it has been written), and what is told around it."""

    message: bytes | None
    label: str = PASSTHROUGH
    state: str = "gateway"
    metadata: Metadata = ()
    trailing: Metadata = ()


class GrpcDoor:
    """The handler of every RPC."""

    def __init__(self, server: Server, ports: Ports, reception: Reception) -> None:
        self._reception = reception
        self._sockets = Sockets()
        self._secure = server.tls is not None
        self._timeout = float(server.passthrough_timeout)
        self._changes = asyncio.Semaphore(CHANGES_MAX)
        self._cuts: set[asyncio.Task[bool]] = set()
        self.take(server, ports)

    def take(self, server: Server, ports: Ports) -> None:
        """Answer by these from now on, also what comes by streams that are open."""
        self._server = server
        self._ports = ports
        assert ports.passthrough.rpc is not None, "every home has one where there is a gRPC door"
        self._passthrough = ports.passthrough.rpc
        self._inferring = Inferring(ports.pipeline, ports.exchange, ports.telemetry, ports.ticker)
        self._withheld = withheld(ports.directory.has_keys)

    async def handle(self, method: Method, context: Context) -> None:
        """Answer one call; whatever goes wrong becomes a status here."""
        ticker, telemetry = self._ports.ticker, self._ports.telemetry
        began = ticker()
        label, status, code, words = PASSTHROUGH, 200, grpc.StatusCode.OK, ""
        state = "problem"
        trailing: Metadata = ()
        try:
            with Held(self._ports.buffered) as held:
                said = await self._answer(method, context, began, held)
                label, state = said.label, said.state
                if said.message is not None:
                    await self._write(context, said)
        except (Refused, UpstreamError, Rejected) as error:
            refused = error if isinstance(error, Refused) else _unanswered(method.name, error)
            label, problem = label_of(refused, label), refused.problem
            status, code, words = problem.status, codec.status_of(problem), codec.details(problem)
            provenance = refused.provenance or Provenance(cache="none", reason=problem.slug)
            trailing = codec.trailers(provenance, refused.verdict, problem=problem)
            telemetry.refused(label, problem.slug)
        except RpcRefused as refused:
            status, code, words = HTTP_STATUSES.get(refused.code.name, 500), refused.code, refused.details
            trailing, state = (*refused.trailing, *codec.trailers(PASSED, None)), "passthrough"
        except (asyncio.CancelledError, aio.AbortError, aio.InternalError):
            raise  # the caller has left
        except Exception:
            _log.exception("bug", rpc=method.name)
            status, code, words = 500, grpc.StatusCode.INTERNAL, internal().detail
        telemetry.responded(label, status, state, ticker() - began)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and _left(context) <= OWN_SECONDS:
            words = DEADLINE_WORDS
        if code is not grpc.StatusCode.OK:
            await context.abort(code, words, trailing)

    async def _answer(self, method: Method, context: Context, began: float, held: Held) -> Said:
        if method.kind == "live":
            return Said(service_pb2.ServerLiveResponse(live=True).SerializeToString())
        if method.kind == "ready":
            ready = self._ports.readiness().ready
            return Said(service_pb2.ServerReadyResponse(ready=ready).SerializeToString())
        metadata = _metadata(context)
        address = codec.address_of(context.peer())
        origin = Origin(address, self._secure and bool(address))  # a unix socket is never encrypted
        caller = self._identify(metadata, origin)
        passed = self._passed_on(metadata, origin)
        deadline = self._deadline(context, began)
        if method.kind == "stream":
            identify = partial(self._identify, metadata, origin)
            return await self._stream(context, Streaming(self._stream_ports, identify, metadata, passed, deadline))
        message = await self._message(context)
        held.add(len(message))
        if method.kind == "infer":
            return await self._infer(message, held, caller, metadata, passed, deadline, began)
        if not method.settings:  # what it is suffices, so that nothing is read for who may not
            self._check_allowed(method, method.changes)
        request = method.parse(message)
        change = method.change(request)
        self._check_allowed(method, change)
        route = self._ports.routes.get(getattr(request, method.model)) if method.model and not method.loads else None
        if route is not None:
            return await _labelled(self._of_route(method, request, route, passed, deadline), route.name)
        rpc = Rpc(method.name, message, passed)
        bounded = deadline.sooner(Deadline.after(began, self._timeout))
        loads = getattr(request, method.model) if method.loads else ""
        return await self._through(rpc, self._passthrough, bounded, everywhere=change is not None, loads=loads)

    def _check_allowed(self, method: Method, change: Switch | None) -> None:
        """Raises Refused (403) for a call that would change what it may not."""
        if change is not None and change not in self._server.allow:
            detail = f"{method.name} would change the server behind this gateway."
            raise Refused(forbidden(detail, f'"{change}" in server.allow'))

    # -- infer ------------------------------------------------------------------------------------

    async def _infer(
        self,
        message: bytes,
        held: Held,
        caller: Caller,
        metadata: codec.Metadata,
        passed: Metadata,
        deadline: Deadline,
        began: float,
    ) -> Said:
        sketch = codec.sketch(message)
        route = self._ports.routes.get(sketch.model)
        if route is None:
            held.add(len(message))  # grpc makes a copy of what it sends
            quota = self._ports.pipeline.till.charge_passing((), caller)
            pool = self._passthrough
            sequence = "" if pool.alone else codec.sequence_of(sketch)
            bounded = deadline.sooner(Deadline.after(began, self._timeout))
            reply = await pool.unary(Rpc("ModelInfer", message, passed), bounded, sequence)
            return self._passed(reply, quota, began)
        directives = parse_cache_control(codec.joined(metadata, "cache-control"))
        asking = Asking(route, caller, sketch, directives, began, deadline)
        try:
            told = await self._inferring.answer(asking)
        except Refused as refused:
            raise _Labelled(refused, route.name) from refused
        trailing = codec.trailers(told.provenance, told.quota, self._ports.ticker() - began)
        state = told.provenance.cache
        return Said(identified(told.ready, sketch.id), route.name, state, trailing=trailing)

    async def _stream(self, context: Context, streaming: Streaming) -> Said:
        begun = False

        async def read() -> bytes | None:
            nonlocal begun
            if not begun:  # later ones may be long in coming: a stream is there to be kept
                begun = True
                return await self._reception.first(context, float(self._server.body_timeout))
            return await self._reception.later(context)

        async def write(message: bytes) -> None:
            await self.deliver(context, message)

        await streaming.run(read, write)
        return Said(None, state="stream")

    def _stream_ports(self) -> StreamPorts:
        ports = self._ports
        return StreamPorts(
            ports.routes, self._passthrough, ports.pipeline, self._inferring, ports.telemetry, ports.ticker,
            ports.buffered, ports.directory, self._server.grpc_stream_pending_max,
            float(self._server.grpc_stream_idle_timeout),
        )  # fmt: skip

    # -- what the gateway says of its routes, and what it does not ------------------------------------

    async def _of_route(
        self, method: Method, request: Message, route: Route, passed: Metadata, deadline: Deadline
    ) -> Said:
        version = getattr(request, method.version) if method.version else ""
        check_version(route, version)
        ticker = self._ports.ticker
        if method.kind == "model-ready":
            ready = (await model_ready(route, version, ticker))["ready"]
            return Said(service_pb2.ModelReadyResponse(ready=ready).SerializeToString(), route.name)
        if method.kind == "metadata":
            answer = service_pb2.ModelMetadataResponse(**await metadata(route, version, ticker))
            return Said(answer.SerializeToString(), route.name)
        # What a route does not have itself (configuration, statistics, trace) is its last tier's.
        tier = route.config.tiers[-1]
        setattr(request, method.model, tier.model)
        if method.version:
            setattr(request, method.version, version or tier.version)
        rpc = Rpc(method.name, request.SerializeToString(), passed)
        bounded = deadline.sooner(Deadline.after(ticker(), self._timeout))
        everywhere = method.change(request) is not None
        said = await self._through(rpc, route.last_rpc, bounded, everywhere=everywhere)
        return msgspec.structs.replace(said, label=route.name)

    async def _through(self, rpc: Rpc, pool: RpcPool, deadline: Deadline, everywhere: bool, loads: str = "") -> Said:
        """Pass a call through: to one replica, or to every one if it changes servers."""
        began = self._ports.ticker()
        try:
            reply = await self._everywhere(rpc, pool, deadline) if everywhere else await pool.unary(rpc, deadline)
        finally:
            if loads:
                self._ports.loaded(loads)  # it may have happened even where nobody said so
        return self._passed(reply, None, began)

    async def _everywhere(self, rpc: Rpc, pool: RpcPool, deadline: Deadline) -> RpcReply:
        """The same call at every replica: the first that refuses is the answer, or who gave none, or the last."""
        seconds = deadline.remaining(self._ports.ticker())
        try:
            async with asyncio.timeout(seconds), self._changes:
                outcomes = await pool.each(rpc, deadline)
        except TimeoutError:
            raise UpstreamError(Failure.TIMEOUT, f"no end within {seconds:.3g} s") from None
        for kind in (RpcRefused, UpstreamError):
            for outcome in outcomes:
                if isinstance(outcome, kind):
                    raise outcome
        last = outcomes[-1]
        assert isinstance(last, RpcReply), "a pool has a replica"
        return last

    def _passed(self, reply: RpcReply, quota: Verdict | None, began: float) -> Said:
        told = codec.trailers(PASSED, quota, self._ports.ticker() - began)
        return Said(reply.message, PASSTHROUGH, "passthrough", reply.metadata, (*reply.trailing, *told))

    # -- the caller -------------------------------------------------------------------------------

    def _identify(self, metadata: codec.Metadata, origin: Origin) -> Caller:
        proxies = self._ports.proxies
        shown = CIMultiDict((name, value) for name, value in metadata if isinstance(value, str))
        client = proxies.client(origin.address, proxies.hops(shown))
        return identify(self._ports.directory, shown, client or "local")

    def _passed_on(self, metadata: codec.Metadata, origin: Origin) -> Metadata:
        """The metadata as a replica gets them: with us in Via, and with whom the call comes from."""
        kept = codec.passed_on(metadata, self._withheld)
        text = tuple([(name, value) for name, value in kept if isinstance(value, str)])
        told = self._ports.proxies.told((*text, VIA), origin)
        binary = [pair for pair in kept if isinstance(pair[1], bytes)]
        return (*[(name.lower(), value) for name, value in told], *binary)

    def _deadline(self, context: Context, began: float) -> Deadline:
        remaining = _left(context)
        return Deadline(math.inf) if math.isinf(remaining) else Deadline.after(began, remaining)

    async def _message(self, context: Context) -> bytes:
        """The call's one message."""
        message = await self._reception.first(context, float(self._server.body_timeout))
        if message is None:
            raise Refused(malformed("The call has no message.", "protobuf"))
        return message

    async def _write(self, context: Context, said: Said) -> None:
        if said.metadata:
            await context.send_initial_metadata(said.metadata)
        if said.trailing:
            context.set_trailing_metadata(said.trailing)
        assert said.message is not None
        await self.deliver(context, said.message)

    async def deliver(self, context: Context, message: bytes) -> None:
        """Write one message. A caller that does not take it is cut, and so are its other calls: grpc would hold all of
        it. Raises Refused (408)."""
        seconds = float(self._server.write_timeout)
        try:
            async with asyncio.timeout(seconds):
                await context.write(message)
        except TimeoutError:
            # Not waited for: when the connection is shut grpc cancels this call, which then would not be counted.
            cut = asyncio.create_task(asyncio.to_thread(self._sockets.hang_up, context.peer()))
            self._cuts.add(cut)
            cut.add_done_callback(self._cuts.discard)
            raise Refused(timed_out(f"The answer was not taken within {seconds:g} s.")) from None


class _Labelled(Refused):
    """A refusal that is counted under a route's name."""

    def __init__(self, refused: Refused, label: str) -> None:
        super().__init__(refused.problem, refused.verdict, refused.provenance)
        self.label = label


async def _labelled(saying: Awaitable[Said], label: str) -> Said:
    try:
        return await saying
    except Refused as refused:
        raise _Labelled(refused, label) from refused


def label_of(refused: Refused, default: str) -> str:
    """The name that a refusal is counted under."""
    return refused.label if isinstance(refused, _Labelled) else default


def _left(context: Context) -> float:
    """Seconds of the caller's own deadline; infinity if it has none."""
    remaining = context.time_remaining()
    return math.inf if remaining is None else remaining


def _metadata(context: Context) -> codec.Metadata:
    return tuple(context.invocation_metadata() or ())


def _unanswered(rpc: str, error: UpstreamError | Rejected) -> Refused:
    """No replica answered, or the call could not be sent as one."""
    if isinstance(error, Rejected):
        return Refused(Problem("invalid", error.status, "Invalid request", str(error)))
    detail = f"No replica answered {rpc}: {error}."
    if error.failure is Failure.OVERSIZED:
        return Refused(answer_too_large(detail))
    if error.failure in (Failure.TIMEOUT, Failure.LATE):
        return Refused(deadline_exceeded(detail))
    return Refused(unavailable(detail, max(1.0, error.retry_after)))
