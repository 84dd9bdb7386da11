"""What the overload benchmark makes of what it saw."""

from __future__ import annotations

import math
import random

from benchmarks.overload.load import Asked, Stream, moments
from benchmarks.overload.report import line, quantile, recovered, table


def asked(seconds: float, outcome: str = "ok", stream: str = "vip", at: float = 0.0) -> Asked:
    return Asked(stream, at, seconds, outcome)


def test_a_line_counts_what_was_in_time_and_judges_those_who_were_to_be_spared() -> None:
    told = [asked(0.1), asked(0.2), asked(9.0, "late"), asked(0.3, stream="ann"), asked(0.0, "shed", "ann")]
    found = line("gateway", "8 times", told, 2.0, ("vip",))
    assert (found.goodput, found.p50, found.answered) == (1.5, 0.2, 2 / 3)
    assert math.isinf(found.p99)
    assert found.outcomes == {"ok": 3, "late": 1, "shed": 1}


def test_who_had_no_answer_waited_for_ever() -> None:
    told = [asked(0.1) for _ in range(99)] + [asked(0.5, "shed")]
    assert quantile(told, 0.99) == 0.1
    assert math.isinf(quantile([*told, asked(0.5, "late")], 0.99))
    assert math.isnan(quantile([], 0.5))


def test_recovery_is_the_first_of_five_usual_answers_in_a_row() -> None:
    told = [asked(5.0 if at < 3 or at == 5 else 0.1, at=float(at)) for at in range(20)]
    assert recovered(told, 0.1) == 6.0
    assert math.isinf(recovered(told[:8], 0.1))
    assert recovered([asked(0.1, at=float(at)) for at in range(5)], 0.1) == 0.0


def test_the_table_says_what_never_came() -> None:
    found = [line("gateway", "8 times", [asked(1.0, "late")], 1.0, ("vip",))]
    text = table(found, {"gateway": 10.0}, {"gateway": 0.1})
    assert "| 8 times | gateway | 0.0 | 0% | ∞ | ∞ | ∞ | 0.0% | 0 | 1 |  |" in text


def test_callers_come_by_themselves_at_their_rate() -> None:
    found = moments(Stream("x", 50.0), 100.0, random.Random(1))
    assert 4500 < len(found) < 5500
    assert found == sorted(found)
    assert found[-1] < 100.0
