"""MessagePack-RPC's frames: a stream of bytes to whole calls, and answers to bytes.

Rule of this file: no I/O, no clock; feed it bytes, get messages, or the one fault after which a stream has no meaning.
The specification (github.com/msgpack-rpc/msgpack-rpc) frames nothing: a message ends where its value does, which
``extent.py`` finds. A long message is found whole in the pieces that it came in: to put it together, and to read its
parameters, is work for elsewhere.

    [0, msgid, method, params] -> [1, msgid, error, result]        [2, method, params] -> nothing
"""

from __future__ import annotations

import contextlib
from math import floor
from typing import Final

import msgspec
from msgspec import Raw

from gateway.admission.quota import Verdict, ratelimit_value
from gateway.codec import packed, plain
from gateway.codec.extent import STEPS_MAX, Extent
from gateway.problem import Problem, Refused, malformed
from tiers.inference import Provenance
from tiers.v2.message import Malformed, check_count

REQUEST: Final = 0
RESPONSE: Final = 1
NOTIFICATION: Final = 2

MSGID_MAX: Final = 2**32 - 1
METHOD_CHARACTERS_MAX: Final = 64

_PART_BYTES: Final = 64 * 1024
_PREFIX_BYTES: Final = 8
"""What holds a message's type and its id."""

HEAD_BYTES_MAX: Final = 1024
"""Of all that a call has before its parameters: its method is a short one."""

_REQUESTS: Final = msgspec.msgpack.Decoder(tuple[int, int, str, Raw])
_NOTIFICATIONS: Final = msgspec.msgpack.Decoder(tuple[int, str, Raw])
_NIL: Final = b"\xc0"
_NEVER_USED: Final = 0xC1


class Call(msgspec.Struct, frozen=True):
    """One call. ``msgid`` None: a notification, which is not answered. ``params`` are a view of the message."""

    msgid: int | None
    method: str
    params: packed.Packed


class Fault(msgspec.Struct, frozen=True):
    """Why a stream means nothing from here on, and the id of the call that it happened in, if that was known."""

    problem: Problem
    msgid: int | None = None


class Message(msgspec.Struct, frozen=True):
    """A whole message, in the pieces that it was gathered in."""

    pieces: list[bytes]
    size: int

    @property
    def prefix(self) -> bytes:
        """Its first bytes: all of a call but its parameters."""
        return b"".join([piece[:HEAD_BYTES_MAX] for piece in self.pieces[:2]])[:HEAD_BYTES_MAX]

    def taken(self) -> bytes:
        """The message in one piece, and its pieces let go of: to be asked for once."""
        whole = b"".join(self.pieces)
        self.pieces.clear()
        return whole


