"""Requests and answers of plain values, in JSON or MessagePack: for who has a list of numbers and no protocol.

Rule of this file: pure functions, no I/O, no clock; for any bytes whatever a value or ``Refused``. What a value is
(datatype, rank) is not said but is the model's own, so its facts are needed before a request can be understood.

    {"inputs": {"x": [[1, 2, 3]]}, "outputs": ["y"], "parameters": {...}, "id": "..."}
    {"model": "m", "version": "1", "outputs": {"y": [[0.5]]}, "provenance": {"cache": "hit", ...}}

A tensor is nested exactly as deep as the model's shape, its batch included; a map stands for one that says more: the
protocol's (``data``, and ``shape`` and ``datatype`` where they matter), or in MessagePack msgpack-numpy's. Members that
are not known are refused: a misspelt ``outputs`` must not mean all of them. In answers NaN and infinities are null in
JSON, which has no word for them; BYTES are strings in JSON, and bytes in MessagePack.
"""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
from msgspec import UNSET, Raw, UnsetType

from gateway.codec import msgpack, ndarray, packed
from gateway.codec.http import BodyLimits, Buffer
from gateway.codec.packed import ARRAY, BYTES, MAP
from gateway.problem import Problem, Refused, answer_too_large, invalid, malformed, too_large
from tiers.datatype import Misfit, bytes_elements, from_json, from_nested_json, numbers
from tiers.facts import ModelFacts, TensorFact
from tiers.inference import InferRequest, InferResponse, Provenance, RequestedOutput, Tensor
from tiers.v2.members import WireParameters, counted, named, parameters_of, present, text
from tiers.v2.message import Limits, Malformed, check_count, check_duplicates, check_members, parsed, shown, split
from tiers.v2.reserved import OF_REQUESTS, check_reserved
from tiers.v2.tensors import shape_of

ELEMENTS_MAX: Final = 2**22
"""Of an answer in plain values: each is an object of some 30 bytes before it is written. The protocol has no such
bound."""

_MEMBERS: Final = frozenset({"inputs", "outputs", "parameters", "id"})


class _Plain(msgspec.Struct, forbid_unknown_fields=True):
    inputs: dict[str, Raw]
    outputs: list[str] | UnsetType = UNSET
    parameters: WireParameters = UNSET
    id: str | UnsetType = UNSET


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    data: Raw
    shape: list[int] | UnsetType = UNSET
    datatype: str | UnsetType = UNSET


_PLAIN: Final = msgspec.json.Decoder(_Plain)
_TENSORS: Final = msgspec.json.Decoder(_Tensor)
_NAMES: Final = msgspec.msgpack.Decoder(list[str])


class Subject(msgspec.Struct, frozen=True):
    """Of what a request asks. ``beside``: members of its map that are not for us here."""

    model: str
    version: str
    facts: ModelFacts
    beside: frozenset[str] = frozenset()


def decode_json(body: Buffer, subject: Subject, limits: BodyLimits) -> InferRequest:
    """One request in JSON. Raises Refused: 400 or 413."""
    try:
        return _from_json(body, subject, limits.message)
    except Malformed as fault:
        raise _refused(fault) from fault


def decode_packed(body: Buffer, subject: Subject, limits: BodyLimits) -> InferRequest:
    """One request in MessagePack; tensors of bytes are views of ``body``. Raises Refused: 400 or 413."""
    try:
        return _from_packed(body, subject, limits.message)
    except Malformed as fault:
        raise _refused(fault) from fault


def encode(response: InferResponse, provenance: Provenance | None, request_id: str, packs: bool) -> bytes:
    """An answer, in MessagePack if ``packs``. ``provenance`` None: others tell. Raises Refused: 503 for one that is too
    large for plain values, 406 for bytes that are no text in JSON."""
    elements = sum(tensor.elements for tensor in response.outputs)
    if elements > ELEMENTS_MAX:
        most = f"plain values are written up to {ELEMENTS_MAX}"
        raise Refused(answer_too_large(f"The answer has {elements} elements, and {most}; ask for it by infer."))
    document: dict[str, object] = {"id": request_id} if request_id else {}
    document["model"] = response.model
    document["version"] = response.version
    document["outputs"] = {tensor.name: _values(tensor, packs) for tensor in response.outputs}
    if response.parameters:
        document["parameters"] = dict(response.parameters)
    if provenance is not None:
        document["provenance"] = provenance_members(provenance)
    return msgspec.msgpack.encode(document) if packs else msgspec.json.encode(document)


