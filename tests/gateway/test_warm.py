"""`tailrace warm`: what is in a file is asked once, no faster than it may be, and callers find it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from aiohttp import test_utils, web

from gateway import cli
from gateway.warm import FAILED_IN_A_ROW_MAX, LINE_BYTES_MAX, Pace, Unreadable, Warming, WarmOptions, read_post
from tests.doors.house import House, opened
from tests.doors.question import Ask
from tests.gateway.conftest import EchoTriton

ROUTE = '{ tiers = [{ backend = "upstream", model = "m" }], cache = { ttl = "1h" } }'
LATE = 2.0


def by_route(number: float) -> str:
    return json.dumps({"route": "r", "inputs": {"x": [[number, 0.5]]}})


def by_path(number: float) -> str:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [number, 0.5]}
    return json.dumps({"path": "/v2/models/r/infer", "body": {"inputs": [tensor]}})


class Slept:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


async def warm(house: House | str, text: str, rate: float = 1e6) -> tuple[Warming, Slept, bool]:
    url = house if isinstance(house, str) else f"http://{house.doors.http}"
    slept = Slept()
    warming = Warming(WarmOptions(url, rate), lambda: slept.now, slept.sleep)
    return warming, slept, await warming.run(io.BytesIO(text.encode()))


async def test_callers_find_what_was_warmed(triton_echo: EchoTriton) -> None:
    async with opened([triton_echo.url], edge=True, ROUTES__R=ROUTE) as house:
        text = "\n".join([*map(by_route, range(5)), "", *map(by_path, range(5, 9)), by_path(0)])
        warming, _, is_well = await warm(house, text)
        assert is_well
        assert warming.outcomes == {"filled": 9, "known": 1}
        assert triton_echo.asked == 9
        for number in range(9):
            outcome = await house.caller("grpc-raw").ask(Ask(rows=((float(number), 0.5),)))
            assert outcome.cache == "hit"
        assert triton_echo.asked == 9


async def test_it_keeps_to_its_rate(triton_echo: EchoTriton) -> None:
    async with opened([triton_echo.url], edge=True, ROUTES__R=ROUTE) as house:
        _, slept, is_well = await warm(house, "\n".join(map(by_route, range(21))), rate=4.0)
    assert is_well
    assert slept.now >= 5.0


def test_what_was_late_is_not_made_up_for() -> None:
    pace = Pace(10.0, 0.0)
    assert [round(pace.wait(now), 6) for now in (0.0, 0.0, 0.1, 5.0, 5.0, 5.3)] == [0.0, 0.1, 0.1, 0.0, 0.1, 0.0]


async def test_what_is_refused_is_told_and_the_rest_is_asked(triton_echo: EchoTriton) -> None:
    async with opened([triton_echo.url], edge=True, ROUTES__R=ROUTE) as house:
        wrong = json.dumps({"route": "r", "inputs": {"y": [[1]]}})
        warming, _, is_well = await warm(house, "\n".join([wrong, "{", by_route(1), wrong]))
    assert not is_well
    assert warming.outcomes == {"refused": 2, "unreadable": 1, "filled": 1}
    assert [fault.split(":")[0] for fault in sorted(warming.faults)] == ["refused", "unreadable"]


async def test_the_key_goes_nowhere_else(triton_echo: EchoTriton) -> None:
    seen: list[str | None] = []

    async def lead_away(request: web.Request) -> web.Response:
        seen.append(request.headers.get("X-API-Key"))
        if request.path == "/elsewhere":
            return web.json_response({})
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with test_utils.TestServer(web_app(lead_away)) as server:
        options = WarmOptions(str(server.make_url("")).rstrip("/"), 1e6, key="secret")
        slept = Slept()
        warming = Warming(options, lambda: slept.now, slept.sleep)
        assert not await warming.run(io.BytesIO(by_path(1).encode()))
    assert (seen, warming.outcomes) == (["secret"], {"refused": 1})


def web_app(handler: Callable[[web.Request], Awaitable[web.Response]]) -> web.Application:
    app = web.Application()
    app.router.add_post("/{path:.*}", handler)
    return app


async def test_it_ends_when_nobody_answers(triton_echo: EchoTriton) -> None:
    async with AsyncExitStack() as stack:
        house = await stack.enter_async_context(opened([triton_echo.url], edge=True, ROUTES__R=ROUTE))
        url = f"http://{house.doors.http}"
    warming, _, is_well = await warm(url, "\n".join(map(by_route, range(1000))))
    assert not is_well
    assert FAILED_IN_A_ROW_MAX <= warming.outcomes["failed"] <= FAILED_IN_A_ROW_MAX + 8


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"1",
        b"\xff",
        b'{"route": "r"}',
        b'{"route": "r", "inputs": {}, "path": "/v2/models/r/infer", "body": {}}',
        b'{"path": "/v2/models/r/infer"}',
        b'{"path": "no path", "body": {}}',
        b'{"path": "/v2/repository/models/m/unload", "body": {}}',
        b'{"path": "/v2/models/../repository/models/m/unload", "body": {}}',
        b'{"route": "r", "inputs": {}, "more": 1}',
        b'{"route": "' + b"r" * LINE_BYTES_MAX + b'", "inputs": {}}',
    ],
)
def test_a_line_that_is_no_request(line: bytes) -> None:
    with pytest.raises(Unreadable):
        read_post(line)


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text("{\n")
    assert cli.main(["warm", str(file), "--url", "http://127.0.0.1:9"]) == cli.UNFIT
    told = capsys.readouterr()
    assert told.out == "warmed: 1 unreadable\n"
    assert "unreadable: line 1" in told.err
    assert cli.main(["warm", str(tmp_path / "none")]) == cli.UNFIT
    urls = ("not a url", "http://h/prefix", "http://h?x=1", "ftp://h", "http://h:99999", "http://u:p@h", "http://")
    for wrong in (["--rate", "0"], ["--rate", "x"], ["--in-flight", "0"], *(["--url", url] for url in urls)):
        with pytest.raises(SystemExit) as left:
            cli.main(["warm", str(file), *wrong])
        assert left.value.code == cli.MISUSED
