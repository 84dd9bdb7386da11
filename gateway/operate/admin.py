"""The admin port: metrics, a look at the routes and backends, purge. Not for callers.

Rule of this file: it reads state that others own and calls their verbs; it decides nothing. It listens
on loopback unless told otherwise, for whoever reaches it can purge.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import msgspec
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from gateway.doors.http import problem_response
from gateway.learning import Home
from gateway.operate.pages import page_fault
from gateway.operate.telemetry import Telemetry
from gateway.problem import Problem, malformed, method_not_allowed, not_found
from gateway.reload import Outcome, Reloads
from gateway.service import CopiesShown, SecondShelf, Shelf, Watched

if TYPE_CHECKING:
    from gateway.operate.faults import Faults, Order
    from gateway.purges import Marks
    from gateway.snapshots import Snapshots
    from gateway.tables import Table

Answer = Callable[[web.BaseRequest], Awaitable[web.Response]]
SETTLED_SECONDS_MAX: Final = 2.0
"""How long a purge waits for second levels, and the snapshot's disk, to be told."""
ANSWERED_SECONDS: Final = 0.1
"""Before a loop stands still, or a process is killed, on purpose: whoever asked for it is told first."""
CHAOS_SAID: Final = "GET  /chaos              faults on purpose: what holds\nPOST /chaos              order others\n"
_READS: Final = ("GET", "HEAD")


