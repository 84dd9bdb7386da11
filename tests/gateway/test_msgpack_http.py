"""MessagePack and plain values over HTTP, on both lanes: what is asked for is what comes, and all meet in one entry."""

from __future__ import annotations

import asyncio
import json
import re
import struct
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgpack
import numpy as np
import pytest

from cache.digest import WireDigester
from gateway.app import Gateway
from gateway.codec.dialect import Dialect, dialect_of
from gateway.sources import load
from tests.gateway.conftest import EchoTriton

SECONDS = 20.0
LISTENERS = {
    "TAILRACE_SERVER__HTTP": '"127.0.0.1:0"',
    "TAILRACE_SERVER__GRPC": '"off"',
    "TAILRACE_SERVER__ADMIN": '"127.0.0.1:0"',
}
ROW = struct.pack("<2f", 1.5, -2)
TWICE = struct.pack("<2f", 3, -4)
PACKED = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": ROW}]}
PLAIN = {"inputs": {"x": [[1.5, -2]]}}
MEDIA = "application/msgpack"

Got = tuple[int, dict[str, str], bytes]
Ask = Callable[..., Any]


class Door:
    """One connection to a gateway."""

    def __init__(self, gateway: Gateway, port: int) -> None:
        self.gateway, self.port = gateway, port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, path: str, body: bytes, *fields: str, method: str = "POST") -> Got:
        """Status, header fields (names in lower case) and body."""
        if self.writer is None or self.reader is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        lines = "".join(f"{field}\r\n" for field in fields)
        head = f"{method} {path} HTTP/1.1\r\nHost: h\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        async with asyncio.timeout(SECONDS):
            raw = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            told = dict(line.split(": ", 1) for line in raw.split("\r\n")[1:-2])
            told = {name.lower(): value for name, value in told.items()}
            return int(raw.split()[1]), told, await self.reader.readexactly(int(told["content-length"]))


@pytest.fixture(params=["true", "false"], ids=["edge", "aiohttp"])
async def door(request: pytest.FixtureRequest, triton_echo: EchoTriton) -> AsyncIterator[Door]:
    cached = 'cache = { ttl = "1h" }'
    tiers = {name: f'{{ tiers = [{{ backend = "upstream", model = "{name}" }}], {cached} }}' for name in "mwsb"}
    environ = LISTENERS | {
        "TAILRACE_SERVER__DRAIN": "1s",
        "TAILRACE_SERVER__EDGE": request.param,
        "TAILRACE_ROUTES__R": tiers["m"],
        "TAILRACE_ROUTES__W": tiers["w"],
        "TAILRACE_ROUTES__S": tiers["s"],
        "TAILRACE_ROUTES__B": tiers["b"],
        "TAILRACE_ROUTES__LITTLE": tiers["m"].replace("cache", 'limits = { body_bytes_max = "100B" }, cache'),
    }
    gateway = Gateway(load(None, environ, [triton_echo.url]))
    http, _ = await gateway.start()
    made = Door(gateway, int(http.rpartition(":")[2]))
    yield made
    if made.writer is not None:
        made.writer.close()
    await gateway.stop()


INFER, PREDICT = "/v2/models/r/infer", "/v1/predict/r"


@pytest.mark.parametrize(
    "media", [MEDIA, "application/vnd.msgpack", "application/x-msgpack", "Application/MsgPack; a=b"]
)
async def test_a_request_in_messagepack_is_answered_in_it(door: Door, triton_echo: EchoTriton, media: str) -> None:
    for path, cache in ((INFER, "miss"), ("/v2/models/r/versions/1/infer", "miss"), (INFER, "hit"), (INFER, "hit")):
        status, fields, body = await door.ask(path, msgpack.packb(PACKED), f"Content-Type: {media}")
        assert (status, fields["content-type"]) == (200, media.partition(";")[0].lower())
        assert fields["vary"] == "Accept, Accept-Encoding"
        assert f"cache={cache}" in fields["tailrace-provenance"]
        document = msgpack.unpackb(body)
        assert document["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": TWICE}]
        assert (document["model_name"], document["model_version"]) == ("r", "1")
    assert triton_echo.asked == 2


