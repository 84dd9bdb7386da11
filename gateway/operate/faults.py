"""Faults on purpose, in a gateway that runs: slow, failing and lying backends and stores, a loop that stands still, a
worker that is killed.

Rule of this file: nothing of it is there unless ``[chaos] enabled`` is true: then each replica and each store that the
configuration names is wrapped once, when it is made, in a thing of the same face that asks here before each call.
Faults come by the admin port, with a seed, and end by themselves. What they bring is what the real ones bring
(`UpstreamError`, `StoreError`), so that nothing behind the seam knows the difference. Time and chance are arguments.

A *target* is named as in the configuration: ``backends.NAME``, ``tables.NAME``, ``second`` for all second levels, or
``snapshot`` for the disk of the copies.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec import Struct

from cache.stores.store import KINDS, Found, Store, StoreError
from degrade.deadline import Deadline, Ticker
from degrade.ladder import Failure
from tiers.backends.call import Call, Reply, Streamed
from tiers.backends.relaying import Listener, Place
from tiers.inference import InferRequest, InferResponse, Tensor, UpstreamError
from tiers.seat import Carried, Replica

SECONDS_MAX: Final = 600.0
"""Of one order: whoever forgets it has a gateway that is well again in ten minutes."""
STALL_SECONDS_MAX: Final = 10.0
CLOCK_SECONDS_MAX: Final = 3600.0
"""By which the wall clock may be wrong on purpose: what is written meanwhile keeps its time."""
SNAPSHOT: Final = "snapshot"
BACKEND: Final = "backends."
GARBAGE: Final = b"\xff" * 8
"""Neither a value of a second level (they have a checksum) nor numbers (NaN) of a row."""
NAN: Final[Mapping[str, bytes]] = MappingProxyType(
    {"FP16": b"\x00\x7e", "FP32": b"\x00\x00\xc0\x7f", "FP64": b"\0\0\0\0\0\0\xf8\x7f", "BF16": b"\xc0\x7f"}
)

Sleep = Callable[[float], Awaitable[object]]
Disk = Callable[[], "Rule | None"]


class BadOrder(ValueError):
    """An order that cannot be followed; the message says why."""


class Rule(Struct, frozen=True, forbid_unknown_fields=True):
    """What happens to a ``share`` of the calls to one target. ``latency``: seconds before each. ``error``: how they
    fail, one of `degrade.ladder.Failure`'s words for a backend, of `cache.stores.store.KINDS` for a store. ``corrupt``:
    a model's floating-point outputs are NaN, a store's values begin with garbage."""

    share: float = 1.0
    latency: float = 0.0
    error: str = ""
    corrupt: bool = False

    def spoilt(self, value: bytes) -> bytes:
        """What is left of a value."""
        return GARBAGE + value[len(GARBAGE) :] if self.corrupt else value


class Order(Struct, frozen=True, forbid_unknown_fields=True):
    """What is asked for, in place of what held before: ``faults`` by target for ``seconds``, their chance from
    ``seed``. ``clock``: seconds by which the wall clock is ahead meanwhile, or behind (negative). ``stall``: seconds
    for which the event loop stands still, once. ``kill``: SIGKILL to this process."""

    faults: dict[str, Rule] = {}
    seconds: float = 60.0
    seed: int = 0
    clock: float = 0.0
    stall: float = 0.0
    kill: bool = False

    def check(self, targets: frozenset[str]) -> None:
        """Raise BadOrder. ``targets``: those that there are."""
        if not 0 < self.seconds <= SECONDS_MAX:
            raise BadOrder(f"seconds must be more than 0 and at most {SECONDS_MAX:g}")
        if not -CLOCK_SECONDS_MAX <= self.clock <= CLOCK_SECONDS_MAX:
            raise BadOrder(f"clock must be {-CLOCK_SECONDS_MAX:g} to {CLOCK_SECONDS_MAX:g} seconds")
        if not 0 <= self.stall <= STALL_SECONDS_MAX:
            raise BadOrder(f"stall must be 0 to {STALL_SECONDS_MAX:g} seconds")
        for target, rule in self.faults.items():
            if target not in targets:
                raise BadOrder(f"there is no {target}; there is {', '.join(sorted(targets)) or 'nothing'}")
            kinds = [failure.value for failure in Failure] if target.startswith(BACKEND) else [*KINDS]
            if rule.error and rule.error not in kinds:
                raise BadOrder(f"{target} cannot fail as {rule.error!r}; it can as {', '.join(kinds)}")
            if not 0 < rule.share <= 1:
                raise BadOrder(f"{target}: share must be more than 0 and at most 1")
            if not 0 <= rule.latency <= SECONDS_MAX:
                raise BadOrder(f"{target}: latency must be 0 to {SECONDS_MAX:g} seconds")


class Faults:
    """What holds now. Belongs to one event loop."""

    def __init__(self, now: Ticker, sleep: Sleep = asyncio.sleep) -> None:
        self.met: Counter[str] = Counter()
        """By target and kind, how many calls met what."""
        self.now = now
        self.sleep = sleep
        self._targets: set[str] = set()
        self._order = Order()
        self._until = now()
        self._chance = random.Random(0)

    @property
    def targets(self) -> frozenset[str]:
        """Whatever was ever wrapped."""
        return frozenset(self._targets)

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._until - self.now())

    @property
    def rules(self) -> Mapping[str, Rule]:
        """What holds, by target."""
        return self._order.faults if self.seconds_left else {}

    def take(self, order: Order) -> None:
        """Let this hold from now on. Raises BadOrder, and changes nothing."""
        order.check(self.targets)
        self._order, self._until = order, self.now() + order.seconds
        self._chance = random.Random(order.seed)

    def rule(self, target: str) -> Rule | None:
        """What the next call to a target meets; chance is asked once."""
        rule = self.rules.get(target)
        if rule is None or self._chance.random() >= rule.share:
            return None
        for word in ("latency", "error", "corrupt"):
            self.met[f"{target} {word}"] += bool(getattr(rule, word))
        return rule

    def wall(self, wall: Ticker) -> Ticker:
        """A wall clock that is wrong while it is told to be."""
        return lambda: wall() + (self._order.clock if self.seconds_left else 0.0)

    def disk(self) -> Disk:
        """What happens to the disk of the copies: nothing, or what the next pass meets."""
        self._targets.add(SNAPSHOT)
        return lambda: self.rule(SNAPSHOT)

    def replica(self, backend: str, replica: Replica) -> Replica:
        """The same replica, with this between it and whoever asks for a route, looks, or probes."""
        self._targets.add(f"{BACKEND}{backend}")
        return FaultyReplica(replica, f"{BACKEND}{backend}", self)

    def store(self, target: str, store: Store) -> Store:
        """The same store, with this before it."""
        self._targets.add(target)
        return FaultyStore(store, target, self)


class FaultyReplica:
    """A `Replica` that fails as it is told. What passes through is not touched: it has no route, and no policy."""

    def __init__(self, replica: Replica, target: str, faults: Faults) -> None:
        self._replica = replica
        self._target = target
        self._faults = faults

    @property
    def url(self) -> str:
        return self._replica.url

    async def infer(self, request: InferRequest, deadline: Deadline, now: float) -> InferResponse:
        rule = await self._met(deadline, now)
        answer = await self._replica.infer(request, deadline, now if rule is None else self._faults.now())
        if rule is None or not rule.corrupt:
            return answer
        return msgspec.structs.replace(answer, outputs=tuple([_nan(tensor) for tensor in answer.outputs]))

    async def exchange(self, call: Call, deadline: Deadline, now: float) -> Reply:
        rule = await self._met(deadline, now)
        return await self._replica.exchange(call, deadline, now if rule is None else self._faults.now())

    def stream(self, call: Call, deadline: Deadline, now: float) -> AbstractAsyncContextManager[Streamed]:
        return self._replica.stream(call, deadline, now)

    def relay(self, call: Call, body: bytes, listener: Listener, place: Place, seconds: float) -> Carried:
        return self._replica.relay(call, body, listener, place, seconds)

    async def close(self) -> None:
        await self._replica.close()

    async def _met(self, deadline: Deadline, now: float) -> Rule | None:
        """Wait, or raise UpstreamError, if that is this call's lot."""
        rule = self._faults.rule(self._target)
        if rule is None:
            return None
        left = deadline.remaining(now)
        hangs = rule.error == Failure.TIMEOUT.value or rule.latency >= left
        if hangs or rule.latency:
            await self._faults.sleep(left if hangs else rule.latency)
        if hangs or rule.error:
            failure = Failure.TIMEOUT if hangs else Failure(rule.error)
            before_answer = failure in (Failure.UNREACHABLE, Failure.DROPPED)
            raise UpstreamError(failure, f"{self.url}: a fault on purpose", before_answer=before_answer)
        return rule


