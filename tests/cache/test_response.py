"""The response cache: what is found is true, aliases die with their entry, purges void tickets."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cache.bounded import Bounded
from cache.digest import Key
from cache.entry import Entry, Freshness
from cache.policy import POLICIES, Lru, S3Fifo
from cache.response import PASSED_MAX, ResponseCache

BYTES_MAX = 100
TTL = 10.0
MAX_STALE = 5.0


def digest(number: int) -> bytes:
    return number.to_bytes(16, "little")


def an_entry(value: str = "v", *, size: int = 10, now: float = 0.0, epoch: int = 1) -> Entry[str]:
    return Entry(value=value, size=size, stored_at=now, ttl=TTL, max_stale=MAX_STALE, epoch=epoch)


@pytest.fixture
def cache() -> ResponseCache[str, bytes]:
    return ResponseCache(Bounded(BYTES_MAX, S3Fifo(BYTES_MAX)))


KEY = Key(digest(1), 1)
WIRE = b"w" * 16


def stored(cache: ResponseCache[str, bytes], entry: Entry[str], number: int = 1) -> Entry[str]:
    assert cache.store(Key(digest(number), entry.epoch), entry, cache.ticket())
    return entry


def test_an_entry_is_found_as_it_ages(cache: ResponseCache[str, bytes]) -> None:
    entry = stored(cache, an_entry())
    for now, freshness in [(0.0, Freshness.FRESH), (10.0, Freshness.FRESH), (15.0, Freshness.STALE)]:
        found = cache.find(KEY, now)
        assert found is not None
        assert found.entry is entry
        assert found.freshness is freshness
    assert cache.find(KEY, 15.1) is None
    assert cache.entries == cache.bytes_used == cache.evictions == 0  # dead: removed, not evicted


def test_those_used_come_in_steps_that_are_not_long() -> None:
    count = 3 * PASSED_MAX
    cache: ResponseCache[str, bytes] = ResponseCache(Bounded(count, S3Fifo(count)))
    for number in range(count):
        stored(cache, an_entry(size=1), number)
    used = count - PASSED_MAX - 1
    cache.find(Key(digest(used), 1), 0.0)
    assert list(cache.used()) == [None, digest(used), None]


def test_another_epoch_finds_it_stale_at_once_until_a_newer_one_replaces_it(
    cache: ResponseCache[str, bytes],
) -> None:
    old = stored(cache, an_entry("old"))
    found = cache.find(Key(digest(1), 2), 0.0)
    assert found is not None
    assert (found.entry, found.freshness) == (old, Freshness.STALE)
    new = stored(cache, an_entry("new", epoch=2))
    found = cache.find(Key(digest(1), 2), 0.0)
    assert found is not None
    assert found.entry is new
    assert cache.entries == 1


def test_a_late_fill_of_an_older_epoch_does_not_replace_a_newer_one(cache: ResponseCache[str, bytes]) -> None:
    new = stored(cache, an_entry("new", epoch=2))
    assert not cache.store(KEY, an_entry("late"), cache.ticket())
    found = cache.find(Key(digest(1), 2), 0.0)
    assert found is not None
    assert found.entry is new
    assert cache.rejections == 1


def test_an_entry_larger_than_the_cache_is_refused_and_the_old_one_stays(
    cache: ResponseCache[str, bytes],
) -> None:
    entry = stored(cache, an_entry())
    assert not cache.store(KEY, an_entry(size=BYTES_MAX + 1), cache.ticket())
    found = cache.find(KEY, 0.0)
    assert found is not None
    assert found.entry is entry
    assert cache.store(KEY, an_entry(size=BYTES_MAX), cache.ticket())
    assert (cache.bytes_used, cache.bytes_max, cache.rejections) == (BYTES_MAX, BYTES_MAX, 1)


def test_many_are_found_at_once_if_they_are_fresh(cache: ResponseCache[str, bytes]) -> None:
    old = stored(cache, an_entry("old"), 1)
    new = stored(cache, an_entry("new", now=5.0), 2)
    stored(cache, an_entry("older epoch", epoch=0), 3)
    digests = [digest(2), digest(1), digest(3), digest(4), digest(2)]
    assert cache.fresh(digests, 1, 10.0) == [new, old, None, None, new]
    assert cache.fresh(digests, 1, 12.0) == [new, None, None, None, new]
    assert cache.entries == 3, "what is stale may be of use yet"


def test_a_purge_drops_everything_and_voids_tickets(cache: ResponseCache[str, bytes]) -> None:
    before = cache.ticket()
    entry = stored(cache, an_entry())
    stored(cache, an_entry(), number=2)
    assert cache.attach(KEY, entry, WIRE, b"payload", 5)
    assert cache.purge() == 2
    assert (cache.entries, cache.wires, cache.bytes_used) == (0, 0, 0)
    assert cache.find(KEY, 0.0) is None
    assert cache.find_wire(WIRE, 1, 0.0) is None
    assert not cache.store(KEY, an_entry(), before)  # a fill that began before the purge
    assert not cache.attach(KEY, entry, WIRE, b"payload", 5)
    assert (cache.entries, cache.rejections, cache.evictions) == (0, 1, 0)
    assert cache.store(KEY, an_entry(), cache.ticket())
    assert cache.purge() == 1
    assert cache.purge() == 0


def test_a_wire_alias_leads_to_its_entry_while_fresh(cache: ResponseCache[str, bytes]) -> None:
    entry = stored(cache, an_entry())
    assert cache.attach(KEY, entry, WIRE, b"payload", 5)
    assert (cache.wires, cache.bytes_used) == (1, 15)
    assert cache.find_wire(WIRE, 1, TTL) == (entry, b"payload")
    assert cache.find_wire(b"x" * 16, 1, 0.0) is None
    assert cache.find_wire(WIRE, 2, 0.0) is None  # another epoch: stale
    assert cache.find_wire(WIRE, 1, TTL + 1) is None
    assert (cache.entries, cache.wires) == (1, 1)
    assert cache.find_wire(WIRE, 1, TTL + MAX_STALE + 1) is None
    assert (cache.entries, cache.wires, cache.bytes_used) == (0, 0, 0)


def test_a_wire_alias_dies_with_a_replaced_entry(cache: ResponseCache[str, bytes]) -> None:
    old = stored(cache, an_entry())
    assert cache.attach(KEY, old, WIRE, b"old", 5)
    new = stored(cache, an_entry())
    assert cache.find_wire(WIRE, 1, 0.0) is None
    assert (cache.wires, cache.bytes_used) == (0, 10)
    assert old == new  # equal values: but the alias of one is none of the other
    assert not cache.attach(KEY, old, WIRE, b"old", 5)
    assert cache.attach(KEY, new, WIRE, b"new", 6)
    assert cache.find_wire(WIRE, 1, 0.0) == (new, b"new")


def test_a_wire_alias_dies_with_an_evicted_entry() -> None:
    cache: ResponseCache[str, bytes] = ResponseCache(Bounded(BYTES_MAX, Lru(BYTES_MAX)))
    entry = stored(cache, an_entry())
    assert cache.attach(KEY, entry, WIRE, b"payload", 5)
    for number in range(2, 12):
        stored(cache, an_entry(), number)
    assert cache.find_wire(WIRE, 1, 0.0) is None
    assert (cache.entries, cache.wires, cache.evictions) == (10, 0, 1)


def test_aliases_are_bounded_in_number_the_oldest_makes_way(cache: ResponseCache[str, bytes]) -> None:
    entry = stored(cache, an_entry())
    for number in range(6):
        assert cache.attach(KEY, entry, digest(100 + number), b"%d" % number, 5)
        assert cache.wires <= 4
    assert cache.attach(KEY, entry, digest(102), b"again", 7)  # one it has: replaced, now the newest
    assert (cache.wires, cache.bytes_used) == (4, 10 + 3 * 5 + 7)
    assert cache.find_wire(digest(101), 1, 0.0) is None
    assert cache.find_wire(digest(102), 1, 0.0) == (entry, b"again")


def test_aliases_may_be_switched_off() -> None:
    cache: ResponseCache[str, bytes] = ResponseCache(Bounded(BYTES_MAX, Lru(BYTES_MAX)), wires_per_entry_max=0)
    entry = stored(cache, an_entry())
    assert not cache.attach(KEY, entry, WIRE, b"payload", 5)


def test_aliases_are_bounded_in_bytes_and_may_push_out_other_entries(
    cache: ResponseCache[str, bytes],
) -> None:
    entry = stored(cache, an_entry())
    stored(cache, an_entry(size=50), number=2)
    assert not cache.attach(KEY, entry, WIRE, b"payload", 91)
    assert (cache.entries, cache.wires, cache.bytes_used) == (2, 0, 60)
    assert cache.attach(KEY, entry, WIRE, b"payload", 90)
    assert (cache.entries, cache.wires, cache.bytes_used, cache.evictions) == (1, 1, 100, 1)


def test_a_wire_leads_to_the_entry_it_was_attached_to_last(cache: ResponseCache[str, bytes]) -> None:
    one, two = stored(cache, an_entry("one")), stored(cache, an_entry("two"), number=2)
    assert cache.attach(KEY, one, WIRE, b"one", 5)
    assert cache.attach(Key(digest(2), 1), two, WIRE, b"two", 6)
    assert cache.find_wire(WIRE, 1, 0.0) == (two, b"two")
    assert (cache.wires, cache.bytes_used) == (1, 26)
    stored(cache, an_entry("three"))
    assert cache.find_wire(WIRE, 1, 0.0) == (two, b"two")


def test_wire_hits_keep_an_entry_from_leaving() -> None:
    cache: ResponseCache[str, bytes] = ResponseCache(Bounded(BYTES_MAX, Lru(BYTES_MAX)))
    entry = stored(cache, an_entry())
    assert cache.attach(KEY, entry, WIRE, b"payload", 5)
    for number in range(2, 30):
        assert cache.find_wire(WIRE, 1, 0.0) is not None
        stored(cache, an_entry(), number)


class Machine(RuleBasedStateMachine):
    """Random operations beside a model that never evicts: the cache holds a subset of what it holds."""

    numbers = st.integers(0, 5)
    wire_numbers = st.integers(100, 107)

    @initialize(name=st.sampled_from(sorted(POLICIES)), wires_max=st.integers(0, 3))
    def begin(self, name: str, wires_max: int) -> None:
        self.cache: ResponseCache[str, bytes] = ResponseCache(Bounded(BYTES_MAX, POLICIES[name](BYTES_MAX)), wires_max)
        self.wires_max = wires_max
        self.now = 0.0
        self.epoch = 1
        self.stores = 0  # tried, refused ones included
        self.gone = 0  # entries that left otherwise than by eviction
        self.entries: dict[int, Entry[str]] = {}
        self.aliases: dict[int, tuple[int, Entry[str], bytes]] = {}
        self.old_tickets: list[int] = []

    @rule(seconds=st.sampled_from([0.5, 4.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def epoch_turns(self) -> None:
        self.epoch += 1

    @rule(number=numbers, size=st.integers(1, 60), back=st.integers(0, 1))
    def store(self, number: int, size: int, back: int) -> None:
        self.stores += 1
        entry = an_entry(f"{number}.{self.stores}", size=size, now=self.now, epoch=self.epoch - back)
        held = self.here(number)
        kept = self.cache.store(Key(digest(number), entry.epoch), entry, self.cache.ticket())
        assert kept == (held is None or held.epoch <= entry.epoch)
        if kept:
            self.gone += held is not None
            self.entries[number] = entry
            assert self.here(number) is entry

    @rule(number=numbers, wire=wire_numbers, size=st.integers(0, 60), stale_object=st.booleans())
    def attach(self, number: int, wire: int, size: int, stale_object: bool) -> None:
        entry = self.entries.get(number)
        held = self.here(number)
        if entry is None or stale_object:
            entry = an_entry()
        payload = b"%d.%d" % (number, size)
        attached = self.cache.attach(Key(digest(number), entry.epoch), entry, digest(wire), payload, size)
        if entry is not held or self.wires_max == 0:
            assert not attached
        if attached:
            self.aliases[wire] = (number, entry, payload)
            assert self.here(number) is entry

    @rule(number=numbers)
    def find(self, number: int) -> None:
        held = self.here(number)
        found = self.cache.find(Key(digest(number), self.epoch), self.now)
        if held is None:
            assert found is None
            return
        freshness = held.freshness(self.now, self.epoch)
        if freshness is Freshness.DEAD:
            assert found is None
            assert self.here(number) is None
            self.gone += 1
            return
        assert found is not None
        assert found.entry is held is self.entries[number]
        assert found.freshness is freshness

    @rule(wire=wire_numbers)
    def find_wire(self, wire: int) -> None:
        entries = self.cache.entries
        found = self.cache.find_wire(digest(wire), self.epoch, self.now)
        self.gone += entries - self.cache.entries
        if found is None:
            return
        number, entry, payload = self.aliases[wire]
        assert found[0] is entry is self.here(number) is self.entries[number]
        assert found[1] == payload
        assert entry.freshness(self.now, self.epoch) is Freshness.FRESH

    @rule()
    def purge(self) -> None:
        self.old_tickets.append(self.cache.ticket())
        entries = self.cache.entries
        assert self.cache.purge() == entries
        self.gone += entries
        self.entries.clear()
        self.aliases.clear()

    @precondition(lambda self: self.old_tickets)
    @rule(number=numbers)
    def store_with_a_void_ticket(self, number: int) -> None:
        self.stores += 1
        rejections = self.cache.rejections
        entry = an_entry(now=self.now, epoch=self.epoch)
        assert not self.cache.store(Key(digest(number), self.epoch), entry, self.old_tickets[-1])
        assert self.cache.rejections == rejections + 1

    @invariant()
    def it_adds_up(self) -> None:
        cache = self.cache
        held = [entry for number in range(6) if (entry := self.here(number)) is not None]
        assert len(held) == cache.entries
        assert sum(entry.size for entry in held) <= cache.bytes_used <= cache.bytes_max == BYTES_MAX
        assert cache.wires <= self.wires_max * cache.entries
        assert cache.wires or cache.bytes_used == sum(entry.size for entry in held)
        assert self.stores == cache.entries + cache.evictions + self.gone + cache.rejections

    def here(self, number: int) -> Entry[str] | None:
        """What the cache holds, without counting as a use and whatever its age."""
        node = self.cache._entries.node(digest(number))
        return None if node is None else node.value


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
