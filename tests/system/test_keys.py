"""An answer is found only where it is true: the key's rule, through the door and on a real Triton.

``pytest tests/system/test_keys.py -k triton_cache`` shows two wrong answers of Triton's own response
cache, and the right ones through the gateway.
"""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy
import pytest
from tritonclient.http import InferenceServerClient

from examples.gatewayprocess import GatewayProcess
from examples.tritonserver import TritonServer

Json = dict[str, object]
NUMBERS = itertools.count(1)
ALICE, BOB = {"X-API-Key": "alice"}, {"X-API-Key": "bob"}


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def state(self) -> str:
        """``hit``, or ``fwd=`` and why, as Cache-Status has it."""
        members = [member.strip() for member in self.headers["Cache-Status"].split(";")]
        return members[1]

    @property
    def document(self) -> Json:
        """The JSON of the answer, also when binary tensors follow it."""
        length = self.headers.get("Inference-Header-Content-Length")
        found: Json = json.loads(self.body if length is None else self.body[: int(length)])
        return found

    def tensor(self, name: str) -> numpy.ndarray | None:
        length = self.headers.get("Inference-Header-Content-Length")
        result = InferenceServerClient.parse_response_body(
            self.body, header_length=None if length is None else int(length)
        )
        return result.as_numpy(name)


def send(address: str, target: str, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> Answer:
    """One POST with exactly these header lines, in this order."""
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.putrequest("POST", target, skip_accept_encoding=True)
        for name, value in (("Content-Length", str(len(body))), *headers):
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.headers.items()), answer.read())
    finally:
        connection.close()


class Ask(NamedTuple):
    """One request in the words of the key's rule."""

    model: str = "either"
    version: str = ""
    caller: Mapping[str, str] = ALICE
    name: str = "a"
    datatype: str = "FP32"
    shape: tuple[int, ...] = (1, 4)
    values: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)
    parameters: Mapping[str, object] = {}
    outputs: tuple[str, ...] = ("y",)
    id: str = ""

    @property
    def target(self) -> str:
        return f"/v2/models/{self.model}" + (f"/versions/{self.version}" if self.version else "") + "/infer"

    def document(self, data: Json) -> Json:
        tensor = {"name": self.name, "datatype": self.datatype, "shape": list(self.shape), **data}
        found: Json = {"inputs": [tensor], "outputs": [{"name": name} for name in self.outputs]}
        if self.id:
            found["id"] = self.id
        if self.parameters:
            found["parameters"] = dict(self.parameters)
        return found

    def json(self, **options: object) -> bytes:
        values = self.values if self.datatype == "FP32" else tuple(map(int, self.values))
        return json.dumps(self.document({"data": list(values)}), **options).encode()  # type: ignore[arg-type]

    def binary(self) -> tuple[bytes, str]:
        data = struct.pack(f"<{len(self.values)}f", *self.values)
        document = self.document({"parameters": {"binary_data_size": len(data)}})
        document["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in self.outputs]
        head = json.dumps(document).encode()
        return head + data, str(len(head))

    def expected(self) -> numpy.ndarray:
        x = numpy.array(self.values, numpy.float32).reshape(self.shape)
        y = {"a": x + 1, "b": x * 10, "whole": x}[self.name]
        return y * numpy.float32(self.parameters.get("scale", 1))


def config(triton: TritonServer) -> Json:
    def route(model: str, **more: object) -> Json:
        return {"tiers": [{"backend": "gpu", "model": model}], "cache": {"ttl": "1h"} | more}

    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("alice", "bob", "ann")}
    return {
        "server": {"allow": ["repository"]},
        "backends": {"gpu": {"http": [triton.http_url]}},
        "callers": {
            "alice": {"key_sha256": keys["alice"], "tenant": "a"},
            "ann": {"key_sha256": keys["ann"], "tenant": "a"},
            "bob": {"key_sha256": keys["bob"], "tenant": "b"},
        },
        "routes": {
            "either": route("either"),
            "twin": route("either"),
            "together": route("either", shared=True),
            "two_outputs": route("two_outputs"),
        },
    }


@pytest.fixture(scope="module")
def gateway(triton: TritonServer) -> Iterator[GatewayProcess]:
    with GatewayProcess(config(triton)) as process:  # type: ignore[arg-type]  # plain JSON is TOML enough
        yield process


@pytest.fixture
def ask(gateway: GatewayProcess) -> Callable[[Ask], Answer]:
    def one(asked: Ask) -> Answer:
        return send(gateway.http_address, asked.target, asked.json(), tuple(asked.caller.items()))

    return one


