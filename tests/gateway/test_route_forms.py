"""What a route remembers of a form changes nothing: neither its digests nor its judgement of shapes and values."""

from __future__ import annotations

import struct

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission.auth import Caller
from gateway.admission.validate import TensorRule, Validator
from gateway.config import CacheConfig, InputRule, TierConfig
from gateway.config import Route as RouteConfig
from gateway.learning import Home
from gateway.problem import Problem, Refused
from gateway.route import Route
from gateway.units import Seconds
from tiers.facts import ModelFacts, TensorFact
from tiers.inference import InferRequest, Parameter, RequestedOutput, Tensor
from tiers.v2.forms import RequestForms
from tiers.v2.request import encode_request

NAMES = st.sampled_from(["x", "y", "z"])
VALUES: st.SearchStrategy[Parameter] = st.sampled_from([True, 1, 1.0, "1", 0, False, 0.0, -0.0])
PARAMETERS = st.dictionaries(st.sampled_from(["a", "b"]), VALUES, max_size=2)
TIMES = st.dictionaries(st.sampled_from(["timeout", "priority"]), st.integers(0, 2), max_size=2)
FLOATS = st.lists(st.sampled_from([0.0, 1.0, 5.0, float("nan")]), min_size=2, max_size=2)


@st.composite
def requests(draw: st.DrawFn) -> list[tuple[bytes, int]]:
    """The same binary request with several data: bodies, and the length of the JSON part."""
    names = draw(st.lists(NAMES, max_size=3, unique=True))
    outputs = draw(st.lists(st.builds(RequestedOutput, NAMES, PARAMETERS), max_size=2))
    parameters = draw(PARAMETERS) | draw(TIMES)
    shapes = [
        (draw(st.sampled_from([(1, 2), (2, 1), (2,), (0, 2)])), draw(st.sampled_from(["FP32", "INT32", "BYTES"])))
        for _ in names
    ]
    found = []
    for _ in range(draw(st.integers(1, 3))):
        inputs = []
        for name, (shape, datatype) in zip(names, shapes, strict=True):
            elements = 0 if 0 in shape else 2
            if datatype == "BYTES":
                data = b"".join(struct.pack("<I", 2) + draw(st.binary(min_size=2, max_size=2)) for _ in range(elements))
            else:
                data = struct.pack("<2f", *draw(FLOATS))[: 4 * elements]
            inputs.append(Tensor(name, datatype, shape, data))
        parts, length = encode_request(InferRequest("", tuple(inputs), tuple(outputs), "", "", parameters))
        found.append((b"".join(parts), length))
    return found


def plain(request: InferRequest) -> InferRequest:
    return msgspec.structs.replace(request, form=None)


def route(shared: bool) -> Route:
    cache = CacheConfig(ttl=Seconds(10), shared=shared)
    tiers = (TierConfig("gpu", "m", ""),)
    config = RouteConfig(tiers=tiers, cache=cache, inputs={"x": InputRule(max=2.0)})
    return Route("r", config, [Home(None, None)], 2**20)  # type: ignore[arg-type]  # nobody is asked


@given(st.lists(requests(), min_size=1, max_size=3), st.booleans())
def test_a_digest_is_what_it_would_be_without_a_memory(sets: list[list[tuple[bytes, int]]], shared: bool) -> None:
    made, forms = route(shared), RequestForms()
    for _ in range(3):
        for body, length in [each for bodies in sets for each in bodies]:
            for tenant in ("", "acme"):
                for version in ("", "1"):
                    request, _ = forms.decode(body, length, "r", version)
                    digest = made.digest(Caller("c", tenant), request)
                    assert digest == made.digest(Caller("c", tenant), plain(request))


facts = st.builds(
    ModelFacts,
    st.just("m"),
    st.just(("1",)),
    st.lists(
        st.builds(
            TensorFact,
            NAMES,
            st.sampled_from(["FP32", "INT32", "BYTES"]),
            st.sampled_from([(-1, 2), (-1, -1), (2,)]),
            st.booleans(),
        ),
        max_size=3,
        unique_by=lambda fact: fact.name,
    ).map(tuple),
    st.lists(st.builds(TensorFact, NAMES, st.just("FP32"), st.just((-1,))), max_size=3).map(tuple),
    st.sampled_from([0, 1, 8]),
    st.just(False),
    st.just(False),
)
rules = st.dictionaries(
    st.sampled_from(["x", "*"]),
    st.builds(
        TensorRule,
        st.sampled_from([None, 0.5]),
        st.sampled_from([None, 2.0]),
        st.booleans(),
        st.sampled_from([None, 1, 2]),
    ),
    max_size=2,
)


def judgement(validator: Validator, request: InferRequest, known: ModelFacts) -> Problem | None:
    try:
        validator.check(request, known)
    except Refused as refused:
        return refused.problem
    return None


@given(
    st.lists(requests(), min_size=1, max_size=3),
    st.lists(facts, min_size=1, max_size=2),
    rules,
    st.sampled_from([None, 1]),
)
def test_a_judgement_is_what_it_would_be_without_a_memory(
    sets: list[list[tuple[bytes, int]]],
    known: list[ModelFacts],
    bounds: dict[str, TensorRule],
    batch_max: int | None,
) -> None:
    validator, forms = Validator(bounds, batch_max), RequestForms()
    for each in (*known, *known):
        for body, length in [body for bodies in sets + sets + sets for body in bodies]:
            request, _ = forms.decode(body, length, "r", "")
            expected = judgement(Validator(bounds, batch_max), plain(request), each)
            assert judgement(validator, request, each) == expected
