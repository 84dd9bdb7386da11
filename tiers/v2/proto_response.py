"""Answers in protobuf (``inference.ModelInferResponse``): a model's bytes to an ``InferResponse``, and that to bytes.

Rule of this file: as ``proto.py``'s. What is written has Triton's own layout: raw contents for every output, empty
ones for those that went to shared memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from tritonclient.grpc import service_pb2

from cache.memo import Memo
from tiers.inference import (
    NO_REGIONS,
    SHARED_MEMORY_PARAMETER,
    Form,
    InferResponse,
    Outline,
    Tensor,
)
from tiers.v2.contents import without_contents
from tiers.v2.forms import FORM_BYTES_MAX, FORMS_BYTES_MAX, FORMS_MAX
from tiers.v2.members import text
from tiers.v2.message import DEFAULT_LIMITS, Limits, Malformed, check_count
from tiers.v2.proto import (
    MODEL,
    check_strings,
    identified,
    outline_of,
    parse,
    raw_tensor,
    read_parameters,
    tensor_of,
    write_parameters,
)
from tiers.v2.response import HEADERS_MAX
from tiers.v2.wire import LENGTH_DELIMITED, field, spans

RAW: Final = 6
"""The number of raw_output_contents in ModelInferResponse."""

FINAL_RESPONSE: Final = "triton_final_response"
"""The parameter that Triton puts on each answer of a stream."""

_FINAL: Final = service_pb2.ModelInferResponse(
    parameters={FINAL_RESPONSE: service_pb2.InferParameter(bool_param=True)}
).SerializeToString()
_ERROR_MESSAGE, _INFER_RESPONSE = 1, 2  # fields of ModelStreamInferResponse


class _Known:
    __slots__ = ("form", "model", "sizes", "version")

    def __init__(self, model: str, version: str, form: Form, sizes: tuple[int, ...]) -> None:
        self.model = model
        self.version = version
        self.form = form
        self.sizes = sizes


class ResponseReader:
    """Answers within ``limits``, with a memory of all but their tensors' bytes (see ``forms.py``)."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._known: Memo[bytes, _Known] = Memo(FORMS_MAX, FORMS_BYTES_MAX)

    def decode(self, message: bytes, regions: Mapping[str, str] = NO_REGIONS) -> InferResponse:
        """A model's answer; raises Malformed. Raw outputs are slices of ``message``. ``regions``: the outputs that
        went to shared memory instead."""
        head, raws = _split(message)
        sizes = tuple([len(raw) for raw in raws])
        known = None if regions else self._known.get(head)
        if known is not None and known.sizes == sizes:
            pairs = zip(known.form.tensors, raws, strict=True)
            outputs = tuple([raw_tensor(outline, raw, f"output {outline.name!r}") for outline, raw in pairs])
            return InferResponse(known.model, known.version, outputs, "", known.form.parameters, known.form)
        response = _decode(head, raws, regions, self._limits)
        if not regions and not response.id and len(raws) == len(response.outputs) and len(head) <= FORM_BYTES_MAX:
            outlines = tuple(
                [Outline(each.name, each.datatype, each.shape, len(each.data), each.parameters)
                 for each in response.outputs]
            )  # fmt: skip
            form = Form(outlines, response.parameters)
            self._known.put(head, _Known(response.model, response.version, form, sizes), len(head))
        return response


def decode_response(
    message: bytes, limits: Limits = DEFAULT_LIMITS, regions: Mapping[str, str] = NO_REGIONS
) -> InferResponse:
    """One ModelInferResponse; raises Malformed and nothing else."""
    return ResponseReader(limits).decode(message, regions)


def encode_response(response: InferResponse) -> bytes:
    """A ModelInferResponse without an id: a cached answer must not carry another caller's (see ``identified``)."""
    if response.form is not None:
        head = _head_like(response.form, response.model, response.version)
    else:
        head = _head(response)
    raws = [field(RAW, b"" if tensor.in_shared_memory else tensor.data) for tensor in response.outputs]
    return b"".join((head, *(part for raw in raws for part in raw)))


def streamed(ready: bytes, identifier: str) -> bytes:
    """A ModelInferResponse as the one and last answer of a stream's request."""
    return b"".join(field(_INFER_RESPONSE, identified(ready, identifier) + _FINAL))


def stream_error(said: str, identifier: str) -> bytes:
    """What Triton says in a stream of a request that went wrong: the stream goes on."""
    error: Any = service_pb2.ModelStreamInferResponse(error_message=said)
    error.infer_response.id = identifier
    written: bytes = error.SerializeToString()
    return written


def renamed_in_stream(message: bytes, model: str) -> bytes:
    """A ModelStreamInferResponse under another model's name; one that tells of an error stays as it is.

    protobuf merges a field that comes twice, so the name is added and nothing is read.
    """
    if message[:1] == bytes([_ERROR_MESSAGE << 3 | LENGTH_DELIMITED]):
        return message
    return b"".join((message, *field(_INFER_RESPONSE, b"".join(field(MODEL, model.encode())))))


def _split(message: bytes) -> tuple[bytes, list[memoryview]]:
    view = memoryview(message)
    kept: list[bytes] = []
    raws: list[memoryview] = []
    at = 0
    for number, begin, content, end in spans(message):
        if number == RAW and content >= 0:
            raws.append(view[content:end])
            kept.append(message[at:begin])
            at = end
    kept.append(message[at:])
    return b"".join(kept), raws


def _decode(head: bytes, raws: list[memoryview], regions: Mapping[str, str], limits: Limits) -> InferResponse:
    if len(head) > limits.json_bytes_max:
        raise Malformed("too-large", f"an answer of {len(head)} bytes beside raw contents", 413)
    plain, contents = without_contents(head)
    message: Any = parse(service_pb2.ModelInferResponse, plain)
    check_count("outputs", len(message.outputs), limits.outputs_max)
    outlined = [outline_of(member, "output", limits) for member in message.outputs]
    check_strings([outline for outline, _ in outlined if outline.name not in regions], limits)
    if raws and len(raws) != len(outlined):
        raise Malformed("data", f"the answer has {len(outlined)} outputs and {len(raws)} raw contents")
    outputs: list[Tensor] = []
    for index, ((outline, label), elements) in enumerate(zip(outlined, contents, strict=True)):
        if outline.name in regions:
            parameters = {**outline.parameters, SHARED_MEMORY_PARAMETER: regions[outline.name]}
            outputs.append(Tensor(outline.name, outline.datatype, outline.shape, b"", parameters))
        else:
            outputs.append(tensor_of(outline, raws[index] if raws else None, elements, label))
    return InferResponse(
        model=message.model_name,
        version=text(message.model_version, "model_version", limits),
        outputs=tuple(outputs),
        id=text(message.id, "id", limits),
        parameters=read_parameters(message.parameters, "the response", limits),
    )


def _head(answer: InferResponse) -> bytes:
    message: Any = service_pb2.ModelInferResponse(model_name=answer.model, model_version=answer.version)
    write_parameters(message.parameters, answer.parameters)
    for tensor in answer.outputs:
        written = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if not tensor.in_shared_memory:  # the caller knows where: it has said so itself
            write_parameters(written.parameters, tensor.parameters)
    head: bytes = message.SerializeToString()
    return head


@lru_cache(maxsize=HEADERS_MAX)
def _head_like(answers: Form, model: str, version: str) -> bytes:
    """The beginning of every answer of this form."""
    outputs = tuple([Tensor(each.name, each.datatype, each.shape, b"", each.parameters) for each in answers.tensors])
    return _head(InferResponse(model, version, outputs, "", answers.parameters))
