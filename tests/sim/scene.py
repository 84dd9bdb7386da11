"""What one seed's world is made of: its routes and their bounds, its servers, its weather and its hours.

Rule of this file: values by chance, and nothing is done. To add a part of the gateway to the world, give its
configuration here by chance, its weather a place, and ``invariants.py`` a function on what must hold of it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from gateway.admission.auth import key_digest
from gateway.config import CallerConfig, Config, Route
from gateway.config_backends import Backend
from gateway.config_load import Brownout
from gateway.config_server import Server
from gateway.config_snapshot import SnapshotConfig
from gateway.config_tables import TableConfig
from gateway.schema import Reader
from gateway.units import Size
from tests.sim import faults
from tests.sim.faults import Climate, Spell, forecast

S = TypeVar("S", bound=msgspec.Struct)

BEGINS: Final = 1000.0
"""Virtual seconds at the start: far from zero, as a machine's own are."""
ACTIVE_SECONDS: Final = 3.0
"""How long clients, operators and the weather are at it."""
DRAIN_SECONDS: Final = 2
CALM_SECONDS: Final = 14.0
"""The stated bound of convergence: so long after the last fault every route answers fresh again. A breaker is open for
4 s at most here, a hung look at a model lasts 5 s, a line to a store is tried every 2 s."""

ONE: Final = ("10.0.0.1:8000", "10.0.0.2:8000")
FAST: Final = ("10.0.0.3:8000",)
TABLES: Final = "10.0.1.1:6379"
SHARED: Final = "10.0.1.2:6379"
CALLERS: Final = {"ada": "a", "bob": "b", "cyd": "a"}
"""Callers and their tenants."""
KINDS: Final = ("plain", "cascade", "rows", "ranked", "limited", "second", "secondrows")
MODELS: Final = {
    "plain": ("one",),
    "cascade": ("small", "large"),
    "rows": ("one",),
    "ranked": ("ranker",),
    "limited": ("one",),
    "second": ("one",),
    "secondrows": ("one",),
}
OF_DOORS: Final = (faults.LATENCY, faults.DRIP, faults.RESET)
"""What befalls the callers' own connections."""
SNAPSHOTS_SHARE: Final = 0.35
"""Of all worlds, those that have snapshots."""
CROWDS_SHARE: Final = 0.15
"""Those where there is more to do than can be done, for a while."""
PASSERS_SHARE: Final = 0.3
"""Those where somebody asks the servers themselves, through the gateway."""
COHERENT: Final = 1.0
TABLE_TTL: Final = 2.0
ITEM_MAX_STALE: Final = 5.0
TABLE_TIMEOUT: Final = 0.05


class Bounds(Struct, frozen=True):
    """What a route has promised, at its most generous configuration of the run."""

    ttl: float = 0.0
    max_stale: float = 0.0
    timeout: float = 1.0


class Scene(Struct, frozen=True):
    """One seed's world. ``configs``: the first is begun with, the others come by reloads."""

    seed: int
    kinds: tuple[str, ...]
    documents: tuple[dict[str, Any], ...]
    configs: tuple[Config, ...]
    bounds: dict[str, Bounds]
    spells: tuple[Spell, ...]
    gateways: int
    requests: int
    rows: int
    disks: tuple[str, ...] = ()
    """Which one each gateway has for its snapshot; empty: they have none."""
    crowds: tuple[tuple[float, int], ...] = ()
    """When many ask at once, and how many."""
    passers: int = 0
    """Questions to the servers themselves."""
    pace: tuple[float, float] = (0.001, 0.01)
    """Seconds that a model takes, from and to."""
    far: float = 0.0
    """Seconds that bytes may be on their way."""

    @property
    def trusts(self) -> bool:
        """Whether a copy is as good as its model, as long as nobody can tell."""
        caches = [route.cache for config in self.configs for route in config.routes.values()]
        return any(cache is not None and cache.snapshot == "fresh" for cache in caches)

    @property
    def rolls(self) -> bool:
        """Whether a model becomes another one."""
        return any(spell.kind == faults.RELOAD for spell in self.spells)

    @property
    def ends(self) -> float:
        """When the last fault has been."""
        return BEGINS + ACTIVE_SECONDS


