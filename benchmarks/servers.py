"""``python -m benchmarks.servers``: other model servers beside Triton, and Tailrace before it.

Rule of this file: orders of magnitude, not a contest. Every server has the same model in plain Python, one worker of
it, and reads the same JSON; none has a cache. Each lives in an environment of its own; those that are not there are
left out, and named. Ray Serve is left out: its workers leave the process group by which everything here is measured
and ended.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console

from benchmarks import check, client, facts, measure
from benchmarks.asking import ANSWERLESS, Run
from benchmarks.client import Load, Picking
from benchmarks.native import CompilerFailed, program
from benchmarks.peers.start import START, Peer, Setting
from benchmarks.peers.upstream import HERE, PeerFailed, Upstream, free_port, listening, triton
from benchmarks.questions import plain_question, wire
from benchmarks.report import Report, faults, summarise
from benchmarks.scenarios import MODEL, SMALL, Kind, Scenario
from benchmarks.writing import write
from examples.gatewayprocess import GatewayFailed
from examples.tritonserver import TritonFailed, TritonMissing

ENVIRONMENTS: Final = HERE.parent.parent / ".cache" / "peers"
SCRIPTS: Final = HERE / "servers"
READY_SECONDS: Final = 120.0
CONNECTIONS: Final = 16
WARM_SECONDS: Final = 1.0
SERVERS: Final = ("mosec", "mlserver", "bentoml", "litserve")
"""By the name of their package and of their environment in ENVIRONMENTS."""


def command(name: str, port: int, environments: Path = ENVIRONMENTS) -> list[str]:
    """How a server is started."""
    python, script = str(environments / name / "bin" / "python"), str(SCRIPTS / f"{name}_server.py")
    if name == "bentoml":
        serve = ["-m", "bentoml", "serve", "bentoml_server:Echo", "--working-dir", str(SCRIPTS)]
        return [python, *serve, "--host", "127.0.0.1", "--port", str(port)]
    if name == "mosec":
        return [python, script, "--address", "127.0.0.1", "--port", str(port)]
    return [python, script, str(port)]


def installed(environments: Path = ENVIRONMENTS) -> list[str]:
    """Those of SERVERS that have an environment with a stamp, which `make bench-peers` writes last."""
    return [name for name in SERVERS if (environments / name / ".stamp").exists()]


@contextmanager
def server(name: str, upstream: Upstream) -> Iterator[Peer]:
    """One of SERVERS, once it answers. Raises PeerFailed."""
    port = free_port()
    with (
        tempfile.TemporaryDirectory(prefix="tailrace-bench-") as directory,
        listening(command(name, port), directory, port, READY_SECONDS) as group,
    ):
        end = time.monotonic() + READY_SECONDS
        while wrong := _wrong(port):
            if time.monotonic() > end:
                raise PeerFailed(f"{name} does not answer: {wrong}")
            time.sleep(0.2)
        yield Peer(name, port, group, upstream)


def _wrong(port: int) -> str:
    asked = plain_question(SMALL)
    try:
        status, _, body = check.ask(port, asked, MODEL)
    except ANSWERLESS as error:
        return repr(error)
    return check.plain_fault(asked, MODEL, status, body)


def run(peer: Peer, number: int, seconds: float, cores: measure.Placement) -> Run:
    """One run of one server; what was wrong is in it."""
    measure.pin(peer.upstream.group, cores.upstream)
    measure.pin(peer.group, cores.server)
    asked, seen, wrong = plain_question(SMALL), Load(), _wrong(peer.port)
    found = [f"before: {wrong}"] if wrong else []
    cpu = measure.cpu_seconds(peer.group)
    if not wrong:
        with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as directory:
            body = check.ask(peer.port, asked, MODEL)[2]  # the same bytes each time
            line = client.command(
                program=program("ask"),
                port=peer.port,
                files=client.write(Path(directory), wire(asked, MODEL, peer.port), body, 0),
                picking=Picking(),
                connections=CONNECTIONS,
                seconds=seconds,
                cores=cores.client,
            )
            try:
                seen = client.run(line, seconds)
                found += seen.faults()
            except client.ClientFailed as error:
                found.append(str(error))
    return Run(
        scenario="servers-0.4k",
        connections=CONNECTIONS,
        peer=peer.name,
        round=number,
        load=seen,
        cpu_per_request=(measure.cpu_seconds(peer.group) - cpu) * 1e6 / max(1, seen.answered),
        client_busy=seen.client_microseconds / seen.microseconds,
        resident=measure.resident_bytes(peer.group),
        faults=tuple(found),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 all answers right, 1 something was wrong, 2 it could not run."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.servers", description="Other model servers beside Triton: orders of magnitude."
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of each (default 5)")
    parser.add_argument("--seconds", type=int, default=3, metavar="S", help="length of each run (default 3)")
    parser.add_argument("--results", type=Path, default=HERE.parent / "results", metavar="DIRECTORY")
    parsed = parser.parse_args(given)
    console = Console()
    try:
        made = _measure(parsed, shlex.join(["python", "-m", "benchmarks.servers", *given]), console)
    except (TritonMissing, TritonFailed, GatewayFailed, PeerFailed, CompilerFailed) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing written", file=sys.stderr)
        return 130
    write(made, parsed.results, "failed" if made.faults else "servers", console)
    return 1 if made.faults else 0


def _measure(parsed: argparse.Namespace, told: str, console: Console) -> Report:
    started = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    machine, names = facts.machine(), installed()
    missing = [name for name in SERVERS if name not in names]
    if missing:
        console.print(f"left out, not installed by `make bench-peers`: {', '.join(missing)}")
    cores, runs = measure.placement(os.sched_getaffinity(0)), []
    with ExitStack() as stack:
        upstream = stack.enter_context(triton(response_cache=False))
        setting = Setting(upstream, len(plain_question(SMALL).body))
        peers = [stack.enter_context(START[name](name, setting)) for name in ("tailrace-pass", "triton")]
        for name in names:
            console.print(f"starting {name}", style="dim")
            peers.append(stack.enter_context(server(name, upstream)))
        for number in range(parsed.rounds + 1):
            shift = number % len(peers)
            for peer in peers[shift:] + peers[:shift]:
                runs.append(run(peer, number, parsed.seconds if number else WARM_SECONDS, cores))
                console.print(f"round {number}: {peer.name} {runs[-1].load.requests_per_second:,.0f}/s", style="dim")
        version = upstream.version()
    machine["load after"] = f"{os.getloadavg()[0]:.2f}"
    scenario = Scenario("servers-0.4k", Kind.PASSTHROUGH, SMALL, ("tailrace-pass", "triton", *names))
    return Report(
        command=told,
        started=started,
        machine=machine,
        versions=facts.versions(version) | {name: facts.version_in(ENVIRONMENTS / name, name) for name in SERVERS},
        faults=faults(runs),
        lines=summarise(runs, [scenario]),
        runs=tuple(runs),
    )


if __name__ == "__main__":
    sys.exit(main())
