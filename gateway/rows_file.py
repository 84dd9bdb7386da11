"""Rows from a file, a batch at a time: Parquet, NPZ or CSV.

Rule of this file: it reads and says which row is wrong; memory is a batch's (of Parquet, a row group's), however large
the file. It knows no store. Rows are numbered from 1, without a CSV's line of names.

    CSV      a line of names; a column of ids, and a column for each number
    NPZ      the arrays "ids" [n] and "rows" [n, *shape], as numpy.savez writes them; never anything pickled
    Parquet  a column of ids, and one of lists or one for each number (needs pyarrow: pip install 'tailrace[parquet]')
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import lzma
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from cache.words import Keys

if TYPE_CHECKING:
    import pyarrow as pa

LEAST, MOST = -(2**63), 2**63 - 1
ROWS_MAX: Final = 4096
BATCH_BYTES_MAX: Final = 8 * 2**20
"""Of a batch's numbers, at eight bytes each."""
SHOWN_MAX: Final = 40

_INTEGER: Final = re.compile(r"\s*[+-]?[0-9]+\s*", re.ASCII)
"""Python takes "1_0" for 10 too, and digits of other scripts."""

_DAMAGED: Final = (
    csv.Error,
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,  # a length that is none
    RuntimeError,  # a password is needed, or a kind of compression is not known here
    ValueError,  # most of Arrow's
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What the libraries say of files that are not what they should be."""


class Unreadable(Exception):
    """The file, or one row of it, is not what the table needs; the message says where."""


class Wanted(msgspec.Struct, frozen=True):
    """What is looked for. ``columns``: of the numbers; none: all but the ids'. ``id_bytes_max``: None for integers."""

    shape: tuple[int, ...]
    id_column: str = "id"
    columns: tuple[str, ...] = ()
    id_bytes_max: int | None = None

    @property
    def numbers(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def batch_rows(self) -> int:
        return max(1, min(ROWS_MAX, BATCH_BYTES_MAX // (8 * self.numbers)))


class Batch(msgspec.Struct, frozen=True):
    """``first``: the number of its first row. ``rows``: float64 [n, *shape]."""

    first: int
    ids: Keys
    rows: NDArray[np.float64]


class RowsFile(Protocol):
    """An open file. ``rows``: how many there are, if that is known."""

    @property
    def rows(self) -> int | None: ...
    def batches(self, skip: int) -> Iterator[Batch]:
        """From row ``skip + 1`` on. Raises Unreadable."""


def open_rows(path: Path, wanted: Wanted) -> RowsFile:
    """By the name's ending. Raises Unreadable, and OSError."""
    match path.suffix.lower():
        case ".csv":
            return Csv(path, wanted)
        case ".npz":
            return Npz(path, wanted)
        case ".parquet" | ".pq":
            return Parquet(path, wanted)
    raise Unreadable(f"{path}: must end in .parquet, .npz or .csv")


class Csv:
    """Numbers as text."""

    rows = None

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self._path = path
        self._wanted = wanted
        with _reading(str(path)), path.open(newline="", encoding="utf-8-sig") as file:
            names = next(csv.reader(file), [])
        self._id, self._places = _places(path, names, wanted)
        self._width = len(names)

    def batches(self, skip: int) -> Iterator[Batch]:
        wanted = self._wanted
        with self._path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            next(lines)
            ids: list[object] = []
            rows: list[list[float]] = []
            number = 0
            while True:
                with _reading(f"{self._path}: row {number + 1}"):
                    line = next(lines, None)
                if line is None:
                    break
                if not line:
                    continue  # a blank line, as many a file ends with
                number += 1
                if number <= skip:
                    continue
                ids.append(self._id_of(line, number))
                rows.append([self._number(line, place, number) for place in self._places])
                if len(rows) == wanted.batch_rows:
                    yield _batch(number - len(rows) + 1, ids, rows, wanted)
                    ids, rows = [], []
            if rows:
                yield _batch(number - len(rows) + 1, ids, rows, wanted)

    def _id_of(self, line: Sequence[str], number: int) -> object:
        if len(line) != self._width:
            raise Unreadable(f"row {number}: has {len(line)} columns, and the first line names {self._width}")
        text = line[self._id]
        if self._wanted.id_bytes_max is not None:
            return text
        if _INTEGER.fullmatch(text) is None or len(text) > SHOWN_MAX:
            raise Unreadable(f"row {number}: the id {text[:SHOWN_MAX]!r} is no integer")
        return int(text)

    def _number(self, line: Sequence[str], place: int, number: int) -> float:
        try:
            if "_" not in line[place]:
                return float(line[place])
            raise ValueError
        except ValueError:
            raise Unreadable(f"row {number}: {line[place][:SHOWN_MAX]!r} is no number") from None


class Npz:
    """Two arrays in a zip file, read as streams: nothing is held but a batch."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self._path = path
        self._wanted = wanted
        damaged = _reading(str(path))
        with damaged, self._open() as archive, archive.open("ids.npy") as ids, archive.open("rows.npy") as rows:
            id_shape, self._id_kind = _npy_head(path, "ids", ids)
            shape, self._kind = _npy_head(path, "rows", rows)
        if len(id_shape) != 1 or id_shape[0] != shape[0]:
            raise Unreadable(f"{path}: ids has shape {list(id_shape)}, and rows {list(shape)}")
        if shape[1:] != wanted.shape:
            raise Unreadable(f"{path}: a row has shape {list(shape[1:])}, and the table's have {list(wanted.shape)}")
        if self._kind.kind not in "fiu":
            raise Unreadable(f"{path}: rows are {self._kind}, which are no numbers")
        if self._id_kind.kind not in ("iu" if wanted.id_bytes_max is None else "US"):
            kind = "integers" if wanted.id_bytes_max is None else "texts"
            raise Unreadable(f"{path}: ids are {self._id_kind}, and the table's are {kind}")
        self.rows: int | None = shape[0]

    def batches(self, skip: int) -> Iterator[Batch]:
        damaged = _reading(str(self._path))  # nothing that is raised where a batch is taken passes through here
        with damaged, self._open() as archive, archive.open("ids.npy") as ids, archive.open("rows.npy") as rows:
            (count,), _ = _npy_head(self._path, "ids", ids)
            _npy_head(self._path, "rows", rows)
            row_bytes = self._wanted.numbers * self._kind.itemsize
            done = 0
            while done < count:
                step = min(self._wanted.batch_rows, count - done, skip - done if done < skip else count)
                some_ids = np.frombuffer(_exactly(ids, step * self._id_kind.itemsize), self._id_kind)
                some_rows = np.frombuffer(_exactly(rows, step * row_bytes), self._kind)
                done += step
                if done > skip:
                    plain = some_rows.reshape(step, -1).astype(np.float64)
                    yield _batch(done - step + 1, some_ids.tolist(), plain, self._wanted)

    def _open(self) -> zipfile.ZipFile:
        archive = zipfile.ZipFile(self._path)
        missing = {"ids.npy", "rows.npy"} - set(archive.namelist())
        if missing:
            archive.close()
            raise Unreadable(f"{self._path}: has no array {', '.join(sorted(missing)).replace('.npy', '')}")
        return archive


class Parquet:
    """Columns, read with pyarrow."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        try:
            self._arrow = importlib.import_module("pyarrow")
            parquet = importlib.import_module("pyarrow.parquet")
        except ModuleNotFoundError:
            raise Unreadable("Parquet needs pyarrow: pip install 'tailrace[parquet]'") from None
        self._path = path
        self._wanted = wanted
        with _reading(str(path)):
            self._file = parquet.ParquetFile(path)
        names = self._file.schema_arrow.names
        missing = [name for name in (wanted.id_column, *wanted.columns) if name not in names]
        if missing:
            raise Unreadable(f"{path}: has no column {missing[0]!r}; it has {', '.join(names)}")
        self._columns = list(wanted.columns) or [name for name in names if name != wanted.id_column]
        kinds = [self._file.schema_arrow.field(name).type for name in self._columns]
        types = self._arrow.types
        self._listed = len(kinds) == 1 and (
            types.is_list(kinds[0]) or types.is_large_list(kinds[0]) or types.is_fixed_size_list(kinds[0])
        )
        if not self._listed and len(kinds) != wanted.numbers:
            raise Unreadable(_count_fault(path, len(kinds), wanted))
        self.rows: int | None = self._file.metadata.num_rows

    def batches(self, skip: int) -> Iterator[Batch]:
        number = 0
        columns = [self._wanted.id_column, *self._columns]
        for group in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            if number + rows <= skip:
                number += rows
                continue
            # One group at a time: asked for several, the reader holds what it has read of all of them.
            asked = self._file.iter_batches(self._wanted.batch_rows, row_groups=[group], columns=columns)
            while True:
                with _reading(str(self._path)):
                    some = next(asked, None)
                if some is None:
                    break
                left = some.slice(max(0, skip - number)) if number < skip else some
                number += some.num_rows
                if left.num_rows:
                    yield self._batch(left, number - left.num_rows + 1)

    def _batch(self, some: pa.RecordBatch, first: int) -> Batch:
        wanted = self._wanted
        with _reading(f"rows {first} to {first + some.num_rows - 1}"):
            ids = some.column(wanted.id_column)
            _no_nulls(ids, wanted.id_column, first)
            rows = self._lists(some.column(self._columns[0]), first) if self._listed else self._numbers(some, first)
            return _batch(first, ids.to_pylist(), rows, wanted)

    def _lists(self, column: pa.Array, first: int) -> NDArray[np.float64]:
        _no_nulls(column, self._columns[0], first)
        compute = importlib.import_module("pyarrow.compute")
        lengths = np.asarray(compute.list_value_length(column))
        wrong = np.flatnonzero(lengths != self._wanted.numbers)
        if len(wrong):
            row = int(wrong[0])
            raise Unreadable(f"row {first + row}: has {lengths[row]} numbers, and a row has {self._wanted.numbers}")
        flat = column.flatten().cast(self._arrow.float64())
        if flat.null_count:
            row = int(np.flatnonzero(np.asarray(flat.is_null()))[0]) // self._wanted.numbers
            raise Unreadable(f"row {first + row}: has a number that is null")
        numbers: NDArray[np.float64] = np.asarray(flat).reshape(len(column), -1)
        return numbers

    def _numbers(self, some: pa.RecordBatch, first: int) -> NDArray[np.float64]:
        for name in self._columns:
            _no_nulls(some.column(name), name, first)
        columns = [np.asarray(some.column(name).cast(self._arrow.float64())) for name in self._columns]
        return np.stack(columns, axis=1)


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """What is wrong with a file's bytes becomes Unreadable."""
    try:
        yield
    except _DAMAGED as error:
        raise Unreadable(f"{where}: is damaged, or of another kind: {error}") from None
    except OSError as error:
        if error.filename is not None:
            raise
        raise Unreadable(f"{where}: is damaged: {error}") from None  # a place that is not in the file


def _places(path: Path, names: Sequence[str], wanted: Wanted) -> tuple[int, list[int]]:
    """Where the ids and the numbers are among a CSV's columns."""
    for name in (wanted.id_column, *wanted.columns):
        if name not in names:
            raise Unreadable(f"{path}: has no column {name!r}; its first line names {', '.join(names) or 'nothing'}")
    id_place = names.index(wanted.id_column)
    chosen = wanted.columns or tuple(name for name in names if name != wanted.id_column)
    if len(chosen) != wanted.numbers:
        raise Unreadable(_count_fault(path, len(chosen), wanted))
    return id_place, [names.index(name) for name in chosen]


def _count_fault(path: Path, count: int, wanted: Wanted) -> str:
    hint = "" if wanted.columns else "; name them with --columns"
    return f"{path}: has {count} columns of numbers, and a row has {wanted.numbers} numbers{hint}"


def _batch(first: int, ids: Sequence[object], rows: object, wanted: Wanted) -> Batch:
    numbers = np.asarray(rows, np.float64).reshape(len(ids), *wanted.shape)
    if wanted.id_bytes_max is not None:
        return Batch(
            first, [_text(each, first + place, wanted.id_bytes_max) for place, each in enumerate(ids)], numbers
        )
    for place, each in enumerate(ids):
        if not isinstance(each, int) or isinstance(each, bool) or not LEAST <= each <= MOST:
            raise Unreadable(f"row {first + place}: the id {str(each)[:SHOWN_MAX]!r} is no integer of 64 bits")
    return Batch(first, np.array(ids, np.int64), numbers)


def _text(given: object, row: int, bytes_max: int) -> bytes:
    text = given if isinstance(given, bytes) else str(given).encode()
    if len(text) > bytes_max:
        raise Unreadable(f"row {row}: the id has {len(text)} bytes; at most {bytes_max} are taken (id_bytes_max)")
    return text


def _no_nulls(column: pa.Array, name: str, first: int) -> None:
    if column.null_count:
        row = int(np.flatnonzero(np.asarray(column.is_null()))[0])
        raise Unreadable(f"row {first + row}: {name} is null")


def _npy_head(path: Path, name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and type; the stream is at the first number afterwards."""
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, column_wise, kind = read(stream)
    except ValueError as error:
        raise Unreadable(f"{path}: {name}: {error}") from None
    if kind.hasobject or not shape:
        raise Unreadable(f"{path}: {name} is an array of {kind} with shape {list(shape)}")
    if column_wise and len(shape) > 1:
        raise Unreadable(f"{path}: {name} lies column by column: numpy.ascontiguousarray it first")
    return shape, kind


def _exactly(stream: IO[bytes], count: int) -> bytes:
    some = stream.read(count)
    if len(some) != count:
        raise Unreadable("the file ends too early")
    return some
