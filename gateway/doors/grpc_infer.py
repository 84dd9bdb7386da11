"""An infer message on a route, from its bytes to the bytes of its answer: for single calls and for streams.

Rule of this file: it joins codec and pipeline as ``exchange.py`` does for HTTP, and knows no socket and no call of
grpc's. A message that came before, byte for byte but for its id, is answered without being read.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import msgspec

from cache.digest import WireDigester
from cache.memo import Memo
from degrade.deadline import Deadline, Ticker
from gateway.admission.auth import Caller
from gateway.admission.quota import Verdict
from gateway.call import Call
from gateway.codec import grpc as codec
from gateway.codec.http import NO_DIRECTIVES, CacheDirectives
from gateway.doors.exchange import ASIDE_BYTES, Exchange, body_too_large, sooner
from gateway.doors.question import check_version
from gateway.operate.telemetry import Telemetry
from gateway.pipeline import Pipeline
from gateway.problem import Refused
from gateway.route import Route
from gateway.service import Heading, Wire
from gateway.till import Dues, dues
from tiers.facts import ModelFacts
from tiers.inference import InferRequest, Provenance
from tiers.v2.proto import RequestReader, Sketch

DIGESTERS_MAX: Final = 1024
"""One for each route and tenant."""

_HEADING: Final = Heading(())
"""Hits of gRPC have no head of their own."""


class Asking(msgspec.Struct, frozen=True):
    """One message and all that came with it; ``began`` in the ticker's seconds, ``deadline`` the caller's."""

    route: Route
    caller: Caller
    sketch: Sketch
    directives: CacheDirectives
    began: float
    deadline: Deadline


class Told(msgspec.Struct, frozen=True):
    """An answer: ModelInferResponse without an id, and what it was made of."""

    ready: bytes
    provenance: Provenance
    quota: Verdict | None


class Inferring:
    """Answers infer messages of routes."""

    def __init__(self, pipeline: Pipeline, exchange: Exchange, telemetry: Telemetry, ticker: Ticker) -> None:
        self._pipeline = pipeline
        self._exchange = exchange
        self._telemetry = telemetry
        self._ticker = ticker
        self._readers: dict[str, RequestReader] = {}
        self._digesters: Memo[tuple[str, str], WireDigester] = Memo(DIGESTERS_MAX)

    async def answer(self, asking: Asking) -> Told:
        """Raises Refused."""
        route, sketch, caller = asking.route, asking.sketch, asking.caller
        _check_size(asking)
        check_version(route, sketch.version)
        hit_dues = dues(route.allowances, caller, works=False)
        wire = self._wire(asking)
        if wire is not None:
            now = self._ticker()
            hit = self._pipeline.recall_wire(route, hit_dues, wire, now)
            if hit is not None:
                provenance = hit.provenance
                self._telemetry.answered(route.name, provenance)
                return Told(hit.wire.body, provenance, hit.quota)
        deadline = asking.deadline.sooner(Deadline.after(asking.began, route.timeout))
        with await self._exchange.noted(route.name, sketch.message, wire, caller) as note:
            decoded = await self._decoded(asking, deadline, hit_dues)
            deadline = sooner(deadline, decoded, self._ticker())
            answer = await self._pipeline.answer(Call(route, caller, decoded, asking.directives, deadline, note))
            encode = partial(codec.encode, answer.response)
            if answer.response.size > ASIDE_BYTES:
                seconds = deadline.remaining(self._ticker())
                ready = await self._exchange.aside(encode, caller.name, seconds)
            else:
                ready = encode()
        if wire is not None and answer.comes_again:
            self._pipeline.attach_wire(route, answer, wire, Wire(ready, _HEADING))
        return Told(ready, answer.provenance, answer.quota)

    async def admit(self, asking: Asking, facts: ModelFacts) -> None:
        """Hold a message that goes on as it came to all that one is held to that is answered here, but for its quotas.
        Raises Refused."""
        route = asking.route
        _check_size(asking)
        deadline = asking.deadline.sooner(Deadline.after(asking.began, route.timeout))
        route.validator.check(await self._decoded(asking, deadline, hit_dues=()), facts)

    def _wire(self, asking: Asking) -> bytes | None:
        """What the message is known by; None where an answer must not be recognised by its bytes."""
        route, cache = asking.route, asking.route.config.cache
        if cache is None or asking.directives != NO_DIRECTIVES:
            return None
        key = route.name, "" if cache.shared else asking.caller.tenant
        digester = self._digesters.get(key)
        if digester is None:
            digester = WireDigester(msgspec.msgpack.encode(("grpc", *key)))
            self._digesters.put(key, digester)
        return digester.key(asking.sketch.anonymous())

    async def _decoded(self, asking: Asking, deadline: Deadline, hit_dues: Dues) -> InferRequest:
        reader = self._readers.get(asking.route.name)
        if reader is None:
            reader = self._readers[asking.route.name] = RequestReader(asking.route.body_limits.message)
        request: InferRequest
        if len(asking.sketch.message) <= ASIDE_BYTES:
            request = codec.decode(asking.sketch, reader)
        else:
            self._pipeline.till.refuse_spent(hit_dues)
            seconds = deadline.remaining(self._ticker())
            work = partial(codec.decode, asking.sketch, reader)
            request = await self._exchange.aside(work, asking.caller.name, seconds)
        return request


def _check_size(asking: Asking) -> None:
    bytes_max = asking.route.body_limits.bytes_max
    if len(asking.sketch.message) > bytes_max:
        raise Refused(body_too_large(asking.route, bytes_max))
