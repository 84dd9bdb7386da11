"""The rules between the sections of a configuration, each of which may be well by itself.

Rule of this file: pure, and everything wrong in one list. It sees what was written, not what the world
is like (that is ``gateway/check.py``'s).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Final
from urllib.parse import quote, urlsplit

from cache.stores.address import parse_redis
from gateway.address import parse_address
from gateway.admission.auth import anonymous_name
from gateway.config import CacheConfig, Config, Endpoint, Route
from gateway.doors.path import target_of
from gateway.problem import Refused
from gateway.schema import Fault
from gateway.units import Size

Written = Mapping[str, object]
"""The document as it was written, tables of tables, without any default."""

_NAME: Final = re.compile(r"[^\s/?#%\x00-\x1f]+")


def between(config: Config, written: Written) -> Iterator[Fault]:
    """Everything wrong between sections. ``written`` tells what is the operator's own word and what a
    default, and names also the backends that have faults of their own."""
    yield from _backend_faults(config, written)
    for name, route in config.routes.items():
        yield from _name_faults(name)
        yield from _route_faults(config, written, name, route)
        yield from _table_faults(config, name, route)
    paths: dict[str, str] = {}
    for name, endpoint in config.endpoints.items():
        yield from _endpoint_faults(config, written, name, endpoint)
        owner = paths.setdefault(endpoint.path, name)
        if owner != name:
            yield f"endpoints.{name}.path", f"is the path of endpoint {owner} too"
    owners: dict[str, str] = {}
    for name, caller in config.callers.items():
        if name.startswith(anonymous_name("")):
            yield f"callers.{name}", "is what callers without a key are called; give it another name"
        owner = owners.setdefault(caller.key_sha256, name)
        if owner != name:
            yield f"callers.{name}.key_sha256", f"is the key of caller {owner} too"
    if not config.server.anonymous and not config.callers:
        yield "server.anonymous", "is false and there are no callers: nobody could call"
    admin = parse_address(config.server.admin)
    if config.chaos.enabled and not (admin.path or _is_loopback(admin.host)):
        reaches = f"whoever reaches server.admin ({config.server.admin}) could break this gateway"
        yield "chaos.enabled", f"is true, and {reaches}; let that be on loopback or a unix socket, or set this to false"


def doubts(config: Config, written: Written) -> Iterator[str]:
    """What is no fault, but hardly what the operator means."""
    if config.chaos.enabled:
        yield "chaos.enabled: is true: faults can be ordered by the admin port, and callers meet them"
    tls = config.server.tls
    if tls is not None and tls.minimum != "1.2" and config.server.has_grpc:
        yield f"server.tls.minimum: is {tls.minimum}, which grpc cannot be told: the gRPC door speaks 1.2 too"
    joined = {table for route in config.routes.values() if route.features for table in route.features.tables}
    for name in set(config.tables) - joined:
        yield f"tables.{name}: no route joins it (routes.NAME.features); it is checked and filled, and nothing more"
    for name, table in config.tables.items():
        if config.snapshot is not None and table.snapshot and not table.is_copied:
            why = f"a row has {table.numbers} numbers, which is more than a copy may have (1 MiB)"
            yield f"tables.{name}.snapshot: {why}: none is copied; write false, and nobody counts on it"
    for name, route in config.routes.items():
        here = _asked_here(config, route)
        if here and route.cache and route.cache.second and not _all_here(route.cache.second):
            yield (
                f"routes.{name}.cache.second: is on another host, and backend {here} on this one; gateways of other "
                "hosts that share it would take the answers of their own servers for ours; give each host a database"
            )
        if _keeps_nothing_stale(written, "routes", name, route.cache):
            yield (
                f'routes.{name}.degrade: names "stale", and routes.{name}.cache.max_stale is 0s: only answers from '
                "before a model's change, within their ttl, can be served then; set max_stale to keep others longer"
            )
    for name, endpoint in config.endpoints.items():
        if _keeps_nothing_stale(written, "endpoints", name, endpoint.cache):
            yield (
                f'endpoints.{name}.degrade: names "stale", and endpoints.{name}.cache.max_stale is 0s: no old answer '
                "is kept; set max_stale"
            )


def _asked_here(config: Config, route: Route) -> str:
    """A backend of the route that is another server on every host; empty if there is none."""
    for tier in route.tiers:
        backend = config.backends.get(tier.backend)
        urls = [] if backend is None else [*backend.http, *(f"//{address}" for address in backend.grpc)]
        if any(_is_loopback(urlsplit(url).hostname or "") for url in urls):
            return tier.backend
    return ""


def _all_here(redis: str) -> bool:
    return all(_is_loopback(host) for host, _ in parse_redis(redis).hosts)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reachable(name: str) -> bool:
    """Whether the path of a route's name leads to that route, for what is asked of it and about it."""
    try:
        path = f"/v2/models/{quote(name, safe='')}"
        infer, about = target_of("POST", f"{path}/infer"), target_of("GET", path)
    except (Refused, UnicodeEncodeError):
        return False
    plain = infer.changes is None and infer.kind == "infer" and about.kind == "metadata"
    return plain and infer.model == about.model == name