async def test_a_large_body_is_looked_up_aside_and_answered_as_any_other(
    door: Door, triton_echo: EchoTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def key(digester: WireDigester, body: bytes) -> bytes:
        threads.append(threading.current_thread().name)
        return make(digester, body)

    make = WireDigester.key
    monkeypatch.setattr(WireDigester, "key", key)
    large = msgpack.packb(PACKED | {"padding": b"\0" * 5 * 2**20})
    for cache in ("miss", "hit", "hit"):  # the last by its bytes
        status, fields, body = await door.ask(INFER, large, f"Content-Type: {MEDIA}")
        assert (status, msgpack.unpackb(body)["outputs"][0]["data"]) == (200, TWICE)
        assert f"cache={cache}" in fields["tailrace-provenance"]
    assert triton_echo.asked == 1
    assert len(threads) == 3
    assert all(name.startswith("tailrace-aside") for name in threads), threads
    assert door.gateway.buffered.bytes == 0
    values = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1] * (9 * 2**20)}]}
    status, _, body = await door.ask(INFER, msgpack.packb(values), f"Content-Type: {MEDIA}")
    assert (status, msgpack.unpackb(body)["detail"]) == (413, "A message has too many values; send tensors as bytes.")
    assert (await door.ask(INFER, msgpack.packb(PACKED), f"Content-Type: {MEDIA}"))[0] == 200


async def test_one_entry_for_all_forms(door: Door, triton_echo: EchoTriton) -> None:
    as_json = {"inputs": [{**PACKED["inputs"][0], "data": [1.5, -2]}]}
    front = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32",
                                    "parameters": {"binary_data_size": 8}}]}).encode()  # fmt: skip
    array = np.array([[1.5, -2]], ">f4")
    numpy = {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}
    forms = [
        (INFER, json.dumps(as_json).encode(), ()),
        (INFER, front + ROW, (f"Inference-Header-Content-Length: {len(front)}",)),
        (INFER, msgpack.packb(PACKED), (f"Content-Type: {MEDIA}",)),
        (INFER, msgpack.packb({"inputs": {"x": numpy}}), (f"Content-Type: {MEDIA}",)),
        (PREDICT, json.dumps(PLAIN).encode(), ()),
        (PREDICT, json.dumps({"inputs": {"x": {"shape": [1, 2], "data": [1.5, -2]}}}).encode(), ()),
        (PREDICT, msgpack.packb(PLAIN), (f"Content-Type: {MEDIA}",)),
        (PREDICT, msgpack.packb({"inputs": {"x": numpy}}), (f"Content-Type: {MEDIA}",)),
        (PREDICT, msgpack.packb({"inputs": {"x": {"data": ROW, "shape": [1, 2]}}}), (f"Content-Type: {MEDIA}",)),
    ]
    for round_of in range(3):
        for index, (path, body, fields) in enumerate(forms):
            status, told, answer = await door.ask(path, body, *fields)
            assert status == 200, answer
            state = "miss" if (round_of, index) == (0, 0) else "hit"
            assert f"cache={state}" in told["tailrace-provenance"], (index, told)
    assert triton_echo.asked == 1
    cache = door.gateway.routes["r"].cache
    assert cache is not None
    assert cache.entries == 1


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        (INFER, msgpack.packb(PACKED), (f"Content-Type: {MEDIA}",)),
        (INFER, msgpack.packb(PACKED), (f"Content-Type: {MEDIA}", "Accept: application/json")),
        (PREDICT, msgpack.packb(PLAIN), (f"Content-Type: {MEDIA}",)),
        (PREDICT, json.dumps(PLAIN).encode(), ()),
    ],
    ids=["packed", "packed, answered in JSON", "plain packed", "plain"],
)
async def test_what_came_before_is_known_by_its_bytes(
    door: Door, monkeypatch: pytest.MonkeyPatch, path: str, body: bytes, fields: tuple[str, ...]
) -> None:
    for _ in range(2):
        first = await door.ask(path, body, *fields)

    async def never(*given: object) -> None:
        raise AssertionError("decoded again")

    assert door.gateway._exchange is not None
    monkeypatch.setattr(door.gateway._exchange, "answer", never)
    again = await door.ask(path, body, *fields)
    assert (again[0], again[2], again[1]["content-type"]) == (200, first[2], first[1]["content-type"])
    assert "cache=hit" in again[1]["tailrace-provenance"]
    monkeypatch.undo()


