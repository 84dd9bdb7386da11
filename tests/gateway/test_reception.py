"""Messages on their way in: in virtual memory, with calls that send when the test says so."""

import asyncio
import threading

import pytest

from gateway.doors.buffered import Buffered
from gateway.doors.reception import SWEEP_SECONDS, WINDOW_SECONDS, Growth, Reception, ReceptionPorts
from gateway.problem import Refused

MESSAGE_BYTES_MAX = 100
BUFFERED_BYTES_MAX = 800  # four messages in each half
SECONDS = 10.0


class Call:
    """One caller; ``said`` is its message, when it has come."""

    def __init__(self, address="192.0.2.1"):
        self.address = address
        self.said = asyncio.get_running_loop().create_future()
        self.reading = False

    def peer(self):
        return f"ipv4:{self.address}:1"

    async def read(self):
        self.reading = True
        return await self.said


class World:
    def __init__(self, known=True):
        self.memory = 0
        self.kept = 0
        self.now = 0.0
        self.receiving = set()
        self.count = 0
        self.meanwhile = lambda: None
        self.looks = []
        self.buffered = Buffered(BUFFERED_BYTES_MAX, small_bytes=10)
        memory = lambda: self.memory if known else None  # noqa: E731
        ports = ReceptionPorts(self.buffered, memory, lambda: self.kept, self.look, lambda: self.now)
        self.reception = Reception(ports, MESSAGE_BYTES_MAX)

    def look(self, peers):
        self.looks.append(threading.current_thread())
        self.meanwhile()
        self.count += 1000
        return dict.fromkeys(peers, 0), {peer: self.count * (peer in self.receiving) for peer in peers}

    def stream(self, *addresses):
        """Streams that have said something, and the waits for what they say next."""
        calls = [Call(address) for address in addresses]
        return calls, [asyncio.create_task(self.reception.later(call)) for call in calls]

    def begin(self, *addresses, seconds=SECONDS):
        """Calls and the waits for their messages."""
        calls = [Call(address) for address in addresses]
        return calls, [asyncio.create_task(self.reception.first(call, seconds)) for call in calls]

    async def sweep(self):
        """The next sweep, and what follows from it."""
        await asyncio.sleep(0)  # those who have been begun come in before it
        before = self.now
        self.now += SWEEP_SECONDS
        async with asyncio.timeout(SECONDS):
            while self.reception._swept <= before:  # noqa: ASYNC110 - a sweep has no event
                await asyncio.sleep(0.005)
            if self.reception._looking is not None:
                await asyncio.wait([self.reception._looking])
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
async def world():
    return World()


def refused(tasks):
    """Which of them were refused for want of room."""
    found = [each for each in tasks if each.done()]
    return [tasks.index(each) for each in found if each.exception().problem.status == 503]


async def end(tasks):
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_any_number_may_come_as_long_as_memory_does_not_grow(world):
    calls, tasks = world.begin(*[f"192.0.2.{number}" for number in range(50)])
    for _ in range(3):
        await world.sweep()
        world.memory += BUFFERED_BYTES_MAX // 8 // 3
    assert refused(tasks) == []
    assert all(call.reading for call in calls)
    calls[3].said.set_result(b"message")
    assert await tasks[3] == b"message"
    await end(tasks)


async def test_when_memory_grows_the_youngest_and_those_of_one_address_go(world):
    _, tasks = world.begin("192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5")
    await world.sweep()
    world.memory += BUFFERED_BYTES_MAX // 8 + 1
    await world.sweep()
    assert refused(tasks) == [1, 2, 6]
    assert world.buffered.refused == world.reception.cut == 3
    await world.sweep()
    assert refused(tasks) == [1, 2, 6]
    await end(tasks)


async def test_what_is_held_already_leaves_less_room(world):
    _, tasks = world.begin("192.0.2.1", "192.0.2.2", "192.0.2.3")
    world.buffered.add(BUFFERED_BYTES_MAX - 3 * MESSAGE_BYTES_MAX)
    await world.sweep()
    await world.sweep()
    world.memory += BUFFERED_BYTES_MAX // 8 + 1
    await world.sweep()
    assert refused(tasks) == [1, 2]
    await end(tasks)


async def test_new_ones_wait_their_turn_while_much_is_coming_in_and_small_ones_go_by(world):
    _, slow = world.begin("192.0.2.1")
    await world.sweep()
    await world.sweep()
    world.memory += BUFFERED_BYTES_MAX // 8 + 1
    await world.sweep()
    calls, tasks = world.begin(*["192.0.2.9"] * 6)
    await asyncio.sleep(0)
    assert [call.reading for call in calls] == [True] * 4 + [False] * 2
    calls[0].said.set_result(b"small")
    assert await tasks[0] == b"small"
    await asyncio.sleep(0)
    assert [call.reading for call in calls] == [True] * 5 + [False], "who is done makes room"
    await world.sweep()
    assert calls[5].reading, "and so does a sweep"
    assert refused(slow) == []
    await end([*tasks, *slow])


async def test_who_waits_a_turn_is_cut_in_time_and_who_leaves_leaves_nothing(world):
    _, slow = world.begin("192.0.2.1")
    await world.sweep()
    await world.sweep()
    world.memory += BUFFERED_BYTES_MAX // 8 + 1
    await world.sweep()
    _, first = world.begin(*["192.0.2.9"] * 4)
    _, (late, gone) = world.begin("192.0.2.9", "192.0.2.9", seconds=SWEEP_SECONDS / 2)
    await asyncio.sleep(0)
    gone.cancel()
    await world.sweep()
    with pytest.raises(Refused) as caught:
        await late
    assert caught.value.problem.status == 408
    await end([gone, *first, *slow])
    assert not world.reception._arrivals
    assert world.reception._young == 0


