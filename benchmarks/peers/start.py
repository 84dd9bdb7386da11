"""Starts every peer with the configuration beside this file, and always stops it.

Rule of this file: each peer is a context manager that yields a ``Peer`` which answers on a free
loopback port; all of them stand before the same upstream, but for those that are an upstream themselves.
It measures nothing.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from msgspec import Struct

from benchmarks.peers.upstream import HERE, Upstream, free_port, listening, triton
from benchmarks.scenarios import CACHE_BYTES_MAX, MODEL, QUOTA_RATE
from examples.gatewayprocess import GatewayProcess

NGINX_MODULES: Final = Path("/usr/lib/nginx/modules")
"""Where Debian keeps them; the peer "nginx-digest" needs two."""
GENEROUS_RATE: Final = 1_000_000
"""Requests a second of a quota that is charged and never spent."""


class Setting(Struct, frozen=True):
    """What a peer is started for. ``body_bytes`` is the length of each request's body."""

    upstream: Upstream
    body_bytes: int
    model: str = MODEL


class Peer(Struct, frozen=True):
    """A server that is up. ``group`` is its process group; ``upstream`` is where its misses are counted."""

    name: str
    port: int
    group: int
    upstream: Upstream
    is_upstream: bool = False


@contextmanager
def direct(name: str, setting: Setting) -> Iterator[Peer]:
    yield Peer(name, setting.upstream.port, setting.upstream.group, setting.upstream, is_upstream=True)


@contextmanager
def triton_cache(name: str, setting: Setting) -> Iterator[Peer]:
    with triton(response_cache=True, environment=setting.upstream.environment) as own:
        yield Peer(name, own.port, own.group, own, is_upstream=True)


@contextmanager
def tailrace(name: str, setting: Setting, *, caches: bool, rate: int = GENEROUS_RATE) -> Iterator[Peer]:
    with gateway(tailrace_config(setting, caches=caches, rate=rate), (), name, setting) as peer:
        yield peer


@contextmanager
def tailrace_pass(name: str, setting: Setting) -> Iterator[Peer]:
    with gateway(None, ("--upstream", setting.upstream.url), name, setting) as peer:
        yield peer


def tailrace_config(setting: Setting, *, caches: bool, rate: int) -> str:
    values = {"UPSTREAM": setting.upstream.url, "MODEL": setting.model, "RATE": str(rate)}
    cached = fill("tailrace_cache.toml", {"MODEL": setting.model, "CACHE_BYTES": f"{CACHE_BYTES_MAX}B"})
    return fill("tailrace.toml", values) + (cached if caches else "")


@contextmanager
def gateway(config: str | None, arguments: tuple[str, ...], name: str, setting: Setting) -> Iterator[Peer]:
    with GatewayProcess(config, arguments) as process:
        port = int(process.http_url.rpartition(":")[2])
        yield Peer(name, port, process.process.pid, setting.upstream)


@contextmanager
def nginx(name: str, setting: Setting, *, template: str, limited: bool = False) -> Iterator[Peer]:
    memory = Path("/dev/shm")
    in_memory = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-", dir=memory if in_memory else None) as directory:
        port = free_port()
        path = Path(directory, "nginx.conf")
        path.write_text(fill(template, nginx_values(setting, directory, port, limited)))
        command = ["nginx", "-p", directory, "-c", str(path), "-e", "stderr"]
        if os.geteuid() == 0:  # else its worker becomes somebody who may not write here
            command += ["-g", "user root;"]
        with listening(command, directory, port) as group:
            yield Peer(name, port, group, setting.upstream)


def nginx_values(setting: Setting, directory: str, port: int, limited: bool) -> dict[str, str]:
    buffer = f"{buffer_kibibytes(setting.body_bytes)}k"
    zone = f"limit_req_zone $binary_remote_addr zone=callers:10m rate={QUOTA_RATE}r/s;"
    return {
        "DIRECTORY": directory,
        "PORT": str(port),
        "UPSTREAM_ADDRESS": setting.upstream.address,
        "BODY_BUFFER": buffer,
        "KEY_BUFFER": buffer,
        "CACHE_BYTES": str(CACHE_BYTES_MAX),
        "MODULES": str(NGINX_MODULES),
        "LIMIT_ZONE": zone if limited else "",
        "LIMIT": f"limit_req zone=callers burst={QUOTA_RATE} nodelay; limit_req_status 429;" if limited else "",
    }


