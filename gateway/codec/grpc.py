"""The gRPC wire of an inference: message bytes to values, values to message bytes, problems to statuses.

Rule of this file: as ``http.py``'s: pure, no socket, and whatever a caller sends that is wrong is ``Refused``. The
messages themselves are ``tiers/v2/proto.py``'s; what an answer was made of is told in the same words as over HTTP,
as metadata, whose names are in lower case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Final
from urllib.parse import unquote

import grpc

from gateway.admission.quota import Verdict, ratelimit_value, retry_after_value
from gateway.codec.http import provenance_headers
from gateway.problem import Problem, Refused, malformed, too_large
from tiers.inference import InferRequest, InferResponse, Provenance
from tiers.v2.message import Malformed
from tiers.v2.proto import RequestReader, Sketch
from tiers.v2.proto_response import encode_response, stream_error

Pair = tuple[str, str | bytes]
Metadata = Sequence[Pair]

STATUSES: Final = MappingProxyType(
    {
        400: grpc.StatusCode.INVALID_ARGUMENT,
        401: grpc.StatusCode.UNAUTHENTICATED,
        403: grpc.StatusCode.PERMISSION_DENIED,
        404: grpc.StatusCode.NOT_FOUND,
        405: grpc.StatusCode.UNIMPLEMENTED,
        408: grpc.StatusCode.DEADLINE_EXCEEDED,
        409: grpc.StatusCode.ALREADY_EXISTS,
        413: grpc.StatusCode.RESOURCE_EXHAUSTED,
        422: grpc.StatusCode.FAILED_PRECONDITION,  # which no client tries again
        429: grpc.StatusCode.RESOURCE_EXHAUSTED,
        431: grpc.StatusCode.RESOURCE_EXHAUSTED,
        499: grpc.StatusCode.CANCELLED,
        500: grpc.StatusCode.INTERNAL,
        501: grpc.StatusCode.UNIMPLEMENTED,
        503: grpc.StatusCode.UNAVAILABLE,
        504: grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)
"""A problem's HTTP status as gRPC's: as Triton's two doors map the errors that they have in common."""

_BY_SLUG: Final = MappingProxyType(
    {
        "model-failed": grpc.StatusCode.INTERNAL,  # what Triton answers; UNAVAILABLE would be tried again
        "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,  # likewise
        "answer-too-large": grpc.StatusCode.RESOURCE_EXHAUSTED,
        "deadline": grpc.StatusCode.DEADLINE_EXCEEDED,
        "not-cached": grpc.StatusCode.FAILED_PRECONDITION,
    }
)
"""Where the HTTP status alone would say something else to a gRPC client."""

_PEER_MAX: Final = 256
_DETAILS_CHARACTERS_MAX: Final = 1024
_NOT_PRINTABLE: Final = re.compile(r"[^\x20-\x7e]")


def sketch(message: bytes) -> Sketch:
    """The outermost fields of a ModelInferRequest. Raises Refused (400)."""
    try:
        return Sketch(message)
    except Malformed as fault:
        raise Refused(_problem(fault)) from fault


def decode(sketched: Sketch, reader: RequestReader) -> InferRequest:
    """The request itself, within the reader's limits. Raises Refused: 400 or 413."""
    try:
        return reader.decode(sketched)
    except Malformed as fault:
        raise Refused(_problem(fault)) from fault


def encode(response: InferResponse) -> bytes:
    """A ModelInferResponse without an id."""
    return encode_response(response)


def sequence_of(sketched: Sketch) -> str:
    """The sequence that a request is part of; "" for none. Raises Refused (400)."""
    try:
        return sketched.sequence()
    except Malformed as fault:
        raise Refused(_problem(fault)) from fault


def streamed_error(problem: Problem, identifier: str) -> bytes:
    """What is said in a stream of a request that went wrong: the stream goes on."""
    return stream_error(details(problem), identifier)


def status_of(problem: Problem) -> grpc.StatusCode:
    """The status of a problem; UNKNOWN for what has no counterpart."""
    return _BY_SLUG.get(problem.slug) or STATUSES.get(problem.status, grpc.StatusCode.UNKNOWN)


def details(problem: Problem) -> str:
    """A problem's sentence, of bounded length."""
    text = (problem.detail or problem.title).encode("utf-8", "replace").decode()
    return text if len(text) <= _DETAILS_CHARACTERS_MAX else text[: _DETAILS_CHARACTERS_MAX - 3] + "..."


def trailers(
    provenance: Provenance, verdict: Verdict | None, seconds: float | None = None, problem: Problem | None = None
) -> tuple[tuple[str, str], ...]:
    """Trailing metadata: what an answer was made of, its quota, and when to come back after a refusal."""
    told = [(name.lower(), value) for name, value in provenance_headers(provenance, seconds)]
    if verdict is not None:
        told += [("ratelimit", ratelimit_value(verdict)), ("ratelimit-policy", verdict.quota.policy)]
    if problem is not None:
        told.append(("tailrace-problem", problem.slug))
        if problem.retry_after is not None:
            told.append(("retry-after", retry_after_value(problem.retry_after)))
    return tuple(told)


def only(metadata: Metadata, name: str) -> str | None:
    """The one value of a name; raises Refused (400) for more than one, or one that is no text."""
    values = [value for key, value in metadata if key == name]
    if len(values) > 1:
        raise Refused(malformed(f"The metadata {name} is given {len(values)} times.", "duplicate-header"))
    if not values:
        return None
    value = values[0]
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if _NOT_PRINTABLE.search(value):
        raise Refused(malformed(f"The metadata {name} holds something else than visible ASCII.", "header"))
    return value


def joined(metadata: Metadata, name: str) -> str:
    """All values of a name, as one list."""
    return ", ".join(value for key, value in metadata if key == name and isinstance(value, str))


def passed_on(metadata: Iterable[Pair], withheld: frozenset[str]) -> tuple[Pair, ...]:
    """The metadata that a replica gets to see: not what is of the connection or of gRPC itself."""
    return tuple(
        (name, value)
        for name, value in metadata
        if name not in withheld and name not in _HOP and not name.startswith(("grpc-", ":"))
    )


_HOP: Final = frozenset({"te", "user-agent", "content-type", "connection", "host"})


def address_of(peer: str) -> str:
    """The address in a gRPC peer (``ipv4:1.2.3.4:5``, ``ipv6:%5B::1%5D:5``); "" for a unix socket."""
    kind, _, rest = unquote(peer[:_PEER_MAX]).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    host, colon, _ = rest.rpartition(":")
    return (host if colon else rest).removeprefix("[").removesuffix("]")


def _problem(fault: Malformed) -> Problem:
    return too_large(str(fault)) if fault.status == 413 else malformed(str(fault), fault.reason)
