"""A generation with one byte flipped, for each byte in turn: ``python -m tests.degrade.flips FILE FROM``.

Prints a line for each byte before it is tried and another with what came of it, so that who reads knows at which byte
this process has died. What is read is what a gateway would read: first the look-through, and only where that finds
nothing wrong every record by its name, and one that is not there.
"""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

from cache.stores.store import StoreError
from degrade.directory import number_of
from degrade.generation import Generation
from degrade.inspection import _judged
from degrade.record import unpacked

BOUND = 2**20
DRIFT_MAX = 0.01


def keys(count: int) -> list[bytes]:
    return [b"%d" % key for key in range(count)]


def payload(key: bytes) -> bytes:
    """What lies under a key, and under no other."""
    return (b"of %b " % key) * (1 if int(key) % 4 else 40)


def served(path: Path, names: dict[bytes, bytes]) -> str:
    """What a reader would get of this file: "aside" if it would not be opened, or else "good" if nothing that it gives
    is wrong, and what is wrong. ``names``: keys by the names of their records."""
    if _judged(path.parent, number_of(path), False, (BOUND, DRIFT_MAX)).reason:
        return "aside"
    with closing(Generation(path, BOUND, alone=True)) as generation:
        for name, key in names.items():
            try:
                held = generation.get(name)
            except StoreError:
                continue
            record = None if held is None else unpacked(name, held)
            if record is not None and (record.key != key or record.payload != payload(key)):
                return f"wrong: {key!r} is {record.payload!r}"
        if generation.get(b"nobody's name...") is not None:
            return "wrong: something under nobody's name"
    return "good"


def put(path: Path, at: int, byte: int) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.seek(at)
        file.write(bytes((byte,)))


def main(arguments: list[str]) -> int:
    from tests.degrade.test_flips import names_of

    path, first = Path(arguments[0]), int(arguments[1])
    whole = path.with_suffix(".whole").read_bytes()
    path.write_bytes(whole)
    names = names_of()
    for at in range(first, len(whole)):
        print(at, flush=True)
        put(path, at, whole[at] ^ 1 << at % 8)
        print(at, served(path, names), flush=True)
        put(path, at, whole[at])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
