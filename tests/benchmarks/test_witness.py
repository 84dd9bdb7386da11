"""wrk's answer is read whole or not at all, and a run with errors is no witness."""

from __future__ import annotations

import pytest

from benchmarks.witness import Seen, WitnessFailed, read, table

GOOD = 'WRK {"requests":30000,"microseconds":2000000,"p50":210,"p99":1234,"errors":0}\n'


def test_read() -> None:
    found = read("Running 2s test\n" + GOOD)
    assert (found.requests, found.microseconds, found.p50, found.p99) == (30_000, 2_000_000, 210.0, 1234.0)


@pytest.mark.parametrize(
    "output", ["", GOOD * 2, GOOD.replace('"errors":0', '"errors":3'), GOOD.replace("30000", "0")]
)
def test_what_is_no_witness(output: str) -> None:
    with pytest.raises(WitnessFailed):
        read(output)


def test_table() -> None:
    seen = {("static", "wrk"): [Seen(100.0, 1.0, 2.0, 9.5), Seen(300.0, 1.0, 2.0, 10.5)]}
    assert "| the static upstream, asked directly | wrk | 200 (100 to 300) |" in table(seen)
    assert table(seen).endswith("| 10.0 (9.5 to 10.5) |\n")
