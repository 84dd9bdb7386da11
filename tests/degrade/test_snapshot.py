"""A snapshot's directory: what is written is found, what is damaged is put aside, and nothing raises."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cache.stores.store import StoreError
from degrade import generation as module
from degrade import inspection
from degrade.directory import LOCKS_LEFT, announce, announced, generations, locked, number_of, path_of, remove
from degrade.generation import Generation, Pairs
from degrade.inspection import InspectionOptions, inspect
from degrade.record import Record, Terms, name_of, packed, seal
from degrade.snapshot import GENERATIONS_MAX, QUARANTINE, Snapshot, SnapshotOptions, pruned

NOW = 1_000_000.0
OPTIONS = SnapshotOptions(bytes_max=6 * 2**20, inspection_seconds_max=60.0)
BOUND = OPTIONS.generation_bytes_max
TERMS = Terms(b"schema", 60.0, lambda payload: None if payload.startswith(b"bad") else payload)

Make = Callable[..., Snapshot]


def record(key: int, payload: bytes = b"", fingerprint: bytes = b"schema", made_at: float = NOW) -> tuple[bytes, bytes]:
    made = Record("answer", "routes/r", b"%d" % key, fingerprint, b"word", made_at, made_at, payload or b"of %d" % key)
    name = name_of(made.kind, made.source, made.key)
    return name, seal(name, packed(made))


def found(snapshot: Snapshot, key: int) -> bytes | None:
    held = snapshot.find("answer", "routes/r", b"%d" % key, TERMS, NOW)
    return None if held is None else held.value


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """``make()`` -> the directory as a new process has it; what had it before is closed, as at a process's end."""
    held: list[Snapshot] = []

    def made(options: SnapshotOptions = OPTIONS, others: bool = False) -> Snapshot:
        if held and not others:
            held.pop().close()
        snapshot = Snapshot(tmp_path / "snapshot", options)
        snapshot.open()
        held.append(snapshot)
        return snapshot

    yield made
    for each in held:
        each.close()


def test_what_was_written_is_found_by_this_process_and_the_next(make: Make) -> None:
    snapshot = make()
    assert found(snapshot, 1) is None
    assert snapshot.write([record(key) for key in range(100)], NOW) == "written"
    assert (snapshot.records, snapshot.generations, snapshot.written_at) == (100, 1, NOW)
    for life in range(3):
        again = make() if life else snapshot
        assert [found(again, key) for key in range(101)] == [*(b"of %d" % key for key in range(100)), None]
        assert (again.records, again.generations, again.written_at) == (100, 1, NOW)
        assert not again.failures
        assert not again.quarantined


def test_a_new_process_never_writes_to_an_older_ones_file(make: Make, tmp_path: Path) -> None:
    snapshot = make()
    snapshot.write([record(1)], NOW)
    (old,) = generations(snapshot.folder)
    snapshot = make()
    (renewed,) = generations(snapshot.folder)
    assert renewed != old, "less than half full: it was copied"
    snapshot.write([record(2)], NOW + 1)
    assert generations(snapshot.folder) == [renewed]
    filler = [record(key, os.urandom(1000)) for key in range(900)]
    assert snapshot.write(filler, NOW + 2) == "written"
    snapshot.close()
    before = renewed.read_bytes()
    snapshot = make()
    assert found(snapshot, 7) is not None
    assert snapshot.write([record(3)], NOW + 3) == "written"
    assert renewed.read_bytes() == before
    assert len(generations(snapshot.folder)) == 2
    assert [found(snapshot, key) is not None for key in (1, 2, 3)] == [True, True, True]


def test_generations_follow_each_other_within_the_bound(make: Make) -> None:
    snapshot = make()
    chance = random.Random(1)
    for turn in range(60):
        batch = [record(turn * 100 + key, chance.randbytes(2000)) for key in range(100)]
        assert snapshot.write(batch, NOW) == "written"
        snapshot.settle()
        used = sum(path.stat().st_size for path in generations(snapshot.folder))
        assert used <= OPTIONS.bytes_max
        assert found(snapshot, turn * 100) is not None
    assert snapshot.rotations > OPTIONS.generations
    assert snapshot.generations == OPTIONS.generations
    assert found(snapshot, 0) is None, "the oldest has gone"
    assert not snapshot.failures


