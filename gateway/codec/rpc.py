"""MessagePack-RPC's frames: a stream of bytes to whole calls, and answers to bytes.

Rule of this file: no I/O, no clock; feed it bytes, get messages, or the one fault after which a stream has no meaning.
The specification (github.com/msgpack-rpc/msgpack-rpc) frames nothing: a message ends where its value does. So a stream
is read head by head, the values' own bytes are passed over by their length, and nothing is made of them. The reading
is a loop with a bounded list of what is still to come at each depth: hostile nesting is refused, never recursed into.
A message that will be too large is refused when it says so, not when it has come.

    [0, msgid, method, params] -> [1, msgid, error, result]        [2, method, params] -> nothing

A run of values of one size (the numbers of an array) is passed over as one step, and steps are bounded, so that a
message costs a bounded time however many values it has.
"""

from __future__ import annotations

from math import floor
from typing import Final

import msgspec
from msgspec import Raw

from gateway.codec import packed, plain
from gateway.problem import Problem, malformed, too_large
from tiers.inference import Provenance
from tiers.v2.message import Malformed

REQUEST: Final = 0
RESPONSE: Final = 1
NOTIFICATION: Final = 2

MSGID_MAX: Final = 2**32 - 1
METHOD_CHARACTERS_MAX: Final = 64
DEPTH_MAX: Final = 32
"""Arrays and maps in each other: a tensor of the highest rank is nested twelve deep, five below the message."""

STEPS_MAX: Final = 2**19
"""Heads, or runs of heads, of one message: each takes about half a microsecond. As many BYTES elements as one message
may have are half of it."""

_PART_BYTES: Final = 64 * 1024
_RUN_MAX: Final = 128
_RUN_MIN: Final = 8
_PREFIX_BYTES: Final = 8
"""What holds a message's type and its id."""

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

_REQUESTS: Final = msgspec.msgpack.Decoder(tuple[int, int, str, Raw])
_NOTIFICATIONS: Final = msgspec.msgpack.Decoder(tuple[int, str, Raw])
_NIL: Final = b"\xc0"


class Call(msgspec.Struct, frozen=True):
    """One call. ``msgid`` None: a notification, which is not answered. ``params`` are a view of the message."""

    msgid: int | None
    method: str
    params: Raw


class Fault(msgspec.Struct, frozen=True):
    """Why a stream means nothing from here on, and the id of the call that it happened in, if that was known."""

    problem: Problem
    msgid: int | None = None


class Frames:
    """The messages of one connection. ``bytes_max`` bounds one message."""

    __slots__ = ("_bytes_max", "_carry", "_left", "_levels", "_parts", "_size", "_skip", "_steps", "_tail", "fault")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.fault: Fault | None = None
        """What the stream ended with."""
        self._carry = b""  # a value's head that was cut
        self._parts: list[bytes] = []  # of the message that is not whole, each of some size
        self._tail = bytearray()  # and what has come since, in pieces of any
        self._size = 0
        self._left = 1  # values still to come at this depth
        self._levels: list[int] = []  # and at those above it
        self._skip = 0  # bytes still to come of a value
        self._steps = 0

    @property
    def held(self) -> int:
        """Bytes of the message that is not whole yet: 0 between messages."""
        return self._size + len(self._carry)

    @property
    def head_is_whole(self) -> bool:
        """Whether all of the message under way is there but its parameters."""
        levels = self._levels
        return (levels[1] == 0) if len(levels) > 1 else (len(levels) == 1 and self._left <= 1)

    def feed(self, data: bytes) -> list[bytes]:  # noqa: PLR0915 - one machine, whose state must stay in local names
        """Whole messages, each in bytes of its own. After a fault (``self.fault``) there are none any more."""
        if self.fault is not None:
            return []
        if self._carry:
            data, self._carry = self._carry + data, b""
        messages: list[bytes] = []
        left, levels, skip, steps = self._left, self._levels, self._skip, self._steps
        after_of = _AFTER
        start, at, end = 0, 0, len(data)
        while at < end:
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
                if after == _BAD or steps > STEPS_MAX or not (levels or _is_array(code)):
                    return self._end(messages, data[start:], _wrong(code, steps))
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
                            return self._end(messages, data[start:], _too_deep())
                        if self._size + at - start + count > self._bytes_max:
                            return self._end(messages, data[start:], self._too_large())
                        levels.append(left - 1)
                        left = count
                        continue
                else:
                    head = 1 + _LENGTHS[code]
                    if at + head > end:
                        break
                    at += head + int.from_bytes(data[at + 1 : at + head], "big") + (code in _EXTS)
                    if self._size + at - start > self._bytes_max:
                        return self._end(messages, data[start:], self._too_large())
                if at > end:
                    skip, at = at - end, end
                    break
            left -= 1
            while left == 0 and levels:
                left = levels.pop()
            if left == 0:
                if self._size + at - start > self._bytes_max:
                    return self._end(messages, data[start:], self._too_large())
                messages.append(self._whole(data[start:at]))
                start, left, steps = at, 1, 0
        self._left, self._levels, self._skip, self._steps = left, levels, skip, steps
        self._carry = data[at:]
        if at > start:
            self._keep(data[start:at])
        if self._size + skip > self._bytes_max:
            return self._end(messages, b"", self._too_large())
        return messages

    def known_id(self) -> int | None:
        """The id of the message under way, if it is a request and its id is there."""
        return known_id((self._parts[0] if self._parts else bytes(self._tail))[:_PREFIX_BYTES])

    def let_go(self) -> None:
        """Hold nothing more; what comes now has no beginning."""
        self._begin()
        self._carry = b""
        if self.fault is None:
            self.fault = Fault(malformed("nothing more is read", "ended"))

    def _begin(self) -> None:
        self._parts, self._tail, self._size = [], bytearray(), 0
        self._left, self._levels, self._skip, self._steps = 1, [], 0, 0

    def _keep(self, piece: bytes) -> None:
        """Gather small pieces: a list of single bytes would take many times what was sent."""
        self._size += len(piece)
        if len(piece) >= _PART_BYTES and not self._tail:
            self._parts.append(piece)
            return
        self._tail += piece
        if len(self._tail) >= _PART_BYTES:
            self._parts.append(bytes(self._tail))
            self._tail = bytearray()

    def _whole(self, last: bytes) -> bytes:
        message = b"".join((*self._parts, self._tail, last)) if self._size else last
        self._begin()
        return message

    def _end(self, messages: list[bytes], rest: bytes, problem: Problem) -> list[bytes]:
        self._keep(rest[:_PREFIX_BYTES])
        self.fault = Fault(problem, self.known_id())
        self.let_go()
        return messages

    def _too_large(self) -> Problem:
        return too_large(f"A message has more than {self._bytes_max} bytes.", self._bytes_max)


