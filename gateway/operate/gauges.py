"""The numbers that are read at a scrape, because someone else already keeps them.

Rule of this file: it names metrics and where each is read; it keeps nothing itself.
"""

from __future__ import annotations

from asyncio import all_tasks
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from gateway.doors.guests import Guests
from gateway.doors.handshakes import Handshakes
from gateway.doors.lane import EdgeLane
from gateway.doors.rpc_lane import RpcLane
from gateway.learning import Home
from gateway.notes import Notes
from gateway.operate.telemetry import Gauge, Labels
from gateway.reload import Reloads
from gateway.service import AnswerShelf, SecondShelf, Shelf, Watched
from tiers.seat import ReplicaState

if TYPE_CHECKING:
    from gateway.operate.faults import Faults
    from gateway.snapshots import Snapshots
    from gateway.tables import Table


class CallCounts(Protocol):
    """The gRPC door's service, which is not loaded where there is no such door."""

    guests: Guests
    streams: Guests
    refused: Counter[str]


Samples = Iterator[tuple[Labels, float]]

BREAKER_STATES: Final = {"closed": 0.0, "half_open": 1.0, "open": 2.0}


Routes = Callable[[], Mapping[str, Watched]]
Homes = Callable[[], Mapping[str, Home]]


def gauges(routes: Routes, homes: Homes, is_draining: Callable[[], bool]) -> Iterator[Gauge]:
    """Every gauge of a gateway; ``routes`` are its endpoints too. What is there is asked for at each scrape: a reload
    changes it."""

    def of_caches(read: Callable[[AnswerShelf], float]) -> Callable[[], Samples]:
        return lambda: (((name,), read(route.cache)) for name, route in routes().items() if route.cache is not None)

    def of_rows(read: Callable[[Shelf], float]) -> Callable[[], Samples]:
        return lambda: (((name,), read(it.row_cache)) for name, it in routes().items() if it.row_cache is not None)

    def of_routes(read: Callable[[Watched], float]) -> Callable[[], Samples]:
        return lambda: (((name,), read(route)) for name, route in routes().items())

    def of_replicas(read: Callable[[ReplicaState], float]) -> Callable[[], Samples]:
        return lambda: (
            ((name, state.url), read(state))
            for name, home in homes().items()
            for pool in home.pools
            for state in pool.states()
        )

    route, replica = ("route",), ("backend", "replica")
    yield Gauge("tailrace_cache_entries", "Answers kept.", route, of_caches(lambda cache: cache.entries))
    yield Gauge("tailrace_cache_wires", "Ready wire forms kept.", route, of_caches(lambda cache: cache.wires))
    yield Gauge("tailrace_cache_bytes", "Bytes charged for them.", route, of_caches(lambda cache: cache.bytes_used))
    yield Gauge("tailrace_cache_bytes_max", "The bound on them.", route, of_caches(lambda cache: cache.bytes_max))
    yield Gauge(
        "tailrace_cache_evictions",
        "Answers pushed out.",
        route,
        of_caches(lambda cache: cache.evictions),
        counter=True,
    )
    yield Gauge(
        "tailrace_cache_rejections",
        "Answers not kept.",
        route,
        of_caches(lambda cache: cache.rejections),
        counter=True,
    )
    yield Gauge("tailrace_row_entries", "Rows kept.", route, of_rows(lambda cache: cache.entries))
    yield Gauge("tailrace_row_bytes", "Bytes charged for them.", route, of_rows(lambda cache: cache.bytes_used))
    yield Gauge("tailrace_row_bytes_max", "The bound on them.", route, of_rows(lambda cache: cache.bytes_max))
    yield Gauge("tailrace_row_evictions", "Rows pushed out.", route, of_rows(lambda each: each.evictions), counter=True)
    yield Gauge("tailrace_epoch", "Turns when a model behind changes.", route, of_routes(lambda each: each.epoch))
    yield Gauge("tailrace_flights", "Fills under way.", route, of_routes(lambda each: len(each.flights)))
    yield Gauge("tailrace_waiters", "Callers who wait for fills.", route, of_routes(lambda each: each.flights.waiters))
    yield Gauge("tailrace_refreshes", "Background refreshes under way.", route, of_routes(lambda each: each.refreshes))
    yield Gauge(
        "tailrace_breaker_state",
        "0 closed, 1 half open, 2 open.",
        replica,
        of_replicas(lambda state: BREAKER_STATES[state.breaker]),
    )
    yield Gauge(
        "tailrace_replica_ready",
        "What the last probe said.",
        replica,
        of_replicas(lambda state: float(state.ready)),
    )
    yield Gauge("tailrace_replica_in_flight", "Requests there.", replica, of_replicas(lambda state: state.in_flight))
    yield Gauge(
        "tailrace_replica_models_open",
        "Models whose answers the replica is not asked for.",
        replica,
        of_replicas(lambda state: len(state.models_open)),
    )
    yield Gauge("tailrace_tasks", "Tasks of the event loop.", (), lambda: iter([((), float(len(all_tasks())))]))
    yield Gauge("tailrace_draining", "1 while the gateway stops.", (), lambda: iter([((), float(is_draining()))]))


