"""Gateways of two sizes side by side, asked the same in turns.

Rule of this file: it knows how to ask and to compare, not what grows. Every answer is compared by its bytes, and
what is called a hit must not have reached the upstream.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from benchmarks import check, client, measure
from benchmarks.client import Load, Picking
from benchmarks.growth.axes import numbered
from benchmarks.native import program
from benchmarks.peers.upstream import Upstream
from benchmarks.questions import Question, question, wire
from benchmarks.report import Spread, spread
from benchmarks.scenarios import MODEL, SMALL
from examples.gatewayprocess import GatewayProcess

START_SECONDS_MAX: Final = 300.0
"""A configuration of a hundred thousand callers takes its time to be read."""
FILL_SECONDS_MAX: Final = 7200.0
FILL_CONNECTIONS: Final = 64
FILL_PATIENCE: Final = 120_000
"""Milliseconds: what a gateway stands still for meanwhile is told, and is no fault."""
WARM_SECONDS: Final = 0.5


class GrowthFailed(RuntimeError):
    """An answer was wrong, or a hit was none: what follows would mean nothing."""


class Stage(Struct, frozen=True):
    """One gateway at one size, and how it is asked. ``model`` and ``fields`` may hold DIGITS."""

    port: int
    group: int
    picking: Picking
    asked: Question = question(SMALL, 1)
    model: str = MODEL
    fields: str = ""
    connections: int = 16


class Comparison(Struct, frozen=True):
    """A size beside the first one. ``ratio``: CPU per hit as a multiple of the first size's, round by round."""

    cpu_per_request: Spread
    ratio: Spread
    requests_per_second: Spread
    p50: Spread
    p99: Spread
    resident: int


class Lab:
    """``answers``: how many were compared up to now."""

    def __init__(self, upstream: Upstream, cores: measure.Placement, rounds: int, seconds: float) -> None:
        self.upstream = upstream
        self._cores = cores
        self._rounds = rounds
        self._seconds = seconds
        self.answers = 0
        measure.pin(upstream.group, cores.upstream)

    @contextmanager
    def gateway(self, config: str) -> Iterator[tuple[int, int]]:
        """(port, process group) of a gateway."""
        process = GatewayProcess(config)
        try:
            process.start(START_SECONDS_MAX)
            measure.pin(process.process.pid, self._cores.server)
            yield int(process.http_url.rpartition(":")[2]), process.process.pid
        finally:
            process.stop()

    def fill(self, stage: Stage, requests: int, computed: int) -> float:
        """Ask so many requests; exactly ``computed`` of them are new. The longest wait, in µs. Raises GrowthFailed.

        New ones are asked once more: what has come again is known by its bytes from then on.
        """
        longest = self._fill(stage, requests, computed)
        return max(longest, self._fill(stage, requests, 0)) if computed else longest

    def _fill(self, stage: Stage, requests: int, computed: int) -> float:
        before = self.upstream.counts(MODEL).succeeded
        picking = replace(stage.picking, requests=requests, patience=FILL_PATIENCE)
        whole = replace(stage, picking=picking, connections=FILL_CONNECTIONS)
        seen, _ = self._load(whole, FILL_SECONDS_MAX, self._answer(stage))
        told = (seen.answered, self.upstream.counts(MODEL).succeeded - before)
        if told != (requests, computed):
            raise GrowthFailed(f"asked and computed were {told}, not {(requests, computed)}")
        return seen.longest

    def compare(self, first: Stage, grown: Stage) -> Comparison:
        """Rounds of both in turns; hits only. Raises GrowthFailed."""
        stages = (first,) if first == grown else (first, grown)
        answers = [self._answer(stage) for stage in stages]
        runs: list[list[tuple[Load, float]]] = [[] for _ in stages]
        before = self.upstream.counts(MODEL).succeeded
        for number in range(self._rounds + 1):
            order = range(len(stages)) if number % 2 else range(len(stages) - 1, -1, -1)
            for index in order:
                seconds = self._seconds if number else WARM_SECONDS
                run = self._load(stages[index], seconds, answers[index])
                if number:
                    runs[index].append(run)
        computed = self.upstream.counts(MODEL).succeeded - before
        if computed:
            raise GrowthFailed(f"{computed} hits reached the upstream")
        costs = [[cpu for _, cpu in own] for own in runs]
        own = runs[-1]
        return Comparison(
            cpu_per_request=spread(costs[-1]),
            ratio=spread(mine / theirs for mine, theirs in zip(costs[-1], costs[0], strict=True)),
            requests_per_second=spread(load.requests_per_second for load, _ in own),
            p50=spread(load.p50 for load, _ in own),
            p99=spread(load.p99 for load, _ in own),
            resident=measure.resident_bytes(grown.group),
        )

    def hits(self, stage: Stage) -> Load:
        """One run of hits only. Raises GrowthFailed."""
        answer = self._answer(stage)
        before = self.upstream.counts(MODEL).succeeded
        seen, _ = self._load(stage, self._seconds, answer)
        computed = self.upstream.counts(MODEL).succeeded - before
        if computed:
            raise GrowthFailed(f"{computed} hits reached the upstream")
        return seen

    def _answer(self, stage: Stage) -> bytes:
        """The fixed part of the right answer, from one that was looked at."""
        model = numbered(stage.model, 0)
        fields = dict(line.split(": ", 1) for line in numbered(stage.fields, 0).split("\r\n") if line)
        status, headers, body = check.ask(stage.port, stage.asked, model, fields)
        wrong = check.fault(stage.asked, model, status, headers, body)
        if wrong:
            raise GrowthFailed(f"no right answer to learn from: {wrong}")
        return check.json_part(headers, body).replace(model.encode(), stage.model.encode())

    def _load(self, stage: Stage, seconds: float, answer: bytes) -> tuple[Load, float]:
        """What the client saw, and CPU µs of each request. Raises GrowthFailed."""
        cpu = measure.cpu_seconds(stage.group)
        with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as directory:
            sent = wire(stage.asked, stage.model, stage.port, stage.fields)
            line = client.command(
                program=program("ask"),
                port=stage.port,
                files=client.write(Path(directory), sent, answer, len(stage.asked.answer)),
                picking=stage.picking,
                connections=stage.connections,
                seconds=seconds,
                cores=self._cores.client,
            )
            try:
                seen = client.run(line, seconds)
            except client.ClientFailed as error:
                raise GrowthFailed(str(error)) from error
        if seen.faults():
            raise GrowthFailed("; ".join(seen.faults()))
        self.answers += seen.answered
        return seen, (measure.cpu_seconds(stage.group) - cpu) * 1e6 / seen.answered

