"""Copies on the disk, before the real Triton: what a restart finds, and what a disk that fails costs.

Every answer holds the row that was asked and the time at which the model computed it, so a wrong or an old one cannot
pass for another.
"""

from __future__ import annotations

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from degrade.directory import generations
from degrade.generation import Generation
from degrade.record import unpacked
from examples.gatewayprocess import ConfigValue, GatewayProcess
from gateway.parcel import unpacked as unpacked_answer

LATE = 60.0
LIVES = int(os.environ.get("LIVES", "8"))
"""`make snapshot-kills` has 200."""
SAMPLE = 25
"""Of all keys that were copied, those that the last gateway is asked for."""

Start = Callable[..., GatewayProcess]


@pytest.fixture(scope="module")
def breakable(breakable_factory: Callable[..., Any]) -> Any:
    return breakable_factory("stamped")


@pytest.fixture
def start(gateway_factory: Callable[..., GatewayProcess], breakable: Any, tmp_path: Path) -> Start:
    """``start()`` -> a gateway that copies what it answers each 100 ms, to the same directory each time."""

    def started(
        folder: Path | None = None, url: str = "", workers: int = 1, **cache: ConfigValue
    ) -> GatewayProcess:
        kept: Mapping[str, ConfigValue] = {"ttl": "1h", "max_stale": "1h", **cache}
        route: Mapping[str, ConfigValue] = {
            "tiers": [{"backend": "b", "model": "stamped"}], "cache": kept, "timeout": "5s",
        }  # fmt: skip
        config: Mapping[str, ConfigValue] = {
            "server": {"grpc": "off", "drain": "2s"},
            "backends": {"b": {"http": [url or breakable.server.http_url]}},
            "snapshot": {"path": str(folder or tmp_path / "snapshot"), "interval": "100ms", "bytes_max": "16MiB"},
            "routes": {"r": route},
        }
        return gateway_factory(config, ["--workers", str(workers)] if workers > 1 else [])

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
    nowhere = "http://127.0.0.1:9"  # the same route, and a server that never answers
    gateway = start(url=nowhere)
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
    gateway = start(url=nowhere, snapshot="fresh")
    hit = ask(gateway, 2)
    assert (hit.status, hit.at) == (200, first.at)
    assert hit.label.startswith("cache=hit, reason=snapshot")
    assert "degraded" not in hit.label
    assert gateway.metric("tailrace_answers_total", cache="hit", reason="snapshot") == 1
    kill(gateway)
    gateway = start(url=nowhere, snapshot="off")
    assert ask(gateway, 2).status == 503


def test_workers_share_a_snapshot_and_a_purge_reaches_the_disk(start: Start) -> None:
    gateway = start(workers=2)
    for key in range(40):
        ask(gateway, key)
    until(lambda: gateway.metric("tailrace_snapshot_copied_total") >= 40, "not all are copied")
    copied(gateway)
    gateway.stop()
    gateway = start(workers=2, url="http://127.0.0.1:9", snapshot="fresh")
    assert {ask(gateway, key).label.split(", ")[0] for key in range(40)} == {"cache=hit"}
    request = urllib.request.Request(f"{gateway.admin_url}/purge?route=r", b"")
    with urllib.request.urlopen(request, timeout=LATE) as answer:
        assert answer.status == 200
    assert {ask(gateway, key).status for key in range(40)} == {503}
    gateway.stop()
    gateway = start(url="http://127.0.0.1:9", snapshot="fresh")
    assert {ask(gateway, key).status for key in range(40)} == {503}


class Asking(threading.Thread):
    """A caller of new keys without a pause, and what is sure to be on the disk of what it was answered."""

    def __init__(self, gateway: GatewayProcess, first: int) -> None:
        super().__init__(daemon=True)
        self.answered = first
        self._gateway = gateway
        self._seen: list[tuple[float, int]] = []

    def run(self) -> None:
        with contextlib.suppress(OSError):  # the gateway is killed
            while ask(self._gateway, self.answered).status == 200:
                self.answered += 1

    def look(self) -> int:
        """Keys below this are copied: a pass that began after they were answered has been written."""
        answered = self.answered
        count = passes(self._gateway)
        self._seen.append((count, answered))
        return max((done for before, done in self._seen if before + 2 <= count), default=0)


def on_disk(folder: Path) -> set[int]:
    """The keys of all answers that are there, each of which must be what its own bytes say that it is."""
    keys = set()
    for path in generations(folder):
        with closing(Generation(path, 16 * 2**20 // 3)) as generation:
            for name, held in generation.walk():
                record = unpacked(name, held)
                assert record is not None, f"{name.hex()} of {path} is not whole"
                if record.kind == "answer":
                    answer = unpacked_answer("r", record.payload)
                    assert answer is not None
                    row = {each.name: each.data for each in answer.served.response.outputs}["y"]
                    keys.add(int(np.frombuffer(row, np.float32)[0]))
    return keys


def test_a_gateway_that_is_killed_at_any_moment_starts_again_with_what_it_had_copied(
    start: Start, tmp_path: Path
) -> None:
    """``LIVES`` lives of one directory, each killed at a moment of its own while it answers and copies."""
    seed = int(os.environ.get("SEED", random.SystemRandom().randrange(2**32)))
    print(f"seed {seed}, {LIVES} lives")
    chance = random.Random(seed)
    sure = lost_most = 0
    for life in range(LIVES):
        gateway = start()
        lost = set(range(sure)) - on_disk(tmp_path / "snapshot") if life else set()
        assert not lost, f"seed {seed}, life {life}: of {sure} there are not {sorted(lost)}"
        for key in [chance.randrange(sure) for _ in range(5 if sure else 0)]:
            assert ask(gateway, key).status == 200
        assert gateway.metric("tailrace_snapshot_quarantined_total") == 0.0, f"seed {seed}, life {life}"
        assert gateway.metric("tailrace_snapshot_rejected_total") == 0.0, f"seed {seed}, life {life}"
        asking = Asking(gateway, sure)  # what may be lost is asked again
        asking.start()
        until(lambda asking=asking, before=sure: asking.look() > before, "nothing is copied")  # type: ignore[misc]
        end = time.monotonic() + chance.uniform(0.0, 0.3)
        while time.monotonic() < end:
            sure = asking.look()
        sure = max(sure, asking.look())
        kill(gateway)
        asking.join(LATE)
        lost_most = max(lost_most, asking.answered - sure)
    gateway = start(url="http://127.0.0.1:9", snapshot="fresh")
    for key in {*range(max(0, sure - 5), sure), *(chance.randrange(sure) for _ in range(SAMPLE))}:
        assert ask(gateway, key).label.startswith("cache=hit, reason=snapshot"), f"seed {seed}: {key} of {sure}"
    print(f"{sure} copies, at most {lost_most} answers of one life not known to be among them")


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
    gateway = start(disk.folder / "snapshot", url="http://127.0.0.1:9", snapshot="fresh")
    assert ask(gateway, 100).status == 200


def test_a_disk_that_becomes_read_only_stops_copies_and_nothing_else(start: Start, disk: Disk) -> None:
    keys = itertools.count(200)
    gateway = start(disk.folder / "snapshot")
    ask(gateway, 100)
    copied(gateway)
    disk.bar()
    goes_on(gateway, keys)
    kill(gateway)
    gateway = start(disk.folder / "snapshot", url="http://127.0.0.1:9", snapshot="fresh")
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
    gateway = start(url="http://127.0.0.1:9", snapshot="fresh")
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
