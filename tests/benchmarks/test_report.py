"""Medians, ranges and ratios, and a page that cannot hide a failed run."""

from __future__ import annotations

import pytest

from benchmarks import __main__ as program
from benchmarks.asking import Run
from benchmarks.client import Load
from benchmarks.report import Report, Spread, faults, markdown, spread, summarise, table
from benchmarks.rounds import Options, runs_in_all
from benchmarks.scenarios import Kind, Scenario

SCENARIO = Scenario("hit-0.4k", Kind.HIT, 64, ("tailrace", "nginx-cache"))


def made(
    peer: str, number: int, rate: float, *, connections: int = 16, wrong: tuple[str, ...] = (), busy: float = 0.5
) -> Run:
    return Run(
        scenario=SCENARIO.name,
        connections=connections,
        peer=peer,
        round=number,
        load=Load(requests=int(rate), microseconds=1e6, p50=100.0 * number, p99=1000.0),
        cpu_per_request=12.34,
        client_busy=busy,
        resident=50 * 2**20,
        faults=wrong,
    )


RUNS = (
    made("tailrace", 0, 1.0),
    made("nginx-cache", 0, 1.0),
    made("nginx-cache", 1, 1000.0),
    made("tailrace", 1, 2000.0),
    made("tailrace", 2, 300.0),
    made("nginx-cache", 2, 100.0),
    made("tailrace", 3, 1500.0),
    made("nginx-cache", 3, 1500.0),
)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0], Spread(3.0, 3.0, 3.0)), ([9, 1, 2], Spread(2, 1, 9)), ([4, 1, 2, 3], Spread(2.5, 1, 4))],
)
def test_spread(values: list[float], expected: Spread) -> None:
    assert spread(values) == expected


def test_spread_of_nothing() -> None:
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_summary_leaves_warming_out_and_pairs_rounds() -> None:
    tailrace, nginx = summarise(RUNS, [SCENARIO])
    assert (tailrace.peer, tailrace.rounds, tailrace.ratio) == ("tailrace", 3, None)
    assert tailrace.requests_per_second == Spread(1500.0, 300.0, 2000.0)
    assert nginx.ratio == Spread(2.0, 1.0, 3.0)  # not 1500 by 1000
    assert nginx.p50 == Spread(200.0, 100.0, 300.0)


def test_summary_keeps_connections_apart() -> None:
    lines = summarise((*RUNS, made("tailrace", 1, 7.0, connections=64)), [SCENARIO])
    assert [(line.connections, line.peer) for line in lines] == [
        (16, "tailrace"),
        (16, "nginx-cache"),
        (64, "tailrace"),
    ]


def test_a_peer_that_answered_nothing_has_no_ratio() -> None:
    lines = summarise((made("tailrace", 1, 5.0), made("nginx-cache", 1, 0.0)), [SCENARIO])
    assert lines[1].ratio is None


def test_table() -> None:
    rows = table(summarise(RUNS, [SCENARIO])).splitlines()
    assert len(rows) == 4
    assert len({row.count("|") for row in rows}) == 1
    assert rows[2] == (
        "| Tailrace, cache on | 1,500 (300 to 2,000) |  | 200 (100 to 300) | 1,000 (1,000 to 1,000) | "
        "12.3 (12.3 to 12.3) | 50 (50 to 50) | 50% |"
    )
    assert "| 2.00 (1.00 to 3.00) |" in rows[3]


def test_a_busy_client_is_said_out_loud() -> None:
    assert "| **97%** |" in table(summarise([made("tailrace", 1, 9.0, busy=0.97)], [SCENARIO]))


def report(runs: tuple[Run, ...]) -> Report:
    lines = summarise(runs, [SCENARIO])
    return Report("python -m benchmarks", "today", {"cores": "2"}, {"nginx": "1"}, faults(runs), lines, runs)


def test_page_names_command_machine_and_versions() -> None:
    page = markdown(report(RUNS), "latest.svg")
    for part in (
        "`python -m benchmarks`",
        "3 interleaved rounds",
        "## hit-0.4k, 16 connections",
        "- cores: 2",
        "- nginx: 1",
        "all 6,402 answers",
        "](latest.svg)",
    ):
        assert part in page
    assert "Failed" not in page


def test_page_of_a_failed_run_says_so_first() -> None:
    page = markdown(report((*RUNS, made("nginx-cache", 4, 9.0, wrong=("3 timeouts",)))), "failed.svg")
    assert page.index("**Failed: 1 faults") < page.index("## hit")
    assert "hit-0.4k, 16 connections, nginx-cache, round 4: 3 timeouts" in page


def test_faults_while_warming_count() -> None:
    assert faults([made("tailrace", 0, 1.0, wrong=("x",))]) == ("hit-0.4k, 16 connections, tailrace, warming: x",)


def test_runs_in_all() -> None:
    assert runs_in_all([SCENARIO, SCENARIO], Options(rounds=5, seconds=1, connections=(1, 16))) == 4 * (5 * 2 + 1)
    assert runs_in_all([SCENARIO], Options(rounds=5, seconds=1)) == 2 * (5 * 1 + 1)


@pytest.mark.parametrize(("wrong", "code", "name"), [((), 0, "latest"), (("wrong bytes",), 1, "failed")])
def test_one_wrong_answer_fails_the_run(
    wrong: tuple[str, ...], code: int, name: str, tmp_path, monkeypatch, capsys
) -> None:
    runs = (*RUNS, made("tailrace", 4, 9.0, wrong=wrong))
    monkeypatch.setattr(program, "_measure", lambda *_: report(runs))
    monkeypatch.setattr(program, "_absent", list)
    assert program.main(["--results", str(tmp_path)]) == code
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.{kind}" for kind in ("json", "md", "svg")]
    assert "| Tailrace, cache on |" in capsys.readouterr().out


def test_missing_programs_are_named(monkeypatch, capsys) -> None:
    monkeypatch.setattr(program, "_absent", lambda: ["haproxy"])
    assert program.main([]) == 2
    assert "haproxy missing: `make bench`" in capsys.readouterr().err


def test_an_unknown_scenario_is_named(capsys) -> None:
    assert program.main(["--scenario", "hits"]) == 2
    assert "'hits'" in capsys.readouterr().err


def test_list(capsys) -> None:
    assert program.main(["--list", "--scenario", "miss"]) == 0
    assert capsys.readouterr().out.startswith("miss-static-0.4k")


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--seconds", "-1"], ["--connections", "x"]])
def test_nonsense_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(arguments)
