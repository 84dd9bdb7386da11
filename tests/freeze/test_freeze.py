"""A file system that is frozen under a gateway's copies, as every backup of a virtual machine does it.

Apart from `make test`, for it takes a user who may mount and freeze one, and an ext4 in a file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.gatewayprocess import GatewayProcess
from tests.system.test_snapshots import ask, until

LOOK_SECONDS = 0.5
LATE = 5.0
"""Far more than anything here takes, and far less than the freeze."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["truncate", "-s", "64M", image], check=True)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def frozen(folder: Path) -> Iterator[None]:
    subprocess.run(["fsfreeze", "--freeze", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", folder], check=True)


def seconds(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def missed(gateway: GatewayProcess, key: int) -> None:
    assert ask(gateway, key).label.startswith("cache=miss")
    assert ask(gateway, key).label.startswith("cache=hit, reason=fresh")


def test_a_frozen_file_system_holds_up_one_look_and_nothing_else(
    gateway_factory: Callable[..., GatewayProcess], triton: Any, disk: Path
) -> None:
    route = {"tiers": [{"backend": "b", "model": "echo_fp32"}], "cache": {"ttl": "1h"}}
    snapshot = {"path": str(disk / "snapshot"), "interval": "100ms", "bytes_max": "16MiB"}
    backends = {"b": {"http": [triton.http_url]}}
    gateway = gateway_factory({"backends": backends, "snapshot": snapshot, "routes": {"r": route}})
    missed(gateway, 1)
    until(lambda: gateway.metric("tailrace_snapshot_copied_total") > 1, "nothing is copied")
    with frozen(disk):
        took = [seconds(lambda key=key: missed(gateway, key)) for key in range(10, 30)]  # type: ignore[misc]
        assert max(took) < LATE
        assert sum(each > LOOK_SECONDS for each in took) <= 2, "who looks first waits, and nobody behind him"
        assert gateway.metric("tailrace_snapshot_failures_total", kind="timeout") >= len(took)
        assert gateway.metric("tailrace_snapshot_waiting") > 0
    until(lambda: gateway.metric("tailrace_snapshot_waiting") == 0, "nothing is written again")
    with frozen(disk):
        missed(gateway, 40)
        os.kill(gateway.process.pid, signal.SIGTERM)
        until(lambda: not _answers(gateway), "it does not end")
    gateway.process.wait(LATE)


def _answers(gateway: GatewayProcess) -> bool:
    try:
        ask(gateway, 1)
    except OSError:
        return False
    return True
