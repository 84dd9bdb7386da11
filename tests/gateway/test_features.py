"""A route that joins features: ids in, rows of tables in their place, and an answer that says what they were."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec
import numpy as np
import pytest

from cache.stores.store import StoreError
from degrade.deadline import Deadline
from degrade.ladder import Failure
from gateway import features
from gateway.call import Answer, Call
from gateway.codec.http import CacheDirectives, provenance_headers
from gateway.config import CacheConfig, Entity, FeatureInput, Features, Limits, Part, TierConfig
from gateway.config import Route as RouteConfig
from gateway.config_default import DefaultOutput
from gateway.features import ROWS_MAX
from gateway.learning import Home
from gateway.problem import Refused
from gateway.route import Route
from gateway.units import Seconds, Size
from tests.gateway.test_pipeline import NOBODY, House, Upstream
from tests.gateway.test_tables import Shelf, table_on
from tiers.facts import ModelFacts, TensorFact
from tiers.inference import InferRequest, InferResponse, Tensor, UpstreamError
from tiers.pool import Answered

FACTS = ModelFacts(
    "ranker",
    ("1",),
    (TensorFact("x", "FP32", (-1, 5)), TensorFact("hour", "INT32", (-1, 1), optional=True)),
    (TensorFact("score", "FP32", (-1, 1)),),
    4,
    False,
    False,
)
FEATURES = Features(
    entities={"user": Entity(many=False, datatype="BYTES"), "items": Entity(many=True)},
    inputs={"x": FeatureInput((Part("user", "user"), Part("items", "item")))},
)
CACHE = CacheConfig(ttl=Seconds(10), max_stale=Seconds(100))
NOTHING: Mapping[str, DefaultOutput] = MappingProxyType({})


class Ranker(Upstream):
    """The score is the sum of a row; ``seen`` holds what it was asked."""

    def __init__(self) -> None:
        super().__init__(FACTS)
        self.seen: list[np.ndarray] = []

    async def infer(self, request: InferRequest, *args: object, **named: object) -> Answered:  # type: ignore[override]
        x = np.frombuffer(request.inputs[0].data, "<f4").reshape(request.inputs[0].shape)
        self.seen.append(x)
        await super().infer(request, *args, **named)  # type: ignore[arg-type]
        score = Tensor("score", "FP32", (len(x), 1), x.reshape(len(x), -1).sum(axis=1).tobytes())
        return Answered(InferResponse(request.model, "1", (score,)), "http://u")


class Ranking(House):
    """User rows are [n, n], item rows [n, n, n]."""

    def __init__(
        self,
        default: float | str = "error",
        features: Features = FEATURES,
        declared: Mapping[str, DefaultOutput] = NOTHING,
        **settings: object,
    ) -> None:
        """``default``: of tables; ``declared``: the route's."""
        self.ranker = Ranker()
        super().__init__(self.ranker)
        self.users, self.items = Shelf(), Shelf()
        for number, name in ((1, b"ann"), (2, b"bob")):
            self.users.values[b"u:" + name] = np.full(2, number, "<f4").tobytes()
        for number in range(10):
            self.items.values[b"i:%d" % number] = np.full(3, number, "<f4").tobytes()
        self.tables = {
            "user": table_on(
                self.users, "user", self.clock, shape=(2,), key="u:{id}", ids="text", id_bytes_max=15, default=default
            ),
            "item": table_on(self.items, "item", self.clock, shape=(3,), key="i:{id}", default=default),
        }
        tiers = (TierConfig("gpu", "m0"),)
        written = {"tiers": tiers, "cache": CACHE, "features": features, "default": declared} | settings
        config = RouteConfig(**written)  # type: ignore[arg-type]
        homes = [Home(self.ranker, self.ranker)]  # type: ignore[arg-type]
        self.route = Route("rank", config, homes, 2**20, self.tables)

    async def rank(self, user: bytes, items: Sequence[int], *more: Tensor, **named: object) -> Answer:
        tensors = (
            Tensor("user", "BYTES", (1,), struct.pack("<I", len(user)) + user),
            Tensor("items", "INT64", (len(items),), np.array(items, "<i8").tobytes()),
            *more,
        )
        directives = named.pop("directives", CacheDirectives())
        assert isinstance(directives, CacheDirectives)
        return await self.asked(*tensors, directives=directives)

    async def asked(self, *tensors: Tensor, directives: CacheDirectives | None = None) -> Answer:
        deadline = Deadline.after(self.clock.now, 5.0)
        call = Call(self.route, NOBODY, InferRequest("rank", tensors), directives or CacheDirectives(), deadline)
        return await self.pipeline.answer(call)


