"""What an operator may say: every key of ``tailrace.toml``, its default, and the rules within a section.

Rule of this file: values, and what may be wrong with one of them. Where a configuration comes from is
``gateway/sources.py``'s, tables are ``gateway/config_tables.py``'s, load is
``gateway/config_load.py``'s, the rules between sections are
``gateway/consistency.py``'s, and whether the world agrees is ``gateway/check.py``'s question. Each key's reason is
written once for people, in ``tailrace.example.toml``; a test holds the two together.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, field

from cache.stores.address import parse_redis
from gateway.admission.forwarded import UNIX, network
from gateway.config_load import Brownout, Concurrency, PriorityWord
from gateway.config_snapshot import SnapshotConfig
from gateway.config_tables import TableConfig
from gateway.ranges import AGE_MAX, DEADLINE_MIN, SIZE_MAX, WAIT_MAX, WAIT_MIN, Positive, seconds, size, within
from gateway.schema import Fault
from gateway.units import Seconds, Size

Switch = Literal["repository", "logging", "trace", "shared_memory"]
DegradeStep = Literal["replica", "tier", "stale", "snapshot"]
ALLOW_ALL: Final[tuple[Switch, ...]] = ("repository", "logging", "trace", "shared_memory")

SECOND_MAX: Final = Seconds.parse("1s")
"""The longest wait for a second level of a cache: what takes longer is not one."""
PROBE_MIN: Final = Seconds.parse("100ms")
PROBE_MAX: Final = Seconds.parse("1h")
"""A round of probes asks each replica three things of every model that routes name: oftener, and it is
load; more seldom, and a changed model's old answers go on as fresh for longer than that."""
OUTCOMES_MIN: Final = Seconds.parse("100ms")
"""The shortest window of a breaker: it slides in tenths, each of which must be able to hold an outcome."""
HEADER_BYTES_MIN: Final = Size.parse("1KiB")
HEADER_BYTES_MAX: Final = Size.parse("1MiB")
"""A request's head is held in memory before anyone knows whose it is: no head needs more."""
MESSAGE_BYTES_MAX: Final = Size(2**31 - 1)
"""The largest message of gRPC: its libraries count in 32 bits with a sign."""
RATE_MAX: Final = 10**9
"""Requests a second of a quota: it counts in whole nanoseconds."""


VERSION: Final = re.compile(r"0|[1-9][0-9]{0,18}")
"""As Triton's repositories name versions: "01" is none of any model."""


_PROBE_PATH: Final = re.compile(r"/[!-\"$-~]*")
"""A path, and a query if there is one: printable ASCII, and no fragment."""

_ENDPOINT_PATH: Final = re.compile(r"/[!-\"$&->@-~]*")
"""As it is compared with a request's: decoded, without a query."""

_FIELD_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

GRPC_OFF: Final = ("", "off")
"""What ``server.grpc`` says where there is to be no gRPC door."""


