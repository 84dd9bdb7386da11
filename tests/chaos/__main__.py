"""Everything below the gateway, and its own workers, broken under load, by a seed: ``python -m tests.chaos``.

A real Triton, its models' processes, a real Redis and two workers are killed, stopped, restarted and flapped, Redis is
made to answer OOM, NOREPLICAS, NOAUTH, READONLY, MASTERDOWN and LOADING, and every link between two of them is broken
in eight ways, while callers that know the truth ask six routes, and Triton itself. Every answer is classified; one that
is wrong, unlabelled, hung, an error or dropped makes the exit code 1. The printed seed plans the same run again.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Callable
from typing import Final

from examples.tritonserver import TritonEnvironment, find_environment
from tests.chaos.hands import Hands
from tests.chaos.house import House
from tests.chaos.judge import KINDS
from tests.chaos.load import Load
from tests.chaos.plan import LANES, plan
from tests.chaos.report import Run, table

CALM_SECONDS: Final = 6.0
"""Of a run, at its end, in which nothing is broken: all must be as before."""
HEALED_SECONDS_MAX: Final = 45.0
HEALED_ANSWERS: Final = 60
"""In a row, of all routes, fresh: then it is as before."""
TELL_SECONDS: Final = 10.0


async def chaos(environment: TritonEnvironment, seed: int, seconds: float, tell: Callable[[str], None]) -> Run:
    """One run: ``seconds`` of load, without the start and the end."""
    async with House(environment, seed) as house:
        hands: Hands | None = None
        load = Load(house, lambda: hands, seed)
        stop = asyncio.Event()
        asking = asyncio.create_task(load.run(stop))
        try:
            until = seconds - CALM_SECONDS
            deeds = plan(seed, until)
            hands = Hands(house, time.monotonic(), until, lambda told: tell(f"  {told}"))
            telling = asyncio.create_task(_progress(load, hands, seconds, tell))
            ended = await asyncio.gather(
                *(hands.run([deed for deed in deeds if deed.lane == lane]) for lane in LANES), return_exceptions=True
            )
            healed = await _healed(load, asking)
            await asyncio.sleep(max(0.0, hands.began + seconds - time.monotonic()))
            telling.cancel()
        finally:
            stop.set()
            await asyncio.gather(asking, return_exceptions=True)
        asking.result()
        metrics = await asyncio.to_thread(house.serving.metrics)
        met = {
            f"{link} {fault}": count for link, proxy in house.proxies.items() for fault, count in proxy.done.items()
        }
        faults = _faults(house.serving.log(), metrics, healed) + [repr(how) for how in ended if how is not None]
        return Run(
            seed, seconds, load.seen, hands.done, hands.left, met, hands.aborts, healed, load.bad, faults
        )


async def _healed(load: Load, asking: asyncio.Task[None]) -> float:
    """Seconds until enough answers in a row were what health gives."""
    began = time.monotonic()
    place, row = len(load.seen), 0
    kinds: set[str] = set()
    while time.monotonic() - began < HEALED_SECONDS_MAX and not asking.done():
        for seen in load.seen[place:]:
            place += 1
            if seen.whose == "gateway":
                well = seen.verdict.outcome in ("fresh", "hit")
                row, kinds = (row + 1, kinds | {seen.kind}) if well else (0, set())
        if row >= HEALED_ANSWERS and len(kinds) == len(KINDS):
            break
        await asyncio.sleep(0.05)
    return time.monotonic() - began


async def _progress(load: Load, hands: Hands, seconds: float, tell: Callable[[str], None]) -> None:
    while True:
        await asyncio.sleep(TELL_SECONDS)
        counts = ", ".join(f"{word} {count}" for word, count in sorted(load.tally("gateway").items()))
        tell(f"{time.monotonic() - hands.began:.0f} of {seconds:.0f} s: {counts}")


def _faults(log: str, metrics: dict[str, float], healed: float) -> list[str]:
    """What is wrong beside the answers."""
    found = []
    if "Traceback" in log:
        found.append("the gateway has logged a traceback:\n" + log[log.index("Traceback") - 200 :][:3000])
    internal = sum(value for name, value in metrics.items() if "responses_total" in name and 'status="500"' in name)
    if internal:
        found.append(f"{internal:.0f} answers of status 500")
    if healed >= HEALED_SECONDS_MAX:
        found.append(f"not as before within {HEALED_SECONDS_MAX:.0f} s of the last fault")
    return found


def main() -> int:
    """Run; 1 if an answer was bad, or it did not become well again."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, default=None, help="of the plan (default: another each time)")
    parser.add_argument("--quiet", action="store_true", help="do not tell each fault")
    chosen = parser.parse_args()
    seed = random.randrange(2**32) if chosen.seed is None else chosen.seed
    print(f"seed {seed}: CHAOS='--minutes {chosen.minutes:g} --seed {seed}' plans this run again", flush=True)

    def tell(line: str) -> None:
        if not (chosen.quiet and line.startswith(" ")):
            print(line, flush=True)

    run = asyncio.run(chaos(find_environment(), seed, chosen.minutes * 60, tell))
    print(table(run))
    return int(bool(run.bad_count or run.faults))


if __name__ == "__main__":
    sys.exit(main())
