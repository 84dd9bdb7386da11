"""One run of wrk: its command line, and what its script printed at the end.

Rule of this file: it knows wrk and no server. A run in which any answer was not a 2xx, or any
connection failed, is a fault that the caller must not swallow.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

SCRIPTS: Final = Path(__file__).parent
ANSWER_SECONDS_MAX: Final = 10
RESULT: Final = re.compile(r"^RESULT (\{.*\})$", re.MULTILINE)
NOT_2XX: Final = re.compile(r"Non-2xx or 3xx responses: (\d+)")


class LoadFailed(RuntimeError):
    """wrk did not run to its end; the message holds what it wrote."""


class Load(msgspec.Struct, frozen=True):
    """What wrk saw. Latencies in microseconds; ``status`` counts answers that were not 2xx."""

    requests: int
    microseconds: int
    bytes: int
    p50: int
    p99: int
    connect: int
    read: int
    write: int
    status: int
    timeout: int

    @property
    def requests_per_second(self) -> float:
        return self.requests * 1e6 / self.microseconds

    def faults(self) -> list[str]:
        """Everything that a run without a wrong answer does not have."""
        found = [
            f"{count} {name}"
            for name, count in (
                ("answers that are not 2xx", self.status),
                ("connections refused", self.connect),
                ("read errors", self.read),
                ("write errors", self.write),
                ("timeouts", self.timeout),
            )
            if count
        ]
        return found if self.requests else [*found, "no answer at all"]


def parse(output: str) -> Load:
    """Read wrk's output. Raises LoadFailed if our script's line is missing or cannot be read."""
    lines = RESULT.findall(output)
    if len(lines) != 1:
        raise LoadFailed(f"wrk printed no result:\n{output[-2000:]}")
    try:
        load = msgspec.json.decode(lines[0], type=Load)
    except msgspec.DecodeError as error:
        raise LoadFailed(f"wrk printed an unreadable result ({error}): {lines[0]}") from error
    told = NOT_2XX.search(output)
    if told is not None and int(told[1]) > load.status:  # wrk's own count, should the script's be less
        load = msgspec.structs.replace(load, status=int(told[1]))
    if load.microseconds <= 0:
        raise LoadFailed(f"wrk measured no time: {lines[0]}")
    return load


def command(
    *, url: str, body: Path, json_bytes: int, unique: bool, connections: int, seconds: float, cores: Sequence[int]
) -> list[str]:
    """wrk with one thread on ``cores``. It counts whole seconds only: ``seconds`` is rounded up."""
    return [
        "taskset",
        "--cpu-list",
        ",".join(map(str, cores)),
        "wrk",
        "--threads=1",
        f"--connections={connections}",
        f"--duration={max(1, -int(-seconds // 1))}s",
        f"--timeout={ANSWER_SECONDS_MAX}s",
        f"--script={SCRIPTS / ('miss.lua' if unique else 'same.lua')}",
        url,
        "--",
        str(body),
        str(json_bytes),
    ]


def run(line: Sequence[str], seconds: float) -> Load:
    """Run the command. Raises LoadFailed."""
    try:
        done = subprocess.run(
            line, capture_output=True, text=True, timeout=seconds + 3 * ANSWER_SECONDS_MAX, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise LoadFailed(f"wrk did not end: {' '.join(line)}") from error
    if done.returncode:
        raise LoadFailed(f"wrk ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return parse(done.stdout)