class Frames:
    """The messages of one connection. ``bytes_max`` bounds one message, ``plain_bytes_max`` what it holds beside
    strings and bytes (None: the same)."""

    __slots__ = ("_bytes_max", "_carry", "_extent", "_parts", "_tail", "fault", "unread")

    def __init__(self, bytes_max: int, plain_bytes_max: int | None = None) -> None:
        self._bytes_max = bytes_max
        self.fault: Fault | None = None
        """What the stream ended with."""
        self.unread = False
        """Whether there are bytes that were fed and not looked at: feed more, be it nothing."""
        self._carry = b""  # what was not looked at: a value's head that was cut, or all that was too much at once
        self._parts: list[bytes] = []  # of the message that is not whole, each of some size
        self._tail = bytearray()  # and what has come since, in pieces of any
        self._extent = Extent(bytes_max, bytes_max if plain_bytes_max is None else plain_bytes_max)

    @property
    def held(self) -> int:
        """Bytes of messages that are not whole yet: 0 between messages."""
        return self._extent.size + len(self._carry)

    @property
    def head_is_whole(self) -> bool:
        """Whether all of the message under way is there but its parameters."""
        levels, left = self._extent.levels, self._extent.left
        return (levels[1] == 0) if len(levels) > 1 else (len(levels) == 1 and left <= 1)

    def feed(self, data: bytes, steps_max: int = STEPS_MAX) -> list[Message]:
        """Whole messages, after ``steps_max`` steps at most. After a fault (``self.fault``) there are none any more."""
        if self.fault is not None:
            return []
        if self._carry:
            data, self._carry = self._carry + data, b""
        messages: list[Message] = []
        extent, start, seen, at, end = self._extent, 0, 0, 0, len(data)
        while at < end and steps_max > 0:
            if not extent.size and data[at] != _NEVER_USED and not _is_array(data[at]):
                fault = malformed("A MessagePack-RPC message must be an array.", "frame")
                return self._end(messages, data[start:], fault)
            before, seen = extent.steps, at
            try:
                at = extent.walk(data, at, steps_max)
            except Refused as refused:
                return self._end(messages, data[start:], refused.problem)
            steps_max -= extent.steps - before
            if not extent.whole:
                break
            messages.append(self._whole(data[start:at]))
            start = at
        self.unread = seen < at < end and steps_max <= 0
        self._carry = data[at:]
        if at > start:
            self._keep(data[start:at])
        return messages

    def known_id(self) -> int | None:
        """The id of the message under way, if it is a request and its id is there."""
        return known_id((self._parts[0] if self._parts else bytes(self._tail))[:_PREFIX_BYTES])

    def let_go(self) -> None:
        """Hold nothing more; what comes now has no beginning."""
        self._begin()
        self._carry, self.unread = b"", False
        if self.fault is None:
            self.fault = Fault(malformed("nothing more is read", "ended"))

    def _begin(self) -> None:
        self._parts, self._tail = [], bytearray()
        self._extent.begin()

    def _keep(self, piece: bytes) -> None:
        """Gather small pieces: a list of single bytes would take many times what was sent."""
        if len(piece) >= _PART_BYTES and not self._tail:
            self._parts.append(piece)
            return
        self._tail += piece
        if len(self._tail) >= _PART_BYTES:
            self._parts.append(bytes(self._tail))
            self._tail = bytearray()

    def _whole(self, last: bytes) -> Message:
        pieces = [*self._parts, bytes(self._tail), last] if self._parts or self._tail else [last]
        size = self._extent.size
        self._begin()
        return Message(pieces, size)

    def _end(self, messages: list[Message], rest: bytes, problem: Problem) -> list[Message]:
        self._keep(rest[:_PREFIX_BYTES])
        self.fault = Fault(problem, self.known_id())
        self.let_go()
        return messages


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


def begun(prefix: bytes) -> tuple[Call, int]:
    """The call that a long message begins with, its parameters left out, and where those are. Only what comes before
    them is looked at. Raises FrameFault."""
    extent, at = Extent(HEAD_BYTES_MAX, HEAD_BYTES_MAX), packed.head_bytes(prefix)
    with contextlib.suppress(Refused):  # no call begins like this, which the last line says
        for _ in range(packed.length(prefix) - 1):
            extent.begin()
            at = extent.walk(prefix, at, STEPS_MAX)
            if not extent.whole:
                break
    return call_of(prefix[:at] + _NIL), at


def argument(params: packed.Packed) -> packed.Packed:
    """The one map that every method of ours takes: alone in the array of parameters, or in its place; nothing is an
    empty one. Raises Malformed."""
    if packed.kind(params) == packed.MAP:
        return params
    if packed.kind(params) != packed.ARRAY:
        raise Malformed("member", f"'params' must be an array, got {packed.kind(params)}")
    check_count("'params'", packed.length(params), 1)
    return memoryview(params)[packed.head_bytes(params) :] if packed.length(params) else b"\x80"


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
    if provenance.is_aged:
        told["age"] = int(max(0.0, provenance.age))
    if provenance.ttl_left is not None:
        told["ttl"] = floor(provenance.ttl_left)
    if provenance.stored:
        told["stored"] = True
    if provenance.collapsed:
        told["collapsed"] = True
    return told


def quota_members(verdict: Verdict | None) -> dict[str, object]:
    """The quota that is nearest to its end, in the words of the header fields."""
    if verdict is None:
        return {}
    return {"ratelimit": ratelimit_value(verdict), "ratelimit_policy": verdict.quota.policy}


def _is_array(code: int) -> bool:
    return code & 0xF0 == 0x90 or code in (0xDC, 0xDD)
