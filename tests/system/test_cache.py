"""The cache as callers meet it: what they may ask of it, what its headers say, and when it must forget.

Most of it runs before a server of our own that speaks enough of the protocol and can be held, failed and
watched; collapsing and epochs run before a real Triton. States that come with time are polled for.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import http.client
import itertools
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest
from aiohttp import web

from examples.gatewayprocess import GatewayProcess
from examples.tritonserver import TritonServer
from tests.conftest import settled

Json = dict[str, object]
NUMBERS = itertools.count(1)
SECONDS_MAX = 20.0


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def cache_status(self) -> str:
        return self.headers.get("Cache-Status", "")

    @property
    def provenance(self) -> str:
        return self.headers.get("Tailrace-Provenance", "")

    @property
    def state(self) -> str:
        """hit, stale or miss as Tailrace-Provenance says, or the status of a problem."""
        found = re.search(r"cache=(\w+)", self.provenance)
        return found[1] if found and self.status == 200 else str(self.status)

    @property
    def values(self) -> list[float]:
        found: list[float] = json.loads(self.body)["outputs"][0]["data"]
        return found


def until(condition: Callable[[], bool], seconds: float = SECONDS_MAX) -> None:
    """Poll until it is so; a test that needs longer than this has found something."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


def infer(number: float, **more: object) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [number]}
    return json.dumps({"inputs": [tensor], **more}).encode()


