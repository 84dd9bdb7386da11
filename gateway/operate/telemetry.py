"""What is counted: plain integers on the way of a request, turned into Prometheus metrics at a scrape.

Rule of this file: counting costs a dictionary look-up and an addition, never a lock or a label object.
The words on the labels are the words of the decisions (``Provenance.cache``, ``.reason``, a problem's
slug, a ladder step), so a metric, a log line and an answer's header can be laid side by side. Label
values come from configuration and from enums, never from a caller: cardinality is bounded.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

import msgspec
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from degrade.deadline import Ticker
from gateway.operate.log import Seldom
from tiers.inference import Passed, Provenance

LATENCY_BUCKETS_SECONDS: Final = (
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip

_FAST_SECONDS: Final = LATENCY_BUCKETS_SECONDS[0]
_OK: Final = 200

PASSTHROUGH: Final = "(passthrough)"
"""The route label of everything that has no route; parentheses cannot be in a configured name's way."""

Labels = tuple[str, ...]
_log = structlog.get_logger("tailrace")


class Gauge(msgspec.Struct, frozen=True):
    """A number read at scrape time: metric name, help, label names, and what yields the samples."""

    name: str
    help: str
    labels: Labels
    read: Callable[[], Iterable[tuple[Labels, float]]]
    counter: bool = False


class Fill(Protocol):
    """What is counted of an answer of those who were asked."""

    @property
    def tier_rows(self) -> tuple[tuple[str, int], ...]: ...
    @property
    def rows_escalated(self) -> int: ...
    @property
    def passed(self) -> tuple[Passed, ...]: ...
    @property
    def has_nan(self) -> bool: ...