def scores(answer: Answer) -> list[float]:
    told: list[float] = np.frombuffer(answer.response.outputs[0].data, "<f4").tolist()
    return told


async def test_one_user_is_joined_to_many_items() -> None:
    house = Ranking()
    answer = await house.rank(b"bob", [3, 0, 9])
    assert house.ranker.seen[0].tolist() == [[2, 2, 3, 3, 3], [2, 2, 0, 0, 0], [2, 2, 9, 9, 9]]
    assert scores(answer) == [13, 4, 31]
    told = answer.provenance
    assert [(each.name, each.fresh) for each in told.tables] == [("user", 1), ("item", 3)]
    assert (told.cache, told.rows, told.steps, told.degraded, told.stored) == ("miss", 3, (), False, True)
    fields = dict(provenance_headers(told, 0.0))
    assert 'tables=(user;fresh=1;age=0 item;fresh=3;age=0)' in fields["Tailrace-Provenance"]
    again = await house.rank(b"bob", [3, 0, 9])
    assert (again.provenance.cache, again.provenance.tables) == ("hit", told.tables)
    house.clock.now += 4
    await house.rank(b"ann", [3, 1])
    assert house.items.asked == [[b"i:3", b"i:0", b"i:9"], [b"i:1"]]


async def test_callers_see_ids_where_the_model_takes_numbers() -> None:
    house = Ranking()
    facts = house.route.learning.known()
    assert facts is not None
    assert [(fact.name, fact.datatype, fact.shape) for fact in facts.inputs] == [
        ("user", "BYTES", (1,)), ("items", "INT64", (-1,)), ("hour", "INT32", (-1, 1)),
    ]  # fmt: skip


async def test_what_a_caller_sends_once_holds_for_every_row() -> None:
    house = Ranking()
    hour = Tensor("hour", "INT32", (1, 1), b"\x07\0\0\0")
    await house.rank(b"bob", [1, 2], hour)
    sent = house.ranker.requests[0].inputs[1]
    assert (sent.shape, sent.data) == ((2, 1), b"\x07\0\0\0" * 2)
    with pytest.raises(Refused, match="give it 1 or 2"):
        await house.rank(b"bob", [1, 2], Tensor("hour", "INT32", (3, 1), b"\0" * 12))


@pytest.mark.parametrize(
    ("user", "items", "said"),
    [
        (b"eve", [1], "table user has no eve"),
        (b"bob", [1, 77], "table item has no 77"),
        (b"bob", [], "0 ids"),
        (b"bob", [1, 2, 3, 4, 5], "5 ids; model m0|takes 1 to 4"),
    ],
)
async def test_what_no_input_can_be_made_of_is_refused(user: bytes, items: list[int], said: str) -> None:
    house = Ranking()
    with pytest.raises(Refused, match=said) as refused:
        await house.rank(user, items)
    assert refused.value.problem.status == 400
    assert house.ranker.seen == []


async def test_old_rows_are_used_in_need_said_and_not_kept() -> None:
    house = Ranking()
    await house.rank(b"bob", [1])
    house.clock.now += 20
    house.items.failure = StoreError("timeout")
    told = (await house.rank(b"bob", [1])).provenance
    assert (told.cache, told.steps, told.degraded, told.stored) == ("miss", ("item:stale",), True, False)
    assert [(each.fresh, each.stale, each.age) for each in told.tables] == [(1, 0, 0.0), (0, 1, 20.0)]


async def test_without_rows_an_old_answer_or_none() -> None:
    house = Ranking()
    await house.rank(b"bob", [1])
    house.clock.now += 61
    house.items.failure = StoreError("unreachable")
    told = (await house.rank(b"bob", [1])).provenance
    assert (told.cache, told.reason, told.steps, told.degraded) == ("stale", "unreachable", ("stale",), True)
    with pytest.raises(Refused) as refused:
        await house.rank(b"bob", [2])
    assert refused.value.problem.status == 503
    assert "table item: unreachable" in refused.value.problem.detail


