"""``python -m benchmarks``: run scenarios, show progress, write the results, fail on any wrong answer."""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import facts, report
from benchmarks.asking import Run
from benchmarks.native import CompilerFailed
from benchmarks.peers.start import NGINX_MODULES
from benchmarks.peers.upstream import PeerFailed
from benchmarks.rounds import Options, measure_all, runs_in_all, upstreams
from benchmarks.scenarios import SCENARIOS, TITLES, Scenario, UnknownScenario, select
from benchmarks.writing import write
from examples.gatewayprocess import GatewayFailed
from examples.tritonserver import TritonFailed, TritonMissing

RESULTS: Final = Path(__file__).parent / "results"
PROGRAMS: Final = ("nginx", "haproxy", "varnishd", "cc", "taskset")
FILES_WANTED: Final = 16_384
"""Open files of each process: a few for each of a thousand connections."""
OVERHEAD_SECONDS: Final = 0.3
"""Checks and statistics around each run, about."""

TEACHING: Final = """\
what is measured
  Each scenario asks several servers the same, from a client on a core of its own, in turns: one run of
  each server is a round. The figures are medians over rounds; ratios are taken within a round.
  The client compares the bytes of every answer, and what is behind a server must have counted that hits
  reached no model and that everything else was computed. One wrong answer and the whole run fails
  (exit 1), and its figures go to failed.md instead of latest.md.

examples
  python -m benchmarks                                      everything, 5 rounds of 3 s: half an hour
  python -m benchmarks --scenario hit --connections 1 16 64 hits of three sizes, three loads
  python -m benchmarks --scenario hit-0.4k --rounds 1 --seconds 1   does it work at all?
  python -m benchmarks --list                               scenarios and who takes part
  make bench BENCH='--scenario miss'                        the same, with the peers installed first
  python -m benchmarks.witness                              the client beside wrk
  python -m benchmarks.growth                               what a hit costs as everything grows

reading it
  On a busy machine nothing here means much: look at the range beside each median.
  With two cores, a Triton behind a server shares the client's core; one that is asked directly, or is a peer
  itself, has the server's core: so compare proxies with each other, and with Triton by CPU per request.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 all answers right, 1 something was wrong, 2 it could not run."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed = _parser().parse_args(given)
    try:
        scenarios = select(parsed.scenario)
    except UnknownScenario as error:
        print(error, file=sys.stderr)
        return 2
    if parsed.list:
        print("\n".join(f"{s.name:24} {' | '.join(TITLES[peer] for peer in s.peers)}" for s in scenarios))
        return 0
    absent = _absent()
    if parsed.absent:
        print("\n".join(absent))
        return 1 if absent else 0
    if absent:
        print(f"{', '.join(absent)} missing: `make bench` installs them from Debian.", file=sys.stderr)
        return 2
    options = Options(parsed.rounds, parsed.seconds, tuple(dict.fromkeys(parsed.connections or ())))
    console = Console()
    facts.allow_files(FILES_WANTED)
    try:
        made = _measure(scenarios, options, shlex.join(["python", "-m", "benchmarks", *given]), console)
    except (TritonMissing, TritonFailed, GatewayFailed, PeerFailed, CompilerFailed) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing written", file=sys.stderr)
        return 130
    write(made, parsed.results, "failed" if made.faults else "latest", console)
    return 1 if made.faults else 0


def _absent() -> list[str]:
    """What has to be installed first. Debian keeps nginx where only root looks."""
    absent = facts.missing(PROGRAMS, f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if not (NGINX_MODULES / "ngx_http_lua_module.so").exists():
        absent.append("nginx's Lua module")
    if not any(Path("/usr/lib").glob("*/varnish/vmods/libvmod_bodyaccess.so")):
        absent.append("varnish-modules")
    return absent


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure Tailrace beside nginx, HAProxy, Varnish, Triton and aiohttp, in one interleaved run.",
        epilog=TEACHING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(scenario.name for scenario in SCENARIOS)
    parser.add_argument("--scenario", nargs="+", default=[], metavar="NAME", help=f"some of {names}; or a kind: hit")
    parser.add_argument("--rounds", type=_positive, default=5, metavar="N", help="rounds of each (default 5)")
    parser.add_argument(
        "--seconds", type=_positive, default=3, metavar="S", help="length of each run, in whole seconds (default 3)"
    )
    parser.add_argument(
        "--connections", type=_positive, nargs="+", metavar="N", help="such as 1 16 64, instead of a scenario's own"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIRECTORY", help="default: benchmarks/results"
    )
    parser.add_argument("--absent", action="store_true", help="show what has to be installed first, and end")
    parser.add_argument("--list", action="store_true", help="show the scenarios and end")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _measure(scenarios: Sequence[Scenario], options: Options, command: str, console: Console) -> report.Report:
    started = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    machine = facts.machine()
    total = runs_in_all(scenarios, options)
    minutes = total * (options.seconds + OVERHEAD_SECONDS) / 60
    console.print(f"{total} runs, about {max(1, round(minutes))} min; load of this machine: {machine['load before']}")
    bar = Progress(
        TextColumn("{task.description}", justify="left"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    runs: list[Run] = []
    with bar:
        task = bar.add_task("starting", total=total)

        def said(what: str, ended: Run | None) -> None:
            if ended is None:
                bar.update(task, description=what)
                return
            bar.advance(task)
            for fault in ended.faults:
                bar.console.print(f"[red]wrong[/] {ended.scenario} {ended.peer}: ", end="")
                bar.console.print(fault[:500], markup=False, highlight=False)

        with upstreams() as behind:
            for run in measure_all(scenarios, options, behind, said):
                runs.append(run)
            version = behind.triton_version
    machine["load after"] = f"{os.getloadavg()[0]:.2f}"
    return report.Report(
        command=command,
        started=started,
        machine=machine,
        versions=facts.versions(version),
        faults=report.faults(runs),
        lines=report.summarise(runs, scenarios),
        runs=tuple(runs),
    )


if __name__ == "__main__":
    sys.exit(main())
