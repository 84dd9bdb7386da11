"""Ports of the loopback address for servers that come and go, and that nobody else is given meanwhile.

Rule of this file: it knows no server. A port that is only looked for is anybody's again at once: the kernel gives it to
the next who asks for any, and that may be another test's server, while ours starts or while it is away for a moment.
"""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Final, Self

HOST: Final = "127.0.0.1"


class Held:
    """``numbers``: ports that are this object's until it is closed. Whoever is told one may listen there, if it sets
    SO_REUSEADDR, as servers do."""

    def __init__(self, count: int = 1) -> None:
        """Raises OSError if there are not so many."""
        self._sockets = [socket.socket() for _ in range(count)]
        for each in self._sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind((HOST, 0))  # it never listens
        self.numbers: tuple[int, ...] = tuple(int(each.getsockname()[1]) for each in self._sockets)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Safe to call any number of times."""
        for each in self._sockets:
            each.close()