def said(written: Written, *keys: str) -> object:
    """What the operator wrote for this key; None if nothing."""
    value: object = written
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _keeps_nothing_stale(written: Written, section: str, name: str, cache: CacheConfig | None) -> bool:
    steps = said(written, section, name, "degrade")
    return isinstance(steps, list) and "stale" in steps and cache is not None and cache.max_stale <= 0


def _table_faults(config: Config, name: str, route: Route) -> Iterator[Fault]:
    """What is wrong between a route's features and the tables."""
    known = ", ".join(config.tables) or "none"
    features = route.features
    if features is None:
        return
    for wanted, made in features.inputs.items():
        for index, part in enumerate(made.parts):
            if part.table not in config.tables:
                where = f"routes.{name}.features.inputs.{wanted}.parts[{index}].table"
                yield where, f"no table is called {part.table!r}; there is {known}"
                continue
            table, entity = config.tables[part.table], features.entities.get(part.entity)
            integers = table.ids == "integer"
            if table.feast is not None and entity is not None and integers != (entity.datatype == "INT64"):
                where = f"routes.{name}.features.entities.{part.entity}.datatype"
                takes = "INT64" if integers else "BYTES"
                told = f"must be {takes}: ids of tables.{part.table} are {table.ids}, and Feast tells 7 from \"7\""
                yield where, told
        shapes = {config.tables[part.table].shape for part in made.parts if part.table in config.tables}
        if made.join == "stack" and len(shapes) > 1:
            yield f"routes.{name}.features.inputs.{wanted}.join", "stacks rows of one shape, and these tables' differ"


def _backend_faults(config: Config, written: Written) -> Iterator[Fault]:
    named = written.get("backends")
    backends = list(named) if isinstance(named, Mapping) else []
    if not backends:
        yield "backends", "there is none: give --upstream URL, or write a [backends.NAME] section"
    for name, backend in config.backends.items():
        if not backend.concurrency.adaptive and said(written, "backends", name, "concurrency", "gain") is not None:
            why = "has no effect where adaptive is false, for nothing is measured then; leave it out"
            yield f"backends.{name}.concurrency.gain", why
    known = ", ".join(backends) or "none"
    chosen = config.server.passthrough
    if chosen is not None and chosen not in backends:
        yield "server.passthrough", f"no backend is called {chosen!r}; there is {known}"
    for name, route in config.routes.items():
        for index, tier in enumerate(route.tiers):
            if backends and tier.backend not in backends:
                where = f"routes.{name}.tiers[{index}].backend"
                yield where, f"no backend is called {tier.backend!r}; there is {known}"
    for name, endpoint in config.endpoints.items():
        if backends and endpoint.backend is not None and endpoint.backend not in backends:
            yield f"endpoints.{name}.backend", f"no backend is called {endpoint.backend!r}; there is {known}"


def _name_faults(name: str) -> Iterator[Fault]:
    if not _NAME.fullmatch(name):
        yield f"routes.{name!r}", "a route's name is part of a URL: no spaces, slashes, ?, # or %"
    elif not reachable(name):
        yield f"routes.{name!r}", "no request can reach it, for its path means something else; give it another name"


def _route_faults(config: Config, written: Written, name: str, route: Route) -> Iterator[Fault]:
    path = f"routes.{name}"
    yield from _stale_faults(written, "routes", name)
    yield from _body_faults(config, f"{path}.limits.body_bytes_max", route.limits.body_bytes_max)
    own = route.limits.body_bytes_max
    bytes_max, of = (own, f"{path}.limits.body_bytes_max") if own is not None else _servers(config)
    yield from _second_faults(path, route)
    yield from _snapshot_faults(config, written, "routes", name)
    yield from _default_faults(written, name)
    yield from _brownout_faults(path, route)
    json_bytes_max = route.limits.json_bytes_max
    if json_bytes_max > bytes_max and said(written, "routes", name, "limits", "json_bytes_max"):
        yield (
            f"{path}.limits.json_bytes_max",
            f"is {json_bytes_max}, and no body may have more than {bytes_max}; lower it, or raise {of}",
        )


def _second_faults(path: str, route: Route) -> Iterator[Fault]:
    cache = route.cache
    if cache is None or cache.second is None:
        return
    if route.features is not None:
        yield f"{path}.cache.second", "is not for routes with features, whose answers depend on more than their models"
    if cache.second_timeout * 2 > route.timeout:
        half = f"more than half of the route's time ({route.timeout})"
        yield f"{path}.cache.second_timeout", f"is {cache.second_timeout}, {half}; lower it, or raise timeout"


