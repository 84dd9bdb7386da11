"""The judge is judged: what is right passes, and each lie that an answer can tell is seen for what it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.chaos.judge import (
    COHERENT_SECONDS,
    DEADLINE_SECONDS,
    SECOND_TTL_SECONDS,
    TTL_SECONDS,
    Answer,
    Board,
    Question,
    judged,
)

NOW = 1_000_000.0
PLAIN = Question("plain", ((4.0, 13.0),))
UNSURE = Question("cascade", ((7.0, 22.0),))
LATE = DEADLINE_SECONDS + 0.1
STALE_STATUS = "Tailrace; hit; ttl=-5"


def document(rows: list[list[float]], age: float = 0.0, who: float = 0.0) -> dict[str, Any]:
    flat = [each for row in rows for each in row]
    outputs = {"y": flat, "at": [NOW - age] * len(rows), "who": [who] * len(rows), "p": [0.5, 0.5] * len(rows)}
    return {"outputs": [{"name": name, "data": data} for name, data in outputs.items()]}


def outcome(question: Question, label: str, told: dict[str, Any], headers: Mapping[str, str] | None = None) -> str:
    fields = {"Tailrace-Provenance": label, "Cache-Status": "Tailrace; fwd=uri-miss"} | dict(headers or {})
    return judged(question, Answer(200, fields, told, NOW, NOW + 0.1), board()).outcome


def board() -> Board:
    made = Board()
    for version, at in ((1, NOW - 100.0), (2, NOW - 50.0), (3, NOW - 0.5)):
        made.write(5, version, at)
        made.acknowledge(5, version, at)
    made.write(5, 4, NOW)  # on its way
    return made


@pytest.mark.parametrize(
    ("label", "age", "headers", "expected"),
    [
        ("cache=miss, reason=absent", 0.0, {}, "fresh"),
        ("cache=bypass", DEADLINE_SECONDS - 0.1, {}, "fresh"),
        ("cache=miss, reason=absent", LATE, {}, "unlabelled"),
        ("cache=miss, reason=partial, kept=1", TTL_SECONDS + 1.0, {}, "fresh"),
        ("cache=miss, reason=partial, kept=1", TTL_SECONDS + LATE, {}, "unlabelled"),
        ("cache=miss, steps=(replica), degraded", 0.0, {}, "unlabelled"),
        ("cache=hit, reason=fresh", TTL_SECONDS, {}, "hit"),
        ("cache=hit, reason=fresh", TTL_SECONDS + LATE, {}, "unlabelled"),
        ("cache=stale, steps=(stale), degraded", 6.0, {"Cache-Status": STALE_STATUS, "Age": "6"}, "stale"),
        ("cache=stale, steps=(stale), degraded, brownout=1", 6.0, {"Cache-Status": STALE_STATUS, "Age": "6"}, "stale"),
        ("cache=miss, reason=absent, brownout=1", 0.0, {}, "fresh"),
        ("cache=hit, reason=snapshot, age=1", TTL_SECONDS, {}, "snapshot"),
        ("cache=hit, reason=snapshot, age=1", TTL_SECONDS + LATE, {}, "unlabelled"),
        ("cache=hit, reason=snapshot, age=1, degraded", TTL_SECONDS, {}, "unlabelled"),
        ("cache=stale, steps=(snapshot), degraded", 6.0, {"Cache-Status": STALE_STATUS, "Age": "6"}, "snapshot"),
        ("cache=stale, steps=(snapshot), degraded", 1.0, {"Cache-Status": "Tailrace; hit", "Age": "1"}, "snapshot"),
        ("cache=stale, steps=(snapshot)", 1.0, {"Cache-Status": "Tailrace; hit", "Age": "1"}, "unlabelled"),
        ("cache=stale, steps=(snapshot), degraded", 60.0, {"Cache-Status": STALE_STATUS, "Age": "6"}, "unlabelled"),
        ("cache=stale, steps=(stale), degraded", 60.0, {"Cache-Status": STALE_STATUS, "Age": "6"}, "unlabelled"),
        ("cache=stale, steps=(stale), degraded", 6.0, {"Cache-Status": STALE_STATUS}, "unlabelled"),
        ("cache=stale, steps=(stale), degraded", 6.0, {"Age": "6"}, "unlabelled"),
        ("cache=stale, steps=(stale)", 6.0, {"Cache-Status": STALE_STATUS, "Age": "6"}, "unlabelled"),
        ("", 0.0, {}, "unlabelled"),
    ],
)
def test_labels(label: str, age: float, headers: Mapping[str, str], expected: str) -> None:
    assert outcome(PLAIN, label, document([[4.0, 13.0]], age), headers) == expected


def test_a_request_that_was_long_on_its_way_may_get_what_is_younger_than_itself() -> None:
    told = document([[4.0, 13.0]], -4.0)
    fields = {"Tailrace-Provenance": "cache=stale, degraded", "Cache-Status": STALE_STATUS, "Age": "2"}
    for late, expected in ((6.0, "stale"), (4.5, "unlabelled")):
        assert judged(PLAIN, Answer(200, fields, told, NOW, NOW + late), board()).outcome == expected


def test_a_second_level_keeps_longer() -> None:
    told = document([[4.0, 13.0]], SECOND_TTL_SECONDS)
    assert outcome(Question("second", PLAIN.rows), "cache=hit, reason=second", told) == "hit"
    assert outcome(PLAIN, "cache=hit, reason=fresh", told) == "unlabelled"


@pytest.mark.parametrize(
    "told",
    [
        document([[4.0, 14.0]]),
        document([[13.0, 4.0]]),
        document([[4.0, 13.0], [4.0, 13.0]]),
        {"outputs": []},
        {"outputs": None},
        {},
        {"outputs": [{"name": "y", "data": [4.0, 13.0]}]},
    ],
)
def test_another_answer_is_wrong_whatever_its_label(told: dict[str, Any]) -> None:
    for label in ("cache=miss", "cache=hit", "cache=stale, steps=(stale), degraded"):
        assert outcome(PLAIN, label, told) == "wrong"


@pytest.mark.parametrize(
    ("label", "headers", "expected"),
    [
        ("cache=miss, steps=(tier), degraded", {}, "fast-only"),
        ("cache=miss", {}, "unlabelled"),
        ("cache=miss, degraded", {}, "unlabelled"),
        ("cache=hit, reason=fresh", {}, "unlabelled"),
        ("cache=stale, steps=(stale), degraded", {"Cache-Status": STALE_STATUS, "Age": "0"}, "unlabelled"),
        ("cache=miss, steps=(tier), degraded", {"Cache-Status": "Tailrace; fwd=miss; stored"}, "unlabelled"),
    ],
)
def test_a_fast_tier_that_was_unsure(label: str, headers: Mapping[str, str], expected: str) -> None:
    assert outcome(UNSURE, label, document([[7.0, 22.0]]), headers) == expected
    assert outcome(UNSURE, "cache=miss", document([[7.0, 22.0]], who=1.0)) == "fresh"


def refused(headers: Mapping[str, str], told: dict[str, Any], status: int = 503) -> str:
    fields = {"Content-Type": "application/problem+json", "Retry-After": "1"} | dict(headers)
    return judged(PLAIN, Answer(status, fields, told, NOW, NOW + 0.1), board()).outcome


def test_refusals() -> None:
    assert refused({}, {"error": "no"}) == "503"
    assert refused({"Retry-After": ""}, {"error": "no", "type": "urn:x:model-failed"}) == "503"
    assert refused({"Retry-After": ""}, {"error": "no", "type": "urn:x:unavailable"}) == "error"
    assert refused({"Content-Type": "text/html"}, {"error": "no"}) == "error"
    assert refused({}, {}) == "error"
    for status in (400, 404, 429, 500, 502, 504):
        assert refused({}, {"error": "no"}, status) == "error"


USER = Question("features", ((5.0, 2.0),))
FRESH = "tables=(user;fresh=1;age=0 item;fresh=1;age=0)"


@pytest.mark.parametrize(
    ("row", "label", "expected"),
    [
        ([5.0, 3.0, 2.0, 15.0], FRESH, "fresh"),
        ([5.0, 4.0, 2.0, 15.0], FRESH, "fresh"),  # not acknowledged yet, and there
        ([5.0, 2.0, 2.0, 15.0], FRESH, "fresh"),  # the newer one is younger than the bound
        ([5.0, 1.0, 2.0, 15.0], FRESH, "unlabelled"),
        ([5.0, 9.0, 2.0, 15.0], FRESH, "wrong"),
        ([6.0, 1.0, 2.0, 15.0], FRESH, "wrong"),
        ([5.0, 3.0, 2.0, 16.0], FRESH, "wrong"),
        ([5.0, 3.0], FRESH, "wrong"),
        ([5.0, 1.0, 2.0, 15.0], "tables=(user;stale=1;age=9 item;fresh=1;age=0), degraded", "stale"),
        ([5.0, 1.0, 2.0, 15.0], "tables=(user;snapshot=1;age=9 item;stale=1;age=3), degraded", "snapshot"),
        ([5.0, 1.0, 2.0, 15.0], "tables=(user;snapshot=1;age=9 item;fresh=1;age=0)", "unlabelled"),
        ([5.0, 1.0, 2.0, 15.0], "tables=(user;stale=1;age=9 item;fresh=1;age=0)", "unlabelled"),
        ([5.0, 3.0, 2.0, 15.0], f"{FRESH}, degraded", "unlabelled"),
        ([0.0, 0.0, 2.0, 15.0], FRESH, "unlabelled"),
        ([0.0, 0.0, 2.0, 15.0], "tables=(user;absent=1;age=0 item;fresh=1;age=0)", "default"),
        ([0.0, 0.0, 2.0, 15.0], "tables=(user;lost=1;age=0 item;fresh=1;age=0)", "unlabelled"),
        ([0.0, 0.0, 2.0, 15.0], "tables=(user;lost=1;age=0 item;fresh=1;age=0), degraded", "default"),
        ([5.0, 3.0, 0.0, 0.0], FRESH, "unlabelled"),
    ],
)  # fmt: skip
def test_features(row: list[float], label: str, expected: str) -> None:
    assert outcome(USER, f"cache=bypass, {label}", document([row])) == expected


def test_the_newest_that_was_acknowledged() -> None:
    made = board()
    ages = (200.0, 100.0, 60.0, 50.0, COHERENT_SECONDS, 0.0)
    assert [made.newest(5, NOW - ago) for ago in ages] == [0, 1, 1, 2, 2, 3]
    assert made.newest(6, NOW) == 0