class Caller:
    """Posts to one gateway; each call is a connection of its own."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __call__(self, route: str, content: bytes, **headers: str) -> Answer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection(self.address, timeout=SECONDS_MAX)
        try:
            connection.request("POST", f"/v2/models/{route}/infer", content, named)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.headers.items()), answer.read())
        finally:
            connection.close()


class Source:
    """A server that looks like Triton: y = x + 1000 * generation, unless it is told to hold or to fail."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.failing: dict[str, int] = {}
        self.in_regions = False  # outputs go to shared memory, of which the answer says nothing
        self.generation = 0
        self.asked: Counter[str] = Counter()
        self.working: Counter[str] = Counter()
        self.cancelled: Counter[str] = Counter()
        self.looks: Counter[str] = Counter()
        self.work: Counter[str] = Counter()
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def hold(self, held: bool) -> None:
        """Whether requests for an inference wait."""
        self._loop.call_soon_threadsafe(self._open.clear if held else self._open.set)

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(SECONDS_MAX)

    def stop(self) -> None:
        self.hold(False)
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(SECONDS_MAX)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS_MAX)
        self._loop.close()

    async def _listen(self) -> None:
        app = web.Application()
        app.router.add_get("/v2/health/ready", self._ready)
        app.router.add_get("/v2/models/{model}", self._metadata)
        app.router.add_get("/v2/models/{model}/config", self._config)
        app.router.add_get("/v2/models/{model}/stats", self._stats)
        app.router.add_post("/v2/models/{model}/infer", self._infer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def _ready(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _metadata(self, request: web.Request) -> web.Response:
        tensor = {"datatype": "FP32", "shape": [-1, 1]}
        name = request.match_info["model"]
        document = {
            "name": name,
            "versions": ["1"],
            "inputs": [{"name": "x"} | tensor],
            "outputs": [{"name": "y"} | tensor],
        }
        return web.json_response(document)

    async def _config(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        more: Json = {"model_transaction_policy": {"decoupled": True}} if name == "decoupled" else {}
        if name == "stateful":
            more = {"sequence_batching": {}}
        return web.json_response({"name": name, "max_batch_size": 8} | more)

    async def _stats(self, request: web.Request) -> web.Response:
        model = request.match_info["model"]
        self.looks[model] += 1
        work = self.work[model]
        version = {"version": "1", "inference_count": work, "execution_count": work}
        return web.json_response({"model_stats": [version]})

    async def _infer(self, request: web.Request) -> web.Response:
        model = request.match_info["model"]
        body = await request.read()
        self.asked[model] += 1
        self.working[model] += 1
        try:
            await self._open.wait()
        except asyncio.CancelledError:
            self.cancelled[model] += 1
            raise
        finally:
            self.working[model] -= 1
        if model in self.failing:
            return web.json_response({"error": "told to"}, status=self.failing[model])
        if self.in_regions:
            elsewhere = {"name": "y", "datatype": "FP32", "shape": [1, 1]}
            return web.json_response({"model_name": model, "model_version": "1", "outputs": [elsewhere]})
        (x,) = struct.unpack("<f", body[-4:])
        y = struct.pack("<f", x + 1000 * self.generation)
        output = {"name": "y", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}}
        head = json.dumps({"model_name": model, "model_version": "1", "outputs": [output]}).encode()
        return web.Response(body=head + y, headers={"Inference-Header-Content-Length": str(len(head))})


CACHES: dict[str, Json] = {
    "plain": {"ttl": "1h"},
    "other": {"ttl": "1h"},
    "shared": {"ttl": "1h", "shared": True},
    "brief": {"ttl": "250ms", "max_stale": "1h"},
    "mortal": {"ttl": "300ms", "max_stale": "600ms"},
    "window": {"ttl": "250ms", "max_stale": "1h", "refresh": "1h", "refreshes_max": 2},
    "stateful": {"ttl": "1h"},
    "decoupled": {"ttl": "1h"},
}


def key_of(caller: str) -> str:
    return hashlib.sha256(caller.encode()).hexdigest()


@pytest.fixture(scope="module")
def server() -> Iterator[Source]:
    made = Source()
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def gateway(server: Source) -> Iterator[GatewayProcess]:
    def tier(model: str, **more: object) -> Json:
        return {"backend": "gpu", "model": model} | more

    routes: dict[str, Json] = {name: {"tiers": [tier(name)], "cache": cache} for name, cache in CACHES.items()}
    # No row is ever sure: the fast tier's answer is only taken when the large one fails.
    fast = tier("fast", accept={"output": "y", "rule": "max", "at_least": 1e30})
    routes["tiered"] = {"tiers": [fast, tier("large")], "cache": {"ttl": "1h"}}
    config = {
        "backends": {"gpu": {"http": [server.url], "probe": "100ms", "breaker": {"open": "20ms", "open_max": "50ms"}}},
        "callers": {
            "alice": {"key_sha256": key_of("alice"), "tenant": "a"},
            "bob": {"key_sha256": key_of("bob"), "tenant": "b"},
        },
        "routes": routes,
    }
    with GatewayProcess(config) as process:  # type: ignore[arg-type]  # plain JSON is TOML enough
        yield process


@pytest.fixture
def source(server: Source) -> Iterator[Source]:
    """The server in good health, before and after."""
    yield server
    server.hold(False)
    server.failing, server.generation, server.in_regions = {}, 0, False


@pytest.fixture
def post(gateway: GatewayProcess) -> Caller:
    return Caller(gateway.http_address)


@pytest.fixture
def stored(post: Caller) -> Callable[[str], bytes]:
    """``stored("window")`` -> a request of its own whose answer has just been kept."""

    def make(route: str) -> bytes:
        content = infer(float(next(NUMBERS)))
        assert post(route, content).cache_status == "tailrace; fwd=miss; stored; detail=absent"
        return content

    return make


@pytest.fixture
def kept(post: Caller, stored: Callable[[str], bytes]) -> Callable[[str], bytes]:
    """``kept("plain")`` -> the same, and it is known by its bytes; of a route whose answers outlive a slow machine."""

    def make(route: str) -> bytes:
        content = stored(route)
        once = post(route, content)
        assert once.cache_status.startswith("tailrace; hit; ttl=")
        assert "tailrace;dur=" in once.headers["Server-Timing"]  # it was read first: its bytes were not known yet
        return content

    return make


# -- what a caller may say ------------------------------------------------------------------------


def test_a_hit_says_so_with_its_age_and_time_left(post: Caller, source: Source, kept: Callable[[str], bytes]) -> None:
    content = kept("plain")
    asked = source.asked["plain"]
    hit = post("plain", content)
    found = re.fullmatch(r"tailrace; hit; ttl=(\d+)", hit.cache_status)
    assert found is not None, hit.cache_status
    assert 3500 <= int(found[1]) < 3600
    assert 0 <= int(hit.headers["Age"]) < 60
    assert re.fullmatch(
        r'cache=hit, reason=fresh, tier="plain", version="1", age=\d+, rows=1, escalated=0', hit.provenance
    )
    assert hit.headers["Server-Timing"] == "cache;desc=hit"  # no duration: a hit by its bytes is not worth a clock
    assert source.asked["plain"] == asked


# -- the life of an entry -------------------------------------------------------------------------


def test_while_the_backend_fails_an_answer_is_fresh_then_labelled_then_gone(
    post: Caller, source: Source, stored: Callable[[str], bytes]
) -> None:
    """None of that before its time; how much of it is seen is the machine's to say, but for what lasts an hour."""
    old = stored("brief")
    began = time.monotonic()
    content = stored("mortal")
    source.failing["mortal"] = source.failing["brief"] = 500
    seen: list[Answer] = []
    first: dict[str, float] = {}

    def gone() -> bool:
        seen.append(post("mortal", content))
        first.setdefault(seen[-1].state, time.monotonic() - began)
        return seen[-1].status == 503

    until(gone)
    order = [state for state, _ in itertools.groupby(answer.state for answer in seen)]
    assert order == [state for state in ("hit", "stale", "503") if state in order]
    assert first.get("stale", 1.0) >= 0.3
    assert first["503"] >= 0.6
    seen.insert(0, post("brief", old))
    assert seen[0].state == "stale"
    for answer in seen:
        if answer.state == "stale":
            assert re.fullmatch(r"tailrace; hit; ttl=-\d+; detail=raised", answer.cache_status), answer.cache_status
            assert answer.provenance.endswith("steps=(stale), degraded")
    problem = json.loads(seen[-1].body)
    assert problem["type"] == "urn:tailrace:problem:model-failed"
    assert "Retry-After" not in seen[-1].headers
    source.failing.clear()
    until(lambda: post("mortal", content).state == "miss")


def test_during_a_failure_no_cache_is_a_503_and_errors_are_never_kept(
    post: Caller, source: Source, kept: Callable[[str], bytes]
) -> None:
    content, cold = kept("other"), infer(float(next(NUMBERS)))
    source.failing["other"] = 500
    assert post("other", content, Cache_Control="no-cache").status == 503
    assert post("other", cold).status == 503
    assert post("other", content).state == "hit"
    source.failing["other"] = 400
    until(lambda: post("other", cold).status == 400)
    asked = source.asked["other"]
    refused = post("other", cold)
    assert (refused.status, json.loads(refused.body)["error"]) == (400, "told to")
    assert source.asked["other"] == asked + 1
    source.failing.clear()
    assert post("other", cold).state == "miss"


def test_in_the_window_old_answers_come_at_once_and_refreshes_are_bounded(
    post: Caller, source: Source, gateway: GatewayProcess, stored: Callable[[str], bytes]
) -> None:
    contents = [stored("window") for _ in range(5)]
    for content in contents:
        until(lambda content=content: post("window", content, Cache_Control="only-if-cached").status == 504)
    source.hold(True)
    source.generation = 7
    asked = source.asked["window"]
    for content in [*contents, *contents]:
        answer = post("window", content)
        assert re.fullmatch(r"tailrace; hit; ttl=-\d+; detail=revalidating", answer.cache_status), answer.cache_status
        assert answer.values[0] < 1000
    until(lambda: source.working["window"] == 2)
    assert gateway.metric("tailrace_refreshes", route="window") == 2
    assert source.asked["window"] == asked + 2
    source.hold(False)
    for content in contents:
        until(lambda content=content: post("window", content).values[0] > 7000)


def test_a_refresh_that_fails_is_counted_and_the_old_answer_stays(
    post: Caller, source: Source, gateway: GatewayProcess, stored: Callable[[str], bytes]
) -> None:
    content = stored("window")
    until(lambda: post("window", content, Cache_Control="only-if-cached").status == 504)
    source.failing["window"] = 500
    before = gateway.metric("tailrace_refresh_failures_total", route="window")
    assert post("window", content).state == "stale"
    until(lambda: gateway.metric("tailrace_refresh_failures_total", route="window") > before)
    assert post("window", content).state == "stale"


# -- forgetting -----------------------------------------------------------------------------------


def purge(gateway: GatewayProcess, query: str) -> Json:
    host = gateway.admin_url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=SECONDS_MAX)
    try:
        connection.request("POST", f"/purge?{query}")
        found: Json = json.loads(connection.getresponse().read())["purged"]
        return found
    finally:
        connection.close()


def test_a_purge_forgets_one_route_or_all_at_once(
    post: Caller, gateway: GatewayProcess, kept: Callable[[str], bytes]
) -> None:
    one, other = kept("plain"), kept("other")
    assert purge(gateway, "route=plain")["plain"] >= 1  # type: ignore[operator]  # a count
    assert post("plain", one).state == "miss"
    assert post("other", other).state == "hit"
    assert set(purge(gateway, "all")) == {*CACHES, "tiered"}
    assert (post("plain", one).state, post("other", other).state) == ("miss", "miss")


def test_a_purge_reaches_the_fill_under_way_and_who_comes_after_it(
    post: Caller, source: Source, gateway: GatewayProcess
) -> None:
    content, before, after = infer(float(next(NUMBERS))), [], []
    source.hold(True)
    first = threading.Thread(target=lambda: before.append(post("plain", content)))
    second = threading.Thread(target=lambda: after.append(post("plain", content)))
    first.start()
    until(lambda: source.working["plain"] == 1)
    purge(gateway, "route=plain")
    second.start()
    until(lambda: source.working["plain"] == 2)
    source.hold(False)
    first.join()
    second.join()
    assert before[0].cache_status == "tailrace; fwd=miss; detail=absent"
    assert after[0].cache_status == "tailrace; fwd=miss; stored; detail=absent"
    assert post("plain", content).state == "hit"


def test_an_epoch_turns_when_a_models_statistics_begin_anew(
    post: Caller, source: Source, gateway: GatewayProcess, kept: Callable[[str], bytes]
) -> None:
    """What Triton's do at a reload of the same version; what was seen before is waited for."""
    content, untouched = kept("other"), kept("plain")
    source.work["other"] = 5
    looks = source.looks["other"]
    until(lambda: source.looks["other"] >= looks + 3)
    epoch = gateway.metric("tailrace_epoch", route="other")
    assert post("other", content).state == "hit"
    source.work["other"] = 0
    until(lambda: gateway.metric("tailrace_epoch", route="other") == epoch + 1)
    assert post("other", content).cache_status == "tailrace; fwd=stale; stored; detail=epoch"
    assert post("other", content).state == "hit"
    assert post("plain", untouched).state == "hit"


# -- wire forms -----------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", ["", "gzip", "deflate"])
def test_the_same_bytes_get_the_same_bytes_by_the_short_path(
    coding: str, post: Caller, source: Source, gateway: GatewayProcess
) -> None:
    content = infer(float(next(NUMBERS)))
    headers = {"Accept_Encoding": coding} if coding else {}
    wires = gateway.metric("tailrace_cache_wires", route="plain")
    answers = [post("plain", content, **headers) for _ in range(3)]
    assert [answer.state for answer in answers] == ["miss", "hit", "hit"]
    assert gateway.metric("tailrace_cache_wires", route="plain") == wires + 1
    assert len({answer.body for answer in answers}) == 1
    assert {answer.headers.get("Content-Encoding", "") for answer in answers} == {coding}
    unpack = {"": bytes, "gzip": gzip.decompress, "deflate": zlib.decompress}[coding]
    assert json.loads(unpack(answers[0].body))["model_name"] == "plain"
    other = post("plain", content, Accept_Encoding="identity" if coding else "gzip")
    assert other.state == "hit"
    assert other.headers.get("Content-Encoding", "") != coding
    packed = post("plain", gzip.compress(content), Content_Encoding="gzip", **headers)
    assert (packed.state, packed.body) == ("hit", answers[0].body)


def test_ids_are_echoed_and_no_ready_answer_is_kept_for_them(post: Caller, gateway: GatewayProcess) -> None:
    number = float(next(NUMBERS))
    wires = gateway.metric("tailrace_cache_wires", route="plain")
    for identity in ("a", "b", "a"):
        answer = post("plain", infer(number, id=identity))
        assert json.loads(answer.body)["id"] == identity
    assert answer.state == "hit"
    assert gateway.metric("tailrace_cache_wires", route="plain") == wires


# -- what is never kept ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "more", "reason"),
    [
        ("stateful", {}, "sequence"),
        ("decoupled", {}, "decoupled"),
        ("plain", {"parameters": {"sequence_id": 5, "sequence_start": True}}, "sequence"),
    ],
)
def test_what_depends_on_more_than_the_request_is_never_kept(
    route: str, more: Json, reason: str, post: Caller, source: Source
) -> None:
    content, asked = infer(float(next(NUMBERS)), **more), source.asked[route]
    for _ in range(3):
        answer = post(route, content)
        assert (answer.status, answer.cache_status) == (200, f"tailrace; fwd=bypass; detail={reason}")
    assert source.asked[route] == asked + 3


