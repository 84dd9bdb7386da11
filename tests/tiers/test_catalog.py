"""The catalog: facts as Triton tells them, kept while it is down, and every kind of change told once."""

from __future__ import annotations

import asyncio
import json

import pytest

from degrade.deadline import Deadline
from degrade.ladder import Failure
from tiers.backends.call import Call, Reply
from tiers.catalog import Catalog, CatalogOptions
from tiers.facts import Capacity, ModelFacts, Sight, TensorFact, changed
from tiers.inference import Rejected, UpstreamError

FAR = Deadline(1e9)


class Triton:
    """What a replica says of its models; ``down`` and ``broken`` are its faults."""

    def __init__(self, url: str = "a") -> None:
        self.url = url
        self.versions = ["1"]
        self.widths: dict[str, int] = {}
        self.config: dict[str, object] = {
            "max_batch_size": 8,
            "input": [{"name": "x"}, {"name": "o", "optional": True}],
        }
        self.count = 0
        self.loaded = True
        self.down: Failure | None = None
        self.raw: Reply | None = None
        self.calls = 0
        self.hangs = False
        self.left = 0

    async def exchange(self, call: Call, deadline: Deadline, now: float) -> Reply:
        self.calls += 1
        await asyncio.sleep(0)
        if self.hangs:
            try:
                await asyncio.Event().wait()
            finally:
                self.left += 1
        if self.down:
            raise UpstreamError(self.down, "down")
        if self.raw:
            return self.raw
        if not self.loaded:
            return Reply(404, (), b'{"error":"Request for unknown model: \'m\' is not found"}')
        asked = call.target.partition("/versions/")[2].partition("/")[0]
        if asked and asked not in self.versions:
            return Reply(400, (), b'{"error":"Request for unknown model: \'m\' version is not found"}')
        if call.target.endswith("/config"):
            return Reply(200, (), json.dumps(self.config).encode())
        if call.target.endswith("/stats"):
            work = {"success": {"count": self.count, "ns": self.count * 10}} | {
                f"compute_{part}": {"count": self.count, "ns": self.count * 2} for part in ("input", "infer", "output")
            }
            stats = [
                {"version": version, "inference_count": self.count, "inference_stats": work}
                for version in self.versions
            ]
            return Reply(200, (), json.dumps({"model_stats": stats}).encode())
        width = self.widths.get(asked, 4)
        inputs = [{"name": name, "datatype": "FP32", "shape": [-1, width]} for name in ("x", "o")]
        outputs = [{"name": "y", "datatype": "BYTES", "shape": [-1, 1]}]
        versions = [asked] if asked else self.versions
        named = {"name": call.target.split("/")[3], "versions": versions, "platform": "python"}
        body = named | {"inputs": inputs, "outputs": outputs}
        return Reply(200, (), json.dumps(body).encode())


def catalog(*replicas: Triton) -> tuple[Catalog, list[str]]:
    turned: list[str] = []
    return Catalog(replicas, CatalogOptions(), lambda: 0.0, turned.append), turned


async def poll(made: Catalog) -> tuple[str, ...]:
    """One look at every replica; the models that changed."""
    looks = await asyncio.gather(*(made.look(position, FAR) for position in range(len(made._replicas))))
    return tuple(dict.fromkeys(model for turned in looks for model in turned))


async def test_facts() -> None:
    triton = Triton()
    made, _ = catalog(triton)
    facts = await made.facts("m", "", FAR)
    assert facts.inputs == (TensorFact("x", "FP32", (-1, 4)), TensorFact("o", "FP32", (-1, 4), optional=True))
    assert facts.outputs == (TensorFact("y", "BYTES", (-1, 1)),)
    assert (facts.versions, facts.max_batch, facts.sequence, facts.decoupled) == (("1",), 8, False, False)
    assert await made.facts("m", "1", FAR) is facts
    assert triton.calls == 3
    with pytest.raises(Rejected) as caught:
        await made.facts("m", "2", FAR)
    assert caught.value.status == 404


