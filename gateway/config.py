"""What an operator may say: every key of ``tailrace.toml``, its default, and the rules within a section.

Rule of this file: values, and what may be wrong with one of them. Here are the whole, and what routes, endpoints and
callers may be; ``[server]`` is in ``gateway/config_server.py``, backends are in ``gateway/config_backends.py``, tables
in ``gateway/config_tables.py``, load in ``gateway/config_load.py``, snapshots in ``gateway/config_snapshot.py``,
declared answers in ``gateway/config_default.py``. Where a configuration comes from is ``gateway/sources.py``'s, the
rules between sections are ``gateway/consistency.py``'s, and whether the world agrees is ``gateway/check.py``'s
question. Each key's reason is written once for people, in ``tailrace.example.toml``; a test holds the two together.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, field

from cache.stores.address import parse_redis
from gateway.config_backends import Backend
from gateway.config_default import DefaultOutput
from gateway.config_load import Brownout, PriorityWord
from gateway.config_server import Server
from gateway.config_snapshot import SnapshotConfig
from gateway.config_tables import TableConfig
from gateway.ranges import (
    AGE_MAX,
    DEADLINE_MIN,
    SIZE_MAX,
    SIZE_MIN,
    WAIT_MAX,
    Positive,
    repeated,
    seconds,
    size,
    within,
)
from gateway.schema import Fault
from gateway.units import Seconds, Size

DegradeStep = Literal["replica", "tier", "stale", "snapshot", "default"]

SECOND_MAX: Final = Seconds.parse("1s")
"""The longest wait for a second level of a cache: what takes longer is not one."""
RATE_MAX: Final = 10**9
"""Requests a second of a quota: it counts in whole nanoseconds."""

VERSION: Final = re.compile(r"0|[1-9][0-9]{0,18}")
"""As Triton's repositories name versions: "01" is none of any model."""

_ENDPOINT_PATH: Final = re.compile(r"/[!-\"$&->@-~]*")
"""As it is compared with a request's: decoded, without a query."""

_FIELD_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


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
    nan: bool = False
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
        sizes = {"element_bytes_max": self.element_bytes_max, "json_bytes_max": self.json_bytes_max}
        yield from within(SIZE_MIN, SIZE_MAX, **sizes)
        if self.body_bytes_max is not None:
            yield from within(SIZE_MIN, SIZE_MAX, body_bytes_max=self.body_bytes_max)


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
    degrade: tuple[DegradeStep, ...] = ("replica", "tier", "stale", "snapshot", "default")
    default: dict[str, DefaultOutput] = field(default_factory=dict)
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
        yield from repeated("degrade", self.degrade)
        if len({each.is_by_row for each in self.default.values()}) > 1:
            yield "default", "has -1 in front of some shapes and not of others: a model takes batches, or it does not"
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
    degrade: tuple[Literal["replica", "stale", "snapshot"], ...] = ("replica", "stale", "snapshot")
    priority: PriorityWord | None = None
    brownout: tuple[Literal["stale"], ...] = ()
    vary: tuple[str, ...] = ()

    def faults(self) -> Iterator[Fault]:
        if not _ENDPOINT_PATH.fullmatch(self.path):
            yield "path", f"{self.path!r} is no plain path, such as /predict: without query, escapes (%) and spaces"
        yield from repeated("degrade", self.degrade)
        for index, name in enumerate(self.vary):
            if name == "*" or not _FIELD_NAME.fullmatch(name):
                yield f"vary[{index}]", f"{name!r} is no name of a header field"
        if self.body_bytes_max is not None:
            yield from within(SIZE_MIN, SIZE_MAX, body_bytes_max=self.body_bytes_max)
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
        return bool(self.models_of(backend))

    def models_of(self, backend: str) -> frozenset[str]:
        """The models of this backend that routes name."""
        tiers = (tier for route in self.routes.values() for tier in route.tiers)
        return frozenset(tier.model for tier in tiers if tier.backend == backend)

    def asks_alike(self, name: str, backend: Backend, has_models: bool) -> bool:
        """Whether this configuration asks the backend of this name as it would be asked by that one."""
        return self.backends.get(name) == backend and self.has_models(name) is has_models
