"""The benchmark of the second level, once around: real parts, every answer checked."""

from __future__ import annotations

import re

from benchmarks.second import KEEPING, Bench, Told, parsed, run
from examples.tritonserver import TritonServer

ANSWER = (b"1", b"2")


def test_each_way_is_measured_and_is_the_way_it_says(triton: TritonServer) -> None:
    options = parsed(["--rounds", "1", "--requests", "2", "--rows", "1", "5", "--row-ms", "1"])
    told, wrong = run(options, triton)
    assert wrong == []
    lines = [re.findall(r"[\w.]+", line) for line in told.splitlines()[4:]]
    assert [tuple(line[:2]) for line in lines] == [(rows, kept) for rows in ("1", "5") for kept in KEEPING]
    assert all(float(number) > 0 for line in lines for number in (line[2], line[6], line[10]))


def test_other_bytes_and_another_origin_are_wrong() -> None:
    bench = Bench(None, None, parsed([]))  # type: ignore[arg-type]  # nobody is asked
    label = "cache=hit, reason=second, tier=m"
    bench.check("rows", "second", Told(1.0, ANSWER, label), Told(1.0, ANSWER, "cache=miss"))
    assert bench.wrong == []
    bench.check("rows", "second", Told(1.0, (b"1", b"3"), label), Told(1.0, ANSWER, "cache=miss"))
    bench.check("rows", "local", Told(1.0, ANSWER, label), Told(1.0, ANSWER, "cache=miss"))
    assert bench.wrong == ["rows, second: other bytes than the model's", f"rows, local: {label}"]