def second_gauges(routes: Routes, stores: Callable[[], Mapping[str, str]]) -> Iterator[Gauge]:
    """What routes share with other processes. ``stores``: each store's breaker."""

    def shared() -> Iterator[tuple[str, SecondShelf]]:
        return ((name, route.second) for name, route in routes().items() if route.second is not None)

    yield Gauge(
        "tailrace_second",
        "Answers and rows looked for in the second level, and left there, by what became of them.",
        ("route", "outcome"),
        lambda: (((name, word), float(n)) for name, each in shared() for word, n in each.counts.items()),
        counter=True,
    )
    yield Gauge(
        "tailrace_second_used",
        "1 while answers are looked for there.",
        ("route",),
        lambda: (((name,), float(each.is_used)) for name, each in shared()),
    )
    yield Gauge(
        "tailrace_second_waiting",
        "Writes that wait.",
        ("route",),
        lambda: (((name,), float(each.waiting)) for name, each in shared()),
    )
    yield Gauge(
        "tailrace_second_store_state",
        "0 closed, 1 half open, 2 open.",
        ("store",),
        lambda: (((place,), BREAKER_STATES[state]) for place, state in stores().items()),
    )


def snapshot_gauges(snapshots: Snapshots, routes: Callable[[], Mapping[str, Watched]]) -> Iterator[Gauge]:
    """What is copied to the disk, and what of it is used."""
    snapshot = snapshots.snapshot

    def one(read: Callable[[], float]) -> Callable[[], Samples]:
        return lambda: iter([((), float(read()))])

    def by_word(counts: Mapping[str, int]) -> Callable[[], Samples]:
        return lambda: (((word,), float(count)) for word, count in counts.items())

    def of_large() -> Samples:
        return (
            ((name,), float(route.copies.large)) for name, route in routes().items() if route.copies is not None
        )

    def of_words() -> Samples:
        return (((name, copies.state), 1.0) for name, route in routes().items() if (copies := route.copies) is not None)

    def of_copies() -> Samples:
        return (
            ((name, word), float(count))
            for name, route in routes().items()
            if route.copies is not None
            for word, count in route.copies.outcomes.items()
        )

    age = "Seconds since something was written last, by any worker."
    yield Gauge("tailrace_snapshot_age_seconds", age, (), one(lambda: snapshots.age))
    yield Gauge("tailrace_snapshot_bytes", "On the disk, in generations.", (), one(lambda: snapshot.bytes))
    yield Gauge("tailrace_snapshot_bytes_max", "The bound on them.", (), one(lambda: snapshot.options.bytes_max))
    yield Gauge("tailrace_snapshot_records", "In the last generation.", (), one(lambda: snapshot.records))
    yield Gauge("tailrace_snapshot_generations", "That are read.", (), one(lambda: snapshot.generations))
    yield Gauge("tailrace_snapshot_waiting", "Keys to be copied, or in a pass.", (), one(lambda: snapshots.waiting))
    yield Gauge(
        "tailrace_snapshot_turn_seconds_max",
        "The longest turn of the event loop that a pass took.",
        (),
        one(lambda: snapshots.turn_seconds_max),
    )
    passes = "Passes, by how they ended."
    yield Gauge("tailrace_snapshot_passes", passes, ("outcome",), by_word(snapshots.passes), counter=True)
    lost = "Keys that found no room to wait in, because passes are too slow: they are copied when they are made anew."
    yield Gauge("tailrace_snapshot_forgotten", lost, (), one(lambda: snapshots.forgotten), counter=True)
    copied = "Records written."
    yield Gauge("tailrace_snapshot_copied", copied, (), one(lambda: snapshots.copied), counter=True)
    large = "Answers that were not copied, for they have more than 1 MiB."
    yield Gauge("tailrace_snapshot_large", large, ("route",), of_large, counter=True)
    failures = "What the disk did not do, by kind."
    yield Gauge("tailrace_snapshot_failures", failures, ("kind",), by_word(snapshot.failures), counter=True)
    late = "Looks at copies for which their request had no more time, on a disk that does not hang."
    yield Gauge("tailrace_snapshot_late", late, (), one(lambda: snapshots.late), counter=True)
    rejected = "Records that were not used, by reason."
    yield Gauge("tailrace_snapshot_rejected", rejected, ("reason",), by_word(snapshot.rejected), counter=True)
    lying = "Damaged files that were put aside, and lie in quarantine until they are pruned or their room is needed."
    yield Gauge("tailrace_snapshot_quarantine_files", lying, (), one(lambda: snapshot.aside))
    aside = "Generations that this process has put aside, by reason."
    yield Gauge("tailrace_snapshot_quarantined", aside, ("reason",), by_word(snapshot.quarantined), counter=True)
    word = (
        "1 for what is known of whether a route's copies are of its models as they are: held, or why nobody can tell "
        "(unread, unreachable: what lies beside the copies cannot be read or written; clock: it is of a time to come)."
    )
    yield Gauge("tailrace_snapshot_word", word, ("route", "state"), of_words)
    looked = (
        "Look-ups of an answer's or a row's copy: fresh, stale (of other models), unknown (nobody can tell) or absent. "
        "A request makes several on its way: they are no requests."
    )
    yield Gauge("tailrace_snapshot_lookups", looked, ("route", "outcome"), of_copies, counter=True)


