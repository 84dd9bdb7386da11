"""Messages that differ only in their tensors' bytes: their JSON part is read, or written, once.

Rule of this file: a client's JSON part is byte for byte the same from call to call, and so is a model's. What it
says is remembered under those very bytes, if nothing but they and the limits decided it: every tensor's data
comes after the JSON, nothing is in shared memory or of a sequence, and there is no id (which is as good as
unique). What is remembered gives exactly what `decode_request`, `decode_response` and `encode_request` give,
errors included; a form (``tiers/inference.py``) marks what came twice, for those who remember more about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from cache.memo import Memo
from tiers.inference import COPIED_BYTES_MAX, NO_REGIONS, Form, InferRequest, InferResponse, Outline
from tiers.v2.message import DEFAULT_LIMITS, Limits
from tiers.v2.request import WireForm, decode_request, encode_header, encode_members
from tiers.v2.response import decode_response
from tiers.v2.tensors import blobs_of, outlines_of, tensors_like

FORMS_MAX: Final = 256
"""JSON parts remembered by each memo: a client makes one for each shape that it sends."""

FORM_BYTES_MAX: Final = 4096
"""Longer JSON parts are read each time. Ten tensors need a quarter of it, and what is made of one is about ten times
as large: FORMS_BYTES_MAX of them are 5 MiB in the worst case."""

FORMS_BYTES_MAX: Final = 512 * 1024
"""Of all JSON parts that one memo remembers."""


class _KnownRequest(msgspec.Struct, frozen=True):
    form: Form
    tail_bytes: int
    wire_form: WireForm


class _KnownResponse(msgspec.Struct, frozen=True):
    model: str
    version: str
    form: Form
    tail_bytes: int


class RequestForms:
    """`decode_request` within ``limits``, with a memory."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._known: Memo[bytes, _KnownRequest] = Memo(FORMS_MAX, FORMS_BYTES_MAX)

    def __len__(self) -> int:
        return len(self._known)

    @property
    def bytes_used(self) -> int:
        """Of the JSON parts that are remembered."""
        return self._known.bytes_used

    def decode(
        self, body: bytes | memoryview, json_length: int | None, model: str, version: str
    ) -> tuple[InferRequest, WireForm]:
        """As `decode_request`: raises Malformed and nothing else."""
        if json_length is None or not 0 < json_length <= FORM_BYTES_MAX:
            return decode_request(body, json_length, model, version, self._limits)
        header = bytes(body[:json_length])
        known = self._known.get(header)
        if known is not None and len(body) - json_length == known.tail_bytes:
            form = known.form
            inputs = tensors_like(form.tensors, memoryview(body)[json_length:], "input")
            return InferRequest(model, inputs, form.outputs, version, "", form.parameters, form), known.wire_form
        request, wire_form = decode_request(body, json_length, model, version, self._limits)
        tensors = outlines_of(request.inputs)
        plain = not (request.id or request.in_sequence or request.in_shared_memory)
        if tensors is not None and plain:
            form = Form(tensors, request.parameters, request.outputs)
            self._known.put(header, _KnownRequest(form, _size(tensors), wire_form), len(header))
        return request, wire_form


class ResponseForms:
    """`decode_response` within ``limits``, with a memory."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._known: Memo[bytes, _KnownResponse] = Memo(FORMS_MAX, FORMS_BYTES_MAX)

    def decode(
        self, body: bytes | memoryview, json_length: int | None, regions: Mapping[str, str] = NO_REGIONS
    ) -> InferResponse:
        """As `decode_response`: raises Malformed."""
        if json_length is None or regions or not 0 < json_length <= FORM_BYTES_MAX:
            return decode_response(body, json_length, self._limits, regions)
        header = bytes(body[:json_length])
        known = self._known.get(header)
        if known is not None and len(body) - json_length == known.tail_bytes:
            # Views of little cost more than copies of it, and who keeps the answer would have to copy it after all.
            tail = (body if len(body) <= COPIED_BYTES_MAX else memoryview(body))[json_length:]
            outputs = tensors_like(known.form.tensors, tail, "output")
            return InferResponse(known.model, known.version, outputs, "", known.form.parameters, known.form)
        response = decode_response(body, json_length, self._limits)
        tensors = outlines_of(response.outputs)
        if tensors is not None and not response.id:
            form = Form(tensors, response.parameters)
            known = _KnownResponse(response.model, response.version, form, _size(tensors))
            self._known.put(header, known, len(header))
        return response


class RequestWriter:
    """`encode_request`, with a memory of what it wrote for a form."""

    def __init__(self) -> None:
        self._known: Memo[Form, bytes] = Memo(FORMS_MAX, FORMS_BYTES_MAX)

    def encode(self, request: InferRequest, timeout: int | None) -> tuple[list[bytes | memoryview], int]:
        """As `encode_request` for the request with this ``timeout`` parameter (microseconds), or its own for None."""
        form = request.form
        if form is None:
            rest = encode_members(request)
        else:
            assert request.outputs is form.outputs, "who changes the outputs drops the form"
            known = self._known.get(form)
            if known is None:
                known = encode_members(request)
                self._known.put(form, known, len(known))
            rest = known
        parameters = request.parameters if timeout is None else {**request.parameters, "timeout": timeout}
        header = encode_header(request, parameters, rest)
        return [header, *blobs_of(request.inputs)], len(header)


def _size(tensors: tuple[Outline, ...]) -> int:
    return sum([tensor.size for tensor in tensors])
