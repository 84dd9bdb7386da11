"""Interleaved rounds: every peer once in each round, every run checked before, during and after.

Rule of this file: a fault is collected, never raised away, and never averaged over: the run goes on, so
that all faults are seen, and ends as failed. During a run Triton's own statistics say whether requests
were computed or came from a cache.
"""

from __future__ import annotations

import http.client
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from msgspec import Struct

from benchmarks import check, load, measure
from benchmarks.peers.start import START, Counts, Peer, PeerFailed, Triton
from benchmarks.scenarios import CACHING, PATH, Expect, Kind, Question, Scenario, expectation, question
from examples.tritonserver import TritonFailed

COUNT_SECONDS_MAX: Final = 2.0
"""Triton counts a request a moment after it has answered it."""
WARM_SECONDS: Final = 1.0


class Options(Struct, frozen=True):
    rounds: int
    seconds: float
    connections: tuple[int, ...]


class Run(Struct, frozen=True):
    """One peer in one round. Times in microseconds, memory in bytes."""

    scenario: str
    connections: int
    peer: str
    round: int
    requests: int
    requests_per_second: float
    p50: float
    p99: float
    cpu_per_request: float
    resident: int
    faults: tuple[str, ...]


Said = Callable[[str, Run | None], None]
"""``said(what is done next, the run that ended)``: for a progress bar."""


def runs_in_all(scenarios: Sequence[Scenario], options: Options) -> int:
    """Measured runs and warm-up runs."""
    peers = sum(len(scenario.peers) for scenario in scenarios)
    return peers * (options.rounds * len(options.connections) + 1)


def measure_all(scenarios: Sequence[Scenario], options: Options, upstream: Triton, said: Said) -> Iterator[Run]:
    """Start the peers of each scenario, warm them, and measure them in turns."""
    placement = measure.placement(os.sched_getaffinity(0))
    seeds = itertools.count(1000)
    for scenario in scenarios:
        asked = question(scenario.values, seed=1)
        with ExitStack() as stack:
            peers = []
            for name in scenario.peers:
                said(f"{scenario.name}: starting {name}", None)
                peers.append(stack.enter_context(START[name](name, upstream, len(asked.body))))
            bench = _Bench(scenario, upstream, placement, seeds)
            for peer in peers:
                said(f"{scenario.name}: warming {peer.name}", None)
                run = bench.run(peer, 0, options.connections[0], WARM_SECONDS)
                said("", run)
                if run.faults:  # wrong while warming is wrong too
                    yield run
            for connections in options.connections:
                for number in range(1, options.rounds + 1):
                    shift = number % len(peers)  # nobody always comes after the same neighbour's heat
                    for peer in peers[shift:] + peers[:shift]:
                        said(f"{scenario.name}, {connections} connections, round {number}: {peer.name}", None)
                        run = bench.run(peer, number, connections, options.seconds)
                        said("", run)
                        yield run


