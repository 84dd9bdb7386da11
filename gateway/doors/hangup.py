"""Hang up on a gRPC caller, which grpc for Python has no way to do.

Rule of this file: it knows descriptors of this process and whom they lead to, and no call. A call whose answer is not
taken stays in grpc with all it holds for as long as its caller answers pings: a status waits behind the answer, and
nothing resets a stream. So the connection is shut below grpc, which sees it end and lets go of everything.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Final
from urllib.parse import unquote

DESCRIPTORS: Final = "/proc/self/fd"


def hang_up(peer: str) -> bool:
    """Shut the connection that leads to a gRPC ``peer`` (``ipv4:1.2.3.4:5``, ``ipv6:%5B::1%5D:5``); whether there was
    one. Who came by a unix socket has no address to be found by. Looks at every open file: not for the event loop.
    """
    wanted = _endpoint(peer)
    if wanted is None:
        return False
    for name in os.listdir(DESCRIPTORS):
        try:
            own = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # no socket, or closed meanwhile
            continue
        with own:
            try:
                if own.family in (socket.AF_INET, socket.AF_INET6) and _told(own.getpeername()) == wanted:
                    own.shutdown(socket.SHUT_RDWR)
                    return True
            except OSError:  # not connected (any more)
                continue
    return False


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
