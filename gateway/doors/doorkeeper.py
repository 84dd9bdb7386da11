"""The doors of a gateway: opened one after the other, handed from one configuration to the next, and closed.

Rule of this file: it makes what a door consists of and joins it; what is behind the doors comes as one value
(``ports.py``), and a reload hands another to all of them in one turn of the event loop. It decides nothing about a
request. The admin port is none of its doors: that is there for as long as there is something to be told.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from degrade.deadline import Ticker
from gateway.address import parse_address
from gateway.background import kept, sweep
from gateway.codec.ndarray import plain_bytes_max
from gateway.config import Config
from gateway.config_server import Server
from gateway.doors.book import BookOptions
from gateway.doors.certificates import RENEWAL_SECONDS, Certificates
from gateway.doors.edge import EdgeConnection
from gateway.doors.handshakes import Handshakes
from gateway.doors.head import HeadBounds, Heads
from gateway.doors.http import HttpDoor
from gateway.doors.lane import Clocks, Desk, EdgeLane, EdgeOptions, Times
from gateway.doors.listener import Listener, listen, listen_secured, named
from gateway.doors.methods import Methods
from gateway.doors.passthrough import RELAYED_BYTES_MAX
from gateway.doors.ports import Ports
from gateway.doors.rpc import RpcConnection
from gateway.doors.rpc_lane import ENVELOPE_BYTES_MAX, RpcDesk, RpcLane, RpcOptions
from gateway.memory import resident
from gateway.operate.gauges import grpc_gauges, lane_gauges, rpc_gauges, tls_gauges
from gateway.route import Route
from gateway.service import Watched

if TYPE_CHECKING:
    from gateway.doors.grpc import GrpcDoor
    from gateway.doors.grpc_listener import GrpcListener

SWEEP_SECONDS: Final = 0.5
"""How often slow peers are looked for; how late they may be cut."""


class Doorkeeper:
    """The HTTP door, and where they are configured the MessagePack-RPC and the gRPC door. Make it inside the event loop
    that it is to live in."""

    def __init__(self, config: Config, ports: Ports, wall: Ticker, shared: bool) -> None:
        """``wall``: seconds of the civil clock; ``shared``: other workers listen on the same port."""
        server = config.server
        self.config, self.ports = config, ports
        """What is in force."""
        self._wall = wall
        self._shared = shared
        self._door = HttpDoor(server, ports)
        self.listener = Listener(self._door.handle, int(server.header_bytes_max), server.connections_max)
        self.lane = EdgeLane(self.desk(), Clocks(ports.ticker, wall), _edge_options(server))
        self._server: asyncio.Server | Handshakes | None = None
        self._methods = Methods(ports)
        self.rpc: RpcLane | None = None
        self._rpc_server: asyncio.Server | None = None
        self._grpc_door: GrpcDoor | None = None
        self.grpc: GrpcListener | None = None
        self.certificates: Certificates | None = None
        self.rpc_address = ""
        """Where the MessagePack-RPC door is, once open: HOST:PORT or unix:PATH; empty if there is none."""
        self.grpc_address = ""
        """The same of the gRPC door."""
        self.is_open = False
        """Whether new connections are accepted."""

    async def open(self) -> str:
        """Listen at every door; where the HTTP door is.

        Raises OSError when an address cannot be listened on, Unusable when the certificate cannot be used.
        """
        server = self.config.server
        certificates = self.certificates = None if server.tls is None else Certificates(server.tls)
        self.lane.answers.set_date(self._wall())
        for gauge in lane_gauges(self.lane):
            self.ports.telemetry.watch(gauge)
        http = await self._open_http(server, certificates)
        if server.rpc is not None:
            await self._open_rpc(server.rpc)
        if server.has_grpc:
            await self._open_grpc(server, certificates)
        return http

    def beside(self) -> list[asyncio.Task[None]]:
        """What runs beside the requests: slow peers are cut, certificates renewed. Ended by being cancelled."""
        ticker = self.ports.ticker
        lanes = [lane for lane in (self.lane, self.rpc) if lane is not None]
        tasks = [kept(partial(sweep, lane, ticker), SWEEP_SECONDS) for lane in lanes]
        if self.certificates is not None:
            tasks.append(kept(self.certificates.run, RENEWAL_SECONDS))
        return tasks

    def take(self, config: Config, ports: Ports) -> None:
        """Answer by these from now on, at every door; what is in work goes on by those that it began with."""
        self.config, self.ports = config, ports
        self._door.take(config.server, ports)
        self.lane.take(self.desk())
        self._methods.take(ports)
        if self.rpc is not None:
            self.rpc.options = _rpc_options(config, ports)
        if self._grpc_door is not None:
            self._grpc_door.take(config.server, ports)

    async def close(self, seconds: float) -> None:
        """Accept nobody any more, let requests in work finish for so long, and end all connections."""
        self.is_open = False
        for server in (self._server, self._rpc_server):
            if server is not None:
                server.close()
        draining = [lane.drain(seconds) for lane in (self.lane, self.rpc) if lane is not None]
        if self.grpc is not None:
            draining.append(self.grpc.stop(seconds))
        await asyncio.gather(*draining)
        await self.listener.shutdown(seconds)

    def desk(self) -> Desk:
        """Who answers on the edge lane, by what is in force."""
        server, ports = self.config.server, self.ports
        relayed_bytes_max = min(RELAYED_BYTES_MAX, int(server.passthrough_bytes_max))
        bounds = HeadBounds(int(server.header_bytes_max), relayed_bytes_max)
        heads = Heads(ports.routes, ports.directory, bounds, ports.proxies, server.edge, ports.endpoints)
        behind, pool = self.listener.behind, ports.passthrough.pool
        return Desk(heads, ports.exchange, ports.telemetry, ports.buffered, behind, pool, ports.proxies)

    async def _open_http(self, server: Server, certificates: Certificates | None) -> str:
        make, address = partial(EdgeConnection, self.lane), parse_address(server.http)
        with named("server.http", server.http):
            if certificates is None:
                self._server, http = await listen(make, address, self._shared)
            else:
                self._server, http = listen_secured(make, address, certificates, self.lane, self._shared)
        self.is_open = True
        if isinstance(self._server, Handshakes):
            for gauge in tls_gauges(self._server):
                self.ports.telemetry.watch(gauge)
        return http

    async def _open_rpc(self, written: str) -> None:
        ports = self.ports
        desk = RpcDesk(self._methods, ports.exchange, ports.telemetry, ports.buffered, ports.ticker)
        self.rpc = RpcLane(desk, _rpc_options(self.config, ports))
        for gauge in rpc_gauges(self.rpc):
            ports.telemetry.watch(gauge)
        with named("server.rpc", written):
            make = partial(RpcConnection, self.rpc)
            self._rpc_server, url = await listen(make, parse_address(written), self._shared)
        self.rpc_address = url.removeprefix("http://")

    async def _open_grpc(self, server: Server, certificates: Certificates | None) -> None:
        """grpc is loaded only where it is used: it takes its time, and some 30 MB."""
        from gateway.doors.grpc import GrpcDoor
        from gateway.doors.grpc_health import Health
        from gateway.doors.grpc_listener import GrpcListener
        from gateway.doors.grpc_sockets import Sockets
        from gateway.doors.reception import Reception, ReceptionPorts

        ports = self.ports
        coming = ReceptionPorts(ports.buffered, resident, self._bytes_kept, Sockets().received, ports.ticker)
        reception = Reception(coming, server.message_bytes_max)
        self._grpc_door = GrpcDoor(server, ports, reception)
        told = self._grpc_door.deliver
        health = Health(lambda: self.ports.readiness().ready, reception, told, float(server.body_timeout))
        self.grpc = GrpcListener(server, self._grpc_door, health, reception, self._shared)
        for gauge in grpc_gauges(self.grpc.service):
            ports.telemetry.watch(gauge)
        with named("server.grpc", server.grpc):
            self.grpc_address = await self.grpc.start(parse_address(server.grpc), certificates)

    def _bytes_kept(self) -> int:
        """Of requests, and of answers in all caches."""
        services: tuple[Watched, ...] = (*self.ports.routes.values(), *self.ports.endpoints.values())
        caches = (service.cache for service in services)
        return self.ports.buffered.bytes + sum(cache.bytes_used for cache in caches if cache is not None)


def _edge_options(server: Server) -> EdgeOptions:
    header_bytes_max = int(server.header_bytes_max)
    return EdgeOptions(header_bytes_max, server.connections_max, server.connections_per_address_max, _times(server))


def _rpc_options(config: Config, ports: Ports) -> RpcOptions:
    server = config.server
    limits = [route.body_limits for route in ports.routes.values()]
    return RpcOptions(
        server.rpc_in_flight_max,
        max((each.bytes_max for each in limits), default=0) + ENVELOPE_BYTES_MAX,
        max((plain_bytes_max(each.message) for each in limits), default=0) + ENVELOPE_BYTES_MAX,
        {name: _places(config, route) for name, route in ports.routes.items()},
        BookOptions(server.connections_max, server.connections_per_address_max),
        _times(server),
    )


def _places(config: Config, route: Route) -> int:
    """How many calls the replicas of a route's tiers take at once: of the tier that takes the fewest."""
    backends = [config.backends[tier.backend] for tier in route.config.tiers]
    return min(each.connections_max * len(each.http or each.grpc) for each in backends)


def _times(server: Server) -> Times:
    return Times(
        head=float(server.head_timeout),
        body=float(server.body_timeout),
        idle=float(server.idle_timeout),
        write=float(server.write_timeout),
        answer=float(server.passthrough_timeout),
    )