async def test_the_answer_comes_in_the_form_that_is_asked_for(door: Door) -> None:
    packed, plain = msgpack.packb(PACKED), json.dumps({"inputs": [{**PACKED["inputs"][0], "data": [1.5, -2]}]}).encode()
    ours = f"Content-Type: {MEDIA}"
    for _ in range(3):  # a miss, and hits by their bytes, which must not be taken for each other
        for body, fields, media in [
            (packed, (ours, "Accept: application/json"), "application/json"),
            (packed, (ours, "Accept: application/octet-stream"), "application/octet-stream"),
            (packed, (ours, "Accept: */*"), MEDIA),
            (packed, (ours, "Accept: text/html"), "application/json"),
            (plain, ("Accept: application/x-msgpack",), "application/x-msgpack"),
            (plain, ("Accept: application/json, application/msgpack;q=0.5",), "application/json"),
            (plain, ("Accept: application/json;q=0.2", f"Accept: {MEDIA}"), MEDIA),
            (plain, ("Accept: */*",), "application/json"),
            (plain, (), "application/json"),
        ]:
            status, told, answer = await door.ask(INFER, body, *fields)
            assert (status, told["content-type"]) == (200, media), fields
            if "msgpack" in media:
                assert msgpack.unpackb(answer)["outputs"][0]["data"] == TWICE
            elif media == "application/json":
                assert json.loads(answer)["outputs"][0]["data"] == [3.0, -4.0]
            else:
                assert answer.endswith(TWICE)


async def test_compression_holds_for_messagepack_too(door: Door) -> None:
    import gzip

    for _ in range(3):
        fields = (f"Content-Type: {MEDIA}", "Content-Encoding: gzip", "Accept-Encoding: gzip")
        status, told, answer = await door.ask(INFER, gzip.compress(msgpack.packb(PACKED), mtime=0), *fields)
        assert (status, told["content-encoding"]) == (200, "gzip")
        assert msgpack.unpackb(gzip.decompress(answer))["outputs"][0]["data"] == TWICE


async def test_problems_come_in_the_form_that_the_answer_would_have(door: Door) -> None:
    bad = msgpack.packb({"inputs": []})
    ours = f"Content-Type: {MEDIA}"
    for path, body, fields, wanted in [
        (INFER, bad, (ours,), 400),
        (INFER, b"\xc1", (ours,), 400),
        (PREDICT, b"\xc1", (ours,), 400),
        (PREDICT, b"{", (f"Accept: {MEDIA}",), 400),
        ("/v1/predict/nobody", b"", (ours,), 404),
        ("/v2/models/r/versions/9x/infer", b"", (ours,), 404),
        ("/v2/models/little/infer", bytes(101), (ours,), 413),
        (INFER, msgpack.packb(PACKED), (ours, "Cache-Control: only-if-cached"), 504),
    ]:
        status, told, answer = await door.ask(path, body, *fields)
        assert (status, told["content-type"]) == (wanted, MEDIA), answer
        document = msgpack.unpackb(answer)
        assert document["type"].startswith("urn:tailrace:problem:")
        assert (document["status"], document["error"]) == (wanted, document["detail"])
        assert "cache=" in told["tailrace-provenance"]
        status, told, answer = await door.ask(path, body, *fields, "Accept: application/json")
        if f"Accept: {MEDIA}" not in fields:
            assert told["content-type"] == "application/problem+json"


