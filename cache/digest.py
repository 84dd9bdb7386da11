"""Keys: an answer is found only where it is true.

Rule of this file: a digest covers everything it is given, framed so that no two different requests
are the same byte string (every field is a type tag, its length in bytes, its bytes; every list its
count first). It knows no protocol and never decides what belongs in a key: the caller leaves out the
request id, scheduling parameters and transport headers. Equal requests give equal digests whatever
form they came in, so tensors must be handed over in one form (KServe v2 binary).

BLAKE3 at 128 bits: callers choose the bytes, so the hash has to withstand a hostile one.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec
from blake3 import blake3

DIGEST_BYTES: Final = 16
WIRE_BYTES: Final = 2 * DIGEST_BYTES

# The first bytes of each kind of digest, so that no request digest can ever equal a wire digest by
# construction; the number is the layout's version and must change with the layout.
_REQUEST: Final = b"tailrace request 1\n"
_ROWS: Final = b"tailrace rows 1\n"
_WIRE: Final = b"tailrace wire 3\n"
_POST: Final = b"tailrace post 1\n"
_WORK: Final = b"tailrace work 1\n"

Parameters = Mapping[str, bool | int | float | str]

ROW_BYTES_AS_THEY_ARE_MAX: Final = 512
"""Rows up to this (128 numbers of 4 bytes) are their own key: that costs a tenth of a digest, and memory."""

_FIELD: Final = struct.Struct("<cQ")
_REAL: Final = struct.Struct("<d")


class Key(msgspec.Struct, frozen=True, gc=False):
    """Where an answer is true: the request's digest (16 bytes) and the epoch of the model's content."""

    digest: bytes
    epoch: int


class OutlineView(Protocol):
    """What a digest reads of a tensor beside its data; ``size`` is the data's, in bytes."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def size(self) -> int: ...