async def test_defaults_stand_in_and_are_said() -> None:
    house = Ranking(default=0.5)
    answer = await house.rank(b"eve", [1])
    assert scores(answer) == [4.0]
    told = answer.provenance
    assert (told.degraded, told.tables[0].absent, told.stored) == (False, 1, True)
    house.items.failure = StoreError("unreachable")
    answer = await house.rank(b"bob", [2])
    assert scores(answer) == [5.5]
    assert (answer.provenance.steps, answer.provenance.stored) == (("item:default",), False)


async def test_rows_are_kept_by_what_the_features_were() -> None:
    house = Ranking(cache=msgspec.structs.replace(CACHE, rows=True))
    await house.rank(b"bob", [1, 2])
    told = (await house.rank(b"bob", [2, 3])).provenance
    assert (told.reason, told.rows, told.rows_kept) == ("partial", 2, 1)
    house.items.values[b"i:2"] = np.full(3, 7, "<f4").tobytes()
    house.tables["item"]._written([b"i:2"])
    answer = await house.rank(b"bob", [2, 1])
    assert scores(answer) == [25, 7]
    assert answer.provenance.rows_kept == 1


async def test_parts_may_be_stacked() -> None:
    wanted = FeatureInput((Part("items", "item"), Part("items", "item")), join="stack")
    house = Ranking(features=Features({"items": Entity(many=True)}, {"x": wanted}))
    house.ranker.known = msgspec.structs.replace(FACTS, inputs=(TensorFact("x", "FP32", (-1, 2, 3)),))
    tensors = (Tensor("items", "INT64", (2,), np.array([4, 5], "<i8").tobytes()),)
    call = Call(house.route, NOBODY, InferRequest("rank", tensors), CacheDirectives(), Deadline.after(1000.0, 5.0))
    await house.pipeline.answer(call)
    assert house.ranker.seen[0].tolist() == [[[4] * 3] * 2, [[5] * 3] * 2]


@pytest.mark.parametrize("shape", [(-1, 4), (-1, 5, 2), (-1,)])
async def test_a_model_that_takes_another_shape_is_the_operators_to_mend(shape: tuple[int, ...]) -> None:
    house = Ranking()
    house.ranker.known = msgspec.structs.replace(FACTS, inputs=(TensorFact("x", "FP32", shape),))
    with pytest.raises(Refused, match="features make x") as refused:
        await house.rank(b"bob", [1])
    assert refused.value.problem.status == 503


@pytest.mark.parametrize(
    ("datatype", "number"), [("FP16", 1e6), ("INT8", 300.0), ("INT8", 0.5), ("INT32", 3e9), ("UINT8", -1.0)]
)
async def test_a_feature_that_the_model_cannot_hold_is_never_sent_as_another_number(
    datatype: str, number: float
) -> None:
    house = Ranking()
    house.items.values[b"i:1"] = np.array([1, number, 3], "<f4").tobytes()
    house.ranker.known = msgspec.structs.replace(FACTS, inputs=(TensorFact("x", datatype, (-1, 5)),))
    with pytest.raises(Refused, match=f"of input x is no {datatype}") as refused:
        await house.rank(b"bob", [1])
    assert refused.value.problem.status == 503
    assert house.ranker.seen == []


async def test_shared_memory_is_refused_where_features_are_joined() -> None:
    house = Ranking()
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    ids = (Tensor("user", "BYTES", (1,), b"\x03\0\0\0bob"), Tensor("items", "INT64", (1,), b"", region))
    deadline = Deadline.after(house.clock.now, 5.0)
    with pytest.raises(Refused, match="shared memory") as refused:
        await house.pipeline.answer(Call(house.route, NOBODY, InferRequest("rank", ids), CacheDirectives(), deadline))
    assert refused.value.problem.status == 400


async def test_ids_have_a_bound_where_nobody_sets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "ROWS_MAX", 3)
    house = Ranking()
    house.ranker.known = msgspec.structs.replace(FACTS, max_batch=0)
    assert len(scores(await house.rank(b"bob", [1, 2, 3]))) == 3
    with pytest.raises(Refused, match="takes 1 to 3 here") as refused:
        await house.rank(b"bob", [1, 2, 3, 4])
    assert refused.value.problem.status == 400


