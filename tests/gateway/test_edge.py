"""One connection of the edge lane: whose bytes are whose, whenever they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gateway.admission.auth import Directory
from gateway.doors.edge import Clocks, EdgeConnection, EdgeLane, EdgeOptions
from gateway.doors.head import Heads
from gateway.operate.telemetry import Telemetry

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"


class Transport:
    """A peer that reads everything."""

    def get_extra_info(self, name: str) -> object:
        return ("127.0.0.1", 1) if name == "peername" else None

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        return None

    resume_reading = pause_reading


class Theirs:
    """The other lane: keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[bytes] = []

    def connection_made(self, transport: object) -> None:
        return None

    def data_received(self, data: bytes) -> None:
        self.given.append(data)


@pytest.fixture
def open_connection() -> Callable[[], tuple[EdgeConnection, Theirs]]:
    """A connection whose every request is the other lane's, and that lane."""

    def made() -> tuple[EdgeConnection, Theirs]:
        theirs: Any = Theirs()
        nothing: Any = None
        lane = EdgeLane(
            Heads({}, Directory({}, True), 8192),
            nothing,
            Telemetry(lambda: 0.0),
            lambda _: theirs,
            Clocks(lambda: 0.0, lambda: 0.0),
            EdgeOptions(8192, 10, 10),
        )
        connection = lane()
        transport: Any = Transport()
        connection.connection_made(transport)
        return connection, theirs

    return made


@pytest.mark.parametrize("cut", range(1, len(POST + LIVE)))
async def test_what_waited_comes_before_what_comes_now(
    cut: int, open_connection: Callable[[], tuple[EdgeConnection, Theirs]]
) -> None:
    connection, theirs = open_connection()
    connection.data_received(LIVE + (POST + LIVE)[:cut])
    assert theirs.given == [LIVE]
    connection.foreign_done()
    connection.data_received((POST + LIVE)[cut:])  # before the loop has turned
    assert b"".join(theirs.given) == LIVE + POST
    connection.foreign_done()
    connection.data_received(b"")
    assert b"".join(theirs.given) == LIVE + POST + LIVE
