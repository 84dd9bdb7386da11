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
WIRE_BYTES: Final = DIGEST_BYTES + 32

# The first bytes of each kind of digest, so that no request digest can ever equal a wire digest by
# construction; the number is the layout's version and must change with the layout.
_REQUEST: Final = b"tailrace request 1\n"
_WIRE: Final = b"tailrace wire 2\n"

_FIELD: Final = struct.Struct("<cQ")
_REAL: Final = struct.Struct("<d")


class Key(msgspec.Struct, frozen=True, gc=False):
    """Where an answer is true: the request's digest (16 bytes) and the epoch of the model's content."""

    digest: bytes
    epoch: int


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


def request_digest(
    *,
    route: str,
    tenant: str,
    version: str,
    inputs: Sequence[TensorView],
    parameters: Mapping[str, bool | int | float | str],
    outputs: Sequence[tuple[str, Mapping[str, bool | int | float | str]]],
) -> bytes:
    """16 bytes that name one request. Raises TypeError for a parameter of any other type.

    The order of inputs and of parameters does not matter, that of outputs does (answers keep it).
    Parameters are told apart by type as well as value: 1, 1.0, True and "1" are four requests.
    """
    hasher = blake3(b"".join((_REQUEST, _text(b"r", route), _text(b"t", tenant), _text(b"v", version))))
    hasher.update(_count(b"I", len(inputs)))
    for tensor in sorted(inputs, key=_name_of):
        data = tensor.data
        if isinstance(data, memoryview) and data.format != "B":
            data = data.cast("B")  # so that its length is in bytes, and the hash takes it
        shape = ",".join(map(str, tensor.shape))
        head = (
            _text(b"n", tensor.name),
            _text(b"d", tensor.datatype),
            _text(b"s", shape),
            _FIELD.pack(b"b", len(data)),
        )
        hasher.update(b"".join(head))
        hasher.update(data)
    tail = [_parameters(parameters), _count(b"O", len(outputs))]
    for name, asked in outputs:
        tail.append(_text(b"o", name))
        tail.append(_parameters(asked))
    hasher.update(b"".join(tail))
    return hasher.digest(length=DIGEST_BYTES)


class WireDigester:
    """Wire keys under one head verdict, which is hashed once for all of them.

    A wire key is the verdict's digest and the body's own, side by side: two fixed lengths need no frame, and
    a hasher that begins anew costs less than a copy of one that has begun.
    """

    __slots__ = ("_verdict",)

    def __init__(self, verdict: bytes) -> None:
        self._verdict = blake3(_WIRE + verdict).digest(length=DIGEST_BYTES)

    def __call__(self, body: bytes | memoryview) -> bytes:
        """The wire key of a request with exactly this body: ``WIRE_BYTES``."""
        return self._verdict + blake3(body).digest()


def _name_of(tensor: TensorView) -> str:
    return tensor.name


def _field(tag: bytes, data: bytes) -> bytes:
    return _FIELD.pack(tag, len(data)) + data


def _count(tag: bytes, count: int) -> bytes:
    return _FIELD.pack(tag, count)


def _text(tag: bytes, text: str) -> bytes:
    # surrogatepass: a lone surrogate from a lenient JSON parser is one more value, not a crash.
    return _field(tag, text.encode("utf-8", "surrogatepass"))


def _parameters(parameters: Mapping[str, bool | int | float | str]) -> bytes:
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
