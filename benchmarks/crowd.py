"""``python -m benchmarks.crowd``: what ten thousand idle connections cost, the gateway and its busy callers. With
``siege`` as its first word it is ``benchmarks/siege.py``: hostile clients, at every door.

Rule of this file: the crowd is opened from here, from several loopback addresses, so that no limit of one address
or of its ports is met; the busy ones are asked for by native/ask.c, without and with the crowd in turns before the
same gateway process. Memory is the gateway's own as the kernel counts it, before the crowd came and while it is there.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Self

from msgspec import Struct

from benchmarks import facts, measure, siege
from benchmarks.client import Picking
from benchmarks.growth.axes import config
from benchmarks.growth.lab import GrowthFailed, Lab, Stage
from benchmarks.peers.upstream import static
from benchmarks.questions import INFERENCE_HEADER, Question, path_of, question, wire
from benchmarks.report import Spread, rows, spread, told
from benchmarks.scenarios import MODEL, SMALL
from examples.gatewayprocess import GatewayFailed

CONNECTIONS: Final = 10_000
BUSY: Final = 16
ADDRESSES: Final = 8
"""Loopback addresses that a crowd comes from: 127.0.0.2 and so on."""
ASKED: Final = 200
"""Of a crowd, how many are asked again at its end."""
SPARE: Final = 500
"""Connections and files that the gateway, and this process, may have beside the crowd."""
SECONDS_MAX: Final = 60.0
"""How long one connection may take to be opened or answered, and a crowd to be gone."""


def _chunked(asked: Question) -> bytes:
    fields = f"Host: h\r\n{INFERENCE_HEADER}: {asked.json_bytes}\r\nTransfer-Encoding: chunked\r\n"
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(asked.body), asked.body)
    return f"POST {path_of(MODEL)} HTTP/1.1\r\n{fields}\r\n".encode() + body


KINDS: Final[Mapping[str, bytes | None]] = {
    "silent": None,
    "hit": wire(question(SMALL, 1), MODEL, 0).text,
    "health": b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n",
    "chunked": _chunked(question(SMALL, 1)),
}
"""What each of a crowd has asked before it fell idle: nothing; an infer request, on the edge lane; the gateway's
health, which aiohttp answers; an infer request in chunks, which gives aiohttp the connection for good."""


class FilesMissing(RuntimeError):
    """The hard limit on open files is too low here; the message says what is needed, and where to raise it."""


class Crowd:
    """Idle connections; closed at the end of its block."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.sockets:
            each.close()
        self.sockets.clear()

    def open(self, port: int, count: int, asked: bytes | None) -> None:
        """``count`` more connections; each has had one answer if it ``asked``. Raises OSError, GrowthFailed."""
        for _ in range(count):
            own = socket.socket()
            self.sockets.append(own)
            own.settimeout(SECONDS_MAX)
            own.bind((f"127.0.0.{2 + len(self.sockets) % ADDRESSES}", 0))
            own.connect(("127.0.0.1", port))
            if asked is not None:
                ask(own, asked)


def ask(connection: socket.socket, asked: bytes) -> None:
    """One request on a connection, and all of its answer. Raises GrowthFailed unless that is a 200."""
    connection.sendall(asked)
    got = b""
    while b"\r\n\r\n" not in got:
        got += _more(connection)
    head, _, body = got.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += _more(connection)
    if not head.startswith(b"HTTP/1.1 200 ") or len(body) > length:
        raise GrowthFailed(f"no right answer: {head[:200]!r}")


def _more(connection: socket.socket) -> bytes:
    more = connection.recv(65536)
    if not more:
        raise GrowthFailed("the gateway closed an idle connection before its time")
    return more


def allow(connections: int) -> None:
    """Let this process, and the gateway that it starts, open so many. Raises FilesMissing."""
    wanted = connections + 2 * SPARE
    allowed = facts.allow_files(wanted)
    if allowed < wanted:
        raise FilesMissing(
            f"{connections} connections need {wanted} open files in each process, and the hard limit is {allowed}: "
            f"raise it (ulimit -Hn {wanted}, LimitNOFILE={wanted}, docker run --ulimit nofile={wanted})"
        )


def settings(connections: int, idle: str) -> str:
    """The part of a configuration that lets a crowd in, and lets it stay for ``idle``."""
    most = connections + SPARE
    return f'[server]\nconnections_max = {most}\nconnections_per_address_max = {most}\nidle_timeout = "{idle}"\n'


class Memory(Struct, frozen=True):
    """A process's memory in bytes, as the kernel counts it: resident, and with shared pages divided (Pss)."""

    resident: int
    proportional: int