MUCH = BUFFERED_BYTES_MAX // 8 + 1
"""Growth that presses."""


async def test_streams_may_be_silent_for_ever_whatever_memory_does(world):
    _, tasks = world.stream(*[f"192.0.2.{number}" for number in range(200)])
    for _ in range(10):
        world.memory += MUCH
        await world.sweep()
    world.now += 10_000.0
    await world.sweep()
    assert refused(tasks) == []
    assert len(world.looks) > 1
    assert not world.reception._pressed
    _, small = world.begin(*["192.0.2.9"] * 50)
    await asyncio.sleep(0)
    assert world.reception._young == 50, "nor does anyone wait"
    await end([*tasks, *small])


async def test_streams_that_are_receiving_go_those_of_one_address_and_the_youngest_first(world):
    calls, tasks = world.stream("192.0.2.3", "192.0.2.3", *[f"192.0.2.{number}" for number in range(10, 20)])
    world.receiving = {call.peer() for call in calls[:8]}
    await world.sweep()
    await world.sweep()
    assert world.looks == [], "nobody is looked at without need"
    world.memory += MUCH // 2 + 1
    await world.sweep()
    assert refused(tasks) == []
    world.memory += MUCH // 2
    await world.sweep()
    assert refused(tasks) == [1, 5, 6, 7]
    await world.sweep()
    assert refused(tasks) == [1, 5, 6, 7]
    assert all(thread is not threading.current_thread() for thread in world.looks)
    await end(tasks)


async def test_a_stream_that_is_read_while_it_is_looked_at_is_not_one_that_fills_memory(world):
    calls, tasks = world.stream(*[f"192.0.2.{number}" for number in range(12)])
    world.receiving = {call.peer() for call in calls}
    loop = asyncio.get_running_loop()

    def meanwhile():
        for call in calls:
            loop.call_soon_threadsafe(call.said.set_result, b"message")
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), loop).result()

    world.meanwhile = meanwhile
    await world.sweep()
    world.memory += MUCH
    await world.sweep()
    assert await asyncio.gather(*tasks) == [b"message"] * 12
    assert world.reception.cut == 0


async def test_of_whom_nothing_can_be_known_only_first_messages_go(world):
    _, streams = world.stream(*[f"192.0.2.{number}" for number in range(12)])
    _, tasks = world.begin(*[f"192.0.2.{number}" for number in range(6)])
    for _ in range(4):
        await world.sweep()
        world.memory += MUCH
    assert refused(tasks) == [4, 5]
    assert refused(streams) == []
    await end([*tasks, *streams])


async def test_who_is_pressed_is_so_no_longer_than_memory_is_up(world):
    _, silent = world.stream("192.0.2.200")
    _, slow = world.begin("192.0.2.1", seconds=1000.0)
    await world.sweep()
    await world.sweep()
    world.memory += MUCH
    await world.sweep()
    assert world.reception._pressed
    world.memory -= MUCH
    await world.sweep()
    assert not world.reception._pressed
    world.memory += MUCH
    await world.sweep()
    assert world.reception._pressed
    for _ in range(3):
        world.now += WINDOW_SECONDS
        await world.sweep()
    assert not world.reception._pressed, "what was long ago is forgotten"
    world.memory += MUCH
    await world.sweep()
    assert world.reception._pressed, "and what is new is seen"
    await end(slow)
    await world.sweep()
    assert not world.reception._pressed, "nobody is there who could have filled it"
    await end(silent)


async def test_the_caches_fill_and_are_emptied_beside_it(world):
    _, tasks = world.begin(*[f"192.0.2.{number}" for number in range(12)], seconds=1000.0)
    await world.sweep()
    await world.sweep()
    for memory, kept in ((3 * MUCH, 3 * MUCH), (3 * MUCH, 9 * MUCH), (3 * MUCH, 0), (2 * MUCH, 0), (0, 0)):
        world.memory, world.kept = memory, kept  # full; of small answers that malloc does not see; a purge; and its end
        await world.sweep()
        assert not world.reception._pressed
    assert refused(tasks) == []
    await end(tasks)


def test_growth_is_seen_for_one_window_at_least_and_two_at_most():
    growth = Growth(emptied_bytes=10)
    assert growth.of(0.0, 100, 0) == 0
    assert growth.of(WINDOW_SECONDS - 1.0, 150, 0) == 50
    assert growth.of(WINDOW_SECONDS + 1.0, 160, 0) == 60
    assert growth.of(2 * WINDOW_SECONDS - 1.0, 170, 0) == 70
    assert growth.of(2 * WINDOW_SECONDS + 2.0, 170, 0) == 10
    assert growth.of(3 * WINDOW_SECONDS + 3.0, 170, 0) == 0
    assert growth.of(3 * WINDOW_SECONDS + 4.0, 170, 500) == 0
    assert growth.of(3 * WINDOW_SECONDS + 5.0, 190, 0) == 20, "what caches let go of is no growth, what came is"
    growth.forget()
    assert growth.of(4 * WINDOW_SECONDS, 1000, 0) == 0


async def test_where_memory_cannot_be_known_only_what_surely_fits_may_take_its_time():
    world = World(known=False)
    _, tasks = world.begin(*[f"192.0.2.{number}" for number in range(6)])
    stream = asyncio.create_task(world.reception.later(Call()))
    await world.sweep()
    assert refused(tasks) == []
    await world.sweep()
    assert refused(tasks) == [4, 5]
    assert not stream.done()
    await end([*tasks, stream])


async def test_a_call_without_a_message_is_told_so(world):
    calls, (task,) = world.begin("192.0.2.1")
    await asyncio.sleep(0)
    calls[0].said.set_result(object())  # grpc's word for the end
    assert await task is None
