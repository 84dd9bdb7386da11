"""Which server is asked about a key: one, whichever Sentinels call the master, or a cluster's node.

Rule of this file: it finds servers and hands commands to them (`cache/stores/node.py`); it does not know what a command
means. What was learnt of the servers is learnt again beside the calls, not within them, but for the first time and
after a failure that says that it was wrong. A redirection is followed, for that is an answer; nothing else is asked
twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from msgspec import Struct
from redis.crc import key_slot

from cache.stores.address import RedisAddress
from cache.stores.learning import Learning, LearnOptions, all_told, first_told
from cache.stores.node import Command, Node, NodeOptions, Redirect, Reply
from cache.stores.store import StoreError
from cache.stores.turnstile import Turnstile

SLOTS: Final = 16384
REDIRECTS_MAX: Final = 3
"""How often one command is sent on: a slot moves once, and the map is learnt meanwhile."""
REDIRECTED_SECONDS: Final = 60.0
"""For how long a node counts as a master of a cluster after something was last sent on to it. One that a slot is being
moved to need not be in the map yet, and has keys all the same; one that was to get a slot may never get it."""
SILENT_SECONDS: Final = 10.0
"""For how long a Sentinel that did not answer in time is not waited for (one that hangs costs one question of many its
time, and one that is far away is heard), and for how long nobody is believed who has not heard of a failover that
somebody told of. It is more than it takes them to tell each other."""
WRONG_SERVER: Final = frozenset({"unreachable", "timeout", "refused", "loading", "unavailable"})
"""After these it may be that another server should have been asked."""

UNNAMED: Final = ("", "?")
"""What a node says of hosts when it does not know, or is not to say: the one that was asked is meant."""

Asked = tuple[bytes, Command]
"""(the key that it is about, a command)"""


class Known(Struct, frozen=True):
    """Who the masters are, as somebody told who was asked ``age`` seconds ago; 0 if it cannot change."""

    nodes: tuple[Node, ...]
    age: float = 0.0


class Servers(Protocol):
    """Where commands go. Raises StoreError if none was answered; a command's own error stands in its reply's place."""

    @property
    def keys_together(self) -> bool:
        """Whether one command may be about several keys."""

    @property
    def untold(self) -> int:
        """How often replies came from a server of which nobody had told in time (``LearnOptions.believed_seconds``)
        that it is still the one to ask: they may be old. None are a cluster's: a node knows itself what is its own."""

    async def ask(self, asked: Sequence[Asked], seconds: float) -> list[Reply]: ...
    async def masters(self, seconds: float) -> Known: ...
    async def healthy(self, seconds: float) -> bool: ...
    async def close(self) -> None: ...


class One:
    """One server, whose address never changes."""

    keys_together = True
    untold = 0

    def __init__(self, address: RedisAddress, options: NodeOptions) -> None:
        host, port = address.hosts[0]
        self._node = Node(host, port, options)

    async def ask(self, asked: Sequence[Asked], seconds: float) -> list[Reply]:
        return await self._node.ask([command for _, command in asked], seconds)

    async def masters(self, seconds: float) -> Known:
        return Known((self._node,))

    async def healthy(self, seconds: float) -> bool:
        return await pong(self._node, seconds)

    async def close(self) -> None:
        self._node.close()