async def test_sequence_and_decoupled() -> None:
    triton = Triton()
    triton.config = {"sequence_batching": {"oldest": {}}, "model_transaction_policy": {"decoupled": True}}
    facts = await catalog(triton)[0].facts("m", "", FAR)
    assert (facts.sequence, facts.decoupled, facts.max_batch) == (True, True, 0)


@pytest.mark.parametrize(
    ("config", "places"),
    [
        ({}, 0),
        ({"instance_group": [{"count": 2, "kind": "KIND_CPU"}]}, 2),
        ({"max_batch_size": 8, "instance_group": [{"count": 2, "kind": "KIND_CPU", "gpus": []}]}, 2),
        ({"instance_group": [{"count": 2, "kind": "KIND_GPU", "gpus": [0, 1]}, {"count": 1, "kind": "KIND_CPU"}]}, 5),
        ({"instance_group": [{"count": 2, "gpus": [0]}, {"count": 4, "gpus": [1], "passive": True}]}, 2),
        ({"instance_group": [{"count": 1, "kind": "KIND_MODEL"}]}, 0),
        ({"instance_group": [{"count": 2}], "max_batch_size": 8, "dynamic_batching": {}}, 0),
        ({"instance_group": [{"count": 2}], "sequence_batching": {}}, 0),
        ({"instance_group": [{"count": 2}], "model_transaction_policy": {"decoupled": True}}, 0),
        ({"instance_group": [{"count": -2}]}, 0),
        ({"instance_group": [{"count": 2**31 - 1}]}, 0),
        ({"instance_group": None}, 0),
        ({"instance_group": "two", "dynamic_batching": None}, 0),
        ({"instance_group": [{"count": "2"}]}, 0),
        ({"instance_group": [{"count": 2, "gpus": None}]}, 2),
        ({"instance_group": [{"count": 2}], "dynamic_batching": True}, 0),
        ({"platform": "ensemble", "ensemble_scheduling": {"step": []}}, 0),
    ],
)
async def test_how_many_requests_a_model_works_on_at_once(config: dict[str, object], places: int) -> None:
    one, two = Triton("a"), Triton("b")
    one.config = two.config = config
    one.count = 7
    made, _ = catalog(one, two)
    assert made.capacity("m") is None
    await made.facts("m", "", FAR)
    await poll(made)
    assert made.capacity("m") == (Capacity(2 * places, 6e-9, 10e-9) if places else None)


async def test_places_are_those_of_the_replicas_that_have_the_model() -> None:
    one, two = Triton("a"), Triton("b")
    one.config = {"instance_group": [{"count": 3}]}
    two.config = {"instance_group": [{"count": 1}]}
    made, _ = catalog(one, two)
    await made.facts("m", "", FAR)
    await poll(made)
    assert made.capacity("m") is None, "nobody has worked"
    one.count = two.count = 5
    await poll(made)
    assert made.capacity("m") == Capacity(4, 6e-9, 10e-9)
    two.down = Failure.TIMEOUT
    await poll(made)
    assert made.capacity("m") == Capacity(4, 6e-9, 10e-9), "one look is late: that says nothing"
    two.down, two.loaded = None, False
    await poll(made)
    assert made.capacity("m") == Capacity(3, 6e-9, 10e-9)
    two.loaded, two.config = True, {}
    await poll(made)
    assert made.capacity("m") is None, "one of them does not say"


async def test_many_callers_learn_once() -> None:
    triton = Triton()
    made, _ = catalog(triton)
    await asyncio.gather(*(made.facts("m", "", FAR) for _ in range(50)))
    assert triton.calls == 3
    await made.close()


async def test_another_replica_knows() -> None:
    one, two = Triton("a"), Triton("b")
    one.down = Failure.UNREACHABLE
    assert (await catalog(one, two)[0].facts("m", "", FAR)).name == "m"


