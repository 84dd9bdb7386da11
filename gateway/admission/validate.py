"""Can what this request asks be true? The model's own facts and the route's declared bounds decide.

Rule of this file: decide only, and remember what need not be decided again. A request is fine (None) or
``Refused`` with a sentence that names the tensor, what was expected and what came. It knows no socket, no
cache, no tier; the bytes were already counted against shape and datatype by the codec, so here they are only
looked at, vectorised. Of a shared-memory tensor only the metadata can be checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from cache.memo import Memo
from gateway.config import InputRule, Limits
from gateway.problem import Refused, invalid
from tiers.datatype import FLOATS, Misfit, Numbers, bytes_spans, numbers
from tiers.facts import ModelFacts, TensorFact
from tiers.inference import Form, InferRequest, Tensor
from tiers.v2.forms import FORMS_MAX

EVERY_INPUT: Final = "*"
"""The name in ``rules`` that stands for every input without a rule of its own."""

_SHOWN_MAX: Final = 64
_NAMES_SHOWN_MAX: Final = 8


class TensorRule(msgspec.Struct, frozen=True):
    """Bounds on one input's values: inclusive; ``finite`` refuses NaN and infinities;
    ``element_bytes_max`` bounds each BYTES element."""

    minimum: float | None = None
    maximum: float | None = None
    finite: bool = True
    element_bytes_max: int | None = None


Rules = Mapping[str, TensorRule]


def rules_of(limits: Limits, inputs: Mapping[str, InputRule]) -> Rules:
    """What a route's configuration says of values, by input."""
    element_bytes_max = int(limits.element_bytes_max)
    rules = {EVERY_INPUT: TensorRule(finite=False, element_bytes_max=element_bytes_max)}
    for name, rule in inputs.items():
        own = element_bytes_max if rule.element_bytes_max is None else int(rule.element_bytes_max)
        rules[name] = TensorRule(rule.min, rule.max, rule.finite, own)
    return rules


class Validator:
    """One route's rules. It remembers the forms that fit a model's facts: names, datatypes and shapes of a form are
    judged once, values always.

    ``batch_max`` is the route's own limit; the stricter of it and the model's holds. A model that does
    not batch (``facts.max_batch`` 0) has no batch dimension to limit. Values of an input are looked at
    only if ``rules`` names it (or ``*``): Triton itself lets NaN pass.
    """

    def __init__(self, rules: Rules, batch_max: int | None) -> None:
        self._rules = rules
        self._batch_max = batch_max
        self._fitting: Memo[Form, _Fitting] = Memo(FORMS_MAX)

    def check(self, request: InferRequest, facts: ModelFacts) -> None:
        """Raises Refused (400) unless the model can take this request and the route allows its values."""
        form = request.form
        known = None if form is None else self._fitting.get(form)
        if known is None or known.facts is not facts:
            _check_outlines(request, facts, self._batch_max)
            known = _Fitting(facts, self._looks(request))
            if form is not None:
                self._fitting.put(form, known)
        for index, rule in known.looks:
            _check_values(request.inputs[index], rule)

    def _looks(self, request: InferRequest) -> tuple[tuple[int, TensorRule], ...]:
        """The inputs, by position, whose values have to be looked at, and the rule for each."""
        looks = []
        for index, tensor in enumerate(request.inputs):
            rule = self._rules.get(tensor.name, self._rules.get(EVERY_INPUT))
            if rule is not None and not tensor.in_shared_memory and _looks(tensor.datatype, rule):
                looks.append((index, rule))
        return tuple(looks)


class _Fitting(msgspec.Struct, frozen=True, eq=False):
    """A form that fits ``facts``, and what is to be looked at in every request of it."""

    facts: ModelFacts
    looks: tuple[tuple[int, TensorRule], ...]


def _check_outlines(request: InferRequest, facts: ModelFacts, batch_max: int | None) -> None:
    """All that is wrong with a request whatever its values."""
    _check_names(request, facts)
    known = {fact.name: fact for fact in facts.inputs}
    for tensor in request.inputs:
        _check_kind(tensor, known[tensor.name], batched=facts.max_batch > 0)
    _check_classification(request, facts)
    if facts.max_batch > 0:
        limit = facts.max_batch if batch_max is None else min(facts.max_batch, batch_max)
        _check_batch(request, limit)


def _check_names(request: InferRequest, facts: ModelFacts) -> None:
    known = {fact.name for fact in facts.inputs}
    seen: set[str] = set()
    for tensor in request.inputs:
        if tensor.name not in known:
            raise _refuse(
                "unknown-input",
                f"unexpected input {_shown(tensor.name)} for model {_shown(facts.name)}; "
                f"it takes {_listed(fact.name for fact in facts.inputs)}",
            )
        if tensor.name in seen:
            raise _refuse("duplicate-input", f"input {_shown(tensor.name)} is given twice")
        seen.add(tensor.name)
    missing = [fact.name for fact in facts.inputs if not fact.optional and fact.name not in seen]
    if missing:
        raise _refuse("missing-input", f"missing input {_listed(missing)} for model {_shown(facts.name)}")
    outputs = {fact.name for fact in facts.outputs}
    wanted: set[str] = set()
    for output in request.outputs:
        if output.name not in outputs:
            raise _refuse(
                "unknown-output",
                f"unexpected inference output {_shown(output.name)} for model {_shown(facts.name)}; "
                f"it gives {_listed(fact.name for fact in facts.outputs)}",
            )
        if output.name in wanted:
            raise _refuse("duplicate-output", f"output {_shown(output.name)} is asked for twice")
        wanted.add(output.name)


