"""Copies on the disk, before the real Triton: what a restart finds, and what a disk that fails costs.

Every answer holds the row that was asked and the time at which the model computed it, so a wrong or an old one cannot
pass for another.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache.stores.store import StoreError
from degrade.directory import generations, locked, number_of
from degrade.generation import Generation
from degrade.record import Record, name_of, packed, seal, unpacked
from examples.gatewayprocess import ConfigValue, GatewayProcess
from gateway.parcel import unpacked as unpacked_answer
from tests.chaos.proxy import Fault, Proxy

LATE = 60.0
LIVES = int(os.environ.get("LIVES", "8"))
"""`make snapshot-kills` has 200."""
SAMPLE = 25
"""Of all keys that were copied, those that the last gateway is asked for."""
BYTES_MAX = 16 * 2**20
INTERVAL, PASS_SECONDS_MAX = 0.1, 5.0
"""Between two passes, and what one may take on a disk that others use too."""

Start = Callable[..., GatewayProcess]


@pytest.fixture(scope="module")
def breakable(breakable_factory: Callable[..., Any]) -> Any:
    return breakable_factory("stamped")


class Link:
    """The way to a server. Its address stays the same while it is cut: copies of another's answers are not trusted."""

    def __init__(self, url: str) -> None:
        host, _, port = url.rpartition("/")[2].partition(":")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._proxy = Proxy(host, int(port), random.Random(1))
        self._do(self._proxy.__aenter__())
        self.url = f"http://{self._proxy.address}"

    def cut(self, fault: Fault | None) -> None:
        async def switch() -> None:
            self._proxy.switch(fault)

        self._do(switch())

    def close(self) -> None:
        self._do(self._proxy.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LATE)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(LATE)


@pytest.fixture
def link(breakable: Any) -> Iterator[Link]:
    made = Link(breakable.server.http_url)
    yield made
    made.close()


@pytest.fixture
def configured(link: Link, tmp_path: Path) -> Callable[..., Mapping[str, ConfigValue]]:
    """``configured()`` -> a gateway that copies what it answers each 100 ms, to the same directory each time."""

    def made(
        folder: Path | None = None, url: str = "", generations: int = 3, **cache: ConfigValue
    ) -> Mapping[str, ConfigValue]:
        kept: Mapping[str, ConfigValue] = {"ttl": "1h", "max_stale": "1h", **cache}
        route: Mapping[str, ConfigValue] = {
            "tiers": [{"backend": "b", "model": "stamped"}], "cache": kept, "timeout": "5s",
        }  # fmt: skip
        snapshot: Mapping[str, ConfigValue] = {
            "path": str(folder or tmp_path / "snapshot"), "interval": f"{INTERVAL * 1000:.0f}ms",
            "bytes_max": f"{BYTES_MAX // 2**20}MiB", "generations": generations,
        }  # fmt: skip
        return {
            "server": {"grpc": "off", "drain": "2s"},
            "backends": {"b": {"http": [url or link.url]}},
            "snapshot": snapshot,
            "routes": {"r": route},
        }

    return made


@pytest.fixture
def start(gateway_factory: Callable[..., GatewayProcess], configured: Callable[..., Any], link: Link) -> Start:
    """``start()`` -> that gateway, ready. ``away``: its Triton is not to be reached from now on."""

    def started(
        folder: Path | None = None, workers: int = 1, away: bool = False, **how: ConfigValue
    ) -> GatewayProcess:
        link.cut(Fault.REFUSE if away else None)
        return gateway_factory(configured(folder, **how), ["--workers", str(workers)] if workers > 1 else [])

    return started


class Answer:
    """What came of a request for [key, 1]."""

    def __init__(self, status: int, label: str, document: dict[str, Any]) -> None:
        self.status, self.label = status, label
        outputs = {output["name"]: output["data"] for output in document.get("outputs", ())}
        self.row = outputs.get("y")
        self.at = outputs.get("at", [0.0])[0]


