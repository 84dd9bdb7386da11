"""The KServe v2 inference protocol with Triton's binary tensor extension: bytes to values and back.

Rule of this file: feed it bytes, get values or ``Malformed``; no I/O, no clock, and nothing else is
ever raised for any bytes whatever. It does not know which models exist or what they accept (that is
the gateway's validation), nor how a body was compressed (that is the wire's codec).

Stricter than Triton, because what is decoded here becomes a cache key and is sent on re-encoded:
duplicate members and duplicate input names are refused (RapidJSON would take the first, others the
last), so are invalid UTF-8, NaN and Infinity literals (not JSON, RFC 8259), numbers outside their
datatype, data nested unlike its shape, and bytes left over. Unknown members are ignored, as Triton
does. Not supported: the "raw binary request" form (``Inference-Header-Content-Length: 0``, the whole
body is the only input), refused with reason ``raw-binary``; no client library sends it.

Answers have Triton's own layout, member for member; see ``tiers.datatype`` for how numbers print and
for the one known difference. FP16 and BF16 exist in binary only, in both directions, as in Triton.
"""

from __future__ import annotations

import json
import math
import re
from itertools import islice
from typing import Final, NamedTuple, TypeVar

import msgspec
import numpy as np

from tiers.datatype import BINARY_ONLY, Misfit, bytes_spans, from_json, to_json
from tiers.inference import (
    DATATYPE_BYTES,
    NO_PARAMETERS,
    SHARED_MEMORY_PARAMETER,
    InferRequest,
    InferResponse,
    Parameter,
    Parameters,
    RequestedOutput,
    Tensor,
)

_BINARY_SIZE: Final = "binary_data_size"
_BINARY_DATA: Final = "binary_data"
_BINARY_OUTPUT: Final = "binary_data_output"
_OVERFLOW: Final = 2**63
_SHOWN_MAX: Final = 64  # characters of a caller's own word repeated in a message

# A string, or one that never ends: always matches at a quote, so the scan is linear for any bytes.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))


class Malformed(Exception):
    """Bytes that are not the protocol. ``reason`` is one word, ``status`` is 400 or 413."""

    def __init__(self, reason: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status


class Limits(msgspec.Struct, frozen=True):
    """How much one message may ask of us; each is there so that no message can ask for more."""

    inputs_max: int = 256
    outputs_max: int = 256
    parameters_max: int = 64  # of one object
    elements_max: int = 2**31 - 1  # of one tensor; Triton's own byte counts are 32 bit in places
    bytes_elements_max: int = 2**18  # BYTES elements of all tensors: each is looked at one by one, about 0.2 us
    members_max: int = 2**16  # of all JSON objects; 256 tensors with every parameter need a tenth of it
    json_bytes_max: int = 16 * 2**20  # a JSON number costs us about 16 times its bytes while parsing
    json_depth_max: int = 16
    name_bytes_max: int = 1024  # names, ids and string parameters
    rank_max: int = 12


DEFAULT_LIMITS: Final = Limits()


class WireForm(msgspec.Struct, frozen=True):
    """Which outputs were asked for in binary: those in ``binary``, else all not in ``json`` if
    ``binary_all``. As in Triton, ``binary_data_output`` counts only when no output is listed."""

    binary_all: bool = False
    binary: frozenset[str] = frozenset()
    json: frozenset[str] = frozenset()

    def is_binary(self, output: str) -> bool:
        """Whether this output goes out as bytes after the JSON."""
        return output in self.binary or (self.binary_all and output not in self.json)


_Parameters = dict[str, Parameter] | msgspec.UnsetType


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: _Parameters = msgspec.UNSET
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct):
    name: str
    parameters: _Parameters = msgspec.UNSET


class _Request(msgspec.Struct):
    inputs: list[_Tensor]
    id: str | msgspec.UnsetType = msgspec.UNSET
    parameters: _Parameters = msgspec.UNSET
    outputs: list[_Output] | msgspec.UnsetType = msgspec.UNSET


class _Response(msgspec.Struct):
    outputs: list[_Tensor]
    model_name: str
    model_version: str | msgspec.UnsetType = msgspec.UNSET
    id: str | msgspec.UnsetType = msgspec.UNSET
    parameters: _Parameters = msgspec.UNSET


M = TypeVar("M")

