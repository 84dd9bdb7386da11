"""A Redis in virtual time: strings with a life, and a word to who listens for writes (RESP2, CLIENT TRACKING).

Rule of this file: it answers as Redis does what the gateway asks, and no more. It must not know what a value means; who
writes to it says so to the ledger.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import hiredis

from tests.sim import faults
from tests.sim.network import Network, Server, Side

ERRORS: Final = {
    faults.NOAUTH: b"-NOAUTH Authentication required.\r\n",
    faults.LOADING: b"-LOADING Redis is loading the dataset in memory\r\n",
    faults.MASTER_DOWN: b"-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n",
    faults.READONLY: b"-READONLY You can't write against a read only replica.\r\n",
    faults.FULL: b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
}
OF_WRITES: Final = frozenset({faults.READONLY, faults.FULL})
WRONG: Final = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"
GARBAGE: Final = b"HTTP/1.1 400 Bad Request\r\n\r\n"


class Redis:
    """One server."""

    def __init__(self, network: Network, host: str, rot: Callable[[bytes], bytes]) -> None:
        """``rot``: what becomes of a value that rots."""
        self.network = network
        self.host = host
        self.rot = rot
        self.place = f"redis:{host}"
        self.held: dict[bytes, tuple[bytes, float]] = {}
        self._ears: dict[_Connection, bytes] = {}
        self._numbers = 0
        self._server: Server | None = None
        self.start()

    def start(self) -> None:
        if self._server is None:
            self._server = self.network.listen(lambda: _Connection(self), self.host)

    def kill(self) -> None:
        """It ends; what it held in memory is on its disk."""
        if self._server is not None:
            self._server.kill()
            self._server = None

    def put(self, key: bytes, value: bytes | None) -> None:
        """Somebody else writes, or removes."""
        if value is None:
            self.held.pop(key, None)
        else:
            self.held[key] = value, float("inf")
        self.told(key)

    def told(self, key: bytes) -> None:
        word = b"*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n*1\r\n$%d\r\n%b\r\n" % (len(key), key)
        for ear, prefix in tuple(self._ears.items()):
            if key.startswith(prefix):
                ear.side.write(word)

    def flush(self) -> None:
        self.held.clear()
        for ear in tuple(self._ears):
            ear.side.write(b"*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n*-1\r\n")

    def cut_ears(self) -> None:
        """Who listens is cut off, and hears nothing of what is written until it is back."""
        for ear in tuple(self._ears):
            ear.side.cut()

    def get(self, key: bytes) -> bytes | None:
        found = self.held.get(key)
        if found is None:
            return None
        if found[1] <= self.network.loop.now:
            del self.held[key]
            return None
        if self.network.weather.strikes(self.place, self.network.loop.now, faults.ROTTEN):
            return self.rot(found[0])
        return found[0]

    def number(self) -> int:
        self._numbers += 1
        return self._numbers


class _Connection(asyncio.Protocol):
    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._reader = hiredis.Reader()
        self._number = redis.number()
        self._prefix: bytes | None = None
        self.side: Side

    def connection_made(self, transport: Any) -> None:
        self.side = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._redis._ears.pop(self, None)

    def spoil(self, data: bytes, at: int) -> bytes:
        """What has no checksum must not be spoiled unseen: the first byte says what kind of reply it is."""
        return b"\0" + data[1:]

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        out = b""
        while True:
            command = self._reader.gets()
            if command is False:
                break
            out += self._do([part if isinstance(part, bytes) else str(part).encode() for part in command])
        if out:
            self.side.write(out)

    def _do(self, command: Sequence[bytes]) -> bytes:
        redis = self._redis
        word = command[0].upper()
        now, weather = redis.network.loop.now, redis.network.weather
        writes = word in (b"SET", b"UNLINK")
        told = word in (b"CLIENT", b"SUBSCRIBE", b"SELECT")
        kinds = (faults.NOAUTH, faults.LOADING, faults.MASTER_DOWN, faults.GARBAGE)
        bad = None if told else weather.strikes(redis.place, now, *kinds, *(OF_WRITES if writes else ()))
        if bad is not None:
            return GARBAGE if bad.kind == faults.GARBAGE else ERRORS[bad.kind]
        match word:
            case b"MGET":
                found = [redis.get(key) for key in command[1:]]
                if weather.strikes(redis.place, now, faults.WRONG_TYPE):
                    self._odd = command[1]
                    found[0] = None
                return b"*%d\r\n" % len(found) + b"".join(map(_bulk, found))
            case b"GET":
                if command[1] == getattr(self, "_odd", None):
                    self._odd = None
                    return WRONG
                return _bulk(redis.get(command[1]))
            case b"EXISTS":
                odd = getattr(self, "_odd", None) in command[1:]
                return b":%d\r\n" % (odd + sum(key in redis.held for key in command[1:]))
            case b"SET":
                ends = now + int(command[4]) / 1000 if len(command) > 4 else float("inf")
                redis.held[command[1]] = command[2], ends
                redis.told(command[1])
                return b"+OK\r\n"
            case b"UNLINK":
                gone = redis.held.pop(command[1], None)
                redis.told(command[1])
                return b":%d\r\n" % (gone is not None)
            case b"PING":
                return b"*2\r\n$4\r\npong\r\n$0\r\n\r\n" if self in redis._ears else b"+PONG\r\n"
            case b"CLIENT" if command[1].upper() == b"ID":
                return b":%d\r\n" % self._number
            case b"CLIENT":
                parts = [part.upper() for part in command]
                self._prefix = command[parts.index(b"PREFIX") + 1] if b"PREFIX" in parts else b""
                return b"+OK\r\n"
            case b"SUBSCRIBE":
                redis._ears[self] = self._prefix or b""
                return b"*3\r\n$9\r\nsubscribe\r\n$20\r\n__redis__:invalidate\r\n:1\r\n"
            case b"ROLE":
                return b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"
            case b"SELECT":
                return b"+OK\r\n"
            case _:
                return b"-ERR unknown command\r\n"


def _bulk(value: bytes | None) -> bytes:
    return b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value)
