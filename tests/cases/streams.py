"""Request streams of one connection, made from dice: what a caller may send, and what none may, in any pieces.

Rule of this file: pure. The same dice and number make the same stream; a die that has no bytes left shows 0, and the
first of a table is its plainest, so that fewer and smaller bytes are a simpler stream. Whatever a stream asks the
route's model is asked by no other stream, but for KNOWN: what is cached depends on the stream alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeVar

T = TypeVar("T")

DICE_BYTES: Final = 160
REQUESTS_MAX: Final = 5
TURNS_MAX: Final = 100
"""About how often the other side has its turn while a stream is said; more is slow, and finds nothing else."""
EVERY_BYTE_MAX: Final = 4096
"""Longer streams are cut in a few places only."""
BODY: Final = b'{"inputs": [{"name": "x", "datatype": "INT32", "shape": [1], "data": [%d]}]}'
KNOWN: Final = BODY % 7
"""Asked before all streams, so that it is a hit."""
FIRST_NUMBER: Final = 1_000_000

LAST: Final = b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
"""So that a stream that is understood to its end need not wait for a limit."""

# (kind, method, target): what is asked, most of it for its 200.
INFER: Final = (
    ("hit", b"POST", b"/v2/models/r/infer"),
    ("infer", b"POST", b"/v2/models/r/infer"),
    ("infer", b"POST", b"/v2/models/r/infer"),
    ("infer", b"POST", b"/v2/models/r/versions/1/infer"),
    ("query", b"QUERY", b"/v2/models/r/infer"),
    ("pass", b"POST", b"/v2/models/m/infer"),
    ("pass", b"POST", b"/v2/models/m/generate"),
    ("absolute", b"POST", b"http://h/v2/models/r/infer"),
    ("absolute", b"POST", b"HTTP://h:80/v2/models/r/infer"),
    ("encoded", b"POST", b"/v2/models/%72/infer"),
    ("encoded", b"POST", b"/v2/models/r/%69nfer"),
    ("search", b"POST", b"/v2/models/r/infer?x=1"),
)
OTHER: Final = (
    ("health", b"GET", b"/v2/health/live"),
    ("health", b"GET", b"/v2/health/ready"),
    ("metadata", b"GET", b"/v2/models/r"),
    ("metadata", b"GET", b"/v2/models/r/ready"),
    ("metadata", b"GET", b"/v2/models/r/config"),
    ("pass", b"GET", b"/v2/models/m"),
    ("pass", b"GET", b"/v2"),
    ("pass", b"GET", b"/v2/models/stats?a=%20b&a"),
    ("absolute", b"GET", b"http://h/v2/health/live"),
    ("encoded", b"GET", b"/v2/health/l%69ve"),
    ("head", b"HEAD", b"/v2/health/live"),
    ("head", b"HEAD", b"/v2/models/r"),
    ("head", b"HEAD", b"/v2/models/m"),
    ("options", b"OPTIONS", b"/v2/models/r/infer"),
    ("options", b"OPTIONS", b"/v2/models/m"),
    ("options", b"OPTIONS", b"*"),
    ("refused", b"PUT", b"/v2/models/r/infer"),
    ("refused", b"GET", b"/v2/models/r/infer"),
    ("refused", b"DELETE", b"/v2/health/live"),
    ("refused", b"POST", b"/v2/repository/models/m/load"),
    ("refused", b"POST", b"/v2/models/r/versions/9/infer"),
    ("refused", b"GET", b"/v2/models/r/../m"),
    ("refused", b"GET", b"/v2/models/%2e%2e/m"),
    ("refused", b"GET", b"/v2/models/%ff"),
    ("refused", b"GET", b"/v2//health/live"),
    ("refused", b"GET", b"/"),
)

FIELDS: Final = (
    b"X-A: a\r\n",
    b"x-a:b\r\n",
    b"X-EMPTY:\r\n",
    b"X-Empty: \t \r\n",
    b"X-Ows: \t a b \t\r\n",
    b"X-Latin: \xe9\xff\r\n",
    b"!#$%&'*+-.^_`|~9: odd name\r\n",
    b"X-Colons: a:b: c\r\n",
    b"User-Agent: tritonclient/2.73\r\n",
    b"Accept: application/json\r\nAccept: */*\r\n",
    b"Accept:\r\n",
    b"ACCEPT-ENCODING: gzip;q=0, identity\r\n",
    b"accept-encoding: gzip\r\nAccept-Encoding: deflate\r\n",
    b"Accept-Encoding: \r\n",
    b"content-type: application/json; charset=utf-8\r\n",
    b"Connection: keep-alive\r\n",
    b"CONNECTION: Keep-Alive\r\n",
    b"Connection: X-A\r\n",
    b"Keep-Alive: timeout=5\r\n",
    b"Max-Forwards: 0\r\n",
    b"Via: 1.1 a, 1.1 b\r\nVia: 1.0 c\r\n",
    b"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n",
    b"Cookie: a=b; c=d\r\nCookie: e=f\r\n",
    b"X-Long: " + b"l" * 7000 + b"\r\n",
    b"".join(b"X-%d: %d\r\n" % (number, number) for number in range(60)),
)
CACHING: Final = (
    b"Cache-Control: no-cache\r\n",
    b"cache-control: no-store\r\n",
    b"Cache-Control: only-if-cached\r\n",
    b"Cache-Control: max-age=0\r\nCache-Control: no-transform\r\n",
    b"Cache-Control: , ,no-cache=\"x\" ,\r\n",
    b"Cache-Control:\r\n",
    b"Pragma: no-cache\r\n",
)

# Fields that no request may have beside a host, and those that some have a length beside.
ILLEGAL_FIELDS: Final = (
    b"X : y\r\n",
    b"X\t: y\r\n",
    b" X: y\r\n",
    b"X: y\r\n folded\r\n",
    b"X: y\r\n\tfolded\r\n",
    b"X\r\n",
    b": y\r\n",
    b"X: \x00\r\n",
    b"X\x00: y\r\n",
    b"X: y\x7f\r\n",
    b"X: y\rZ: z\r\n",
    b"X: y\n",
    b"\xff: y\r\n",
    b"X(y): z\r\n",
    b"Host: h\r\n",
    b"Host: other\r\n",
    b"Content-Length: 3\r\nContent-Length: 4\r\n",
    b"Content-Length: 3\r\nContent-Length: 3\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: +3\r\n",
    b"Content-Length: 3, 3\r\n",
    b"Content-Length: 0x3\r\n",
    b"Content-Length: 18446744073709551617\r\n",
    b"Content-Length: " + b"9" * 400 + b"\r\n",
    b"Content-Length:\r\n",
    b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip\r\n",
    b"Transfer-Encoding: chunked, chunked\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"X-Over: " + b"o" * 40_000 + b"\r\n",
    b"".join(b"X-%d: %b\r\n" % (number, b"m" * 1000) for number in range(40)),
    b"Expect: more\r\n",
)
ILLEGAL_LINES: Final = (
    b"get /v2/health/live HTTP/1.1\r\n",
    b"GE T /v2/health/live HTTP/1.1\r\n",
    b"G\x00T /v2/health/live HTTP/1.1\r\n",
    b"BREW /v2/health/live HTTP/1.1\r\n",
    b" GET /v2/health/live HTTP/1.1\r\n",
    b"GET  /v2/health/live HTTP/1.1\r\n",
    b"GET /v2/health/live  HTTP/1.1\r\n",
    b"GET\t/v2/health/live\tHTTP/1.1\r\n",
    b"GET /v2/health/live\r\n",
    b"GET /v2/health/live HTTP/1.2\r\n",
    b"GET /v2/health/live HTTP/2.0\r\n",
    b"GET /v2/health/live HTTP/1.10\r\n",
    b"GET /v2/health/live http/1.1\r\n",
    b"GET /v2/health/live HTTP/1.1\n",
    b"GET /v2/health/live HTTP/1.1\rX: y\r\n",
    b"GET /v2/health\x00/live HTTP/1.1\r\n",
    b"GET /v2/health/\x7flive HTTP/1.1\r\n",
    b"GET /v2/health/\xfflive HTTP/1.1\r\n",
    b"GET v2/health/live HTTP/1.1\r\n",
    b"GET /" + b"p" * 40_000 + b" HTTP/1.1\r\n",
    b"CONNECT h:80 HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)
ILLEGAL_CHUNKS: Final = (
    b"3\r\nabcX\r\n0\r\n\r\n",
    b"zz\r\nabc\r\n0\r\n\r\n",
    b"-1\r\nabc\r\n0\r\n\r\n",
    b"3 \r\nabc\r\n0\r\n\r\n",
    b"3\nabc\n0\n\n",
    b"10000000000000000\r\nabc\r\n0\r\n\r\n",
    b"3\r\nabc\r\n0\r\nX : y\r\n\r\n",
)


TAGS: Final = (
    *sorted({kind for kind, _, _ in (*INFER, *OTHER)}),
    *("caching", "close", "upgrade", "1.0", "expect", "chunked", "pipelined", "unfinished"),
    *("illegal field", "illegal line", "illegal chunk", "whole", "every byte", "cut"),
)
"""Everything that a stream may have in it."""


class Stream(NamedTuple):
    """One connection's bytes in ``pieces``; the other side has its turn after each ``turn`` of them. ``tags``: what is
    in it. ``rests``: at each turn, what aiohttp holds is let go of if it can be."""

    pieces: tuple[bytes, ...]
    turn: int
    rests: bool
    tags: frozenset[str]


class Dice:
    """Choices out of bytes."""

    def __init__(self, shown: bytes) -> None:
        self._shown = iter(shown)

    def throw(self, sides: int) -> int:
        """0 to ``sides`` - 1, and 0 when there is nothing more to show. ``sides`` may be up to 65536."""
        value = next(self._shown, 0)
        return (value if sides <= 256 else value << 8 | next(self._shown, 0)) % sides

    def one_in(self, sides: int) -> bool:
        return self.throw(sides) == sides - 1

    def pick(self, table: Sequence[T]) -> T:
        return table[self.throw(len(table))]


def stream(shown: bytes, serial: int) -> Stream:
    """The stream of these dice; ``serial`` sets apart what it asks."""
    dice, tags = Dice(shown), set[str]()
    count = 1 + dice.throw(REQUESTS_MAX)
    cut, turn = dice.throw(8), dice.pick((1, 1, 1, REQUESTS_MAX))
    requests = [_request(dice, FIRST_NUMBER + 10 * serial, tags) for _ in range(count)]
    if count > 1:
        tags.add("pipelined")
    if dice.one_in(48):
        tags.add("unfinished")
        whole = b"".join(requests)
        raw = whole[: 1 + dice.throw(min(len(whole), 65536) - 1 or 1)]
    else:
        raw = b"".join(requests) + LAST
    pieces = _pieces(dice, raw, cut, tags)
    return Stream(pieces, max(turn, len(pieces) // TURNS_MAX), dice.throw(2) == 1, frozenset(tags))


def _pieces(dice: Dice, raw: bytes, cut: int, tags: set[str]) -> tuple[bytes, ...]:
    if cut == 0:
        tags.add("whole")
        return (raw,)
    if cut == 1 and len(raw) <= EVERY_BYTE_MAX:
        tags.add("every byte")
        return tuple(raw[at : at + 1] for at in range(len(raw)))
    tags.add("cut")
    cuts = sorted({1 + dice.throw(min(len(raw), 65536)) for _ in range(1 + dice.throw(8))} - {len(raw)})
    return tuple(raw[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(raw)], strict=True))


def _request(dice: Dice, number: int, tags: set[str]) -> bytes:
    """A request, most of them legal, that ends where it says."""
    illegal = dice.throw(16)
    infers = dice.throw(3) != 2
    kind, method, target = dice.pick(INFER if infers else OTHER)
    tags.add(kind)
    fields = list(dict.fromkeys(dice.pick(FIELDS) for _ in range(dice.throw(4))))
    if infers and kind != "hit" and dice.one_in(4):
        fields.append(dice.pick(CACHING))
        tags.add("caching")
    body = _body(dice, kind, number) if infers else b""
    version = b"HTTP/1.1"
    match dice.throw(24):
        case 23:
            fields.append(dice.pick((b"Connection: close\r\n", b"connection: a, Close\r\n")))
            tags.add("close")
        case 22:
            fields.append(b"Connection: Upgrade\r\nUpgrade: " + dice.pick((b"websocket", b"h2c")) + b"\r\n")
            tags.add("upgrade")
        case 21:
            version = b"HTTP/1.0"
            tags.add("1.0")
        case 20 | 19 if body:
            fields.append(b"Expect: 100-continue\r\n")
            tags.add("expect")
    line = method + b" " + target + b" " + version + b"\r\n"
    match illegal:
        case 15:
            fields.append(dice.pick(ILLEGAL_FIELDS))
            tags.add("illegal field")
        case 14 if dice.one_in(2):
            line = dice.pick(ILLEGAL_LINES)
            tags.add("illegal line")
        case _:
            pass
    if version == b"HTTP/1.1" and dice.one_in(8):
        fields.append(dice.pick((b"Transfer-Encoding: chunked\r\n", b"transfer-encoding:Chunked\r\n")))
        body = _chunked(dice, body, tags)
        tags.add("chunked")
    elif body or dice.one_in(4):
        length = dice.pick((b"Content-Length: %d\r\n", b"content-length:%d \r\n", b"Content-Length: 00%d\r\n"))
        fields.append(length % len(body))
    fields.insert(dice.throw(2) * len(fields), dice.pick((b"Host: h\r\n", b"host:h:80\r\n", b"HOST: [::1]:1\r\n")))
    if len(fields) > 2 and dice.one_in(2):
        fields.reverse()
    return line + b"".join(fields) + b"\r\n" + body


def _body(dice: Dice, kind: str, number: int) -> bytes:
    if kind == "hit":
        return KNOWN
    # The same again within a stream is a hit; some are no request, and must not become one.
    asked = [BODY % (number + each) for each in (0, 0, 1, 2)]
    return dice.pick((*asked, b"{}", b"", b"\x00" * 40, b"GET / HTTP/1.1\r\n\r\n"))


def _chunked(dice: Dice, body: bytes, tags: set[str]) -> bytes:
    if dice.one_in(8):
        tags.add("illegal chunk")
        return dice.pick(ILLEGAL_CHUNKS)
    extension, trailer = dice.pick((b"", b"", b";a=b", b';a="q"')), dice.pick((b"", b"", b"X-Trailer: t\r\n"))
    size = dice.pick((max(1, len(body)), 1, 7, 30))
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x%b\r\n%b\r\n" % (len(each), extension, each) for each in chunks) + b"0\r\n" + trailer + b"\r\n"
