"""Clients that hold a connection and give nothing for it, in bytes: each door's own ways to be slow.

Rule of this file: a client does what it does until the gateway ends it. How long that should have taken is the test's
to know.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final

import msgpack
from msgspec import Struct
from tritonclient.grpc import service_pb2 as pb

BYTE_SECONDS: Final = 0.1
"""Between two bytes of who sends them one by one."""
SERVICE: Final = "inference.GRPCInferenceService"
LARGE: Final = 250_000
"""Elements of FP32 in an answer that is not read."""
ANSWERS: Final = 40
"""So many of those are asked for: more than any buffer on the way takes."""

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS_KIND, PING = 0, 1, 3, 4, 6
ACK: Final = 1
END_STREAM: Final = 1
END_HEADERS: Final = 4
NO_WINDOW: Final = b"\x00\x04\x00\x00\x00\x00"
"""SETTINGS_INITIAL_WINDOW_SIZE 0: nothing of an answer may be sent (RFC 9113 section 6.5.2)."""


class Manner(Struct, frozen=True):
    """How a client is slow: it sends ``at_once``, then ``slowly`` byte by byte.

    ``limits``: the keys of the gateway's file that bound it, one after the other. ``deaf``: it reads nothing, and
    ``nudge`` now and then tells it whether anyone is there. ``pongs``: it answers HTTP/2 pings. ``ends``: what in the
    bytes received says that it was ended, where the connection itself may stay.
    """

    limits: tuple[str, ...]
    at_once: bytes = b""
    slowly: bytes = b""
    deaf: bool = False
    nudge: bytes = b""
    pongs: bool = False
    ends: Callable[[bytes], bool] = lambda received: False


async def until_cut(address: str, manner: Manner, opening: AbstractAsyncContextManager[object] | None = None) -> None:
    """Go on until the gateway ends this client; it never ends by itself. ``opening``: held until its first bytes are
    sent; of thousands that one event loop opens together, the last would send seconds after it was accepted."""
    async with opening or nullcontext():
        own, sent = await _begun(address, manner.at_once)
        reader, writer = await asyncio.open_connection(sock=own)
    try:
        writer.write(memoryview(manner.at_once)[sent:])
        if manner.deaf:
            await _until_reset(writer, manner.nudge)
        else:
            sending = asyncio.create_task(_send(writer, manner.slowly))
            with contextlib.suppress(ConnectionError):
                await _until_ended(reader, writer, manner)
            sending.cancel()
    finally:
        writer.transport.abort()


async def _begun(address: str, at_once: bytes) -> tuple[socket.socket, int]:
    """Connected, and how many of these bytes are sent: no other task has had its turn in between."""
    host, _, port = address.rpartition(":")
    own = socket.socket()
    try:
        own.setblocking(False)
        await asyncio.get_running_loop().sock_connect(own, (host, int(port)))
        return own, own.send(at_once)
    except BaseException:
        own.close()
        raise


async def _until_ended(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, manner: Manner) -> None:
    received, seen = b"", 0
    while data := await reader.read(2**16):
        received += data
        if manner.ends(received):
            return
        if manner.pongs:
            pings = [payload for kind, flags, _, payload in frames(received) if kind == PING and not flags & ACK]
            for payload in pings[seen:]:
                writer.write(frame(PING, ACK, 0, payload))
            seen = len(pings)


async def _send(writer: asyncio.StreamWriter, slowly: bytes) -> None:
    for byte in slowly:
        await asyncio.sleep(BYTE_SECONDS)
        writer.write(bytes([byte]))


async def _until_reset(writer: asyncio.StreamWriter, nudge: bytes) -> None:
    transport = writer.transport
    assert isinstance(transport, asyncio.Transport)
    transport.pause_reading()
    while not transport.is_closing():
        await asyncio.sleep(BYTE_SECONDS)
        writer.write(nudge)


# -- HTTP ------------------------------------------------------------------------------------------------


def http(route: str) -> dict[str, Manner]:
    tensor = {"name": "x", "shape": [1, LARGE], "datatype": "FP32", "parameters": {"binary_data_size": 4 * LARGE}}
    outputs = [{"name": "y", "parameters": {"binary_data": True}}]
    front = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    post = f"POST /v2/models/{route}/infer HTTP/1.1\r\nHost: h\r\n".encode()
    fields = f"Inference-Header-Content-Length: {len(front)}\r\nContent-Length: {len(front) + 4 * LARGE}\r\n\r\n"
    large = post + fields.encode() + front + bytes(4 * LARGE)
    live = b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n"
    chunked = post + b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n{"
    return {
        "silent": Manner(("idle_timeout",)),
        "head": Manner(("head_timeout",), b"P", (post + b"X: y\r\n" * 200)[1:]),
        "body": Manner(("body_timeout",), post + b"Content-Length: 1000\r\n\r\n{", b" " * 900),
        "body in chunks": Manner(("body_timeout",), chunked, b" " * 900, ends=lambda received: b" 408 " in received),
        "after an answer": Manner(("idle_timeout",), live),
        "reads nothing": Manner(("write_timeout",), ANSWERS * large, deaf=True, nudge=live),
    }


# -- gRPC: frames by hand, for no client of grpc is slow in these ways ---------------------------------------


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame (RFC 9113 section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def frames(received: bytes) -> list[tuple[int, int, int, bytes]]:
    """Kind, flags, stream and payload of every whole frame."""
    found, at = [], 0
    while at + 9 <= len(received):
        end = at + 9 + int.from_bytes(received[at : at + 3], "big")
        if end > len(received):
            break
        stream = int.from_bytes(received[at + 5 : at + 9], "big")
        found.append((received[at + 3], received[at + 4], stream, received[at + 9 : end]))
        at = end
    return found


def head(path: str) -> bytes:
    """A call's HEADERS; every field literal, none indexed (RFC 7541 section 6.2.2)."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "h"), ("te", "trailers")]
    fields.append(("content-type", "application/grpc"))
    block = b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields)
    return frame(HEADERS, END_HEADERS, 1, block)


