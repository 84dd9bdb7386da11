"""The scenarios as data: what is asked, how, before which upstream, and which servers are asked the same.

Rule of this file: pure values; it starts nothing and measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final, Literal

from msgspec import Struct

MODEL: Final = "bench_fp32"
"""Its answer is the first ten values of its input: almost no work, so that the servers before it are seen."""
WORK_MODEL: Final = "bench_work"
"""The same answer after real work of some milliseconds, as the demo's large model does."""
CACHE_BYTES_MAX: Final = 256 * 2**20
"""Every bounded cache of every peer gets this much memory."""


class Kind(Enum):
    HIT = "hit"
    """One input again and again: after the first it must come from the cache."""
    PASSTHROUGH = "passthrough"
    """No route and no cache: every request reaches the upstream."""
    MISS = "miss"
    """A route with everything but a cache: every request is read, checked and computed."""
    UNIQUE = "unique"
    """No input comes twice: a cache can only cost."""
    MIXED = "mixed"
    """Known inputs by Zipf's law, and a share that is new."""
    HEADS = "heads"
    """Hits, each with a head that was not seen for long (a trace's id): more heads than anyone remembers."""
    QUOTA = "quota"
    """Hits at far more than a caller's quota: nearly all are refused, and none that is due."""


class Scenario(Struct, frozen=True):
    name: str
    kind: Kind
    values: int
    """FP32 values in the one input row; the body is four times as many bytes and a little JSON."""
    peers: tuple[str, ...]
    """The first one is Tailrace; the others are compared with it."""
    upstream: Literal["triton", "static"] = "triton"
    model: str = MODEL
    connections: tuple[int, ...] = (16,)


SMALL, MEDIUM, LARGE = 64, 4_096, 37_632  # 0.4 KB, 16 KB, 150 KB; the last is an image of 3 x 112 x 112

MIXED_HOT: Final = 1_000
"""Inputs that were asked before a mixed run; the k-th is asked with a weight of k^-0.99."""
MIXED_FRESH: Final = 0.2
"""The share of a mixed run that nobody has asked before: 80 % hits, whatever a cache's policy."""
HEADS: Final = 100_000
"""Different heads of a run, in turn: many times what any part of Tailrace or its peers remembers."""
QUOTA_RATE: Final = 1_000
"""Requests a second that the quota scenario's caller may make, and as many at once."""

HIT_PEERS: Final = ("tailrace", "nginx-cache", "nginx-digest", "varnish", "triton-cache", "aiohttp", "triton")
LARGE_HIT_PEERS: Final = ("tailrace", "nginx-digest", "varnish", "triton-cache", "aiohttp", "triton")
"""nginx's proxy_cache finds no entry whose key is longer than 64 KB (the harness fails when it is asked to)."""
CROWD_PEERS: Final = tuple(peer for peer in HIT_PEERS if not peer.startswith("triton"))
"""Asked by a thousand connections, Triton 2.51 leaves some without an answer: it has read and counted their requests
(hundreds with its response cache, now and then some without), nothing is on the way, and nothing comes in 20 s."""
PROXIES: Final = ("nginx-proxy", "haproxy", "aiohttp-client")
FLOORED_PROXIES: Final = ("tailrace-pass", *PROXIES, "floor-pass", "static")
UNIQUE_PEERS: Final = ("tailrace", "tailrace-route", "nginx-cache", "varnish")

