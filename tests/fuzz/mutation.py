"""Bytes made of other bytes: the ways in which a message goes wrong.

Rule of this file: of formats it knows what MessagePack's heads, JSON's brackets and lengths look like; chance is an
argument.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

BYTES_MAX = 64 * 1024
HEADS = bytes([0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, *range(0xC0, 0xE0), 0xFF]) + b'[]{}":,\\'
INTERESTING = [0, 1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


def mutated(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """One of the seeds after one to eight changes."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 1, 2, 4, 8))):
        chance.choice(WAYS)(data, seeds, chance)
        del data[BYTES_MAX:]
    return bytes(data)


def _at(data: bytearray, chance: random.Random) -> int:
    return chance.randrange(len(data) + 1)


def _span(data: bytearray, chance: random.Random) -> slice:
    start = _at(data, chance)
    return slice(start, min(len(data), start + chance.choice((1, 2, 4, 8, 32, 256))))


def flip(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    """One bit."""
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def replace(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    """A byte by one that begins something."""
    if data:
        data[chance.randrange(len(data))] = chance.choice(HEADS)


def number(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    """A few bytes by a number at a border."""
    size = chance.choice((1, 2, 4, 8))
    written = (chance.choice(INTERESTING) % 256**size).to_bytes(size, chance.choice(("big", "little")))
    at = _at(data, chance)
    data[at : at + size] = written


def cut(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    """The end away."""
    del data[_at(data, chance) :]


def drop(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    """A piece away."""
    del data[_span(data, chance)]


def double(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    """A piece twice, or many times."""
    piece = data[_span(data, chance)]
    at = _at(data, chance)
    data[at:at] = piece * chance.choice((1, 1, 2, 50))


def splice(data: bytearray, seeds: Sequence[bytes], chance: random.Random) -> None:
    """A piece of another seed."""
    other = bytearray(chance.choice(seeds))
    at = _at(data, chance)
    data[at : at + chance.choice((0, 8, 64))] = other[_span(other, chance)]


def nest(data: bytearray, _: Sequence[bytes], chance: random.Random) -> None:
    """Something that opens, often."""
    opening = chance.choice((b"\x91", b"\x81\xa1a", b"[", b'{"a":', b"\xdc\x00\x01"))
    at = _at(data, chance)
    data[at:at] = opening * chance.choice((1, 3, 14, 40, 2000))


WAYS: Sequence[Callable[[bytearray, Sequence[bytes], random.Random], None]] = (
    flip, flip, replace, replace, number, cut, drop, double, splice, nest,
)  # fmt: skip


LEAVES = (
    None, True, False, 0, -1, 1, 4, 255, 2**31, 2**63, -(2**63), 2**64 - 1, 1.5, 1e39, float("nan"), float("inf"), "",
    "x", "y", "FP32", "BYTES", "INT8", "<f4", "r", b"", b"\0" * 16, b"\xff\xff\xff\x7f", [], {}, [[]],
    [1, 2, 3, 4], [1, 4],
)  # fmt: skip
KEYS = ("inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "id", "nd", "type", "kind", "x")
CHANGED_MAX = 3


def grafted(trees: Sequence[object], chance: random.Random) -> object:
    """One of the trees with one to three of its values changed for others: it stays well formed."""
    tree = copy.deepcopy(chance.choice(trees))
    for _ in range(chance.randrange(1, CHANGED_MAX + 1)):
        places = list(_places(tree))
        if not places:
            break
        holder, key = chance.choice(places)
        way = chance.randrange(6)
        if way == 0:
            del holder[key]
        elif way == 1 and isinstance(holder, dict):
            holder[chance.choice(KEYS)] = copy.deepcopy(chance.choice(LEAVES))
        elif way == 2:
            holder[key] = [holder[key]] * chance.choice((0, 1, 2, 300))
        elif way == 3:
            other, where = chance.choice(list(_places(chance.choice(trees))) or [(holder, key)])
            holder[key] = copy.deepcopy(other[where])
        else:
            holder[key] = copy.deepcopy(chance.choice(LEAVES))
    return tree


def _places(tree: object) -> Iterator[tuple[Any, Any]]:
    """Every place in a tree where a value is, as its holder and its key or index."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield tree, key
            yield from _places(value)
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield tree, index
            yield from _places(value)
