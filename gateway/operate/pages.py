"""Whether what is asked of the admin port may be asked by a page in somebody's browser, who knows nothing of it.

Rule of this file: a request in, a problem out. The admin port has no keys: where it listens says who may change
something. On loopback that is whoever has a login on this host, and with them every page that a browser there shows,
for a browser sends what a page tells it to. Two things give such a request away. A browser says ``Origin`` with every
POST (Fetch standard, "append a request Origin header"), also to the very server that the page came from. And a page
that has pointed its own name at 127.0.0.1 (DNS rebinding), which to the browser is then that server, has its name in
``Host``, and cannot make it an address.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from socket import gethostname
from typing import Final

from aiohttp import web

from gateway.problem import Problem, forbidden

_HOST: Final = re.compile(r"(?:\[(.+)\]|([^:]+))(?::[0-9]*)?")
"""RFC 9110 section 7.2; an IPv6 address in brackets, or a name or an IPv4 address."""


def page_fault(request: web.BaseRequest, name: str = "") -> Problem | None:
    """403 for what a page may have sent; None for anything else. ``name``: by which, too, this port may be asked on
    loopback; the configured one.

    Whoever comes by another way than loopback may call this host as it likes: there it has a name.
    """
    if "Origin" in request.headers:
        return forbidden("A page in a browser (Origin) changes nothing here. Ask without that field.")
    if not _on_loopback(request):
        return None
    for host in request.headers.getall("Host", ()):
        if not _is_here(host, name):
            detail = f"Nothing on loopback is called {host!r} (Host). Ask localhost, this host's name, or an address."
            return forbidden(detail)
    return None


def _on_loopback(request: web.BaseRequest) -> bool:
    """Whether our own end of the connection is an address that only this host reaches."""
    here = None if request.transport is None else request.transport.get_extra_info("sockname")
    if not isinstance(here, tuple):
        return False
    address = ip_address(here[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _is_here(host: str, name: str) -> bool:
    found = _HOST.fullmatch(host)
    if found is None:
        return False
    called = found[1] or found[2].rstrip(".").lower()
    if called in ("localhost", name.lower(), gethostname().lower()):  # a page's name is none of these
        return True
    try:
        ip_address(called)
    except ValueError:
        return False
    return True