async def test_unknown_is_said_only_when_everyone_says_so() -> None:
    one, two = Triton("a"), Triton("b")
    one.loaded = two.loaded = False
    made, _ = catalog(one, two)
    with pytest.raises(Rejected, match="unknown model"):
        await made.facts("m", "", FAR)
    two.down = Failure.UNREACHABLE
    with pytest.raises(UpstreamError):
        await made.facts("m", "", FAR)
    two.down, two.loaded = None, True
    assert (await made.facts("m", "", FAR)).name == "m"


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        (Reply(200, (), b"<html>"), Failure.BROKEN),
        (Reply(200, (), b'{"name":1}'), Failure.BROKEN),
        (Reply(404, (), b"<html>"), Failure.BROKEN),
        (Reply(500, (), b""), Failure.BROKEN),
        (Reply(503, (), b""), Failure.OVERLOADED),
    ],
)
async def test_errors_are_mapped(reply: Reply, failure: Failure) -> None:
    triton = Triton()
    triton.raw = reply
    with pytest.raises(UpstreamError) as caught:
        await catalog(triton)[0].facts("m", "", FAR)
    assert caught.value.failure is failure


async def test_no_time_is_a_timeout() -> None:
    with pytest.raises(UpstreamError) as caught:
        await catalog(Triton())[0].facts("m", "", Deadline(0.0))
    assert caught.value.failure is Failure.TIMEOUT


async def test_growing_work_is_no_change() -> None:
    triton = Triton()
    made, turned = catalog(triton)
    await made.facts("m", "", FAR)
    for count in (1, 5, 5):
        triton.count = count
        await poll(made)
    assert turned == []


@pytest.mark.parametrize("kind", ["versions", "config", "statistics", "unload"])
async def test_each_kind_of_change_is_told_once(kind: str) -> None:
    one, two = Triton("a"), Triton("b")
    one.count = two.count = 7
    made, turned = catalog(one, two)
    await made.facts("m", "", FAR)
    await poll(made)
    if kind == "versions":
        two.versions = ["1", "2"]
    elif kind == "config":
        two.config = {**two.config, "max_batch_size": 16}
    elif kind == "statistics":
        two.count = 2
    else:
        two.loaded = False
        assert await poll(made) == ()
        two.loaded = True
    assert await poll(made) == ("m",)
    assert await poll(made) == ()
    assert turned == ["m"]


async def test_new_facts_replace_old_ones() -> None:
    triton = Triton()
    made, _ = catalog(triton)
    await made.facts("m", "", FAR)
    triton.versions = ["2"]
    await poll(made)
    assert (await made.facts("m", "2", FAR)).versions == ("2",)


async def test_a_version_is_described_by_itself_once_and_again_after_a_change() -> None:
    triton = Triton()
    triton.versions, triton.widths = ["1", "2"], {"1": 3}
    made, _ = catalog(triton)
    assert (await made.facts("m", "", FAR)).inputs[0].shape == (-1, 4)
    facts = await made.facts("m", "1", FAR)
    assert facts.inputs[0].shape == (-1, 3)
    assert set(facts.versions) == {"1", "2"}
    calls = triton.calls
    assert await made.facts("m", "1", FAR) is facts
    assert triton.calls == calls
    triton.widths["1"] = 5
    await poll(made)
    assert await made.facts("m", "1", FAR) is facts
    triton.config = {"max_batch_size": 4}
    await poll(made)
    assert (await made.facts("m", "1", FAR)).inputs[0].shape == (-1, 5)


async def test_a_version_that_came_after_the_last_poll_is_asked_for() -> None:
    triton = Triton()
    made, _ = catalog(triton)
    await made.facts("m", "", FAR)
    triton.versions = ["1", "2"]
    assert (await made.facts("m", "2", FAR)).versions == ("1", "2")


async def test_versions_of_a_model_are_bounded() -> None:
    triton = Triton()
    triton.versions = [str(number) for number in range(CatalogOptions().versions_max + 2)]
    made, _ = catalog(triton)
    for version in triton.versions:
        await made.facts("m", version, FAR)
    calls = triton.calls
    await made.facts("m", triton.versions[-1], FAR)
    assert triton.calls == calls
    await made.facts("m", triton.versions[0], FAR)
    assert triton.calls == calls + 2


async def test_while_everything_is_down_facts_stay_and_a_restart_is_told() -> None:
    triton = Triton()
    triton.count = 3
    made, turned = catalog(triton)
    await made.facts("m", "", FAR)
    triton.down = Failure.UNREACHABLE
    assert await poll(made) == ()
    assert (await made.facts("m", "", FAR)).name == "m"
    triton.down, triton.count = None, 0
    assert await poll(made) == ("m",)
    assert turned == ["m"]