def test_an_answer_into_shared_memory_is_never_kept(post: Caller, source: Source) -> None:
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 4}
    source.in_regions = True
    content = infer(float(next(NUMBERS)), outputs=[{"name": "y", "parameters": region}])
    asked = source.asked["plain"]
    for _ in range(2):
        answer = post("plain", content)
        assert (answer.status, answer.cache_status) == (200, "tailrace; fwd=bypass; detail=shared-memory")
    assert source.asked["plain"] == asked + 2


def test_the_counters_add_up(post: Caller, gateway: GatewayProcess, kept: Callable[[str], bytes]) -> None:
    def counted() -> tuple[float, ...]:
        return (
            gateway.metric("tailrace_answers_total", route="other"),
            gateway.metric("tailrace_answers_total", route="other", cache="hit"),
            gateway.metric("tailrace_refusals_total", route="other"),
            gateway.metric("tailrace_responses_total", route="other"),
            gateway.metric("tailrace_request_seconds_count", route="other"),
        )

    before = counted()
    content = kept("other")
    for index in range(4):
        assert post("other", content if index % 2 else content + b" ").state == "hit"
    assert post("other", b"{").status == 400
    difference = tuple(after - was for after, was in zip(counted(), before, strict=True))
    assert difference == (6, 5, 1, 7, 7)


