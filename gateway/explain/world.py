"""A world in which what is wrong is given, and time is a number: replicas, stores and a clock for the real pipeline.

Rule of this file: it stands where the network stands, and takes no decision: a replica fails as its condition says, in
the words that the real one would use, and everything that follows (who is asked next, what is kept, what is told) is
done by the very parts that answer callers. It opens no socket, and its time passes when nobody has anything to do.
"""

from __future__ import annotations

import asyncio
import math
import random
import struct
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeVar
from urllib.parse import unquote

import msgspec
import numpy as np

from cache.coherence import Heard
from cache.stores.node import Node
from cache.stores.store import Found, StoreError
from cache.stores.turnstile import TurnstileOptions
from cache.vector import Decoded, Rows
from degrade.breaker import Breaker, Change
from degrade.deadline import Deadline, Ticker
from degrade.guard import STORE_BREAKER, Guarded
from degrade.ladder import Failure
from gateway.config import Config, TierConfig
from gateway.config import Route as RouteConfig
from gateway.config_tables import TableConfig
from gateway.explain.conditions import MODELS, NOTHING, SERVERS, STORES, Condition
from gateway.homes import pool_options
from gateway.learning import Home
from gateway.stores import Source, keyed_of, tracker_of
from gateway.tables import Table
from gateway.units import Size
from tiers.backends.call import Call, Reply, Streamed
from tiers.backends.relaying import Listener, Place
from tiers.catalog import Catalog, CatalogOptions
from tiers.inference import InferRequest, InferResponse, Tensor, UpstreamError
from tiers.pool import Pool
from tiers.seat import Carried

T = TypeVar("T")

BATCH_MAX: Final = 8
"""Of every model here: a request has one row."""
QUIET_TURNS: Final = 100
"""Turns of the event loop without an end, after which everyone who is at work waits for time to pass."""
TABLE_BYTES: Final = 16 * 2**20
"""Of a near cache that holds one row, however large that is to be."""
STEP_SECONDS: Final = 0.25
"""By which time passes while somebody waits for something later, or for a time of its own to end."""
SURE: Final = 1e30
OUTPUT: Final = "y"
"""What a model gives whose route names no output."""

MESSAGES: Final = {
    Failure.UNREACHABLE: "{url} cannot be reached",
    Failure.TIMEOUT: "{url} did not answer within {seconds:.3g} s",
    Failure.OVERLOADED: "{url} is overloaded: 503",
    Failure.BROKEN: "{url} does not have the model ready",
    Failure.RAISED: "{url} failed with 500",
}
"""As the real backends say it."""


class Seen(msgspec.Struct, frozen=True):
    """Somebody was asked. ``came``: "answered", or how it failed."""

    who: str
    what: str
    came: str


class Loop(asyncio.SelectorEventLoop):
    """An event loop by a clock of ours: what ends by time ends by that."""

    def __init__(self, ticker: Ticker) -> None:
        self._ticker = ticker
        super().__init__()

    def time(self) -> float:
        """Seconds of the ticker."""
        return self._ticker()