def ask(gateway: GatewayProcess, key: int, directives: str = "") -> Answer:
    asked = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [float(key), 1.0]}]}
    headers = {"Cache-Control": directives} if directives else {}
    request = urllib.request.Request(f"{gateway.http_url}/v2/models/r/infer", json.dumps(asked).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=LATE) as answer:
            found = Answer(answer.status, answer.headers["Tailrace-Provenance"], json.load(answer))
    except urllib.error.HTTPError as refused:
        return Answer(refused.code, refused.headers["Tailrace-Provenance"] or "", {})
    assert found.row == [float(key), 1.0], f"{key}: {found.row} ({found.label})"
    return found


def batch(gateway: GatewayProcess, *keys: int) -> tuple[str, list[float]]:
    """What is told of a batch of these keys, and when each row was computed."""
    data = [number for key in keys for number in (float(key), 1.0)]
    asked = {"inputs": [{"name": "x", "shape": [len(keys), 2], "datatype": "FP32", "data": data}]}
    request = urllib.request.Request(f"{gateway.http_url}/v2/models/r/infer", json.dumps(asked).encode())
    with urllib.request.urlopen(request, timeout=LATE) as answer:
        outputs = {output["name"]: output["data"] for output in json.load(answer)["outputs"]}
    assert outputs["y"] == data
    return answer.headers["Tailrace-Provenance"], outputs["at"]


def until(true: Callable[[], bool], why: str) -> None:
    end = time.monotonic() + LATE
    while not true():
        assert time.monotonic() < end, why
        time.sleep(0.05)


def passes(gateway: GatewayProcess) -> float:
    return sum([gateway.metric("tailrace_snapshot_passes_total", outcome=each) for each in ("written", "idle")])


def copied(gateway: GatewayProcess) -> None:
    """Wait until all that has been answered so far is on the disk: a pass that began after it has ended."""
    since = passes(gateway)
    until(lambda: passes(gateway) >= since + 2, "no pass is written")


def watched(gateway: GatewayProcess) -> None:
    """Wait until the models have been looked at often enough, and answers have been copied under that word."""
    with urllib.request.urlopen(f"{gateway.admin_url}/status", timeout=LATE):
        until(lambda: status(gateway)["routes"]["r"]["snapshot"]["state"] == "held", "no word is held")
    copied(gateway)


def status(gateway: GatewayProcess) -> dict[str, Any]:
    with urllib.request.urlopen(f"{gateway.admin_url}/status", timeout=LATE) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def kill(gateway: GatewayProcess) -> None:
    gateway.process.signal(signal.SIGKILL)
    gateway.process.wait(LATE)
    gateway.stop()


def test_a_restart_finds_hits_and_a_reload_takes_them(start: Start, breakable: Any) -> None:
    gateway = start(rows=True)
    first, other = ask(gateway, 1), ask(gateway, 2)
    watched(gateway)
    kill(gateway)
    gateway = start(rows=True)
    watched(gateway)
    again = ask(gateway, 1)
    assert again.label.startswith("cache=hit, reason=snapshot")
    assert again.at == first.at
    assert ask(gateway, 1).label.startswith("cache=hit, reason=fresh")
    label, at = batch(gateway, 2, 1)
    assert label.startswith("cache=hit, reason=snapshot"), "rows are found by themselves, in any batch"
    assert at == [other.at, first.at]
    copied(gateway)
    kill(gateway)
    breakable.reload("stamped")
    reloaded = time.time()
    gateway = start(rows=True)
    watched(gateway)
    anew = ask(gateway, 1)
    assert anew.label.startswith("cache=miss")
    assert anew.at > reloaded


