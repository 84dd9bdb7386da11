"""One scenario's way of asking: a run of one peer, checked before, during and after.

Rule of this file: a fault is collected, never raised away, and never averaged over. The client compares the
bytes of every answer; the upstream's own statistics say whether requests were computed or came from a cache.
"""

from __future__ import annotations

import http.client
import itertools
import tempfile
import time
from pathlib import Path
from typing import Final

from msgspec import Struct

from benchmarks import check, client, measure
from benchmarks.client import Load, Picking
from benchmarks.native import program
from benchmarks.peers.start import Peer
from benchmarks.peers.upstream import Counts, PeerFailed, Upstream
from benchmarks.questions import DIGITS, Question, question, wire
from benchmarks.scenarios import CACHING, HEADS, MIXED_FRESH, MIXED_HOT, Expect, Kind, Scenario, expectation
from benchmarks.verdicts import count_faults, quota_faults

COUNT_SECONDS_MAX: Final = 2.0
"""Triton counts a request a moment after it has answered it."""
FRESH_STRIDE: Final = 150_000
"""Serials kept for the new inputs of one mixed run: more than are asked, and enough for a hundred runs."""
TRACE: Final = f"traceparent: 00-4bf92f3577b34da6a3ce929d{DIGITS}-00f067aa0ba902b7-01\r\n"
"""W3C Trace Context: what a traced client sends, another with every request."""
REFUSED: Final = {
    "tailrace-limited": ("HTTP/1.1 429 ", "\r\nRetry-After: ", "\r\nRateLimit: ", "/problem+json\r\n", '"error"'),
    "nginx-limited": ("HTTP/1.1 429 ", "429 Too Many Requests</h1>"),
}
"""What every refusal of these peers holds."""
QUOTA_RETRIES_MAX: Final = 50
FILL_CONNECTIONS: Final = 16
FILL_SECONDS_MAX: Final = 60.0
ANSWERLESS: Final = (OSError, http.client.HTTPException, PeerFailed)
"""What asking raises when there is no answer to judge."""
REFUSED_STATUS: Final = 429


class Run(Struct, frozen=True):
    """One peer in one round. Times in microseconds, memory in bytes. ``client_busy``: the share of the run in
    which the client, and what shares its core, worked."""

    scenario: str
    connections: int
    peer: str
    round: int
    load: Load
    cpu_per_request: float
    client_busy: float
    resident: int
    faults: tuple[str, ...]


