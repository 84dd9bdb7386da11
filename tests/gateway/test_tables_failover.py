"""A table behind Sentinels whose words do not come, while they have another server made the master."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import numpy as np

from gateway.config_tables import TableConfig
from gateway.stores import Sources
from gateway.tables import Table
from gateway.units import Seconds
from tests.cache.conftest import until
from tests.redises import SERVICE, Watched, slow
from tiers.inference import TableTold

WITHIN = 0.4


def row(number: float) -> bytes:
    return np.array([number], "<f4").tobytes()


async def test_of_a_failover_that_nobody_could_tell_of_no_row_is_old_and_fresh(watched: Watched) -> None:
    """The old master takes itself for one until a Sentinel tells it otherwise, 8 s later, and answers for that long.
    The gateway has its connections; it is the Sentinels' answers that do not come, as on a machine that has too much
    to do."""
    old = watched.master
    with old.client() as client:
        client.mset({"u:1": row(1), "u:2": row(1)})
        assert client.wait(1, 20_000) == 1
    heard = asyncio.Event()
    heard.set()
    async with AsyncExitStack() as stack:
        ways = [await stack.enter_async_context(slow(each, heard, 3600.0)) for each in watched.sentinels]
        store = f"redis+sentinel://{','.join(f'127.0.0.1:{way.port}' for way in ways)}/{SERVICE}/0"
        config = TableConfig(
            store=store, key="u:{id}", shape=(1,), timeout=Seconds(2.0), connect_timeout=Seconds(2.0),
            coherence="tracking", coherent_within=Seconds(WITHIN), ttl=Seconds(3600), max_stale=Seconds(3600),
        )  # fmt: skip
        table = Table("user", config, Sources(time.monotonic).source(config), time.monotonic, b"seed")
        listening = asyncio.create_task(table.run(1.0, asyncio.sleep))

        async def told_of(number: int) -> tuple[float, TableTold]:
            looked = await table.look_up(np.array([number], np.int64), 2.0)
            return float(looked.rows[0, 0]), looked.told

        async def is_fresh(number: int, value: float) -> bool:
            found, told = await told_of(number)
            return (found, told.fresh) == (value, 1)

        await until(lambda: table.is_live, what="a table that is listened for")
        await until(lambda: is_fresh(1, 1.0), what="a fresh row")
        heard.clear()
        with watched.sentinels[0].client() as client:
            client.execute_command("SENTINEL", "FAILOVER", SERVICE)
        await until(lambda: watched.master is not old, what="another master")
        with watched.master.client() as client:
            client.mset({"u:1": row(2), "u:2": row(2)})
        written = time.monotonic()
        seen = set()
        while (asked := time.monotonic()) < written + 3 * WITHIN or len(seen) < 2:
            for number in (1, 2):  # one that is held, and one that is asked for
                value, told = await told_of(number)
                assert (value, told.fresh) != (1.0, 1) or asked - written <= WITHIN, (number, asked - written)
                if (value, told.stale) == (1.0, 1):
                    seen.add(number)  # the old master answers, and is not believed
            await asyncio.sleep(0.01)
        heard.set()
        for number in (1, 2):
            await until(lambda number=number: is_fresh(number, 2.0), what="what was written")  # type: ignore[misc]
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await table.close()
