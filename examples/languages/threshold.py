"""From what both models say of some sentences: what each threshold would send on, and which one to take.

Rule of this file: arrays in, numbers out. The score is the gateway's own rule ``margin``: the largest probability less
the second largest, in float64. Languages are numbers, places in the models' list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

THRESHOLDS: Final = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

Probabilities = npt.NDArray[np.float32]
"""[sentences, languages]"""
Places = npt.NDArray[np.int64]
"""[sentences]"""


@dataclass(frozen=True)
class Outcome:
    """What a threshold comes to, in sentences."""

    at_least: float
    sentences: int
    sent_on: int
    agreeing: int
    """How many get the language that the large model says."""
    right: int
    """How many get the language that they are written in."""


def outcomes(fast: Probabilities, large: Probabilities, truth: Places) -> list[Outcome]:
    """What each of ``THRESHOLDS`` would have done. Both models were asked about the same sentences."""
    ordered = np.sort(fast.astype(np.float64), axis=1)
    margins = ordered[:, -1] - ordered[:, -2]
    told_large = large.argmax(axis=1)
    found = []
    for at_least in THRESHOLDS:
        accepted = margins >= at_least
        told = np.where(accepted, fast.argmax(axis=1), told_large)
        found.append(
            Outcome(
                at_least=at_least,
                sentences=len(told),
                sent_on=int(np.sum(~accepted)),
                agreeing=int(np.sum(told == told_large)),
                right=int(np.sum(told == truth)),
            )
        )
    return found


def lowest(found: Sequence[Outcome], agreement_min: float) -> Outcome | None:
    """The cheapest of them that agrees with the large model on that share of the sentences; None if none does."""
    enough = [each for each in found if each.agreeing >= agreement_min * each.sentences]
    return min(enough, key=lambda each: each.at_least, default=None)