class Address(msgspec.Struct, frozen=True):
    """Where to listen: ``path`` for a unix socket, otherwise ``host`` and ``port`` (0: a free one)."""

    host: str = ""
    port: int = 0
    path: str = ""


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The doors' certificate: files in PEM form. ``client_ca``: callers must show one that it has signed."""

    certificate: str
    key: str
    client_ca: str | None = None
    minimum: Literal["1.2", "1.3"] = "1.2"

    def faults(self) -> Iterator[Fault]:
        for key, path in (("certificate", self.certificate), ("key", self.key), ("client_ca", self.client_ca)):
            if path == "":
                yield key, "must name a file in PEM form"


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The process and its listeners."""

    http: str = "127.0.0.1:8080"
    grpc: str = "127.0.0.1:8081"
    rpc: str | None = None
    admin: str = "127.0.0.1:9090"
    passthrough: str | None = None
    allow: tuple[Switch, ...] = ()
    anonymous: bool = True
    body_bytes_max: Size = size("64MiB")
    buffered_bytes_max: Size = size("1GiB")
    passthrough_bytes_max: Size = size("2GiB")
    passthrough_timeout: Seconds = seconds("5m")
    header_bytes_max: Size = size("32KiB")
    drain: Seconds = seconds("10s")
    drain_notice: Seconds = seconds("0s")
    connections_max: Positive = 4096
    connections_per_address_max: Positive = 4096
    head_timeout: Seconds = seconds("10s")
    body_timeout: Seconds = seconds("30s")
    idle_timeout: Seconds = seconds("75s")
    write_timeout: Seconds = seconds("30s")
    edge: bool = True
    grpc_message_bytes_max: Size = size("64MiB")
    grpc_calls_max: Positive = 4096
    grpc_calls_per_address_max: Positive = 1024
    grpc_streams_max: Positive = 1024
    grpc_open_streams_per_address_max: Positive = 32
    grpc_stream_idle_timeout: Seconds = seconds("10m")
    grpc_stream_pending_max: Annotated[int, Meta(ge=1, le=4096)] = 64
    grpc_keepalive: Seconds = seconds("1m")
    grpc_keepalive_timeout: Seconds = seconds("20s")
    grpc_ping_interval_min: Seconds = seconds("10s")
    rpc_in_flight_max: Positive = 256
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    hang_timeout: Seconds = seconds("30s")
    quota_keys_max: Positive = 100_000
    trusted_proxies: tuple[str, ...] = ()
    forwarded_field: Literal["X-Forwarded-For", "Forwarded"] = "X-Forwarded-For"
    tls: Tls | None = None

    def faults(self) -> Iterator[Fault]:
        doors = {"http": self.http, "grpc": self.grpc, "rpc": self.rpc, "admin": self.admin}
        if not self.has_grpc:
            del doors["grpc"]
        seen: dict[str, str] = {}
        for key, address in doors.items():
            if address is None:
                continue
            yield from _address_faults(key, address)
            owner = seen.setdefault(address, key)
            if owner != key and not address.endswith(":0"):
                yield key, f"is the same address as server.{owner} ({address})"
        if self.workers > 1 and any(each.startswith("unix:") for each in (self.http, self.grpc, self.rpc or "")):
            yield "workers", "is more than 1, and a unix socket cannot be shared; listen on HOST:PORT"
        if self.tls is not None and self.http.startswith("unix:"):
            yield "tls", "is for a network, and http is a unix socket; listen on HOST:PORT, or leave tls out"
        yield from _proxy_faults(self.trusted_proxies)
        yield from within(HEADER_BYTES_MIN, HEADER_BYTES_MAX, header_bytes_max=self.header_bytes_max)
        yield from _sizes(body_bytes_max=self.body_bytes_max, buffered_bytes_max=self.buffered_bytes_max)
        yield from _sizes(passthrough_bytes_max=self.passthrough_bytes_max)
        yield from within(Seconds(0), WAIT_MAX, drain=self.drain, drain_notice=self.drain_notice)
        yield from within(SECOND_MAX, WAIT_MAX, hang_timeout=self.hang_timeout)
        yield from within(
            WAIT_MIN,
            WAIT_MAX,
            passthrough_timeout=self.passthrough_timeout,
            head_timeout=self.head_timeout,
            body_timeout=self.body_timeout,
            idle_timeout=self.idle_timeout,
            write_timeout=self.write_timeout,
            grpc_stream_idle_timeout=self.grpc_stream_idle_timeout,
            grpc_keepalive=self.grpc_keepalive,
            grpc_keepalive_timeout=self.grpc_keepalive_timeout,
            grpc_ping_interval_min=self.grpc_ping_interval_min,
        )
        yield from within(HEADER_BYTES_MIN, MESSAGE_BYTES_MAX, grpc_message_bytes_max=self.grpc_message_bytes_max)

    @property
    def message_bytes_max(self) -> int:
        """The largest message of a gRPC caller. One that passes on is held twice, so two of them must fit."""
        return min(int(self.grpc_message_bytes_max), int(self.buffered_bytes_max) // 2)

    @property
    def has_grpc(self) -> bool:
        """Whether there is a gRPC door."""
        return self.grpc not in GRPC_OFF


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Chaos(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether faults may be made on purpose, by the admin port."""

    enabled: bool = False


class QuotaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``rate`` requests each ``per``, with ``burst`` at once (default: a whole ``rate``)."""

    rate: Positive
    per: Seconds = seconds("1s")
    burst: Positive | None = None
    hits_count: bool = False

    def faults(self) -> Iterator[Fault]:
        if self.per <= 0:
            yield "per", "must be more than 0"
            return
        yield from within(Seconds(0), AGE_MAX, per=self.per)
        if self.rate > RATE_MAX * self.per:
            most = f"{RATE_MAX * self.per:.0f} in {self.per}"
            yield "rate", f"is more than quotas can count ({most}); lower it, or leave the quota out for no bound"
        earned_back = self.burst_size * self.per / self.rate
        if self.burst is not None and earned_back > AGE_MAX:
            yield "burst", f"takes longer to be earned back than {AGE_MAX}; lower it, or raise rate"

    @property
    def burst_size(self) -> int:
        """``burst``, or its default."""
        return self.rate if self.burst is None else self.burst


class CallerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One who may call. The key itself is never written down, only its SHA-256."""

    key_sha256: str
    tenant: str = ""
    priority: PriorityWord | None = None
    quota: QuotaConfig | None = None

    def faults(self) -> Iterator[Fault]:
        if not re.fullmatch(r"[0-9a-f]{64}", self.key_sha256):
            yield "key_sha256", "must be 64 lower-case hex digits: printf %s KEY | sha256sum"


class BreakerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a replica leaves rotation on its outcomes, and for how long."""

    consecutive_failures: Positive = 5
    failure_ratio: Annotated[float, Meta(gt=0, le=1)] = 0.5
    volume_min: Positive = 10
    window: Seconds = seconds("10s")
    open: Seconds = seconds("1s")
    open_max: Seconds = seconds("30s")

    def faults(self) -> Iterator[Fault]:
        yield from within(OUTCOMES_MIN, WAIT_MAX, window=self.window)
        yield from within(WAIT_MIN, WAIT_MAX, open=self.open, open_max=self.open_max)
        if self.open_max < self.open:
            yield "open_max", f"is shorter than open ({self.open_max} < {self.open})"


class Backend(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Replicas that serve the same models."""

    http: tuple[str, ...] = ()
    grpc: tuple[str, ...] = ()
    connections_max: Positive = 64
    passthrough_connections_max: Positive = 64
    connect_timeout: Seconds = seconds("1s")
    probe: Seconds = seconds("1s")
    probe_path: str | None = None
    breaker: BreakerConfig = field(default_factory=BreakerConfig)
    concurrency: Concurrency = field(default_factory=Concurrency)

    def faults(self) -> Iterator[Fault]:
        if not self.http and not self.grpc:
            yield "http", "needs at least one replica, such as http://127.0.0.1:8000; or name some in grpc"
        for index, url in enumerate(self.http):
            reason = _url_fault(url)
            if reason:
                yield f"http[{index}]", reason
        for url, times in Counter(_replica(url) for url in self.http).items():
            if times > 1:
                yield "http", f"names {url} {times} times"
        for index, target in enumerate(self.grpc):
            reason = _target_fault(target)
            if reason:
                yield f"grpc[{index}]", reason
        if self.http and self.grpc and len(self.http) != len(self.grpc):
            counts = f"{len(self.grpc)} and {len(self.http)}"
            yield "grpc", f"and http name the same servers in the same order, and these are {counts}"
        for target, times in Counter(target.lower() for target in self.grpc).items():
            if times > 1:
                yield "grpc", f"names {target} {times} times"
        yield from within(WAIT_MIN, WAIT_MAX, connect_timeout=self.connect_timeout)
        yield from within(PROBE_MIN, PROBE_MAX, probe=self.probe)
        if self.probe_path is not None and not _PROBE_PATH.fullmatch(self.probe_path):
            yield "probe_path", f"{self.probe_path!r} is no path, such as /healthz"
        elif self.probe_path is not None and not self.http:
            yield "probe_path", "is asked over HTTP, and this backend has no http; leave it out"


