"""The key rule: what changes an answer changes the digest, what does not leaves it alone."""

import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from cache.digest import DIGEST_BYTES, WIRE_BYTES, Key, WireDigester, post_digest, request_digest

Value = bool | int | float | str


class View(msgspec.Struct, frozen=True):
    name: str = "a"
    datatype: str = "FP32"
    shape: tuple[int, ...] = (1, 4)
    data: bytes | memoryview = b"0123456789abcdef"


class Asked(msgspec.Struct, frozen=True):
    route: str = "digits"
    tenant: str = "acme"
    version: str = "1"
    inputs: tuple[View, ...] = (View(), View(name="b", datatype="INT8", shape=(4,), data=b"\0\1\2\3"))
    parameters: Mapping[str, Value] = MappingProxyType({"k": 1, "temperature": 0.5})
    outputs: tuple[tuple[str, Mapping[str, Value]], ...] = (
        ("p", MappingProxyType({"classification": 3})),
        ("label", MappingProxyType({})),
    )

    def digest(self) -> bytes:
        return request_digest(**{name: getattr(self, name) for name in self.__struct_fields__})


BASE = Asked()


def with_input(**changes: object) -> Asked:
    first, second = BASE.inputs
    return msgspec.structs.replace(BASE, inputs=(msgspec.structs.replace(first, **changes), second))


def changed(**changes: object) -> Asked:
    return msgspec.structs.replace(BASE, **changes)


CHANGES: dict[str, Asked] = {
    "route": changed(route="digit"),
    "tenant": changed(tenant="acm"),
    "no tenant": changed(tenant=""),
    "version": changed(version="2"),
    "no version": changed(version=""),
    "an input's name": with_input(name="c"),
    "an input's datatype, same width": with_input(datatype="INT32"),
    "an input's shape, same bytes": with_input(shape=(2, 2)),
    "an input's rank": with_input(shape=(4,)),
    "an input's digits moved": with_input(shape=(14,)),
    "an input's bytes": with_input(data=b"0123456789abcdeF"),
    "an input's length": with_input(data=b"0123456789abcde"),
    "an input less": changed(inputs=BASE.inputs[:1]),
    "an input more": changed(inputs=(*BASE.inputs, View(name="c"))),
    "no input": changed(inputs=()),
    "two inputs' bytes exchanged": changed(
        inputs=(View(data=b"\0\1\2\3"), msgspec.structs.replace(BASE.inputs[1], data=View().data))
    ),
    "a parameter's value": changed(parameters={"k": 2, "temperature": 0.5}),
    "a parameter's name": changed(parameters={"j": 1, "temperature": 0.5}),
    "a parameter less": changed(parameters={"k": 1}),
    "a parameter as bool": changed(parameters={"k": True, "temperature": 0.5}),
    "a parameter as float": changed(parameters={"k": 1.0, "temperature": 0.5}),
    "a parameter as text": changed(parameters={"k": "1", "temperature": 0.5}),
    "an output's name": changed(outputs=(("q", {"classification": 3}), ("label", {}))),
    "an output's parameter": changed(outputs=(("p", {"classification": 2}), ("label", {}))),
    "an output's parameter elsewhere": changed(outputs=(("p", {}), ("label", {"classification": 3}))),
    "the outputs' order": changed(outputs=BASE.outputs[::-1]),
    "an output less": changed(outputs=BASE.outputs[:1]),
    "all outputs": changed(outputs=()),
}

