"""Where a door listens, or a replica does: ``HOST:PORT``, ``[V6]:PORT`` or ``unix:PATH``.

Rule of this file: it reads what is written, and opens nothing.
"""

from __future__ import annotations

import re

import msgspec


class Address(msgspec.Struct, frozen=True):
    """Where to listen: ``path`` for a unix socket, otherwise ``host`` and ``port`` (0: a free one)."""

    host: str = ""
    port: int = 0
    path: str = ""


def parse_address(written: str) -> Address:
    """``HOST:PORT``, ``[V6]:PORT`` or ``unix:PATH``; raises ValueError with the reason."""
    if written.startswith("unix:"):
        path = written.removeprefix("unix:")
        if not path or len(path.encode()) > 107:  # sockaddr_un.sun_path, less its NUL
            raise ValueError("unix:PATH needs a path of 1 to 107 bytes")
        return Address(path=path)
    host, colon, port = written.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"{written!r} is neither HOST:PORT (port 0 to 65535) nor unix:PATH")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{written!r}: write an IPv6 address as [ADDRESS]:PORT")
    if not host:
        raise ValueError(f"{written!r} has no host; 0.0.0.0 means every interface")
    return Address(host=host, port=int(port))
