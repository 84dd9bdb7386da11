"""What is made of a configured table's store: how it is asked, what its keys are, and how its values are rows.

Rule of this file: it makes parts and asks nothing. What is done with them at a request is not its business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec

from cache.coherence import Heard, Masters, Tracker, TrackerOptions
from cache.stores.feast import FeastHashes, FeastKeys, FeastValues
from cache.stores.learning import LearnOptions
from cache.stores.lmdb import LmdbStore
from cache.stores.merge import MergeOptions
from cache.stores.node import Tls
from cache.stores.pattern import Pattern
from cache.stores.redis import Hashes, Layout, RedisOptions, RedisStore, Strings
from cache.stores.store import Store
from cache.stores.turnstile import TurnstileOptions
from cache.vector import Bounds, Codec, Scalars, Vectors
from cache.words import Keys
from degrade.breaker import Breaker
from degrade.deadline import Ticker
from degrade.guard import STORE_BREAKER, Guarded
from gateway.config_tables import TableConfig

PINGS: Final = 4
"""Within the time in which a change must be known."""


class Keyed(Protocol):
    """Ids to a store's keys, and back (Pattern, FeastKeys)."""

    @property
    def prefix(self) -> bytes: ...
    def keys(self, ids: Keys) -> list[bytes]: ...
    def ids(self, keys: Sequence[bytes]) -> list[bytes]: ...


class Source(msgspec.Struct, frozen=True):
    """One table's store. ``masters``: which servers hold it, where they tell of changes; ``untold``: how often it was
    asked while nobody told whether they are the right ones; ``file``: where it is one."""

    store: Guarded
    keyed: Keyed
    codec: Codec
    masters: Masters | None
    timeout: float
    file: LmdbStore | None = None
    untold: Callable[[], int] = int


class Sources:
    """Makes sources; tables of one file have one store, for LMDB opens a file once in a process."""

    def __init__(self, now: Ticker, writable: bool = False) -> None:
        """``writable``: files are made where there are none, and may be written to."""
        self._now = now
        self._writable = writable
        self._files: dict[str, LmdbStore] = {}

    def source(self, table: TableConfig, wrap: Callable[[Store], Store] | None = None) -> Source:
        """Connects to nothing yet. ``wrap``: what is put around the store, behind its guard."""
        keyed = keyed_of(table)
        address = table.redis
        if address is None:
            made = LmdbStore(table.lmdb, self._writable, ticker=self._now)
            file = self._files.setdefault(table.lmdb, made)
            held = self._guarded(file if wrap is None else wrap(file), table)
            return Source(held, keyed, codec_of(table), None, float(table.timeout), file)
        files = table.tls
        tls = Tls() if files is None else Tls(files.ca or "", files.certificate or "", files.key or "")
        options = RedisOptions(
            tls=tls,
            connect_seconds=float(table.connect_timeout),
            connections_max=table.connections_max,
            merge=MergeOptions(keys_max=table.keys_per_call_max, flights_max=table.connections_max),
            node=_turnstile(table),
            learn=_learn(table),
        )
        store = RedisStore(address, _layout(table), lambda: Breaker(STORE_BREAKER), options)
        held = self._guarded(store if wrap is None else wrap(store), table)
        return Source(held, keyed, codec_of(table), store.masters, float(table.timeout), untold=store.untold)

    async def close(self) -> None:
        """Close the files, which tables share; what else a table has it closes itself."""
        for file in self._files.values():
            await file.close()

    def _guarded(self, store: Store, table: TableConfig) -> Guarded:
        return Guarded(store, Breaker(STORE_BREAKER), self._now, _turnstile(table))


def tracker_of(table: TableConfig, source: Source, heard: Heard, now: Ticker) -> Tracker | None:
    """What listens for changes of the table, if its configuration has that."""
    if table.coherence != "tracking" or source.masters is None:
        return None
    within = float(table.coherent_within)
    options = TrackerOptions(ping_seconds=within / PINGS, silence_seconds_max=within)
    return Tracker(source.masters, source.keyed.prefix, heard, now, options)


def keyed_of(table: TableConfig) -> Keyed:
    if table.feast is not None:
        return FeastKeys(table.feast.project, table.feast.join_key)
    assert table.key is not None, "the configuration was checked"
    return Pattern(table.key)


def codec_of(table: TableConfig) -> Codec:
    bounds = bounds_of(table)
    if table.dtype == "int8":
        return Vectors(table.dtype, table.shape, bounds)
    if table.feast is not None:
        return FeastValues(len(table.feast.features), table.shape, table.dtype, bounds)
    if table.fields:
        return Scalars(len(table.fields), table.dtype, bounds)
    return Vectors(table.dtype, table.shape, bounds)


def bounds_of(table: TableConfig) -> Bounds:
    given = table.bounds
    if given is None:
        return Bounds()
    return Bounds(-math.inf if given.min is None else given.min, math.inf if given.max is None else given.max)


def _layout(table: TableConfig) -> Layout:
    if table.feast is not None:
        return FeastHashes(table.feast.view, table.feast.features)
    return Hashes([field.encode() for field in table.fields]) if table.fields else Strings()


def _turnstile(table: TableConfig) -> TurnstileOptions:
    """A look beside the calls may take a connection's time; a call with half of the usual time or less proves
    nothing."""
    return TurnstileOptions(
        trial_seconds=float(table.connect_timeout) + float(table.timeout), proof_seconds=0.5 * float(table.timeout)
    )


def _learn(table: TableConfig) -> LearnOptions:
    """Where writes are to be known of within a time, so is a planned failover, which breaks no connection."""
    if table.coherence != "tracking":
        return LearnOptions()
    within = float(table.coherent_within)
    return LearnOptions(min(LearnOptions().refresh_seconds, within / PINGS), within)
