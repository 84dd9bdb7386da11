"""Clients that ask again elsewhere what a gateway that ends has not answered, each as its wire allows.

Rule of this file: what may be asked again is what docs/clients.md says: over HTTP a request whose connection was
closed before a byte of its answer, over MessagePack-RPC the calls without an answer, over gRPC a call that was
UNAVAILABLE. Anything else that goes wrong is an error.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final

import msgpack
from grpc import aio
from tritonclient.grpc import service_pb2 as pb

SECONDS: Final = 60.0
ATTEMPTS_MAX: Final = 200
PAUSE_SECONDS: Final = 0.05
SERVICE: Final = "/inference.GRPCInferenceService"
AGAIN: Final = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.02s",
                "maxBackoff": "0.2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "loadBalancingConfig": [{"round_robin": {}}],
}


class Connected:
    """One connection at a time, to whichever of these takes it; ``moved`` counts how often it had to be made anew
    elsewhere."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = addresses
        self.moved = 0
        self._turn = 0
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def connect(self) -> None:
        for _ in range(ATTEMPTS_MAX):
            host, _, port = self.addresses[self._turn % len(self.addresses)].rpartition(":")
            try:
                self.reader, self.writer = await asyncio.open_connection(host, int(port))
                return
            except ConnectionError:
                self._turn += 1
                await asyncio.sleep(PAUSE_SECONDS)
        raise AssertionError("no gateway takes connections")

    async def move(self) -> None:
        """Go on at the next of them."""
        self.writer.close()
        self._turn += 1
        self.moved += 1
        await self.connect()

    def close(self) -> None:
        self.writer.close()


class PatientRpc(Connected):
    """A client of nothing but msgpack and a socket."""

    async def all_of(self, calls: dict[int, tuple[str, dict[str, Any]]]) -> dict[int, Any]:
        """The results of all of these, sent at once."""
        results: dict[int, Any] = {}
        while left := {msgid: call for msgid, call in calls.items() if msgid not in results}:
            unpacker = msgpack.Unpacker()
            try:
                sent = [msgpack.packb([0, msgid, method, [asked]]) for msgid, (method, asked) in left.items()]
                self.writer.write(b"".join(sent))
                async with asyncio.timeout(SECONDS):
                    while len(results) < len(calls):
                        data = await self.reader.read(2**16)
                        if not data:
                            raise ConnectionResetError
                        unpacker.feed(data)
                        for _, msgid, error, result in unpacker:
                            assert error is None, error
                            results[msgid] = result
            except ConnectionError:
                await self.move()
        return results


class PatientHttp(Connected):
    """A client of a kept connection. ``in_chunks``: which the aiohttp lane reads."""

    def __init__(self, addresses: Sequence[str], in_chunks: bool) -> None:
        super().__init__(addresses)
        self._in_chunks = in_chunks

    async def infer(self, model: str, document: dict[str, Any]) -> Any:
        """The first output's data."""
        body = json.dumps(document).encode()
        framing = f"Content-Length: {len(body)}"
        if self._in_chunks:
            framing, body = "Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n".encode()
        while True:
            async with asyncio.timeout(SECONDS):
                try:
                    self.writer.write(head + body)
                    raw = await self.reader.readuntil(b"\r\n\r\n")
                except (ConnectionError, asyncio.IncompleteReadError) as error:
                    if getattr(error, "partial", b""):
                        raise  # half an answer
                    await self.move()
                    continue
                told = dict(line.lower().split(": ", 1) for line in raw.decode().split("\r\n")[1:-2])
                answer = json.loads(await self.reader.readexactly(int(told["content-length"])))
            assert raw.startswith(b"HTTP/1.1 200 "), (raw, answer)
            if told.get("connection") == "close":
                await self.move()
            return answer["outputs"][0]["data"]


class PatientGrpc:
    """A channel to all of these, whose own policy asks again."""

    def __init__(self, addresses: Sequence[str]) -> None:
        options = [("grpc.service_config", json.dumps(AGAIN)), ("grpc.enable_retries", 1)]
        options.append(("grpc.use_local_subchannel_pool", 1))
        self._channel = aio.insecure_channel(f"ipv4:{','.join(addresses)}", options=options)

    async def infer(self, message: pb.ModelInferRequest) -> bytes:
        """The first output's bytes."""
        call = self._channel.unary_unary(f"{SERVICE}/ModelInfer")(message.SerializeToString(), timeout=SECONDS)
        data: bytes = pb.ModelInferResponse.FromString(await call).raw_output_contents[0]
        return data

    async def close(self) -> None:
        await self._channel.close()