async def test_a_restart_that_a_poll_met_is_told_although_no_work_had_been_seen() -> None:
    triton = Triton()
    made, turned = catalog(triton)
    await made.facts("m", "", FAR)
    triton.down = Failure.UNREACHABLE
    await poll(made)
    triton.down = None
    assert await poll(made) == ("m",)
    assert await poll(made) == ()
    assert turned == ["m"]


async def test_models_in_use_are_never_forgotten_and_the_others_are() -> None:
    """However many there are: one that is hit again and again asks nobody for it, and nobody would see it change."""
    triton = Triton()
    made, turned = catalog(triton)
    names = [f"m{number}" for number in range(2000)]
    for name in names:
        await made.facts(name, "", FAR)
    calls = triton.calls
    for name in names:
        assert made.recall(name, "") is not None
    triton.versions = ["2"]
    await poll(made)
    assert turned == names
    made.keep({"m7", "other"})
    assert [name for name in names if made.recall(name, "") is not None] == ["m7"]
    assert triton.calls == calls + 3 * len(names)


async def test_each_model_has_its_time_to_tell_what_it_is() -> None:
    """However many come before it."""
    triton, turned, now = Triton(), list[str](), [0.0]
    made = Catalog([triton], CatalogOptions(load_timeout=5.0), lambda: now[0], turned.append)
    names = [f"m{number}" for number in range(10)]
    for name in names:
        await made.facts(name, "", FAR)
    triton.versions = ["2"]
    exchange = triton.exchange

    async def slow(call: Call, deadline: Deadline, at: float) -> Reply:
        now[0] += 1.0
        if deadline.expired(now[0]):
            raise UpstreamError(Failure.TIMEOUT, "slow")
        return await exchange(call, deadline, at)

    triton.exchange = slow  # type: ignore[method-assign]

    async def sleep(seconds: float) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await made.run(1.0, sleep)
    assert turned == names
    now[0] = 0.0
    assert await made.look(0, Deadline(4.5)) == [], "and all together what they are given"


async def test_a_model_that_hangs_keeps_no_other_from_being_looked_at() -> None:
    triton, turned = Triton(), list[str]()
    made = Catalog([triton], CatalogOptions(), lambda: 0.0, turned.append)
    names = [f"m{number}" for number in range(5)]
    for name in names:
        await made.facts(name, "", FAR)
    exchange, hung = triton.exchange, {"m0", "m3"}
    triton.count = 9

    async def some(call: Call, deadline: Deadline, at: float) -> Reply:
        if call.target.split("/")[3] in hung:
            raise UpstreamError(Failure.TIMEOUT, "it hangs")
        return await exchange(call, deadline, at)

    triton.exchange = some  # type: ignore[method-assign]
    for _ in range(3):
        await poll(made)
    assert turned == []
    triton.versions = ["2"]
    await poll(made)
    assert sorted(turned) == ["m1", "m2", "m4"]
    hung.clear()
    await poll(made)
    assert sorted(turned) == names


async def test_run_polls_until_cancelled() -> None:
    triton = Triton()
    made, _ = catalog(triton)
    await made.facts("m", "", FAR)

    async def sleep(seconds: float) -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await made.run(1.0, sleep)
    assert triton.calls == 6


def sight(executions: int, last: int) -> Sight:
    return Sight(frozenset({"1"}), b"", {"1": (executions, executions * 1000, executions, executions)}, {"1": last})


@pytest.mark.parametrize(
    ("before", "after", "differs"),
    [
        (sight(0, 0), sight(0, 0), False),
        (sight(0, 0), sight(1, 500), False),
        (sight(1, 500), sight(1, 500), False),
        (sight(1, 500), sight(2, 700), False),
        (sight(2, 500), sight(1, 700), True),
        (sight(1, 500), sight(1, 700), True),
        (sight(1, 500), sight(0, 0), True),
    ],
)
def test_work_that_its_count_does_not_tell_is_another_models(before: Sight, after: Sight, differs: bool) -> None:
    assert changed(before, after) is differs


