"""Redis servers as they are found in the field: a master behind Sentinels, a cluster, one that reads its data in, one
far away. Real servers, and a way to one on which answers take their time.

Rule of this file: it starts servers and ends what it started; what is done to them is a test's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from redis import Redis
from redis.crc import key_slot

from cache.stores.servers import SLOTS
from examples.ports import Held
from examples.redisserver import RedisServer

K = TypeVar("K", str, bytes)

SERVICE = "features"
READY_SECONDS = 20.0
LOADED_KEYS = 200_000
"""So many make reading them in last as long as a test wants it to."""


class Watched:
    """A master, its replica, and three Sentinels."""

    def __init__(self, master: RedisServer, replica: RedisServer, sentinels: list[RedisServer]) -> None:
        self.servers = {master.port: master, replica.port: replica}
        self.sentinels = sentinels

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(each.address for each in self.sentinels)}/{SERVICE}/0"

    @property
    def master(self) -> RedisServer:
        """The one that the first Sentinel calls so."""
        return self._named_by(self.sentinels[0])

    def all_call(self, server: RedisServer) -> bool:
        """Whether every Sentinel calls this one the master. One decides a failover; the others hear of it."""
        return all(self._named_by(each) is server for each in self.sentinels)

    def _named_by(self, sentinel: RedisServer) -> RedisServer:
        with sentinel.client() as client:
            _, port = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return self.servers[int(port)]


@contextlib.contextmanager
def watching() -> Iterator[Watched]:
    """Servers that know each other."""
    with contextlib.ExitStack() as stack:
        master = stack.enter_context(RedisServer())
        settings = [f"replicaof {master.host} {master.port}", "repl-diskless-sync-delay 0"]
        replica = stack.enter_context(RedisServer(settings))
        settings = [
            f"sentinel monitor {SERVICE} {master.host} {master.port} 2",
            f"sentinel down-after-milliseconds {SERVICE} 500",
            f"sentinel failover-timeout {SERVICE} 3000",
        ]
        sentinels = [stack.enter_context(RedisServer(settings, ["--sentinel"])) for _ in range(3)]

        def ready() -> bool:
            with sentinels[0].client() as client:
                told = client.execute_command("SENTINEL", "CKQUORUM", SERVICE) if knows_all() else b""
            return str(told).find("OK 3") >= 0

        def knows_all() -> bool:
            for each in sentinels:
                with each.client() as client:
                    (state,) = client.execute_command("SENTINEL", "MASTERS")
                told = state if isinstance(state, dict) else dict(zip(state[::2], state[1::2], strict=True))
                plain = {text(key): text(value) for key, value in told.items()}
                if plain["num-other-sentinels"] != "2" or plain["num-slaves"] != "1":
                    return False
            return True

        _until(ready, "Sentinels that know each other and the replica")
        yield Watched(master, replica, sentinels)
        for each in (master, replica, *sentinels):
            each.resume()  # one that a test has paused does not end


class Nodes:
    """Three masters, each with a third of the slots; when one is gone the others go on."""

    def __init__(self, servers: list[RedisServer]) -> None:
        self.servers = servers
        self.moved: dict[int, int] = {}

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(each.address for each in self.servers[:2])

    def owner(self, slot: int) -> int:
        """Who has it; a test that moves one says so in ``moved``."""
        return self.moved.get(slot, min(slot * 3 // SLOTS, 2))

    def keys_of(self, index: int, keys: Sequence[K]) -> list[K]:
        return [key for key in keys if self.owner(key_slot(key if isinstance(key, bytes) else key.encode())) == index]


    def write(self, values: Mapping[str, bytes]) -> None:
        """To where each belongs, on its way there too. Raises RedisError."""
        for index, server in enumerate(self.servers):
            with server.client() as client, client.pipeline(transaction=False) as pipeline:
                for key in self.keys_of(index, list(values)):
                    pipeline.execute_command("ASKING")
                    pipeline.set(key, values[key])
                pipeline.execute()


@contextlib.contextmanager
def clustering() -> Iterator[Nodes]:
    """Nodes that know each other, and whose all slots are."""
    with contextlib.ExitStack() as stack:
        servers: list[RedisServer] = []
        buses = stack.enter_context(Held(3)).numbers
        for bus in buses:
            servers.append(stack.enter_context(RedisServer(_of_cluster(bus))))
        made = Nodes(servers)
        for index, server in enumerate(servers):
            with server.client() as client:
                own = [slot for slot in range(SLOTS) if made.owner(slot) == index]
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", own[0], own[-1])
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
                for other, bus in zip(servers[:index], buses, strict=False):
                    client.execute_command("CLUSTER", "MEET", other.host, other.port, bus)

        def joined() -> bool:
            told = []
            for server in servers:
                with server.client() as client:
                    state = text(client.execute_command("CLUSTER INFO"))
                    told.append("cluster_state:ok" in state and _slots_known(client) == SLOTS)
            return all(told)

        _until(joined, "nodes that know each other")
        yield made
        for each in servers:
            each.resume()


@contextlib.contextmanager
def joining(nodes: Nodes) -> Iterator[RedisServer]:
    """One more node, whom all know and who has no slot yet."""
    with Held() as bus_of_it, RedisServer(_of_cluster(*bus_of_it.numbers)) as server, contextlib.ExitStack() as stack:
        first, *others = [stack.enter_context(each.client()) for each in (*nodes.servers, server)]
        bus = first.config_get("cluster-port")["cluster-port"]
        others[-1].execute_command("CLUSTER", "MEET", nodes.servers[0].host, nodes.servers[0].port, int(bus))

        def joined() -> bool:
            told = [text(each.execute_command("CLUSTER INFO")) for each in (first, *others)]
            return all("cluster_state:ok" in each and "cluster_known_nodes:4" in each for each in told)

        _until(joined, "a node that joins")
        yield server


def _of_cluster(bus: int) -> list[str]:
    """A node's settings. The name of its file is its own: each server has a folder."""
    return [
        "cluster-enabled yes",
        "cluster-config-file nodes.conf",
        f"cluster-port {bus}",
        "cluster-node-timeout 1000",
        "cluster-require-full-coverage no",
        "cluster-allow-replica-migration no",  # who gives its last slot away stays a master
    ]


