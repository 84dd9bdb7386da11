"""Answers as bytes of HTTP/1.1, as the edge lane writes them.

Rule of this file: pure but for the date it was told. Values of fields are printable by construction (of
the codec, or of the problem); what a peer wrote never gets into a head.
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from gateway.admission.ratelimit import ratelimit_lines
from gateway.doors.exchange import Fields, Reply
from gateway.pipeline import WireAnswer

_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_CLOSE: Final = b"Connection: close\r\n"


class Answers:
    """Makes heads of answers. ``wall``: seconds of the civil clock, for Date (RFC 9110 section 6.6.1)."""

    def __init__(self, wall: float) -> None:
        self._ending = _ending(wall)

    def set_date(self, wall: float) -> None:
        """The date of the answers from here on: whole seconds, so once in a while is enough."""
        self._ending = _ending(wall)

    def of_hit(self, hit: WireAnswer) -> tuple[bytes, bytes, bytes]:
        """The head of a hit, in pieces that make it when joined."""
        entry = hit.entry
        age = hit.now - entry.stored_at
        whole = int(age)
        begun = hit.wire.heading.lines % (int(entry.ttl - age), whole, whole)
        return begun, ratelimit_lines(hit.quota) if hit.quota is not None else b"", self._ending

    def head(self, reply: Reply, closes: bool) -> bytes:
        """The whole head of a reply; ``closes``: the connection ends with it."""
        # A status that nobody has registered may come from behind a route: it has no phrase, and needs none.
        line = _STATUS_LINES.get(reply.status) or b"HTTP/1.1 %d \r\n" % reply.status
        fields = _lines(reply.fields)
        closing = _CLOSE if closes else b""
        return b"%b%bContent-Length: %d\r\n%b%b" % (line, fields, len(reply.body), closing, self._ending)


def _lines(fields: Fields) -> bytes:
    return "".join([f"{name}: {value}\r\n" for name, value in fields]).encode("latin-1", "replace")


def _ending(wall: float) -> bytes:
    return f"Date: {formatdate(wall, usegmt=True)}\r\nServer: tailrace\r\n\r\n".encode()
