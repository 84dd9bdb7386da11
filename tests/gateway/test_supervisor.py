"""How long a worker that keeps ending is left alone."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest
import structlog

from gateway.config import Config
from gateway.notes import Notes
from gateway.operate.fleet import Fleet
from gateway.sources import load
from gateway.supervisor import BACKOFF_SECONDS, BACKOFF_SECONDS_MAX, STEADY_SECONDS, Supervisor, Time, backoff
from gateway.suspects import REFUSED_SECONDS


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(0, 0.0), (1, BACKOFF_SECONDS), (2, 2 * BACKOFF_SECONDS), (4, 8 * BACKOFF_SECONDS), (10**6, BACKOFF_SECONDS_MAX)],
)
def test_each_short_life_doubles_the_pause_up_to_a_bound(failures: int, seconds: float) -> None:
    assert backoff(failures) == seconds


@pytest.mark.parametrize(("code", "refused"), [(0, False), (1, True), (-9, True)])
def test_only_a_death_speaks_against_what_was_in_work(code: int, refused: bool) -> None:
    config: Config = load(None, {"TAILRACE_SERVER__WORKERS": "2"}, ["http://127.0.0.1:9"])
    supervisor = Supervisor(config, lambda: pytest.fail("not read"), ())
    for worker in (0, 1):
        notes = Notes(supervisor._notebook.file, worker)
        notes.note(b"1" * 16)
        supervisor._blame(worker, code)
    assert (notes.refused(b"1" * 16, monotonic()) > 0) is refused
    assert supervisor._notebook.taken(0) == ()
    supervisor._notebook.close()


def test_what_is_answered_after_its_sentence_is_not_condemned_by_one_death_more() -> None:
    """Nobody dies in the meantime, so nobody has looked whose sentence is over."""
    now, deadly = 0.0, b"1" * 16
    config: Config = load(None, {"TAILRACE_SERVER__WORKERS": "2"}, ["http://127.0.0.1:9"])
    supervisor = Supervisor(config, lambda: pytest.fail("not read"), (), Time(lambda: now))
    notes = Notes(supervisor._notebook.file, 0)
    for _ in range(2):
        notes.note(deadly)
        supervisor._blame(0, -9)
    assert notes.refused(deadly, now) == REFUSED_SECONDS
    now = REFUSED_SECONDS
    assert not notes.refused(deadly, now)
    with notes.note(deadly):
        pass  # the model has been repaired
    notes.note(deadly)
    supervisor._blame(0, -9)
    assert not notes.refused(deadly, now)
    supervisor._notebook.close()


async def test_who_dies_at_once_waits_longer_each_time_and_who_lived_long_is_started_at_once() -> None:
    """Real processes that say they are ready and die, and a clock that says how long each of them has lived."""
    lives = [1.0, 1.0, STEADY_SECONDS - 1.0, STEADY_SECONDS, 1.0, 1.0, 1e6, 1.0]
    now, deaths, pauses = 0.0, 0, list[float]()

    def departed(worker: int) -> None:
        nonlocal now, deaths
        assert deaths == len(pauses), "it was started again without a pause"
        now += lives[deaths]
        deaths += 1

    async def waited(event: asyncio.Event, seconds: float) -> bool:
        nonlocal now
        assert event is supervisor._stopping
        now += seconds
        pauses.append(seconds)
        if len(pauses) == len(lives):
            supervisor.stop()
        return event.is_set()

    config: Config = load(None, {"TAILRACE_SERVER__WORKERS": "2"}, ["http://127.0.0.1:9"])
    command = ("/bin/sh", "-c", "echo tailrace ready here; exit 3")
    supervisor = Supervisor(config, lambda: pytest.fail("not read"), command, Time(lambda: now, waited))
    fleet, ready = Fleet([], lambda: 0), asyncio.Event()
    fleet.departed = departed  # type: ignore[method-assign]
    with structlog.testing.capture_logs() as logs:
        await supervisor._keep(1, (), ready, fleet)
    supervisor._notebook.close()
    assert pauses == [backoff(failures) for failures in (1, 2, 3, 0, 1, 2, 0, 1)]
    ends = [line for line in logs if line["event"] == "worker ended"]
    assert [(line["worker"], line["code"], line["again_in_seconds"]) for line in ends] == [
        (1, 3, pause) for pause in pauses
    ]
