"""Request streams whose end two readers could see in two places, each with a request hidden behind that place.

Rule of this file: data only. In each stream the hidden request is inside a body by every legal reading there
is, or the framing is illegal and nothing may be read behind it. So whoever acts on it has been desynchronised.
Sources: RFC 9112 sections 2.2, 5, 6, 7 and 11.2; RFC 9110 section 5; published request-smuggling techniques.
"""

from __future__ import annotations

from collections.abc import Iterator

HIDDEN = b"GET /v2/models/m/smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
TARGETS = {"route": b"/v2/models/r/infer", "pass": b"/v2/models/m/infer"}

LENGTHS = {
    "plus": b"+5", "minus": b"-1", "minus-zero": b"-0", "hex": b"0x5", "float": b"5.0", "exponent": b"5e0",
    "two": b"5 5", "list": b"5, 5", "other-list": b"5, 6", "trailing-comma": b"5,", "leading-comma": b",5",
    "semicolon": b"5;", "quoted": b'"5"', "empty": b"", "letters": b"five", "arabic": "٥".encode(),
    "2**64": b"18446744073709551616", "2**64+5": b"18446744073709551621", "huge": b"9" * 300,
    "vertical-tab": b"5\x0b", "nul": b"5\x00", "underscore": b"1_0", "formfeed": b"\x0c5", "letter-after": b"5a",
}  # fmt: skip

CODINGS = {
    "twice": b"chunked, chunked", "identity": b"identity", "gzip-chunked": b"gzip, chunked",
    "chunked-identity": b"chunked, identity", "chunked-gzip": b"chunked, gzip", "x": b"xchunked", "x-after": b"chunkedx",
    "vertical-tab": b"\x0bchunked", "vertical-tab-after": b"chunked\x0b", "parameter": b"chunked;q=1",
    "quoted": b'"chunked"', "empty": b"", "only-comma": b",", "inner-tab": b"chu\tnked", "nul": b"chunked\x00",
    "semicolon": b"chunked;", "equals": b"chunked=1", "cow": b"cow", "deflate": b"deflate", "space-inside": b"chun ked",
    "high-bit": b"chunked\xa0", "formfeed": b"\x0cchunked", "comma-first": b", chunked", "brackets": b"[chunked]",
}  # fmt: skip

NAMES = {
    "space-after": b"Transfer-Encoding : chunked", "tab-after": b"Transfer-Encoding\t: chunked",
    "space-before": b" Transfer-Encoding: chunked", "tab-before": b"\tTransfer-Encoding: chunked",
    "underscore": b"Transfer_Encoding: chunked", "nul-inside": b"Transfer-Enc\x00oding: chunked",
    "no-colon": b"Transfer-Encoding chunked", "vertical-tab": b"Transfer-Encoding\x0b: chunked",
    "fold": b"Transfer-Encoding:\r\n chunked", "fold-tab": b"Transfer-Encoding:\r\n\tchunked",
    "high-bit": b"Transfer-Encoding\xa0: chunked", "bare-cr": b"X: y\rTransfer-Encoding: chunked",
    "bare-lf": b"X: y\nTransfer-Encoding: chunked", "nul-line": b"X: y\x00\r\nTransfer-Encoding: chunked",
    "fold-value": b"Transfer-Encoding: chunked\r\n , identity", "brackets": b"[Transfer-Encoding]: chunked",
    "quotes": b'"Transfer-Encoding": chunked', "upper": b"TRANSFER-ENCODING: CHUNKED", "plain": b"Transfer-Encoding: chunked",
    "tab-value": b"Transfer-Encoding:\tchunked", "no-space": b"Transfer-Encoding:chunked",
    "spaces": b"Transfer-Encoding:    chunked   ", "comma": b"Transfer-Encoding, X: chunked",
}  # fmt: skip

LINES = {
    "bare-lf-end": b"Host: h\n", "bare-cr-end": b"Host: h\r", "nul-value": b"Host: h\x00\r\n", "fold": b"Host:\r\n h\r\n",
    "no-colon": b"Host h\r\n", "space-before-colon": b"Host : h\r\n", "empty-name": b": h\r\n", "leading-space": b" Host: h\r\n",
    "two-hosts": b"Host: h\r\nHost: i\r\n", "control": b"Host: h\x01\r\n", "delete": b"Host: h\x7f\r\n",
    "latin": b"Host: h\r\nX: \xff\xfe\r\n", "cr-cr-lf": b"Host: h\r\r\n", "lf-cr": b"Host: h\n\r", "slash-name": b"Ho/st: h\r\n",
    "at-name": b"Ho@st: h\r\n", "utf8-name": "Höst: h\r\n".encode(), "expect": b"Host: h\r\nExpect: 100-continue\r\n",
    "upgrade": b"Host: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n", "te": b"Host: h\r\nTE: trailers\r\n",
    "connection-length": b"Host: h\r\nConnection: Content-Length\r\n", "keep-alive": b"Host: h\r\nConnection: keep-alive, close\r\n",
    "h2c": b"Host: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
}  # fmt: skip

