"""A network in virtual time: bytes arrive later, in their order, and suffer the weather of the host they are from.

Rule of this file: it carries bytes and knows no protocol. A host's weather is asked at ``net:HOST:PORT``; what a
connection has suffered stays with it (a half open one stays half open).
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import random
from collections.abc import Callable
from typing import Any, Final

from tests.sim import faults
from tests.sim.faults import Spell, Weather
from tests.sim.loop import LIFE, SimLoop

OWNER: Final[contextvars.ContextVar[str]] = contextvars.ContextVar("owner", default="")
"""Which process of the world is at work: who connects is known by it."""

LATENCY_SECONDS: Final = 0.0002
"""The least that bytes take; ``far`` is how much more that may be, by chance."""
CRUMBS_MAX: Final = 12
"""Into how many pieces a slow answer falls."""


class Network:
    """All hosts and who listens there."""

    def __init__(self, loop: SimLoop, weather: Weather, chance: random.Random) -> None:
        self.loop = loop
        self.weather = weather
        self.chance = chance
        self._listeners: dict[str, Server] = {}
        self.open: dict[Side, None] = {}
        self.far = 0.0
        self.of_askers: dict[str, tuple[str, ...]] = {}
        """What those who connect suffer too in what they say, by place."""
        loop.network = self

    def listen(self, factory: Callable[[], asyncio.Protocol], host: str) -> Server:
        assert host not in self._listeners, f"{host} is taken"
        self._listeners[host] = server = Server(self, factory, host)
        return server

    def forget(self, host: str) -> None:
        self._listeners.pop(host, None)

    async def connect(self, factory: Callable[[], asyncio.Protocol], host: str) -> tuple[Side, asyncio.Protocol]:
        """As ``create_connection``. Raises OSError."""
        place = f"net:{host}"
        spell = self.weather.strikes(place, self.loop.now, faults.REFUSE, faults.SWALLOW)
        if spell is not None and spell.kind == faults.SWALLOW:
            await asyncio.sleep(3600.0)  # whoever connects has a bound of its own
        await asyncio.sleep(LATENCY_SECONDS * self.chance.uniform(0.5, 2.0))
        server = self._listeners.get(host)
        if spell is not None or server is None:
            raise ConnectionRefusedError(f"{host} refuses")
        ours, theirs = factory(), server.context.copy().run(server.factory)
        near, far = Side(self, place, ours, False), Side(self, place, theirs, True)
        near.peer, far.peer = far, near
        near.owner = OWNER.get()
        far.context = server.context
        server.sides[far] = None
        far.server = server
        self.open[near] = self.open[far] = None
        far.call(theirs.connection_made, far)
        ours.connection_made(near)
        return near, ours

    def end(self, life: int) -> None:
        """A process is killed: nobody listens for it any more, and its connections break."""
        for server in [each for each in self._listeners.values() if each.context.get(LIFE, 0) == life]:
            server.close()
        for side in [each for each in self.open if each.context.get(LIFE, 0) == life]:
            side.end()


class Server:
    """Who listens on a host."""

    def __init__(self, network: Network, factory: Callable[[], asyncio.Protocol], host: str) -> None:
        self._network = network
        self.factory = factory
        self.host = host
        self.sides: dict[Side, None] = {}
        self.context = contextvars.copy_context()
        """Of the process that listens: what comes is heard by it, and not by whoever sent it."""

    def close(self) -> None:
        """Accept nobody any more."""
        self._network.forget(self.host)

    async def wait_closed(self) -> None:
        return None

    def kill(self) -> None:
        """The process ends: all its connections break, and nobody listens."""
        self.close()
        for side in tuple(self.sides):
            side.cut()


class Side(asyncio.Transport):
    """One end of a connection, as its protocol sees it. ``answers``: the listener's end, whose words suffer most."""

    def __init__(self, network: Network, place: str, protocol: asyncio.Protocol, answers: bool) -> None:
        super().__init__()
        self._network = network
        self._loop = network.loop
        self._place = place
        self._protocol: Any = protocol
        self._answers = answers
        self.peer: Side
        self.owner = ""
        self.context = contextvars.copy_context()
        self.server: Server | None = None
        self._arrives = 0.0  # when the last that was sent does
        self._closing = False
        self._lost = False
        self._deaf = False  # half open, or hanging: nothing goes out any more
        self._paused: list[bytes] | None = None
        self._ended: tuple[Exception | None] | None = None  # an end that waits behind what is paused

    # -- what a protocol does -------------------------------------------------------------------

    def write(self, data: Any) -> None:
        self.tell(data)

    def tell(self, data: Any) -> float:
        """Write; when all of it will have arrived, unharmed (infinity: never)."""
        if self._closing or self._lost or not data:
            return math.inf
        data = bytes(data)
        now, weather, place = self._loop.now, self._network.weather, self._place
        if not self._answers:
            spell = weather.strikes(place, now, faults.HALF_OPEN, faults.RESET, *self._network.of_askers.get(place, ()))
            if spell is not None and spell.kind in (faults.LATENCY, faults.DRIP):
                self._suffer(data, spell)
                return self._arrives
            if spell is not None and spell.kind == faults.RESET:
                self._loop.call_soon(self.cut)  # the line breaks, whoever is still there
                return math.inf
            if spell is not None:
                self._deaf = self.peer._deaf = True
            self._send(data, LATENCY_SECONDS)
            return math.inf if self._deaf else self._arrives
        spell = weather.strikes(place, now, *faults.OF_LINKS[:6])
        if spell is None:
            self._send(data, LATENCY_SECONDS)
        else:
            self._suffer(data, spell)
        whole = spell is None or spell.kind in (faults.LATENCY, faults.DRIP)
        return self._arrives if whole and not self._deaf else math.inf

    def _suffer(self, data: bytes, spell: Spell) -> None:
        at = min(len(data) - 1, int(spell.at * len(data)))
        match spell.kind:
            case faults.LATENCY:
                self._send(data, spell.seconds)
            case faults.HANG:
                self._deaf = True
            case faults.RESET:
                self._loop.call_soon(self.cut)
            case faults.TRUNCATE:
                self._send(data[:at], LATENCY_SECONDS)
                self.close()
            case faults.CORRUPT:
                self._send(self.spoiled(data, at), LATENCY_SECONDS)
            case faults.DRIP:
                crumb = -(-len(data) // CRUMBS_MAX)
                for start in range(0, len(data), crumb):
                    self._send(data[start : start + crumb], spell.seconds / CRUMBS_MAX + LATENCY_SECONDS)

    def spoiled(self, data: bytes, at: int) -> bytes:
        """With another byte at a place where that can be noticed: there is no check on what follows a head."""
        spoil: Callable[[bytes, int], bytes] | None = getattr(self._protocol, "spoil", None)
        return data[:at] + b"\0" + data[at + 1 :] if spoil is None else spoil(data, at)

    def _send(self, data: bytes, seconds: float) -> None:
        if self._deaf:
            return
        network = self._network
        far = network.far * network.chance.random() if network.far else 0.0
        self._arrives = max(self._arrives, self._loop.now + far) + seconds
        self._loop.call_at(self._arrives, self.peer._deliver, data, context=self.peer.context)

    def writelines(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def close(self) -> None:
        """After what was sent has arrived."""
        if self._closing:
            return
        self._closing = True
        self._loop.call_soon(self._lose, None, context=self.context)
        if not self._deaf:
            at, peer = max(self._arrives, self._loop.now) + LATENCY_SECONDS, self.peer
            self._loop.call_at(at, peer._end, None, context=peer.context)

    def abort(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._loop.call_soon(self._lose, None, context=self.context)
        if not self._deaf:
            self._end_there(ConnectionResetError("reset"))

    def cut(self) -> None:
        """Both ends learn that it broke."""
        for side in (self, self.peer):
            side._closing = True
            side.call(side._lose, ConnectionResetError("reset"))

    def end(self) -> None:
        """Its process is gone: it hears nothing more, and the other end learns that it broke."""
        if self._lost:
            return
        self._closing = self._lost = True
        self._forget()
        if not self._deaf:
            self._end_there(ConnectionResetError("reset"))

    def call(self, work: Callable[..., None], *args: Any) -> None:
        """Now, as the process whose end this is."""
        self.context.copy().run(work, *args)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        if self._paused is None:
            self._paused = []

    def resume_reading(self) -> None:
        held, self._paused = self._paused, None
        for data in held or ():
            self._loop.call_soon(self._deliver, data, context=self.context)
        if self._ended is not None:
            ended, self._ended = self._ended, None
            self._loop.call_soon(self._end, ended[0], context=self.context)

    def is_reading(self) -> bool:
        return self._paused is None

    def can_write_eof(self) -> bool:
        return False

    def write_eof(self) -> None:
        raise NotImplementedError

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    # -- what the network does --------------------------------------------------------------------

    def _deliver(self, data: bytes) -> None:
        if self._lost or self._closing:
            return
        if self._paused is not None:
            self._paused.append(data)
            return
        self._protocol.data_received(data)

    def _end(self, error: Exception | None) -> None:
        if self._lost or self._closing:
            return
        if self._paused is not None and error is None:
            self._ended = (error,)
            return
        keeps = error is None and self._protocol.eof_received()
        if keeps:
            return
        self._closing = True
        if not self._deaf:
            self._end_there(None)
        self._lose(error)

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self._forget()
        self._protocol.connection_lost(error)

    def _end_there(self, error: Exception | None) -> None:
        self._loop.call_later(LATENCY_SECONDS, self.peer._end, error, context=self.peer.context)

    def _forget(self) -> None:
        self._network.open.pop(self, None)
        if self.server is not None:
            self.server.sides.pop(self, None)
