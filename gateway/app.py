"""The composition root: from a configuration to a running gateway, and back down.

Rule of this file: the only place that makes the parts and joins them. No decision about a request is
taken here. Start order: what must not fail (parser, listeners) first, then probes and polls, which may
fail as often as they like; a gateway starts while every backend is down.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic, time
from typing import TYPE_CHECKING, Final

import structlog
import uvloop

from degrade.breaker import Change
from gateway.admission.auth import Caller, Directory
from gateway.admission.forwarded import Proxies
from gateway.admission.ratelimit import Limiter
from gateway.check import raise_open_files
from gateway.config import ALLOW_ALL, Config, Server, parse_address
from gateway.doors.about import Readiness
from gateway.doors.book import BookOptions
from gateway.doors.buffered import Buffered
from gateway.doors.certificates import RENEWAL_SECONDS, Certificates, Unusable
from gateway.doors.edge import EdgeConnection
from gateway.doors.exchange import Exchange
from gateway.doors.handshakes import Handshakes
from gateway.doors.head import HeadBounds, Heads
from gateway.doors.http import HttpDoor, Ports
from gateway.doors.lane import Clocks, Desk, EdgeLane, EdgeOptions, Times
from gateway.doors.listener import (
    ADMIN_CONNECTIONS_MAX,
    ADMIN_DRAIN_SECONDS,
    Listener,
    ParserMissing,
    listen,
    listen_secured,
    named,
    require_strict_parser,
)
from gateway.doors.methods import MethodPorts, Methods
from gateway.doors.passthrough import RELAYED_BYTES_MAX
from gateway.doors.rpc import ENVELOPE_BYTES_MAX, RpcConnection, RpcDesk, RpcLane, RpcOptions
from gateway.homes import Makings
from gateway.memory import keep_freed_memory, set_start_aside, taken
from gateway.operate.admin import admin_port
from gateway.operate.gauges import gauges, grpc_gauges, lane_gauges, rpc_gauges, tls_gauges
from gateway.operate.log import set_up
from gateway.operate.telemetry import Telemetry
from gateway.pipeline import Pipeline
from gateway.route import Route, quota_of

if TYPE_CHECKING:
    from gateway.doors.grpc_listener import GrpcListener

Sleep = Callable[[float], Awaitable[None]]
Run = Callable[[float, Sleep], Awaitable[None]]

SWEEP_SECONDS: Final = 0.5
"""How often slow peers are looked for; how late they may be cut."""

_log = structlog.get_logger("tailrace")


class Gateway:
    """All parts of one running gateway. Make it inside the event loop that it is to live in."""

    def __init__(self, config: Config, shared: bool = False, sleep: Sleep = asyncio.sleep) -> None:
        """``shared``: other workers listen on the same port. ``sleep``: how the notice of draining passes."""
        self._sleep = sleep
        self._config = config
        self._shared = shared
        self._draining = False
        self._tasks: list[asyncio.Task[None]] = []
        self._lane: EdgeLane | None = None
        self._rpc: RpcLane | None = None
        self._rpc_server: asyncio.Server | None = None
        self.rpc_address = ""
        """Where the MessagePack-RPC door is, once started, if it is open: HOST:PORT or unix:PATH."""
        self._exchange: Exchange | None = None
        self._listener: Listener | None = None
        self._admin: Listener | None = None
        self._server: asyncio.Server | Handshakes | None = None
        self._admin_server: asyncio.Server | None = None
        self.certificates: Certificates | None = None
        self._grpc: GrpcListener | None = None
        self.grpc_address = ""
        """Where the gRPC door listens; empty if there is none."""
        self._chance = random.Random()
        self.buffered = Buffered(int(config.server.buffered_bytes_max))
        self.telemetry = Telemetry(monotonic, logs_requests=config.log.level == "debug")
        makings = Makings(config.server, monotonic, self._chance)
        self.homes = {
            name: makings.home(backend, partial(self._breaker_changed, name), partial(self._model_changed, name))
            for name, backend in config.backends.items()
        }
        self.routes = {
            name: Route(
                name,
                route,
                [self.homes[tier.backend] for tier in route.tiers],
                int(config.server.body_bytes_max),
            )
            for name, route in config.routes.items()
        }
        limiter = Limiter(config.server.quota_keys_max)
        self.pipeline = Pipeline(limiter, self.telemetry, monotonic, self._chance)
        for gauge in gauges(self.routes, self.homes, lambda: self._draining):
            self.telemetry.watch(gauge)

    async def start(self) -> tuple[str, str]:
        """Listen, probe and poll; returns the addresses of the HTTP door and the admin port.

        Raises OSError when an address cannot be listened on, Unusable when the certificate cannot be used.
        """
        server = self._config.server
        certificates = self.certificates = None if server.tls is None else Certificates(server.tls)
        directory = self._directory()
        exchange = self._exchange = Exchange(self.pipeline, monotonic, self.buffered)
        proxies = Proxies(server.trusted_proxies, server.forwarded_field)
        ports = Ports(
            routes=self.routes,
            passthrough=self.homes[self._config.passthrough].pool,
            exchange=exchange,
            directory=directory,
            telemetry=self.telemetry,
            readiness=self.readiness,
            loaded=self._loaded,
            ticker=monotonic,
            buffered=self.buffered,
            proxies=proxies,
        )
        door = HttpDoor(server, ports)
        header_bytes_max = int(server.header_bytes_max)
        self._listener = Listener(door.handle, header_bytes_max, server.connections_max)
        relayed_bytes_max = min(RELAYED_BYTES_MAX, int(server.passthrough_bytes_max))
        heads = Heads(self.routes, directory, HeadBounds(header_bytes_max, relayed_bytes_max), proxies, server.edge)
        behind = self._listener.behind
        desk = Desk(heads, exchange, self.telemetry, self.buffered, behind, ports.passthrough, proxies)
        self._lane = EdgeLane(desk, Clocks(monotonic, time), _edge_options(server))
        for gauge in lane_gauges(self._lane):
            self.telemetry.watch(gauge)
        http = await self._listen(self._lane, certificates)
        if server.rpc is not None:
            await self._open_rpc(server, server.rpc, directory, exchange)
        if server.has_grpc:
            await self._start_grpc(ports, certificates)
        pools = {name: home.pool for name, home in self.homes.items()}
        admin = admin_port(self.routes, pools, self.telemetry, lambda: self._draining)
        self._admin = Listener(admin.handle, header_bytes_max, ADMIN_CONNECTIONS_MAX)
        with named("server.admin", server.admin):
            self._admin_server, admin_url = await listen(self._admin, parse_address(server.admin))
        for lane in (self._lane, self._rpc):
            if lane is not None:
                self._tasks.append(asyncio.create_task(kept_up(partial(_sweep, lane), SWEEP_SECONDS, asyncio.sleep)))
        if certificates is not None:
            self._tasks.append(asyncio.create_task(kept_up(certificates.run, RENEWAL_SECONDS, asyncio.sleep)))
        # One look before anyone is told that we are ready: until then readiness would be a guess.
        await asyncio.gather(*(pool.probe_once() for home in self.homes.values() for pool in home.pools))
        for name, home in self.homes.items():
            interval = float(self._config.backends[name].probe)
            for run in (*(pool.run for pool in home.pools), home.catalog.run):
                self._tasks.append(asyncio.create_task(kept_up(run, interval, asyncio.sleep)))
        for task in self._tasks:
            task.add_done_callback(_complain)
        return http, admin_url

    async def _start_grpc(self, http: Ports, certificates: Certificates | None) -> None:
        """grpc is loaded only where it is used: it takes its time, and some 30 MB."""
        from gateway.doors.grpc import GrpcDoor, GrpcPorts
        from gateway.doors.grpc_health import Health
        from gateway.doors.grpc_infer import Inferring
        from gateway.doors.grpc_listener import GrpcListener, message_bytes_max
        from gateway.doors.reception import Reception, ReceptionPorts

        server, exchange = self._config.server, http.exchange
        passthrough = self.homes[self._config.passthrough].rpc
        assert passthrough is not None, "every home has one where there is a gRPC door"
        in_use = taken()

        def memory() -> int | None:
            now, caches = in_use(), (route.cache for route in self.routes.values())
            known = self.buffered.bytes + sum(cache.bytes_used for cache in caches if cache is not None)
            return None if now is None else now - known

        reception = Reception(ReceptionPorts(self.buffered, memory, monotonic), message_bytes_max(server))
        ports = GrpcPorts(
            routes=self.routes,
            passthrough=passthrough,
            pipeline=self.pipeline,
            inferring=Inferring(self.pipeline, exchange, self.telemetry, monotonic),
            directory=http.directory,
            telemetry=self.telemetry,
            readiness=self.readiness,
            loaded=self._loaded,
            ticker=monotonic,
            buffered=self.buffered,
            reception=reception,
            proxies=http.proxies,
        )
        health = Health(lambda: self.readiness().ready, reception, float(server.body_timeout))
        self._grpc = GrpcListener(server, GrpcDoor(server, ports), health, reception, self._shared)
        for gauge in grpc_gauges(self._grpc.service):
            self.telemetry.watch(gauge)
        with named("server.grpc", server.grpc):
            self.grpc_address = await self._grpc.start(parse_address(server.grpc), certificates)

    async def _listen(self, lane: EdgeLane, certificates: Certificates | None) -> str:
        """Open the HTTP door; where it is."""
        server = self._config.server
        make, address = partial(EdgeConnection, lane), parse_address(server.http)
        with named("server.http", server.http):
            if certificates is None:
                self._server, http = await listen(make, address, self._shared)
                return http
            self._server, http = listen_secured(make, address, certificates, lane, self._shared)
        for gauge in tls_gauges(self._server):
            self.telemetry.watch(gauge)
        return http

    def readiness(self) -> Readiness:
        """Not while draining, nor while a route or the pass-through has no replica that is ready."""
        if self._draining:
            return Readiness(False, "the gateway is draining")
        for name, route in self.routes.items():
            if not any(self._is_up(tier.backend) for tier in route.config.tiers):
                return Readiness(False, f"route {name} has no ready replica")
        if not self.routes and not self._is_up(self._config.passthrough):
            return Readiness(False, f"backend {self._config.passthrough} has no ready replica")
        return Readiness(True)

    async def stop(self) -> None:
        """Turn not ready, serve on for ``server.drain_notice`` so that balancers can see it, let requests in
        flight finish within ``server.drain``, and end everything."""
        self._draining = True
        if self._server is not None:
            notice = float(self._config.server.drain_notice)
            if notice > 0:
                await self._sleep(notice)
            self._server.close()
        if self._rpc_server is not None:
            self._rpc_server.close()
        drain = float(self._config.server.drain)
        draining = [lane.drain(drain) for lane in (self._lane, self._rpc) if lane is not None]
        if self._grpc is not None:
            draining.append(self._grpc.stop(drain))
        await asyncio.gather(*draining)
        if self._listener is not None:
            await self._listener.shutdown(drain)
        if self._admin_server is not None:
            self._admin_server.close()
        if self._admin is not None:
            await self._admin.shutdown(ADMIN_DRAIN_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._exchange is not None:
            self._exchange.close()
        await self.pipeline.close()
        for route in self.routes.values():
            await route.close()
        for home in self.homes.values():
            await home.catalog.close()
            for pool in home.pools:
                await pool.close()

    # -- making the parts -------------------------------------------------------------------------

    async def _open_rpc(self, server: Server, written: str, directory: Directory, exchange: Exchange) -> None:
        """Listen for MessagePack-RPC."""
        methods = Methods(MethodPorts(self.routes, directory, self.readiness, monotonic))
        bytes_max = max((route.body_limits.bytes_max for route in self.routes.values()), default=0)
        options = RpcOptions(
            server.rpc_in_flight_max,
            bytes_max + ENVELOPE_BYTES_MAX,
            BookOptions(server.connections_max, server.connections_per_address_max),
            _times(server),
        )
        self._rpc = RpcLane(RpcDesk(methods, exchange, self.telemetry, self.buffered, monotonic), options)
        for gauge in rpc_gauges(self._rpc):
            self.telemetry.watch(gauge)
        with named("server.rpc", written):
            self._rpc_server, url = await listen(
                partial(RpcConnection, self._rpc), parse_address(written), self._shared
            )
        self.rpc_address = url.removeprefix("http://")

    def _directory(self) -> Directory:
        keys = {}
        for name, caller in self._config.callers.items():
            quota = None if caller.quota is None else quota_of(f"caller:{name}", caller.quota)
            counts = caller.quota is not None and caller.quota.hits_count
            keys[caller.key_sha256] = Caller(name, caller.tenant, quota, counts)
        return Directory(keys, self._config.server.anonymous)

    # -- what the parts tell ----------------------------------------------------------------------

    def _is_up(self, backend: str) -> bool:
        return any(state.ready and state.breaker != "open" for state in self.homes[backend].pool.states())

    def _breaker_changed(self, backend: str, replica: str, model: str, change: Change) -> None:
        words = {"before": change.before, "state": change.after, "reason": change.reason, "cause": change.cause}
        _log.warning("breaker", backend=backend, replica=replica, model=model, **words)

    def _model_changed(self, backend: str, model: str) -> None:
        for pool in self.homes[backend].pools:
            pool.forget(model)
        for route in self.routes.values():
            if route.serves(backend, model):
                route.turn()
                _log.warning("epoch", route=route.name, backend=backend, model=model, epoch=route.epoch)

    def _loaded(self, model: str) -> None:
        """A caller loaded or unloaded a model through us: no need to wait for the next poll to see it."""
        self._model_changed(self._config.passthrough, model)


async def run(
    config: Config, announce: Callable[[str], None], stopping: asyncio.Event, shared: bool = False
) -> None:
    """Run a gateway until ``stopping`` is set; ``announce`` gets one line when it is ready.

    Raises OSError when an address cannot be listened on, Unusable when the certificate cannot be used.
    """
    gateway = Gateway(config, shared)
    try:
        http, admin = await gateway.start()
        doors = {"http": http, "grpc": gateway.grpc_address, "rpc": gateway.rpc_address, "admin": admin}
        announce(f"tailrace ready {' '.join(f'{name}={url}' for name, url in doors.items() if url)}")
        await stopping.wait()
        _log.info("draining", seconds=float(config.server.drain))
    finally:
        await gateway.stop()


def serve(config: Config, announce: Callable[[str], None], worker: int | None = None) -> int:
    """Run a gateway until SIGTERM or SIGINT; returns the process's exit code.

    ``worker``: the number of a supervisor's worker, which ends when its standard input does.
    """
    set_up(config.log, worker)
    try:
        require_strict_parser()
    except ParserMissing as error:
        print(f"tailrace: {error}", file=sys.stderr)
        return 1
    if config.server.allow == ALLOW_ALL:
        _log.warning("callers may change the servers behind this gateway", allow=ALLOW_ALL)

    short = raise_open_files(config)
    if short:
        _log.warning("callers may be refused for want of open files", reason=short)
    keep_freed_memory()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong there is told by us, once and in our format

    def ready(line: str) -> None:
        set_start_aside()
        announce(line)

    async def main() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        if worker is not None:
            loop.add_reader(sys.stdin.fileno(), stopping.set)  # nobody writes there: readable means its end
        try:
            await run(config, ready, stopping, shared=worker is not None)
        finally:
            if worker is not None:
                loop.remove_reader(sys.stdin.fileno())

    try:
        uvloop.run(main())
    except Unusable as unusable:
        for fault in unusable.faults:
            print(f"tailrace: {fault}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"tailrace: cannot listen: {error}", file=sys.stderr)
        return 1
    return 0


async def kept_up(run: Run, interval: float, sleep: Sleep) -> None:
    """Run a background loop, and again ``interval`` seconds after a bug of ours has ended it.

    Without the catalog's polls an old model's answers would go on as fresh, so a bug there must not be its end.
    """
    while True:
        try:
            await run(interval, sleep)
        except Exception:
            _log.exception("background task failed")
        await sleep(interval)


def _edge_options(server: Server) -> EdgeOptions:
    header_bytes_max = int(server.header_bytes_max)
    return EdgeOptions(header_bytes_max, server.connections_max, server.connections_per_address_max, _times(server))


def _times(server: Server) -> Times:
    return Times(
        head=float(server.head_timeout),
        body=float(server.body_timeout),
        idle=float(server.idle_timeout),
        write=float(server.write_timeout),
        answer=float(server.passthrough_timeout),
    )


async def _sweep(lane: EdgeLane | RpcLane, interval: float, sleep: Sleep) -> None:
    while True:
        await sleep(interval)
        lane.sweep(monotonic())


def _complain(task: asyncio.Task[None]) -> None:
    """A background task ends only by being cancelled; anything else is our bug, and must be seen."""
    if not task.cancelled() and task.exception() is not None:
        _log.error("background task died", error=repr(task.exception()))
