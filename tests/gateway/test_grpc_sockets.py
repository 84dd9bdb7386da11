"""Sockets are found by the end that is ours, and only what has nothing left to do is ended."""

import os
import socket

import pytest

from gateway.doors.grpc_sockets import end_idle


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
