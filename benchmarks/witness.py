"""``python -m benchmarks.witness``: does wrk see what our client sees, and what does looking at answers cost?

Rule of this file: it measures clients, not servers: the same request before the same servers in turns, by our client
(every byte of every answer compared), by wrk, and by wrk with a script that looks at status and length only. It
writes no result file; docstrings quote it.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from benchmarks import check, client, facts, measure
from benchmarks.client import Picking
from benchmarks.native import HERE, program
from benchmarks.peers.start import START, Peer, Setting
from benchmarks.peers.upstream import static
from benchmarks.questions import path_of, question, wire
from benchmarks.report import rows, spread, told
from benchmarks.scenarios import MODEL, SMALL, TITLES

SERVERS: Final = ("tailrace", "nginx-cache", "static")
CONNECTIONS: Final = 16
WRK_SECONDS_MAX: Final = 30.0
WRK: Final = re.compile(r"^WRK (\{.*\})$", re.MULTILINE)


class WitnessFailed(RuntimeError):
    """A client did not run to its end, or saw a wrong answer."""


class Seen(Struct, frozen=True):
    """What one client saw of one server. Times in microseconds; ``cpu`` is the client's for each request."""

    requests_per_second: float
    p50: float
    p99: float
    cpu: float


class _Wrk(Struct, frozen=True):
    requests: int
    microseconds: int
    p50: float
    p99: float
    errors: int


class Asked(Struct, frozen=True):
    """One run to do, by any client."""

    port: int
    files: client.Files
    answer_bytes: int
    seconds: int
    cores: tuple[int, ...]


def ours(asked: Asked) -> Seen:
    line = client.command(
        program=program("ask"),
        port=asked.port,
        files=asked.files,
        picking=Picking(),
        connections=CONNECTIONS,
        seconds=asked.seconds,
        cores=asked.cores,
    )
    seen = client.run(line, asked.seconds)
    if seen.faults():
        raise WitnessFailed("; ".join(seen.faults()))
    cost = seen.client_microseconds / seen.requests
    return Seen(seen.requests_per_second, seen.p50, seen.p99, cost)


def wrk(asked: Asked, *, looks: bool) -> Seen:
    line = ["taskset", "--cpu-list", ",".join(map(str, asked.cores)), "wrk", "--threads=1"]
    line += [f"--connections={CONNECTIONS}", f"--duration={asked.seconds}s", f"--script={HERE / 'wrk.lua'}"]
    line += [f"http://127.0.0.1:{asked.port}{path_of(MODEL)}", "--", str(asked.files.question)]
    before = _children()
    done = subprocess.run(
        [*line, str(asked.answer_bytes)] if looks else line,
        capture_output=True,
        text=True,
        timeout=asked.seconds + WRK_SECONDS_MAX,
        check=False,
    )
    cpu, found = _children() - before, read(done.stdout)
    return Seen(found.requests * 1e6 / found.microseconds, found.p50, found.p99, cpu * 1e6 / found.requests)


def read(output: str) -> _Wrk:
    """What wrk's script printed. Raises WitnessFailed for a run without answers, or with errors."""
    lines = WRK.findall(output)
    if len(lines) != 1:
        raise WitnessFailed(f"wrk printed no result:\n{output[-2000:]}")
    found = msgspec.json.decode(lines[0], type=_Wrk)
    if found.errors or not found.requests:
        raise WitnessFailed(f"wrk saw {found.errors} errors in {found.requests} answers")
    return found


CLIENTS: Final[Mapping[str, Callable[[Asked], Seen]]] = {
    "native/ask.c, every byte compared": ours,
    "wrk, nothing looked at": lambda asked: wrk(asked, looks=False),
    "wrk, status and length looked at": lambda asked: wrk(asked, looks=True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 measured, 1 a client saw something wrong, 2 wrk is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.witness", description="The benchmark's client beside wrk, before the same servers."
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of each (default 5)")
    parser.add_argument("--seconds", type=int, default=2, metavar="S", help="length of each run (default 2)")
    parsed = parser.parse_args(arguments)
    if facts.missing(["wrk"], os.environ.get("PATH", os.defpath)):
        print("wrk is missing: `make bench-witness` installs it from Debian.", file=sys.stderr)
        return 2
    seen: dict[tuple[str, str], list[Seen]] = {}
    try:
        with ExitStack() as stack:
            asked = [(name, _prepared(stack, name, parsed.seconds)) for name in SERVERS]
            for _ in range(parsed.rounds):
                for server, run in asked:
                    for name, ask in CLIENTS.items():
                        seen.setdefault((server, name), []).append(ask(run))
    except (WitnessFailed, client.ClientFailed) as error:
        print(f"wrong: {error}", file=sys.stderr)
        return 1
    print(table(seen))
    return 0


def table(seen: Mapping[tuple[str, str], Sequence[Seen]]) -> str:
    """A row for each server and client."""
    heads = ["server", "client", "requests/s", "p50 µs", "p99 µs", "client's CPU µs per request"]
    return rows(
        heads,
        [
            [
                TITLES[server],
                name,
                told(spread(one.requests_per_second for one in own)),
                told(spread(one.p50 for one in own)),
                told(spread(one.p99 for one in own)),
                told(spread(one.cpu for one in own), 1),
            ]
            for (server, name), own in seen.items()
        ],
    )


def _prepared(stack: ExitStack, name: str, seconds: int) -> Asked:
    """A server that is up and pinned, and what it is asked."""
    cores = measure.placement(os.sched_getaffinity(0))
    asked, upstream = question(SMALL, 1), stack.enter_context(static())
    peer: Peer = stack.enter_context(START[name](name, Setting(upstream, len(asked.body))))
    measure.pin(upstream.group, cores.upstream)
    measure.pin(peer.group, cores.server)
    status, headers, body = check.ask(peer.port, asked, MODEL)
    wrong = check.fault(asked, MODEL, status, headers, body)
    if wrong:
        raise WitnessFailed(f"{name}: {wrong}")
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tailrace-bench-")))
    json_part = check.json_part(headers, body)
    files = client.write(directory, wire(asked, MODEL, peer.port), json_part, len(asked.answer))
    return Asked(peer.port, files, len(body), seconds, cores.client)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
