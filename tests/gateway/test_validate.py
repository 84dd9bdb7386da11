"""Validation beyond the malformed table: what must pass, and the values' edges."""

import struct

import pytest

from gateway.admission.validate import TensorRule, Validator, rules_of
from gateway.config import InputRule, Limits
from gateway.problem import Refused
from gateway.units import Size
from tiers.facts import ModelFacts, TensorFact
from tiers.inference import InferRequest, RequestedOutput, Tensor


def facts(*inputs, max_batch=0):
    outputs = (TensorFact("y", "FP32", (-1,)),)
    return ModelFacts("m", ("1",), inputs, outputs, max_batch, False, False)


def ask(tensor, rule=None, shape=(-1,), max_batch=0, batch_max=None):
    rules = {} if rule is None else {tensor.name: rule}
    known = facts(TensorFact(tensor.name, tensor.datatype, shape), max_batch=max_batch)
    Validator(rules, batch_max).check(InferRequest("m", (tensor,)), known)


def floats(*values):
    return Tensor("x", "FP32", (len(values),), struct.pack(f"<{len(values)}f", *values))


def test_without_a_rule_nan_passes_as_in_triton():
    ask(floats(float("nan")))


def test_the_star_rule_stands_for_inputs_without_one():
    known = facts(TensorFact("x", "FP32", (-1,)))
    request = InferRequest("m", (floats(float("nan")),))
    with pytest.raises(Refused, match="finite"):
        Validator({"*": TensorRule()}, None).check(request, known)
    Validator({"*": TensorRule(), "x": TensorRule(finite=False)}, None).check(request, known)


def test_rules_of_inputs_stand_beside_one_for_the_rest():
    rules = rules_of(Limits(element_bytes_max=Size(9)), {"x": InputRule(max=2.0)})
    assert (rules["x"].maximum, rules["x"].finite, rules["x"].element_bytes_max) == (2.0, True, 9)
    assert (rules["*"].finite, rules["*"].element_bytes_max) == (False, 9)


def test_bounds_are_inclusive():
    rule = TensorRule(minimum=-1, maximum=1)
    ask(floats(-1, 0, 1), rule)
    for value in (-1.001, 1.001):
        with pytest.raises(Refused, match="element 1 is"):
            ask(floats(0, value), rule)


def test_nan_allowed_beside_bounds():
    ask(floats(float("nan"), 1), TensorRule(minimum=0, maximum=1, finite=False))
    with pytest.raises(Refused, match="at most"):
        ask(floats(float("inf")), TensorRule(maximum=1, finite=False))


@pytest.mark.parametrize(
    ("datatype", "data", "word"),
    [
        ("INT8", b"\xff", "at least 0"),
        ("UINT64", b"\xff" * 8, "at most 9"),
        ("INT64", struct.pack("<q", 10), "at most 9"),
        ("FP16", b"\x00\xbc", "at least 0"),
        ("BF16", b"\x80\xbf", "at least 0"),
        ("FP64", struct.pack("<d", 9.5), "at most 9"),
    ],
)
def test_every_numeric_datatype_is_bounded(datatype, data, word):
    with pytest.raises(Refused, match=word):
        ask(Tensor("x", datatype, (1,), memoryview(data)), TensorRule(minimum=0, maximum=9))


def test_bool_and_empty_tensors_have_no_range():
    ask(Tensor("x", "BOOL", (1,), b"\1"), TensorRule(minimum=5))
    ask(floats(), TensorRule(minimum=5))


@pytest.mark.parametrize(
    ("batch", "batch_max", "fine"), [(4, None, True), (5, None, False), (3, 2, False), (4, 9, True)]
)
def test_the_stricter_batch_limit_holds(batch, batch_max, fine):
    tensor = floats(*range(batch))
    if fine:
        ask(tensor, max_batch=4, batch_max=batch_max)
        return
    with pytest.raises(Refused, match="batch"):
        ask(tensor, max_batch=4, batch_max=batch_max)


def test_a_model_that_does_not_batch_has_no_batch_limit():
    ask(floats(1, 2, 3), batch_max=1)
    ask(floats())


def test_of_shared_memory_only_metadata_is_checked():
    region = {"shared_memory_region": "r"}
    ask(Tensor("x", "FP32", (2,), b"", region), TensorRule(minimum=0))
    with pytest.raises(Refused, match="shape"):
        ask(Tensor("x", "FP32", (2,), b"", region), shape=(3,))


def test_optional_inputs_and_known_outputs_pass():
    known = facts(TensorFact("x", "FP32", (-1,)), TensorFact("o", "FP32", (1,), True))
    Validator({}, None).check(InferRequest("m", (floats(1),), (RequestedOutput("y"),)), known)


@pytest.mark.parametrize(
    ("output", "datatype", "elements", "word"),
    [
        (RequestedOutput("y", {"classification": 1}), "FP32", 1, ""),
        (RequestedOutput("y", {"classification": 1}), "BYTES", 1, "BYTES, which has no"),
        (RequestedOutput("y", {"classification": 1}), "FP32", 0, "no elements"),
        (RequestedOutput("y"), "BYTES", 0, ""),
    ],
)
def test_a_classification_that_triton_dies_of_is_refused(output, datatype, elements, word):
    known = ModelFacts("m", ("1",), (TensorFact("x", "FP32", (-1,)),), (TensorFact("y", datatype, (-1,)),), 0, 0, 0)
    request = InferRequest("m", (floats(*range(elements)),), (output,))
    if not word:
        Validator({}, None).check(request, known)
        return
    with pytest.raises(Refused, match=word):
        Validator({}, None).check(request, known)


def test_messages_name_what_was_expected_and_what_came():
    with pytest.raises(Refused) as refusal:
        ask(floats(1, 2), shape=(3,))
    assert str(refusal.value) == "input 'x' must have shape [3], got [2]"
    assert refusal.value.problem.extras["reason"] == "shape"