def memory(pid: int) -> Memory:
    status = Path(f"/proc/{pid}/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) * 1024
    return Memory(resident, measure.proportional_bytes(Path(f"/proc/{pid}/smaps_rollup").read_text()))


def files_of(pid: int) -> int:
    """How many files a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def await_gone(pid: int, files: int) -> None:
    """Wait until a process has about as many open files as before a crowd came. Raises GrowthFailed."""
    end = time.monotonic() + SECONDS_MAX
    while files_of(pid) > files + BUSY:
        if time.monotonic() > end:
            raise GrowthFailed(f"{files_of(pid) - files} connections did not end within {SECONDS_MAX:.0f} s")
        time.sleep(0.05)


class Row(Struct, frozen=True):
    """What one kind of crowd cost. ``ratio``: p99 with the crowd as a multiple of that without it, round by round."""

    kind: str
    before: Memory
    after: Memory
    without: Spread
    p99: Spread
    ratio: Spread


def measured(lab: Lab, kind: str, connections: int, rounds: int) -> Row:
    """One kind of crowd before a gateway of its own. Raises GrowthFailed, OSError."""
    text = settings(connections, "1h") + config(lab.upstream.url)
    with lab.gateway(text) as (port, group):
        stage = Stage(port, group, Picking(), connections=BUSY)
        for _ in range(2):
            lab.hits(stage)  # so that what a first run takes is not taken for the crowd's
        before, after, files = memory(group), Memory(0, 0), files_of(group)
        p99: dict[bool, list[float]] = {False: [], True: []}
        for number in range(rounds):
            for is_there in (False, True) if number % 2 == 0 else (True, False):
                with Crowd() as crowd:
                    if is_there:
                        crowd.open(port, connections, KINDS[kind])
                        after = max(after, memory(group), key=lambda each: each.resident)
                    p99[is_there].append(lab.hits(stage).p99)
                    if is_there:
                        for own in crowd.sockets[:: max(1, connections // ASKED)]:  # they are all still there
                            ask(own, KINDS["hit"] or b"")
                await_gone(group, files)
    ratios = [with_it / without for with_it, without in zip(p99[True], p99[False], strict=True)]
    return Row(kind, before, after, spread(p99[False]), spread(p99[True]), spread(ratios))


def table(found: Sequence[Row], connections: int) -> str:
    """A row for each kind."""
    heads = ["each has asked", "RSS before, MiB", "with the crowd", "more", "Pss more", "KiB each"]
    heads += [f"p99 of {BUSY} busy, µs", "with the crowd", "ratio"]
    cells = []
    for row in found:
        more = row.after.resident - row.before.resident
        proportional = row.after.proportional - row.before.proportional
        sizes = [f"{size / 2**20:,.1f}" for size in (row.before.resident, row.after.resident, more, proportional)]
        p99 = [told(row.without), told(row.p99), told(row.ratio, 2)]
        cells.append([row.kind, *sizes, f"{more / connections / 1024:.1f}", *p99])
    return rows(heads, cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 measured, 1 something was wrong, 2 the limit on open files is too low."""
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    if given[:1] == ["siege"]:
        return siege.main(given[1:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowd", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kinds", nargs="*", default=[*KINDS], metavar="KIND", help=f"some of {', '.join(KINDS)}")
    parser.add_argument("--connections", type=int, default=CONNECTIONS, metavar="N", help=f"default {CONNECTIONS:,}")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds of each kind (default 7)")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="length of each run (default 2)")
    parsed = parser.parse_args(given)
    if unknown := [kind for kind in parsed.kinds if kind not in KINDS]:
        parser.error(f"no kind {unknown[0]!r}; there are {', '.join(KINDS)}")
    if min(parsed.connections, parsed.rounds) < 1 or parsed.seconds <= 0:
        parser.error("--connections, --rounds and --seconds are more than 0")
    try:
        allow(parsed.connections)
        with ExitStack() as stack:
            upstream = stack.enter_context(static())
            lab = Lab(upstream, measure.placement(os.sched_getaffinity(0)), parsed.rounds, parsed.seconds)
            found = [measured(lab, kind, parsed.connections, parsed.rounds) for kind in parsed.kinds]
    except FilesMissing as error:
        print(error, file=sys.stderr)
        return 2
    except (GrowthFailed, GatewayFailed, OSError) as error:
        print(f"wrong: {error}", file=sys.stderr)
        return 1
    print(f"{parsed.connections:,} idle connections; {lab.answers:,} answers of the busy ones were compared.\n")
    print(table(found, parsed.connections))
    return 0


if __name__ == "__main__":
    sys.exit(main())
