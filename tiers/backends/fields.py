"""Header fields and the heads of requests to a replica, as bytes.

Rule of this file: what leaves here is exactly one well-formed request head, whatever the strings were made
of: bytes that could end a line or a head are refused, never escaped. Requests carry nothing the caller did
not ask for except Host and what frames the body. It must not know a socket, an answer or a model.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Iterable
from typing import Final

from msgspec import Struct

Headers = tuple[tuple[str, str], ...]
Body = bytes | AsyncIterable[bytes] | None

_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
_WITHOUT_BODY: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "DELETE"})
"""Methods that say nothing of a body when they have none; the others say Content-Length: 0 (RFC 9110 8.6)."""

# RFC 9110 sections 5.6.2 (token) and 5.5 (field value), RFC 9112 section 3.2 without any white space.
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_TARGET: Final = re.compile(rb"/[\x21-\x7e\x80-\xff]*")
_LENGTH: Final = re.compile(r"0*[0-9]{1,18}")

LINE_BYTES_MAX: Final = 8000
"""Of one line of a head. Triton closes the connection, without a word, on one of more than about 8 KB."""


JOINED_BYTES_MAX: Final = 64 * 1024
"""Of a request that goes out in one piece: copying so little costs less than a second buffer in the write."""


class IllFormed(ValueError):
    """What was asked for cannot be written as one HTTP request."""


class LineTooLong(IllFormed):
    """A line of the head is longer than ``LINE_BYTES_MAX``."""


def end_to_end(headers: Iterable[tuple[str, str]]) -> Headers:
    """The headers without the hop-by-hop ones: RFC 9110 section 7.6.1, and any Proxy-* field."""
    pairs = tuple(headers)
    named = {
        token.strip().lower() for name, value in pairs if name.lower() == "connection" for token in value.split(",")
    }
    return tuple(
        (name, value)
        for name, value in pairs
        if name.lower() not in _HOP_BY_HOP and name.lower() not in named and not name.lower().startswith("proxy-")
    )


class Outgoing(Struct, frozen=True):
    """One request, ready to write. ``head`` is whole, its empty line included, and a small body may be with it; else
    that follows as ``parts``, or piece by piece as ``upload`` gives them. ``length`` is what the head promises of an
    upload; None: it goes in chunks."""

    head: bytes
    parts: tuple[bytes | memoryview, ...] = ()
    upload: AsyncIterable[bytes] | None = None
    length: int | None = None
    answer_has_body: bool = True


class _Prefix(Struct, frozen=True):
    """A request head up to what frames its body; ``length`` is the Content-Length its caller gave."""

    lines: bytes
    length: int | None


class RequestHeads:
    """Writes the request heads of one replica; those of late are remembered, so a repeat costs one look-up."""

    def __init__(self, authority: str, heads_max: int = 1024, head_bytes_max: int = 4096) -> None:
        self._host = _checked(authority, _VALUE, "authority")
        self._heads_max = heads_max
        self._head_bytes_max = head_bytes_max  # larger ones are not remembered
        self._known: dict[tuple[str, str, Headers], _Prefix] = {}

    def outgoing(self, method: str, target: str, headers: Headers, body: Body) -> Outgoing:
        """The request as bytes; raises IllFormed. Host, Expect and hop-by-hop fields of ``headers`` stay behind.

        A body that is an iterable keeps the Content-Length its caller gave, and must have just that many bytes.
        """
        key = (method, target, headers)
        prefix = self._known.get(key)
        if prefix is None:
            prefix = self._prefix(method, target, headers)
            if len(prefix.lines) <= self._head_bytes_max:
                if len(self._known) >= self._heads_max:
                    self._known.clear()
                self._known[key] = prefix
        answer_has_body = method != "HEAD"
        if body is None:
            framing = b"\r\n" if method in _WITHOUT_BODY else b"Content-Length: 0\r\n\r\n"
            return Outgoing(prefix.lines + framing, (), None, None, answer_has_body)
        if isinstance(body, bytes):
            head = prefix.lines + b"Content-Length: %d\r\n\r\n" % len(body)
            return Outgoing(head, (body,), None, None, answer_has_body)
        if prefix.length is None:
            head = prefix.lines + b"Transfer-Encoding: chunked\r\n\r\n"
            return Outgoing(head, (), body, None, answer_has_body)
        head = prefix.lines + b"Content-Length: %d\r\n\r\n" % prefix.length
        return Outgoing(head, (), body, prefix.length, answer_has_body)

    def _prefix(self, method: str, target: str, headers: Headers) -> _Prefix:
        if method == "CONNECT":
            raise IllFormed("CONNECT asks for a tunnel, not for an answer")
        line = _checked(method, _TOKEN, "method") + b" " + _checked(target, _TARGET, "target") + b" HTTP/1.1"
        lines = [line, b"Host: " + self._host]
        lengths = set()
        for name, value in end_to_end(headers):
            lowered = name.lower()
            if lowered == "content-length":
                lengths.add(value)
            elif lowered not in {"host", "expect"}:
                lines.append(_checked(name, _TOKEN, "field name") + b": " + _checked(value, _VALUE, f"field {name!r}"))
        for each in lines:
            if len(each) > LINE_BYTES_MAX:
                # Its name only: the rest may be a credential.
                what = "request line" if each is line else "field " + each.partition(b":")[0][:64].decode("ascii")
                raise LineTooLong(f"the {what} is longer than {LINE_BYTES_MAX} bytes")
        if len(lengths) > 1:
            raise IllFormed("Content-Length is given twice, differently")
        length = next(iter(lengths), None)
        if length is not None and not _LENGTH.fullmatch(length):
            raise IllFormed("Content-Length is not a number")
        return _Prefix(b"\r\n".join(lines) + b"\r\n", None if length is None else int(length))


def _checked(text: str, legal: re.Pattern[bytes], what: str) -> bytes:
    try:
        written = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise IllFormed(f"the {what} is no text") from error
    if not legal.fullmatch(written):
        raise IllFormed(f"the {what} has bytes that HTTP does not allow there")
    return written
