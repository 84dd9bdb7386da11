"""Every byte of a small snapshot flipped in turn: no flip is ever served as good."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

from degrade.directory import path_of
from degrade.generation import Generation
from degrade.record import Record, name_of, packed, seal
from tests.degrade.flips import BOUND, keys, payload, served

NOW = 1_000_000.0
COUNT = 16


def names_of() -> dict[bytes, bytes]:
    return {name_of("answer", "routes/r", key): key for key in keys(COUNT)}


def test_no_flipped_byte_is_ever_served_as_good(tmp_path: Path) -> None:
    path = path_of(tmp_path, 1)
    pairs = []
    for name, key in names_of().items():
        record = Record("answer", "routes/r", key, b"schema", b"word", NOW, NOW, payload(key))
        pairs.append((name, seal(name, packed(record))))
    with closing(Generation(path, BOUND, writable=True)) as generation:
        generation.put(pairs, NOW)
    whole = path.read_bytes()
    path.with_suffix(".whole").write_bytes(whole)
    assert served(path, names_of()) == "good"

    outcomes: Counter[str] = Counter()
    first = 0
    while first < len(whole):
        done = subprocess.run(
            [sys.executable, "-m", "tests.degrade.flips", str(path), str(first)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=100, check=False,
        )  # fmt: skip
        lines = [line.split(b" ", 1) for line in done.stdout.splitlines()]
        outcomes.update(words[1].decode() for words in lines if len(words) > 1)
        last = int(lines[-1][0])
        if done.returncode:  # it died of this byte; in a gateway that is the child's end, and the file is put aside
            assert done.returncode < 0, "not of a bug of ours"
            outcomes["died"] += 1
        first = last + 1
    print(f"{len(whole)} bytes: {dict(outcomes)}")
    assert set(outcomes) <= {"good", "aside", "died"}, outcomes
    assert outcomes.total() == len(whole)
    assert outcomes["aside"] >= sum(len(payload(key)) for key in keys(COUNT)), "each byte of a payload is missed"
    assert outcomes["died"] > 0, "the look-through has its reason"
