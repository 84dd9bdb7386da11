"""Where one value of MessagePack ends, in whatever pieces its bytes come.

Rule of this file: no I/O, no clock, and nothing is made of a value: it is read head by head, and its own bytes are
passed over by their length. The reading is a loop with a bounded list of what is still to come at each depth: hostile
nesting is refused, never recursed into. What will be too large is refused when it says so, not when it has come.

A run of values of one size (the numbers of an array) is passed over as one step, and steps are bounded, so that a
value costs a bounded time however many it holds; ``walk`` ends after as many as it is given, so that others get a turn.
What is beside strings and bytes has a bound of its own: all later readers walk it in C, in one go, and hold Python's
lock meanwhile.
"""

from __future__ import annotations

from typing import Final

from gateway.problem import Problem, Refused, malformed, too_large

DEPTH_MAX: Final = 32
"""Arrays and maps in each other: a tensor of the highest rank is nested twelve deep, five below the message."""

STEPS_MAX: Final = 2**19
"""Heads, or runs of heads, of one value: each takes about half a microsecond. As many BYTES elements as one message
may have are half of it."""

_RUN_MAX: Final = 128
_RUN_MIN: Final = 8
_PIECE_BYTES: Final = 2**20

_OPEN, _SIZED, _BAD = -1, -2, -3


def _bytes_after(code: int) -> int:
    """How many bytes follow a value's first one, or ``_OPEN`` for arrays and maps, ``_SIZED`` for what says its length,
    ``_BAD`` for what is no value's."""
    if code <= 0x7F or code >= 0xE0 or code in (0xC0, 0xC2, 0xC3):
        return 0
    if code <= 0x9F or code >= 0xDC:
        return _OPEN
    if code <= 0xBF:
        return code & 0x1F
    fixed = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
    fixed |= {0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}
    return fixed.get(code, _BAD if code == 0xC1 else _SIZED)


_AFTER: Final = tuple(_bytes_after(code) for code in range(256))
_SINGLE: Final = bytes(code for code in range(256) if _AFTER[code] == 0)
_LENGTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Bytes of the length of bytes, of an ext (a byte for its type follows) and of a string."""
_EXTS: Final = frozenset({0xC7, 0xC8, 0xC9})


class Extent:
    """One value after the other. ``bytes_max`` bounds one value, ``plain_bytes_max`` what it holds beside strings and
    bytes."""

    __slots__ = ("_bytes_max", "_plain_bytes_max", "_skip", "_strings", "left", "levels", "size", "steps", "whole")

    def __init__(self, bytes_max: int, plain_bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._plain_bytes_max = plain_bytes_max
        self.begin()

    def begin(self) -> None:
        """What comes now is another value."""
        self.left = 1
        """Values still to come at this depth,"""
        self.levels: list[int] = []
        """and at those above it."""
        self.size = 0
        """Bytes looked at."""
        self.steps = 0
        self.whole = False
        self._skip = 0  # bytes still to come of a string
        self._strings = 0  # bytes of all strings, also of those to come

    def walk(self, data: bytes, at: int, steps_max: int) -> int:  # noqa: PLR0915 - see below
        """Look at what begins at ``at``; how far it was looked at, which is less than there is if the value is
        ``whole``, if a head is cut, and after ``steps_max`` steps. Raises Refused for what is no value, or too large.
        """
        # One machine, whose state must stay in local names: it is what a message's time goes into.
        left, levels, skip, steps, strings = self.left, self.levels, self._skip, self.steps, self._strings
        after_of, begin, end, steps_end = _AFTER, at - self.size, len(data), steps + steps_max
        while at < end and steps < steps_end:
            if skip:
                part = min(skip, end - at)
                at += part
                skip -= part
                if skip:
                    break
            else:
                code = data[at]
                after = after_of[code]
                steps += 1
                if after == _BAD:
                    raise Refused(_no_value())
                if steps > STEPS_MAX:
                    raise Refused(_too_many())
                if after >= 0:
                    width = after + 1
                    after_it = at + width
                    if left > _RUN_MIN and after_it < end and after_of[data[after_it]] == after:
                        count = _run(data, at, width, min(left, _RUN_MAX))
                        left -= count - 1
                        at += count * width
                    else:
                        at = after_it
                elif after == _OPEN:
                    head = 1 if code < 0xA0 else 3 if code in (0xDC, 0xDE) else 5
                    if at + head > end:
                        break
                    count = code & 0x0F if head == 1 else int.from_bytes(data[at + 1 : at + head], "big")
                    at += head
                    if count:
                        count += count * (code < 0x90 or code >= 0xDE)  # a map has a key for each value
                        if len(levels) >= DEPTH_MAX:
                            raise Refused(malformed(f"A message is nested deeper than {DEPTH_MAX} levels.", "depth"))
                        if at - begin + count > self._bytes_max:
                            raise Refused(self._too_large())
                        levels.append(left - 1)
                        left = count
                        continue
                else:
                    head = 1 + _LENGTHS[code]
                    if at + head > end:
                        break
                    length = int.from_bytes(data[at + 1 : at + head], "big")
                    strings += length
                    at += head + length + (code in _EXTS)
                    if at - begin > self._bytes_max:
                        raise Refused(self._too_large())
                if at > end:
                    skip, at = at - end, end
                    break
            left -= 1
            while left == 0 and levels:
                left = levels.pop()
            if left == 0:
                self.whole = True
                break
        self.left, self._skip, self.steps, self._strings, self.size = left, skip, steps, strings, at - begin
        if self.size + skip > self._bytes_max:
            raise Refused(self._too_large())
        if self.size + skip - strings > self._plain_bytes_max:
            raise Refused(_too_many())
        return at

    def _too_large(self) -> Problem:
        return too_large(f"A message has more than {self._bytes_max} bytes.", self._bytes_max)


def check_plain(value: bytes | memoryview, plain_bytes_max: int) -> None:
    """Raises Refused if ``value``, of any size, holds more than this beside strings and bytes; what is no value at all
    is for its reader to say."""
    size = len(value)
    if size <= plain_bytes_max:
        return
    extent, at = Extent(size, plain_bytes_max), 0
    while at < size and not extent.whole:
        before = at
        at += extent.walk(bytes(value[at : at + _PIECE_BYTES]), 0, STEPS_MAX)
        if at == before:
            return  # a head that is cut


def _run(data: bytes, at: int, width: int, count_max: int) -> int:
    """How many values of this width begin one after the other at ``at``: at least the one there."""
    if width == 1:
        run, codes = data[at : at + count_max], _SINGLE
    else:
        run, codes = data[at : at + count_max * width : width], data[at : at + 1]
    return len(run) - len(run.lstrip(codes))


def _too_many() -> Problem:
    return too_large("A message has too many values; send tensors as bytes.")


def _no_value() -> Problem:
    return malformed("The stream is not valid MessagePack: a value begins with 0xc1.", "msgpack")
