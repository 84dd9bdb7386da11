"""Everything that runs: a real Triton, a real Redis, a gateway of two workers, and a link that can be broken between
each two of them.

Rule of this file: what is started here is stopped here. It breaks and mends nothing by itself (that is ``hands.py``).
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from examples.gatewayprocess import ConfigValue, GatewayProcess
from examples.redisserver import RedisServer
from examples.tritonserver import TritonEnvironment, TritonOptions, TritonServer
from tests.chaos.judge import COHERENT_SECONDS, DEADLINE_SECONDS, SECOND_TTL_SECONDS, TTL_SECONDS
from tests.chaos.plan import LINKS
from tests.chaos.proxy import HOST, Proxy

MODEL: Final = Path(__file__).resolve().parents[1] / "system" / "models" / "stamped"
MODELS: Final = ("stamped", "fast", "large")
WORKERS: Final = 2
USERS_DB, SECOND_DB = 0, 1
REDIS: Final = ("enable-debug-command yes", "loading-process-events-interval-bytes 1024")
STATUS_SECONDS: Final = 6.0
READY_SECONDS: Final = 120.0
"""Many times what each takes: a machine that runs other tests besides must decide nothing."""


class House:
    """As an asynchronous context manager. ``proxies`` are by link (`plan.LINKS`)."""

    def __init__(self, environment: TritonEnvironment, seed: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tailrace-chaos-"))
        self.repository = self.folder / "models"
        for model in MODELS:
            shutil.copytree(MODEL, self.repository / model, ignore=shutil.ignore_patterns("__pycache__"))
        options = TritonOptions((self.repository,), exit_timeout_seconds=2, environ={"PYTHONDONTWRITEBYTECODE": "1"})
        self.triton = TritonServer(options, environment)
        self.redis = RedisServer(REDIS)
        self.proxies: dict[str, Proxy] = {}
        self.gateway: GatewayProcess | None = None
        self._seed = seed
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self._stack.callback(self.triton.kill)
            self._stack.enter_context(self._running_redis())
            await asyncio.to_thread(self.triton.start, READY_SECONDS)
            for link in LINKS:
                if not link.endswith("door"):
                    await self._link(link)
            gateway = self.gateway = GatewayProcess(self.configuration(), ("--workers", str(WORKERS)))
            self._stack.push_async_callback(asyncio.to_thread, gateway.stop)
            await asyncio.to_thread(gateway.start, READY_SECONDS)
            await self._link("door")
            await self._link("grpc-door")
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @contextmanager
    def _running_redis(self) -> Iterator[None]:
        with self.redis:
            try:
                yield
            finally:
                self.redis.resume()  # one that is stopped does not end

    async def _link(self, name: str) -> None:
        ports = {
            "http": self.triton.http_port,
            "grpc": self.triton.grpc_port,
            "tables": self.redis.port,
            "second": self.redis.port,
        }
        if name.endswith("door"):
            address = self.serving.http_address if name == "door" else self.serving.grpc_address
            ports[name] = int(address.rpartition(":")[2])
        self.proxies[name] = await self._stack.enter_async_context(
            Proxy(HOST, ports[name], random.Random(f"{self._seed} {name}"))
        )

    @property
    def serving(self) -> GatewayProcess:
        assert self.gateway is not None, "the house was entered"
        return self.gateway

    def configuration(self) -> Mapping[str, ConfigValue]:
        """Six routes before one Triton: one tier, a cascade, by rows, a second level, over gRPC, features."""
        breaker: ConfigValue = {"open_max": "3s"}
        cache: dict[str, ConfigValue] = {"ttl": f"{TTL_SECONDS:g}s", "max_stale": "1h"}
        second: dict[str, ConfigValue] = {
            "ttl": f"{SECOND_TTL_SECONDS:g}s", "max_stale": "1h", "second_timeout": "100ms",
            "second": f"redis://{self.proxies['second'].address}/{SECOND_DB}", "snapshot": "fresh",
        }  # fmt: skip
        store: dict[str, ConfigValue] = {
            "store": f"redis://{self.proxies['tables'].address}/{USERS_DB}", "shape": [2], "max_stale": "1h",
            "default": "zeros", "timeout": "100ms", "negative_ttl": "500ms",
        }  # fmt: skip
        timeout = f"{DEADLINE_SECONDS:g}s"
        accept: dict[str, ConfigValue] = {"output": "p", "rule": "margin", "at_least": 0.5}

        def tier(model: str, backend: str = "web", **more: ConfigValue) -> dict[str, ConfigValue]:
            return {"backend": backend, "model": model, **more}

        def route(cache: ConfigValue, *tiers: ConfigValue) -> dict[str, ConfigValue]:
            return {"tiers": list(tiers), "cache": cache, "timeout": timeout}

        features: ConfigValue = {
            "entities": {"user": {"many": False}, "item": {"many": True}},
            "inputs": {"x": {"parts": [{"entity": "user", "table": "user"}, {"entity": "item", "table": "item"}]}},
        }
        return {
            "server": {"passthrough": "web", "drain": "3s"},
            "snapshot": {"path": str(self.folder / "snapshot"), "interval": "1s"},
            "backends": {
                "web": {"http": [f"http://{self.proxies['http'].address}"], "breaker": breaker},
                "spoken": {"grpc": [self.proxies["grpc"].address], "breaker": breaker},
            },
            "tables": {
                "user": store | {
                    "key": "u:{id}", "ttl": "1h", "coherence": "tracking", "coherent_within": f"{COHERENT_SECONDS:g}s",
                },
                "item": store | {"key": "i:{id}", "ttl": "1s"},
            },
            "routes": {
                "plain": route(cache, tier("stamped")),
                "cascade": route(cache, tier("fast", accept=accept), tier("large")),
                "rows": route(cache | {"rows": True}, tier("stamped")),
                "second": route(second, tier("stamped")),
                "rpc": route(cache, tier("stamped", "spoken")),
                "features": {"tiers": [tier("stamped")], "features": features, "timeout": timeout},
            },
        }  # fmt: skip

    def workers(self) -> list[int]:
        """Process ids of the workers that answer."""
        with urllib.request.urlopen(f"{self.serving.admin_url}/status", timeout=STATUS_SECONDS) as answer:
            told: list[Any] = json.load(answer)["workers"]
        return [each["pid"] for each in told if each is not None]
