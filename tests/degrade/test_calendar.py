"""A wall clock that is set back takes no time away from what is on the disk."""

from __future__ import annotations

import random

from degrade.calendar import Calendar


class Clocks:
    monotonic = 50.0
    wall = 1_000_000.0

    def pass_by(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds


def test_it_goes_on_from_what_was_written_however_late_the_wall_says_it_is() -> None:
    clocks = Clocks()
    calendar = Calendar(lambda: clocks.monotonic, lambda: clocks.wall)
    calendar.reach(1_000_500.0)
    assert calendar.now() == 1_000_500.0
    clocks.pass_by(10.0)
    assert calendar.now() == 1_000_510.0
    clocks.wall -= 86_400.0
    clocks.pass_by(5.0)
    assert calendar.now() == 1_000_515.0
    clocks.wall = 1_000_600.0
    assert calendar.now() == 1_000_600.0
    assert calendar.at(clocks.monotonic - 3.0) == 1_000_597.0


def test_it_never_goes_back_and_never_stands() -> None:
    chance = random.Random(8)
    clocks = Clocks()
    calendar = Calendar(lambda: clocks.monotonic, lambda: clocks.wall)
    before = calendar.now()
    for _ in range(2000):
        passed = chance.uniform(0.0, 10.0)
        clocks.monotonic += passed
        clocks.wall += chance.choice((passed, -1000.0, 1000.0, 0.0))
        now = calendar.now()
        assert now >= before + passed - 1e-6
        before = now