@pytest.mark.parametrize("version", ["", "1"])
@pytest.mark.parametrize("hung", [0, 1])
async def test_a_replica_that_hangs_hides_no_other(hung: int, version: str) -> None:
    replicas = Triton("a"), Triton("b")
    for triton in replicas:
        triton.versions = ["1", "2"]
    replicas[hung].hangs = True
    made, _ = catalog(*replicas)
    async with asyncio.timeout(10):
        assert (await made.facts("m", version, FAR)).name == "m"
        await made.close()
    assert replicas[hung].left == replicas[hung].calls > 0  # and nothing is still being asked of it


async def test_who_hangs_may_have_what_another_lacks() -> None:
    one, two = Triton("a"), Triton("b")
    one.hangs, two.loaded = True, False
    with pytest.raises(UpstreamError) as caught:
        await catalog(one, two)[0].facts("m", "", Deadline(0.05))
    assert caught.value.failure is Failure.TIMEOUT


async def test_a_replica_that_hangs_delays_no_news_of_another_and_keeps_its_last_sight() -> None:
    one, two = Triton("a"), Triton("b")
    one.count = two.count = 7
    made, turned = catalog(one, two)
    await made.facts("m", "", FAR)
    await poll(made)
    one.hangs = True
    looked = asyncio.Semaphore(0)

    async def sleep(seconds: float) -> None:
        looked.release()
        await asyncio.sleep(0)

    running = asyncio.create_task(made.run(1.0, sleep))
    async with asyncio.timeout(10):
        await looked.acquire()
        two.count = 2
        while not turned:
            await looked.acquire()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (turned, one.left) == (["m"], 1)
    one.hangs = False
    await poll(made)
    one.count = 3
    assert await poll(made) == ("m",)


async def test_the_first_replica_that_answers_says_what_the_facts_are() -> None:
    one, two = Triton("a"), Triton("b")
    made, _ = catalog(one, two)
    await made.facts("m", "", FAR)
    two.versions = ["2"]
    await poll(made)
    assert (await made.facts("m", "", FAR)).versions == ("1",)
    one.down = Failure.UNREACHABLE
    await poll(made)
    assert (await made.facts("m", "", FAR)).versions == ("2",)
    two.down = Failure.UNREACHABLE
    await poll(made)
    assert (await made.facts("m", "", FAR)).versions == ("2",)


async def test_what_was_asked_of_a_version_before_a_change_is_not_kept_after_it() -> None:
    triton = Triton()
    triton.versions = ["1", "2"]
    made, turned = catalog(triton)
    await made.facts("m", "", FAR)
    told = asyncio.Event()
    answer = triton.exchange

    async def slow(call: Call, deadline: Deadline, now: float) -> Reply:
        reply = await answer(call, deadline, now)
        if call.target.endswith("/versions/2"):
            await told.wait()  # said before the change, heard after it
        return reply

    triton.exchange = slow  # type: ignore[method-assign]
    asked = asyncio.create_task(made.facts("m", "2", FAR))
    for _ in range(5):
        await asyncio.sleep(0)
    triton.config["max_batch_size"] = 4
    triton.widths["2"] = 7
    await poll(made)
    assert turned == ["m"]
    told.set()
    assert (await asked).inputs[0].shape == (-1, 4)
    assert (await made.facts("m", "2", FAR)).inputs[0].shape == (-1, 7)


@pytest.mark.parametrize("version", ["", "1"])
async def test_what_is_told_of_something_else_is_not_believed(version: str) -> None:
    """As Triton does that hears a path wrongly: what it says of itself has a name as well."""
    triton = Triton()
    triton.raw = Reply(200, (), b'{"name":"triton","version":"2.51.0","extensions":["classification"]}')
    made, turned = catalog(triton)
    with pytest.raises(UpstreamError, match="was asked about m and told of triton") as failed:
        await made.facts("m", version, FAR)
    assert failed.value.failure is Failure.BROKEN
    triton.raw = None
    before = await made.facts("m", version, FAR)
    triton.config["name"] = "k"
    await poll(made)
    assert await made.facts("m", version, FAR) is before
    assert turned == []


