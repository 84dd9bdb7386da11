"""What the sections of a configuration have in common: how long and how large anything may be, and named but once.

Rule of this file: how that is written and held. It knows none of the keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Annotated, Final

from msgspec import Meta, field

from gateway.schema import Fault
from gateway.units import Seconds, Size

COUNT_MAX: Final = 2**31 - 1
"""No count needs more, and beyond it libraries below us overflow."""
Positive = Annotated[int, Meta(ge=1, le=COUNT_MAX)]

AGE_MAX: Final = Seconds.parse("3650d")
"""The longest life of an answer and the longest window of a quota: ten years are for ever to both."""
WAIT_MIN: Final = Seconds.parse("10ms")
"""The shortest wait for a peer: a healthy one on a busy machine is easily some milliseconds late."""
WAIT_MAX: Final = Seconds.parse("1d")
"""The longest wait for anyone: what waits longer holds its connection for nobody."""
DEADLINE_MIN: Final = Seconds.parse("1ms")
"""The shortest deadline of a request: the event loop's timers count whole milliseconds."""
SIZE_MIN: Final = Size(1)
"""The smallest size of anything: what may be nothing at all is left out."""
SIZE_MAX: Final = Size.parse("1TiB")
"""The largest size of anything: more than a machine's memory is a slip of the unit."""


def seconds(written: str) -> Seconds:
    """A field whose default is this duration."""
    default: Seconds = field(default_factory=partial(Seconds.parse, written))
    return default


def size(written: str) -> Size:
    """A field whose default is this size."""
    default: Size = field(default_factory=partial(Size.parse, written))
    return default


def within(least: Seconds | Size, most: Seconds | Size, **named: Seconds | Size) -> Iterator[Fault]:
    """Which of these are not."""
    for name, value in named.items():
        if value < least:
            yield name, f"is {value}; it must be at least {least}"
        elif value > most:
            yield name, f"is {value}; it must be at most {most}"


def repeated(key: str, names: Iterable[str]) -> Iterator[Fault]:
    """Which of the names that are a key's value are there more than once."""
    for name, times in Counter(names).items():
        if times > 1:
            yield key, f"names {name} {times} times"