def provenance_members(provenance: Provenance) -> dict[str, object]:
    """What an answer tells of itself, but for its seconds: the same for all hits of an entry."""
    told: dict[str, object] = {"cache": provenance.cache, "reason": provenance.reason}
    if provenance.tier:
        told["tier"] = provenance.tier
        told["version"] = provenance.version
    if provenance.rows:
        told["rows"] = provenance.rows
        told["escalated"] = provenance.rows_escalated
    if provenance.rows_kept:
        told["kept"] = provenance.rows_kept
    if provenance.tables:
        told["tables"] = [msgspec.structs.asdict(each) for each in provenance.tables]
    if provenance.steps:
        told["steps"] = provenance.steps
    if provenance.brownout:
        told["brownout"] = provenance.brownout
    told["degraded"] = provenance.degraded
    return told


def _from_json(body: Buffer, subject: Subject, limits: Limits) -> InferRequest:
    header, _ = split(body, None, limits)
    check_members(header, limits)
    message = parsed(_PLAIN, header)
    check_count("inputs", len(message.inputs), limits.inputs_max)
    members = 1 + present(message.outputs, message.parameters, message.id)
    members += len(message.inputs) + counted(message.parameters)
    maps = {name: parsed(_TENSORS, bytes(raw)) for name, raw in message.inputs.items() if _is_object(raw)}
    members += sum(1 + present(each.shape, each.datatype) for each in maps.values())
    check_duplicates(header, members, limits)
    tensors = []
    for name, raw in message.inputs.items():
        fact, label = _fact(name, subject.facts, limits)
        try:
            tensors.append(_tensor(name, maps.get(name), raw, fact, limits))
        except Misfit as misfit:
            raise Malformed(misfit.reason, f"{label}: {misfit}") from misfit
    outputs = [] if message.outputs is UNSET else message.outputs
    parameters = parameters_of(message.parameters, "the request", limits)
    check_reserved(parameters, OF_REQUESTS, "the request")
    return InferRequest(
        model=subject.model,
        version=subject.version,
        inputs=tuple(tensors),
        outputs=_wanted(outputs, limits),
        parameters=parameters,
        id=text(message.id, "id", limits),
    )


def _is_object(raw: Raw) -> bool:
    return bytes(memoryview(raw)[:1]) == b"{"


def _tensor(name: str, said: _Tensor | None, raw: Raw, fact: TensorFact, limits: Limits) -> Tensor:
    if said is None or said.shape is UNSET:
        datatype = fact.datatype if said is None or said.datatype is UNSET else said.datatype
        shape_of(datatype, (), f"input {shown(name)}", limits)  # whether there is such a datatype
        shape, data = from_nested_json(memoryview(raw if said is None else said.data), datatype, len(fact.shape))
        return Tensor(name, datatype, shape, data)
    datatype = fact.datatype if said.datatype is UNSET else said.datatype
    shape = shape_of(datatype, said.shape, f"input {shown(name)}", limits)
    return Tensor(name, datatype, shape, from_json(memoryview(said.data), datatype, shape))


