"""Second levels from the configuration: one store for all routes that name the same, one level for each route.

Rule of this file: it makes parts and asks nothing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import msgspec
from blake3 import blake3

from cache.behind import BehindOptions
from cache.stores.address import parse_redis
from cache.stores.store import Store, StoreError
from cache.stores.turnstile import TurnstileOptions
from degrade.breaker import Breaker
from degrade.guard import STORE_BREAKER, Guarded
from gateway.config import Config
from gateway.copied import ASIDE
from gateway.copies import SERVERS_BYTES
from gateway.route import Route
from gateway.second import SecondLevel, Shared
from gateway.surroundings import Surroundings
from gateway.witness import Clocks

if TYPE_CHECKING:
    from cache.stores.redis import RedisStore
    from gateway.operate.faults import Faults

CONNECT_SECONDS: Final = 0.25
"""For a connection to be made; a look-up's own time bounds it too."""
WORD_BYTES: Final = 8
"""Of chance in a turn's word."""
OF_OURS: Final = {"max_stale": 0, "refresh": 0, "refreshes_max": 1, "bytes_max": 0, "rows_bytes_max": 0, "policy": ""}
"""What of its cache is this process's own business."""


class Stores:
    """The stores that are open, each by its URL. They stay for the process's life: a reload may come back to one."""

    def __init__(self, around: Surroundings, faults: Faults | None = None) -> None:
        self._around = around
        self._faults = faults
        self._open: dict[str, Guarded] = {}
        self._levels: WeakValueDictionary[str, SecondLevel] = WeakValueDictionary()
        """Each route's, the last that was made; until whoever had it has come to its end."""

    def share(self, route: Route, config: Config) -> None:
        """Give a route its second level, if it is to have one and has none yet."""
        cache = route.config.cache
        if cache is None or cache.second is None or route.second is not None:
            return
        shared = Shared(route.name, told_of(route, config), float(cache.ttl), float(cache.second_timeout))
        around = self._around
        clocks = Clocks(around.ticker, around.wall, lambda: around.secret(WORD_BYTES).hex().encode())
        store = self._store(cache.second, float(cache.second_timeout))
        second = SecondLevel(shared, store, clocks, BehindOptions())
        before = self._levels.get(route.name)
        if before is not None and not before.is_settled:
            second.end_turn()  # a purge under the last configuration, which the store does not know of yet
        self._levels[route.name] = second
        route.share(second)

    def states(self) -> dict[str, str]:
        """Each store's breaker, by where the store is, less who we are to it."""
        return {_place(url): store.state for url, store in self._open.items()}

    async def close(self) -> None:
        for store in self._open.values():
            await store.close()

    def _store(self, url: str, seconds: float) -> Guarded:
        held = self._open.get(url)
        if held is None:
            options = TurnstileOptions(trial_seconds=CONNECT_SECONDS, proof_seconds=seconds / 2)
            store: Store = _redis(url, CONNECT_SECONDS, options)
            if self._faults is not None:
                store = self._faults.store("second", store)
            held = self._open[url] = Guarded(store, Breaker(STORE_BREAKER), self._around.ticker, options)
        return held


async def faults(config: Config, seconds: float) -> list[str]:
    """What is wrong with the second levels that routes name: each is asked for a key, and may take ``seconds``."""
    named: dict[str, str] = {}
    for name, route in config.routes.items():
        if route.cache is not None and route.cache.second is not None:
            named.setdefault(route.cache.second, f"routes.{name}.cache.second")
    answers = await asyncio.gather(*(_fault(url, seconds) for url in named))
    return [f"{key}: {answer}" for key, answer in zip(named.values(), answers, strict=True) if answer]


async def _fault(url: str, seconds: float) -> str:
    store = _redis(url, seconds, TurnstileOptions())
    try:
        (found,) = await store.get_many([b"tailrace:check"], seconds)
        return str(found) if isinstance(found, StoreError) else ""
    except StoreError as error:
        return str(error)
    finally:
        await store.close()


def _redis(url: str, connect_seconds: float, turnstile: TurnstileOptions) -> RedisStore:
    # The client of Redis is a fifth of what a gateway takes to start: loaded where one is named.
    from cache.stores.redis import RedisOptions, RedisStore, Strings

    options = RedisOptions(connect_seconds=connect_seconds, node=turnstile)
    return RedisStore(parse_redis(url), Strings(asks_again=False), lambda: Breaker(STORE_BREAKER), options)


def told_of(route: Route, config: Config) -> bytes:
    """All that decides a route's answers but its models: its configuration, and which servers and stores are asked."""
    told = msgspec.to_builtins(route.config, enc_hook=str)  # durations and sizes
    for name in ASIDE:
        told.pop(name)
    told["cache"] |= OF_OURS | {"second": "", "second_timeout": 0, "snapshot": ""}
    backends = [config.backends[tier.backend] for tier in route.config.tiers]
    named = () if route.config.features is None else route.config.features.tables
    tables = {name: msgspec.to_builtins(config.tables[name], enc_hook=str) for name in named}
    servers = [(each.http, each.grpc) for each in backends]
    return msgspec.msgpack.encode((told, servers, tables), order="sorted")


def addresses_of(config: Config, backend: str) -> tuple[list[str], list[str]]:
    """A backend's servers. Their order says nothing."""
    servers = config.backends[backend]
    return sorted(servers.http), sorted(servers.grpc)


def servers_of(route: Route, config: Config) -> bytes:
    """Which servers and stores make a route's answers, in a few bytes."""
    servers = [addresses_of(config, tier.backend) for tier in route.config.tiers]
    named = () if route.config.features is None else route.config.features.tables
    stores = [config.tables[name].store for name in sorted(named)]
    return blake3(msgspec.msgpack.encode((servers, stores))).digest(SERVERS_BYTES)


def _place(url: str) -> str:
    return url.rpartition("@")[2].rpartition("://")[2]
