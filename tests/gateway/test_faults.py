"""Faults on purpose: each is what the real one is, a seed repeats them, and they end by themselves."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from cache.stores.store import KINDS, Found, StoreError
from degrade.deadline import Deadline
from degrade.ladder import Failure
from gateway.config import Config
from gateway.config_snapshot import SnapshotConfig
from gateway.operate.faults import GARBAGE, NAN, SECONDS_MAX, BadOrder, Faults, Order, Rule
from gateway.reload import fixed
from gateway.snapshots import Snapshots
from gateway.sources import ConfigError, load
from gateway.surroundings import real
from tiers.inference import InferRequest, InferResponse, Tensor, UpstreamError

GPU, USER = "backends.gpu", "tables.user"
REQUEST = InferRequest("m", ())


class World:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def ticker(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


class Server:
    """A replica that answers at once."""

    url = "http://gpu"

    def __init__(self, *outputs: Tensor) -> None:
        self.answer = InferResponse("m", "1", outputs or (Tensor("y", "FP32", (1,), b"\0\0\x80\x3f"),))
        self.asked: list[float] = []

    async def infer(self, request: InferRequest, deadline: Deadline, now: float) -> InferResponse:
        self.asked.append(now)
        return self.answer


class Memory:
    """A store that has everything."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.seconds = 0.0

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        self.seconds = seconds
        self.calls["get"] += 1
        return [None if key == b"none" else b"a value, long enough" for key in keys]

    async def put_many(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        self.calls["put"] += 1

    async def delete_many(self, keys: Sequence[bytes], seconds: float) -> None:
        self.calls["delete"] += 1

    async def healthy(self, seconds: float) -> bool:
        return True

    async def close(self) -> None:
        self.calls["close"] += 1


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def faults(world: World) -> Faults:
    made = Faults(world.ticker, world.sleep)
    made.replica("gpu", Server())  # type: ignore[arg-type]  # what is asked of it here it has
    made.store(USER, Memory())
    return made




async def infer(faults: Faults, world: World, server: Server, seconds: float = 2.0) -> InferResponse:
    replica = faults.replica("gpu", server)  # type: ignore[arg-type]
    return await replica.infer(REQUEST, Deadline(world.now + seconds), world.now)


async def test_nothing_is_ordered_and_nothing_happens(faults: Faults, world: World) -> None:
    server = Server()
    assert await infer(faults, world, server) is server.answer
    assert (server.asked, world.now, faults.rules, dict(faults.met)) == ([0.0], 0.0, {}, {})


@pytest.mark.parametrize("failure", list(Failure))
async def test_a_backend_fails_in_every_way(faults: Faults, world: World, failure: Failure) -> None:
    faults.take(Order({GPU: Rule(error=failure.value)}))
    server = Server()
    with pytest.raises(UpstreamError) as caught:
        await infer(faults, world, server)
    assert caught.value.failure is failure
    assert not server.asked
    assert world.now == (2.0 if failure is Failure.TIMEOUT else 0.0)


async def test_latency_takes_of_the_deadline(faults: Faults, world: World) -> None:
    faults.take(Order({GPU: Rule(latency=1.5)}))
    server = Server()
    assert await infer(faults, world, server) is server.answer
    assert server.asked == [1.5]
    with pytest.raises(UpstreamError) as caught:
        await infer(faults, world, server, 1.0)
    assert (caught.value.failure, world.now) == (Failure.TIMEOUT, 2.5)


@pytest.mark.parametrize(("datatype", "code"), [("FP16", "e"), ("FP32", "f"), ("FP64", "d")])
async def test_corrupt_numbers_are_nan_and_nothing_else_changes(
    faults: Faults, world: World, datatype: str, code: str
) -> None:
    faults.take(Order({GPU: Rule(corrupt=True)}))
    size = len(NAN[datatype])
    floats, whole = Tensor("y", datatype, (3,), b"\0" * 3 * size), Tensor("n", "INT64", (1,), b"\1" * 8)
    found = await infer(faults, world, Server(floats, whole))
    assert found.outputs[1] == whole
    assert all(math.isnan(each) for each in struct.unpack(f"<3{code}", found.outputs[0].data))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_store_fails_in_every_way(faults: Faults, world: World, kind: str) -> None:
    faults.take(Order({USER: Rule(error=kind)}))
    memory = Memory()
    store = faults.store(USER, memory)
    for call in (store.get_many([b"k"], 0.5), store.put_many([], None, 0.5), store.delete_many([], 0.5)):
        before = world.now
        with pytest.raises(StoreError) as caught:
            await call
        assert caught.value.kind == kind
        assert world.now - before == (0.5 if kind == "timeout" else 0.0)
    assert not await store.healthy(0.5)
    assert not memory.calls


async def test_a_stores_values_begin_with_garbage_and_what_is_not_there_is_not(faults: Faults) -> None:
    faults.take(Order({USER: Rule(corrupt=True)}))
    found = await faults.store(USER, Memory()).get_many([b"k", b"none"], 1.0)
    assert found == [GARBAGE + b" long enough", None]


async def test_a_slow_store_has_the_rest_of_the_time_and_never_more(faults: Faults, world: World) -> None:
    faults.take(Order({USER: Rule(latency=0.2)}))
    memory = Memory()
    store = faults.store(USER, memory)
    await store.get_many([b"k"], 0.5)
    assert memory.seconds == pytest.approx(0.3)
    with pytest.raises(StoreError, match="timeout"):
        await store.get_many([b"k"], 0.1)
    assert world.now == pytest.approx(0.3)


async def drawn(faults: Faults, seed: int) -> list[bool]:
    faults.take(Order({USER: Rule(share=0.5, error="full")}, seed=seed))
    return [faults.rule(USER) is not None for _ in range(200)]


async def test_a_seed_repeats_and_a_share_is_a_share(faults: Faults) -> None:
    assert await drawn(faults, 1) == await drawn(faults, 1) != await drawn(faults, 2)
    assert 60 < sum(await drawn(faults, 3)) < 140
    assert faults.rule(GPU) is None


async def test_it_ends_by_itself_and_an_empty_order_ends_it_at_once(faults: Faults, world: World) -> None:
    faults.take(Order({GPU: Rule(error="broken")}, seconds=5.0))
    world.now = 4.9
    assert faults.rule(GPU) is not None
    assert faults.met["backends.gpu error"] == 1
    world.now = 5.0
    assert faults.rule(GPU) is None
    faults.take(Order({GPU: Rule(error="broken")}))
    faults.take(Order())
    assert faults.rule(GPU) is None


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (Order({"backends.other": Rule()}), "there is no backends.other; there is backends.gpu, tables.user"),
        (Order({GPU: Rule(error="full")}), "cannot fail as 'full'"),
        (Order({USER: Rule(error="broken")}), "cannot fail as 'broken'"),
        (Order({GPU: Rule(share=0.0)}), "share"),
        (Order({GPU: Rule(share=1.1)}), "share"),
        (Order({GPU: Rule(latency=-1.0)}), "latency"),
        (Order({GPU: Rule(latency=math.nan)}), "latency"),
        (Order(seconds=SECONDS_MAX + 1), "seconds"),
        (Order(seconds=0.0), "seconds"),
        (Order(stall=60.0), "stall"),
        (Order(clock=-3601.0), "clock"),
        (Order(clock=math.nan), "clock"),
        (Order({"snapshot": Rule(error="full")}), "there is no snapshot"),
    ],
)
def test_an_order_that_cannot_be_followed_changes_nothing(faults: Faults, order: Order, said: str) -> None:
    held = Order({GPU: Rule(error="broken")})
    faults.take(held)
    with pytest.raises(BadOrder, match=said):
        faults.take(order)
    assert faults.rules == held.faults


