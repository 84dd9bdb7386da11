"""What a server used, read from /proc, and on which cores it may run.

A server is named by its process group; those of its descendants that left the group are counted too.

Rule of this file: Linux only, and it changes nothing but the affinity of the processes it is given.
Times come in ticks of 10 ms: a run shorter than a second says little about CPU per request.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct


class Placement(Struct, frozen=True):
    """Which cores the measured server, the client, and the server behind a proxy run on."""

    server: tuple[int, ...]
    client: tuple[int, ...]
    upstream: tuple[int, ...]


def placement(cores: Iterable[int]) -> Placement:
    """One core for the server, another for the client, and the rest (or the client's own) for the upstream."""
    known = sorted(cores)
    if len(known) == 1:
        return Placement((known[0],), (known[0],), (known[0],))
    return Placement((known[0],), (known[1],), tuple(known[2:]) or (known[1],))


class Process(Struct, frozen=True):
    """One line of the table of processes."""

    pid: int
    parent: int
    group: int
    session: int


def processes() -> list[Process]:
    """All that live now."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    found.append(Process(int(entry), int(fields[1]), int(fields[2]), int(fields[3])))
    return found


def members(group: int, living: Iterable[Process]) -> set[int]:
    """The processes of a group, of its session, and all their descendants."""
    known = list(living)
    found = {process.pid for process in known if group in (process.group, process.session)}
    while more := {process.pid for process in known if process.parent in found} - found:
        found |= more
    return found


def pin(group: int, cores: Sequence[int]) -> None:
    """Every thread of every process of the group onto ``cores``."""
    for pid in members(group, processes()):
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(int(task), cores)


def ticks(stat: str) -> int:
    """utime, stime, and both of children that ended, from the text of /proc/PID/stat (see proc(5))."""
    fields = stat.rpartition(")")[2].split()  # the name may hold blanks and brackets
    return sum(int(field) for field in fields[11:15])


def cpu_seconds(group: int) -> float:
    """CPU time of the whole group up to now: the server, its workers, its model processes."""
    total = 0
    for pid in members(group, processes()):
        with contextlib.suppress(OSError):
            total += ticks(Path(f"/proc/{pid}/stat").read_text())
    return total / os.sysconf("SC_CLK_TCK")


def nanoseconds(pid: int) -> int:
    """CPU time of one process's first thread up to now, from /proc/PID/schedstat; 0 if it is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    return 0


def resident_bytes(group: int) -> int:
    """Resident memory of the group, pages that its processes share counted once (Pss)."""
    total = 0
    for pid in members(group, processes()):
        with contextlib.suppress(OSError):
            total += proportional_bytes(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return total


def proportional_bytes(rollup: str) -> int:
    """The Pss of the text of /proc/PID/smaps_rollup, in bytes."""
    for line in rollup.splitlines():
        name, _, rest = line.partition(":")
        if name == "Pss":
            return int(rest.split()[0]) * 1024
    return 0
