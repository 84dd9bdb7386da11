"""The composition root: from a configuration to a running gateway, and back down.

Rule of this file: the only place that makes the parts and joins them (what a door consists of is
``doors/doorkeeper.py``'s). No decision about a request is taken here. Start order: what must not fail (parser,
listeners) first, then probes and polls, which may fail as often as they like; a gateway starts while every backend is
down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from degrade.breaker import Change
from degrade.brownout import BrownoutOptions
from degrade.deadline import Deadline
from gateway.address import parse_address
from gateway.admission.ratelimit import Limiter
from gateway.background import Run, Sleep, kept
from gateway.config import Config
from gateway.doors.about import Readiness
from gateway.doors.buffered import Buffered
from gateway.doors.doorkeeper import Doorkeeper
from gateway.doors.exchange import Exchange
from gateway.doors.listener import ADMIN_CONNECTIONS_MAX, ADMIN_DRAIN_SECONDS, Listener, listen, named
from gateway.doors.ports import Ports
from gateway.homes import Makings
from gateway.learning import Home
from gateway.notes import BEAT_SECONDS, Notes
from gateway.operate.admin import Shown, admin_port
from gateway.operate.gauges import (
    chaos_gauges,
    gauges,
    notes_gauges,
    reload_gauges,
    second_gauges,
    snapshot_gauges,
    table_gauges,
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
from gateway.till import Till

if TYPE_CHECKING:
    from gateway.operate.faults import Faults
    from gateway.tables import Table

READY_LOOK_SECONDS: Final = 1.0
"""How often a gateway that has not been ready yet looks whether it is."""

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
        self._draining = False
        self._was_ready = False
        self._notes: Notes | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._keeping: dict[Home | Table, list[asyncio.Task[None]]] = {}  # probes, polls, and ears for writes
        self._retiring: set[asyncio.Task[None]] = set()  # with backends, which keep connections
        self._retiring_routes: set[asyncio.Task[None]] = set()
        self._admin: Listener | None = None
        self._admin_server: asyncio.Server | None = None
        self.buffered = Buffered(int(config.server.buffered_bytes_max))
        self.telemetry = Telemetry(self._ticker, logs_requests=config.log.level == "debug")
        self._makings = Makings(config.server, self._around, self._faults)
        self._watching = Watching(self._breaker_changed, self._model_changed, self._model_doubted)
        self.standing = stand(config, self._makings, homes(config, self._makings, self._watching))
        self._stores = Stores(self._around, self._faults)
        self.snapshots = snapshots_of(config, self._around, self._faults)
        self._share(self.standing)
        self._strain = Strain(lambda: self.homes, self._brownout, self._ticker)
        self._limiter = Limiter(config.server.quota_keys_max)
        self.pipeline = Pipeline(Till(self._limiter, self._ticker), self.telemetry, self._ticker, self._around.chance)
        self._exchange = Exchange(self.pipeline, self._ticker, self.buffered)
        self.doors = Doorkeeper(config, self._ports(self.standing), self._around.wall, shared)
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
        self._notes = self._exchange.notes = notes
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
            config, facts = self.standing.config, self.snapshots.facts
            if facts.seed(config, self.homes, await facts.remembered(config)):
                if facts.are_whole:
                    self._ready()  # it has something to go on with, whoever is away
                # Before anybody is answered, for what had been seen only after that might be another model.
                deadline = Deadline.after(self._ticker(), FIRST_LOOK_SECONDS)
                await asyncio.gather(*(home.catalog.look_once(deadline) for home in self.homes.values()))
            await self.snapshots.begin()
        http = await self.doors.open()
        server = self.standing.config.server
        state = (lambda: self.services, lambda: self.homes, self.telemetry, lambda: self._draining)
        address = parse_address(server.admin)
        shown = Shown(*state, self.reloads, self._faults, self.snapshots, address.host, lambda: self.standing.tables)
        self._admin = Listener(admin_port(shown).handle, int(server.header_bytes_max), ADMIN_CONNECTIONS_MAX)
        with named("server.admin", server.admin):
            self._admin_server, admin_url = await listen(self._admin, address)
        self._tasks += [*self.doors.beside(), kept(self._strain.run, LOOK_SECONDS)]
        # One look before anyone is told that we are ready: until then readiness would be a guess.
        await self._probe(self.homes.values())
        if not self.lacking():
            self._ready()
        self._tasks.append(kept(self._heed_ready, READY_LOOK_SECONDS))
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
            remembered = {} if self.snapshots is None else await self.snapshots.facts.remembered(config)
            if self._draining:
                raise ConfigError(("the gateway is draining",))
        except BaseException:
            for home in new:
                await home.close()
            raise
        # From here to the end no await: whoever asks next is answered by all of the new or, before, all of the old.
        before = self.standing
        after = self.standing = stand(config, self._makings, made, before)
        for name, home in self.homes.items():
            home.catalog.keep(config.models_of(name))
        self._share(after)
        self._begin_sharing()
        if self.snapshots is not None:
            self.snapshots.facts.seed(config, self.homes, remembered)
            self.snapshots.keep()
        self._limiter.forget(changed_quotas(before, after))
        self.buffered.bytes_max = int(config.server.buffered_bytes_max)
        self.doors.take(config, self._ports(after))
        self._keep(after)
        self._retire(retired(before, after), float(before.config.server.passthrough_timeout))

    def readiness(self) -> Readiness:
        """Not while draining, nor before each route and endpoint has had a replica that is ready, or is known from an
        earlier process; by ``server.ready`` nor while one of them has none. With nothing but the pass-through nor while
        that has none: it keeps nothing."""
        if self._draining:
            return Readiness(False, "the gateway is draining")
        lacking = self.lacking()
        config = self.standing.config
        if not lacking:
            self._ready()
        needs = config.server.ready == "backends" or not self._has_been_ready or not self.services
        return Readiness(False, lacking) if lacking and needs else Readiness(True)

    @property
    def _has_been_ready(self) -> bool:
        """Whether this gateway has, in this process or another worker."""
        return self._was_ready or (self._notes is not None and self._notes.was_ready)

    def _ready(self) -> None:
        self._was_ready = True
        if self._notes is not None:
            self._notes.was_ready = True

    async def _heed_ready(self, interval: float, sleep: Sleep) -> None:
        """Once, whoever asks: backends may be away again before a balancer does."""
        if not self._was_ready and not self.lacking():
            self._ready()

    def lacking(self) -> str:
        """Who has no replica that is ready; "" if nobody."""
        for name, route in self.routes.items():
            if not any(self._is_up(tier.backend) for tier in route.config.tiers):
                return f"route {name} has no ready replica"
        config = self.standing.config
        for name, endpoint in config.endpoints.items():
            if not self._is_up(config.backend_of(endpoint)):
                return f"endpoint {name} has no ready replica"
        passthrough = config.passthrough
        if not self.services and not self._is_up(passthrough):
            return f"backend {passthrough} has no ready replica"
        return ""

    async def stop(self) -> None:
        """Turn not ready, serve on for ``server.drain_notice`` so that balancers can see it, let requests in
        flight finish within ``server.drain``, and end everything."""
        self._draining = True
        server = self.standing.config.server
        if self.doors.is_open and server.drain_notice > 0:
            await self._sleep(float(server.drain_notice))
        drain, began = float(server.drain), self._ticker()
        await self.doors.close(drain)
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

    def _model_doubted(self, backend: str, model: str) -> None:
        self._model_changed(backend, model, is_known=False)

    def _model_changed(self, backend: str, model: str, is_known: bool = True) -> None:
        home = self.homes.get(backend)
        for pool in () if home is None else home.pools:
            pool.forget(model)
        for route in self.routes.values():
            if route.serves(backend, model):
                route.turn(is_known)
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