def test_without_triton_copies_are_served_and_say_what_they_are(start: Start) -> None:
    gateway = start()
    first = ask(gateway, 2)
    watched(gateway)
    kill(gateway)
    gateway = start(away=True)
    assert is_ready(gateway), "a balancer must let it answer"
    old = ask(gateway, 2)
    assert (old.status, old.at) == (200, first.at)
    assert "cache=stale" in old.label
    assert "steps=(snapshot), degraded" in old.label
    assert ask(gateway, 3).status == 503
    assert gateway.metric("tailrace_stood_in_total") == gateway.metric("tailrace_stood_in_total", step="snapshot") == 1
    assert gateway.metric("tailrace_snapshot_lookups_total") > 2, "of two requests"
    assert sum(status(gateway)["routes"]["r"]["snapshot"]["lookups"].values()) > 2
    assert ask(gateway, 2, "max-stale=0").status in (200, 503)
    kill(gateway)
    gateway = start(away=True, snapshot="fresh")
    hit = ask(gateway, 2)
    assert (hit.status, hit.at) == (200, first.at)
    assert hit.label.startswith("cache=hit, reason=snapshot")
    assert "degraded" not in hit.label
    assert gateway.metric("tailrace_answers_total", cache="hit", reason="snapshot") == 1
    kill(gateway)
    gateway = start(away=True, snapshot="off")
    assert ask(gateway, 2).status == 503
    kill(gateway)
    gateway = start(url="http://127.0.0.1:9", snapshot="fresh")
    assert not is_ready(gateway), "servers of another address: a rollout with a wrong one must stop"
    other = ask(gateway, 2)
    assert (other.status, other.at) == (200, first.at)
    assert "cache=stale" in other.label
    assert "steps=(snapshot), degraded" in other.label


def is_ready(gateway: GatewayProcess) -> bool:
    try:
        with urllib.request.urlopen(f"{gateway.http_url}/v2/health/ready", timeout=5.0) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code != 503


def test_workers_share_a_snapshot_and_a_purge_reaches_the_disk(start: Start) -> None:
    gateway = start(workers=2)
    for key in range(40):
        ask(gateway, key)
    until(lambda: gateway.metric("tailrace_snapshot_copied_total") >= 40, "not all are copied")
    copied(gateway)
    gateway.stop()
    gateway = start(workers=2, away=True, snapshot="fresh")
    assert {ask(gateway, key).label.split(", ")[0] for key in range(40)} == {"cache=hit"}
    request = urllib.request.Request(f"{gateway.admin_url}/purge?route=r", b"")
    with urllib.request.urlopen(request, timeout=LATE) as answer:
        assert answer.status == 200
    assert {ask(gateway, key).status for key in range(40)} == {503}
    gateway.stop()
    gateway = start(away=True, snapshot="fresh")
    assert {ask(gateway, key).status for key in range(40)} == {503}


class Asking(threading.Thread):
    """A caller of new keys without a pause, and what is sure to be on the disk of what it was answered."""

    def __init__(self, gateway: GatewayProcess, first: int) -> None:
        super().__init__(daemon=True)
        self.answered = first
        self._gateway = gateway
        self._seen: list[tuple[float, int]] = []
        self._began = (0.0, 0.0)  # passes before the first look's end, and when that was

    def run(self) -> None:
        with contextlib.suppress(OSError):  # the gateway is killed
            while ask(self._gateway, self.answered).status == 200:
                self.answered += 1

    def look(self) -> int:
        """Keys below this are copied: a pass that began after they were answered has been written. And so passes must
        come: at least one in an interval and what it may take itself."""
        answered, now = self.answered, time.monotonic()
        count = passes(self._gateway)
        if not self._seen:
            self._began = count, time.monotonic()
        since, began = self._began
        assert count - since + 1 >= (now - began) / (INTERVAL + PASS_SECONDS_MAX), f"{count - since} in {now - began} s"
        self._seen.append((count, answered))
        return max((done for before, done in self._seen if before + 2 <= count), default=0)