async def test_all_replicas_are_looked_at_when_a_model_is_learnt() -> None:
    """So a change on one that was not the first to answer is seen by the first poll: it may have answered callers
    between the two."""
    first, second = Triton("a"), Triton("b")
    made, turned = catalog(first, second)
    await made.facts("m", "", FAR)
    await asyncio.gather(*made._late)
    assert await poll(made) == ()
    second.versions = ["2"]
    assert await poll(made) == ("m",)
    assert turned == ["m"]
    await made.close()


async def test_a_replica_that_is_first_looked_at_later_may_have_been_another_until_then() -> None:
    """Found by the simulated world (seed 43): what it had answered before was called fresh for a whole ttl."""
    first, second = Triton("a"), Triton("b")
    second.down = Failure.TIMEOUT
    made, turned = catalog(first, second)
    await made.facts("m", "", FAR)
    await asyncio.gather(*made._late, return_exceptions=True)
    assert await poll(made) == ()
    second.down = None
    assert await poll(made) == ("m",)
    assert await poll(made) == ()
    assert turned == ["m"]
    await made.close()


@pytest.mark.parametrize("has_answered", [False, True])
async def test_a_replica_that_answers_callers_before_it_has_told_what_it_is(has_answered: bool) -> None:
    first, second = Triton("a"), Triton("b")
    turned: list[str] = []
    options = CatalogOptions()
    made = Catalog((first, second), options, lambda: 0.0, turned.append, lambda url, _: has_answered and url == "b")
    await made.facts("m", "", FAR)
    await asyncio.gather(*made._late)
    assert turned == (["m"] if has_answered else [])
    assert await poll(made) == ()
    await made.close()


async def test_a_model_that_was_only_remembered_is_no_other_one_when_it_is_first_looked_at() -> None:
    triton, answered, turned = Triton(), set[str](), list[str]()
    catalog = Catalog([triton], CatalogOptions(), lambda: 0.0, turned.append, lambda _, model: model in answered)
    facts = ModelFacts("m", ("7",), (), (), 4, False, False)
    catalog.remember("m", facts)
    assert catalog.recall("m", "") is facts
    assert catalog.looked("m") == {}
    triton.down = Failure.UNREACHABLE
    await catalog.look_once(FAR)
    assert catalog.recall("m", "") is facts
    triton.down = None
    await catalog.look_once(FAR)
    assert turned == []
    told = catalog.recall("m", "")
    assert told is not None
    assert told.versions == ("1",)
    catalog.remember("m", facts)
    assert catalog.recall("m", "") is told, "it has spoken for itself"
    await catalog.close()


async def test_a_model_that_was_forgotten_and_is_learnt_again_may_be_another_one() -> None:
    """What the route keeps of it is older than what is known of it."""
    triton, asked, turned = Triton(), set[str](), list[str]()
    catalog = Catalog([triton], CatalogOptions(), lambda: 0.0, turned.append, lambda _, name: name in asked)
    await catalog.facts("m", "", FAR)
    asked.add("m")
    catalog.keep(())
    assert turned == []
    await catalog.facts("m", "", FAR)
    assert turned == ["m"]
    await catalog.close()


async def test_a_doubt_is_told_apart_from_a_change() -> None:
    first, second = Triton("a"), Triton("b")
    turned, doubted = list[str](), list[str]()
    options = CatalogOptions()
    made = Catalog((first, second), options, lambda: 0.0, turned.append, lambda url, _: url == "b", doubted.append)
    await made.facts("m", "", FAR)
    await asyncio.gather(*made._late)
    assert (turned, doubted) == ([], ["m"])
    second.versions = ["2"]
    assert await poll(made) == ("m",)
    assert (turned, doubted) == (["m"], ["m"])
    await made.close()


async def test_a_remembered_model_that_has_answered_before_it_was_looked_at_may_be_another_one() -> None:
    turned = list[str]()
    catalog = Catalog([Triton()], CatalogOptions(), lambda: 0.0, turned.append, lambda *_: True)
    catalog.remember("m", ModelFacts("m", ("1",), (), (), 4, False, False))
    await catalog.look_once(FAR)
    assert turned == ["m"]
    await catalog.close()
