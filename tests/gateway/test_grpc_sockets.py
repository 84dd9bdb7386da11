"""Sockets are found by the end that is ours, and only what has nothing left to do is ended."""

import asyncio
import os
import socket
import threading
from types import SimpleNamespace

import pytest

from gateway.address import parse_address
from gateway.config_server import Server
from gateway.doors import grpc_sockets
from gateway.doors.grpc_listener import GrpcListener
from gateway.doors.grpc_sockets import Sockets


@pytest.fixture
def listening(tmp_path, request):
    family = socket.AF_INET if request.param == "tcp" else socket.AF_UNIX
    with socket.socket(family) as found:
        found.bind(("127.0.0.1", 0) if request.param == "tcp" else str(tmp_path / "s"))
        found.listen()
        yield found


def connected(listening):
    there = socket.socket(listening.family)
    there.connect(listening.getsockname())
    here, _ = listening.accept()
    return there, here


@pytest.mark.parametrize("listening", ["tcp"], indirect=True)
def test_who_is_busy_goes_on_and_others_are_at_their_end(listening):
    own, sockets = listening.getsockname()[1], Sockets()
    (there, here), (busy_there, busy_here) = connected(listening), connected(listening)
    assert sockets.end_idle(own, {busy_there.getsockname()[1]}) == 2
    assert here.recv(1) == b""
    busy_there.send(b"x")
    assert busy_here.recv(1) == b"x"
    here.send(b"y")
    assert there.recv(1) == b"y", "what goes out still does"
    with pytest.raises(ConnectionRefusedError), socket.socket() as late:
        late.connect(("127.0.0.1", own))
    there.close()
    here.close()
    assert sockets.end_idle(own, set()) == 1
    assert busy_here.recv(1) == b""
    busy_there.close()
    busy_here.close()
    assert sockets.end_idle(own, set()) == 0


@pytest.mark.parametrize("listening", ["unix"], indirect=True)
def test_connections_of_a_unix_socket_are_busy_together(listening):
    there, here = connected(listening)
    sockets = Sockets()
    assert sockets.end_idle(listening.getsockname(), {0}) == 1
    there.send(b"x")
    assert here.recv(1) == b"x"
    assert sockets.end_idle(listening.getsockname(), set()) == 1
    assert here.recv(1) == b""
    there.close()
    here.close()


@pytest.mark.parametrize("listening", ["tcp"], indirect=True)
def test_other_sockets_and_files_are_let_be_and_none_stays_open(listening):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        there, here = connected(other)
        before = len(os.listdir("/proc/self/fd"))
        assert Sockets().end_idle(listening.getsockname()[1], set()) == 0
        assert len(os.listdir("/proc/self/fd")) == before
        there.send(b"x")
        assert here.recv(1) == b"x"
        there.close()
        here.close()


@pytest.mark.parametrize(
    ("host", "written"), [("127.0.0.1", "ipv4:127.0.0.1:{}"), ("::1", "ipv6:%5B::1%5D:{}"), ("::1", "ipv6:[::1]:{}")]
)
async def test_the_connection_to_a_peer_is_shut_and_no_other(host, written):
    accepted, ended = [], []

    async def serve(reader, writer):
        accepted.append(writer)
        assert await reader.read() == b""
        ended.append(writer.get_extra_info("peername")[1])
        writer.close()

    server = await asyncio.start_server(serve, host, 0)
    port = server.sockets[0].getsockname()[1]
    callers = [await asyncio.open_connection(host, port) for _ in range(3)]
    ports = [writer.get_extra_info("sockname")[1] for _, writer in callers]
    async with asyncio.timeout(10.0):
        while len(accepted) < len(callers):  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
    assert Sockets().hang_up(written.format(ports[1]))
    async with asyncio.timeout(10.0):
        assert await callers[1][0].read() == b""
        while not ended:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
    assert ended == [ports[1]]
    for _, writer in callers:
        writer.close()
    server.close()


@pytest.mark.parametrize("peer", ["", "unix:", "unix:/tmp/x", "ipv4:127.0.0.1", "ipv4:127.0.0.1:1", "nonsense:1"])
def test_who_has_no_connection_here_has_none_to_shut(peer):
    assert not Sockets().hang_up(peer)


