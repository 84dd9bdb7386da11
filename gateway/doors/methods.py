"""What a MessagePack-RPC call asks: its method and its map of parameters, as a question like any other door's.

Rule of this file: it knows no socket and no time but what it is given. The map of a call holds what over HTTP a head
says: ``model`` (a route), ``version``, ``auth`` (an API key), ``cache_control`` (a Cache-Control field's value); the
rest is the body. To look into a call (``opened``) takes as long as the call is, and can be done on any thread; what
it then asks is known at once. A call's question is remembered under those four, as a head's is under its bytes.

    infer     the protocol's map, tensors as bytes: {"model": ..., "inputs": [...], ...}
    predict   plain values: {"model": ..., "inputs": {"x": [[...]]}, ...}
    metadata  of the route ``model``, or of this gateway
    health    of the route ``model``, or of this gateway
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from cache.memo import Memo
from gateway.codec import http, packed, rpc
from gateway.codec.dialect import PACKED_MEDIA, Dialect
from gateway.codec.packed import Packed
from gateway.codec.rpc import Call
from gateway.doors.about import metadata, model_ready
from gateway.doors.exchange import body_too_large
from gateway.doors.ports import Ports
from gateway.doors.question import Manner, Question, check_version, identified, question_of
from gateway.operate.telemetry import PASSTHROUGH
from gateway.problem import Refused, malformed, not_found
from gateway.route import Route
from tiers.v2.message import Malformed, shown

INFER: Final = "infer"
PREDICT: Final = "predict"
METADATA: Final = "metadata"
HEALTH: Final = "health"
METHODS: Final = (INFER, PREDICT, METADATA, HEALTH)

ENVELOPES_MAX: Final = 1024
"""Questions remembered: one for each method, route, version, key and Cache-Control that callers use."""
ENVELOPE_CHARACTERS_MAX: Final = 1024
"""Of each of them, and so of what is remembered."""


class Asked(msgspec.Struct, frozen=True):
    """What a call asks: a ``question`` with its ``body``, or else something ``about`` a route, or this gateway (None).
    ``label``: under which name it is counted."""

    label: str
    question: Question | None = None
    body: memoryview = memoryview(b"")
    about: str = ""
    route: Route | None = None
    version: str = ""


class Envelope(msgspec.Struct, frozen=True):
    """What a call says beside its body."""

    method: str
    model: str
    version: str
    auth: str | None
    cache_control: str


class Opened(msgspec.Struct, frozen=True):
    """A call that was looked into. ``argument``: its map, all of it."""

    envelope: Envelope
    argument: Packed


class Methods:
    """Reads calls, and tells what is about routes."""

    def __init__(self, ports: Ports) -> None:
        self.take(ports)

    def take(self, ports: Ports) -> None:
        """Answer by these from now on: what was judged by others is forgotten."""
        self._ports = ports
        self._known: Memo[Envelope, Question] = Memo(ENVELOPES_MAX)

    def label(self, call: Opened | None) -> str:
        """Under which name a call is counted, also one that is refused, or (None) could not be looked into."""
        return call.envelope.model if call is not None and call.envelope.model in self._ports.routes else PASSTHROUGH

    def asked(self, call: Opened, peer: str) -> Asked:
        """What a call asks. ``peer``: what its caller is called without a key. Raises Refused."""
        envelope = call.envelope
        if envelope.method in (INFER, PREDICT):
            question = self._known.get(envelope) or self._judged(envelope)
            if question.caller.name == "addr:":  # whoever is at the other end
                question = question.by(peer)
            body = memoryview(call.argument)
            if len(body) > question.body_bytes_max:
                raise Refused(body_too_large(question.route, question.body_bytes_max))
            return Asked(question.route.name, question, body)
        if envelope.method == METADATA or envelope.model:
            identified(self._ports.directory, None, envelope.auth, peer)
        if not envelope.model:
            return Asked(PASSTHROUGH, about=envelope.method)
        route = self._route(envelope)
        return Asked(route.name, about=envelope.method, route=route, version=envelope.version)

    async def tell(self, asked: Asked) -> dict[str, object]:
        """What is asked about a route, or about this gateway. Raises Refused."""
        if asked.route is not None:
            of = metadata if asked.about == METADATA else model_ready
            return await of(asked.route, asked.version, self._ports.ticker)
        if asked.about == METADATA:
            return {"name": "tailrace", "methods": METHODS, "routes": list(self._ports.routes)}
        return {"live": True, **self._ports.readiness().document()}

    def _judged(self, envelope: Envelope) -> Question:
        caller = identified(self._ports.directory, None, envelope.auth, "")
        route = self._route(envelope)
        dialect = Dialect(plain=envelope.method == PREDICT, packed=True, answers=PACKED_MEDIA[0], called=True)
        manner = Manner(dialect, http.parse_cache_control(envelope.cache_control))
        question = question_of(route, caller, envelope.version, manner)
        self._known.put(envelope, question)
        return question

    def _route(self, envelope: Envelope) -> Route:
        if not envelope.model:
            raise Refused(malformed("'model' must name a route.", "member"))
        route = self._ports.routes.get(envelope.model)
        if route is None:
            detail = f"There is no route {shown(envelope.model)}; models without a route pass through over HTTP alone."
            raise Refused(not_found(detail))
        check_version(route, envelope.version)
        return route


def opened(call: Call) -> Opened:
    """Look into a call: the one walk through its parameters that is needed to know what it asks. Raises Refused."""
    if call.method not in METHODS:
        raise Refused(not_found(f"There is no method {shown(call.method)}; there is {', '.join(METHODS)}."))
    try:
        argument = rpc.argument(call.params)
        found = packed.members(argument, "'params'")
        model, version, control = [_said(found, name) or "" for name in ("model", "version", "cache_control")]
        return Opened(Envelope(call.method, model, version, _said(found, "auth"), control), argument)
    except Malformed as fault:
        raise Refused(malformed(str(fault), fault.reason)) from fault


def _said(found: Mapping[str, Packed], name: str) -> str | None:
    if name not in found:
        return None
    said = packed.text(found[name], name)
    if len(said) > ENVELOPE_CHARACTERS_MAX:
        raise Malformed("member", f"{name} is longer than {ENVELOPE_CHARACTERS_MAX} characters")
    return said
