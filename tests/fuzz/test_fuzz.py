"""A short run of the fuzzer in every run of the tests: the seeds, all findings of the past, and a few thousand more."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.fuzz.__main__ import built, changed, tried
from tests.fuzz.targets import TARGETS

SEED = 20_260_131


@pytest.mark.parametrize("codec", sorted(TARGETS))
def test_hostile_bytes_are_a_good_message_or_a_clean_refusal(codec: str) -> None:
    target, words = TARGETS[codec], Counter[str]()
    for data in target.seeds:
        words[tried(target, data, SEED)] += 1
    built(target, 60, words, SEED)
    changed(target, 1500, words, random.Random(SEED))
    assert words["well"] + words["infer"] > 20, words  # some are good, or nothing deep is ever reached
    assert sum(count for word, count in words.items() if word.startswith("refused")) > 100, words