def test_nothing_stays_open_of_looking_at_what_is_no_socket():
    """A copy of every open file is made to look at it, also of pipes and of the event loop's own."""
    pipe = os.pipe()
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        assert not Sockets().hang_up("ipv4:127.0.0.1:1")
        Sockets().end_idle(1, set())
    assert os.listdir("/proc/self/fd") == before
    for end in pipe:
        os.close(end)


@pytest.mark.parametrize("listening", ["tcp"], indirect=True)
def test_a_number_that_is_another_socket_s_by_now_is_looked_at_again(listening):
    own, sockets = listening.getsockname()[1], Sockets()
    there, here = connected(listening)
    busy = {there.getsockname()[1]}
    assert sockets.end_idle(own, busy) == 1
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        elsewhere, stranger = connected(other)
        number = here.detach()
        there.close()
        os.dup2(stranger.fileno(), number)
        try:
            assert sockets.end_idle(own, set()) == 0
            elsewhere.send(b"x")
            assert stranger.recv(1) == b"x"
        finally:
            os.close(number)
            elsewhere.close()
            stranger.close()


@pytest.mark.parametrize("listening", ["tcp"], indirect=True)
def test_most_of_them_are_known_again_without_being_touched(listening, monkeypatch):
    own, sockets = listening.getsockname()[1], Sockets()
    pairs = [connected(listening) for _ in range(50)]
    assert sockets.end_idle(own, set()) == len(pairs)
    copied = []
    monkeypatch.setattr(os, "dup", lambda file: copied.append(file) or 1 / 0)
    assert sockets.end_idle(own, set()) == len(pairs)
    assert copied == []
    for each in pairs:
        each[0].close()
        each[1].close()


@pytest.mark.parametrize("listening", ["tcp"], indirect=True)
def test_what_has_come_and_what_is_coming_is_told(listening, monkeypatch):
    sockets = Sockets()
    (there, here), (other_there, other_here) = connected(listening), connected(listening)
    peers = [f"ipv4:127.0.0.1:{each.getsockname()[1]}" for each in (there, other_there)]

    def meanwhile(_):
        there.sendall(bytes(1000))
        assert here.recv(1000, socket.MSG_WAITALL) == bytes(1000)

    monkeypatch.setattr(grpc_sockets, "sleep", meanwhile)
    before, after = sockets.received({*peers, "ipv4:127.0.0.1:1", "unix:", "unix:/x"})
    assert before == {peers[0]: 0, peers[1]: 0}
    assert after == {peers[0]: 1000, peers[1]: 0}
    for each in (there, here, other_there, other_here):
        each.close()
    monkeypatch.setattr(grpc_sockets, "sleep", lambda _: None)
    assert sockets.received(set(peers)) == ({}, {})


async def test_at_its_end_the_door_looks_beside_the_event_loop_and_touches_each_socket_twice_at_most(monkeypatch):
    health = SimpleNamespace(check=None, watch=None, close=lambda: None)
    door = SimpleNamespace(deliver=None)
    listener = GrpcListener(Server(), door, health, None, shared=False)
    where = await listener.start(parse_address("127.0.0.1:0"))
    callers = [await asyncio.open_connection("127.0.0.1", int(where.rpartition(":")[2])) for _ in range(200)]
    await asyncio.gather(*(reader.readexactly(9) for reader, _ in callers))  # grpc has accepted them
    busy = "ipv4:127.0.0.1:{}".format(callers[0][1].get_extra_info("sockname")[1])
    listener.service.connections.began(busy)
    files, looks, copies, listing, dup = len(os.listdir("/proc/self/fd")), [], [], os.listdir, os.dup

    def listed(path):
        looks.append(threading.current_thread())
        if len(looks) == 5:
            listener.service.connections.ended(busy)
        return listing(path)

    monkeypatch.setattr(os, "listdir", listed)
    monkeypatch.setattr(os, "dup", lambda file: copies.append(file) or dup(file))
    await listener.stop(60.0)
    assert len(looks) > 5
    assert threading.current_thread() not in looks
    assert len(copies) <= 2 * files + 10 * len(looks), "most are known again"
    for _, writer in callers:
        writer.close()