async def test_plain_values(door: Door, triton_echo: EchoTriton) -> None:
    caches = []
    for _ in range(3):
        status, told, answer = await door.ask(PREDICT, json.dumps({**PLAIN, "outputs": ["y"]}).encode())
        document = json.loads(answer)
        assert (status, told["content-type"]) == (200, "application/json")
        assert (document["model"], document["version"], document["outputs"]) == ("r", "1", {"y": [[3.0, -4.0]]})
        provenance = document["provenance"]
        assert (provenance["tier"], provenance["degraded"]) == ("m", False)
        assert f"cache={provenance['cache']}" in told["tailrace-provenance"]
        caches.append(provenance["cache"])
    assert caches == ["miss", "hit", "hit"]
    assert triton_echo.asked == 1
    status, _, answer = await door.ask("/v1/predict/r/versions/1", msgpack.packb(PLAIN), f"Content-Type: {MEDIA}")
    assert (status, msgpack.unpackb(answer)["outputs"]) == (200, {"y": [[3.0, -4.0]]})


async def test_plain_values_of_every_kind(door: Door) -> None:
    words = {"inputs": {"words": ["ab", "\u00e9", ""]}}
    _, _, answer = await door.ask("/v1/predict/w", json.dumps(words).encode())
    assert json.loads(answer)["outputs"] == {"y": ["ab", "\u00e9", ""]}
    raw = msgpack.packb({"inputs": {"words": ["ab", b"\xff"]}, "id": "7"})
    _, _, answer = await door.ask("/v1/predict/w", raw, f"Content-Type: {MEDIA}")
    document = msgpack.unpackb(answer)
    assert (document["outputs"], document["id"]) == ({"y": [b"ab", b"\xff"]}, "7")
    status, _, answer = await door.ask("/v1/predict/w", raw, f"Content-Type: {MEDIA}", "Accept: application/json")
    assert status == 406
    assert "application/msgpack" in json.loads(answer)["error"]
    one = {"inputs": {"one": 21}}
    status, _, answer = await door.ask("/v1/predict/s", json.dumps(one).encode())
    assert (status, json.loads(answer)["outputs"]) == (200, {"y": 42})
    status, _, answer = await door.ask("/v1/predict/s", msgpack.packb(one), f"Content-Type: {MEDIA}")
    assert (status, msgpack.unpackb(answer)["outputs"]) == (200, {"y": 42})
    _, _, answer = await door.ask("/v1/predict/b", b'{"inputs": {"brain": [1, 2.5, -0.1]}}')
    assert json.loads(answer)["outputs"] == {"y": [1.0, 2.5, -0.10009765625]}
    status, _, answer = await door.ask(
        PREDICT, msgpack.packb({"inputs": {"x": [[float("nan"), float("inf")]]}}), f"Content-Type: {MEDIA}",
        "Accept: application/json",
    )  # fmt: skip
    assert json.loads(answer)["outputs"] == {"y": [[None, None]]}


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ({"input": {}}, "input"),
        ({"inputs": {"x": [[1, 2]]}, "output": ["y"]}, "output"),
        ({"inputs": {"x": [1, 2]}}, "rank 2"),
        ({"inputs": {"x": [[[1, 2]]]}}, "rank 2"),
        ({"inputs": {"x": [[1, 2], [3]]}}, "shape"),
        ({"inputs": {"x": [["a", "b"]]}}, "float"),
        ({"inputs": {"x": []}}, "rank 2"),
        ({"inputs": {"x": None}}, "input 'x'|nested"),
        ({"inputs": {"x": 1}}, "input 'x'|nested"),
        ({"inputs": {"x": {"shape": [1, 2]}}}, "data"),
        ({"inputs": {"x": {"datatype": "OBJECT", "data": [[1, 2]]}}}, "datatype"),
        ({"inputs": {"x": [[1, 2]]}, "outputs": [1]}, "str"),
        ({"inputs": {"x": [[1, 2]]}, "parameters": {"priority": "x"}}, "priority"),
        ({"inputs": {"x": [[1, 1e300]]}}, "beyond the range"),
        ([], "object|map"),
    ],
)
async def test_what_is_wrong_with_plain_values_is_said(door: Door, message: object, word: str) -> None:
    for body, fields in ((json.dumps(message).encode(), ()), (msgpack.packb(message), (f"Content-Type: {MEDIA}",))):
        status, _, answer = await door.ask(PREDICT, body, *fields)
        document = msgpack.unpackb(answer) if fields else json.loads(answer)
        assert status == 400, answer
        assert re.search(word.replace("[", r"\["), document["error"]), document