SCENARIOS: Final = (
    Scenario("hit-0.4k", Kind.HIT, SMALL, (*HIT_PEERS, "floor"), connections=(1, 16, 64)),
    Scenario("hit-0.4k-crowd", Kind.HIT, SMALL, CROWD_PEERS, connections=(1000,)),
    Scenario("hit-16k", Kind.HIT, MEDIUM, HIT_PEERS, connections=(16, 64)),
    Scenario("hit-150k", Kind.HIT, LARGE, LARGE_HIT_PEERS, connections=(16, 64)),
    Scenario("heads-0.4k", Kind.HEADS, SMALL, ("tailrace", "nginx-cache", "varnish")),
    Scenario("quota-0.4k", Kind.QUOTA, SMALL, ("tailrace-limited", "nginx-limited")),
    Scenario("passthrough-static-0.4k", Kind.PASSTHROUGH, SMALL, FLOORED_PROXIES, "static"),
    Scenario("passthrough-static-150k", Kind.PASSTHROUGH, LARGE, ("tailrace-pass", *PROXIES, "static"), "static"),
    Scenario("passthrough-0.4k", Kind.PASSTHROUGH, SMALL, ("tailrace-pass", *PROXIES, "triton")),
    Scenario("passthrough-150k", Kind.PASSTHROUGH, LARGE, ("tailrace-pass", *PROXIES, "triton")),
    Scenario("miss-static-0.4k", Kind.MISS, SMALL, ("tailrace-route", *PROXIES), "static"),
    Scenario("miss-static-150k", Kind.MISS, LARGE, ("tailrace-route", *PROXIES), "static"),
    Scenario("miss-0.4k", Kind.MISS, SMALL, ("tailrace-route", *PROXIES, "triton")),
    Scenario("unique-static-0.4k", Kind.UNIQUE, SMALL, UNIQUE_PEERS, "static"),
    Scenario("unique-0.4k", Kind.UNIQUE, SMALL, (*UNIQUE_PEERS, "triton-cache", "triton")),
    Scenario("mixed-0.4k", Kind.MIXED, SMALL, ("tailrace", "nginx-cache", "triton-cache", "triton"), model=WORK_MODEL),
)

TITLES: Final = {
    "tailrace": "Tailrace, cache on",
    "tailrace-route": "Tailrace, a route without cache",
    "tailrace-pass": "Tailrace, pass-through",
    "tailrace-limited": "Tailrace, cache on, small quota",
    "nginx-cache": "nginx proxy_cache, body in the key",
    "nginx-digest": "nginx proxy_cache, MD5 of the body in the key",
    "nginx-limited": "nginx proxy_cache, limit_req",
    "nginx-proxy": "nginx proxy",
    "haproxy": "HAProxy",
    "varnish": "Varnish, bodyaccess",
    "aiohttp": "aiohttp handler with a dict",
    "aiohttp-client": "aiohttp handler with its client",
    "floor": "bare uvloop: a digest, a dict, a write",
    "floor-pass": "bare uvloop: bytes handed on",
    "triton-cache": "Triton, its own response cache",
    "triton": "Triton, asked directly",
    "static": "the static upstream, asked directly",
    "mosec": "Mosec",
    "mlserver": "MLServer",
    "bentoml": "BentoML",
    "litserve": "LitServe",
}

CACHING: Final = frozenset(
    {"tailrace", "tailrace-limited", "nginx-cache", "nginx-digest", "nginx-limited", "varnish", "triton-cache"}
    | {"aiohttp", "floor"}
)


class UnknownScenario(ValueError):
    """No scenario has this name or is of this kind."""


def select(wanted: Iterable[str], scenarios: Sequence[Scenario] = SCENARIOS) -> tuple[Scenario, ...]:
    """The scenarios named, or of the kinds named (``hit``), in their own order; all when none is named.

    Raises UnknownScenario.
    """
    names = list(wanted)
    for name in names:
        if not any(name in (scenario.name, scenario.kind.value) for scenario in scenarios):
            known = ", ".join(scenario.name for scenario in scenarios)
            kinds = ", ".join(kind.value for kind in Kind)
            raise UnknownScenario(f"no scenario {name!r}; there are {known}, and the kinds {kinds}")
    return tuple(s for s in scenarios if not names or s.name in names or s.kind.value in names)


class Expect(Enum):
    """What must be true of every request under load."""

    HITS = "hits"
    """Answered from the peer's cache: nothing reaches a model."""
    FORWARDS = "forwards"
    """Computed, each one."""
    FRESH = "fresh"
    """Computed if it was new, else answered from the peer's cache."""


def expectation(kind: Kind, peer: str) -> Expect:
    """A peer with a cache must hit what was asked before; everything else is computed."""
    if peer not in CACHING or kind in (Kind.PASSTHROUGH, Kind.MISS, Kind.UNIQUE):
        return Expect.FORWARDS
    return Expect.FRESH if kind is Kind.MIXED else Expect.HITS