class AdminPort:
    """The handler of an admin port's listener: what is answered to reads (GET, HEAD) and to POST, by path. ``name``: by
    which it may be asked beside ``localhost`` and addresses."""

    def __init__(self, reads: Mapping[str, Answer], writes: Mapping[str, Answer], name: str = "") -> None:
        self._reads = reads
        self._writes = writes
        self._name = name

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; a path or a method that is not there gets a problem document."""
        path, method = request.path, request.method
        if method in _READS and path in self._reads:
            return await self._reads[path](request)
        if method == "POST" and path in self._writes:
            fault = page_fault(request, self._name)
            if fault is not None:
                return problem_response(fault)
            return await self._writes[path](request)
        allowed = (*(_READS if path in self._reads else ()), *(("POST",) if path in self._writes else ()))
        if allowed:
            return problem_response(method_not_allowed(method, allowed))
        return problem_response(not_found(f"There is no {path} here; / says what there is."))


class Shown(msgspec.Struct, frozen=True):
    """What an admin port shows; ``routes`` are endpoints too. What is there is asked for each time: a reload changes
    it."""

    routes: Callable[[], Mapping[str, Watched]]
    homes: Callable[[], Mapping[str, Home]]
    telemetry: Telemetry
    is_draining: Callable[[], bool]
    reloads: Reloads | None = None
    faults: Faults | None = None
    snapshots: Snapshots | None = None
    host: str = ""
    """Where the port listens, as configured."""
    tables: Callable[[], Mapping[str, Table]] = dict


def admin_port(shown: Shown) -> AdminPort:
    """The admin port's paths: ``/metrics``, ``/status``, ``/purge``, ``/reload`` and a plain index."""

    async def index(_: web.BaseRequest) -> web.Response:
        return web.Response(
            text="Tailrace admin port\n\n"
            "GET  /metrics            Prometheus metrics\n"
            "GET  /status             routes, endpoints, caches and replicas as JSON\n"
            "POST /purge?route=NAME   drop a route's or an endpoint's cached answers\n"
            "POST /purge?all          drop every cached answer, and rows of tables\n"
            "POST /reload             read the configuration again, and take it if nothing is wrong with it\n"
            f"{'' if shown.faults is None else CHAOS_SAID}"
        )

    async def metrics(_: web.BaseRequest) -> web.Response:
        return web.Response(body=shown.telemetry.exposition(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def status(_: web.BaseRequest) -> web.Response:
        document = {
            "pid": os.getpid(),
            "draining": shown.is_draining(),
            "routes": {name: _route_status(route) for name, route in shown.routes().items()},
            "backends": {name: msgspec.to_builtins(home.pool.states()) for name, home in shown.homes().items()},
            "snapshot": None if shown.snapshots is None else _snapshot_status(shown.snapshots),
            "load": {name: _load_status(home) for name, home in shown.homes().items()},
        }
        return web.Response(body=msgspec.json.encode(document), content_type="application/json")

    async def purge(request: web.BaseRequest) -> web.Response:
        if set(request.query) - {"route", "all"} or len(request.query) != 1:
            return problem_response(malformed("Say either ?route=NAME or ?all.", "query"))
        routes, name = shown.routes(), request.query.get("route")
        if name is not None and name not in routes:
            known = ", ".join(routes) or "none"
            said = f"There is no route {name}; the routes are: {known}. What is left of others ends with ?all."
            return problem_response(not_found(said))
        chosen = list(routes.values()) if name is None else [routes[name]]
        for table in shown.tables().values() if name is None else ():
            table.purge()
        marks = None if shown.snapshots is None else shown.snapshots.marks
        if marks is not None:
            marks.purge(name)
        dropped = {route.name: purged(route) for route in chosen if route.cache is not None}
        left = await _unsettled(chosen, marks)
        if left:
            detail = f"Purged here; these do not answer, and are told when they do: {', '.join(left)}."
            return problem_response(Problem("second-silent", 503, "Not purged everywhere", detail, retry_after=1.0))
        return web.Response(body=msgspec.json.encode({"purged": dropped}), content_type="application/json")

    async def reload(_: web.BaseRequest) -> web.Response:
        return reloaded(None if shown.reloads is None else await shown.reloads.reload())

    reads: dict[str, Answer] = {"/": index, "/metrics": metrics, "/status": status}
    writes: dict[str, Answer] = {"/purge": purge, "/reload": reload}
    if shown.faults is not None:
        reads["/chaos"], writes["/chaos"] = _chaos(shown.faults)
    return AdminPort(reads, writes, shown.host)


async def order_of(request: web.BaseRequest) -> Order | Problem:
    """An order for faults, as JSON. It must say that it is JSON."""
    from gateway.operate.faults import Order

    if request.content_type != "application/json":
        return Problem("unsupported-media", 415, "Unsupported media type", "An order is application/json.")
    try:
        return msgspec.json.decode(await request.read(), type=Order)
    except msgspec.DecodeError as error:
        return malformed(str(error), "order")


def _chaos(faults: Faults) -> tuple[Answer, Answer]:
    """What holds of faults on purpose, and how others are ordered."""
    from gateway.operate.faults import BadOrder

    def told() -> web.Response:
        document = {
            "seconds_left": faults.seconds_left,
            "faults": faults.rules,
            "targets": sorted(faults.targets),
            "met": {name: count for name, count in sorted(faults.met.items()) if count},
        }
        return web.Response(body=msgspec.json.encode(document), content_type="application/json")

    async def read(_: web.BaseRequest) -> web.Response:
        return told()

    async def write(request: web.BaseRequest) -> web.Response:
        if request.query:
            return problem_response(malformed("There is one process here: say nothing after /chaos.", "query"))
        order = await order_of(request)
        if isinstance(order, Problem):
            return problem_response(order)
        try:
            faults.take(order)
        except BadOrder as bad:
            return problem_response(malformed(str(bad), "order"))
        loop = asyncio.get_running_loop()
        if order.stall:
            loop.call_later(ANSWERED_SECONDS, time.sleep, order.stall)
        if order.kill:
            loop.call_later(ANSWERED_SECONDS, os.kill, os.getpid(), signal.SIGKILL)
        return told()

    return read, write


def purged(route: Watched) -> int:
    """How many answers a route has dropped, rows among them; its second level is told."""
    if route.second is not None:
        route.second.end_turn()
    return sum([shelf.purge() for shelf in (route.cache, route.row_cache) if shelf is not None])


async def _unsettled(routes: Sequence[Watched], marks: Marks | None) -> list[str]:
    """Where others could still find what was purged, because it could not be told there in time."""
    told = {f"the second level of {each.name}": each.second for each in routes if each.second is not None}
    kept: dict[str, SecondShelf | Marks] = {**told, **({} if marks is None else {"the disk of the snapshot": marks})}
    settled = await asyncio.gather(*(each.settled(SETTLED_SECONDS_MAX) for each in kept.values()))
    return [name for name, is_settled in zip(kept, settled, strict=True) if not is_settled]


def reloaded(outcome: Outcome | None) -> web.Response:
    """What a reload came to: 200 and what has changed, 422 and every fault, or 503 if some workers have taken it. None:
    there is nothing to read again."""
    if outcome is None:
        return problem_response(not_found("This gateway's configuration was given to it, and cannot be read again."))
    if outcome.faults:
        said = outcome.faults[0] + (" ..." if len(outcome.faults) > 1 else "")
        slug, status, detail = "configuration-refused", HTTPStatus.UNPROCESSABLE_ENTITY, f"Nothing has changed: {said}"
        if outcome.in_part:
            slug, status, detail = "configuration-taken-in-part", HTTPStatus.SERVICE_UNAVAILABLE, f"Some did: {said}"
        title = slug.replace("-", " ").capitalize()
        return problem_response(Problem(slug, status, title, detail, extras={"faults": list(outcome.faults)}))
    document = {"changed": outcome.changed, "warnings": outcome.warnings}
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")


def _route_status(route: Watched) -> dict[str, object]:
    return {
        "epoch": route.epoch,
        "tiers": route.asks,
        "flights": len(route.flights),
        "cache": _shelf_status(route.cache),
        "rows": _shelf_status(route.row_cache),
        "second": None if route.second is None else {"state": route.second.state, **route.second.counts},
        "snapshot": None if route.copies is None else _copies_status(route.copies),
    }


def _copies_status(copies: CopiesShown) -> dict[str, object]:
    return {"state": copies.state, "lookups": dict(copies.outcomes), "large": copies.large}


def _snapshot_status(snapshots: Snapshots) -> dict[str, object]:
    snapshot = snapshots.snapshot
    return {
        "path": str(snapshot.folder),
        "age": round(snapshots.age, 3),
        "bytes": snapshot.bytes,
        "records": snapshot.records,
        "generations": snapshot.generations,
        "waiting": snapshots.waiting,
        "passes": dict(snapshots.passes),
        "failures": dict(snapshot.failures),
        "late": snapshots.late,
        "rejected": dict(snapshot.rejected),
        "quarantined": dict(snapshot.quarantined),
    }


def _load_status(home: Home) -> dict[str, object]:
    """A backend's brownout level, and its models' gates."""
    gates = {
        model: {
            "limit": gate.settled,
            "places": gate.places,
            "in_flight": gate.in_flight,
            "waiting": gate.waiting,
            "latency": gate.latency,
            "shed": sum(gate.shed.values()),
        }
        for model, gate in home.pool.gates
    }
    return {"level": home.pool.gates.level, "models": gates}


def _shelf_status(shelf: Shelf | None) -> dict[str, int] | None:
    if shelf is None:
        return None
    return {
        "entries": shelf.entries,
        "bytes_used": shelf.bytes_used,
        "bytes_max": shelf.bytes_max,
        "evictions": shelf.evictions,
    }
