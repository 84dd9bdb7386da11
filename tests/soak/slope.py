"""Does a quantity grow? A straight line through what was seen of it, and how sure that line is.

Rule of this file: pure numbers; it knows no process and no clock. Samples that follow each other are alike (a cache
fills, a pool breathes), which makes a line through all of them look surer than it is. So neighbours are averaged into
blocks first, and the line goes through those (batch means; J. Banks et al., "Discrete-Event System Simulation", 11.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from msgspec import Struct

BLOCKS: Final = 12
STUDENT: Final = 1.812
"""The 95 % quantile of Student's t at ``BLOCKS - 2`` degrees of freedom: a growth is claimed with that confidence."""

SAMPLES_MIN: Final = 2 * BLOCKS


class Slope(Struct, frozen=True):
    """``mean`` of a quantity; ``growth``: by how much the line rises from the first moment to the last, and ``sure``:
    by how much at least, with 95 % confidence (less than nothing, if it falls); ``seconds`` between the two."""

    mean: float
    growth: float
    sure: float
    seconds: float

    @property
    def an_hour(self) -> float:
        """The line's rise in an hour, at this rate."""
        return self.growth / self.seconds * 3600.0

    def grows(self, allowed: float) -> bool:
        """Whether it has surely risen by more than ``allowed``."""
        return self.sure > allowed


def slope(moments: Sequence[float], values: Sequence[float]) -> Slope:
    """The line through values at ``moments`` in seconds, which rise. Raises ValueError for too few of them."""
    if len(values) < SAMPLES_MIN or len(moments) != len(values):
        raise ValueError(f"{len(values)} samples are too few for a slope: it takes {SAMPLES_MIN}")
    at = np.array([part.mean() for part in np.array_split(np.asarray(moments, np.float64), BLOCKS)])
    mean = np.array([part.mean() for part in np.array_split(np.asarray(values, np.float64), BLOCKS)])
    seconds = float(moments[-1] - moments[0])
    spread = at - at.mean()
    rate = float(spread @ mean / (spread @ spread))
    off = mean - mean.mean() - rate * spread
    error = math.sqrt(float(off @ off) / (BLOCKS - 2) / float(spread @ spread))
    return Slope(float(mean.mean()), rate * seconds, (rate - STUDENT * error) * seconds, seconds)
