"""A backend's replicas and a table's store from their configuration: who speaks what, with which bounds.

Rule of this file: it makes parts and asks nothing. With ``http`` routes ask over HTTP, without it over gRPC; the
gRPC door passes on over gRPC where that is configured, and over HTTP where it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from degrade.breaker import BreakerOptions
from gateway.config_backends import Backend
from gateway.config_server import Server
from gateway.learning import Home
from gateway.surroundings import Surroundings
from tiers.backends.triton_http import TritonHttp, TritonOptions
from tiers.catalog import Catalog, CatalogOptions
from tiers.pool import OnChange, Pool, PoolOptions
from tiers.seat import Replica
from tiers.watch import Probe

if TYPE_CHECKING:
    from gateway.config_tables import TableConfig
    from gateway.operate.faults import Faults
    from gateway.stores import Sources
    from gateway.tables import Table
    from tiers.backends.triton_grpc import GrpcOptions, TritonGrpc

SEED_BYTES: Final = 16
"""Of a near cache's hashing."""


class Told(msgspec.Struct, frozen=True):
    """Who is told of one backend: of its breakers, of models that have changed, and of those that may have been others
    before they were looked at."""

    breaker: OnChange
    model: Callable[[str], None]
    doubt: Callable[[str], None]


class Makings:
    """What every backend's parts have in common."""

    def __init__(self, server: Server, around: Surroundings, faults: Faults | None = None) -> None:
        """``faults``: what stands before replicas and stores, where that is configured; None: nothing does."""
        self._faults = faults
        self._server = server
        self._around = around
        self._ticker = around.ticker
        self._sources: Sources | None = None

    def home(self, name: str, backend: Backend, has_models: bool, told: Told) -> Home:
        """The parts of one backend; call it within the event loop that they are to live in. ``has_models``: routes
        name some of it, so it must be a Triton."""
        from tiers.rpc import RpcPool

        speaking = self._speaking_grpc(backend)
        replicas: list[Replica] = []
        replicas += [TritonHttp(url, _http_options(backend)) for url in backend.http] or speaking
        asked = replicas
        if self._faults is not None:
            asked = [self._faults.replica(name, replica) for replica in replicas]
        pool = self._pool(asked, backend, told.breaker, probe=probe_of(backend, has_models))
        catalog = Catalog(asked, CatalogOptions(), self._ticker, told.model, pool.may_have_answered, told.doubt)
        pool.gates.capacity = catalog.capacity
        if not self._server.has_grpc:
            return Home(pool, catalog)
        if not backend.http:
            return Home(pool, catalog, RpcPool(pool, speaking, self._ticker))
        if speaking:
            spoken = self._pool(speaking, backend, told.breaker, backend.http)
            return Home(pool, catalog, RpcPool(spoken, speaking, self._ticker))
        from tiers.backends.over_http import SpeaksHttp

        return Home(pool, catalog, RpcPool(pool, [SpeaksHttp(replica) for replica in replicas], self._ticker))

    def table(self, name: str, config: TableConfig) -> Table:
        """One feature table; it connects to nothing yet. Clients of stores are loaded only here."""
        from gateway.stores import Sources
        from gateway.tables import Table

        if self._sources is None:
            self._sources = Sources(self._ticker)
        wrap = None if self._faults is None else partial(self._faults.store, f"tables.{name}")
        source = self._sources.source(config, wrap)
        return Table(name, config, source, self._ticker, self._around.secret(SEED_BYTES))

    async def close(self) -> None:
        """Close what parts share."""
        if self._sources is not None:
            await self._sources.close()

    def _speaking_grpc(self, backend: Backend) -> list[TritonGrpc]:
        """Those asked over gRPC: none if nobody would ask them. grpc itself is loaded only here and at its door."""
        if not backend.grpc or (backend.http and not self._server.has_grpc):
            return []
        from tiers.backends.triton_grpc import TritonGrpc

        return [TritonGrpc(target, grpc_options(backend, self._server)) for target in backend.grpc]

    def _pool(
        self,
        replicas: list[Replica] | list[TritonGrpc],
        backend: Backend,
        on_breaker: OnChange,
        labels: Sequence[str] = (),
        probe: Probe = Probe(),  # noqa: B008 - frozen
    ) -> Pool:
        return Pool(replicas, pool_options(backend, probe), self._ticker, self._around.chance, on_breaker, labels)


def pool_options(backend: Backend, probe: Probe = Probe()) -> PoolOptions:  # noqa: B008 - frozen
    """How a backend's replicas are chosen, and left alone."""
    breaker = backend.breaker
    options = BreakerOptions(
        consecutive_failures=breaker.consecutive_failures,
        failure_ratio=breaker.failure_ratio,
        volume_min=breaker.volume_min,
        window=float(breaker.window),
        open_seconds=float(breaker.open),
        open_seconds_max=float(breaker.open_max),
    )
    replicas = len(backend.http) or len(backend.grpc)
    return PoolOptions(
        breaker=options, probe=probe, gates=backend.concurrency.options(replicas, backend.connections_max)
    )


def probe_of(backend: Backend, has_models: bool) -> Probe:
    """How replicas are asked over HTTP whether they are ready. Where routes ask for models the question is Triton's
    own, and who does not know it is not ready; what only passes through may be any server."""
    if not backend.http:
        return Probe()
    if backend.probe_path is not None:
        return Probe(backend.probe_path)
    return Probe(foreign=not has_models)


def _http_options(backend: Backend) -> TritonOptions:
    return TritonOptions(
        connections_max=backend.connections_max,
        passthrough_connections_max=backend.passthrough_connections_max,
        connect_timeout=float(backend.connect_timeout),
    )


def grpc_options(backend: Backend, server: Server) -> GrpcOptions:
    """How a replica is asked over gRPC."""
    from tiers.backends.triton_grpc import GrpcOptions

    return GrpcOptions(
        calls_max=backend.connections_max,
        passthrough_calls_max=backend.passthrough_connections_max,
        connect_timeout=float(backend.connect_timeout),
        message_bytes_max=int(server.grpc_message_bytes_max),
        silence_max=float(server.passthrough_timeout),
    )
