"""Another configuration for a gateway that runs: all of it or nothing, from the very next request on."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from pathlib import Path

import aiohttp
import grpc
import msgpack
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from examples.gatewayprocess import ConfigValue, toml
from gateway import reload
from gateway.admission.auth import key_digest
from gateway.admission.quota import Quota
from gateway.admission.ratelimit import Limiter
from gateway.app import RETIREMENTS_MAX, Gateway
from gateway.config import Config
from gateway.reload import RESTART, Reloads, fixed, reloading
from gateway.sources import Loaded, load, read
from tests.gateway.conftest import EchoTriton

SECONDS = 10.0
OFF = "http://127.0.0.1:9"
LISTENERS = dict.fromkeys(("http", "grpc", "rpc", "admin"), "127.0.0.1:0")
Document = dict[str, ConfigValue]


class House:
    """A gateway whose file can be written anew, and one connection to its HTTP door."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self.server: Document = {**LISTENERS, "drain": "1s"}
        self.backends: Document = {"b": {"http": [url], "probe": "1h"}}
        self.route: Document = {"tiers": [{"backend": "b", "model": "m"}], "cache": {"ttl": "1h"}}
        self.routes: Document = {"r": self.route}
        self.callers: Document = {}
        self.http = ""
        self.admin = ""
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1))
        self.headers: dict[str, str] = {}

    def write(self) -> None:
        document: Document = {"server": self.server, "backends": self.backends, "routes": self.routes}
        self.path.write_text(toml({**document, "callers": self.callers}))

    async def start(self) -> None:
        self.write()
        self.gateway = Gateway(load(str(self.path), {}), reread=lambda: read(str(self.path), {}))
        self.http, self.admin = await self.gateway.start()

    @property
    def reloads(self) -> Reloads:
        assert self.gateway.reloads is not None
        return self.gateway.reloads

    async def reload(self) -> dict[str, object]:
        """Write the file and reload it, as an operator does; what has changed."""
        self.write()
        async with asyncio.timeout(SECONDS), self.session.post(f"{self.admin}/reload") as answer:
            document: dict[str, object] = await answer.json(content_type=None)
            assert answer.status == HTTPStatus.OK, document
            changed = document["changed"]
            assert isinstance(changed, dict)
            return changed

    async def ask(self, number: int, route: str = "r") -> tuple[int, str]:
        """One request on the connection; its status and what the cache was to it."""
        body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [number, 1]}]}
        async with (
            asyncio.timeout(SECONDS),
            self.session.post(
                f"{self.http}/v2/models/{route}/infer", data=json.dumps(body), headers=self.headers
            ) as answer,
        ):
            document = await answer.json(content_type=None)
            if answer.status == HTTPStatus.OK:
                assert document["outputs"][0]["data"] == [number * 2, 2]
            return answer.status, answer.headers.get("Cache-Status", "").split(";")[1].strip().partition("=")[0]

    async def stop(self) -> None:
        await self.session.close()
        await self.gateway.stop()


Open = Callable[..., Awaitable[House]]


@pytest.fixture
async def house(triton_echo: EchoTriton, tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path / "tailrace.toml", triton_echo.url)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def second_echo() -> AsyncIterator[EchoTriton]:
    found = EchoTriton()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0, limit=2**24)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield found
    server.close()
    for task in found.serving:
        assert task is not None
        task.cancel()
    await asyncio.gather(*filter(None, found.serving), return_exceptions=True)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


async def test_nothing_new_changes_nothing(house: House, triton_echo: EchoTriton) -> None:
    route, home = house.gateway.routes["r"], house.gateway.homes["b"]
    for _ in range(3):
        await house.ask(1)
    assert await house.reload() == {}
    assert house.gateway.routes["r"] is route
    assert house.gateway.homes["b"] is home
    assert await house.ask(1) == (200, "hit")
    assert triton_echo.asked == 1


async def test_a_quota_holds_from_the_next_request_of_a_remembered_head_on(house: House) -> None:
    for _ in range(4):
        status, _ = await house.ask(1)
        assert status == 200
    house.route["quota"] = {"rate": 1, "per": "1h", "hits_count": True}
    assert await house.reload() == {"routes": {"added": [], "changed": ["r"], "removed": []}}
    assert await house.ask(1) == (200, "hit"), "what was kept is kept"
    assert (await house.ask(1))[0] == 429
    del house.route["quota"]
    await house.reload()
    assert await house.ask(1) == (200, "hit")


