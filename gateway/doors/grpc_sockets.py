"""The sockets of a listener that is not ours to close, found by the addresses of their two ends.

Rule of this file: it ends what comes in by a socket of this process, or all of one, and knows nothing of who reads it.
grpc for Python has no word for "take nobody new", nor for "this connection has nothing left to do", nor for "this
caller takes no answer".

To stop grpc is one step, in which calls that it has received and not begun are CANCELLED, and those no client tries
again. A connection that ends is UNAVAILABLE, which clients do try again: so whoever has nothing left to do here is told
the end of the stream, as if the caller had closed, and grpc closes its own side.

A call whose answer is not taken stays in grpc with all it holds for as long as its caller answers pings: a status waits
behind the answer, and nothing resets a stream. So that connection is shut below grpc, which sees it end and lets go
of everything.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Set
from pathlib import Path
from typing import Final
from urllib.parse import unquote

OPEN_FILES: Final = Path("/proc/self/fd")
"""Where Linux tells a process's open files. Elsewhere none are seen, and so none are ended."""


def end_idle(own: int | str, busy: Set[int]) -> int:
    """End every socket of this process whose own end is this port, or this path: the one that listens, and each
    connection whose other end's port (0 for a unix socket's) is not ``busy``. How many connections there are."""
    connections = 0
    for file in _open_files():
        with contextlib.suppress(OSError), _copy(file) as copy:
            if copy.type != socket.SOCK_STREAM or _end(copy.getsockname()) != own:
                continue
            if not copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                peer = _end(copy.getpeername())
                connections += 1
                if (peer if isinstance(peer, int) else 0) in busy:
                    continue
            copy.shutdown(socket.SHUT_RD)
    return connections


def hang_up(peer: str) -> bool:
    """Shut the connection that leads to a gRPC ``peer`` (``ipv4:1.2.3.4:5``, ``ipv6:%5B::1%5D:5``); whether there was
    one. Who came by a unix socket has no address to be found by. Looks at every open file: not for the event loop.
    """
    wanted = _endpoint(peer)
    if wanted is None:
        return False
    for file in _open_files():
        with contextlib.suppress(OSError), _copy(file) as copy:
            if copy.family in (socket.AF_INET, socket.AF_INET6) and _told(copy.getpeername()) == wanted:
                copy.shutdown(socket.SHUT_RDWR)
                return True
    return False


def _copy(file: int) -> socket.socket:
    """Another hold on an open socket: it stays that socket whatever becomes of the file's number. Raises OSError for
    what is none."""
    copy = os.dup(file)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _end(name: object) -> int | str:
    """The port of an address, or the path of a unix socket's."""
    if isinstance(name, tuple):
        return int(name[1])
    return name if isinstance(name, str) else ""


def _endpoint(peer: str) -> tuple[str, int] | None:
    kind, _, rest = unquote(peer).partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in ("ipv4", "ipv6") or not port.isdigit():
        return None
    return _told((host.removeprefix("[").removesuffix("]"), int(port)))


def _told(name: tuple[str, int] | tuple[str, int, int, int]) -> tuple[str, int]:
    """Address and port, however either side writes them."""
    address = ipaddress.ip_address(name[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address), name[1]


def _open_files() -> list[int]:
    try:
        return [int(name) for name in os.listdir(OPEN_FILES)]
    except OSError:
        return []
