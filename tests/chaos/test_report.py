"""What a run comes to is counted as is said."""

from __future__ import annotations

from tests.chaos.judge import Verdict
from tests.chaos.load import LATE_SECONDS, Seen
from tests.chaos.report import Run, Way, column, table


def seen(outcome: str, whose: str = "gateway", at: float = 0.5, seconds: float = 0.1, age: float = 0.0) -> Seen:
    return Seen(whose, "plain", False, Verdict(outcome, age), seconds, at + seconds)


def run(*requests: Seen) -> Run:
    return Run(1, 10.0, requests, {}, (), {}, 0, 0.0, (), ())


def test_every_second_counts_alike_however_often_somebody_asked_in_it() -> None:
    asked = [seen("503", at=1.0 + number / 200) for number in range(100)] + [seen("fresh", at=2.5)]
    assert run(*asked).availability(Way("gateway")) == 0.5
    assert run(seen("fresh"), seen("503")).availability(Way("gateway")) == 0.5
    assert run(seen("fresh", seconds=LATE_SECONDS)).availability(Way("gateway")) == 1.0
    assert run(seen("fresh", seconds=LATE_SECONDS + 0.1)).availability(Way("gateway")) == 0.0
    assert run().availability(Way("gateway")) == 0.0


def test_who_waits_in_vain_does_so_in_every_second_of_it() -> None:
    """One second in which it was answered, and three in which nobody asked anew, for all waited."""
    made = run(seen("fresh", at=0.2), seen("failed", at=1.1, seconds=2.5))
    assert made.availability(Way("gateway")) == 0.25


def test_whoever_asked_is_counted_by_himself() -> None:
    made = run(seen("fresh"), seen("failed", "direct"), seen("wrong", "link"), seen("hung"))
    assert made.availability(Way("direct")) == 0.0
    assert made.bad_count == 2
    assert made.counts("gateway") == {"fresh": 1, "hung": 1}
    assert "NOT well" in table(made)
    assert table(run(seen("fresh"))).endswith(": well")


def test_what_is_stale_is_told_by_its_age() -> None:
    ages = {1.0: "stale <2s", 9.0: "<10s", 59.0: "<60s", 4000.0: "older"}
    assert {age: column(seen("stale", age=age)) for age in ages} == ages
    assert column(seen("default")) == "default"
