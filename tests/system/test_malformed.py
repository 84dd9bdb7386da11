"""The table of malformed requests over real sockets, to a gateway with a route before a real Triton.

Each gets its 4xx and a problem document that names the fault; Triton's own statistics show that none of
them reached it; the gateway goes on, and its memory stays flat.
"""

import http.client
import json
import runpy
import socket
from pathlib import Path

import pytest

from examples.gatewayprocess import GatewayProcess

TABLE = runpy.run_path(str(Path(__file__).parents[1] / "cases" / "malformed.py"))
GOOD = TABLE["GOOD"]
PATH = "/v2/models/typed/infer"
ROUNDS = 20
GROWTH_BYTES_MAX = 8 * 2**20
"""What the gateway may grow by over all rounds, some 3500 requests: one leaked 64 KiB body each is 200 MiB."""

HEAD = f"POST {PATH} HTTP/1.1\r\nHost: h\r\n".encode()
LENGTH = b"Content-Length: %d\r\n" % len(GOOD)
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BIG = b"10000\r\n" + b" " * 65536 + b"\r\n"

WIRE = {
    "both lengths": (HEAD + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "Content-Length"),
    "two lengths": (HEAD + LENGTH * 2 + b"\r\n" + GOOD, 400, "Content-Length"),
    "negative length": (HEAD + b"Content-Length: -5\r\n\r\n", 400, "Content-Length"),
    "oversized by its length": (HEAD + b"Content-Length: 65537\r\n\r\n", 413, "routes.typed.limits.body_bytes_max"),
    "oversized in chunks": (CHUNKED + BIG + BIG + b"0\r\n\r\n", 413, "routes.typed.limits.body_bytes_max"),
    "chunk size is no number": (CHUNKED + b"ZZ\r\n", 400, "chunk size"),
    "chunk breaks off half-way": (CHUNKED + b"2\r\n{}\r\n2\r\n{}garbage\r\n", 400, "chunk"),
    "no host": (f"POST {PATH} HTTP/1.1\r\n".encode() + LENGTH + b"\r\n" + GOOD, 400, "Host"),
    "two hosts": (HEAD + b"Host: i\r\n" + LENGTH + b"\r\n" + GOOD, 400, "Host"),
    "header too long": (HEAD + b"X: " + b"a" * 40000 + b"\r\n\r\n", 431, "header_bytes_max"),
    "space before the colon": (HEAD + b"X : 1\r\n" + LENGTH + b"\r\n" + GOOD, 400, "header"),
    "unknown expectation": (HEAD + b"Expect: more\r\n" + LENGTH + b"\r\n" + GOOD, 417, "Expect"),
    "coding given twice": (HEAD + b"Content-Encoding: gzip\r\n" * 2 + LENGTH + b"\r\n" + GOOD, 400, "Content-Encoding"),
    "json length given twice": (
        HEAD + b"Inference-Header-Content-Length: 5\r\n" * 2 + LENGTH + b"\r\n" + GOOD,
        400,
        "Inference-Header-Content-Length",
    ),
    "infer by GET": (HEAD.replace(b"POST", b"GET") + b"\r\n", 405, "POST"),
    "infer by PUT": (HEAD.replace(b"POST", b"PUT") + LENGTH + b"\r\n" + GOOD, 405, "POST"),
    "path with dots": (HEAD.replace(b"typed", b"../models/typed") + LENGTH + b"\r\n" + GOOD, 400, "path"),
    "path with an encoded slash": (HEAD.replace(b"/typed", b"%2ftyped") + LENGTH + b"\r\n" + GOOD, 400, "path"),
    "path that is no text": (HEAD.replace(b"typed", b"%ff") + LENGTH + b"\r\n" + GOOD, 400, "UTF-8"),
}


@pytest.fixture(scope="module")
def gateway(triton):
    """A route before the model of the table, with the table's own bounds; nothing is cached."""
    names = {"minimum": "min", "maximum": "max"}
    rules = {
        name: {
            names.get(key, key): f"{value}B" if key == "element_bytes_max" else value for key, value in bounds.items()
        }
        for name, bounds in TABLE["RULES"].items()
    }
    route = {
        "tiers": [{"backend": "gpu", "model": "typed"}],
        "limits": {"body_bytes_max": f"{TABLE['LIMITS']['bytes_max']}B"},
        "inputs": rules,
    }
    config = {"backends": {"gpu": {"http": [triton.http_url]}}, "routes": {"typed": route}}
    with GatewayProcess(config) as process:
        yield process