# -- callers who leave ----------------------------------------------------------------------------


def leaving(gateway: GatewayProcess, route: str, content: bytes) -> socket.socket:
    """A caller that has sent its request and may hang up."""
    host, _, port = gateway.http_address.partition(":")
    connection = socket.create_connection((host, int(port)), timeout=SECONDS_MAX)
    head = f"POST /v2/models/{route}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def test_when_all_callers_have_left_the_work_upstream_is_cancelled(source: Source, gateway: GatewayProcess) -> None:
    content, cancelled = infer(float(next(NUMBERS))), source.cancelled["plain"]
    source.hold(True)
    callers = [leaving(gateway, "plain", content) for _ in range(5)]
    until(lambda: gateway.metric("tailrace_waiters", route="plain") == 5)
    assert source.working["plain"] == 1
    for caller in callers[:4]:
        caller.close()
    until(lambda: gateway.metric("tailrace_waiters", route="plain") == 1)
    assert source.working["plain"] == 1
    callers[4].close()
    until(lambda: source.cancelled["plain"] == cancelled + 1)
    assert gateway.metric("tailrace_flights", route="plain") == 0


# -- before a real Triton -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(triton: TritonServer) -> Iterator[GatewayProcess]:
    route = {"tiers": [{"backend": "gpu", "model": "slow"}], "cache": {"ttl": "1h"}, "timeout": "30s"}
    config = {"backends": {"gpu": {"http": [triton.http_url]}}, "routes": {"slow": route}}
    with GatewayProcess(config) as process:  # type: ignore[arg-type]
        yield process