def _from_packed(body: Buffer, subject: Subject, limits: Limits) -> InferRequest:
    found = packed.members(body, "the request")
    unknown = [name for name in found if name not in _MEMBERS and name not in subject.beside]
    if unknown:
        raise Malformed("member", f"the request has an unknown member {shown(unknown[0])}")
    if "inputs" not in found:
        raise Malformed("member", "the request has no 'inputs'")
    inputs = packed.members(found["inputs"], "'inputs'")
    check_count("inputs", len(inputs), limits.inputs_max)
    tensors = tuple(_packed_tensor(name, raw, subject.facts, limits) for name, raw in inputs.items())
    outputs: list[str] = []
    if "outputs" in found:
        packed.elements(found["outputs"], "'outputs'", limits.outputs_max)
        outputs = packed.read(_NAMES, found["outputs"], "'outputs'")
    parameters = msgpack.parameters_in(found, "the request", limits)
    check_reserved(parameters, OF_REQUESTS, "the request")
    return InferRequest(
        model=subject.model,
        version=subject.version,
        inputs=tensors,
        outputs=_wanted(outputs, limits),
        parameters=parameters,
        id="" if "id" not in found else text(packed.text(found["id"], "id"), "id", limits),
    )


def _packed_tensor(name: str, raw: Raw, facts: ModelFacts, limits: Limits) -> Tensor:
    fact, label = _fact(name, facts, limits)
    datatype, rank = fact.datatype, len(fact.shape)
    value: packed.Packed = raw
    if packed.kind(raw) == MAP:
        members = packed.members(raw, label)
        value = members.get("data", raw)
        if packed.kind(value) in (MAP, BYTES) or not members.keys() <= {"data", "datatype"}:
            return msgpack.tensor_of(name, raw, members, limits, datatype)
        if "datatype" in members:
            datatype = packed.text(members["datatype"], f"the datatype of {label}")
            shape_of(datatype, (), label, limits)  # whether there is such a datatype
    if rank and packed.kind(value) != ARRAY:
        raise Malformed("data", f"{label} must be {ARRAY} or {MAP}, got {packed.kind(value)}")
    nesting = ndarray.nesting_of(value, limits)
    if nesting != rank:
        raise Malformed("shape", f"{label}: data is nested {nesting} deep, the model takes rank {rank}")
    if rank == 0:
        value = b"\x91" + memoryview(value)
    shape, _, data = ndarray.from_arrays(value, datatype, None, label, limits)
    return Tensor(name, datatype, shape if rank else (), data)


def _fact(name: str, facts: ModelFacts, limits: Limits) -> tuple[TensorFact, str]:
    """What the model says of an input, and how to call it. Raises Refused for one that it does not have."""
    label = f"input {shown(named(name, 'input', limits))}"
    for fact in facts.inputs:
        if fact.name == name:
            return fact, label
    takes = ", ".join(shown(fact.name) for fact in facts.inputs[:8])
    raise Refused(invalid(f"unexpected {label} for model {shown(facts.name)}; it takes {takes}", "unknown-input"))


def _wanted(names: list[str], limits: Limits) -> tuple[RequestedOutput, ...]:
    check_count("outputs", len(names), limits.outputs_max)
    return tuple(RequestedOutput(named(name, "output", limits)) for name in names)


def _values(tensor: Tensor, packs: bool) -> object:
    """A tensor as lists in lists; one element for a shape without dimensions."""
    if tensor.datatype == "BYTES":
        items = np.empty(tensor.elements, dtype=object)
        held = bytes_elements(tensor.data)
        items[:] = held if packs else [_text(each, tensor) for each in held]
        return items.reshape(tensor.shape).tolist()
    found: object
    if tensor.datatype == "BOOL":
        found = (np.frombuffer(tensor.data, dtype=np.uint8) != 0).reshape(tensor.shape).tolist()
    else:
        found = numbers(tensor.data, tensor.datatype).reshape(tensor.shape).tolist()
    return found


def _text(element: bytes, tensor: Tensor) -> str:
    try:
        return element.decode()
    except UnicodeDecodeError:
        detail = f"Output {shown(tensor.name)} holds bytes that are no text; ask with Accept: application/msgpack."
        raise Refused(Problem("not-acceptable", 406, "Not acceptable", detail)) from None


def _refused(fault: Malformed) -> Refused:
    return Refused(too_large(str(fault)) if fault.status == 413 else malformed(str(fault), fault.reason))
