"""What is counted comes out as Prometheus reads it, and the sums are right."""

from __future__ import annotations

from time import monotonic

import pytest
from prometheus_client.parser import text_string_to_metric_families

from degrade.ladder import Failure, Step
from gateway.operate.gauges import gauges
from gateway.operate.telemetry import LATENCY_BUCKETS_SECONDS, Gauge, Telemetry
from tiers.cascade import CascadeAnswer, Share
from tiers.inference import InferResponse, Passed, Provenance

Labels = dict[str, str]


def scraped(telemetry: Telemetry) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = telemetry.exposition().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def one(telemetry: Telemetry, name: str, **labels: str) -> float:
    return scraped(telemetry)[name, frozenset(labels.items())]


def test_an_empty_exposition_parses() -> None:
    assert scraped(Telemetry(monotonic)) == {}


def test_answers_are_counted_by_the_words_of_the_decision() -> None:
    telemetry = Telemetry(monotonic)
    for cache, reason, collapsed in (("miss", "absent", False), ("miss", "absent", True), ("hit", "fresh", False)):
        telemetry.answered("r", Provenance(cache=cache, reason=reason, collapsed=collapsed))
    assert one(telemetry, "tailrace_answers_total", route="r", cache="miss", reason="absent") == 2
    assert one(telemetry, "tailrace_answers_total", route="r", cache="hit", reason="fresh") == 1
    assert one(telemetry, "tailrace_collapsed_total", route="r") == 1


@pytest.mark.parametrize(
    ("steps", "counted"),
    [
        (("stale",), "stale"),
        (("tier",), "tier"),
        (("tier", "replica"), "tier"),
        (("user:stale", "tier", "snapshot"), "snapshot"),
        (("user:default", "replica"), "user:default"),
        (("replica",), ""),
        ((), ""),
    ],
)
def test_an_answer_in_which_something_stood_in_is_counted_once(steps: tuple[str, ...], counted: str) -> None:
    telemetry = Telemetry(monotonic)
    telemetry.answered("r", Provenance(steps=steps, degraded=True))
    told = {labels: count for (name, labels), count in scraped(telemetry).items() if name == "tailrace_stood_in_total"}
    assert told == ({frozenset({"route": "r", "step": counted}.items()): 1.0} if counted else {})


def test_fills_count_rows_by_tier_and_steps() -> None:
    telemetry = Telemetry(monotonic)
    passed = (
        Passed(Step.REPLICA, Failure.UNREACHABLE, "nobody at a"),
        Passed(Step.TIER, Failure.RAISED, "told to"),
    )
    shares = (Share(0, "small", "1", range(3, 8)), Share(1, "large", "1", range(3)))
    answer = CascadeAnswer(InferResponse("m", "1", ()), 8, shares, passed, degraded=True)
    telemetry.filled("r", answer)
    telemetry.filled("r", answer)
    assert one(telemetry, "tailrace_fills_total", route="r") == 2
    assert one(telemetry, "tailrace_tier_rows_total", route="r", tier="large") == 6
    assert one(telemetry, "tailrace_tier_rows_total", route="r", tier="small") == 10
    assert one(telemetry, "tailrace_rows_escalated_total", route="r") == 6
    assert one(telemetry, "tailrace_degraded_total", route="r", failure="raised", step="tier") == 2
    assert one(telemetry, "tailrace_degraded_total", route="r", failure="unreachable", step="replica") == 2


def test_refusals_ladder_steps_and_failed_refreshes_are_counted() -> None:
    telemetry = Telemetry(monotonic)
    telemetry.refused("r", "quota")
    telemetry.degraded("r", "timeout", "stale", "told to")
    telemetry.refresh_failed("r", "told to")
    assert one(telemetry, "tailrace_refusals_total", route="r", problem="quota") == 1
    assert one(telemetry, "tailrace_degraded_total", route="r", failure="timeout", step="stale") == 1
    assert one(telemetry, "tailrace_refresh_failures_total", route="r") == 1


@pytest.mark.parametrize("seconds", [0.0, 0.0001, 0.00011, 0.3, 10.0, 10.1])
@pytest.mark.parametrize("recalled", [False, True])
def test_a_latency_is_in_every_bucket_that_is_not_below_it(seconds: float, recalled: bool) -> None:
    telemetry = Telemetry(monotonic)
    if recalled:
        telemetry.recalled("r", seconds)
        assert one(telemetry, "tailrace_answers_total", route="r", cache="hit", reason="fresh") == 1
    else:
        telemetry.responded("r", 200, "hit", seconds)
    for bound in LATENCY_BUCKETS_SECONDS:
        expected = 1.0 if seconds <= bound else 0.0
        found = one(telemetry, "tailrace_request_seconds_bucket", route="r", state="hit", le=str(bound))
        assert found == expected, bound
    assert one(telemetry, "tailrace_request_seconds_bucket", route="r", state="hit", le="+Inf") == 1
    assert one(telemetry, "tailrace_request_seconds_count", route="r", state="hit") == 1
    assert one(telemetry, "tailrace_request_seconds_sum", route="r", state="hit") == pytest.approx(seconds)
    assert one(telemetry, "tailrace_responses_total", route="r", status="200") == 1


def test_hits_by_their_bytes_are_added_to_those_that_were_decoded() -> None:
    telemetry = Telemetry(monotonic)
    for seconds in (0.00001, 0.3):
        telemetry.recalled("r", seconds)
    telemetry.answered("r", Provenance(cache="hit", reason="fresh"))
    telemetry.responded("r", 200, "hit", 0.0002)
    telemetry.responded("r", 429, "problem", 0.0002)
    for _ in range(2):  # a scrape changes nothing
        assert one(telemetry, "tailrace_answers_total", route="r", cache="hit", reason="fresh") == 3
        assert one(telemetry, "tailrace_responses_total", route="r", status="200") == 3
        assert one(telemetry, "tailrace_responses_total", route="r", status="429") == 1
        assert one(telemetry, "tailrace_request_seconds_count", route="r", state="hit") == 3
        assert one(telemetry, "tailrace_request_seconds_bucket", route="r", state="hit", le="0.0001") == 1
        assert one(telemetry, "tailrace_request_seconds_bucket", route="r", state="hit", le="0.00025") == 2
        assert one(telemetry, "tailrace_request_seconds_sum", route="r", state="hit") == pytest.approx(0.30021)


def test_label_values_of_any_kind_survive_the_format() -> None:
    telemetry = Telemetry(monotonic)
    name = 'a"b\\c\nd é'
    telemetry.refused(name, "quota")
    assert one(telemetry, "tailrace_refusals_total", route=name, problem="quota") == 1


def test_watched_numbers_are_read_at_each_scrape() -> None:
    telemetry, value = Telemetry(monotonic), [1.0]
    telemetry.watch(Gauge("tailrace_thing", "A thing.", ("route",), lambda: [(("r",), value[0])]))
    telemetry.watch(Gauge("tailrace_count", "A count.", (), lambda: [((), 5.0)], counter=True))
    assert one(telemetry, "tailrace_thing", route="r") == 1.0
    value[0] = 2.0
    assert one(telemetry, "tailrace_thing", route="r") == 2.0
    assert one(telemetry, "tailrace_count_total") == 5.0


async def test_every_gauge_of_an_empty_gateway_parses_and_has_a_name_of_its_own() -> None:
    telemetry = Telemetry(monotonic)
    made = list(gauges(dict, dict, lambda: True))
    for gauge in made:
        telemetry.watch(gauge)
    assert len({gauge.name for gauge in made}) == len(made)
    assert one(telemetry, "tailrace_draining") == 1.0
