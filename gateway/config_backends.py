"""What an operator may say of a backend: its replicas' addresses, how they are asked, and when one is left alone.

Rule of this file: as ``gateway/config.py``, of which it is a part. How much they are given at once is
``gateway/config_load.py``'s, what is made of them ``gateway/homes.py``'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, field

from gateway.address import parse_address
from gateway.config_load import Concurrency
from gateway.ranges import WAIT_MAX, WAIT_MIN, Positive, repeated, seconds, within
from gateway.schema import Fault
from gateway.units import Seconds

PROBE_MIN: Final = Seconds.parse("100ms")
PROBE_MAX: Final = Seconds.parse("1h")
"""A round of probes asks each replica three things of every model that routes name: oftener, and it is
load; more seldom, and a changed model's old answers go on as fresh for longer than that."""
OUTCOMES_MIN: Final = Seconds.parse("100ms")
"""The shortest window of a breaker: it slides in tenths, each of which must be able to hold an outcome."""

_PROBE_PATH: Final = re.compile(r"/[!-\"$-~]*")
"""A path, and a query if there is one: printable ASCII, and no fragment."""


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
        yield from repeated("http", map(_replica, self.http))
        for index, target in enumerate(self.grpc):
            reason = _target_fault(target)
            if reason:
                yield f"grpc[{index}]", reason
        if self.http and self.grpc and len(self.http) != len(self.grpc):
            counts = f"{len(self.grpc)} and {len(self.http)}"
            yield "grpc", f"and http name the same servers in the same order, and these are {counts}"
        yield from repeated("grpc", map(str.lower, self.grpc))
        yield from within(WAIT_MIN, WAIT_MAX, connect_timeout=self.connect_timeout)
        yield from within(PROBE_MIN, PROBE_MAX, probe=self.probe)
        if self.probe_path is not None and not _PROBE_PATH.fullmatch(self.probe_path):
            yield "probe_path", f"{self.probe_path!r} is no path, such as /healthz"
        elif self.probe_path is not None and not self.http:
            yield "probe_path", "is asked over HTTP, and this backend has no http; leave it out"


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
