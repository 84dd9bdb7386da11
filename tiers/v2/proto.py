"""Infer requests in protobuf (``inference.ModelInferRequest``): a caller's bytes to an ``InferRequest``, and back.

Rule of this file: as ``request.py``'s: bytes in, values or ``Malformed`` out. Raw tensors, which are nearly all of a
message, are slices of it and never pass through a protobuf object, nor do elements one by one (``contents.py``); the
rest is read by protobuf's own parser. A
tensor's bytes are the same as in the JSON protocol's binary form, so equal requests are equal values by both doors.

Stricter than Triton 2.51: raw contents that no input takes, elements that do not fit their datatype (Triton keeps
their low bits) and parameters without a value are refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

from google.protobuf.message import DecodeError, Message
from tritonclient.grpc import service_pb2

from cache.memo import Memo
from tiers.datatype import Misfit
from tiers.inference import (
    NO_PARAMETERS,
    SHARED_MEMORY_PARAMETER,
    Form,
    InferRequest,
    Outline,
    Parameter,
    Parameters,
    RequestedOutput,
    Tensor,
)
from tiers.v2.contents import from_contents, without_contents
from tiers.v2.forms import FORM_BYTES_MAX, FORMS_BYTES_MAX, FORMS_MAX
from tiers.v2.members import named, parameters_of, text
from tiers.v2.message import DEFAULT_LIMITS, Limits, Malformed, check_count, shown
from tiers.v2.reserved import OF_INPUTS, OF_OUTPUTS, OF_REQUESTS, check_reserved
from tiers.v2.tensors import check_elements, check_size, shape_of
from tiers.v2.wire import field, spans

M = TypeVar("M", bound=Message)

class ParameterEntry(Protocol):
    """An ``InferParameter``: one of its members is there."""

    bool_param: bool
    int64_param: int
    uint64_param: int
    double_param: float
    string_param: str

    def WhichOneof(self, oneof: str, /) -> str | None: ...


ParameterEntries = Mapping[str, ParameterEntry]
"""A message's map of parameters; asking for a name that is not there makes its entry."""


class TensorEntry(Protocol):
    """An input or output of a message."""

    name: str
    datatype: str
    shape: Sequence[int]
    parameters: ParameterEntries


MODEL, VERSION, ID, PARAMETERS, RAW = 1, 2, 3, 4, 7
"""Numbers of fields of ModelInferRequest; the first four are ModelInferResponse's too."""

_SIGNED: Final = 2**63


class Sketch:
    """A ModelInferRequest of which only the outermost fields are read: whose it is, and where what is.

    ``id`` is as it came. As in protobuf, of a field that comes twice the last one counts.
    """

    __slots__ = ("_cuts", "id", "message", "model", "parameters", "raws", "version")

    def __init__(self, message: bytes) -> None:
        """Raises Malformed."""
        self.message = message
        self.model = self.version = self.id = ""
        self.parameters: list[tuple[int, int]] = []
        self.raws: list[tuple[int, int]] = []
        self._cuts: list[tuple[int, int, int]] = []
        for number, begin, content, end in spans(message):
            if content < 0:
                continue
            if number == RAW:
                self.raws.append((content, end))
                self._cuts.append((number, begin, end))
            elif number == MODEL:
                self.model = _utf8(message[content:end], "model_name")
            elif number == VERSION:
                self.version = _utf8(message[content:end], "model_version")
            elif number == ID:
                self.id = _utf8(message[content:end], "id")
                self._cuts.append((number, begin, end))
            elif number == PARAMETERS:
                self.parameters.append((begin, end))

    def head(self) -> bytes:
        """The message without its id and raw tensors."""
        return self._without((ID, RAW))

    def anonymous(self) -> bytes:
        """The message without its id: itself, if it has none."""
        return self._without((ID,)) if self.id else self.message

    def sequence(self) -> str:
        """The sequence that the request is part of, as text; "" for none. Raises Malformed."""
        if not self.parameters:
            return ""
        pieces = [self.message[begin:end] for begin, end in self.parameters]
        parsed: Any = parse(service_pb2.ModelInferRequest, b"".join(pieces))
        sequence = read_parameters(parsed.parameters, "the request", DEFAULT_LIMITS).get("sequence_id")
        return str(sequence) if sequence else ""

    def _without(self, numbers: tuple[int, ...]) -> bytes:
        kept: list[bytes] = []
        at = 0
        for number, begin, end in self._cuts:
            if number in numbers:
                kept.append(self.message[at:begin])
                at = end
        kept.append(self.message[at:])
        return b"".join(kept)


