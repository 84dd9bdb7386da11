"""From single runs to medians, ranges and ratios, and from those to a Markdown table and JSON.

Rule of this file: pure. A ratio is taken round by round, between neighbours in time, and then the
median of the ratios: a slow minute of the machine hits both sides.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from benchmarks.asking import Run
from benchmarks.scenarios import SCENARIOS, TITLES, Scenario

CLIENT_BUSY_MAX: Final = 0.95
"""Where the client's core had no more to give than this, a rate may be the client's and not the server's."""
FAULTS_SHOWN_MAX: Final = 50


class Spread(Struct, frozen=True):
    median: float
    low: float
    high: float


class Line(Struct, frozen=True):
    """One peer in one scenario. ``ratio``: how many times this peer's rate the scenario's first peer has."""

    scenario: str
    connections: int
    peer: str
    rounds: int
    requests_per_second: Spread
    ratio: Spread | None
    p50: Spread
    p99: Spread
    cpu_per_request: Spread
    resident: Spread
    client_busy: Spread


class Report(Struct, frozen=True):
    command: str
    started: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    faults: tuple[str, ...]
    lines: tuple[Line, ...]
    runs: tuple[Run, ...]


def spread(values: Iterable[float]) -> Spread:
    """Median and range. Raises ValueError when there is nothing."""
    known = sorted(values)
    if not known:
        raise ValueError("no values")
    return Spread(statistics.median(known), known[0], known[-1])


def summarise(runs: Sequence[Run], scenarios: Sequence[Scenario] = SCENARIOS) -> tuple[Line, ...]:
    """One line for each peer of each scenario and number of connections. Round 0 is warming: left out."""
    lines = []
    for scenario in scenarios:
        for number in sorted({run.connections for run in runs if run.scenario == scenario.name}):
            measured = [r for r in runs if (r.scenario, r.connections) == (scenario.name, number) and r.round]
            first = {r.round: r.load.requests_per_second for r in measured if r.peer == scenario.peers[0]}
            for peer in scenario.peers:
                own = [run for run in measured if run.peer == peer]
                if own:
                    lines.append(_line(own, first if peer != scenario.peers[0] else {}))
    return tuple(lines)


def faults(runs: Iterable[Run]) -> tuple[str, ...]:
    """All that was wrong, each with where."""
    return tuple(
        f"{run.scenario}, {run.connections} connections, {run.peer}, "
        f"{f'round {run.round}' if run.round else 'warming'}: {fault}"
        for run in runs
        for fault in run.faults
    )


def _line(own: Sequence[Run], first: Mapping[int, float]) -> Line:
    pairs = [(first[run.round], run.load.requests_per_second) for run in own if run.round in first]
    ratios = [mine / theirs for mine, theirs in pairs if theirs]
    return Line(
        scenario=own[0].scenario,
        connections=own[0].connections,
        peer=own[0].peer,
        rounds=len(own),
        requests_per_second=spread(run.load.requests_per_second for run in own),
        ratio=spread(ratios) if ratios else None,
        p50=spread(run.load.p50 for run in own),
        p99=spread(run.load.p99 for run in own),
        cpu_per_request=spread(run.cpu_per_request for run in own),
        resident=spread(run.resident / 2**20 for run in own),
        client_busy=spread(run.client_busy for run in own),
    )


COLUMNS: Final[Sequence[tuple[str, Callable[[Line], str]]]] = (
    ("server", lambda line: TITLES[line.peer]),
    ("requests/s", lambda line: told(line.requests_per_second)),
    ("Tailrace has times as many", lambda line: "" if line.ratio is None else told(line.ratio, 2)),
    ("p50 µs", lambda line: told(line.p50)),
    ("p99 µs", lambda line: told(line.p99)),
    ("CPU µs per request", lambda line: told(line.cpu_per_request, 1)),
    ("memory MiB", lambda line: told(line.resident)),
    ("client's core busy", lambda line: _share(line.client_busy)),
)


def markdown(report: Report, chart: str) -> str:
    """The whole report as a page; a page about a failed run says so before anything else."""
    parts = ["# Benchmark\n"]
    if report.faults:
        shown = [f"- {fault}" for fault in report.faults[:FAULTS_SHOWN_MAX]]
        parts.append(f"**Failed: {len(report.faults)} faults. No figure below counts.**\n\n" + "\n".join(shown) + "\n")
    rounds = max((line.rounds for line in report.lines), default=0)
    answers = sum(run.load.answered for run in report.runs)
    parts.append(
        f"Printed by `{report.command}` on {report.started}: medians of {rounds} interleaved rounds, ranges in "
        f"brackets. Status and bytes of all {answers:,} answers were compared. Compare within a table only. CPU and "
        "memory are those of the server in the first column, its workers and model processes included, and nothing "
        "behind it. A ratio is the median over rounds. The client's core also has the upstream of a proxy on a "
        f"machine with two: above {CLIENT_BUSY_MAX:.0%} (in bold) a server may be faster than its figure.\n"
    )
    parts.append(f"![requests per second]({chart})\n")
    for scenario, connections in dict.fromkeys((line.scenario, line.connections) for line in report.lines):
        lines = [line for line in report.lines if (line.scenario, line.connections) == (scenario, connections)]
        parts.append(f"## {scenario}, {connections} connection{'s' * (connections != 1)}\n\n{table(lines)}")
    parts.append(circumstances(report.machine, report.versions))
    return "\n".join(parts)


def circumstances(machine: Mapping[str, str], versions: Mapping[str, str]) -> str:
    """What the figures depend on, as the end of a page."""
    told = (("Machine", machine), ("Versions", versions))
    return "\n".join(
        f"## {title}\n\n" + "".join(f"- {name}: {fact}\n" for name, fact in facts.items()) for title, facts in told
    )


def table(lines: Sequence[Line]) -> str:
    """A Markdown table, one row for each line; the first column is text, the others numbers."""
    return rows([name for name, _ in COLUMNS], [[cell(line) for _, cell in COLUMNS] for line in lines])


def rows(heads: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers."""
    all_rows = [heads, ["---", *["---:"] * (len(heads) - 1)], *cells]
    return "".join(f"| {' | '.join(row)} |\n" for row in all_rows)


def told(value: Spread, places: int = 0) -> str:
    """Median and range: ``1,500 (300 to 2,000)``."""
    return f"{value.median:,.{places}f} ({value.low:,.{places}f} to {value.high:,.{places}f})"


def _share(value: Spread) -> str:
    text = f"{value.median:.0%}"
    return f"**{text}**" if value.median > CLIENT_BUSY_MAX else text
