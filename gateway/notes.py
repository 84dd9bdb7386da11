"""What workers have in work, in memory that outlives them: notes that their supervisor reads when one has died, or
does not come to write any more.

Rule of this file: it knows the memory's layout and who may write what there; which request is to blame is
``suspects.py``'s to say. A note is one copy of 16 bytes and no system call; a hit is never noted.

The memory is a file without a name, made by the supervisor and inherited by every worker:

    a head            generation, number of suspects
    suspects          ``SUSPECTS_MAX`` rows of digest and until; written by the supervisor alone, at a death
    for each worker   ``NOTES_MAX`` digests in work, zero where there is none; written by that worker
                      ``SUSPECTS_MAX`` digests of suspects that it has answered; written by it, cleared at a death
                      a count, which grows as long as its event loop turns

Nothing is locked. The generation is odd while suspects are written, and a worker that sees it so, or changed behind
its back, keeps what it knew until its next request. What a death cuts in half is a digest that nothing else has.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final, Self

from cache.digest import DIGEST_BYTES
from gateway.suspects import SUSPECTS_MAX, Suspect

NOTES_MAX: Final = 4096
"""Requests of one worker in work at once that are noted: those beyond are worked on all the same, and counted."""

TELLS_WHERE: Final = signal.SIGUSR2
"""A worker that gets it writes where each of its threads stands, and goes on: an end by SIGABRT does so too, and leaves
its whole memory where cores are kept."""
BEAT_SECONDS: Final = 0.5
"""Between two signs of life of a worker."""

UNNOTED: Final[AbstractContextManager[object]] = contextlib.nullcontext()
"""The note of what nobody would read."""

_HEAD: Final = struct.Struct("<QQ")
_ROW: Final = struct.Struct(f"<{DIGEST_BYTES}sd")
_NOTHING: Final = bytes(DIGEST_BYTES)
_NOTES_BYTES: Final = NOTES_MAX * DIGEST_BYTES
_ANSWERED_BYTES: Final = SUSPECTS_MAX * DIGEST_BYTES
_SUSPECTS_AT: Final = _HEAD.size
_WORKERS_AT: Final = _SUSPECTS_AT + SUSPECTS_MAX * _ROW.size
_BEAT: Final = struct.Struct("<Q")
_WORKER_BYTES: Final = _NOTES_BYTES + _ANSWERED_BYTES + _BEAT.size


class Notebook:
    """The supervisor's side. ``file``: the descriptor that workers inherit."""

    def __init__(self, workers: int) -> None:
        """Raises OSError when there is no memory for it."""
        self._workers = workers
        self.file = os.memfd_create("tailrace-notes", os.MFD_CLOEXEC)
        size = _WORKERS_AT + workers * _WORKER_BYTES + 1  # whether one of them has been ready is the last byte
        os.ftruncate(self.file, size)
        self._map = mmap.mmap(self.file, size)
        self._generation = 0

    def close(self) -> None:
        """Give the memory back."""
        self._map.close()
        os.close(self.file)

    def taken(self, worker: int) -> tuple[bytes, ...]:
        """What a worker that has died had in work; its notes are blank then."""
        at = _WORKERS_AT + worker * _WORKER_BYTES
        return self._taken(at, _NOTES_BYTES)

    def answered(self) -> tuple[bytes, ...]:
        """Suspects that workers have answered since this was last asked."""
        found: list[bytes] = []
        for worker in range(self._workers):
            found += self._taken(_WORKERS_AT + worker * _WORKER_BYTES + _NOTES_BYTES, _ANSWERED_BYTES)
        return tuple(found)

    def beats(self, worker: int) -> int:
        """A count that grows as long as a worker's event loop turns."""
        found: tuple[int] = _BEAT.unpack_from(self._map, _WORKERS_AT + (worker + 1) * _WORKER_BYTES - _BEAT.size)
        return found[0]

    def publish(self, suspects: Sequence[Suspect]) -> None:
        """Let every worker know them."""
        self._generation += 1
        _HEAD.pack_into(self._map, 0, self._generation, 0)
        for row, suspect in enumerate(suspects):
            _ROW.pack_into(self._map, _SUSPECTS_AT + row * _ROW.size, suspect.digest, suspect.until)
        self._generation += 1
        _HEAD.pack_into(self._map, 0, self._generation, len(suspects))

    def _taken(self, at: int, size: int) -> tuple[bytes, ...]:
        held = self._map[at : at + size]
        self._map[at : at + size] = bytes(size)
        each = (held[begin : begin + DIGEST_BYTES] for begin in range(0, size, DIGEST_BYTES))
        return tuple([digest for digest in each if digest != _NOTHING])


