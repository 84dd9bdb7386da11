"""A Triton with one model, in the test's own event loop, for the doors' tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest

from tests.doors.callers import ALL
from tests.doors.house import House, opened
from tests.doors.question import Caller
from tiers.inference import InferResponse, Tensor
from tiers.v2.message import Malformed
from tiers.v2.request import WireForm, decode_request
from tiers.v2.response import encode_response

TENSORS = {"x": ("FP32", [-1, 2]), "words": ("BYTES", [-1]), "one": ("INT64", []), "brain": ("BF16", [-1])}
MODELS = {b"m": ("x",), b"w": ("words",), b"s": ("one",), b"b": ("brain",), b"k": ("x",), b"l": ("x",)}
BATCHED = {"k": 8, "l": 8}
DOUBLED = {"FP32": "<f4", "INT64": "<i8"}


class EchoTriton:
    """Answers y = 2 x for numbers, and what it got for what is none; ``asked`` counts, ``gate`` holds answers back.

    ``status`` is that of every inference, ``failing`` names models that are not well; "k" and "l" take batches.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.url = ""
        self.gate = asyncio.Event()
        self.gate.set()
        self.status = b"200 OK"
        self.failing: set[str] = set()
        self.pause: Callable[[], float] = lambda: 0.0  # seconds that each answer takes
        self.before: Callable[[bytes, int], Awaitable[None]] | None = None
        """Called with each inference's body and the port that it came from."""
        self.serving: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lowered = head.lower()
                body = await self._body(lowered, reader)
                target = head.split(b" ")[1]
                found = re.fullmatch(rb"/v2/models/([a-z])(?:/versions/1)?(/config|/stats|/infer|/ready)?", target)
                told, status, extra = b"{}", b"200 OK", b""
                if found is not None and found[2] == b"/infer":
                    self.asked += 1
                    if self.before is not None:
                        await self.before(body, writer.get_extra_info("peername")[1])
                    await self.gate.wait()
                    await asyncio.sleep(self.pause())
                    model = found[1].decode()
                    status = b"503 Unavailable" if model in self.failing else self.status
                    told = b'{"error": "no"}'
                    if status == b"200 OK":
                        try:
                            told, extra = self._infer(model, lowered, body)
                        except Malformed as fault:
                            told, status = json.dumps({"error": str(fault)}).encode(), b"400 Bad Request"
                elif found is not None and found[2] != b"/ready":
                    told = self._about(found[1].decode(), (found[2] or b"").decode())
                elif target.startswith(b"/v2/models/") and target.endswith(b"/infer"):
                    told, status = b'{"error": "Request for unknown model"}', b"400 Bad Request"
                writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(told), extra, told))
        writer.close()

    async def _body(self, head: bytes, reader: asyncio.StreamReader) -> bytes:
        if b"\r\ntransfer-encoding: chunked\r\n" in head:
            body = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
            return body
        length = re.search(rb"\r\ncontent-length: ([0-9]+)\r\n", head)
        return await reader.readexactly(int(length[1])) if length else b""

    def _about(self, model: str, what: str) -> bytes:
        if what == "/config":
            return json.dumps({"name": model, "max_batch_size": BATCHED.get(model, 0)}).encode()
        if what == "/stats":
            return b'{"model_stats": []}'
        names = MODELS[model.encode()]
        inputs = [{"name": name, "datatype": TENSORS[name][0], "shape": TENSORS[name][1]} for name in names]
        outputs = [{**inputs[0], "name": "y"}]
        return json.dumps({"name": model, "versions": ["1"], "inputs": inputs, "outputs": outputs}).encode()

    def _infer(self, model: str, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Body and further lines of the head."""
        found = re.search(rb"\r\ninference-header-content-length: ([0-9]+)\r\n", head)
        request, _ = decode_request(body, int(found[1]) if found else None, model, "")
        (x,) = request.inputs
        data = x.data
        if x.datatype in DOUBLED:
            data = (np.frombuffer(x.data, DOUBLED[x.datatype]) * 2).tobytes()
        answer = InferResponse(model, "1", (Tensor("y", x.datatype, x.shape, data),))
        parts, length = encode_response(answer, WireForm(binary_all=True), "")
        extra = b"" if length is None else b"Inference-Header-Content-Length: %d\r\n" % length
        return b"".join(parts), extra


@pytest.fixture
async def triton_echo() -> AsyncIterator[EchoTriton]:
    found = EchoTriton()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0, limit=2**24)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield found
    found.gate.set()
    server.close()
    for task in found.serving:
        if task is not None:
            task.cancel()
    await asyncio.gather(*(task for task in found.serving if task is not None), return_exceptions=True)


class Gate:
    """One door, and gateways to stand behind it."""

    def __init__(self, name: str, upstream: EchoTriton, stack: contextlib.AsyncExitStack) -> None:
        self.name, self.upstream, self._stack = name, upstream, stack
        self.door = ALL[name]

    async def house(self, *more: str, **overrides: str) -> House:
        """A gateway before the upstream (and ``more``), on the lane that the door stands for."""
        urls = (self.upstream.url, *more)
        return await self._stack.enter_async_context(opened(urls, ALL[self.name].edge, **overrides))

    async def caller(self, **overrides: str) -> Caller:
        """A client of such a gateway."""
        return (await self.house(**overrides)).caller(self.name)


@pytest.fixture(params=ALL)
async def gate(request: pytest.FixtureRequest, triton_echo: EchoTriton) -> AsyncIterator[Gate]:
    """Every door in turn."""
    async with contextlib.AsyncExitStack() as stack:
        yield Gate(request.param, triton_echo, stack)