async def test_a_debt_under_a_slow_quota_does_not_outlive_it(house: House) -> None:
    house.route["quota"] = {"rate": 1, "per": "24h", "burst": 3}
    await house.reload()
    assert [(await house.ask(number))[0] for number in range(4)] == [200, 200, 200, 429]
    house.route["quota"] = {"rate": 100, "per": "1s"}
    await house.reload()
    assert (await house.ask(10))[0] == 200


@pytest.mark.parametrize(
    "change",
    [
        {"limits": {"batch_max": 8}},
        {"inputs": {"x": {"min": -1.0}}},
        {"cache": {"ttl": "2h"}},
        {"tiers": [{"backend": "b", "model": "m", "version": "1"}]},
    ],
)
async def test_what_may_change_an_answer_begins_with_an_empty_cache(house: House, change: Document) -> None:
    await house.ask(1)
    house.route |= change
    await house.reload()
    assert await house.ask(1) == (200, "fwd")
    assert await house.ask(1) == (200, "hit")


async def test_a_key_taken_away_is_refused_from_the_next_request_on(house: House) -> None:
    house.callers = {"a": {"key_sha256": key_digest("secret")}}
    house.server["anonymous"] = False
    await house.reload()
    assert (await house.ask(1))[0] == 401
    house.headers = {"X-API-Key": "secret"}
    for _ in range(3):
        assert (await house.ask(1))[0] == 200
    house.callers = {"a": {"key_sha256": key_digest("another")}}
    await house.reload()
    assert (await house.ask(1))[0] == 401
    house.headers = {"X-API-Key": "another"}
    assert await house.ask(1) == (200, "hit")


async def test_routes_come_and_go(house: House) -> None:
    await house.ask(1)
    house.routes = {"s": house.route, "r": house.route}
    assert await house.reload() == {"routes": {"added": ["s"], "changed": [], "removed": []}}
    assert await house.ask(1, "s") == (200, "fwd")
    assert await house.ask(1) == (200, "hit")
    house.routes = {"s": house.route}
    assert await house.reload() == {"routes": {"added": [], "changed": [], "removed": ["r"]}}
    assert await house.ask(1, "s") == (200, "hit")
    async with house.session.get(f"{house.admin}/status") as answer:
        assert set((await answer.json())["routes"]) == {"s"}
    async with house.session.get(f"{house.admin}/metrics") as answer:
        text = await answer.text()
    assert 'tailrace_cache_entries{route="s"} 1.0' in text
    assert 'tailrace_cache_entries{route="r"}' not in text
    assert 'tailrace_reloads_total{outcome="taken"} 2.0' in text


async def test_a_request_in_work_ends_where_it_began(
    house: House, triton_echo: EchoTriton, second_echo: EchoTriton
) -> None:
    await house.ask(1)
    old = house.gateway.homes["b"]
    triton_echo.gate.clear()
    async with aiohttp.ClientSession() as other:
        body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [7, 1]}]}
        asked = asyncio.create_task(other.post(f"{house.http}/v2/models/r/infer", json=body))
        await until(lambda: triton_echo.asked == 2)
        house.backends = {"b": {"http": [second_echo.url], "probe": "1h"}}
        house.route["timeout"] = "1s"
        assert await house.reload() == {
            "backends": {"added": [], "changed": ["b"], "removed": []},
            "routes": {"added": [], "changed": ["r"], "removed": []},
        }
        assert await house.ask(2) == (200, "fwd")
        assert (triton_echo.asked, second_echo.asked) == (2, 1)
        assert old.pool.states()[0].in_flight == 1
        triton_echo.gate.set()
        answer = await asked
        assert (await answer.json(content_type=None))["outputs"][0]["data"] == [14, 2]
    assert (triton_echo.asked, second_echo.asked) == (2, 1)


async def test_what_was_replaced_is_closed_once_nobody_is_at_it(
    house: House, triton_echo: EchoTriton, second_echo: EchoTriton
) -> None:
    house.route["timeout"] = "200ms"
    await house.reload()
    await house.ask(1)
    house.backends = {"b": {"http": [second_echo.url], "probe": "1h"}}
    await house.reload()
    await until(lambda: all(task is None or task.done() for task in triton_echo.serving))
    await until(lambda: not house.gateway._retiring)


