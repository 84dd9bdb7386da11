"""``python -m benchmarks.profile``: where the time of one request goes, in this very code, file by file.

Rule of this file: it runs the gateway's own parts in this process, with a caller's connection that is none, so
that what is counted is our Python and what it calls, and no kernel; the static upstream is a process of its own.
The profiler makes every call dearer, so its shares are what to read; microseconds are measured without it.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import process_time
from typing import Any, Final

import uvloop

from benchmarks.peers.upstream import MODEL, static
from benchmarks.questions import INFERENCE_HEADER, question
from gateway.app import Gateway
from gateway.doors.edge import EdgeConnection
from gateway.sources import load

ROOT: Final = Path(__file__).parent.parent
KINDS: Final = ("hit", "pass", "miss")
LINES: Final = 12
SERIALS_MAX: Final = 2**20
"""Different inputs that a miss may ask for in one run of this program."""


class Caller:
    """A transport that keeps nothing: it only tells that an answer has been written."""

    def __init__(self) -> None:
        self.written = asyncio.Event()

    def write(self, data: bytes) -> None:
        self.written.set()

    def writelines(self, parts: Sequence[bytes]) -> None:
        self.written.set()

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("127.0.0.1", 1) if name == "peername" else default

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...


def requests(values: int, unique: bool) -> Iterator[bytes]:
    """The same request again and again, or another input each time."""
    for serial in range(SERIALS_MAX):
        asked = question(values, seed=1, serial=serial if unique else 0)
        yield (
            f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(asked.body)}\r\n"
            f"{INFERENCE_HEADER}: {asked.json_bytes}\r\n\r\n"
        ).encode() + asked.body


async def ask(connection: EdgeConnection, caller: Caller, made: Sequence[bytes]) -> None:
    """Each request, one after the other."""
    for request in made:
        caller.written.clear()
        connection.data_received(request)
        if not caller.written.is_set():
            await caller.written.wait()


def by_file(stats: Any) -> dict[str, float]:
    """Seconds of each file of ours, those of the built-in functions that it calls included."""
    found: dict[str, float] = defaultdict(float)
    for (path, _, _), (_, _, own, _, callers) in stats.stats.items():
        if path.startswith(str(ROOT)):
            found[str(Path(path).relative_to(ROOT))] += own
            continue
        for (caller, _, _), (_, _, spent, _) in callers.items():
            name = str(Path(caller).relative_to(ROOT)) if caller.startswith(str(ROOT)) else "the libraries"
            found[name] += spent
    return found


@contextmanager
def environment(url: str, kind: str) -> Iterator[dict[str, str]]:
    """Where a gateway listens, and what it is to do."""
    environ = {f"TAILRACE_SERVER__{name}": '"127.0.0.1:0"' for name in ("HTTP", "ADMIN")}
    environ["TAILRACE_SERVER__GRPC"] = "off"
    if kind != "pass":
        cached = 'cache = { ttl = "1h" }, ' if kind == "hit" else ""
        quota = "caller_quota = { rate = 1000000, hits_count = true }"
        tiers = f'tiers = [{{ backend = "upstream", model = "{MODEL}" }}]'
        environ[f"TAILRACE_ROUTES__{MODEL.upper()}"] = f"{{ {tiers}, {cached}{quota} }}"
    yield environ


async def profiled(kind: str, values: int, count: int) -> tuple[float, dict[str, float]]:
    """Microseconds of a request, without the profiler; and seconds by file, with it."""
    with static() as upstream, environment(f"http://127.0.0.1:{upstream.port}", kind) as environ:
        gateway = Gateway(load(None, environ, [f"http://127.0.0.1:{upstream.port}"]))
        await gateway.start()
        connection, caller = EdgeConnection(gateway.doors.lane), Caller()
        transport: Any = caller
        try:
            connection.connection_made(transport)
            made = requests(values, unique=kind == "miss")
            take: Callable[[], list[bytes]] = lambda: [next(made) for _ in range(count)]  # noqa: E731
            await ask(connection, caller, take())
            best = float("inf")
            for _ in range(5):
                batch = take()
                began = process_time()
                await ask(connection, caller, batch)
                best = min(best, process_time() - began)
            batch = take()
            profiler = cProfile.Profile()
            profiler.enable()
            await ask(connection, caller, batch)
            profiler.disable()
            return best / count * 1e6, by_file(pstats.Stats(profiler))
        finally:
            connection.connection_lost(None)
            await gateway.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one table for each kind."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kinds", nargs="*", default=KINDS, metavar="KIND", help=f"some of {', '.join(KINDS)}")
    parser.add_argument("--values", type=int, default=64, help="FP32 values of the input (default 64: 0.4 KB)")
    parser.add_argument("--count", type=int, default=3000, help="requests of each run (default 3000)")
    parsed = parser.parse_args(arguments)
    for kind in parsed.kinds:
        if kind not in KINDS:
            parser.error(f"no kind {kind!r}; there are {', '.join(KINDS)}")
        microseconds, files = uvloop.run(profiled(kind, parsed.values, parsed.count))
        total = sum(files.values())
        print(f"{kind}: {microseconds:.1f} µs of CPU in this process for each request; of that, under the profiler:")
        for name, seconds in sorted(files.items(), key=lambda item: -item[1])[:LINES]:
            print(f"  {seconds / total * 100:5.1f} %  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