class Notes:
    """A worker's side. Belongs to one event loop."""

    def __init__(self, file: int, worker: int) -> None:
        """``file``: an inherited descriptor. Raises OSError if it is none."""
        self._map = mmap.mmap(file, os.fstat(file).st_size)
        self._notes_at = _WORKERS_AT + worker * _WORKER_BYTES
        self._answered_at = self._notes_at + _NOTES_BYTES
        self._beat_at = self._answered_at + _ANSWERED_BYTES
        self._free = list(range(NOTES_MAX - 1, -1, -1))
        self._head = b""
        self._known: dict[bytes, tuple[int, float]] = {}
        self.missed = 0
        """Requests worked on that there was no room to note."""

    @property
    def was_ready(self) -> bool:
        """Whether a worker has been ready, of those that there are or have been."""
        return self._map[-1] != 0

    @was_ready.setter
    def was_ready(self, ready: bool) -> None:
        self._map[-1] = ready

    def refused(self, digest: bytes, now: float) -> float:
        """For how many seconds a request is refused yet; 0: it is not."""
        self._read()
        found = self._known.get(digest)
        return 0.0 if found is None else max(0.0, found[1] - now)

    def note(self, digest: bytes) -> Note:
        """A note of a request, which stands while anyone is in its block."""
        if not self._free:
            self.missed += 1
            return Note(self, digest, -1)
        slot = self._free.pop()
        at = self._notes_at + slot * DIGEST_BYTES
        self._map[at : at + DIGEST_BYTES] = digest
        return Note(self, digest, slot)

    async def beat(self, interval: float, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Show for ever that the event loop turns; cancel it to stop."""
        while True:
            (count,) = _BEAT.unpack_from(self._map, self._beat_at)
            _BEAT.pack_into(self._map, self._beat_at, count + 1)
            await sleep(interval)

    def end(self, slot: int, digest: bytes, well: bool) -> None:
        """Nobody works on it any more. ``well``: it has been answered."""
        if slot >= 0:
            at = self._notes_at + slot * DIGEST_BYTES
            self._map[at : at + DIGEST_BYTES] = _NOTHING
            self._free.append(slot)
        if not well:
            return
        self._read()
        found = self._known.get(digest)
        if found is not None:
            at = self._answered_at + found[0] * DIGEST_BYTES
            self._map[at : at + DIGEST_BYTES] = digest

    def _read(self) -> None:
        """Know the suspects of now."""
        head = self._map[: _HEAD.size]
        if head == self._head:
            return
        generation, count = _HEAD.unpack(head)
        if generation % 2:
            return
        held = self._map[_SUSPECTS_AT : _SUSPECTS_AT + count * _ROW.size]
        if self._map[: _HEAD.size] != head:
            return
        self._known = {digest: (row, until) for row, (digest, until) in enumerate(_ROW.iter_unpack(held))}
        self._head = head


class Note:
    """One request in work: for its caller, and for a refresh behind the caller's back that goes on after it."""

    __slots__ = ("_digest", "_holders", "_notes", "_slot", "_well")

    def __init__(self, notes: Notes, digest: bytes, slot: int) -> None:
        self._notes = notes
        self._digest = digest
        self._slot = slot
        self._holders = 0
        self._well = False

    def __enter__(self) -> Self:
        self._holders += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._holders -= 1
        self._well = self._well or kind is None
        if not self._holders:
            self._notes.end(self._slot, self._digest, self._well)