def known_id(prefix: bytes) -> int | None:
    """The id in the beginning of a request, if it is there."""
    if prefix[:2] != b"\x94\x00":
        return None
    rest = prefix[2:]
    if not rest or rest[0] <= 0x7F:
        return rest[0] if rest else None
    size = {0xCC: 1, 0xCD: 2, 0xCE: 4}.get(rest[0], 0)
    return int.from_bytes(rest[1 : 1 + size], "big") if size and len(rest) > size else None


def call_of(message: bytes) -> Call:
    """A whole message as a call. Raises FrameFault for one that is none."""
    try:
        size = packed.length(message)
        if size == 4:
            kind, msgid, method, params = packed.read(_REQUESTS, message, "a request")
            if kind == REQUEST and 0 <= msgid <= MSGID_MAX and len(method) <= METHOD_CHARACTERS_MAX:
                return Call(msgid, method, params)
        elif size == 3:
            kind, method, params = packed.read(_NOTIFICATIONS, message, "a notification")
            if kind == NOTIFICATION and len(method) <= METHOD_CHARACTERS_MAX:
                return Call(None, method, params)
    except Malformed as malform:
        raise FrameFault(Fault(malformed(str(malform), malform.reason), known_id(message[:_PREFIX_BYTES]))) from malform
    detail = "A message must be [0, msgid, method, params], with an id of 32 bits, or [2, method, params]."
    raise FrameFault(Fault(malformed(detail, "frame"), known_id(message[:_PREFIX_BYTES])))


class FrameFault(Exception):
    """A message that is no call: ``fault`` says why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.problem.detail)
        self.fault = fault


def argument(params: packed.Packed) -> packed.Packed:
    """The one map that every method of ours takes: alone in the array of parameters, or in its place; nothing is an
    empty one. Raises Malformed."""
    if packed.kind(params) == packed.MAP:
        return params
    given = packed.elements(params, "'params'", 1)
    return given[0] if given else b"\x80"


def answer(msgid: int, result: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """An answer in parts; ``result`` is one value in parts."""
    return [b"\x94\x01" + msgspec.msgpack.encode(msgid) + _NIL, *result]


def error(msgid: int, document: dict[str, object]) -> bytes:
    """An answer that is an error."""
    return msgspec.msgpack.encode((RESPONSE, msgid, document, None))


def with_members(whole: bytes, members: dict[str, object]) -> list[bytes | memoryview]:
    """A map in parts, with members added to it, of which it had none; ``whole`` has few enough to be a fixmap."""
    count = len(members) + packed.length(whole)
    assert whole[0] & 0xF0 == 0x80, "a map of more than 15 members is none of ours"
    assert count <= 15
    added = msgspec.msgpack.encode(members)
    return [bytes([0x80 | count]), memoryview(whole)[1:], added[1:]]


def provenance_members(provenance: Provenance) -> dict[str, object]:
    """All that an answer tells of itself; ``age`` and ``ttl`` in whole seconds, as over HTTP."""
    told = plain.provenance_members(provenance)
    if provenance.cache in ("hit", "stale"):
        told["age"] = int(max(0.0, provenance.age))
    if provenance.ttl_left is not None:
        told["ttl"] = floor(provenance.ttl_left)
    if provenance.stored:
        told["stored"] = True
    if provenance.collapsed:
        told["collapsed"] = True
    return told


def _is_array(code: int) -> bool:
    return code & 0xF0 == 0x90 or code in (0xDC, 0xDD)


def _run(data: bytes, at: int, width: int, count_max: int) -> int:
    """How many values of this width begin one after the other at ``at``: at least the one there."""
    if width == 1:
        run, codes = data[at : at + count_max], _SINGLE
    else:
        run, codes = data[at : at + count_max * width : width], data[at : at + 1]
    return len(run) - len(run.lstrip(codes))


def _wrong(code: int, steps: int) -> Problem:
    """Why a value cannot begin like this."""
    if steps > STEPS_MAX:
        return too_large("A message has too many values; send tensors as bytes.")
    if code == 0xC1:
        return malformed("The stream is not valid MessagePack: a value begins with 0xc1.", "msgpack")
    return malformed("A MessagePack-RPC message must be an array.", "frame")


def _too_deep() -> Problem:
    return malformed(f"A message is nested deeper than {DEPTH_MAX} levels.", "depth")
