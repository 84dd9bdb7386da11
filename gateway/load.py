"""``tailrace table load``: a table's rows from a file into its store.

Rule of this file: a batch is judged whole before any of it is written; what was written is remembered beside the file,
so that the same command goes on where it was interrupted. Writing a row twice does no harm, so what is remembered may
be a little behind, and never ahead. Memory is a batch's, or a row group's.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from blake3 import blake3

from cache.stores.store import StoreError
from degrade.deadline import Ticker
from gateway.config_tables import TableConfig
from gateway.rows_file import Batch, RowsFile, Unreadable, Wanted, open_rows
from gateway.stores import Source, Sources, bounds_of

WRITE_SECONDS: Final = 30.0
"""For one batch: nobody waits for it but whoever typed the command."""
TOLD_SECONDS: Final = 5.0
"""Between two lines about progress, where there is no terminal."""
STEP_ROWS: Final = 100_000

Progress = Callable[[int], None]
"""Called with the number of rows that are done."""


class Failed(Exception):
    """It came to an end before the file's; the message says why, and how to go on."""


class Loaded(msgspec.Struct, frozen=True):
    """``rows`` in the file, of which ``before`` had been written by an earlier run."""

    rows: int
    before: int
    seconds: float


class Request(msgspec.Struct, frozen=True):
    """What is asked for. ``columns`` empty: the table's fields, or all columns but the ids'."""

    name: str
    table: TableConfig
    path: Path
    id_column: str = "id"
    columns: tuple[str, ...] = ()
    restart: bool = False


class Mark(msgspec.Struct, frozen=True):
    """What is remembered: how much of which file was written to what."""

    file: str
    table: str
    rows: int


def load(request: Request, now: Ticker = time.monotonic) -> Loaded:
    """Do it, with progress on standard error. Raises Failed."""
    table = request.table
    if table.feast is not None:
        raise Failed(f"tables.{request.name}.feast: is only read; `feast materialize` writes it")
    wanted = Wanted(
        shape=table.shape,
        id_column=request.id_column,
        columns=request.columns or table.fields,
        id_bytes_max=None if table.ids == "integer" else table.id_bytes_max,
    )
    try:
        file = open_rows(request.path, wanted)
        mark = _mark(request)
        before = 0 if request.restart else _remembered(request, mark)
        if before and not asyncio.run(_is_held(request, file, before)):
            gone = f"tables.{request.name}: the {before} rows that were written are gone; from the start"
            print(gone, file=sys.stderr)
            before = 0
        with _progress(request.name, file.rows, before) as progress:
            started = now()
            rows = asyncio.run(_write(request, file, mark, before, progress))
    except Unreadable as error:
        raise Failed(str(error)) from None
    _mark_path(request).unlink(missing_ok=True)
    return Loaded(rows, before, now() - started)


async def _write(request: Request, file: RowsFile, mark: Mark, before: int, progress: Progress) -> int:
    source = Sources(time.monotonic, writable=True).source(request.table)
    done = remembered = before
    again = f"the same command goes on after row {{}} of tables.{request.name}"
    try:
        for batch in file.batches(before):
            judge(batch, request.table)
            try:
                await source.store.put_many(_pairs(source, batch), None, WRITE_SECONDS)
            except StoreError as error:
                raise Failed(f"the store of tables.{request.name}: {error}; {again.format(done)}") from None
            done = batch.first + len(batch.rows) - 1
            progress(done)
            if done - remembered >= STEP_ROWS:
                _remember(request, mark, done)
                remembered = done
    finally:
        if done > before:
            _remember(request, mark, done)
        await source.store.close()
    return done


