"""The peers "floor" and "floor-pass": the least that Python on the gateway's event loop can do, as a measure of ours.

    python uvloop_peer.py PORT UPSTREAM_PORT dict|pass

A request's head is known again by its exact bytes. ``dict``: then a BLAKE3 of the body, a look-up, one write. ``pass``:
what comes goes to a connection that is idle, and what comes back goes back. Nothing is parsed, checked, counted or
bounded, and an answer is taken to come in one piece: what a real lane adds is the difference.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import cast

import uvloop
from blake3 import blake3

END = b"\r\n\r\n"
LENGTH = re.compile(rb"content-length: ([0-9]+)\r\n", re.IGNORECASE)

lengths: dict[bytes, int] = {}
answers: dict[bytes, bytes] = {}
idle: list[Upstream] = []


class Upstream(asyncio.Protocol):
    """A connection to the upstream; ``key``: what its answer is kept under."""

    caller: asyncio.Transport
    key: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.caller.write(data)
        if self.key is not None:
            answers[self.key] = data.replace(b"\r\n", b"\r\nX-Cache: HIT\r\n", 1)
        idle.append(self)


class Caller(asyncio.Protocol):
    """A caller's connection."""

    caches = True
    upstream = 0
    rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.rest:
            data, self.rest = self.rest + data, b""
        at = data.find(END) + len(END)
        head = data[:at]
        length = lengths.get(head)
        if length is None and at >= len(END):
            found = LENGTH.search(head)
            length = lengths[head] = int(found[1]) if found else 0
        if length is None or len(data) < at + length:
            self.rest = data
            return
        key = None
        if self.caches:
            key = blake3(data[at:]).digest()
            answer = answers.get(key)
            if answer is not None:
                self.transport.write(answer)
                return
        if idle:
            self.ask(idle.pop(), data, key)
        else:
            self.task = asyncio.get_running_loop().create_task(self.connect(data, key))

    def ask(self, upstream: Upstream, data: bytes, key: bytes | None) -> None:
        upstream.caller, upstream.key = self.transport, key
        upstream.transport.write(data)

    async def connect(self, data: bytes, key: bytes | None) -> None:
        loop = asyncio.get_running_loop()
        _, upstream = await loop.create_connection(Upstream, "127.0.0.1", self.upstream)
        self.ask(upstream, data, key)


async def serve(port: int, upstream: int, *, caches: bool) -> None:
    Caller.caches, Caller.upstream = caches, upstream
    async with await asyncio.get_running_loop().create_server(Caller, "127.0.0.1", port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2]), caches=sys.argv[3] == "dict"))