@pytest.mark.parametrize("repeated", ["row", "context"])
async def test_what_is_repeated_for_each_row_has_a_bound_and_is_not_even_looked_up_beyond_it(repeated: str) -> None:
    limits = Limits(body_bytes_max=Size(1000))
    house = Ranking(limits=limits)
    house.ranker.known = msgspec.structs.replace(FACTS, max_batch=0)
    items = list(range(10))
    if repeated == "row":  # 5 numbers of 4 bytes: 50 rows are as many bytes as there may be
        assert len(scores(await house.rank(b"bob", items * 5))) == 50
        asked, more, made = items * 5 + [1], (), 1020
    else:
        more = (Tensor("note", "BYTES", (1, 1), struct.pack("<I", 96) + b"x" * 96),)
        note = TensorFact("note", "BYTES", (-1, 1), optional=True)
        house.ranker.known = msgspec.structs.replace(house.ranker.known, inputs=(*FACTS.inputs, note))
        assert len(scores(await house.rank(b"bob", items[:8], *more))) == 8
        asked, made = items, 1200
    before = len(house.ranker.seen), len(house.items.asked)
    said = f"{len(asked)} rows make a request of {made} bytes.* at most 1000 .routes.rank.limits.body_bytes_max"
    with pytest.raises(Refused, match=said) as refused:
        await house.rank(b"ann", asked, *more)
    assert refused.value.problem.status == 413
    assert (len(house.ranker.seen), len(house.items.asked)) == before
    assert len(house.users.asked) == 1


def test_how_many_rows_there_would_be_is_told_by_shapes_alone() -> None:
    """A declared default is repeated for them, also before a model has said what a request must be."""
    features = Ranking().route.features
    assert features is not None
    user = Tensor("user", "BYTES", (1,), b"\xff\xff")

    def rows(*more: Tensor) -> int | None:
        return features.rows(InferRequest("rank", (user, *more)))

    assert rows(Tensor("items", "INT64", (3,), b"\0" * 24)) == 3
    assert rows(Tensor("items", "FP32", (3,), b"\0" * 12)) == 3
    assert rows() == 1
    assert rows(Tensor("items", "INT64", (3,), b""), Tensor("items", "INT64", (2,), b"")) is None
    assert rows(Tensor("items", "INT64", (0,), b"")) is None
    assert rows(Tensor("items", "INT64", (ROWS_MAX + 1,), b"")) is None
    items = Tensor("items", "INT64", (5,), b"")
    assert (features.rows(InferRequest("r", (items,)), 4), features.rows(InferRequest("r", (items,)), 5)) == (None, 5)


ANN = Tensor("user", "BYTES", (1,), b"\x03\0\0\0ann")
ITEMS = Tensor("items", "INT64", (2,), b"\0" * 16)
HOUR = Tensor("hour", "INT32", (1, 1), b"\0" * 4)
DEFAULT = {"score": DefaultOutput("FP32", (-1, 1), 0.5)}
WRONG = {
    "input 'items' must be INT64, got BYTES": (ANN, Tensor("items", "BYTES", (2,), b"\x01\0\0\0a\x01\0\0\0b")),
    "input 'items' must be INT64, got UINT8": (ANN, Tensor("items", "UINT8", (3,), b"abc")),
    "input 'user' must be BYTES, got INT64": (Tensor("user", "INT64", (1,), b"\0" * 8), ITEMS),
    "input 'items' must have shape [-1], got [2, 1]: rank 2": (ANN, Tensor("items", "INT64", (2, 1), b"\0" * 16)),
    "input 'user' must have shape [1], got [2]": (Tensor("user", "BYTES", (2,), ANN.data * 2), ITEMS),
    "missing input 'user'": (ITEMS,),
    "input 'items' is given twice": (ANN, ITEMS, ITEMS),
}


@pytest.mark.parametrize("told", WRONG)
async def test_before_a_model_is_known_a_default_is_for_entities_as_they_are_configured(told: str) -> None:
    house = Ranking(declared=DEFAULT)
    house.upstream.facts_failure = UpstreamError(Failure.UNREACHABLE, "nobody there")
    assert (await house.asked(ANN, ITEMS, HOUR)).provenance.steps == ("default",)
    with pytest.raises(Refused) as refused:
        await house.asked(*WRONG[told])
    assert (refused.value.problem.slug, told in refused.value.problem.detail) == ("unavailable", True)


async def test_a_default_has_no_more_rows_than_the_model_takes() -> None:
    house = Ranking(declared=DEFAULT)
    await house.rank(b"ann", [1])
    assert callable(house.route.declared(InferRequest("rank", (ANN, ITEMS))))
    five = Tensor("items", "INT64", (5,), b"\0" * 40)
    assert "too many" in str(house.route.declared(InferRequest("rank", (ANN, five))))