class Directory:
    """A snapshot of ``GENERATIONS`` small files, looked at from outside while a gateway has it."""

    GENERATIONS = 8
    BOUND = BYTES_MAX // GENERATIONS

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self._chance = chance

    @property
    def last(self) -> int:
        """The number of the last file, whole or not; 0 if there is none."""
        return max(map(number_of, generations(self.folder)), default=0) if self.folder.exists() else 0

    @property
    def is_renewing(self) -> bool:
        return next(self.folder.glob("*.new"), None) is not None

    def fill(self) -> None:
        """Leave no room in the last file, as another worker would that has much to write."""
        with locked(self.folder, LATE) as ours:
            assert ours
            with closing(Generation(generations(self.folder)[-1], self.BOUND, writable=True)) as generation:
                for size in (100_000, 10_000, 1_000):
                    with contextlib.suppress(StoreError):
                        while True:
                            generation.put([self._filler(size)], time.time())

    def _filler(self, size: int) -> tuple[bytes, bytes]:
        key, now = self._chance.randbytes(16), time.time()
        name = name_of("filler", "", key)
        record = Record("filler", "", key, b"", b"", now, now, self._chance.randbytes(size))
        return name, seal(name, packed(record))

    def keys(self) -> set[int]:
        """Of all answers that are there, each of which must be what its own bytes say that it is."""
        keys = set()
        for path in generations(self.folder):
            if not path.stat().st_size:
                continue  # whoever began it was killed at once
            with closing(Generation(path, self.BOUND)) as generation:
                for name, held in generation.walk():
                    record = unpacked(name, held)
                    assert record is not None, f"{name.hex()} of {path} is not whole"
                    if record.kind == "answer":
                        answer = unpacked_answer("r", record.payload)
                        assert answer is not None
                        row = {each.name: each.data for each in answer.served.response.outputs}["y"]
                        keys.add(int(np.frombuffer(row, np.float32)[0]))
        return keys


def killed_at_its_start(gateway: GatewayProcess, directory: Directory, seconds: float) -> bool:
    """Start it, and kill it, with the process that looks through the files, so long after the last file begins to be
    renewed, or when it is ready if none is; whether one was."""
    before = directory.last
    try:
        gateway.begin()
        end = time.monotonic() + LATE
        while not (renewed := directory.is_renewing or directory.last != before) and not gateway.is_ready:
            assert time.monotonic() < end, "it does not start"
            time.sleep(0.0005)
        time.sleep(seconds)
        gateway.process.signal_group(signal.SIGKILL)
        gateway.process.wait(LATE)
    finally:
        gateway.stop()
    return renewed


def killed_at_a_rotation(gateway: GatewayProcess, directory: Directory, seconds: float) -> None:
    """Kill it so long after it begins a new file, because the last one is full."""
    before = directory.last
    directory.fill()
    end = time.monotonic() + LATE
    while directory.last == before:
        assert time.monotonic() < end, "no new file is begun"
        time.sleep(0.0005)
    time.sleep(seconds)
    kill(gateway)