class Asking:
    """Asks peers of one scenario, one after the other."""

    def __init__(
        self, scenario: Scenario, upstream: Upstream, placement: measure.Placement, seeds: itertools.count[int]
    ) -> None:
        self._scenario = scenario
        self._upstream = upstream
        self._placement = placement
        self._seeds = seeds
        self._mixed = itertools.count()

    def fill(self, peer: Peer) -> list[str]:
        """Let a cache see the inputs that a mixed run takes for known; what was wrong."""
        if self._scenario.kind is not Kind.MIXED or peer.name not in CACHING:
            return []
        asked, known = question(self._scenario.values, seed=1), Picking("next", requests=MIXED_HOT)
        try:
            json_part = self._learn(peer)
        except ANSWERLESS as error:
            return [f"no answer: {error!r}"]
        seen, faults = self._load(peer, asked, known, json_part, FILL_CONNECTIONS, FILL_SECONDS_MAX)
        return faults if seen.answered == MIXED_HOT else [*faults, f"{seen.answered} of {MIXED_HOT} inputs were asked"]

    def run(self, peer: Peer, number: int, connections: int, seconds: float) -> Run:
        """One run, with all its checks."""
        measure.pin(self._upstream.group, self._placement.upstream)
        measure.pin(peer.group, self._placement.server)  # after: the upstream may be the peer itself
        expect = expectation(self._scenario.kind, peer.name)
        faults = [f"before: {fault}" for fault in self._check(peer, expect, fill=True)]
        shared = not peer.is_upstream and self._placement.upstream == self._placement.client
        asked, picking = self._questions(peer)
        try:
            json_part = self._learn(peer)
            before = self._quiet(peer)
        except ANSWERLESS as error:
            faults.append(f"no answer: {error!r}")
            return Run(self._scenario.name, connections, peer.name, number, Load(), 0.0, 0.0, 0, tuple(faults))
        cpu, behind = measure.cpu_seconds(peer.group), self._behind(shared)
        seen, wrong = self._load(peer, asked, picking, json_part, connections, seconds)
        cpu, behind = measure.cpu_seconds(peer.group) - cpu, self._behind(shared) - behind
        resident = measure.resident_bytes(peer.group)
        faults += [*wrong, *self._counted(peer, expect, before, seen)]
        if self._scenario.kind is Kind.QUOTA:
            faults += quota_faults(seen)
        faults += [f"after: {fault}" for fault in self._check(peer, expect, fill=False)]
        return Run(
            scenario=self._scenario.name,
            connections=connections,
            peer=peer.name,
            round=number,
            load=seen,
            cpu_per_request=cpu * 1e6 / max(1, seen.answered),
            client_busy=(seen.client_microseconds + behind * 1e6) / seen.microseconds,
            resident=resident,
            faults=tuple(faults),
        )

    def _questions(self, peer: Peer) -> tuple[Question, Picking]:
        kind, values = self._scenario.kind, self._scenario.values
        if kind in (Kind.MISS, Kind.UNIQUE):
            return question(values, seed=next(self._seeds)), Picking(pick="next")
        picking = Picking()
        if kind is Kind.HEADS:
            picking = Picking(heads=HEADS)
        elif kind is Kind.QUOTA:
            picking = Picking(also=REFUSED_STATUS, needles=REFUSED[peer.name])
        elif kind is Kind.MIXED:
            turn = next(self._mixed)
            first = MIXED_HOT + turn * FRESH_STRIDE
            picking = Picking("zipf", count=MIXED_HOT, fresh=MIXED_FRESH, fresh_first=first, seed=turn + 1)
        return question(values, seed=1), picking

    def _load(
        self, peer: Peer, asked: Question, picking: Picking, json_part: bytes, connections: int, seconds: float
    ) -> tuple[Load, list[str]]:
        fields = TRACE if self._scenario.kind is Kind.HEADS else ""
        try:
            with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as directory:
                sent = wire(asked, self._scenario.model, peer.port, fields)
                line = client.command(
                    program=program("ask"),
                    port=peer.port,
                    files=client.write(Path(directory), sent, json_part, len(asked.answer)),
                    picking=picking,
                    connections=connections,
                    seconds=seconds,
                    cores=self._placement.client,
                )
                seen = client.run(line, seconds)
                return seen, seen.faults()
        except client.ClientFailed as error:
            return Load(), [str(error)]

    def _learn(self, peer: Peer) -> bytes:
        """How this peer writes the JSON part of an answer: the same for all questions, and checked here."""
        asked = question(self._scenario.values, seed=1)
        status, headers, body = self._ask_patiently(peer, asked)
        wrong = check.fault(asked, self._scenario.model, status, headers, body)
        if wrong:
            raise PeerFailed(f"no right answer to learn from: {wrong}")
        return check.json_part(headers, body)

    def _behind(self, shared: bool) -> float:
        return measure.cpu_seconds(self._upstream.group) if shared else 0.0

    # -- what a run is held against ------------------------------------------------------------------

    def _check(self, peer: Peer, expect: Expect, *, fill: bool) -> list[str]:
        """Two different questions, each with its own right answer and cache state."""
        values = self._scenario.values
        if expect is not Expect.FORWARDS:
            known = [question(values, seed=1), question(values, seed=2)]
            steps = [(asked, "") for asked in known] * fill + [(asked, "hit") for asked in known]
        else:
            caches = peer.name in CACHING
            new = [question(values, seed=next(self._seeds)) for _ in range(2)]
            steps = [(asked, "miss") for asked in new] + [(asked, "hit") for asked in new] * caches
        found = [self._ask(peer, asked, state) for asked, state in steps]
        return [fault for fault in found if fault]

    def _ask(self, peer: Peer, asked: Question, state: str) -> str:
        try:
            counted = self._quiet(peer)
            status, headers, body = self._ask_patiently(peer, asked)
            wrong = check.fault(asked, self._scenario.model, status, headers, body)
            if wrong or not state:
                return wrong
            told = check.cache_state(headers)
            if peer.is_upstream and peer.name in CACHING:  # no header: only its statistics know
                told = "hit" if self._settled(peer, counted, 1).cache_hits > counted.cache_hits else "miss"
            if (told == "hit") != (state == "hit"):
                return f"cache state {told or 'untold'!r} where {state!r} was due"
        except ANSWERLESS as error:
            return f"no answer: {error!r}"
        return ""

    def _ask_patiently(self, peer: Peer, asked: Question) -> tuple[int, check.Headers, bytes]:
        """A quota that a run has spent is waited for; any other answer is the first one."""
        for _ in range(QUOTA_RETRIES_MAX):
            status, headers, body = check.ask(peer.port, asked, self._scenario.model)
            if status != REFUSED_STATUS or self._scenario.kind is not Kind.QUOTA:
                break
            time.sleep(0.02)
        return status, headers, body

    def _counted(self, peer: Peer, expect: Expect, before: Counts, seen: Load) -> list[str]:
        own_cache = peer.is_upstream and peer.name in CACHING
        computed = {Expect.HITS: 0, Expect.FORWARDS: seen.answered, Expect.FRESH: seen.fresh}[expect]
        try:
            after = self._settled(peer, before, seen.answered if own_cache else computed)
        except PeerFailed as error:
            return [str(error)]
        return count_faults(expect, own_cache, before, after, seen)

    def _settled(self, peer: Peer, before: Counts, wanted: int) -> Counts:
        end = time.monotonic() + COUNT_SECONDS_MAX
        while True:
            after = peer.upstream.counts(self._scenario.model)
            if after.succeeded - before.succeeded >= wanted or time.monotonic() > end:
                return after
            time.sleep(0.01)

    def _quiet(self, peer: Peer) -> Counts:
        """The counters once they have stopped: what was answered a moment ago is counted too."""
        end, before = time.monotonic() + COUNT_SECONDS_MAX, peer.upstream.counts(self._scenario.model)
        while time.monotonic() < end:
            time.sleep(0.005)
            after = peer.upstream.counts(self._scenario.model)
            if after == before:
                break
            before = after
        return before