_REQUESTS: Final = msgspec.json.Decoder(_Request)
_RESPONSES: Final = msgspec.json.Decoder(_Response)


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
    header, tail = _split(body, json_length, limits)
    message = _parse(_REQUESTS, header)
    outputs = [] if message.outputs is msgspec.UNSET else message.outputs
    members = 1 + _present(message.id, message.parameters, message.outputs)
    members += sum(_members(tensor) for tensor in message.inputs) + _count(message.parameters)
    members += sum(1 + _present(output.parameters) + _count(output.parameters) for output in outputs)
    _check_duplicate_members(header, members, limits)
    _check_count("inputs", len(message.inputs), limits.inputs_max)
    _check_count("outputs", len(outputs), limits.outputs_max)
    inputs = _tensors(message.inputs, tail, "input", limits)
    parameters = _parameters(message.parameters, "the request", limits)
    binary_all = parameters.get(_BINARY_OUTPUT, False)
    if not isinstance(binary_all, bool):
        raise Malformed("parameters", f"parameter {_BINARY_OUTPUT!r} must be true or false")
    wanted, form = _wanted(outputs, binary_all, limits)
    request = InferRequest(
        model=model,
        inputs=inputs,
        outputs=wanted,
        version=version,
        id=_text(message.id, "id", limits),
        parameters=_without(parameters, _BINARY_OUTPUT),
    )
    return request, form


def encode_request(request: InferRequest) -> tuple[list[bytes | memoryview], int]:
    """Body parts and the length of the JSON part. Inputs go as bytes, outputs are asked for as bytes.

    Only shared-memory tensors carry no bytes: their parameters name the region.
    """
    blobs: list[bytes | memoryview] = []
    inputs: list[dict[str, object]] = []
    for tensor in request.inputs:
        inputs.append(_binary_member(tensor, blobs))
    message: dict[str, object] = {"id": request.id} if request.id else {}
    parameters = dict(request.parameters)
    if not request.outputs:
        parameters[_BINARY_OUTPUT] = True
    if parameters:
        message["parameters"] = parameters
    message["inputs"] = inputs
    if request.outputs:
        message["outputs"] = [_output_member(output) for output in request.outputs]
    header = msgspec.json.encode(message)
    return [header, *blobs], len(header)


def decode_response(
    body: bytes | memoryview, json_length: int | None, limits: Limits = DEFAULT_LIMITS
) -> InferResponse:
    """A model's answer, in either form; raises Malformed. Binary outputs are slices of ``body``.

    NaN literals, which Triton writes in JSON, are refused here too: we always ask for binary.
    """
    header, tail = _split(body, json_length, limits)
    message = _parse(_RESPONSES, header)
    members = 2 + _present(message.id, message.parameters, message.model_version) + _count(message.parameters)
    members += sum(_members(tensor) for tensor in message.outputs)
    _check_duplicate_members(header, members, limits)
    _check_count("outputs", len(message.outputs), limits.outputs_max)
    return InferResponse(
        model=message.model_name,
        version=_text(message.model_version, "model_version", limits),
        outputs=_tensors(message.outputs, tail, "output", limits),
        id=_text(message.id, "id", limits),
        parameters=_parameters(message.parameters, "the response", limits),
    )


def encode_response(
    response: InferResponse, form: WireForm, request_id: str
) -> tuple[list[bytes | memoryview], int | None]:
    """Body parts and the length of the JSON part; None when the body is nothing but JSON.

    Raises Malformed for an FP16 or BF16 output that was asked for as JSON (Triton answers 400 too).
    ``request_id`` is the caller's own: a cached answer must not carry another caller's id.
    """
    blobs: list[bytes | memoryview] = []
    outputs: list[dict[str, object]] = []
    for tensor in response.outputs:
        if tensor.in_shared_memory or form.is_binary(tensor.name):
            outputs.append(_binary_member(tensor, blobs))
            continue
        member: dict[str, object] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if tensor.parameters:
            member["parameters"] = dict(tensor.parameters)
        try:
            member["data"] = msgspec.Raw(to_json(tensor.data, tensor.datatype))
        except Misfit as misfit:
            raise Malformed(misfit.reason, f"{misfit} {tensor.name}") from misfit
        outputs.append(member)
    message: dict[str, object] = {"id": request_id} if request_id else {}
    message["model_name"] = response.model
    message["model_version"] = response.version
    if response.parameters:
        message["parameters"] = dict(response.parameters)
    message["outputs"] = outputs
    header = msgspec.json.encode(message)
    return [header, *blobs], (len(header) if blobs else None)


