"""The composition root: from a configuration to a running gateway, and back down.

Rule of this file: the only place that makes the parts and joins them. No decision about a request is
taken here. Start order: what must not fail (parser, listeners) first, then probes and polls, which may
fail as often as they like; a gateway starts while every backend is down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from degrade.breaker import Change
from degrade.brownout import BrownoutOptions
from degrade.deadline import Deadline
from gateway.address import parse_address
from gateway.admission.ratelimit import Limiter
from gateway.background import Run, Sleep, kept, sweep
from gateway.codec.ndarray import plain_bytes_max
from gateway.config import Config
from gateway.config_server import Server
from gateway.doors.about import Readiness
from gateway.doors.book import BookOptions
from gateway.doors.buffered import Buffered
from gateway.doors.certificates import RENEWAL_SECONDS, Certificates
from gateway.doors.edge import EdgeConnection
from gateway.doors.exchange import Exchange
from gateway.doors.handshakes import Handshakes
from gateway.doors.head import HeadBounds, Heads
from gateway.doors.http import HttpDoor
from gateway.doors.lane import Clocks, Desk, EdgeLane, EdgeOptions, Times
from gateway.doors.listener import (
    ADMIN_CONNECTIONS_MAX,
    ADMIN_DRAIN_SECONDS,
    Listener,
    listen,
    listen_secured,
    named,
)
from gateway.doors.methods import MethodPorts, Methods
from gateway.doors.passthrough import RELAYED_BYTES_MAX
from gateway.doors.ports import Ports
from gateway.doors.rpc import RpcConnection
from gateway.doors.rpc_lane import ENVELOPE_BYTES_MAX, RpcDesk, RpcLane, RpcOptions
from gateway.homes import Makings
from gateway.learning import Home
from gateway.memory import resident
from gateway.notes import BEAT_SECONDS, Notes
from gateway.operate.admin import Shown, admin_port
from gateway.operate.gauges import (
    chaos_gauges,
    gauges,
    grpc_gauges,
    lane_gauges,
    notes_gauges,
    reload_gauges,
    rpc_gauges,
    second_gauges,
    snapshot_gauges,
    table_gauges,
    tls_gauges,
)
from gateway.operate.load_gauges import load_gauges
from gateway.operate.telemetry import Telemetry
from gateway.pipeline import Pipeline
from gateway.reload import Reloads
from gateway.route import Route
from gateway.service import Watched
from gateway.sharing import Stores
from gateway.snapshots import snapshots_of
from gateway.sources import ConfigError, Loaded
from gateway.standing import Retired, Standing, Watching, changed_quotas, homes, retired, stand
from gateway.strain import LOOK_SECONDS, Strain
from gateway.surroundings import Surroundings, real

if TYPE_CHECKING:
    from gateway.doors.grpc import GrpcDoor
    from gateway.doors.grpc_listener import GrpcListener
    from gateway.operate.faults import Faults
    from gateway.tables import Table

SWEEP_SECONDS: Final = 0.5
"""How often slow peers are looked for; how late they may be cut."""

FIRST_LOOK_SECONDS: Final = 0.5
"""For the models to say that they are what a snapshot tells of them; a start waits no longer for one that is silent."""

LAST_PASS_SECONDS: Final = 1.0
"""For a last pass of the snapshot, where requests have taken all of ``server.drain``."""

TRACKER_SECONDS: Final = 1.0
"""Before a table's writes are listened to again after a bug of ours."""

RETIREMENTS_MAX: Final = 8
"""Reloads whose replaced backends are still at work: each keeps connections. Only another change of backends waits."""

_log = structlog.get_logger("tailrace")


