"""A quota, what the limiter says of one, and how both are told to a caller.

Rule of this file: values and their text, no state and no decision (that is ``ratelimit.py``'s). It knows HTTP
as far as three header fields.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

RETRY_AFTER_SECONDS_MAX: Final = 86_400
"""Most that `Retry-After` and ``t`` say, also for a cost that no wait could ever admit."""

NANOSECONDS: Final = 1_000_000_000
"""In a second."""

_PRINTABLE_MIN, _PRINTABLE_MAX = " ", "~"


class Quota(msgspec.Struct, frozen=True):
    """``rate`` requests every ``per`` seconds, ``burst`` at once; ``name`` is said to the caller.

    Raises ValueError when a number is not above 0 (``burst`` not at least 1), or when ``name`` is
    empty or not printable ASCII (RFC 9651 strings hold nothing else). Quotas come from
    configuration: their names are few.
    """

    rate: float
    per: float
    burst: int
    name: str
    interval_ns: int = 0
    """The emission interval T in nanoseconds, rounded up (so never too generous); always computed."""
    label: str = ""
    """The name as `RateLimit` has it (an RFC 9651 string); always computed."""
    policy: str = ""
    """The value of `RateLimit-Policy`; always computed."""
    lines: bytes = b""
    """Both fields as lines of a head, with places for what is left and for ``t``; always computed."""

    def __post_init__(self) -> None:
        if not (0.0 < self.rate < math.inf and 0.0 < self.per < math.inf and self.burst >= 1):
            raise ValueError("a quota needs rate and per above 0 and finite, and a burst of at least 1")
        if not self.name or not all(_PRINTABLE_MIN <= char <= _PRINTABLE_MAX for char in self.name):
            raise ValueError("a quota's name is printable ASCII and not empty")
        # Round first: 1 / 3 * 3 style dust must not add a nanosecond to an exact interval.
        exact = self.per * NANOSECONDS / self.rate
        nearest = round(exact)
        interval = max(1, nearest if math.isclose(exact, nearest, rel_tol=1e-12) else math.ceil(exact))
        msgspec.structs.force_setattr(self, "interval_ns", interval)
        msgspec.structs.force_setattr(self, "label", _string(self.name))
        msgspec.structs.force_setattr(self, "policy", _policy(self))
        label, policy = (text.encode().replace(b"%", b"%%") for text in (self.label, self.policy))
        lines = b"RateLimit: %b;r=%%d;t=%%d\r\nRateLimit-Policy: %b\r\n" % (label, policy)
        msgspec.structs.force_setattr(self, "lines", lines)


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """One quota's answer.

    ``remaining``: requests of cost 1 that would pass now. ``reset``: seconds until the whole burst
    is there again. ``retry_after``: seconds until this cost would pass; 0 when it was allowed,
    infinity when it is larger than the burst.
    """

    allowed: bool
    remaining: int
    reset: float
    retry_after: float
    quota: Quota


def retry_after_value(seconds: float) -> str:
    """`Retry-After` as delay-seconds (RFC 9110 section 10.2.3): whole, rounded up, at least 1."""
    return str(max(1, _ceiling(seconds)))


def ratelimit_value(verdict: Verdict) -> str:
    """`RateLimit` (draft-ietf-httpapi-ratelimit-headers-10): ``"name";r=remaining;t=seconds``.

    ``t`` of a refusal is the same moment as `Retry-After`, as the draft asks; else the moment the
    whole burst is back.
    """
    until = str(_ceiling(verdict.reset)) if verdict.allowed else retry_after_value(verdict.retry_after)
    return f"{verdict.quota.label};r={verdict.remaining};t={until}"


def ratelimit_lines(verdict: Verdict) -> bytes:
    """`RateLimit` and `RateLimit-Policy` of a request that was allowed, as lines of a head."""
    return verdict.quota.lines % (verdict.remaining, _ceiling(verdict.reset))


def _policy(quota: Quota) -> str:
    """`RateLimit-Policy` of the same draft: ``"name";q=requests;w=seconds``.

    Both are whole numbers there, so a window under a second is told as the whole seconds above it,
    and a rate under one request a window as one request in a longer window.
    """
    window = max(1, math.ceil(quota.per))
    requests = math.floor(quota.rate * window / quota.per)
    if requests < 1:
        requests, window = 1, math.ceil(quota.per / quota.rate)
    return f"{quota.label};q={requests};w={window}"


def _ceiling(seconds: float) -> int:
    return RETRY_AFTER_SECONDS_MAX if seconds >= RETRY_AFTER_SECONDS_MAX else math.ceil(seconds)


def _string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
