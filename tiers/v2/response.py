"""Answers: a model's bytes to an ``InferResponse``, and that to the bytes of the form the caller wants.

Rule of this file: as ``request.py``'s. Answers have Triton's own layout, member for member; see
``tiers/datatype.py`` for how numbers print and for the one known difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import msgspec

from tiers.datatype import Misfit, to_json
from tiers.inference import NO_REGIONS, SHARED_MEMORY_PARAMETER, Form, InferResponse, Tensor
from tiers.v2.members import WireParameters, counted, parameters_of, present, text
from tiers.v2.message import DEFAULT_LIMITS, Limits, Malformed, check_count, check_duplicates, parsed, split
from tiers.v2.request import WireForm
from tiers.v2.tensors import BINARY_SIZE, TensorMember, binary_member, blobs_of, members_of, tensors_of

HEADERS_MAX: Final = 256
"""JSON parts of answers that are remembered as written: about as long each as what `ResponseForms` remembers."""


class _Response(msgspec.Struct):
    outputs: list[TensorMember]
    model_name: str
    model_version: str | msgspec.UnsetType = msgspec.UNSET
    id: str | msgspec.UnsetType = msgspec.UNSET
    parameters: WireParameters = msgspec.UNSET


_RESPONSES: Final = msgspec.json.Decoder(_Response)


def decode_response(
    body: bytes | memoryview,
    json_length: int | None,
    limits: Limits = DEFAULT_LIMITS,
    regions: Mapping[str, str] = NO_REGIONS,
) -> InferResponse:
    """A model's answer, in either form; raises Malformed. Binary outputs are slices of ``body``.

    NaN literals, which Triton writes in JSON, are refused here too: we always ask for binary. ``regions``: the
    outputs that went to shared memory instead, which Triton answers with neither data nor a word of where they are.
    """
    header, tail = split(body, json_length, limits)
    message = parsed(_RESPONSES, header)
    members = 2 + present(message.id, message.parameters, message.model_version) + counted(message.parameters)
    members += sum(members_of(tensor) for tensor in message.outputs)
    check_duplicates(header, members, limits)
    check_count("outputs", len(message.outputs), limits.outputs_max)
    for member in message.outputs:
        given = {} if member.parameters is msgspec.UNSET else member.parameters
        if member.name in regions and member.data is msgspec.UNSET and BINARY_SIZE not in given:
            member.parameters = {**given, SHARED_MEMORY_PARAMETER: regions[member.name]}
    return InferResponse(
        model=message.model_name,
        version=text(message.model_version, "model_version", limits),
        outputs=tensors_of(message.outputs, tail, "output", limits),
        id=text(message.id, "id", limits),
        parameters=parameters_of(message.parameters, "the response", limits),
    )


def encode_response(
    response: InferResponse, form: WireForm, request_id: str
) -> tuple[list[bytes | memoryview], int | None]:
    """Body parts and the length of the JSON part; None when the body is nothing but JSON.

    Raises Malformed for an FP16 or BF16 output that was asked for as JSON (Triton answers 400 too).
    ``request_id`` is the caller's own: a cached answer must not carry another caller's id.
    """
    if response.form is not None and not request_id:
        known = _header_like(response.form, response.model, response.version, form)
        if known is not None:
            data = blobs_of(response.outputs)
            return [known, *data], (len(known) if data else None)
    binary: list[Tensor] = []
    outputs: list[dict[str, object]] = []
    for tensor in response.outputs:
        if not tensor.in_shared_memory and form.is_binary(tensor.name):
            outputs.append(binary_member(tensor, len(tensor.data)))
            binary.append(tensor)
            continue
        member: dict[str, object] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if tensor.in_shared_memory:  # the caller knows where: it has said so itself
            outputs.append(member)
            continue
        if tensor.parameters:
            member["parameters"] = dict(tensor.parameters)
        try:
            member["data"] = msgspec.Raw(to_json(tensor.data, tensor.datatype))
        except Misfit as misfit:
            raise Malformed(misfit.reason, f"{misfit} {tensor.name}") from misfit
        outputs.append(member)
    header = _header(response, outputs, request_id)
    blobs = blobs_of(binary)
    return [header, *blobs], (len(header) if blobs else None)


def _header(answer: InferResponse, outputs: list[dict[str, object]], request_id: str) -> bytes:
    message: dict[str, object] = {"id": request_id} if request_id else {}
    message["model_name"] = answer.model
    message["model_version"] = answer.version
    if answer.parameters:
        message["parameters"] = dict(answer.parameters)
    message["outputs"] = outputs
    return msgspec.json.encode(message)


@lru_cache(maxsize=HEADERS_MAX)
def _header_like(answers: Form, model: str, version: str, form: WireForm) -> bytes | None:
    """The JSON part of every answer of this form without an id; None if some output is not wanted in binary."""
    if not all(form.is_binary(each.name) for each in answers.tensors):
        return None
    outputs = [binary_member(each, each.size) for each in answers.tensors]
    return _header(InferResponse(model, version, (), "", answers.parameters), outputs, "")
