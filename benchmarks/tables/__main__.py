"""``python -m benchmarks.tables``: gather, replay, write the results, fail on any wrong row."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from rich.console import Console

from benchmarks import chart, facts
from benchmarks.report import circumstances, rows, told
from benchmarks.servers import ENVIRONMENTS
from benchmarks.tables.gather import BATCHES, TITLES, GatherFailed, Rate, missed, peers, rates, redis_version
from benchmarks.tables.hits import (
    CLAIRVOYANT,
    ONLINE,
    POINTS_MAX,
    Judged,
    SimulationFailed,
    from_directory,
    generated,
    judge,
)
from examples.redisserver import RedisFailed, RedisMissing
from gateway.memory import keep_freed_memory

RESULTS: Final = Path(__file__).parent.parent / "results"
SIMULATOR: Final = "libcachesim"
"""By the name of its package and of its environment in ENVIRONMENTS."""

TEACHING: Final = """\
what is measured
  Rows a second that the arena gathers, beside bare numpy.take on known slots (the limit), dicts, and MGET of a
  redis-server that is started for it; in turns, the same batches for all, drawn by Zipf. And the share of requests
  that the near cache's policy hits on traces (every .npz of a directory with an array "keys": numbers in the order
  they were asked for; generated ones without one), beside policies of libcachesim where `make bench-tables` has
  installed that.

examples
  python -m benchmarks.tables                                   everything, generated traces: five minutes
  python -m benchmarks.tables --traces DIRECTORY --only hits    hit ratios on traces of yours
  python -m benchmarks.tables --rows 10000 --rounds 1 --only gather    does it work at all?
