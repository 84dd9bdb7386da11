"""Hostile bytes for the codecs, for as long as you like: ``python -m tests.fuzz --minutes 10 --codec msgpack``.

Two ways in turn: messages that hypothesis builds of the protocol's own words, and bytes of seeds and findings, mutated.
Whatever is neither a good message nor a clean refusal, and whatever takes more memory than it may, is a finding: its
bytes are written to ``.cache/fuzz`` and the exit code is 1. Put such a file into ``tests/fuzz/corpus/CODEC``, where
every run of the tests tries it again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.mutation import grafted, mutated
from tests.fuzz.targets import TARGETS, Target

FINDINGS = Path(".cache/fuzz")
MUTATIONS_A_ROUND = 5000
EXAMPLES_A_ROUND = 200
GROWTH_BYTES_MAX = 256 * 2**20
"""How much the process may grow over what it was after the first round."""


class Finding(Exception):
    """A codec did with these bytes what it must not."""

    def __init__(self, data: bytes, why: str) -> None:
        super().__init__(why)
        self.data = data


def tried(target: Target, data: bytes, seed: int) -> str:
    """The word for what came of these bytes. Raises Finding."""
    try:
        return target.run(data, random.Random(seed))
    except Exception as error:
        raise Finding(data, f"{type(error).__name__}: {error} (chance {seed})") from error


def resident_bytes() -> int:
    """What the process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def built(target: Target, examples: int, words: Counter[str], seed: int) -> None:
    """Messages built of the protocol's words. Raises Finding."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
        derandomize=False,
    )
    @given(target.strategy)
    def each(data: bytes) -> None:
        words[tried(target, data, seed)] += 1

    each()


def changed(target: Target, times: int, words: Counter[str], chance: random.Random) -> None:
    """Seeds, mutated: their bytes, or their values, or first the values and then the bytes. Raises Finding."""
    for turn in range(times):
        seeds = target.seeds
        if turn % 2:
            try:
                seeds = (target.write(grafted(target.trees, chance)),)
            except (ValueError, OverflowError, RecursionError):  # nothing that could be written
                continue
        data = mutated(seeds, chance) if turn % 4 != 1 else seeds[0]
        words[tried(target, data, chance.randrange(2**32))] += 1


def fuzz(codec: str, seconds: float, seed: int) -> Counter[str]:
    """Fuzz one codec for so long; what came of it, in words. Raises Finding."""
    target, chance, words = TARGETS[codec], random.Random(seed), Counter[str]()
    for data in target.seeds:
        words[tried(target, data, seed)] += 1
    end, before = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        built(target, EXAMPLES_A_ROUND, words, chance.randrange(2**32))
        changed(target, MUTATIONS_A_ROUND, words, chance)
        now = resident_bytes()
        before = before or now
        if now - before > GROWTH_BYTES_MAX:
            raise Finding(b"", f"the process has grown from {before} to {now} bytes")
    return words


def main() -> int:
    """Run; 1 if there was a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="for each codec (default: 10)")
    parser.add_argument("--codec", action="append", choices=sorted(TARGETS), help="again for each (default: all)")
    parser.add_argument("--seed", type=int, default=None, help="of chance (default: another each time)")
    chosen = parser.parse_args()
    warnings.simplefilter("error")  # what would be told in a log is a finding
    seed = random.randrange(2**32) if chosen.seed is None else chosen.seed
    failed = False
    for codec in chosen.codec or sorted(TARGETS):
        try:
            words = fuzz(codec, chosen.minutes * 60, seed)
        except Finding as finding:
            FINDINGS.mkdir(parents=True, exist_ok=True)
            path = FINDINGS / f"{codec}-{hashlib.sha256(finding.data).hexdigest()[:12]}"
            path.write_bytes(finding.data)
            print(f"{codec}: {finding}; the bytes are in {path}, the seed was {seed}", file=sys.stderr)
            failed = True
            continue
        told = ", ".join(f"{word} {count}" for word, count in words.most_common(12))
        print(f"{codec}: {words.total()} messages, no finding (seed {seed}): {told}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
