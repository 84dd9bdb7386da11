"""TLS as a user sees it: tritonclient over https, several workers, new certificates, and a good end."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import aiohttp
import numpy as np
import pytest
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_aio

from examples.gatewayprocess import GatewayFailed

ROUTE = {"tiers": [{"backend": "b", "model": "echo_fp32"}], "cache": {"ttl": "10m"}}
LARGE_COLUMNS = 1_250_000
SECONDS = 20.0


def configured(triton: Any, tls: dict[str, str], **server: Any) -> dict[str, Any]:
    return {
        "server": {"tls": tls, **server},
        "backends": {"b": {"http": [triton.http_url]}},
        "routes": {"echo": ROUTE},
    }


def files(pem: Any, **more: str) -> dict[str, str]:
    return {"certificate": str(pem.certificate), "key": str(pem.key), **more}


def asked(columns: int, seed: int) -> tuple[Any, Any]:
    values = np.random.default_rng(seed).standard_normal((1, columns), np.float32)
    tensor = triton_http.InferInput("x", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    return tensor, values


def until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end, f"not within {SECONDS:.0f} s: {what}"
        time.sleep(0.05)


def healthy(gateway: Any) -> None:
    assert "Traceback" not in gateway.log()
    assert "bug" not in gateway.log()


@pytest.mark.parametrize("edge", [True, False])
def test_tritonclient_over_https(edge: bool, triton: Any, gateway_factory: Any, pem: Any) -> None:
    gateway = gateway_factory(configured(triton, files(pem), edge=edge))
    assert gateway.http_url.startswith("https://")
    assert gateway.admin_url.startswith("http://")
    client = triton_http.InferenceServerClient(
        gateway.http_address, ssl=True, ssl_options={"ca_certs": str(pem.ca)}, network_timeout=60.0
    )
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_model_metadata("echo")["name"] == "echo"
    for model in ("echo", "echo_fp32"):  # a route, and what passes through
        for columns in (4, 40_000, LARGE_COLUMNS):
            for _ in range(2):
                tensor, values = asked(columns, columns)
                assert np.array_equal(client.infer(model, [tensor]).as_numpy("y"), values)
    assert gateway.metric("tailrace_answers_total", cache="hit") == 3
    client.close()
    healthy(gateway)


async def test_the_asyncio_client_over_https(triton: Any, gateway_factory: Any, pem: Any) -> None:
    gateway = gateway_factory(configured(triton, files(pem)))
    async with triton_aio.InferenceServerClient(
        gateway.http_address, ssl=True, ssl_context=pem.caller()
    ) as client:
        wanted = [asked(100, seed) for seed in range(16)]
        answers = await asyncio.gather(*(client.infer("echo", [tensor]) for tensor, _ in wanted))
    for (_, values), answer in zip(wanted, answers, strict=True):
        assert np.array_equal(answer.as_numpy("y"), values)
    healthy(gateway)


def live(gateway: Any, context: ssl.SSLContext) -> int:
    with urllib.request.urlopen(f"{gateway.http_url}/v2/health/live", timeout=10.0, context=context) as answer:
        return int(answer.status)


def test_workers_show_one_certificate_and_refuse_strangers(triton: Any, gateway_factory: Any, own_pem: Any) -> None:
    config = configured(triton, files(own_pem, client_ca=str(own_pem.ca)))
    gateway = gateway_factory(config, ("--workers", "2"))
    assert gateway.http_url.startswith("https://")
    known = own_pem.caller(own_pem.issue("caller"))
    for _ in range(20):
        assert live(gateway, known) == 200
    for _ in range(10):
        with pytest.raises((OSError, ssl.SSLError)):
            live(gateway, own_pem.caller())
    assert gateway.metric("tailrace_tls_handshakes_total", outcome="done") == 20
    assert gateway.metric("tailrace_tls_handshakes_total", outcome="certificate") == 10
    own_pem.issue("server")
    until(lambda: gateway.metric("tailrace_tls_renewals_total") == 2, "both workers take up the new certificate")
    assert live(gateway, known) == 200
    healthy(gateway)


def test_a_flood_of_bad_handshakes_is_counted_and_not_logged(triton: Any, gateway_factory: Any, pem: Any) -> None:
    gateway = gateway_factory(configured(triton, files(pem), head_timeout="2s"))
    host, port = gateway.http_address.split(":")
    before = gateway.log().count("\n")
    sent = (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\xa5", b"\x00" * 400, b"\x16\x03\x01\x00\x05hello", b"")
    kept = []
    for number in range(200):
        each = socket.create_connection((host, int(port)))
        each.sendall(sent[number % len(sent)])
        kept.append(each)
    until(lambda: gateway.metric("tailrace_tls_handshakes_total") == 200, "all of them end")
    until(lambda: gateway.metric("tailrace_connections") == 0, "no connection is left")
    assert gateway.metric("tailrace_tls_handshakes_total", outcome="timeout") == 80
    assert gateway.metric("tailrace_connections_cut_total", reason="handshake") == 80
    assert live(gateway, pem.caller()) == 200
    assert gateway.log().count("\n") == before, gateway.log()
    for each in kept:
        each.close()


async def test_sigterm_lets_answers_under_tls_finish(triton: Any, gateway_factory: Any, pem: Any) -> None:
    """Callers who keep asking see right answers, then refused connections; never half an answer."""
    gateway = gateway_factory(configured(triton, files(pem)))
    process, answers = gateway.process, []

    async def call(session: aiohttp.ClientSession, caller: int) -> None:
        for number in range(100_000):
            body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [caller, number % 50]}]}
            try:
                async with session.post(f"{gateway.http_url}/v2/models/echo/infer", json=body) as answer:
                    told = await answer.json(content_type=None)
            except aiohttp.ClientError as error:
                answers.append(isinstance(error, aiohttp.ClientConnectionError))
                return
            answers.append(answer.status == 200 and told["outputs"][0]["data"] == [caller, number % 50])

    connector = aiohttp.TCPConnector(ssl=pem.caller())
    async with aiohttp.ClientSession(connector=connector) as session:
        callers = [asyncio.create_task(call(session, each)) for each in range(8)]
        end = time.monotonic() + SECONDS
        while len(answers) < 200:
            assert time.monotonic() < end, "no answers"
            await asyncio.sleep(0.01)
        began = time.monotonic()
        process.signal(signal.SIGTERM)
        await asyncio.gather(*callers)
    assert all(answers)
    assert process.wait(15.0), "the gateway did not end"
    assert process.returncode == 0
    assert time.monotonic() - began < 9.0, "it waited for its connections until the end of server.drain"
    healthy(gateway)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_certificate_that_cannot_be_used_is_said_at_the_start(
    workers: str, triton: Any, gateway_factory: Any, own_pem: Any
) -> None:
    tls = files(own_pem, key=str(own_pem.issue("other")[1]))
    with pytest.raises(GatewayFailed, match=r"ended with 1:\n(.*\n)*tailrace: server.tls.key: .*: is not the key"):
        gateway_factory(configured(triton, tls), ("--workers", workers))
