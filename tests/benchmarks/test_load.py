"""wrk's output is read whole or not at all, and nothing that went wrong is read as right."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.load import Load, LoadFailed, command, parse, run

GOOD = (
    'RESULT {"requests":30000,"microseconds":2000000,"bytes":9000000,"p50":210,"p99":1234,'
    '"connect":0,"read":0,"write":0,"status":0,"timeout":0}\n'
)
TEXT = """Running 2s test @ http://127.0.0.1:8080/v2/models/bench_fp32/infer
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.12ms    1.05ms  15.98ms   91.68%
    Req/Sec    15.02k     1.71k   17.35k    75.00%
  30000 requests in 2.00s, 8.58MB read
Requests/sec:  15000.00
Transfer/sec:      4.29MB
"""


def test_parse() -> None:
    load = parse(TEXT + GOOD)
    assert load.requests_per_second == 15000.0
    assert (load.p50, load.p99, load.bytes) == (210, 1234, 9_000_000)
    assert load.faults() == []


@pytest.mark.parametrize(
    "output",
    [
        "",
        TEXT,
        TEXT + GOOD + GOOD,
        TEXT + GOOD[:-20] + "\n",
        TEXT + GOOD.replace("30000", '"many"'),
        TEXT + GOOD.replace('"p50":210,', ""),
        TEXT + GOOD.replace("2000000", "0"),
    ],
    ids=["nothing", "no-result", "two-results", "cut", "not-a-number", "key-missing", "no-time"],
)
def test_what_is_not_a_result(output: str) -> None:
    with pytest.raises(LoadFailed):
        parse(output)


@pytest.mark.parametrize("name", ["connect", "read", "write", "status", "timeout"])
def test_every_kind_of_error_is_a_fault(name: str) -> None:
    faults = parse(TEXT + GOOD.replace(f'"{name}":0', f'"{name}":3')).faults()
    assert len(faults) == 1
    assert faults[0].startswith("3 ")


def test_no_answer_at_all_is_a_fault() -> None:
    assert parse(TEXT + GOOD.replace("30000", "0")).faults() == ["no answer at all"]


def test_the_larger_of_both_counts_of_wrong_answers_holds() -> None:
    load = parse(TEXT + "  Non-2xx or 3xx responses: 7\n" + GOOD)
    assert load.status == 7
    assert load.faults() == ["7 answers that are not 2xx"]


@pytest.mark.parametrize(("seconds", "duration"), [(0.2, "1s"), (1, "1s"), (2.5, "3s"), (10, "10s")])
def test_command(seconds: float, duration: str) -> None:
    line = command(
        url="http://127.0.0.1:1/x",
        body=Path("/body"),
        json_bytes=12,
        unique=True,
        connections=16,
        seconds=seconds,
        cores=(1, 2),
    )
    assert line[:4] == ["taskset", "--cpu-list", "1,2", "wrk"]
    assert f"--duration={duration}" in line
    assert any(part.endswith("miss.lua") for part in line)
    assert line[-4:] == ["http://127.0.0.1:1/x", "--", "/body", "12"]


def test_run_reads_what_a_program_prints() -> None:
    assert run([sys.executable, "-c", f"print({TEXT + GOOD!r})"], 1.0) == parse(TEXT + GOOD)


def test_run_of_a_program_that_fails() -> None:
    with pytest.raises(LoadFailed, match="unable to connect"):
        run([sys.executable, "-c", "import sys; sys.exit('unable to connect')"], 1.0)


def test_a_load_without_errors_has_none() -> None:
    assert Load(1, 1, 0, 0, 0, 0, 0, 0, 0, 0).faults() == []