VERSIONS = {
    "1.0": b"HTTP/1.0", "1.10": b"HTTP/1.10", "2.0": b"HTTP/2.0", "0.9": b"HTTP/0.9", "lower": b"http/1.1", "none": b"",
    "1.1x": b"HTTP/1.1x", "1,1": b"HTTP/1,1", "space": b"HTTP /1.1", "icap": b"ICAP/1.0", "1.2": b"HTTP/1.2", "11.1": b"HTTP/11.1",
    "tab": b"\tHTTP/1.1", "nul": b"HTTP/1.1\x00", "rtsp": b"RTSP/1.0", "plus": b"HTTP/+1.1",
}  # fmt: skip

CHUNKS = {
    "hex-prefix": b"0x5\r\nhello\r\n0\r\n\r\n", "plus": b"+5\r\nhello\r\n0\r\n\r\n", "minus": b"-5\r\nhello\r\n0\r\n\r\n",
    "space-before": b" 5\r\nhello\r\n0\r\n\r\n", "overflow": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "long-size": b"1" * 5000 + b"5\r\nhello\r\n0\r\n\r\n", "bare-lf-size": b"5\nhello\r\n0\r\n\r\n",
    "bare-cr-size": b"5\rhello\r\n0\r\n\r\n", "no-end": b"5\r\nhelloXX0\r\n\r\n", "bare-lf-data": b"5\r\nhello\n0\r\n\r\n",
    "bare-lf-last": b"5\r\nhello\r\n0\n\n", "extension-lf": b"5;a=\n5\r\nhello\r\n0\r\n\r\n", "letters": b"xyz\r\nhello\r\n0\r\n\r\n",
    "empty-size": b"\r\nhello\r\n0\r\n\r\n", "too-short": b"3\r\nhello\r\n0\r\n\r\n", "nul-size": b"5\x00\r\nhello\r\n0\r\n\r\n",
    "underscore": b"1_0\r\nhello\r\n0\r\n\r\n", "comma": b"5,5\r\nhello\r\n0\r\n\r\n", "semicolon-cr": b"5;\rhello\r\n0\r\n\r\n",
    "extension-nul": b"5;a=\x00\r\nhello\r\n0\r\n\r\n", "two-sizes": b"5 5\r\nhello\r\n0\r\n\r\n", "vertical-tab": b"5\x0b\r\nhello\r\n0\r\n\r\n",
    "trailer-no-colon": b"5\r\nhello\r\n0\r\nbad trailer\r\n\r\n", "trailer-nul": b"5\r\nhello\r\n0\r\nX: \x00\r\n\r\n",
    "trailer-space": b"5\r\nhello\r\n0\r\nX : y\r\n\r\n",
}  # fmt: skip


def streams() -> Iterator[tuple[str, bytes]]:
    """(name, bytes of one connection)."""
    for where, target in TARGETS.items():
        first = b"POST " + target + b" HTTP/1.1\r\nHost: h\r\n"
        length = b"Content-Length: %d\r\n" % len(HIDDEN)
        for name, value in LENGTHS.items():
            odd = b"Content-Length: " + value + b"\r\n"
            yield f"{where} length {name}", first + odd + b"\r\n" + HIDDEN
            yield f"{where} length {name} then right", first + odd + length + b"\r\n" + HIDDEN
            yield f"{where} length right then {name}", first + length + odd + b"\r\n" + HIDDEN
        for name, value in CODINGS.items():
            odd = b"Transfer-Encoding: " + value + b"\r\n"
            yield f"{where} coding {name}", first + odd + b"\r\n" + b"0\r\n\r\n" + HIDDEN
            yield f"{where} coding {name} with length", first + odd + length + b"\r\n" + HIDDEN
        for name, line in NAMES.items():
            body = b"0\r\n\r\n" + HIDDEN
            both = b"Content-Length: %d\r\n" % len(body)
            yield f"{where} name {name} then length", first + line + b"\r\n" + both + b"\r\n" + body
            yield f"{where} length then name {name}", first + both + line + b"\r\n\r\n" + body
        for name, line in LINES.items():
            begin = b"POST " + target + b" HTTP/1.1\r\n"
            yield f"{where} line {name}", begin + line + length + b"\r\n" + HIDDEN
            yield f"{where} line {name} last", begin + length + line + b"\r\n" + HIDDEN
        for name, version in VERSIONS.items():
            yield f"{where} version {name}", b"POST " + target + b" " + version + b"\r\nHost: h\r\n" + length + b"\r\n" + HIDDEN
        for name, chunks in CHUNKS.items():
            yield f"{where} chunk {name}", first + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + HIDDEN
