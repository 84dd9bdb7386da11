"""The values every tier speaks: tensors, requests, answers, and what an answer was made of.

Rule of this file: a tensor's bytes are KServe v2 *binary* form whatever door they came through
(row-major, little-endian; BYTES elements each behind a 4-byte little-endian length), so equal
tensors are equal bytes and meet in one cache entry. No codec, no socket, no clock in here.

They are untracked by the garbage collector: a cache holds many, a request makes several, and none can be part of a
cycle, for they are immutable and hold nothing but values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from sys import getsizeof
from types import MappingProxyType
from typing import Final

import msgspec

from degrade.ladder import Failure, Step

Parameter = bool | int | float | str
Parameters = Mapping[str, Parameter]
NO_PARAMETERS: Final[Parameters] = MappingProxyType({})

NO_REGIONS: Final[Mapping[str, str]] = MappingProxyType({})

DATATYPE_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "BOOL": 1,
        "UINT8": 1,
        "UINT16": 2,
        "UINT32": 4,
        "UINT64": 8,
        "INT8": 1,
        "INT16": 2,
        "INT32": 4,
        "INT64": 8,
        "FP16": 2,
        "FP32": 4,
        "FP64": 8,
        "BF16": 2,
        "BYTES": 0,
    }
)
"""Bytes per element of each KServe datatype; 0 for BYTES, whose elements carry their own length."""

SHARED_MEMORY_PARAMETER: Final = "shared_memory_region"
SEQUENCE_PARAMETERS: Final = frozenset({"sequence_id", "sequence_start", "sequence_end"})
SCHEDULING_PARAMETERS: Final = frozenset({"priority", "timeout"})
"""Parameters that say when to run, never what to compute; they are not part of a request's key."""


_KEPT_WHOLE: Final = 1.0625
"""An upstream body is kept as it is when all of it but this share is the answer's tensors: copying a large one would
hold up everybody else for nothing."""

COPIED_BYTES_MAX: Final = 4096
"""Bodies up to this are copied all the same: the view of one costs more."""


class Tensor(msgspec.Struct, frozen=True, gc=False):
    """One named tensor. ``data`` is empty when ``parameters`` name a shared-memory region."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview = b""
    parameters: Parameters = NO_PARAMETERS

    @property
    def elements(self) -> int:
        """How many elements the shape holds (1 for a scalar shape ``()``)."""
        return math.prod(self.shape)

    @property
    def in_shared_memory(self) -> bool:
        return SHARED_MEMORY_PARAMETER in self.parameters


class RequestedOutput(msgspec.Struct, frozen=True, gc=False):
    """An output the caller asked for; ``parameters`` holds only what changes the answer
    (``classification``, shared memory), never the wire form (``binary_data``)."""

    name: str
    parameters: Parameters = NO_PARAMETERS


class Outline(msgspec.Struct, frozen=True, gc=False):
    """All of a tensor but its data, of which it has the ``size`` in bytes."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    size: int
    parameters: Parameters = NO_PARAMETERS


class Form(msgspec.Struct, frozen=True, eq=False):
    """What requests, or answers, that differ only in their data have in common: one object for all of them,
    known by its identity, so that what follows from it need be found out only once.

    ``outputs`` are a request's. Nothing of it is in shared memory or part of a sequence.
    """

    tensors: tuple[Outline, ...]
    parameters: Parameters
    outputs: tuple[RequestedOutput, ...] = ()


class InferRequest(msgspec.Struct, frozen=True, gc=False):
    """A request as every door understands it. ``outputs`` empty means: all the model has.

    ``form`` is there if others like it came before. Whoever changes inputs, outputs or parameters drops it.
    """

    model: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    version: str = ""
    id: str = ""
    parameters: Parameters = NO_PARAMETERS
    form: Form | None = None

    @property
    def in_shared_memory(self) -> bool:
        if self.form is not None:
            return False
        return any(tensor.in_shared_memory for tensor in self.inputs) or any(
            SHARED_MEMORY_PARAMETER in output.parameters for output in self.outputs
        )

    @property
    def regions(self) -> Mapping[str, str]:
        """Outputs that go to shared memory, and where: their answers have no bytes."""
        if self.form is not None:
            return NO_REGIONS
        asked = ((output.name, output.parameters.get(SHARED_MEMORY_PARAMETER)) for output in self.outputs)
        return {name: region for name, region in asked if isinstance(region, str)}

    @property
    def in_sequence(self) -> bool:
        return self.form is None and not SEQUENCE_PARAMETERS.isdisjoint(self.parameters)


class InferResponse(msgspec.Struct, frozen=True, gc=False):
    """A model's answer; immutable, so that one entry can be handed to any number of callers.

    ``form`` is there if others like it came before. Whoever changes outputs or parameters drops it.
    """

    model: str
    version: str
    outputs: tuple[Tensor, ...]
    id: str = ""
    parameters: Parameters = NO_PARAMETERS
    form: Form | None = None

    @property
    def size(self) -> int:
        """Bytes this answer keeps alive, for bounding a cache: what its tensors are views of, whole and once, a flat
        cost per tensor, and its parameters."""
        outputs = self.outputs
        if len(outputs) == 1 and not self.parameters and not outputs[0].parameters:
            data = outputs[0].data
            if isinstance(data, bytes):  # most are so, and each that is kept is asked for its size
                return 512 + len(data)
        held = _held(outputs)
        said = parameters_size(self.parameters) + sum([parameters_size(each.parameters) for each in self.outputs])
        return 256 + 256 * len(self.outputs) + sum(held.values()) + said

    def compact(self) -> InferResponse:
        """The same answer, fit to be kept: tensors that are small, or small parts of something larger, get bytes of
        their own. An upstream body is not kept for a few bytes of it, and a view takes 300 bytes by itself."""
        for tensor in self.outputs:
            if not isinstance(tensor.data, bytes):
                break
        else:
            return self
        used: dict[int, int] = {}
        for tensor in self.outputs:
            base = _base(tensor)
            used[id(base)] = used.get(id(base), 0) + len(tensor.data)
        held = _held(self.outputs).items()
        whole = {base for base, size in held if COPIED_BYTES_MAX < size <= _KEPT_WHOLE * used[base]}
        if len(whole) == len(used):
            return self
        outputs = tuple([tensor if id(_base(tensor)) in whole else _owning(tensor) for tensor in self.outputs])
        return msgspec.structs.replace(self, outputs=outputs)


