"""What is assumed to be wrong: "gpu down, redis slow" as values.

Rule of this file: words in, conditions out. It knows which names a configuration has and which states each kind of
thing can be in, and nothing of what follows from them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import msgspec

from degrade.ladder import Failure
from gateway.config import Config, Route, TierConfig
from gateway.schema import nearest
from gateway.sources import ConfigError

CONDITIONS_MAX: Final = 32
"""More is no question that anyone would read the answer of."""

SERVERS: Final = MappingProxyType(
    {
        "down": Failure.UNREACHABLE,
        "slow": Failure.TIMEOUT,
        "overloaded": Failure.OVERLOADED,
        "broken": Failure.BROKEN,
    }
)
"""How a replica, or all of a backend's, fails."""

MODELS: Final = MappingProxyType(
    {
        "broken": Failure.BROKEN,
        "failing": Failure.RAISED,
        "slow": Failure.TIMEOUT,
        "overloaded": Failure.OVERLOADED,
        "unsure": None,
    }
)
"""How a model fails, wherever it is asked; ``unsure``: its answers are not accepted, and a later tier is asked."""

STORES: Final = MappingProxyType(
    {"down": "unreachable", "slow": "timeout", "loading": "loading", "refusing": "refused"}
)
"""How the stores of tables fail; of all that are in Redis, the second level is one."""

HELD: Final = MappingProxyType({"empty": "", "fresh": "", "old": "", "dead": ""})
"""What is held of the answer (``cache``), or of the tables' rows that it is made of (``rows``): old is beyond its ttl
and within ``max_stale``, dead is beyond that too. Nothing, where nothing is said."""

COPIES: Final = MappingProxyType({"none": "", "fresh": "", "unknown": "", "old": ""})
"""What an earlier process has left in the snapshot, of the answer and of tables' rows: ``fresh`` is within its ttl, of
models that are still the same; ``unknown`` is so too, and nobody can tell if they are; ``old`` is beyond its ttl and
within ``max_stale``. None, where nothing is said."""

SECOND: Final = MappingProxyType({"empty": "", "fresh": "", "down": "", "slow": ""})
"""What the second level has of the answer, or how its store fails. Empty, where nothing is said."""

NOTHING: Final = MappingProxyType({"cache": "empty", "rows": "empty", "snapshot": "none", "second": "empty"})
"""What is held where nothing is said."""

LEVELS: Final = MappingProxyType({"1": 1, "2": 2, "3": 3, "4": 4})
"""Of a brownout, of every backend that the route asks."""

KINDS: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType(
    {
        "backend": SERVERS,
        "replica": SERVERS,
        "model": MODELS,
        "table": STORES,
        "stores": STORES,
        "cache": HELD,
        "rows": HELD,
        "snapshot": COPIES,
        "second": SECOND,
        "brownout": LEVELS,
    }
)


MISSING: Final = MappingProxyType(
    {
        "snapshot": "there is none: the configuration has no [snapshot] section",
        "second": "there is none: no route has cache.second",
    }
)


class Condition(msgspec.Struct, frozen=True):
    """``kind`` is one of `KINDS`; ``name`` is a backend's, a replica's URL, a model's, a table's, or for ``stores``
    redis or lmdb: the stores of every table there, and of the second level."""

    kind: str
    name: str
    state: str


def known_names(config: Config) -> list[tuple[str, str]]:
    """Everything that something can be wrong with: its kind and its name."""
    backends = config.backends
    found = [("backend", name) for name in backends]
    found += [("replica", url) for backend in backends.values() for url in (*backend.http, *backend.grpc)]
    tiers: list[TierConfig] = [tier for route in config.routes.values() for tier in route.tiers]
    found += [("model", tier.model) for tier in tiers]
    found += [("table", name) for name in config.tables]
    found += [("stores", "lmdb" if table.redis is None else "redis") for table in config.tables.values()]
    found += [] if config.snapshot is None else [("snapshot", "snapshot")]
    seconds = [route.cache.second for route in config.routes.values() if route.cache is not None]
    found += [("second", "second"), ("stores", "redis")] if any(seconds) else []
    return list(dict.fromkeys([*found, ("cache", "cache"), ("rows", "rows"), ("brownout", "brownout")]))


def read_conditions(text: str, config: Config) -> tuple[Condition, ...]:
    """Conditions apart by commas or "and". A name that is two things' (a backend's and a model's) is told apart by its
    kind before it: "model gpu broken". Raises ConfigError with every fault."""
    written = [each.strip() for each in re.split(r",|\band\b", text) if each.strip()]
    if len(written) > CONDITIONS_MAX:
        raise ConfigError((f"--when: {len(written)} conditions; {CONDITIONS_MAX} at most",))
    names = known_names(config)
    found: dict[tuple[str, str], Condition] = {}
    faults = []
    for each in written:
        read = _read(each, names)
        if isinstance(read, str):
            faults.append(f"--when: {each!r}: {read}")
        elif found.setdefault((read.kind, read.name), read) != read:
            before = found[read.kind, read.name].state
            faults.append(f"--when: {each!r}: {read.name} is said to be {before} already")
    second, store = (found.get(each) for each in (("second", "second"), ("stores", "redis")))
    if second is not None and store is not None and second.state in ("empty", "fresh"):
        faults.append(f"--when: 'second {second.state}': it is in redis, which is said to be {store.state}")
    if faults:
        raise ConfigError(tuple(faults))
    return tuple(found.values())


def concerns(condition: Condition, config: Config, route: Route) -> bool:
    """Whether it is about anything that this route asks or has."""
    name, cache = condition.name, route.cache
    tables = {} if route.features is None else {each: config.tables[each] for each in route.features.tables}
    has_second = cache is not None and cache.second is not None
    match condition.kind:
        case "backend":
            return any(tier.backend == name for tier in route.tiers)
        case "replica":
            backends = [config.backends[tier.backend] for tier in route.tiers]
            return any(name in (*backend.http, *backend.grpc) for backend in backends)
        case "model":
            return any(tier.model == name for tier in route.tiers)
        case "table":
            return name in tables
        case "stores":
            kinds = {"lmdb" if table.redis is None else "redis" for table in tables.values()}
            return name in kinds or (name == "redis" and has_second)
        case "cache":
            return cache is not None
        case "rows":
            return bool(tables)
        case "snapshot":
            copied = cache is not None and cache.snapshot != "off"
            return copied or any(table.is_copied for table in tables.values())
        case "second":
            return has_second
        case _:
            return True


def _read(written: str, names: list[tuple[str, str]]) -> Condition | str:
    """One condition, or what is wrong with it."""
    words = written.split()
    if len(words) < 2:
        return 'say what and how, such as "gpu down"'
    subject, state = words[:-1], words[-1]
    kinds = [kind for kind in KINDS if kind == subject[0]] if len(subject) > 1 else list(KINDS)
    name = " ".join(subject[1:] if len(subject) > 1 and kinds else subject)
    kinds = kinds or list(KINDS)
    there = [each for each in names if each[0] in kinds and each[1] == name]
    if not there and name in MISSING:
        return MISSING[name]
    if not there:
        known = [each[1] for each in names if each[0] in kinds]
        return f"there is no {name}{nearest(name, known) or '; there is ' + ', '.join(known)}"
    for kind, _ in there:
        if state in KINDS[kind]:
            return Condition(kind, name, state)
    states = list(dict.fromkeys(state for kind, _ in there for state in KINDS[kind]))
    near = nearest(state, states) or "; say " + ", ".join(states)
    return f"{name} cannot be {state}{near}"
