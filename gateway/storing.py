"""Whether an HTTP answer may be kept for others, for how long, and what of a request it depends on.

Rule of this file: pure. The operator says how long answers of an endpoint are true; what the server itself says of one
can only shorten that. In doubt nothing is kept. RFC 9111 sections 3, 4.1 and 5.2.2, as a shared cache reads them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from email.utils import parsedate_to_datetime
from typing import Final

import msgspec

from gateway.codec.http import delta_seconds, directives_in
from tiers.backends.call import Reply

_FORBID: Final = frozenset({"no-store", "private", "no-cache"})
_NEVER_STALE: Final = frozenset({"must-revalidate", "proxy-revalidate", "s-maxage"})
OURS: Final = frozenset({"via", "x-forwarded-for", "x-real-ip"})
"""Fields in which the gateway says who asks: an answer that depends on one is for that one alone."""
FORWARDED: Final = "forwarded"
"""It says that too, where a trusted proxy has; and by which name the server was asked, so it is in every key."""


class Life(msgspec.Struct, frozen=True, gc=False):
    """Seconds: how old an answer was when it came, and how long after it was made it is fresh, then stale."""

    age: float
    ttl: float
    max_stale: float


def life_of(reply: Reply, ttl: float, max_stale: float) -> Life | None:
    """How long an answer may be kept where the operator says ``ttl`` and ``max_stale``; None: not at all.

    Only a whole 200 that says where it ends, hands out no cookie, and is not for one caller alone.
    """
    if reply.status != 200 or not reply.framed or varying(reply.headers) is None:
        return None
    if any(name.lower() == "set-cookie" for name, _ in reply.headers):
        return None
    said: dict[str, float] = {}
    for name, value in directives_in(", ".join(_values(reply.headers, "cache-control"))):
        said[name] = min(said.get(name, math.inf), delta_seconds(value or "") or 0.0)  # of two the shorter
    if not _FORBID.isdisjoint(said):
        return None
    age = max((delta_seconds(value) or 0.0 for value in _values(reply.headers, "age")), default=0.0)
    for name in ("s-maxage", "max-age"):
        if name in said:
            ttl = min(ttl, said[name])
            break
    else:
        ttl = min([ttl, *_expiries(reply)])
    if age >= ttl:
        return None
    return Life(age, ttl, 0.0 if not _NEVER_STALE.isdisjoint(said) else max_stale)


def varying(fields: Iterable[tuple[str, str]]) -> frozenset[str] | None:
    """The request fields, in lower case, that an answer depends on; None where no later request can be held against
    that: ``*``, and what the gateway writes of who asks."""
    named = frozenset(
        name.strip(" \t").lower() for value in _values(fields, "vary") for name in value.split(",") if name.strip(" \t")
    )
    return None if "*" in named or not named.isdisjoint(OURS | {FORWARDED}) else named


def _values(fields: Iterable[tuple[str, str]], wanted: str) -> list[str]:
    return [value for name, value in fields if name.lower() == wanted]


def _expiries(reply: Reply) -> Iterator[float]:
    """Seconds that Expires gives it, counted from its Date; none for a date that is none (section 5.3)."""
    made = next(iter(_values(reply.headers, "date")), None)
    for value in _values(reply.headers, "expires"):
        try:
            until = parsedate_to_datetime(value).timestamp()
            yield 0.0 if made is None else max(0.0, until - parsedate_to_datetime(made).timestamp())
        except (ValueError, OverflowError):  # a year or a zone of many digits is the latter
            yield 0.0
