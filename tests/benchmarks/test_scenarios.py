"""The benchmark's scenarios are data that fit together, and its questions have one right answer each."""

from __future__ import annotations

import json
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers.start import HERE, START, buffer_kibibytes, fill
from benchmarks.scenarios import (
    ANSWER_VALUES,
    CACHING,
    LARGE,
    MEDIUM,
    SCENARIOS,
    SEEDS_MAX,
    SMALL,
    TITLES,
    Expect,
    Kind,
    UnknownScenario,
    expectation,
    question,
    select,
)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_scenarios_name_what_exists(scenario) -> None:
    assert scenario.name.startswith(scenario.kind.value)
    assert scenario.peers[0].startswith("tailrace")
    assert len(set(scenario.peers)) == len(scenario.peers)
    assert set(scenario.peers) <= set(START)
    assert set(scenario.peers) <= set(TITLES)


def test_names_are_unique() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)


def test_nginx_is_not_asked_to_keep_a_body_that_its_key_cannot_hold() -> None:
    for scenario in SCENARIOS:
        if "nginx-cache" in scenario.peers:
            assert len(question(scenario.values, 1).body) < 60_000


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ([], [scenario.name for scenario in SCENARIOS]),
        (["hit"], ["hit-0.4k", "hit-16k", "hit-150k"]),
        (["miss", "hit-16k"], ["hit-16k", "miss-0.4k"]),
    ],
)
def test_select(wanted: list[str], found: list[str]) -> None:
    assert [scenario.name for scenario in select(wanted)] == found


def test_select_names_what_there_is() -> None:
    with pytest.raises(UnknownScenario, match=r"'hits'.*hit-0\.4k"):
        select(["hits"])


@pytest.mark.parametrize(
    ("values", "low", "high"), [(SMALL, 350, 450), (MEDIUM, 16_000, 17_000), (LARGE, 150_000, 151_000)]
)
def test_bodies_are_as_large_as_the_names_say(values: int, low: int, high: int) -> None:
    assert low < len(question(values, 1).body) < high


serials = st.integers(0, SEEDS_MAX - 1)


@given(seed=serials, serial=serials)
def test_a_question_is_well_formed_finite_and_answered_by_its_own_values(seed: int, serial: int) -> None:
    asked = question(SMALL, seed, serial)
    head, tensor = json.loads(asked.body[: asked.json_bytes]), asked.body[asked.json_bytes :]
    assert head["inputs"][0]["parameters"]["binary_data_size"] == len(tensor) == 4 * SMALL
    values = struct.unpack(f"<{SMALL}f", tensor)
    assert all(math.isfinite(value) for value in values)
    assert asked.answer == struct.pack(f"<{ANSWER_VALUES}f", *values[:ANSWER_VALUES])


@given(one=st.tuples(serials, serials), other=st.tuples(serials, serials))
def test_other_questions_have_other_answers(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert (question(SMALL, *one).answer == question(SMALL, *other).answer) == (one == other)


@pytest.mark.parametrize(("values", "seed", "serial"), [(9, 0, 0), (64, -1, 0), (64, SEEDS_MAX, 0), (64, 0, SEEDS_MAX)])
def test_a_question_out_of_range_is_refused(values: int, seed: int, serial: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        question(values, seed, serial)


def test_only_a_cache_that_is_asked_again_may_hit() -> None:
    for kind in Kind:
        for peer in START:
            hits = expectation(kind, peer) is Expect.HITS
            assert hits == (kind is Kind.HIT and peer in CACHING)


@pytest.mark.parametrize(("body", "kibibytes"), [(0, 4), (400, 4), (2048, 4), (2049, 8), (16_600, 32), (150_700, 256)])
def test_buffers_hold_the_body(body: int, kibibytes: int) -> None:
    assert buffer_kibibytes(body) == kibibytes


@pytest.mark.parametrize("path", sorted(HERE.glob("nginx_*.conf")), ids=lambda path: path.stem)
def test_nginx_is_no_strawman(path) -> None:
    names = ("DIRECTORY", "PORT", "UPSTREAM_ADDRESS", "BODY_BUFFER", "KEY_BUFFER", "CACHE_BYTES", "MODULES")
    text = fill(path, dict.fromkeys(names, "VALUE"))
    assert "@" not in text
    for line in ("access_log off;", "worker_processes 1;", "keepalive_requests 1000000000;", "proxy_http_version 1.1;"):
        assert line in text


def test_a_template_with_a_name_nobody_knows_fails(tmp_path) -> None:
    path = tmp_path / "some.conf"
    path.write_text("listen @PORT@; root @ROOT@;")
    with pytest.raises(KeyError):
        fill(path, {"PORT": "1"})
