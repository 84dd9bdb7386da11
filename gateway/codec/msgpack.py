"""The KServe v2 protocol in MessagePack: a caller's map to an ``InferRequest``, and an ``InferResponse`` to a map.

Rule of this file: pure functions, no I/O, no clock; for any bytes whatever a value or ``Refused``. What a member
means, and every bound, is as in the JSON form (``tiers/v2``), and equal tensors become equal requests in both.

    {"id": ..., "inputs": [{"name": ..., "shape": [...], "datatype": ..., "data": bytes, "parameters": {...}}],
     "outputs": [{"name": ..., "parameters": {...}}], "parameters": {...}}

``data`` holds the tensor's bytes in KServe's binary form (row-major, little-endian; each element of BYTES behind its
length of four bytes), or arrays of elements, or the map of msgpack-numpy, beside which ``shape`` and ``datatype`` may
be left out. ``inputs`` may be a map as well, from names to such maps. Unknown members are ignored, as Triton does;
members that come twice, ext types where anything is read, and bytes after the map are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from msgspec import Raw

from gateway.codec import ndarray, packed
from gateway.codec.http import BodyLimits
from gateway.codec.packed import ARRAY, BYTES, MAP, Packed
from gateway.problem import Refused, malformed, too_large
from tiers.inference import SHARED_MEMORY_PARAMETER, InferRequest, InferResponse, Parameter, RequestedOutput, Tensor
from tiers.v2.members import named, parameters_of, text, without
from tiers.v2.message import Limits, Malformed, check_count, shown
from tiers.v2.request import WireForm
from tiers.v2.reserved import OF_INPUTS, OF_OUTPUTS, OF_REQUESTS, check_reserved
from tiers.v2.tensors import BINARY_SIZE, shape_of

_BINARY_DATA: Final = "binary_data"
_BINARY_OUTPUT: Final = "binary_data_output"
_PARAMETERS: Final = msgspec.msgpack.Decoder(dict[str, Parameter | None])


def decode(body: Packed, model: str, version: str, limits: BodyLimits) -> tuple[InferRequest, WireForm]:
    """One infer request, and the form its answer is wanted in should it go out as V2 JSON. Raises Refused: 400 or 413.

    Tensors may be views of ``body``: keep it unchanged while the request lives.
    """
    try:
        return _decode(packed.members(body, "the request"), model, version, limits.message)
    except Malformed as fault:
        raise Refused(too_large(str(fault)) if fault.status == 413 else malformed(str(fault), fault.reason)) from fault


def encode(response: InferResponse, request_id: str, extra: Mapping[str, object] | None = None) -> bytes:
    """An answer; its tensors carry ``data`` in binary form. ``extra``: further members, after all others."""
    return msgspec.msgpack.encode({**answer_members(response, request_id), **(extra or {})})


def answer_members(response: InferResponse, request_id: str) -> dict[str, object]:
    """The members of an answer."""
    answer: dict[str, object] = {"id": request_id} if request_id else {}
    answer["model_name"] = response.model
    answer["model_version"] = response.version
    if response.parameters:
        answer["parameters"] = dict(response.parameters)
    answer["outputs"] = [_output_member(tensor) for tensor in response.outputs]
    return answer


def parameters_in(found: Mapping[str, Raw], owner: str, limits: Limits) -> dict[str, Parameter]:
    """The member ``parameters`` of a map, if it is there. Raises Malformed."""
    if "parameters" not in found:
        return {}
    raw = found["parameters"]
    packed.members(raw, f"the parameters in {owner}")  # whether one comes twice
    return dict(parameters_of(packed.read(_PARAMETERS, raw, f"a parameter in {owner}"), owner, limits))


def _decode(found: Mapping[str, Raw], model: str, version: str, limits: Limits) -> tuple[InferRequest, WireForm]:
    if "inputs" not in found:
        raise Malformed("member", "the request has no 'inputs'")
    inputs = _tensors(found["inputs"], limits)
    parameters = parameters_in(found, "the request", limits)
    check_reserved(parameters, OF_REQUESTS, "the request")
    binary_all = parameters.get(_BINARY_OUTPUT, False)
    if not isinstance(binary_all, bool):
        raise Malformed("parameters", f"parameter {_BINARY_OUTPUT!r} must be true or false")
    outputs, form = _wanted(found.get("outputs"), binary_all, limits)
    request = InferRequest(
        model=model,
        inputs=inputs,
        outputs=outputs,
        version=version,
        id="" if "id" not in found else text(packed.text(found["id"], "id"), "id", limits),
        parameters=without(parameters, _BINARY_OUTPUT),
    )
    return request, form


def _tensors(raw: Packed, limits: Limits) -> tuple[Tensor, ...]:
    by_name: Mapping[str, Raw] | None = None
    if packed.kind(raw) == MAP:
        by_name = packed.members(raw, "'inputs'")
        check_count("inputs", len(by_name), limits.inputs_max)
        listed = list(by_name.values())
    else:
        listed = packed.elements(raw, "'inputs'", limits.inputs_max)
    names = None if by_name is None else iter(by_name)
    tensors: list[Tensor] = []
    seen: set[str] = set()
    strings = 0
    for member in listed:
        found = packed.members(member, "an input")
        name = _name(found, "input") if names is None else next(names)
        named(name, "input", limits)
        if name in seen:
            raise Malformed("duplicate", f"duplicate input {shown(name)}")
        seen.add(name)
        tensor = tensor_of(name, member, found, limits)
        if tensor.datatype == "BYTES":
            strings += tensor.elements
            check_count("BYTES elements", strings, limits.bytes_elements_max)
        tensors.append(tensor)
    return tuple(tensors)


def tensor_of(
    name: str, raw: Packed, found: Mapping[str, Raw], limits: Limits, datatype: str | None = None
) -> Tensor:
    """One tensor from its map, ``found`` in ``raw``: the protocol's, or msgpack-numpy's. ``datatype``: what it is if
    the map does not say. Raises Malformed."""
    label = f"input {shown(name)}"
    if "nd" in found:
        return _from_numpy(name, raw, (None, None), label, limits)
    parameters = parameters_in(found, label, limits)
    check_reserved(parameters, OF_INPUTS, label)
    if BINARY_SIZE in parameters:
        raise Malformed("parameters", f"{label}: {BINARY_SIZE} is of the JSON form; here 'data' holds the bytes")
    shape, said = _outline(found, label, limits)
    shared = SHARED_MEMORY_PARAMETER in parameters
    if shared == ("data" in found):
        has = f"both data and {SHARED_MEMORY_PARAMETER}" if shared else "no data"
        raise Malformed("data", f"{label} has {has}")
    kind = BYTES if shared else packed.kind(found["data"])
    if kind == MAP:
        return _from_numpy(name, found["data"], (shape, said), label, limits)
    datatype = said or datatype
    if shape is None or datatype is None:
        raise Malformed("member", f"{label} has no {'shape' if shape is None else 'datatype'}")
    if shared:
        return Tensor(name, datatype, shape, b"", parameters)
    if kind == BYTES:
        view = packed.view(found["data"], f"the data of {label}")
        return Tensor(name, datatype, shape, ndarray.from_bytes(view, datatype, shape, label), parameters)
    if kind == ARRAY:
        _, _, data = ndarray.from_arrays(found["data"], datatype, shape, label, limits)
        return Tensor(name, datatype, shape, data, parameters)
    raise Malformed("data", f"the data of {label} must be {BYTES}, {ARRAY} or {MAP}, got {kind}")


def _outline(found: Mapping[str, Raw], label: str, limits: Limits) -> tuple[tuple[int, ...] | None, str | None]:
    """What a tensor's map says of shape and datatype."""
    datatype = None if "datatype" not in found else packed.text(found["datatype"], f"the datatype of {label}")
    if "shape" not in found:
        return None, datatype
    return shape_of(datatype or "BYTES", ndarray.shape_in(found["shape"], label, limits), label, limits), datatype


