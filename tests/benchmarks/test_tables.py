"""The bench of near caches: everybody gathers the right rows, the real arena is replayed, and the pages say it all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.report import Spread
from benchmarks.tables import __main__ as program
from benchmarks.tables import gather, hits
from benchmarks.tables.gather import BATCHES, TITLES, GatherFailed, Rate, missed, peers, rates, zipf
from benchmarks.tables.hits import (
    GENERATED,
    Judged,
    SimulationFailed,
    from_directory,
    generated,
    judge,
    replay,
    simulate,
)
from cache.arena import ROWS_MIN


def test_zipf_is_drawn_from_all_and_mostly_from_the_first() -> None:
    drawn = zipf(np.random.default_rng(1), 1_000, 100_000)
    assert drawn.min() == 0
    assert drawn.max() == 999
    assert (drawn == 0).mean() == pytest.approx(1 / (1 / np.arange(1, 1_001) ** 0.99).sum(), rel=0.05)


def test_everybody_gathers_the_right_rows() -> None:
    """With a real redis-server. ``check`` compares all rows, in each round."""
    with peers(3_000) as everybody:
        found = list(rates(everybody, 3_000, rounds=1, keys=2_048))
        assert [(rate.batch, rate.peer) for rate in found] == [(batch, peer) for batch in BATCHES for peer in TITLES]
        assert all(rate.rows_per_second.median > 0 for rate in found)
        assert all(rate.of_limit.median == 1 for rate in found if rate.peer == "limit")
        assert all(rate.arena_times.median == 1 for rate in found if rate.peer == "arena")
        right = everybody.gathers["dict"]
        everybody.gathers["dict"] = lambda number: right(number)[::-1]
        with pytest.raises(GatherFailed, match="a dict of arrays"):
            everybody.check()


def test_replay_counts_what_had_to_be_fetched() -> None:
    loop = np.arange(1_000) % ROWS_MIN
    assert replay(loop, ROWS_MIN, 1) == 1_000 - ROWS_MIN
    assert replay(np.repeat(loop, 2), ROWS_MIN, 64) == 2_000 - ROWS_MIN
    assert replay(np.arange(1_000), ROWS_MIN, 1) == replay(np.arange(1_000), ROWS_MIN, 64) == 0


def test_traces_are_read_and_generated(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", keys=np.array([1, 2, 1], np.int32))
    np.savez(tmp_path / "a.npz", other=np.array([1]))
    (tmp_path / "notes.txt").write_text("no trace")
    found = from_directory(tmp_path)
    assert {name: (keys.dtype, keys.tolist()) for name, keys in found.items()} == {"b": (np.int64, [1, 2, 1])}
    made = generated()
    assert list(made) == list(GENERATED)
    for trace in made.values():
        assert trace.min() >= 0
        assert min(hits.SHARES) * len(np.unique(trace)) >= ROWS_MIN  # each is judged at each capacity


def test_without_a_simulator_only_the_arena_is_judged() -> None:
    trace = np.tile(np.arange(10 * ROWS_MIN), 2)
    found = list(judge({"loop": trace}, None))
    assert [(one.capacity, one.objects, dict(one.others), one.behind) for one in found] == [
        (ROWS_MIN, 10 * ROWS_MIN, {}, None)
    ]
    assert set(found[0].arena) == set(hits.BATCHES)


def test_a_simulator_that_fails_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(SimulationFailed, match="No such file"):
        simulate(np.arange(3), 1, tmp_path / "python")


def test_a_simulator_gets_the_numbers_and_gives_hits(tmp_path: Path) -> None:
    """A stand-in for the other environment's Python: it reads what is sent and answers in the same form."""
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\ntest $(wc -c) = 32 && test $2 = 2 && echo \'{"LRU": 1, "Belady": 2}\'\n')
    script.chmod(0o755)
    assert simulate(np.array([1, 2, 1, 3], np.int64), 2, script) == {"LRU": 25.0, "Belady": 50.0}