async def test_a_file_with_faults_changes_nothing_and_says_all_of_them(house: House) -> None:
    before = house.gateway.standing
    await house.ask(1)
    house.route["tiers"] = [{"backend": "nowhere", "model": "m"}]
    house.route["cache"] = {"ttl": "0s"}
    house.write()
    async with house.session.post(f"{house.admin}/reload") as answer:
        document = await answer.json(content_type=None)
    assert answer.status == 422
    assert document["detail"].startswith("Nothing has changed: routes.r")
    assert any("nowhere" in fault for fault in document["faults"]) or any("ttl" in f for f in document["faults"])
    assert house.gateway.standing is before
    assert await house.ask(1) == (200, "hit")
    async with house.session.get(f"{house.admin}/metrics") as answer:
        text = await answer.text()
    assert 'tailrace_reloads_total{outcome="refused"} 1.0' in text
    assert "tailrace_reload_failing 1.0" in text
    house.path.unlink()
    assert "cannot be read" in (await house.reloads.reload()).faults[0]
    assert await house.ask(1) == (200, "hit")


@pytest.mark.parametrize(
    ("key", "value"), [("http", "127.0.0.1:1"), ("workers", 2), ("edge", False), ("idle_timeout", "1s")]
)
async def test_what_takes_a_restart_is_named_and_nothing_else_is_taken(
    house: House, key: str, value: ConfigValue
) -> None:
    house.server[key] = value
    house.route["quota"] = {"rate": 1}
    house.write()
    outcome = await house.reloads.reload()
    assert len(outcome.faults) == 1
    assert outcome.faults[0].startswith(f"server.{key}: ")
    assert "takes a restart" in outcome.faults[0]
    assert house.gateway.routes["r"].allowances == ()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {"SNAPSHOT__PATH": "'s'"}, ["snapshot: was not there and is now there"]),
        ({"SNAPSHOT__PATH": "'s'"}, {}, ["snapshot: was there and is now not there"]),
        (
            {"SNAPSHOT__PATH": "'/s'"},
            {"SNAPSHOT__PATH": "'/t'", "SNAPSHOT__INTERVAL": "'250ms'", "SNAPSHOT__GENERATIONS": "4"},
            [
                "snapshot.path: '/s' is now '/t'",
                "snapshot.interval: 10s is now 250ms",
                "snapshot.generations: 3 is now 4",
            ],
        ),
        ({}, {"LOG__LEVEL": "'debug'"}, ["log.level: 'info' is now 'debug'"]),
        ({"SERVER__WORKERS": "2"}, {}, ["server.workers: 2 is now 1"]),
        (
            {},
            {"SERVER__TLS": "{ certificate = '/c', key = '/k' }"},
            ["server.tls: left out is now { certificate = '/c', key = '/k', minimum = '1.2' }"],
        ),
    ],
)
def test_what_takes_a_restart_is_said_as_a_file_has_it(
    before: dict[str, str], after: dict[str, str], said: list[str]
) -> None:
    def read(environ: dict[str, str]) -> Config:
        return load(None, {f"TAILRACE_{key}": value for key, value in environ.items()}, ["http://a:1"])

    assert list(fixed(read(before), read(after))) == [f"{each}, {RESTART}" for each in said]


async def test_keys_of_the_server_that_can_be_others_are(house: House, second_echo: EchoTriton) -> None:
    async def pass_through() -> int:
        body = '{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}'
        async with house.session.post(f"{house.http}/v2/models/m/infer", data=body) as answer:
            await answer.read()
            return answer.status

    assert await pass_through() == 200
    house.server |= {"passthrough": "c", "allow": ["repository"], "buffered_bytes_max": "128MiB"}
    house.backends["c"] = {"http": [second_echo.url], "probe": "1h"}
    changed = await house.reload()
    assert changed["server"] == {"added": [], "changed": ["allow", "buffered_bytes_max", "passthrough"], "removed": []}
    assert await pass_through() == 200
    assert second_echo.asked == 1
    assert house.gateway.buffered.bytes_max == 128 * 2**20
    async with house.session.post(f"{house.http}/v2/repository/index") as answer:
        assert answer.status == 200
    async with house.session.post(f"{house.http}/v2/repository/models/m/unload") as answer:
        assert answer.status == 200


