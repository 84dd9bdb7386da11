"""`tailrace table load`: three kinds of files into two kinds of stores, wrong rows, interruptions."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache.stores.store import Found, StoreError
from examples.redisserver import RedisServer
from gateway import load as loading
from gateway.cli import main
from gateway.load import STEP_ROWS, Request, load
from gateway.rows_file import ROWS_MAX, Unreadable, Wanted, open_rows
from gateway.sources import load as read_config
from gateway.stores import Source, Sources

IDS = np.array([3, -1, 2**40], np.int64)
ROWS = np.array([[1.0, 2.0], [-0.5, 0.25], [0.0, 3.5]])

Write = Callable[[Path, object, np.ndarray], Path]


def csv_file(folder: Path, ids: object, rows: np.ndarray) -> Path:
    path = folder / "rows.csv"
    lines = [f"{each},{','.join(map(repr, row))}" for each, row in zip(ids, rows.tolist(), strict=True)]  # type: ignore[call-overload]
    path.write_text("\n".join(["id,a,b", *lines, ""]))
    return path


def npz_file(folder: Path, ids: object, rows: np.ndarray) -> Path:
    path = folder / "rows.npz"
    np.savez_compressed(path, ids=ids, rows=rows)
    return path


def parquet_lists(folder: Path, ids: object, rows: np.ndarray) -> Path:
    path = folder / "rows.parquet"
    columns = {"id": pa.array(ids), "v": pa.array(rows.tolist(), pa.list_(pa.float32()))}
    pq.write_table(pa.table(columns), path, row_group_size=700)
    return path


def parquet_columns(folder: Path, ids: object, rows: np.ndarray) -> Path:
    path = folder / "rows.pq"
    pq.write_table(pa.table({"a": rows[:, 0], "id": pa.array(ids), "b": rows[:, 1]}), path)
    return path


WRITERS = [csv_file, npz_file, parquet_lists, parquet_columns]


def configured(folder: Path, store: str, more: str = "") -> Path:
    path = folder / "tailrace.toml"
    path.write_text(
        '[backends.gpu]\nhttp = ["http://127.0.0.1:8000"]\n'
        f'[tables.user]\nstore = "{store}"\nkey = "user:{{id}}"\nshape = [2]\nttl = "1m"\ntimeout = "10s"\n{more}\n'
    )
    return path


def run(config: Path, file: Path, *more: str) -> int:
    return main(["table", "load", "user", "--config", str(config), "--from", str(file), *more])


def held(config: Path, ids: object) -> np.ndarray:
    """What the store has now, as rows; every id must be there."""

    async def read() -> np.ndarray:
        source = Sources(time.monotonic).source(read_config(str(config), {}).tables["user"])
        decoded = source.codec.decode(await source.store.get_many(source.keyed.keys(ids), 10.0))  # type: ignore[arg-type]
        await source.store.close()
        assert decoded.found.all(), decoded.faults
        return decoded.rows

    return asyncio.run(read())


@pytest.mark.parametrize("write", WRITERS)
def test_files_into_lmdb(tmp_path: Path, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path, "lmdb:features")
    assert run(config, write(tmp_path, IDS, ROWS)) == 0
    assert held(config, IDS).tolist() == ROWS.tolist()
    assert "tables.user: 3 rows, 3 of them written" in capsys.readouterr().out
    assert not list(tmp_path.glob(".*.loaded"))


FORMS = ["", 'dtype = "float16"', 'dtype = "int8"', 'fields = ["a", "b"]']


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_values_into_redis(tmp_path: Path, form: str) -> None:
    with RedisServer() as server:
        config = configured(tmp_path, server.url, form)
        assert run(config, csv_file(tmp_path, IDS, ROWS)) == 0
        assert np.allclose(held(config, IDS), ROWS, atol=0.02)
        if form.startswith("fields"):
            with server.client() as client:
                assert client.hgetall("user:3") == {b"a": b"1.0", b"b": b"2.0"}


@pytest.mark.parametrize("write", WRITERS)
def test_ids_that_are_texts(tmp_path: Path, write: Write) -> None:
    config = configured(tmp_path, "lmdb:features", 'ids = "text"')
    ids = ["ann", "zoë", "7"]
    assert run(config, write(tmp_path, ids, ROWS)) == 0
    assert held(config, [each.encode() for each in ids]).tolist() == ROWS.tolist()


def broken(rows: np.ndarray, place: int, number: float) -> np.ndarray:
    changed = rows.copy()
    changed[place, 1] = number
    return changed


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (np.nan, "row 3 (id 1099511627776): has nan, which is no finite number"),
        (np.inf, "row 3 (id 1099511627776): has inf, which"),
        (11.0, "row 3 (id 1099511627776): has 11, and the table takes -10 to 10"),
    ],
)
def test_a_wrong_number_is_named_by_its_row(
    tmp_path: Path, write: Write, number: float, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configured(tmp_path, "lmdb:features", "bounds = { min = -10.0, max = 10.0 }")
    assert run(config, write(tmp_path, IDS, broken(ROWS, 2, number))) == 1
    assert words in capsys.readouterr().err
    with pytest.raises((AssertionError, StoreError)):
        held(config, IDS[:1])  # nothing of the batch was written


def test_too_large_for_float16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path, "lmdb:features", 'dtype = "float16"')
    assert run(config, csv_file(tmp_path, IDS, broken(ROWS, 0, 70000.0))) == 1
    assert "row 1 (id 3): has 70000, and the table takes" in capsys.readouterr().err


CSV_FAULTS = [
    ("", "has no column 'id'"),
    ("id,a\n", "has 1 columns of numbers, and a row has 2 numbers; name them with --columns"),
    ("id,a,b\n1,2,3\n4,5\n", "row 2: has 2 columns, and the first line names 3"),
    ("id,a,b\nx,2,3\n", "row 1: the id 'x' is no integer"),
    ("id,a,b\n1,2,3\n1,x,3\n", "row 2: 'x' is no number"),
    ("id,a,b\n9223372036854775808,2,3\n", "row 1: the id '9223372036854775808' is no integer of 64 bits"),
]


@pytest.mark.parametrize(("text", "words"), CSV_FAULTS)
def test_what_is_wrong_with_a_csv(tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    assert run(configured(tmp_path, "lmdb:features"), path) == 1
    assert words in capsys.readouterr().err


def arrays(folder: Path, **named: np.ndarray) -> Path:
    np.savez(folder / "rows.npz", **named)
    return folder / "rows.npz"


def test_what_is_wrong_with_an_npz(tmp_path: Path) -> None:
    wanted = Wanted((2,))
    cases = [
        ({"ids": IDS}, "has no array rows"),
        ({"ids": IDS, "rows": np.zeros((3, 3))}, "a row has shape [3], and the table's have [2]"),
        ({"ids": IDS, "rows": np.zeros((2, 2))}, "ids has shape [3], and rows [2, 2]"),
        ({"ids": IDS, "rows": np.zeros((3, 2), complex)}, "which are no numbers"),
        ({"ids": np.array(["a"] * 3), "rows": ROWS}, "and the table's are integers"),
        ({"ids": IDS, "rows": np.asfortranarray(np.zeros((3, 2)))}, "lies column by column"),
        ({"ids": IDS, "rows": np.array([[1, {}]] * 3)}, "is an array of object"),
    ]
    for named, words in cases:
        with pytest.raises(Unreadable) as refused:
            open_rows(arrays(tmp_path, **named), wanted)
        assert words in str(refused.value)
    (tmp_path / "x.npz").write_bytes(b"no zip")
    with pytest.raises(Unreadable):
        open_rows(tmp_path / "x.npz", wanted)


def test_what_is_wrong_with_a_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    lists = pa.list_(pa.float32())
    cases = [
        ({"a": [1.0], "b": [1.0]}, "has no column 'id'"),
        ({"id": [1, 2], "v": pa.array([[1.0, 2.0], [1.0]], lists)}, "row 2: has 1 numbers, and a row has 2"),
        ({"id": [1, 2], "v": pa.array([[1.0, 2.0], None], lists)}, "row 2: v is null"),
        ({"id": [1, 2], "v": pa.array([[1.0, 2.0], [None, 1.0]], lists)}, "row 2: has a number that is null"),
        ({"id": [1, None], "a": [1.0, 2.0], "b": [1.0, 2.0]}, "row 2: id is null"),
        ({"id": [1, 2], "a": [1.0, None], "b": [1.0, 2.0]}, "row 2: a is null"),
        ({"id": [1, 2], "a": ["x", "y"], "b": [1.0, 2.0]}, "rows 1 to 2: "),
        ({"id": ["x"], "a": [1.0], "b": [2.0]}, "row 1: the id 'x' is no integer"),
        ({"id": [1], "a": [1.0]}, "has 1 columns of numbers"),
    ]
    for columns, words in cases:
        pq.write_table(pa.table(columns), path)
        with pytest.raises(Unreadable) as refused:
            list(open_rows(path, Wanted((2,))).batches(0))
        assert words in str(refused.value)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Unreadable, match=r"pip install 'tailrace\[parquet\]'"):
        open_rows(tmp_path / "rows.parquet", Wanted((2,)))


@pytest.mark.parametrize("write", WRITERS)
def test_from_any_row_on(tmp_path: Path, write: Write) -> None:
    count = 2 * ROWS_MAX + 5
    ids, rows = np.arange(count), np.stack([np.arange(count), -np.arange(count)], axis=1).astype(float)
    file = open_rows(write(tmp_path, ids, rows), Wanted((2,)))
    for skip in (0, 1, 699, 700, 701, ROWS_MAX, ROWS_MAX + 1, count - 1, count):
        batches = list(file.batches(skip))
        assert [each for batch in batches for each in batch.ids.tolist()] == list(range(skip, count))  # type: ignore[union-attr]
        assert all(batch.rows[0, 0] == batch.first - 1 for batch in batches)
        assert all(len(batch.rows) <= ROWS_MAX for batch in batches)


class Counted:
    """The store of a source, which fails from some row on."""

    def __init__(self, source: Source, fails_at: int) -> None:
        self.written: list[bytes] = []
        self._source, self._fails_at = source, fails_at

    async def put_many(self, pairs: list[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        if len(self.written) + len(pairs) > self._fails_at:
            raise StoreError("full", "no room")
        self.written += [key for key, _ in pairs]
        await self._source.store.put_many(pairs, ttl, seconds)

    async def get_many(self, keys: list[bytes], seconds: float) -> list[Found]:
        return await self._source.store.get_many(keys, seconds)

    async def close(self) -> None:
        await self._source.store.close()


def test_an_interrupted_load_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 3 * ROWS_MAX
    path = npz_file(tmp_path, np.arange(count), np.zeros((count, 2)))
    table = read_config(str(configured(tmp_path, "lmdb:features")), {}).tables["user"]
    runs: list[Counted] = []
    fails_at = [2 * ROWS_MAX, count, count, count, count]
    original = Sources.source

    def source(self: Sources, asked: object) -> Source:
        made = original(self, table)
        runs.append(Counted(made, fails_at[len(runs)]))
        return Source(runs[-1], made.keyed, made.codec, None, 1.0)  # type: ignore[arg-type]

    monkeypatch.setattr(Sources, "source", source)
    request = Request("user", table, path)
    with pytest.raises(loading.Failed, match=f"the same command goes on after row {2 * ROWS_MAX} of tables.user"):
        load(request)
    done = load(request)
    assert (done.rows, done.before) == (count, 2 * ROWS_MAX)
    assert runs[0].written + runs[2].written == [b"user:%d" % each for each in range(count)]
    mark = tmp_path / ".rows.npz.user.loaded"
    assert not mark.exists()
    mark.write_text(json.dumps({"file": "another", "table": "one", "rows": 5}))
    assert load(request).before == 0  # another file
    mark.write_text("{")
    assert load(request).before == 0


def test_a_load_that_is_killed_goes_on(tmp_path: Path) -> None:
    """As a user has it: Ctrl-C in the middle, and the same command again."""
    count = 6 * STEP_ROWS
    path = npz_file(tmp_path, np.arange(count), np.ones((count, 2), np.float32))
    config = configured(tmp_path, "lmdb:features")
    command = [
        sys.executable,
        "-m",
        "gateway.cli",
        "table",
        "load",
        "user",
        "--config",
        str(config),
        "--from",
        str(path),
    ]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    mark = tmp_path / ".rows.npz.user.loaded"
    while not mark.exists() and running.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    os.kill(running.pid, signal.SIGINT)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 130, told
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "rows were written before; going on" in again.stderr
    assert f"tables.user: {count} rows, " in again.stdout
    assert held(config, np.array([0, count // 2, count - 1])).tolist() == [[1.0, 1.0]] * 3


def test_a_store_that_was_emptied_is_filled_from_the_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = 3 * ROWS_MAX
    path = npz_file(tmp_path, np.arange(count), np.ones((count, 2), np.float32))
    with RedisServer() as server:
        config = configured(tmp_path, server.url)
        request = Request("user", read_config(str(config), {}).tables["user"], path)

        def begun() -> None:
            """As a run leaves it that came to the second batch."""
            with server.client() as client:
                client.mset({f"user:{each}": ROWS[0].astype("<f4").tobytes() for each in range(ROWS_MAX)})
            loading._remember(request, loading._mark(request), ROWS_MAX)

        begun()
        assert load(request).before == ROWS_MAX
        begun()
        with server.client() as client:
            client.flushall()
        assert run(config, path) == 0
        told = capsys.readouterr()
        assert f"the {ROWS_MAX} rows that were written are gone; from the start" in told.err
        assert f"{count} rows, {count} of them written" in told.out
        with server.client() as client:
            assert client.dbsize() == count


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_a_fault_and_no_traceback(tmp_path: Path, write: Write, seed: int) -> None:
    """Some bytes of it are other ones, or its end is missing: it is read, or refused with a sentence."""
    path = write(tmp_path, np.arange(50), np.arange(100.0).reshape(50, 2))
    chance = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    path.write_bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
    shapes = [(0, 2)]
    with contextlib.suppress(Unreadable):
        shapes += [batch.rows.shape for batch in open_rows(path, Wanted((2,))).batches(0)]
    assert all(shape[1:] == (2,) for shape in shapes)


ODD = [
    ("id,a,b\n1_0,1,2\n", "row 1: the id '1_0' is no integer"),
    ("id,a,b\n١,1,2\n", "row 1: the id '١' is no integer"),
    ("id,a,b\n" + "1" * 5000 + ",1,2\n", "is no integer"),
    ("id,a,b\n1,1_0,2\n", "row 1: '1_0' is no number"),
    ("id,a,b\n1,1," + "2" * 140_000 + "\n", "row 1: is damaged, or of another kind: field larger"),
]


@pytest.mark.parametrize(("text", "words"), ODD)
def test_odd_numbers(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(Unreadable) as refused:
        list(open_rows(path, Wanted((2,))).batches(0))
    assert words in str(refused.value)


def test_other_codings_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes("é,a,b\n1,1,2\n".encode("latin-1"))
    with pytest.raises(Unreadable, match="is damaged, or of another kind"):
        open_rows(path, Wanted((2,)))
    path.write_text("id,a,b\n1,1,2\n\n2,3,4\n\n\n")
    (batch,) = open_rows(path, Wanted((2,))).batches(0)
    assert batch.rows.tolist() == [[1, 2], [3, 4]]
    pq.write_table(pa.table({"id": [True], "a": [1.0], "b": [2.0]}), tmp_path / "rows.parquet")
    with pytest.raises(Unreadable, match="the id 'True' is no integer"):
        list(open_rows(tmp_path / "rows.parquet", Wanted((2,))).batches(0))


def test_misuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configured(tmp_path, "lmdb:features")
    assert main(["table", "load", "item", "--config", str(config), "--from", "x.csv"]) == 2
    assert "tables.item: there is no such table" in capsys.readouterr().err
    assert run(config, tmp_path / "none.csv") == 1
    assert run(config, tmp_path / "rows.txt") == 1
    assert "must end in .parquet, .npz or .csv" in capsys.readouterr().err
    file = csv_file(tmp_path, IDS, ROWS)
    assert run(config, file, "--columns", "a,c") == 1
    assert "has no column 'c'; its first line names id, a, b" in capsys.readouterr().err
    assert run(configured(tmp_path, "redis://:secret@127.0.0.1:1/0"), file) == 1
    told = capsys.readouterr().err
    assert "the store of tables.user: unreachable" in told
    assert "secret" not in told
    assert run(config, file, "--columns", "b,a") == 1


@pytest.mark.parametrize("rich", [True, False])
def test_progress_on_a_terminal(
    tmp_path: Path, rich: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    if not rich:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
        monkeypatch.setattr(loading, "TOLD_SECONDS", 0.0)
    assert run(configured(tmp_path, "lmdb:features"), npz_file(tmp_path, IDS, ROWS)) == 0
    assert ("3/3" if rich else "tables.user: 3 rows of 3") in capsys.readouterr().err


def test_columns_in_another_order(tmp_path: Path) -> None:
    config = configured(tmp_path, "lmdb:features")
    assert run(config, csv_file(tmp_path, IDS, ROWS), "--columns", "b,a") == 0
    assert held(config, IDS).tolist() == ROWS[:, ::-1].tolist()
