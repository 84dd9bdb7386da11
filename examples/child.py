"""One child process that never outlives its parent: started in a group of its own, always stopped.

Rule of this file: whatever is started here is ended by process group, so that grandchildren (the
stubs of Triton's python backend) end too; nothing is ever ended by name. A guard process holds one
end of a pipe: when this process dies, however it dies, the pipe closes and the guard kills the group.
It knows nothing of what the child is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import Signals
from typing import Final

STOP_SECONDS: Final = 5.0
"""How long a child may take after SIGTERM before its whole group gets SIGKILL."""

_GUARD: Final = 'read -r _; kill -s KILL -- "-$1" 2>/dev/null'


class Child:
    """A running command. Its output goes to two files, so that nobody has to drain a pipe."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], directory: Path, name: str) -> None:
        """Start ``command``; ``directory`` must exist and receives ``name.out`` and ``name.err``."""
        self.out_path = directory / f"{name}.out"
        self.err_path = directory / f"{name}.err"
        with self.out_path.open("ab") as out, self.err_path.open("ab") as err:
            self.process = subprocess.Popen(
                list(command),
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(self.process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def returncode(self) -> int | None:
        return self.process.poll()

    def out(self) -> str:
        """What the child has written to its standard output up to now."""
        return self.out_path.read_text(errors="replace")

    def log(self) -> str:
        """What the child has written, standard output before standard error."""
        return self.out() + self.err_path.read_text(errors="replace")

    def signal(self, number: Signals) -> None:
        """Send a signal to the child alone."""
        if self.running:
            os.kill(self.pid, number)

    def signal_group(self, number: Signals) -> None:
        """Send a signal to the child and to everything that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def wait(self, seconds: float) -> bool:
        """Whether the child ended within ``seconds``."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """SIGTERM, ``seconds`` of patience, SIGKILL for the group. Safe to call any number of times."""
        try:
            if self.running:
                self.signal_group(signal.SIGCONT)  # a paused process cannot act on SIGTERM
                self.signal(signal.SIGTERM)
                self.wait(seconds)
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL for the group, at once. Safe to call any number of times."""
        if self._guard.stdin is None or self._guard.stdin.closed:
            return
        # The guard is still there, so the group was not ended by us yet and its number is still ours
        # as long as one member lives; afterwards the number may belong to somebody else.
        if self.running or _group_members(self.pid):
            self.signal_group(signal.SIGKILL)
        self.process.wait()
        await_empty(self.pid, seconds=2.0)
        self._guard.kill()
        self._guard.stdin.close()
        self._guard.wait()


def group_members(group: int) -> dict[int, str]:
    """The living processes of a process group and their command lines (Linux: read from /proc)."""
    return {pid: _command_line(pid) for pid in _group_members(group)}


def await_empty(group: int, seconds: float) -> bool:
    """Wait until no process of the group lives; whether that was so within ``seconds``."""
    end = time.monotonic() + seconds
    while _group_members(group):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _group_members(group: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            # "pid (comm) state ppid pgrp ...": comm may hold blanks and brackets, so cut after the last.
            fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] not in "ZX":
                found.append(int(entry))
    return found


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""