def test_there_are_never_more_files_than_a_look_up_may_ask(make: Make) -> None:
    """However small they are: what was put aside counts too, and goes first."""
    snapshot = make(SnapshotOptions(bytes_max=64 * 2**20, generations=512, inspection_seconds_max=60.0))
    aside = snapshot.folder / QUARANTINE
    aside.mkdir(parents=True)
    for number in range(1, 4):
        (aside / f"{number:010d}.empty.mdb").touch()
    for turn in range(GENERATIONS_MAX + 4):
        assert snapshot.write([record(turn, os.urandom(70_000))], NOW) == "written"
        snapshot.settle()
        assert len(generations(snapshot.folder)) + len(list(aside.iterdir())) <= GENERATIONS_MAX
    assert snapshot.rotations == turn + 1
    assert snapshot.generations == len(generations(snapshot.folder)) == GENERATIONS_MAX
    assert [found(snapshot, key) is not None for key in range(turn + 1)] == [False] * 4 + [True] * GENERATIONS_MAX
    assert not snapshot.failures


def held(snapshot: Snapshot) -> list[int]:
    """The generations that this process has open, by its file descriptors: those that have gone too."""
    folder = f"{snapshot.folder}/"
    names = [os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    ours = [Path(name.removesuffix(" (deleted)")) for name in names if name.startswith(folder)]
    return sorted({number_of(path) for path in ours if path.suffix == ".mdb"})


def test_what_is_not_read_any_more_is_closed(make: Make) -> None:
    """What is open keeps its disk, gone or not: our own that had to go, and what others have taken away."""
    snapshot = make()
    for turn in range(5):
        assert snapshot.write([record(turn * 1000 + key, os.urandom(1000)) for key in range(900)], NOW) == "written"
        snapshot.settle()
        assert held(snapshot) == [number_of(path) for path in generations(snapshot.folder)]
        assert snapshot.bytes == sum(path.stat().st_size for path in generations(snapshot.folder))
    assert snapshot.generations == OPTIONS.generations
    old, *kept = generations(snapshot.folder)
    old.unlink()
    snapshot.look()
    assert number_of(old) in held(snapshot), "somebody may be reading it"
    snapshot.settle()
    assert held(snapshot) == [number_of(path) for path in kept]


def test_a_file_that_lmdb_gives_up_is_not_opened_again_by_this_process(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = make()
    snapshot.write([record(1)], NOW)
    put = Generation.put

    def spoilt(self: Generation, pairs: Pairs, now: float) -> int:
        if self.number == 1:
            raise StoreError("corrupt")
        return put(self, pairs, now)

    monkeypatch.setattr(Generation, "put", spoilt)
    for turn in range(3):
        assert snapshot.write([record(2 + turn)], NOW) == "written"
        snapshot.settle()
        assert (held(snapshot), snapshot.generations, snapshot.rotations) == ([2], 1, 2)
    assert (found(snapshot, 1), found(snapshot, 2)) == (None, b"of 2")
    snapshot = make()
    assert (found(snapshot, 1), found(snapshot, 2)) == (b"of 1", b"of 2"), "the next one has looked through it"


@pytest.mark.parametrize("kind", ["full", "refused"])
def test_a_disk_that_takes_nothing_is_left_as_it_is(make: Make, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Nothing new is begun for a file that is not full, and of a new file that finds no room nothing stays."""
    snapshot = make()
    snapshot.write([record(1)], NOW)

    def refuses(self: Generation, pairs: Pairs, now: float) -> int:
        raise StoreError(kind)

    with monkeypatch.context() as patch:
        patch.setattr(Generation, "put", refuses)
        for _ in range(3):
            assert snapshot.write([record(2)], NOW) == kind
        assert [number_of(path) for path in generations(snapshot.folder)] == held(snapshot) == [1]
        generations(snapshot.folder)[0].unlink()
        for _ in range(3):
            assert snapshot.write([record(2)], NOW) == kind
            snapshot.settle()
        assert (generations(snapshot.folder), held(snapshot), snapshot.rotations) == ([], [], 1)
    assert snapshot.failures == {kind: 6}
    assert snapshot.write([record(2)], NOW) == "written"


def test_when_something_was_written_last_is_not_forgotten(make: Make) -> None:
    snapshot = make()
    snapshot.write([record(1)], NOW)
    assert snapshot.write([], NOW + 50) == "idle"
    snapshot.look()
    assert snapshot.written_at == NOW + 50
    assert snapshot.write([record(2)], NOW + 40) == "written", "a clock that was set back"
    assert snapshot.written_at == NOW + 50


def test_a_start_that_could_not_look_at_all_files_says_so(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make().write([record(1)], NOW)
    monkeypatch.setattr(inspection, "_COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    snapshot = make()
    assert (snapshot.failures, snapshot.generations) == ({"unavailable": 1}, 0)
    assert snapshot.write([record(2)], NOW) == "written"
    monkeypatch.undo()
    assert [found(make(), key) for key in (1, 2)] == [b"of 1", b"of 2"]


def test_a_batch_is_there_as_a_whole_or_not_at_all(make: Make) -> None:
    snapshot = make()
    snapshot.write([record(1)], NOW)
    huge = [record(key, os.urandom(900_000)) for key in range(10, 20)]  # more than one generation
    assert snapshot.write(huge, NOW) == "full"
    assert snapshot.failures == {"full": 1}
    assert found(snapshot, 1) == b"of 1"
    assert all(found(snapshot, key) is None for key in range(10, 20))
    assert snapshot.write([record(2)], NOW) == "written"
    assert (found(snapshot, 1), found(snapshot, 2)) == (b"of 1", b"of 2")


def test_a_later_record_is_found_and_where_it_is_bad_the_one_before(make: Make) -> None:
    snapshot = make()
    filler = [record(key, os.urandom(1000)) for key in range(100, 1000)]
    snapshot.write([record(1, b"first"), record(2, b"first"), *filler], NOW)
    snapshot = make()
    snapshot.write([record(1, b"second"), record(2, b"bad second")], NOW)
    assert snapshot.generations == 2
    assert (found(snapshot, 1), found(snapshot, 2)) == (b"second", b"first")
    assert +snapshot.rejected == {"value": 1}
    snapshot.write([record(1, b"third", fingerprint=b"other"), record(2, b"third", made_at=NOW - 61)], NOW)
    assert (found(snapshot, 1), found(snapshot, 2)) == (b"first", b"first")
    assert +snapshot.rejected == {"value": 1, "fingerprint": 1, "age": 1}


def test_two_processes_see_what_the_other_writes(make: Make) -> None:
    """In one process here, so one only reads what the other has in work: LMDB opens a file once."""
    program = """
        import sys
        from pathlib import Path
        from tests.degrade.test_snapshot import NOW, OPTIONS, Snapshot, record
        snapshot = Snapshot(Path(sys.argv[1]), OPTIONS)
        snapshot.open()
        print(snapshot.write([record(int(key)) for key in sys.argv[2:]], NOW + 1), snapshot.generations)
    """
    snapshot = make()
    snapshot.write([record(1)], NOW)
    told = python(program, str(snapshot.folder), "2", "3")
    assert told.stdout.split() == [b"written", b"1"], "the other has copied the first, and written on"
    snapshot.look()
    snapshot.settle()
    assert [found(snapshot, key) for key in (1, 2, 3)] == [b"of 1", b"of 2", b"of 3"]
    assert snapshot.written_at == NOW + 1
    assert snapshot.write([record(4)], NOW + 2) == "written"
    assert snapshot.generations == 1
    assert [found(snapshot, key) for key in (1, 2, 3, 4)] == [b"of 1", b"of 2", b"of 3", b"of 4"]


def test_who_has_the_lock_is_waited_for_by_nobody(make: Make) -> None:
    snapshot = make()
    snapshot.write([record(1)], NOW)
    with locked(snapshot.folder) as ours:
        assert ours
        assert snapshot.write([record(2)], NOW) == "busy"
    assert snapshot.write([record(2)], NOW) == "written"
    assert not snapshot.failures


def test_the_oldest_generation_goes_and_the_next_is_begun_at_once(make: Make) -> None:
    """The new file's lock must not get the inode of the lock that has gone with a file which is still open here."""
    for life in range(4):
        snapshot = make()
        filler = [record(life * 2000 + key, os.urandom(3850)) for key in range(400)]
        assert snapshot.write(filler, NOW + life) == "written", life
        assert not snapshot.failures
        snapshot.settle()
    assert [number_of(path) for path in generations(snapshot.folder)] == [2, 3, 4]


def test_of_locks_a_few_are_left(make: Make) -> None:
    snapshot = make()
    snapshot.write([record(1)], NOW)
    for number in range(2, 60):
        path_of(snapshot.folder, number).touch()
        path_of(snapshot.folder, number).with_name(f"{number:010d}.mdb-lock").touch()
        remove(path_of(snapshot.folder, number))
    assert len(list(snapshot.folder.glob("*-lock"))) == 1 + LOCKS_LEFT
    assert found(snapshot, 1) == b"of 1"


def test_a_file_that_cannot_be_opened_costs_itself_alone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = make()
    snapshot.write([record(1)], NOW)
    made_elsewhere(snapshot.folder, 7)
    monkeypatch.setattr(Snapshot, "_opened", _refused)
    snapshot.look()
    assert found(snapshot, 1) == b"of 1"
    assert snapshot.failures == {"unreachable": 1}
    monkeypatch.undo()
    snapshot.look()
    assert snapshot.generations == 2


def _refused(*_: object) -> Generation:
    raise StoreError("unreachable")


def test_a_start_does_not_wait_for_who_has_the_lock(make: Make) -> None:
    """To copy a small file into a new one is tidiness; what is there is read all the same."""
    snapshot = make()
    snapshot.write([record(1)], NOW)
    before = generations(snapshot.folder)
    with locked(snapshot.folder) as ours:
        assert ours
        snapshot = make()
        assert generations(snapshot.folder) == before, "it was not renewed"
        assert found(snapshot, 1) == b"of 1"
        assert not snapshot.failures
        assert not snapshot.quarantined
    assert snapshot.write([record(2)], NOW) == "written"


@pytest.mark.parametrize("damage", ["cut", "emptied", "overwritten", "no database", "a byte in many records"])
def test_a_damaged_file_is_put_aside_and_the_one_before_serves(make: Make, damage: str) -> None:
    snapshot = make()
    filler = [record(key, random.Random(key).randbytes(1000)) for key in range(100, 1000)]
    snapshot.write([record(1, b"first"), *filler], NOW)
    snapshot = make()
    snapshot.write([record(1, b"second"), *(record(key) for key in range(2000, 2200))], NOW)
    old, new = generations(snapshot.folder)
    content = bytearray(new.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "emptied":
        content = bytearray(0)
    elif damage == "overwritten":
        content[8192:] = random.Random(2).randbytes(len(content) - 8192)
    elif damage == "no database":
        content = bytearray(b"hello" * 3000)
    else:
        for at in range(9000, len(content), 97):
            content[at] ^= 255
    snapshot.close()
    new.write_bytes(content)
    snapshot = make()
    assert found(snapshot, 1) == b"first"
    assert found(snapshot, 2000) is None
    assert snapshot.quarantined.total() == 1
    (aside,) = (snapshot.folder / QUARANTINE).glob("*.mdb")
    assert aside.name.split(".")[1] in snapshot.quarantined
    assert snapshot.write([record(1, b"third")], NOW) == "written"
    assert found(snapshot, 1) == b"third"
    assert old in generations(snapshot.folder)
    assert not snapshot.failures


def test_one_bad_record_among_many_costs_itself_alone(make: Make) -> None:
    snapshot = make()
    snapshot.write([record(key, b"%d " % key * 20) for key in range(1000)], NOW)
    (path,) = generations(snapshot.folder)
    content = bytearray(path.read_bytes())
    at = content.find(b"500 500 500")
    content[at] ^= 1
    snapshot.close()
    path.write_bytes(content)
    snapshot = make()
    assert not snapshot.quarantined
    there = [key for key in range(1000) if found(snapshot, key) is not None]
    assert there == [key for key in range(1000) if key != 500]
    assert snapshot.records == 999


def test_records_that_are_missing_are_missed(make: Make) -> None:
    snapshot = make()
    snapshot.write([record(key) for key in range(100)], NOW)
    (path,) = generations(snapshot.folder)
    snapshot.close()
    with mapped_environment(path) as environment, environment.begin(write=True) as transaction:
        for key in range(50):
            transaction.delete(record(key)[0])
    assert inspect(path.parent, InspectionOptions(BOUND, 0.01, 60.0)).verdicts[1].reason == "count"
    assert make().quarantined == {"count": 1}


def test_what_lies_aside_is_counted_by_every_process_until_it_is_pruned(make: Make) -> None:
    snapshot = make()
    assert snapshot.aside == 0
    snapshot.write([record(1)], NOW)
    (path,) = generations(snapshot.folder)
    snapshot.close()
    path.write_bytes(b"hello" * 3000)
    snapshot = make()
    assert (snapshot.aside, snapshot.quarantined.total()) == (1, 1)
    snapshot = make()  # which has put nothing aside, and nothing else is there
    assert (snapshot.aside, snapshot.quarantined.total()) == (1, 0)
    assert snapshot.write([record(1)], NOW) == "written"
    assert snapshot.aside == 1
    pruned(snapshot.folder, 1, 10.0)
    assert snapshot.write([], NOW) == "idle"
    assert snapshot.aside == 0


def test_a_file_that_hangs_its_reader_is_a_bad_one(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = make()
    snapshot.write([record(1)], NOW)
    begun = textwrap.dedent("""
        import time
        print('{"number": 1}', flush=True)
        time.sleep(60)
    """)
    monkeypatch.setattr(inspection, "_COMMAND", (sys.executable, "-c", begun))
    inspected = inspect(snapshot.folder, InspectionOptions(BOUND, 0.01, 1.0))
    assert (inspected.verdicts[1].reason, inspected.fault) == ("hung", "timeout")


@pytest.mark.parametrize("name", ["0000000009.mdb", "9.mdb", "00000000009.mdb", "-000000009.mdb"])
def test_what_is_no_file_or_has_another_name_is_no_generation(make: Make, name: str) -> None:
    snapshot = make()
    snapshot.write([record(1)], NOW)
    os.mkfifo(snapshot.folder / name)  # who opens it waits for ever
    snapshot = make()
    assert snapshot.write([record(2)], NOW) == "written"
    assert (found(snapshot, 1), found(snapshot, 2)) == (b"of 1", b"of 2")
    assert not snapshot.failures
    assert not snapshot.quarantined


@pytest.mark.parametrize("is_cut", [False, True])
def test_what_comes_meanwhile_from_elsewhere_is_opened_by_nobody_before_a_start_has_looked_at_it(
    make: Make, is_cut: bool
) -> None:
    """A backup that is put back, or a copy that was cut short: LMDB would end whoever reads it."""
    snapshot = make()
    snapshot.write([record(key) for key in range(100)], NOW)
    (own,) = generations(snapshot.folder)
    content = own.read_bytes()[: 8192 if is_cut else None]
    foreign = path_of(snapshot.folder, 99)
    foreign.write_bytes(content)
    assert snapshot.write([record(200)], NOW) == "written"
    snapshot.look()
    assert (snapshot.generations, found(snapshot, 200)) == (1, b"of 200")
    assert foreign.read_bytes() == content
    snapshot = make()
    assert (snapshot.quarantined.total(), found(snapshot, 200)) == (is_cut, b"of 200")


def made_elsewhere(folder: Path, number: int) -> Path:
    """What a writer of another process leaves behind."""
    path = path_of(folder, number)
    with locked(folder) as ours, closing(Generation(path, BOUND, writable=True)) as generation:
        assert ours
        generation.put([record(number)], NOW)
        announce(folder, number)
    return path


def test_what_a_writer_has_made_is_read_by_the_others_and_not_once_it_was_replaced(make: Make) -> None:
    snapshot = make()
    snapshot.write([record(1)], NOW)
    path = made_elsewhere(snapshot.folder, 7)
    snapshot.look()
    assert (snapshot.generations, found(snapshot, 7)) == (2, b"of 7")
    assert dict(announced(snapshot.folder)) == {number: path_of(path.parent, number).stat().st_ino for number in (1, 7)}
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    os.replace(copy, path)
    snapshot.look()
    assert (snapshot.generations, found(snapshot, 7)) == (1, None)
    path.unlink()
    made_elsewhere(snapshot.folder, 8)
    assert set(announced(snapshot.folder)) == {1, 8}
    assert not snapshot.failures


@pytest.mark.parametrize("content", [b"", b"7", b"7 7", b"x 7\n7 \xff\n\x00", b"7 " + b"9" * 99 + b"\n"])
def test_a_lock_that_says_nothing_sensible_announces_nothing(make: Make, content: bytes) -> None:
    snapshot = make()
    snapshot.write([record(1)], NOW)
    made_elsewhere(snapshot.folder, 7)
    (snapshot.folder / "lock").write_bytes(content)
    assert not announced(snapshot.folder)
    snapshot.look()
    assert (snapshot.generations, dict(snapshot.failures)) == (1, {})
    assert snapshot.write([record(2)], NOW) == "written"


@pytest.mark.parametrize("gone", ["the directory", "the file", "its lock file", "the lock"])
def test_what_is_removed_under_us_is_made_anew(make: Make, gone: str) -> None:
    snapshot = make()
    snapshot.write([record(1)], NOW)
    (path,) = generations(snapshot.folder)
    if gone == "the directory":
        shutil.rmtree(snapshot.folder)
    else:
        names = {"the file": path, "its lock file": Path(f"{path}-lock"), "the lock": snapshot.folder / "lock"}
        names[gone].unlink()
    assert found(snapshot, 1) == b"of 1", "the file is open"
    assert snapshot.write([record(2)], NOW) == "written"
    snapshot.settle()
    assert found(snapshot, 2) == b"of 2"
    assert snapshot.write([record(3)], NOW) == "written"
    again = make()
    assert (found(again, 2), found(again, 3)) == (b"of 2", b"of 3")


def test_a_directory_that_cannot_be_made_is_a_word(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    snapshot = Snapshot(tmp_path / "file" / "snapshot", OPTIONS)
    snapshot.open()
    assert snapshot.write([record(1)], NOW) == "unreachable"
    assert found(snapshot, 1) is None
    assert snapshot.failures == {"unreachable": 2}


def test_pruning_leaves_the_last(make: Make) -> None:
    snapshot = make()
    for turn in range(3):
        snapshot.write([record(turn * 2000 + key, os.urandom(1000)) for key in range(900)], NOW)
        snapshot = make()
    assert len(generations(snapshot.folder)) >= 2
    last = generations(snapshot.folder)[-1]
    pruned(snapshot.folder, 1, 10.0)
    assert generations(snapshot.folder) == [last]


def test_a_writer_that_is_killed_leaves_what_it_had_committed(tmp_path: Path) -> None:
    """Six lives, each killed at a moment of its own while it writes without a pause: every pass that was told as
    written is there, and each record is what its key says."""
    program = """
        import sys
        from pathlib import Path
        from tests.degrade.test_snapshot import NOW, OPTIONS, Snapshot, record
        snapshot = Snapshot(Path(sys.argv[1]), OPTIONS)
        snapshot.open()
        key = int(sys.argv[2])
        print("begun", flush=True)
        while True:
            batch = [record(each, b"%d " % each * 50) for each in range(key, key + 20)]
            if snapshot.write(batch, NOW) == "written":
                key += 20
                print(key, flush=True)
            snapshot.settle()
    """
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    key = 0
    for _ in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "snapshot"), str(key)],
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"begun\n"
        time.sleep(chance.uniform(0.0, 0.15))
        writer.send_signal(signal.SIGKILL)
        said = writer.stdout.read().split()
        writer.wait()
        key = int(said[-1]) if said else key
        snapshot = Snapshot(tmp_path / "snapshot", OPTIONS)
        snapshot.open()
        assert not snapshot.quarantined, seed
        for each in range(max(0, key - 2000), key):
            held = found(snapshot, each)
            assert held == b"%d " % each * 50, (seed, each)
        assert not snapshot.rejected.total()
        snapshot.close()
    assert key > 0


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments], stdout=subprocess.PIPE, check=True, timeout=60
    )


def mapped_environment(path: Path):  # type: ignore[no-untyped-def]
    from contextlib import closing

    import lmdb

    return closing(lmdb.open(str(path), map_size=BOUND, subdir=False))


def test_the_places_of_readers_that_were_killed_come_back_with_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process that takes all the places there are is as good as many that were killed one by one."""
    monkeypatch.setattr(module, "READERS_MAX", 4)
    program = """
        import sys, time
        from pathlib import Path
        import lmdb
        from degrade.generation import Generation, Pairs
        generation = Generation(Path(sys.argv[1]), int(sys.argv[2]))
        held = []
        try:
            while True:
                held.append(generation._environment.begin())
        except lmdb.ReadersFullError:
            print(len(held), flush=True)
        time.sleep(30)
    """
    path = path_of(tmp_path, 1)
    with closing(Generation(path, BOUND, writable=True)) as generation:
        generation.put([record(1)], NOW)
        arguments = [sys.executable, "-c", textwrap.dedent(program), str(path), str(BOUND)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE) as reader:
            assert reader.stdout is not None
            places = int(reader.stdout.readline())
            reader.kill()
        assert places >= 4
        with pytest.raises(StoreError):
            generation.get(record(1)[0])
        generation.put([record(2)], NOW)
        assert generation.get(record(1)[0]) == record(1)[1]


def test_a_generation_says_what_is_wrong_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        Generation(path_of(tmp_path / "nowhere", 1), BOUND)
    (tmp_path / "0000000001.mdb").write_bytes(b"x" * 8192)
    with pytest.raises(StoreError) as error:
        Generation(path_of(tmp_path, 1), BOUND)
    assert error.value.kind == "corrupt"


@pytest.fixture
def umask() -> Iterator[None]:
    """That of most users."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_a_directory_that_we_make_is_for_our_user_alone(tmp_path: Path) -> None:
    def mode(path: Path) -> int:
        return path.stat().st_mode & 0o777

    folder = tmp_path / "host" / "snapshot"
    with closing(Snapshot(folder, OPTIONS)) as snapshot:
        snapshot.open()
        assert (mode(folder), mode(folder.parent)) == (0o700, 0o700)
        shutil.rmtree(folder)
        assert snapshot.write([record(1)], NOW) == "written"
        assert mode(folder) == 0o700
        folder.chmod(0o750)
        assert snapshot.write([record(2)], NOW) == "written"
        assert mode(folder) == 0o750, "an operator has said so"