class Sentinels:
    """The master of a service, as its Sentinels know it: of those that answer the one that has heard of the latest
    failover is believed. One of them has decided it, and the others hear of it up to two seconds later. The server that
    was the master goes on as one, whatever it is asked, until a Sentinel tells it otherwise: 8 s after a planned
    failover. So while no Sentinel answers nobody knows what its values are worth."""

    keys_together = True

    def __init__(self, address: RedisAddress, options: NodeOptions, learn: LearnOptions) -> None:
        self._service = address.service
        self._options = options
        plain = NodeOptions(tls=options.tls, connect_seconds=options.connect_seconds, connections_max=2)
        self._sentinels = [Node(host, port, plain) for host, port in address.hosts]
        self._master: Node | None = None
        self._left_alone: dict[Node, float] = {}  # who was silent, and until when that one is not waited for
        self._failovers = 0, 0.0  # the latest that was told of, and when last
        self._learning = Learning(self._learn, learn)
        self.untold = 0

    async def ask(self, asked: Sequence[Asked], seconds: float) -> list[Reply]:
        started = asyncio.get_running_loop().time()
        await self._learning.ready(seconds)
        master, is_believed = self._master, self._learning.is_believed
        if master is None:
            raise StoreError("unavailable", f"no Sentinel tells a master of {self._service}")
        left = seconds - (asyncio.get_running_loop().time() - started)
        try:
            replies = await master.ask([command for _, command in asked], left)
        except StoreError as error:
            if error.kind in WRONG_SERVER:
                self._learning.doubt()
            raise
        self.untold += not is_believed
        if any(isinstance(each, StoreError) and each.kind == "refused" for each in replies):
            self._learning.doubt()  # read-only: it was the master once
        return replies

    async def masters(self, seconds: float) -> Known:
        await self._learning.ready(seconds)
        return Known(() if self._master is None else (self._master,), self._learning.age())

    async def healthy(self, seconds: float) -> bool:
        try:
            masters = (await self.masters(seconds)).nodes
        except StoreError:
            return False
        well = bool(masters) and await pong(masters[0], seconds)
        if not well:
            self._learning.doubt()
        return well

    async def close(self) -> None:
        await self._learning.close()
        for node in (*self._sentinels, *([self._master] if self._master else ())):
            node.close()

    async def _learn(self, seconds: float) -> None:
        questions: list[Command] = [("SENTINEL", each, self._service) for each in ("GET-MASTER-ADDR-BY-NAME", "MASTER")]

        async def told_by(sentinel: Node) -> tuple[int, tuple[str, int]] | None:
            address, facts = await sentinel.ask(questions, seconds)
            if not isinstance(address, list) or len(address) != 2:
                return None
            host, port = address
            assert isinstance(host, bytes)
            assert isinstance(port, bytes)
            return _failovers(facts), (host.decode(), int(port))

        now = asyncio.get_running_loop().time()
        awaited: set[Node] = set()
        if self._master is not None:  # at first there are callers who wait
            awaited = {each for each in self._sentinels if self._left_alone.get(each, now) <= now}
        told, silent = await all_told(self._sentinels, told_by, awaited, 0.5 * seconds)
        self._left_alone |= dict.fromkeys(silent & awaited, now + SILENT_SECONDS)
        latest, found = max(told)
        if latest < self._failovers[0] and now < self._failovers[1] + SILENT_SECONDS:
            raise StoreError("unavailable", "no Sentinel that answers has heard of the latest failover")
        self._failovers = latest, now
        if self._master is None or found != (self._master.host, self._master.port):
            before, self._master = self._master, Node(*found, self._options, must_be_master=True)
            if before is not None:
                before.close()


