"""Answers as bytes of HTTP/1.1, as the edge lane writes them.

Rule of this file: pure but for what it remembers, which is bounded. Values of fields are printable by
construction (of the codec, or of the problem); what a peer wrote never gets into a head.
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from gateway.codec.http import provenance_headers
from gateway.doors.exchange import Fields, Reply, quota_fields
from gateway.pipeline import WireAnswer

_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_CLOSE: Final = b"Connection: close\r\n"

STORIES_MAX: Final = 8192
"""Provenance texts remembered; each is about 250 bytes."""

Story = tuple[str, str, int, int, int, int]
"""All that a fresh hit's provenance tells: tier, version, rows, rows escalated, age and ttl left in seconds."""


class Answers:
    """Makes heads of answers. ``wall``: seconds of the civil clock, for Date (RFC 9110 section 6.6.1)."""

    def __init__(self, wall: float) -> None:
        self._stories: dict[Story, bytes] = {}
        self._ending = _ending(wall)

    def set_date(self, wall: float) -> None:
        """The date of the answers from here on: whole seconds, so once in a while is enough."""
        self._ending = _ending(wall)

    def of_hit(self, hit: WireAnswer) -> tuple[bytes, bytes, bytes, bytes]:
        """The head of a hit, in pieces that make it when joined: most hits of a second tell the same."""
        served = hit.entry.value
        age = hit.now - hit.entry.stored_at
        story = (
            served.tier,
            served.response.version,
            served.rows,
            served.rows_escalated,
            int(age),
            int(hit.entry.ttl - age),
        )
        told = self._stories.get(story) or self._tell(story, hit)
        quota = _lines(quota_fields(hit.quota)) if hit.quota is not None else b""
        return hit.wire.head, told, quota, self._ending

    def head(self, reply: Reply, closes: bool) -> bytes:
        """The whole head of a reply; ``closes``: the connection ends with it."""
        line, fields = _STATUS_LINES[reply.status], _lines(reply.fields)
        closing = _CLOSE if closes else b""
        return b"%b%bContent-Length: %d\r\n%b%b" % (line, fields, len(reply.body), closing, self._ending)

    def _tell(self, story: Story, hit: WireAnswer) -> bytes:
        if len(self._stories) >= STORIES_MAX:
            self._stories.clear()
        told = self._stories[story] = _lines(provenance_headers(hit.provenance))
        return told


def _lines(fields: Fields) -> bytes:
    return "".join([f"{name}: {value}\r\n" for name, value in fields]).encode("latin-1", "replace")


def _ending(wall: float) -> bytes:
    return f"Date: {formatdate(wall, usegmt=True)}\r\nServer: tailrace\r\n\r\n".encode()