def test_a_gateway_that_is_killed_at_any_moment_starts_again_with_what_it_had_copied(
    start: Start, configured: Callable[..., Mapping[str, ConfigValue]], tmp_path: Path
) -> None:
    """``LIVES`` lives of one directory, each killed at a moment of its own: while it answers and copies, when the last
    file is full and a new one begins, or at its start, where a small file is written anew. What was answered before a
    pass began that has ended is there, and passes come at their interval: so no more than that is lost."""
    seed = int(os.environ.get("SEED", random.SystemRandom().randrange(2**32)))
    print(f"seed {seed}, {LIVES} lives")
    chance = random.Random(seed)
    directory = Directory(tmp_path / "snapshot", chance)
    sure = lost_most = renewed = 0
    rotated: list[int] = []  # what was sure at each: the files before the last few have gone

    def look_for_what_is_sure(life: int) -> None:
        first = rotated[-5] if len(rotated) >= 5 else 0
        lost = set(range(first, sure)) - directory.keys() if sure else set()
        assert not lost, f"seed {seed}, life {life}: of {sure} there are not {sorted(lost)}"

    for life, end in enumerate(ends(chance)):
        if end == "start":
            gateway = GatewayProcess(configured(generations=Directory.GENERATIONS))
            renewed += killed_at_its_start(gateway, directory, chance.uniform(0.0, 0.01))
            look_for_what_is_sure(life)
            continue
        gateway = start(generations=Directory.GENERATIONS)
        look_for_what_is_sure(life)
        for key in [chance.randrange(sure) for _ in range(5 if sure else 0)]:
            assert ask(gateway, key).status == 200
        empty = gateway.metric("tailrace_snapshot_quarantined_total", reason="empty")
        assert gateway.metric("tailrace_snapshot_quarantined_total") == empty, f"seed {seed}, life {life}"
        assert gateway.metric("tailrace_snapshot_rejected_total") == 0.0, f"seed {seed}, life {life}"
        asking = Asking(gateway, sure)  # what may be lost is asked again
        asking.start()
        until(lambda asking=asking, before=sure: asking.look() > before, "nothing is copied")  # type: ignore[misc]
        if end == "rotation":
            rotated.append(sure)
            sure = asking.look()
            killed_at_a_rotation(gateway, directory, chance.uniform(0.0, 0.02))
        else:
            killed_at = time.monotonic() + chance.uniform(0.0, 0.3)
            while time.monotonic() < killed_at:
                sure = asking.look()
            sure = max(sure, asking.look())
            kill(gateway)
        asking.join(LATE)
        lost_most = max(lost_most, asking.answered - sure)
    gateway = start(away=True, snapshot="fresh", generations=Directory.GENERATIONS)
    look_for_what_is_sure(LIVES)
    known = range(rotated[-5] if len(rotated) >= 5 else 0, sure)
    for key in {*known[-5:], *(chance.choice(known) for _ in range(SAMPLE))}:
        assert ask(gateway, key).label.startswith("cache=hit, reason=snapshot"), f"seed {seed}: {key} of {sure}"
    told = f"{len(rotated)} ended in a rotation and {renewed} in a renewal"
    print(f"{sure} copies; {told}; at most {lost_most} answers of one life not known to be among them")


def ends(chance: random.Random) -> list[str]:
    """How each life ends: of eight, two at a rotation and two at a start."""
    found: list[str] = []
    while len(found) < LIVES:
        found += chance.sample(["answering", "rotation", "answering", "start"], 4)
    return found[:LIVES]