class Cluster:
    """A cluster: each key is asked of the master that has its slot, all of a node's in one journey."""

    keys_together = False
    untold = 0

    def __init__(
        self,
        address: RedisAddress,
        options: NodeOptions,
        learn: LearnOptions,
        turnstile: Callable[[Node], Turnstile],
    ) -> None:
        """``turnstile`` makes one for each node: whether one node is worth asking says nothing of the others."""
        self._options = options
        self._turnstile = turnstile
        self._hosts = address.hosts
        self._nodes: dict[tuple[str, int], Node] = {}
        self._turnstiles: dict[Node, Turnstile] = {}
        self._slots: list[Node | None] = [None] * SLOTS
        self._redirected: dict[Node, float] = {}  # to whom something was sent on, and when last
        self._teller: Node | None = None
        self._learning = Learning(self._learn, learn)

    async def ask(self, asked: Sequence[Asked], seconds: float) -> list[Reply]:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        await self._learning.ready(seconds)
        replies: list[Reply] = [StoreError("unavailable", "no node has the slot")] * len(asked)
        groups: dict[Node, list[int]] = {}
        for index, (key, _) in enumerate(asked):
            node = self._slots[key_slot(key)]
            if node is not None:
                groups.setdefault(node, []).append(index)
        if sum(map(len, groups.values())) < len(asked):
            self._learning.doubt()
        asking: set[int] = set()  # those that a node takes on ASK's word alone
        for _ in range(1 + REDIRECTS_MAX):
            parts = [self._ask(node, asked, indices, asking, until - loop.time()) for node, indices in groups.items()]
            for indices, answers in zip(groups.values(), await asyncio.gather(*parts), strict=True):
                for index, answer in zip(indices, answers, strict=True):
                    replies[index] = answer
            moved = [index for indices in groups.values() for index in indices if isinstance(replies[index], Redirect)]
            if not moved:
                break
            groups, asking = self._follow(moved, replies)
        return replies

    def _follow(self, moved: Sequence[int], replies: Sequence[Reply]) -> tuple[dict[Node, list[int]], set[int]]:
        groups: dict[Node, list[int]] = {}
        asking: set[int] = set()
        now = asyncio.get_running_loop().time()
        for index in moved:
            redirect = replies[index]
            assert isinstance(redirect, Redirect)
            node = self._node(redirect.host, redirect.port)
            groups.setdefault(node, []).append(index)
            self._redirected[node] = now
            if redirect.asking:
                asking.add(index)
            else:
                self._slots[redirect.slot] = node
                self._learning.doubt()
        return groups, asking

    async def _ask(
        self, node: Node, asked: Sequence[Asked], indices: Sequence[int], asking: set[int], seconds: float
    ) -> list[Reply]:
        """One node's replies; its own failure in each one's place."""
        turnstile = self._turnstiles.get(node)
        if turnstile is None:  # the map was learnt between the decision to ask it and this
            return [StoreError("unavailable", f"{node.name}: is in the cluster no more")] * len(indices)
        commands: list[Command] = []
        for index in indices:
            if index in asking:
                commands.append(("ASKING",))
            commands.append(asked[index][1])
        try:
            replies = await turnstile.call(lambda: node.ask(commands, seconds), seconds)
        except StoreError as error:
            if error.kind in WRONG_SERVER:
                self._learning.doubt()
            return [error] * len(indices)
        for each in replies:
            if isinstance(each, Redirect):
                each.host = each.host if each.host not in UNNAMED else node.host
            elif isinstance(each, StoreError) and each.kind in ("unavailable", "refused"):
                self._learning.doubt()
        return [reply for reply, command in zip(replies, commands, strict=True) if command != ("ASKING",)]

    async def masters(self, seconds: float) -> Known:
        """All from whom values come, those included that have them on a redirection's word alone: from before anything
        is read there, so that who listens to all of these hears of every change but of the time since it asked."""
        await self._learning.ready(seconds)
        return Known(tuple(self._holding()), self._learning.age())

    def _holding(self) -> dict[Node, None]:
        """Nodes by the map, and those that something was sent on to."""
        least = asyncio.get_running_loop().time() - REDIRECTED_SECONDS
        self._redirected = {node: at for node, at in self._redirected.items() if at > least}
        return dict.fromkeys([*(node for node in self._slots if node is not None), *self._redirected])

    async def healthy(self, seconds: float) -> bool:
        try:
            masters = (await self.masters(seconds)).nodes
        except StoreError:
            return False
        return any(await asyncio.gather(*(pong(node, seconds) for node in masters)))

    async def close(self) -> None:
        await self._learning.close()
        for node, turnstile in self._turnstiles.items():
            await turnstile.close()
            node.close()

    async def _learn(self, seconds: float) -> None:
        """The map as the first node that answers has it: those in use, and those that were named."""
        known = [*dict.fromkeys([*self._nodes.values(), *(self._node(host, port) for host, port in self._hosts)])]

        async def told_by(node: Node) -> list[tuple[int, int, str, int]] | None:
            (reply,) = await node.ask([("CLUSTER", "SLOTS")], seconds)
            return None if not isinstance(reply, list) or not reply else [_range(entry, node.host) for entry in reply]

        known.sort(key=lambda each: each is not self._teller)
        self._teller, ranges = await first_told(known, told_by)
        slots: list[Node | None] = [None] * SLOTS
        for first, last, host, port in ranges:
            slots[first : last + 1] = [self._node(host, port)] * (last + 1 - first)
        self._use(slots)

    def _use(self, slots: list[Node | None]) -> None:
        """Ask by this map; nodes that are neither in it nor named by the address, nor asked lately, are let go."""
        self._slots = slots
        used = {*self._holding(), *(self._nodes.get(each) for each in self._hosts)}
        for address, node in tuple(self._nodes.items()):
            if node not in used:
                node.close()
                self._turnstiles.pop(node).end()
                del self._nodes[address]

    def _node(self, host: str, port: int) -> Node:
        node = self._nodes.get((host, port))
        if node is None:
            node = self._nodes[host, port] = Node(host, port, self._options)
            self._turnstiles[node] = self._turnstile(node)
        return node


def _failovers(facts: Reply) -> int:
    """Of SENTINEL MASTER: which failover is the latest that this Sentinel has heard of."""
    if isinstance(facts, list) and b"config-epoch" in facts[::2]:
        told = facts[2 * facts[::2].index(b"config-epoch") + 1]
        return int(told) if isinstance(told, bytes) else 0
    return 0


def _range(entry: Reply, asked_at: str) -> tuple[int, int, str, int]:
    """(first slot, last slot, host, port of the master), of one entry of CLUSTER SLOTS."""
    assert isinstance(entry, list)
    first, last, master = entry[:3]
    assert isinstance(master, list)
    host, port = master[:2]
    assert isinstance(first, int)
    assert isinstance(last, int)
    assert isinstance(port, int)
    named = host.decode() if isinstance(host, bytes) else ""
    return first, last, asked_at if named in UNNAMED else named, port


async def pong(node: Node, seconds: float) -> bool:
    """Whether it answers."""
    try:
        (reply,) = await node.ask([("PING",)], seconds)
    except StoreError:
        return False
    return not isinstance(reply, StoreError)
