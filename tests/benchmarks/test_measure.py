"""What /proc says is read right, also for a process with an unkind name."""

from __future__ import annotations

import os

import pytest

from benchmarks.facts import missing
from benchmarks.measure import Placement, Process, members, placement, processes, proportional_bytes, ticks

STAT = "{pid} ({name}) S 1 7 7 0 -1 4194560 1 2 3 4 1000 200 30 4 20 0 8 0 100 1 2"


@pytest.mark.parametrize("name", ["nginx", "a b", "x) S 9 9", "((("])
def test_ticks_are_own_and_of_ended_children(name: str) -> None:
    assert ticks(STAT.format(pid=7, name=name)) == 1234


def test_proportional_bytes() -> None:
    text = "00400000-7ffe [rollup]\nRss:   9000 kB\nPss:   4321 kB\nPss_Dirty: 1 kB\n"
    assert proportional_bytes(text) == 4321 * 1024
    assert proportional_bytes("") == 0


@pytest.mark.parametrize(
    ("cores", "placed"),
    [
        ([5], Placement((5,), (5,), (5,))),
        ([1, 0], Placement((0,), (1,), (1,))),
        ([0, 1, 2, 3], Placement((0,), (1,), (2, 3))),
    ],
)
def test_placement(cores: list[int], placed: Placement) -> None:
    assert placement(cores) == placed


def test_members_are_a_group_its_session_and_all_descendants() -> None:
    table = [
        Process(10, 1, 10, 10),
        Process(11, 10, 10, 10),
        Process(12, 11, 12, 12),  # left the group
        Process(13, 12, 13, 13),  # and its child
        Process(14, 1, 14, 10),  # an orphan of the session
        Process(20, 1, 20, 20),
        Process(21, 20, 20, 20),
    ]
    assert members(10, table) == {10, 11, 12, 13, 14}
    assert members(20, table) == {20, 21}
    assert members(30, table) == set()


def test_this_process_is_alive() -> None:
    assert os.getpid() in {process.pid for process in processes()}


def test_missing(tmp_path) -> None:
    program = tmp_path / "wrk"
    program.touch(mode=0o755)
    assert missing(["wrk", "nginx"], f":{tmp_path}:") == ["nginx"]