def post(connection, body, headers):
    """(status, header fields, body), on a connection that stays open."""
    connection.request("POST", PATH, body=body, headers=headers)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def wire(gateway, message):
    """The same for raw bytes, on a connection of their own; interim answers would be a fault."""
    host, port = gateway.http_address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(message)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer.status, dict(answer.getheaders()), answer.read()


def judge(name, got, status, word):
    """Why an answer is not the right refusal; empty if it is."""
    given, fields, body = got
    if given != status:
        return f"{name}: {given} instead of {status}: {body[:300]!r}"
    if fields["Content-Type"] != "application/problem+json":
        return f"{name}: {fields}"
    document = json.loads(body)
    well = document["status"] == status and document["error"] == document["detail"] and document["title"]
    if not (well and document["type"].startswith("urn:tailrace:problem:") and len(body) < 2048):
        return f"{name}: {document}"
    if document.get("reason") == "model":  # Triton's own words: its front refuses what no statistics tell of
        return f"{name}: it reached Triton: {document}"
    return "" if word in document["detail"] else f"{name}: no {word!r} in {document['detail']!r}"


def every(gateway):
    """The whole table once: what went wrong, and how many requests there were."""
    connection = http.client.HTTPConnection(gateway.http_address, timeout=20)
    wrong = []
    for case in TABLE["CASES"]:
        got = post(connection, case["body"], case["headers"])
        wrong.append(judge(case["name"], got, case["status"], case["word"]))
    opened = connection.sock
    for name, (message, status, word) in WIRE.items():
        wrong.append(judge(name, wire(gateway, message), status, word))
    status, _, body = post(connection, GOOD, {})
    if status != 200 or json.loads(body)["outputs"][0]["data"] != [1, 2, 3, 4]:
        wrong.append(f"the good request: {status} {body!r}")
    if connection.sock is not opened:
        wrong.append("the connection did not outlive the refusals")
    connection.close()
    return [fault for fault in wrong if fault]


def resident_bytes(pid):
    """What the kernel counts as the process's resident memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def test_each_is_refused_with_a_message_that_names_the_fault_and_none_reaches_triton(gateway, triton, counting):
    assert len(TABLE["CASES"]) + len(WIRE) >= 60
    with counting(triton, "typed") as counted:
        assert every(gateway) == []
    # The one good request at the end is all that Triton saw.
    assert (counted.requests, counted.failed, counted.rows) == (1, 0, 1)
    assert gateway.metric("tailrace_refusals_total", route="typed") >= len(TABLE["CASES"])


def test_memory_stays_flat(gateway):
    for _ in range(3):  # allocator pools and caches of compiled patterns fill up
        assert every(gateway) == []
    before = resident_bytes(gateway.process.pid)
    for _ in range(ROUNDS):
        assert every(gateway) == []
    grown = resident_bytes(gateway.process.pid) - before
    assert grown < GROWTH_BYTES_MAX, f"{grown} bytes over {ROUNDS} rounds"


@pytest.mark.parametrize("kind", ["length", "chunked"])
def test_a_body_cut_short_reaches_nobody(gateway, triton, counting, kind):
    host, port = gateway.http_address.split(":")
    with counting(triton, "typed") as counted:
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            framing = LENGTH + b"\r\n" + GOOD[:-1] if kind == "length" else b""
            connection.sendall(HEAD + framing if framing else CHUNKED + b"%x\r\n" % len(GOOD) + GOOD[:-1])
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(65536) == b""  # nobody is left to answer
        assert wire(gateway, HEAD + LENGTH + b"\r\n" + GOOD)[0] == 200
    assert (counted.requests, counted.failed) == (1, 0)


def test_no_refusal_was_our_bug(gateway):
    assert every(gateway) == []
    assert "Traceback" not in gateway.log()
    assert gateway.metric("tailrace_responses_total", status="400") > 0
    assert gateway.metric("tailrace_responses_total", status="500") == 0