def lane_gauges(lane: EdgeLane) -> Iterator[Gauge]:
    """What the HTTP door's connections hold."""

    def one(read: Callable[[], float]) -> Callable[[], Samples]:
        return lambda: iter([((), read())])

    buffered = lane.buffered
    yield Gauge("tailrace_connections", "Callers' connections.", (), one(lambda: len(lane.connections)))
    yield Gauge("tailrace_connections_max", "The bound on them.", (), one(lambda: lane.options.connections_max))
    yield Gauge(
        "tailrace_connections_cut",
        "Connections cut, by what their peer took too long for, or the limit they were over.",
        ("reason",),
        lambda: (((reason,), float(count)) for reason, count in lane.cuts.items()),
        counter=True,
    )
    yield Gauge("tailrace_heads", "Request heads remembered.", (), one(lambda: len(lane.heads)))
    yield Gauge("tailrace_heads_judged", "Request heads parsed.", (), one(lambda: lane.heads_judged), counter=True)
    yield Gauge("tailrace_buffered_bytes", "Bytes of requests held.", (), one(lambda: buffered.bytes))
    yield Gauge("tailrace_buffered_bytes_max", "The bound on them.", (), one(lambda: buffered.bytes_max))
    yield Gauge(
        "tailrace_buffered_refusals",
        "Requests refused because no more could be held.",
        (),
        one(lambda: buffered.refused),
        counter=True,
    )


def rpc_gauges(lane: RpcLane) -> Iterator[Gauge]:
    """What the MessagePack-RPC door's connections hold."""
    book = lane.book
    yield Gauge("tailrace_rpc_connections", "Callers' connections.", (), lambda: iter([((), len(book.connections))]))
    yield Gauge("tailrace_rpc_connections_max", "The bound on them.", (), lambda: iter([((), book.connections_max)]))
    yield Gauge(
        "tailrace_rpc_connections_cut",
        "Connections cut, by what their peer took too long for, or the limit they were over.",
        ("reason",),
        lambda: (((reason,), float(count)) for reason, count in book.cuts.items()),
        counter=True,
    )
    yield Gauge("tailrace_rpc_in_flight", "Calls in work.", (), lambda: iter([((), float(lane.in_flight))]))


def grpc_gauges(service: CallCounts) -> Iterator[Gauge]:
    """What the gRPC door's callers hold."""

    def one(read: Callable[[], int]) -> Callable[[], Samples]:
        return lambda: iter([((), float(read()))])

    guests, streams = service.guests, service.streams
    yield Gauge("tailrace_grpc_calls", "Calls in work, open streams among them.", (), one(lambda: guests.calls))
    yield Gauge("tailrace_grpc_streams", "ModelStreamInfer calls that are open.", (), one(lambda: streams.calls))
    yield Gauge("tailrace_grpc_addresses", "Addresses with a call in work.", (), one(lambda: len(guests)))
    yield Gauge("tailrace_grpc_calls_accepted", "Calls begun.", (), one(lambda: guests.accepted), counter=True)
    yield Gauge(
        "tailrace_grpc_calls_refused",
        "Calls for which there was no place, by the limit they were over; draining: the gateway was stopping.",
        ("reason",),
        lambda: (((reason,), float(count)) for reason, count in service.refused.items()),
        counter=True,
    )


