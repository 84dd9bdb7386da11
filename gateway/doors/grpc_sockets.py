"""The sockets of a listener that is not ours to close, found by the addresses of their two ends.

Rule of this file: it ends what comes in by a socket of this process, or all of one, and says how much has come by it;
it knows nothing of who reads it. grpc for Python has no word for "take nobody new", nor for "this connection has
nothing left to do", "this caller takes no answer", "so much of a message has come".

To stop grpc is one step, in which calls that it has received and not begun are CANCELLED, and those no client tries
again. A connection that ends is UNAVAILABLE, which clients do try again: so whoever has nothing left to do here is told
the end of the stream, as if the caller had closed, and grpc closes its own side.

A call whose answer is not taken stays in grpc with all it holds for as long as its caller answers pings: a status waits
behind the answer, and nothing resets a stream. So that connection is shut below grpc, which sees it end and lets go
of everything.

Every look is at all open files of the process. With thousands of them the first takes a tenth of a second and later
ones, which know most of them again, a few milliseconds: neither is for the event loop.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Mapping, Set
from pathlib import Path
from time import sleep
from typing import Final
from urllib.parse import unquote

import msgspec

OPEN_FILES: Final = Path("/proc/self/fd")
"""Where Linux tells a process's open files. Elsewhere none are seen, and so none are ended."""

Endpoint = tuple[str, int]
"""An address and a port; of a unix socket its path and 0."""

RECEIVED_AT: Final = 128
"""Where ``tcpi_bytes_received`` is in Linux's ``struct tcp_info``."""


LOOK_SECONDS: Final = 0.02
"""How long it is looked at who is receiving: in less, hardly anyone would be seen who is not fast."""


class _Known(msgspec.Struct):
    """A socket; its ``inode`` is its own for as long as it is open, while the file's number is another's after that.
    ``own`` is None unless it is a stream's, ``peer`` None of one that listens; ``ended``: it has been told the end."""

    inode: int
    own: Endpoint | None = None
    peer: Endpoint | None = None
    ended: bool = False


class Sockets:
    """The sockets of this process, known again from look to look."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}

    def end_idle(self, own: int | str, busy: Set[int]) -> int:
        """End every socket whose own end is this port, or this path: the one that listens, and each connection whose
        other end's port (0 for a unix socket's) is not ``busy``. How many connections there are."""
        assert own, "a port or a path; 0 would be every unix socket's"
        connections = 0
        for file, known in self._look().items():
            if known.own is None or known.own[isinstance(own, int)] != own:
                continue
            if known.peer is not None:
                connections += 1
                if known.peer[1] in busy:
                    continue
            if not known.ended:
                with contextlib.suppress(OSError), _copy(file, known.inode) as copy:
                    copy.shutdown(socket.SHUT_RD)
                    known.ended = True
        return connections

    def hang_up(self, peer: str) -> bool:
        """Shut the connection that leads to a gRPC ``peer`` (``ipv4:1.2.3.4:5``, ``ipv6:%5B::1%5D:5``); whether there
        was one. Who came by a unix socket has no address to be found by."""
        wanted = _endpoint(peer)
        for file, known in self._look().items() if wanted is not None else ():
            if known.peer == wanted:
                with contextlib.suppress(OSError), _copy(file, known.inode) as copy:
                    copy.shutdown(socket.SHUT_RDWR)
                    return True
        return False

    def received(self, peers: Set[str]) -> tuple[dict[str, int], dict[str, int]]:
        """How many bytes have come by the connections that lead to these gRPC peers since they began, and how many
        LOOK_SECONDS later. Without those of whom it cannot be known: who has left, or came by a unix socket."""
        wanted = {end: peer for peer in peers if (end := _endpoint(peer)) is not None}
        before = self._received(wanted)
        sleep(LOOK_SECONDS)
        return before, self._received(wanted)

    def _received(self, wanted: Mapping[Endpoint, str]) -> dict[str, int]:
        told = {}
        for file, known in self._look().items():
            peer = None if known.peer is None else wanted.get(known.peer)
            if peer is None:
                continue
            with contextlib.suppress(OSError, struct.error), _copy(file, known.inode) as copy:
                info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, RECEIVED_AT + 8)
                (told[peer],) = struct.unpack_from("=Q", info, RECEIVED_AT)
        return told

    def _look(self) -> dict[int, _Known]:
        found = {}
        for file in _open_files():
            with contextlib.suppress(OSError):
                status = os.fstat(file)
                if stat.S_ISSOCK(status.st_mode):
                    known = self._known.get(file)
                    found[file] = known if known is not None and known.inode == status.st_ino else _learned(file)
        self._known = found
        return found


def _learned(file: int) -> _Known:
    """Raises OSError also for a socket that is not connected yet: what it is will be asked again."""
    with _copy(file) as copy:
        known = _Known(os.fstat(copy.fileno()).st_ino)
        if copy.type == socket.SOCK_STREAM and copy.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            known.own = _told(copy.getsockname())
            if not copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                known.peer = _told(copy.getpeername())
        return known


def _copy(file: int, inode: int | None = None) -> socket.socket:
    """Another hold on an open socket: it stays that socket whatever becomes of the file's number. Raises OSError for
    what is none, or not the one that had this inode."""
    copy = os.dup(file)
    try:
        if inode is not None and os.fstat(copy).st_ino != inode:
            raise OSError("it has been closed, and its number given to another")
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _endpoint(peer: str) -> Endpoint | None:
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return _told((host.removeprefix("[").removesuffix("]"), int(port)))


def _told(name: object) -> Endpoint:
    """Address and port, however either side writes them; of a unix socket its path and 0."""
    if not isinstance(name, tuple):
        return (name if isinstance(name, str) else ""), 0
    address = ipaddress.ip_address(name[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address), int(name[1])


def _open_files() -> list[int]:
    try:
        return [int(name) for name in os.listdir(OPEN_FILES)]
    except OSError:
        return []