def _owning(tensor: Tensor) -> Tensor:
    """The tensor with bytes of its own."""
    return tensor if isinstance(tensor.data, bytes) else msgspec.structs.replace(tensor, data=bytes(tensor.data))


def _base(tensor: Tensor) -> object:
    """The object whose memory the tensor's bytes are in."""
    return tensor.data.obj if isinstance(tensor.data, memoryview) else tensor.data


def parameters_size(parameters: Parameters) -> int:
    """Bytes that parameters keep alive."""
    return sum([128 + getsizeof(name) + getsizeof(value) for name, value in parameters.items()]) if parameters else 0


def _held(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes of the objects that these tensors' bytes are in, each once, by identity."""
    held: dict[int, int] = {}
    for tensor in tensors:
        data = tensor.data
        if not isinstance(data, memoryview):
            held[id(data)] = len(data)
        elif id(data.obj) not in held:
            with memoryview(data.obj) as whole:
                held[id(data.obj)] = whole.nbytes
    return held


class TableTold(msgspec.Struct, frozen=True):
    """What the rows of one look-up in a feature table are: so many as the store has them, so many old ones, so many of
    the ``snapshot``, so many defaults: of ids that the store does not have (``absent``), or that it could not tell of
    (``lost``). ``age``: seconds, of the oldest row."""

    name: str
    fresh: int = 0
    stale: int = 0
    absent: int = 0
    lost: int = 0
    age: float = 0.0
    snapshot: int = 0

    @property
    def steps(self) -> tuple[str, ...]:
        """What was taken in place of what the store would say if it were well."""
        found = ((self.stale, "stale"), (self.snapshot, "snapshot"), (self.lost, "default"))
        return tuple([f"{self.name}:{word}" for count, word in found if count])


class Provenance(msgspec.Struct, frozen=True, gc=False):
    """What an answer was made of; every door writes it on the wire (DESIGN section 7).

    ``cache`` is one of hit, stale, miss, bypass, none (refused before); ``reason`` is the one word that explains it and
    equals the metric label. ``tier`` names the model whose answer this is ("cascade" rows may mix:
    then it is the largest tier used). ``steps`` are the ladder steps taken, in order; empty means
    nothing failed. ``degraded`` means the answer is not what health would give: an old one, or a fast
    tier's that it was not sure of; another replica's answer is as good as the first's. ``rows_kept`` of its ``rows``
    were known, and not asked for; ``tables`` are those that its inputs were made of, as of then. ``age`` (of its oldest
    row) and ``ttl_left`` are in seconds, ``ttl_left`` negative once stale. ``brownout``: the level that it was made
    at.
    """

    cache: str = "miss"
    reason: str = ""
    tier: str = ""
    version: str = ""
    age: float = 0.0
    ttl_left: float | None = None
    rows: int = 0
    rows_escalated: int = 0
    rows_kept: int = 0
    tables: tuple[TableTold, ...] = ()
    steps: tuple[str, ...] = ()
    stored: bool = False
    collapsed: bool = False
    degraded: bool = False
    brownout: int = 0

    @property
    def is_aged(self) -> bool:
        """Whether any of it was made before it was asked for: only then an age is told (RFC 9111 section 5.1)."""
        return self.cache in ("hit", "stale") or self.rows_kept > 0

    @property
    def stand_in(self) -> str:
        """The last step that put something in the place of what failed; "" if none did. Another replica's answer is the
        one that was asked for."""
        return next((step for step in reversed(self.steps) if step != Step.REPLICA.value), "")


class Passed(msgspec.Struct, frozen=True):
    """Something that was passed over for its failure, and the ladder step that led on from it."""

    step: Step
    failure: Failure
    message: str


NOT_ASKED: Final = "no connection of ours was free yet, so the replica had not been asked"
"""The note on the cancellation of a call that had only waited so far: it says nothing of the replica."""


class UpstreamError(Exception):
    """A backend did not give an answer. Foreign exceptions become this at the backend's edge.

    ``failure`` drives the ladder; ``status`` is the upstream's own HTTP status, if it gave one.
    ``before_answer`` says no byte of an answer had come, so a safe request may be sent again.
    ``retry_after`` is how many seconds from now a breaker will let the next request try (0: unknown).
    ``drops`` counts the replicas that may have died of this very request: those that closed the connection
    on it without an answer, and what was asked after one had done so. ``passed`` is what had failed before.
    """

    def __init__(
        self,
        failure: Failure,
        message: str,
        status: int | None = None,
        before_answer: bool = False,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.failure = failure
        self.status = status
        self.before_answer = before_answer
        self.retry_after = retry_after
        self.drops = 1 if failure is Failure.DROPPED else 0
        self.passed: tuple[Passed, ...] = ()


class Rejected(Exception):
    """The model says the request itself is wrong (4xx): the caller's fault, so no ladder."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
