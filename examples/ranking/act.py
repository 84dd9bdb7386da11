"""The demo's second act: a ranking route whose features are in tables, and what fetching them costs.

Rule of this file: as of ``examples/demo.py``: every figure is measured in this run, on digits that no training has
seen, and what is said to happen is checked. How long fetching takes is read from the gateway's own metrics, for no
caller can see it; how many rows the model computed from Triton's.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.console import DemoFailed, say, step
from examples.digits.repository import Ranking
from examples.digits.towers import likeness, ndcg
from examples.gatewayprocess import GatewayProcess
from examples.ranking.asking import KEPT, LIVE, MODEL, POLL_SECONDS, TABLES, WAIT_SECONDS_MAX
from examples.ranking.endings import (
    NEAR,
    file_is_lost,
    file_table,
    redis_is_lost,
    redis_is_written_to,
    redis_table,
)
from examples.ranking.scene import ITEMS, Question, Scene
from examples.redisserver import RedisServer
from examples.tritonserver import TritonServer

NEW: Final = 20
"""Items of a request whose others are known."""
TRIES_MAX: Final = 20
BETTER: Final = 2.0
"""How many times the NDCG of a random order the model's must have, or this is no ranking."""


@dataclass
class Measured:
    """Seconds, one for each question; NDCG@10 likewise."""

    cold_fetch: list[float] = field(default_factory=list)
    warm_fetch: list[float] = field(default_factory=list)
    cold: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    as_sent: list[float] = field(default_factory=list)
    by_likeness: list[float] = field(default_factory=list)
    ranked: list[float] = field(default_factory=list)


def act(stack: ExitStack, console: Console, triton: TritonServer, ranking: Ranking, redis: bool) -> GatewayProcess:
    """Play it, and return its gateway, which runs until the stack is closed; so does its store."""
    where = "Redis" if redis else "an LMDB file"
    console.rule(f"Second act: a ranking, its features in {where}")
    say(
        console,
        f"A user has one digit and wants more like it; {ITEMS} of {len(ranking.items)} others are to be put in order.",
    )
    say(
        console,
        "Callers send ids. The gateway fetches 64 numbers for each, and asks the model (two towers) with those.",
    )
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tailrace-ranking-")))
    server = _redis(stack, console) if redis else None
    files = {name: folder / f"{name}.lmdb" for name in TABLES}
    tables = {name: file_table(path) if server is None else redis_table(server) for name, path in files.items()}
    scene = Scene(console, triton.http_url, ranking, folder, tables)
    with step(console, f"loading both tables into {where}"):
        scene.load()
    with step(console, "starting a gateway with these tables"):
        stack.enter_context(scene)
    if server is not None:
        with step(console, "waiting until it hears of writes"):
            _await_listening(scene)
    measured = measure(scene)
    console.print(table(measured, where))
    _rows_are_kept(scene, triton)
    if server is None:
        say(
            console,
            "a file tells nobody of a write: it is seen when the row's ttl is over; with --redis it is seen at once",
        )
        file_is_lost(scene, files)
    else:
        redis_is_written_to(scene, server)
        redis_is_lost(scene, server)
    return scene.gateway


def measure(scene: Scene) -> Measured:
    """Ask each question with its rows in the store, with its rows here, and twice of the route that keeps answers."""
    measured = Measured()
    ranking, ranker = scene.ranking, scene.ranker
    rows = {name: ranking.rows(name) for name in TABLES}
    *questions, first = scene.questions
    for route in (LIVE, LIVE, KEPT):  # connections and code paths warm up
        ranker.well(first.user, first.items, route)
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = scene.console
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
        for question in progress.track(questions, description=f"a user and {ITEMS} items, rows cold and warm"):
            items = np.array(question.items)
            right = ranking.items[items] == ranking.users[question.user]
            answer = _fetched(scene, question, "store", measured.cold_fetch, measured.cold)
            _fetched(scene, question, "memory", measured.warm_fetch, measured.warm)
            ranker.well(question.user, question.items, KEPT)
            again = ranker.well(question.user, question.items, KEPT)
            if again.told.get("cache") != "hit" or not np.allclose(again.scores, answer, atol=NEAR):
                raise DemoFailed(f"the same question once more was no hit with the same scores: {again.told}")
            measured.again.append(again.seconds)
            measured.as_sent.append(ndcg(-np.arange(ITEMS, dtype=np.float64), right))
            measured.by_likeness.append(ndcg(likeness(rows["user"][[question.user]], rows["item"][items]), right))
            measured.ranked.append(ndcg(answer, right))
    if np.mean(measured.ranked) < BETTER * np.mean(measured.as_sent):
        raise DemoFailed(f"the model's order is hardly better than none: NDCG@10 {np.mean(measured.ranked):.2f}")
    return measured


