"""A call in HTTP's words, for any replica, and what comes of it; ``rpc.py`` is the same in gRPC's.

Rule of this file: values, and what their fields say. How they go over a wire is not known here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Final

from msgspec import Struct

from tiers.backends.fields import Body, Headers
from tiers.v2.message import JSON_LENGTH_HEADER

_FIELDS_MAX: Final = 64
"""Sets of fields of answers whose JSON part's length is remembered: a replica's answers have one for each model's."""


class Call(Struct, frozen=True):
    """An HTTP request for a replica. ``target`` is the raw path and query, sent verbatim, from its "/" on.
    ``probe``: it is to tell how the replica or a model is, so it waits behind nothing that callers ask; ``anew``: and
    whether one can connect to it. ``work``: it is what routes and endpoints are for, so it shares inference's
    connections; ``again``: it may be sent twice."""

    method: str
    target: str
    headers: Headers = ()
    body: Body = None
    probe: bool = False
    anew: bool = False
    work: bool = False
    again: bool = False


class Reply(Struct, frozen=True):
    """A whole answer. ``headers`` are without hop-by-hop fields; ``body`` is as encoded by the replica. ``framed``: it
    said where its body ends; else that ended with the connection, as one that was cut off does too."""

    status: int
    headers: Headers
    body: bytes
    framed: bool = True


class Streamed(Struct, frozen=True):
    """An answer under way. ``chunks`` may be read once; UpstreamError when the replica breaks off."""

    status: int
    headers: Headers
    chunks: AsyncIterator[bytes]


@lru_cache(maxsize=_FIELDS_MAX)
def json_length_of(headers: Headers) -> int | None:
    """The length of an answer's JSON part, if that is not all of it. Raises ValueError."""
    return next((int(value) for name, value in headers if name.lower() == JSON_LENGTH_HEADER.lower()), None)