"""


class Circumstances(Struct, frozen=True):
    command: str
    started: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]


class Gathered(Struct, frozen=True):
    made: Circumstances
    rows: int
    rates: tuple[Rate, ...]


class Hits(Struct, frozen=True):
    made: Circumstances
    judged: tuple[Judged, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 all rows right, 1 something was wrong, 2 it could not run."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parser().parse_args(given)
    console = Console()
    command = shlex.join(["python", "-m", "benchmarks.tables", *given])
    try:
        if parsed.only != "hits":
            _write_gathered(_gather(parsed, command, console), parsed.results, console)
        if parsed.only != "gather":
            _write_hits(_judge(parsed, command, console), parsed.results, console)
    except GatherFailed as error:
        print(f"wrong: {error}", file=sys.stderr)
        return 1
    except (RedisMissing, RedisFailed, SimulationFailed) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what was not ready is not written", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables",
        description="What the near cache of tables gathers, and what it hits.",
        epilog=TEACHING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=("gather", "hits"), help="one half of it")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds of each batch size (default 7)")
    parser.add_argument(
        "--rows", type=int, default=1_000_000, metavar="N", help="rows to gather from (default a million)"
    )
    parser.add_argument("--traces", type=Path, metavar="DIRECTORY", help="where traces are (default: generate some)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIRECTORY", help="default: benchmarks/results"
    )
    return parser


def _gather(parsed: argparse.Namespace, command: str, console: Console) -> Gathered:
    began, found = _circumstances(command), []
    keep_freed_memory()  # as the gateway does
    console.print(f"filling {parsed.rows:,} rows", style="dim")
    with peers(parsed.rows) as everybody:
        for rate in rates(everybody, parsed.rows, max(1, parsed.rounds)):
            found.append(rate)
            said = f"{rate.batch:,} keys, {TITLES[rate.peer]}: {told(rate.rows_per_second)} rows/s"
            console.print(said, highlight=False)
    return Gathered(_ended(began), parsed.rows, tuple(found))


def _judge(parsed: argparse.Namespace, command: str, console: Console) -> Hits:
    began, judged = _circumstances(command), []
    simulator = ENVIRONMENTS / SIMULATOR
    known = (simulator / ".stamp").exists()
    if not known:
        console.print("other policies are left out: `make bench-tables` has not installed libcachesim")
    traces = from_directory(parsed.traces) if parsed.traces else generated()
    for one in judge(traces, simulator / "bin" / "python" if known else None):
        judged.append(one)
        console.print(f"{one.trace}, {one.capacity:,} rows: {one.arena[1]:.1f} % hits", highlight=False)
    return Hits(_ended(began), tuple(judged))


def _circumstances(command: str) -> Circumstances:
    started = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    known = facts.versions("not asked")
    versions = {name: known[name] for name in ("tailrace", "python")}
    versions |= {name: importlib.metadata.version(name) for name in ("numpy", "redis", "hiredis")}
    versions["redis-server"] = redis_version()
    versions[SIMULATOR] = facts.version_in(ENVIRONMENTS / SIMULATOR, SIMULATOR)
    return Circumstances(command, started, facts.machine(), versions)


def _ended(began: Circumstances) -> Circumstances:
    return replace(began, machine={**began.machine, "load after": f"{os.getloadavg()[0]:.2f}"})


def gathered_page(made: Gathered, picture: str) -> str:
    """Rows a second as a page."""
    parts = [
        f"# Rows that a near cache gathers\n\nPrinted by `{made.made.command}` on {made.made.started}.\n\n"
        f"{made.rows:,} rows of 128 float32, keys drawn by Zipf (0.99). A second is one of processor time, so that "
        "what else the machine does decides little; Redis's has its server's in it, and not the waiting. Medians over "
        "interleaved rounds, ranges in brackets; a round's figure is of its median batch, and ratios are taken round "
        "by round. In every round a batch of each was compared with the rows that were put.\n\n"
        f"![rows a second]({picture})\n"
    ]
    parts += [f"## {batch:,} keys\n\n{_rates(made.rates, batch)}" for batch in BATCHES]
    parts.append(_verdict(missed(made.rates), "0.45 of the limit and 10 times Redis from 1,024 keys on"))
    parts.append(circumstances(made.made.machine, made.made.versions))
    return "\n".join(parts)


def hits_page(made: Hits) -> str:
    """Hit ratios as a page."""
    parts = [
        f"# What a near cache hits\n\nPrinted by `{made.made.command}` on {made.made.started}.\n\n"
        "In percent of the requests, of the whole trace without warming. The capacity is 1 % and 10 % of the trace's "
        "objects. The near cache is the real arena; in batches of 64 keys what a batch asks for twice is fetched once. "
        f"Belady knows the future.\n\n{_hits(made.judged)}"
    ]
    known = [(one, one.behind) for one in made.judged if one.behind is not None]
    if known:
        far = [f"{one.trace}, {one.capacity:,} rows: {points:.1f}" for one, points in known if points > POINTS_MAX]
        parts.append(_verdict(far, "asked one by one, within a point of the best that does not know the future"))
    parts.append(circumstances(made.made.machine, made.made.versions))
    return "\n".join(parts)


def _verdict(wrong: Sequence[str], aim: str) -> str:
    return f"Aim: {aim}. " + (f"**Missed: {'; '.join(wrong)}.**\n" if wrong else "Met.\n")


def _rates(found: Iterable[Rate], batch: int) -> str:
    heads = ["", "rows/s", "of the limit", "the arena has times as many"]
    cells = [
        [TITLES[rate.peer], told(rate.rows_per_second), told(rate.of_limit, 2), told(rate.arena_times, 2)]
        for rate in found
        if rate.batch == batch
    ]
    return rows(heads, cells)


def _hits(judged: Sequence[Judged]) -> str:
    heads = ["trace", "requests", "objects", "rows", "near cache", "in batches of 64", *ONLINE.values(), CLAIRVOYANT]
    cells = []
    for one in judged:
        row = [one.trace, f"{one.requests:,}", f"{one.objects:,}", f"{one.capacity:,}"]
        row += [f"{ratio:.1f}" for ratio in one.arena.values()]
        row += [f"{one.others[name]:.1f}" if name in one.others else "" for name in (*ONLINE, CLAIRVOYANT)]
        cells.append(row)
    return rows(heads, cells)


def picture(made: Gathered) -> str:
    """Bars of rows a second, a group for each batch size, the arena first."""
    groups = []
    for batch in BATCHES:
        own = sorted((rate for rate in made.rates if rate.batch == batch), key=lambda rate: rate.peer != "arena")
        seen = [(TITLES[rate.peer], rate.rows_per_second) for rate in own]
        bars = tuple(chart.Bar(title, rate.median, rate.low, rate.high) for title, rate in seen)
        groups.append(chart.Group(f"{batch:,} keys", bars))
    return chart.bars(f"rows a second, {made.made.started}", groups)


def _write_gathered(made: Gathered, directory: Path, console: Console) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tables.svg").write_text(picture(made))
    _write("tables", made, gathered_page(made, "tables.svg"), directory, console)


def _write_hits(made: Hits, directory: Path, console: Console) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    _write("hits", made, hits_page(made), directory, console)


def _write(name: str, made: Struct, page: str, directory: Path, console: Console) -> None:
    (directory / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n")
    (directory / f"{name}.md").write_text(page)
    console.print(page, markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {directory / name}.json and .md", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
