"""``python -m tests.soak``: a steady mixed load for hours, and whether anything of the gateway's grows.

    make soak                               two hours
    make soak SOAK='--minutes 10 --rate 50'

One gateway before a real Triton and a real Redis, its workers' memory, open files, threads and tasks looked at all the
time; a straight line through what was seen says what grew (``slope.py``). Exit code 1 if anything did, or an answer was
wrong, or the snapshot's disk failed. Caches and the snapshot's files are full before the first look that counts; its
memory settles for five minutes, so a run of less than an hour wants a larger ``--settle``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from msgspec import Struct, structs

from degrade.directory import generations, number_of
from examples.gatewayprocess import GatewayProcess, samples
from examples.redisserver import RedisServer
from examples.tritonserver import TritonOptions, TritonServer, find_environment
from tests.soak.load import MODELS, Counts, Where, configuration, load
from tests.soak.scorer import Scorer
from tests.soak.slope import SAMPLES_MIN, Slope, slope

LOOKS: Final = 480
"""How often is looked, at most: what is seen must not be a load itself."""
MIB: Final = 2**20
LOG_CHARACTERS: Final = 2_000
"""Of the log of a Triton that has ended."""


class Ended(Exception):
    """Triton has ended by itself. One whose models get no processor for a second may: it takes them for dead."""

    def __init__(self, moment: float, log: str) -> None:
        ending = log[-LOG_CHARACTERS:]
        super().__init__(f"Triton ended after {moment / 60:.1f} min of load; the end of its log:\n{ending}")


class Kind(Struct, frozen=True):
    """What is looked at. ``allowed``: by how much it may have risen at the end for being called flat, and as a share
    of its mean; ``unit``: what it is shown in."""

    title: str
    allowed: float
    share: float = 0.0
    unit: float = 1.0

    def bound(self, mean: float) -> float:
        return max(self.allowed, self.share * mean)


KINDS: Final[Mapping[str, Kind]] = {
    "memory": Kind("resident memory, MiB", 4 * MIB, 0.03, MIB),
    "files": Kind("open files", 3.0),
    "threads": Kind("threads", 1.0),
    "tasks": Kind("tasks", 3.0),
}
"""Files and tasks come and go with callers who leave; what leaks one in a thousand requests leaks hundreds."""


class Look(Struct, frozen=True):
    """What was seen at a moment, in seconds: a number for each of ``KINDS``."""

    moment: float
    seen: Mapping[str, float]


def look(gateway: GatewayProcess, began: float) -> Look:
    """Now. Raises OSError if the gateway is gone."""
    process = Path(f"/proc/{gateway.process.pid}")
    status = (process / "status").read_text()

    def field(name: str) -> float:
        return float(status.partition(f"\n{name}:")[2].split()[0])

    told = samples(gateway.exposition())
    return Look(
        time.monotonic() - began,
        {
            "memory": field("VmRSS") * 1024,
            "files": float(len(os.listdir(process / "fd"))),
            "threads": field("Threads"),
            "tasks": told["tailrace_tasks"],
        },
    )


class Disk(Struct, frozen=True):
    """What has come of the snapshot: records, files, and what did not go well."""

    copied: int = 0
    files: int = 0
    failures: int = 0


def disk_of(gateway: GatewayProcess, folder: Path) -> Disk:
    """Now."""
    told = samples(gateway.exposition())
    failures = sum([value for name, value in told.items() if name.startswith("tailrace_snapshot_failures_total")])
    last = max(map(number_of, generations(folder)), default=0)
    return Disk(int(told["tailrace_snapshot_copied_total"]), last, int(failures))


def judged(looks: Sequence[Look]) -> dict[str, Slope]:
    """A line through each. Raises ValueError for too few looks."""
    moments = [each.moment for each in looks]
    return {name: slope(moments, [each.seen[name] for each in looks]) for name in KINDS}


def table(lines: Mapping[str, Slope], kinds: Mapping[str, Kind] = KINDS) -> str:
    rows = ["| | mean | rise in an hour | rise seen | surely | may be | |", "|---|---:|---:|---:|---:|---:|---|"]
    for name, line in lines.items():
        kind = kinds[name]
        allowed = kind.bound(line.mean)
        shown = [line.mean, line.an_hour, line.growth, line.sure, allowed]
        cells = " | ".join(f"{value / kind.unit:,.2f}" for value in shown)
        rows.append(f"| {kind.title} | {cells} | {'GROWS' if line.grows(allowed) else 'flat'} |")
    return "\n".join(rows)


async def soaked(
    where: Where, triton: TritonServer, options: argparse.Namespace, tell: Callable[[str], None]
) -> tuple[list[Look], Counts]:
    """Load for so long; what was seen once it had settled, and what came of it. Raises ``Ended`` (in a group) if Triton
    does not last as long: what follows would only be a long list of refusals."""
    seconds = options.minutes * 60.0
    began = time.monotonic()
    counts = Counts()
    every = max(0.25, seconds * (1.0 - options.settle) / LOOKS)
    looks: list[Look] = []

    def over() -> bool:
        return time.monotonic() - began >= seconds

    async def looking() -> None:
        while not over():
            await asyncio.sleep(every)
            seen = await asyncio.to_thread(look, where.gateway, began)
            if not triton.running:
                raise Ended(seen.moment, triton.log())
            if seen.moment >= options.settle * seconds:
                looks.append(seen)
            numbers = ", ".join(f"{kind.title} {seen.seen[name] / kind.unit:.0f}" for name, kind in KINDS.items())
            asked = sum(counts.of.values())
            tell(f"{seen.moment / 60:.1f} of {options.minutes:g} min, {asked:,} asked, {numbers}")

    async with asyncio.TaskGroup() as group:
        group.create_task(looking())
        group.create_task(load(where, options.rate, over, counts))
    return looks, counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 flat, 1 something grew or was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=120.0, metavar="M", help="how long (default 120)")
    parser.add_argument("--rate", type=float, default=100.0, metavar="R", help="requests a second (default 100)")
    parser.add_argument("--settle", type=float, default=0.1, metavar="S", help="share of the time not counted (0.1)")
    parser.add_argument("--slack", type=float, default=1.0, metavar="N", help="times what may have risen (default 1)")
    parser.add_argument("--seed", type=int, default=None, help="who asks what (default: drawn, and printed)")
    options = parser.parse_args(arguments)
    if options.rate <= 0 or not 0 <= options.settle < 1 or options.minutes * 60 * (1 - options.settle) < SAMPLES_MIN:
        parser.error(f"--rate is more than 0, --settle under 1, and {SAMPLES_MIN} s or more are to be looked at")
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}: starting Triton, Redis and a gateway", file=sys.stderr, flush=True)
    shows = sys.stderr.isatty()

    def tell(line: str) -> None:
        if shows:
            print(f"\r{line}", end="\x1b[K", file=sys.stderr, flush=True)

    with ExitStack() as stack:
        triton = stack.enter_context(TritonServer(TritonOptions((MODELS,)), find_environment()))
        redis = stack.enter_context(RedisServer())
        scorer = stack.enter_context(Scorer())
        folder = stack.enter_context(TemporaryDirectory(prefix="tailrace-soak-"))
        gateway = stack.enter_context(GatewayProcess(configuration(triton, redis, scorer, folder)))
        looks, counts, ended, disk = list[Look](), Counts(), "", Disk()
        try:
            looks, counts = asyncio.run(soaked(Where(gateway, redis, seed), triton, options, tell))
            disk = disk_of(gateway, Path(folder))
        except* Ended as group:
            ended = str(group.exceptions[0])
    tell("")
    if ended:
        print(ended)
        return 1
    print(f"{options.minutes:g} minutes, seed {seed}; what came of {sum(counts.of.values()):,} requests:")
    print(", ".join(f"{word} {count:,}" for word, count in counts.of.most_common()))
    for said in counts.wrong:
        print(f"wrong: {said}")
    print(f"the snapshot: {disk.copied:,} records written, {disk.files} files made, {disk.failures} failures")
    lines = judged(looks)
    kinds = {name: structs.replace(kind, allowed=options.slack * kind.allowed) for name, kind in KINDS.items()}
    print(f"\n{table(lines, kinds)}")
    grows = any(line.grows(kinds[name].bound(line.mean)) for name, line in lines.items())
    return 1 if grows or counts.wrong or disk.failures or not disk.copied else 0


if __name__ == "__main__":
    sys.exit(main())
