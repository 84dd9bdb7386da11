"""One caller of the gRPC door: the questions of ``load.py`` as calls, and what comes back as over HTTP.

Rule of this file: it translates. gRPC tells what an answer is made of in the same words, as trailing metadata; a status
without a problem of the gateway's is the connection's end, and not an answer.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Final

import grpc
import numpy as np
from grpc import aio
from tritonclient.grpc import service_pb2 as pb

from tests.chaos.judge import Question
from tests.doors.question import NUMBERS

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
KINDS: Final = {"FP32": "<f4", "FP64": "<f8"}
OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 3000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
)
"""As quick as an HTTP client is to connect again (the second is how long it may take to connect), and each caller with
a connection of its own."""
NAMES: Final = MappingProxyType({
    "tailrace-provenance": "Tailrace-Provenance", "cache-status": "Cache-Status", "age": "Age",
    "retry-after": "Retry-After",
})  # fmt: skip
Came = tuple[int, dict[str, str], dict[str, Any]]
"""Status, headers and document, as over HTTP."""


class Dropped(Exception):
    """The connection ended."""


class GrpcCaller:
    """A channel that connects again by itself."""

    def __init__(self, address: str) -> None:
        self._channel = aio.insecure_channel(address, options=OPTIONS)
        self._infer = self._channel.unary_unary(METHOD)

    async def ask(self, question: Question, seconds: float) -> Came:
        """Raises Dropped, and TimeoutError when nothing came within ``seconds``."""
        call = self._infer(message(question), timeout=seconds)
        try:
            answer = pb.ModelInferResponse.FromString(await call)
        except aio.AioRpcError as error:
            return _refused(error)
        told = await call.trailing_metadata()
        arrays = [
            np.frombuffer(raw, KINDS[output.datatype]).tolist()
            for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
        ]
        outputs = [{"name": each.name, "data": data} for each, data in zip(answer.outputs, arrays, strict=True)]
        return 200, _headers(told), {"outputs": outputs}

    async def close(self) -> None:
        await self._channel.close()


def message(question: Question) -> bytes:
    """The request as bytes."""
    made = pb.ModelInferRequest(model_name=question.kind)
    if question.kind == "features":
        ((user, item),) = question.rows
        for name, number in (("user", user), ("item", item)):
            made.inputs.add(name=name, datatype="INT64", shape=[1])
            made.raw_input_contents.append(np.array([number], "<i8").tobytes())
    else:
        made.inputs.add(name="x", datatype="FP32", shape=[len(question.rows), len(question.rows[0])])
        made.raw_input_contents.append(np.array(question.rows, "<f4").tobytes())
    data: bytes = made.SerializeToString()
    return data


def _headers(told: Any) -> dict[str, str]:
    return {NAMES[name]: str(value) for name, value in dict(told).items() if name in NAMES}


def _refused(error: aio.AioRpcError) -> Came:
    told = dict(error.trailing_metadata() or ())
    slug = str(told.get("tailrace-problem", ""))
    if not slug and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        raise TimeoutError
    if not slug:
        raise Dropped(f"{error.code().name}: {error.details()}")
    headers = _headers(error.trailing_metadata()) | {"Content-Type": "application/problem+json"}
    status = NUMBERS[slug][0] if slug in NUMBERS else 500
    return status, headers, {"error": error.details(), "type": f"urn:tailrace:problem:{slug}"}
