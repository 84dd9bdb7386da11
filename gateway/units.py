"""Durations and sizes as people write them: ``"250ms"`` is 0.25 seconds, ``"64MiB"`` is 67108864 bytes.

Rule of this file: a value without a unit is refused (only 0 needs none), because "timeout = 250" has
taken down more services than any parser bug. The types are plain numbers to everyone else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Self

SECONDS: Final[Mapping[str, float]] = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
BYTES: Final[Mapping[str, int]] = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}

# At most 12 digits before the point: no duration or size in a configuration needs more.
_NUMBER: Final = r"[0-9]{1,12}(?:\.[0-9]{1,9})?"
DURATION_PATTERN: Final = rf"^{_NUMBER}({'|'.join(SECONDS)})$"
SIZE_PATTERN: Final = rf"^{_NUMBER}({'|'.join(BYTES)})$"
_QUANTITY: Final = re.compile(rf"({_NUMBER})([A-Za-z]+)")


class Seconds(float):
    """A duration in seconds that was written with its unit."""

    __slots__ = ()

    @classmethod
    def parse(cls, written: object) -> Self:
        """Read ``"1.5s"``; raises ValueError with a message for the person who wrote it."""
        number, unit = _split(written, "a duration", '"250ms", "10s", "5m", "24h"', SECONDS)
        return cls(float(number) * SECONDS[unit])

    def __str__(self) -> str:
        """The shortest exact way to write it: ``90s``, ``250ms``, ``0s``."""
        for unit in ("d", "h", "m", "s", "ms", "us"):
            count = round(float(self) / SECONDS[unit], 6)  # a float's own error, not the writer's digits
            if count >= 1 and count == int(count):
                return f"{int(count)}{unit}"
        return f"{float(self):.9f}".rstrip("0").rstrip(".") + "s"


class Size(int):
    """A number of bytes that was written with its unit."""

    @classmethod
    def parse(cls, written: object) -> Self:
        """Read ``"64MiB"``; raises ValueError with a message for the person who wrote it."""
        number, unit = _split(written, "a size", '"512B", "16KiB", "64MiB", "2GiB"', BYTES)
        return cls(float(number) * BYTES[unit] if "." in number else int(number) * BYTES[unit])

    def __str__(self) -> str:
        """The shortest exact way to write it: ``64MiB``, ``0B``."""
        for unit in ("TiB", "GiB", "MiB", "KiB"):
            if self and int(self) % BYTES[unit] == 0:
                return f"{int(self) // BYTES[unit]}{unit}"
        return f"{int(self)}B"


def _split(written: object, kind: str, examples: str, units: Mapping[str, float]) -> tuple[str, str]:
    if not isinstance(written, str):
        if type(written) is int and written == 0:
            return "0", next(iter(units))
        raise ValueError(f"expected {kind} with its unit in quotes, such as {examples}; got {written!r}")
    match = _QUANTITY.fullmatch(written.strip())
    if match is None:
        raise ValueError(f"{written!r} is not {kind}; write a number and a unit, such as {examples}")
    number, unit = match.groups()
    if unit not in units:
        raise ValueError(f"{written!r} has no unit known for {kind}; units are {', '.join(units)}")
    return number, unit