def table(measured: Measured, where: str) -> Table:
    """The figures, as a person reads them."""
    count = len(measured.ranked)
    shown = Table(title=f"{count} users, {ITEMS} items each, all held out; medians of this run", title_justify="left")
    for heading in ("", "rows cold", "rows warm", "gain"):
        shown.add_column(heading, justify="left" if not heading else "right")
    fetched = _milliseconds(measured.cold_fetch), _milliseconds(measured.warm_fetch)
    whole = _milliseconds(measured.cold), _milliseconds(measured.warm)
    again = _milliseconds(measured.again)
    for name, (cold, warm) in ((f"fetching {ITEMS} items' rows", fetched), ("the whole answer", whole)):
        shown.add_row(name, f"{cold:.2f} ms", f"{warm:.2f} ms", f"{cold / warm:.1f} times")
    shown.add_row("the whole answer, asked again (a hit)", "", f"{again:.2f} ms", f"{whole[0] / again:.1f} times")
    shown.add_section()
    shown.add_row("NDCG@10 of the model's order", f"{np.mean(measured.ranked):.2f}")
    shown.add_row("NDCG@10 by likeness of pixels", f"{np.mean(measured.by_likeness):.2f}")
    shown.add_row("NDCG@10 of a random order", f"{np.mean(measured.as_sent):.2f}")
    shown.caption = (
        f"Cold: from {where}. Warm: held by the gateway. Fetching as the gateway's metrics have it, answers as the "
        "caller does. NDCG@10 is 1 if the first ten are all of the user's digit."
    )
    shown.caption_justify = "left"
    return shown


def _fetched(
    scene: Scene, question: Question, source: str, fetches: list[float], answers: list[float]
) -> np.typing.NDArray[np.float64]:
    """Ask with the items' rows from ``source``, note how long that took, and return the scores.

    A machine that stood still for long may have made doubtful what was held; then it is asked once more.
    """
    for _ in range(TRIES_MAX):
        count, seconds = _lookups(scene.gateway, source)
        answer = scene.ranker.well(question.user, question.items)
        count_after, seconds_after = _lookups(scene.gateway, source)
        if count_after - count == 1:
            fetches.append(seconds_after - seconds)
            answers.append(answer.seconds)
            return answer.scores
    raise DemoFailed(f"the items' rows never came from the {source}")


def _lookups(gateway: GatewayProcess, source: str) -> tuple[float, float]:
    """(how many look-ups of items there were, what they took in seconds)."""
    told = gateway.metrics()
    labels = f'{{source="{source}",table="item"}}'
    return told[f"tailrace_table_lookups_total{labels}"], told[f"tailrace_table_lookup_seconds_total{labels}"]


def _rows_are_kept(scene: Scene, triton: TritonServer) -> None:
    """Most of a ranking's pairs may be known from another: only the others are computed."""
    question = scene.questions[0]
    items = (*scene.spare[:NEW], *question.items[NEW:][::-1])
    before = triton.statistics(MODEL)
    answer = scene.ranker.well(question.user, items, KEPT)
    computed = (triton.statistics(MODEL) - before).rows
    if computed != NEW:
        raise DemoFailed(f"{NEW} of {ITEMS} pairs were new, and the model computed {computed}")
    if not np.allclose(answer.scores, scene.ranker.well(question.user, items).scores, atol=NEAR):
        raise DemoFailed("rows that were kept gave other scores than the model")
    scene.show(
        answer,
        f"the same user, {ITEMS - NEW} items of before, in another order, and {NEW} new: the model computed {computed}",
    )


def _await_listening(scene: Scene) -> None:
    """Until both tables' changes are heard of: what is fetched before that is not called fresh."""
    end = time.monotonic() + WAIT_SECONDS_MAX
    while not all(scene.gateway.metric("tailrace_table_live", table=name) == 1 for name in TABLES):
        if time.monotonic() > end:
            raise DemoFailed(f"the gateway does not hear of writes to Redis within {WAIT_SECONDS_MAX:.0f} s")
        time.sleep(POLL_SECONDS)


def _redis(stack: ExitStack, console: Console) -> RedisServer:
    with step(console, "starting Redis"):
        server = stack.enter_context(RedisServer())
    say(console, f"Redis at {server.address}")
    return server


def _milliseconds(seconds: list[float]) -> float:
    return float(np.median(seconds)) * 1000
