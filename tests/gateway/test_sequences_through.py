"""Requests of one sequence that pass through go to one of several replicas, on both lanes."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from gateway.app import Gateway
from gateway.sources import load

SECONDS = 10.0
REPLICAS = 4


@pytest.fixture
async def replicas() -> AsyncIterator[tuple[list[str], list[bytes]]]:
    """Their URLs; each answers with its number. And the bodies that came."""
    bodies: list[bytes] = []

    async def serve(number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).lower():
                size = head.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
                body = await reader.readexactly(int(size or 0))
                if body:
                    bodies.append(body)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with AsyncExitStack() as stack:
        servers = [
            await asyncio.start_server(lambda r, w, number=number: serve(number, r, w), "127.0.0.1", 0)
            for number in range(REPLICAS)
        ]
        for server in servers:
            await stack.enter_async_context(server)
        yield [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers], bodies


def asked(sequence: object, binary: bytes = b"") -> bytes:
    text = json.dumps({"parameters": {"sequence_id": sequence}, "inputs": []}).encode()
    length = f"Inference-Header-Content-Length: {len(text)}\r\n" if binary else ""
    head = f"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\n{length}Content-Length: {len(text) + len(binary)}\r\n\r\n"
    return head.encode() + text + binary


@pytest.mark.parametrize("edge", ["true", "false"])
async def test_a_sequence_that_passes_through_stays_on_its_replica(
    replicas: tuple[list[str], list[bytes]], edge: str
) -> None:
    urls, bodies = replicas
    environ = {
        "TAILRACE_SERVER__HTTP": '"127.0.0.1:0"',
        "TAILRACE_SERVER__GRPC": "off",
        "TAILRACE_SERVER__ADMIN": '"127.0.0.1:0"',
        "TAILRACE_SERVER__DRAIN": "0s",
        "TAILRACE_SERVER__EDGE": edge,
    }
    gateway = Gateway(load(None, environ, urls))
    http, _ = await gateway.start()
    port = int(http.rpartition(":")[2])

    async def ask(request: bytes) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.timeout(SECONDS):
                writer.write(request)
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
                return int(await reader.readexactly(1))
        finally:
            writer.close()

    try:
        homes = Counter()
        for sequence in range(1, 17):
            binary = b'"sequence_id"' * (sequence % 2)  # behind the JSON part it means nothing
            seen = {await ask(asked(sequence, binary)) for _ in range(6)}
            assert len(seen) == 1, "one sequence, one replica"
            homes[seen.pop()] += 1
        assert len(homes) > 1, "sequences are spread"
        assert len({await ask(asked(0)) for _ in range(40)}) > 1, "what is of no sequence goes anywhere"
        assert len(bodies) == 16 * 6 + 40
    finally:
        await gateway.stop()
