"""The command line: exit codes, lists of faults, and never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples import demo
from gateway import cli


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    try:
        code = cli.main(arguments)
    except SystemExit as left:  # argparse's own way out
        code = int(left.code or 0)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "tailrace serve --upstream http://127.0.0.1:8000" in out
    assert "TAILRACE_SERVER__HTTP" in out


@pytest.mark.parametrize("command", ["serve", "check", "warm", "schema", "demo"])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert command in out


def test_the_demo_is_told_what_was_asked_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[bool, bool]] = []
    monkeypatch.setattr(demo, "main", lambda keep, redis: asked.append((keep, redis)) or 0)
    for flags in ((), ("--redis",), ("--keep",), ("--keep", "--redis")):
        assert cli.main(("demo", *flags)) == 0
    assert asked == [(False, False), (False, True), (True, False), (True, True)]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert out.startswith("tailrace ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "required"),
        (("fly",), "invalid choice"),
        (("serve",), "there is none: give --upstream URL"),
        (("serve", "--config", "/nowhere.toml"), "cannot be read"),
        (("check", "--upstream", "triton:8000"), "is not http://HOST:PORT"),
        (("serve", "--upstream", "http://a:1", "--http", "8080"), "'8080' is neither HOST:PORT"),
    ],
)
def test_misuse_is_told_and_exits_2(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str) -> None:
    code, _, err = run(capsys, *arguments)
    assert code == cli.MISUSED
    assert told in err


def test_faults_are_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    path.write_text("[server]\nhtp = 1\n[log]\nlevel = 'x'\n")
    code, _, err = run(capsys, "check", "--config", str(path))
    assert code == cli.MISUSED
    assert err.splitlines()[-1] == "tailrace: 3 faults"


def test_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "schema")
    assert code == 0
    assert json.loads(out)["$schema"].endswith("2020-12/schema")


def test_check_offline(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "check", "--offline", "--upstream", "http://127.0.0.1:8000")
    assert (code, out) == (cli.WELL, "all well: 1 backend (not asked), 0 routes\n")


def test_warnings_are_told_and_stop_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILRACE_API_KEY", "hunter2")
    code, _, err = run(capsys, "check", "--offline", "--upstream", "http://127.0.0.1:8000")
    assert code == cli.WELL
    assert err.startswith("tailrace: warning: TAILRACE_API_KEY: names no key")
    assert "hunter2" not in err


def test_check_of_a_dead_backend_exits_1(capsys: pytest.CaptureFixture[str], unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    code, _, err = run(capsys, "check", "--upstream", url)
    assert code == cli.UNFIT
    assert url in err