def tls_gauges(handshakes: Handshakes) -> Iterator[Gauge]:
    """How callers' handshakes ended, and whether the certificate is the one on the disk."""
    certificates = handshakes.certificates
    yield Gauge(
        "tailrace_tls_handshakes",
        "TLS handshakes, by how they ended.",
        ("outcome",),
        lambda: (((outcome,), float(count)) for outcome, count in handshakes.outcomes.items()),
        counter=True,
    )
    yield Gauge(
        "tailrace_tls_renewals",
        "New certificates taken up.",
        (),
        lambda: iter([((), float(certificates.renewals))]),
        counter=True,
    )
    yield Gauge(
        "tailrace_tls_certificate_ends_seconds",
        "When the first of the chain's certificates ends, in seconds since 1970.",
        (),
        lambda: iter([((), certificates.ends)]),
    )
    yield Gauge(
        "tailrace_tls_renewal_failing",
        "1 while the certificate's files have changed and cannot be used.",
        (),
        lambda: iter([((), float(bool(certificates.fault)))]),
    )


def chaos_gauges(faults: Faults | None) -> Iterator[Gauge]:
    """Whether faults can be made on purpose here, and how many are. ``faults`` None: they cannot."""
    yield Gauge(
        "tailrace_chaos_enabled",
        "1 while faults can be made by the admin port ([chaos] enabled).",
        (),
        lambda: iter([((), float(faults is not None))]),
    )
    yield Gauge(
        "tailrace_chaos_faults",
        "Targets that have faults made on purpose now.",
        (),
        lambda: iter([((), float(0 if faults is None else len(faults.rules)))]),
    )


def notes_gauges(notes: Notes) -> Iterator[Gauge]:
    """What is not known of what is in work."""
    yield Gauge(
        "tailrace_work_unnoted",
        "Requests that were not noted while in work, for want of room.",
        (),
        lambda: iter([((), float(notes.missed))]),
        counter=True,
    )


def reload_gauges(reloads: Reloads) -> Iterator[Gauge]:
    """How reloads of the configuration ended, and whether what is in force is what was last asked for."""
    yield Gauge(
        "tailrace_reloads",
        "Reloads of the configuration, by how they ended.",
        ("outcome",),
        lambda: (((outcome,), float(count)) for outcome, count in reloads.outcomes.items()),
        counter=True,
    )
    yield Gauge(
        "tailrace_reload_failing",
        "1 while the last reload was refused, and the configuration before it is in force.",
        (),
        lambda: iter([((), float(bool(reloads.faults)))]),
    )


def table_gauges(tables: Callable[[], Mapping[str, Table]]) -> Iterator[Gauge]:
    """What is held of feature tables, what their look-ups came to, and how their stores are."""

    def of_tables(read: Callable[[Table], float]) -> Callable[[], Samples]:
        return lambda: (((name,), read(table)) for name, table in tables().items())

    def by_word(read: Callable[[Table], Mapping[str, float]]) -> Callable[[], Samples]:
        return lambda: (
            ((name, word), float(count)) for name, table in tables().items() for word, count in read(table).items()
        )

    table, sourced = ("table",), ("table", "source")
    yield Gauge("tailrace_table_entries", "Rows held.", table, of_tables(lambda each: each.near.entries))
    yield Gauge("tailrace_table_bytes", "Memory for them.", table, of_tables(lambda each: each.near.bytes_reserved))
    yield Gauge(
        "tailrace_table_evictions", "Rows pushed out.", table, of_tables(lambda each: each.near.evictions), counter=True
    )
    yield Gauge(
        "tailrace_table_rows",
        "Rows looked up: fresh, stale, absent (the store has none) or lost (it could not tell).",
        ("table", "state"),
        by_word(lambda each: each.rows_told),
        counter=True,
    )
    yield Gauge(
        "tailrace_table_lookups",
        "Look-ups of any number of rows, by source: memory, or store if it had to be asked.",
        sourced,
        by_word(lambda each: each.lookups),
        counter=True,
    )
    yield Gauge(
        "tailrace_table_lookup_seconds",
        "How long requests waited for those, in sum.",
        sourced,
        by_word(lambda each: each.lookup_seconds),
        counter=True,
    )
    yield Gauge(
        "tailrace_table_failures",
        "Look-ups, and single values, that the store failed in, by kind.",
        ("table", "kind"),
        by_word(lambda each: each.failures),
        counter=True,
    )
    yield Gauge(
        "tailrace_table_breaker_state",
        "0 closed, 1 half open, 2 open.",
        table,
        of_tables(lambda each: BREAKER_STATES[each.state]),
    )
    yield Gauge(
        "tailrace_table_live",
        "1 while what is held may be called fresh: always, but where writes are listened to.",
        table,
        of_tables(lambda each: float(each.is_live)),
    )
