"""The numbers of load: limits, queues, what was shed, and brownout levels.

Rule of this file: as in ``gauges.py``: it names metrics and where each is read; it keeps nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from degrade.gate import Gate
from gateway.operate.telemetry import Gauge, Labels
from gateway.route import Home
from gateway.strain import Strain

Samples = Iterator[tuple[Labels, float]]


def load_gauges(homes: Callable[[], Mapping[str, Home]], strain: Strain) -> Iterator[Gauge]:
    """Of the backends that are there at a scrape."""

    def gates() -> Iterator[tuple[str, str, Gate]]:
        return ((name, model, gate) for name, home in homes().items() for model, gate in home.pool.gates)

    def of_gates(read: Callable[[Gate], float]) -> Callable[[], Samples]:
        return lambda: (((name, model), read(gate)) for name, model, gate in gates())

    def by_priority(read: Callable[[Gate], Mapping[str, float]]) -> Callable[[], Samples]:
        return lambda: (
            ((name, model, word), value) for name, model, gate in gates() for word, value in read(gate).items()
        )

    model, classed = ("backend", "model"), ("backend", "model", "priority")
    yield Gauge("tailrace_concurrency_limit", "Requests that a model may have at once.", model, of_gates(_settled))
    yield Gauge(
        "tailrace_concurrency_places",
        "Requests that its servers work on at once by what they say; 0: nobody says.",
        model,
        of_gates(lambda gate: gate.places),
    )
    yield Gauge("tailrace_concurrency_in_flight", "Requests that it has.", model, of_gates(lambda gate: gate.in_flight))
    yield Gauge("tailrace_concurrency_waiting", "Requests that wait.", model, of_gates(lambda gate: gate.waiting))
    yield Gauge(
        "tailrace_concurrency_latency_seconds",
        "How long it took lately to answer, in the mean, once it was asked.",
        model,
        of_gates(lambda gate: gate.latency),
    )
    yield Gauge("tailrace_queued", "Requests let in after a wait.", classed, by_priority(_waited), counter=True)
    yield Gauge(
        "tailrace_queue_seconds",
        "How long those waited, in sum.",
        classed,
        by_priority(lambda gate: gate.waited_seconds),
        counter=True,
    )
    yield Gauge(
        "tailrace_shed",
        "Requests that found no place: full, displaced by who goes before, late (waited as long as can be), brownout.",
        ("backend", "model", "reason", "priority"),
        lambda: (
            ((name, key, reason, word), float(count))
            for name, key, gate in gates()
            for (reason, word), count in gate.shed.items()
        ),
        counter=True,
    )
    yield Gauge(
        "tailrace_brownout_level",
        "0 everything is done, to 4 the lowest priority is not served.",
        ("backend",),
        lambda: (((name,), float(level)) for name, level in strain.levels.items()),
    )
    yield Gauge(
        "tailrace_brownout_turns",
        "Changes of that, by the level they led to and what asked for them.",
        ("backend", "level", "reason"),
        lambda: ((labels, float(count)) for labels, count in strain.turns.items()),
        counter=True,
    )
    yield Gauge("tailrace_loop_lag_seconds", "How late the event loop was.", (), lambda: iter([((), strain.lag)]))


def _settled(gate: Gate) -> float:
    return gate.settled


def _waited(gate: Gate) -> Mapping[str, float]:
    return gate.waited
