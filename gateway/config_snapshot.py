"""What an operator may say of snapshots: where, how often, how large.

Rule of this file: as ``gateway/config.py``, of which it is a part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final

from msgspec import Meta, Struct, structs

from gateway.ranges import SIZE_MAX, seconds, size, within
from gateway.schema import Fault
from gateway.units import Seconds, Size

INTERVAL_MIN: Final = Seconds.parse("100ms")
INTERVAL_MAX: Final = Seconds.parse("1m")
"""Each is a commit that waits for the disk; what is made between two of them is what a crash may lose, and who watches
(``deploy/prometheus``) must hear of one that fails."""
BYTES_MIN: Final = Size.parse("16MiB")
"""A generation must have room for several of the largest records."""

VERBS: Final[Mapping[str, str]] = {
    "ls": "what is there: sources, records, bytes, ages",
    "verify": "look through every file; 1 if one is bad",
    "export": "all good records as one file",
    "import": "the records of such a file that are not here yet",
    "prune": "remove what was put aside, and old generations",
}
"""What `tailrace snapshot` does."""


class SnapshotConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """A directory for copies of what was last known good."""

    path: str
    interval: Seconds = seconds("10s")
    bytes_max: Size = size("256MiB")
    generations: Annotated[int, Meta(ge=2, le=8)] = 3

    def from_folder(self, folder: Path) -> SnapshotConfig:
        """The same with its whole path."""
        return structs.replace(self, path=str(folder / self.path)) if self.path else self

    def faults(self) -> Iterator[Fault]:
        if not self.path or "\0" in self.path:
            yield "path", "must name a directory"
        yield from within(INTERVAL_MIN, INTERVAL_MAX, interval=self.interval)
        yield from within(BYTES_MIN, SIZE_MAX, bytes_max=self.bytes_max)