class Histogram:
    """Latencies in the buckets of ``LATENCY_BUCKETS_SECONDS``."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(LATENCY_BUCKETS_SECONDS) + 1)
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(LATENCY_BUCKETS_SECONDS, seconds)] += 1
        self.seconds += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        """Prometheus buckets: each counts all that is not above its bound."""
        total, found = 0, []
        for bound, count in zip((*map(str, LATENCY_BUCKETS_SECONDS), "+Inf"), self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class Hits:
    """What a route's hits by their bytes come to: most take less than the first bucket's bound."""

    __slots__ = ("count", "seconds", "slow")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.slow = Histogram()
        """Those that took longer."""


class Responses:
    """What a route's responses come to: how many by status, and how long they took by the answer's state."""

    __slots__ = ("seconds", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[int, int] = defaultdict(int)
        self.seconds: dict[str, Histogram] = defaultdict(Histogram)


class Telemetry:
    """All counters of a process. Belongs to one event loop."""

    def __init__(self, ticker: Ticker, logs_requests: bool = False) -> None:
        self._seldom = Seldom(ticker)
        self._logs_requests = logs_requests  # a log call that says nothing still costs more than a hit's counting
        self._hits: dict[str, Hits] = defaultdict(Hits)
        self._answers: dict[Labels, int] = defaultdict(int)
        self._collapsed: dict[Labels, int] = defaultdict(int)
        self._refusals: dict[Labels, int] = defaultdict(int)
        self._degraded: dict[Labels, int] = defaultdict(int)
        self._stood_in: dict[Labels, int] = defaultdict(int)
        self._tier_rows: dict[Labels, int] = defaultdict(int)
        self._fills: dict[Labels, int] = defaultdict(int)
        self._escalated: dict[Labels, int] = defaultdict(int)
        self._nan: dict[Labels, int] = defaultdict(int)
        self._rows_kept: dict[Labels, int] = defaultdict(int)
        self._refresh_failures: dict[Labels, int] = defaultdict(int)
        self._responses: dict[str, Responses] = defaultdict(Responses)
        self._gauges: list[Gauge] = []
        self._registry = CollectorRegistry()
        self._registry.register(self)

    # -- counting -------------------------------------------------------------------------------

    def answered(self, route: str, provenance: Provenance) -> None:
        """A request got an answer, of whatever kind."""
        self._answers[route, provenance.cache, provenance.reason] += 1
        if provenance.rows_kept:
            self._rows_kept[(route,)] += provenance.rows_kept
        if provenance.collapsed:
            self._collapsed[(route,)] += 1
        if provenance.steps and (step := provenance.stand_in):
            self._stood_in[route, step] += 1

    def recalled(self, route: str, seconds: float) -> None:
        """A request got a fresh answer by its bytes, and the door wrote it: all that is counted of it at once."""
        hits = self._hits[route]
        hits.count += 1
        hits.seconds += seconds
        if seconds > _FAST_SECONDS:
            hits.slow.observe(seconds)
        if self._logs_requests:
            self._log_request(route, _OK, "hit", seconds)

    def refused(self, route: str, slug: str) -> None:
        """A request got a problem document."""
        self._refusals[route, slug] += 1

    def degraded(self, route: str, failure: str, step: str, message: str) -> None:
        """Something failed and the ladder took a step."""
        self._degraded[route, failure, step] += 1
        self._tell("ladder", route=route, failure=failure, step=step, message=message)

    def filled(self, route: str, answer: Fill) -> None:
        """The tiers gave an answer: one fill, whoever waited for it."""
        self._fills[(route,)] += 1
        for tier, rows in answer.tier_rows:
            self._tier_rows[route, tier] += rows
        self._escalated[(route,)] += answer.rows_escalated
        if answer.has_nan:
            self._nan[(route,)] += 1
        self.passed(route, answer.passed)

    def passed(self, route: str, passed: Iterable[Passed]) -> None:
        """A replica or a tier failed, and another was asked in its place: once a fill, whoever waited for it."""
        for each in passed:
            self.degraded(route, each.failure.value, each.step.value, each.message)

    def refresh_failed(self, route: str, message: str) -> None:
        """A background refresh brought nothing; its entry stays stale."""
        self._refresh_failures[(route,)] += 1
        self._tell("refresh failed", route=route, failure="", step="", message=message)

    def responded(self, route: str, status: int, state: str, seconds: float) -> None:
        """A door wrote an answer's last byte."""
        responses = self._responses[route]
        responses.statuses[status] += 1
        responses.seconds[state].observe(seconds)
        if self._logs_requests:
            self._log_request(route, status, state, seconds)

    def watch(self, gauge: Gauge) -> None:
        """Read a number at each scrape."""
        self._gauges.append(gauge)

    def _log_request(self, route: str, status: int, state: str, seconds: float) -> None:
        _log.debug("request", route=route, status=status, state=state, milliseconds=round(seconds * 1e3, 3))

    def _tell(self, event: str, *, route: str, failure: str, step: str, message: str) -> None:
        """Log what every request of an outage may do: seldom at info, with how often it was; each at debug."""
        times = self._seldom.times((event, route, failure, step))
        write = _log.info if times else _log.debug
        write(event, route=route, failure=failure, step=step, message=message, times=times or 1)

    # -- exposing -------------------------------------------------------------------------------

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """One scrape, as prometheus_client asks for it."""
        answers, statuses, latencies = self._with_hits()
        yield _counter(
            "tailrace_answers",
            "Answers by cache state and reason.",
            ("route", "cache", "reason"),
            answers,
        )
        yield _counter(
            "tailrace_collapsed",
            "Answers that waited for another caller's fill.",
            ("route",),
            self._collapsed,
        )
        yield _counter("tailrace_refusals", "Problem documents sent, by slug.", ("route", "problem"), self._refusals)
        taken = "Ladder steps taken, also those that did not help: a request takes several, or one for many who wait."
        yield _counter("tailrace_degraded", taken, ("route", "failure", "step"), self._degraded)
        stood = "Answers in which something stood in for what failed, each once, by the last step that did."
        yield _counter("tailrace_stood_in", stood, ("route", "step"), self._stood_in)
        yield _counter("tailrace_fills", "Runs of the cascade, or answers of a server.", ("route",), self._fills)
        yield _counter(
            "tailrace_tier_rows",
            "Rows by the tier whose answer they got: each row of a fill counts once.",
            ("route", "tier"),
            self._tier_rows,
        )
        yield _counter("tailrace_rows_kept", "Rows known of batches that had others.", ("route",), self._rows_kept)
        yield _counter("tailrace_rows_escalated", "Rows that went beyond the first tier.", ("route",), self._escalated)
        yield _counter("tailrace_nan_answers", "Answers with a NaN, which are not kept.", ("route",), self._nan)
        yield _counter(
            "tailrace_refresh_failures",
            "Background refreshes that failed.",
            ("route",),
            self._refresh_failures,
        )
        help_text = "Responses by status, in HTTP's numbers (of other doors the one that stands for their own)."
        yield _counter("tailrace_responses", help_text, ("route", "status"), statuses)
        seconds = HistogramMetricFamily(
            "tailrace_request_seconds",
            "From a request's head to its answer's last byte.",
            labels=("route", "state"),
        )
        for labels, histogram in latencies.items():
            seconds.add_metric(labels, histogram.cumulative(), histogram.seconds)
        yield seconds
        for gauge in self._gauges:
            kind = CounterMetricFamily if gauge.counter else GaugeMetricFamily
            family = kind(gauge.name, gauge.help, labels=gauge.labels)
            for labels, value in gauge.read():
                family.add_metric(labels, value)
            yield family

    def _with_hits(self) -> tuple[dict[Labels, int], dict[Labels, int], dict[Labels, Histogram]]:
        """Answers, statuses and latencies, with what the hits by their bytes add to them."""
        answers = defaultdict(int, self._answers)
        statuses: dict[Labels, int] = defaultdict(int)
        latencies: dict[Labels, Histogram] = {}
        for route, responses in self._responses.items():
            statuses |= {(route, str(status)): count for status, count in responses.statuses.items()}
            latencies |= {(route, state): histogram for state, histogram in responses.seconds.items()}
        for route, hits in self._hits.items():
            answers[route, "hit", "fresh"] += hits.count
            statuses[route, str(_OK)] += hits.count
            latencies[route, "hit"] = _merged(latencies.get((route, "hit")), hits)
        return answers, statuses, latencies


def _merged(other: Histogram | None, hits: Hits) -> Histogram:
    """The latencies of hits: of those by their bytes, and of those that needed decoding first."""
    merged = Histogram()
    parts = [hits.slow] if other is None else [hits.slow, other]
    merged.counts = [sum(counts) for counts in zip(*(part.counts for part in parts), strict=True)]
    merged.counts[0] += hits.count - sum(hits.slow.counts)
    merged.seconds = hits.seconds + (0.0 if other is None else other.seconds)
    return merged


def _counter(name: str, text: str, names: Labels, counts: dict[Labels, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=names)
    for labels, count in counts.items():
        family.add_metric(labels, count)
    return family