@contextlib.contextmanager
def migrating(source: RedisServer, target: RedisServer, slot: int) -> Iterator[Callable[[Sequence[bytes]], None]]:
    """A slot on its way from one node to another: what is yielded moves keys, and at the end all have moved."""
    with source.client() as here, target.client() as there:
        source_id, target_id = (text(each.execute_command("CLUSTER", "MYID")) for each in (here, there))
        there.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        here.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)

        def move(keys: Sequence[bytes]) -> None:
            for key in keys:
                here.execute_command("MIGRATE", target.host, target.port, key, 0, 5000)

        yield move
        move(here.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1000))
        there.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id)
        here.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id)


@contextlib.contextmanager
def loading(values: Mapping[str, bytes]) -> Iterator[RedisServer]:
    """A server that has these values; when it is started again, with ``start(ready=False)``, it answers LOADING to
    everything until its ``key-load-delay`` is set to 0."""
    with RedisServer(["key-load-delay 100", "loading-process-events-interval-bytes 1024"]) as server:
        with server.client() as client:
            client.config_set("key-load-delay", 0)
            for start in range(0, LOADED_KEYS, 20_000):
                client.mset({f"key:{each}": "x" * 20 for each in range(start, start + 20_000)})
            client.mset(dict(values))
            client.save()
        yield server


class Way:
    """To a server, for a client: its ``port``, and how often somebody asked for values on it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


@contextlib.asynccontextmanager
async def slow(
    server: RedisServer, quick: asyncio.Event, seconds: float = 2.0, answers_max: int = 2**31
) -> AsyncIterator[Way]:
    """A way to the server on which answers, the first few of each connection, take so long until ``quick`` is set."""
    tasks: set[asyncio.Task[None] | None] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool) -> None:
        held = answers_max if answers else 0
        with contextlib.suppress(ConnectionError):
            while some := await reader.read(65536):
                way.asked += 0 if answers else some.count(b"MGET")
                if held and not quick.is_set():
                    held -= 1
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(quick.wait(), seconds)
                writer.write(some)
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            inner_reader, inner_writer = await asyncio.open_connection(server.host, server.port)
        except OSError:  # nobody is there: nor are we
            writer.close()
            return
        await asyncio.gather(pump(reader, inner_writer, False), pump(inner_reader, writer, True))

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    way = Way(listening.sockets[0].getsockname()[1])
    yield way
    listening.close()
    for task in tasks:
        if task is not None:
            task.cancel()
    await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)


def _slots_known(client: Redis) -> int:
    ranges = client.execute_command("CLUSTER SLOTS")
    if isinstance(ranges, dict):
        return sum(last - first + 1 for first, last in ranges)
    return sum(each[1] - each[0] + 1 for each in ranges)


def text(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{text(name)}:{text(each)}" for name, each in value.items())
    return value.decode() if isinstance(value, bytes) else str(value)


def _until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + READY_SECONDS
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"within {READY_SECONDS:.0f} s there was not: {what}")
        time.sleep(0.02)
