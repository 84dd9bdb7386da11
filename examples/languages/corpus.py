"""The sentences of the example: the same sixteen things said in each of sixteen languages, from two words to twenty.

Rule of this file: who draws is an argument, so every run sends the same. It knows no model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

SENTENCES: Final = Path(__file__).with_name("sentences.txt")
ZIPF_EXPONENT: Final = 1.0
"""How uneven repeats are: the second most common sentence is repeated half as often as the first, and so on."""


@dataclass(frozen=True)
class Sentence:
    language: str
    """The language it was written in, by its code of ISO 639-1."""
    text: str


def read(path: Path = SENTENCES) -> tuple[Sentence, ...]:
    """All sentences, language after language; a line ``# de`` stands before those of a language."""
    sentences, language = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            language = line.removeprefix("# ")
        else:
            sentences.append(Sentence(language, line))
    return tuple(sentences)


def halves(sentences: Sequence[Sentence]) -> tuple[tuple[Sentence, ...], tuple[Sentence, ...]]:
    """Every other sentence to choose a threshold with, and the others to measure it on: short and long in both."""
    return tuple(sentences[::2]), tuple(sentences[1::2])


def batch(sentences: Sequence[Sentence], rows: int, chance: random.Random) -> list[Sentence]:
    """So many rows: each sentence once, the rest repeats of a few more than of others, in no order.

    Raises ValueError when there are fewer rows than sentences.
    """
    if rows < len(sentences):
        raise ValueError(f"{rows} rows cannot hold {len(sentences)} sentences")
    ranked = chance.sample(sentences, len(sentences))
    weights = [1 / rank**ZIPF_EXPONENT for rank in range(1, len(ranked) + 1)]
    drawn = [*ranked, *chance.choices(ranked, weights, k=rows - len(ranked))]
    chance.shuffle(drawn)
    return drawn
