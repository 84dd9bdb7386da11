"""Content codings of HTTP bodies, undone within a bound.

Rule of this file: pure; a body that is not what its coding says is ``Malformed``, a coding that is not known is too.
RFC 9110 section 8.4.
"""

from __future__ import annotations

import zlib
from types import MappingProxyType
from typing import Final

from tiers.v2.message import Malformed

CODINGS: Final = MappingProxyType({"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"})
GZIP_BITS, ZLIB_BITS, RAW_BITS = 31, 15, -15
"""zlib's words for the formats."""


def inflate(body: bytes | memoryview, encoding: str | None, bytes_max: int) -> bytes | memoryview:
    """The body without its one content coding; at most ``bytes_max`` bytes either way.

    ``deflate`` is zlib's format, or the bare DEFLATE some clients send (RFC 9110 section 8.4.1.2 knows of them).
    Raises Malformed: 413 for a bomb, 400 for a stream that is broken, cut or followed by more, 415 for any other
    coding or more than one.
    """
    if len(body) > bytes_max:
        raise Malformed("too-large", f"the body has {len(body)} bytes, at most {bytes_max} are allowed", 413)
    coding = (encoding or "").strip(" \t").lower()
    if coding in ("", "identity"):
        return body
    if coding not in CODINGS:
        what = "more than one coding" if "," in coding else f"{coding[:32]!r}"
        raise Malformed("coding", f"Content-Encoding is {what}; send gzip, deflate or identity", 415)
    stream = zlib.decompressobj(GZIP_BITS if CODINGS[coding] == "gzip" else _deflate_bits(body))
    try:
        inflated = stream.decompress(body, bytes_max + 1)
    except zlib.error as error:
        raise Malformed("encoding", f"the body is not valid {coding}: {error}") from error
    if len(inflated) > bytes_max:
        raise Malformed("too-large", f"the body inflates to more than the {bytes_max} bytes that are allowed", 413)
    if not stream.eof:
        raise Malformed("encoding", f"the {coding} body is truncated")
    if stream.unused_data:
        raise Malformed("encoding", f"the {coding} body is followed by {len(stream.unused_data)} more bytes")
    return inflated


def _deflate_bits(body: bytes | memoryview) -> int:
    """zlib's two-byte head (RFC 1950 section 2.2) tells it from bare DEFLATE."""
    if len(body) < 2:
        return ZLIB_BITS
    method, flags = body[0], body[1]
    is_zlib = method & 15 == 8 and method >> 4 <= 7 and (method * 256 + flags) % 31 == 0
    return ZLIB_BITS if is_zlib else RAW_BITS
