"""Answers as bytes of HTTP/1.1, as the edge lane writes them.

Rule of this file: pure but for the date it was told and for what it remembers, which is bounded. Values of
fields are printable by construction (of the codec, or of the problem); what a peer wrote never gets into a
head that is ours.
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import msgspec

from gateway.admission.quota import Verdict, ratelimit_lines
from gateway.codec.http import passthrough_lines
from gateway.doors.question import Fields, Reply
from gateway.pipeline import WireAnswer
from gateway.service import Heading
from tiers.backends.answer import WITHOUT_BODY, AnswerHead

_STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_SERVER: Final = b"Server: tailrace\r\n"
HEADS_MAX: Final = 1024
HEAD_BYTES_REMEMBERED_MAX: Final = 4096
"""Heads of answers remembered until the date is another: as many, and as large, as a replica's connections remember."""

_PASSED: Final = passthrough_lines()
FEW_MICROSECONDS: Final = 4096
"""Of these each is told as milliseconds in bytes that are made once (160 KB): to format a number takes longer than to
join all lines of a head."""
_FEW: Final = tuple([b"%d.%03d" % divmod(each, 1000) for each in range(FEW_MICROSECONDS)])
_CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
CLOSE: Final = b"Connection: close\r\n"


class LastHit(msgspec.Struct, gc=False):
    """How the last answer to a request began that comes again and again: the next one of the same second begins alike.
    ``lines`` are made of ``heading``, ``age`` and ``left`` (of the time to live; whole seconds)."""

    heading: Heading | None = None
    age: int = 0
    left: int = 0
    lines: bytes = b""


class Answers:
    """Makes heads of answers. ``wall``: seconds of the civil clock, for Date (RFC 9110 section 6.6.1)."""

    def __init__(self, wall: float) -> None:
        self._ending = _ending(wall)
        self._date = _date(wall)
        self._passed: dict[AnswerHead, tuple[bytes, bytes, bytes]] = {}
        self._verdict: Verdict | None = None  # of the last hit, and what was said of it
        self._quota_lines = b""

    def set_date(self, wall: float) -> None:
        """The date of the answers from here on: whole seconds, so once in a while is enough."""
        date = _date(wall)
        if date != self._date:
            self._ending = _ending(wall)
            self._date = date
            self._passed.clear()

    def of_passed(self, head: AnswerHead, seconds: float, told: bytes, body: bytes) -> bytes:
        """A head that is passed on, with lines that only this answer tells and ``body`` behind it. ``seconds``: that it
        took."""
        passed = self._passed.get(head)
        if passed is None:
            passed = self._passed_on(head)
            if 0 < len(head.raw) <= HEAD_BYTES_REMEMBERED_MAX:  # one that was never bytes is nobody's next one
                if len(self._passed) >= HEADS_MAX:
                    self._passed.clear()
                self._passed[head] = passed
        before, after, ending = passed
        microseconds = int(seconds * 1e6 + 0.5)
        few = microseconds < FEW_MICROSECONDS
        milliseconds = _FEW[microseconds] if few else b"%.3f" % (seconds * 1e3)
        return b"".join((before, milliseconds, after, told, ending, body))

    def _passed_on(self, head: AnswerHead) -> tuple[bytes, bytes, bytes]:
        """What does not change before the date does: a head with what frames its body and what is told of its way, up
        to the milliseconds that it took; what is told behind them; our date and name, unless it has its own."""
        given = {name.lower() for name, _ in head.headers}
        date = b"" if "date" in given else self._date
        ending = date + (b"\r\n" if "server" in given else _SERVER + b"\r\n")
        framing = b""
        if head.has_body:
            framing = _CHUNKED if head.length is None else b"Content-Length: %d\r\n" % head.length
        before, after = _PASSED
        return head.lines + framing + before, after, ending

    def of_hit(self, hit: WireAnswer, last: LastHit | None = None) -> tuple[bytes, bytes, bytes]:
        """The head of a hit, in pieces that make it when joined. ``last``: of the same request, if that is known."""
        entry, heading, verdict = hit.entry, hit.wire.heading, hit.quota
        if verdict != self._verdict:  # callers within their rate have as much left each time
            self._verdict = verdict
            self._quota_lines = b"" if verdict is None else ratelimit_lines(verdict)
        exact = hit.now - entry.stored_at
        age, left = int(exact), int(entry.ttl - exact)
        if last is None:
            return heading.lines % (left, age, age), self._quota_lines, self._ending
        if last.heading is not heading or last.age != age or last.left != left:
            last.heading, last.age, last.left = heading, age, left
            last.lines = heading.lines % (left, age, age)
        return last.lines, self._quota_lines, self._ending

    def head(self, reply: Reply, closes: bool) -> bytes:
        """The whole head of a reply; ``closes``: the connection ends with it."""
        # A status that nobody has registered may come from behind a route: it has no phrase, and needs none.
        line = _STATUS_LINES.get(reply.status) or b"HTTP/1.1 %d \r\n" % reply.status
        fields = _lines(reply.fields)
        closing = CLOSE if closes else b""
        length = b"" if reply.status in WITHOUT_BODY else b"Content-Length: %d\r\n" % len(reply.body)
        return b"".join((line, fields, length, closing, self._ending))


def _lines(fields: Fields) -> bytes:
    return "".join([f"{name}: {value}\r\n" for name, value in fields]).encode("utf-8", "surrogateescape")


def _date(wall: float) -> bytes:
    return f"Date: {formatdate(wall, usegmt=True)}\r\n".encode()


def _ending(wall: float) -> bytes:
    return _date(wall) + _SERVER + b"\r\n"
