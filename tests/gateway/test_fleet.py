"""The numbers of several workers as one: sums never fall, and what cannot be summed keeps its worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from gateway.operate.faults import Order, Rule
from gateway.operate.fleet import Fleet, Totals
from gateway.operate.telemetry import Telemetry
from gateway.reload import TakenInPart
from gateway.sources import ConfigError
from tiers.inference import Provenance

Labels = Mapping[str, str]
Answer = Callable[[web.Request], Awaitable[web.Response]]

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


@asynccontextmanager
async def workers(folder: Path, path: str, answers: Sequence[Answer | None]) -> AsyncIterator[list[str]]:
    """Sockets of workers that answer POST of this path so; None: one that is away."""
    runners = []
    sockets = [str(folder / f"{number}.sock") for number in range(len(answers))]
    for socket, answer in zip(sockets, answers, strict=True):
        if answer is None:
            continue
        app = web.Application()
        app.router.add_post(path, answer)
        runners.append(web.AppRunner(app))
        await runners[-1].setup()
        await web.UnixSite(runners[-1], socket).start()
    try:
        yield sockets
    finally:
        for runner in runners:
            await runner.cleanup()


def saying(told: tuple[int, object]) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response(told[1], status=told[0])

    return answer


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
    async with workers(tmp_path, "/reload", [told and saying(told) for told in answers]) as sockets:
        if error is None:
            await Fleet(sockets).reload()
        else:
            with pytest.raises(error, match="worker"):
                await Fleet(sockets).reload()


async def test_a_worker_that_is_back_goes_on_with_what_is_left_of_an_order(tmp_path: Path) -> None:
    """But stands still, or is killed, only once; and what it was never told, or has refused, is not told later."""
    now = 0.0
    heard: list[tuple[int, Order]] = []
    refusing = False

    def worker(number: int) -> Answer:
        async def answer(request: web.Request) -> web.Response:
            heard.append((number, msgspec.json.decode(await request.read(), type=Order)))
            return web.json_response({}, status=400 if refusing else 200)

        return answer

    async with workers(tmp_path, "/chaos", [worker(0), worker(1), None]) as sockets:
        fleet = Fleet(sockets, ticker=lambda: now)
        assert await fleet.returned(0)
        faults = {"backends.b": Rule(error="broken")}
        given = Order(faults, seconds=60.0, seed=3, clock=5.0, stall=1.0, kill=True)
        assert await fleet.order(given, None) is None
        assert heard in ([(0, given), (1, given)], [(1, given), (0, given)])
        heard.clear()
        now = 20.0
        assert await fleet.order(Order(seconds=600.0), 1) is None
        assert await fleet.returned(0)
        assert not await fleet.returned(2)  # it says that it is ready, and does not answer
        assert heard == [(1, Order(seconds=600.0)), (0, Order(faults, seconds=40.0, seed=3, clock=5.0))]
        refusing = True
        refused = await fleet.order(Order(seconds=700.0), None)
        assert refused is not None
        assert refused[0] == 400
        refusing = False
        heard.clear()
        now = 59.0
        assert await fleet.returned(0)
        assert await fleet.returned(1)
        assert heard == [(0, Order(faults, seconds=1.0, seed=3, clock=5.0)), (1, Order(seconds=561.0))]
        now = 60.0
        assert await fleet.returned(0)
        assert await fleet.returned(2)
        assert len(heard) == 2
