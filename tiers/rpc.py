"""The replicas of a backend as they are asked by RPC: for what the gRPC door passes through.

Rule of this file: a pool says which replica, a speaker how it is asked; nothing is decoded here. Whether a replica
speaks gRPC itself or is asked by HTTP makes no difference to who asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

from degrade.deadline import Deadline, Ticker
from tiers.backends.rpc import Conversation, Rpc, RpcRefused, RpcReply, Speaker
from tiers.inference import UpstreamError
from tiers.pool import Pool
from tiers.seat import Replica, Seated

Outcome = RpcReply | RpcRefused | UpstreamError


class RpcPool:
    """A pool and how each of its replicas is asked by RPC, in the pool's order."""

    def __init__(self, pool: Pool, speakers: Sequence[Speaker], now: Ticker) -> None:
        assert len(speakers) == len(pool.replicas), "each replica is asked in one way"
        self.pool = pool
        self._speakers = {id(replica): speaker for replica, speaker in zip(pool.replicas, speakers, strict=True)}
        self._now = now

    @property
    def alone(self) -> bool:
        """Whether there is only one replica: then every sequence lives there."""
        return len(self._speakers) == 1

    async def unary(self, rpc: Rpc, deadline: Deadline, sequence: str = "") -> RpcReply:
        """One call at one replica. Raises RpcRefused and UpstreamError."""
        with self.pool.seated(sequence) as seated:
            try:
                reply = await self._speaker(seated.replica).unary(rpc, deadline, self._now())
            except RpcRefused:
                seated.reached()
                raise
            seated.reached()
            return reply

    async def each(self, rpc: Rpc, deadline: Deadline) -> tuple[Outcome, ...]:
        """The same call at every replica at once, in configured order, whatever the breakers say."""

        async def one(speaker: Speaker) -> Outcome:
            try:
                return await speaker.unary(rpc, deadline, self._now())
            except (RpcRefused, UpstreamError) as error:
                return error

        return tuple(await asyncio.gather(*(one(speaker) for speaker in self._speakers.values())))

    @contextmanager
    def conversing(self, rpc: Rpc, deadline: Deadline, sequence: str = "") -> Iterator[Talk]:
        """A stream with one replica, for as long as the block lasts. Raises UpstreamError."""
        with self.pool.seated(sequence) as seated:
            conversation = self._speaker(seated.replica).converse(rpc, deadline, self._now())
            try:
                yield Talk(seated, conversation)
            finally:
                conversation.cancel()

    def _speaker(self, replica: Replica) -> Speaker:
        return self._speakers[id(replica)]


class Talk:
    """A stream with one replica."""

    def __init__(self, seated: Seated, conversation: Conversation) -> None:
        self._seated = seated
        self._conversation = conversation
        self.url = seated.replica.url

    async def send(self, message: bytes) -> None:
        """Raises RpcRefused and UpstreamError, as `answers` does."""
        with self._judging():
            await self._conversation.send(message)

    async def end(self) -> None:
        """Nothing more will be sent."""
        await self._conversation.end()

    async def answers(self) -> AsyncIterator[bytes]:
        """What comes back, as it comes."""
        with self._judging():
            async for answer in self._conversation.answers():
                self._seated.reached()
                yield answer

    @contextmanager
    def _judging(self) -> Iterator[None]:
        try:
            yield
        except RpcRefused:
            self._seated.reached()
            raise
        except UpstreamError as error:
            self._seated.left(error)
            raise