class Gateway:
    """All parts of one running gateway. Make it inside the event loop that it is to live in."""

    def __init__(
        self,
        config: Config,
        shared: bool = False,
        sleep: Sleep = asyncio.sleep,
        reread: Callable[[], Loaded] | None = None,
        around: Surroundings | None = None,
    ) -> None:
        """``shared``: other workers listen on the same port. ``sleep``: how the notice of draining passes. ``reread``:
        how the configuration is read again; None: it is what it is. ``around``: None: this machine."""
        self._around, self._faults = _surrounded(config, real() if around is None else around)
        self._ticker = self._around.ticker
        self._sleep = sleep
        self._shared = shared
        self._draining = False
        self._tasks: list[asyncio.Task[None]] = []
        self._keeping: dict[Home | Table, list[asyncio.Task[None]]] = {}  # probes, polls, and ears for writes
        self._retiring: set[asyncio.Task[None]] = set()  # with backends, which keep connections
        self._retiring_routes: set[asyncio.Task[None]] = set()
        self._lane: EdgeLane | None = None
        self._door: HttpDoor | None = None
        self._methods: Methods | None = None
        self._rpc: RpcLane | None = None
        self._rpc_server: asyncio.Server | None = None
        self.rpc_address = ""
        """Where the MessagePack-RPC door is, once started, if it is open: HOST:PORT or unix:PATH."""
        self._listener: Listener | None = None
        self._admin: Listener | None = None
        self._server: asyncio.Server | Handshakes | None = None
        self._admin_server: asyncio.Server | None = None
        self.certificates: Certificates | None = None
        self._grpc_door: GrpcDoor | None = None
        self._grpc: GrpcListener | None = None
        self.grpc_address = ""
        """Where the gRPC door listens; empty if there is none."""
        self.buffered = Buffered(int(config.server.buffered_bytes_max))
        self.telemetry = Telemetry(self._ticker, logs_requests=config.log.level == "debug")
        self._makings = Makings(config.server, self._around, self._faults)
        self._watching = Watching(self._breaker_changed, self._model_changed)
        self.standing = stand(config, self._makings, homes(config, self._makings, self._watching))
        self._stores = Stores(self._around, self._faults)
        self.snapshots = snapshots_of(config, self._around, self._faults)
        self._share(self.standing)
        self._strain = Strain(lambda: self.homes, self._brownout, self._ticker)
        self._limiter = Limiter(config.server.quota_keys_max)
        self.pipeline = Pipeline(self._limiter, self.telemetry, self._ticker, self._around.chance)
        self._exchange = Exchange(self.pipeline, self._ticker, self.buffered)
        self.reloads = None if reread is None else Reloads(config, reread, self.take)
        shown = (lambda: self.services, lambda: self.homes, lambda: self._draining)
        of_reloads = () if self.reloads is None else reload_gauges(self.reloads)
        of_tables = table_gauges(lambda: self.standing.tables)
        of_seconds = second_gauges(lambda: self.services, self._stores.states)
        of_snapshots = () if self.snapshots is None else snapshot_gauges(self.snapshots, lambda: self.services)
        of_load = load_gauges(lambda: self.homes, self._strain)
        of_others = (*of_tables, *of_seconds, *of_snapshots, *of_reloads, *chaos_gauges(self._faults))
        for gauge in (*gauges(*shown), *of_load, *of_others):
            self.telemetry.watch(gauge)

    def note(self, notes: Notes) -> None:
        """Note what is in work, for whoever asks what this process has died of, and that it lives."""
        self._exchange.notes = notes
        self._tasks.append(kept(notes.beat, BEAT_SECONDS))
        for gauge in notes_gauges(notes):
            self.telemetry.watch(gauge)

    @property
    def routes(self) -> Mapping[str, Route]:
        """The routes that are answered now."""
        return self.standing.routes

    @property
    def services(self) -> Mapping[str, Watched]:
        """The routes and the endpoints that are answered now."""
        return self.standing.services

    @property
    def homes(self) -> Mapping[str, Home]:
        """The backends that are asked now."""
        return self.standing.homes

    async def start(self) -> tuple[str, str]:
        """Listen, probe and poll; returns the addresses of the HTTP door and the admin port.

        Raises OSError when an address cannot be listened on, Unusable when the certificate cannot be used.
        """
        if self.snapshots is not None:
            await self.snapshots.open()
            if self.snapshots.seed(self.standing.config, self.homes):
                # Before anybody is answered, for what had been seen only after that might be another model.
                deadline = Deadline.after(self._ticker(), FIRST_LOOK_SECONDS)
                await asyncio.gather(*(home.catalog.look_once(deadline) for home in self.homes.values()))
            await self.snapshots.begin()
        server = self.standing.config.server
        certificates = self.certificates = None if server.tls is None else Certificates(server.tls)
        ports = self._ports(self.standing)
        self._door = HttpDoor(server, ports)
        header_bytes_max = int(server.header_bytes_max)
        self._listener = Listener(self._door.handle, header_bytes_max, server.connections_max)
        self._lane = EdgeLane(self._desk(self.standing), Clocks(self._ticker, self._around.wall), _edge_options(server))
        for gauge in lane_gauges(self._lane):
            self.telemetry.watch(gauge)
        http = await self._listen(self._lane, certificates)
        if server.rpc is not None:
            await self._open_rpc(server, server.rpc)
        if server.has_grpc:
            await self._start_grpc(ports, certificates)
        state = (lambda: self.services, lambda: self.homes, self.telemetry, lambda: self._draining)
        shown = Shown(*state, self.reloads, self._faults, self.snapshots)
        self._admin = Listener(admin_port(shown).handle, header_bytes_max, ADMIN_CONNECTIONS_MAX)
        with named("server.admin", server.admin):
            self._admin_server, admin_url = await listen(self._admin, parse_address(server.admin))
        for lane in (self._lane, self._rpc):
            if lane is not None:
                self._tasks.append(kept(partial(sweep, lane, self._ticker), SWEEP_SECONDS))
        self._tasks.append(kept(self._strain.run, LOOK_SECONDS))
        if certificates is not None:
            self._tasks.append(kept(certificates.run, RENEWAL_SECONDS))
        # One look before anyone is told that we are ready: until then readiness would be a guess.
        await self._probe(self.homes.values())
        self._keep(self.standing)
        self._begin_sharing()
        return http, admin_url

    async def take(self, config: Config) -> None:
        """Answer by this configuration from now on; requests in work end by the one that they began with.

        Raises ConfigError, and changes nothing, when this is not the time for it.
        """
        if self._draining:
            raise ConfigError(("the gateway is draining",))
        made = homes(config, self._makings, self._watching, self.standing)
        new = [home for name, home in made.items() if self.homes.get(name) is not home]
        try:
            replaces = any(made.get(name) is not home for name, home in self.homes.items())
            if replaces and len(self._retiring) >= RETIREMENTS_MAX:
                said = f"backends that {RETIREMENTS_MAX} reloads have replaced are still at work"
                raise ConfigError((f"{said}; try again later, or leave backends as they are",))
            await self._probe(new)
            if self._draining:
                raise ConfigError(("the gateway is draining",))
        except BaseException:
            for home in new:
                await home.close()
            raise
        # From here to the end no await: whoever asks next is answered by all of the new or, before, all of the old.
        before = self.standing
        after = self.standing = stand(config, self._makings, made, before)
        self._share(after)
        self._begin_sharing()
        if self.snapshots is not None:
            self.snapshots.seed(config, self.homes)
            self.snapshots.keep()
        self._limiter.forget(changed_quotas(before, after))
        self.buffered.bytes_max = int(config.server.buffered_bytes_max)
        ports = self._ports(after)
        assert self._door is not None, "a gateway takes a configuration once it is started"
        assert self._lane is not None
        self._door.take(config.server, ports)
        self._lane.take(self._desk(after))
        if self._methods is not None and self._rpc is not None:
            self._methods.take(self._method_ports(after))
            self._rpc.options = _rpc_options(after)
        if self._grpc_door is not None:
            self._grpc_door.take(config.server, ports)
        self._keep(after)
        self._retire(retired(before, after), float(before.config.server.passthrough_timeout))

    def _ports(self, standing: Standing) -> Ports:
        return Ports(
            routes=standing.routes,
            passthrough=standing.passthrough,
            pipeline=self.pipeline,
            exchange=self._exchange,
            directory=standing.directory,
            telemetry=self.telemetry,
            readiness=self.readiness,
            loaded=self._loaded,
            ticker=self._ticker,
            buffered=self.buffered,
            proxies=standing.proxies,
            endpoints=standing.by_path,
        )

    def _desk(self, standing: Standing) -> Desk:
        server, listener = standing.config.server, self._listener
        assert listener is not None
        relayed_bytes_max = min(RELAYED_BYTES_MAX, int(server.passthrough_bytes_max))
        bounds = HeadBounds(int(server.header_bytes_max), relayed_bytes_max)
        heads = Heads(standing.routes, standing.directory, bounds, standing.proxies, server.edge, standing.by_path)
        pool, proxies = standing.passthrough.pool, standing.proxies
        return Desk(heads, self._exchange, self.telemetry, self.buffered, listener.behind, pool, proxies)

    def _method_ports(self, standing: Standing) -> MethodPorts:
        return MethodPorts(standing.routes, standing.directory, self.readiness, self._ticker)

    async def _start_grpc(self, ports: Ports, certificates: Certificates | None) -> None:
        """grpc is loaded only where it is used: it takes its time, and some 30 MB."""
        from gateway.doors.grpc import GrpcDoor
        from gateway.doors.grpc_health import Health
        from gateway.doors.grpc_listener import GrpcListener
        from gateway.doors.grpc_sockets import Sockets
        from gateway.doors.reception import Reception, ReceptionPorts

        server = self.standing.config.server

        def kept() -> int:
            caches = (service.cache for service in self.services.values())
            return self.buffered.bytes + sum(cache.bytes_used for cache in caches if cache is not None)

        coming = ReceptionPorts(self.buffered, resident, kept, Sockets().received, self._ticker)
        reception = Reception(coming, server.message_bytes_max)
        self._grpc_door = GrpcDoor(server, ports, reception)
        told = self._grpc_door.deliver
        health = Health(lambda: self.readiness().ready, reception, told, float(server.body_timeout))
        self._grpc = GrpcListener(server, self._grpc_door, health, reception, self._shared)
        for gauge in grpc_gauges(self._grpc.service):
            self.telemetry.watch(gauge)
        with named("server.grpc", server.grpc):
            self.grpc_address = await self._grpc.start(parse_address(server.grpc), certificates)

    async def _listen(self, lane: EdgeLane, certificates: Certificates | None) -> str:
        """Open the HTTP door; where it is."""
        server = self.standing.config.server
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
        """Not while draining, nor while a route, an endpoint or the pass-through has no replica that is ready."""
        if self._draining:
            return Readiness(False, "the gateway is draining")
        for name, route in self.routes.items():
            if not any(self._is_up(tier.backend) for tier in route.config.tiers):
                return Readiness(False, f"route {name} has no ready replica")
        config = self.standing.config
        for name, endpoint in config.endpoints.items():
            if not self._is_up(config.backend_of(endpoint)):
                return Readiness(False, f"endpoint {name} has no ready replica")
        passthrough = config.passthrough
        if not self.services and not self._is_up(passthrough):
            return Readiness(False, f"backend {passthrough} has no ready replica")
        return Readiness(True)

    async def stop(self) -> None:
        """Turn not ready, serve on for ``server.drain_notice`` so that balancers can see it, let requests in
        flight finish within ``server.drain``, and end everything."""
        self._draining = True
        if self._server is not None:
            notice = float(self.standing.config.server.drain_notice)
            if notice > 0:
                await self._sleep(notice)
            self._server.close()
        if self._rpc_server is not None:
            self._rpc_server.close()
        drain, began = float(self.standing.config.server.drain), self._ticker()
        draining = [lane.drain(drain) for lane in (self._lane, self._rpc) if lane is not None]
        if self._grpc is not None:
            draining.append(self._grpc.stop(drain))
        await asyncio.gather(*draining)
        if self._listener is not None:
            await self._listener.shutdown(drain)
        left = max(0.0, drain - (self._ticker() - began))
        seconds = [route.second for route in self.routes.values() if route.second is not None]
        await asyncio.gather(*(second.behind.drain(left) for second in seconds))
        if self.snapshots is not None:
            await self.snapshots.close(max(LAST_PASS_SECONDS, drain - (self._ticker() - began)))
        if self._admin_server is not None:
            self._admin_server.close()
        if self._admin is not None:
            await self._admin.shutdown(ADMIN_DRAIN_SECONDS)
        tasks = [*self._tasks, *(task for each in self._keeping.values() for task in each)]
        tasks += [*self._retiring, *self._retiring_routes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._exchange.close()
        await self.pipeline.close()
        standing = self.standing
        await Retired(tuple(standing.homes.values()), standing.answering, tuple(standing.tables.values())).close()
        await self._makings.close()
        await self._stores.close()

    # -- making the parts -------------------------------------------------------------------------

    async def _open_rpc(self, server: Server, written: str) -> None:
        """Listen for MessagePack-RPC."""
        self._methods = Methods(self._method_ports(self.standing))
        desk = RpcDesk(self._methods, self._exchange, self.telemetry, self.buffered, self._ticker)
        self._rpc = RpcLane(desk, _rpc_options(self.standing))
        for gauge in rpc_gauges(self._rpc):
            self.telemetry.watch(gauge)
        with named("server.rpc", written):
            self._rpc_server, url = await listen(
                partial(RpcConnection, self._rpc), parse_address(written), self._shared
            )
        self.rpc_address = url.removeprefix("http://")

    def _share(self, standing: Standing) -> None:
        for route in standing.routes.values():
            self._stores.share(route, standing.config)
        if self.snapshots is not None:
            self.snapshots.share(standing.config, standing.routes, standing.tables, standing.endpoints)

    # -- what runs beside the requests --------------------------------------------------------------

    def _begin_sharing(self) -> None:
        for route in self.routes.values():
            if route.second is not None:
                route.second.start()

    async def _probe(self, made: Iterable[Home]) -> None:
        await asyncio.gather(*(pool.probe_once() for home in made for pool in home.pools))

    def _keep(self, standing: Standing) -> None:
        """Probe and poll the backends that are there and listen for their tables' writes, and no others."""
        runs: dict[Home | Table, tuple[float, Sequence[Run]]] = {}
        for name, home in standing.homes.items():
            interval = float(standing.config.backends[name].probe)
            runs[home] = interval, (*(pool.run for pool in home.pools), home.catalog.run)
        for table in standing.tables.values():
            if table.tracker is not None:
                runs[table] = TRACKER_SECONDS, (table.run,)
        for part in [part for part in self._keeping if part not in runs]:
            for task in self._keeping.pop(part):
                task.cancel()
        for part, (interval, loops) in runs.items():
            if part not in self._keeping:
                self._keeping[part] = [kept(run, interval) for run in loops]

    def _retire(self, old: Retired, seconds_max: float) -> None:
        """What requests may still be at is closed later. Routes alone are few bytes, once their answers are gone."""
        for route in old.routes:
            route.forget()
        if old != Retired():
            task = asyncio.create_task(old.end(self._ticker, asyncio.sleep, seconds_max))
            kind = self._retiring if old.homes else self._retiring_routes
            kind.add(task)
            task.add_done_callback(kind.discard)

    # -- what the parts tell ----------------------------------------------------------------------

    def _is_up(self, backend: str) -> bool:
        return any(state.ready and state.breaker != "open" for state in self.homes[backend].pool.states())

    def _brownout(self) -> BrownoutOptions | None:
        brownout = self.standing.config.brownout
        return brownout.options if brownout.enabled else None

    def _breaker_changed(self, backend: str, replica: str, model: str, change: Change) -> None:
        words = {"before": change.before, "state": change.after, "reason": change.reason, "cause": change.cause}
        _log.warning("breaker", backend=backend, replica=replica, model=model, **words)

    def _model_changed(self, backend: str, model: str) -> None:
        home = self.homes.get(backend)
        for pool in () if home is None else home.pools:
            pool.forget(model)
        for route in self.routes.values():
            if route.serves(backend, model):
                route.turn()
                _log.warning("epoch", route=route.name, backend=backend, model=model, epoch=route.epoch)

    def _loaded(self, model: str) -> None:
        """A caller loaded or unloaded a model through us: no need to wait for the next poll to see it."""
        self._model_changed(self.standing.config.passthrough, model)


def _surrounded(config: Config, around: Surroundings) -> tuple[Surroundings, Faults | None]:
    """What is around, and what makes faults on purpose where that is configured: then time is as it says."""
    if not config.chaos.enabled:
        return around, None
    from gateway.operate.faults import Faults

    faults = Faults(around.ticker)
    return msgspec.structs.replace(around, wall=faults.wall(around.wall)), faults


def _edge_options(server: Server) -> EdgeOptions:
    header_bytes_max = int(server.header_bytes_max)
    return EdgeOptions(header_bytes_max, server.connections_max, server.connections_per_address_max, _times(server))


def _rpc_options(standing: Standing) -> RpcOptions:
    server = standing.config.server
    limits = [route.body_limits for route in standing.routes.values()]
    return RpcOptions(
        server.rpc_in_flight_max,
        max((each.bytes_max for each in limits), default=0) + ENVELOPE_BYTES_MAX,
        max((plain_bytes_max(each.message) for each in limits), default=0) + ENVELOPE_BYTES_MAX,
        {name: _places(standing, route) for name, route in standing.routes.items()},
        BookOptions(server.connections_max, server.connections_per_address_max),
        _times(server),
    )


def _places(standing: Standing, route: Route) -> int:
    """How many calls the replicas of a route's tiers take at once: of the tier that takes the fewest."""
    backends = [standing.config.backends[tier.backend] for tier in route.config.tiers]
    return min(each.connections_max * len(each.http or each.grpc) for each in backends)


def _times(server: Server) -> Times:
    return Times(
        head=float(server.head_timeout),
        body=float(server.body_timeout),
        idle=float(server.idle_timeout),
        write=float(server.write_timeout),
        answer=float(server.passthrough_timeout),
    )
