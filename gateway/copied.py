"""What is copied to the snapshot, as bytes and back: answers of models, rows of them, pages of endpoints.

Rule of this file: values in, values out; for any bytes a value or None. An answer and a row are bytes as the second
level has them (``parcel.py``); here is that their numbers must be numbers. What of a configuration decides an answer,
and so belongs to every copy's fingerprint, is here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
import numpy as np
from blake3 import blake3

from cache.sealed import value_of
from gateway import parcel
from gateway.config import Endpoint as EndpointConfig
from gateway.config import Route as RouteConfig
from gateway.config_tables import TableConfig
from gateway.copies import FINGERPRINT_BYTES
from gateway.endpoint import Page
from gateway.row import Row
from gateway.service import Served
from gateway.storing import Life
from tiers.inference import DATATYPE_BYTES, InferResponse, Tensor
from tiers.rows import is_row, join_rows

PAGE_LAYOUT: Final = 1
FIELDS_MAX: Final = 256
"""Header fields of a page that is copied: no head that the gateway takes has more."""
FLOATS: Final[Mapping[str, str]] = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
"""Datatypes that can be something else than a number."""
ASIDE: Final = ("quota", "caller_quota", "degrade", "default", "timeout", "priority", "brownout")
"""What of a route decides no answer that is kept."""
ASIDE_OF_ENDPOINTS: Final = ("quota", "caller_quota", "degrade", "timeout", "priority", "brownout", "cache")
TABLES_DECIDING: Final = ("key", "ids", "shape", "dtype", "fields", "feast", "default", "bounds")
"""What of a table decides what a row of it is, wherever its store is."""
NO_TABLES: Final[Mapping[str, TableConfig]] = {}


class Answers:
    """Whole answers of a route's models."""

    kind = "answer"

    def __init__(self, route: str) -> None:
        self._route = route

    def packed(self, value: Served[InferResponse], made_at: float) -> bytes | None:
        return parcel.packed(value, made_at) if is_finite(value.response.outputs) else None

    def read(self, payload: bytes) -> Served[InferResponse] | None:
        unpacked = parcel.unpacked(self._route, payload)
        return unpacked.served if unpacked is not None and is_finite(unpacked.served.response.outputs) else None


class AnswerRows:
    """Single rows of such answers."""

    kind = "row"

    def packed(self, value: Row, made_at: float) -> bytes | None:
        made = parcel.packed_made(value.made) if _is_sound(value) else None
        return None if made is None else parcel.packed_row(value, made, made_at)

    def read(self, payload: bytes) -> Row | None:
        found = parcel.Rows().unpacked(payload)
        return found[0] if found is not None and _is_sound(found[0]) else None


class _Page(msgspec.Struct, frozen=True, array_like=True):
    status: int
    fields: tuple[tuple[bytes, bytes], ...]
    body: bytes
    ttl: float
    max_stale: float


class Pages:
    """Answers of an endpoint's server."""

    kind = "page"

    def packed(self, value: Served[Page], made_at: float) -> bytes | None:
        page = value.response
        if page.life is None or len(page.fields) > FIELDS_MAX:
            return None
        fields = tuple([(_raw(name), _raw(text)) for name, text in page.fields])
        return msgspec.msgpack.encode(_Page(page.status, fields, page.body, page.life.ttl, page.life.max_stale))

    def read(self, payload: bytes) -> Served[Page] | None:
        told = value_of(_Page, payload)
        if told is None:
            return None
        fields = tuple([(_text(name), _text(text)) for name, text in told.fields])
        life = Life(0.0, told.ttl, told.max_stale)  # its age is the copy's
        return Served(Page(told.status, fields, told.body, life))


def fingerprint_of(name: str, route: RouteConfig, tables: Mapping[str, TableConfig] = NO_TABLES) -> bytes:
    """Of all that an operator says of a route and that decides its answers, wherever its servers are: a copy is good on
    another host too. ``tables``: has those whose rows it joins."""
    told = msgspec.to_builtins(route, enc_hook=str)  # durations and sizes
    for key in (*ASIDE, "cache"):  # of which two keys do
        told.pop(key)
    cache = None if route.cache is None else (route.cache.shared, route.cache.rows)
    joined = {}
    for table in () if route.features is None else route.features.tables:
        whole = msgspec.to_builtins(tables[table], enc_hook=str)
        joined[table] = {key: whole[key] for key in TABLES_DECIDING}
    written = ("tailrace answer", parcel.LAYOUT, name, told, cache, joined)
    return blake3(msgspec.msgpack.encode(written, order="sorted")).digest(FINGERPRINT_BYTES)


def fingerprint_of_endpoint(name: str, endpoint: EndpointConfig) -> bytes:
    """The same of an endpoint. Its backend's name is all that tells its server from another one."""
    told = msgspec.to_builtins(endpoint, enc_hook=str)
    for key in ASIDE_OF_ENDPOINTS:
        told.pop(key)
    shared = None if endpoint.cache is None else endpoint.cache.shared
    written = ("tailrace page", PAGE_LAYOUT, name, told, shared)
    return blake3(msgspec.msgpack.encode(written, order="sorted")).digest(FINGERPRINT_BYTES)


def is_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are numbers."""
    for output in tensors:
        kind = FLOATS.get(output.datatype)
        if kind is not None and output.data:
            try:
                numbers = np.frombuffer(output.data, kind)
            except ValueError:
                return False
            if not np.isfinite(numbers).all():
                return False
    return True


def _is_sound(row: Row) -> bool:
    plan = row.made.plan
    are_known = all(kind in DATATYPE_BYTES and min(shape, default=0) >= 0 for _, kind, shape in plan.tensors)
    if not are_known or len(plan.parameters) != len(plan.tensors) or not is_row(plan, row.data):
        return False
    floats = any(datatype in FLOATS for _, datatype, _ in plan.tensors)
    return not floats or is_finite(join_rows(plan, [row.data]))


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