def _check_kind(tensor: Tensor, fact: TensorFact, batched: bool) -> None:
    label = f"input {_shown(tensor.name)}"
    if tensor.datatype != fact.datatype:
        raise _refuse("datatype", f"{label} must be {fact.datatype}, got {tensor.datatype}")
    expected, got = list(fact.shape), list(tensor.shape)
    if len(got) != len(expected):
        raise _refuse("rank", f"{label} must have shape {expected}, got {got}: rank {len(got)}")
    first = 1 if batched else 0  # the batch dimension has rules of its own
    for wanted, size in zip(expected[first:], got[first:], strict=True):
        if wanted not in (-1, size):
            raise _refuse("shape", f"{label} must have shape {expected}, got {got}")


def _check_classification(request: InferRequest, facts: ModelFacts) -> None:
    """Triton 2.51's HTTP server dies (SIGSEGV) of a classification of BYTES, and of one of no elements, which is
    what a model makes of an input without any."""
    asked = [output.name for output in request.outputs if "classification" in output.parameters]
    if not asked:
        return
    datatypes = {fact.name: fact.datatype for fact in facts.outputs}
    for name in asked:
        if datatypes[name] == "BYTES":
            raise _refuse("classification", f"output {_shown(name)} is BYTES, which has no classification")
    for tensor in request.inputs:
        if tensor.elements == 0:
            raise _refuse(
                "classification",
                f"input {_shown(tensor.name)} has no elements, and output {_shown(asked[0])} no classification then",
            )


def _check_batch(request: InferRequest, batch_max: int) -> None:
    first: Tensor | None = None
    for tensor in request.inputs:
        label = f"input {_shown(tensor.name)}"
        if not tensor.shape:
            raise _refuse("rank", f"{label} has no batch dimension")
        batch = tensor.shape[0]
        if batch < 1:
            raise _refuse("batch", f"{label} has a batch of {batch}; at least 1 row is needed")
        if batch > batch_max:
            raise _refuse("batch", f"{label} has a batch of {batch}, at most {batch_max} rows are allowed")
        if first is None:
            first = tensor
        elif batch != first.shape[0]:
            raise _refuse(
                "batch",
                f"{label} has a batch of {batch}, input {_shown(first.name)} one of {first.shape[0]}: "
                "all inputs must agree",
            )


def _looks(datatype: str, rule: TensorRule) -> bool:
    """Whether a rule says anything of the values of a datatype."""
    if datatype == "BYTES":
        return rule.element_bytes_max is not None
    bounded = rule.minimum is not None or rule.maximum is not None
    return datatype != "BOOL" and (bounded or (rule.finite and datatype in FLOATS))


def _check_values(tensor: Tensor, rule: TensorRule) -> None:
    label = f"input {_shown(tensor.name)}"
    if tensor.datatype == "BYTES":
        assert rule.element_bytes_max is not None
        _check_elements(tensor, rule.element_bytes_max, label)
        return
    values = numbers(tensor.data, tensor.datatype)
    if rule.finite and tensor.datatype in FLOATS:
        finite = np.isfinite(values)
        if not finite.all():
            index = int(np.flatnonzero(~finite)[0])
            raise _refuse("finite", f"{label} must be finite, element {index} is {float(values[index])}")
    if rule.minimum is not None:
        _check_bound(values, values < rule.minimum, f"{label} must be at least {rule.minimum:g}")
    if rule.maximum is not None:
        _check_bound(values, values > rule.maximum, f"{label} must be at most {rule.maximum:g}")


def _check_elements(tensor: Tensor, bytes_max: int, label: str) -> None:
    if len(tensor.data) <= bytes_max:
        return  # no element is larger than all of them
    try:
        for index, (start, end) in enumerate(bytes_spans(tensor.data)):
            if end - start > bytes_max:
                raise _refuse(
                    "element-bytes",
                    f"{label}: element {index} has {end - start} bytes, at most {bytes_max} are allowed",
                )
    except Misfit as misfit:
        raise _refuse("byte-count", f"{label}: {misfit}") from misfit


def _check_bound(values: Numbers, beyond: npt.NDArray[np.bool_], sentence: str) -> None:
    if beyond.any():
        index = int(np.flatnonzero(beyond)[0])
        raise _refuse("range", f"{sentence}, element {index} is {values[index]}")


def _refuse(reason: str, detail: str) -> Refused:
    return Refused(invalid(detail, reason))


def _shown(name: str) -> str:
    return repr(name if len(name) <= _SHOWN_MAX else name[:_SHOWN_MAX] + "...")


def _listed(names: Iterable[str]) -> str:
    shown = [_shown(name) for name in names]
    more = len(shown) - _NAMES_SHOWN_MAX
    return ", ".join(shown[:_NAMES_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")
