"""Policies against a naive model, and judged by traces beside unbounded and clairvoyant ones."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.bounded import Bounded
from cache.policy import GHOST_ENTRIES_MIN, POLICIES, Lru, S3Fifo, Sieve
from cache.queue import Node

BYTES_MAX = 40


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def hold(policy: Bounded[int], *numbers: int, size: int = 1) -> list[int]:
    """Put each number as its own value; returns the values that left."""
    return [left.value for number in numbers for left in policy.put(key(number), number, size)]


def peek(policy: Bounded[int], which: bytes) -> int | None:
    """The value, not counted as a use."""
    node = policy.node(which)
    return None if node is None else node.value


def use(policy: Bounded[int], which: bytes) -> int | None:
    """The value, counted as a use."""
    node = policy.node(which)
    if node is not None:
        policy.use(node)
    return peek(policy, which)


operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 15), st.integers(1, BYTES_MAX)),
        st.tuples(st.just("put"), st.integers(0, 15), st.integers(1, 6)),
        st.tuples(st.just("get"), st.integers(0, 15), st.just(0)),
        st.tuples(st.just("get"), st.integers(0, 15), st.just(0)),
        st.tuples(st.just("resize"), st.integers(0, 15), st.integers(1, BYTES_MAX)),
        st.tuples(st.just("pop"), st.integers(0, 15), st.just(0)),
        st.tuples(st.just("clear"), st.just(0), st.just(0)),
    ),
    max_size=120,
)


class Model:
    """Values and sizes of what is held, told which keys left; checks that nothing leaves unreported."""

    def __init__(self, policy: Bounded[int]) -> None:
        self.policy = policy
        self.held: dict[bytes, tuple[int, int]] = {}
        self.puts = 0

    def put(self, which: bytes, size: int) -> None:
        self.puts += 1
        value = self.puts  # every put has a value of its own, so a report of an old one shows
        self.held[which] = (value, size)
        self.leave(self.policy.put(which, value, size), which)

    def resize(self, which: bytes, size: int) -> None:
        node = self.policy.node(which)
        assert (node is None) == (which not in self.held)
        if node is not None:
            self.held[which] = (self.held[which][0], size)
            self.leave(self.policy.resize(node, size), which)

    def leave(self, evicted: list[Node[int]], which: bytes) -> None:
        for gone in evicted:
            assert self.held.pop(gone.key)[0] == gone.value
        assert which in self.held

    def check(self) -> None:
        assert self.policy.bytes_used == sum(size for _, size in self.held.values()) <= BYTES_MAX
        assert len(self.policy) == len(self.held)
        for number in range(16):
            which = key(number)
            expected = self.held.get(which)
            assert peek(self.policy, which) == (expected and expected[0])


@pytest.mark.parametrize("name", POLICIES)
@given(operations)
def test_a_policy_is_a_map_that_forgets_aloud(name: str, steps: list[tuple[str, int, int]]) -> None:
    policy: Bounded[int] = Bounded(BYTES_MAX, POLICIES[name](BYTES_MAX))
    model = Model(policy)
    for operation, number, size in steps:
        which = key(number)
        if operation == "put":
            model.put(which, size)
        elif operation == "get":
            assert use(policy, which) == model.held.get(which, (None, 0))[0]
        elif operation == "resize":
            model.resize(which, size)
        elif operation == "pop":
            assert policy.pop(which) == model.held.pop(which, (None, 0))[0]
        else:
            policy.clear()
            model.held.clear()
        model.check()
    assert policy.bytes_max == BYTES_MAX


@pytest.mark.parametrize("name", POLICIES)
@given(operations)
def test_a_walk_goes_on_and_ends_whatever_comes_and_goes(name: str, steps: list[tuple[str, int, int]]) -> None:
    policy: Bounded[int] = Bounded(BYTES_MAX, POLICIES[name](BYTES_MAX))
    hold(policy, *range(16))
    assert sorted(node.key for node in policy.walk()) == sorted(map(key, range(16)))
    seen = [key(number) for number in range(16)]
    walk = policy.walk()
    given_out = 0
    for operation, number, size in steps:
        if operation == "put":
            policy.put(key(number), number, size)
        elif operation == "get":
            use(policy, key(number))
        elif operation == "resize" and (node := policy.node(key(number))) is not None:
            policy.resize(node, size)
        elif operation == "pop":
            policy.pop(key(number))
        elif operation == "clear":
            policy.clear()
        if (found := next(walk, None)) is not None:
            given_out += 1
            assert found.key in seen
    assert given_out + sum(1 for _ in walk) <= 2 * BYTES_MAX  # each of two queues has so many at most


def test_a_walk_over_what_is_used_all_the_time_ends() -> None:
    policy: Bounded[int] = Bounded(3, Lru(3))
    hold(policy, 1, 2, 3)
    met = []
    for node in policy.walk():  # each use makes it the newest
        met.append(node.value)
        use(policy, node.key)
    assert met == [3, 2, 3]


@given(operations)
def test_lru_evicts_as_a_list_in_order_of_use_does(steps: list[tuple[str, int, int]]) -> None:
    policy: Bounded[int] = Bounded(BYTES_MAX, Lru(BYTES_MAX))
    order: list[tuple[bytes, int]] = []
    for operation, number, size in steps:
        which = key(number)
        place = next((index for index, (held, _) in enumerate(order) if held == which), None)
        if operation == "get" and use(policy, which) is not None:
            assert place is not None
            order.append(order.pop(place))
        if operation != "put":
            continue
        gone = [left.key for left in policy.put(which, number, size)]
        if place is not None and size <= order[place][1]:
            order[place] = (which, size)
            assert gone == []
            continue
        if place is not None:
            del order[place]
        order.append((which, size))
        expected = []
        while sum(held for _, held in order) > BYTES_MAX:
            expected.append(order.pop(0)[0])
        assert gone == expected


def test_sieve_as_in_the_paper() -> None:
    # Figure 1 of the paper's idea: used ones stay where they are, the hand goes on from where it was.
    policy: Bounded[int] = Bounded(7, Sieve(7))
    hold(policy, 1, 2, 3, 4, 5, 6, 7)
    for used in (1, 2, 7):
        use(policy, key(used))
    assert hold(policy, 8) == [3]  # 1 and 2 are spared and lose their mark
    use(policy, key(1))
    assert hold(policy, 9, 10, 11) == [4, 5, 6]
    assert hold(policy, 12) == [8]  # 7 is spared
    assert hold(policy, 13, 14, 15, 16) == [9, 10, 11, 12]
    assert hold(policy, 17, 18, 19, 20) == [13, 14, 15, 16]
    assert [number for number in range(21) if peek(policy, key(number))] == [1, 2, 7, 17, 18, 19, 20]


def test_sieve_removes_what_its_hand_points_at() -> None:
    policy: Bounded[int] = Bounded(3, Sieve(3))
    hold(policy, 1, 2, 3)
    use(policy, key(1))
    assert hold(policy, 4) == [2]  # the hand is at 3 now
    assert policy.pop(key(3)) == 3
    hold(policy, 5)
    assert hold(policy, 6) == [4]


def test_s3fifo_one_hit_wonders_leave_by_the_small_queue() -> None:
    policy: Bounded[int] = Bounded(20, S3Fifo(20))
    hold(policy, *range(20))
    for popular in range(10):
        use(policy, key(popular))
        use(policy, key(popular))
    assert hold(policy, *range(100, 200)) == [*range(10, 20), *range(100, 190)]
    assert [peek(policy, key(popular)) for popular in range(10)] == [*range(10)]


def test_s3fifo_used_once_is_not_enough_and_coming_back_is() -> None:
    policy: Bounded[int] = Bounded(20, S3Fifo(20))
    hold(policy, *range(20))
    use(policy, key(0))
    assert hold(policy, 20) == [0]
    assert hold(policy, 0) == [1]  # remembered: enters main, out of reach of the scan below
    hold(policy, *range(100, 200))
    assert peek(policy, key(0)) == 0


def test_s3fifo_main_gives_another_round_per_use() -> None:
    policy: Bounded[int] = Bounded(10, S3Fifo(10))
    hold(policy, *range(10))
    for number in range(10):
        for _ in range(9):
            use(policy, key(number))  # counted to three, and forgotten on the way to main
    assert hold(policy, 10) == [0]
    use(policy, key(1))
    # Main is 1 to 9, small is 10 (a tenth): small leaves first, as long as it has its share.
    assert hold(policy, 11) == [10]
    assert hold(policy, 10) == [11]  # from ghost into main; small is empty now
    assert hold(policy, 12) == [2]  # so main gives: 1 was used


@pytest.mark.parametrize("size", [1, 7])
def test_s3fifo_remembers_a_bounded_number_of_keys(size: int) -> None:
    policy: Bounded[int] = Bounded(700, S3Fifo(700))
    hold(policy, *range(50_000), size=size)
    assert len(policy._policy._ghost) == max(GHOST_ENTRIES_MIN, 700 // size - 1)


def test_s3fifo_memory_does_not_grow_with_puts_and_pops() -> None:
    policy: Bounded[int] = Bounded(10, S3Fifo(10))
    for number in range(1000):
        policy.put(key(number), number, 1)
        policy.pop(key(number))
    assert len(policy) == len(policy._policy._ghost) == policy.bytes_used == 0


@pytest.mark.parametrize("name", POLICIES)
def test_a_value_that_grows_pushes_out_others_not_itself(name: str) -> None:
    policy: Bounded[int] = Bounded(10, POLICIES[name](10))
    hold(policy, *range(10))
    assert sorted(left.value for left in policy.put(key(0), 100, 10)) == list(range(1, 10))
    assert peek(policy, key(0)) == 100
    node = policy.node(key(0))
    assert node is not None
    assert policy.resize(node, 1) == []
    assert (len(policy), policy.bytes_used) == (1, 1)


# Traces: each value one byte, so that "clairvoyant" is exactly Belady's MIN and a bound for all.

REQUESTS = 30_000
HELD_MAX = 200


def zipf(chance: random.Random, population: int, alpha: float) -> Iterator[int]:
    weights = [1 / (rank + 1) ** alpha for rank in range(population)]
    yield from chance.choices(range(population), weights, k=REQUESTS)


def with_wonders(chance: random.Random) -> list[int]:
    """Zipf in which every third request asks for what nobody asks for again."""
    return [
        1_000_000 + index if chance.random() < 1 / 3 else popular
        for index, popular in enumerate(zipf(chance, 5_000, 0.9))
    ]


def with_scans(chance: random.Random) -> list[int]:
    """Zipf interrupted now and then by a walk through ten times what the cache holds."""
    trace: list[int] = []
    for index, popular in enumerate(zipf(chance, 5_000, 1.0)):
        trace.append(popular)
        if index % 6_000 == 5_999:
            trace.extend(range(1_000_000, 1_000_000 + 10 * HELD_MAX))
    return trace


def loop(_: random.Random) -> list[int]:
    """Round and round, a little more than fits: where LRU never hits."""
    return [index % (HELD_MAX + HELD_MAX // 4) for index in range(REQUESTS)]


TRACES = {
    "zipf": lambda chance: list(zipf(chance, 5_000, 1.0)),
    "wonders": with_wonders,
    "scans": with_scans,
    "loop": loop,
}


def hits(policy: Bounded[int], trace: list[int]) -> int:
    count = 0
    for number in trace:
        if use(policy, key(number)) is None:
            policy.put(key(number), number, 1)
        else:
            count += 1
    return count


def hits_clairvoyant(trace: list[int]) -> int:
    """Belady's MIN: what is wanted furthest in the future leaves (or does not enter)."""
    following: list[int] = [0] * len(trace)
    seen: dict[int, int] = {}
    for index in reversed(range(len(trace))):
        following[index] = seen.get(trace[index], len(trace) + index)
        seen[trace[index]] = index
    held: dict[int, int] = {}
    count = 0
    for index, number in enumerate(trace):
        count += number in held
        held[number] = following[index]
        if len(held) > HELD_MAX:
            del held[max(held, key=held.__getitem__)]
    return count