class Accept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a tier's answer is good enough: ``rule`` of ``output`` is at least ``at_least``."""

    output: str
    at_least: float
    rule: Literal["margin", "max"] = "margin"

    def faults(self) -> Iterator[Fault]:
        if not math.isfinite(self.at_least):
            yield "at_least", "must be a finite number"
        if not self.output:
            yield "output", "must name an output of the tier's model"


class TierConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step of a cascade: a model on a backend."""

    backend: str
    model: str
    version: str = ""
    accept: Accept | None = None

    def faults(self) -> Iterator[Fault]:
        if self.model in ("", ".", "..") or "/" in self.model:
            yield "model", "must be a model's name, without a slash"
        if self.version and not VERSION.fullmatch(self.version):
            yield "version", 'must be a version number in quotes, such as "2", or "" for the newest'


class CacheConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a route's answers may be served again, and how much memory they may take."""

    ttl: Seconds
    max_stale: Seconds = seconds("0s")
    refresh: Seconds = seconds("0s")
    refreshes_max: Positive = 4
    bytes_max: Size = size("256MiB")
    policy: Literal["s3fifo", "sieve", "lru"] = "s3fifo"
    shared: bool = False
    rows: bool = False
    rows_bytes_max: Size = size("256MiB")
    second: str | None = None
    second_timeout: Seconds = seconds("20ms")
    snapshot: Literal["off", "stale", "fresh"] = "stale"

    def faults(self) -> Iterator[Fault]:
        if self.ttl <= 0:
            yield "ttl", "is 0: nothing would ever be a hit; to cache nothing, leave out `cache`"
        yield from within(Seconds(0), AGE_MAX, ttl=self.ttl, max_stale=self.max_stale)
        if self.refresh > self.max_stale:
            yield "refresh", f"is longer than max_stale ({self.refresh} > {self.max_stale})"
        yield from within(Size.parse("1MiB"), SIZE_MAX, bytes_max=self.bytes_max, rows_bytes_max=self.rows_bytes_max)
        yield from within(DEADLINE_MIN, SECOND_MAX, second_timeout=self.second_timeout)
        if self.second is not None:
            try:
                parse_redis(self.second)
            except ValueError as error:
                yield "second", str(error)


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one request may be. None: the model's own limit (batch), the server's (body)."""

    batch_max: Positive | None = None
    body_bytes_max: Size | None = None
    element_bytes_max: Size = size("16MiB")
    json_bytes_max: Size = size("16MiB")
    json_depth_max: Annotated[int, Meta(ge=4, le=200)] = 16

    def faults(self) -> Iterator[Fault]:
        yield from _sizes(element_bytes_max=self.element_bytes_max, json_bytes_max=self.json_bytes_max)
        if self.body_bytes_max is not None:
            yield from _sizes(body_bytes_max=self.body_bytes_max)


class InputRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one input's values may be, beyond what the model's own metadata says."""

    min: float | None = None
    max: float | None = None
    finite: bool = True
    element_bytes_max: Size | None = None

    def faults(self) -> Iterator[Fault]:
        for name, bound in (("min", self.min), ("max", self.max)):
            if bound is not None and math.isnan(bound):
                yield name, "must be a number"
        if self.min is not None and self.max is not None and self.min > self.max:
            yield "min", f"is above max ({self.min} > {self.max})"


