"""What grows is data that fits together, and its page says what was measured, what was not, and beside what."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from benchmarks.growth import __main__ as program
from benchmarks.growth.axes import (
    AXES,
    ENTRY_BYTES_ASSUMED,
    KEY,
    Axis,
    UnknownAxis,
    affordable,
    config,
    numbered,
    select,
)
from benchmarks.growth.grow import GROW, Point
from benchmarks.growth.lab import Comparison, GrowthFailed
from benchmarks.questions import SEEDS_MAX
from benchmarks.report import Spread
from benchmarks.scenarios import MODEL
from gateway.sources import load

ENTRIES = next(axis for axis in AXES if axis.name == "entries")


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
def test_axes_are_what_can_be_grown(axis: Axis) -> None:
    assert axis.name in GROW
    assert list(axis.sizes) == sorted(set(axis.sizes))
    assert axis.sizes[-1] <= SEEDS_MAX


def test_select() -> None:
    assert select([]) == AXES
    assert [axis.name for axis in select(["routes", "entries"])] == ["entries", "routes"]
    with pytest.raises(UnknownAxis, match=r"'rows'.*entries"):
        select(["rows"])


def test_entries_that_do_not_fit_are_left_out() -> None:
    assert affordable(ENTRIES, 10**9, 2 * 10_000 * ENTRY_BYTES_ASSUMED) == (1_000, 10_000)
    assert affordable(ENTRIES, 10**9, 2 * 10_000 * ENTRY_BYTES_ASSUMED - 1) == (1_000,)
    assert affordable(ENTRIES, 1_000_000, 10**12)[-1] == 1_000_000
    routes = next(axis for axis in AXES if axis.name == "routes")
    assert affordable(routes, 100, 0) == (1, 10, 100)


@pytest.mark.parametrize(("routes", "callers"), [(0, 0), (12, 0), (0, 12)])
def test_configurations_are_the_gateways(routes: int, callers: int, tmp_path: Path) -> None:
    path = tmp_path / "tailrace.toml"
    path.write_text(config("http://127.0.0.1:1", routes=routes, callers=callers, cache_bytes=2**30))
    read = load(str(path), {})
    names = [f"bench-{number:08d}" for number in range(routes)] or [MODEL]
    assert list(read.routes) == names
    assert len(read.callers) == callers
    assert read.server.anonymous == (callers == 0)
    for route in read.routes.values():
        assert route.cache is not None
        assert route.cache.bytes_max == 2**30
        quotas = [route.caller_quota, *(caller.quota for caller in read.callers.values())]
        assert all(quota.hits_count for quota in quotas if quota is not None)
        assert any(quota is not None for quota in quotas)  # a quota is charged for every hit
    if callers:
        key = hashlib.sha256(numbered(KEY, 7).encode()).hexdigest()
        assert read.callers["caller-7"].key_sha256 == key
        assert read.server.quota_keys_max >= callers


ONE = Spread(1.0, 0.9, 1.1)


def point(size: int, beyond: float | None = None) -> Point:
    return Point("entries", size, Comparison(ONE, Spread(1.2, 1.1, 1.3), ONE, ONE, ONE, 2**30), beyond, 2.5e6)


def grown(*points: Point) -> program.Growth:
    return program.Growth("python -m benchmarks.growth", "today", {"cores": "2"}, {}, 7_000, ("5 routes",), points)


def test_page() -> None:
    page = program.markdown(grown(point(1_000), point(10_000, 812.6)), [ENTRIES], "growth.svg")
    for part in ("all 7,000 answers", "](growth.svg)", "Left out", "5 routes", "- cores: 2", "## Cached entries"):
        assert part in page
    rows = [row for row in page.splitlines() if row.startswith("| 1")]
    assert rows[0].endswith("| 1.20 (1.10 to 1.30) | 1 (1 to 1) | 1 (1 to 1) | 1 (1 to 1) | 1,024 |  | 2,500 |")
    assert rows[1].endswith("| 813 | 2,500 |")


def test_picture_has_a_plot_for_what_was_measured() -> None:
    drawn = program.picture(grown(point(1_000), point(10_000)), AXES)
    assert drawn.count("<polyline") == 1
    assert "cached entries" in drawn


@pytest.mark.parametrize(("error", "code"), [(GrowthFailed("7 hits"), 1), (program.PeerFailed("no cc"), 2)])
def test_nothing_is_written_when_something_was_wrong(
    error: Exception, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> program.Growth:
        raise error

    monkeypatch.setattr(program, "_measure", fail)
    assert program.main(["--results", str(tmp_path)]) == code
    assert str(error) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_results_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_measure", lambda *_: grown(point(1_000)))
    assert program.main(["--axis", "entries", "--results", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["growth.json", "growth.md", "growth.svg"]
