"""Who is behind a proxy, as far as it may be believed, and what a replica is told of it.

Rule of this file: pure. What anybody can write into a head is believed only if it comes from a proxy that the
configuration names, and only as far as that one can know: each proxy adds whom it was asked by at the end, so the
hops are read from there, and the first that is no proxy of ours is the client (RFC 7239 section 8.1). One field is
read, never both: a proxy that writes one of them lets a client's own other one pass.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from multidict import CIMultiDict, CIMultiDictProxy

from cache.memo import Memo

Headers = CIMultiDict[str] | CIMultiDictProxy[str]
Pairs = tuple[tuple[str, str], ...]

UNIX: Final = "unix"
"""In a list of trusted proxies: whoever comes by a unix socket."""

FORWARDED: Final = "Forwarded"
FOR: Final = "X-Forwarded-For"
_PROTO: Final = "X-Forwarded-Proto"
_HOST: Final = "X-Forwarded-Host"
_TOLD: Final = frozenset({"forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip"})

HOPS_MAX: Final = 16
"""Proxies in a row that are looked through: more than any sane installation has."""

TOLD_MAX: Final = 1024
TOLD_BYTES_MAX: Final = 4 * 2**20
"""Heads remembered as a replica gets them, one for each client address and form of head; and what they take."""

_PAIR_BYTES: Final = 200
"""What a field takes beside its characters, twice: as it came and as it is told."""

VALUE_CHARS_MAX: Final = 4096
"""Of the field, all its lines together: HOPS_MAX elements have a quarter of it. A longer one names nobody."""

# Possessive throughout: nothing is tried twice, whatever anybody writes.
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_VALUE: Final = rf'"(?P<quoted>(?:[^"\\]|\\.)*+)"|(?P<token>{_TOKEN})'
_PAIR: Final = re.compile(rf"[ \t]*+(?:(?P<name>{_TOKEN})=(?:{_VALUE}))?+[ \t]*+(?P<end>[;,]|\Z)")

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Origin(msgspec.Struct, frozen=True):
    """The other end of a connection: its address ("" for a unix socket), and whether what it sends is encrypted."""

    address: str
    secure: bool = False


class Proxies:
    """The proxies whose word is believed: addresses and networks, and UNIX. ``field``: where it stands, FOR or
    FORWARDED. Raises ValueError for what is no address or network."""

    def __init__(self, trusted: Iterable[str] = (), field: str = FOR) -> None:
        named = tuple(trusted)
        self._networks = tuple([network(text) for text in named if text != UNIX])
        self._unix = UNIX in named
        self._field = field
        self._told: Memo[tuple[Pairs, Origin], Pairs] = Memo(TOLD_MAX, TOLD_BYTES_MAX)

    def hops(self, headers: Headers) -> tuple[str, ...]:
        """The addresses that a head names, the nearest last, "" for what is none; nothing if nobody is trusted."""
        if not self._networks and not self._unix:
            return ()
        value = ", ".join(headers.getall(self._field, ()))
        if len(value) > VALUE_CHARS_MAX:
            return ()
        named = _named(value) if self._field == FORWARDED else [part.strip(" \t") for part in value.split(",")]
        return tuple([_address(text) for text in named[-HOPS_MAX:]]) if value else ()

    def client(self, address: str, hops: Sequence[str]) -> str:
        """Where a request comes from that came from ``address`` and names these hops."""
        for hop in reversed(hops):
            if not hop or not self.trusts(address):
                break
            address = hop
        return address

    def trusts(self, address: str) -> bool:
        """Whether a proxy of ours is there; "": a unix socket."""
        if not address:
            return self._unix
        if not self._networks:
            return False
        known = _parsed(address)
        return known is not None and any(known in each for each in self._networks)

    def told(self, fields: Pairs, origin: Origin) -> Pairs:
        """A request's fields as a replica gets them: with whom it comes from, and how that one reached us, at the
        end of what a trusted proxy has said of it; what others have said is left out."""
        key = fields, origin
        told = self._told.get(key)
        if told is None:
            told = self._with_origin(fields, origin)
            self._told.put(key, told, sum([_PAIR_BYTES + len(name) + len(value) for name, value in told]))
        return told

    def _with_origin(self, fields: Pairs, origin: Origin) -> Pairs:
        said: dict[str, list[str]] = {name: [] for name in ("host", *_TOLD)}
        believed = self.trusts(origin.address)
        for name, value in fields:
            lowered = name.lower()
            if lowered in said and (believed or lowered == "host"):
                said[lowered].append(value)
        address = _address(origin.address)
        proto = "https" if origin.secure else "http"
        found = [pair for pair in fields if pair[0].lower() not in _TOLD]
        hops = ", ".join([*said["x-forwarded-for"], *([address] if address else [])])
        if hops:
            found.append((FOR, hops))
        found.append((_PROTO, ", ".join(said["x-forwarded-proto"]) or proto))
        host = ", ".join(said["x-forwarded-host"] or said["host"][:1])
        if host:
            found.append((_HOST, host))
        if said["forwarded"]:
            found.append((FORWARDED, ", ".join([*said["forwarded"], _element(address, proto)])))
        found += [("X-Real-IP", value) for value in said["x-real-ip"]]
        return tuple(found)


def network(text: str) -> _Network:
    """An address, or a network (``10.0.0.0/8``). Raises ValueError, also for one that could never match."""
    named = ipaddress.ip_network(text)
    if isinstance(named, ipaddress.IPv6Network) and named.network_address.ipv4_mapped is not None:
        raise ValueError(f"{text!r} is IPv4 within IPv6, which is known here by its IPv4 address")
    return named


def _named(value: str) -> list[str]:
    """What each element of `Forwarded` says in ``for`` (RFC 7239 section 4), as far as it can be read: of what
    cannot, the last element alone, so that nobody's odd beginning hides what a proxy has added to it."""
    found, current, at = [], "", 0
    while True:
        pair = _PAIR.match(value, at)
        if pair is None:
            _, comma, last = value.rpartition(",")
            return ["", *_named(last)] if comma else [""]
        if (pair["name"] or "").lower() == "for":
            current = pair["token"] or re.sub(r"\\(.)", r"\1", pair["quoted"] or "")
        if pair["end"] != ";":
            found.append(current)
            current = ""
        if not pair["end"]:
            return found
        at = pair.end()


def _address(text: str) -> str:
    """An address without its port, as one text for each; "" for what is none (``unknown``, ``_hidden``)."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    known = _parsed(text)
    return "" if known is None else str(known)


def _parsed(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _element(address: str, proto: str) -> str:
    """An element of `Forwarded`: IPv6 addresses in brackets and quotes."""
    node = f'"[{address}]"' if ":" in address else address or "unknown"
    return f"for={node};proto={proto}"