async def gathered(gateway: GatewayProcess, content: bytes, count: int) -> list[tuple[int, str, bytes]]:
    async def one(session: aiohttp.ClientSession) -> tuple[int, str, bytes]:
        async with session.post(f"{gateway.http_url}/v2/models/slow/infer", data=content) as answer:
            return answer.status, answer.headers["Cache-Status"], await answer.read()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        return await asyncio.gather(*(one(session) for _ in range(count)))


@pytest.mark.parametrize("first_leaves", [False, True])
async def test_200_identical_requests_are_one_inference(
    first_leaves: bool, real: GatewayProcess, triton: TritonServer, tmp_path: Path
) -> None:
    all_wait = tmp_path / "all wait"
    content = infer(float(next(NUMBERS)), parameters={"sleep_ms": 0, "until": str(all_wait)})
    before = await asyncio.to_thread(settled, triton, "slow")

    def waiting(count: int) -> Callable[[], bool]:
        return lambda: real.metric("tailrace_waiters", route="slow") == count

    first = None
    if first_leaves:
        first = leaving(real, "slow", content)
        await asyncio.to_thread(until, waiting(1))
    count = 199 if first_leaves else 200
    others = asyncio.create_task(gathered(real, content, count))
    await asyncio.to_thread(until, waiting(200))
    if first is not None:
        first.close()
        await asyncio.to_thread(until, waiting(199))
    all_wait.touch()
    answers = await others
    done = await asyncio.to_thread(settled, triton, "slow") - before
    assert (done.requests, done.failed, done.rows, done.executions) == (1, 0, 1, 1)
    assert {status for status, _, _ in answers} == {200}
    assert len({body for _, _, body in answers}) == 1
    told = Counter(cache_status for _, cache_status, _ in answers)
    led = 0 if first_leaves else 1
    assert told["tailrace; fwd=miss; stored; collapsed; detail=absent"] == count - led
    assert told["tailrace; fwd=miss; stored; detail=absent"] == led


