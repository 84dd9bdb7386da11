"""The languages example on the real Triton with the real packages: `make test-languages`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from examples.child import group_members
from examples.console import INTERRUPTED
from examples.languages import demonstration
from examples.languages.caller import SCORED, Caller, Refused
from examples.languages.corpus import halves, read
from examples.tritonserver import TritonServer

pytestmark = pytest.mark.timeout(400)  # lingua reads its models, on a machine that may be busy

ROOT = Path(demonstration.__file__).resolve().parents[2]
MODELS = (demonstration.FAST, demonstration.LARGE)


@pytest.fixture(scope="module")
def triton() -> Iterator[TritonServer]:
    server = demonstration.server(demonstration.environment())
    try:
        server.start(demonstration.READY_SECONDS_MAX)
        yield server
    finally:
        server.stop()


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_the_example_shows_what_it_claims_and_stops_everything(capsys: pytest.CaptureFixture[str]) -> None:
    before = children()
    assert demonstration.main() == 0, capsys.readouterr().out
    shown = capsys.readouterr().out
    for words in (
        "lowest at which 98%",
        "of the cascade's answers",
        "cache=hit",
        "reason=partial",
        "kept=",
        "alone being 100",
        "done in",
    ):
        assert words in shown
    assert children() == before


@pytest.mark.parametrize("model", MODELS)
def test_a_row_has_the_same_answer_alone_and_in_a_batch(triton: TritonServer, model: str) -> None:
    texts = [sentence.text for sentence in halves(read())[0][::5]]
    with Caller(triton.http_url) as caller:
        together = caller.ask(model, texts, SCORED)
        for row, text in enumerate(texts):
            alone = caller.ask(model, [text], SCORED)
            assert alone.languages == [together.languages[row]]
            assert np.array_equal(alone.probabilities[0], together.probabilities[row])


@pytest.mark.parametrize("model", MODELS)
def test_text_without_a_letter_is_of_no_language(triton: TritonServer, model: str) -> None:
    with Caller(triton.http_url) as caller:
        said = caller.ask(model, ["", "1234 !?", "\n"], SCORED)
    assert said.languages == ["und"] * 3
    assert not said.probabilities.any()


@pytest.mark.parametrize("model", MODELS)
def test_text_over_several_lines_has_one_language(triton: TritonServer, model: str) -> None:
    with Caller(triton.http_url) as caller:
        assert caller.ask(model, ["Der Zug hat\nzehn Minuten\nVerspätung."]).languages == ["de"]


def test_what_triton_refuses_is_raised(triton: TritonServer) -> None:
    with Caller(triton.http_url) as caller, pytest.raises(Refused, match="no_such_model answered 4"):
        caller.ask("no_such_model", ["text"])


def test_an_interrupted_example_stops_everything() -> None:
    command = [sys.executable, "-u", "-m", "examples.languages"]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    mine = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    assert running.stdout is not None
    assert any("sending batches" in line for line in running.stdout), "it ended before both were up"
    groups = [int(pid) for pid in mine.read_text().split()]
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=30)
    assert running.returncode == INTERRUPTED
    assert len(groups) == 4, "Triton, the gateway, and a guard for each"
    assert [group_members(group) for group in groups] == [{}, {}, {}, {}]
