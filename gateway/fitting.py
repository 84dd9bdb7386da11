"""Whether what another process has left for a request can be an answer to it, by what the models say of themselves.

A store may hold what nobody of ours has written there, whole and under the right key: of another shape, of another
datatype, with fewer bytes than it says. Such a thing must not reach a caller, nor an assertion of ours.

Rule of this file: it decides, and asks nobody. That values are the right ones nobody can tell.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from gateway.service import Served
from tiers.datatype import FLOATS, numbers
from tiers.facts import ModelFacts, TensorFact
from tiers.inference import DATATYPE_BYTES, NO_PARAMETERS, InferRequest, InferResponse, Parameters, Tensor
from tiers.rows import Plan, is_row

CLASSIFICATION: Final = "classification"
NAN_BYTES_MAX: Final = 2 * 1024 * 1024
"""Looked through in a millisecond or two of the event loop."""
SUMMED_BYTES_MAX: Final = 256
"""What is no more is summed up first, in a third of the time that numpy takes to begin: a sum with NaN in it is NaN."""
_LETTERS: Final = {"FP32": ("f", 4), "FP64": ("d", 8)}
_INFINITY_BITS: Final = {"FP16": 0x7C00, "BF16": 0x7F80}
TEXTS_MAX: Final = 16_384
"""Elements of BYTES in an answer: each is looked at, which takes milliseconds. An answer of more is not left."""


def has_nan(outputs: Iterable[Tensor]) -> bool:
    """Whether some number of an answer is none: a fault's, as a rule. Infinities may mean something. Nobody looks at
    more than NAN_BYTES_MAX of it."""
    left = NAN_BYTES_MAX
    for output in outputs:
        if output.datatype not in FLOATS:
            continue
        left -= len(output.data)
        if left < 0:
            break
        try:
            if _holds_nan(output.data, output.datatype):
                return True
        except ValueError:  # no whole elements: somebody else's to say
            continue
    return False


def _holds_nan(data: bytes | memoryview, datatype: str) -> bool:
    """Raises ValueError for bytes that are no whole elements."""
    infinity = _INFINITY_BITS.get(datatype)
    if infinity is not None:  # numpy has no quick way with numbers of 16 bits
        return bool(((np.frombuffer(data, "<u2") & 0x7FFF) > infinity).any())
    letter, size = _LETTERS[datatype]
    if len(data) <= SUMMED_BYTES_MAX and not len(data) % size:
        values = struct.unpack(f"<{len(data) // size}{letter}", data)
        if not math.isnan(sum(values)):
            return False  # else it may be of infinities that cancel
    return bool(np.isnan(numbers(data, datatype)).any())


class Expected(msgspec.Struct, frozen=True):
    """What an answer must be. ``tiers``: their models, in order; ``outputs``: by name, as any of them has it;
    ``asked``: the outputs that the request names, with what it says of them; ``rows``: how many it has, None if it is
    one whole."""

    tiers: Sequence[str]
    outputs: Mapping[str, Sequence[TensorFact]]
    asked: Mapping[str, Parameters]
    version: str
    rows: int | None

    def fits(self, served: Served[InferResponse]) -> bool:
        """Whether this is an answer to the request."""
        response = served.response
        if served.tier not in self.tiers or served.batch != self.rows or not self._is_version(response.version):
            return False
        if not 0 <= served.rows_escalated <= served.rows or served.rows not in (1, self.rows):
            return False  # one that went straight to the last tier is one whole, whatever its rows
        if not self._fit([(each.name, each.datatype, each.shape) for each in response.outputs], 0):
            return False
        if self.rows is not None and any(each.shape[:1] != (self.rows,) for each in response.outputs):
            return False
        if texts(response) > TEXTS_MAX:
            return False
        wholes = (Plan(((each.name, each.datatype, each.shape),), (NO_PARAMETERS,)) for each in response.outputs)
        return all(is_row(whole, bytes(each.data)) for whole, each in zip(wholes, response.outputs, strict=True))

    def fits_rows(self, plan: Plan, position: int, tier: str, version: str) -> bool:
        """Whether rows of ``plan``, by the tier at ``position``, can be rows of an answer to the request. Whether bytes
        are such a row, ``tiers.rows.is_row`` says."""
        if not 0 <= position < len(self.tiers) or self.tiers[position] != tier or not self._is_version(version):
            return False
        return len(plan.parameters) == len(plan.tensors) and self._fit(plan.tensors, 1)

    def _fit(self, tensors: Sequence[tuple[str, str, Sequence[int]]], leading: int) -> bool:
        """Whether these are all that was asked for: names, datatypes, and shapes less so many dimensions in front."""
        names = {name for name, _, _ in tensors}
        if not tensors or len(names) != len(tensors) or (self.asked and names != set(self.asked)):
            return False
        return all(self._is_output(name, datatype, shape, leading) for name, datatype, shape in tensors)

    def _is_output(self, name: str, datatype: str, shape: Sequence[int], leading: int) -> bool:
        if datatype not in DATATYPE_BYTES or any(size < 0 for size in shape):
            return False
        if CLASSIFICATION in self.asked.get(name, NO_PARAMETERS):
            return datatype == "BYTES"  # labels, of which there are fewer than the model's classes
        return any(
            datatype == fact.datatype and _has_shape(shape, fact.shape[leading:]) for fact in self.outputs.get(name, ())
        )

    def _is_version(self, version: str) -> bool:
        return not self.version or version == self.version


def texts(response: InferResponse) -> int:
    """How many elements of BYTES an answer has, by its shapes."""
    return sum([math.prod(each.shape) for each in response.outputs if each.datatype == "BYTES"])


def expected(tiers: Sequence[str], facts: Sequence[ModelFacts], request: InferRequest, rows: int | None) -> Expected:
    """What an answer to ``request`` must be, of the models ``tiers`` that say ``facts`` of themselves."""
    outputs: dict[str, list[TensorFact]] = {}
    for each in facts:
        for fact in each.outputs:
            outputs.setdefault(fact.name, []).append(fact)
    asked = {output.name: output.parameters for output in request.outputs}
    return Expected(tiers, outputs, asked, request.version, rows)


def _has_shape(shape: Sequence[int], fact: Sequence[int]) -> bool:
    return len(shape) == len(fact) and all(due in (-1, size) for size, due in zip(shape, fact, strict=True))
