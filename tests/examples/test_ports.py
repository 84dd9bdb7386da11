"""Ports that are kept for servers that come and go."""

from __future__ import annotations

import errno
import socket

import pytest

from examples.ports import HOST, Held

OTHERS = 20_000
"""Of some 14,000 ports that the kernel gives: one that is not kept is among those three times in four."""


def listening(number: int, reuses: bool) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuses))
    try:
        made.bind((HOST, number))
        made.listen()
    except OSError:
        made.close()
        raise
    return made


def test_a_server_comes_and_goes_on_a_port_that_nobody_else_is_given() -> None:
    with Held(2) as held:
        one, other = held.numbers
        assert one != other
        for _ in range(2):
            with listening(one, True), socket.create_connection((HOST, one)):
                pass
        with pytest.raises(OSError) as refused:
            listening(one, False)
        assert refused.value.errno == errno.EADDRINUSE
        for reuses in (True, False):
            for _ in range(OTHERS // 2):
                with listening(0, reuses) as another:
                    assert another.getsockname()[1] not in held.numbers
    listening(one, False).close()  # anybody's again
