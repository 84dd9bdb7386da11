"""One message's JSON part: how much it may ask of us, and what must hold before any member is looked at.

Rule of this file: bytes to structs, and ``Malformed`` for everything else; what a member means is known
elsewhere. Stricter than Triton, because what is decoded here becomes a cache key and is sent on re-encoded:
invalid UTF-8, NaN and Infinity literals (not JSON, RFC 8259), deep nesting and members that come twice
(RapidJSON would take the first, others the last) are refused. Unknown members are ignored, as Triton does.
"""

from __future__ import annotations

import json
import re
from typing import Final, TypeVar

import msgspec
import numpy as np

M = TypeVar("M")

JSON_LENGTH_HEADER: Final = "Inference-Header-Content-Length"
"""The header field, Triton's own, that says how many bytes of a body are its JSON part, where that is not all of it."""

_SHOWN_MAX: Final = 64  # characters of a caller's own word repeated in a message

# A string, or one that never ends: always matches at a quote, so the scan is linear for any bytes.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


class Malformed(Exception):
    """Bytes that are not the protocol. ``reason`` is one word, ``status`` is 400 or 413."""

    def __init__(self, reason: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status


BEYOND_LIMITS: Final = frozenset({"too-large", "too-many"})
"""Reasons that say no more than that a message is larger than ``Limits`` allow."""


class Limits(msgspec.Struct, frozen=True):
    """How much one message may ask of us; each is there so that no message can ask for more."""

    inputs_max: int = 256
    outputs_max: int = 256
    parameters_max: int = 64  # of one object
    elements_max: int = 2**31 - 1  # of one tensor; Triton's own byte counts are 32 bit in places
    bytes_elements_max: int = 2**18  # BYTES elements of all tensors: each is looked at one by one, about 0.2 us
    members_max: int = 2**16  # of all JSON objects; 256 tensors with every parameter need a tenth of it
    json_bytes_max: int = 16 * 2**20  # a JSON number costs us about 16 times its bytes while parsing
    json_depth_max: int = 16
    name_bytes_max: int = 1024  # names, ids and string parameters
    rank_max: int = 12


DEFAULT_LIMITS: Final = Limits()


def split(body: bytes | memoryview, json_length: int | None, limits: Limits) -> tuple[bytes, memoryview]:
    """The JSON part, proven shallow and UTF-8, and the bytes after it."""
    view = memoryview(body)
    length = len(view) if json_length is None else json_length
    if json_length == 0 and len(view) > 0:
        raise Malformed(
            "raw-binary",
            "raw binary requests (Inference-Header-Content-Length: 0) are not supported; send a JSON part",
        )
    if not 0 <= length <= len(view):
        raise Malformed(
            "header-length", f"Inference-Header-Content-Length is {length}, the body has {len(view)} bytes"
        )
    if length > limits.json_bytes_max:
        raise Malformed(
            "too-large", f"the JSON part has {length} bytes, at most {limits.json_bytes_max} are allowed", 413
        )
    header = body if isinstance(body, bytes) and length == len(body) else bytes(view[:length])
    if not header:
        raise Malformed("json", "the body is empty, a JSON object was expected")
    if not header.isascii():
        try:
            header.decode()
        except UnicodeDecodeError as error:
            raise Malformed("utf8", f"the JSON is not valid UTF-8 at byte {error.start}") from error
    if header.count(b"[") + header.count(b"{") > limits.json_depth_max:
        _check_depth(header, limits.json_depth_max)
    return header, view[length:]


def _check_depth(header: bytes, depth_max: int) -> None:
    brackets = np.frombuffer(_STRING.sub(b"", header).translate(None, _NOT_BRACKETS), dtype=np.uint8)
    opens = (brackets == ord("[")) | (brackets == ord("{"))
    depth = np.cumsum(np.where(opens, 1, -1), dtype=np.int64)
    if depth.size and int(depth.max()) > depth_max:
        raise Malformed("depth", f"the JSON is nested deeper than {depth_max} levels")


def parsed(decoder: msgspec.json.Decoder[M], header: bytes) -> M:
    """The JSON part as the decoder's struct; raises Malformed for what is no JSON or has other members."""
    try:
        return decoder.decode(header)
    except msgspec.ValidationError as error:
        raise Malformed("member", str(error).replace("`", "'")) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as error:
        raise Malformed("json", f"not valid JSON: {error}") from error


def check_duplicates(header: bytes, members: int, limits: Limits) -> None:
    """Refuse an object that names a member twice.

    Outside strings, JSON has as many colons as members. If that equals what was decoded, nothing was
    repeated (and nothing unknown was there); only otherwise is the JSON read again, pair by pair.
    """
    if header.count(b":") == members:
        return
    colons = _STRING.sub(b"", header).count(b":")
    if colons == members:
        return
    check_count("members in the JSON", colons, limits.members_max)
    try:
        json.loads(header, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Malformed("json", f"not valid JSON: {error}") from error


def check_members(header: bytes, limits: Limits) -> None:
    """Refuse JSON with more members than may be, before it is read by someone who makes an object of each."""
    if header.count(b":") > limits.members_max:
        check_count("members in the JSON", _STRING.sub(b"", header).count(b":"), limits.members_max)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members: dict[str, object] = {}
    for name, value in pairs:  # one look-up a member: a hostile object must not cost its square
        if name in members:
            raise Malformed("duplicate", f"duplicate member {shown(name)} in the JSON")
        members[name] = value
    return members


def shown(text: str) -> str:
    """A caller's word in quotes, cut to a bounded length."""
    return repr(text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "...")


def check_count(what: str, count: int, count_max: int) -> None:
    """Raises Malformed for more than ``count_max`` of something."""
    if count > count_max:
        raise Malformed("too-many", f"{count} {what}, at most {count_max} are allowed")
