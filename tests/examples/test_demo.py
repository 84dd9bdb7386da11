"""The demo runs to its end on few digits, shows what it claims, and leaves nothing running; its second act does so with
either store, and is no success where there is nothing to show."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from examples import demo, tritonserver
from examples.child import group_members
from examples.console import DemoFailed, plain_console
from examples.ranking import endings
from examples.ranking.act import act
from examples.ranking.asking import Ranked

ROOT = Path(demo.__file__).resolve().parents[1]


def children():
    """The processes that this one started and that still live."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_the_demo_shows_what_it_claims_and_stops_everything(digits, capsys):
    before = children()
    assert demo.main(keep=False, digits_max=48) == 0, capsys.readouterr().out
    shown = capsys.readouterr().out
    for words in (
        "second pass answered without Triton",
        "100.0%",
        "cache=hit",
        "cache=stale",
        "HTTP 503 Service Unavailable",
        "fresh answers",
        "tables.item: 3095 rows, 3095 of them written",
        "NDCG@10 of the model's order",
        "kept=180",
        "reads on",
        "the gateway was not restarted for it",
        "--keep",
    ):
        assert words in shown
    assert re.search(r"item;lost=200;age=\d+\), steps=\(item:default\), degraded", shown)
    assert children() == before


def test_the_second_act_with_redis_shows_a_write_and_a_loss(triton, digits, capsys):
    before = children()
    with ExitStack() as stack:
        act(stack, plain_console(), triton, digits.ranking, redis=True)
    shown = capsys.readouterr().out
    for words in (
        "after Redis acknowledged the write",
        "and the item is number 1, as the first was",
        "user;stale=1;",
        "item;stale=200;",
        "steps=(user:stale item:stale), degraded",
        "item;stale=190;lost=10;",
        "Route rank_live has no answer",
        "loading it included",
    ):
        assert words in shown
    assert children() == before


def test_an_order_that_is_no_better_than_chance_is_no_success(triton, digits):
    mixed = np.random.default_rng(1).permutation(digits.ranking.items)
    with ExitStack() as stack, pytest.raises(DemoFailed, match="hardly better than none"):
        act(stack, plain_console(), triton, dataclasses.replace(digits.ranking, items=mixed), redis=False)


def test_rows_or_labels_other_than_those_promised_are_no_success():
    tables = [{"name": "item", "fresh": 0, "stale": 2, "absent": 0, "lost": 0}]
    answer = Ranked(200, np.array([1.0, 2.0]), {"tables": tables, "steps": ["item:stale"]}, "", 0.0)
    endings.expect(answer, {"item": {"stale": 2}}, "item:stale")
    for rows, label in (({"fresh": 2}, "item:stale"), ({"stale": 2}, ""), ({"stale": 2}, "item:default")):
        with pytest.raises(DemoFailed, match="expected 200 of"):
            endings.expect(answer, {"item": rows}, label)
    with pytest.raises(DemoFailed, match="and got 503"):
        endings.expect(dataclasses.replace(answer, status=503), {"item": {"stale": 2}}, "item:stale")


def test_without_redis_the_demo_says_so_before_anything_is_waited_for(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert demo.main(keep=False, redis=True) == 1
    shown = capsys.readouterr().out
    assert "apt-get install redis-server" in shown
    assert "training" not in shown


def test_without_triton_the_demo_says_so_in_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv(tritonserver.ENVIRONMENT_VARIABLE, str(tmp_path))
    assert demo.main(keep=False) == 1
    assert "make triton" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_stops_everything(digits, number):
    program = "import sys; from examples import demo; sys.exit(demo.main(False))"
    command = [sys.executable, "-u", "-c", program]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    mine = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    assert running.stdout is not None
    assert any("Triton at" in line for line in running.stdout), "it ended before both were up"
    groups = [int(pid) for pid in mine.read_text().split()]
    running.send_signal(number)
    running.communicate(timeout=30)
    assert running.returncode == 130
    assert len(groups) == 4, "Triton, the gateway, and a guard for each"
    assert [group_members(group) for group in groups] == [{}, {}, {}, {}]