@pytest.fixture(scope="module", params=TRACES)
def judged(request: pytest.FixtureRequest) -> tuple[str, dict[str, int]]:
    trace = TRACES[request.param](random.Random(20231023))
    counts = {name: hits(Bounded(HELD_MAX, POLICIES[name](HELD_MAX)), trace) for name in POLICIES}
    counts["clairvoyant"] = hits_clairvoyant(trace)
    counts["unbounded"] = sum(count - 1 for count in Counter(trace).values())
    return request.param, counts


@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_beats_the_clairvoyant(judged: tuple[str, dict[str, int]], name: str) -> None:
    _, counts = judged
    assert 0 <= counts[name] <= counts["clairvoyant"] <= counts["unbounded"]


# At least so many times LRU's hits, and such a share of the clairvoyant's.
BETTER_THAN_LRU = {"zipf": 1.10, "wonders": 1.35, "scans": 1.10}
SHARE_OF_CLAIRVOYANT = {"zipf": 0.80, "wonders": 0.75, "scans": 0.80}


@pytest.mark.parametrize("name", ["s3fifo", "sieve"])
def test_the_lazy_beat_lru(judged: tuple[str, dict[str, int]], name: str) -> None:
    trace, counts = judged
    if trace == "loop":
        # Where LRU never hits, and SIEVE not either: only a memory of what left breaks the loop.
        assert counts["lru"] == counts["sieve"] == 0
        assert counts["s3fifo"] >= 0.7 * counts["clairvoyant"]
        return
    assert counts[name] >= BETTER_THAN_LRU[trace] * counts["lru"]
    assert counts[name] >= SHARE_OF_CLAIRVOYANT[trace] * counts["clairvoyant"]
