"""The pool of one replica: never more than its bound, first come first served, nothing leaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest

from tiers.backends.arrival import ConnectionFault, Fault
from tiers.backends.connection import Connection, ConnectionBounds
from tiers.backends.connections import Address, Connections, ConnectionsOptions

LONG = 1e9
SECONDS = 30.0
"""To connect, where that is not what is tried: a busy machine may take a while."""


class Server:
    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.gone = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with suppress(ConnectionError, asyncio.CancelledError):  # asyncio logs a cancelled one at a test's end
            await reader.read(-1)
        self.gone += 1
        writer.close()


@asynccontextmanager
async def pooled(**options: float) -> AsyncIterator[tuple[Connections, Server]]:
    server = Server()
    listener = await asyncio.start_server(server.connected, "127.0.0.1", 0)
    make: Callable[..., ConnectionsOptions] = partial(ConnectionsOptions, connect_timeout=SECONDS)
    address = Address("127.0.0.1", listener.sockets[0].getsockname()[1])
    pool = Connections(address, make(**options), ConnectionBounds())
    try:
        yield pool, server
    finally:
        await pool.close()
        listener.close()
        for writer in server.writers:
            writer.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # what is waited for happens in the kernel
            await asyncio.sleep(0.001)


async def test_an_idle_connection_is_used_again_and_the_last_one_first() -> None:
    async with pooled() as (pool, _):
        first, second = await pool.acquire(LONG), await pool.acquire(LONG)
        assert pool.open == 2
        assert pool.take() is None
        pool.release(first)
        pool.release(second)
        assert pool.idle == 2
        assert pool.take() is second
        assert await pool.acquire(LONG) is first
        pool.release(first)
        pool.release(first)  # what is not held is not given back
        assert (pool.idle, pool.open) == (1, 2)


async def test_waiters_are_served_in_order_and_nobody_overtakes() -> None:
    async with pooled(connections_max=2) as (pool, server):
        held = [await pool.acquire(LONG) for _ in range(2)]
        served: list[int] = []

        async def wait(number: int) -> Connection:
            connection = await pool.acquire(LONG)
            served.append(number)
            return connection

        tasks = []
        for number in range(6):
            tasks.append(asyncio.create_task(wait(number)))
            await asyncio.sleep(0)
        assert pool.waiting == 6
        pool.release(held[0])
        assert pool.take() is None  # it is the first waiter's
        late = asyncio.create_task(wait(99))
        held[1].abort()  # this one's slot goes to the second
        pool.release(held[1])
        tasks[3].cancel()
        await tasks[1]
        for number in (0, 1, 2, 4, 5):
            pool.release(await tasks[number])
        pool.release(await late)
        assert served == [0, 1, 2, 4, 5, 99]
        assert len(server.writers) == 3
        assert (pool.waiting, pool.open, pool.idle) == (0, 2, 2)


async def test_a_waiter_leaves_when_it_may_wait_no_longer() -> None:
    async with pooled(connections_max=1, wait_seconds_max=0.02) as (pool, _):
        held = await pool.acquire(LONG)
        with pytest.raises(ConnectionFault) as late:
            await pool.acquire(LONG)
        assert late.value.fault is Fault.CROWDED
        pool.release(held)


async def test_a_waiter_leaves_at_its_own_deadline_and_too_many_are_refused() -> None:
    async with pooled(connections_max=1, waiting_max=1) as (pool, _):
        held = await pool.acquire(LONG)
        waiting = asyncio.create_task(pool.acquire(asyncio.get_running_loop().time() + 0.02))
        await asyncio.sleep(0)
        with pytest.raises(ConnectionFault) as crowded:
            await pool.acquire(LONG)
        with pytest.raises(ConnectionFault) as late:
            await waiting
        assert (crowded.value.fault, late.value.fault) == (Fault.CROWDED, Fault.CROWDED)
        assert str(late.value) == "all 1 (connections_max) stayed in use"
        pool.release(held)
        assert (pool.waiting, pool.idle) == (0, 1)


@pytest.mark.parametrize("dead", [False, True])
async def test_who_leaves_in_the_moment_of_its_turn_gives_it_on(dead: bool) -> None:
    async with pooled(connections_max=1) as (pool, _):
        held = await pool.acquire(LONG)
        leaver = asyncio.create_task(pool.acquire(LONG))
        await asyncio.sleep(0)
        stayer = asyncio.create_task(pool.acquire(LONG))
        await asyncio.sleep(0)
        if dead:
            held.abort()
        pool.release(held)
        leaver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaver
        pool.release(await stayer)
        assert (pool.waiting, pool.open, pool.idle) == (0, 1, 1)


async def test_cancelled_while_connecting_frees_the_slot() -> None:
    async with pooled(connections_max=1) as (pool, _):
        for turns in range(12):
            task = asyncio.create_task(pool.acquire(LONG))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                pool.release(await task)
            assert pool.open == pool.idle
        pool.release(await pool.acquire(LONG))


async def test_an_idle_connection_that_the_server_closes_is_dropped_at_once() -> None:
    async with pooled() as (pool, server):
        pool.release(await pool.acquire(LONG))
        server.writers[0].close()
        await until(lambda: pool.idle == 0)
        assert pool.open == 0


async def test_an_idle_connection_that_speaks_is_never_handed_out() -> None:
    async with pooled() as (pool, _):
        connection = await pool.acquire(LONG)
        pool.release(connection)
        connection.data_received(b"HTTP/1.1 200 X\r\nContent-Length: 0\r\n\r\n")
        assert pool.take() is None
        assert await pool.acquire(LONG) is not connection


async def test_what_is_idle_for_too_long_is_closed() -> None:
    async with pooled(keepalive_timeout=0.02) as (pool, server):
        held = [await pool.acquire(LONG) for _ in range(3)]
        for connection in held:
            pool.release(connection)
        await until(lambda: server.gone == 3)
        assert pool.open == 0


async def test_renewing_keeps_the_slot_before_those_who_wait() -> None:
    async with pooled(connections_max=1) as (pool, _):
        held = await pool.acquire(LONG)
        waiting = asyncio.create_task(pool.acquire(LONG))
        await asyncio.sleep(0)
        fresh = await pool.renew(held, LONG)
        assert fresh is not held
        assert not waiting.done()
        pool.release(held)  # long gone: nothing happens
        pool.release(fresh)
        assert await waiting is fresh


async def test_a_failed_connection_passes_its_slot_on() -> None:
    async with pooled(connections_max=1) as (_, server):
        pass
    assert not server.writers
    listener = await asyncio.start_server(server.connected, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    pool = Connections(Address("127.0.0.1", port), ConnectionsOptions(connections_max=1), ConnectionBounds())
    tried = await asyncio.gather(*(pool.acquire(LONG) for _ in range(5)), return_exceptions=True)
    assert [each.fault for each in tried if isinstance(each, ConnectionFault)] == [Fault.REFUSED] * 5
    assert (pool.open, pool.waiting) == (0, 0)
    nowhere = Connections(Address("no such name", 1), ConnectionsOptions(), ConnectionBounds())
    with pytest.raises(ConnectionFault) as caught:
        await nowhere.acquire(LONG)
    assert caught.value.fault is Fault.REFUSED


async def test_a_closed_pool_refuses_and_lets_nobody_wait() -> None:
    async with pooled(connections_max=1) as (pool, server):
        held = await pool.acquire(LONG)
        waiting = asyncio.create_task(pool.acquire(LONG))
        await asyncio.sleep(0)
        await pool.close()
        with pytest.raises(ConnectionFault):
            await waiting
        with pytest.raises(ConnectionFault):
            await pool.acquire(LONG)
        assert held.closed
        pool.release(held)
        await until(lambda: server.gone == len(server.writers))


async def test_many_callers_never_pass_the_bound() -> None:
    most = 0
    async with pooled(connections_max=7) as (pool, _):

        async def caller(number: int) -> None:
            nonlocal most
            for turn in range(10):
                connection = await pool.acquire(LONG)
                most = max(most, pool.open)
                await asyncio.sleep(0)
                if (number + turn) % 5 == 0:
                    connection.abort()
                pool.release(connection)

        await asyncio.gather(*(caller(number) for number in range(50)))
        assert most <= 7
        assert (pool.waiting, pool.open) == (0, pool.idle)
