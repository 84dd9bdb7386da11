"""The near cache: what each value is worth when, and that no race with a write leaves an old one fresh."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cache.table import ABSENT, FRESH, MISSING, SLOTS_AT_ONCE, STALE, Lives, NearTable, TableShape

SEED = b"a test's"
LIVES = Lives(ttl=10, max_stale=100, negative_ttl=5)


def table(shape: TableShape | None = None, lives: Lives = LIVES) -> NearTable:
    return NearTable(shape or TableShape(2**20, "float32", (2, 3)), lives, SEED)


def vectors(*values: float) -> NDArray[np.float32]:
    return np.repeat(np.array(values, np.float32), 6).reshape(-1, 2, 3)


def ids(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


def states(near: NearTable, now: float, *numbers: int) -> list[int]:
    found = near.find(ids(*numbers), now)
    assert found.state.dtype == np.uint8
    return list(found.state.tolist())


def test_one_batch_in_the_order_asked() -> None:
    near = table()
    near.put(ids(1, 2, 2), vectors(1, 7, 2), 100.0, near.ticket())
    near.put_absent(ids(3), 101.0, near.ticket())
    found = near.find(ids(4, 2, 3, 1, 2), 103.0)
    assert found.rows.dtype == np.float32
    assert found.rows.shape == (5, 2, 3)
    assert found.rows[:, 1, 2].tolist() == [0, 2, 0, 1, 2]
    assert found.state.tolist() == [MISSING, FRESH, ABSENT, FRESH, FRESH]
    assert found.age.tolist() == [np.inf, 3, 2, 3, 3]
    assert near.entries == 3


def test_nothing_asked_nothing_put() -> None:
    near = table()
    near.put(ids(), vectors(), 0.0, near.ticket())
    near.put_absent([], 0.0, near.ticket())
    near.invalidate([])
    assert near.find(ids(), 0.0).rows.shape == (0, 2, 3)
    assert near.entries == 0


def test_a_value_is_fresh_then_stale_then_missing() -> None:
    near = table()
    near.put(ids(1), vectors(1), 100.0, near.ticket())
    near.put_absent(ids(2), 100.0, near.ticket())
    assert states(near, 104.9, 1, 2) == [FRESH, ABSENT]
    assert states(near, 105.0, 1, 2) == [FRESH, MISSING]
    assert states(near, 109.9, 1) == [FRESH]
    assert states(near, 110.0, 1) == [STALE]
    assert states(near, 209.9, 1) == [STALE]
    found = near.find(ids(1), 210.0)
    assert (found.state[0], found.age[0], found.rows.max()) == (MISSING, np.inf, 0)


def test_what_comes_back_from_absence_is_there_and_the_other_way_round() -> None:
    near = table()
    near.put_absent(ids(1, 2), 0.0, near.ticket())
    near.put(ids(1), vectors(1), 1.0, near.ticket())
    assert states(near, 2.0, 1, 2) == [FRESH, ABSENT]
    near.put_absent(ids(1), 3.0, near.ticket())
    found = near.find(ids(1), 4.0)
    assert (found.state[0], found.rows.max()) == (ABSENT, 0)


def test_an_invalidated_value_is_stale_until_it_is_read_again() -> None:
    near = table()
    near.put(ids(1, 2), vectors(1, 2), 0.0, near.ticket())
    near.put_absent(ids(3), 0.0, near.ticket())
    near.invalidate([b"1", b"3", b"no number"])
    found = near.find(ids(1, 2, 3), 1.0)
    assert found.state.tolist() == [STALE, FRESH, MISSING]
    assert found.rows[:, 0, 0].tolist() == [1, 2, 0]
    near.put(ids(1), vectors(5), 1.0, near.ticket())
    assert states(near, 2.0, 1) == [FRESH]


def test_distrust_makes_everything_stale_at_once() -> None:
    near = table()
    before = near.ticket()
    near.put(ids(1), vectors(1), 0.0, before)
    near.put_absent(ids(2), 0.0, before)
    near.distrust()
    near.put(ids(3), vectors(3), 0.0, before)
    assert states(near, 1.0, 1, 2, 3) == [STALE, MISSING, MISSING]
    near.put(ids(1), vectors(2), 1.0, near.ticket())
    near.put_absent(ids(2), 1.0, near.ticket())
    assert states(near, 2.0, 1, 2) == [FRESH, ABSENT]


def test_what_was_read_before_a_purge_is_not_here_any_more() -> None:
    near = table()
    before = near.ticket()
    near.put(ids(1, 2), vectors(1, 2), 100.0, before)
    near.put_absent(ids(4), 100.0, before)
    near.purge(105.0)
    near.put(ids(3), vectors(3), 105.0, before)
    assert states(near, 106.0, 1, 2, 3, 4) == [MISSING] * 4
    near.put(ids(1), vectors(5), 106.0, near.ticket())
    near.invalidate(ids(2))
    assert states(near, 107.0, 1, 2) == [FRESH, MISSING]
    near.invalidate(ids(1))
    assert states(near, 107.0, 1, 2) == [STALE, MISSING]


def test_a_fill_older_than_an_invalidation_is_dropped_also_of_what_is_not_here() -> None:
    near = table()
    before = near.ticket()
    near.invalidate(ids(1))
    near.put(ids(1, 2), vectors(1, 2), 0.0, before)
    near.put_absent(ids(1), 0.0, before)
    assert states(near, 0.0, 1, 2) == [MISSING, FRESH]
    near.put(ids(1), vectors(3), 0.0, near.ticket())
    assert states(near, 0.0, 1) == [FRESH]


@pytest.mark.parametrize("width", [0, 3])
def test_numbers_and_their_digits_are_one_key(width: int) -> None:
    near = table(TableShape(2**20, "float32", (2, 3), width))
    near.put([b"5", b"-6"], vectors(5, 6), 0.0, near.ticket())
    assert near.find(ids(5, -6), 0.0).rows[:, 0, 0].tolist() == [5, 6]
    near.invalidate(ids(5))
    assert near.find([b"5", b"-6"], 0.0).state.tolist() == [STALE, FRESH]


def test_byte_strings_are_keys_up_to_a_length() -> None:
    near = table(TableShape(2**20, "float32", (2, 3), 2))
    keys = [b"", b"\x00", b"a", b"a\x00", b"x" * 15, b"x" * 16, b"x" * 17]
    near.put(keys, vectors(*range(1, 8)), 0.0, near.ticket())
    found = near.find([*keys, b"a\x00\x00", b"x" * 14], 0.0)
    assert found.state.tolist() == [FRESH] * 5 + [MISSING] * 4
    assert found.rows[:, 0, 0].tolist() == [1, 2, 3, 4, 5, 0, 0, 0, 0]


@pytest.mark.parametrize(("dtype", "shape"), [("float16", (5,)), ("int8", ()), ("float64", (3, 2)), ("int64", (1,))])
def test_rows_of_any_fixed_kind_keep_their_bytes(dtype: str, shape: tuple[int, ...]) -> None:
    near = table(TableShape(2**20, dtype, shape))
    rows = np.random.default_rng(1).integers(-100, 100, (500, *shape)).astype(dtype)
    keys = np.random.default_rng(2).permutation(500)
    near.put(keys, np.asfortranarray(rows), 0.0, near.ticket())
    found = near.find(keys[::-1], 0.0)
    assert found.rows.dtype == rows.dtype
    assert found.rows.tobytes() == np.ascontiguousarray(rows[::-1]).tobytes()


def test_memory_and_counters() -> None:
    near = table(TableShape(2**20, "float32", (2, 3)))
    assert 0.95 * 2**20 <= near.bytes_reserved <= 1.02 * 2**20
    keys = np.arange(3 * near.capacity)
    for batch in np.array_split(keys, 100):
        near.put(batch, np.zeros((len(batch), 2, 3), np.float32), 0.0, near.ticket())
    assert near.entries == near.capacity
    assert near.evictions == 2 * near.capacity
    assert (near.find(keys, 0.0).state == FRESH).sum() == near.capacity


def test_what_was_read_before_the_store_had_none_is_gone_though_that_raced_with_a_write() -> None:
    near = table()
    near.put(ids(1, 2), vectors(1, 2), 0.0, near.ticket())
    before = near.ticket()
    near.invalidate(ids(1, 2))  # the news of what the store has said already, or of what came after it
    assert near.find(ids(1), 1.0).state.tolist() == [STALE]
    near.put_absent(ids(1), 1.0, before)
    assert near.find(ids(1, 2), 1.0).state.tolist() == [MISSING, STALE]
    near.put(ids(1), vectors(1), 3.0, near.ticket())
    near.put_absent(ids(1), 2.0, before)
    assert near.find(ids(1), 3.0).state.tolist() == [FRESH], "what is newer than that stays"
    before = near.ticket()
    near.distrust()
    near.put_absent(ids(1, 2, 3), 4.0, before)
    assert near.find(ids(1, 2, 3), 4.0).state.tolist() == [MISSING] * 3


def test_absent_ids_in_a_flood_leave_what_is_used() -> None:
    near = table()
    used = np.arange(near.capacity // 2)
    near.put(used, np.ones((len(used), 2, 3), np.float32), 0.0, near.ticket())
    for _ in range(3):
        near.find(used, 0.0)
    for start in range(10**6, 10**6 + 20 * near.capacity, 1_000):
        near.put_absent(np.arange(start, start + 1_000), 0.0, near.ticket())
    assert (near.find(used, 0.0).state == FRESH).all()


# Races. A store whose writes are told of later, in order, as Redis does; readers whose answer was true when the store
# was asked, and comes when it comes.

KEYS = 2
mostly_all = st.sampled_from([1, 2, 3, 3, 3])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), mostly_all),
        st.tuples(st.just("read"), st.integers(0, 3)),
        st.tuples(st.just("arrive"), st.integers(0, 3)),
        st.tuples(st.just("write"), st.integers(0, KEYS - 1)),
        st.tuples(st.just("erase"), st.integers(0, KEYS - 1)),
        st.tuples(st.just("told"), st.integers(1, 3)),
        st.tuples(st.just("disconnected"), st.just(0)),
    ),
    min_size=10,
    max_size=60,
)


class Fill:
    def __init__(self, ticket: int, keys: list[int]) -> None:
        self.ticket, self.keys = ticket, keys
        self.values: list[int | None] | None = None


class World:
    """A store, the news of its writes, and one near cache before it."""

    def __init__(self, near: NearTable) -> None:
        self.near = near
        self.store: dict[int, int] = {}
        self.news: list[int] = []
        self.version = 0

    def ask(self, keys: list[int]) -> Fill:
        return Fill(self.near.ticket(), keys)

    def read(self, fill: Fill) -> None:
        """The store answers with what it has now."""
        if fill.values is None:
            fill.values = [self.store.get(key) for key in fill.keys]

    def arrive(self, fill: Fill) -> None:
        self.read(fill)
        assert fill.values is not None
        pairs = list(zip(fill.keys, fill.values, strict=True))
        there = [(key, value) for key, value in pairs if value is not None]
        self.near.put(ids(*[k for k, _ in there]), ids(*[v for _, v in there]), 0.0, fill.ticket)
        self.near.put_absent(ids(*[key for key, value in pairs if value is None]), 0.0, fill.ticket)

    def write(self, key: int) -> None:
        self.version += 1
        self.store[key] = self.version
        self.news.append(key)

    def erase(self, key: int) -> None:
        self.store.pop(key, None)
        self.news.append(key)

    def told(self, count: int) -> None:
        self.near.invalidate(ids(*self.news[:count]))
        del self.news[:count]

    def disconnected(self) -> None:
        """News on its way is lost, and the table told that."""
        self.news.clear()
        self.near.distrust()

    def check(self, *keys: int) -> None:
        """Fresh or absent is what the store has now, unless the news of the write is still on its way."""
        found = self.near.find(ids(*keys), 0.0)
        for key, state, row in zip(keys, found.state.tolist(), found.rows.tolist(), strict=True):
            if key not in self.news:
                assert state != FRESH or self.store.get(key) == row
                assert state != ABSENT or key not in self.store


FOREVER = Lives(1e9, 1e9, 1e9)


@settings(max_examples=150)
@given(steps=steps, few_rows=st.booleans())
def test_no_race_leaves_an_old_value_fresh(steps: list[tuple[str, int]], few_rows: bool) -> None:
    world = World(NearTable(TableShape(9_000 if few_rows else 2**17, "int64", ()), FOREVER, SEED))
    fills: list[Fill] = []
    for what, which in steps:
        if what == "ask":
            fills.append(world.ask([key for key in range(KEYS) if which >> key & 1]))
        elif what == "read" and fills:
            world.read(fills[which % len(fills)])
        elif what == "arrive" and fills:
            world.arrive(fills.pop(which % len(fills)))
        elif what == "write":
            world.write(which)
        elif what == "erase":
            world.erase(which)
        elif what == "told":
            world.told(which)
        elif what == "disconnected":
            world.disconnected()
        world.check(*range(KEYS))


def interleavings(*actors: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """Every order of what several do, each in its own order: (who, what)."""
    if not any(actors):
        yield []
    for who, own in enumerate(actors):
        if own:
            for rest in interleavings(*actors[:who], own[1:], *actors[who + 1 :]):
                yield [(who, own[0]), *rest]


FILL = ("ask", "read", "arrive")


@pytest.mark.parametrize(
    "writer",
    [
        ("write", "told", "write", "told"),
        ("erase", "told", "write", "told"),
        ("write", "disconnected", "erase", "told"),
    ],
    ids="-".join,
)
def test_every_order_of_two_fills_and_a_writer(writer: tuple[str, ...]) -> None:
    """4,200 of them, each on a key of its own."""
    near = NearTable(TableShape(2**20, "int64", ()), FOREVER, SEED)
    count = raced = 0
    for key, order in enumerate(interleavings(FILL, FILL, writer)):
        world = World(near)
        world.store[key] = 0
        fills: dict[int, Fill] = {}
        for who, what in order:
            if what == "ask":
                fills[who] = world.ask([key])
            elif what in {"read", "arrive"}:
                getattr(world, what)(fills[who])
            elif what == "told":
                world.told(1)
            elif what == "disconnected":
                world.disconnected()
            else:
                getattr(world, what)(key)
            if what in {"arrive", "told", "disconnected"}:
                world.check(key)
        count += 1
        raced += near.find(ids(key), 0.0).state[0] not in {FRESH, ABSENT}
    assert count == 4_200
    assert 0 < raced < count  # some orders end with a value that is trusted, some must not


def test_undisturbed_fills_stay_fresh() -> None:
    """What the test above would not see: a table that drops everything."""
    near = table()
    keys = np.arange(1_000)
    ticket = near.ticket()
    near.invalidate(keys[:10] + 10**6)
    near.put(keys, np.zeros((1_000, 2, 3), np.float32), 0.0, ticket)
    assert (near.find(keys, 0.0).state == FRESH).sum() >= 970


@pytest.mark.parametrize("key_width", [0, 2])
def test_those_that_are_used_come_the_most_used_first_and_in_steps(key_width: int) -> None:
    near = table(TableShape(2**20, "float32", (2, 3), key_width))
    count = 4 * SLOTS_AT_ONCE
    assert near.capacity > count
    near.put(ids(*range(count)), vectors(*range(count)), 100.0, near.ticket())
    for number, times in {7: 1, 1500: 3, 8: 9, 2047: 2}.items():
        for _ in range(times):
            near.find(ids(number), 101.0)
    steps = list(near.used())
    assert [key for key in steps if key is not None] == [b"8", b"1500", b"2047", b"7"]
    assert steps.count(None) == 3 * -(-near.capacity // SLOTS_AT_ONCE)


def test_rows_may_come_and_go_while_somebody_walks() -> None:
    near = table(TableShape(TableShape(1, "float32", (2, 3)).bytes_min, "float32", (2, 3)))
    near.put(ids(*range(20)), vectors(*range(20)), 100.0, near.ticket())
    near.find(ids(*range(20)), 100.0)
    walk, met = near.used(), []
    for number in range(10_000):
        near.put(ids(number), vectors(number), 100.0, near.ticket())
        near.find(ids(number), 100.0)
        if (key := next(walk, b"")) == b"":
            break
        met.append(key)
    assert b"19" in met
    assert len(met) <= 3 * (near.capacity + 1)
