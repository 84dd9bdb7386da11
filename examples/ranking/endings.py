"""How the second act ends: the store is lost, and comes back. What that means differs between a server and a file.

Rule of this file: each function shows one store's loss through answers alone, and raises DemoFailed for an answer that
is not what was said of it.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from examples.console import DemoFailed, say, step
from examples.ranking.asking import WAIT_SECONDS_MAX, Ranked
from examples.ranking.scene import ITEMS, Question, Scene
from examples.redisserver import RedisServer

UNKNOWN: Final = 10
"""Items of a request that nobody has asked for yet."""
COHERENT_WITHIN: Final = "2s"
ALL_FRESH: Final = {"user": {"fresh": 1}, "item": {"fresh": ITEMS}}
ALL_STALE: Final = {"user": {"stale": 1}, "item": {"stale": ITEMS}}
NEAR: Final = 1e-6
"""Scores that differ by less are the same."""


def redis_table(server: RedisServer) -> Mapping[str, str]:
    """What tables in Redis have: rows are held for an hour, because writes are heard of."""
    return {"store": server.url, "ttl": "1h", "coherence": "tracking", "coherent_within": COHERENT_WITHIN}


def file_table(path: Path) -> Mapping[str, str]:
    """What tables in a file have: a file tells nobody of a write, so a row is fresh for its ttl."""
    return {"store": f"lmdb:{path}", "ttl": "1h"}


def redis_is_written_to(scene: Scene, server: RedisServer) -> None:
    """Another client gives the last of the items the first one's picture."""
    question = scene.questions[0]
    before = scene.ranker.well(question.user, question.items)
    first, last = int(before.scores.argmax()), int(before.scores.argmin())
    row = scene.ranking.rows("item")[question.items[first]]
    say(
        scene.console,
        f"item {question.items[last]} is the last of the {ITEMS}; another client gives it the first's picture",
    )
    scene.tell(f"SET item:{question.items[last]} ...")
    with server.client() as client:
        client.set(f"item:{question.items[last]}", row.astype("<f4").tobytes())
    written = time.monotonic()
    asked = 0
    while True:
        asked += 1
        answer = scene.ranker.ask(question.user, question.items)
        if answer.status == http.client.OK and abs(answer.scores[last] - before.scores[first]) < NEAR:
            break
        if time.monotonic() - written > WAIT_SECONDS_MAX:
            raise DemoFailed(f"a write was not seen within {WAIT_SECONDS_MAX:.0f} s")
    seen = time.monotonic() - written
    place = int((answer.scores > answer.scores[last] + NEAR).sum()) + 1
    which = "the next answer has it" if asked == 1 else f"answer number {asked} has it"
    say(
        scene.console,
        f"{which}, {seen * 1000:.1f} ms after Redis acknowledged the write (promised: {COHERENT_WITHIN}), "
        f"and the item is number {place}, as the first was",
    )


def redis_is_lost(scene: Scene, server: RedisServer) -> None:
    """SIGKILL, and a new server with nothing in it."""
    known = scene.questions[0]
    before = scene.ranker.well(known.user, known.items)
    scene.console.rule("Redis is killed")
    server.kill()
    say(scene.console, "SIGKILL. Nobody tells of writes any more, so no row here is called fresh.")
    answer = scene.ranker.until(known.user, known.items, ALL_STALE, "answers from old rows")
    _same(before, answer)
    scene.show(answer, "the same question: the same order, made of rows that are old and labelled so, table by table")
    items = (*known.items[UNKNOWN:], *scene.spare[-UNKNOWN:])
    answer = scene.ranker.ask(known.user, items)
    expect(answer, {"user": {"stale": 1}, "item": {"stale": ITEMS - UNKNOWN, "lost": UNKNOWN}}, "item:default")
    scene.show(
        answer, f"with {UNKNOWN} items never seen before: those count as the mean of the rows seen (default = mean)"
    )
    _refused(scene, known)
    scene.console.rule("Redis starts again")
    with step(scene.console, "starting Redis, which kept nothing, and loading its tables once more"):
        server.start()
        back = time.monotonic()
        scene.load()
    _mended(scene, Question(scene.stranger, items), "Redis was there, loading it included", back)


def file_is_lost(scene: Scene, files: Mapping[str, Path]) -> None:
    """Moved away under the gateway, and again under one that starts."""
    known = scene.questions[0]
    scene.console.rule("The files are moved away")
    for path in files.values():
        path.rename(path.with_suffix(".away"))
    unasked = Question(scene.stranger, (*known.items[UNKNOWN:], *scene.spare[-UNKNOWN:]))
    answer = scene.ranker.ask(unasked.user, unasked.items)
    expect(answer, ALL_FRESH, "")
    scene.show(
        answer,
        f"a user and {UNKNOWN} items never asked for: the gateway has the files open, and reads on",
    )
    say(
        scene.console,
        "So what a file can fail at is to be there when a gateway starts. This one has no old rows either:",
    )
    scene.restart()
    _refused(scene, known)
    path = files["user"]
    path.with_suffix(".away").rename(path)
    say(scene.console, "the users' file is back, the items' is not")
    default = {"user": {"fresh": 1}, "item": {"lost": ITEMS}}
    answer = scene.ranker.until(known.user, known.items, default, "answers without items")
    expect(answer, default, "item:default")
    if np.ptp(answer.scores) > NEAR:
        raise DemoFailed("items without rows have different scores")
    scene.show(answer, "every item has its table's default, so all scores are one and the order stays the caller's")
    scene.console.rule("The files are back")
    path = files["item"]
    path.with_suffix(".away").rename(path)
    _mended(scene, known, "the files were there", time.monotonic())


def _refused(scene: Scene, known: Question) -> None:
    """Whoever has neither an old row nor a default gets a clear 503."""
    answer = scene.ranker.ask(scene.stranger, known.items)
    if answer.status != http.client.SERVICE_UNAVAILABLE:
        raise DemoFailed(f"a user without a row and a default got {answer.status}, expected 503: {answer.told}")
    scene.show(answer, "a user whom nobody has asked for: no old row, and users have no default, so a clear 503")


def _mended(scene: Scene, question: Question, since: str, back: float) -> None:
    """``back``: the monotonic time ``since`` which there could be fresh rows."""
    with step(scene.console, "asking until all rows are fresh"):
        answer = scene.ranker.until(question.user, question.items, ALL_FRESH, "fresh rows")
    seconds = time.monotonic() - back
    expect(answer, ALL_FRESH, "")
    scene.show(answer, f"fresh rows {seconds:.1f} s after {since}; the gateway was not restarted for it")


def _same(before: Ranked, after: Ranked) -> None:
    if not np.allclose(before.scores, after.scores, atol=NEAR):
        raise DemoFailed("old rows gave other scores than the same rows when they were fresh")


def expect(answer: Ranked, rows: Mapping[str, Mapping[str, int]], label: str) -> None:
    """These rows, and this word among the steps (empty: none at all)."""
    steps = answer.told.get("steps", [])
    found = {table: answer.rows(table) for table in rows}
    labelled = label in steps if isinstance(steps, list | tuple) and label else not steps
    if answer.status != http.client.OK or found != rows or not labelled:
        raise DemoFailed(f"expected 200 of {rows} ({label or 'no steps'}), and got {answer.status}: {answer.told}")