@contextmanager
def haproxy(name: str, setting: Setting) -> Iterator[Peer]:
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as directory:
        port = free_port()
        path = Path(directory, "haproxy.cfg")
        path.write_text(fill("haproxy.cfg", {"PORT": str(port), "UPSTREAM_ADDRESS": setting.upstream.address}))
        with listening(["haproxy", "-db", "-f", str(path)], directory, port) as group:
            yield Peer(name, port, group, setting.upstream)


@contextmanager
def varnish(name: str, setting: Setting) -> Iterator[Peer]:
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as directory:
        port = free_port()
        path = Path(directory, "varnish.vcl")
        values = {"UPSTREAM_PORT": str(setting.upstream.port), "BODY_BYTES": str(setting.body_bytes + 1)}
        path.write_text(fill("varnish.vcl", values))
        command = ["varnishd", "-F", "-j", "none", "-f", str(path), "-a", f"127.0.0.1:{port}", "-T", "none"]
        command += ["-n", f"{directory}/state", "-s", f"malloc,{CACHE_BYTES_MAX}"]
        # One pool for one core, kept connections, room for a thousand callers who come at once; and no gzip, which
        # it would ask Triton for and undo for a client that did not ask.
        for parameter in ("thread_pools=1", "timeout_idle=3600", "listen_depth=4096", "http_gzip_support=off"):
            command += ["-p", parameter]
        with listening(command, directory, port) as group:
            yield Peer(name, port, group, setting.upstream)


@contextmanager
def aiohttp(name: str, setting: Setting, *, mode: str) -> Iterator[Peer]:
    port = free_port()
    command = [sys.executable, str(HERE / "aiohttp_peer.py"), str(port), setting.upstream.url, mode]
    with (
        tempfile.TemporaryDirectory(prefix="tailrace-bench-") as directory,
        listening(command, directory, port) as group,
    ):
        yield Peer(name, port, group, setting.upstream)


@contextmanager
def floor(name: str, setting: Setting, *, mode: str) -> Iterator[Peer]:
    port = free_port()
    command = [sys.executable, str(HERE / "uvloop_peer.py"), str(port), str(setting.upstream.port), mode]
    with (
        tempfile.TemporaryDirectory(prefix="tailrace-bench-") as directory,
        listening(command, directory, port) as group,
    ):
        yield Peer(name, port, group, setting.upstream)


START: Final[Mapping[str, Callable[[str, Setting], AbstractContextManager[Peer]]]] = {
    "tailrace": partial(tailrace, caches=True),
    "tailrace-route": partial(tailrace, caches=False),
    "tailrace-limited": partial(tailrace, caches=True, rate=QUOTA_RATE),
    "tailrace-pass": tailrace_pass,
    "nginx-cache": partial(nginx, template="nginx_cache.conf"),
    "nginx-limited": partial(nginx, template="nginx_cache.conf", limited=True),
    "nginx-digest": partial(nginx, template="nginx_digest.conf"),
    "nginx-proxy": partial(nginx, template="nginx_proxy.conf"),
    "haproxy": haproxy,
    "varnish": varnish,
    "aiohttp": partial(aiohttp, mode="dict"),
    "aiohttp-client": partial(aiohttp, mode="pass"),
    "floor": partial(floor, mode="dict"),
    "floor-pass": partial(floor, mode="pass"),
    "triton-cache": triton_cache,
    "triton": direct,
    "static": direct,
}
"""``START[name](name, setting)`` is a context manager of a Peer."""


def fill(template: str, values: Mapping[str, str]) -> str:
    """The text of a file beside this one with every ``@NAME@`` replaced. Raises KeyError for one without a value."""
    parts = (HERE / template).read_text().split("@")
    return "".join(part if index % 2 == 0 else values[part] for index, part in enumerate(parts))


def buffer_kibibytes(body_bytes: int) -> int:
    """A power of two that holds a body, the key's other parts and the answer's head."""
    size = 4
    while size * 1024 < body_bytes + 2048:
        size *= 2
    return size
