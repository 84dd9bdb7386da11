"""The admin port: metrics that parse, a status that is true, a purge that says what it dropped."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from socket import gethostname
from time import monotonic
from unittest.mock import Mock

import pytest
from aiohttp import ClientSession, UnixConnector
from aiohttp.test_utils import make_mocked_request
from prometheus_client.parser import text_string_to_metric_families

from cache.digest import Key
from degrade.gate import NOBODY
from gateway.address import Address
from gateway.config import CacheConfig, TierConfig
from gateway.config import Route as RouteConfig
from gateway.doors.listener import Listener, listen
from gateway.learning import Home
from gateway.operate.admin import AdminPort, Shown, admin_port
from gateway.operate.faults import Faults
from gateway.operate.gauges import gauges
from gateway.operate.pages import page_fault
from gateway.operate.telemetry import Telemetry
from gateway.route import Route
from gateway.service import Served
from gateway.units import Seconds
from tiers.gates import Gates, GatesOptions
from tiers.inference import InferResponse, Tensor
from tiers.seat import ReplicaState


class Pool:
    def __init__(self) -> None:
        self.gates = Gates(GatesOptions(), monotonic, random.Random(0))
        self.gates.of("m").admit(NOBODY, 60.0, 0.0)

    def states(self) -> tuple[ReplicaState, ...]:
        return (ReplicaState("http://u", "open", 3, False, ("m",)),)


def route(name: str, cache: CacheConfig | None) -> Route:
    home = Home(Pool(), None)  # type: ignore[arg-type]  # nobody is asked anything here
    return Route(name, RouteConfig((TierConfig("gpu", "m"),), cache), [home], 1000)


def fill(kept: Route, count: int) -> None:
    assert kept.cache is not None
    for index in range(count):
        response = InferResponse("m", "1", (Tensor("y", "FP32", (1,), b"1234"),))
        entry = kept.entry(Served(response, "m", 1, 0, 1), 0, 0.0)
        assert kept.cache.store(Key(bytes([index] * 16), 0), entry, kept.cache.ticket())


@pytest.fixture
def routes() -> dict[str, Route]:
    cache = CacheConfig(ttl=Seconds(10))
    made = {"a": route("a", cache), "b": route("b", cache), "bare": route("bare", None)}
    fill(made["a"], 3)
    fill(made["b"], 2)
    return made


@pytest.fixture
def port(routes: dict[str, Route]) -> AdminPort:
    telemetry, pool = Telemetry(monotonic), Pool()
    homes = {"gpu": Home(pool, None)}  # type: ignore[arg-type]
    for gauge in gauges(lambda: routes, lambda: homes, lambda: False):
        telemetry.watch(gauge)
    faults = Faults(monotonic)
    return admin_port(Shown(lambda: routes, lambda: homes, telemetry, lambda: True, None, faults, host="here.example"))


@pytest.fixture
async def admin(port: AdminPort) -> AsyncIterator[ClientSession]:
    listener = Listener(port.handle, 8192, 10)
    server, url = await listen(listener, Address("127.0.0.1"))
    async with ClientSession(url) as session:
        yield session
    server.close()
    await listener.shutdown(1.0)


async def test_the_index_names_the_paths(admin: ClientSession) -> None:
    async with admin.get("/") as answer:
        assert "/purge?route=NAME" in await answer.text()


async def test_the_metrics_parse_and_tell_of_caches_and_replicas(admin: ClientSession) -> None:
    async with admin.get("/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text = await answer.text()
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["tailrace_cache_entries", "a"] == 3
    assert ("tailrace_cache_entries", "bare") not in samples
    assert samples["tailrace_breaker_state", "gpu", "http://u"] == 2
    assert samples["tailrace_replica_ready", "gpu", "http://u"] == 0
    assert samples["tailrace_replica_in_flight", "gpu", "http://u"] == 3
    assert samples["tailrace_replica_models_open", "gpu", "http://u"] == 1


async def test_the_status_is_true(admin: ClientSession, routes: dict[str, Route]) -> None:
    routes["a"].turn()
    async with admin.get("/status") as answer:
        status = await answer.json()
    assert status["draining"] is True
    assert status["routes"]["a"]["epoch"] == 1
    assert status["routes"]["a"]["cache"]["entries"] == 3
    assert status["routes"]["bare"]["cache"] is None
    assert status["backends"]["gpu"][0]["models_open"] == ["m"]
    gate = {"limit": 64, "places": 0, "in_flight": 1, "waiting": 0, "latency": 0.0, "shed": 0}
    assert status["load"] == {"gpu": {"level": 0, "models": {"m": gate}}}


async def test_one_route_is_purged_or_all(admin: ClientSession, routes: dict[str, Route]) -> None:
    assert routes["a"].cache is not None
    ticket = routes["a"].cache.ticket()
    async with admin.post("/purge", params={"route": "a"}) as answer:
        assert await answer.json() == {"purged": {"a": 3}}
    assert routes["a"].cache.ticket() != ticket
    async with admin.post("/purge?all") as answer:
        assert await answer.json() == {"purged": {"a": 0, "b": 2}}


@pytest.mark.parametrize(
    ("query", "status", "word"),
    [
        ("", 400, "either"),
        ("?route=a&all", 400, "either"),
        ("?route=a&route=b", 400, "either"),
        ("?everything", 400, "either"),
        ("?route=zzz", 404, "a, b, bare"),
    ],
)
async def test_an_unclear_purge_drops_nothing(
    admin: ClientSession, routes: dict[str, Route], query: str, status: int, word: str
) -> None:
    async with admin.post(f"/purge{query}") as answer:
        assert answer.status == status
        assert word in (await answer.json(content_type=None))["error"]
    assert [kept.cache.entries for kept in routes.values() if kept.cache is not None] == [3, 2]


REBOUND = {"Host": "evil.example:9090", "Origin": "http://evil.example:9090"}
"""What a browser sends for a page whose name has come to mean 127.0.0.1."""


@pytest.mark.parametrize("path", ["/purge?all", "/reload", "/chaos"])
@pytest.mark.parametrize(
    "fields",
    [
        REBOUND,
        {"Host": "evil.example"},  # of a browser that says no Origin
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "evil.example@127.0.0.1:x"},
        {"Host": ""},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:3000"},
        {"Host": "localhost:9090", "Origin": "http://localhost:9090"},
    ],
    ids=str,
)
async def test_no_page_in_a_browser_changes_anything(
    admin: ClientSession, routes: dict[str, Route], path: str, fields: dict[str, str]
) -> None:
    order = {"Content-Type": "application/json"}
    async with admin.post(path, headers=order | fields, data=b"{}") as answer:
        assert (answer.status, (await answer.json(content_type=None))["type"][-9:]) == (403, "forbidden")
        assert "browser" in await answer.text() or "loopback" in await answer.text()
    assert [kept.cache.entries for kept in routes.values() if kept.cache is not None] == [3, 2]


NAMES = [f"{gethostname()}:1", "localhost", "LOCALHOST.:1", "127.0.0.9:1", "[::1]:9090", "10.1.2.3", "Here.Example:1"]


@pytest.mark.parametrize("host", NAMES)
async def test_whoever_asks_this_host_by_one_of_its_own_names_does(
    admin: ClientSession, routes: dict[str, Route], host: str
) -> None:
    async with admin.post("/purge?all", headers={"Host": host}) as answer:
        assert answer.status == 200
    async with admin.get("/status", headers=REBOUND) as answer:
        assert answer.status == 200  # nothing changes


@pytest.mark.parametrize(
    ("here", "refused"),
    [
        (("127.0.0.1", 1), True),
        (("::ffff:127.0.0.1", 1, 0, 0), True),  # of a port that is open to all, IPv4 and IPv6
        (("::1", 1, 0, 0), True),
        (("10.0.0.1", 1), False),
        (("fe80::1%eth0", 1, 0, 2), False),
        ("/run/admin.sock", False),
        (None, False),  # it is gone
    ],
)
def test_a_name_speaks_against_who_comes_by_loopback(here: object, refused: bool) -> None:
    transport = Mock()
    transport.get_extra_info = lambda word: here if word == "sockname" else None
    request = make_mocked_request("POST", "/purge", {"Host": "gateway.example"}, transport=transport)
    assert (page_fault(request) is not None) is refused


async def test_by_a_unix_socket_a_host_says_nothing(admin: ClientSession, port: AdminPort, tmp_path: Path) -> None:
    listener = Listener(port.handle, 8192, 10)
    server, _ = await listen(listener, Address(path=str(tmp_path / "admin.sock")))
    async with ClientSession(connector=UnixConnector(str(tmp_path / "admin.sock"))) as session:
        async with session.post("http://worker/purge?all") as answer:
            assert answer.status == 200
        async with session.post("http://worker/purge?all", headers={"Origin": "http://worker"}) as answer:
            assert answer.status == 403
    server.close()
    await listener.shutdown(1.0)


async def test_a_purge_is_never_a_get(admin: ClientSession) -> None:
    async with admin.get("/purge?all") as answer:
        assert answer.status == 405


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("HEAD", "/metrics", 200),
        ("GET", "/nothing", 404),
        ("POST", "/status", 405),
        ("DELETE", "/purge", 405),
        ("GET", "/" + "x" * 9000, 431),
    ],
)
async def test_answers_name_this_server_and_not_a_library(
    admin: ClientSession, method: str, path: str, status: int
) -> None:
    async with admin.request(method, path) as answer:
        assert (answer.status, answer.headers["Server"]) == (status, "tailrace")
        if status >= 400:
            assert answer.headers["Content-Type"] == "application/problem+json"