def _snapshot_faults(config: Config, written: Written, section: str, name: str) -> Iterator[Fault]:
    """What a route or an endpoint says of snapshots where there are none of it."""
    path = f"{section}.{name}"
    cache = config.routes[name].cache if section == "routes" else config.endpoints[name].cache
    steps, kind = said(written, section, name, "degrade"), said(written, section, name, "cache", "snapshot")
    named = isinstance(steps, list) and "snapshot" in steps
    if named and (cache is None or cache.snapshot == "off"):
        yield f"{path}.degrade", f'names "snapshot", and {path}.cache keeps none: set it, or take the step out'
    elif config.snapshot is None and (named or kind in ("stale", "fresh")):
        where = f"{path}.degrade" if named else f"{path}.cache.snapshot"
        yield where, "needs a [snapshot] section, which says where copies are kept"
    elif section == "endpoints" and kind == "fresh":
        why = "nothing tells when a server that is no Triton is another one, so its copies are old ones"
        yield f"{path}.cache.snapshot", f'is "fresh", and {why}: write "stale", or "off" for none'
    elif section == "endpoints" and kind == "stale" and isinstance(steps, list) and not named:
        yield f"{path}.degrade", f'does not name "snapshot", and copies of {path}.cache are for nothing else'


def _default_faults(written: Written, name: str) -> Iterator[Fault]:
    """A default that nobody would get, or a step that would give none."""
    steps, declared = said(written, "routes", name, "degrade"), said(written, "routes", name, "default")
    named = isinstance(steps, list) and "default" in steps
    if declared and isinstance(steps, list) and not named:
        yield f"routes.{name}.default", 'is declared, and `degrade` does not name "default": nobody would get it'
    elif named and not declared:
        yield f"routes.{name}.degrade", 'names "default", and none is declared: write default.OUTPUT for each output'


def _brownout_faults(path: str, route: Route) -> Iterator[Fault]:
    """What is allowed in a brownout, and would change nothing."""
    if "fast" in route.brownout and len(route.tiers) < 2:
        yield f"{path}.brownout", 'names "fast", and there is one tier only: its answers are all there is'
    if "stale" in route.brownout and (route.cache is None or not route.cache.max_stale):
        yield f"{path}.brownout", 'names "stale", and no answer is kept beyond its ttl: give cache.max_stale'


def _endpoint_faults(config: Config, written: Written, name: str, endpoint: Endpoint) -> Iterator[Fault]:
    where = f"endpoints.{name}"
    if not _NAME.fullmatch(name):
        yield f"endpoints.{name!r}", "an endpoint's name is part of a purge's URL: no spaces, slashes, ?, # or %"
    elif name in config.routes:
        yield where, "is the name of a route too, and metrics and purges could not tell them apart; give it another one"
    try:
        target = target_of("POST", endpoint.path)
    except Refused as refused:
        yield f"{where}.path", f"no request can have it: {refused.problem.detail}"
    else:
        if target.kind != "other" or f"{endpoint.path}/".startswith(("/v2/", "/v1/predict/")):
            why = "is Triton's own, or the gateway's; for its models write a route"
            yield f"{where}.path", f"{endpoint.path!r} {why}"
    backend = config.backends.get(config.backend_of(endpoint)) if config.backends else None
    if backend is not None and not backend.http:
        yield f"{where}.backend", f"{config.backend_of(endpoint)!r} has no http, and an endpoint is asked over HTTP"
    yield from _snapshot_faults(config, written, "endpoints", name)
    if endpoint.cache is not None and endpoint.cache.second is not None:
        why = "is for routes: nothing tells when a server that is no Triton has become another"
        yield f"{where}.cache.second", why
    yield from _stale_faults(written, "endpoints", name)
    yield from _body_faults(config, f"{where}.body_bytes_max", endpoint.body_bytes_max)


def _stale_faults(written: Written, section: str, name: str) -> Iterator[Fault]:
    steps = said(written, section, name, "degrade")
    if isinstance(steps, list) and "stale" in steps and said(written, section, name, "cache") is None:
        path = f"{section}.{name}"
        yield f"{path}.degrade", f'names "stale", and nothing keeps old answers: write {path}.cache, or take it out'


def _body_faults(config: Config, key: str, own: Size | None) -> Iterator[Fault]:
    """A bound on bodies that is more than all requests together may have."""
    bytes_max, of = (own, key) if own is not None else _servers(config)
    if bytes_max > config.server.buffered_bytes_max:
        most = config.server.buffered_bytes_max
        yield of, f"is {bytes_max}, and server.buffered_bytes_max, for all requests together, is {most}"


def _servers(config: Config) -> tuple[Size, str]:
    return config.server.body_bytes_max, "server.body_bytes_max"