async def test_calls_of_a_connection_are_judged_anew(house: House) -> None:
    reader, writer = await asyncio.open_connection(*house.gateway.doors.rpc_address.rsplit(":", 1))
    unpacker = msgpack.Unpacker()

    async def call(number: int) -> list[object]:
        writer.write(msgpack.packb([0, number, "predict", [{"model": "r", "inputs": {"x": [[1, 1]]}}]]))
        async with asyncio.timeout(SECONDS):
            while True:
                for answer in unpacker:
                    found: list[object] = answer
                    return found
                unpacker.feed(await reader.read(65536))

    for number in range(3):
        assert (await call(number))[2] is None
    house.routes = {"s": house.route}
    await house.reload()
    error = (await call(9))[2]
    assert isinstance(error, dict)
    assert "no route 'r'" in error["detail"]
    writer.close()


async def test_a_kept_connection_has_the_bounds_of_now(house: House) -> None:
    reader, writer = await asyncio.open_connection(*house.gateway.doors.rpc_address.rsplit(":", 1))
    house.route["limits"] = {"body_bytes_max": "32KiB", "json_bytes_max": "16KiB"}
    await house.reload()
    unpacker = msgpack.Unpacker()

    async def call(rows: int) -> object:
        data = np.zeros((rows, 2), "<f4").tobytes()
        tensor = {"name": "x", "shape": [rows, 2], "datatype": "FP32", "data": data}
        writer.write(msgpack.packb([0, rows, "infer", [{"model": "r", "inputs": [tensor]}]]))
        async with asyncio.timeout(SECONDS):
            while True:
                for answer in unpacker:
                    return answer[2]
                unpacker.feed(await reader.read(65536))

    assert await call(1) is None
    house.route["limits"] = {"body_bytes_max": "4MiB"}
    await house.reload()
    assert await call(100_000) is None
    writer.close()


async def test_an_open_stream_finds_the_routes_of_now(house: House, second_echo: EchoTriton) -> None:
    async with grpc.aio.insecure_channel(house.gateway.doors.grpc_address) as channel:
        stream = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer()

        async def ask(route: str) -> str:
            message = service_pb2.ModelInferRequest(model_name=route)
            tensor = message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
            tensor.contents.fp32_contents.extend([1, 2])
            await stream.write(message)
            async with asyncio.timeout(SECONDS):
                answer = await stream.read()
            said: str = answer.error_message
            return said

        assert await ask("r") == ""
        house.routes = {"r": house.route, "s": house.route}
        house.backends = {"b": {"http": [second_echo.url], "probe": "1h"}}
        await house.reload()
        assert await ask("s") == ""
        assert second_echo.asked == 1
        stream.cancel()


async def test_a_key_taken_away_is_refused_on_an_open_stream_too(house: House) -> None:
    house.callers = {"a": {"key_sha256": key_digest("secret")}}
    await house.reload()
    async with grpc.aio.insecure_channel(house.gateway.doors.grpc_address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        stream = stub.ModelStreamInfer(metadata=(("x-api-key", "secret"),))

        async def ask(number: int) -> str:
            message = service_pb2.ModelInferRequest(model_name="r", id=str(number))
            message.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([number, 2])
            await stream.write(message)
            async with asyncio.timeout(SECONDS):
                answer = await stream.read()
            said: str = answer.error_message
            return said

        assert await ask(1) == ""
        house.callers["b"] = {"key_sha256": key_digest("another")}
        await house.reload()
        assert await ask(2) == ""
        del house.callers["a"]
        await house.reload()
        assert "key is not known" in await ask(3)
        stream.cancel()


async def test_reloads_whose_backends_are_at_work_are_bounded_and_others_are_not(
    house: House, triton_echo: EchoTriton
) -> None:
    house.route["timeout"] = "60s"
    for number in range(RETIREMENTS_MAX):
        house.backends["b"] = {"http": [triton_echo.url], "probe": "1h", "connections_max": 10 + number}
        await house.reload()
    house.backends["b"] = {"http": [triton_echo.url], "probe": "1h", "connections_max": 99}
    house.write()
    assert "are still at work" in (await house.reloads.reload()).faults[0]
    house.backends["b"] = {"http": [triton_echo.url], "probe": "1h", "connections_max": 9 + RETIREMENTS_MAX}
    for number in range(3 * RETIREMENTS_MAX):
        house.route["quota"] = {"rate": 10 + number}
        await house.reload()
    assert (await house.ask(1))[0] == 200


async def test_a_route_that_is_replaced_keeps_no_answers(house: House) -> None:
    await house.ask(1)
    before = house.gateway.routes["r"].cache
    assert before is not None
    assert before.entries == 1
    house.route["limits"] = {"batch_max": 8}
    await house.reload()
    assert before.entries == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("a = " + "1" * 5000, "is not TOML"),
        ("a = \"\xff\"".encode("latin-1"), "is not UTF-8"),
        ("[[[", "is not TOML"),
    ],
)
async def test_a_file_that_is_none_is_refused_in_words(house: House, text: str | bytes, said: str) -> None:
    house.path.write_bytes(text if isinstance(text, bytes) else text.encode())
    outcome = await house.reloads.reload()
    assert len(outcome.faults) == 1
    assert said in outcome.faults[0]