ONE = Spread(1.0, 0.9, 1.1)
MADE = program.Circumstances("python -m benchmarks.tables", "today", {"cores": "2"}, {"numpy": "2"})


def rate(batch: int, peer: str, of_limit: float, times: float) -> Rate:
    return Rate(batch, peer, ONE, Spread(of_limit, 0.0, 1.0), Spread(times, 0.0, 1.0))


def test_what_is_missed_is_said() -> None:
    good = [rate(64, "arena", 0.1, 1), rate(64, "redis", 0.1, 2), rate(1_024, "arena", 0.45, 1)]
    assert missed([*good, rate(1_024, "redis", 0.0, 10)]) == []
    bad = [rate(1_024, "arena", 0.4, 1), rate(16_384, "redis", 0.0, 9.96)]
    assert missed(bad) == ["1,024 keys: 0.40 of the limit, not 0.45", "16,384 keys: 10.0 times Redis, not 10"]
    page = program.gathered_page(program.Gathered(MADE, 1_000, tuple(bad)), "tables.svg")
    assert "**Missed: 1,024 keys: 0.40 of the limit" in page
    assert "Met." in program.gathered_page(program.Gathered(MADE, 1_000, tuple(good)), "tables.svg")


def judged(ours: float, **others: float) -> Judged:
    return Judged("web", 1_000, 100, 64, {1: ours, 64: ours + 1}, others)


def test_page_of_hits() -> None:
    near = judged(60.0, LRU=50.0, S3FIFO=60.9, Belady=80.0)
    assert near.behind == pytest.approx(0.9)
    page = program.hits_page(program.Hits(MADE, (near,)))
    assert "| web | 1,000 | 100 | 64 | 60.0 | 61.0 | 50.0 | 60.9 |  |  | 80.0 |" in page
    assert "Met." in page
    far = program.hits_page(program.Hits(MADE, (judged(60.0, Sieve=61.1),)))
    assert "**Missed: web, 64 rows: 1.1.**" in far
    assert "Aim" not in program.hits_page(program.Hits(MADE, (judged(60.0),)))


def test_picture_has_the_arena_first() -> None:
    found = tuple(rate(batch, peer, 1, 1) for batch in BATCHES for peer in TITLES)
    drawn = program.picture(program.Gathered(MADE, 1_000, found))
    assert drawn.index("the arena<") < drawn.index("numpy.take on known slots")


@pytest.mark.parametrize(("error", "code"), [(GatherFailed("row 7"), 1), (program.RedisMissing("no server"), 2)])
def test_nothing_is_written_when_something_was_wrong(
    error: Exception, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> program.Gathered:
        raise error

    monkeypatch.setattr(program, "_gather", fail)
    assert program.main(["--results", str(tmp_path)]) == code
    assert str(error) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_results_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuple(rate(batch, peer, 1, 1) for batch in BATCHES for peer in TITLES)
    monkeypatch.setattr(program, "_gather", lambda *_: program.Gathered(MADE, 1_000, found))
    monkeypatch.setattr(program, "_judge", lambda *_: program.Hits(MADE, (judged(60.0),)))
    assert program.main(["--results", str(tmp_path)]) == 0
    names = ["hits.json", "hits.md", "tables.json", "tables.md", "tables.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_the_simulator_is_imported_by_nothing() -> None:
    """libcachesim is under the GPL: a program of its own environment."""
    root = Path(gather.__file__).parent.parent.parent
    own = Path(__file__).resolve()
    naming = [
        path.relative_to(root).as_posix()
        for folder in ("benchmarks", "cache", "degrade", "tiers", "gateway", "examples", "tests")
        for path in (root / folder).rglob("*.py")
        if "import libcachesim" in path.read_text(encoding="utf-8") and path.resolve() != own
    ]
    assert naming == ["benchmarks/tables/simulate.py"]