class _Known:
    """What a head says that came before, and the sizes of the raw tensors that came with it."""

    __slots__ = ("form", "sizes")

    def __init__(self, form: Form, sizes: tuple[int, ...]) -> None:
        self.form = form
        self.sizes = sizes


class RequestReader:
    """Requests within ``limits``, with a memory: a client's messages differ only in their tensors' bytes, so what
    the rest of one says is remembered under its very bytes (see ``forms.py``)."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._known: Memo[bytes, _Known] = Memo(FORMS_MAX, FORMS_BYTES_MAX)

    def decode(self, sketch: Sketch) -> InferRequest:
        """The request; raises Malformed. Raw inputs are slices of the message."""
        head = sketch.head()
        identifier = text(sketch.id, "id", self._limits)
        view = memoryview(sketch.message)
        raws = [view[begin:end] for begin, end in sketch.raws]
        known = self._known.get(head)
        if known is not None and known.sizes == tuple([len(raw) for raw in raws]):
            form = known.form
            inputs = tuple([_like(outline, raw) for outline, raw in zip(form.tensors, raws, strict=True)])
            return InferRequest(
                sketch.model, inputs, form.outputs, sketch.version, identifier, form.parameters, form
            )
        request = _decode(head, raws, sketch, self._limits)
        sizes = tuple([len(raw) for raw in raws])
        plain = len(raws) == len(request.inputs) and not (request.in_sequence or request.in_shared_memory)
        if plain and 0 < len(head) <= FORM_BYTES_MAX:
            outlines = tuple(
                [Outline(each.name, each.datatype, each.shape, len(each.data), each.parameters)
                 for each in request.inputs]
            )  # fmt: skip
            self._known.put(head, _Known(Form(outlines, request.parameters, request.outputs), sizes), len(head))
        return request


def decode_request(message: bytes, limits: Limits = DEFAULT_LIMITS) -> InferRequest:
    """One ModelInferRequest; raises Malformed and nothing else. Keep ``message`` unchanged while tensors live."""
    return RequestReader(limits).decode(Sketch(message))


def encode_request(request: InferRequest, timeout: int | None = None) -> bytes:
    """A ModelInferRequest with raw contents and this ``timeout`` parameter (microseconds), or its own for None."""
    message: Any = service_pb2.ModelInferRequest(
        model_name=request.model, model_version=request.version, id=request.id
    )
    parameters = request.parameters if timeout is None else {**request.parameters, "timeout": timeout}
    write_parameters(message.parameters, parameters)
    for tensor in request.inputs:
        written = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        write_parameters(written.parameters, tensor.parameters)
    for output in request.outputs:
        write_parameters(message.outputs.add(name=output.name).parameters, output.parameters)
    head: bytes = message.SerializeToString()
    raws = [field(RAW, tensor.data) for tensor in request.inputs if not tensor.in_shared_memory]
    return b"".join((head, *(part for raw in raws for part in raw)))


def parse(kind: type[M], data: bytes) -> M:
    """A message of this kind; raises Malformed for bytes that are none."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise Malformed("protobuf", f"the message is no {kind.DESCRIPTOR.name}: {error}") from error


def write_parameters(target: ParameterEntries, parameters: Parameters) -> None:
    """Parameters into a message's map of them."""
    for name, value in parameters.items():
        entry = target[name]
        if isinstance(value, bool):
            entry.bool_param = value
        elif isinstance(value, int) and value < _SIGNED:
            entry.int64_param = value
        elif isinstance(value, int):
            entry.uint64_param = value
        elif isinstance(value, float):
            entry.double_param = value
        else:
            entry.string_param = value


def raw_tensor(outline: Outline, data: memoryview, label: str) -> Tensor:
    """A tensor whose bytes are as many as its shape needs; raises Malformed."""
    check_size(data, outline.datatype, outline.shape, label, "its raw contents have")
    if outline.datatype == "BYTES":
        check_elements(data, outline.shape, label)
    return Tensor(outline.name, outline.datatype, outline.shape, data, outline.parameters)


def outline_of(member: TensorEntry, kind: str, limits: Limits) -> tuple[Outline, str]:
    """All of a tensor but its data, and what it is called in messages; raises Malformed."""
    label = f"{kind} {shown(named(member.name, kind, limits))}"
    shape = shape_of(member.datatype, list(member.shape), label, limits)
    return Outline(member.name, member.datatype, shape, 0, read_parameters(member.parameters, label, limits)), label


def tensor_of(outline: Outline, raw: memoryview | None, contents: Sequence[memoryview], label: str) -> Tensor:
    """A tensor from its raw contents, or else from its elements; raises Malformed."""
    if raw is not None:
        if any(contents):
            raise Malformed("data", f"{label} has both contents and raw_input_contents")
        return raw_tensor(outline, raw, label)
    try:
        data = from_contents(contents, outline.datatype, math.prod(outline.shape))
    except Misfit as misfit:
        raise Malformed(misfit.reason, f"{label}: {misfit}") from misfit
    return Tensor(outline.name, outline.datatype, outline.shape, data, outline.parameters)


