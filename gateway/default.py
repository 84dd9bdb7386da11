"""A route's declared default: the answer for when everyone has failed and nothing older is kept.

Rule of this file: it decides, and asks nobody. It says whether what is declared can be an answer of the model at all,
and for one request whether it is one, and what makes it, repeated for each of its rows where the model takes batches:
it is made when it is given, once. When that is, is the ladder's to say, and that it is one the pipeline's to tell. It
is no model's answer: it has no version, and nothing keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from gateway.admission.validate import Validator
from gateway.config_default import ANY, DefaultOutput
from gateway.fitting import CLASSIFICATION
from gateway.learning import Learning
from gateway.problem import Refused
from tiers.facts import ModelFacts, TensorFact
from tiers.inference import InferRequest, InferResponse, Tensor
from tiers.rows import batch_size

if TYPE_CHECKING:
    from gateway.features import Features

ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
"""Of one answer, all rows together: it is made on the event loop, some milliseconds of copying."""

BLIND_BYTES_MAX: Final = 256 * 1024
"""As long as the model is not known and the route has no bound on rows, for then a batch is as large as its caller
says: a few bytes would make an answer that stops the event loop, as JSON is written (some 40 ms a MiB). 64 rows of 1000
numbers are less. One row may be larger: somebody has written it down."""


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

    def misfits(self, facts: ModelFacts) -> Iterator[tuple[str, str]]:
        """Why it cannot be an answer of a model that says ``facts`` of itself: see ``misfits``."""
        return misfits(f"routes.{self._route}", self._declared, facts)

    def due(self, request: InferRequest, rows: int | None, is_blind: bool = False) -> Callable[[], InferResponse] | str:
        """What makes the answer to a request of so many rows (None: nobody can tell), or why there is none.
        ``is_blind``: neither a model nor the route has said how many rows there may be."""
        if request.in_shared_memory or request.in_sequence:
            return "the default is for no request in shared memory and for none of a sequence"
        if any(CLASSIFICATION in asked.parameters for asked in request.outputs):
            return "the default has no classes to tell"
        names = dict.fromkeys([asked.name for asked in request.outputs] or self._declared)
        unknown = [name for name in names if name not in self._declared]
        if unknown:
            return f"the default has no output {unknown[0]!r}"
        if not self.is_by_row:
            return partial(self._answer, tuple(names), 1)
        if not rows:
            return "the default is of rows, and the request has none, or too many"
        if is_blind and not all(tensor.elements for tensor in request.inputs):
            return "the default is for no input without elements before the model is known"
        row = sum([len(self._data[name]) for name in names])
        most = min(max(row, BLIND_BYTES_MAX) if is_blind else ANSWER_BYTES_MAX, ANSWER_BYTES_MAX)
        if row * rows > most:
            return f"the default would have {row * rows} bytes, and {most} are made at most"
        return partial(self._answer, tuple(names), rows)

    def _answer(self, names: tuple[str, ...], rows: int) -> InferResponse:
        return InferResponse(self._route, "", tuple([self._output(name, rows) for name in names]))

    def _output(self, name: str, rows: int) -> Tensor:
        declared, data = self._declared[name], self._data[name]
        if not declared.is_by_row:
            return Tensor(name, declared.datatype, declared.shape, data)
        return Tensor(name, declared.datatype, (rows, *declared.row_shape), data * rows)


class Resort:
    """A route's last resort: its default, if that is an answer to a request that its models would have taken.
    ``batch_max``: the route's own bound on rows."""

    def __init__(
        self,
        default: Default,
        learning: Learning,
        validator: Validator,
        features: Features | None,
        batch_max: int | None,
    ) -> None:
        self._default = default
        self._learning = learning
        self._validator = validator
        self._features = features
        self._batch_max = batch_max

    def answer(self, request: InferRequest) -> Callable[[], InferResponse] | str:
        """What makes it, or why there is none. As long as a tier's model is not known, nobody can tell whether it fits,
        or the request does."""
        version = "" if self._learning.known(request.version) is None else request.version
        facts = self._learning.known(version)
        if facts is None:
            return self._undescribed(request)
        merged = self._learning.merged(version).merged
        for key, why in self._default.misfits(merged):
            return f"{key} {why}"
        if version != request.version and request.version not in facts.versions:
            return f"the default is of no version {request.version}"
        try:
            self._validator.check(request, facts)
        except Refused:
            return "the default is for no request that its models would refuse"
        return self._default.due(request, self._rows(request, merged.max_batch))

    def _undescribed(self, request: InferRequest) -> Callable[[], InferResponse] | str:
        """As long as a tier's model is not known, a request is held against the configuration alone."""
        if self._features is not None:
            try:
                self._validator.check(*self._features.declared(request))
            except Refused as refused:
                return f"the default is for no request that is to be refused: {refused.problem.detail}"
        return self._default.due(request, self._rows(request, 0), self._batch_max is None)

    def _rows(self, request: InferRequest, max_batch: int) -> int | None:
        """How many rows an answer has; None if nobody can tell, or it is more than there may be."""
        if self._features is not None:
            return self._features.rows(request, max_batch)
        rows, most = batch_size(request), self._batch_max
        return None if rows is not None and most is not None and rows > most else rows


def misfits(path: str, declared: Mapping[str, DefaultOutput], facts: ModelFacts) -> Iterator[tuple[str, str]]:
    """Why what the route at ``path`` declares cannot be an answer of a model that says ``facts`` of itself: the key,
    and what is wrong with it."""
    at = f"{path}.default"
    outputs = {fact.name: fact for fact in facts.outputs}
    for name in outputs:
        if name not in declared:
            yield f"{at}.{name}", f"is not declared, and every answer of model {facts.name} has it"
    for name, output in declared.items():
        fact = outputs.get(name)
        if fact is None:
            yield f"{at}.{name}", f"model {facts.name} has no such output; it has {', '.join(outputs) or 'none'}"
        elif output.datatype != fact.datatype:
            yield f"{at}.{name}.datatype", f"is {output.datatype}, and model {facts.name} answers {fact.datatype}"
        elif output.is_by_row != (facts.max_batch > 0):
            takes = "takes batches: write -1 in front" if facts.max_batch > 0 else "takes no batches: write no -1"
            yield f"{at}.{name}.shape", f"is {list(output.shape)}, and model {facts.name} {takes}"
        elif not _is_shape(output.shape, fact):
            yield f"{at}.{name}.shape", f"is {list(output.shape)}, and model {facts.name} answers {list(fact.shape)}"
    if facts.sequence or facts.decoupled:
        yield at, f"model {facts.name} keeps state, or answers a request more than once: it can have no default"


def _is_shape(shape: tuple[int, ...], fact: TensorFact) -> bool:
    return len(shape) == len(fact.shape) and all(
        due in (ANY, size) for size, due in zip(shape, fact.shape, strict=True)
    )
