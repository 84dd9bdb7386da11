"""The MessagePack-RPC door over real sockets: who is answered, in what order, and who is cut."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest

from gateway.app import Gateway
from gateway.doors import methods
from gateway.sources import load
from tests.gateway.conftest import EchoTriton

SECONDS = 60.0
LISTENERS = {
    "TAILRACE_SERVER__HTTP": '"127.0.0.1:0"',
    "TAILRACE_SERVER__GRPC": '"off"',
    "TAILRACE_SERVER__ADMIN": '"127.0.0.1:0"',
    "TAILRACE_SERVER__RPC": '"127.0.0.1:0"',
    "TAILRACE_SERVER__DRAIN": "2s",
}
ROUTE = '{ tiers = [{ backend = "upstream", model = "m" }], cache = { ttl = "1h" }, timeout = "10s" }'


def row(number: float) -> dict[str, Any]:
    """A call for x = [number, 1]."""
    data = struct.pack("<2f", number, 1)
    return {"model": "r", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": data}]}


def doubled(number: float) -> bytes:
    return struct.pack("<2f", 2 * number, 2)


class Peer:
    """A client of nothing but msgpack and a socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.unpacker = msgpack.Unpacker(max_buffer_size=2**28)

    def send(self, msgid: int, method: str, *params: object) -> None:
        self.writer.write(msgpack.packb([0, msgid, method, list(params)]))

    async def receive(self) -> list[Any] | None:
        """The next answer; None at the stream's end."""
        async with asyncio.timeout(SECONDS):
            while True:
                for message in self.unpacker:
                    assert message[0] == 1
                    return message
                data = await self.reader.read(2**16)
                if not data:
                    return None
                self.unpacker.feed(data)

    async def ask(self, method: str, *params: object) -> Any:
        """The result of one call."""
        self.send(1, method, *params)
        answer = await self.receive()
        assert answer is not None
        assert (answer[1], answer[2]) == (1, None), answer
        return answer[3]

    async def fail(self, method: str, *params: object) -> Any:
        """The error of one call."""
        self.send(1, method, *params)
        answer = await self.receive()
        assert answer is not None
        assert (answer[1], answer[3]) == (1, None), answer
        document = answer[2]
        assert document["type"].startswith("urn:tailrace:problem:")
        assert document["error"] == document["detail"]
        assert document["provenance"]["cache"]
        return document


class House:
    """A gateway and its peers."""

    def __init__(self, gateway: Gateway, http: str) -> None:
        self.gateway, self.http_port = gateway, int(http.rpartition(":")[2])
        self.peers: list[Peer] = []
        self.stopped = False

    @property
    def lane(self) -> Any:
        assert self.gateway.doors.rpc is not None
        return self.gateway.doors.rpc

    async def connect(self) -> Peer:
        where = self.gateway.doors.rpc_address
        if where.startswith("unix:"):
            opened = await asyncio.open_unix_connection(where.removeprefix("unix:"))
        else:
            opened = await asyncio.open_connection("127.0.0.1", int(where.rpartition(":")[2]))
        self.peers.append(Peer(*opened))
        return self.peers[-1]

    async def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            await self.gateway.stop()


Open = Callable[..., Awaitable[House]]


@pytest.fixture
async def open_house(triton_echo: EchoTriton) -> AsyncIterator[Open]:
    houses: list[House] = []

    async def start(**overrides: str) -> House:
        environ = LISTENERS | {"TAILRACE_ROUTES__R": ROUTE} | overrides
        gateway = Gateway(load(None, environ, [triton_echo.url]))
        http, _ = await gateway.start()
        houses.append(House(gateway, http))
        return houses[-1]

    yield start
    for house in houses:
        for peer in house.peers:
            peer.writer.transport.abort()
        await house.stop()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(SECONDS):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.001)