@pytest.fixture
def base(ask: Callable[[Ask], Answer]) -> Ask:
    """A request that nobody has sent before, whose answer is now kept."""
    asked = Ask(values=(float(next(NUMBERS)), 2.0, 3.0, 4.0))
    first, second = ask(asked), ask(asked)
    assert (first.state, second.state) == ("fwd=miss", "hit"), first.body
    numpy.testing.assert_array_equal(second.tensor("y"), asked.expected())
    return asked


DIFFERENT: dict[str, Callable[[Ask], Ask]] = {
    "route": lambda base: base._replace(model="twin"),
    "tenant": lambda base: base._replace(caller=BOB),
    "version": lambda base: base._replace(version="1"),
    "input's name": lambda base: base._replace(name="b"),
    "input's name and datatype": lambda base: base._replace(name="whole", datatype="INT32"),
    "shape": lambda base: base._replace(shape=(2, 2)),
    "shape, turned": lambda base: base._replace(shape=(4, 1)),
    "bytes": lambda base: base._replace(values=(*base.values[:3], 4.5)),
    "parameter": lambda base: base._replace(parameters={"scale": 2}),
    "parameter's type": lambda base: base._replace(parameters={"scale": True}),
    "requested outputs": lambda base: base._replace(outputs=("y", "rows")),
    "all outputs": lambda base: base._replace(outputs=()),
}


@pytest.mark.parametrize("change", DIFFERENT)
def test_what_changes_an_answer_is_a_miss_with_an_answer_of_its_own(
    change: str, base: Ask, ask: Callable[[Ask], Answer]
) -> None:
    changed = DIFFERENT[change](base)
    answer = ask(changed)
    assert (answer.status, answer.state) == (200, "fwd=miss"), answer.body
    numpy.testing.assert_array_equal(answer.tensor("y"), changed.expected())
    assert (answer.tensor("rows") is None) is ("rows" not in changed.outputs and bool(changed.outputs))
    assert ask(changed).state == "hit"
    kept = ask(base)
    assert kept.state == "hit"
    numpy.testing.assert_array_equal(kept.tensor("y"), base.expected())


def test_the_datatype_alone_is_refused_and_never_a_hit(base: Ask, ask: Callable[[Ask], Answer]) -> None:
    answer = ask(base._replace(datatype="INT32", values=tuple(map(int, base.values))))
    assert answer.status == 400
    assert "FP32" in str(answer.document["error"])


def test_a_version_that_is_not_there_is_refused_and_never_answered_by_another(
    base: Ask, ask: Callable[[Ask], Answer]
) -> None:
    answer = ask(base._replace(version="99"))
    assert answer.status in (400, 404), answer.body
    assert "99" in str(answer.document["error"])


def test_another_output_is_another_answer(base: Ask, ask: Callable[[Ask], Answer]) -> None:
    answer = ask(base._replace(outputs=("rows",)))
    assert answer.state == "fwd=miss"
    assert answer.tensor("y") is None


def test_a_turned_epoch_is_a_miss(base: Ask, gateway: GatewayProcess, ask: Callable[[Ask], Answer]) -> None:
    """On a model of its own: a load tells of no other."""
    asked = base._replace(model="two_outputs", name="x", outputs=("A",))
    assert ask(asked).state == "fwd=miss"
    assert ask(asked).state == "hit"
    loaded = send(gateway.http_address, "/v2/repository/models/two_outputs/load", b"{}", tuple(ALICE.items()))
    assert loaded.status == 200, loaded.body
    turned = ask(asked)
    assert turned.state == "fwd=stale"
    assert "detail=epoch" in turned.headers["Cache-Status"]
    if ask(asked).state != "hit":  # the poll that sees the load too may turn it once more, and no oftener
        assert ask(asked).state == "hit"
    assert ask(base).state == "hit"


SAME: dict[str, Callable[[Ask], tuple[bytes, list[tuple[str, str]]]]] = {
    "request id": lambda base: (base._replace(id="r-1").json(), []),
    "spacing": lambda base: (base.json(indent=3), []),
    "members' order": lambda base: (base.json(sort_keys=True), []),
    "priority and timeout": lambda base: (
        base._replace(parameters={"priority": 2, "timeout": 9_000_000}).json(),
        [],
    ),
    "header order": lambda base: (base.json(), [("X-Before", "1"), ("Content-Type", "application/json")]),
    "other headers": lambda base: (base.json(), [("User-Agent", "else"), ("Accept", "*/*"), ("Traceparent", "00-1")]),
    "another caller of the tenant": lambda base: (base.json(), [("Authorization", "Bearer ann")]),
    "numbers written otherwise": lambda base: (base.json().replace(b"2.0", b"2e0").replace(b"3.0", b"3"), []),
}


