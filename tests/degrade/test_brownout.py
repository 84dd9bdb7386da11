"""Brownout: up fast, down slowly, never on a moment's peak, and always with a reason."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from degrade.brownout import LEVELS, MARGIN, Brownout, BrownoutOptions, Signals, Turned

OPTIONS = BrownoutOptions((0.1, 0.3, 0.5, 0.75), (0.02, 0.1, 0.25, 0.5), (0.25, 0.5, 1.0, 2.0), up=0.2, down=1.0)
STEP = 0.1


class Life:
    def __init__(self) -> None:
        self.machine = Brownout(OPTIONS)
        self.now = 0.0
        self.turns: list[Turned] = []

    def go(self, seconds: float, signals: Signals) -> None:
        for _ in range(round(seconds / STEP)):
            self.now = round(self.now + STEP, 6)
            turned = self.machine.observe(signals, self.now)
            if turned is not None:
                self.turns.append(turned)


@pytest.mark.parametrize("name", ["queue", "shed", "lag"])
def test_each_signal_has_four_thresholds(name: str) -> None:
    for level, threshold in enumerate(getattr(OPTIONS, name), 1):
        for value, expected in ((threshold, level), (threshold * 0.99, level - 1)):
            life = Life()
            life.go(1.0, Signals(**{name: value}))
            assert life.machine.level == expected
            if expected:
                assert [(turn.before, turn.after, turn.reason, turn.value) for turn in life.turns] == [
                    (0, expected, name, value)
                ]


def test_the_highest_signal_decides() -> None:
    life = Life()
    life.go(0.3, Signals(queue=0.1, shed=0.3, lag=0.5))
    assert (life.machine.level, life.turns[0].reason) == (3, "shed")
    life = Life()
    life.go(0.3, Signals(queue=0.3, shed=0.1, lag=0.5))
    assert (life.machine.level, life.turns[0].reason) == (2, "queue"), "of those that ask alike the first is told"


def test_a_moments_peak_changes_nothing() -> None:
    life = Life()
    for _ in range(20):
        life.go(0.2, Signals(queue=1.0))
        life.go(0.1, Signals())
    assert life.turns == []


def test_up_goes_to_what_was_asked_for_all_the_time() -> None:
    life = Life()
    life.go(0.1, Signals(queue=1.0))
    life.go(0.2, Signals(queue=0.3))
    assert life.machine.level == 2
    life.go(0.2, Signals(queue=1.0))
    assert life.machine.level == 2, "what was asked for before says nothing of more"
    life.go(0.1, Signals(queue=1.0))
    assert life.machine.level == 4
    life = Life()
    life.go(0.2, Signals(queue=0.3))
    life.go(0.1, Signals(queue=1.0))
    assert life.machine.level == 2


def test_down_is_a_level_at_a_time_and_within_five_seconds_of_the_end() -> None:
    life = Life()
    life.go(0.3, Signals(queue=1.0))
    ended = life.now
    life.go(10.0, Signals())
    downs = life.turns[1:]
    assert [(turn.before, turn.after, turn.reason) for turn in downs] == [
        (4, 3, "calm"), (3, 2, "calm"), (2, 1, "calm"), (1, 0, "calm"),
    ]  # fmt: skip
    assert all(turn.at - before.at == pytest.approx(OPTIONS.down) for before, turn in pairwise(downs))
    assert downs[-1].at - ended <= 5.0


def test_a_signal_within_the_margin_keeps_the_level() -> None:
    life = Life()
    life.go(0.3, Signals(queue=0.5))
    life.go(10.0, Signals(queue=0.5 * MARGIN + 0.01))
    assert life.machine.level == 3
    life.go(0.9, Signals())
    life.go(0.1, Signals(queue=0.5))
    life.go(0.9, Signals())
    assert life.machine.level == 3
    life.go(0.3, Signals())
    assert life.machine.level == 2


def test_a_moments_peak_above_the_level_ends_the_calm() -> None:
    life = Life()
    life.go(0.3, Signals(queue=0.5))
    life.go(0.9, Signals())
    life.go(0.1, Signals(queue=1.0))
    life.go(0.9, Signals())
    assert life.machine.level == 3


def test_a_number_that_is_none_asks_for_nothing() -> None:
    life = Life()
    life.go(2.0, Signals(queue=float("nan"), lag=float("nan")))
    assert life.machine.level == 0


@pytest.mark.parametrize("seed", range(10))
def test_whatever_comes_levels_stay_in_range_and_turns_join(seed: int) -> None:
    chance, life = random.Random(seed), Life()
    for _ in range(300):
        life.go(chance.choice((0.1, 0.3, 1.2)), Signals(chance.random() ** 3, chance.random() ** 4, chance.random()))
        assert 0 <= life.machine.level <= LEVELS
    levels = [0, *[turn.after for turn in life.turns]]
    assert [turn.before for turn in life.turns] == levels[:-1]
    assert all(turn.after > turn.before or turn.after == turn.before - 1 for turn in life.turns)
    assert life.turns


def test_options_have_a_threshold_for_each_level() -> None:
    with pytest.raises(ValueError, match="each of 4 levels"):
        BrownoutOptions((0.1,), (0.1,), (0.1,), 1.0, 1.0)