class Entity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a request names by ids. ``many``: candidates, a row of the model for each; else one for all rows."""

    many: bool
    datatype: Literal["INT64", "BYTES"] = "INT64"


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rows that a table has of an entity."""

    entity: str
    table: str


class FeatureInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input of the model, made of its parts in this order: side by side, or each as a row of its own."""

    parts: tuple[Part, ...]
    join: Literal["concatenate", "stack"] = "concatenate"

    def faults(self) -> Iterator[Fault]:
        if not self.parts:
            yield "parts", "needs at least one { entity, table }"


class Features(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which inputs of a route's models are made of tables' rows, by the ids that its callers send."""

    entities: dict[str, Entity]
    inputs: dict[str, FeatureInput]

    @property
    def tables(self) -> tuple[str, ...]:
        """Those that the inputs are made of, each once."""
        return tuple(dict.fromkeys(part.table for wanted in self.inputs.values() for part in wanted.parts))

    def faults(self) -> Iterator[Fault]:
        for name, wanted in (("entities", self.entities), ("inputs", self.inputs)):
            if not wanted:
                yield name, "must name at least one"
        used = {part.entity for wanted in self.inputs.values() for part in wanted.parts}
        for name in used - set(self.entities):
            yield "inputs", f"are made of entity {name!r}, which is none of entities ({', '.join(self.entities)})"
        for name in set(self.entities) - used:
            yield f"entities.{name}", "is in no input: nothing would be looked up by it"


class Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A public model name with its policy."""

    tiers: tuple[TierConfig, ...]
    cache: CacheConfig | None = None
    quota: QuotaConfig | None = None
    caller_quota: QuotaConfig | None = None
    limits: Limits = field(default_factory=Limits)
    inputs: dict[str, InputRule] = field(default_factory=dict)
    features: Features | None = None
    timeout: Seconds = seconds("10s")
    degrade: tuple[DegradeStep, ...] = ("replica", "tier", "stale", "snapshot")
    priority: PriorityWord | None = None
    brownout: tuple[Literal["fast", "stale"], ...] = ()

    def faults(self) -> Iterator[Fault]:
        if not self.tiers:
            yield "tiers", "needs at least one { backend, model }"
        for index, tier in enumerate(self.tiers):
            last = index == len(self.tiers) - 1
            if last and tier.accept is not None:
                yield f"tiers[{index}].accept", "is on the last tier, whose answer is always taken"
            if not last and tier.accept is None:
                yield f"tiers[{index}].accept", "is required: without it no later tier is ever asked"
        for name, times in Counter((t.backend, t.model, t.version) for t in self.tiers).items():
            if times > 1:
                yield "tiers", f"names model {name[1]} of backend {name[0]} {times} times"
        for step, times in Counter(self.degrade).items():
            if times > 1:
                yield "degrade", f"names {step} {times} times"
        yield from within(DEADLINE_MIN, WAIT_MAX, timeout=self.timeout)


class Endpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A POST path of a plain HTTP server with its policy. ``backend`` None: that of the pass-through."""

    path: str
    backend: str | None = None
    cache: CacheConfig | None = None
    quota: QuotaConfig | None = None
    caller_quota: QuotaConfig | None = None
    body_bytes_max: Size | None = None
    timeout: Seconds = seconds("10s")
    degrade: tuple[Literal["replica", "stale"], ...] = ("replica", "stale")
    priority: PriorityWord | None = None
    brownout: tuple[Literal["stale"], ...] = ()
    vary: tuple[str, ...] = ()

    def faults(self) -> Iterator[Fault]:
        if not _ENDPOINT_PATH.fullmatch(self.path):
            yield "path", f"{self.path!r} is no plain path, such as /predict: without query, escapes (%) and spaces"
        for step, times in Counter(self.degrade).items():
            if times > 1:
                yield "degrade", f"names {step} {times} times"
        for index, name in enumerate(self.vary):
            if name == "*" or not _FIELD_NAME.fullmatch(name):
                yield f"vary[{index}]", f"{name!r} is no name of a header field"
        if self.body_bytes_max is not None:
            yield from _sizes(body_bytes_max=self.body_bytes_max)
        yield from within(DEADLINE_MIN, WAIT_MAX, timeout=self.timeout)


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole configuration: read, complete and consistent."""

    server: Server = field(default_factory=Server)
    log: Log = field(default_factory=Log)
    snapshot: SnapshotConfig | None = None
    brownout: Brownout = field(default_factory=Brownout)
    chaos: Chaos = field(default_factory=Chaos)
    callers: dict[str, CallerConfig] = field(default_factory=dict)
    backends: dict[str, Backend] = field(default_factory=dict)
    tables: dict[str, TableConfig] = field(default_factory=dict)
    routes: dict[str, Route] = field(default_factory=dict)
    endpoints: dict[str, Endpoint] = field(default_factory=dict)

    @property
    def passthrough(self) -> str:
        """The backend that serves every model without a route."""
        return self.server.passthrough or next(iter(self.backends))

    def backend_of(self, endpoint: Endpoint) -> str:
        """The backend that an endpoint's path is asked of."""
        return endpoint.backend or self.passthrough

    def has_models(self, backend: str) -> bool:
        """Whether routes name models of this backend, which must be a Triton then."""
        return any(tier.backend == backend for route in self.routes.values() for tier in route.tiers)

    def asks_alike(self, name: str, backend: Backend, has_models: bool) -> bool:
        """Whether this configuration asks the backend of this name as it would be asked by that one."""
        return self.backends.get(name) == backend and self.has_models(name) is has_models


