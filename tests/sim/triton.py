"""A Triton in virtual time: models whose answers are functions of their generation and their rows, over HTTP/1.1.

Rule of this file: it answers as Triton does, in the forms that the gateway asks in, and writes down in the ledger what
it has said. It must not know the gateway.
"""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any, Final

import msgspec
import numpy as np

from tests.sim import faults
from tests.sim.faults import Spell
from tests.sim.ledger import Execution, Ledger, Row, fingerprint, scores
from tests.sim.network import Network, Server, Side

BATCH_MAX: Final = 16
WALL: Final = 1_700_000_000.0
"""Unix seconds when virtual time is 0."""


class Model(msgspec.Struct):
    """One model on one replica. ``width``: of a row of its input; ``features``: that are numbers of tables."""

    name: str
    width: int = 2
    features: bool = False
    generation: int = 1
    silent: bool = False
    """It is loaded again under its old version number, and only its configuration tells."""
    version: int = 1
    count: int = 0
    last_ms: int = 0


class Triton:
    """One replica: its models, and who is connected."""

    def __init__(self, network: Network, host: str, models: list[Model], ledger: Ledger, chance: random.Random) -> None:
        self.network = network
        self.host = host
        self.models = {model.name: model for model in models}
        self.ledger = ledger
        self.chance = chance
        self.place = f"triton:{host}"
        self.pace = (0.001, 0.01)
        self._server: Server | None = None
        self.start()
        for model in models:
            ledger.lives[host, model.name] = [(network.loop.now, model.generation)]

    def start(self) -> None:
        if self._server is None:
            self._server = self.network.listen(lambda: _Connection(self), self.host)

    def kill(self) -> None:
        """The process ends. What it counted is gone."""
        if self._server is not None:
            self._server.kill()
            self._server = None
        for model in self.models.values():
            model.count = model.last_ms = 0

    def reload(self, name: str, generation: int, silent: bool) -> None:
        """A model becomes another one: under another version, or with another configuration."""
        model = self.models[name]
        model.generation = generation
        model.version = model.version if silent else generation
        model.count = model.last_ms = 0
        self.ledger.lives[self.host, name].append((self.network.loop.now, generation))

    def strikes(self, *kinds: str) -> Spell | None:
        return self.network.weather.strikes(self.place, self.network.loop.now, *kinds)


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, Any] = {}


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: list[_Input]
    outputs: list[_Output] = []
    parameters: dict[str, Any] = {}
    id: str = ""


_REQUESTS: Final = msgspec.json.Decoder(_Request)