def scene(seed: int) -> Scene:
    """The world of a seed."""
    chance = random.Random(f"scene {seed}")
    kinds = tuple(chance.sample(KINDS, chance.choice((1, 2, 2))))
    shares = any(kind.startswith("second") for kind in kinds)
    pace = chance.choice(((0.001, 0.01), (0.01, 0.1), (0.1, 0.6)))
    timeouts = ("3s",) if pace[1] > 0.1 else ("300ms", "1s", "3s")
    documents = [_document(kinds, timeouts, chance)]
    for _ in range(chance.choice((0, 0, 0, 1, 2))):
        documents.append(_changed(documents[-1], timeouts, chance))
    keeping = random.Random(f"keeping {seed}")  # of its own, so that what else a seed means stays
    keeps = keeping.random() < SNAPSHOTS_SHARE
    if keeps:
        _copied(documents, keeping)
    load = random.Random(f"load {seed}")
    passers = load.choice((4, 12)) if load.random() < PASSERS_SHARE else 0
    crowds: tuple[tuple[float, int], ...] = ()
    if load.random() < CROWDS_SHARE:
        pace = load.choice(((0.01, 0.1), (0.1, 0.6)))
        _browned(documents, load)
        crowds = tuple(sorted((BEGINS + load.uniform(0.6, 2.0), load.choice((20, 40))) for _ in range(3)))
    configs = [_config(document, chance) for document in documents]
    bounds = {kind: _bounds(kind, configs) for kind in kinds}
    gateways = 2 if shares and chance.random() < 0.5 else 1
    climate = Climate(_places(kinds, gateways), BEGINS + 0.5, BEGINS + ACTIVE_SECONDS, chance.choice((0, 2, 3, 5, 8)))
    spells = [*forecast(climate, chance), *_reloads(kinds, chance), *_rot(kinds, chance)]
    disks = _disks(gateways, keeping) if keeps else ()
    spells += _ends(kinds, disks, keeping) if keeps else []
    wanted = chance.choice((3, 6, 12))
    rows = chance.choice((2, 4, 7))
    far = chance.choice((0.0, 0.002, 0.01))
    return Scene(
        seed, kinds, tuple(documents), tuple(configs), bounds, tuple(spells), gateways, wanted, rows, disks,
        crowds, passers, pace, far,
    )  # fmt: skip


def _document(kinds: Sequence[str], timeouts: Sequence[str], chance: random.Random) -> dict[str, Any]:
    breaker = {"consecutive_failures": chance.choice((2, 5)), "open": "500ms", "open_max": "4s", "window": "5s"}
    probe = chance.choice(("1s", "2s"))
    few = chance.choice((2, 64))
    common = {"probe": probe, "breaker": breaker, "connect_timeout": "300ms", "connections_max": few}
    return {
        "server": {
            "http": "unix:sim", "admin": "unix:sim-admin", "grpc": "off", "drain": f"{DRAIN_SECONDS}s",
            "anonymous": False,
        },
        "callers": {
            name: {
                "key_sha256": key_digest(name),
                "tenant": tenant,
                **({"quota": {"rate": 40, "burst": 20}} if name == "cyd" else {}),
            }
            for name, tenant in CALLERS.items()
        },
        "backends": {
            "one": {"http": [f"http://{host}" for host in ONE], **common},
            "fast": {"http": [f"http://{host}" for host in FAST], **common},
        },
        "tables": _tables() if "ranked" in kinds else {},
        "routes": {kind: _route(kind, timeouts, chance) for kind in kinds},
    }


def _tables() -> dict[str, Any]:
    common = {
        "store": f"redis://{TABLES}/0", "shape": [3], "ttl": f"{TABLE_TTL}s", "bytes_max": "1MiB", "default": 0.0,
        "timeout": f"{int(TABLE_TIMEOUT * 1000)}ms", "negative_ttl": "1s",
    }  # fmt: skip
    within = f"{COHERENT}s"
    return {
        "user": {
            **common, "key": "user:{id}", "ttl": "1h", "max_stale": "1h", "coherence": "tracking",
            "coherent_within": within,
        },
        "item": {**common, "key": "item:{id}", "max_stale": f"{ITEM_MAX_STALE}s"},
    }  # fmt: skip


def _route(kind: str, timeouts: Sequence[str], chance: random.Random) -> dict[str, Any]:
    max_stale = chance.choice((0, 2, 20))
    cache: dict[str, Any] = {
        "ttl": chance.choice(("500ms", "2s", "60s")),
        "max_stale": f"{max_stale}s",
        "refresh": f"{min(max_stale, chance.choice((0, 1, 2)))}s",
        "refreshes_max": chance.choice((1, 4)),
        "policy": chance.choice(("s3fifo", "sieve", "lru")),
        "bytes_max": "1MiB",
        "rows_bytes_max": "1MiB",
        "shared": chance.random() < 0.2,
    }
    route: dict[str, Any] = {
        "tiers": [{"backend": "one", "model": MODELS[kind][-1]}],
        "timeout": chance.choice(timeouts),
        "degrade": chance.choice((["replica", "tier", "stale"], ["stale", "replica", "tier"], ["tier"], ["replica"])),
        "cache": cache,
    }
    match kind:
        case "cascade":
            accept = {"output": "p", "rule": "margin", "at_least": 0.5}
            route["tiers"].insert(0, {"backend": "fast", "model": "small", "accept": accept})
        case "rows":
            cache["rows"] = True
        case "ranked":
            route["features"] = {
                "entities": {"user": {"many": False}, "item": {"many": True}},
                "inputs": {"x": {"parts": [{"entity": "user", "table": "user"}, {"entity": "item", "table": "item"}]}},
            }
            if chance.random() < 0.5:
                del route["cache"]
        case "limited":
            counts = chance.random() < 0.5
            route["quota"] = {"rate": 8, "burst": chance.choice((2, 6)), "hits_count": counts}
            route["caller_quota"] = {"rate": 5, "burst": 3, "hits_count": not counts}
        case "second" | "secondrows":
            cache["second"] = f"redis://{SHARED}/0"
            cache["second_timeout"] = "30ms"
            cache["rows"] = kind == "secondrows"
    return route


