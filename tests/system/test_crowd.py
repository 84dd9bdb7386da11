"""Ten thousand idle connections before the real gateway process: what they cost, that they are served, and cut.

Nothing here is decided by time. Both processes need some 11,000 open files: where the hard limit is lower, the test
fails with the sentence that says how to raise it.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator

import pytest

from benchmarks.crowd import CONNECTIONS, KINDS, Crowd, allow, ask, await_gone, files_of, memory, settings
from benchmarks.growth.axes import config
from benchmarks.peers.upstream import Upstream, static
from examples.gatewayprocess import GatewayProcess

GROWTH_BYTES_MAX = 100 * 10**6
"""What ten thousand connections may cost, whatever they have asked."""
ASKED = 200
SEED = 5
CUT_SECONDS_MAX = 60.0

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with static() as started:
        yield started


def gateway(upstream: Upstream, idle: str) -> GatewayProcess:
    return GatewayProcess(settings(CONNECTIONS, idle) + config(upstream.url))


def test_a_crowd_costs_little_and_is_answered(upstream: Upstream) -> None:
    allow(CONNECTIONS)
    chance = random.Random(SEED)
    with gateway(upstream, "1h") as process, Crowd() as crowd:
        port, pid = int(process.http_url.rpartition(":")[2]), process.process.pid
        for asked in KINDS.values():  # what a first request takes is not the crowd's
            crowd.open(port, 10, asked)
        before, files = memory(pid).resident, files_of(pid)
        for asked in KINDS.values():
            crowd.open(port, CONNECTIONS // len(KINDS), asked)
        others = 10 * len(KINDS)
        assert process.metric("tailrace_connections") == len(crowd.sockets) == CONNECTIONS + others
        grown = memory(pid).resident - before
        assert 10**6 < grown < GROWTH_BYTES_MAX, f"{CONNECTIONS} connections cost {grown} bytes"
        for own in chance.sample(crowd.sockets, ASKED):
            ask(own, KINDS["hit"] or b"")
        assert process.metric("tailrace_connections") == CONNECTIONS + others
        assert process.metric("tailrace_connections_cut_total") == 0
        for own in crowd.sockets:
            own.close()
        await_gone(pid, files)


def test_a_crowd_is_cut_when_it_has_been_idle_for_its_time(upstream: Upstream) -> None:
    allow(CONNECTIONS)
    with gateway(upstream, "2s") as process, Crowd() as crowd:
        crowd.open(int(process.http_url.rpartition(":")[2]), CONNECTIONS, None)
        end = time.monotonic() + CUT_SECONDS_MAX
        while (cut := process.metric("tailrace_connections_cut_total", reason="idle")) < CONNECTIONS:
            assert time.monotonic() < end, f"{cut:.0f} of {CONNECTIONS} idle connections were cut"
            time.sleep(0.1)
        assert process.metric("tailrace_connections") == 0
        for own in crowd.sockets:
            with contextlib.suppress(ConnectionResetError):  # an abrupt end is one too
                assert own.recv(1) == b""


def test_a_start_with_too_few_open_files_says_so() -> None:
    """Callers beyond the limit would wait in the kernel's queue with no word of why."""
    text = "[server]\nconnections_max = 2000000000\n"
    with GatewayProcess(text, ("--upstream", "http://127.0.0.1:1")) as process:
        assert "callers may be refused for want of open files" in process.log()
        assert "server.connections_max is 2000000000" in process.log()
