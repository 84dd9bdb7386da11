"""A folder as a store: whole values or none, whatever happens to a file, a folder, a disk."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from pathlib import Path

import pytest

from cache.stores.files import RESTING_SECONDS, FileStore
from cache.stores.store import StoreError


class Clock:
    now = 1000.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> FileStore:
    return FileStore(tmp_path / "words", lambda: clock.now)


async def test_what_was_put_is_there_until_it_ends(store: FileStore, clock: Clock, tmp_path: Path) -> None:
    assert await store.get_many([b"a", b"b"], 5.0) == [None, None]
    await store.put_many([(b"a", b"1"), (b"b", b"")], 60.0, 5.0)
    await store.put_many([(b"c", b"3")], None, 5.0)
    await store.close()
    again = FileStore(tmp_path / "words", lambda: clock.now)
    assert await again.get_many([b"a", b"b", b"c", b"d"], 5.0) == [b"1", b"", b"3", None]
    clock.now += 60.0
    assert await again.get_many([b"a", b"c"], 5.0) == [None, b"3"]
    await again.delete_many([b"c", b"d"], 5.0)
    assert await again.get_many([b"c"], 5.0) == [None]
    await again.close()


async def test_every_flipped_byte_and_every_cut_is_corrupt(store: FileStore, tmp_path: Path) -> None:
    await store.put_many([(b"a", b"a value")], None, 5.0)
    (path,) = (tmp_path / "words").iterdir()
    whole = path.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        for content in (bytes(damaged), whole[:at]):
            path.write_bytes(content)  # in its place: nobody does
            os.utime(path.parent)
            (found,) = await store.get_many([b"a"], 5.0)
            assert isinstance(found, StoreError), at
            assert found.kind == "corrupt"
    path.write_bytes(whole)
    assert await store.get_many([b"a"], 5.0) == [b"a value"]
    await store.close()


async def test_no_value_lies_under_anothers_key(store: FileStore, tmp_path: Path) -> None:
    await store.put_many([(b"a", b"1")], None, 5.0)
    (mine,) = (tmp_path / "words").iterdir()
    await store.put_many([(b"b", b"2")], None, 5.0)
    (other,) = set((tmp_path / "words").iterdir()) - {mine}
    shutil.copy(mine, other)
    (found,) = await store.get_many([b"b"], 5.0)
    assert isinstance(found, StoreError)
    await store.close()


async def test_a_folder_that_rests_is_not_read_again_and_one_that_changes_is_at_once(
    store: FileStore, clock: Clock, tmp_path: Path
) -> None:
    """By anybody, and in whatever way; and what has ended ends all the same."""
    folder, other = tmp_path / "words", FileStore(tmp_path / "words", lambda: clock.now)
    await store.put_many([(b"a", b"1"), (b"b", b"2")], 60.0, 5.0)

    def rest() -> None:
        long_ago = os.stat(folder).st_mtime - RESTING_SECONDS - 1.0
        os.utime(folder, (long_ago, long_ago))

    rest()
    assert await store.get_many([b"a", b"c"], 5.0) == [b"1", None]
    for path in folder.iterdir():
        path.write_bytes(b"what nobody reads")
    assert await store.get_many([b"a", b"c"], 5.0) == [b"1", None]
    await other.put_many([(b"a", b"3"), (b"c", b"4")], 60.0, 5.0)
    assert await store.get_many([b"a", b"c"], 5.0) == [b"3", b"4"]
    rest()
    assert await store.get_many([b"a", b"c"], 5.0) == [b"3", b"4"]
    await other.delete_many([b"c"], 5.0)
    assert await store.get_many([b"a", b"c"], 5.0) == [b"3", None]
    rest()
    assert await store.get_many([b"a"], 5.0) == [b"3"]
    clock.now += 60.0
    assert await store.get_many([b"a"], 5.0) == [None]
    shutil.rmtree(folder)
    assert await store.get_many([b"a"], 5.0) == [None]
    await store.close()
    await other.close()


async def test_who_changes_it_twice_in_one_tick_of_its_clock_is_seen(store: FileStore, tmp_path: Path) -> None:
    folder = tmp_path / "words"
    for number in (b"1", b"2", b"3"):
        await store.put_many([(b"a", number)], None, 5.0)
        os.utime(folder, (2e9, 2e9))  # the same time for all, and not long ago
        assert await store.get_many([b"a"], 5.0) == [number]
    await store.close()


async def test_all_who_ask_in_one_turn_get_their_own(store: FileStore) -> None:
    await store.put_many([(b"%d" % number, b"v%d" % number) for number in range(50)], None, 5.0)
    asked = [store.get_many([b"%d" % number, b"none", b"%d" % (number + 1)], 5.0) for number in range(40)]
    leaving = asyncio.ensure_future(store.get_many([b"0"], 5.0))
    asyncio.get_running_loop().call_soon(leaving.cancel)
    told = await asyncio.gather(*asked, store.get_many([b"7"], 6.0))
    assert told == [*([b"v%d" % at, None, b"v%d" % (at + 1)] for at in range(40)), [b"v7"]]
    await store.close()


async def test_a_folder_that_is_removed_is_made_anew_and_one_that_cannot_be_is_a_word(
    store: FileStore, tmp_path: Path
) -> None:
    await store.put_many([(b"a", b"1")], None, 5.0)
    shutil.rmtree(tmp_path / "words")
    assert await store.get_many([b"a"], 5.0) == [None]
    await store.put_many([(b"a", b"2")], None, 5.0)
    assert await store.get_many([b"a"], 5.0) == [b"2"]
    await store.close()
    (tmp_path / "file").write_bytes(b"")
    barred = FileStore(tmp_path / "file" / "words", lambda: 0.0)
    with pytest.raises(StoreError):
        await barred.put_many([(b"a", b"1")], None, 5.0)
    await barred.close()


async def test_a_disk_that_hangs_costs_its_time_once(store: FileStore) -> None:
    gate = threading.Event()
    with pytest.raises(StoreError, match="timeout"):
        await store._aside(gate.wait, 0.05)
    with pytest.raises(StoreError, match="still at an earlier call"):
        await store.get_many([b"a"], 60.0)
    assert not await store.healthy(60.0)
    gate.set()
    while not await store.healthy(60.0):
        pass
    assert await store.get_many([b"a"], 60.0) == [None]
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.get_many([b"a"], 60.0)


async def test_what_is_for_ever_is_on_the_disk_when_it_was_put(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A purge that was promised holds after a power failure; what is said anew all the time costs no waiting."""
    synced: list[str] = []
    sync = os.fsync

    def told(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", told)
    await store.put_many([(b"a", b"1")], 60.0, 5.0)
    assert synced == []
    await store.put_many([(b"a", b"2"), (b"b", b"3")], None, 5.0)
    assert [len(suffix) > 1 for suffix in synced] == [True, True, False], "both, before they are in their place"
    await store.close()


async def test_two_processes_of_one_number_do_not_write_into_one_anothers_file(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of two containers have; and what one that was killed has left goes, once it is old."""
    folder, other = tmp_path / "words", FileStore(tmp_path / "words", lambda: 0.0)
    named: list[Path] = []
    replace = os.replace

    def told(source: Path, target: Path) -> None:
        named.append(source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", told)
    await store.put_many([(b"a", b"1")], None, 5.0)
    left, new = folder / "x.left", folder / "x.new"
    left.write_bytes(b""), new.write_bytes(b"")
    os.utime(left, (1.0, 1.0))
    await other.put_many([(b"a", b"2")], None, 5.0)
    assert named[0] != named[1]
    assert (left.exists(), new.exists()) == (False, True)
    assert await store.get_many([b"a"], 5.0) == [b"2"]
    await store.close()
    await other.close()


async def test_one_file_that_cannot_be_read_costs_its_own_readers_alone(store: FileStore) -> None:
    """However many are read for at once: a bad sector is one route's."""
    await store.put_many([(b"a", b"1"), (b"b", b"2")], None, 5.0)
    path = store._path(b"a")
    path.unlink()
    path.mkdir()
    (bad,), (good,) = await asyncio.gather(store.get_many([b"a"], 5.0), store.get_many([b"b"], 5.0))
    assert isinstance(bad, StoreError)
    assert bad.kind == "unreachable"
    assert good == b"2"
    await store.close()


async def test_what_cannot_be_swept_keeps_nobody_from_writing(store: FileStore, tmp_path: Path) -> None:
    strange = tmp_path / "words" / "lost+found"
    strange.mkdir(parents=True)
    os.utime(strange, (1.0, 1.0))
    for number in (b"1", b"2"):
        await store.put_many([(b"a", number)], None, 5.0)
        assert await store.get_many([b"a"], 5.0) == [number]
    assert strange.is_dir()
    await store.close()


async def test_its_folder_is_for_our_user_alone(store: FileStore, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        await store.put_many([(b"a", b"1")], None, 5.0)
        assert (tmp_path / "words").stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
        await store.close()
