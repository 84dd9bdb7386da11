"""What grows is found, and what only wavers is not taken for it."""

from __future__ import annotations

import random

import pytest

from tests.soak.slope import SAMPLES_MIN, slope

MOMENTS = [float(second) for second in range(240)]


def test_a_line_is_found() -> None:
    found = slope(MOMENTS, [100.0 + 2.0 * moment for moment in MOMENTS])
    assert found.growth == pytest.approx(2.0 * 239)
    assert found.sure == pytest.approx(found.growth)
    assert found.an_hour == pytest.approx(7200.0)
    assert found.mean == pytest.approx(100.0 + 239.0)
    assert found.grows(400.0)
    assert not found.grows(500.0)


def test_what_does_not_change_does_not_grow() -> None:
    found = slope(MOMENTS, [7.0] * len(MOMENTS))
    assert (found.mean, found.growth, found.sure) == (7.0, 0.0, 0.0)
    assert not found.grows(0.0)


def test_what_falls_does_not_grow() -> None:
    assert not slope(MOMENTS, [1000.0 - moment for moment in MOMENTS]).grows(0.0)


@pytest.mark.parametrize("seed", range(20))
def test_a_leak_under_noise_is_found_and_noise_alone_is_not(seed: int) -> None:
    """Noise that lingers, as memory's does: each sample is mostly the one before."""
    chance = random.Random(seed)
    noise, held = [], 0.0
    for _ in MOMENTS:
        held = 0.8 * held + chance.gauss(0.0, 1.0)
        noise.append(500.0 + held)
    assert not slope(MOMENTS, noise).grows(5.0)
    leaking = [value + 0.1 * moment for value, moment in zip(noise, MOMENTS, strict=True)]
    assert slope(MOMENTS, leaking).grows(5.0)


def test_a_sawtooth_is_no_growth() -> None:
    assert not slope(MOMENTS, [float(second % 20) for second in range(240)]).grows(3.0)


def test_too_few_samples() -> None:
    slope(MOMENTS[:SAMPLES_MIN], [1.0] * SAMPLES_MIN)
    with pytest.raises(ValueError, match="too few"):
        slope(MOMENTS[: SAMPLES_MIN - 1], [1.0] * (SAMPLES_MIN - 1))
