"""The admin port of several workers: their numbers added up, their states side by side, their caches purged together.

Rule of this file: it asks each worker's own admin port (a unix socket) and puts the answers together; it
starts and stops nothing. A worker that does not answer is told of, never left out in silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector, web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from degrade.deadline import Ticker
from gateway.doors.http import problem_response
from gateway.operate.admin import CHAOS_SAID, AdminPort, Answer, order_of, reloaded
from gateway.problem import Problem, malformed
from gateway.reload import READ_SECONDS_MAX, Reloads, TakenInPart
from gateway.sources import ConfigError

if TYPE_CHECKING:
    from gateway.operate.faults import Order

ANSWER_SECONDS_MAX: Final = 5.0
"""What a worker may take to answer its admin port: longer, and it hangs."""

RELOAD_SECONDS_MAX: Final = READ_SECONDS_MAX + ANSWER_SECONDS_MAX
"""What it may take to reload: to read the configuration, and to look once at backends that are new."""

_RELOADS: Final = frozenset({"tailrace_reloads", "tailrace_reload_failing"})
"""What the supervisor tells of itself, and not of each worker that it has told."""

_SUMMED: Final = frozenset({"counter", "histogram"})
_SUFFIXES: Final = ("_total", "_bucket", "_count", "_sum")

Sample = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and its labels, in the worker's order."""

Told = tuple[int, bytes]
"""A worker's HTTP status and body."""

T = TypeVar("T")


class Totals:
    """Counters of all workers, also of those that have ended: a sum must not fall when a worker does."""

    def __init__(self) -> None:
        self._latest: dict[int, dict[Sample, float]] = {}
        self._departed: dict[Sample, float] = {}

    def departed(self, worker: int) -> None:
        """A worker's process has ended; what it counted last stays counted."""
        for sample, value in self._latest.pop(worker, {}).items():
            self._departed[sample] = self._departed.get(sample, 0.0) + value

    def families(self, told: Mapping[int, str]) -> list[Metric]:
        """One scrape from the workers' own, each in Prometheus' text format 0.0.4, by worker.

        Counters and histograms are summed; every other metric keeps its worker as a label.
        """
        kinds: dict[str, Metric] = {}
        sums: dict[str, dict[Sample, float]] = {}
        for worker, text in told.items():
            latest: dict[Sample, float] = {}
            for family in text_string_to_metric_families(text):
                kept = kinds.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    if family.type not in _SUMMED:
                        kept.add_sample(sample.name, {**sample.labels, "worker": str(worker)}, sample.value)
                        continue
                    key = sample.name, tuple(sample.labels.items())
                    latest[key] = sample.value
                    summed = sums.setdefault(family.name, {})
                    summed[key] = summed.get(key, 0.0) + sample.value
            self._latest[worker] = latest
        for key, value in self._missing(told):
            family_name = next((key[0].removesuffix(end) for end in _SUFFIXES if key[0].endswith(end)), key[0])
            if family_name in kinds:
                summed = sums.setdefault(family_name, {})
                summed[key] = summed.get(key, 0.0) + value
        for name, samples in sums.items():
            for (sample_name, labels), value in samples.items():
                kinds[name].add_sample(sample_name, dict(labels), value)
        return list(kinds.values())

    def _missing(self, told: Mapping[int, str]) -> Iterable[tuple[Sample, float]]:
        """What ended workers counted, and what those counted last that do not answer now."""
        yield from self._departed.items()
        for worker, latest in self._latest.items():
            if worker not in told:
                yield from latest.items()


class _Refusal(msgspec.Struct):
    """Of a worker's problem document."""

    faults: tuple[str, ...]