class TensorView(Protocol):
    """What a digest reads of a tensor; ``data`` is its KServe v2 binary form (C-contiguous)."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def data(self) -> bytes | memoryview: ...


class RequestDigester:
    """Digests of requests that differ in nothing but their data: the rest is framed and its beginning hashed once."""

    __slots__ = ("_begun", "_steps")

    def __init__(
        self,
        *,
        route: str,
        tenant: str,
        version: str,
        inputs: Sequence[OutlineView],
        parameters: Parameters,
        outputs: Sequence[tuple[str, Parameters]],
    ) -> None:
        """Raises TypeError for a parameter that is no bool, int, float or str."""
        pieces = [_REQUEST, _text(b"r", route), _text(b"t", tenant), _text(b"v", version), _count(b"I", len(inputs))]
        begun: list[bytes] = []  # what comes before each tensor's data
        order = sorted(range(len(inputs)), key=lambda index: inputs[index].name)
        for index in order:
            tensor = inputs[index]
            shape = ",".join(map(str, tensor.shape))
            head = (_text(b"n", tensor.name), _text(b"d", tensor.datatype), _text(b"s", shape))
            begun.append(b"".join((*pieces, *head, _FIELD.pack(b"b", tensor.size))))
            pieces = []
        pieces += (_parameters(parameters), _count(b"O", len(outputs)))
        for name, asked in outputs:
            pieces += (_text(b"o", name), _parameters(asked))
        begun.append(b"".join(pieces))
        self._begun = blake3(begun[0])
        self._steps = tuple((index, inputs[index].size, after) for index, after in zip(order, begun[1:], strict=True))

    def __call__(self, data: Sequence[bytes | memoryview]) -> bytes:
        """The digest with the inputs' data, in the inputs' order: 16 bytes."""
        hasher = self._begun.copy()
        for index, size, after in self._steps:
            part = data[index]
            assert len(part) == size, "data of another size than was framed"
            hasher.update(part)
            hasher.update(after)
        return hasher.digest(length=DIGEST_BYTES)


def request_digest(
    *,
    route: str,
    tenant: str,
    version: str,
    inputs: Sequence[TensorView],
    parameters: Parameters,
    outputs: Sequence[tuple[str, Parameters]],
) -> bytes:
    """16 bytes that name one request. Raises TypeError for a parameter of any other type.

    The order of inputs and of parameters does not matter, that of outputs does (answers keep it).
    Parameters are told apart by type as well as value: 1, 1.0, True and "1" are four requests.
    """
    data = [_in_bytes(tensor.data) for tensor in inputs]
    outlines = [
        _Outline(tensor.name, tensor.datatype, tensor.shape, len(part))
        for tensor, part in zip(inputs, data, strict=True)
    ]
    digester = RequestDigester(
        route=route, tenant=tenant, version=version, inputs=outlines, parameters=parameters, outputs=outputs
    )
    return digester(data)


class RowDigester:
    """Keys of single rows of requests that differ in nothing but their rows.

    A key is the digest of all that the rows have in common and the row itself, side by side: its bytes as they are if
    they are few, which the map that it is looked up in compares whole; else its digest, which stands alone and so has
    to withstand a hostile caller. What comes before tells which of the two it is.
    """

    __slots__ = ("_of_digests", "_of_rows")

    def __init__(
        self,
        *,
        route: str,
        tenant: str,
        version: str,
        inputs: Sequence[tuple[str, str, tuple[int, ...]]],
        parameters: Parameters,
        outputs: Sequence[tuple[str, Parameters]],
    ) -> None:
        """``inputs``: name, datatype and the shape of one row, in the order in which a row's bytes are. Raises
        TypeError for a parameter that is no bool, int, float or str."""
        pieces = [_ROWS, _text(b"r", route), _text(b"t", tenant), _text(b"v", version), _count(b"I", len(inputs))]
        for name, datatype, shape in inputs:
            pieces += (_text(b"n", name), _text(b"d", datatype), _text(b"s", ",".join(map(str, shape))))
        pieces += (_parameters(parameters), _count(b"O", len(outputs)))
        for name, asked in outputs:
            pieces += (_text(b"o", name), _parameters(asked))
        both = blake3(b"".join(pieces)).digest(length=2 * DIGEST_BYTES)
        self._of_rows, self._of_digests = both[:DIGEST_BYTES], both[DIGEST_BYTES:]

    def keys(self, rows: Sequence[bytes]) -> list[bytes]:
        """A key for each row, of at most ``DIGEST_BYTES + ROW_BYTES_AS_THEY_ARE_MAX``."""
        of_rows, of_digests, few = self._of_rows, self._of_digests, ROW_BYTES_AS_THEY_ARE_MAX
        return [
            of_rows + row if len(row) <= few else of_digests + blake3(row).digest(DIGEST_BYTES) for row in rows
        ]


def post_digest(verdict: bytes, body: bytes | memoryview) -> bytes:
    """16 bytes that name one request whose body is not read: all of its head that decides, framed, and the body."""
    hasher = blake3(_POST + _field(b"v", verdict))
    hasher.update(body)
    return hasher.digest(length=DIGEST_BYTES)


class WireDigester:
    """Wire keys under one head verdict, which is hashed once for all of them.

    A wire key is the verdict's digest and the body's own, side by side: two fixed lengths need no frame, and
    a hasher that begins anew costs less than a copy of one that has begun.
    """

    __slots__ = ("_verdict",)

    def __init__(self, verdict: bytes) -> None:
        self._verdict = blake3(_WIRE + verdict).digest(length=DIGEST_BYTES)

    def key(self, body: bytes | memoryview) -> bytes:
        """The wire key of a request with exactly this body: ``WIRE_BYTES``."""
        return self._verdict + blake3(body).digest(DIGEST_BYTES)


def work_digest(service: str, owner: str, body: bytes | memoryview, wire: bytes | None) -> bytes:
    """16 bytes that name what a body is to a route or an endpoint, from one owner. ``wire``: its wire key, if it has
    one, which holds the body's digest."""
    of_body = blake3(body).digest(DIGEST_BYTES) if wire is None else wire[DIGEST_BYTES:]
    return blake3(_WORK + of_body + _text(b"r", service) + _text(b"t", owner)).digest(DIGEST_BYTES)


class _Outline(msgspec.Struct, frozen=True, gc=False):
    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int


def _in_bytes(data: bytes | memoryview) -> bytes | memoryview:
    """Data whose length is in bytes, and which the hash takes."""
    return data.cast("B") if isinstance(data, memoryview) and data.format != "B" else data


def _field(tag: bytes, data: bytes) -> bytes:
    return _FIELD.pack(tag, len(data)) + data


def _count(tag: bytes, count: int) -> bytes:
    return _FIELD.pack(tag, count)


def _text(tag: bytes, text: str) -> bytes:
    # surrogatepass: a lone surrogate from a lenient JSON parser is one more value, not a crash.
    return _field(tag, text.encode("utf-8", "surrogatepass"))


def _parameters(parameters: Parameters) -> bytes:
    parts = [_count(b"P", len(parameters))]
    for name in sorted(parameters):
        parts.append(_text(b"p", name))
        parts.append(_value(parameters[name]))
    return b"".join(parts)


def _value(value: bool | int | float | str) -> bytes:
    if isinstance(value, bool):  # before int: a bool is one
        return _field(b"?", b"1" if value else b"0")
    if isinstance(value, int):
        return _field(b"i", b"%x" % value)  # hexadecimal: no digit limit, no width to overflow
    if isinstance(value, float):
        return _field(b"f", _REAL.pack(value))
    if isinstance(value, str):
        return _text(b"u", value)
    raise TypeError(f"a parameter is bool, int, float or str, not {type(value).__name__}")
