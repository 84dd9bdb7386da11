"""A Triton with one model, in the test's own event loop, for the doors' tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest

from tiers.inference import InferResponse, Tensor
from tiers.v2.request import WireForm, decode_request
from tiers.v2.response import encode_response

TENSORS = {"x": ("FP32", [-1, 2]), "words": ("BYTES", [-1]), "one": ("INT64", []), "brain": ("BF16", [-1])}
MODELS = {b"m": ("x",), b"w": ("words",), b"s": ("one",), b"b": ("brain",)}
DOUBLED = {"FP32": "<f4", "INT64": "<i8"}


class EchoTriton:
    """Answers y = 2 x for numbers, and what it got for what is none; ``asked`` counts, ``gate`` holds answers back."""

    def __init__(self) -> None:
        self.asked = 0
        self.url = ""
        self.gate = asyncio.Event()
        self.gate.set()
        self.status = b"200 OK"
        self.pause: Callable[[], float] = lambda: 0.0  # seconds that each answer takes
        self.serving: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lowered = head.lower()
                length = re.search(rb"\r\ncontent-length: ([0-9]+)\r\n", lowered)
                body = await reader.readexactly(int(length[1])) if length else b""
                target = head.split(b" ")[1]
                found = re.fullmatch(rb"/v2/models/([a-z])(?:/versions/1)?(/config|/stats|/infer|/ready)?", target)
                told, status, extra = b"{}", b"200 OK", b""
                if found is not None and found[2] == b"/infer":
                    self.asked += 1
                    await self.gate.wait()
                    await asyncio.sleep(self.pause())
                    told, extra = self._infer(found[1].decode(), lowered, body)
                    status = self.status
                elif found is not None and found[2] != b"/ready":
                    told = self._about(found[1].decode(), (found[2] or b"").decode())
                writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(told), extra, told))
        writer.close()

    def _about(self, model: str, what: str) -> bytes:
        if what == "/config":
            return json.dumps({"name": model, "max_batch_size": 0}).encode()
        if what == "/stats":
            return b'{"model_stats": []}'
        names = MODELS[model.encode()]
        inputs = [{"name": name, "datatype": TENSORS[name][0], "shape": TENSORS[name][1]} for name in names]
        outputs = [{**inputs[0], "name": "y"}]
        return json.dumps({"name": model, "versions": ["1"], "inputs": inputs, "outputs": outputs}).encode()

    def _infer(self, model: str, head: bytes, body: bytes) -> tuple[bytes, bytes]:
        """Body and further lines of the head."""
        if not self.status.startswith(b"200"):
            return b'{"error": "no"}', b""
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