def check_strings(outlines: Sequence[Outline], limits: Limits) -> None:
    """Raises Malformed for more BYTES elements than may be looked at one by one."""
    strings = sum(math.prod(each.shape) for each in outlines if each.datatype == "BYTES")
    check_count("BYTES elements", strings, limits.bytes_elements_max)


def identified(message: bytes, identifier: str) -> bytes:
    """A ModelInferResponse with this id; where in a message a field is makes no difference."""
    return b"".join((*field(ID, identifier.encode()), message)) if identifier else message


def renamed(message: bytes, model: str, version: str) -> bytes:
    """A ModelInferRequest, or its answer, of this model instead; ``version`` empty: the one it names."""
    added = [*field(MODEL, model.encode())]
    if version:
        added += field(VERSION, version.encode())
    return b"".join((message, *added))


def _decode(head: bytes, raws: list[memoryview], sketch: Sketch, limits: Limits) -> InferRequest:
    if len(head) > limits.json_bytes_max:
        raise Malformed(
            "too-large",
            f"the message has {len(head)} bytes beside raw contents, at most {limits.json_bytes_max} are allowed",
            413,
        )
    plain, contents = without_contents(head)
    message: Any = parse(service_pb2.ModelInferRequest, plain)
    check_count("inputs", len(message.inputs), limits.inputs_max)
    check_count("outputs", len(message.outputs), limits.outputs_max)
    outlined = [outline_of(member, "input", limits) for member in message.inputs]
    _check_names([outline for outline, _ in outlined])
    check_strings([outline for outline, _ in outlined], limits)
    inputs: list[Tensor] = []
    left = iter(raws)
    for (outline, label), elements in zip(outlined, contents, strict=True):
        check_reserved(outline.parameters, OF_INPUTS, label)
        if SHARED_MEMORY_PARAMETER in outline.parameters:
            if any(elements):
                raise Malformed("data", f"{label} has both contents and {SHARED_MEMORY_PARAMETER}")
            inputs.append(Tensor(outline.name, outline.datatype, outline.shape, b"", outline.parameters))
            continue
        raw = next(left, None)
        if raw is None and raws:
            raise Malformed("data", f"{label} has no raw contents: there are only {len(raws)} of them")
        inputs.append(tensor_of(outline, raw, elements, label))
    over = sum(1 for _ in left)
    if over:
        raise Malformed("data", f"{over} raw contents are left over after the last input's")
    parameters = read_parameters(message.parameters, "the request", limits)
    check_reserved(parameters, OF_REQUESTS, "the request")
    return InferRequest(
        model=sketch.model,
        inputs=tuple(inputs),
        outputs=tuple([_wanted(output, limits) for output in message.outputs]),
        version=text(sketch.version, "model_version", limits),
        id=text(sketch.id, "id", limits),
        parameters=parameters,
    )


def _wanted(output: Any, limits: Limits) -> RequestedOutput:
    name = named(output.name, "output", limits)
    label = f"output {shown(name)}"
    parameters = read_parameters(output.parameters, label, limits)
    check_reserved(parameters, OF_OUTPUTS, label)
    return RequestedOutput(name, parameters)


def _like(outline: Outline, raw: memoryview) -> Tensor:
    if outline.datatype == "BYTES":
        check_elements(raw, outline.shape, f"input {shown(outline.name)}")
    return Tensor(outline.name, outline.datatype, outline.shape, raw, outline.parameters)


def _check_names(outlines: Sequence[Outline]) -> None:
    seen: set[str] = set()
    for outline in outlines:
        if outline.name in seen:
            raise Malformed("duplicate", f"duplicate input {shown(outline.name)}")
        seen.add(outline.name)


def read_parameters(given: ParameterEntries, owner: str, limits: Limits) -> Parameters:
    """The parameters of a message's map of them, within their bounds; raises Malformed."""
    if not given:
        return NO_PARAMETERS
    check_count(f"parameters in {owner}", len(given), limits.parameters_max)
    held: dict[str, Parameter | None] = {}
    for name, entry in given.items():
        kind = entry.WhichOneof("parameter_choice")
        if kind is None:
            raise Malformed("parameters", f"parameter {shown(name)} in {owner} has no value")
        held[name] = getattr(entry, kind)
    return parameters_of(held, owner, limits)


def _utf8(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Malformed("utf8", f"{what} is not valid UTF-8 at byte {error.start}") from error
