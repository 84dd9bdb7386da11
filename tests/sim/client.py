"""Callers of a gateway in virtual time: what they ask, over bytes of HTTP/1.1, and what they are told.

Rule of this file: it asks and writes down; whether what it was told is true is ``invariants.py``'s to say.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
from typing import Any, Final

import msgspec
from msgspec import Struct

from tests.sim.network import Network

LATE_SECONDS: Final = 30.0
"""When a caller gives up for good: far beyond any route's time, so that it is an invariant's to complain."""
_TABLE: Final = re.compile(r"(\w+)((?:;\w+=-?\d+)+)")


class Question(Struct, frozen=True):
    """What one caller asks. ``rows``: of the model's input, or ids of items (with ``user``)."""

    route: str
    caller: str
    rows: tuple[int, ...]
    user: int = 0
    scale: int = 0
    outputs: tuple[str, ...] = ()
    directives: str = ""
    timeout: float = 0.0
    leaves: float = 0.0
    """After so many seconds it hangs up; 0: it waits."""
    packed: bool = False
    """It sends its body compressed."""

    @property
    def key(self) -> tuple[object, ...]:
        """What decides its answer."""
        return self.route, self.rows, self.user, self.scale


class Told(Struct):
    """What came of it. ``status`` 0: nothing. Times are virtual seconds. ``labels``: of Tailrace-Provenance."""

    question: Question
    gateway: str
    asked: float
    answered: float = 0.0
    status: int = 0
    fields: dict[str, str] = {}
    document: Any = None
    left: bool = False
    opened: float = 0.0
    """When the connection was that it was asked over; 0: there was none."""
    lost: str = ""
    """Why there was no answer, where it was not the caller who left."""

    said: dict[str, str] | None = None

    @property
    def labels(self) -> dict[str, str]:
        if self.said is not None:
            return self.said
        self.said = found = {}
        for part in re.split(r", (?![^(]*\))", self.fields.get("tailrace-provenance", "")):
            name, _, value = part.partition("=")
            found[name] = value.strip('"')
        return found

    @property
    def state(self) -> str:
        return self.labels.get("cache", "")

    @property
    def tables(self) -> dict[str, dict[str, int]]:
        """What the rows of each table were, by the label."""
        return {
            name: {word: int(number) for word, _, number in (each.partition("=") for each in parts[1:].split(";"))}
            for name, parts in _TABLE.findall(self.labels.get("tables", ""))
        }

    def output(self, name: str) -> list[list[Any]]:
        """Rows of one output."""
        for each in self.document["outputs"] if self.status == 200 else ():
            if each["name"] == name:
                width = each["shape"][1]
                data = each["data"]
                return [data[at : at + width] for at in range(0, len(data), width)]
        return []


def body_of(question: Question) -> bytes:
    """The request's bytes: the same for the same question."""
    if question.user:
        inputs = [
            {"name": "user", "datatype": "INT64", "shape": [1], "data": [question.user]},
            {"name": "item", "datatype": "INT64", "shape": [len(question.rows)], "data": list(question.rows)},
        ]
    else:
        data = [part for row in question.rows for part in (row, row * 7)]
        inputs = [{"name": "x", "datatype": "INT64", "shape": [len(question.rows), 2], "data": data}]
    document: dict[str, Any] = {"inputs": inputs}
    if question.outputs:
        document["outputs"] = [{"name": name} for name in question.outputs]
    parameters: dict[str, int] = {}
    if question.scale:
        parameters["scale"] = question.scale
    if question.timeout:
        parameters["timeout"] = int(question.timeout * 1e6)
    if parameters:
        document["parameters"] = parameters
    return msgspec.json.encode(document)