def _split(body: bytes | memoryview, json_length: int | None, limits: Limits) -> tuple[bytes, memoryview]:
    """The JSON part, proven shallow and UTF-8, and the bytes after it."""
    view = memoryview(body)
    length = len(view) if json_length is None else json_length
    if json_length == 0 and len(view) > 0:
        raise Malformed(
            "raw-binary",
            "raw binary requests (Inference-Header-Content-Length: 0) are not supported; send a JSON part",
        )
    if not 0 <= length <= len(view):
        raise Malformed(
            "header-length", f"Inference-Header-Content-Length is {length}, the body has {len(view)} bytes"
        )
    if length > limits.json_bytes_max:
        raise Malformed(
            "too-large", f"the JSON part has {length} bytes, at most {limits.json_bytes_max} are allowed", 413
        )
    header = body if isinstance(body, bytes) and length == len(body) else bytes(view[:length])
    if not header:
        raise Malformed("json", "the body is empty, a JSON object was expected")
    if not header.isascii():
        try:
            header.decode()
        except UnicodeDecodeError as error:
            raise Malformed("utf8", f"the JSON is not valid UTF-8 at byte {error.start}") from error
    if header.count(b"[") + header.count(b"{") > limits.json_depth_max:
        _check_depth(header, limits.json_depth_max)
    return header, view[length:]


def _check_depth(header: bytes, depth_max: int) -> None:
    brackets = np.frombuffer(_STRING.sub(b"", header).translate(None, _NOT_BRACKETS), dtype=np.uint8)
    opens = (brackets == ord("[")) | (brackets == ord("{"))
    depth = np.cumsum(np.where(opens, 1, -1), dtype=np.int64)
    if depth.size and int(depth.max()) > depth_max:
        raise Malformed("depth", f"the JSON is nested deeper than {depth_max} levels")


def _parse(decoder: msgspec.json.Decoder[M], header: bytes) -> M:
    try:
        return decoder.decode(header)
    except msgspec.ValidationError as error:
        raise Malformed("member", str(error).replace("`", "'")) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, OverflowError) as error:
        raise Malformed("json", f"not valid JSON: {error}") from error