def test_the_wall_clock_is_wrong_until_the_order_ends() -> None:
    world = World()
    faults = Faults(world.ticker, world.sleep)
    wall = faults.wall(lambda: 1000.0 + world.now)
    assert wall() == 1000.0
    faults.take(Order(clock=-600.0, seconds=5.0))
    world.now = 4.0
    assert wall() == 404.0
    world.now = 5.0
    assert wall() == 1005.0


async def test_the_disk_of_the_copies_fails_and_spoils_as_it_is_told(tmp_path: Path) -> None:
    world = World()
    faults = Faults(world.ticker, world.sleep)
    around = msgspec.structs.replace(real(), ticker=world.ticker)
    made = Snapshots(SnapshotConfig(str(tmp_path / "snapshot")), around, faults.disk())
    await made.open()
    faults.take(Order({"snapshot": Rule(error="full", latency=0.25)}, seconds=60.0))
    assert await made.copy(world.sleep) == "full"
    assert (world.now, made.snapshot.failures["full"], made.snapshot.written_at > 0) == (0.25, 1, False)
    faults.take(Order())
    assert await made.copy(world.sleep) == "written"
    await made.close(0.0)
    assert [Rule(corrupt=corrupt).spoilt(b"0123456789") for corrupt in (False, True)] == [
        b"0123456789",
        GARBAGE + b"89",
    ]


def test_an_order_is_json_without_unknown_words() -> None:
    written = json.dumps({"faults": {GPU: {"error": "broken", "share": 0.5}}, "seconds": 5, "seed": 9})
    assert msgspec.json.decode(written, type=Order) == Order({GPU: Rule(0.5, error="broken")}, 5.0, 9)
    with pytest.raises(msgspec.ValidationError, match="sheed"):
        msgspec.json.decode(b'{"sheed": 1}', type=Order)


# -- the configuration ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("admin", ["0.0.0.0:9090", "10.0.0.1:0", "gateway.example:9090"])
def test_it_is_refused_where_others_reach_the_admin_port(admin: str) -> None:
    environ = {"TAILRACE_SERVER__ADMIN": admin}
    load(None, environ, ["http://a:8000"])
    with pytest.raises(ConfigError, match="whoever reaches"):
        load(None, environ | {"TAILRACE_CHAOS__ENABLED": "true"}, ["http://a:8000"])


@pytest.mark.parametrize("admin", ["127.0.0.1:0", "[::1]:9090", "unix:/run/admin.sock", "localhost:9090"])
def test_it_is_allowed_where_only_this_host_does(admin: str) -> None:
    environ = {"TAILRACE_SERVER__ADMIN": admin, "TAILRACE_CHAOS__ENABLED": "true"}
    assert load(None, environ, ["http://a:8000"]).chaos.enabled
    assert not Config().chaos.enabled


def test_it_takes_a_restart() -> None:
    enabled = msgspec.structs.replace(Config(), chaos=msgspec.structs.replace(Config().chaos, enabled=True))
    (said,) = fixed(Config(), enabled)
    assert said.startswith("chaos.enabled: false is now true, ")
