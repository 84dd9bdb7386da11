"""Two gateways before one Triton, with one Redis behind them: what one was answered the other need not ask for."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import msgspec
import pytest
from msgspec.structs import replace

from cache.behind import BehindOptions
from cache.sealed import OVERHEAD_BYTES, sealed, unsealed
from cache.stores.store import Found
from examples.redisserver import RedisServer
from gateway import second, sharing, witness
from gateway.check import findings
from gateway.config import Backend, CacheConfig, Config, TierConfig
from gateway.config import Route as RouteConfig
from gateway.learning import Home
from gateway.operate import admin
from gateway.route import Route
from gateway.second import SecondLevel
from gateway.sharing import Stores
from gateway.sources import load
from gateway.surroundings import real
from gateway.units import Seconds
from tests.doors.callers import ALL
from tests.doors.house import LISTENERS, House, opened, until
from tests.doors.question import Ask, Outcome, doubled
from tests.gateway.conftest import EchoTriton

MODEL = "m"
ASK = Ask()
TIMEOUT = 1.0
"""For a look-up: the longest there is, for the machine is busy."""
LATE = 5.0
"""By how much a busy machine may be late; what it is compared with never ends by itself."""

Start = Callable[..., "asyncio.Future[House]"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds are twenty times as fast, and what nobody waits for may take its time on a busy machine."""
    monkeypatch.setattr(second, "ROUND_SECONDS", 0.05)
    monkeypatch.setattr(sharing, "CONNECT_SECONDS", 10.0)
    monkeypatch.setattr(sharing, "BehindOptions", lambda: BehindOptions(seconds=20.0))
    monkeypatch.setattr(witness, "BELIEVED_SECONDS", 20.0)


def route(server: RedisServer, model: str = MODEL, **cache: object) -> str:
    more = "".join(f", {name} = {value}" for name, value in cache.items())
    told = f'ttl = "1h", second = "{server.url}", second_timeout = "{TIMEOUT:g}s"{more}'
    return f'{{ tiers = [{{ backend = "upstream", model = "{model}" }}], cache = {{ {told} }} }}'


class Houses:
    """Gateways before one upstream."""

    def __init__(self, upstream: EchoTriton, stack: AsyncExitStack) -> None:
        self.upstream, self._stack = upstream, stack

    async def house(self, route: str, **more: str) -> House:
        """One that uses its second level."""
        found = await self.unready(route, **more)
        await until(lambda: level(found).turn is not None)
        return found

    async def unready(self, route: str, **more: str) -> House:
        environ = {"BACKENDS__UPSTREAM__PROBE": "100ms", "ROUTES__R": route} | more
        return await self._stack.enter_async_context(opened([self.upstream.url], edge=True, **environ))


@pytest.fixture
async def houses(triton_echo: EchoTriton) -> AsyncIterator[Houses]:
    async with AsyncExitStack() as stack:
        yield Houses(triton_echo, stack)


def level(house: House) -> SecondLevel:
    found = house.gateway.routes["r"].second
    assert found is not None
    return found


async def ask(house: House, asked: Ask = ASK) -> Outcome:
    outcome = await house.caller("http-binary").ask(asked)
    assert outcome.problem == ""
    assert outcome.values == doubled(asked.rows)
    return outcome


async def written(house: House) -> None:
    await level(house).behind.drain(10.0)
    assert level(house).behind.outcomes["failed"] == 0


def told(outcome: Outcome) -> tuple[str, str]:
    return outcome.cache, outcome.reason


async def test_what_one_was_answered_is_a_hit_by_the_other(houses: Houses, redis: RedisServer) -> None:
    one, other = await houses.house(route(redis)), await houses.house(route(redis))
    assert told(await ask(one)) == ("miss", "absent")
    await written(one)
    outcome = await ask(other)
    assert told(outcome) == ("hit", "second")
    assert outcome.aged
    assert outcome.tier == MODEL
    assert [told(await ask(other)) for _ in range(3)] == [("hit", "fresh")] * 3
    assert houses.upstream.asked == 1
    assert level(other).counts["hit"] == 1
    assert level(one).counts["write_written"] == 1


@pytest.mark.parametrize("name", ALL)
async def test_every_door_has_it(houses: Houses, redis: RedisServer, name: str) -> None:
    one, other = await houses.house(route(redis)), await houses.house(route(redis))
    await ask(one)
    await written(one)
    outcome = await other.caller(name).ask(ASK)
    assert (outcome.values, *told(outcome), outcome.aged) == (doubled(ASK.rows), "hit", "second", True)


