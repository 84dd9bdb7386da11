"""The benchmark's scenarios are data that fit together, and its questions have one right answer each."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.asking import REFUSED, TRACE
from benchmarks.peers import upstream
from benchmarks.peers.start import START, Setting, buffer_kibibytes, fill, nginx_values, tailrace_config
from benchmarks.peers.upstream import FACTS, HERE, Upstream, records
from benchmarks.questions import ANSWER_VALUES, DIGITS, SEEDS_MAX, question, wire
from benchmarks.scenarios import (
    CACHING,
    LARGE,
    MEDIUM,
    MODEL,
    QUOTA_RATE,
    SCENARIOS,
    SMALL,
    TITLES,
    Expect,
    Kind,
    UnknownScenario,
    expectation,
    select,
)
from gateway.sources import load


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_scenarios_name_what_exists(scenario) -> None:
    assert scenario.name.startswith(scenario.kind.value)
    assert scenario.peers[0].startswith("tailrace")
    assert len(set(scenario.peers)) == len(scenario.peers)
    assert set(scenario.peers) <= set(START)
    assert set(scenario.peers) <= set(TITLES)
    assert not {"triton", "static"} & {*scenario.peers} - {scenario.upstream}  # who is asked directly is there
    assert scenario.kind is not Kind.QUOTA or set(scenario.peers) <= set(REFUSED)


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
        (["hit"], ["hit-0.4k", "hit-0.4k-crowd", "hit-16k", "hit-150k"]),
        (["unique", "hit-16k"], ["hit-16k", "unique-static-0.4k", "unique-0.4k"]),
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
            expected = expectation(kind, peer)
            repeats = kind in (Kind.HIT, Kind.HEADS, Kind.QUOTA)
            assert (expected is Expect.HITS) == (repeats and peer in CACHING)
            assert (expected is Expect.FRESH) == (kind is Kind.MIXED and peer in CACHING)


@pytest.mark.parametrize("fields", ["", TRACE])
def test_the_places_that_change_are_where_the_client_is_told(fields: str) -> None:
    asked = question(SMALL, 3, serial=0x123456)
    sent = wire(asked, MODEL, 8080, fields)
    head, _, body = sent.text.partition(b"\r\n\r\n")
    assert body == asked.body
    assert f"Content-Length: {len(body)}".encode() in head
    assert sent.text[sent.serial_at :][:3] == bytes([0x56, 0x34, 0x12])
    assert sent.text[sent.serial_at :][: len(asked.answer)] == asked.answer
    assert (sent.digits_at < 0) == (fields == "")
    assert not fields or sent.text[sent.digits_at :].startswith(b"00000000-00f0")
    with pytest.raises(ValueError, match="one changing number"):
        wire(asked, DIGITS, 8080, f"x: {DIGITS}\r\n")


def test_facts_of_the_static_upstream_are_what_its_program_reads() -> None:
    rest, found = records(FACTS), {}
    while rest:
        line, _, rest = rest.partition(b"\n")
        name, length = line.decode().split(" ")
        found[name], rest = json.loads(rest[: int(length)]), rest[int(length) + 1 :]
    assert found == FACTS
    assert found["answer"] == upstream.ANSWER


@pytest.mark.parametrize(("body", "kibibytes"), [(0, 4), (400, 4), (2048, 4), (2049, 8), (16_600, 32), (150_700, 256)])
def test_buffers_hold_the_body(body: int, kibibytes: int) -> None:
    assert buffer_kibibytes(body) == kibibytes


SETTING = Setting(Upstream(8000, 0), 400)


@pytest.mark.parametrize("template", sorted(path.name for path in HERE.glob("nginx_*.conf")))
def test_nginx_is_no_strawman(template: str) -> None:
    text = fill(template, nginx_values(SETTING, "/directory", 8080, limited=False))
    assert "@" not in text
    for line in ("access_log off;", "worker_processes 1;", "keepalive_requests 1000000000;", "proxy_http_version 1.1;"):
        assert line in text
    assert "limit_req_zone" not in text


def test_nginx_has_the_quota_of_tailrace() -> None:
    text = fill("nginx_cache.conf", nginx_values(SETTING, "/directory", 8080, limited=True))
    assert f"rate={QUOTA_RATE}r/s;" in text
    assert f"burst={QUOTA_RATE} nodelay; limit_req_status 429;" in text


@pytest.mark.parametrize("caches", [True, False])
def test_tailrace_has_all_lanes_on(caches: bool, tmp_path: Path) -> None:
    path = tmp_path / "tailrace.toml"
    path.write_text(tailrace_config(SETTING, caches=caches, rate=5))
    route = load(str(path), {}).routes[MODEL]
    assert route.caller_quota is not None
    assert (route.caller_quota.rate, route.caller_quota.hits_count) == (5, True)
    assert (route.cache is not None) == caches
    if route.cache is not None:
        assert route.cache.max_stale > 0  # freshness is judged for every hit


def test_a_template_with_a_name_nobody_knows_fails() -> None:
    with pytest.raises(KeyError):
        fill("haproxy.cfg", {"PORT": "1"})
