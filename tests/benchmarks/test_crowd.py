"""The crowd's measurement says what it measured, and stops where it cannot."""

from __future__ import annotations

import resource
import socket
import threading
from pathlib import Path

import pytest

from benchmarks.crowd import KINDS, Crowd, FilesMissing, Memory, Row, allow, ask, main, settings, table
from benchmarks.growth.lab import GrowthFailed
from benchmarks.report import Spread
from gateway.sources import load


def test_too_few_files_are_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    allow(1000)
    with pytest.raises(FilesMissing, match=r"10000 connections need 11000 .* is 4096: raise it \(ulimit -Hn 11000"):
        allow(10_000)
    assert main(["silent"]) == 2


def test_settings_are_the_gateways(tmp_path: Path) -> None:
    path = tmp_path / "tailrace.toml"
    path.write_text(settings(10_000, "2s"))
    server = load(str(path), {}, ["http://127.0.0.1:1"]).server
    assert min(server.connections_max, server.connections_per_address_max) >= 10_000
    assert float(server.idle_timeout) == 2.0


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nab"]
)
def test_what_is_no_answer(answer: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(GrowthFailed):
            ask(ours, b"x")


def test_an_answer_in_pieces() -> None:
    ours, theirs = socket.socketpair()

    def answer() -> None:
        assert theirs.recv(9) == b"x"
        for piece in (b"HTTP/1.1 200 OK\r\ncontent-", b"length: 4\r\n\r\nab", b"cd"):
            theirs.sendall(piece)

    with ours, theirs:
        thread = threading.Thread(target=answer)
        thread.start()
        ask(ours, b"x")
        thread.join()


def test_a_crowd_comes_from_several_addresses_and_leaves() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        with Crowd() as crowd:
            crowd.open(server.getsockname()[1], 20, None)
            opened = list(crowd.sockets)
            assert len({own.getsockname()[0] for own in opened}) == 8
        assert all(own.fileno() == -1 for own in opened)


def test_table() -> None:
    mib = 2**20
    memories = Memory(10 * mib, 8 * mib), Memory(20 * mib, 19 * mib)
    row = Row("hit", *memories, Spread(1, 1, 1), Spread(2, 1, 3), Spread(2, 1, 3))
    assert "| hit | 10.0 | 20.0 | 10.0 | 11.0 | 1.0 | 1 (1 to 1) | 2 (1 to 3) | 2.00 (1.00 to 3.00) |" in table(
        [row], 10 * 1024
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_crowd(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([kind, "--connections", "40", "--rounds", "2", "--seconds", "0.1"]) == 0
    assert f"\n| {kind} | " in capsys.readouterr().out


def test_another_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["nonsense"])
    assert "there are silent, hit, health, chunked" in capsys.readouterr().err
