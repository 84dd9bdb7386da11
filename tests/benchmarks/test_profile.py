"""The profile counts what it says: our files, with the built-in functions that each of them calls."""

from __future__ import annotations

import cProfile
import pstats

import pytest

from benchmarks import profile
from cache.digest import WireDigester


def test_time_is_counted_for_the_file_that_spent_it() -> None:
    digester = WireDigester(b"verdict")
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(50):
        digester.key(bytes(100_000))
    profiler.disable()
    files = profile.by_file(pstats.Stats(profiler))
    assert max(files, key=lambda name: files[name]) == "cache/digest.py"


@pytest.mark.parametrize("kind", profile.KINDS)
def test_each_kind_of_request_is_answered_where_it_should_be(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile.main([kind, "--count", "20"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{kind}: ")
    assert ("tiers/backends/connection.py" in told) is (kind != "hit")
    assert ("gateway/doors/relay.py" in told) is (kind == "pass")


def test_another_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        profile.main(["nonsense"])
    assert "there are hit, pass, miss" in capsys.readouterr().err
