"""Who is asking: API keys to callers that the configuration names.

Rule of this file: a key itself is never kept, only its SHA-256, and never appears in a message. It
must not know HTTP beyond the values of two headers, nor what a caller may do.

The look-up by digest needs no constant-time comparison. Timing could at most tell how much of the
*digest* of a guess matches a stored digest; to use that, a guesser would have to choose keys by
their digest, which is finding partial preimages of SHA-256, and would then know a part of a digest,
which does not lead back to the key. Keys must be long and random (a generated key is): SHA-256
without salt and stretching protects those, and would not protect a password.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from degrade.gate import Priority
from gateway.admission.quota import Quota

KEY_BYTES_MAX: Final = 512
"""Longest key that is looked at: well above any generated key, and a bound on the hashing."""

AUTHORIZATION_BYTES_MAX: Final = KEY_BYTES_MAX + 64
"""Longest `Authorization` value: a key, its scheme, and some spaces."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Caller(msgspec.Struct, frozen=True):
    """Who asks. ``tenant`` parts the cache ("" is the common one); ``quota`` None: the route's only.
    ``hits_count`` says whether answers from the cache use ``quota`` up too. ``priority`` None: the route's."""

    name: str
    tenant: str
    quota: Quota | None = None
    hits_count: bool = False
    priority: Priority | None = None

    @property
    def owner(self) -> str:
        """Whose requests are one's own: a tenant's callers are one, and who has no tenant is one by himself."""
        return f"tenant:{self.tenant}" if self.tenant else self.name


class Unauthenticated(Exception):
    """Nobody we know. ``reason`` is one word: missing, unknown, scheme, conflict, malformed."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def key_digest(key: str) -> str:
    """The SHA-256 of an ASCII key in lower-case hex, as the configuration holds it."""
    return hashlib.sha256(key.encode("ascii")).hexdigest()


def anonymous_name(peer: str) -> str:
    """What a caller without a key is called: ``addr:`` and where it comes from.

    IPv6 addresses count by their /64, IPv4 by the whole address, also one that is mapped into IPv6. A host on
    IPv6 has a /64 to itself (RFC 6177, RFC 8981) and could take a new address, and with it a new quota, for
    each request. What is no address (``local``, for a unix socket) stands for itself.
    """
    if ":" not in peer:
        return f"addr:{peer}"
    try:
        address = ipaddress.IPv6Address(peer.partition("%")[0])
    except ValueError:
        return f"addr:{peer}"
    if address.ipv4_mapped is not None:
        return f"addr:{address.ipv4_mapped}"
    return f"addr:{ipaddress.IPv6Network((address.packed, 64), strict=False)}"


class Directory:
    """The callers by the SHA-256 (64 hex digits) of their keys. Immutable once made."""

    def __init__(self, keys: Mapping[str, Caller], anonymous: bool) -> None:
        self._callers: dict[str, Caller] = {}
        for digest, caller in keys.items():
            folded = digest.lower()
            if not _DIGEST.fullmatch(folded):
                raise ValueError(f"the key of caller {caller.name!r} is not a SHA-256 in 64 hex digits")
            if folded in self._callers:
                raise ValueError(f"caller {caller.name!r} has the key of {self._callers[folded].name!r}")
            self._callers[folded] = caller
        self._anonymous = anonymous

    @property
    def has_keys(self) -> bool:
        """Whether any key is known here: without one, credentials are not for us."""
        return bool(self._callers)

    def identify(self, authorization: str | None, api_key: str | None, peer: str) -> Caller:
        """The caller of a request with these `Authorization` and `X-API-Key` values.

        With neither, where anonymous callers are allowed: ``anonymous_name(peer)`` with no tenant. A key
        that is presented must be right, also there: a typing error must not become another quota
        and another tenant. Raises `Unauthenticated`.
        """
        if not self._callers:  # no keys of ours: a credential here is meant for somebody behind us
            return Caller(name=anonymous_name(peer), tenant="")
        presented = None if authorization is None else _bearer(authorization)
        if api_key is not None:
            key = _bounded(api_key.strip(" \t"))
            if presented is not None and presented != key:
                raise Unauthenticated("conflict", "Authorization and X-API-Key hold different keys")
            presented = key
        if presented is None:
            if self._anonymous:
                return Caller(name=anonymous_name(peer), tenant="")
            raise Unauthenticated("missing", "a key is needed: Authorization: Bearer <key>, or X-API-Key")
        caller = self._callers.get(key_digest(presented))
        if caller is None:
            raise Unauthenticated("unknown", "the key is not known here")
        return caller


def _bearer(authorization: str) -> str:
    if len(authorization) > AUTHORIZATION_BYTES_MAX:
        raise Unauthenticated("malformed", f"Authorization is longer than {AUTHORIZATION_BYTES_MAX} bytes")
    scheme, _, key = authorization.strip(" \t").partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("scheme", "Authorization is not of the Bearer scheme")
    return _bounded(key.strip(" \t"))


def _bounded(key: str) -> str:
    if not key:
        raise Unauthenticated("malformed", "the key is empty")
    if len(key) > KEY_BYTES_MAX:
        raise Unauthenticated("malformed", f"the key is longer than {KEY_BYTES_MAX} bytes")
    # Bytes above ASCII come decoded one way or another, by door; a key must be one thing everywhere.
    if not all("!" <= char <= "~" for char in key):
        raise Unauthenticated("malformed", "the key holds something else than visible ASCII")
    return key
