"""A plain JSON predict server that knows nothing of Triton, and gateways before it, in the test's own event loop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import pytest
from aiohttp import ClientSession, web
from yarl import URL

from gateway.app import Gateway
from gateway.sources import load, read

LISTENERS = {f"TAILRACE_SERVER__{name}": '"127.0.0.1:0"' for name in ("HTTP", "ADMIN")} | {
    "TAILRACE_SERVER__GRPC": "off",
    "TAILRACE_SERVER__DRAIN": "1s",
}


class Predictor:
    """POST /predict answers the sum of ``inputs``, GET /healthz ``health``, all else is 404: any plain server.

    ``posts`` keeps (query, fields, body) of what was predicted, ``asked`` each method and path but those of health.
    ``gate`` holds answers back; ``fields``, ``status`` and ``reply`` are what the next ones have.
    """

    def __init__(self) -> None:
        self.posts: list[tuple[str, Mapping[str, str], bytes]] = []
        self.asked: list[tuple[str, str]] = []
        self.probed: list[str] = []
        self.health = 200
        self.status = 200
        self.fields: dict[str, str] = {}
        self.reply: bytes | None = None
        self.echoes = ""  # a request field whose value is the answer
        self.cookies = False  # whether each answer hands out another one
        self.gate = asyncio.Event()
        self.gate.set()
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/predict", self._predict)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_route("*", "/echo", self._echo)
        app.middlewares.append(self._note)
        runner = self._runner = web.AppRunner(app, auto_decompress=False)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def stop(self) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @web.middleware
    async def _note(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path in ("/healthz", "/v2/health/ready") and request.method == "GET":
            self.probed.append(request.path)
        else:
            self.asked.append((request.method, request.path_qs))
        return await handler(request)

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(status=self.health)

    async def _echo(self, request: web.Request) -> web.Response:
        return web.Response(body=await request.read(), headers={"X-Method": request.method, "X-Path": request.path_qs})

    async def _predict(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.posts.append((request.query_string, request.headers, body))
        await self.gate.wait()
        reply = self.reply
        if self.echoes:
            reply = request.headers.get(self.echoes, "").encode()
        if reply is None:
            try:
                reply = json.dumps({"sum": sum(json.loads(body)["inputs"])}).encode()
            except (ValueError, KeyError, UnicodeDecodeError):
                reply = b'{"sum": "unread"}'
        fields = {"Content-Type": "application/json"} | self.fields
        if self.cookies:
            fields["Set-Cookie"] = f"visit={len(self.posts)}"
        return web.Response(body=reply, status=self.status, headers=fields)


class Front:
    """A running gateway, and a client of it."""

    def __init__(self, gateway: Gateway, http: str, admin: str) -> None:
        self.gateway, self.url, self.admin = gateway, http, admin
        self.port = int(http.rpartition(":")[2])
        self.client = ClientSession(auto_decompress=False)
        self.write: Callable[[str], int] = lambda _: 0

    async def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Told:
        """One request; a body that is no bytes goes as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        url = URL(f"{self.url}{path}", encoded=True)
        async with self.client.request(method, url, data=data, headers=headers) as got:
            return Told(got.status, got.headers, await got.read())

    async def predict(self, *inputs: int, path: str = "/predict", **fields: str) -> Told:
        """A post of the endpoint; ``fields`` are header fields, with _ for -."""
        headers = {"Content-Type": "application/json"}
        headers |= {name.replace("_", "-"): value for name, value in fields.items()}
        return await self.ask("POST", path, {"inputs": inputs}, headers)

    async def reload(self, toml: str) -> int:
        """Write the file anew but for its backend, and have it taken; the status of that."""
        self.write(toml)
        async with self.client.post(f"{self.admin}/reload") as got:
            return got.status

    async def close(self) -> None:
        await self.client.close()
        await self.gateway.stop()


class Told:
    """An answer as a caller sees it."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def cache(self) -> str:
        """What Tailrace-Provenance says of the cache."""
        return self.headers["Tailrace-Provenance"].partition(",")[0].removeprefix("cache=")

    @property
    def document(self) -> dict[str, object]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found


@pytest.fixture
async def predictor() -> AsyncIterator[Predictor]:
    found = Predictor()
    await found.start()
    yield found
    found.gate.set()
    await found.stop()


Open = Callable[..., Awaitable[Front]]


@pytest.fixture(params=["edge", "aiohttp"])
async def open_front(
    request: pytest.FixtureRequest, predictor: Predictor, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Open]:
    """``await open_front(toml="", KEY=value)`` -> a gateway before the predictor, or before ``urls``; with ``toml`` the
    backend is called "plain". Keys are environment overrides."""
    fronts: list[Front] = []

    async def start(toml: str | None = None, urls: list[str] | None = None, **overrides: str) -> Front:
        environ = LISTENERS | {"TAILRACE_SERVER__EDGE": str(request.param == "edge").lower()} | overrides
        named = urls or [predictor.url]
        if toml is None:
            gateway = Gateway(load(None, environ, named))
        else:
            path = tmp_path_factory.mktemp("config") / "tailrace.toml"
            begun = f"[backends.plain]\nhttp = {json.dumps(named)}\nprobe = '100ms'\n"
            path.write_text(begun + toml)
            gateway = Gateway(load(str(path), environ), reread=lambda: read(str(path), environ))
        http, admin = await gateway.start()
        fronts.append(Front(gateway, http, admin))
        if toml is not None:
            fronts[-1].write = lambda text: path.write_text(begun + text)
        return fronts[-1]

    yield start
    for front in fronts:
        await front.close()


async def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    """Let everything in this loop go on until ``true()``."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)