@pytest.mark.parametrize("body", [b'{"inputs": {"x": [[1, 2]], "x": [[1, 2]]}}', b'{"inputs": {}, "inputs": {}}'])
async def test_a_member_that_comes_twice_is_refused(door: Door, body: bytes) -> None:
    status, _, answer = await door.ask(PREDICT, body)
    assert status == 400
    assert "duplicate" in json.loads(answer)["error"]


async def test_what_may_be_done_with_the_path(door: Door) -> None:
    status, told, _ = await door.ask(PREDICT, b"", method="GET")
    assert status == 405
    assert told["allow"] == "POST, QUERY"
    assert MEDIA in told["accept-query"]
    status, _, answer = await door.ask(PREDICT, msgpack.packb(PLAIN), f"Content-Type: {MEDIA}", method="QUERY")
    assert (status, msgpack.unpackb(answer)["outputs"]) == (200, {"y": [[3.0, -4.0]]})


async def test_without_the_models_facts_it_is_a_503(door: Door, triton_echo: EchoTriton) -> None:
    dead = Gateway(load(None, LISTENERS | {
        "TAILRACE_ROUTES__R": '{ tiers = [{ backend = "upstream", model = "m" }], timeout = "500ms" }',
    }, ["http://127.0.0.1:9"]))  # fmt: skip
    http, _ = await dead.start()
    other = Door(dead, int(http.rpartition(":")[2]))
    status, told, answer = await other.ask(PREDICT, json.dumps(PLAIN).encode())
    assert status == 503, answer
    assert int(told["retry-after"]) >= 1
    assert other.writer is not None
    other.writer.close()
    await dead.stop()


async def test_without_any_route_the_path_is_the_servers(triton_echo: EchoTriton) -> None:
    gateway = Gateway(load(None, LISTENERS, [triton_echo.url]))
    http, _ = await gateway.start()
    other = Door(gateway, int(http.rpartition(":")[2]))
    status, told, _ = await other.ask(PREDICT, b"{}")
    assert (status, told["tailrace-provenance"]) == (200, "cache=bypass, reason=passthrough")
    assert other.writer is not None
    other.writer.close()
    await gateway.stop()


@pytest.mark.parametrize(
    ("content_type", "accept", "expected"),
    [
        (None, None, Dialect()),
        ("text/plain", "*/*", Dialect()),
        (MEDIA, None, Dialect(packed=True, answers=MEDIA)),
        (MEDIA, "", Dialect(packed=True, answers=MEDIA)),
        (MEDIA, ",;q=,", Dialect(packed=True, answers=MEDIA)),
        (MEDIA, "*/*;q=0", Dialect(packed=True)),
        (MEDIA, "application/*", Dialect(packed=True, answers=MEDIA)),
        (MEDIA, "application/json, */*;q=0.1", Dialect(packed=True)),
        (MEDIA, "application/json;q=0.5, */*", Dialect(packed=True, answers=MEDIA)),
        (MEDIA, f"{MEDIA};q=0, application/x-msgpack", Dialect(packed=True, answers="application/x-msgpack")),
        (None, f"{MEDIA};q=0", Dialect()),
        (None, f"{MEDIA}, */*", Dialect(answers=MEDIA)),
        (None, f"{MEDIA}, application/json", Dialect()),
        (None, "application/x-msgpack;v=1;q=0.3", Dialect(answers="application/x-msgpack")),
        (MEDIA, "application/octet-stream, application/json;q=0.9", Dialect(packed=True, octets=True)),
        (None, "application/octet-stream", Dialect()),
    ],
)
def test_the_forms_that_a_head_means(content_type: str | None, accept: str | None, expected: Dialect) -> None:
    assert dialect_of(content_type, accept, plain=False) == expected
