"""Heads of answers, remembered under their exact bytes, and bodies whose end only a parser can tell.

Rule of this file: nothing is parsed by hand. aiohttp's C parser (llhttp) reads every head it has not read
before; what it is lenient about towards servers (line folding, bare line feeds, control characters) and any
doubt about where the body ends is refused on top of that. It must not know a socket or a request.
RFC 9112 sections 2.2, 6.3 and 7.
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

from aiohttp import http_parser
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from msgspec import Struct

from tiers.backends.fields import Headers, end_to_end

HEAD_END: Final = b"\r\n\r\n"
_BUFFER_BYTES: Final = 128 * 1024 * 1024  # the parser's own bound is not ours: each read is taken out of it at once
_LEGAL_HEAD: Final = re.compile(
    rb"HTTP/1\.[01] [1-9][0-9]{2}(?: [\t\x20-\x7e\x80-\xff]*)?\r\n"
    rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n"
)
_LEGAL_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_BARE_LINE_FEED: Final = re.compile(rb"(?:^|[^\r])\n")
_BEGINNING: Final = b"HTTP/1."


class Nonsense(Exception):
    """Bytes that are no answer, or one whose end is in doubt."""


WITHOUT_BODY: Final = frozenset({204, 304})
"""Statuses of answers that have none, and do not say how long it is."""

PROVENANCE: Final = b"tailrace-provenance"
"""What a gateway says of its own answer: nobody behind it may say that for it."""


class AnswerHead(Struct, frozen=True, eq=False):
    """``headers`` are end to end. ``length`` None: the body is chunked, or ends with the connection.
    ``lines``: status line and ``headers`` as they are passed on in HTTP/1.1, but for what frames the body.
    ``raw``: the whole head as it came. Each is its own: who has read one again by its bytes has the same object."""

    status: int
    headers: Headers
    length: int | None
    chunked: bool
    keep_alive: bool
    lines: bytes = b""
    raw: bytes = b""

    @property
    def has_body(self) -> bool:
        """Whether its status allows a body (RFC 9110 sections 15.3.5 and 15.4.5)."""
        return self.status not in WITHOUT_BODY


class AnswerHeads:
    """Reads heads; the first time by the parser, an exact repeat by one look-up."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, heads_max: int = 1024, remembered_bytes_max: int = 4096
    ) -> None:
        assert http_parser.HttpResponseParser is not http_parser.HttpResponseParserPy, "aiohttp lacks its C parser"
        self._loop = loop
        self._heads_max = heads_max
        self._remembered_bytes_max = remembered_bytes_max
        self._known: dict[bytes, AnswerHead] = {}

    def __len__(self) -> int:
        return len(self._known)

    def read(self, head: bytes) -> AnswerHead:
        """What ``head`` says, its empty line included; raises Nonsense."""
        found = self._known.get(head)
        if found is None:
            found = _parsed(self._loop, head)
            if len(head) <= self._remembered_bytes_max:
                if len(self._known) >= self._heads_max:
                    del self._known[next(iter(self._known))]  # the oldest: a head that varies drives out its like
                self._known[head] = found
        return found


def may_begin(partial: bytes | bytearray, seen: int) -> bool:
    """Whether ``partial`` can still become a legal head; its first ``seen`` bytes were asked about before."""
    known = min(len(partial), len(_BEGINNING))
    return partial[:known] == _BEGINNING[:known] and _BARE_LINE_FEED.search(partial, max(0, seen - 1)) is None


def _parsed(loop: asyncio.AbstractEventLoop, head: bytes) -> AnswerHead:
    if not _LEGAL_HEAD.fullmatch(head):
        raise Nonsense("a head that is not HTTP/1.1")
    try:
        messages, _, rest = _parser(loop, len(head)).feed_data(head)
    except HttpProcessingError as error:
        raise Nonsense(error.message.splitlines()[0]) from error
    if len(messages) != 1 or rest:
        raise Nonsense("a head that is not one head")
    message = messages[0][0]
    fields = [(name.lower(), value) for name, value in message.raw_headers]
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    if lengths and codings:
        raise Nonsense("both Content-Length and Transfer-Encoding")
    if len(lengths) > 1 or any(not _LEGAL_LENGTH.fullmatch(value) for value in lengths):
        raise Nonsense("a Content-Length that is not one number")
    if codings and (len(codings) > 1 or codings[0].lower() != b"chunked" or message.version < (1, 1)):
        raise Nonsense("a Transfer-Encoding that is not chunked")
    if bool(codings) is not bool(message.chunked):
        raise Nonsense("a Transfer-Encoding that is read in two ways")
    if message.code == 101 or (message.code < 200 and (lengths or codings)):
        raise Nonsense(f"status {message.code}, which nobody asked for")
    told = ((_text(name), _text(value)) for name, value in message.raw_headers if name.lower() != PROVENANCE)
    headers = end_to_end(told)
    begun = f"HTTP/1.1 {message.code} {message.reason}\r\n"
    unsized = [(name, value) for name, value in headers if name.lower() != "content-length"]
    lines = begun + "".join([f"{name}: {value}\r\n" for name, value in unsized])
    return AnswerHead(
        message.code,
        headers,
        int(lengths[0]) if lengths else None,
        bool(codings),
        not message.should_close,
        lines.encode("utf-8", "surrogateescape"),
        head,
    )


def _parser(loop: asyncio.AbstractEventLoop, head_bytes: int) -> http_parser.HttpResponseParser:
    return http_parser.HttpResponseParser(
        BaseProtocol(loop),
        loop,
        _BUFFER_BYTES,
        max_line_size=head_bytes,  # the head as a whole is bounded where it is gathered
        max_field_size=head_bytes,
        read_until_eof=True,
        auto_decompress=False,
    )


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


class FramedBody:
    """A chunked body, or one that ends with the connection, read by a parser that also gets its head.

    ``ended`` once the last byte is there; ``clean`` if that was the last byte fed, so nothing came after it.
    """

    __slots__ = ("_chunked", "_parser", "_payload", "clean", "ended")

    def __init__(self, loop: asyncio.AbstractEventLoop, head: bytes, chunked: bool) -> None:
        self._chunked = chunked
        self._parser = _parser(loop, len(head))
        messages, _, _ = self._parser.feed_data(head)
        self._payload = messages[0][1]
        self.ended = False
        self.clean = False

    def feed(self, data: bytes) -> bytes:
        """The body's bytes in ``data``; raises Nonsense."""
        assert not self.ended, "fed after its end"
        # A chunked body ends with a line feed. Feeding that byte alone tells whether the end was just there:
        # the parser does not say how much it has used.
        if self._chunked and data.endswith(b"\n"):
            self._feed(data[:-1])
            if not self._payload.is_eof():
                self._feed(data[-1:])
                self.clean = self._payload.is_eof()
        else:
            self._feed(data)
        self.ended = self._payload.is_eof()
        return self._payload.read_nowait(-1)

    def close(self) -> bool:
        """The connection has ended: whether that is the body's end."""
        self.ended = self.ended or not self._chunked
        return self.ended

    def _feed(self, data: bytes) -> None:
        if not data:
            return
        try:
            self._parser.feed_data(data)
        except HttpProcessingError as error:
            if not self._payload.is_eof():  # else it is about bytes after the end
                raise Nonsense(error.message.splitlines()[0]) from error
        fault = self._payload.exception()
        if fault is not None:
            raise Nonsense(str(fault)) from fault
