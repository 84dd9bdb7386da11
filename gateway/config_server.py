"""What an operator may say of the process and its listeners: ``[server]``, and in it ``tls``.

Rule of this file: as ``gateway/config.py``, of which it is a part. Whether an address is free and a certificate there
is ``gateway/check.py``'s question.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from gateway.address import parse_address
from gateway.admission.forwarded import UNIX, network
from gateway.ranges import SIZE_MAX, SIZE_MIN, WAIT_MAX, WAIT_MIN, Positive, seconds, size, within
from gateway.schema import Fault
from gateway.units import Seconds, Size

Switch = Literal["repository", "logging", "trace", "shared_memory"]
ALLOW_ALL: Final[tuple[Switch, ...]] = ("repository", "logging", "trace", "shared_memory")

HEADER_BYTES_MIN: Final = Size.parse("1KiB")
HEADER_BYTES_MAX: Final = Size.parse("1MiB")
"""A request's head is held in memory before anyone knows whose it is: no head needs more."""
MESSAGE_BYTES_MAX: Final = Size(2**31 - 1)
"""The largest message of gRPC: its libraries count in 32 bits with a sign."""
HANG_MIN: Final = Seconds.parse("1s")
"""The shortest time after which a worker is taken to hang: a busy one may be silent for a good part of that."""

GRPC_OFF: Final = ("", "off")
"""What ``server.grpc`` says where there is to be no gRPC door."""


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
    ready: Literal["itself", "backends"] = "itself"
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
        yield from within(
            SIZE_MIN,
            SIZE_MAX,
            body_bytes_max=self.body_bytes_max,
            buffered_bytes_max=self.buffered_bytes_max,
            passthrough_bytes_max=self.passthrough_bytes_max,
        )
        yield from within(Seconds(0), WAIT_MAX, drain=self.drain, drain_notice=self.drain_notice)
        yield from within(HANG_MIN, WAIT_MAX, hang_timeout=self.hang_timeout)
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