async def test_many_who_ask_at_once_look_once(houses: Houses, redis: RedisServer) -> None:
    one, other = await houses.house(route(redis)), await houses.house(route(redis))
    await ask(one)
    await written(one)
    outcomes = await asyncio.gather(*(ask(other) for _ in range(20)))
    assert {each.cache for each in outcomes} == {"hit"}
    assert level(other).counts["hit"] == 1
    assert houses.upstream.asked == 1


async def test_a_gateway_that_comes_back_finds_what_it_was_answered(houses: Houses, redis: RedisServer) -> None:
    one = await houses.house(route(redis))
    await ask(one)
    await one.stop()  # what waited is written before the end
    assert told(await ask(await houses.house(route(redis)))) == ("hit", "second")
    assert houses.upstream.asked == 1


async def test_rows_of_others_are_known_rows(houses: Houses, redis: RedisServer) -> None:
    text = route(redis, "k", rows="true")
    one, other = await houses.house(text), await houses.house(text)
    rows = [(float(n), n / 2) for n in range(8)]
    await ask(one, replace(ASK, rows=tuple(rows[:4])))
    await written(one)
    with redis.client() as client:
        client.config_resetstat()
        outcome = await ask(other, replace(ASK, rows=(rows[3], rows[0], rows[3])))
        calls = client.info("commandstats")
    assert told(outcome) == ("hit", "second")
    assert houses.upstream.asked == 1
    assert "cmdstat_exists" not in calls  # nothing is asked twice
    assert level(other).counts["hit"] == 2  # distinct rows, by one question
    outcome = await ask(other, replace(ASK, rows=(rows[1], rows[5], rows[0])))
    assert told(outcome) == ("miss", "partial")
    assert houses.upstream.asked == 2
    await written(other)
    assert told(await ask(one, replace(ASK, rows=(rows[5],)))) == ("hit", "second")
    assert told(await ask(one, replace(ASK, rows=tuple(rows[:4])))) == ("hit", "fresh")


async def test_of_very_many_rows_it_is_not_looked_for_the_last(
    houses: Houses, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second, "ROWS_ASKED_MAX", 3)
    text = route(redis, "k", rows="true")
    one, other = await houses.house(text), await houses.house(text)
    asked = replace(ASK, rows=tuple([(float(n), n / 2) for n in range(5)]))
    await ask(one, asked)
    await written(one)
    assert (level(one).counts["miss"], level(one).counts["write_written"]) == (5, 5)
    assert told(await ask(other, asked)) == ("miss", "partial")
    assert (level(other).counts["hit"], level(other).counts["miss"]) == (3, 2)


async def test_tenants_are_apart(houses: Houses, redis: RedisServer) -> None:
    callers = {
        f"CALLERS__{name}": f'{{ key_sha256 = "{hashlib.sha256(name.encode()).hexdigest()}", tenant = "{name}" }}'
        for name in ("A", "B")
    }
    one, other = await houses.house(route(redis), **callers), await houses.house(route(redis), **callers)
    assert told(await ask(one, replace(ASK, key="A"))) == ("miss", "absent")
    await written(one)
    assert told(await ask(other, replace(ASK, key="B"))) == ("miss", "absent")
    assert told(await ask(other)) == ("miss", "absent")
    assert told(await ask(other, replace(ASK, key="A"))) == ("hit", "second")


@pytest.mark.parametrize("changed", ["1m", "another model", "another route"])
async def test_another_configuration_has_nothing_of_it(houses: Houses, redis: RedisServer, changed: str) -> None:
    one = await houses.house(route(redis))
    await ask(one)
    await written(one)
    match changed:
        case "1m":
            other = await houses.house(route(redis).replace("1h", "1m"))
        case "another model":
            other = await houses.house(route(redis, "k"))
        case _:
            other = await houses.house(route(redis), ROUTES__S=route(redis))
            outcome = await ask(other, replace(ASK, route="s"))
            assert told(outcome) == ("miss", "absent")
            return
    assert told(await ask(other)) == ("miss", "absent")


