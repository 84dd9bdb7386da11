"""`tailrace snapshot`: what it prints, what it takes to another directory, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import struct
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from cache.stores.files import FileStore
from degrade import portable
from degrade.directory import generations, locked
from degrade.record import Record, Terms, name_of, packed, seal
from degrade.snapshot import Snapshot, SnapshotOptions
from gateway import snapshot_tool
from gateway.cli import main
from gateway.purges import EVERYTHING, WORDS, purge_key

OPTIONS = SnapshotOptions(16 * 2**20)
TERMS = Terms(b"f", 1e9, lambda payload: payload)
Config = Callable[[str], str]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """``config("a")`` -> a file whose directory of copies is ``a`` beside it."""

    def made(name: str) -> str:
        path = tmp_path / f"{name}.toml"
        path.write_text(f'[backends.b]\nhttp = ["http://h:1"]\n[snapshot]\npath = "{name}"\nbytes_max = "16MiB"\n')
        return str(path)

    return made


def filled(folder: Path, *keys: int, payload: bytes = b"") -> None:
    with closing(Snapshot(folder, OPTIONS)) as snapshot:
        snapshot.open()
        pairs = []
        for key in keys:
            now = time.time()
            record = Record("answer", f"routes/r{key % 2}", b"%d" % key, b"f", b"w", now, now, payload or b"%d" % key)
            name = name_of(record.kind, record.source, record.key)
            pairs.append((name, seal(name, packed(record))))
        assert snapshot.write(pairs, time.time()) == "written"


def held(folder: Path, key: int) -> bytes | None:
    with closing(Snapshot(folder, OPTIONS)) as snapshot:
        snapshot.open()
        record = snapshot.find("answer", f"routes/r{key % 2}", b"%d" % key, TERMS, time.time())
        return None if record is None else record.value


def test_ls_tells_of_each_source(tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path / "a", *range(11))
    assert main(["snapshot", "ls", "--config", config("a"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(each["source"], each["kind"], each["records"]) for each in told] == [
        ("routes/r0", "answer", 6),
        ("routes/r1", "answer", 5),
    ]
    assert all(0.0 <= each["youngest_seconds"] <= each["oldest_seconds"] < 600.0 for each in told)
    assert main(["snapshot", "ls", "--config", config("a")]) == 0
    assert "routes/r1" in capsys.readouterr().out


def test_an_export_is_taken_by_another_host(tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path / "a", *range(100))
    file = tmp_path / "out.snapshot"
    assert main(["snapshot", "export", str(file), "--config", config("a")]) == 0
    filled(tmp_path / "b", 7, payload=b"its own")
    assert main(["snapshot", "import", str(file), "--config", config("b")]) == 0
    assert "99 of 100 records taken, 1 not: this host has them as young" in capsys.readouterr().out
    assert held(tmp_path / "b", 8) == b"8"
    assert held(tmp_path / "b", 7) == b"its own", "what is younger stays"
    filled(tmp_path / "a", 7, payload=b"a later one")
    assert main(["snapshot", "export", str(file), "--config", config("a")]) == 0
    assert main(["snapshot", "import", str(file), "--config", config("b")]) == 0
    assert "1 of 100 records taken, 99 not" in capsys.readouterr().out
    assert held(tmp_path / "b", 7) == b"a later one"
    assert main(["snapshot", "import", str(file), "--config", config("c")]) == 0
    assert held(tmp_path / "c", 99) == b"99"


def test_what_a_wrong_clock_has_made_is_left_out(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path / "a", *range(10))
    file = tmp_path / "out.snapshot"
    with open(file, "wb") as ahead:
        early = Record("answer", "routes/r", b"early", b"f", b"", time.time() + 3600.0, time.time() + 3600.0, b"x")
        here = Record("answer", "routes/r7", b"7", b"f", b"", time.time() + 4.0, time.time(), b"7, later")
        names = [name_of(each.kind, each.source, each.key) for each in (early, here)]
        sealed = [(name, seal(name, packed(each))) for name, each in zip(names, (early, here), strict=True)]
        portable.write(ahead, sealed)
    assert main(["snapshot", "import", str(file), "--config", config("a")]) == 1
    told = capsys.readouterr()
    assert "1 of 2 records taken" in told.out
    assert "1 records were made in the future" in told.err


@pytest.mark.parametrize("count", ["0", "-1", "x", "17", "1.5"])
def test_how_many_are_kept_is_said_when_it_cannot_be(
    config: Config, capsys: pytest.CaptureFixture[str], count: str
) -> None:
    with pytest.raises(SystemExit):
        main(["snapshot", "prune", "--config", config("a"), f"--keep={count}"])
    assert f"argument --keep: {count!r} is no whole number from 1 to 16" in capsys.readouterr().err


def test_a_damaged_export_is_refused_as_a_whole(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path / "a", *range(100))
    file = tmp_path / "out.snapshot"
    main(["snapshot", "export", str(file), "--config", config("a")])
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    assert main(["snapshot", "import", str(file), "--config", config("b")]) == 1
    assert "nothing was taken" in capsys.readouterr().err
    assert not (tmp_path / "b").exists() or not generations(tmp_path / "b")


def test_verify_names_the_bad_file_and_export_leaves_it_out(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path / "a", *range(2000), payload=os.urandom(1100))
    filled(tmp_path / "a", 1, 2, 3)
    good, bad = generations(tmp_path / "a")
    assert main(["snapshot", "verify", "--config", config("a")]) == 0
    content = bytearray(bad.read_bytes())
    content[8192:] = os.urandom(len(content) - 8192)
    bad.write_bytes(content)
    capsys.readouterr()
    assert main(["snapshot", "verify", "--config", config("a")]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith(f"{good.name}  good, 2000 records")
    assert told[1].startswith(f"{bad.name}  bad: ")
    for verb in (["ls"], ["export", str(tmp_path / "out")]):
        assert main(["snapshot", *verb, "--config", config("a")]) == 1
        told = capsys.readouterr()
        assert "1000" in told.out or "2000 records" in told.out
        assert f"{bad}: bad: " in told.err, "nobody takes a part for the whole"
    assert bad.exists(), "looking changes nothing"


def test_an_export_of_nothing_leaves_the_one_that_is_there(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path / "a", 1)
    (bad,) = generations(tmp_path / "a")
    bad.write_bytes(b"")
    (tmp_path / "out").write_bytes(b"an earlier one")
    assert main(["snapshot", "export", str(tmp_path / "out"), "--config", config("a")]) == 1
    told = capsys.readouterr().err
    assert f"{bad}: bad: empty; left out" in told
    assert "there is nothing to export" in told
    assert (tmp_path / "out").read_bytes() == b"an earlier one"


def test_an_export_replaces_files_and_nothing_else(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path / "a", *range(10))
    command = ["snapshot", "export", "--config", config("a")]
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "a", "not/there"):
        target = str(tmp_path / name)
        assert main([*command, target]) == 1
        assert f"'{target}'" in capsys.readouterr().err
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert main([*command, str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink()
    assert main(["snapshot", "import", str(tmp_path / "file"), "--config", config("b")]) == 0


def test_an_export_to_standard_output_is_the_file(
    tmp_path: Path, config: Config, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    filled(tmp_path / "a", *range(10))
    assert main(["snapshot", "export", "-", "--config", config("a")]) == 0
    told = capfdbinary.readouterr()
    assert told.err.startswith(b"10 records in - ")
    assert main(["snapshot", "export", str(tmp_path / "file"), "--config", config("a")]) == 0
    assert told.out == (tmp_path / "file").read_bytes()


def test_prune_leaves_the_last(tmp_path: Path, config: Config) -> None:
    filled(tmp_path / "a", *range(2000), payload=os.urandom(1100))
    filled(tmp_path / "a", 1)
    _, last = generations(tmp_path / "a")
    assert main(["snapshot", "prune", "--config", config("a")]) == 0
    assert generations(tmp_path / "a") == [last]


def test_without_a_section_or_a_directory_it_says_so(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none.toml"
    path.write_text('[backends.b]\nhttp = ["http://h:1"]\n')
    assert main(["snapshot", "ls", "--config", str(path)]) == 2
    assert "has no [snapshot] section" in capsys.readouterr().err
    assert main(["snapshot", "export", str(tmp_path / "out"), "--config", config("nowhere")]) == 1
    assert capsys.readouterr().err.startswith("tailrace: ")


def test_what_was_purged_is_not_exported(tmp_path: Path, config: Config) -> None:
    filled(tmp_path / "a", 0, 1)

    async def purge() -> None:
        words = FileStore(tmp_path / "a" / WORDS, time.time)
        await words.put_many([(purge_key("routes/r0"), struct.pack("<d", time.time()))], None, 10.0)
        await words.close()

    asyncio.run(purge())
    assert main(["snapshot", "export", "--config", config("a"), str(tmp_path / "out")]) == 0
    assert main(["snapshot", "import", "--config", config("b"), str(tmp_path / "out")]) == 0
    assert [held(tmp_path / "b", key) for key in (0, 1)] == [None, b"1"]


def test_an_import_is_of_no_servers_that_are_asked_here(tmp_path: Path, config: Config) -> None:
    """The same address (127.0.0.1) may be another server there."""
    filled(tmp_path / "a", 0)
    assert main(["snapshot", "export", "--config", config("a"), str(tmp_path / "out")]) == 0
    assert main(["snapshot", "import", "--config", config("b"), str(tmp_path / "out")]) == 0
    words = []
    for name in ("a", "b"):
        with closing(Snapshot(tmp_path / name, OPTIONS)) as snapshot:
            snapshot.open()
            found = snapshot.find("answer", "routes/r0", b"0", TERMS, time.time())
            assert found is not None
            words.append(found.record.word)
    assert words == [b"w", b""]


def test_what_one_model_has_made_elsewhere_stays_of_one_in_an_import(tmp_path: Path, config: Config) -> None:
    with closing(Snapshot(tmp_path / "a", OPTIONS)) as snapshot:
        snapshot.open()
        pairs = []
        for place, word in enumerate((b"12345678one", b"12345678other", b"12345678one", b"12345678")):
            key = b"%d" % place
            record = Record("answer", "routes/r0", key, TERMS.fingerprint, word, time.time(), time.time(), key)
            name = name_of(record.kind, record.source, record.key)
            pairs.append((name, seal(name, packed(record))))
        assert snapshot.write(pairs, time.time()) == "written"
    assert main(["snapshot", "export", "--config", config("a"), str(tmp_path / "out")]) == 0
    assert main(["snapshot", "import", "--config", config("b"), str(tmp_path / "out")]) == 0
    with closing(Snapshot(tmp_path / "b", OPTIONS)) as snapshot:
        snapshot.open()
        found = [snapshot.find("answer", "routes/r0", b"%d" % key, TERMS, time.time()) for key in range(4)]
    one, other, again, nobodys = [good.record.word for good in found if good is not None]
    assert one == again != other
    assert nobodys == b""
    assert not any(word.startswith(b"12345678") for word in (one, other))


def test_after_a_purge_of_everything_what_models_said_is_exported_and_no_answer(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(tmp_path / "a", 0, 1)
    with closing(Snapshot(tmp_path / "a", OPTIONS)) as snapshot:
        snapshot.open()
        facts = Record("facts", "backends/b", b"m", b"f", b"", time.time(), time.time(), b"x")
        name = name_of(facts.kind, facts.source, facts.key)
        assert snapshot.write([(name, seal(name, packed(facts)))], time.time()) == "written"

    async def purge() -> None:
        words = FileStore(tmp_path / "a" / WORDS, time.time)
        await words.put_many([(purge_key(EVERYTHING), struct.pack("<d", time.time()))], None, 10.0)
        await words.close()

    asyncio.run(purge())
    assert main(["snapshot", "export", "--config", config("a"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("1 records in ")


@pytest.mark.parametrize("damage", ["flipped", "short"])
def test_a_damaged_mark_of_a_purge_is_a_purge(tmp_path: Path, config: Config, damage: str) -> None:
    filled(tmp_path / "a", 0, 1)

    async def purge() -> None:
        words = FileStore(tmp_path / "a" / WORDS, time.time)
        mark = b"soon" if damage == "short" else struct.pack("<d", 0.0)
        await words.put_many([(purge_key("routes/r0"), mark)], None, 10.0)
        await words.close()

    asyncio.run(purge())
    (mark,) = (tmp_path / "a" / WORDS).iterdir()
    if damage == "flipped":
        mark.write_bytes(mark.read_bytes()[:-1] + b"\xff")
    assert main(["snapshot", "export", "--config", config("a"), str(tmp_path / "out")]) == 0
    assert main(["snapshot", "import", "--config", config("b"), str(tmp_path / "out")]) == 0
    assert [held(tmp_path / "b", key) for key in (0, 1)] == [None, b"1"]


def test_a_directory_that_is_not_there_is_not_well(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["snapshot", "verify", "--config", config("gone")]) == 1
    assert "gone: unreachable" in capsys.readouterr().out


@pytest.mark.parametrize("number", ["0", "-3", "x"])
def test_something_is_kept(config: Config, number: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["snapshot", "prune", "--config", config("a"), "--keep", number])


def test_prune_waits_so_long_for_who_is_writing_and_says_so(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "a", 1)
    before = generations(tmp_path / "a")
    monkeypatch.setattr(snapshot_tool, "WAIT_SECONDS", 0.1)
    with locked(tmp_path / "a") as ours:
        assert ours
        assert main(["snapshot", "prune", "--config", config("a")]) == 1
    assert "another process has been writing for 0.1 s; nothing was removed" in capsys.readouterr().err
    assert generations(tmp_path / "a") == before


def test_an_import_that_would_push_itself_out_is_refused_and_one_that_pushes_others_out_says_so(
    tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    for start in (0, 4000, 8000):
        filled(tmp_path / "a", *range(start, start + 1000), payload=os.urandom(3850))
    filled(tmp_path / "c", 12000)
    assert len(generations(tmp_path / "a")) == 3
    for name in ("a", "c"):
        assert main(["snapshot", "export", str(tmp_path / f"{name}.out"), "--config", config(name)]) == 0
    capsys.readouterr()
    assert main(["snapshot", "import", str(tmp_path / "a.out"), "--config", config("b")]) == 1
    told = capsys.readouterr().err
    assert "snapshot.bytes_max (16MiB) has room for 11184811 of an import; raise it; nothing was taken" in told
    assert not (tmp_path / "b").exists()
    assert main(["snapshot", "import", str(tmp_path / "c.out"), "--config", config("a")]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("1 of 1 records taken")
    assert "1 of the 3 files that were here left for it; raise snapshot.bytes_max to keep more" in printed.err
    assert held(tmp_path / "a", 12000) == b"12000"