class _Bench:
    """One scenario's way of asking."""

    def __init__(
        self, scenario: Scenario, upstream: Triton, placement: measure.Placement, seeds: Iterator[int]
    ) -> None:
        self._scenario = scenario
        self._upstream = upstream
        self._placement = placement
        self._seeds = seeds

    def run(self, peer: Peer, number: int, connections: int, seconds: float) -> Run:
        measure.pin(self._upstream.server.pid, self._placement.upstream)
        measure.pin(peer.group, self._placement.server)  # after: the upstream may be the peer itself
        unique = self._scenario.kind is Kind.MISS
        asked = question(self._scenario.values, seed=next(self._seeds) if unique else 1)
        expect = expectation(self._scenario.kind, peer.name)
        faults = [f"before: {fault}" for fault in self._check(peer, expect, fill=True)]
        failed = load.Load(0, 1, 0, 0, 0, 0, 0, 0, 0, 0)
        before, cpu = peer.triton.counts(), measure.cpu_seconds(peer.group)
        with tempfile.NamedTemporaryFile(prefix="tailrace-bench-") as file:
            file.write(asked.body)
            file.flush()
            line = load.command(
                url=f"http://127.0.0.1:{peer.port}{PATH}",
                body=Path(file.name),
                json_bytes=asked.json_bytes,
                unique=unique,
                connections=connections,
                seconds=seconds,
                cores=self._placement.client,
            )
            try:
                seen = load.run(line, seconds)
                faults += seen.faults()
            except load.LoadFailed as error:
                seen = failed
                faults.append(str(error))
        cpu = measure.cpu_seconds(peer.group) - cpu
        resident = measure.resident_bytes(peer.group)
        faults += self._counted(peer, expect, before, seen.requests, connections)
        faults += [f"after: {fault}" for fault in self._check(peer, expect, fill=False)]
        return Run(
            scenario=self._scenario.name,
            connections=connections,
            peer=peer.name,
            round=number,
            requests=seen.requests,
            requests_per_second=seen.requests_per_second,
            p50=seen.p50,
            p99=seen.p99,
            cpu_per_request=cpu * 1e6 / max(1, seen.requests),
            resident=resident,
            faults=tuple(faults),
        )

    def _check(self, peer: Peer, expect: Expect, *, fill: bool) -> list[str]:
        """Two different questions, each with its own right answer and cache state."""
        values = self._scenario.values
        if expect is Expect.HITS:
            known = [question(values, seed=1), question(values, seed=2)]
            steps = [(asked, None) for asked in known] * fill + [(asked, "hit") for asked in known]
        else:
            caches = peer.name in CACHING
            new = [question(values, seed=next(self._seeds)) for _ in range(2)]
            steps = [(asked, "miss") for asked in new] + [(asked, "hit") for asked in new] * caches
        found = [self._ask(peer, asked, state) for asked, state in steps]
        return [fault for fault in found if fault]

    def _ask(self, peer: Peer, asked: Question, state: str | None) -> str:
        try:
            counted = peer.triton.counts()
            status, headers, body = check.ask(peer.port, asked)
            wrong = check.fault(asked, status, headers, body)
            if wrong or state is None:
                return wrong
            told = check.cache_state(headers)
            if peer.is_triton and peer.name in CACHING:  # no header: only its statistics know
                told = "hit" if self._settled(peer, counted, 1).cache_hits > counted.cache_hits else "miss"
            if (told == "hit") != (state == "hit"):
                return f"cache state {told or 'untold'!r} where {state!r} was due"
        except (OSError, http.client.HTTPException, TritonFailed, PeerFailed) as error:
            return f"no answer: {error!r}"
        return ""

    def _counted(self, peer: Peer, expect: Expect, before: Counts, requests: int, connections: int) -> list[str]:
        own_cache = peer.is_triton and peer.name in CACHING
        wanted = requests if own_cache or expect is Expect.FORWARDS else 0
        try:
            after = self._settled(peer, before, wanted)
        except (OSError, http.client.HTTPException, TritonFailed, PeerFailed) as error:
            return [f"no statistics: {error!r}"]
        return count_faults(expect, own_cache, before, after, requests, connections)

    def _settled(self, peer: Peer, before: Counts, wanted: int) -> Counts:
        end = time.monotonic() + COUNT_SECONDS_MAX
        while True:
            after = peer.triton.counts()
            if after.succeeded - before.succeeded >= wanted or time.monotonic() > end:
                return after
            time.sleep(0.01)


def count_faults(
    expect: Expect, own_cache: bool, before: Counts, after: Counts, requests: int, connections: int
) -> list[str]:
    """Whether Triton's counters fit a run of ``requests``; ``connections`` more may have been under way.

    ``own_cache``: the counters are those of a Triton with a response cache that is the peer itself.
    """
    succeeded = after.succeeded - before.succeeded
    hits, misses = after.cache_hits - before.cache_hits, after.cache_misses - before.cache_misses
    if expect is Expect.HITS and own_cache:
        return [] if hits >= requests and not misses else [f"Triton's cache hit {hits} times of {requests}"]
    if expect is Expect.HITS:
        return [] if not succeeded else [f"{succeeded} of {requests} hits reached Triton"]
    if hits:
        return [f"{hits} requests that should be computed were answered by Triton's cache"]
    if not requests <= succeeded <= requests + connections:
        return [f"Triton computed {succeeded} answers for {requests} requests"]
    return []
