"""Hit ratio against capacity: the real arena on traces, beside other policies.

Rule of this file: a trace is numbers in the order they were asked for. What a policy had to fetch counts as missed,
once for a batch; the rest is hits. Others are judged by ``simulate.py`` where its environment is.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from benchmarks.tables.gather import SEED, zipf
from cache.arena import ROWS_MIN, Arena, Room
from cache.words import hashing, words

Numbers = NDArray[np.int64]

SHARES: Final = (0.01, 0.1)
"""Of the trace's objects, what the cache may hold."""
BATCHES: Final = (1, 64)
ONLINE: Final = MappingProxyType({"LRU": "LRU", "S3FIFO": "S3-FIFO", "Sieve": "SIEVE", "WTinyLFU": "W-TinyLFU"})
CLAIRVOYANT: Final = "Belady"
SIMULATE: Final = Path(__file__).parent / "simulate.py"
SIMULATE_SECONDS_MAX: Final = 1800.0
ROW_BYTES: Final = 8
REQUESTS: Final = 100_000
POINTS_MAX: Final = 1.0
"""Fewer hits than the best policy that does not know the future, in hundredths of the requests."""


class SimulationFailed(RuntimeError):
    """The other policies' program ended without an answer."""


class Judged(Struct, frozen=True):
    """One trace at one capacity. Hit ratios in percent: ``arena`` by keys in a batch, ``others`` by policy."""

    trace: str
    requests: int
    objects: int
    capacity: int
    arena: Mapping[int, float]
    others: Mapping[str, float]

    @property
    def behind(self) -> float | None:
        """Points that the arena, asked one by one, is behind the best of ONLINE; None if those were not asked."""
        online = [self.others[name] for name in ONLINE if name in self.others]
        return max(online) - self.arena[1] if online else None


def replay(numbers: Numbers, capacity: int, batch: int) -> int:
    """Hits of an arena of so many rows that is asked for so many keys at once."""
    room = Room(math.ceil(capacity * Room(0, ROW_BYTES).bytes_per_row), ROW_BYTES)
    arena = Arena(room, hashing(0, SEED))
    assert arena.capacity == capacity
    keys, _ = words(numbers, 0)
    rows = np.zeros(batch, np.dtype((np.void, ROW_BYTES)))
    misses = 0
    for start in range(0, len(keys), batch):
        asked = keys[start : start + batch]
        missing = asked[arena.find(asked) == arena.spare]
        if len(missing):
            arena.put(missing, rows[: len(missing)])
            misses += len(np.unique(missing)) if batch > 1 else 1
    return len(keys) - misses


def judge(traces: Mapping[str, Numbers], simulator: Path | None) -> Iterator[Judged]:
    """Each trace at each of SHARES. ``simulator``: a Python that has libcachesim. Raises SimulationFailed."""
    for name, numbers in traces.items():
        objects = len(np.unique(numbers))
        for share in SHARES:
            capacity = int(objects * share)
            if capacity >= ROWS_MIN:
                arena = {batch: 100 * replay(numbers, capacity, batch) / len(numbers) for batch in BATCHES}
                others = {} if simulator is None else simulate(numbers, capacity, simulator)
                yield Judged(name, len(numbers), objects, capacity, arena, others)


def simulate(numbers: Numbers, capacity: int, simulator: Path) -> dict[str, float]:
    """Hit ratios in percent of the other policies. Raises SimulationFailed."""
    command = [str(simulator), str(SIMULATE), str(capacity), *ONLINE, CLAIRVOYANT]
    try:
        done = subprocess.run(
            command, input=numbers.tobytes(), capture_output=True, timeout=SIMULATE_SECONDS_MAX, check=True
        )
    except subprocess.CalledProcessError as error:
        raise SimulationFailed(error.stderr.decode(errors="replace")[-2000:]) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SimulationFailed(str(error)) from error
    return {name: 100 * hits / len(numbers) for name, hits in json.loads(done.stdout).items()}


def from_directory(directory: Path) -> dict[str, Numbers]:
    """Every ``.npz`` with an array ``keys``, by its name."""
    found = {}
    for path in sorted(directory.glob("*.npz")):
        with np.load(path) as held:
            if "keys" in held:
                found[path.stem] = held["keys"].astype(np.int64)
    return found


def _popular(chance: np.random.Generator) -> Numbers:
    return zipf(chance, 15_000, REQUESTS)


def _with_wonders(chance: np.random.Generator) -> Numbers:
    trace = _popular(chance)
    single = chance.random(REQUESTS) < 1 / 3
    trace[single] = 10**6 + np.arange(single.sum())
    return trace


def _with_scans(chance: np.random.Generator) -> Numbers:
    parts: list[Numbers] = []
    for part in np.split(_popular(chance), 8):
        parts += [part, 10**6 + np.arange(10_000)]
    return np.concatenate(parts)


def _loop(_: np.random.Generator) -> Numbers:
    return np.arange(REQUESTS) % 10_000


GENERATED: Final[Mapping[str, Callable[[np.random.Generator], Numbers]]] = MappingProxyType(
    {
        "Zipf, one in three a one-hit wonder": _with_wonders,
        "Zipf, and a scan now and then": _with_scans,
        "a loop": _loop,
    }
)


def generated() -> dict[str, Numbers]:
    return {name: make(np.random.default_rng(3)) for name, make in GENERATED.items()}