def _from_numpy(
    name: str, raw: Packed, told: tuple[tuple[int, ...] | None, str | None], label: str, limits: Limits
) -> Tensor:
    """A tensor whose data is a numpy array, which says what it is; what is said beside it must be the same."""
    shape, datatype, data = ndarray.from_numpy(raw, label, limits)
    for said, held in ((told[0], shape), (told[1], datatype)):
        if said is not None and said != held:
            raise Malformed("data", f"{label} is said to be {said}, and its numpy array is {held}")
    return Tensor(name, datatype, shape, data)


def _wanted(raw: Raw | None, binary_all: bool, limits: Limits) -> tuple[tuple[RequestedOutput, ...], WireForm]:
    if raw is None:
        return (), WireForm(binary_all=binary_all)
    wanted: list[RequestedOutput] = []
    binary: set[str] = set()
    for member in packed.elements(raw, "'outputs'", limits.outputs_max):
        found = packed.members(member, "an output")
        name = named(_name(found, "output"), "output", limits)
        label = f"output {shown(name)}"
        parameters = parameters_in(found, label, limits)
        check_reserved(parameters, OF_OUTPUTS, label)
        flag = parameters.get(_BINARY_DATA, False)
        if not isinstance(flag, bool):
            raise Malformed("parameters", f"{label}: {_BINARY_DATA!r} must be true or false")
        if flag:
            binary.add(name)
        wanted.append(RequestedOutput(name, without(parameters, _BINARY_DATA)))
    if not wanted:
        return (), WireForm(binary_all=binary_all)
    names = frozenset(output.name for output in wanted)
    return tuple(wanted), WireForm(binary=frozenset(binary), json=names - binary)


def _name(found: Mapping[str, Raw], kind: str) -> str:
    if "name" not in found:
        raise Malformed("member", f"an {kind} has no 'name'")
    return packed.text(found["name"], f"the name of an {kind}")


def _output_member(tensor: Tensor) -> dict[str, object]:
    member: dict[str, object] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
    if tensor.in_shared_memory:  # the caller knows where: it has said so itself
        return member
    if tensor.parameters:
        member["parameters"] = dict(tensor.parameters)
    member["data"] = tensor.data
    return member
