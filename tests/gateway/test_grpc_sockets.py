"""Sockets are found by the end that is ours, and only what has nothing left to do is ended."""

import asyncio
import os
import socket

import pytest

from gateway.doors.grpc_sockets import end_idle, hang_up


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
    own = listening.getsockname()[1]
    (there, here), (busy_there, busy_here) = connected(listening), connected(listening)
    assert end_idle(own, {busy_there.getsockname()[1]}) == 2
    assert here.recv(1) == b""
    busy_there.send(b"x")
    assert busy_here.recv(1) == b"x"
    here.send(b"y")
    assert there.recv(1) == b"y", "what goes out still does"
    with pytest.raises(ConnectionRefusedError), socket.socket() as late:
        late.connect(("127.0.0.1", own))
    there.close()
    here.close()
    assert end_idle(own, set()) == 1
    assert busy_here.recv(1) == b""
    busy_there.close()
    busy_here.close()
    assert end_idle(own, set()) == 0


@pytest.mark.parametrize("listening", ["unix"], indirect=True)
def test_connections_of_a_unix_socket_are_busy_together(listening):
    there, here = connected(listening)
    assert end_idle(listening.getsockname(), {0}) == 1
    there.send(b"x")
    assert here.recv(1) == b"x"
    assert end_idle(listening.getsockname(), set()) == 1
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
        assert end_idle(listening.getsockname()[1], set()) == 0
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
    assert hang_up(written.format(ports[1]))
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
    assert not hang_up(peer)


def test_nothing_stays_open_of_looking_at_what_is_no_socket():
    """A copy of every open file is made to look at it, also of pipes and of the event loop's own."""
    pipe = os.pipe()
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        assert not hang_up("ipv4:127.0.0.1:1")
        end_idle(1, set())
    assert os.listdir("/proc/self/fd") == before
    for end in pipe:
        os.close(end)
