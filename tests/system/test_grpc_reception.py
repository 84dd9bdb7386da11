"""What the gRPC door does when memory grows: silent streams stay whatever it grows for, those who fill it go."""

from __future__ import annotations

import asyncio
import json
import struct
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from grpc import aio
from tritonclient.grpc import service_pb2 as pb

SERVICE = "/inference.GRPCInferenceService"
SILENT = 40
BUFFERED = "64MiB"
"""Of it 8 MiB of growth are suspicious, and one message of 32 MiB may take its time."""
KEPT = 60
KEPT_BYTES = 512 * 1024
SECONDS = 60.0
MOMENT_SECONDS = 0.5
"""Ten sweeps."""

GROWING = """
import pathlib, threading, time
def grow():
    while not pathlib.Path({signal!r}).exists():
        time.sleep(0.05)
    held.extend(bytes(1024 * 1024) for _ in range(200))
    pathlib.Path({signal!r}).unlink()
held = []
threading.Thread(target=grow, daemon=True).start()
"""
"""Run by the interpreter at its start: a heap that grows by 200 MiB, for reasons of its own."""


def configured(triton: Any, *routes: str) -> dict[str, Any]:
    route = {"tiers": [{"backend": "b", "model": "echo_fp32"}], "cache": {"ttl": "1h"}}
    return {
        # At the end some of a message of 30 MiB is still on its way: nobody waits for the rest of it.
        "server": {"drain": "100ms", "buffered_bytes_max": BUFFERED, "grpc_open_streams_per_address_max": 2 * SILENT},
        "backends": {"b": {"http": [triton.http_url], "grpc": [triton.grpc_address]}},
        "routes": dict.fromkeys(routes, route),
    }


def question(number: int, model: str = "echo", size: int = 8) -> bytes:
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(name="x", datatype="FP32", shape=[1, size // 4])
    message.raw_input_contents.append(struct.pack("<2f", number, 7) + bytes(size - 8))
    return message.SerializeToString()


class Stream:
    """One stream on a connection of its own."""

    def __init__(self, channel: aio.Channel) -> None:
        self.call = channel.stream_stream(f"{SERVICE}/ModelStreamInfer")()

    async def asks(self, message: bytes) -> pb.ModelStreamInferResponse:
        await self.call.write(message)
        return pb.ModelStreamInferResponse.FromString(await self.call.read())


@asynccontextmanager
async def streams(address: str, count: int) -> AsyncIterator[list[Stream]]:
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
    ]
    async with AsyncExitStack() as stack:
        found = []
        for number in range(count):
            channel = await stack.enter_async_context(aio.insecure_channel(address, options=options))
            found.append(Stream(channel))
            assert not (await found[-1].asks(question(number))).error_message
        yield found


async def post(url: str) -> dict[str, Any]:
    def asked() -> dict[str, Any]:
        with urllib.request.urlopen(url, b"", timeout=SECONDS) as answer:
            return json.load(answer)

    return await asyncio.to_thread(asked)


async def test_a_purge_a_reload_and_a_growing_heap_cost_no_silent_stream(
    gateway_factory: Callable[..., Any], triton: Any, tmp_path: Path
) -> None:
    grow = tmp_path / "grow"
    (tmp_path / "sitecustomize.py").write_text(GROWING.format(signal=str(grow)))
    gateway = gateway_factory(configured(triton, "echo", "other"), (), {"PYTHONPATH": str(tmp_path)})
    async with asyncio.timeout(2 * SECONDS), streams(gateway.grpc_address, SILENT) as silent:
        async with aio.insecure_channel(gateway.grpc_address) as channel:
            infer = channel.unary_unary(f"{SERVICE}/ModelInfer")
            for route in ("echo", "other"):
                for number in range(KEPT):
                    await infer(question(number, route, KEPT_BYTES))
            assert gateway.metric("tailrace_cache_bytes", route="echo") > KEPT * KEPT_BYTES
            await asyncio.sleep(MOMENT_SECONDS)
            await post(f"{gateway.admin_url}/purge?route=echo")
            await asyncio.sleep(MOMENT_SECONDS)
            gateway.rewrite(configured(triton, "echo"))
            await post(f"{gateway.admin_url}/reload")
            await asyncio.sleep(MOMENT_SECONDS)
            grow.touch()
            while grow.exists():  # noqa: ASYNC110 - another process removes it
                await asyncio.sleep(0.02)
            await asyncio.sleep(MOMENT_SECONDS)
            await asyncio.gather(*(infer(question(number)) for number in range(200)))
        for number, stream in enumerate(silent):
            assert not (await stream.asks(question(number + 1000))).error_message
    assert gateway.metric("tailrace_refusals_total") == 0


@asynccontextmanager
async def slowly(address: str) -> AsyncIterator[str]:
    """The address of a way to another on which everyone gets some 5 MB/s."""
    host, _, port = address.rpartition(":")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pause: float) -> None:
        try:
            while data := await reader.read(64 * 1024):
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(pause)
        except ConnectionError:
            pass
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, back, 0.012), pump(there, writer, 0.0))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_streams_that_fill_memory_go_and_silent_ones_beside_them_stay(
    gateway_factory: Callable[..., Any], triton: Any
) -> None:
    gateway = gateway_factory(configured(triton, "echo"))
    async with (
        asyncio.timeout(2 * SECONDS),
        slowly(gateway.grpc_address) as address,
        streams(gateway.grpc_address, SILENT) as silent,
        streams(address, 4) as loud,
    ):
        large = question(0, size=30 * 1024 * 1024)

        async def ends(stream: Stream) -> str:
            try:
                await stream.asks(large)
            except (aio.AioRpcError, asyncio.InvalidStateError, aio.InternalError):
                return (await stream.call.code()).name
            return "answered"

        told = await asyncio.gather(*(ends(stream) for stream in loud))
        assert told.count("answered") >= 1, told
        assert told.count("UNAVAILABLE") >= 2, told
        for number, stream in enumerate(silent):
            assert not (await stream.asks(question(number + 1000))).error_message
