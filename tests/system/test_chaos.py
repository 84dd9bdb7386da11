"""A minute of chaos in every run of the tests (`make chaos` is ten): whatever is broken, no answer is wrong, hangs, or
does not say what it is, and when nothing is broken any more all is as before."""

from __future__ import annotations

import pytest

from examples.tritonserver import TritonEnvironment
from tests.chaos.__main__ import chaos
from tests.chaos.report import Way, table

SEED = 5
SECONDS = 50.0
"""Of load; the start and the end of all these servers take some 15 more."""


@pytest.mark.timeout(300)
async def test_whatever_breaks_every_answer_is_right_and_says_what_it_is(
    triton_environment: TritonEnvironment, capsys: pytest.CaptureFixture[str]
) -> None:
    run = await chaos(triton_environment, SEED, SECONDS, lambda told: None)
    report = table(run)
    with capsys.disabled():
        print(f"\n{report}")
    assert not run.bad_count, report
    assert not run.faults, report
    counts = run.counts("gateway")
    assert counts["fresh"] > 100
    assert counts["503"] > 0
    stale = sum(count for word, count in counts.items() if word.startswith(("stale", "<", "older")))
    assert stale > 10, report
    touched = {name.partition(" ")[0] for name in run.done}
    assert {"triton", "stub", "redis", "answer", "worker"} <= touched, report
    assert any(count for name, count in run.met.items()), report
    assert run.availability(Way("gateway", again=True)) > run.availability(Way("direct", again=True)), report
