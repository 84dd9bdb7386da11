"""A route's declared default: the answer for when everyone has failed and nothing older is kept.

Rule of this file: pure. It says whether what is declared can be an answer of the model at all, and makes it for one
request, repeated for each of its rows where the model takes batches. When it is given is the ladder's to say, and that
it is one the pipeline's to tell. It is no model's answer: it has no version, and nothing keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from gateway.config_default import ANY, DefaultOutput
from gateway.fitting import CLASSIFICATION
from tiers.facts import ModelFacts, TensorFact
from tiers.inference import InferRequest, InferResponse, Tensor

ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
"""Of one answer, all rows together: it is made on the event loop, some milliseconds of copying."""


class Default:
    """One route's."""

    def __init__(self, route: str, declared: Mapping[str, DefaultOutput]) -> None:
        self._route = route
        self._declared = declared
        self._data = {name: output.data() for name, output in declared.items()}

    @property
    def is_by_row(self) -> bool:
        """Whether it says one row's answer, and a batch has as many of it as it has rows."""
        return any(output.is_by_row for output in self._declared.values())

    def answer(self, request: InferRequest, rows: int | None) -> InferResponse | str:
        """The answer to a request of so many rows (None: nobody can tell), or why there is none."""
        if request.in_shared_memory or request.in_sequence:
            return "the default is for no request in shared memory and for none of a sequence"
        if any(CLASSIFICATION in asked.parameters for asked in request.outputs):
            return "the default has no classes to tell"
        names = [asked.name for asked in request.outputs] or list(self._declared)
        unknown = [name for name in names if name not in self._declared]
        if unknown:
            return f"the default has no output {unknown[0]!r}"
        size = sum(len(self._data[name]) for name in names)
        if self.is_by_row and not rows:
            return "the default is of rows, and the request has none, or too many"
        if size * (rows or 1) > ANSWER_BYTES_MAX:
            return f"the default would have {size * (rows or 1)} bytes, and {ANSWER_BYTES_MAX} are made at most"
        outputs = [self._output(name, rows or 1) for name in dict.fromkeys(names)]
        return InferResponse(self._route, "", tuple(outputs))

    def _output(self, name: str, rows: int) -> Tensor:
        declared, data = self._declared[name], self._data[name]
        if not declared.is_by_row:
            return Tensor(name, declared.datatype, declared.shape, data)
        return Tensor(name, declared.datatype, (rows, *declared.row_shape), data * rows)


def misfits(declared: Mapping[str, DefaultOutput], facts: ModelFacts) -> Iterator[tuple[str, str]]:
    """Why what is declared cannot be an answer of a model that says ``facts`` of itself: the key below the route's
    ``default``, and what is wrong with it."""
    outputs = {fact.name: fact for fact in facts.outputs}
    for name in outputs:
        if name not in declared:
            yield name, f"is not declared, and every answer of model {facts.name} has it"
    for name, output in declared.items():
        fact = outputs.get(name)
        if fact is None:
            yield name, f"model {facts.name} has no such output; it has {', '.join(outputs) or 'none'}"
        elif output.datatype != fact.datatype:
            yield f"{name}.datatype", f"is {output.datatype}, and model {facts.name} answers {fact.datatype}"
        elif output.is_by_row != (facts.max_batch > 0):
            takes = "takes batches: write -1 in front" if facts.max_batch > 0 else "takes no batches: write no -1"
            yield f"{name}.shape", f"is {list(output.shape)}, and model {facts.name} {takes}"
        elif not _is_shape(output.shape, fact):
            yield f"{name}.shape", f"is {list(output.shape)}, and model {facts.name} answers {list(fact.shape)}"
    if facts.sequence or facts.decoupled:
        yield "", f"model {facts.name} keeps state, or answers a request more than once: it can have no default"


def _is_shape(shape: tuple[int, ...], fact: TensorFact) -> bool:
    return len(shape) == len(fact.shape) and all(
        due in (ANY, size) for size, due in zip(shape, fact.shape, strict=True)
    )
