"""The proxy itself: each fault is what its name says, and is over when it is switched off."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from tests.chaos.proxy import GARBAGE, HOST, Fault, Pace, Proxy

SAID = b"hello, whoever you are"
LATE = 30.0
"""Beyond which something hangs, on the slowest machine."""
SOON = 0.2
"""What must not have come by then may come later: a slow machine makes such a check weaker, never wrong."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


class Room:
    """A link to an echoing server, and callers of it."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.opened: list[asyncio.StreamWriter] = []

    async def connect(self) -> Streams:
        made = await asyncio.open_connection(HOST, self.proxy.port)
        self.opened.append(made[1])
        return made

    async def talking(self) -> Streams:
        """A connection over which something has gone there and back."""
        made = await self.connect()
        assert await answer(made) == SAID
        return made


async def answer(streams: Streams, said: bytes = SAID) -> bytes:
    reader, writer = streams
    writer.write(said)
    async with asyncio.timeout(LATE):
        return await reader.readexactly(len(said))


async def rest(streams: Streams) -> bytes:
    """All that comes until the end."""
    async with asyncio.timeout(LATE):
        return await streams[0].read()


@asynccontextmanager
async def opened(pace: Pace = Pace()) -> AsyncIterator[Room]:  # noqa: B008 - frozen
    server = await asyncio.start_server(echo, HOST, 0)
    async with Proxy(HOST, server.sockets[0].getsockname()[1], random.Random(1), pace) as proxy:
        room = Room(proxy)
        try:
            yield room
        finally:
            for writer in room.opened:
                writer.close()
            server.close()


async def test_it_carries_both_ways_and_ends_as_its_sides_do() -> None:
    async with opened() as room:
        reader, writer = await room.connect()
        said = random.Random(2).randbytes(500_000)
        writer.write(said)
        writer.write_eof()  # half of it is over, and the other half still speaks
        assert await rest((reader, writer)) == said
        assert not room.proxy.done


async def test_the_end_of_the_server_is_the_callers() -> None:
    async with opened() as room:
        room.proxy._target = (HOST, 1)
        with pytest.raises(ConnectionError):
            await rest(await room.connect())


async def test_latency() -> None:
    async with opened(Pace(latency_seconds=60.0)) as room:
        talking = await room.talking()
        room.proxy.switch(Fault.LATENCY)
        talking[1].write(SAID)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(talking[0].read(1), SOON)
        room.proxy.switch(None)
        assert await asyncio.wait_for(talking[0].readexactly(len(SAID)), LATE) == SAID


async def test_latency_passes() -> None:
    async with opened(Pace(latency_seconds=0.01)) as room:
        room.proxy.switch(Fault.LATENCY)
        assert await answer(await room.connect()) == SAID
        assert room.proxy.done["latency"] == 2


async def test_a_blackhole_takes_connections_and_gives_all_of_it_back_at_the_end() -> None:
    async with opened() as room:
        old = await room.talking()
        room.proxy.switch(Fault.BLACKHOLE)
        new = await room.connect()
        for each in (old, new):
            each[1].write(SAID)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.gather(old[0].read(1), new[0].read(1)), SOON)
        room.proxy.switch(None)
        for each in (old, new):
            assert await asyncio.wait_for(each[0].readexactly(len(SAID)), LATE) == SAID


async def reset(room: Room) -> None:
    old = await room.talking()
    room.proxy.switch(Fault.RESET)
    for each in (old, await room.connect()):
        with pytest.raises(ConnectionResetError):
            await rest(each)


async def truncate(room: Room) -> None:
    old = await room.talking()
    room.proxy.switch(Fault.TRUNCATE)
    for each in (old, await room.connect()):
        each[1].write(SAID)
        got = await rest(each)
        assert len(got) < len(SAID)
        assert SAID.startswith(got)


async def corrupt(room: Room) -> None:
    old = await room.talking()
    room.proxy.switch(Fault.CORRUPT)
    for each in (old, await room.connect()):
        assert await answer(each) == GARBAGE + SAID[len(GARBAGE) :]
        assert await answer(each, b"abc") == GARBAGE[:3]


async def half_close(room: Room) -> None:
    old = await room.talking()
    room.proxy.switch(Fault.HALF_CLOSE)
    for each in (old, await room.connect()):
        each[1].write(SAID)
        assert await rest(each) == b""
        each[1].write(SAID)  # and nobody minds
        await each[1].drain()


async def refuse(room: Room) -> None:
    old = await room.talking()
    room.proxy.switch(Fault.REFUSE)
    with pytest.raises(ConnectionResetError):
        await rest(old)
    with pytest.raises(ConnectionRefusedError):
        await room.connect()


async def drip(room: Room) -> None:
    talking = await room.talking()
    room.proxy.switch(Fault.DRIP)
    talking[1].write(SAID)
    async with asyncio.timeout(LATE):
        assert await talking[0].read(100) == SAID[:1]


@pytest.mark.parametrize("breaking", [reset, truncate, corrupt, half_close, refuse, drip])
async def test_a_broken_link_is_whole_again(breaking: Callable[[Room], Awaitable[None]]) -> None:
    async with opened(Pace(drip_seconds=0.2)) as room:
        port = room.proxy.port
        await breaking(room)
        fault = room.proxy.fault
        assert fault is not None
        assert room.proxy.done[fault.value] > 0
        room.proxy.switch(None)
        assert room.proxy.port == port
        assert await answer(await room.connect()) == SAID


async def test_who_was_lied_to_is_cut_when_the_fault_is_over() -> None:
    async with opened() as room:
        talking = await room.talking()
        room.proxy.switch(Fault.CORRUPT)
        await answer(talking)
        room.proxy.switch(None)
        assert await rest(talking) == b""


async def test_one_fault_follows_another() -> None:
    async with opened(Pace(0.001, 0.001)) as room:
        for fault in (*Fault, *reversed(Fault)):
            room.proxy.switch(fault)
        room.proxy.switch(None)
        assert await answer(await room.connect()) == SAID


async def test_nothing_is_left_behind() -> None:
    async with opened() as room:
        for _ in range(5):
            await room.talking()
        proxy = room.proxy
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(HOST, proxy.port)
    assert not proxy._pairs
    assert not proxy._tasks
