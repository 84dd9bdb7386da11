"""Look-ups in one turn as one fetch, in a loop without any clock but its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cache.stores import merge
from cache.stores.merge import Merged, MergeOptions, _Batch
from cache.stores.store import Found, StoreError

LONG = 60.0


class Source:
    """Answers each key with itself, when its gate is open; what it was asked is kept."""

    def __init__(self) -> None:
        self.asked: list[list[bytes]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: StoreError | None = None

    async def fetch(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        assert 0 < seconds <= LONG
        self.asked.append(list(keys))
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return [None if key == b"none" else key for key in keys]


@pytest.fixture
def source() -> Source:
    return Source()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_turn_is_one_fetch_and_a_key_is_asked_once(source: Source) -> None:
    merged = Merged(source.fetch, MergeOptions())
    calls = [merged.get_many([b"a", b"b"], LONG), merged.get_many([b"b", b"none", b"b"], LONG)]
    assert await asyncio.gather(*calls) == [[b"a", b"b"], [b"b", None, b"b"]]
    assert source.asked == [[b"a", b"b", b"none"]]
    assert await merged.get_many([b"a"], LONG) == [b"a"]
    assert source.asked[1:] == [[b"a"]]


async def test_a_fetch_has_a_bound_on_keys(source: Source) -> None:
    merged = Merged(source.fetch, MergeOptions(keys_max=3))
    keys = [b"%d" % each for each in range(8)]
    assert await merged.get_many(keys, LONG) == keys
    assert source.asked == [keys[:3], keys[3:6], keys[6:]]


async def test_a_slow_store_gets_larger_batches_and_not_more_of_them(source: Source) -> None:
    source.gate.clear()
    merged = Merged(source.fetch, MergeOptions(flights_max=2))
    calls = []
    for each in range(10):
        calls.append(asyncio.create_task(merged.get_many([b"%d" % each], LONG)))
        await settle()
    assert source.asked == [[b"0"], [b"1"]]
    source.gate.set()
    await asyncio.gather(*calls)
    assert source.asked == [[b"0"], [b"1"], [b"%d" % each for each in range(2, 10)]]


async def test_what_nobody_waits_for_any_more_is_not_asked(source: Source) -> None:
    source.gate.clear()
    merged = Merged(source.fetch, MergeOptions(flights_max=1))
    first = asyncio.create_task(merged.get_many([b"a"], LONG))
    await settle()
    second = asyncio.create_task(merged.get_many([b"b"], LONG))
    await settle()
    second.cancel()
    await settle()
    source.gate.set()
    assert await first == [b"a"]
    await settle()
    assert source.asked == [[b"a"]]
    assert await merged.get_many([b"c"], LONG) == [b"c"]


async def test_whoever_leaves_harms_nobody(source: Source) -> None:
    source.gate.clear()
    merged = Merged(source.fetch, MergeOptions())
    impatient = asyncio.create_task(merged.get_many([b"a"], 0.01))
    patient = asyncio.create_task(merged.get_many([b"a"], LONG))
    with pytest.raises(StoreError) as failed:
        await impatient
    assert failed.value.kind == "timeout"
    source.gate.set()
    assert await patient == [b"a"]


async def test_a_failure_reaches_all_that_wait(source: Source) -> None:
    source.failure = StoreError("loading", "soon")
    merged = Merged(source.fetch, MergeOptions())
    told = await asyncio.gather(*(merged.get_many([b"%d" % each], LONG) for each in range(3)), return_exceptions=True)
    assert [str(each) for each in told] == ["loading: soon"] * 3


async def test_one_failed_batch_of_two_costs_its_own_keys() -> None:
    async def fetch(keys: Sequence[bytes], seconds: float) -> list[Found]:
        if keys == (b"b",):
            raise StoreError("timeout")
        return [*keys]

    first, second = await Merged(fetch, MergeOptions(keys_max=1)).get_many([b"a", b"b"], LONG)
    assert first == b"a"
    assert isinstance(second, StoreError)


async def test_waiting_has_a_bound(source: Source) -> None:
    source.gate.clear()
    merged = Merged(source.fetch, MergeOptions(flights_max=1, waiting_keys_max=3))
    first = asyncio.create_task(merged.get_many([b"a"], LONG))
    await settle()
    waiting = asyncio.create_task(merged.get_many([b"b", b"c", b"d"], LONG))
    await settle()
    with pytest.raises(StoreError) as failed:
        await merged.get_many([b"e"], LONG)
    assert failed.value.kind == "crowded"
    source.gate.set()
    await asyncio.gather(first, waiting)


async def test_closing_tells_those_who_wait(source: Source) -> None:
    source.gate.clear()
    merged = Merged(source.fetch, MergeOptions(flights_max=1))
    calls = [asyncio.create_task(merged.get_many([b"%d" % each], LONG)) for each in range(3)]
    await settle()
    late = asyncio.create_task(merged.get_many([b"x"], LONG))
    await settle()
    await merged.close()
    told = await asyncio.gather(*calls, late, return_exceptions=True)
    assert all(isinstance(each, StoreError) and each.kind == "unreachable" for each in told)
    with pytest.raises(StoreError):
        await merged.get_many([b"a"], LONG)


async def test_what_was_answered_is_given_though_the_rest_is_late() -> None:
    hanging = asyncio.Event()

    async def fetch(keys: Sequence[bytes], seconds: float) -> list[Found]:
        if b"c" in keys:
            await hanging.wait()
        return [*keys]

    merged = Merged(fetch, MergeOptions(keys_max=2))
    *found, late = await merged.get_many([b"a", b"b", b"c"], 0.5)
    assert found == [b"a", b"b"]
    assert isinstance(late, StoreError)
    assert late.kind == "late"
    hanging.set()


async def test_whoever_was_not_asked_for_in_time_says_nothing_of_the_store(source: Source) -> None:
    source.gate.clear()
    merged = Merged(source.fetch, MergeOptions(flights_max=1))
    first = asyncio.create_task(merged.get_many([b"a"], LONG))
    await settle()
    with pytest.raises(StoreError) as failed:
        await merged.get_many([b"b"], 0.02)
    assert failed.value.kind == "crowded"
    source.gate.set()
    assert await first == [b"a"]
    assert source.asked == [[b"a"]]


@pytest.mark.parametrize(("waited", "kind"), [(0.4, "timeout"), (0.6, "crowded")])
async def test_a_batch_that_waited_for_half_of_its_time_is_no_proof(waited: float, kind: str) -> None:
    loop = asyncio.get_running_loop()
    batch = _Batch(loop.create_future(), 100.0)
    batch.until, batch.sent = 101.0, 100.0 + waited
    assert batch.silence(batch.until, 1.0, "nothing").kind == kind


async def test_keys_that_take_long_to_be_put_into_batches_are_late_and_the_first_of_them_asked(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = Merged(source.fetch, MergeOptions(keys_max=2))
    monkeypatch.setattr(merge, "PLACING_SHARE", -1.0)  # no time at all
    *found, late, later = await merged.get_many([b"a", b"b", b"c", b"d"], LONG)
    assert found == [b"a", b"b"]
    assert {str(late), str(later)} == {"late: only 2 of 4 keys could be asked for within 60 s"}
    assert source.asked == [[b"a", b"b"]]


async def test_a_bug_in_one_fetch_keeps_nobody_else_waiting(source: Source) -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["exception"]))

    async def fetch(keys: Sequence[bytes], seconds: float) -> list[Found]:
        found = await source.fetch(keys, seconds)
        if keys == (b"a",):
            raise ZeroDivisionError
        return found

    source.gate.clear()
    merged = Merged(fetch, MergeOptions(flights_max=1))
    first = asyncio.create_task(merged.get_many([b"a"], LONG))
    await settle()
    second = asyncio.create_task(merged.get_many([b"b"], LONG))
    await settle()
    source.gate.set()
    with pytest.raises(StoreError):
        await first
    assert await asyncio.wait_for(second, 10.0) == [b"b"]
    assert [type(each) for each in told] == [ZeroDivisionError]