async def test_a_bug_in_one_reload_does_not_end_the_next(house: House) -> None:
    reads: list[Callable[[], Loaded]] = []

    def broken() -> Loaded:
        reads.append(broken)
        raise RuntimeError("a bug")

    reloads, hung_up = Reloads(house.gateway.standing.config, broken, house.gateway.take), asyncio.Event()
    async with reloading(reloads, hung_up):
        for number in range(1, 4):
            hung_up.set()
            await until(lambda expected=number: reloads.outcomes["refused"] == expected)
    assert len(reads) == 3
    assert "a bug" in reloads.faults[0]


async def test_a_file_that_cannot_be_read_to_its_end_holds_nobody_up(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "READ_SECONDS_MAX", 0.05)
    house.path.unlink()
    os.mkfifo(house.path)
    assert "could not be read within" in (await house.reloads.reload()).faults[0]
    assert "still being read" in (await house.reloads.reload()).faults[0]
    assert (await house.ask(1))[0] == 200
    await asyncio.to_thread(house.path.write_text, "")  # which lets the reader go


async def test_what_is_told_of_heads_is_told_of_those_of_now(house: House) -> None:
    for number in range(3):
        await house.ask(number)

    async def told(name: str) -> float:
        async with house.session.get(f"{house.admin}/metrics") as answer:
            lines = (await answer.text()).splitlines()
            return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])

    judged = await told("tailrace_heads_judged_total")
    assert await told("tailrace_heads") > 0
    house.route["quota"] = {"rate": 1000}
    await house.reload()
    assert await told("tailrace_heads") == 0
    await house.ask(1)
    assert await told("tailrace_heads") == 1
    assert await told("tailrace_heads_judged_total") == judged + 1


async def test_what_would_change_the_largest_grpc_message_takes_a_restart(house: House) -> None:
    house.server["buffered_bytes_max"] = "64MiB"
    house.write()
    assert "a gRPC message may have half of it" in (await house.reloads.reload()).faults[0]


async def test_a_gateway_that_drains_takes_nothing_more(house: House) -> None:
    house.gateway._draining = True
    house.route["quota"] = {"rate": 1}
    house.write()
    assert (await house.reloads.reload()).faults == ("the gateway is draining",)


async def test_a_new_backend_that_is_down_makes_no_reload_fail(house: House) -> None:
    house.backends["c"] = {"http": [OFF], "connect_timeout": "100ms"}
    house.routes["s"] = {"tiers": [{"backend": "c", "model": "m"}], "timeout": "1s"}
    await house.reload()
    assert house.gateway.lacking() == "route s has no ready replica"
    assert house.gateway.readiness().ready, "the others are served, and a reload must not end that"
    assert (await house.ask(1))[0] == 200
    assert (await house.ask(1, "s"))[0] == 503


def test_forgotten_quotas_leave_the_others_debts() -> None:
    limiter = Limiter(2)
    slow, other = Quota(1, 3600, 1, "slow"), Quota(1, 3600, 1, "other")
    for key, quota in (("a", slow), ("b", other), ("c", slow)):  # the third shares a cell
        assert limiter.check(key, quota, 0.0).allowed
    limiter.forget({"slow"})
    assert limiter.check("a", slow, 0.0).allowed
    assert not limiter.check("b", other, 0.0).allowed
    assert len(limiter) == 2