class World:
    """Time, and what is wrong. While it is not ``ill`` nothing is."""

    def __init__(self, conditions: Sequence[Condition]) -> None:
        self.now = 1000.0
        self.ill = False
        self.seen: list[Seen] = []
        self._states = {(each.kind, each.name): each.state for each in conditions}
        if (store := self._states.get(("stores", "redis"), "")) != "":  # where the second level is, too
            self._states.setdefault(("second", "second"), "slow" if store == "slow" else "down")
        self._waiting: list[tuple[float, asyncio.Future[None]]] = []

    def ticker(self) -> float:
        """Seconds."""
        return self.now

    def state(self, kind: str, name: str) -> str:
        """How something is now; "" for well."""
        return self._states.get((kind, name), "") if self.ill else ""

    def held(self, kind: str) -> str:
        """What is assumed to be held, from before anything was wrong."""
        return self._states.get((kind, kind), NOTHING[kind])

    async def wait(self, until: float) -> None:
        """Let time pass."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append((until, waiter))
        await waiter

    async def live(self, work: Coroutine[object, object, T]) -> T:
        """Let everyone do what there is to do, and time pass when nobody has anything."""
        task = asyncio.ensure_future(work)
        quiet = 0
        while not task.done():
            await asyncio.sleep(0)
            quiet += 1
            if quiet <= QUIET_TURNS:
                continue
            quiet = 0
            self._waiting.sort(key=lambda each: each[0])
            self.now = max(self.now, min([each[0] for each in self._waiting[:1]] + [self.now + STEP_SECONDS]))
            while self._waiting and self._waiting[0][0] <= self.now:
                waiter = self._waiting.pop(0)[1]
                if not waiter.done():
                    waiter.set_result(None)
        return task.result()


class Models(msgspec.Struct, frozen=True):
    """A route's, which are all alike. ``facts``: what each says of itself beside its name; ``scored``: the output that
    tiers are judged by, or "". ``batch_max``: 0 where they take no batches."""

    facts: Mapping[str, object]
    scored: str
    batch_max: int


class Replica:
    """A server with every model of a route: they answer what they are asked, or fail."""

    def __init__(self, world: World, backend: str, url: str, models: Models) -> None:
        self.url = url
        self._world = world
        self._backend = backend
        self._facts = models.facts
        self._batch_max = models.batch_max
        self._scored = models.scored

    async def infer(self, request: InferRequest, deadline: Deadline, now: float) -> InferResponse:
        """An answer of one row. Raises UpstreamError."""
        what, unsure = f"model {request.model}", self._world.state("model", request.model) == "unsure"
        await self._fail(MODELS.get(self._world.state("model", request.model)), what, deadline, now)
        self._world.seen.append(Seen(self.url, what, "unsure" if unsure else "answered"))
        scores = struct.pack("<2f", -SURE if unsure else SURE, -SURE)
        output = Tensor(self._scored or OUTPUT, "FP32", (1, 2), scores)
        return InferResponse(request.model, "1", (output,))

    async def exchange(self, call: Call, deadline: Deadline, now: float) -> Reply:
        """What is asked about models. Raises UpstreamError."""
        await self._fail(None, call.target, deadline, now)
        name = unquote(call.target.split("/")[3])
        if call.target.endswith("/config"):
            body: object = {"name": name, "max_batch_size": self._batch_max}
        elif call.target.endswith("/stats"):
            body = {"model_stats": []}
        else:
            body = {"name": name, **self._facts}
        return Reply(200, (), msgspec.json.encode(body))

    def stream(self, call: Call, deadline: Deadline, now: float) -> AbstractAsyncContextManager[Streamed]:
        """Nothing passes through here."""
        raise NotImplementedError

    def relay(self, call: Call, body: bytes, listener: Listener, place: Place, seconds: float) -> Carried:
        """Nothing passes through here."""
        raise NotImplementedError

    async def close(self) -> None:
        """There is nothing to close."""

    async def _fail(self, of_model: Failure | None, what: str, deadline: Deadline, now: float) -> None:
        """The server's own failure comes before the model's."""
        states = (self._world.state("replica", self.url), self._world.state("backend", self._backend))
        failure = next((SERVERS[state] for state in states if state), of_model)
        if failure is None:
            return
        if failure is Failure.TIMEOUT:
            await self._world.wait(deadline.at)
        self._world.seen.append(Seen(self.url, what, failure.value))
        message = MESSAGES[failure].format(url=self.url, seconds=deadline.remaining(now))
        raise UpstreamError(failure, message, before_answer=failure is Failure.UNREACHABLE)


class Shelf:
    """The store of one table: it has a row for every id."""

    def __init__(self, world: World, table: str, place: str) -> None:
        self._world = world
        self._table = table
        self._place = place

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        """Something under each key."""
        state = self._world.state("table", self._table) or self._world.state("stores", self._place)
        kind = STORES.get(state)
        if kind == "timeout":
            await self._world.wait(self._world.now + seconds)
        self._world.seen.append(Seen(self._place, f"table {self._table}", kind or "answered"))
        if kind:
            raise StoreError(kind)
        return [b""] * len(keys)

    async def put_many(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        """Nothing is written here."""
        raise NotImplementedError

    async def delete_many(self, keys: Sequence[bytes], seconds: float) -> None:
        """Nothing is removed here."""
        raise NotImplementedError

    async def healthy(self, seconds: float) -> bool:
        """Whether nothing is wrong with it."""
        return not (self._world.state("table", self._table) or self._world.state("stores", self._place))

    async def close(self) -> None:
        """There is nothing to close."""


class Zeros:
    """Every value is a row of zeros: what rows are worth is decided without looking into them."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.dtype: np.dtype[np.floating] = np.dtype(np.float32)

    def decode(self, values: Sequence[Found]) -> Decoded:
        """A row for each value."""
        found = np.array([isinstance(value, bytes) for value in values], np.bool_)
        return Decoded(np.zeros((len(values), *self.shape), np.float32), found, {})

    def encode(self, rows: Rows) -> list[bytes]:
        """Nothing is written here."""
        raise NotImplementedError


