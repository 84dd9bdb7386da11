"""What grows, as data, and the configuration for each size.

Rule of this file: pure values and texts; it starts nothing and measures nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from benchmarks.questions import DIGITS
from benchmarks.scenarios import MODEL

ENTRY_BYTES_ASSUMED: Final = 4_000
"""What a small entry may take, generously: it bounds which sizes fit into a machine's memory."""
MEMORY_SHARE_MAX: Final = 0.5
"""Of the memory that is free, what entries may take."""


class Axis(Struct, frozen=True):
    """Something that grows. Each size is compared with the first one."""

    name: str
    title: str
    sizes: tuple[int, ...]
    note: str


AXES: Final = (
    Axis(
        "entries",
        "cached entries",
        (1_000, 10_000, 100_000, 1_000_000, 5_000_000),
        "Each hit asks for one of all entries, drawn uniformly: the worst case for the processor's caches. They are "
        "filled through HTTP, as misses before the static upstream.",
    ),
    Axis("routes", "routes", (1, 10, 100, 1_000), "Each request asks the next route, each with an entry of its own."),
    Axis(
        "callers",
        "callers with keys and quotas of their own",
        (1, 100, 1_000, 10_000, 100_000),
        "Each request is the next caller's: another head with another key, and another quota.",
    ),
    Axis("heads", "different request heads", (1, 1_000, 4_000, 10_000, 100_000), "Each request has the next head."),
    Axis("connections", "connections", (16, 64, 256, 1_000, 4_000), "All of them ask all the time."),
    Axis(
        "body",
        "FP32 values in the body",
        (64, 1_024, 4_096, 16_384, 37_632, 262_144),
        "0.4 KB to 1 MB, the same one again and again. Growth is due here: each byte is received and digested.",
    ),
)


class UnknownAxis(ValueError):
    """Nothing that grows has this name."""


def select(names: Sequence[str]) -> tuple[Axis, ...]:
    """The axes named, in their own order; all when none is named. Raises UnknownAxis."""
    known = {axis.name for axis in AXES}
    for name in names:
        if name not in known:
            raise UnknownAxis(f"nothing called {name!r} grows here; there are {', '.join(axis.name for axis in AXES)}")
    return tuple(axis for axis in AXES if not names or axis.name in names)


def affordable(axis: Axis, size_max: int, available_bytes: int) -> tuple[int, ...]:
    """The sizes that are not more than ``size_max`` and, for entries, fit into ``available_bytes``."""
    found = [size for size in axis.sizes if size <= size_max]
    if axis.name == "entries":
        found = [size for size in found if size * ENTRY_BYTES_ASSUMED <= available_bytes * MEMORY_SHARE_MAX]
    return tuple(found)


KEY: Final = f"key-{DIGITS}"
ROUTE: Final = f"bench-{DIGITS}"


def numbered(text: str, number: int) -> str:
    """``text`` with its changing number, as the client writes it."""
    return text.replace(DIGITS, f"{number:0{len(DIGITS)}d}")


def config(upstream: str, *, routes: int = 0, callers: int = 0, cache_bytes: int = 2**28) -> str:
    """A configuration with so many routes (0: one that is called like its model) and callers (0: no keys)."""
    names = [numbered(ROUTE, number) for number in range(routes)] or [MODEL]
    parts = [f'[log]\nlevel = "warning"\n[backends.triton]\nhttp = ["{upstream}"]\n']
    if callers:
        parts.append(f"[server]\nanonymous = false\nquota_keys_max = {callers * 2}\n[callers]\n")
        for number in range(callers):
            digest = hashlib.sha256(numbered(KEY, number).encode()).hexdigest()
            quota = "quota = { rate = 1000000, hits_count = true }"
            parts.append(f'caller-{number} = {{ key_sha256 = "{digest}", {quota} }}\n')
    for name in names:
        parts.append(f'[routes.{name}]\ntiers = [{{ backend = "triton", model = "{MODEL}" }}]\n')
        parts.append(f'cache = {{ ttl = "12h", max_stale = "12h", bytes_max = "{cache_bytes}B" }}\n')
        if not callers:
            parts.append("caller_quota = { rate = 1000000, hits_count = true }\n")
    return "".join(parts)