def _check_duplicate_members(header: bytes, members: int, limits: Limits) -> None:
    """Refuse an object that names a member twice.

    Outside strings, JSON has as many colons as members. If that equals what was decoded, nothing was
    repeated (and nothing unknown was there); only otherwise is the JSON read again, pair by pair.
    """
    if header.count(b":") == members:
        return
    colons = _STRING.sub(b"", header).count(b":")
    if colons == members:
        return
    _check_count("members in the JSON", colons, limits.members_max)
    try:
        json.loads(header, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Malformed("json", f"not valid JSON: {error}") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members: dict[str, object] = {}
    for name, value in pairs:  # one look-up a member: a hostile object must not cost its square
        if name in members:
            raise Malformed("duplicate", f"duplicate member {_shown(name)} in the JSON")
        members[name] = value
    return members


def _present(*values: object) -> int:
    return sum(value is not msgspec.UNSET for value in values)


def _count(parameters: _Parameters) -> int:
    return 0 if parameters is msgspec.UNSET else len(parameters)


def _members(tensor: _Tensor) -> int:
    return 3 + _present(tensor.parameters, tensor.data) + _count(tensor.parameters)


def _shown(text: str) -> str:
    """A caller's word in quotes, cut to a bounded length."""
    return repr(text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "...")


def _check_count(what: str, count: int, count_max: int) -> None:
    if count > count_max:
        raise Malformed("too-many", f"{count} {what}, at most {count_max} are allowed")


def _text(value: str | msgspec.UnsetType, what: str, limits: Limits) -> str:
    if value is msgspec.UNSET:
        return ""
    if len(value) > limits.name_bytes_max or len(value.encode()) > limits.name_bytes_max:
        raise Malformed("name", f"{what} is longer than {limits.name_bytes_max} bytes: {_shown(value)}")
    return value


def _name(value: str, what: str, limits: Limits) -> str:
    if not value:
        raise Malformed("name", f"an {what} has an empty name")
    return _text(value, f"the name of an {what}", limits)


def _parameters(value: _Parameters, owner: str, limits: Limits) -> Parameters:
    if value is msgspec.UNSET or not value:
        return NO_PARAMETERS
    _check_count(f"parameters in {owner}", len(value), limits.parameters_max)
    for name, item in value.items():
        _text(name, f"the name of a parameter in {owner}", limits)
        if isinstance(item, str):
            _text(item, f"parameter {_shown(name)} in {owner}", limits)
        elif isinstance(item, int) and not -_OVERFLOW <= item < 2 * _OVERFLOW:
            raise Malformed("parameters", f"parameter {_shown(name)} in {owner} does not fit 64 bits")
    return value


def _without(parameters: Parameters, *names: str) -> Parameters:
    kept = {name: value for name, value in parameters.items() if name not in names}
    return kept or NO_PARAMETERS


def _wanted(
    outputs: list[_Output], binary_all: bool, limits: Limits
) -> tuple[tuple[RequestedOutput, ...], WireForm]:
    if not outputs:
        return (), WireForm(binary_all=binary_all)
    wanted: list[RequestedOutput] = []
    binary: set[str] = set()
    for output in outputs:
        name = _name(output.name, "output", limits)
        parameters = _parameters(output.parameters, f"output {_shown(name)}", limits)
        flag = parameters.get(_BINARY_DATA, False)
        if not isinstance(flag, bool):
            raise Malformed("parameters", f"output {_shown(name)}: {_BINARY_DATA!r} must be true or false")
        if flag:
            binary.add(name)
        wanted.append(RequestedOutput(name, _without(parameters, _BINARY_DATA)))
    names = frozenset(output.name for output in wanted)
    return tuple(wanted), WireForm(binary=frozenset(binary), json=names - binary)


class _Outline(NamedTuple):
    """A tensor of which all is known but whether its elements are what the outline says."""

    message: _Tensor
    label: str
    shape: tuple[int, ...]
    parameters: Parameters
    data: memoryview | None
    """Binary data; None for a tensor that has none."""


def _tensors(messages: list[_Tensor], tail: memoryview, kind: str, limits: Limits) -> tuple[Tensor, ...]:
    """Tensors in order; binary ones take their bytes from ``tail`` in that order, and must use it up.

    What is cheap to know is known of all of them before the elements of any are looked at.
    """
    outlines: list[_Outline] = []
    seen: set[str] = set()
    at = strings = 0
    for message in messages:
        outline = _outline(message, tail[at:], kind, limits)
        if message.name in seen:
            raise Malformed("duplicate", f"duplicate {kind} {_shown(message.name)}")
        seen.add(message.name)
        if outline.data is not None:
            at += len(outline.data)
            strings += math.prod(outline.shape) if message.datatype == "BYTES" else 0
            _check_count("BYTES elements", strings, limits.bytes_elements_max)
        outlines.append(outline)
    if at != len(tail):
        raise Malformed("byte-count", f"{len(tail) - at} bytes are left over after the last {kind}'s data")
    return tuple(_tensor(outline) for outline in outlines)


def _outline(message: _Tensor, tail: memoryview, kind: str, limits: Limits) -> _Outline:
    label = f"{kind} {_shown(_name(message.name, kind, limits))}"
    shape = _shape(message, label, limits)
    parameters = _parameters(message.parameters, label, limits)
    has_data, shared = message.data is not msgspec.UNSET, SHARED_MEMORY_PARAMETER in parameters
    data: memoryview | None = None
    if _BINARY_SIZE in parameters:
        size = _binary_size(message, parameters, label)
        if size > len(tail):
            raise Malformed(
                "byte-count", f"{label}: {_BINARY_SIZE} is {size}, the body has only {len(tail)} bytes left"
            )
        data = tail[:size]
        _check_size(data, message.datatype, shape, label)
    elif has_data and shared:
        raise Malformed("data", f"{label} has both data and {SHARED_MEMORY_PARAMETER}")
    elif has_data and message.datatype in BINARY_ONLY:
        raise Malformed(
            "datatype",
            f"receiving {message.datatype} data via JSON is not supported. "
            f"Please use the binary data format for {label}",
        )
    elif not has_data and not shared:
        raise Malformed("data", f"{label} has neither data nor {_BINARY_SIZE}")
    return _Outline(message, label, shape, parameters, data)


def _tensor(outline: _Outline) -> Tensor:
    """The tensor of an outline, its elements looked at (BYTES) or read (JSON)."""
    message, shape = outline.message, outline.shape
    data: bytes | memoryview = b"" if outline.data is None else outline.data
    try:
        if outline.data is not None and message.datatype == "BYTES":
            _check_elements(outline.data, shape, outline.label)
        elif message.data is not msgspec.UNSET:
            data = from_json(memoryview(message.data), message.datatype, shape)
    except Misfit as misfit:
        raise Malformed(misfit.reason, f"{outline.label}: {misfit}") from misfit
    return Tensor(message.name, message.datatype, shape, data, _without(outline.parameters, _BINARY_SIZE))


def _shape(message: _Tensor, label: str, limits: Limits) -> tuple[int, ...]:
    if message.datatype not in DATATYPE_BYTES:
        raise Malformed("datatype", f"invalid datatype {_shown(message.datatype)} for {label}")
    if len(message.shape) > limits.rank_max:
        raise Malformed(
            "shape", f"{label}: shape has rank {len(message.shape)}, at most {limits.rank_max} is allowed"
        )
    elements = 1
    for size in message.shape:
        if size < 0:
            raise Malformed("shape", f"{label}: shape {_shape_shown(message.shape)} has a negative dimension")
        if size >= _OVERFLOW:
            raise Malformed("shape", f"{label}: a dimension of the shape overflows 64 bits")
        elements *= max(size, 1)  # a 0 must not hide the overflow of its neighbours
    if elements > limits.elements_max:
        raise Malformed(
            "shape",
            f"{label}: shape {_shape_shown(message.shape)} overflows; "
            f"a tensor holds at most {limits.elements_max} elements",
        )
    return tuple(message.shape)


def _shape_shown(shape: list[int] | tuple[int, ...]) -> str:
    return "[" + ", ".join(str(size) if abs(size) < 2 * _OVERFLOW else "huge" for size in shape) + "]"


def _binary_size(message: _Tensor, parameters: Parameters, label: str) -> int:
    if message.data is not msgspec.UNSET:
        raise Malformed("data", f"{label} has both data and {_BINARY_SIZE}")
    if SHARED_MEMORY_PARAMETER in parameters:
        raise Malformed("data", f"{label} has both {_BINARY_SIZE} and {SHARED_MEMORY_PARAMETER}")
    size = parameters[_BINARY_SIZE]
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise Malformed("byte-count", f"{label}: {_BINARY_SIZE} must be a whole number, 0 or more")
    return size


def _check_size(data: memoryview, datatype: str, shape: tuple[int, ...], label: str) -> None:
    elements = math.prod(shape)
    if datatype == "BYTES":
        if len(data) < 4 * elements:
            raise Malformed(
                "byte-count",
                f"{label}: {elements} BYTES elements need at least {4 * elements} bytes, got {len(data)}",
            )
        return
    expected = elements * DATATYPE_BYTES[datatype]
    if len(data) != expected:
        raise Malformed(
            "byte-count",
            f"{label}: shape {_shape_shown(shape)} of {datatype} needs {expected} bytes, "
            f"{_BINARY_SIZE} is {len(data)}",
        )


def _check_elements(data: memoryview, shape: tuple[int, ...], label: str) -> None:
    """Whether the BYTES elements are as many as the shape says; raises Misfit where one overruns."""
    elements = math.prod(shape)
    # One more than the shape says is enough to know: the rest of a hostile tensor is not walked.
    count = sum(1 for _ in islice(bytes_spans(data), elements + 1))
    if count != elements:
        got = "more" if count > elements else str(count)
        raise Malformed("byte-count", f"{label}: shape {_shape_shown(shape)} needs {elements} elements, got {got}")


def _binary_member(tensor: Tensor, blobs: list[bytes | memoryview]) -> dict[str, object]:
    member: dict[str, object] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
    parameters = dict(tensor.parameters)
    if not tensor.in_shared_memory:
        parameters[_BINARY_SIZE] = len(tensor.data)
        if len(tensor.data):
            blobs.append(tensor.data)
    member["parameters"] = parameters
    return member


def _output_member(output: RequestedOutput) -> dict[str, object]:
    parameters = dict(output.parameters)
    if SHARED_MEMORY_PARAMETER not in parameters:
        parameters[_BINARY_DATA] = True
    return {"name": output.name, "parameters": parameters}
