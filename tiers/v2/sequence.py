"""Which sequence an infer request belongs to, at a glance, for what is not read otherwise.

Rule of this file: pure, and it never refuses. A request that cannot be read belongs to no sequence; the server that
it is for will say what is wrong with it.
"""

from __future__ import annotations

import msgspec

_NAME = b"sequence_id"


class _Parameters(msgspec.Struct):
    sequence_id: int | str | None = None


class _Request(msgspec.Struct):
    parameters: _Parameters = msgspec.field(default_factory=_Parameters)


_DECODER = msgspec.json.Decoder(_Request)


def sequence_of(json_part: bytes) -> str:
    """The correlation id in a request's JSON part (Triton's sequence extension), as text; "" if it has none. Zero and
    the empty string are none, as to Triton."""
    if _NAME not in json_part:
        return ""
    try:
        asked = _DECODER.decode(json_part)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    found = asked.parameters.sequence_id
    return str(found) if found else ""
