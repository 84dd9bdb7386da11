"""The HTTP door on aiohttp: every path of Triton's HTTP service, and the routes in front of it.

Rule of this file: it reads a request, finds what it asks for, hands it to the pipeline or passes it
through, and writes what comes back. Parsing HTTP is aiohttp's strict C parser's; tensors are the
codec's; every decision about an answer is the pipeline's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Final

import msgspec
import structlog
from aiohttp import web
from multidict import CIMultiDict

from cache.digest import wire_digest
from degrade.deadline import Deadline, Ticker
from gateway.admission.auth import Caller, Directory, Unauthenticated
from gateway.admission.ratelimit import Verdict, ratelimit_policy_value, ratelimit_value
from gateway.codec import http as codec
from gateway.config import Server
from gateway.doors.passthrough import Broken, Passing, Passthrough, ask_for_body
from gateway.doors.path import Target, target_of
from gateway.operate.telemetry import PASSTHROUGH, Telemetry
from gateway.pipeline import Answer, Call, Pipeline
from gateway.problem import (
    Problem,
    Refused,
    forbidden,
    internal,
    malformed,
    method_not_allowed,
    not_found,
    timed_out,
    too_large,
    unauthenticated,
    unavailable,
)
from gateway.route import Route, Wire
from tiers.inference import InferRequest, Provenance, Rejected, UpstreamError
from tiers.pool import Pool
from tiers.v2 import WireForm

_JSON: Final = {"Content-Type": "application/json"}
_log = structlog.get_logger("tailrace")


class Readiness(msgspec.Struct, frozen=True):
    """Whether new requests are welcome, and if not, why not."""

    ready: bool
    reason: str = ""


class Head(msgspec.Struct, frozen=True):
    """What a request's header fields say about its body and the answer wanted."""

    body: codec.BodyHeaders
    answer_coding: str | None
    directives: codec.CacheDirectives


class Ports(msgspec.Struct, frozen=True):
    """What the door is wired to; ``loaded`` is told of a model that a caller loaded or unloaded."""

    routes: Mapping[str, Route]
    passthrough: Pool
    pipeline: Pipeline
    directory: Directory
    telemetry: Telemetry
    readiness: Callable[[], Readiness]
    loaded: Callable[[str], None]
    ticker: Ticker