def parse_address(written: str) -> Address:
    """``HOST:PORT``, ``[V6]:PORT`` or ``unix:PATH``; raises ValueError with the reason."""
    if written.startswith("unix:"):
        path = written.removeprefix("unix:")
        if not path or len(path.encode()) > 107:  # sockaddr_un.sun_path, less its NUL
            raise ValueError("unix:PATH needs a path of 1 to 107 bytes")
        return Address(path=path)
    host, colon, port = written.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{written!r} is neither HOST:PORT (port 0 to 65535) nor unix:PATH")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{written!r}: write an IPv6 address as [ADDRESS]:PORT")
    if not host:
        raise ValueError(f"{written!r} has no host; 0.0.0.0 means every interface")
    return Address(host=host, port=int(port))


def _address_faults(key: str, written: str) -> Iterator[Fault]:
    try:
        parse_address(written)
    except ValueError as error:
        yield key, str(error)


def _proxy_faults(named: tuple[str, ...]) -> Iterator[Fault]:
    for position, text in enumerate(named):
        try:
            if text != UNIX:
                network(text)
        except ValueError as error:
            yield f"trusted_proxies.{position}", f"{error}; name an address, a network such as 10.0.0.0/8, or {UNIX!r}"


def _url_fault(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        return f"{url!r} is not a URL: {error}"
    if parts.scheme not in ("http", "https") or not host or port == 0 or re.search(r"\s", url):
        return f"{url!r} is not http://HOST:PORT"
    if parts.username is not None or parts.query or parts.fragment or parts.path not in ("", "/"):
        return f"{url!r} must be only http://HOST:PORT, without user, path or query"
    return None


def _target_fault(target: str) -> str | None:
    """What is wrong with a replica's gRPC address; None if nothing is."""
    try:
        address = parse_address(target)
    except ValueError as error:
        return str(error)
    return f"{target!r} has no port" if not address.path and address.port == 0 else None


def _replica(url: str) -> str:
    """The one spelling of a replica's address: the same server under two of them would be its own spare."""
    scheme, _, host = url.rstrip("/").lower().partition("://")
    return f"{scheme}://{host.removesuffix(':80' if scheme == 'http' else ':443')}"


def _sizes(**named: Size) -> Iterator[Fault]:
    return within(Size(1), SIZE_MAX, **named)
