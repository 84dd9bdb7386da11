"""Features whose store answers in two seconds, reads its data in, or knows the password no more, from the start or
later: the gateway serves, each answer says what it is made of, and after the first request nobody waits for the store.
Real Redis, real gateway, real Triton; what reaches the store is counted on the way to it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from examples.redisserver import RedisServer
from tests.redises import Way, loading, slow
from tests.system.ranking import house, item_row, predict, rows_of, score, until, user_row

REQUESTS = 20
USER = "default:right@"


@dataclass
class Ill:
    """A store on its ``way``: how it falls ill, which word that has, how it gets well, and its one user's row."""

    way: Way
    word: str
    falls_ill: Callable[[], None]
    gets_well: Callable[[], None]
    write: Callable[[bytes], None]
    name: str = ""

    @property
    def url(self) -> str:
        return f"redis://{self.name}127.0.0.1:{self.way.port}/0"


def writing(server: RedisServer) -> Callable[[bytes], None]:
    def write(row: bytes) -> None:
        with server.client() as client:
            client.set("u:bob", row)

    return write


@contextlib.asynccontextmanager
async def slow_one() -> AsyncIterator[Ill]:
    """Every answer takes two seconds."""
    quick = asyncio.Event()
    quick.set()
    with RedisServer() as server:
        async with slow(server, quick) as way:
            yield Ill(way, "timeout", quick.clear, quick.set, writing(server))


@contextlib.asynccontextmanager
async def loading_one() -> AsyncIterator[Ill]:
    """It was started again, and reads a large file."""
    quick = asyncio.Event()
    quick.set()
    with loading({"u:bob": user_row(1)}) as server:

        def says_loading() -> bool:
            with contextlib.suppress(Exception), server.client() as client:
                return bool(client.info("persistence")["loading"])
            return False

        def starts_again() -> None:
            server.kill()
            server.start(ready=False)
            until(says_loading)

        def goes_on() -> None:
            with server.client() as client:
                client.config_set("key-load-delay", 0)
            server.await_answer()

        async with slow(server, quick) as way:
            yield Ill(way, "loading", starts_again, goes_on, writing(server))


@contextlib.asynccontextmanager
async def closed_one() -> AsyncIterator[Ill]:
    """Its password becomes another one, and who is in is put out."""
    quick = asyncio.Event()
    quick.set()
    with RedisServer() as server, server.client() as kept:
        kept.execute_command("ACL", "SETUSER", "admin", "on", "nopass", "+@all", "~*", "&*")
        kept.execute_command("AUTH", "admin", "")

        def password(word: str) -> None:
            kept.execute_command("ACL", "SETUSER", "default", "resetpass", f">{word}")
            kept.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            kept.execute_command("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")

        password("right")
        async with slow(server, quick) as way:
            yield Ill(
                way,
                "refused",
                lambda: password("another"),
                lambda: password("right"),
                lambda row: kept.set("u:bob", row) and None,
                USER,
            )


ILLNESSES = {"slow": slow_one, "loading": loading_one, "closed": closed_one}


class Asking:
    """One gateway before an ill store of users and a well one of items, and what it says of user bob and item 7."""

    def __init__(self, gateway: Any, ill: Ill) -> None:
        self._gateway, self._ill = gateway, ill

    async def metric(self, name: str, **labels: str) -> float:
        return float(await asyncio.to_thread(self._gateway.metric, name, table="user", **labels))

    async def rank(self) -> tuple[float, dict[str, int], list[str]]:
        """The user's number, what that row is, and the steps that were taken for it."""
        status, answer = await asyncio.to_thread(predict, self._gateway, "bob", [7])
        assert status == 200, answer
        told = answer["provenance"]
        assert rows_of(told, "item") == {"fresh": 1}
        assert told.get("degraded", False) is bool(told.get("steps"))
        return answer["outputs"]["score"][0][0] - score(0, 7), rows_of(told, "user"), told.get("steps", [])

    async def become(self, number: float) -> None:
        """Wait until the store's own number is told."""
        await until_told(self.rank, (number, {"fresh": 1}, []))

    async def holds(self) -> float:
        """Rows held, once more has been asked for: what is read while nobody listens yet is not."""
        await self.rank()
        return await self.metric("tailrace_table_entries")

    async def waits_once(self, number: float, state: str, step: str) -> None:
        """Many requests before an ill store, each answered and labelled: one of them has waited for it."""
        before = [await self._failures(word) for word in (self._ill.word, "open")]
        asked, took = self._ill.way.asked, []
        for _ in range(REQUESTS):
            began = time.monotonic()
            assert await self.rank() == (number, {state: 1}, [step])
            took.append(time.monotonic() - began)
        after = [await self._failures(word) for word in (self._ill.word, "open")]
        assert [later - sooner for sooner, later in zip(before, after, strict=True)] == [1, REQUESTS - 1]
        assert self._ill.way.asked - asked <= 1
        print(f"\n{self._ill.word}: the first took {took[0]:.3f} s, the slowest of the others {max(took[1:]):.3f} s")

    async def _failures(self, word: str) -> float:
        return await self.metric("tailrace_table_failures_total", kind=word)


