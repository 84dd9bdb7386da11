"""Where a connection comes from, the same for every lane.

Rule of this file: a transport in, a value out. What a peer can choose itself is no address: a unix socket's client
may be bound to a path, and name it as it likes.
"""

from __future__ import annotations

import asyncio

from gateway.admission.forwarded import Origin


def origin_of(transport: asyncio.BaseTransport | None) -> Origin:
    """The other end of a connection; of one that is gone, what a unix socket's would be."""
    if transport is None:
        return Origin("")
    name = transport.get_extra_info("peername")
    secure = transport.get_extra_info("sslcontext") is not None
    return Origin(name[0] if isinstance(name, tuple) else "", secure)
