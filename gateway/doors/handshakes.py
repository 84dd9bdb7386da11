"""The listening socket of a door with TLS, and the handshakes under way behind it.

Rule of this file: who connects is in the lane's book from the first moment, so that the limits on connections hold
for peers that never end their handshake; the loop's own servers tell of a connection only after that. It accepts,
counts and bounds; the handshake itself is the loop's. What a failed one was is a word and a number, not a log line:
anyone can make as many as they like.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from gateway.admission.auth import anonymous_name
from gateway.doors.certificates import Certificates
from gateway.doors.lane import EdgeLane
from gateway.doors.secured import Secured

ACCEPTED_MAX: Final = 64
"""Connections taken in one turn of the loop: who is served already must not wait for all who come."""

RETRY_SECONDS: Final = 1.0
"""How long nobody is accepted after the system had no file or memory for it."""

_WORDS: Final[Mapping[str | None, str]] = {"PEER_DID_NOT_RETURN_A_CERTIFICATE": "certificate", "HTTP_REQUEST": "plain"}
"""Of OpenSSL's reasons; every other one is "protocol"."""

_log = structlog.get_logger("tailrace")


def outcome_of(error: OSError) -> str:
    """Why a handshake failed, in one word."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return "certificate"
    if isinstance(error, ssl.SSLError):
        return _WORDS.get(getattr(error, "reason", None), "protocol")
    return "timeout" if isinstance(error, ConnectionAbortedError | TimeoutError) else "left"


class Handshakes:
    """A listening socket, as long as it is not closed. ``make`` gives the protocol of one connection."""

    def __init__(
        self,
        listening: socket.socket,
        certificates: Certificates,
        lane: EdgeLane,
        make: Callable[[], asyncio.Protocol],
    ) -> None:
        self.certificates = certificates
        self.lane = lane
        self.make = make
        self.outcomes: Counter[str] = Counter()
        """Handshakes by their end: done, or why not."""
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._retry: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        self._loop.add_reader(listening.fileno(), self._accept)

    def close(self) -> None:
        """Accept nobody any more. Handshakes under way are in the lane's book, and end with its connections."""
        if self._listening.fileno() >= 0:
            if self._retry is not None:
                self._retry.cancel()
            self._loop.remove_reader(self._listening.fileno())
            self._listening.close()

    def _accept(self) -> None:
        for _ in range(ACCEPTED_MAX):
            try:
                connected, address = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue  # it has left before we came
            except OSError as error:
                _log.error("cannot accept", error=error.strerror, again_in_seconds=RETRY_SECONDS)
                self._loop.remove_reader(self._listening.fileno())
                self._retry = self._loop.call_later(RETRY_SECONDS, self._again)
                return
            Handshake(self, connected, anonymous_name(address[0])).begin()

    def _again(self) -> None:
        self._retry = None
        self._loop.add_reader(self._listening.fileno(), self._accept)


class Handshake:
    """One connection until its handshake has ended, in the lane's book as any other."""

    __slots__ = ("_address", "_connected", "_ended", "_handed_over", "_shared", "_task", "limit")

    def __init__(self, shared: Handshakes, connected: socket.socket, address: str) -> None:
        self._shared = shared
        self._connected = connected
        self._address = address
        self._ended = False
        self._handed_over = False  # the loop closes the socket
        self._task: asyncio.Task[None] | None = None
        self.limit = math.inf  # the loop's own timer bounds a handshake

    def begin(self) -> None:
        """Start, or end at once where there are too many."""
        if self._shared.lane.admit(self, self._address):
            self._connected.setblocking(False)
            self._task = asyncio.get_running_loop().create_task(self._run())
            self._task.add_done_callback(self._over)
        else:
            self._connected.close()
            self._end()

    async def _run(self) -> None:
        shared, times = self._shared, self._shared.lane.options.times
        self._handed_over = True
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Secured(self._made),
                self._connected,
                ssl=shared.certificates.context,
                ssl_handshake_timeout=times.head,
                ssl_shutdown_timeout=times.write,
            )
        except OSError as error:
            outcome = outcome_of(error)
            shared.outcomes[outcome] += 1
            if outcome == "timeout":
                shared.lane.cuts["handshake"] += 1

    def _over(self, task: asyncio.Task[None]) -> None:
        self._end()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("bug", exc_info=error)
        if task.cancelled() or error is not None:
            with contextlib.suppress(OSError):  # the loop may not have begun to read it, and would not see it end
                self._connected.shutdown(socket.SHUT_RDWR)
        if not self._handed_over:
            self._connected.close()

    def _made(self) -> asyncio.Protocol:
        """It is done: the connection takes its own place in the book."""
        self._shared.outcomes["done"] += 1
        self._end()
        return self._shared.make()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._shared.lane.ended(self, self._address)

    # -- as its lane sees it ------------------------------------------------------------------------

    def expire(self) -> None:
        self.abort()

    def finish(self) -> None:
        """Draining: no request has begun."""
        self.abort()

    def abort(self) -> None:
        if self._task is not None:
            self._task.cancel()