class FaultyStore:
    """A `Store` that fails as it is told."""

    def __init__(self, store: Store, target: str, faults: Faults) -> None:
        self._store = store
        self._target = target
        self._faults = faults

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        rule, seconds = await self._met(seconds)
        found = await self._store.get_many(keys, seconds)
        return found if rule is None else [rule.spoilt(each) if isinstance(each, bytes) else each for each in found]

    async def put_many(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        _, seconds = await self._met(seconds)
        await self._store.put_many(pairs, ttl, seconds)

    async def delete_many(self, keys: Sequence[bytes], seconds: float) -> None:
        _, seconds = await self._met(seconds)
        await self._store.delete_many(keys, seconds)

    async def healthy(self, seconds: float) -> bool:
        try:
            _, seconds = await self._met(seconds)
        except StoreError:
            return False
        return await self._store.healthy(seconds)

    async def close(self) -> None:
        await self._store.close()

    async def _met(self, seconds: float) -> tuple[Rule | None, float]:
        """Wait, or raise StoreError, if that is this call's lot; what is left of its time."""
        rule = self._faults.rule(self._target)
        if rule is None:
            return None, seconds
        hangs = rule.error == "timeout" or rule.latency >= seconds
        if hangs or rule.latency:
            await self._faults.sleep(seconds if hangs else rule.latency)
        if hangs or rule.error:
            raise StoreError("timeout" if hangs else rule.error, "a fault on purpose")
        return rule, seconds - rule.latency


def _nan(tensor: Tensor) -> Tensor:
    pattern = NAN.get(tensor.datatype)
    if pattern is None or not tensor.data:
        return tensor
    return msgspec.structs.replace(tensor, data=pattern * (len(tensor.data) // len(pattern)))
