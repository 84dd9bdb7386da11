"""What an operator may say of a table: features and embeddings by an entity's id, whose truth is in a store.

Rule of this file: as ``gateway/config.py``, of which it is a part. It opens no store; what is made of a table is
``gateway/stores.py``'s. No message of its repeats a store's URL, for that may have a password in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from msgspec import Meta, Struct, structs

from cache.stores.address import RedisAddress, parse_redis
from cache.stores.pattern import HOLE, Pattern
from degrade.record import PAYLOAD_BYTES_MAX
from gateway.ranges import (
    AGE_MAX,
    DEADLINE_MIN,
    SIZE_MAX,
    WAIT_MAX,
    WAIT_MIN,
    Positive,
    seconds,
    size,
    within,
)
from gateway.schema import Fault
from gateway.units import Seconds, Size

if TYPE_CHECKING:
    from cache.table import TableShape

LMDB: Final = "lmdb:"
BYTES_MIN: Final = Size.parse("1MiB")
NUMBERS_MAX: Final = 2**20
"""Of one row: four megabytes, where every key is fetched whole."""
FLOAT_BYTES: Final = 4
"""Of a number as it is held and copied."""
FLOAT32_MAX: Final = (2.0 - 2.0**-23) * 2.0**127
COHERENT_MIN: Final = Seconds.parse("100ms")
COHERENT_MAX: Final = Seconds.parse("1h")
"""Several pings must find room in it, and they are not to be a load."""
LMDB_KEY_BYTES_MAX: Final = 511


class TableBounds(Struct, frozen=True, forbid_unknown_fields=True):
    """What a number of a row may be. NaN and infinities are broken values in any case."""

    min: float | None = None
    max: float | None = None

    def faults(self) -> Iterator[Fault]:
        for name, bound in (("min", self.min), ("max", self.max)):
            if bound is not None and not math.isfinite(bound):
                yield name, "must be a finite number; leave it out for none"
        if self.min is not None and self.max is not None and self.min > self.max:
            yield "min", f"is above max ({self.min} > {self.max})"


class TableTls(Struct, frozen=True, forbid_unknown_fields=True):
    """How the servers of a ``rediss`` store are believed, and what they are shown: files in PEM form."""

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None

    def faults(self) -> Iterator[Fault]:
        if (self.certificate is None) != (self.key is None):
            yield "key", "and certificate belong together: name both, or none"


class Feast(Struct, frozen=True, forbid_unknown_fields=True):
    """A feature view of Feast's online store in Redis, which is read as it lies there."""

    project: str
    view: str
    join_key: str
    features: tuple[str, ...]

    def faults(self) -> Iterator[Fault]:
        for name, value in (("project", self.project), ("view", self.view), ("join_key", self.join_key)):
            if not value:
                yield name, "must not be empty"
        yield from _names("features", self.features)


class TableConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """One table: where its rows are, what they are, how long they hold, and what stands in for one that is not
    there."""

    store: str
    shape: tuple[Positive, ...]
    ttl: Seconds
    key: str | None = None
    ids: Literal["integer", "text"] = "integer"
    id_bytes_max: Annotated[int, Meta(ge=1, le=255)] = 31
    dtype: Literal["float32", "float16", "int8"] = "float32"
    fields: tuple[str, ...] = ()
    feast: Feast | None = None
    tls: TableTls | None = None
    max_stale: Seconds = seconds("0s")
    negative_ttl: Seconds = seconds("10s")
    default: Literal["error", "zeros", "mean"] | float = "error"
    snapshot: bool = True
    coherence: Literal["ttl", "tracking"] = "ttl"
    coherent_within: Seconds = seconds("1s")
    bounds: TableBounds | None = None
    bytes_max: Size = size("256MiB")
    timeout: Seconds = seconds("20ms")
    connect_timeout: Seconds = seconds("250ms")
    connections_max: Annotated[int, Meta(ge=1, le=1024)] = 8
    keys_per_call_max: Annotated[int, Meta(ge=1, le=65536)] = 1024

    @property
    def numbers(self) -> int:
        """Of one row."""
        return math.prod(self.shape)

    @property
    def is_copied(self) -> bool:
        """Whether its rows are for the snapshot: if they are wanted there, and one of them is no more than a record."""
        return self.snapshot and self.numbers * FLOAT_BYTES <= PAYLOAD_BYTES_MAX

    @property
    def lmdb(self) -> str:
        """The file, if it is one; otherwise empty."""
        return self.store.removeprefix(LMDB) if self.store.startswith(LMDB) else ""

    @property
    def redis(self) -> RedisAddress | None:
        """The servers, if they are Redis. Raises ValueError."""
        return None if self.store.startswith(LMDB) else parse_redis(self.store)

    def near(self, bytes_max: int) -> TableShape:
        """What its near cache holds; whatever numbers are in the store, they are float32 here."""
        # Imported here: a configuration without tables needs no arrays.
        from cache.table import TableShape
        from cache.words import WORD_BYTES

        key_width = 0 if self.ids == "integer" else -(-(self.id_bytes_max + 1) // WORD_BYTES)
        return TableShape(bytes_max, "float32", self.shape, key_width)

    def from_folder(self, folder: Path) -> TableConfig:
        """The same with whole paths of files."""
        table = self
        if self.lmdb:
            table = structs.replace(table, store=LMDB + str(folder / self.lmdb))
        if self.tls is not None:
            files = (
                each if each is None else str(folder / each)
                for each in (self.tls.ca, self.tls.certificate, self.tls.key)
            )
            table = structs.replace(table, tls=TableTls(*files))
        return table

    def faults(self) -> Iterator[Fault]:
        yield from self._store_faults()
        yield from self._key_faults()
        yield from self._row_faults()
        if self.ttl <= 0:
            yield "ttl", "is 0: nothing would ever be held"
        yield from within(Seconds(0), AGE_MAX, ttl=self.ttl, max_stale=self.max_stale, negative_ttl=self.negative_ttl)
        yield from within(COHERENT_MIN, COHERENT_MAX, coherent_within=self.coherent_within)
        yield from within(DEADLINE_MIN, WAIT_MAX, timeout=self.timeout)
        yield from within(WAIT_MIN, WAIT_MAX, connect_timeout=self.connect_timeout)
        yield from within(BYTES_MIN, SIZE_MAX, bytes_max=self.bytes_max)
        if isinstance(self.default, float):
            yield from self._default_faults(self.default)

    def _store_faults(self) -> Iterator[Fault]:
        if self.store.startswith(LMDB):
            if not self.lmdb:
                yield "store", "names no file: lmdb:PATH"
            for name, given in (("fields", self.fields), ("feast", self.feast), ("tls", self.tls)):
                if given:
                    yield name, "is for a store in Redis, and this one is a file"
            if self.coherence == "tracking":
                yield "coherence", 'is "tracking", which only Redis does; a file has "ttl"'
            return
        try:
            address = parse_redis(self.store)
        except ValueError as error:
            yield "store", f"{error}; or a file: lmdb:PATH"
            return
        if self.tls is not None and not address.tls:
            yield "tls", "is given, and the store is not asked over TLS: write rediss in the place of redis"

    def _key_faults(self) -> Iterator[Fault]:
        if self.feast is not None:
            if self.key is not None:
                yield "key", "is made as Feast makes it; leave it out"
            if self.fields:
                yield "fields", "are Feast's features; leave them out"
            return
        if self.key is None:
            yield "key", f'is required: how the store names a row, such as "user:{HOLE}"'
            return
        try:
            pattern = Pattern(self.key)
        except ValueError as error:
            yield "key", str(error)
            return
        longest = len(pattern.prefix) + len(pattern.suffix) + (20 if self.ids == "integer" else self.id_bytes_max)
        if self.lmdb and longest > LMDB_KEY_BYTES_MAX:
            yield "key", f"may come to {longest} bytes with an id in it, and LMDB takes {LMDB_KEY_BYTES_MAX}"

    def _row_faults(self) -> Iterator[Fault]:
        if not self.shape:
            yield "shape", "needs at least one number: [64] is a row of 64"
            return
        if self.numbers > NUMBERS_MAX:
            yield "shape", f"is {self.numbers} numbers a row; at most {NUMBERS_MAX} are taken"
            return
        yield from _names("fields", self.fields) if self.fields else ()
        if self.fields and self.shape != (len(self.fields),):
            yield "shape", f"must be [{len(self.fields)}], as many as there are fields"
        if self.dtype == "int8" and (self.fields or self.feast is not None):
            yield "dtype", "is int8, which is a form of raw vectors; numbers one by one are float32 or float16"
        if self.feast is not None and self.numbers < len(self.feast.features):
            yield "shape", f"is {self.numbers} numbers a row, and feast.features names {len(self.feast.features)}"
        least = self.near(int(self.bytes_max)).bytes_min
        if self.bytes_max < least:
            yield "bytes_max", f"is {self.bytes_max}; a near cache of rows of {self.numbers} takes {_whole(least)}"

    def _default_faults(self, value: float) -> Iterator[Fault]:
        if not abs(value) <= FLOAT32_MAX:
            yield "default", "must be a finite number of float32"
        elif self.bounds is not None and not (
            (self.bounds.min is None or self.bounds.min <= value)
            and (self.bounds.max is None or value <= self.bounds.max)
        ):
            yield "default", f"is {value:g}, which bounds do not allow"


def _whole(bytes_: int) -> Size:
    """As a size is written: in whole MiB, rounded up."""
    return Size(-(-bytes_ // 2**20) * 2**20)


def _names(key: str, names: tuple[str, ...]) -> Iterator[Fault]:
    if not names:
        yield key, "needs at least one name"
    if "" in names:
        yield key, "has an empty name"
    for name in sorted({each for each in names if names.count(each) > 1}):
        yield key, f"names {name} twice"
