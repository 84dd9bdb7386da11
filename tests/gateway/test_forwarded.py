"""Who is behind a proxy: believed hop by hop from the nearest, and told to replicas, on both lanes alike."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.admission.forwarded import FOR, FORWARDED, HOPS_MAX, TOLD_BYTES_MAX, UNIX, Origin, Proxies
from gateway.app import Gateway
from gateway.sources import ConfigError, load

SECONDS = 10.0
OURS = ("10.0.0.0/8", "fd00::/8")
LISTENERS = {
    "TAILRACE_SERVER__HTTP": '"127.0.0.1:0"',
    "TAILRACE_SERVER__GRPC": "off",
    "TAILRACE_SERVER__ADMIN": '"127.0.0.1:0"',
    "TAILRACE_SERVER__DRAIN": "0s",
}


def client(field: str, peer: str, *values: str) -> str:
    proxies = Proxies(OURS, field)
    return proxies.client(peer, proxies.hops(CIMultiDict([(field, value) for value in values])))


@pytest.mark.parametrize(
    ("peer", "values", "expected"),
    [
        ("10.0.0.1", ["192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["192.0.2.7, 10.0.0.2"], "192.0.2.7"),
        ("10.0.0.1", ["198.51.100.1, 192.0.2.7, 10.0.0.2"], "192.0.2.7"),  # what the client wrote is left of it
        ("10.0.0.1", ["198.51.100.1", "192.0.2.7"], "192.0.2.7"),  # two lines are one list
        ("192.0.2.9", ["198.51.100.1"], "192.0.2.9"),  # no proxy of ours
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.7, bad, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["192.0.2.7:4711"], "192.0.2.7"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("10.0.0.1", ["[2001:DB8::1]:443"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["::ffff:192.0.2.7"], "192.0.2.7"),
        ("fd00::1", ["10.9.9.9"], "10.9.9.9"),  # nobody but proxies: the first of them
    ],
)
def test_the_client_by_x_forwarded_for(peer: str, values: list[str], expected: str) -> None:
    assert client(FOR, peer, *values) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("for=192.0.2.7", "192.0.2.7"),
        ("For=192.0.2.7;proto=https;by=10.0.0.1", "192.0.2.7"),
        ('proto=https;for="192.0.2.7:4711" , for=10.0.0.2', "192.0.2.7"),
        ('for="[2001:db8::1]:4711"', "2001:db8::1"),
        ('for=198.51.100.1;host="a,b;for=203.0.113.1", for=192.0.2.7', "192.0.2.7"),
        ("for=_hidden", "10.0.0.1"),
        ("for=unknown", "10.0.0.1"),
        ("proto=https", "10.0.0.1"),  # an element that names nobody
        ("for=192.0.2.7;;", "192.0.2.7"),  # empty pairs are allowed
        ("for=192.0.2.7=", "10.0.0.1"),
        ('for="192.0.2.7', "10.0.0.1"),
        ('", for=192.0.2.7', "192.0.2.7"),  # a client's own odd line, and what its proxy adds
        ('for="a, for=192.0.2.7', "192.0.2.7"),
        ('for=192.0.2.7, "', "10.0.0.1"),
        ("for=192.0.2.7 for=192.0.2.8", "10.0.0.1"),
        ("192.0.2.7", "10.0.0.1"),
    ],
)
def test_the_client_by_forwarded(value: str, expected: str) -> None:
    assert client(FORWARDED, "10.0.0.1", value) == expected


def test_without_trusted_proxies_nothing_is_read() -> None:
    assert Proxies().hops(CIMultiDict({FOR: "192.0.2.7"})) == ()
    assert Proxies().client("10.0.0.1", ("192.0.2.7",)) == "10.0.0.1"


def test_a_unix_socket_is_trusted_if_it_is_named() -> None:
    assert Proxies([UNIX]).client("", ("192.0.2.7",)) == "192.0.2.7"
    assert Proxies(OURS).client("", ("192.0.2.7",)) == ""


def test_only_so_many_hops_are_looked_through() -> None:
    value = ", ".join(["192.0.2.7", *["10.0.0.2"] * HOPS_MAX])
    assert client(FOR, "10.0.0.1", value) == "10.0.0.2"


@given(st.text(max_size=200), st.sampled_from([FOR, FORWARDED]))
def test_no_value_does_harm(value: str, field: str) -> None:
    assert ip_address(client(field, "10.0.0.1", value))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("tail", [" " * 4000 + "@", '"' + "\\a" * 1900, ";" * 4000, "a" * 4000, "a=" * 1900])
def test_no_value_takes_long(tail: str) -> None:
    for _ in range(200):  # quadratic work would take minutes
        assert client(FORWARDED, "10.0.0.1", f"for=192.0.2.7,{tail}") in ("10.0.0.1", "192.0.2.7")
    assert client(FORWARDED, "10.0.0.1", "for=192.0.2.7," + " " * 5000) == "10.0.0.1"


@given(st.lists(st.ip_addresses().filter(lambda each: not Proxies(OURS).trusts(str(each))), min_size=1, max_size=5))
def test_what_a_client_claims_never_hides_it(claimed: list[object]) -> None:
    real = "192.0.2.7"
    assert client(FOR, "10.0.0.1", ", ".join([*map(str, claimed), real])) == real
    assert client(FORWARDED, "10.0.0.1", *[f'for="[{each}]"' for each in claimed], f"for={real}") == real


BASE = (("Host", "edge.example"), ("Accept", "*/*"))


def test_a_replica_is_told_of_the_caller() -> None:
    told = Proxies(OURS).told(BASE, Origin("192.0.2.7"))
    assert told == (
        *BASE, (FOR, "192.0.2.7"), ("X-Forwarded-Proto", "http"), ("X-Forwarded-Host", "edge.example"),
    )  # fmt: skip


def test_what_nobody_may_be_believed_is_left_out() -> None:
    said = ((FOR, "203.0.113.1"), ("x-forwarded-proto", "https"), ("Forwarded", "for=a"), ("X-Real-IP", "203.0.113.1"))
    told = Proxies(OURS).told((*BASE, *said), Origin("192.0.2.7", secure=True))
    assert dict(told) == {
        **dict(BASE), FOR: "192.0.2.7", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "edge.example",
    }  # fmt: skip


def test_what_a_trusted_proxy_said_is_kept_and_continued() -> None:
    said = (
        (FOR, "192.0.2.7"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "shop.example"),
        ("Forwarded", "for=192.0.2.7"), ("X-Real-IP", "192.0.2.7"),
    )  # fmt: skip
    told = Proxies(OURS).told((*BASE, *said), Origin("fd00::1"))
    assert dict(told) == {
        **dict(BASE), FOR: "192.0.2.7, fd00::1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "shop.example",
        "Forwarded": 'for=192.0.2.7, for="[fd00::1]";proto=http', "X-Real-IP": "192.0.2.7",
    }  # fmt: skip


def test_heads_are_remembered_within_a_bound() -> None:
    proxies = Proxies()
    for number in range(1000):
        proxies.told((*BASE, ("X-Long", f"{number:030000d}")), Origin("192.0.2.7"))
    assert 0 < proxies._told.bytes_used <= TOLD_BYTES_MAX


# -- through the door -----------------------------------------------------------------------------------

BODY = '{"inputs": [{"name": "x", "datatype": "INT32", "shape": [1], "data": [1]}]}'


@pytest.fixture
async def upstream() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that says {} to everything, and the heads of what passed through to it."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                heads.append(head)
                if head.startswith(b"POST"):
                    await reader.readexactly(len(BODY))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads


async def asked(url: str, requests: list[tuple[str, tuple[str, ...]]], **server: str) -> list[int]:
    """The statuses of requests on one connection: (target, fields)."""
    settings = {f"TAILRACE_SERVER__{name.upper()}": value for name, value in server.items()}
    quota = 'caller_quota = { rate = 1, per = "1h", hits_count = true }'
    route = {"TAILRACE_ROUTES__R": f'{{ tiers = [{{ backend = "upstream", model = "m" }}], {quota} }}'}
    gateway = Gateway(load(None, LISTENERS | route | settings, [url]))
    http, _ = await gateway.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(http.rpartition(":")[2]))
    found = []
    try:
        async with asyncio.timeout(SECONDS):
            for target, fields in requests:
                head = [f"POST {target} HTTP/1.1", "Host: edge.example", f"Content-Length: {len(BODY)}", *fields]
                writer.write("\r\n".join([*head, "", BODY]).encode())
                answer = await reader.readuntil(b"\r\n\r\n")
                length = next(line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                found.append(int(answer.split()[1]))
        return found
    finally:
        writer.close()
        await gateway.stop()


@pytest.mark.parametrize("edge", ["true", "false"])
async def test_clients_behind_a_trusted_proxy_have_quotas_of_their_own(
    upstream: tuple[str, list[bytes]], edge: str
) -> None:
    infer = "/v2/models/r/infer"
    said = [(infer, (f"X-Forwarded-For: 192.0.2.{number}",)) for number in (1, 1, 2, 2)]
    trusting = await asked(upstream[0], said, edge=edge, trusted_proxies='["127.0.0.1"]')
    assert [status == 429 for status in trusting] == [False, True, False, True]
    doubting = await asked(upstream[0], said, edge=edge)
    assert [status == 429 for status in doubting] == [False, True, True, True]


@pytest.mark.parametrize("edge", ["true", "false"])
async def test_a_replica_is_told_on_both_lanes(upstream: tuple[str, list[bytes]], edge: str) -> None:
    url, heads = upstream
    said = [("/v2/models/n/infer", ("X-Forwarded-For: 192.0.2.1", "Forwarded: for=192.0.2.1"))]
    assert await asked(url, said, edge=edge) == [200]
    doubting = [head for head in heads if b"/v2/models/n/infer" in head][-1]
    assert b"\r\nX-Forwarded-For: 127.0.0.1\r\n" in doubting
    assert b"\r\nX-Forwarded-Proto: http\r\n" in doubting
    assert b"\r\nX-Forwarded-Host: edge.example\r\n" in doubting
    assert b"192.0.2.1" not in doubting
    assert await asked(url, said, edge=edge, trusted_proxies='["127.0.0.0/8"]', forwarded_field="Forwarded") == [200]
    trusting = [head for head in heads if b"/v2/models/n/infer" in head][-1]
    assert b"\r\nX-Forwarded-For: 192.0.2.1, 127.0.0.1\r\n" in trusting
    assert b"\r\nForwarded: for=192.0.2.1, for=127.0.0.1;proto=http\r\n" in trusting


@pytest.mark.parametrize("edge", ["true", "false"])
async def test_what_we_add_is_not_the_callers_to_take_away(upstream: tuple[str, list[bytes]], edge: str) -> None:
    url, heads = upstream
    named = "X-Forwarded-For, x-forwarded-proto, X-Forwarded-Host, Via"
    assert await asked(url, [("/v2/models/n/infer", (f"Connection: {named}",))], edge=edge) == [200]
    told = [head for head in heads if b"/v2/models/n/infer" in head][-1]
    for field in (b"X-Forwarded-For: 127.0.0.1", b"X-Forwarded-Proto: http", b"Via: 1.1 tailrace"):
        assert b"\r\n" + field + b"\r\n" in told


@pytest.mark.parametrize(
    "written",
    ["10.0.0.0/33", "10.0.0.5/8", "::ffff:10.0.0.0/104", "proxy.example", "unix:/run/x"],
)
def test_what_is_no_address_is_a_fault(written: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.trusted_proxies\.0"):
        load(None, LISTENERS | {"TAILRACE_SERVER__TRUSTED_PROXIES": f'["{written}"]'}, ["http://127.0.0.1:1"])


@pytest.mark.parametrize("edge", ["true", "false"])
async def test_a_name_that_a_unix_client_gives_itself_is_no_address(
    upstream: tuple[str, list[bytes]], edge: str, tmp_path: Path
) -> None:
    url, heads = upstream
    door = LISTENERS | {"TAILRACE_SERVER__HTTP": f'"unix:{tmp_path}/door"', "TAILRACE_SERVER__EDGE": edge}
    gateway = Gateway(load(None, door, [url]))
    await gateway.start()
    client = socket.socket(socket.AF_UNIX)
    client.setblocking(False)
    with contextlib.chdir(tmp_path):
        client.bind("203.0.113.7")
    try:
        await asyncio.get_running_loop().sock_connect(client, f"{tmp_path}/door")
        reader, writer = await asyncio.open_unix_connection(sock=client)
        head = f"POST /v2/models/n/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(BODY)}\r\n\r\n"
        writer.write((head + BODY).encode())
        async with asyncio.timeout(SECONDS):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        writer.close()
    finally:
        await gateway.stop()
    told = [head for head in heads if b"/v2/models/n/infer" in head][-1]
    assert b"203.0.113.7" not in told
    assert b"X-Forwarded-For" not in told
