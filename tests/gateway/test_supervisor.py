"""How long a worker that keeps ending is left alone."""

from __future__ import annotations

from time import monotonic

import pytest

from gateway.config import Config
from gateway.notes import Notes
from gateway.sources import load
from gateway.supervisor import BACKOFF_SECONDS, BACKOFF_SECONDS_MAX, Supervisor, backoff


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