class Disk:
    """A small disk. ``fill`` leaves no room on it; ``bar`` makes it read-only; ``heal`` undoes both.

    It is a file system of its own where this user may mount one. Where not, the process's largest file is bounded
    from outside, or the directory barred, which are refusals by the kernel too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tailrace", str(folder)]
        self.is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        self._is_barred = False
        self._filler = folder / "filler"

    def fill(self, gateway: GatewayProcess | None = None) -> None:
        if not self.is_mounted:
            if gateway is not None:
                resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            return
        with contextlib.suppress(OSError), open(self._filler, "wb", buffering=0) as file:
            for size in (65536, 4096, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    def bar(self) -> None:
        if self.is_mounted:
            # Over itself, for a file system with files open for writing cannot be made read-only in its place.
            subprocess.run(["mount", "--bind", str(self.folder), str(self.folder)], check=True)
            self._is_barred = True
            subprocess.run(["mount", "-o", "remount,bind,ro", str(self.folder)], check=True)
        else:
            assert os.geteuid() != 0, "root writes wherever it likes, and may not mount here: run this as another user"
            for path in (self.folder, *self.folder.rglob("*")):
                path.chmod(0o500 if path.is_dir() else 0o400)

    def heal(self, gateway: GatewayProcess | None = None) -> None:
        if self.is_mounted:
            if self._is_barred:
                subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
                self._is_barred = False
            self._filler.unlink(missing_ok=True)
            return
        for path in (self.folder, *self.folder.rglob("*")):
            path.chmod(0o700)
        if gateway is not None:
            limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(gateway.process.pid, resource.RLIMIT_FSIZE, limit)

    def end(self) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "disk")
    yield made
    made.heal()
    made.end()


def failures(gateway: GatewayProcess) -> float:
    return gateway.metric("tailrace_snapshot_failures_total")


def goes_on(gateway: GatewayProcess, keys: Iterator[int]) -> None:
    """It answers what is new, and what it has, while it fails to copy."""
    since = failures(gateway)

    def fails() -> bool:
        for _ in range(20):  # what is new: else a pass has nothing to write
            key = next(keys)
            assert ask(gateway, key).label.startswith("cache=miss")
            assert ask(gateway, key).label.startswith("cache=hit, reason=fresh")
        return failures(gateway) > since + 1

    until(fails, "nothing fails")
    age = gateway.metric("tailrace_snapshot_age_seconds")
    until(lambda: gateway.metric("tailrace_snapshot_age_seconds") > age, "it is no older")
    assert "snapshot not written" in gateway.log()
    assert "Traceback" not in gateway.log()
    assert gateway.process.returncode is None


def is_well(gateway: GatewayProcess) -> None:
    copied(gateway)
    assert gateway.metric("tailrace_snapshot_age_seconds") < LATE


def test_a_full_disk_stops_copies_and_nothing_else(start: Start, disk: Disk) -> None:
    keys = itertools.count(100)
    disk.fill()
    gateway = start(disk.folder / "snapshot")  # there is no room for so much as a directory
    if not disk.is_mounted:
        disk.fill(gateway)
    goes_on(gateway, keys)
    disk.heal(gateway)
    is_well(gateway)
    disk.fill(gateway)
    goes_on(gateway, keys)
    assert ask(gateway, 100).label.startswith("cache=hit")
    disk.heal(gateway)
    is_well(gateway)
    kill(gateway)
    gateway = start(disk.folder / "snapshot", away=True, snapshot="fresh")
    assert ask(gateway, 100).status == 200


def test_a_disk_that_becomes_read_only_stops_copies_and_nothing_else(start: Start, disk: Disk) -> None:
    keys = itertools.count(200)
    gateway = start(disk.folder / "snapshot")
    ask(gateway, 100)
    copied(gateway)
    disk.bar()
    goes_on(gateway, keys)
    kill(gateway)
    gateway = start(disk.folder / "snapshot", away=True, snapshot="fresh")
    assert ask(gateway, 100).label.startswith("cache=hit, reason=snapshot"), "what is there can be read"
    until(lambda: gateway.metric("tailrace_snapshot_failures_total", kind="refused") > 0, "it says why")
    kill(gateway)
    disk.heal()
    gateway = start(disk.folder / "snapshot")
    is_well(gateway)
    assert ask(gateway, 100).status == 200


def test_a_directory_that_is_removed_is_made_anew(start: Start, tmp_path: Path) -> None:
    gateway = start()
    ask(gateway, 100)
    copied(gateway)
    for _ in range(3):
        shutil.rmtree(tmp_path / "snapshot", ignore_errors=True)
        key = random.randrange(1000, 10**6)
        assert ask(gateway, key).label.startswith("cache=miss")
        assert ask(gateway, 100).label.startswith("cache=hit")
        copied(gateway)
    kill(gateway)
    gateway = start(away=True, snapshot="fresh")
    assert ask(gateway, key).status == 200
    assert "Traceback" not in gateway.log()


def test_damaged_files_are_put_aside_at_the_next_start(start: Start, tmp_path: Path) -> None:
    gateway = start()
    for key in range(20):
        ask(gateway, key)
    copied(gateway)
    kill(gateway)
    (path,) = (tmp_path / "snapshot").glob("*.mdb")
    content = bytearray(path.read_bytes())
    content[4096:] = random.Random(1).randbytes(len(content) - 4096)
    path.write_bytes(content)
    gateway = start()
    assert gateway.metric("tailrace_snapshot_quarantined_total") == 1.0
    assert gateway.metric("tailrace_snapshot_quarantine_files") == 1.0
    assert ask(gateway, 1).label.startswith("cache=miss")
    copied(gateway)
    assert "snapshot put aside" in gateway.log()
    assert len(list((tmp_path / "snapshot" / "quarantine").iterdir())) == 1