async def until_told(ask: Callable[[], Awaitable[object]], wanted: object, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while (told := await ask()) != wanted:
        assert time.monotonic() < end, f"within {seconds:.0f} s not {wanted}, but {told}"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("illness", list(ILLNESSES))
async def test_a_store_that_is_ill_is_waited_for_once(
    gateway_factory: Callable[..., Any], triton: Any, redis: RedisServer, illness: str
) -> None:
    """From the start, when nothing is held, and again when something is."""
    with redis.client() as client:
        client.set("i:7", item_row(7))
    async with ILLNESSES[illness]() as ill:
        ill.write(user_row(1))
        ill.falls_ill()
        user = {"store": ill.url, "ttl": "1ms", "default": "zeros", "coherence": "tracking"}
        if ill.word != "timeout":  # they answer at once, also on a busy machine
            user |= {"timeout": "5s", "connect_timeout": "5s"}
        config = house(triton.http_url, redis.url, user=user, item={"coherence": "ttl", "timeout": "5s"})
        asking = Asking(await asyncio.to_thread(gateway_factory, config), ill)
        await asking.waits_once(0, "lost", "user:default")
        ill.gets_well()
        ill.write(user_row(2))
        await asking.become(2)
        await until_told(lambda: asking.metric("tailrace_table_live"), 1.0)
        await until_told(asking.holds, 1.0)
        ill.falls_ill()
        await asking.waits_once(2, "stale", "user:stale")
        ill.gets_well()
        ill.write(user_row(3))
        await asking.become(3)
        await until_told(lambda: asking.metric("tailrace_table_live"), 1.0)


def test_a_value_of_another_type_speaks_for_itself_alone(
    gateway_factory: Callable[..., Any], triton: Any, redis: RedisServer
) -> None:
    """Old where it is held, a default where it is not, a refusal where there is neither; the store is asked on."""
    with redis.client() as client:
        client.mset({"u:bob": user_row(1), **{f"i:{each}": item_row(each) for each in (1, 3)}})
        client.rpush("i:2", "a list")
        patient = {"timeout": "5s"}
        item = patient | {"coherence": "ttl", "ttl": "1ms"}
        gateway = gateway_factory(house(triton.http_url, redis.url, user=patient, item=item))

        def rank() -> tuple[float, dict[str, int], list[str]]:
            status, told = predict(gateway, "bob", [1, 2, 3])
            assert status == 200, told
            number = told["outputs"]["score"][1][0]
            return number, rows_of(told["provenance"], "item"), told["provenance"].get("steps", [])

        for _ in range(5):
            assert rank() == (score(1, 0), {"fresh": 2, "lost": 1}, ["item:default"])
        client.delete("i:2")
        client.set("i:2", item_row(2))
        assert rank() == (score(1, 2), {"fresh": 3}, [])
        client.delete("i:2")
        client.hset("i:2", "a", "hash")
        for _ in range(5):
            assert rank() == (score(1, 2), {"fresh": 2, "stale": 1}, ["item:stale"])
        client.rpush("u:ann", "a list")
        status, problem = predict(gateway, "ann", [1])
        assert (status, "table user: wrong-type" in problem["detail"]) == (503, True), problem
        assert gateway.metric("tailrace_table_breaker_state") == 0
        assert gateway.metric("tailrace_table_failures_total", kind="open") == 0
        assert gateway.metric("tailrace_table_failures_total", table="item", kind="wrong-type") == 10
        client.delete("i:2")
        client.set("i:2", item_row(4))
        assert rank() == (score(1, 4), {"fresh": 3}, [])
