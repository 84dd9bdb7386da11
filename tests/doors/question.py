"""A question that every door can be asked, and what came of it in words that no wire has.

Rule of this file: whatever two doors say differently without meaning it (header fields, trailing metadata, members of
a map) is one field of ``Outcome``, so that a rule is written once and compared at every door.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

from msgspec import Struct

SECONDS: Final = 60.0
CODES: Final = MappingProxyType({"FP32": "f", "FP64": "d", "INT32": "i"})
UPSTREAM: Final = "(upstream's own)"
"""The problem of a refusal that is none of the gateway's."""
CLOSED: Final = "(closed)"
"""The problem where a door answers nobody any more."""
NUMBERS: Final = MappingProxyType(
    {
        "malformed": (400, "INVALID_ARGUMENT"),
        "invalid": (400, "INVALID_ARGUMENT"),
        "unauthenticated": (401, "UNAUTHENTICATED"),
        "not-found": (404, "NOT_FOUND"),
        "too-large": (413, "RESOURCE_EXHAUSTED"),
        "deadly": (422, "FAILED_PRECONDITION"),
        "quota": (429, "RESOURCE_EXHAUSTED"),
        "unavailable": (503, "UNAVAILABLE"),
        "model-failed": (503, "INTERNAL"),
        "overloaded": (503, "RESOURCE_EXHAUSTED"),
        "deadline": (503, "DEADLINE_EXCEEDED"),
        "not-cached": (504, "FAILED_PRECONDITION"),
    }
)
"""Each problem's number over HTTP and MessagePack-RPC, and over gRPC."""
NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Ask(Struct, frozen=True):
    """One inference: ``rows`` of the input ``name``, which is left out if there are none."""

    rows: tuple[tuple[float, ...], ...] = ((1.5, -2.0),)
    route: str = "r"
    name: str = "x"
    datatype: str = "FP32"
    version: str = ""
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = NOTHING
    key: str = ""
    cache_control: str = ""
    seconds: float = SECONDS

    @property
    def shape(self) -> list[int]:
        return [len(self.rows), len(self.rows[0])]

    @property
    def values(self) -> list[float]:
        return [value for row in self.rows for value in row]

    @property
    def data(self) -> bytes:
        return struct.pack(f"<{len(self.values)}{CODES[self.datatype]}", *self.values)

    @property
    def nested(self) -> list[list[float]]:
        return [list(row) for row in self.rows]


class Outcome(Struct, frozen=True):
    """What came of it. ``problem``: the slug, or one of the two above; "" for an answer, which has ``values``.

    ``aged``: whether it says how old it is. ``quota``: the name and what is left, as in ``route:r r=1``.
    """

    problem: str = ""
    values: tuple[float, ...] = ()
    cache: str = ""
    reason: str = ""
    tier: str = ""
    rows: int = 0
    escalated: int = 0
    steps: tuple[str, ...] = ()
    degraded: bool = False
    aged: bool = False
    stored: bool = False
    retry_after: int | None = None
    quota: str = ""
    detail: str = ""
    brownout: int = 0

    @property
    def told(self) -> tuple[object, ...]:
        """All that it was made of."""
        made = (self.cache, self.reason, self.tier, self.rows, self.escalated, self.steps)
        return (self.problem, *made, self.degraded, self.aged, self.stored)


class Caller(Protocol):
    """A client of one door."""

    async def ask(self, asked: Ask) -> Outcome: ...

    async def ready(self) -> bool:
        """What the door says of the gateway's readiness."""
        ...

    async def close(self) -> None: ...


class Doors(Struct, frozen=True):
    """Where a gateway is: ``http`` HOST:PORT, the others as it tells."""

    http: str
    grpc: str
    rpc: str


def of_fields(told: Mapping[str, str], **known: Any) -> Outcome:
    """What header fields, or trailing metadata, say."""
    story = dict(members(told.get("tailrace-provenance", "")))
    retry_after = told.get("retry-after")
    return Outcome(
        cache=story.get("cache", ""),
        reason=story.get("reason", ""),
        tier=story.get("tier", ""),
        rows=int(story.get("rows", 0)),
        escalated=int(story.get("escalated", 0)),
        steps=tuple(story.get("steps", "").strip("()").split()),
        degraded="degraded" in story,
        aged="age" in story and told.get("age") == story["age"],
        brownout=int(story.get("brownout", 0)),
        stored="; stored" in told.get("cache-status", ""),
        retry_after=None if retry_after is None else int(retry_after),
        quota=quota(told.get("ratelimit", ""), told.get("ratelimit-policy", "")),
        **known,
    )


def members(text: str) -> Iterator[tuple[str, str]]:
    for each in re.findall(r"(?:[^,\"]|\"[^\"]*\")+", text):
        name, _, value = each.strip().partition("=")
        yield name, value.strip('"')


def quota(told: str, policy: str) -> str:
    """What is left, of a quota whose policy is told beside it."""
    if not told and not policy:
        return ""
    found = re.fullmatch(r'"([^"]+)";(r=[0-9]+);t=[0-9]+', told)
    assert found is not None, told
    assert re.fullmatch(rf'"{re.escape(found[1])}";q=[0-9]+;w=3600', policy), policy
    return f"{found[1]} {found[2]}"


def unpacked(data: bytes) -> tuple[float, ...]:
    """FP32, as bytes."""
    return struct.unpack(f"<{len(data) // 4}f", data)


def doubled(rows: tuple[tuple[float, ...], ...]) -> tuple[float, ...]:
    """What EchoTriton makes of it."""
    return tuple(2 * value for row in rows for value in row)
