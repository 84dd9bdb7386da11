"""Interleaved rounds: every peer once in each round, in an order that turns.

Rule of this file: it knows order and nothing of what is asked. A run with faults does not end the others: all
faults are seen, and all of it ends as failed.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from msgspec import Struct

from benchmarks import measure
from benchmarks.asking import Asking, Run
from benchmarks.client import Load
from benchmarks.peers.start import START, Setting
from benchmarks.peers.upstream import Upstream, static, triton
from benchmarks.questions import question
from benchmarks.scenarios import Scenario

WARM_SECONDS: Final = 1.0
FIRST_SEED: Final = 1000
"""Smaller seeds are those of inputs that are asked again and again."""


class Options(Struct, frozen=True):
    """``connections``: instead of the scenarios' own, if there are any."""

    rounds: int
    seconds: float
    connections: tuple[int, ...] = ()


Said = Callable[[str, Run | None], None]
"""``said(what is done next, the run that ended)``: for a progress bar."""


class Upstreams:
    """The upstreams of all scenarios, each started when it is first needed."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._known: dict[str, Upstream] = {}

    def __getitem__(self, name: str) -> Upstream:
        if name not in self._known:
            made = triton(response_cache=False) if name == "triton" else static()
            self._known[name] = self._stack.enter_context(made)
        return self._known[name]

    @property
    def triton_version(self) -> str:
        """Of the Triton that was asked, if one was."""
        return self._known["triton"].version() if "triton" in self._known else "not asked"


@contextmanager
def upstreams() -> Iterator[Upstreams]:
    with ExitStack() as stack:
        yield Upstreams(stack)


def runs_in_all(scenarios: Sequence[Scenario], options: Options) -> int:
    """Measured runs and warm-up runs."""
    return sum(len(s.peers) * (options.rounds * len(options.connections or s.connections) + 1) for s in scenarios)


def measure_all(
    scenarios: Sequence[Scenario], options: Options, behind: Upstreams, said: Said
) -> Iterator[Run]:
    """Start the peers of each scenario, warm them, and measure them in turns."""
    placement = measure.placement(os.sched_getaffinity(0))
    seeds = itertools.count(FIRST_SEED)
    for scenario in scenarios:
        said(f"{scenario.name}: starting {scenario.upstream}", None)
        upstream = behind[scenario.upstream]
        setting = Setting(upstream, len(question(scenario.values, seed=1).body), scenario.model)
        all_connections = options.connections or scenario.connections
        with ExitStack() as stack:
            peers = []
            for name in scenario.peers:
                said(f"{scenario.name}: starting {name}", None)
                peers.append(stack.enter_context(START[name](name, setting)))
            asking = Asking(scenario, upstream, placement, seeds)
            for peer in peers:
                said(f"{scenario.name}: warming {peer.name}", None)
                wrong = tuple(asking.fill(peer))
                run = asking.run(peer, 0, all_connections[0], WARM_SECONDS)
                said("", run)
                if wrong or run.faults:  # wrong while warming is wrong too
                    yield Run(scenario.name, all_connections[0], peer.name, 0, Load(), 0, 0, 0, (*wrong, *run.faults))
            for connections in all_connections:
                for number in range(1, options.rounds + 1):
                    shift = number % len(peers)  # nobody always comes after the same neighbour's heat
                    for peer in peers[shift:] + peers[:shift]:
                        said(f"{scenario.name}, {connections} connections, round {number}: {peer.name}", None)
                        run = asking.run(peer, number, connections, options.seconds)
                        said("", run)
                        yield run