class Callers:
    """All who ask of one gateway. Connections are used again, one question at a time."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._idle: dict[str, list[_Line]] = {}

    async def ask(self, question: Question, host: str, gateway: str) -> Told:
        """Ask, and wait for what comes of it."""
        told = Told(question, gateway, self._network.loop.now)
        body = body_of(question)
        fields = f"Host: sim\r\nX-API-Key: {question.caller}\r\n"
        if question.packed:
            body = gzip.compress(body, mtime=0)
            fields += "Content-Encoding: gzip\r\n"
        if question.directives:
            fields += f"Cache-Control: {question.directives}\r\n"
        head = f"POST /v2/models/{question.route}/infer HTTP/1.1\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
        await self._say(told, host, head.encode() + body)
        return told

    async def look(self, model: str, host: str, gateway: str) -> Told:
        """Ask a server what a model is, which passes through."""
        told = Told(Question(model, "ada", ()), gateway, self._network.loop.now)
        head = f"GET /v2/models/{model} HTTP/1.1\r\nHost: sim\r\nX-API-Key: ada\r\n\r\n"
        await self._say(told, host, head.encode())
        return told

    async def _say(self, told: Told, host: str, request: bytes) -> None:
        loop, question = self._network.loop, told.question
        line = None
        try:
            async with asyncio.timeout(question.leaves or LATE_SECONDS):
                line = await self._line(host)
                told.opened = line.opened
                status, answered, document = await line.ask(request)
            told.document = json.loads(document) if document else None  # which takes NaN, as Triton writes it
            told.status, told.fields = status, answered
            self._idle.setdefault(host, []).append(line)
        except TimeoutError:
            told.left = bool(question.leaves)
            told.lost = "" if question.leaves else "no answer at all"
            if line is not None:
                line.transport.abort()
        except OSError as error:
            told.lost = f"connection: {error!r}"
        except ValueError as error:  # of what passes through nobody looks whether it is broken
            told.lost = f"no JSON: {error!r}"
        told.answered = loop.now

    async def _line(self, host: str) -> _Line:
        idle = self._idle.setdefault(host, [])
        while idle:
            line = idle.pop()
            if not line.transport.is_closing():
                return line
        _, line = await self._network.connect(_Line, host)
        assert isinstance(line, _Line)
        line.opened = self._network.loop.now
        return line

    def hang_up(self) -> None:
        for lines in self._idle.values():
            for line in lines:
                line.transport.abort()


class _Line(asyncio.Protocol):
    """One connection of a caller's."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.opened = 0.0
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, dict[str, str], bytes]] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        stop = end + 4 + int(fields.get("content-length", 0))
        if len(self._buffer) < stop:
            return
        body, self._buffer = self._buffer[end + 4 : stop], self._buffer[stop:]
        if fields.get("connection", "") == "close":
            self.transport.abort()
        answer, self._answer = self._answer, None
        if answer is not None and not answer.done():
            answer.set_result((int(lines[0].split(" ")[1]), fields, body))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("closed without an answer"))

    def ask(self, data: bytes) -> asyncio.Future[tuple[int, dict[str, str], bytes]]:
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(data)
        return self._answer


DIRECTIVES: Final = ("no-cache", "max-age=0", "max-age=1", "only-if-cached", "no-store", "max-stale=5",
                     "max-age=1, max-stale=2")  # fmt: skip


def again(question: Question, chance: random.Random) -> Question:
    """The same, asked by somebody else, or in another way."""
    outputs = question.outputs
    others = chance.choice(((), ("y",), ("y", "p")))
    if chance.random() < 0.2 and not question.user:
        outputs = others
    return msgspec.structs.replace(
        question,
        caller=chance.choice(("ada", "ada", "bob", "cyd")),
        directives=chance.choice(DIRECTIVES) if chance.random() < 0.25 else "",
        timeout=chance.choice((0.002, 0.05, 0.4)) if chance.random() < 0.2 else 0.0,
        leaves=chance.choice((0.002, 0.3)) if chance.random() < 0.1 else 0.0,
        outputs=outputs,
    )


def question_of(kind: str, rows: int, chance: random.Random) -> Question:
    """Something that a caller might ask."""
    asked = tuple(chance.randrange(1, rows + 1) for _ in range(chance.choice((1, 1, 2, 4))))
    asking = Question(
        kind,
        chance.choice(("ada", "ada", "bob", "cyd")),
        asked,
        user=chance.randrange(1, 4) if kind == "ranked" else 0,
        scale=0 if kind == "ranked" else chance.choice((0, 0, 0, 3)),
        packed=chance.random() < 0.08,
    )
    return again(asking, chance)