class HttpDoor:
    """The handler of one HTTP listener."""

    def __init__(self, server: Server, ports: Ports) -> None:
        self._server = server
        self._ports = ports
        self._through = Passthrough(server, ports.ticker, ports.loaded, ports.directory.has_keys)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; whatever goes wrong becomes a problem document here."""
        began = perf_counter()
        label, state = PASSTHROUGH, "problem"
        try:
            target = target_of(request.method, request.rel_url.raw_path_qs)
            route = self._ports.routes.get(target.model)
            if route is not None:
                label = route.name
            response, state = await self._answer(request, target, route, began)
        except Refused as refused:
            response = problem_response(refused.problem, _quota_headers(refused.verdict))
            self._ports.telemetry.refused(label, refused.problem.slug)
        except (asyncio.CancelledError, ConnectionError):
            raise  # the caller has left: nobody to answer
        except Broken as broken:
            _log.info("answer broken off", route=label, message=str(broken))
            if request.transport is not None:
                request.transport.abort()  # a clean end would pass half an answer for a whole one
            raise ConnectionResetError(str(broken)) from broken
        except Exception:
            _log.exception("bug", path=request.path)
            response = problem_response(internal())
        self._ports.telemetry.responded(label, response.status, state, perf_counter() - began)
        return response

    async def _answer(
        self, request: web.BaseRequest, target: Target, route: Route | None, began: float
    ) -> tuple[web.StreamResponse, str]:
        if target.kind == "live":
            return _plain({"live": True}), "gateway"
        if target.kind == "ready":
            return self._ready(), "gateway"
        caller = self._caller(request)
        if target.changes is not None and target.changes not in self._server.allow:
            detail = f"{request.method} {target.raw} would change the server behind this gateway."
            raise Refused(forbidden(detail, f'"{target.changes}" in server.allow'))
        if route is None:
            return await self._pass(request, target, began), "passthrough"
        if target.kind == "infer":
            return await self._infer(request, target, route, caller, began)
        if target.kind == "metadata":
            return await self._metadata(request, target, route), "gateway"
        if target.kind == "model-ready":
            return await self._model_ready(route), "gateway"
        # What a route does not have itself (config, statistics, generate, trace) is its last tier's.
        tier = route.config.tiers[-1]
        rewritten = msgspec.structs.replace(target, raw=target.of_model(tier.model, target.version or tier.version))
        return await self._pass(request, rewritten, began, route.last_pool), "passthrough"

    # -- infer ----------------------------------------------------------------------------------

    async def _infer(
        self, request: web.BaseRequest, target: Target, route: Route, caller: Caller, began: float
    ) -> tuple[web.StreamResponse, str]:
        if request.method != "POST":
            raise Refused(method_not_allowed(request.method, ("POST",)))
        if target.version and len(route.tiers) > 1:
            detail = (
                f"Route {route.name} has {len(route.tiers)} tiers, each with a version of its own; ask without one."
            )
            raise Refused(not_found(detail))
        deadline = Deadline.after(self._ports.ticker(), route.timeout)
        head = _head(request)
        body = await self._body(request, route, deadline)
        wire = None
        if head.directives == codec.NO_DIRECTIVES and route.cache is not None:
            wire = wire_digest(_verdict(route, caller, target, head), body)
            hit = self._ports.pipeline.recall_wire(route, caller, wire)
            if hit is not None:
                return _wire_response(hit.wire, hit.provenance, hit.quota, began), hit.provenance.cache
        decoded, form = codec.decode(body, route.name, target.version, head.body, route.body_limits)
        deadline = _sooner(deadline, decoded, self._ports.ticker())
        answer = await self._ports.pipeline.answer(Call(route, caller, decoded, head.directives, deadline))
        ready = _wire_of(answer, form, decoded, head)
        if wire is not None and not decoded.id:  # an id is as good as unique: its bytes will not come again
            self._ports.pipeline.attach_wire(route, answer, wire, ready)
        return _wire_response(ready, answer.provenance, answer.quota, began), answer.provenance.cache

    async def _body(self, request: web.BaseRequest, route: Route, deadline: Deadline) -> bytes:
        """The whole body, within the route's bound and the request's deadline."""
        bytes_max = int(route.config.limits.body_bytes_max or self._server.body_bytes_max)
        if (request.content_length or 0) > bytes_max:
            raise Refused(_body_too_large(route, bytes_max))
        await ask_for_body(request)
        parts, size = [], 0
        try:
            async with asyncio.timeout(deadline.remaining(self._ports.ticker())):
                async for part in request.content.iter_any():
                    size += len(part)
                    if size > bytes_max:
                        raise Refused(_body_too_large(route, bytes_max))
                    parts.append(part)
        except TimeoutError:
            raise Refused(timed_out(f"The body did not arrive within {route.timeout:g} s.")) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # -- what the gateway says of itself and of its routes ----------------------------------------

    def _ready(self) -> web.Response:
        readiness = self._ports.readiness()
        document: dict[str, object] = {"ready": readiness.ready}
        if not readiness.ready:
            document["error"] = f"not ready: {readiness.reason}"
        return _plain(document, 200 if readiness.ready else 503)

    async def _model_ready(self, route: Route) -> web.Response:
        ready = await route.ready(Deadline.after(self._ports.ticker(), route.timeout))
        if ready:
            return _plain({"name": route.name, "ready": True})
        return _plain({"name": route.name, "ready": False, "error": "no tier of the route is ready"}, 503)

    async def _metadata(self, request: web.BaseRequest, target: Target, route: Route) -> web.Response:
        if request.method not in ("GET", "HEAD"):
            raise Refused(method_not_allowed(request.method, ("GET", "HEAD")))
        try:
            facts = await route.facts(Deadline.after(self._ports.ticker(), route.timeout))
        except (UpstreamError, Rejected) as error:
            raise Refused(unavailable(f"Route {route.name} cannot describe itself: {error}.")) from error
        if target.version and target.version not in facts.versions:
            raise Refused(not_found(f"Route {route.name} has no version {target.version}."))
        shapes = [
            [{"name": fact.name, "datatype": fact.datatype, "shape": fact.shape} for fact in side]
            for side in (facts.inputs, facts.outputs)
        ]
        return _plain(
            {
                "name": route.name,
                "versions": facts.versions,
                "platform": "tailrace",
                "inputs": shapes[0],
                "outputs": shapes[1],
            }
        )

    # -- pass-through -----------------------------------------------------------------------------

    async def _pass(
        self, request: web.BaseRequest, target: Target, began: float, pool: Pool | None = None
    ) -> web.StreamResponse:
        passing = Passing(target, self._ports.passthrough if pool is None else pool, began)
        return await self._through.answer(request, passing)

    def _caller(self, request: web.BaseRequest) -> Caller:
        try:
            return self._ports.directory.identify(
                request.headers.get("Authorization"),
                request.headers.get("X-API-Key"),
                request.remote or "local",
            )
        except Unauthenticated as error:
            raise Refused(unauthenticated(str(error))) from None


def problem_response(problem: Problem, more: Sequence[tuple[str, str]] = ()) -> web.Response:
    """A problem document as a response."""
    return web.Response(body=problem.body(), status=problem.status, headers=CIMultiDict([*problem.headers(), *more]))


def _plain(document: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), status=status, headers=_JSON)


def _head(request: web.BaseRequest) -> Head:
    headers = request.headers
    encodings = headers.getall("Content-Encoding", ())
    lengths = headers.getall(codec.JSON_LENGTH_HEADER, ())
    for name, values in (("Content-Encoding", encodings), (codec.JSON_LENGTH_HEADER, lengths)):
        if len(values) > 1:
            raise Refused(malformed(f"The header {name} is given {len(values)} times.", "duplicate-header"))
    return Head(
        codec.BodyHeaders(encodings[0] if encodings else None, lengths[0] if lengths else None),
        codec.negotiate(", ".join(headers.getall("Accept-Encoding", ()))),
        codec.parse_cache_control(", ".join(headers.getall("Cache-Control", ()))),
    )


def _body_too_large(route: Route, bytes_max: int) -> Problem:
    key = f"routes.{route.name}.limits.body_bytes_max"
    if route.config.limits.body_bytes_max is None:
        key = "server.body_bytes_max"
    return too_large(f"The body is larger than {key} ({bytes_max} bytes).", bytes_max)


def _verdict(route: Route, caller: Caller, target: Target, head: Head) -> bytes:
    """Everything outside the body that decides what bytes an answer has: the wire key's first half."""
    cache = route.config.cache
    tenant = "" if cache is None or cache.shared else caller.tenant
    return msgspec.msgpack.encode((route.name, tenant, target.version, head.body, head.answer_coding))


