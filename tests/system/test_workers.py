"""Several workers as a user sees them: one port, one admin port, and no end of one is the end of all."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

ROUTE = {"echo": {"tiers": [{"backend": "b", "model": "echo_fp32"}], "cache": {"ttl": "10m"}}}
TOTAL = 60


@pytest.fixture
def workers(gateway_factory: Callable[..., Any], triton: Any) -> Any:
    return gateway_factory({"backends": {"b": {"http": [triton.http_url]}}, "routes": ROUTE}, ("--workers", "2"))


def status(gateway: Any) -> list[Any]:
    with urllib.request.urlopen(f"{gateway.admin_url}/status", timeout=10.0) as answer:
        found: list[Any] = json.load(answer)["workers"]
        return found


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:.0f} s"
        time.sleep(0.05)


async def ask(url: str, number: int) -> int:
    """One request on a connection of its own; its status, or 0 if the connection was lost."""
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [number, 2]}]}
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/v2/models/echo/infer", json=body) as answer,
        ):
            if answer.status == 200:
                assert (await answer.json(content_type=None))["outputs"][0]["data"] == [number, 2]
            return answer.status
    except aiohttp.ClientError:
        return 0


async def ask_many(url: str) -> list[int]:
    return [await ask(url, number % 4) for number in range(TOTAL)]


def pids(gateway: Any) -> list[int]:
    return [each["pid"] for each in status(gateway) if each is not None]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def test_both_answer_and_the_numbers_are_one(workers: Any) -> None:
    assert asyncio.run(ask_many(workers.http_url)) == [200] * TOTAL
    assert workers.metric("tailrace_answers_total") == TOTAL
    kept = [each["routes"]["echo"]["cache"]["entries"] for each in status(workers)]
    assert len(kept) == 2
    assert all(kept), f"the kernel gave every connection to one worker: {kept}"
    for worker, entries in enumerate(kept):
        assert workers.metric("tailrace_cache_entries", worker=str(worker)) == entries
    request = urllib.request.Request(f"{workers.admin_url}/purge?route=echo", method="POST")
    with urllib.request.urlopen(request, timeout=10.0) as answer:
        assert json.load(answer) == {"purged": {"echo": sum(kept)}}
    assert [each["routes"]["echo"]["cache"]["entries"] for each in status(workers)] == [0, 0]


def test_a_killed_worker_is_replaced_and_what_it_counted_stays(workers: Any) -> None:
    asyncio.run(ask_many(workers.http_url))
    counted = workers.metric("tailrace_answers_total")
    assert counted == TOTAL
    before = pids(workers)
    os.kill(before[0], signal.SIGKILL)
    until(lambda: len(pids(workers)) == 2 and before[0] not in pids(workers))
    assert workers.metric("tailrace_worker_restarts_total") == 1
    assert workers.metric("tailrace_answers_total") >= counted
    assert before[1] in pids(workers)
    assert asyncio.run(ask_many(workers.http_url)) == [200] * TOTAL
    assert workers.metric("tailrace_answers_total") == counted + TOTAL


def test_a_worker_that_is_replaced_while_backends_are_away_is_ready_beside_the_others(
    breakable_factory: Callable[..., Any], gateway_factory: Callable[..., Any]
) -> None:
    """Or the balancer would be told yes and no in turn."""
    server = breakable_factory("stamped").server
    tiers = [{"backend": "b", "model": "stamped"}]
    config = {"backends": {"b": {"http": [server.http_url]}}, "routes": {"r": {"tiers": tiers}}}
    gateway = gateway_factory(config, ["--workers", "2"])

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"{gateway.http_url}/v2/health/ready", timeout=10.0) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return False

    until(ready)
    before = pids(gateway)
    server.kill()
    until(lambda: gateway.metric("tailrace_replica_ready") == 0)
    os.kill(before[0], signal.SIGKILL)
    until(lambda: len(pids(gateway)) == 2 and before[0] not in pids(gateway))
    assert all(ready() for _ in range(32))


def test_sigterm_ends_all_of_them(workers: Any) -> None:
    running = pids(workers)
    workers.process.signal(signal.SIGTERM)
    assert workers.process.wait(20.0)
    assert workers.process.returncode == 0
    until(lambda: not any(is_running(pid) for pid in running))


def test_none_outlives_a_supervisor_that_was_killed(workers: Any) -> None:
    running = pids(workers)
    assert all(is_running(pid) for pid in running)
    workers.process.signal(signal.SIGKILL)
    until(lambda: not any(is_running(pid) for pid in running))


def test_a_worker_that_cannot_start_ends_the_start_with_its_own_words() -> None:
    command = [sys.executable, "-m", "gateway.cli", "serve", "--upstream", "http://127.0.0.1:1", "--workers", "2"]
    ended = subprocess.run(
        [*command, "--http", "203.0.113.1:0"], capture_output=True, text=True, timeout=60.0, check=False
    )
    assert ended.returncode == 1
    assert "cannot listen" in ended.stderr