@pytest.mark.parametrize("change", SAME)
def test_what_does_not_change_an_answer_is_a_hit(change: str, base: Ask, gateway: GatewayProcess) -> None:
    body, headers = SAME[change](base)
    if not any(name == "Authorization" for name, _ in headers):
        headers.append(("X-API-Key", "alice"))
    answer = send(gateway.http_address, base.target, body, headers)
    assert (answer.status, answer.state) == (200, "hit"), answer.body
    numpy.testing.assert_array_equal(answer.tensor("y"), base.expected())
    assert answer.document.get("id") == json.loads(body).get("id")


@pytest.mark.parametrize("first", ["json", "binary"])
def test_json_and_binary_meet_in_one_entry_and_each_gets_its_form_and_id(first: str, gateway: GatewayProcess) -> None:
    asked = Ask(values=(float(next(NUMBERS)), 5.0, 6.0, 7.0))

    def one(form: str, identity: str) -> Answer:
        named = asked._replace(id=identity)
        body, length = named.binary()
        headers = [*ALICE.items(), ("Inference-Header-Content-Length", length)]
        if form == "json":
            body, headers = named.json(), list(ALICE.items())
        return send(gateway.http_address, named.target, body, headers)

    second = "binary" if first == "json" else "json"
    answers = [one(first, "1"), one(second, "2"), one(first, "3"), one(second, "2")]
    assert [answer.state for answer in answers] == ["fwd=miss", "hit", "hit", "hit"]
    assert [answer.document["id"] for answer in answers] == ["1", "2", "3", "2"]
    for answer, form in zip(answers, (first, second, first, second), strict=True):
        assert ("Inference-Header-Content-Length" in answer.headers) is (form == "binary")
        numpy.testing.assert_array_equal(answer.tensor("y"), asked.expected())
    assert answers[1].body == answers[3].body


def test_tenants_share_where_the_route_says_so(base: Ask, ask: Callable[[Ask], Answer]) -> None:
    shared = base._replace(model="together")
    assert ask(shared).state == "fwd=miss"
    assert ask(shared._replace(caller=BOB)).state == "hit"


# -- Triton's own response cache, asked directly ------------------------------------------------------

X = Ask(model="two_outputs", name="x", shape=(1, 4), outputs=("A",))


def direct(server: TritonServer, asked: Ask) -> Answer:
    return send(server.http_address, asked.target, asked.json())


def test_triton_cache_mixes_up_shapes_and_the_gateway_does_not(
    triton_factory: Callable[..., TritonServer], gateway: GatewayProcess, ask: Callable[[Ask], Answer]
) -> None:
    caching = triton_factory("two_outputs", response_cache_bytes=1 << 20)
    wide, square = X._replace(values=(9.0, 8.0, 7.0, 6.0)), X._replace(values=(9.0, 8.0, 7.0, 6.0), shape=(2, 2))
    right, wrong = direct(caching, wide).tensor("A"), direct(caching, square).tensor("A")
    assert right is not None
    assert wrong is not None
    assert (right.shape, wrong.shape) == ((1, 4), (1, 4)), "[2, 2] was asked, and the answer to [1, 4] came"
    for _ in range(2):
        for asked in (wide, square):
            answer = ask(asked).tensor("A")
            assert answer is not None
            assert answer.shape == asked.shape


def test_triton_cache_mixes_up_outputs_and_the_gateway_does_not(
    triton_factory: Callable[..., TritonServer], gateway: GatewayProcess, ask: Callable[[Ask], Answer]
) -> None:
    caching = triton_factory("two_outputs", response_cache_bytes=1 << 20)
    first, other = X._replace(values=(5.0, 4.0, 3.0, 2.0)), X._replace(values=(5.0, 4.0, 3.0, 2.0), outputs=("B",))
    assert [output["name"] for output in direct(caching, first).document["outputs"]] == ["A"]  # type: ignore[attr-defined]
    wrong = direct(caching, other).document["outputs"]
    assert [output["name"] for output in wrong] == ["A"], "B was asked, and A came"  # type: ignore[attr-defined]
    x = numpy.array([[5.0, 4.0, 3.0, 2.0]], numpy.float32)
    for _ in range(2):
        numpy.testing.assert_array_equal(ask(first).tensor("A"), x + 1)
        numpy.testing.assert_array_equal(ask(other).tensor("B"), x * 2)
        assert ask(other).tensor("A") is None
