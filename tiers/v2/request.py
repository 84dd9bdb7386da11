"""Infer requests: a caller's bytes to an ``InferRequest``, and one of ours to the bytes a model gets.

Rule of this file: feed it bytes, get values or ``Malformed``; no I/O, no clock, and nothing else is ever
raised for any bytes whatever. It does not know which models exist or what they accept (that is the
gateway's validation), nor how a body was compressed (that is the wire's codec). Not supported: the "raw
binary request" form (``Inference-Header-Content-Length: 0``, the whole body is the only input), refused
with reason ``raw-binary``; no client library sends it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tiers.inference import SHARED_MEMORY_PARAMETER, InferRequest, Parameters, RequestedOutput
from tiers.v2.members import WireParameters, counted, named, parameters_of, present, text, without
from tiers.v2.message import DEFAULT_LIMITS, Limits, Malformed, check_count, check_duplicates, parsed, shown, split
from tiers.v2.reserved import OF_INPUTS, OF_OUTPUTS, OF_REQUESTS, check_reserved
from tiers.v2.tensors import TensorMember, binary_member, blobs_of, members_of, tensors_of

_BINARY_DATA: Final = "binary_data"
_BINARY_OUTPUT: Final = "binary_data_output"


class WireForm(msgspec.Struct, frozen=True):
    """Which outputs were asked for in binary: those in ``binary``, else all not in ``json`` if
    ``binary_all``. As in Triton, ``binary_data_output`` counts only when no output is listed."""

    binary_all: bool = False
    binary: frozenset[str] = frozenset()
    json: frozenset[str] = frozenset()

    def is_binary(self, output: str) -> bool:
        """Whether this output goes out as bytes after the JSON."""
        return output in self.binary or (self.binary_all and output not in self.json)


class _Output(msgspec.Struct):
    name: str
    parameters: WireParameters = msgspec.UNSET


class _Request(msgspec.Struct):
    inputs: list[TensorMember]
    id: str | msgspec.UnsetType = msgspec.UNSET
    parameters: WireParameters = msgspec.UNSET
    outputs: list[_Output] | msgspec.UnsetType = msgspec.UNSET


_REQUESTS: Final = msgspec.json.Decoder(_Request)


def decode_request(
    body: bytes | memoryview,
    json_length: int | None,
    model: str,
    version: str,
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[InferRequest, WireForm]:
    """One infer request and the form its answer is wanted in; raises Malformed and nothing else.

    ``json_length`` is Inference-Header-Content-Length, None when the header is absent (all JSON).
    Binary inputs are slices of ``body``, not copies: keep ``body`` unchanged while they live.
    """
    header, tail = split(body, json_length, limits)
    message = parsed(_REQUESTS, header)
    outputs = [] if message.outputs is msgspec.UNSET else message.outputs
    members = 1 + present(message.id, message.parameters, message.outputs)
    members += sum(members_of(tensor) for tensor in message.inputs) + counted(message.parameters)
    members += sum(1 + present(output.parameters) + counted(output.parameters) for output in outputs)
    check_duplicates(header, members, limits)
    check_count("inputs", len(message.inputs), limits.inputs_max)
    check_count("outputs", len(outputs), limits.outputs_max)
    inputs = tensors_of(message.inputs, tail, "input", limits)
    for tensor in inputs:
        check_reserved(tensor.parameters, OF_INPUTS, f"input {shown(tensor.name)}")
    parameters = parameters_of(message.parameters, "the request", limits)
    check_reserved(parameters, OF_REQUESTS, "the request")
    binary_all = parameters.get(_BINARY_OUTPUT, False)
    if not isinstance(binary_all, bool):
        raise Malformed("parameters", f"parameter {_BINARY_OUTPUT!r} must be true or false")
    wanted, form = _wanted(outputs, binary_all, limits)
    request = InferRequest(
        model=model,
        inputs=inputs,
        outputs=wanted,
        version=version,
        id=text(message.id, "id", limits),
        parameters=without(parameters, _BINARY_OUTPUT),
    )
    return request, form


def encode_request(request: InferRequest) -> tuple[list[bytes | memoryview], int]:
    """Body parts and the length of the JSON part. Inputs go as bytes, outputs are asked for as bytes.

    Only shared-memory tensors carry no bytes: their parameters name the region.
    """
    header = encode_header(request, request.parameters, encode_members(request))
    return [header, *blobs_of(request.inputs)], len(header)


def encode_header(request: InferRequest, parameters: Parameters, members: bytes) -> bytes:
    """The JSON part of a request with these parameters instead of its own, ``members`` being `encode_members`."""
    if not request.outputs:
        timeout = parameters.get("timeout")
        if type(timeout) is int and len(parameters) == 1 and not request.id:
            # A request without parameters of its own, with our time for it: most are so.
            return b'{"parameters":{"timeout":%d,"binary_data_output":true},%b' % (timeout, members)
        parameters = {**parameters, _BINARY_OUTPUT: True}
    if request.id:
        front: dict[str, object] = {"id": request.id}
        if parameters:
            front["parameters"] = dict(parameters)
        return msgspec.json.encode(front)[:-1] + b"," + members
    if parameters:
        return b'{"parameters":%b,%b' % (msgspec.json.encode(dict(parameters)), members)
    return b"{" + members


def encode_members(request: InferRequest) -> bytes:
    """The JSON part's last members, up to its end: the inputs, and the outputs if any are asked for by name."""
    inputs = [binary_member(each, None if each.in_shared_memory else len(each.data)) for each in request.inputs]
    message: dict[str, object] = {"inputs": inputs}
    if request.outputs:
        message["outputs"] = [_output_member(output) for output in request.outputs]
    return msgspec.json.encode(message)[1:]


def _wanted(
    outputs: list[_Output], binary_all: bool, limits: Limits
) -> tuple[tuple[RequestedOutput, ...], WireForm]:
    if not outputs:
        return (), WireForm(binary_all=binary_all)
    wanted: list[RequestedOutput] = []
    binary: set[str] = set()
    for output in outputs:
        name = named(output.name, "output", limits)
        parameters = parameters_of(output.parameters, f"output {shown(name)}", limits)
        check_reserved(parameters, OF_OUTPUTS, f"output {shown(name)}")
        flag = parameters.get(_BINARY_DATA, False)
        if not isinstance(flag, bool):
            raise Malformed("parameters", f"output {shown(name)}: {_BINARY_DATA!r} must be true or false")
        if flag:
            binary.add(name)
        wanted.append(RequestedOutput(name, without(parameters, _BINARY_DATA)))
    names = frozenset(output.name for output in wanted)
    return tuple(wanted), WireForm(binary=frozenset(binary), json=names - binary)


def _output_member(output: RequestedOutput) -> dict[str, object]:
    parameters = dict(output.parameters)
    if SHARED_MEMORY_PARAMETER not in parameters:
        parameters[_BINARY_DATA] = True
    return {"name": output.name, "parameters": parameters}