class Fleet:
    """The workers as their admin ports show them. ``sockets``: paths, by the worker's number; ``deadly``: how many
    requests all of them refuse because workers have died of them."""

    def __init__(
        self, sockets: Sequence[str], deadly: Callable[[], int] = lambda: 0, ticker: Ticker = monotonic
    ) -> None:
        self._sockets = tuple(sockets)
        self._ticker = ticker
        self._orders: dict[int, tuple[Order, float]] = {}
        """By worker, which faults on purpose were ordered of it last, and until when."""
        self._ordering = asyncio.Lock()
        self._totals = Totals()
        self._deadly = deadly
        self._restarts = 0

    @property
    def size(self) -> int:
        return len(self._sockets)

    def departed(self, worker: int) -> None:
        """A worker's process has ended and another will take its place."""
        self._totals.departed(worker)
        self._restarts += 1

    async def exposition(self, reloads: Reloads) -> bytes:
        """Everything, in Prometheus' text format 0.0.4. ``reloads``: the supervisor's."""
        answers = await self._ask("GET", "/metrics")
        told = {worker: body.decode() for worker, (status, body) in answers.items() if status == web.HTTPOk.status_code}
        registry = CollectorRegistry()
        of_workers = [family for family in self._totals.families(told) if family.name not in _RELOADS]
        registry.register(_Collected([*of_workers, *self._own(told), *_of_reloads(reloads)]))
        return generate_latest(registry)

    async def status(self) -> bytes:
        """Each worker's status as JSON, or null for one that does not answer."""
        answers = await self._ask("GET", "/status")
        workers = [msgspec.Raw(answers[each][1]) if each in answers else None for each in range(len(self._sockets))]
        return msgspec.json.encode({"workers": workers})

    async def purge(self, query: str) -> Told:
        """Purge at every worker; entries dropped are added up. 503 unless every worker did it."""
        answers = await self._ask("POST", f"/purge?{query}")
        refused = next((answer for answer in answers.values() if answer[0] >= web.HTTPBadRequest.status_code), None)
        if refused is not None:
            return refused
        silent = [str(worker) for worker in range(len(self._sockets)) if worker not in answers]
        if silent:
            detail = f"Workers {', '.join(silent)} did not answer, and may hold old answers; purge again."
            problem = Problem("worker-silent", 503, "Not purged everywhere", detail, retry_after=1.0)
            return problem.status, problem.body()
        dropped: dict[str, int] = {}
        for _, body in answers.values():
            for route, entries in msgspec.json.decode(body, type=dict[str, dict[str, int]])["purged"].items():
                dropped[route] = dropped.get(route, 0) + entries
        return web.HTTPOk.status_code, msgspec.json.encode({"purged": dropped})

    async def chaos(self) -> bytes:
        """What holds of faults on purpose at each worker, or null for one that does not answer."""
        answers = await self._ask("GET", "/chaos")
        workers = [msgspec.Raw(answers[each][1]) if each in answers else None for each in range(len(self._sockets))]
        return msgspec.json.encode({"workers": workers})

    async def order(self, order: Order, worker: int | None) -> Told | None:
        """Pass an order for faults on to one worker, or to all; the first refusal, if there is one. Who is away gets it
        when it is back, as does one that ends meanwhile; but no worker stands still, or is killed, for that."""
        async with self._ordering:
            answers = await self._ask("POST", "/chaos", body=msgspec.json.encode(order), only=worker)
            refused = next((answer for answer in answers.values() if answer[0] >= web.HTTPBadRequest.status_code), None)
            kept = msgspec.structs.replace(order, stall=0.0, kill=False), self._ticker() + order.seconds
            for each in range(self.size) if worker is None else (worker,):
                taken = answers[each][0] == web.HTTPOk.status_code if each in answers else refused is None
                if taken:
                    self._orders[each] = kept
        return refused

    async def returned(self, worker: int) -> bool:
        """A worker is ready: let it go on with what is left of its last order. Whether it does, or there is none."""
        async with self._ordering:
            order, until = self._orders.get(worker, (None, 0.0))
            left = until - self._ticker()
            if order is None or left <= 0:
                return True
            rest = msgspec.json.encode(msgspec.structs.replace(order, seconds=left))
            status, _ = (await self._ask("POST", "/chaos", body=rest, only=worker)).get(worker, (0, b""))
        return status == web.HTTPOk.status_code

    async def reload(self) -> None:
        """Let every worker take the configuration as it is now. Raises ConfigError if none has, and TakenInPart if not
        all have: with what they said, and which of them did not answer."""
        answers = await self._ask("POST", "/reload", RELOAD_SECONDS_MAX)
        faults = []
        taken = 0
        for worker in range(len(self._sockets)):
            status, body = answers.get(worker, (0, b""))
            if status == web.HTTPOk.status_code:
                taken += 1
            elif status == web.HTTPUnprocessableEntity.status_code:
                faults += [f"worker {worker}: {fault}" for fault in msgspec.json.decode(body, type=_Refusal).faults]
            else:
                faults.append(f"worker {worker} did not answer, and may have the old configuration; reload again")
        if faults:
            raise (TakenInPart if taken or len(answers) < len(self._sockets) else ConfigError)(tuple(faults))

    def _own(self, told: Mapping[int, str]) -> Iterable[Metric]:
        up = GaugeMetricFamily("tailrace_worker_up", "1 for a worker that answers.", labels=("worker",))
        for worker in range(len(self._sockets)):
            up.add_metric((str(worker),), float(worker in told))
        yield up
        restarts = CounterMetricFamily("tailrace_worker_restarts", "Workers that ended and were started again.")
        restarts.add_metric((), self._restarts)
        yield restarts
        deadly = GaugeMetricFamily(
            "tailrace_deadly_requests", "Requests that are refused because two workers have died with them in work."
        )
        deadly.add_metric((), float(self._deadly()))
        yield deadly

    async def _ask(
        self, method: str, target: str, seconds: float = ANSWER_SECONDS_MAX, body: bytes = b"", only: int | None = None
    ) -> dict[int, Told]:
        """What each worker answers, or ``only`` that one; those that do not are not there. ``body``: JSON."""
        headers = {"Content-Type": "application/json"} if body else {}

        async def one(worker: int, path: str) -> tuple[int, Told] | None:
            try:
                async with (
                    ClientSession(connector=UnixConnector(path), timeout=ClientTimeout(seconds)) as session,
                    session.request(method, f"http://worker{target}", data=body or None, headers=headers) as answer,
                ):
                    return worker, (answer.status, await answer.read())
            except (ClientError, OSError, TimeoutError):
                return None

        asked = [each for each in enumerate(self._sockets) if only in (None, each[0])]
        answers = await asyncio.gather(*(one(worker, path) for worker, path in asked))
        return dict(answer for answer in answers if answer is not None)


