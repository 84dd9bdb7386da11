"""What one configuration makes of the gateway behind its doors: backends, routes, endpoints, callers, whom it believes.

Rule of this file: a `Standing` is a value; a reload makes another and puts it in the old one's place in one turn of the
event loop. What is the same in both configurations is the same object in both: an unchanged backend keeps its
connections and breakers, an unchanged route or endpoint its answers, flights and epoch. It makes parts and starts
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from degrade.breaker import Change
from degrade.deadline import Ticker
from gateway.admission.auth import Caller, Directory
from gateway.admission.forwarded import Proxies
from gateway.admission.quota import Quota
from gateway.background import Sleep
from gateway.config import Config
from gateway.config_load import priority_of
from gateway.endpoint import Endpoint
from gateway.homes import Makings, Told
from gateway.learning import Home
from gateway.route import Route
from gateway.service import Watched, quota_of

if TYPE_CHECKING:
    from gateway.tables import Table

RETIRING_SECONDS: Final = 0.1
"""Between two looks whether what is no longer used has come to its end."""


class Standing(msgspec.Struct, frozen=True):
    """Everything that is made of one configuration, but for the listeners."""

    config: Config
    homes: Mapping[str, Home]
    tables: Mapping[str, Table]
    routes: Mapping[str, Route]
    endpoints: Mapping[str, Endpoint]
    directory: Directory
    proxies: Proxies

    @property
    def passthrough(self) -> Home:
        """Where that goes which no route answers."""
        return self.homes[self.config.passthrough]

    @property
    def answering(self) -> tuple[Route | Endpoint, ...]:
        """All routes and endpoints."""
        return (*self.routes.values(), *self.endpoints.values())

    @property
    def services(self) -> Mapping[str, Watched]:
        """The same by their names, which are all different."""
        return {**self.routes, **self.endpoints}

    @property
    def by_path(self) -> Mapping[str, Endpoint]:
        """The endpoints by what is posted to."""
        return {endpoint.config.path: endpoint for endpoint in self.endpoints.values()}

    @property
    def quotas(self) -> Mapping[str, Quota]:
        """Every quota by its name."""
        callers = self.config.callers
        own = [quota_of(f"caller:{name}", each.quota) for name, each in callers.items() if each.quota is not None]
        of_routes = [allowance.quota for each in self.answering for allowance in each.allowances]
        return {quota.name: quota for quota in (*own, *of_routes)}


class Watching(msgspec.Struct, frozen=True):
    """Who is told of a backend, by its name; see ``homes.Told``."""

    breaker: Callable[[str, str, str, Change], None]
    model: Callable[[str, str], None]
    doubt: Callable[[str, str], None]


def homes(config: Config, makings: Makings, watching: Watching, before: Standing | None = None) -> dict[str, Home]:
    """The backends' parts; those of ``before`` where nothing has changed."""
    made = {}
    for name, backend in config.backends.items():
        has_models = config.has_models(name)
        if before is not None and before.config.asks_alike(name, backend, has_models):
            made[name] = before.homes[name]
        else:
            told = Told(partial(watching.breaker, name), partial(watching.model, name), partial(watching.doubt, name))
            made[name] = makings.home(name, backend, has_models, told)
    return made


def tables(config: Config, makings: Makings, before: Standing | None = None) -> dict[str, Table]:
    """The feature tables; those of ``before`` where nothing has changed."""
    made = {}
    for name, table in config.tables.items():
        held = None if before is None else before.tables.get(name)
        made[name] = held if held is not None and held.config == table else makings.table(name, table)
    return made


def stand(config: Config, makings: Makings, made: Mapping[str, Home], before: Standing | None = None) -> Standing:
    """All of a configuration, on ``made`` backends; routes of ``before`` stay or are succeeded."""
    bytes_max = int(config.server.body_bytes_max)
    there = tables(config, makings, before)
    routes = {}
    for name, route in config.routes.items():
        places = [made[tier.backend] for tier in route.tiers]
        old = None if before is None else before.routes.get(name)
        if old is None:
            routes[name] = Route(name, route, places, bytes_max, there)
        else:
            routes[name] = old.under(route, places, bytes_max, there)
    endpoints = {}
    for name, endpoint in config.endpoints.items():
        backend = config.backend_of(endpoint)
        known, pool = msgspec.structs.replace(endpoint, backend=backend), made[backend].pool
        held = None if before is None else before.endpoints.get(name)
        if held is None:
            endpoints[name] = Endpoint(name, known, pool, bytes_max)
        else:
            endpoints[name] = held.under(known, pool, bytes_max)
    proxies = Proxies(config.server.trusted_proxies, config.server.forwarded_field)
    return Standing(config, made, there, routes, endpoints, directory_of(config), proxies)


def directory_of(config: Config) -> Directory:
    """The callers whose keys are known."""
    keys = {}
    for name, caller in config.callers.items():
        quota = None if caller.quota is None else quota_of(f"caller:{name}", caller.quota)
        counts = caller.quota is not None and caller.quota.hits_count
        keys[caller.key_sha256] = Caller(name, caller.tenant, quota, counts, priority_of(caller.priority, None))
    return Directory(keys, config.server.anonymous)


class Retired(msgspec.Struct, frozen=True):
    """What a reload has left without use. Requests that began before it may still be at it."""

    homes: tuple[Home, ...] = ()
    routes: tuple[Route | Endpoint, ...] = ()
    tables: tuple[Table, ...] = ()

    @property
    def busy(self) -> bool:
        """Whether some replica is still at work for somebody."""
        return any(state.in_flight for home in self.homes for pool in home.pools for state in pool.states())

    async def end(self, ticker: Ticker, sleep: Sleep, seconds_max: float) -> None:
        """Close it when those requests are done: their routes' time is over and no replica is asked by them;
        ``seconds_max`` at most. Cancelled, it closes at once."""
        now = ticker()
        least = now + min(max((route.timeout for route in self.routes), default=0.0), seconds_max)
        last = now + seconds_max
        try:
            while ticker() < least or (self.busy and ticker() < last):
                await sleep(RETIRING_SECONDS)
        finally:
            await self.close()

    async def close(self) -> None:
        """Give up what is still under way."""
        for route in self.routes:
            await route.close()
        for home in self.homes:
            await home.close()
        for table in self.tables:
            await table.close()


def retired(before: Standing, after: Standing) -> Retired:
    """What of ``before`` is not in ``after``."""
    homes_kept = {id(home) for home in after.homes.values()}
    routes_kept = {id(route) for route in after.answering}
    tables_kept = {id(table) for table in after.tables.values()}
    return Retired(
        tuple(home for home in before.homes.values() if id(home) not in homes_kept),
        tuple(route for route in before.answering if id(route) not in routes_kept),
        tuple(table for table in before.tables.values() if id(table) not in tables_kept),
    )


def changed_quotas(before: Standing, after: Standing) -> frozenset[str]:
    """Names of quotas that are gone or are counted otherwise now."""
    now = after.quotas
    return frozenset(name for name, quota in before.quotas.items() if now.get(name) != quota)
