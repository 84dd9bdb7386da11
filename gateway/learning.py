"""What a route's tiers say of themselves, and what the route says by that: learnt once, joined anew when it changes.

Rule of this file: it joins what several catalogs know. Who asks, and what for, is the route's business. A tier that has
not been seen must not keep the others from answering.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from operator import is_
from typing import Final

import msgspec
from blake3 import blake3

from cache.memo import Memo
from degrade.deadline import Deadline
from degrade.ladder import Failure
from gateway.config import TierConfig
from tiers.catalog import Catalog
from tiers.facts import ModelFacts, Sight, TensorFact
from tiers.inference import Rejected, UpstreamError
from tiers.pool import Pool
from tiers.rpc import RpcPool

VERSIONS_MAX: Final = 16
"""Versions of a route's model whose facts are remembered as merged."""
LEARNING_GRACE_SECONDS: Final = 0.1
"""How long a tier not yet known is waited for once another is: a model tells its facts in a few milliseconds."""


class Home(msgspec.Struct, frozen=True):
    """Where a tier's model lives: the replicas that run it and what they say about it. ``rpc``: the same servers as
    they are asked by RPC; None where nobody does."""

    pool: Pool
    catalog: Catalog
    rpc: RpcPool | None = None

    @property
    def pools(self) -> tuple[Pool, ...]:
        """All pools of replicas: RPCs may have one of their own."""
        return (self.pool,) if self.rpc is None or self.rpc.pool is self.pool else (self.pool, self.rpc.pool)

    async def close(self) -> None:
        """Ask nothing more, and hang up."""
        await self.catalog.close()
        for pool in self.pools:
            await pool.close()


class Merged(msgspec.Struct, frozen=True, eq=False):
    """What the tiers ``told``, ``merged`` into one model's facts, and ``shown`` as callers may use the route."""

    told: tuple[ModelFacts, ...]
    merged: ModelFacts
    shown: ModelFacts


