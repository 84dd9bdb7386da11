"""The scenarios as data: what is asked, how, and which servers are asked the same.

Rule of this file: pure values; it starts nothing and measures nothing. The model of every scenario is
``bench_fp32``, whose answer is the first ten values of its input, so that a right answer can be told
from a right answer to somebody else's question.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final

from msgspec import Struct

MODEL: Final = "bench_fp32"
PATH: Final = f"/v2/models/{MODEL}/infer"
ANSWER_VALUES: Final = 10
CACHE_BYTES_MAX: Final = 256 * 2**20
"""Every bounded cache of every peer gets this much memory."""
SEEDS_MAX: Final = 2**24


class Kind(Enum):
    HIT = "hit"
    """One input again and again: after the first it must come from the cache."""
    PASSTHROUGH = "passthrough"
    """No cache: every request reaches Triton."""
    MISS = "miss"
    """No input comes twice: a cache can only cost."""


class Scenario(Struct, frozen=True):
    name: str
    kind: Kind
    values: int
    """FP32 values in the one input row; the body is four times as many bytes and a little JSON."""
    peers: tuple[str, ...]
    """The first one is Tailrace; the others are compared with it."""


SMALL, MEDIUM, LARGE = 64, 4_096, 37_632  # 0.4 KB, 16 KB, 150 KB; the last is an image of 3 x 112 x 112
HIT_PEERS: Final = ("tailrace", "nginx-cache", "nginx-digest", "triton-cache", "aiohttp", "triton")
LARGE_HIT_PEERS: Final = ("tailrace", "nginx-digest", "triton-cache", "aiohttp", "triton")
"""nginx's proxy_cache finds no entry whose key is longer than 64 KB (the harness fails when it is asked to)."""
PROXY_PEERS: Final = ("tailrace-pass", "nginx-proxy", "triton")
MISS_PEERS: Final = ("tailrace", "tailrace-pass", "nginx-cache", "triton-cache", "triton")

SCENARIOS: Final = (
    Scenario("hit-0.4k", Kind.HIT, SMALL, HIT_PEERS),
    Scenario("hit-16k", Kind.HIT, MEDIUM, HIT_PEERS),
    Scenario("hit-150k", Kind.HIT, LARGE, LARGE_HIT_PEERS),
    Scenario("passthrough-0.4k", Kind.PASSTHROUGH, SMALL, PROXY_PEERS),
    Scenario("passthrough-150k", Kind.PASSTHROUGH, LARGE, PROXY_PEERS),
    Scenario("miss-0.4k", Kind.MISS, SMALL, MISS_PEERS),
)

TITLES: Final = {
    "tailrace": "Tailrace, cache on",
    "tailrace-pass": "Tailrace, pass-through",
    "nginx-cache": "nginx proxy_cache, body in the key",
    "nginx-digest": "nginx proxy_cache, MD5 of the body in the key",
    "nginx-proxy": "nginx proxy",
    "triton-cache": "Triton, its own response cache",
    "triton": "Triton, asked directly",
    "aiohttp": "aiohttp handler with a dict",
}


class UnknownScenario(ValueError):
    """No scenario has this name or begins with it."""


def select(wanted: Iterable[str], scenarios: Sequence[Scenario] = SCENARIOS) -> tuple[Scenario, ...]:
    """The scenarios named, or of the kinds named (``hit``), in their own order; all when none is named.

    Raises UnknownScenario.
    """
    names = list(wanted)
    for name in names:
        if not any(name in (scenario.name, scenario.kind.value) for scenario in scenarios):
            known = ", ".join(scenario.name for scenario in scenarios)
            raise UnknownScenario(f"no scenario {name!r}; there are {known}, and hit, passthrough, miss for all of one")
    return tuple(s for s in scenarios if not names or s.name in names or s.kind.value in names)


class Question(Struct, frozen=True):
    """One infer request in Triton's binary form, and the bytes of the only right answer."""

    body: bytes
    json_bytes: int
    """Length of the JSON part: the header Inference-Header-Content-Length."""
    answer: bytes


def question(values: int, seed: int, serial: int = 0) -> Question:
    """The ``serial``-th input of ``seed``: another seed or serial is another input *and* another answer.

    The first two values carry serial and seed as the 24 low bits of a float between 0.5 and 2, which
    is what miss.lua does too, so that its inputs are as finite as anybody's.
    """
    if not (0 <= seed < SEEDS_MAX and 0 <= serial < SEEDS_MAX and values >= ANSWER_VALUES):
        raise ValueError(f"seed {seed}, serial {serial}, values {values}: out of range")
    rest = [((index * 37) % 1000) / 500.0 - 1.0 for index in range(2, values)]
    tensor = struct.pack("<2I", 0x3F000000 | serial, 0x3F000000 | seed) + struct.pack(f"<{values - 2}f", *rest)
    head = {
        "inputs": [
            {
                "name": "x",
                "shape": [1, values],
                "datatype": "FP32",
                "parameters": {"binary_data_size": len(tensor)},
            }
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    return Question(text + tensor, len(text), tensor[: 4 * ANSWER_VALUES])


class Expect(Enum):
    """What must be true of every request under load."""

    HITS = "hits"
    """Answered from the peer's cache: nothing reaches a model."""
    FORWARDS = "forwards"
    """Computed by Triton, each one."""


CACHING: Final = frozenset({"tailrace", "nginx-cache", "nginx-digest", "triton-cache", "aiohttp"})


def expectation(kind: Kind, peer: str) -> Expect:
    """A peer with a cache must hit when one input is repeated; everything else is computed."""
    return Expect.HITS if kind is Kind.HIT and peer in CACHING else Expect.FORWARDS
