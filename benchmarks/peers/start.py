"""Starts every peer with the configuration beside this file, and always stops it.

Rule of this file: each peer is a context manager that yields a ``Peer`` which answers on a free
loopback port; all of them stand before the same Triton, but for the Tritons that are peers themselves.
It measures nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

from benchmarks.scenarios import CACHE_BYTES_MAX, MODEL
from examples.child import Child
from examples.gatewayprocess import GatewayProcess
from examples.tritonserver import TritonEnvironment, TritonOptions, TritonServer, find_environment

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent
NGINX_MODULES: Final = Path("/usr/lib/nginx/modules")
"""Where Debian keeps them; the peer "nginx-digest" needs two."""
READY_SECONDS: Final = 20.0


class PeerFailed(RuntimeError):
    """A peer did not come up; the message holds what it wrote."""


class Counts(Struct, frozen=True):
    """What a Triton counted for the benchmark's model."""

    succeeded: int
    cache_hits: int
    cache_misses: int


class Triton:
    """A Triton with the benchmark's model, with or without its response cache."""

    def __init__(self, server: TritonServer) -> None:
        self.server = server

    def counts(self) -> Counts:
        status, body = self.server.request("GET", f"/v2/models/{MODEL}/stats")
        if status != 200:
            raise PeerFailed(f"Triton gives no statistics: {status} {body[:200]!r}")
        parts = [version["inference_stats"] for version in json.loads(body)["model_stats"]]
        return Counts(*(sum(part[name]["count"] for part in parts) for name in ("success", "cache_hit", "cache_miss")))


class Peer(Struct, frozen=True):
    """A server that is up. ``group`` is its process group; ``triton`` is where its misses are counted."""

    name: str
    port: int
    group: int
    triton: Triton
    is_triton: bool = False


@contextmanager
def triton(*, response_cache: bool, environment: TritonEnvironment | None = None) -> Iterator[Triton]:
    """A real Triton with the model of benchmarks/peers/triton."""
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as directory:
        repository = Path(directory, "models")
        shutil.copytree(HERE / "triton", repository, ignore=shutil.ignore_patterns("*.pbtxt", "__pycache__"))
        config = (HERE / "triton" / MODEL / "config.pbtxt").read_text()
        if response_cache:
            config += (HERE / "triton" / "response_cache.pbtxt").read_text()
        (repository / MODEL / "config.pbtxt").write_text(config)
        options = TritonOptions(
            repositories=(repository,), response_cache_bytes=CACHE_BYTES_MAX if response_cache else 0
        )
        with TritonServer(options, environment or find_environment()) as server:
            yield Triton(server)


@contextmanager
def triton_direct(name: str, upstream: Triton, _: int) -> Iterator[Peer]:
    yield Peer(name, upstream.server.http_port, upstream.server.pid, upstream, is_triton=True)


@contextmanager
def triton_cache(name: str, upstream: Triton, _: int) -> Iterator[Peer]:
    with triton(response_cache=True, environment=upstream.server.environment) as own:
        yield Peer(name, own.server.http_port, own.server.pid, own, is_triton=True)


@contextmanager
def tailrace(name: str, upstream: Triton, _: int) -> Iterator[Peer]:
    config = fill(HERE / "tailrace.toml", {"UPSTREAM": upstream.server.http_url, "CACHE_BYTES": f"{CACHE_BYTES_MAX}B"})
    with GatewayProcess(config) as gateway:
        yield Peer(name, _port(gateway.http_url), gateway.process.pid, upstream)


@contextmanager
def tailrace_pass(name: str, upstream: Triton, _: int) -> Iterator[Peer]:
    with GatewayProcess(None, ("--upstream", upstream.server.http_url)) as gateway:
        yield Peer(name, _port(gateway.http_url), gateway.process.pid, upstream)


@contextmanager
def nginx_proxy(name: str, upstream: Triton, body_bytes: int) -> Iterator[Peer]:
    with _nginx(name, "nginx_proxy.conf", upstream, body_bytes) as peer:
        yield peer


@contextmanager
def nginx_cache(name: str, upstream: Triton, body_bytes: int) -> Iterator[Peer]:
    with _nginx(name, "nginx_cache.conf", upstream, body_bytes) as peer:
        yield peer


@contextmanager
def nginx_digest(name: str, upstream: Triton, body_bytes: int) -> Iterator[Peer]:
    with _nginx(name, "nginx_digest.conf", upstream, body_bytes) as peer:
        yield peer


@contextmanager
def aiohttp_dict(name: str, upstream: Triton, _: int) -> Iterator[Peer]:
    port = free_port()
    command = [sys.executable, str(HERE / "aiohttp_dict.py"), str(port), upstream.server.http_url]
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as directory, _child(command, directory, port) as pid:
        yield Peer(name, port, pid, upstream)


START: Final[Mapping[str, Callable[..., object]]] = {
    "tailrace": tailrace,
    "tailrace-pass": tailrace_pass,
    "nginx-cache": nginx_cache,
    "nginx-digest": nginx_digest,
    "nginx-proxy": nginx_proxy,
    "triton-cache": triton_cache,
    "triton": triton_direct,
    "aiohttp": aiohttp_dict,
}
"""``START[name](name, upstream, body_bytes)`` is a context manager of a Peer."""


def fill(template: Path, values: Mapping[str, str]) -> str:
    """The template's text with every ``@NAME@`` replaced. Raises KeyError for a name without a value."""
    parts = template.read_text().split("@")
    return "".join(part if index % 2 == 0 else values[part] for index, part in enumerate(parts))


def buffer_kibibytes(body_bytes: int) -> int:
    """A power of two that holds a body, the key's other parts and the answer's head."""
    size = 4
    while size * 1024 < body_bytes + 2048:
        size *= 2
    return size


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def _nginx(name: str, template: str, upstream: Triton, body_bytes: int) -> Iterator[Peer]:
    memory = Path("/dev/shm")
    in_memory = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-", dir=memory if in_memory else None) as directory:
        port = free_port()
        buffer = f"{buffer_kibibytes(body_bytes)}k"
        config = fill(
            HERE / template,
            {
                "DIRECTORY": directory,
                "PORT": str(port),
                "UPSTREAM_ADDRESS": upstream.server.http_address,
                "BODY_BUFFER": buffer,
                "KEY_BUFFER": buffer,
                "CACHE_BYTES": str(CACHE_BYTES_MAX),
                "MODULES": str(NGINX_MODULES),
            },
        )
        path = Path(directory, "nginx.conf")
        path.write_text(config)
        command = ["nginx", "-p", directory, "-c", str(path), "-e", "stderr"]
        if os.geteuid() == 0:  # else its worker becomes somebody who may not write here
            command += ["-g", "user root;"]
        with _child(command, directory, port) as pid:
            yield Peer(name, port, pid, upstream)


@contextmanager
def _child(command: list[str], directory: str, port: int) -> Iterator[int]:
    """A command that listens on ``port`` once it is ready; its process group. Raises PeerFailed."""
    environ = dict(os.environ) | {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"}
    child = Child(command, environ, Path(directory), "peer")
    try:
        end = time.monotonic() + READY_SECONDS
        while True:
            if not child.running or time.monotonic() > end:
                raise PeerFailed(f"{command[0]} did not come up:\n{child.log()[-4000:]}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield child.pid
    finally:
        child.stop()


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])