class Learning:
    """Of one route's tiers, each with its home. ``shown``: a route's facts as callers may use it; ``heed``: told of
    what the models of all tiers say together, whenever that is new."""

    def __init__(
        self,
        name: str,
        tiers: Sequence[tuple[TierConfig, Home]],
        shown: Callable[[ModelFacts], ModelFacts],
        heed: Callable[[ModelFacts], None],
    ) -> None:
        self._name = name
        self._tiers = tuple(tiers)
        self._shown = shown
        self._heed = heed
        self._merged: Memo[str, Merged] = Memo(VERSIONS_MAX)
        self._schema: tuple[ModelFacts, bytes] | None = None
        self._learnt: set[int] = set()
        self._learning: dict[int, asyncio.Task[None]] = {}

    def known(self, version: str = "") -> ModelFacts | None:
        """What `facts` would say, if every tier's model is known."""
        told = []
        for tier, home in self._tiers:
            known = home.catalog.recall(tier.model, tier.version or version)
            if known is None:
                return None
            told.append(known)
        return self._merge(version, told)

    async def facts(self, deadline: Deadline, version: str = "") -> ModelFacts:
        """What the route accepts and answers, by the tiers whose models are known: a tier that has not been
        seen since the start must not keep the others from answering. ``version``: the one a caller asks for,
        of tiers that are not bound to one.

        A tier not yet known is waited for a little while the others are, by those who came first to ask it; it
        goes on being learnt behind their backs. Raises UpstreamError if no tier is known, and Rejected(404) if one
        lacks the version asked for.
        """
        told: dict[int, ModelFacts] = {}
        unknown: UpstreamError | None = None
        asked: dict[asyncio.Task[ModelFacts], int] = {}
        slow = set(self._learning)
        for position in range(len(self._tiers)):
            if len(self._tiers) > 1 and (version or position not in self._learnt):
                asked[asyncio.create_task(self._told(position, version, deadline))] = position
                continue
            try:  # known, so at once; or nobody else is there to wait for
                told[position] = await self._told(position, version, deadline)
            except UpstreamError as error:
                unknown = error
        pending = set(asked)
        try:
            while pending:
                patience = 0.0 if all(asked[task] in slow for task in pending) else LEARNING_GRACE_SECONDS
                done, pending = await asyncio.wait(
                    pending, timeout=patience if told else None, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for task in done:
                    try:
                        told[asked[task]] = task.result()
                    except UpstreamError as error:
                        unknown = error
            for task in pending:
                self._learn(asked[task])
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        if not told:
            assert unknown is not None
            raise unknown
        return self._merge(version, [told[position] for position in sorted(told)])

    def _merge(self, version: str, told: Sequence[ModelFacts]) -> ModelFacts:
        """The tiers' facts as the route's: one object as long as they are the same."""
        held = self._merged.get(version)
        if held is not None and len(held.told) == len(told) and all(map(is_, held.told, told)):
            return held.shown
        merged = merged_facts(self._name, told)
        shown = self._shown(merged)
        self._merged.put(version, Merged(tuple(told), merged, shown))
        if len(told) == len(self._tiers):
            self._heed(merged)
        return shown

    def merged(self, version: str) -> Merged:
        """All of it. It is known: who asks has had the route's facts in this turn."""
        held = self._merged.get(version)
        assert held is not None, "it was merged just now"
        return held

    def schema(self) -> bytes | None:
        """What its models take and give, digested: the same object as long as it is the same; None while they are not
        known."""
        facts = self.known()
        if facts is None:
            return None
        if self._schema is None or self._schema[0] is not facts:
            models = self.merged("").merged
            told = msgspec.msgpack.encode((models.inputs, models.outputs, models.max_batch))
            self._schema = facts, blake3(told).digest()
        return self._schema[1]

    def looks(self) -> dict[str, tuple[float, Sight]] | None:
        """The last look at each tier's model on each replica, and when it began; None while a model is not known,
        which begins to be learnt."""
        found = {}
        unknown = False
        for position, (tier, home) in enumerate(self._tiers):
            looked = home.catalog.looked(tier.model)
            if not looked:
                unknown = True
                self._learn(position)
            found.update({f"{url}/{tier.model}": each for url, each in looked.items()})
        return None if unknown else found

    async def close(self) -> None:
        """Give up learning about tiers."""
        tasks = tuple(self._learning.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _told(self, position: int, version: str, deadline: Deadline) -> ModelFacts:
        """What a tier says of itself. Once it has, its catalog remembers."""
        tier, home = self._tiers[position]
        try:
            told = await _told(tier, home.catalog, version, deadline)
        except UpstreamError:
            self._learnt.discard(position)
            raise
        self._learnt.add(position)
        return told

    def _learn(self, position: int) -> None:
        """Go on learning about a tier that nobody waits for any more; the catalog bounds the time."""
        if position in self._learning:
            return

        async def learn() -> None:
            try:
                await self._told(position, "", Deadline(math.inf))
            except UpstreamError:
                pass  # whoever asks next begins anew
            finally:
                del self._learning[position]

        self._learning[position] = asyncio.create_task(learn())


async def _told(tier: TierConfig, catalog: Catalog, version: str, deadline: Deadline) -> ModelFacts:
    """What a tier's model says of itself, in the version that will answer."""
    try:
        told = await catalog.facts(tier.model, tier.version, deadline)
    except Rejected as error:  # the operator named this model, not the caller: no fault of the caller's
        raise UpstreamError(Failure.BROKEN, f"a tier's model is not there: {error}") from error
    if not version or tier.version:
        return told
    return await catalog.facts(tier.model, version, deadline)


def merged_facts(name: str, facts: Sequence[ModelFacts]) -> ModelFacts:
    """A route's facts from its tiers': all tiers must be able to take what the route accepts.

    Inputs are the first tier's (``tailrace check`` proves that the others agree), outputs those that
    every tier has, the batch limit is the smallest, and one stateful tier makes the route stateful.
    """
    first, last = facts[0], facts[-1]
    common: list[TensorFact] = [
        output
        for output in last.outputs
        if all(any(other.name == output.name for other in fact.outputs) for fact in facts)
    ]
    return ModelFacts(
        name=name,
        versions=last.versions,
        inputs=first.inputs,
        outputs=tuple(common),
        max_batch=min(fact.max_batch for fact in facts),
        sequence=any(fact.sequence for fact in facts),
        decoupled=any(fact.decoupled for fact in facts),
    )