def _string(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def _call_ended(received: bytes) -> bool:
    """Trailers, or a reset: the one call is over though the connection is not."""
    mine = [(kind, flags) for kind, flags, stream, _ in frames(received) if stream == 1]
    return any(kind == RST_STREAM or flags & END_STREAM for kind, flags in mine)


def grpc(route: str) -> dict[str, Manner]:
    message = pb.ModelInferRequest(model_name=route).SerializeToString()
    begun = b"\x00" + (1000).to_bytes(4, "big") + message
    settled = PREFACE + frame(SETTINGS_KIND, 0, 0, b"")
    infer, stream, live = (head(f"/{SERVICE}/{name}") for name in ("ModelInfer", "ModelStreamInfer", "ServerLive"))
    long = head("/" + "x" * 120) + frame(9, 0, 1, b"")  # a CONTINUATION that is not due: it never gets there
    check, watch = head("/grpc.health.v1.Health/Check"), head("/grpc.health.v1.Health/Watch")

    def no_window(asked: bytes) -> bytes:
        return PREFACE + frame(SETTINGS_KIND, 0, 0, NO_WINDOW) + asked + frame(DATA, END_STREAM, 1, bytes(5))

    body = ("body_timeout",)
    ping = ("grpc_keepalive_timeout",)  # from a ping on: grpc's own may come long before grpc_keepalive is over
    return {
        "silent": Manner(("head_timeout",)),
        "preface": Manner(("head_timeout",), PREFACE[:1], PREFACE[1:] + bytes(500)),
        "answers no ping": Manner(ping, settled),
        "answers pings": Manner(("idle_timeout",), settled, pongs=True),
        "head": Manner(
            ping, settled + long[:20], long[20:]
        ),  # or at idle_timeout, while its bytes pass for a sign of life
        "no message": Manner(body, settled + infer, ends=_call_ended, pongs=True),
        "message": Manner(body, settled + infer, b"".join(map(_one, begun)), ends=_call_ended),
        "no message on a stream": Manner(body, settled + stream, ends=_call_ended, pongs=True),
        "takes no answer": Manner(("write_timeout",), no_window(live), pongs=True),
        "takes no health": Manner(("write_timeout",), no_window(check), pongs=True),
        "watches and takes nothing": Manner(("write_timeout",), no_window(watch), pongs=True),
    }


def _one(byte: int) -> bytes:
    return frame(DATA, 0, 1, bytes([byte]))


# -- MessagePack-RPC --------------------------------------------------------------------------------------------


def rpc(route: str) -> dict[str, Manner]:
    def call(elements: int) -> bytes:
        tensor = {"name": "x", "shape": [1, elements], "datatype": "FP32", "data": bytes(4 * elements)}
        packed: bytes = msgpack.packb([0, 1, "infer", [{"model": route, "inputs": [tensor]}]])
        return packed

    health: bytes = msgpack.packb([0, 1, "health", []])
    return {
        "silent": Manner(("idle_timeout",)),
        "head": Manner(("head_timeout",), b"\x94", b"\x00\xcf" + bytes(8) + b"\xd9\xff" + b"i" * 255),
        "body": Manner(("body_timeout",), call(250)[:40], call(250)[40:]),
        "after an answer": Manner(("idle_timeout",), health),
        "reads nothing": Manner(("write_timeout",), ANSWERS * call(LARGE), deaf=True, nudge=health),
    }


# -- before any of them -------------------------------------------------------------------------------------------

HELLO: Final = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""How a TLS handshake begins."""


def tls(_: str) -> dict[str, Manner]:
    head_timeout = ("head_timeout",)
    return {"silent": Manner(head_timeout), "hello": Manner(head_timeout, HELLO[:3], HELLO[3:] + bytes(400))}