async def _is_held(request: Request, file: RowsFile, before: int) -> bool:
    """Whether the store has the first and the last of the rows that were written: it may have been emptied since.
    Raises Failed, Unreadable."""
    source = Sources(time.monotonic).source(request.table)
    try:
        keys = []
        for skip in (0, before - 1):
            batches = file.batches(skip)
            keys.append(source.keyed.keys(next(batches).ids[:1])[0])
        found = await source.store.get_many(keys, WRITE_SECONDS)
    except StoreError as error:
        raise Failed(f"the store of tables.{request.name}: {error}") from None
    finally:
        await source.store.close()
    return not any(each is None or isinstance(each, StoreError) for each in found)


def judge(batch: Batch, table: TableConfig) -> None:
    """Raises Unreadable about the first row that the table does not take."""
    bounds = bounds_of(table)
    half = table.dtype == "float16"
    with np.errstate(over="ignore"):  # too large for the type is infinite, and judged
        rows = batch.rows.astype(np.float16) if half else batch.rows.astype(np.float32)
    broken = np.flatnonzero(bounds.broken(rows))
    if not len(broken):
        return
    place = int(broken[0])
    row, stored = batch.rows[place].reshape(-1), rows[place].reshape(-1)
    number = row[int(np.argmax(~((stored >= bounds.low) & (stored <= bounds.high) & np.isfinite(stored))))]
    where = f"row {batch.first + place} (id {_shown(batch, place)})"
    if not np.isfinite(number):
        raise Unreadable(f"{where}: has {number}, which is no finite number")
    takes = f"{bounds.low:g} to {bounds.high:g} in {'float16' if half else 'float32'}"
    raise Unreadable(f"{where}: has {number:g}, and the table takes {takes}")


def _pairs(source: Source, batch: Batch) -> list[tuple[bytes, bytes]]:
    rows = batch.rows.astype(source.codec.dtype)
    return list(zip(source.keyed.keys(batch.ids), source.codec.encode(rows), strict=True))


def _shown(batch: Batch, place: int) -> str:
    each = batch.ids[place]
    return repr(each.decode(errors="replace")) if isinstance(each, bytes) else str(each)


def _mark(request: Request) -> Mark:
    """Of nothing written yet. Another file under the same name, or another table, is told from this one."""
    status = request.path.stat()
    table = request.table
    address = table.redis
    servers = table.lmdb if address is None else [address.hosts, address.service, address.db]
    what = [servers, table.key, table.ids, table.dtype, table.shape, table.fields, request.id_column, request.columns]
    digest = blake3(msgspec.json.encode(what)).hexdigest(16)
    return Mark(f"{status.st_size} {status.st_mtime_ns}", digest, 0)


def _mark_path(request: Request) -> Path:
    return request.path.with_name(f".{request.path.name}.{request.name}.loaded")


def _remembered(request: Request, mark: Mark) -> int:
    try:
        found = msgspec.json.decode(_mark_path(request).read_bytes(), type=Mark)
    except (OSError, msgspec.MsgspecError):
        return 0
    return found.rows if (found.file, found.table) == (mark.file, mark.table) else 0


def _remember(request: Request, mark: Mark, rows: int) -> None:
    """Whole or not at all. Where the folder cannot be written to, an interrupted run begins anew, and that is all."""
    path = _mark_path(request)
    with contextlib.suppress(OSError):
        new = path.with_name(path.name + ".new")
        new.write_bytes(msgspec.json.encode(msgspec.structs.replace(mark, rows=rows)))
        os.replace(new, path)


@contextlib.contextmanager
def _progress(name: str, rows: int | None, before: int) -> Iterator[Progress]:
    """A bar on a terminal; else a line now and then."""
    if before:
        print(f"tables.{name}: {before} rows were written before; going on", file=sys.stderr)
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield _lines(name, rows)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=rows, completed=before)
        yield lambda done: bar.update(task, completed=done)


def _lines(name: str, rows: int | None) -> Progress:
    told_at = time.monotonic()

    def tell(done: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= TOLD_SECONDS:
            told_at = time.monotonic()
            print(f"tables.{name}: {done} rows" + ("" if rows is None else f" of {rows}"), file=sys.stderr)

    return tell