async def test_the_methods(open_house: Open) -> None:
    peer = await (await open_house()).connect()
    health = await peer.ask("health")
    assert health == {"live": True, "ready": True}
    assert await peer.ask("health", {"model": "r"}) == {"name": "r", "ready": True}
    about = await peer.ask("metadata", {})
    assert about == {"name": "tailrace", "methods": ["infer", "predict", "metadata", "health"], "routes": ["r"]}
    about = await peer.ask("metadata", {"model": "r", "version": "1"})
    assert about["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    answer = await peer.ask("infer", row(3))
    assert (answer["model_name"], answer["model_version"]) == ("r", "1")
    assert answer["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": doubled(3)}]
    assert answer["provenance"] == {
        "cache": "miss", "reason": "absent", "tier": "m", "version": "1", "rows": 1, "escalated": 0,
        "degraded": False, "ttl": answer["provenance"]["ttl"], "stored": True,
    }  # fmt: skip
    answer = await peer.ask("predict", {"model": "r", "inputs": {"x": [[3, 1]]}, "id": "7"})
    assert (answer["outputs"], answer["id"], answer["model"]) == ({"y": [[6.0, 2.0]]}, "7", "r")
    assert (answer["provenance"]["cache"], answer["provenance"]["age"]) == ("hit", 0)


async def test_a_bare_map_stands_for_the_parameters(open_house: Open) -> None:
    peer = await (await open_house()).connect()
    peer.writer.write(msgpack.packb([0, 9, "infer", row(1)]))
    answer = await peer.receive()
    assert answer is not None
    assert (answer[1], answer[3]["outputs"][0]["data"]) == (9, doubled(1))