def home(world: World, config: Config, name: str, route: RouteConfig, chance: random.Random) -> Home:
    """A backend's replicas and what they say of a route's models."""
    backend = config.backends[name]
    urls = backend.http or backend.grpc
    models = described(config, route)
    replicas = [Replica(world, name, url, models) for url in urls]
    pool = Pool(replicas, pool_options(backend), world.ticker, chance, _unheard)
    return Home(pool, Catalog(replicas, CatalogOptions(), world.ticker, lambda model: None))


def table(world: World, name: str, config: TableConfig) -> Table:
    """One table on a store of this world, which tells of every write while it is well."""
    small = msgspec.structs.replace(config, bytes_max=min(config.bytes_max, Size(TABLE_BYTES)))
    return Table(name, small, source_of(world, name, config), world.ticker, bytes(16))


def source_of(world: World, name: str, config: TableConfig) -> Source:
    """Its store."""
    place = "lmdb" if config.redis is None else "redis"
    options = TurnstileOptions(proof_seconds=0.0)
    guarded = Guarded(Shelf(world, name, place), Breaker(STORE_BREAKER), world.ticker, options)
    return Source(guarded, keyed_of(config), Zeros(tuple(config.shape)), None, float(config.timeout))


async def _nowhere(seconds: float) -> Sequence[Node]:
    raise StoreError("unreachable")


def deafen(world: World, each: Table) -> None:
    """A store that fails does not tell of writes either, where those are listened to."""
    place = "lmdb" if each.config.redis is None else "redis"
    if not (world.state("table", each.name) or world.state("stores", place)):
        return
    source = msgspec.structs.replace(source_of(world, each.name, each.config), masters=_nowhere)
    heard = Heard(lambda keys: None, each.near.distrust)
    each.tracker = tracker_of(each.config, source, heard, world.ticker)  # it never runs, and so hears nothing


def described(config: Config, route: RouteConfig) -> Models:
    """What every model of a route says of itself: as much as the configuration tells."""
    scored = next((tier.accept.output for tier in route.tiers if tier.accept is not None), "")
    outputs: list[object] = [
        {"name": name, "datatype": each.datatype, "shape": each.shape} for name, each in route.default.items()
    ]
    if not outputs or (scored and scored not in route.default):
        outputs.append({"name": scored or OUTPUT, "datatype": "FP32", "shape": [-1, 2]})
    inputs: list[object] = [
        {"name": name, "datatype": datatype_of(route, name), "shape": [-1, 1]} for name in input_names(route)
    ]
    if route.features is not None:
        for name, wanted in route.features.inputs.items():
            shapes = [tuple(config.tables[part.table].shape) for part in wanted.parts]
            shape = [len(shapes), *shapes[0]] if wanted.join == "stack" else [sum(map(math.prod, shapes))]
            inputs.append({"name": name, "datatype": "FP32", "shape": [-1, *shape]})
    facts = {"versions": sorted(_versions(route.tiers)), "inputs": inputs, "outputs": outputs}
    takes_batches = all(each.is_by_row for each in route.default.values())
    return Models(facts, scored, BATCH_MAX if takes_batches else 0)


def input_names(route: RouteConfig) -> list[str]:
    """The inputs that callers send as they are: those that the route has rules for, or one of no particular name."""
    made = () if route.features is None else route.features.inputs
    named = [name for name in route.inputs if name != "*" and name not in made]
    return named or ([] if made else ["x"])


def datatype_of(route: RouteConfig, name: str) -> str:
    """Of an input: bytes where the route bounds their elements."""
    rule = route.inputs.get(name)
    return "BYTES" if rule is not None and rule.element_bytes_max is not None else "FP32"


def _versions(tiers: Sequence[TierConfig]) -> set[str]:
    return {tier.version or "1" for tier in tiers}


def _unheard(replica: str, model: str, change: Change) -> None:
    """Nobody listens to these breakers."""
