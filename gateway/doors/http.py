"""The HTTP door on aiohttp: every path of Triton's HTTP service, and the routes in front of it.

Rule of this file: it reads a request, finds what it asks for, hands it to the pipeline or passes it
through, and writes what comes back. Parsing HTTP is aiohttp's strict C parser's; tensors are the
codec's; every decision about an answer is the pipeline's.
"""

from __future__ import annotations

import asyncio
from functools import partial
from http import HTTPStatus
from time import perf_counter
from typing import Final

import msgspec
import structlog
from aiohttp import web
from multidict import CIMultiDict

from gateway.admission.auth import Caller
from gateway.codec.dialect import PROTOCOL
from gateway.config_server import Server
from gateway.doors.about import metadata, model_ready
from gateway.doors.buffered import Held
from gateway.doors.exchange import LOOKED_UP_BYTES, body_too_large, recalled, refusal
from gateway.doors.onward import withheld
from gateway.doors.origin import origin_of
from gateway.doors.passthrough import UNTYPED, Broken, Passing, Passthrough, ask_for_body
from gateway.doors.path import Target, target_of
from gateway.doors.ports import Ports
from gateway.doors.posting import AnyQuestion, judge_post
from gateway.doors.question import METHODS, QUERY_MEDIA, Reply, check_version, dialect_in, identify, judge
from gateway.endpoint import Endpoint, endpoint_of
from gateway.operate.telemetry import PASSTHROUGH
from gateway.problem import (
    Problem,
    Refused,
    forbidden,
    internal,
    method_not_allowed,
    not_found,
    timed_out,
)
from gateway.route import Route

_JSON: Final = {"Content-Type": "application/json"}
_log = structlog.get_logger("tailrace")


