"""One run of the client (native/ask.c): its command line, and what it printed at the end.

Rule of this file: it knows the client and no server. A run in which any answer was not exactly the right
bytes is a fault that the caller must not swallow.

Why a client of our own, and in C: wrk cannot tell which connection an answer belongs to, so that it could not
compare the bytes of different questions, and every look that its script takes at an answer costs. CPU of the
client for each request of 0.4 KB on 16 connections before the static upstream, on one core:

    wrk, nothing looked at                              12.8 to 13.5 µs
    wrk, status and length looked at by a script        14.7 to 16.8 µs
    native/ask.c, every byte of every answer compared    9.2 to 10.3 µs; 9.6 to 11.0 µs by Zipf's law

`python -m benchmarks.witness` prints such figures, and lets wrk say how fast the same servers are. (Those above are of
three runs of 3 s on two cores that others used too.) How busy the client's core was stands beside every figure.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from benchmarks.questions import DIGITS, Wire

LATE_SECONDS_MAX: Final = 30.0
"""How much longer than its time a run may take: answers under way are waited for, 10 s at most."""
RESULT: Final = re.compile(r"^RESULT (\{.*\})$", re.MULTILINE)


class ClientFailed(RuntimeError):
    """The client did not run to its end; the message holds what it wrote."""


class Load(Struct, frozen=True):
    """What the client saw. Times in microseconds. ``requests`` were answered in time, ``late`` after the
    run's end; ``also`` with the other status that was allowed; ``fresh`` are those of Zipf's that were new."""

    requests: int = 0
    late: int = 0
    fresh: int = 0
    microseconds: float = 1.0
    client_microseconds: float = 0.0
    bytes: int = 0
    p50: float = 0.0
    p99: float = 0.0
    p999: float = 0.0
    longest: float = 0.0
    also: int = 0
    wrong_status: int = 0
    wrong_bytes: int = 0
    broken: int = 0
    timeout: int = 0
    shown: str = ""

    @property
    def answered(self) -> int:
        return self.requests + self.late

    @property
    def requests_per_second(self) -> float:
        return self.requests * 1e6 / self.microseconds

    def faults(self) -> list[str]:
        """Everything that a run without a wrong answer does not have."""
        found = [
            f"{count} {name}: {self.shown}"
            for name, count in (
                ("answers of a wrong status", self.wrong_status),
                ("answers of wrong bytes", self.wrong_bytes),
                ("connections ended early, or with an answer that cannot be read", self.broken),
                ("answers that never came", self.timeout),
            )
            if count
        ]
        return found if self.requests else [*found, "no answer at all"]


class Picking(Struct, frozen=True):
    """Which inputs are asked; see native/ask.c. ``requests``: how many, instead of for how long."""

    pick: str = "same"
    requests: int = 0
    patience: int = 10_000
    """Milliseconds after which an answer has not come."""
    first: int = 0
    count: int = 1
    fresh: float = 0.0
    fresh_first: int = 0
    heads: int = 1
    also: int = 0
    needles: tuple[str, ...] = ()
    seed: int = 1


class Files(Struct, frozen=True):
    """The question and the fixed part of the right answer, on disk."""

    question: Path
    answer: Path
    serial_at: int
    echo: int
    digits_at: int = -1
    answer_digits_at: int = -1


def write(directory: Path, asked: Wire, answer: bytes, echo: int) -> Files:
    """Write what the client reads. ``answer`` may hold DIGITS; ``echo`` bytes of the question follow it."""
    question_file, answer_file = directory / "question", directory / "answer"
    at = answer.find(DIGITS.encode())
    question_file.write_bytes(asked.text)
    answer_file.write_bytes(answer)
    return Files(question_file, answer_file, asked.serial_at, echo, asked.digits_at, at)


def command(
    *, program: Path, port: int, files: Files, picking: Picking, connections: int, seconds: float, cores: Sequence[int]
) -> list[str]:
    """The client's command line, bound to ``cores``."""
    given: Mapping[str, object] = {
        "port": port,
        "connections": connections,
        "milliseconds": round(seconds * 1000),
        **{name: getattr(files, name) for name in files.__struct_fields__},
        **{name: getattr(picking, name) for name in picking.__struct_fields__ if name != "needles"},
    }
    line = ["taskset", "--cpu-list", ",".join(map(str, cores)), str(program)]
    return [*line, *(f"{name}={value}" for name, value in given.items()), *(f"needle={n}" for n in picking.needles)]


def parse(output: str) -> Load:
    """Read the client's output. Raises ClientFailed if its line is missing or cannot be read."""
    lines = RESULT.findall(output)
    if len(lines) != 1:
        raise ClientFailed(f"the client printed no result:\n{output[-2000:]}")
    try:
        load = msgspec.json.decode(lines[0], type=_Whole)
    except msgspec.DecodeError as error:
        raise ClientFailed(f"the client printed an unreadable result ({error}): {lines[0]}") from error
    if load.microseconds <= 0:
        raise ClientFailed(f"the client measured no time: {lines[0]}")
    return Load(**msgspec.structs.asdict(load))


def run(line: Sequence[str], seconds: float) -> Load:
    """Run the command. Raises ClientFailed."""
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=seconds + LATE_SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired as error:
        raise ClientFailed(f"the client did not end: {' '.join(line)}") from error
    if done.returncode:
        raise ClientFailed(f"the client ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return parse(done.stdout)


class _Whole(Struct, frozen=True, forbid_unknown_fields=True):
    """Load without defaults: what was not printed is missing, not 0."""

    requests: int
    late: int
    fresh: int
    microseconds: float
    client_microseconds: float
    bytes: int
    p50: float
    p99: float
    p999: float
    longest: float
    also: int
    wrong_status: int
    wrong_bytes: int
    broken: int
    timeout: int
    shown: str
