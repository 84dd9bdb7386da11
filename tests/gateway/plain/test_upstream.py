"""A gateway before a server that is no Triton: everything passes through, and readiness is that server's own."""

from __future__ import annotations

import asyncio
import hashlib
import sys

import pytest
from aiohttp import ClientSession

from examples.gatewayprocess import GatewayProcess
from gateway.check import findings
from gateway.config import Config, Route, TierConfig
from gateway.config_backends import Backend
from gateway.doors.about import Readiness
from tests.gateway.plain.conftest import Front, Open, Predictor, until


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"])
async def test_every_method_and_path_passes_through(predictor: Predictor, open_front: Open, method: str) -> None:
    front = await open_front()
    told = await front.ask(method, "/echo?a=1&b=%20", b"as it is")
    assert (told.status, told.body) == (200, b"as it is")
    assert (told.headers["X-Method"], told.headers["X-Path"]) == (method, "/echo?a=1&b=%20")
    assert told.headers["Tailrace-Provenance"] == "cache=bypass, reason=passthrough"
    assert predictor.asked == [(method, "/echo?a=1&b=%20")]


async def test_its_own_refusals_are_passed_on(predictor: Predictor, open_front: Open) -> None:
    front = await open_front()
    assert (await front.ask("GET", "/nowhere")).status == 404
    assert (await front.ask("GET", "/predict")).status == 405
    assert (await front.ask("HEAD", "/healthz")).status == 200
    assert (await front.predict(1, 2)).document == {"sum": 3}
    assert (await front.predict(1, 2)).document == {"sum": 3}
    assert len(predictor.posts) == 2, "nothing is cached that nobody named"


async def ready(front: Front) -> int:
    return (await front.ask("GET", "/v2/health/ready")).status


async def test_who_does_not_know_tritons_question_is_ready_and_who_is_gone_is_not(
    predictor: Predictor, open_front: Open
) -> None:
    front = await open_front(TAILRACE_BACKENDS__UPSTREAM__PROBE="100ms")
    assert await ready(front) == 200
    await until(lambda: len(predictor.probed) > 3)
    assert set(predictor.probed) == {"/v2/health/ready"}
    assert predictor.asked == [], "nobody asks it about models"
    await predictor.stop()
    await until(lambda: not front.gateway.readiness().ready)
    assert await ready(front) == 503
    assert (await front.predict(1)).status == 503
    await predictor.start(predictor.port)
    await until(lambda: front.gateway.readiness().ready)
    assert (await front.predict(1)).status == 200


async def test_an_operator_says_what_tells_its_health(predictor: Predictor, open_front: Open) -> None:
    probe = {"TAILRACE_BACKENDS__UPSTREAM__PROBE_PATH": "/healthz", "TAILRACE_BACKENDS__UPSTREAM__PROBE": "100ms"}
    front = await open_front(**probe)
    assert front.gateway.readiness() == Readiness(True)
    predictor.health = 503
    await until(lambda: not front.gateway.readiness().ready)
    predictor.health = 204
    await until(lambda: front.gateway.readiness().ready)
    assert set(predictor.probed) == {"/healthz"}
    predictor.health = 404
    await until(lambda: not front.gateway.readiness().ready)


async def test_check_says_what_it_is(predictor: Predictor) -> None:
    backend = Backend((predictor.url,))
    found = await findings(Config(backends={"b": backend}))
    assert found.faults == ()
    (note,) = found.notes
    assert note.startswith(f"backends.b: {predictor.url}: lives, and is no Triton (/v2/health/ready answers 404)")
    named = await findings(Config(backends={"b": Backend((predictor.url,), probe_path="/healthz")}))
    assert (named.faults, named.notes) == ((), ())
    wrong = await findings(Config(backends={"b": Backend((predictor.url,), probe_path="/health")}))
    assert wrong.faults == (f"backends.b: {predictor.url}: is not ready (/health answers 404)",)
    asked = await findings(Config(backends={"b": backend}, routes={"r": Route((TierConfig("b", "m"),))}))
    assert f"backends.b: {predictor.url}: is no Triton (/v2/health/ready answers 404)" in asked.faults[0]


@pytest.mark.parametrize("path", ["", "healthz", "/a b", "/a#b", "http://h/a", "/ä"])
def test_a_probe_path_that_is_none_is_a_fault(path: str) -> None:
    assert [key for key, _ in Backend(("http://h",), probe_path=path).faults()] == ["probe_path"]


def test_a_probe_path_is_for_http() -> None:
    assert [key for key, _ in Backend((), ("h:1",), probe_path="/healthz").faults()] == ["probe_path"]
    assert not list(Backend(("http://h",), probe_path="/healthz?deep=1").faults())


async def test_the_command_before_it_is_quiet_and_ready(predictor: Predictor) -> None:
    """With all doors open, as anyone would start it."""
    environ = {"TAILRACE_BACKENDS__UPSTREAM__PROBE": "100ms", "TAILRACE_LOG__LEVEL": "info"}
    gateway = GatewayProcess(None, ["--upstream", predictor.url], environ)
    try:
        await asyncio.to_thread(gateway.start)
        async with ClientSession() as client:
            async with client.get(f"{gateway.http_url}/v2/health/ready") as got:
                assert got.status == 200
            async with client.post(f"{gateway.http_url}/predict", json={"inputs": [1, 2]}) as got:
                assert await got.json() == {"sum": 3}
            async with client.get(f"{gateway.http_url}/v2/models/m") as got:
                assert got.status == 404
        seen = len(predictor.probed)
        await until(lambda: len(predictor.probed) > seen + 5)
    finally:
        await asyncio.to_thread(gateway.stop)
    told = [line for line in gateway.log().splitlines() if "callers may change the servers" not in line]
    assert not [line for line in told if "warning" in line.lower() or "error" in line.lower()], told
    assert set(predictor.asked) == {("POST", "/predict"), ("GET", "/v2/models/m")}


async def test_check_ends_well_and_says_what_it_found(predictor: Predictor) -> None:
    command = [sys.executable, "-m", "gateway.cli", "check", "--grpc", "off", "--upstream", predictor.url]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    out, err = await process.communicate()
    assert (process.returncode, out) == (0, b"all well: 1 backend (ready), 0 routes\n")
    assert b"note: backends.upstream: " in err
    assert b"is no Triton" in err


async def test_a_callers_own_quota_is_charged_for_what_it_posts(predictor: Predictor, open_front: Open) -> None:
    key = "".join(
        (
            f'[callers.ann]\nkey_sha256 = "{hashlib.sha256(b"ann").hexdigest()}"\n',
            'quota = { rate = 2, per = "1h" }\n',
        )
    )
    front = await open_front(key)
    told = [(await front.predict(1, X_API_Key="ann")).status for _ in range(3)]
    told += [(await front.ask("GET", "/healthz", headers={"X-API-Key": "ann"})).status, (await front.predict(1)).status]
    assert told == [200, 200, 429, 200, 200]
    assert len(predictor.posts) == 3
