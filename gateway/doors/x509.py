"""What certificates say of themselves: from when until when they hold, and whether they may sign others.

Rule of this file: PEM in, values out; no clock, no file. The standard library reads no certificate but a peer's, so the
few fields are found here, by their place (RFC 5280 section 4.1, in DER: a tag, a length, and that many bytes); whether
one may sign others is OpenSSL's own word.
"""

from __future__ import annotations

import re
import ssl
from base64 import b64decode
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec

_PEM: Final = re.compile(
    rb"-----BEGIN (TRUSTED |X509 |)CERTIFICATE-----(.*?)-----END \1CERTIFICATE-----", re.DOTALL
)
_VERSION, _UTC_TIME = 0xA0, 0x17
_CENTURY: Final = 50
"""Years of two digits below it are of this century (RFC 5280 section 4.1.2.5.1)."""


class Certificate(msgspec.Struct, frozen=True):
    """One certificate. ``begins`` and ``ends`` are seconds since 1970; ``signs``: whether it is an authority's, or its
    own, and so can stand behind what callers show."""

    begins: float
    ends: float
    signs: bool


def certificates_in(text: bytes) -> list[Certificate]:
    """The certificates of a PEM file in their order; raises ValueError for one that cannot be read."""
    try:
        return [_certificate(b64decode(match[2])) for match in _PEM.finditer(text)]
    except (IndexError, ssl.SSLError) as error:
        raise ValueError("a certificate cannot be read") from error


def _certificate(data: bytes) -> Certificate:
    _, begin, end = _element(data, 0)
    der = data[:end]  # behind it there may be what OpenSSL adds to trusted ones
    _, begin, end = _element(der, begin)
    fields = [field for field in _elements(der, begin, end) if field[0] != _VERSION]
    _, _, issuer, validity, subject = fields[:5]  # a serial number and an algorithm come first
    begins, ends = [_seconds(tag, der[begin:end]) for tag, begin, end in _elements(der, *validity[1:])][:2]
    is_own = der[slice(*issuer[1:])] == der[slice(*subject[1:])]
    return Certificate(begins, ends, is_own or _is_authority(der))


def _is_authority(der: bytes) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=der)
    return context.cert_store_stats()["x509_ca"] > 0


def _elements(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    while at < end:
        tag, begin, at = _element(data, at)
        yield tag, begin, at


def _element(data: bytes, at: int) -> tuple[int, int, int]:
    """An element's tag, and where its content begins and ends."""
    tag, length, begin = data[at], data[at + 1], at + 2
    if length >= 128:
        begin += length - 128
        length = int.from_bytes(data[at + 2 : begin], "big")
    if begin + length > len(data):
        raise IndexError("an element is longer than all there is")
    return tag, begin, begin + length


def _seconds(tag: int, written: bytes) -> float:
    text = written.decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if int(text[:2]) < _CENTURY else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