def _changed(document: dict[str, Any], timeouts: Sequence[str], chance: random.Random) -> dict[str, Any]:
    """Another configuration of the same routes, as an operator may load it."""
    changed: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(document))
    for route in changed["routes"].values():
        what = chance.choice(("timeout", "ttl", "quota", "degrade", "backend"))
        if what == "ttl" and "cache" in route:
            route["cache"]["ttl"] = chance.choice(("500ms", "2s", "60s"))
        elif what == "quota" and "quota" in route:
            route["quota"]["rate"] = chance.choice((4, 8, 16))
        elif what == "degrade":
            route["degrade"] = chance.choice((["replica", "tier", "stale"], ["stale"], []))
        elif what == "backend":
            changed["backends"]["one"]["probe"] = chance.choice(("600ms", "1s"))
        else:
            route["timeout"] = chance.choice(timeouts)
    return changed


def _disks(gateways: int, chance: random.Random) -> tuple[str, ...]:
    """Which disk each gateway has: workers of one host share one."""
    return ("here",) * gateways if chance.random() < 0.5 else tuple(f"of{index}" for index in range(gateways))


def _copied(documents: Sequence[dict[str, Any]], chance: random.Random) -> None:
    """Give all configurations of a world snapshots."""
    interval = chance.choice(("100ms", "300ms"))
    ladder = chance.choice(
        (["replica", "tier", "stale", "snapshot"], ["stale", "snapshot", "replica", "tier"], ["snapshot"])
    )
    kept = chance.choice(("stale", "stale", "fresh"))
    for place, document in enumerate(documents):
        document["snapshot"] = {"path": "disk", "interval": interval, "bytes_max": "16MiB"}
        for route in document["routes"].values():
            if "cache" not in route:
                continue
            route["cache"]["snapshot"] = kept
            if not place or chance.random() < 0.5:
                route["degrade"] = ladder


def _browned(documents: Sequence[dict[str, Any]], chance: random.Random) -> None:
    """Servers that are asked little at once, callers whom that leaves waiting, and levels that rise soon."""
    aged = chance.random() < 0.7  # what is kept is old when the crowd comes
    limits = {"max": chance.choice((2, 4)), "adaptive": chance.random() < 0.5, "waiting_max": 32}
    limits |= {"min": 1} if limits["adaptive"] else {}
    levels = {"queue": chance.choice(((0.02, 0.04, 0.08, 0.5), (0.1, 0.3, 0.5, 0.75))), "up": "100ms", "down": "300ms"}
    for document in documents:
        document["brownout"] = levels
        document["callers"]["cyd"]["priority"] = "low"
        for backend in document["backends"].values():
            backend |= {"connections_max": 64, "concurrency": limits}
        for route in document["routes"].values():
            route["timeout"] = "3s"
            if aged and "cache" in route:
                route["cache"] |= {"ttl": "500ms", "max_stale": "20s", "refresh": "0s"}
            allowed = ["fast"] if len(route["tiers"]) > 1 else []
            if route.get("cache", {}).get("max_stale", "0s") != "0s":
                allowed.append("stale")
            route["brownout"] = allowed


def _ends(kinds: Sequence[str], disks: Sequence[str], chance: random.Random) -> list[Spell]:
    """In worlds with a disk its weather, and gateways that are killed; often while nobody else can be asked."""
    begins, ends = BEGINS + 0.5, BEGINS + ACTIVE_SECONDS
    places = [(f"disk:{name}", faults.OF_DISKS) for name in dict.fromkeys(disks)]
    made = forecast(Climate(places, begins, ends, chance.choice((0, 1, 2))), chance)
    for index in range(len(disks)):
        if chance.random() < 0.2:
            continue
        at = chance.uniform(BEGINS + 0.8, BEGINS + 2.4)
        back = at + chance.choice((0.01, 0.1, 0.5))
        made.append(Spell(f"process:gateway{index}", faults.KILL, at, back))
        if chance.random() < 0.5:
            kind = chance.choice((faults.HANG, faults.REFUSE, faults.KILL))
            hosts = (*ONE, *FAST) if "cascade" in kinds else ONE
            if "ranked" in kinds:
                hosts = chance.choice((hosts, (*hosts, TABLES), (TABLES,)))
            away = [f"process:{host}" if kind == faults.KILL else f"net:{host}" for host in hosts]
            lasts = chance.choice((0.3, 1.0, 2.0))
            made += [Spell(place, kind, max(at, back - 0.05), min(back + lasts, ends)) for place in away]
        if chance.random() < 0.3:
            at = back + 0.05
            made.append(Spell(f"disk:{disks[index]}", faults.DISK_ROTS, at, at, chance.choice((0.3, 1.0))))
    return made


