"""One ModelStreamInfer: many requests and many answers, of any models, on one call.

Rule of this file: each request goes its own way. On a route it is answered by the pipeline as a single call is, in
the order of the requests; one whose model is decoupled or keeps state between requests, and one without a route, goes
on to a replica as it came, and its answers come back as they come. A request that is refused is told so in the stream,
which goes on, as Triton does it; a replica that goes away ends the stream with an error, so that no sequence is begun
anew in silence.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack

import msgspec

from degrade.deadline import Deadline, Ticker
from gateway.admission.auth import Caller, Directory
from gateway.codec import grpc as codec
from gateway.codec.http import parse_cache_control
from gateway.doors.buffered import Buffered, Held
from gateway.doors.grpc_infer import Asking, Inferring
from gateway.doors.question import check_version
from gateway.operate.telemetry import PASSTHROUGH, Telemetry
from gateway.pipeline import Pipeline
from gateway.problem import Refused, timed_out
from gateway.route import Route
from tiers.backends.rpc import Metadata, Rpc
from tiers.facts import ModelFacts
from tiers.inference import Rejected, UpstreamError
from tiers.rpc import RpcPool, Talk
from tiers.v2.proto import Sketch, renamed
from tiers.v2.proto_response import renamed_in_stream, streamed

Read = Callable[[], Awaitable[bytes | None]]
Write = Callable[[bytes], Awaitable[None]]


class StreamPorts(msgspec.Struct, frozen=True):
    """What streams are wired to; ``pending_max`` bounds the requests of one that are in work, ``idle`` (seconds) how
    long one may be silent."""

    routes: Mapping[str, Route]
    passthrough: RpcPool
    pipeline: Pipeline
    inferring: Inferring
    telemetry: Telemetry
    ticker: Ticker
    buffered: Buffered
    directory: Directory
    pending_max: int
    idle: float


class Streaming:
    """One stream of one caller."""

    def __init__(
        self,
        ports: Callable[[], StreamPorts],
        identify: Callable[[], Caller],
        metadata: codec.Metadata,
        passed: Metadata,
        deadline: Deadline,
    ) -> None:
        """``ports`` are asked for with every request: a stream may outlive them. ``identify`` says who asks, by the
        keys of now; raises Refused."""
        self._told_ports = ports
        self._identify = identify
        self._known_by, self._caller = ports().directory, identify()
        self._directives = parse_cache_control(codec.joined(metadata, "cache-control"))
        self._passed = passed
        self._deadline = deadline
        self._talks: dict[tuple[RpcPool, str, str], Talk] = {}
        self._open = ExitStack()
        self._tasks = asyncio.TaskGroup()
        self._ready: deque[asyncio.Task[bytes]] = deque()
        self._more = asyncio.Event()
        self._ended = False
        self._free = asyncio.Semaphore(ports().pending_max)
        self._writing = asyncio.Lock()
        self._patience = asyncio.timeout(ports().idle)

    @property
    def _ports(self) -> StreamPorts:
        return self._told_ports()

    async def run(self, read: Read, write: Write) -> None:
        """Answer until the caller has ended its side and all is said. Raises RpcRefused, UpstreamError, Refused: also
        (408) when neither side has said anything for too long."""
        with self._open:
            try:
                async with self._patience, self._tasks:
                    self._tasks.create_task(self._answers(write))
                    self._tasks.create_task(self._requests(read, write))
            except TimeoutError:
                idle = f"The stream was silent for server.grpc_stream_idle_timeout ({self._ports.idle:g} s)."
                raise Refused(timed_out(idle)) from None
            except BaseExceptionGroup as failed:
                raise failed.exceptions[0] from None

    def _heard(self) -> None:
        """Somebody has said something."""
        if not self._patience.expired():
            self._patience.reschedule(asyncio.get_running_loop().time() + self._ports.idle)

    # -- requests ---------------------------------------------------------------------------------

    async def _requests(self, read: Read, write: Write) -> None:
        while (message := await read()) is not None:
            self._heard()
            with Held(self._ports.buffered) as held:
                await self._request(message, held, write)
        self._ended = True
        self._more.set()
        for talk in self._talks.values():
            await talk.end()

    async def _request(self, message: bytes, held: Held, write: Write) -> None:
        """Take one request in hand; ``held``: until it is, which may take as long as others, or the model's facts."""
        identifier, label, refused = "", PASSTHROUGH, None
        try:
            held.add(len(message))
        except Refused as error:
            refused, message = error, b""
        await self._free.acquire()
        try:
            if refused is not None:
                raise refused
            sketch = codec.sketch(message)
            route = self._ports.routes.get(sketch.model)
            identifier, label = sketch.id, PASSTHROUGH if route is None else route.name
            self._know_again()
            facts = None if route is None else await self._passing(route, sketch)
            if route is not None and facts is None:
                self._answer(self._asking(route, sketch))
                return
            admit = None if route is None or facts is None else (self._asking(route, sketch), facts)
            await self._pass_on(admit, sketch, write)
            self._free.release()
        except Refused as error:
            self._refuse(error, identifier, label)

    def _know_again(self) -> None:
        """A reload may have taken the caller's key away, or changed its tenant. Raises Refused (401)."""
        directory = self._ports.directory
        if directory is not self._known_by:
            self._caller = self._identify()
            self._known_by = directory

    async def _passing(self, route: Route, sketch: Sketch) -> ModelFacts | None:
        """The facts of the route's model, if it answers in a way of its own. Raises Refused for an unknown version."""
        check_version(route, sketch.version)
        facts = route.learning.known(sketch.version)
        if facts is None:
            try:
                within = Deadline.after(self._ports.ticker(), route.timeout)
                facts = await route.learning.facts(within.sooner(self._deadline), sketch.version)
            except (UpstreamError, Rejected):
                return None  # the pipeline says what that comes to
        return facts if facts.decoupled or facts.sequence else None

    def _asking(self, route: Route, sketch: Sketch) -> Asking:
        return Asking(route, self._caller, sketch, self._directives, self._ports.ticker(), self._deadline)

    def _answer(self, asking: Asking) -> None:
        self._ready.append(self._tasks.create_task(self._answered(asking)))
        self._more.set()

    async def _answered(self, asking: Asking) -> bytes:
        name, began = asking.route.name, asking.began
        telemetry, ticker = self._ports.telemetry, self._ports.ticker
        try:
            with Held(self._ports.buffered) as held:
                held.add(len(asking.sketch.message))
                told = await self._ports.inferring.answer(asking)
        except Refused as refused:
            telemetry.refused(name, refused.problem.slug)
            telemetry.responded(name, refused.problem.status, "problem", ticker() - began)
            return codec.streamed_error(refused.problem, asking.sketch.id)
        telemetry.responded(name, 200, told.provenance.cache, ticker() - began)
        return streamed(told.ready, asking.sketch.id)

    def _refuse(self, refused: Refused, identifier: str, label: str) -> None:
        """Tell a refusal in its turn."""
        self._ports.telemetry.refused(label, refused.problem.slug)

        async def told() -> bytes:
            return codec.streamed_error(refused.problem, identifier)

        self._ready.append(self._tasks.create_task(told()))
        self._more.set()

    async def _pass_on(self, admit: tuple[Asking, ModelFacts] | None, sketch: Sketch, write: Write) -> None:
        """Send a message on to a replica; one of a route (``admit``) under the name of its model."""
        message, name, pool = sketch.message, "", self._ports.passthrough
        with Held(self._ports.buffered) as held:
            held.add(len(message))  # grpc makes a copy of what it sends
            self._ports.pipeline.till.charge_passing(() if admit is None else admit[0].route.allowances, self._caller)
            if admit is not None:
                await self._ports.inferring.admit(*admit)
                route = admit[0].route
                tier = route.config.tiers[-1]
                message, name = renamed(message, tier.model, sketch.version or tier.version), route.name
                pool = route.last_rpc
            sequence = "" if pool.alone else codec.sequence_of(sketch)
            await self._talk(pool, name, sequence, write).send(message)

    def _talk(self, pool: RpcPool, name: str, sequence: str, write: Write) -> Talk:
        """The stream on to the replica where a sequence lives, or to any: one for each route and replica, and after a
        reload none of those that were asked before it."""
        home = None if not sequence else pool.pool.home_of(sequence)
        for (asked, owner, url), known in self._talks.items():
            if asked is pool and owner == name and home in (None, url):
                return known
        rpc = Rpc("ModelStreamInfer", b"", self._passed)
        talk = self._open.enter_context(pool.conversing(rpc, self._deadline, sequence))
        self._talks[pool, name, talk.url] = talk
        self._tasks.create_task(self._read(talk, name, write))
        return talk

    # -- answers ----------------------------------------------------------------------------------

    async def _read(self, talk: Talk, name: str, write: Write) -> None:
        """Write a replica's answers as they come; ``name``: of the route, whose answers carry it."""
        async for answer in talk.answers():
            async with self._writing:
                await write(renamed_in_stream(answer, name) if name else answer)
            self._heard()

    async def _answers(self, write: Write) -> None:
        """Write the pipeline's answers in the order of their requests, until there will be no more."""
        while True:
            while not self._ready:
                if self._ended:
                    return
                self._more.clear()
                await self._more.wait()
            answer = await self._ready[0]
            async with self._writing:
                await write(answer)
            self._heard()
            self._ready.popleft()
            self._free.release()
