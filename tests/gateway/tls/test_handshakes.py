"""The listening socket under TLS: what the system refuses is tried again, and nothing under way is forgotten."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.address import Address
from gateway.config_server import Tls
from gateway.doors import handshakes
from gateway.doors.certificates import Certificates
from gateway.doors.handshakes import Handshake, Handshakes, outcome_of
from gateway.doors.lane import Times
from gateway.doors.listener import bind

SECONDS = 10.0


class Lane:
    """The book."""

    def __init__(self) -> None:
        self.connections: list[Any] = []
        self.cuts: Counter[str] = Counter()
        self.options = SimpleNamespace(times=Times())

    def admit(self, connection: Any, address: str) -> bool:
        assert address == "addr:127.0.0.1"
        self.connections.append(connection)
        return True

    def ended(self, connection: Any, _: str) -> None:
        self.connections.remove(connection)


class Full(socket.socket):
    """A listening socket of a process that may open no more files, so many times."""

    refusals = 2

    def accept(self) -> Any:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@pytest.fixture
async def shared(pem: Any) -> AsyncIterator[Handshakes]:
    bound, _ = bind(Address("127.0.0.1", 0), False)
    listening = Full(fileno=bound.detach())
    listening.listen()
    lane: Any = Lane()
    made = Handshakes(listening, Certificates(Tls(str(pem.certificate), str(pem.key))), lane, asyncio.Protocol)
    yield made
    made.close()
    made.close()


def port(shared: Handshakes) -> int:
    found: int = shared._listening.getsockname()[1]
    return found


async def test_accepting_goes_on_when_there_are_files_again(
    shared: Handshakes, pem: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(handshakes, "RETRY_SECONDS", 0.05)
    async with asyncio.timeout(SECONDS):
        _, writer = await asyncio.open_connection("127.0.0.1", port(shared), ssl=pem.caller())
        while not shared.outcomes:  # noqa: ASYNC110 - under TLS 1.3 a client is done first
            await asyncio.sleep(0.001)
    writer.close()
    assert capsys.readouterr().out.count("cannot accept") == 2
    assert shared.outcomes == {"done": 1}


async def test_closing_while_there_are_no_files_stays_closed(
    shared: Handshakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshakes, "RETRY_SECONDS", 0.01)
    with socket.create_connection(("127.0.0.1", port(shared))):
        async with asyncio.timeout(SECONDS):
            while shared._retry is None:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.001)
        shared.close()
        await asyncio.sleep(0.05)  # longer than the retry: a call on the closed socket would be told as a bug


@pytest.mark.parametrize("turns", range(6))
async def test_a_handshake_is_ended_wherever_it_is(turns: int, shared: Handshakes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    theirs.setblocking(False)
    handshake = Handshake(shared, ours, "addr:127.0.0.1")
    handshake.begin()
    lane: Any = shared.lane
    assert lane.connections == [handshake]
    for _ in range(turns):
        await asyncio.sleep(0)
    handshake.abort()
    handshake.abort()
    async with asyncio.timeout(SECONDS):
        assert await asyncio.get_running_loop().sock_recv(theirs, 1) == b""
    theirs.close()
    assert lane.connections == []
    assert not shared.outcomes


def verification() -> ssl.SSLError:
    return ssl.SSLCertVerificationError(1, "certificate verify failed")


def because(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (verification(), "certificate"),
        (because("PEER_DID_NOT_RETURN_A_CERTIFICATE"), "certificate"),
        (because("HTTP_REQUEST"), "plain"),
        (because("WRONG_VERSION_NUMBER"), "protocol"),
        (ssl.SSLError(1, "no reason"), "protocol"),
        (ConnectionAbortedError("SSL handshake is taking longer than 10 seconds"), "timeout"),
        (ConnectionResetError(), "left"),
        (BrokenPipeError(), "left"),
    ],
)
def test_outcomes(error: OSError, outcome: str) -> None:
    assert outcome_of(error) == outcome
