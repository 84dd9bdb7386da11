"""What is true in the world, and when it was: every execution of a model, every write to a table.

Rule of this file: it remembers and says; the servers write in it, the invariants read. An answer of a simulated model
names the execution that made it, so that whoever meets that answer later can be asked where it has been.
"""

from __future__ import annotations

import math
from zlib import crc32

from msgspec import Struct

Row = tuple[int, ...]
"""Of the model's input, with what else decides its answer at the end."""


class Execution(Struct):
    """One run of a model. ``flawed``: how its answer was wrong when it left; ``arrived``: when all of it had come to
    who asked (infinity: never). ``asker``: the gateway."""

    serial: int
    replica: str
    model: str
    generation: int
    rows: tuple[Row, ...]
    began: float
    flawed: str = ""
    arrived: float = math.inf
    asker: str = ""


def fingerprint(model: str, generation: int, row: Row) -> int:
    """What such a model answers to such a row."""
    return crc32(f"{model}/{generation}/{row}".encode())


def scores(model: str, row: Row) -> tuple[float, float, float]:
    """How sure it is of that: a third of the rows leave a small model unsure, whatever its generation."""
    unsure = model == "small" and crc32(repr(row).encode()) % 3 == 0
    return (0.5, 0.4, 0.1) if unsure else (0.9, 0.05, 0.05)


class Written(Struct, frozen=True):
    """A table's row: ``version`` counts its writes (0: there is none), ``at``: when that was in the store."""

    version: int
    at: float


class Ledger:
    """Of one run."""

    def __init__(self) -> None:
        self.executions: list[Execution] = []
        self.written: dict[tuple[str, int], list[Written]] = {}
        self.lives: dict[tuple[str, str], list[tuple[float, int]]] = {}
        """Generations of a model on a replica, and since when."""
        self.shown: dict[tuple[str, str, str], list[tuple[float, int]]] = {}
        """What a gateway has seen of a model on a replica (gateway, replica, model): when, and which generation."""

    def execute(self, replica: str, model: str, generation: int, rows: tuple[Row, ...], now: float) -> Execution:
        """One run of a model begins now."""
        made = Execution(len(self.executions) + 1, replica, model, generation, rows, now)
        self.executions.append(made)
        return made

    def of(self, serial: int) -> Execution | None:
        return self.executions[serial - 1] if 0 < serial <= len(self.executions) else None

    def write(self, table: str, key: int, version: int, at: float) -> None:
        self.written.setdefault((table, key), []).append(Written(version, at))

    def superseded(self, table: str, key: int, version: int) -> float | None:
        """When a version of a row was replaced; infinity: it is the present one; None: it never was one."""
        history = self.written.get((table, key), [])
        ends: float | None = math.inf if version == 0 and not history else None
        for index, each in enumerate(history):
            if each.version == version:
                ends = history[index + 1].at if index + 1 < len(history) else math.inf
            elif version == 0 and index == 0 and ends is None:
                ends = each.at
        return ends