async def test_a_request_by_one_door_is_a_hit_by_the_other(open_house: Open, triton_echo: EchoTriton) -> None:
    house = await open_house()
    reader, writer = await asyncio.open_connection("127.0.0.1", house.http_port)
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [5, 1]}]}).encode()
    writer.write(b"POST /v2/models/r/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    async with asyncio.timeout(SECONDS):
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
    writer.close()
    peer = await house.connect()
    for _ in range(3):  # the last by its bytes
        answer = await peer.ask("infer", row(5))
        assert (answer["provenance"]["cache"], answer["outputs"][0]["data"]) == ("hit", doubled(5))
    assert triton_echo.asked == 1
    assert await peer.ask("predict", {"model": "r", "inputs": {"x": [[5, 1]]}}) == await peer.ask(
        "predict", {"model": "r", "inputs": {"x": [[5, 1]]}}
    )
    assert triton_echo.asked == 1


async def test_a_thousand_pipelined_calls_return_out_of_order_and_each_right(
    open_house: Open, triton_echo: EchoTriton
) -> None:
    chance = random.Random(4)
    triton_echo.pause = lambda: chance.random() * 0.02
    house = await open_house()
    peer = await house.connect()
    for msgid in range(1000):
        if msgid % 10 == 9:
            peer.send(msgid, "health")
        else:
            peer.send(msgid, "infer", row(msgid % 700))
    order, busiest = [], 0
    for _ in range(1000):
        answer = await peer.receive()
        assert answer is not None
        _, msgid, error, result = answer
        assert error is None
        order.append(msgid)
        busiest = max(busiest, house.lane.in_flight)
        if msgid % 10 == 9:
            assert result["live"]
        else:
            assert result["outputs"][0]["data"] == doubled(msgid % 700), msgid
    assert sorted(order) == list(range(1000))
    inferred = [msgid for msgid in order if msgid % 10 != 9]
    assert inferred != sorted(inferred)
    assert 1 < busiest <= 256
    assert triton_echo.asked <= 630


async def test_no_more_calls_are_in_work_than_may_be(open_house: Open, triton_echo: EchoTriton) -> None:
    house = await open_house(TAILRACE_SERVER__RPC_IN_FLIGHT_MAX="8")
    triton_echo.gate.clear()
    peer, other = await house.connect(), await house.connect()
    for msgid in range(2000):
        peer.send(msgid, "infer", row(msgid) | {"cache_control": "no-store"})
    await until(lambda: house.lane.in_flight == 8)
    assert (await other.ask("health"))["live"]  # others are not held up
    assert house.lane.in_flight == 8
    assert house.gateway.buffered.bytes < 2**20
    triton_echo.gate.set()
    got = set()
    for _ in range(2000):
        answer = await peer.receive()
        assert answer is not None
        assert answer[3]["outputs"][0]["data"] == doubled(answer[1])
        got.add(answer[1])
    assert len(got) == 2000
    await until(lambda: house.lane.in_flight == 0)
    assert house.gateway.buffered.bytes == 0


async def test_who_sends_many_calls_is_not_before_all_others_at_a_replica(
    open_house: Open, triton_echo: EchoTriton
) -> None:
    house = await open_house(TAILRACE_BACKENDS__UPSTREAM__CONNECTIONS_MAX="4")
    peer, other = await house.connect(), await house.connect()
    for cache in ("miss", "hit"):
        assert (await peer.ask("infer", row(0)))["provenance"]["cache"] == cache
    triton_echo.gate.clear()
    for msgid in range(2, 202):
        peer.send(msgid, "infer", row(msgid) | {"cache_control": "no-store"})
    await until(lambda: house.lane.in_flight == 200)
    other.send(1, "infer", row(1000) | {"cache_control": "no-store"})
    await until(lambda: house.lane.in_flight == 201)
    assert (await peer.ask("infer", row(0)))["provenance"]["cache"] == "hit"  # known by its bytes: it needs no place
    asked = triton_echo.asked
    triton_echo.gate.set()
    answer = await other.receive()
    assert answer is not None
    assert answer[3]["outputs"][0]["data"] == doubled(1000)
    assert triton_echo.asked - asked < 100
    for _ in range(200):
        answer = await peer.receive()
        assert answer is not None
        assert answer[2] is None
    await until(lambda: house.lane.in_flight == 0)


async def test_a_corrupt_frame_ends_its_connection_and_no_other(open_house: Open, triton_echo: EchoTriton) -> None:
    house = await open_house()
    triton_echo.gate.clear()
    peer, other = await house.connect(), await house.connect()
    peer.send(1, "infer", row(1))
    peer.writer.write(b"\x94\x00\x07\xc1garbage")
    answer = await peer.receive()
    assert answer is not None
    assert (answer[1], answer[2]["status"], answer[2]["type"]) == (7, 400, "urn:tailrace:problem:malformed")
    peer.send(2, "health")  # nobody reads this any more
    triton_echo.gate.set()
    answer = await peer.receive()  # what was in work is answered
    assert answer is not None
    assert (answer[1], answer[3]["outputs"][0]["data"]) == (1, doubled(1))
    assert await peer.receive() is None
    assert (await other.ask("infer", row(2)))["outputs"][0]["data"] == doubled(2)
    for raw in (b"GET / HTTP/1.1\r\n\r\n", b"\x93\x00\x01\xa1m", b"\x16\x03\x01"):
        third = await house.connect()
        third.writer.write(raw)
        assert await third.receive() is None
    assert (await other.ask("health"))["live"]


@pytest.mark.parametrize(
    ("method", "params", "status", "word"),
    [
        ("nothing", {}, 404, "There is no method 'nothing'"),
        ("infer", {}, 400, "'model' must name a route"),
        ("infer", {"model": "nobody"}, 404, "no route 'nobody'"),
        ("infer", {"model": 7}, 400, "model"),
        ("infer", {"model": "r", "auth": b"k"}, 400, "auth"),
        ("infer", {"model": "r"}, 400, "no 'inputs'"),
        ("infer", {"model": "r" * 2000}, 400, "longer"),
        ("infer", {"model": "r", "inputs": [{"name": "x"}]}, 400, "no data"),
        ("predict", {"model": "r", "inputs": {"x": [1]}}, 400, "rank 2"),
        ("predict", {"model": "r", "inputs": {"x": [[1, 2]]}, "moodel": "r"}, 400, "unknown member"),
        ("metadata", {"model": "nobody"}, 404, "no route"),
        ("metadata", {"model": "r", "version": "9x"}, 404, "version"),
        ("health", [], 400, "must be a map"),
        ("health", 7, 400, "must be a map"),
    ],
)
async def test_errors_are_maps(open_house: Open, method: str, params: object, status: int, word: str) -> None:
    peer = await (await open_house()).connect()
    document = await peer.fail(method, params)
    assert document["status"] == status, document
    assert word in document["detail"]
    assert (await peer.ask("health"))["live"]


async def test_who_asks_is_known_by_the_key_in_the_map(open_house: Open) -> None:
    key = hashlib.sha256(b"secret").hexdigest()
    house = await open_house(
        TAILRACE_CALLERS__A=f'{{ key_sha256 = "{key}", tenant = "a", quota = {{ rate = 2, per = "1h" }} }}',
        TAILRACE_SERVER__ANONYMOUS="false",
    )
    peer = await house.connect()
    assert (await peer.fail("infer", row(1)))["status"] == 401
    assert (await peer.fail("infer", row(1) | {"auth": "wrong"}))["status"] == 401
    assert (await peer.fail("metadata", {}))["status"] == 401
    assert (await peer.ask("health"))["live"]
    first = await peer.ask("infer", row(1) | {"auth": "secret"})
    assert (first["ratelimit"], first["ratelimit_policy"]) == ('"caller:a";r=1;t=1800', '"caller:a";q=2;w=3600')
    assert (await peer.ask("infer", row(1) | {"auth": "secret"}))["provenance"]["cache"] == "hit"
    await peer.ask("infer", row(2) | {"auth": "secret"})
    spent = await peer.fail("infer", row(3) | {"auth": "secret"})
    assert (spent["status"], spent["type"]) == (429, "urn:tailrace:problem:quota")
    assert spent["retry_after"] > 1
    assert spent["ratelimit"].startswith('"caller:a";r=0')


async def test_a_notification_is_not_answered(open_house: Open, triton_echo: EchoTriton) -> None:
    house = await open_house()
    peer = await house.connect()
    peer.writer.write(msgpack.packb([2, "infer", [row(1)]]) + msgpack.packb([2, "nothing", []]))
    peer.writer.write(msgpack.packb([2, "health", []]))
    await until(lambda: triton_echo.asked == 1)
    await until(lambda: house.lane.in_flight == 0)
    answer = await peer.ask("infer", row(1))
    assert answer["provenance"]["cache"] == "hit"


async def test_one_byte_at_a_time_is_well_if_it_is_in_time(open_house: Open) -> None:
    peer = await (await open_house()).connect()
    for byte in msgpack.packb([0, 5, "infer", [row(1)]]):
        peer.writer.write(bytes([byte]))
        await asyncio.sleep(0)
    answer = await peer.receive()
    assert answer is not None
    assert answer[3]["outputs"][0]["data"] == doubled(1)


async def test_slow_senders_are_cut_and_told_why(open_house: Open) -> None:
    times = dict.fromkeys(("HEAD", "BODY", "IDLE"), "300ms")
    house = await open_house(**{f"TAILRACE_SERVER__{name}_TIMEOUT": time for name, time in times.items()})
    head, body, idle = [await house.connect() for _ in range(3)]
    whole = msgpack.packb([0, 5, "infer", [row(1)]])

    async def drip(peer: Peer, begun: bytes, rest: bytes) -> list[Any]:
        peer.writer.write(begun)
        heard = asyncio.create_task(peer.receive())
        for byte in rest:
            peer.writer.write(bytes([byte]))
            await asyncio.sleep(0.1)
            if heard.done():
                break
        answer = await heard
        with contextlib.suppress(ConnectionError):
            assert await peer.receive() is None
        assert answer is not None
        return answer

    of_head, of_body = await asyncio.gather(drip(head, b"\x94\x00\x05", b"\xa5inf"), drip(body, whole[:20], whole[20:]))
    for answer, name in ((of_head, "head_timeout"), (of_body, "body_timeout")):
        assert (answer[1], answer[2]["status"]) == (5, 408)
        assert name in answer[2]["detail"]
    assert await idle.receive() is None
    assert {"head", "body", "idle"} <= set(house.lane.book.cuts)


async def test_a_peer_that_does_not_read_is_cut_and_others_are_served(open_house: Open) -> None:
    house = await open_house(
        TAILRACE_SERVER__WRITE_TIMEOUT="500ms",
        TAILRACE_ROUTES__W='{ tiers = [{ backend = "upstream", model = "w" }], cache = { ttl = "1h" } }',
    )
    other, silent = await house.connect(), await house.connect()
    word = "a" * 500_000
    big = {"model": "w", "inputs": {"words": [word]}}
    assert (await other.ask("predict", big))["outputs"] == {"y": [word.encode()]}
    transport: Any = silent.writer.transport
    transport.pause_reading()
    for msgid in range(60):
        silent.send(msgid, "predict", big)
    # All that was begun is answered, and what is not taken counts beside the call or two that were read meanwhile.
    await until(lambda: not house.lane.in_flight and house.gateway.buffered.bytes > 4 * len(word))
    await until(lambda: house.lane.book.cuts["write"] > 0)
    assert (await other.ask("predict", big))["provenance"]["cache"] == "hit"
    await until(lambda: len(house.lane.book.connections) == 1)
    await until(lambda: house.gateway.buffered.bytes == 0)


async def test_floods_of_connections_are_bounded(open_house: Open) -> None:
    house = await open_house(TAILRACE_SERVER__CONNECTIONS_PER_ADDRESS_MAX="16")
    first = await house.connect()
    assert (await first.ask("health"))["live"]
    for _ in range(40):
        await house.connect()
    await until(lambda: house.lane.book.cuts["address"] == 25)
    for peer in house.peers[1:]:
        peer.writer.transport.abort()
    await until(lambda: len(house.lane.book.connections) == 1)
    for _ in range(300):
        peer = await house.connect()
        peer.writer.transport.abort()
    assert (await first.ask("health"))["live"]


async def test_a_message_is_bounded_by_what_its_route_takes(open_house: Open) -> None:
    limited = ROUTE.replace("timeout", 'limits = { body_bytes_max = "1KiB" }, timeout')
    wide = ROUTE.replace("timeout", 'limits = { body_bytes_max = "64KiB" }, timeout')
    house = await open_house(TAILRACE_ROUTES__R=limited, TAILRACE_ROUTES__WIDE=wide)
    peer = await house.connect()
    large = row(1) | {"parameters": {"a": "b" * 900, "c": "b" * 900}}
    document = await peer.fail("infer", large)
    assert document["status"] == 413
    assert "routes.r.limits.body_bytes_max" in document["detail"]
    assert (await peer.ask("infer", large | {"model": "wide"}))["outputs"]
    peer.send(8, "infer", {"model": "wide", "inputs": [{"data": bytes(2**18)}]})
    answer = await peer.receive()
    assert answer is not None
    assert (answer[1], answer[2]["status"]) == (8, 413)
    assert await peer.receive() is None


async def test_what_all_hold_together_is_bounded(open_house: Open) -> None:
    house = await open_house(
        TAILRACE_SERVER__BUFFERED_BYTES_MAX="256KiB", TAILRACE_SERVER__BODY_BYTES_MAX="256KiB",
        TAILRACE_ROUTES__R=ROUTE,
    )  # fmt: skip
    one, two = await house.connect(), await house.connect()
    begun = msgpack.packb([0, 7, "infer", [{"model": "r", "inputs": bytes(250_000)}]])[:200_000]
    one.writer.write(begun)
    await until(lambda: house.gateway.buffered.bytes == len(begun))
    two.writer.write(begun)
    answer = await two.receive()
    assert answer is not None
    assert (answer[1], answer[2]["status"]) == (7, 503)
    assert await two.receive() is None
    three = await house.connect()
    assert (await three.ask("infer", row(1)))["outputs"]  # small ones are welcome all the same


async def test_a_drain_answers_what_was_read_and_closes(open_house: Open, triton_echo: EchoTriton) -> None:
    house = await open_house()
    triton_echo.gate.clear()
    busy, idle = await house.connect(), await house.connect()
    for msgid in range(20):
        busy.send(msgid, "infer", row(msgid))
    assert (await idle.ask("health"))["live"]
    await until(lambda: house.lane.in_flight == 20)
    stopping = asyncio.create_task(house.stop())
    assert await idle.receive() is None
    busy.send(99, "health")
    assert not stopping.done()
    triton_echo.gate.set()
    got = [await busy.receive() for _ in range(20)]
    assert sorted(answer[1] for answer in got if answer is not None) == list(range(20))
    assert await busy.receive() is None
    busy.writer.close()
    idle.writer.close()
    async with asyncio.timeout(SECONDS):
        await stopping


async def test_a_caller_that_leaves_takes_its_calls_along(open_house: Open, triton_echo: EchoTriton) -> None:
    house = await open_house()
    triton_echo.gate.clear()
    peer = await house.connect()
    for msgid in range(10):
        peer.send(msgid, "infer", row(msgid) | {"cache_control": "no-cache"})
    await until(lambda: house.lane.in_flight == 10)
    peer.writer.write_eof()
    await until(lambda: house.lane.in_flight == 0)
    assert not house.lane.book.connections


async def test_a_unix_socket(open_house: Open, tmp_path: Path) -> None:
    house = await open_house(TAILRACE_SERVER__RPC=f'"unix:{tmp_path}/rpc.sock"')
    assert house.gateway.doors.rpc_address == f"unix:{tmp_path}/rpc.sock"
    peer = await house.connect()
    assert (await peer.ask("infer", row(4)))["outputs"][0]["data"] == doubled(4)


async def test_it_is_closed_unless_asked_for(triton_echo: EchoTriton) -> None:
    environ = {name: value for name, value in LISTENERS.items() if not name.endswith("RPC")}
    gateway = Gateway(load(None, environ, [triton_echo.url]))
    await gateway.start()
    assert gateway.doors.rpc_address == ""
    await gateway.stop()


async def test_a_large_call_is_read_aside_and_answered_as_any_other(
    open_house: Open, triton_echo: EchoTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def opened(call: Any) -> Any:
        threads.append(threading.current_thread().name)
        return look(call)

    look = methods.opened
    monkeypatch.setattr(methods, "opened", opened)
    house = await open_house()
    peer = await house.connect()
    large = {"model": "r", "padding": b"\0" * 2**19, "inputs": row(3)["inputs"]}
    for cache in ("miss", "hit", "hit"):  # the last by its bytes
        answer = await peer.ask("infer", large)
        assert (answer["outputs"][0]["data"], answer["provenance"]["cache"]) == (doubled(3), cache)
    assert triton_echo.asked == 1
    assert all(name.startswith("tailrace-aside") for name in threads), threads
    assert (await peer.fail("infer", large | {"model": "s"}))["status"] == 404
    assert (await peer.fail("infer", large | {"model": 1}))["status"] == 400
    assert (await peer.fail("nothing", large))["status"] == 404
    assert (await peer.fail("infer", [0] * 2**19))["status"] == 400
    assert (await peer.ask("health", {"model": "r", "padding": b"\0" * 2**19}))["ready"]
    assert len(threads) == 8
    await until(lambda: house.lane.in_flight == 0)
    assert house.gateway.buffered.bytes == 0
    peer.writer.write(msgpack.packb([0, 7, "m" * 65, b"\0" * 2**19]))
    told = await peer.receive()
    assert told is not None
    assert (told[1], told[2]["status"]) == (7, 400)
    assert await peer.receive() is None


async def test_small_values_are_looked_at_in_turns_and_so_many_are_refused(open_house: Open) -> None:
    route = ROUTE.replace("cache =", 'limits = { json_bytes_max = "4MiB" }, cache =')
    house = await open_house(TAILRACE_ROUTES__R=route)
    peer, other = await house.connect(), await house.connect()
    values = [0, 9, "infer", [{"model": "r", "inputs": [{"name": "x", "data": [1, 300] * 2**20}]}]]
    peer.writer.write(msgpack.packb(values))
    for _ in range(50):
        assert (await other.ask("health"))["live"]
    told = await peer.receive()
    assert told is not None
    assert (told[1], told[2]["status"]) == (9, 413)
    assert "too many values" in told[2]["detail"]
    assert await peer.receive() is None
