"""How each axis grows: what is started and filled for a size, and what is asked then.

Rule of this file: the first size stays up beside the one that is measured, so that a slow minute of the machine
hits both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from benchmarks import measure
from benchmarks.client import Picking
from benchmarks.growth.axes import ENTRY_BYTES_ASSUMED, KEY, ROUTE, Axis, config
from benchmarks.growth.lab import Comparison, Lab, Stage
from benchmarks.questions import DIGITS, question
from benchmarks.scenarios import MODEL, SMALL

PAYLOAD_BYTES: Final = 182
"""Of a small entry: the answer's body, JSON part and tensor."""
ENTRIES_TOLD_MIN: Final = 10_000
"""With fewer entries, what else a process takes meanwhile is more than they are."""
TRACE: Final = f"x-request-number: {DIGITS}\r\n"


class Point(Struct, frozen=True):
    """One size of one axis. ``beyond_payload``: bytes of memory for each entry, less PAYLOAD_BYTES;
    ``longest_fill``: the longest wait of a caller while it was filled, in µs. None where it was not measured."""

    axis: str
    size: int
    comparison: Comparison
    beyond_payload: float | None = None
    longest_fill: float | None = None


Said = Callable[[str], None]
Sizes = tuple[int, ...]


def entries(lab: Lab, sizes: Sizes, said: Said) -> Iterator[Point]:
    """One gateway of the first size, and one that is filled on and on."""
    text = config(lab.upstream.url, cache_bytes=max(2**28, 2 * ENTRY_BYTES_ASSUMED * sizes[-1]))
    with lab.gateway(text) as first, lab.gateway(text) as other:
        base = Stage(*first, Picking("next"))
        grown = Stage(*other, Picking("next"))
        lab.fill(base, sizes[0], sizes[0])
        drawn = replace(base, picking=Picking("some", count=sizes[0]))
        filled, empty = 0, measure.resident_bytes(grown.group)
        for size in sizes:
            said(f"filling to {size:,} entries")
            more = Stage(*other, Picking("next", first=filled))
            longest = lab.fill(more, size - filled, size - filled)
            filled = size
            held = (measure.resident_bytes(grown.group) - empty) / size - PAYLOAD_BYTES
            said(f"asking for {size:,} entries")
            comparison = lab.compare(drawn, replace(grown, picking=Picking("some", count=size)))
            yield Point("entries", size, comparison, held if size >= ENTRIES_TOLD_MIN else None, longest)


def routes(lab: Lab, sizes: Sizes, said: Said) -> Iterator[Point]:
    yield from _many(lab, "routes", sizes, said, _routes_stage)


def callers(lab: Lab, sizes: Sizes, said: Said) -> Iterator[Point]:
    yield from _many(lab, "callers", sizes, said, _callers_stage)


def heads(lab: Lab, sizes: Sizes, said: Said) -> Iterator[Point]:
    yield from _one(lab, "heads", sizes, said, lambda stage, n: replace(stage, picking=Picking(heads=n), fields=TRACE))


def connections(lab: Lab, sizes: Sizes, said: Said) -> Iterator[Point]:
    yield from _one(lab, "connections", sizes, said, lambda stage, n: replace(stage, connections=n))


def body(lab: Lab, sizes: Sizes, said: Said) -> Iterator[Point]:
    yield from _one(lab, "body", sizes, said, lambda stage, n: replace(stage, asked=question(n, 1)))


GROW: Final[Mapping[str, Callable[[Lab, Sizes, Said], Iterator[Point]]]] = {
    "entries": entries,
    "routes": routes,
    "callers": callers,
    "heads": heads,
    "connections": connections,
    "body": body,
}


def points(lab: Lab, axis: Axis, sizes: Sizes, said: Said) -> Iterator[Point]:
    """All sizes of an axis, each beside the first. Raises GrowthFailed."""
    yield from GROW[axis.name](lab, sizes, said)


def _routes_stage(lab: Lab, server: tuple[int, int], size: int) -> Stage:
    stage = Stage(*server, Picking(heads=size), model=ROUTE)
    lab.fill(stage, size, size)
    return stage


def _callers_stage(lab: Lab, server: tuple[int, int], size: int) -> Stage:
    stage = Stage(*server, Picking(heads=size), fields=f"X-API-Key: {KEY}\r\n")
    lab.fill(stage, size, 1)
    return stage


def _many(
    lab: Lab, axis: str, sizes: Sizes, said: Said, prepare: Callable[[Lab, tuple[int, int], int], Stage]
) -> Iterator[Point]:
    """A gateway with a configuration of its own for each size."""
    with ExitStack() as kept:
        first: Stage | None = None
        for size in sizes:
            said(f"starting a gateway with {size:,} {axis}")
            with ExitStack() as stack:
                text = config(lab.upstream.url, **{axis: size})
                server = (kept if first is None else stack).enter_context(lab.gateway(text))
                stage = prepare(lab, server, size)
                first = first or stage
                said(f"asking {size:,} {axis}")
                yield Point(axis, size, lab.compare(first, stage))


def _one(lab: Lab, axis: str, sizes: Sizes, said: Said, vary: Callable[[Stage, int], Stage]) -> Iterator[Point]:
    """One gateway that is asked in another way for each size."""
    with lab.gateway(config(lab.upstream.url)) as server:
        stage = Stage(*server, Picking(), question(SMALL, 1), MODEL)
        for size in sizes:
            said(f"asking with {size:,} {axis}")
            varied = vary(stage, size)
            lab.fill(varied, varied.connections, 0 if axis != "body" and size != sizes[0] else 1)
            yield Point(axis, size, lab.compare(vary(stage, sizes[0]), varied))