def fleet_port(fleet: Fleet, reloads: Reloads, host: str, chaos: bool = False) -> AdminPort:
    """The admin port's paths, as of a single process. ``host``: where it listens; ``chaos``: faults may be ordered."""

    async def index(_: web.BaseRequest) -> web.Response:
        return web.Response(
            text="Tailrace admin port, for all workers\n\n"
            "GET  /metrics            Prometheus metrics: counters added up, gauges by worker\n"
            "GET  /status             each worker's routes, caches and replicas as JSON\n"
            "POST /purge?route=NAME   drop a route's or an endpoint's cached answers, at every worker\n"
            "POST /purge?all          drop every cached answer, and rows of tables\n"
            "POST /reload             read the configuration again; every worker takes it if nothing is wrong with it\n"
            f"{CHAOS_SAID if chaos else ''}"
        )

    async def metrics(_: web.BaseRequest) -> web.Response:
        return web.Response(body=await fleet.exposition(reloads), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def status(_: web.BaseRequest) -> web.Response:
        return web.Response(body=await fleet.status(), content_type="application/json")

    async def purge(request: web.BaseRequest) -> web.Response:
        code, body = await fleet.purge(request.query_string)
        kind = "application/json" if code == web.HTTPOk.status_code else "application/problem+json"
        return web.Response(body=body, status=code, content_type=kind)

    async def reload(_: web.BaseRequest) -> web.Response:
        return reloaded(await reloads.reload())

    reads: dict[str, Answer] = {"/": index, "/metrics": metrics, "/status": status}
    writes: dict[str, Answer] = {"/purge": purge, "/reload": reload}
    if chaos:
        reads["/chaos"], writes["/chaos"] = _chaos(fleet)
    return AdminPort(reads, writes, host)


def _chaos(fleet: Fleet) -> tuple[Answer, Answer]:
    """Faults on purpose, at all workers or (``?worker=N``) at one."""

    async def read(_: web.BaseRequest) -> web.Response:
        return web.Response(body=await fleet.chaos(), content_type="application/json")

    async def write(request: web.BaseRequest) -> web.Response:
        found = await order_of(request)
        if isinstance(found, Problem):
            return problem_response(found)
        said = request.query.get("worker", "")
        one = said.isascii() and said.isdigit() and int(said) < fleet.size
        if request.query and not (one and len(request.query) == 1):
            return problem_response(malformed(f"Say ?worker=N, 0 to {fleet.size - 1}, or nothing for all.", "query"))
        if found.kill and not said:
            return problem_response(malformed("Say which of the workers is to be killed: ?worker=N.", "query"))
        refused = await fleet.order(found, int(said) if one else None)
        if refused is not None:
            return web.Response(body=refused[1], status=refused[0], content_type="application/problem+json")
        return await read(request)

    return read, write


def _of_reloads(reloads: Reloads) -> Iterable[Metric]:
    counted = CounterMetricFamily("tailrace_reloads", "Reloads, by how they ended.", labels=("outcome",))
    for outcome, count in reloads.outcomes.items():
        counted.add_metric((outcome,), count)
    yield counted
    failing = GaugeMetricFamily("tailrace_reload_failing", "1 while the last reload was not taken by every worker.")
    failing.add_metric((), float(bool(reloads.faults)))
    yield failing


class _Collected:
    """Families that are there already, as a registry wants them."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