class _Connection(asyncio.Protocol):
    def __init__(self, triton: Triton) -> None:
        self._triton = triton
        self._side: Side
        self._buffer = b""
        self._checked = 0
        self._began: dict[str, int] = {}
        self._work: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self._side = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._work is not None:
            self._work.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while True:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end].decode("latin-1").split("\r\n")
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            stop = end + 4 + int(fields.get("content-length", 0))
            if len(self._buffer) < stop:
                return
            body, self._buffer = self._buffer[end + 4 : stop], self._buffer[stop:]
            method, path, _ = head[0].split(" ")
            if method == "POST" and path.endswith("/infer"):
                self._infer(path.split("/")[3], body, int(fields.get("inference-header-content-length", len(body))))
            else:
                self._tell(path)

    def spoil(self, data: bytes, at: int) -> bytes:
        """A byte of what has a form of its own: the head, and the JSON part."""
        at %= max(1, self._checked)
        return data[:at] + b"\0" + data[at + 1 :]

    # -- questions about models -----------------------------------------------------------------

    def _tell(self, path: str) -> None:
        triton = self._triton
        if path == "/v2/health/ready":
            self._answer(200, b"")
            return
        parts = path.split("/")[3:]
        model = triton.models.get(parts[0])
        if model is None:
            self._error(404, f"Request for unknown model: '{parts[0]}' is not found")
            return
        match parts[-1]:
            case "config":
                config = {"max_batch_size": BATCH_MAX, "input": [], "made": model.generation}
                self._json(config)
            case "stats":
                whole = self._json({"model_stats": [_statistics(model)]})
                self._looked(model, whole)
            case "ready":
                self._answer(200, b"")
            case _:
                self._began[parts[0]] = model.generation
                self._json(_metadata(model))

    def _looked(self, model: Model, at: float) -> None:
        """Who asked knows of this generation, once all of it has come; if it did not change between its parts."""
        if math.isinf(at) or self._began.get(model.name) != model.generation:
            return
        shown, name = self._triton.ledger.shown, (self._side.peer.owner, self._triton.host, model.name)
        shown.setdefault(name, []).append((at, model.generation))

    # -- inference --------------------------------------------------------------------------------

    def _infer(self, name: str, body: bytes, length: int) -> None:
        triton = self._triton
        model = triton.models.get(name)
        if model is None:
            self._error(404, f"Request for unknown model: '{name}' is not found")
            return
        bad = triton.strikes(faults.ERROR, faults.OVERLOAD, faults.STUB)
        if bad is not None:
            match bad.kind:
                case faults.ERROR:
                    self._error(500, "the model raised an error")
                case faults.OVERLOAD:
                    self._error(503, "too many requests")
                case _:
                    message = f"message: Stub process '{name}_0_0' is not healthy."
                    self._error(500, f"Failed to process the request(s) for model instance '{name}_0', {message}")
            return
        request = _REQUESTS.decode(body[:length])
        rows = _rows(model, request, body[length:])
        now = triton.network.loop.now
        made = triton.ledger.execute(triton.host, name, model.generation, rows, now)
        made.asker = self._side.peer.owner
        slow = triton.strikes(faults.SLOW)
        seconds = triton.chance.uniform(*triton.pace) + (0.0 if slow is None else slow.seconds)
        model.count += 1
        model.last_ms = int((WALL + now) * 1000)
        wanted = [each.name for each in request.outputs]
        self._work = triton.network.loop.call_later(seconds, self._done, model, made, wanted, model.version)

    def _done(self, model: Model, made: Execution, wanted: list[str], version: int) -> None:
        flaw = self._triton.strikes(faults.SHAPE, faults.NAN, faults.MISSING)
        made.flawed = "" if flaw is None else flaw.kind
        rows = made.rows
        own = [(made.serial, made.generation, fingerprint(made.model, made.generation, row), row[0]) for row in rows]
        y = np.array(own, "<i8").reshape(len(rows), 4)
        p = np.array([scores(made.model, row) for row in rows], "<f4").reshape(len(rows), 3)
        tensors: list[tuple[str, str, np.ndarray]] = [("y", "INT64", y), ("p", "FP32", p)]
        if model.features:
            f = np.array([row[:-1] for row in rows], "<f4").reshape(len(rows), model.width)
            tensors.append(("f", "FP32", f))
        if made.flawed == faults.NAN:
            p[0, 0] = np.nan
        if made.flawed == faults.MISSING:
            del tensors[1]
        outputs, data = [], b""
        for name, datatype, tensor in tensors:
            if wanted and name not in wanted:
                continue
            shape = list(tensor.shape)
            if made.flawed == faults.SHAPE:
                shape[0] += 1
            raw = tensor.tobytes()
            outputs.append(
                {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
            )
            data += raw
        head = {"model_name": model.name, "model_version": str(version), "outputs": outputs}
        made.arrived = self._answer(200, msgspec.json.encode(head), data)

    # -- bytes ------------------------------------------------------------------------------------

    def _json(self, document: object) -> float:
        return self._answer(200, msgspec.json.encode(document))

    def _error(self, status: int, text: str) -> None:
        self._answer(status, msgspec.json.encode({"error": text}))

    def _answer(self, status: int, header: bytes, data: bytes = b"") -> float:
        lines = f"HTTP/1.1 {status} Said\r\nContent-Length: {len(header) + len(data)}\r\n"
        if data:
            lines += f"Inference-Header-Content-Length: {len(header)}\r\n"
        head = lines.encode() + b"\r\n"
        self._checked = len(head) + len(header)
        return self._side.tell(head + header + data)


def _rows(model: Model, request: _Request, data: bytes) -> tuple[Row, ...]:
    """What the model is asked for: each row of its input, and the parameter that decides too."""
    tensor = request.inputs[0]
    scale = int(request.parameters.get("scale", 0))
    kind = "<f4" if model.features else "<i8"
    block = np.frombuffer(data, kind).reshape(tensor.shape)
    return tuple([(*map(int, row), scale) for row in block.tolist()])


def _metadata(model: Model) -> dict[str, object]:
    datatype = "FP32" if model.features else "INT64"
    outputs = [("y", "INT64", 4), ("p", "FP32", 3), *([("f", "FP32", model.width)] if model.features else [])]
    return {
        "name": model.name,
        "versions": [str(model.version)],
        "platform": "sim",
        "inputs": [{"name": "x", "datatype": datatype, "shape": [-1, model.width]}],
        "outputs": [{"name": name, "datatype": kind, "shape": [-1, width]} for name, kind, width in outputs],
    }


def _statistics(model: Model) -> dict[str, object]:
    total = {"count": model.count, "ns": model.count * 1000}
    return {
        "version": str(model.version),
        "last_inference": model.last_ms,
        "inference_count": model.count,
        "execution_count": model.count,
        "inference_stats": {"success": total},
    }
