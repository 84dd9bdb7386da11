"""The numbers of several workers as one: sums never fall, and what cannot be summed keeps its worker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gateway.operate.fleet import Fleet, Totals
from gateway.operate.telemetry import Telemetry
from gateway.reload import TakenInPart
from gateway.sources import ConfigError
from tiers.inference import Provenance

Labels = Mapping[str, str]

TAKEN = (200, {"changed": {}})
REFUSED = (422, {"faults": ["no"]})
ODD = (500, {})


def text(hits: int, entries: int, seconds: tuple[float, ...] = ()) -> str:
    """A worker's scrape."""
    telemetry = Telemetry(lambda: 0.0)
    for _ in range(hits):
        telemetry.answered("r", Provenance(cache="hit", reason="fresh"))
    for each in seconds:
        telemetry.responded("r", 200, "hit", each)
    gauge = "# HELP tailrace_cache_entries Kept.\n# TYPE tailrace_cache_entries gauge\ntailrace_cache_entries"
    return f"{telemetry.exposition().decode()}{gauge} {entries}\n"


def value(totals: Totals, told: Mapping[int, str], name: str, **labels: str) -> float:
    return sum(
        sample.value
        for family in totals.families(told)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_counters_and_histograms_are_summed_and_gauges_keep_their_worker() -> None:
    told = {0: text(3, 10, (0.001, 0.2)), 1: text(4, 20, (0.2,))}
    totals = Totals()
    assert value(totals, told, "tailrace_answers_total", cache="hit") == 7
    assert value(totals, told, "tailrace_request_seconds_count") == 3
    assert value(totals, told, "tailrace_request_seconds_bucket", le="0.1") == 1
    assert value(totals, told, "tailrace_request_seconds_bucket", le="+Inf") == 3
    assert value(totals, told, "tailrace_cache_entries", worker="0") == 10
    assert value(totals, told, "tailrace_cache_entries", worker="1") == 20


def test_a_workers_end_takes_nothing_from_the_sums() -> None:
    totals = Totals()
    assert value(totals, {0: text(3, 0), 1: text(4, 0)}, "tailrace_answers_total") == 7
    totals.departed(1)
    assert value(totals, {0: text(3, 0)}, "tailrace_answers_total") == 7
    assert value(totals, {0: text(3, 0), 1: text(2, 0)}, "tailrace_answers_total") == 9


def test_a_worker_that_does_not_answer_counts_with_what_it_said_last() -> None:
    totals = Totals()
    assert value(totals, {0: text(3, 0), 1: text(4, 0)}, "tailrace_answers_total") == 7
    assert value(totals, {0: text(5, 0)}, "tailrace_answers_total") == 9
    assert value(totals, {0: text(5, 0), 1: text(6, 0)}, "tailrace_answers_total") == 11


@given(st.lists(st.tuples(st.sampled_from(["count", "end", "silent"]), st.integers(0, 2)), max_size=20))
def test_whatever_workers_do_the_sum_never_falls_and_is_right_when_all_answer(steps: list[tuple[str, int]]) -> None:
    totals, live, ended, before = Totals(), [0, 0, 0], 0, 0.0
    for step, worker in steps:
        told = {each: text(count, 0) for each, count in enumerate(live)}
        if step == "count":
            live[worker] += 1
        elif step == "end":
            value(totals, told, "tailrace_answers_total")
            totals.departed(worker)
            ended, live[worker] = ended + live[worker], 0
        else:
            del told[worker]
        if step != "silent":
            told = {each: text(count, 0) for each, count in enumerate(live)}
        now = value(totals, told, "tailrace_answers_total")
        assert now >= before
        if step != "silent":
            assert now == ended + sum(live)
        before = now


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ([TAKEN, TAKEN], None),
        ([REFUSED, REFUSED], ConfigError),
        ([TAKEN, REFUSED], TakenInPart),
        ([None, TAKEN], TakenInPart),
        ([None, REFUSED], TakenInPart),  # it may have
        ([ODD, TAKEN], TakenInPart),
    ],
)
async def test_a_reload_says_what_every_worker_made_of_it(
    tmp_path: Path, answers: list[tuple[int, object] | None], error: type[Exception] | None
) -> None:
    runners = []
    sockets = [str(tmp_path / f"{number}.sock") for number in range(len(answers))]
    for path, answer in zip(sockets, answers, strict=True):
        if answer is None:
            continue

        async def reload(_: web.Request, told: tuple[int, object] = answer) -> web.Response:
            return web.json_response(told[1], status=told[0])

        app = web.Application()
        app.router.add_post("/reload", reload)
        runners.append(web.AppRunner(app))
        await runners[-1].setup()
        await web.UnixSite(runners[-1], path).start()
    try:
        if error is None:
            await Fleet(sockets).reload()
        else:
            with pytest.raises(error, match="worker"):
                await Fleet(sockets).reload()
    finally:
        for runner in runners:
            await runner.cleanup()