async def test_what_is_this_process_own_business_changes_nothing(houses: Houses, redis: RedisServer) -> None:
    one = await houses.house(route(redis))
    await ask(one)
    await written(one)
    text = route(redis, bytes_max='"2MiB"', policy='"lru"', max_stale='"1h"')
    text = text.replace("cache =", 'timeout = "3s", cache =')
    assert told(await ask(await houses.house(text))) == ("hit", "second")


@pytest.mark.parametrize("directive", ["no-cache", "no-store", "max-age=3600"])
async def test_who_wants_nothing_of_the_past_gets_nothing_of_it(
    houses: Houses, redis: RedisServer, directive: str
) -> None:
    one, other = await houses.house(route(redis)), await houses.house(route(redis))
    await ask(one)
    await written(one)
    assert (await ask(other, replace(ASK, cache_control=directive))).cache in ("miss", "bypass")
    assert houses.upstream.asked == 2


async def test_who_does_not_want_it_stored_leaves_nothing(houses: Houses, redis: RedisServer) -> None:
    one, other = await houses.house(route(redis)), await houses.house(route(redis))
    await ask(one, replace(ASK, cache_control="no-store"))
    await written(one)
    assert told(await ask(other)) == ("miss", "absent")


async def test_whatever_byte_breaks_it_is_a_miss(houses: Houses, redis: RedisServer) -> None:
    one, other = await houses.house(route(redis)), await houses.house(route(redis))
    await ask(one)
    await written(one)
    with redis.client() as client:
        (key,) = [key for key in client.keys("tailrace:*") if not key.endswith((b":turn", b":watch"))]
        whole = client.get(key)
        assert isinstance(whole, bytes)
        turn, digest = level(other).turn, _digest(one)
        assert turn is not None
        for at in range(len(whole)):
            client.set(key, whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
            assert await level(other).answer(turn, digest, _any) is None
        assert level(other).counts["broken"] == len(whole)
        for held in (b"", whole[:OVERHEAD_BYTES], whole + b"x", random.Random(1).randbytes(99)):
            client.set(key, held)
            assert await level(other).answer(turn, digest, _any) is None
        client.delete(key)
        client.lpush(key, "another type")
        assert await level(other).answer(turn, digest, _any) is None
        assert told(await ask(other)) == ("miss", "absent")
    assert houses.upstream.asked == 2


def _any(_: object) -> bool:
    return True


Told = list[Any]
"""What a parcel holds, as MessagePack tells it."""


def _of_answer(place: int, value: object) -> Callable[[Told], None]:
    """[made_at, tier, rows, escalated, batch, version, parameters, [[name, datatype, shape, data, parameters]]]"""
    return lambda told: told.__setitem__(place, value)


def _of_output(place: int, value: object) -> Callable[[Told], None]:
    return lambda told: told[7][0].__setitem__(place, value)


def _twice(told: Told) -> None:
    told[7] = told[7] * 2


FORGED: Mapping[str, Callable[[Told], None]] = {
    "tier": _of_answer(1, "other"),
    "rows": _of_answer(2, 3),
    "no rows": _of_answer(2, -1),
    "escalated": _of_answer(3, 9),
    "batch": _of_answer(4, 3),
    "no batch": _of_answer(4, None),
    "no outputs": _of_answer(7, []),
    "output twice": _twice,
    "name": _of_output(0, "z"),
    "datatype": _of_output(1, "INT32"),
    "no datatype": _of_output(1, "FP33"),
    "text": _of_output(1, "BYTES"),
    "rank": _of_output(2, [2, 2, 1]),
    "width": _of_output(2, [2, 1]),
    "other rows": _of_output(2, [1, 4]),
    "below zero": _of_output(2, [-2, -2]),
    "bytes": _of_output(3, b"12345678"),
}


async def _come_to_nothing(
    houses: Houses, redis: RedisServer, text: str, forgeries: Mapping[str, Callable[[Told], None]]
) -> None:
    """Each of these, whole and under its right key, is a miss and counted; what is only written anew is a hit."""
    one, other = await houses.house(text), await houses.house(text)
    parts = 2 if "rows" in text else 1
    done: set[bytes] = set()
    for number, (name, forge) in enumerate({"nothing": lambda _: None, **forgeries}.items()):
        asked = replace(ASK, rows=((float(number), 2.0), (float(number), 4.0)))
        await ask(one, asked)
        await written(one)
        with redis.client() as client:
            keys = {key for key in client.keys("tailrace:*") if not key.endswith((b":turn", b":watch"))} - done
            assert len(keys) == parts
            done |= keys
            for key in keys:
                value = unsealed(key, client.get(key), second.VALUE_BYTES_MAX)
                assert value is not None
                content = msgspec.msgpack.decode(value)
                forge(content)
                client.set(key, sealed(key, msgspec.msgpack.encode(content)))
        assert told(await ask(other, asked)) == (("miss", "absent") if number else ("hit", "second")), name
        assert level(other).counts["corrupt"] == number * parts, name
        await written(other)
    assert level(other).counts["hit"] == parts
    assert houses.upstream.asked == 1 + 2 * len(forgeries)


def _of_made(place: int, value: object) -> Callable[[Told], None]:
    """[[[name, datatype, shape]], [parameters], parameters, tier, version, position]"""

    def forge(told: Told) -> None:
        made = msgspec.msgpack.decode(told[1])
        made[place] = value
        told[1] = msgspec.msgpack.encode(made)

    return forge


FORGED_ROWS: Mapping[str, Callable[[Told], None]] = {
    "name": _of_made(0, [["z", "FP32", [2]]]),
    "datatype": _of_made(0, [["y", "INT32", [2]]]),
    "text": _of_made(0, [["y", "BYTES", [2]]]),
    "no datatype": _of_made(0, [["y", "FP33", [2]]]),
    "width": _of_made(0, [["y", "FP32", [1]]]),
    "rank": _of_made(0, [["y", "FP32", [2, 1]]]),
    "below zero": _of_made(0, [["y", "FP32", [-2]]]),
    "no tensors": _of_made(0, []),
    "no parameters": _of_made(1, []),
    "tier": _of_made(3, "other"),
    "position": _of_made(5, 1),
    "bytes": lambda told: told.__setitem__(2, told[2] + b"1234"),
    "no bytes": lambda told: told.__setitem__(2, b""),
}


async def test_answers_that_do_not_fit_the_model_are_missing(houses: Houses, redis: RedisServer) -> None:
    await _come_to_nothing(houses, redis, route(redis, "k"), FORGED)


async def test_rows_that_do_not_fit_the_model_are_missing(houses: Houses, redis: RedisServer) -> None:
    await _come_to_nothing(houses, redis, route(redis, "k", rows="true"), FORGED_ROWS)


def _digest(house: House) -> bytes:
    """Of the only answer there is."""
    cache = house.gateway.routes["r"].cache
    assert cache is not None
    (digest,) = cache._entries._nodes
    return digest


async def test_a_purge_by_one_is_a_purge_for_all(houses: Houses, redis: RedisServer) -> None:
    one, other = await houses.house(route(redis)), await houses.house(route(redis))
    third = await houses.house(route(redis))
    await ask(one)
    await written(one)
    await other.purge("r")
    before = level(third).turn
    await until(lambda: level(third).turn not in (before, None))
    assert told(await ask(other)) == ("miss", "absent")
    assert told(await ask(third)) != ("hit", "fresh")
    assert houses.upstream.asked >= 2


async def test_a_purge_that_others_cannot_be_told_of_says_so(
    houses: Houses, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "SETTLED_SECONDS_MAX", 0.2)
    one = await houses.house(route(own_redis))
    await ask(one)
    before = level(one).turn
    own_redis.pause()
    async with aiohttp.ClientSession() as session, session.post(f"{one.admin}/purge?route=r") as answer:
        assert answer.status == 503
        assert "second" in (await answer.json())["detail"]
    assert level(one).turn is None
    own_redis.resume()
    await until(lambda: level(one).turn not in (before, None))


@pytest.mark.parametrize("how", ["pause", "kill"])
async def test_a_store_that_hangs_costs_its_time_once_and_then_nothing(
    houses: Houses, own_redis: RedisServer, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await houses.house(route(own_redis))
    await ask(one)
    await written(one)
    monkeypatch.setattr(level(one).witness, "round", _nothing)
    getattr(own_redis, how)()
    started = time.monotonic()
    asked = [replace(ASK, rows=((float(n), 0.5),)) for n in range(40)]
    assert told(await ask(one, asked[0])) == ("miss", "absent")
    assert time.monotonic() - started < TIMEOUT + LATE
    failed = level(one).counts["failed"]
    assert failed >= 1
    for each in asked[1:]:
        if level(one).turn is None:
            break  # not believed any more: not even tried
        assert told(await ask(one, each)) == ("miss", "absent")
    assert one.gateway._stores.states()[own_redis.address + "/0"] != "closed"
    assert told(await ask(one)) == ("hit", "fresh")


async def _nothing() -> None:
    """A round that does not find out first that the store is ill."""


async def test_a_store_that_is_back_is_used_again(
    houses: Houses, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = await houses.house(route(own_redis)), await houses.house(route(own_redis))
    monkeypatch.setattr(witness, "BELIEVED_SECONDS", 1.0)
    own_redis.kill()
    await until(lambda: level(one).turn is None and level(other).turn is None)
    assert told(await ask(one)) == ("miss", "absent")
    own_redis.start()
    await until(lambda: level(one).turn is not None and level(one).turn == level(other).turn)
    monkeypatch.setattr(witness, "BELIEVED_SECONDS", 20.0)
    await ask(one, asked := replace(ASK, rows=((7.0, 7.0),)))
    await written(one)
    assert told(await ask(other, asked)) == ("hit", "second")


async def test_a_gateway_begins_without_its_store(houses: Houses, own_redis: RedisServer) -> None:
    own_redis.kill()
    one = await houses.unready(route(own_redis))
    assert told(await ask(one)) == ("miss", "absent")
    assert told(await ask(one)) == ("hit", "fresh")
    await until(lambda: level(one).state == "unreachable")


async def test_a_turn_of_the_epoch_ends_what_is_shared(houses: Houses, redis: RedisServer) -> None:
    one, other = await houses.house(route(redis)), await houses.house(route(redis))
    await ask(one)
    await written(one)
    before = level(other).turn
    other.gateway.routes["r"].turn()
    assert level(other).turn is None
    assert told(await ask(other)) == ("miss", "absent")
    await until(lambda: level(one).turn == level(other).turn not in (before, None))
    third = await houses.house(route(redis))
    assert level(third).turn == level(one).turn
    assert houses.upstream.asked == 2


async def test_what_was_asked_for_before_the_turn_is_not_left_after_it(houses: Houses, redis: RedisServer) -> None:
    one, other = await houses.house(route(redis)), await houses.house(route(redis))
    houses.upstream.gate.clear()
    asking = asyncio.create_task(ask(one))
    await until(lambda: houses.upstream.asked == 1)
    before = level(one).turn
    one.gateway.routes["r"].turn()
    await until(lambda: level(one).turn not in (before, None))
    houses.upstream.gate.set()
    await asking
    await written(one)
    assert level(one).counts["write_written"] == 0
    await until(lambda: level(one).turn == level(other).turn)
    assert told(await ask(other)) == ("miss", "absent")


async def test_what_is_found_as_the_turn_ends_is_not_used(houses: Houses, redis: RedisServer) -> None:
    one, other = await houses.house(route(redis)), await houses.house(route(redis))
    await ask(one)
    await written(one)
    found, turn = level(other), level(other).turn
    assert turn is not None
    assert await found.answer(turn, _digest(one), _any) is not None
    store = found._store
    asked = store.get_many

    async def ending(keys: Sequence[bytes], seconds: float) -> list[Found]:
        held = await asked(keys, seconds)
        found.end_turn()  # a model has changed while the store was asked
        return held

    store.get_many = ending  # type: ignore[method-assign]
    assert await found.answer(turn, _digest(one), _any) is None
    assert (found.counts["hit"], found.counts["miss"]) == (1, 1)


async def test_writes_wait_within_their_bound(
    houses: Houses, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "BehindOptions", lambda: BehindOptions(entries_max=3, seconds=20.0))
    one = await houses.house(route(own_redis))
    monkeypatch.setattr(level(one), "answer", _nothing_there)
    own_redis.pause()
    for n in range(12):
        assert (await ask(one, replace(ASK, rows=((float(n), 0.5),)))).cache == "miss"
        assert level(one).waiting <= 3
    assert level(one).counts["write_dropped"] > 0
    own_redis.resume()
    await level(one).behind.drain(10.0)
    outcomes = level(one).behind.outcomes
    assert outcomes["written"] + outcomes["failed"] + outcomes["dropped"] == 12


async def _nothing_there(turn: bytes, digest: bytes, fits: object) -> None: ...


async def test_an_answer_is_as_old_as_it_is(
    houses: Houses, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = await houses.house(route(redis)), await houses.house(route(redis))
    await ask(one)
    await written(one)
    turn, digest, (wall, ticker) = level(other).turn, _digest(one), (time.time, time.monotonic)
    assert turn is not None
    for ahead, there in ((1800.0, True), (3590.0, True), (3602.0, False), (-4.0, True), (-60.0, False)):
        clocks = replace(level(other)._clocks, wall=lambda ahead=ahead: wall() + ahead)  # type: ignore[misc]
        monkeypatch.setattr(level(other), "_clocks", clocks)
        found = await level(other).answer(turn, digest, _any)
        assert (found is not None) == there, ahead
        if found is not None:
            assert max(0.0, ahead) - 1 <= ticker() - found[1] <= max(0.0, ahead) + LATE


async def test_a_reload_goes_on_with_it_unless_others_might_be_given(
    houses: Houses, triton_echo: EchoTriton, redis: RedisServer
) -> None:
    one = await houses.house(route(redis))
    await ask(one)
    await written(one)
    before = level(one)

    async def reload(text: str) -> None:
        environ = LISTENERS | {"TAILRACE_BACKENDS__UPSTREAM__PROBE": "100ms", "TAILRACE_ROUTES__R": text}
        await one.gateway.take(load(None, environ, [triton_echo.url]))

    await reload(route(redis).replace("cache =", 'quota = { rate = 1000000, per = "1h" }, cache ='))
    assert level(one) is before
    assert before.turn is not None
    assert told(await ask(one)) == ("hit", "fresh")
    await asyncio.gather(*one.gateway._retiring_routes)  # it ended the level that its successor goes on with
    one.gateway.routes["r"].forget()
    assert told(await ask(one)) == ("hit", "second")
    assert not any(task.done() for task in before._tasks)
    await reload(route(redis, policy='"lru"'))
    assert level(one) is not before
    await until(lambda: level(one).turn is not None)
    assert told(await ask(one)) == ("hit", "second")
    await reload(route(redis).replace("1h", "2h"))
    await until(lambda: level(one).turn is not None)
    assert told(await ask(one)) == ("miss", "absent")
    await reload(f'{{ tiers = [{{ backend = "upstream", model = "{MODEL}" }}], cache = {{ ttl = "1h" }} }}')
    assert one.gateway.routes["r"].second is None
    assert told(await ask(one)) == ("miss", "absent")


async def test_the_check_asks_it(triton_echo: EchoTriton, own_redis: RedisServer) -> None:
    environ = {"TAILRACE_ROUTES__R": route(own_redis)}
    config = load(None, environ, [triton_echo.url])
    assert await sharing.faults(config, 5.0) == []
    own_redis.kill()
    (fault,) = await sharing.faults(config, 5.0)
    assert fault.startswith(where := "routes.r.cache.second: unreachable: ")
    assert any(each.startswith(where) for each in (await findings(config)).faults)


async def test_metrics_tell_of_it(houses: Houses, redis: RedisServer) -> None:
    one, other = await houses.house(route(redis)), await houses.house(route(redis))
    await ask(one)
    await written(one)
    await ask(other)
    text = other.gateway.telemetry.exposition().decode()
    for line in (
        'tailrace_second_total{outcome="hit",route="r"} 1.0',
        'tailrace_second_used{route="r"} 1.0',
        f'tailrace_second_store_state{{store="{redis.address}/0"}} 0.0',
        'tailrace_answers_total{cache="hit",reason="second",route="r"} 1.0',
    ):
        assert line in text


async def test_a_purge_outlives_a_reload_though_the_store_has_not_taken_it() -> None:
    """A route whose backend is replaced is another one, with a watch of its own over the same word."""
    stores = Stores(real())
    cache = CacheConfig(Seconds.parse("1m"), second="redis://127.0.0.1:1/0")
    config = RouteConfig(tiers=(TierConfig("b", "m"),), cache=cache)
    whole = Config(backends={"b": Backend(http=("http://127.0.0.1:1",))}, routes={"r": config})

    def reloaded() -> Route:
        made = Route("r", config, [Home(None, None)], 2**20)  # type: ignore[arg-type]  # nobody is asked
        stores.share(made, whole)
        return made

    lives = [reloaded(), reloaded()]
    assert all(each.second is not None and each.second.is_settled for each in lives)
    assert lives[1].second is not None
    lives[1].second.end_turn()
    lives.append(reloaded())
    assert lives[2].second is not None
    assert not await lives[2].second.settled(0.0)
    await stores.close()