# Pairs that a digest of the plain concatenation would confuse.
AMBIGUOUS: dict[str, tuple[Asked, Asked]] = {
    "route and tenant": (changed(route="ab", tenant="c"), changed(route="a", tenant="bc")),
    "tenant and version": (changed(tenant="x", version=""), changed(tenant="", version="x")),
    "name and datatype": (with_input(name="aF", datatype="P32"), with_input(name="a", datatype="FP32")),
    "datatype and shape": (with_input(datatype="FP3", shape=(21,)), with_input(datatype="FP32", shape=(1,))),
    "shape and bytes": (with_input(shape=(1,), data=b"1"), with_input(shape=(11,), data=b"")),
    "dimensions": (with_input(shape=(1, 11)), with_input(shape=(11, 1))),
    "scalar and empty": (with_input(shape=()), with_input(shape=(0,))),
    "bytes and the next input": (
        changed(inputs=(View(name="a", data=b"xb"), View(name="b", data=b""))),
        changed(inputs=(View(name="a", data=b"x"), View(name="b", data=b"b"))),
    ),
    "an input's bytes look like a second input": (
        changed(inputs=(View(name="a", data=b""), View(name="b", data=b""))),
        changed(
            inputs=(View(name="a", data=b"n" + struct.pack("<Q", 1) + b"b" + b"d" + struct.pack("<Q", 4)),)
        ),
    ),
    "parameter name and value": (changed(parameters={"a": "bc"}), changed(parameters={"ab": "c"})),
    "one parameter or two": (changed(parameters={"a": "1", "b": "2"}), changed(parameters={"a": "1b2"})),
    "request's or output's parameter": (
        changed(parameters={"c": 1}, outputs=(("p", {}),)),
        changed(parameters={}, outputs=(("p", {"c": 1}),)),
    ),
    "output names": (changed(outputs=(("ab", {}), ("c", {}))), changed(outputs=(("a", {}), ("bc", {})))),
    "minus zero": (changed(parameters={"a": 0.0}), changed(parameters={"a": -0.0})),
    "false and nothing": (changed(parameters={"a": False}), changed(parameters={})),
    "text of a lone surrogate": (changed(tenant="\ud800"), changed(tenant="?")),
    "large integers": (changed(parameters={"a": 2**64}), changed(parameters={"a": 0})),
    "sign": (changed(parameters={"a": 5}), changed(parameters={"a": -5})),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_change_alone_gives_another_digest(name: str) -> None:
    assert CHANGES[name].digest() != BASE.digest()


def test_no_two_changes_meet() -> None:
    digests = {asked.digest() for asked in [BASE, *CHANGES.values()]}
    assert len(digests) == len(CHANGES) + 1


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_framing_is_unambiguous(name: str) -> None:
    left, right = AMBIGUOUS[name]
    assert left.digest() != right.digest()


SAME: dict[str, Callable[[], Asked]] = {
    "built again": Asked,
    "inputs in another order": lambda: changed(inputs=BASE.inputs[::-1]),
    "parameters in another order": lambda: changed(parameters={"temperature": 0.5, "k": 1}),
    "bytes as a view": lambda: with_input(data=memoryview(b"0123456789abcdef")),
    "bytes as a view of a wider item": lambda: with_input(data=memoryview(b"0123456789abcdef").cast("f")),
    "bytes as a slice of a body": lambda: with_input(data=memoryview(b"{}0123456789abcdef{}")[2:18]),
}


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_matter(name: str) -> None:
    assert SAME[name]().digest() == BASE.digest()


def test_the_layout_has_not_changed_by_accident() -> None:
    # Digests are shared between gateways: another layout needs another version in its first bytes.
    assert BASE.digest().hex() == "e0908b36e82cb3f788efe42f70dfec43"
    verdict, body = "8def941f6019898c5ed907475c440e85", "0be9c598ae63835518e7fb422dc3027f"
    assert WireDigester(b"verdict").key(b"body").hex() == verdict + body
    assert len(BASE.digest()) == DIGEST_BYTES
    assert len(WireDigester(b"").key(b"")) == WIRE_BYTES


def test_integers_of_any_length() -> None:
    assert changed(parameters={"a": 10**5000}).digest() != changed(parameters={"a": 10**5000 + 1}).digest()


def test_a_parameter_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="not list"):
        request_digest(
            route="",
            tenant="",
            version="",
            inputs=(),
            parameters={"a": [1]},  # type: ignore[dict-item]  # what is tested
            outputs=(),
        )


def test_wire_digest_covers_verdict_and_body_and_where_they_meet() -> None:
    pairs = [(b"ab", b"c"), (b"a", b"bc"), (b"", b"abc"), (b"abc", b""), (b"ab", b"d"), (b"bb", b"c")]
    assert len({WireDigester(verdict).key(body) for verdict, body in pairs}) == len(pairs)
    assert WireDigester(b"ab").key(memoryview(b"xcx")[1:2]) == WireDigester(b"ab").key(b"c")


def test_keys_are_values() -> None:
    assert Key(b"d", 1) == Key(b"d", 1)
    assert len({Key(b"d", 1), Key(b"d", 1), Key(b"d", 2)}) == 2


texts = st.text(max_size=3)
values = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), texts)
views = st.builds(
    View,
    name=texts,
    datatype=st.sampled_from(["FP32", "BYTES"]),
    shape=st.lists(st.integers(-1, 12), max_size=3).map(tuple),
    data=st.binary(max_size=4),
)
some_parameters = st.dictionaries(texts, values, max_size=2)
requests = st.builds(
    Asked,
    route=texts,
    tenant=texts,
    version=texts,
    inputs=st.lists(views, max_size=3, unique_by=lambda view: view.name).map(tuple),
    parameters=some_parameters,
    outputs=st.lists(st.tuples(texts, some_parameters), max_size=2).map(tuple),
)


def canonical(asked: Asked) -> object:
    """What a request means, as nested values that Python itself compares (type before value)."""

    def typed(parameters: Mapping[str, Value]) -> object:
        return sorted((name, type(value).__name__, repr(value)) for name, value in parameters.items())

    inputs = sorted((view.name, view.datatype, view.shape, bytes(view.data)) for view in asked.inputs)
    outputs = [(name, typed(parameters)) for name, parameters in asked.outputs]
    return (asked.route, asked.tenant, asked.version, inputs, typed(asked.parameters), outputs)


@given(requests, requests)
def test_digests_are_equal_exactly_when_requests_are(left: Asked, right: Asked) -> None:
    assert (left.digest() == right.digest()) == (canonical(left) == canonical(right))


@given(requests, st.randoms(use_true_random=False))
def test_the_order_of_inputs_and_parameters_never_matters(asked: Asked, chance: object) -> None:
    inputs, parameters = list(asked.inputs), list(asked.parameters.items())
    chance.shuffle(inputs)  # type: ignore[attr-defined]  # hypothesis hands over a random.Random
    chance.shuffle(parameters)  # type: ignore[attr-defined]  # as above
    other = msgspec.structs.replace(asked, inputs=tuple(inputs), parameters=dict(parameters))
    assert other.digest() == asked.digest()


def test_a_post_is_its_head_and_its_body_and_where_they_meet() -> None:
    digests = {post_digest(verdict, body) for verdict, body in ((b"", b""), (b"a", b""), (b"", b"a"), (b"ab", b"c"))}
    digests |= {post_digest(b"a", b"bc"), post_digest(b"a", b"b"), blake3(b"a").digest(DIGEST_BYTES)}
    assert len(digests) == 7
    assert {len(digest) for digest in digests} == {DIGEST_BYTES}
    assert post_digest(b"a", memoryview(b"bc")) == post_digest(b"a", b"bc")
    assert post_digest(b"v", b"body").hex() == "b665ae8c57a2f3ed02248ed5374c6568"