SECTIONS: Final = (("callers", CallerConfig), ("backends", Backend), ("tables", TableConfig), ("routes", Route))


def _config(document: dict[str, Any], chance: random.Random) -> Config:
    config = Config(
        server=_read(Server, document["server"]),
        **{
            section: {name: _read(kind, raw) for name, raw in document[section].items()}
            for section, kind in SECTIONS
        },
        snapshot=_read(SnapshotConfig, document["snapshot"]) if "snapshot" in document else None,
        brownout=_read(Brownout, document.get("brownout", {})),
    )
    if chance.random() < 0.3:  # less than an operator may say, so that little traffic fills it
        small = Size(chance.choice((3000, 9000)))
        routes = {name: _small(each, small) for name, each in config.routes.items()}
        config = msgspec.structs.replace(config, routes=routes)
    return config


def _read(kind: type[S], raw: object) -> S:
    return _read_once(kind, msgspec.json.encode(raw, order="sorted"))


@lru_cache(maxsize=4096)
def _read_once(kind: type[S], raw: bytes) -> S:
    """A part of a configuration, with all its checks. Seeds have most parts in common."""
    reader = Reader()
    part = reader.read(msgspec.json.decode(raw), kind)
    assert part is not None, reader.faults
    assert not reader.faults, reader.faults
    return part


def _small(route: Any, size: Size) -> Any:
    if route.cache is None:
        return route
    return msgspec.structs.replace(
        route, cache=msgspec.structs.replace(route.cache, bytes_max=size, rows_bytes_max=size)
    )


def _bounds(kind: str, configs: Sequence[Config]) -> Bounds:
    routes = [config.routes[kind] for config in configs]
    caches = [route.cache for route in routes if route.cache is not None]
    return Bounds(
        max((float(each.ttl) for each in caches), default=0.0),
        max((float(each.max_stale) for each in caches), default=0.0),
        max(float(each.timeout) for each in routes),
    )


def _reloads(kinds: Sequence[str], chance: random.Random) -> list[Spell]:
    """In half of all worlds a model becomes another one, so that others find that beside other weather."""
    if chance.random() < 0.5:
        return []
    host = chance.choice(FAST + ONE if "cascade" in kinds else ONE)
    begins = BEGINS + chance.choice((1.0, 2.0)) - chance.uniform(0.005, 0.3)  # a little before it is looked at
    between = chance.choice((0.0, 0.01, 0.4))
    return [Spell(f"process:{host}", faults.RELOAD, begins, begins, 1.0, between, chance.random())]


def _rot(kinds: Sequence[str], chance: random.Random) -> list[Spell]:
    """In some worlds much of what is shared rots: little of it is ever read again, and that must not be believed."""
    if not any(kind.startswith("second") for kind in kinds) or chance.random() < 0.7:
        return []
    return [Spell(f"redis:{SHARED}", faults.ROTTEN, BEGINS, BEGINS + ACTIVE_SECONDS, 0.6)]


def _places(kinds: Sequence[str], gateways: int) -> list[tuple[str, Sequence[str]]]:
    hosts: list[str] = []
    stores: list[str] = []
    for kind in kinds:
        hosts += ONE
        if kind == "cascade":
            hosts += FAST
        if kind == "ranked":
            stores.append(TABLES)
        if kind.startswith("second"):
            stores.append(SHARED)
    places: list[tuple[str, Sequence[str]]] = [("process", (faults.STALL, faults.STEP))]
    places += [(f"net:sim{index}", OF_DOORS) for index in range(gateways)]
    for host in dict.fromkeys(hosts):
        places += [(f"net:{host}", faults.OF_LINKS), (f"triton:{host}", faults.OF_MODELS)]
        places.append((f"process:{host}", (faults.KILL, faults.RELOAD)))
    for host in [*dict.fromkeys(stores)] * 2:  # there is one, and of the others many
        places += [(f"net:{host}", faults.OF_LINKS), (f"redis:{host}", faults.OF_STORES)]
        places.append((f"process:{host}", (faults.KILL,)))
    return places
