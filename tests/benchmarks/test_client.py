"""The client's output is read whole or not at all, nothing wrong is read as right, and it sees what is wrong."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.client import ClientFailed, Files, Load, Picking, command, parse, run, write
from benchmarks.native import CompilerFailed, program
from benchmarks.peers.upstream import static
from benchmarks.questions import DIGITS, question, wire
from benchmarks.scenarios import MODEL, SMALL

RESULT = {
    "requests": 30000, "late": 16, "fresh": 0, "microseconds": 2e6, "client_microseconds": 1e6, "bytes": 9,
    "p50": 210.5, "p99": 1234.0, "p999": 2000.0, "longest": 9000.0, "also": 0, "wrong_status": 0,
    "wrong_bytes": 0, "broken": 0, "timeout": 0, "shown": "",
}  # fmt: skip


def line(**changed: object) -> str:
    return f"RESULT {json.dumps(RESULT | changed, separators=(',', ':'))}\n"


def test_parse() -> None:
    load = parse(line())
    assert load.requests_per_second == 15000.0
    assert (load.p50, load.p99, load.answered) == (210.5, 1234.0, 30016)
    assert load.faults() == []


@pytest.mark.parametrize(
    "output",
    [
        pytest.param("", id="nothing"),
        pytest.param(line() * 2, id="two-results"),
        pytest.param(line()[:-20] + "\n", id="cut"),
        pytest.param(line(requests="many"), id="not-a-number"),
        pytest.param(line().replace('"p50":210.5,', ""), id="key-missing"),
        pytest.param(line(odd=1), id="key-unknown"),
        pytest.param(line(microseconds=0), id="no-time"),
    ],
)
def test_what_is_not_a_result(output: str) -> None:
    with pytest.raises(ClientFailed):
        parse(output)


@pytest.mark.parametrize("name", ["wrong_status", "wrong_bytes", "broken", "timeout"])
def test_every_kind_of_error_is_a_fault(name: str) -> None:
    faults = parse(line(**{name: 3}, shown="HTTP/1.1 500")).faults()
    assert len(faults) == 1
    assert faults[0].startswith("3 ")
    assert faults[0].endswith("HTTP/1.1 500")


def test_no_answer_at_all_is_a_fault() -> None:
    assert Load().faults() == ["no answer at all"]


def test_command() -> None:
    files = Files(Path("/question"), Path("/answer"), 300, 40)
    picking = Picking(pick="zipf", count=7, fresh=0.2, needles=("a b", "c"))
    made = command(
        program=Path("/ask"), port=1, files=files, picking=picking, connections=16, seconds=0.25, cores=(1, 2)
    )
    assert made[:4] == ["taskset", "--cpu-list", "1,2", "/ask"]
    assert {"port=1", "milliseconds=250", "pick=zipf", "fresh=0.2", "serial_at=300", "question=/question"} <= {*made}
    assert made[-2:] == ["needle=a b", "needle=c"]


def test_run_reads_what_a_program_prints() -> None:
    assert run([sys.executable, "-c", f"print({line()!r})"], 1.0) == parse(line())


def test_run_of_a_program_that_fails() -> None:
    with pytest.raises(ClientFailed, match="unable to connect"):
        run([sys.executable, "-c", "import sys; sys.exit('unable to connect')"], 1.0)


def test_a_source_that_does_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.native.HERE", tmp_path)
    (tmp_path / "odd.c").write_text("int main( {")
    with pytest.raises(CompilerFailed, match="error"):
        program("odd", tmp_path)


# -- the programs themselves ---------------------------------------------------------------------------

ANSWER = (
    b'{"model_name":"bench_fp32","model_version":"1","outputs":[{"name":"y","datatype":"FP32","shape":[1,10],'
    b'"parameters":{"binary_data_size":40}}]}'
)


FEW = 500


def ask(port: int, directory: Path, picking: Picking, fields: str = "", answer: bytes = ANSWER) -> Load:
    asked = question(SMALL, seed=7)
    files = write(directory, wire(asked, MODEL, port, fields), answer, len(asked.answer))
    made = command(
        program=program("ask"), port=port, files=files, picking=picking, connections=4, seconds=0.2, cores=(0,)
    )
    return run(made[3:], 60.0)  # on any core


@pytest.mark.parametrize(
    "picking",
    [
        Picking(requests=FEW),
        Picking(pick="next", requests=FEW, first=5),
        Picking(pick="some", requests=FEW, count=100),
        Picking(pick="zipf", requests=FEW, count=100, fresh=0.5, fresh_first=100),
        Picking(requests=FEW, heads=30),
        Picking("next", requests=2 * FEW),
    ],
    ids=lambda picking: f"{picking.pick}-{picking.heads}",
)
def test_the_static_upstream_answers_every_question_rightly(picking: Picking, tmp_path: Path) -> None:
    with static() as upstream:
        seen = ask(upstream.port, tmp_path, picking, f"x-number: {DIGITS}\r\n")
        counted = upstream.counts(MODEL).succeeded
    assert seen.faults() == []
    assert counted == seen.answered
    assert (0 < seen.fresh < seen.answered) == (picking.pick == "zipf")


def test_a_run_of_so_many_requests(tmp_path: Path) -> None:
    with static() as upstream:
        assert ask(upstream.port, tmp_path, Picking("next", requests=FEW)).answered == FEW
        assert upstream.counts(MODEL).succeeded == FEW


def test_another_json_part_is_wrong_bytes(tmp_path: Path) -> None:
    with static() as upstream:
        seen = ask(upstream.port, tmp_path, Picking("next", requests=FEW), answer=ANSWER.replace(b"bench", b"bank_"))
    assert (seen.wrong_bytes, seen.answered) == (FEW, FEW)
    assert "bench_fp32" in seen.shown


@contextmanager
def server(respond: Callable[[bytes], bytes]) -> Iterator[int]:
    """One thread for each connection; ``respond`` gets a whole request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve(connection: socket.socket) -> None:
            with connection, connection.makefile("rb") as reader:
                try:
                    while True:
                        lines = []
                        while (line := reader.readline()) not in (b"\r\n", b""):  # b"": nobody is there any more
                            lines.append(line)
                        head = b"".join(lines)
                        length = next((int(x[16:]) for x in head.split(b"\r\n") if x[:16] == b"Content-Length: "), 0)
                        body = reader.read(length)
                        if not body:
                            return
                        connection.sendall(respond(body))
                except OSError:
                    return

        def accept() -> None:
            while True:
                try:
                    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def answered(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-LENGTH: {len(body)}\r\n\r\n".encode() + body


FIRST = question(SMALL, seed=7).answer
EACH = Picking("next", requests=20)


@pytest.mark.parametrize(
    ("respond", "picking", "name"),
    [
        (lambda _: answered(ANSWER + FIRST), EACH, "wrong_bytes"),  # right, for whoever asked the first one
        (lambda body: answered(ANSWER + body[-256:-216] + b"x"), EACH, "wrong_bytes"),
        (lambda _: answered(b"", "204 No Content"), EACH, "wrong_status"),
        (lambda _: answered(b'{"error":1}', "429 Too Many Requests"), EACH, "wrong_status"),
        (lambda _: answered(b"", "429 Too"), Picking("next", requests=9, also=429, needles=("why",)), "wrong_bytes"),
        (lambda body: answered(ANSWER + body[-256:-216]) + b"H", EACH, "broken"),
        (lambda _: b"HTTP/1.1 200 OK\r\n\r\n", EACH, "broken"),
        (lambda _: b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", EACH, "broken"),
    ],
)
def test_what_is_wrong_is_seen(respond: Callable[[bytes], bytes], picking: Picking, name: str, tmp_path: Path) -> None:
    with server(respond) as port:
        assert getattr(ask(port, tmp_path, picking), name) > 0


def test_what_is_right_is_seen(tmp_path: Path) -> None:
    def respond(body: bytes) -> bytes:
        return answered(ANSWER + body[-256:-216]) if body[-255] else answered(b"because: why", "429 Too Many Requests")

    with server(respond) as port:
        seen = ask(port, tmp_path, Picking("next", requests=FEW, also=429, needles=("429", "why")))
    assert seen.faults() == []
    assert (seen.answered, seen.also) == (FEW, 256)