def _sooner(deadline: Deadline, request: InferRequest, now: float) -> Deadline:
    """The request's own timeout (Triton's ``timeout`` parameter, microseconds) shortens the deadline."""
    timeout = request.parameters.get("timeout")
    if isinstance(timeout, int) and not isinstance(timeout, bool) and timeout > 0:
        return deadline.sooner(Deadline.after(now, timeout / 1e6))
    return deadline


def _wire_of(answer: Answer, form: WireForm, request: InferRequest, head: Head) -> Wire:
    parts, headers = codec.encode(answer.response, form, request.id, head.answer_coding)
    return Wire(b"".join(parts), tuple(headers))


def _quota_headers(verdict: Verdict | None) -> list[tuple[str, str]]:
    """RateLimit and RateLimit-Policy of the quota that is nearest to its end."""
    if verdict is None:
        return []
    return [
        ("RateLimit", ratelimit_value(verdict)),
        ("RateLimit-Policy", ratelimit_policy_value([verdict.quota])),
    ]


def _wire_response(wire: Wire, provenance: Provenance, quota: Verdict | None, began: float) -> web.Response:
    headers = CIMultiDict(wire.headers)
    headers.extend(codec.provenance_headers(provenance, perf_counter() - began))
    headers.extend(_quota_headers(quota))
    return web.Response(body=wire.body, headers=headers)