def test_an_epoch_turns_when_triton_loads_and_old_answers_serve_only_in_need(
    triton_factory: Callable[..., TritonServer], gateway_factory: Callable[..., GatewayProcess]
) -> None:
    triton = triton_factory("echo_fp32")
    route = {"tiers": [{"backend": "gpu", "model": "echo_fp32"}], "cache": {"ttl": "1h", "max_stale": "1h"}}
    gateway = gateway_factory(
        {
            "server": {"allow": ["repository"]},
            "backends": {"gpu": {"http": [triton.http_url], "probe": "100ms"}},
            "routes": {"echo": route},
        }
    )
    post, content = Caller(gateway.http_address), infer(5.0)
    (repository,) = triton.options.repositories
    assert [post("echo", content).state for _ in range(2)] == ["miss", "hit"]

    # Through the gateway: known at once.
    rewrite(repository, 1, "x + 1")
    connection = http.client.HTTPConnection(gateway.http_address, timeout=SECONDS_MAX)
    connection.request("POST", "/v2/repository/models/echo_fp32/load", b"{}")
    assert connection.getresponse().status == 200
    connection.close()
    turned = post("echo", content)
    assert (turned.cache_status, turned.values) == ("tailrace; fwd=stale; stored; detail=epoch", [6.0])

    # Behind its back: a new version is known within a probe. The old one's statistics end with it, as they
    # do at a reload of the same version.
    until(lambda: post("echo", content).state == "hit")
    worked, epoch = settled(triton, "echo_fp32").requests, gateway.metric("tailrace_epoch", route="echo")
    rewrite(repository, 2, "x + 3")
    triton.load("echo_fp32")
    until(lambda: gateway.metric("tailrace_epoch", route="echo") > epoch)
    assert triton.statistics("echo_fp32").requests < worked
    until(lambda: post("echo", content).values == [8.0])

    # An answer of a turned epoch is kept for need, and says what it is.
    until(lambda: post("echo", content).state == "hit")
    connection = http.client.HTTPConnection(gateway.http_address, timeout=SECONDS_MAX)
    connection.request("POST", "/v2/repository/models/echo_fp32/load", b"{}")
    assert connection.getresponse().status == 200
    connection.close()
    triton.kill()
    old = post("echo", content)
    assert (old.status, old.values) == (200, [8.0])
    assert re.fullmatch(r"tailrace; hit; ttl=-\d+; detail=unreachable", old.cache_status), old.cache_status
    assert old.provenance.endswith("steps=(stale), degraded")
    assert post("echo", infer(6.0)).status == 503


def rewrite(repository: Path, version: int, formula: str) -> None:
    """Another model under the same name, in this version."""
    folder = repository / "echo_fp32" / str(version)
    folder.mkdir(exist_ok=True)
    source = (repository / "echo_fp32" / "1" / "model.py").read_text()
    changed = re.sub(r"x\.as_numpy\(\)(?: \+ \d)?", formula.replace("x", "x.as_numpy()"), source)
    assert changed != source
    (folder / "model.py").write_text(changed)
