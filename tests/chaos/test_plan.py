"""A seed is a whole run."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.chaos.plan import LANES, WARM_SECONDS, deck, plan


@pytest.mark.parametrize("seconds", [50.0, 600.0])
def test_a_seed_replays_and_another_does_not(seconds: float) -> None:
    assert plan(1, seconds) == plan(1, seconds) != plan(2, seconds)


@pytest.mark.parametrize("seed", range(30))
def test_within_a_lane_one_thing_at_a_time(seed: int) -> None:
    for seconds in (50.0, 600.0):
        deeds = plan(seed, seconds)
        assert deeds[0].at == WARM_SECONDS
        for lane in LANES:
            own = [deed for deed in deeds if deed.lane == lane]
            assert all(one.at + one.seconds <= other.at for one, other in pairwise(own))
            assert own[-1].at + own[-1].seconds <= seconds


def test_a_long_run_does_everything() -> None:
    every = {f"{part} {what}" for lane in LANES for some in deck(lane) for part, what in some}
    assert len(every) == 70
    for seed in range(20):
        assert {deed.name for deed in plan(seed, 570.0)} == every


def test_a_short_run_does_everything_to_every_process_and_breaks_a_link_of_each_lane() -> None:
    for seed in range(20):
        done = {(deed.part, deed.what) for deed in plan(seed, 50.0)}
        for lane in LANES:
            musts, links = deck(lane)
            assert len(set(musts) - done) <= 1, (seed, set(musts) - done)
            assert done & set(links)
