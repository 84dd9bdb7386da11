"""The certificate of the doors: what is wrong with its files, and how new ones are taken up.

Rule of this file: files in, an SSL context out; it knows no connection. A context is made whole or not at all, and
never changed: new files make a new one, which the handshakes after that use, so that nothing half renewed is ever
shown, and what the old one let in (resumed sessions, clients of an authority that is gone) ends with it.
"""

from __future__ import annotations

import math
import os
import re
import ssl
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Final

import structlog

from gateway.config_server import Tls
from gateway.doors.x509 import certificates_in

Sleep = Callable[[float], Awaitable[None]]
Stamp = tuple[tuple[int, int, int] | None, ...]

RENEWAL_SECONDS: Final = 5.0
"""How often the files are looked at; how late a new certificate may be shown."""

ALPN: Final = ("http/1.1",)

_MINIMUM: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CERTIFICATE: Final = re.compile(rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----")
_KEY: Final = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
_ENCRYPTED: Final = "is encrypted, which is not supported; write it plainly: openssl pkey -in KEY -out PLAIN"

_log = structlog.get_logger("tailrace")


class Unusable(Exception):
    """The files cannot be used. ``faults`` has one line per fault, each with its key's path."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class _Encrypted(Exception):
    """OpenSSL asks for a key's password."""


def context_of(tls: Tls) -> ssl.SSLContext:
    """A server's context; raises Unusable with every fault there is.

    The standard library's defaults for servers (ciphers, no compression), less renegotiation, which HTTP has no use
    for and with which one peer can make us do handshake after handshake.
    """
    found = tuple(_file_faults(tls))
    if found:
        raise Unusable(found)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _MINIMUM[tls.minimum]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(list(ALPN))
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_ask)
    except _Encrypted:
        raise Unusable((f"server.tls.key: {tls.key}: {_ENCRYPTED}",)) from None
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise Unusable((_pair_fault(tls, error),)) from None
    if tls.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(cafile=tls.client_ca)
        except (OSError, ValueError) as error:
            raise Unusable((f"server.tls.client_ca: {tls.client_ca}: cannot be used: {_word(error)}",)) from None
    return context


def faults(tls: Tls | None) -> tuple[str, ...]:
    """What is wrong with the files that a configuration names."""
    try:
        if tls is not None:
            context_of(tls)
    except Unusable as unusable:
        return unusable.faults
    return ()


def doubts(tls: Tls | None, now: float) -> Iterator[str]:
    """What is wrong with files that can be used all the same, at ``now`` in seconds since 1970: callers will refuse a
    certificate that has expired, and none has one that was signed by what is no authority's."""
    if tls is None or faults(tls):
        return
    for key, path in (("certificate", tls.certificate), ("client_ca", tls.client_ca)):
        if path is None:
            continue
        try:
            with open(path, "rb") as file:
                found = certificates_in(file.read())
        except (OSError, ValueError) as error:
            yield f"server.tls.{key}: {path}: cannot be read: {_word(error)}"
            continue
        for place, each in enumerate(found, 1):
            said = f"server.tls.{key}: {path}: certificate {place} of {len(found)}"
            if each.ends < now:
                yield f"{said} has expired on {_date(each.ends)}; renew it"
            if each.begins > now:
                yield f"{said} holds from {_date(each.begins)} on; is this machine's clock right?"
            if key == "client_ca" and not each.signs:
                yield f"{said} is no authority's; give that of the authority that signs clients' certificates"


class Certificates:
    """The context of the day. Raises Unusable if there is none to begin with."""

    def __init__(self, tls: Tls) -> None:
        self.tls = tls
        self._seen = _stamp(tls)  # before they are read: what changes meanwhile is seen as changed
        self.context = context_of(tls)
        self.ends = _ends(tls)
        """When the first certificate of the chain in use ends, in seconds since 1970; infinity: it cannot be told."""
        self.renewals = 0
        self.fault = ""
        """Why the files as they are now cannot be used, if so; the context before them stays in use."""

    def renew(self) -> None:
        """Take up new files, if they have changed and can be used. What cannot is tried again each time: of two
        files one is always written first."""
        stamp = _stamp(self.tls)
        if stamp == self._seen and not self.fault:
            return
        try:
            context = context_of(self.tls)
        except Unusable as unusable:
            if str(unusable) != self.fault:
                _log.error("new certificate is not used", faults=unusable.faults)
            self.fault = str(unusable)
            return
        self.context, self._seen, self.fault, self.ends = context, stamp, "", _ends(self.tls)
        self.renewals += 1
        _log.info("certificate renewed", certificate=self.tls.certificate)

    async def run(self, interval: float, sleep: Sleep) -> None:
        """Look every ``interval`` seconds, for ever."""
        while True:
            await sleep(interval)
            self.renew()


def _file_faults(tls: Tls) -> Iterator[str]:
    named = (
        ("certificate", tls.certificate, _CERTIFICATE, "certificate", "the server's, then those of its issuers"),
        ("key", tls.key, _KEY, "private key", "that of server.tls.certificate"),
        ("client_ca", tls.client_ca, _CERTIFICATE, "certificate", "of the authority that signs clients' certificates"),
    )
    for key, path, form, noun, whose in named:
        if path is None:
            continue
        try:
            with open(path, "rb") as file:
                text = file.read()
        except (OSError, ValueError) as error:
            yield f"server.tls.{key}: {path}: cannot be read: {_word(error)}; name a PEM file: {whose}"
            continue
        if not form.search(text):
            yield f"server.tls.{key}: {path}: holds no {noun} in PEM form; it must: {whose}"


def _ends(tls: Tls) -> float:
    try:
        with open(tls.certificate, "rb") as file:
            return min((each.ends for each in certificates_in(file.read())), default=math.inf)
    except (OSError, ValueError):
        return math.inf


def _pair_fault(tls: Tls, error: Exception) -> str:
    reason = getattr(error, "reason", None) or ""
    if "MISMATCH" in reason:
        return f"server.tls.key: {tls.key}: is not the key of server.tls.certificate ({tls.certificate}); give its own"
    return f"server.tls.certificate: {tls.certificate}, with key {tls.key}: cannot be used: {_word(error)}"


def _word(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        reason: str | None = getattr(error, "reason", None)
        return reason.replace("_", " ").lower() if reason else "not readable as PEM"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _ask() -> str:
    raise _Encrypted


def _stamp(tls: Tls) -> Stamp:
    return tuple(_stamp_of(path) for path in (tls.certificate, tls.key, tls.client_ca) if path is not None)


def _stamp_of(path: str) -> tuple[int, int, int] | None:
    try:
        told = os.stat(path)
    except (OSError, ValueError):
        return None
    return told.st_mtime_ns, told.st_size, told.st_ino