class HttpDoor:
    """The handler of one HTTP listener."""

    def __init__(self, server: Server, ports: Ports) -> None:
        self.take(server, ports)

    def take(self, server: Server, ports: Ports) -> None:
        """Answer by these from now on; what is in work goes on by those that it began with."""
        self._server = server
        self._ports = ports
        self._withheld = withheld(ports.directory.has_keys)
        self._through = Passthrough(server, ports.ticker, ports.loaded, ports.directory.has_keys, ports.proxies)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; whatever goes wrong becomes a problem document here."""
        began = perf_counter()
        label, state = PASSTHROUGH, "problem"
        target: Target | None = None
        try:
            target = target_of(request.method, request.rel_url.raw_path_qs)
            route = self._ports.routes.get(target.model)
            endpoint = endpoint_of(self._ports.endpoints, request.method, target)
            service = endpoint or route
            if service is not None:
                label = service.name
            if endpoint is not None:
                response, state = await self._post(request, target, endpoint)
            else:
                response, state = await self._answer(request, target, route, began)
        except Refused as refused:
            dialect = PROTOCOL
            if target is not None and (label != PASSTHROUGH or target.kind == "predict"):
                dialect = dialect_in(request.headers, target)
            response = _response(refusal(refused, dialect))
            if response.status == HTTPStatus.REQUEST_TIMEOUT:
                response.force_close()  # what is left of this request may still come, and is not read
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
            _only_read(request.method)
            return _plain({"live": True}), "gateway"
        if target.kind == "ready":
            _only_read(request.method)
            return self._ready(), "gateway"
        caller = self._caller(request)
        if target.changes is not None and target.changes not in self._server.allow:
            detail = f"{request.method} {target.raw} would change the server behind this gateway."
            raise Refused(forbidden(detail, f'"{target.changes}" in server.allow'))
        if route is None and target.kind == "predict" and self._ports.routes:
            raise Refused(not_found(f"There is no route {target.model!r}."))
        if route is None:
            quota = self._ports.exchange.charge(None, caller) if target.works(request.method) else None
            passing = Passing(target, self._ports.passthrough.pool, began, quota)
            return await self._through.answer(request, passing), "passthrough"
        if target.kind in ("infer", "predict") and request.method == "OPTIONS":
            return _options(), "gateway"
        if target.kind in ("infer", "predict"):
            return await self._infer(request, target, route, caller)
        check_version(route, target.version)
        if target.kind == "metadata":
            return await self._metadata(request, target, route), "gateway"
        if target.kind == "model-ready":
            _only_read(request.method)
            return await self._model_ready(target, route), "gateway"
        # What a route does not have itself (config, statistics, generate, trace) is its last tier's.
        tier = route.config.tiers[-1]
        rewritten = msgspec.structs.replace(target, raw=target.of_model(tier.model, target.version or tier.version))
        passing = Passing(rewritten, route.last_pool, began)
        if request.method == "POST" and target.changes is None:
            passing = self._bounded(target, route, caller, passing)
        return await self._through.answer(request, passing), "passthrough"

    def _caller(self, request: web.BaseRequest) -> Caller:
        proxies = self._ports.proxies
        client = proxies.client(origin_of(request.transport).address, proxies.hops(request.headers))
        return identify(self._ports.directory, request.headers, client or "local")

    def _bounded(self, target: Target, route: Route, caller: Caller, passing: Passing) -> Passing:
        """What passes through a route and puts work on its model keeps to the route's limits (``generate``)."""
        if route.config.inputs:
            detail = f"{target.rest} cannot be held to what route {route.name} declares of its inputs; use infer."
            raise Refused(forbidden(detail))
        quota = self._ports.exchange.charge(route, caller)
        bytes_max = route.body_limits.bytes_max
        return msgspec.structs.replace(passing, quota=quota, bytes_max=bytes_max, limit=route.limit)

    # -- infer ----------------------------------------------------------------------------------

    async def _infer(
        self, request: web.BaseRequest, target: Target, route: Route, caller: Caller
    ) -> tuple[web.StreamResponse, str]:
        return await self._asked(request, judge(request.method, target, request.headers, route, caller))

    async def _post(
        self, request: web.BaseRequest, target: Target, endpoint: Endpoint
    ) -> tuple[web.StreamResponse, str]:
        posting = judge_post(target, request.headers, endpoint, self._caller(request), self._withheld)
        return await self._asked(request, posting.told(self._ports.proxies, origin_of(request.transport)))

    async def _asked(self, request: web.BaseRequest, question: AnyQuestion) -> tuple[web.StreamResponse, str]:
        began = self._ports.ticker()
        with Held(self._ports.buffered) as held:
            body = await self._body(request, question, held)
            exchange, now = self._ports.exchange, self._ports.ticker()
            if len(body) > LOOKED_UP_BYTES:
                hit, wire = await exchange.recall_aside(question, body, began + question.route.timeout - now)
            else:
                hit, wire = exchange.recall(question, body, now)
            if hit is not None:
                reply = recalled(hit)
                self._ports.telemetry.answered(question.route.name, hit.provenance)
            else:
                reply = await exchange.answer(question, body, wire, began)
        return _response(reply), reply.state

    async def _body(self, request: web.BaseRequest, question: AnyQuestion, held: Held) -> bytes:
        """The whole body, within the route's bounds, the server's bound on a body's time, and that of all bodies."""
        route, bytes_max = question.route, question.body_bytes_max
        if (request.content_length or 0) > bytes_max:
            raise Refused(body_too_large(route, bytes_max))
        await ask_for_body(request)
        parts, size = [], 0
        seconds = min(float(self._server.body_timeout), route.timeout)
        try:
            async with asyncio.timeout(seconds):
                async for part in request.content.iter_any():
                    size += len(part)
                    if size > bytes_max:
                        raise Refused(body_too_large(route, bytes_max))
                    held.add(len(part))
                    parts.append(part)
        except TimeoutError:
            raise Refused(timed_out(f"The body did not arrive within {seconds:g} s.")) from None
        if size > LOOKED_UP_BYTES:
            return await self._ports.exchange.aside(partial(b"".join, parts), question.caller.name, seconds)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # -- what the gateway says of itself and of its routes ----------------------------------------

    def _ready(self) -> web.Response:
        readiness = self._ports.readiness()
        return _plain(readiness.document(), 200 if readiness.ready else 503)

    async def _model_ready(self, target: Target, route: Route) -> web.Response:
        document = await model_ready(route, target.version, self._ports.ticker)
        return _plain(document, 200 if document["ready"] else 503)

    async def _metadata(self, request: web.BaseRequest, target: Target, route: Route) -> web.Response:
        _only_read(request.method)
        return _plain(await metadata(route, target.version, self._ports.ticker))


def _only_read(method: str) -> None:
    """Raises Refused (405) for a method that could change something."""
    if method not in ("GET", "HEAD"):
        raise Refused(method_not_allowed(method, ("GET", "HEAD")))


def _options() -> web.Response:
    """What may be done with a route's infer path (RFC 9110 section 9.3.7, RFC 10008 section 3)."""
    fields = {"Allow": ", ".join((*METHODS, "OPTIONS")), "Accept-Query": ", ".join(QUERY_MEDIA)}
    return web.Response(status=204, headers=fields)


def problem_response(problem: Problem) -> web.Response:
    """A problem document as a response."""
    return web.Response(body=problem.body(), status=problem.status, headers=CIMultiDict(problem.headers()))


def _plain(document: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), status=status, headers=_JSON)


def _response(reply: Reply) -> web.Response:
    response = web.Response(body=reply.body, status=reply.status, headers=CIMultiDict(reply.fields))
    if "Content-Type" not in CIMultiDict(reply.fields):  # a server behind an endpoint need not say one
        response[UNTYPED] = True
    return response
