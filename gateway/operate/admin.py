"""The admin port: metrics, a look at the routes and backends, purge. Not for callers.

Rule of this file: it reads state that others own and calls their verbs; it decides nothing. It listens
on loopback unless told otherwise, for whoever reaches it can purge.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import msgspec
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from gateway.operate.telemetry import Telemetry
from gateway.problem import Problem, malformed, not_found
from gateway.route import Route
from tiers.pool import Pool


def admin_app(
    routes: Mapping[str, Route],
    pools: Mapping[str, Pool],
    telemetry: Telemetry,
    is_draining: Callable[[], bool],
) -> web.Application:
    """The admin port's paths: ``/metrics``, ``/status``, ``/purge`` and a plain index."""

    async def index(_: web.Request) -> web.Response:
        return web.Response(
            text="Tailrace admin port\n\n"
            "GET  /metrics            Prometheus metrics\n"
            "GET  /status             routes, caches and replicas as JSON\n"
            "POST /purge?route=NAME   drop a route's cached answers\n"
            "POST /purge?all          drop every cached answer\n"
        )

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=telemetry.exposition(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def status(_: web.Request) -> web.Response:
        document = {
            "pid": os.getpid(),
            "draining": is_draining(),
            "routes": {name: _route_status(route) for name, route in routes.items()},
            "backends": {name: [msgspec.to_builtins(state) for state in pool.states()] for name, pool in pools.items()},
        }
        return web.Response(body=msgspec.json.encode(document), content_type="application/json")

    async def purge(request: web.Request) -> web.Response:
        if set(request.query) - {"route", "all"} or len(request.query) != 1:
            return _problem(malformed("Say either ?route=NAME or ?all.", "query"))
        chosen = list(routes.values())
        if "route" in request.query:
            name = request.query["route"]
            if name not in routes:
                known = ", ".join(routes) or "none"
                return _problem(not_found(f"There is no route {name}; the routes are: {known}."))
            chosen = [routes[name]]
        dropped = {route.name: route.cache.purge() for route in chosen if route.cache is not None}
        return web.Response(body=msgspec.json.encode({"purged": dropped}), content_type="application/json")

    app = web.Application()
    app.router.add_get("/", index)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/status", status)
    app.router.add_post("/purge", purge)
    return app


def _route_status(route: Route) -> dict[str, object]:
    cache = route.cache
    return {
        "epoch": route.epoch,
        "tiers": [f"{tier.backend}/{tier.model}" for tier in route.config.tiers],
        "flights": len(route.flights),
        "cache": None
        if cache is None
        else {
            "entries": cache.entries,
            "bytes_used": cache.bytes_used,
            "bytes_max": cache.bytes_max,
            "evictions": cache.evictions,
        },
    }


def _problem(problem: Problem) -> web.Response:
    return web.Response(body=problem.body(), status=problem.status, headers=dict(problem.headers()))
