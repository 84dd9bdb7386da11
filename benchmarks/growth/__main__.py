"""``python -m benchmarks.growth``: grow, show progress, write the results, fail on any wrong answer."""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct
from rich.console import Console

from benchmarks import chart, facts, measure
from benchmarks.growth.axes import AXES, Axis, UnknownAxis, affordable, select
from benchmarks.growth.grow import PAYLOAD_BYTES, Point, points
from benchmarks.growth.lab import GrowthFailed, Lab
from benchmarks.native import CompilerFailed
from benchmarks.peers.upstream import PeerFailed, static
from benchmarks.report import circumstances, rows, told
from examples.gatewayprocess import GatewayFailed

RESULTS: Final = Path(__file__).parent.parent / "results"
FILES_WANTED: Final = 16_384
"""Open files of each process: a few for each of thousands of connections."""

TEACHING: Final = """\
what is measured
  The gateway's CPU for each hit, at one size beside the first size in turns, as a multiple of it. One core has
  the gateway, the other the client and the static upstream. Routes have a cache, quotas that are charged and
  never spent, and freshness. Every answer is compared by its bytes, and no hit may reach the upstream: else
  nothing is written (exit 1).

examples
  python -m benchmarks.growth                                   all axes, up to a million: a quarter of an hour
  python -m benchmarks.growth --axis entries --size-max 5000000 five million: only where 40 GB are free
  python -m benchmarks.growth --axis routes body --rounds 1 --seconds 1    does it work at all?
"""


class Growth(Struct, frozen=True):
    command: str
    started: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    answers: int
    skipped: tuple[str, ...]
    points: tuple[Point, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 all answers right, 1 something was wrong, 2 it could not run."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parser().parse_args(given)
    console = Console()
    try:
        axes = select(parsed.axis)
        made = _measure(axes, parsed, shlex.join(["python", "-m", "benchmarks.growth", *given]), console)
    except GrowthFailed as error:
        print(f"wrong: {error}", file=sys.stderr)
        return 1
    except (UnknownAxis, GatewayFailed, PeerFailed, CompilerFailed) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing written", file=sys.stderr)
        return 130
    _write(made, axes, parsed.results, console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description="What a hit costs as something grows.",
        epilog=TEACHING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(axis.name for axis in AXES)
    parser.add_argument("--axis", nargs="+", default=[], metavar="NAME", help=f"some of {names}")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of each size (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="length of each run (default 2)")
    parser.add_argument(
        "--size-max", type=int, default=1_000_000, metavar="N", help="leave out larger sizes (default a million)"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIRECTORY", help="default: benchmarks/results"
    )
    return parser


def _measure(axes: Sequence[Axis], parsed: argparse.Namespace, command: str, console: Console) -> Growth:
    facts.allow_files(FILES_WANTED)
    started = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    machine, available = facts.machine(), facts.available_bytes()
    found: list[Point] = []
    skipped: list[str] = []
    with static() as upstream:
        lab = Lab(upstream, measure.placement(os.sched_getaffinity(0)), max(1, parsed.rounds), parsed.seconds)
        for axis in axes:
            sizes = affordable(axis, parsed.size_max, available)
            skipped += [f"{size:,} {axis.title}" for size in axis.sizes if size not in sizes]
            for point in points(lab, axis, sizes, lambda what: console.print(what, style="dim")):
                found.append(point)
                ratio, cost = told(point.comparison.ratio, 2), told(point.comparison.cpu_per_request, 1)
                console.print(f"{point.size:,} {axis.title}: {cost} µs, {ratio} times", highlight=False)
    machine["load after"] = f"{os.getloadavg()[0]:.2f}"
    known = facts.versions("not asked")
    return Growth(command, started, machine, known, lab.answers, tuple(skipped), tuple(found))


def markdown(made: Growth, axes: Sequence[Axis], picture: str) -> str:
    """The whole report as a page."""
    rounds = "Medians over interleaved rounds, ranges in brackets"
    parts = [
        "# Growth\n",
        f"Printed by `{made.command}` on {made.started}. {rounds}. CPU is the gateway's for each hit, and the multiple "
        "is of the first row's, round by round. Status and bytes of all "
        f"{made.answers:,} answers were compared, and no hit reached the upstream.\n",
        f"![CPU per hit as something grows]({picture})\n",
    ]
    if made.skipped:
        parts.append(f"Left out, by `--size-max` or for want of memory: {'; '.join(made.skipped)}.\n")
    for axis in axes:
        own = [point for point in made.points if point.axis == axis.name]
        parts.append(f"## {axis.title[0].upper()}{axis.title[1:]}\n\n{axis.note}\n\n{_table(axis, own)}")
    parts.append(circumstances(made.machine, made.versions))
    return "\n".join(parts)


def picture(made: Growth, axes: Sequence[Axis]) -> str:
    """A plot for each axis: the multiple of the first size's cost."""
    found = []
    for axis in axes:
        ratios = [(point.size, point.comparison.ratio) for point in made.points if point.axis == axis.name]
        if ratios:
            marks = tuple((float(size), ratio.median, ratio.low, ratio.high) for size, ratio in ratios)
            found.append(chart.Curve(axis.title, marks))
    return chart.curves(f"CPU of a hit as something grows, {made.started}", "times the first size's", found)


def _table(axis: Axis, own: Sequence[Point]) -> str:
    heads = [axis.title, "CPU µs per hit", "times the first", "requests/s", "p50 µs", "p99 µs", "memory MiB"]
    is_filled = any(point.longest_fill is not None for point in own)
    if is_filled:
        heads += [f"bytes per entry beyond its {PAYLOAD_BYTES}", "longest wait while it was filled, ms"]
    cells = []
    for point in own:
        of = point.comparison
        row = [f"{point.size:,}", told(of.cpu_per_request, 1), told(of.ratio, 2), told(of.requests_per_second)]
        row += [told(of.p50), told(of.p99), f"{of.resident / 2**20:,.0f}"]
        if is_filled:
            row.append("" if point.beyond_payload is None else f"{point.beyond_payload:,.0f}")
            row.append("" if point.longest_fill is None else f"{point.longest_fill / 1e3:,.0f}")
        cells.append(row)
    return rows(heads, cells)


def _write(made: Growth, axes: Sequence[Axis], directory: Path, console: Console) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    page = markdown(made, axes, "growth.svg")
    (directory / "growth.json").write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n")
    (directory / "growth.md").write_text(page)
    (directory / "growth.svg").write_text(picture(made, axes))
    console.print(page, markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {directory / 'growth'}.json, .md and .svg", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
