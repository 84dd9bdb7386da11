"""Where a Redis or Valkey is, as people write it.

    redis://USER:PASSWORD@HOST:PORT/DB                      one server
    redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB         whichever server those Sentinels call the master
    redis+cluster://HOST:PORT,HOST:PORT                     a cluster, of which these are some nodes

``rediss`` in the place of ``redis`` is TLS. User and password are those of the servers, in percent encoding.

Rule of this file: text to a value and nothing else. No message of its repeats a password.
"""

from __future__ import annotations

import re
from typing import Final, Literal
from urllib.parse import unquote

from msgspec import Struct

PORT: Final = 6379
SENTINEL_PORT: Final = 26379
HOSTS_MAX: Final = 64
"""Nodes named in a URL: they are asked side by side, and a few are enough to find the others."""

_FORM: Final = re.compile(r"(rediss?)(?:\+(sentinel|cluster))?://(?:([^@]*)@)?([^@/?#]+)(?:/([^?#]*))?")
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:\[\],]+)(?::([0-9]{1,5}))?")


class Credentials(Struct, frozen=True):
    """Who we are to a server; both may be empty."""

    user: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"Credentials(user={self.user!r}, password={'***' if self.password else repr('')})"


class RedisAddress(Struct, frozen=True):
    """Where to find the servers. ``hosts``: (host, port) each; ``service`` is what Sentinels call the master."""

    kind: Literal["one", "sentinel", "cluster"]
    hosts: tuple[tuple[str, int], ...]
    db: int = 0
    service: str = ""
    credentials: Credentials = Credentials()
    tls: bool = False


def parse_redis(url: str) -> RedisAddress:
    """Read one of the three forms; raises ValueError with the reason, without the URL's secrets."""
    match = _FORM.fullmatch(url)
    if match is None:
        raise ValueError(
            "is none of redis://HOST:PORT/DB, redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB, "
            "redis+cluster://HOST:PORT,HOST:PORT (rediss: the same with TLS); an @, / or ? in a password is written "
            "in percent encoding"
        )
    scheme, kind, who, where, path = match.groups()
    parts = [unquote(part) for part in path.split("/")] if path else []
    service = ""
    if kind == "sentinel":
        if not parts or not parts[0]:
            raise ValueError("names no service: redis+sentinel://HOST:PORT/SERVICE, as Sentinel calls the master")
        service = parts.pop(0)
    if kind == "cluster" and parts not in ([], [""], ["0"]):
        raise ValueError("names a database, and a cluster has only 0")
    user, _, password = (who or "").rpartition(":")
    return RedisAddress(
        kind="sentinel" if kind == "sentinel" else "cluster" if kind == "cluster" else "one",
        hosts=_hosts(where, SENTINEL_PORT if kind == "sentinel" else PORT, several=kind is not None),
        db=_db(parts),
        service=service,
        credentials=Credentials(unquote(user), unquote(password)),
        tls=scheme == "rediss",
    )


def _hosts(written: str, port: int, several: bool) -> tuple[tuple[str, int], ...]:
    hosts = []
    for each in written.split(","):
        match = _HOST.fullmatch(each)
        if match is None or int(match[2] or port) not in range(1, 65536):
            raise ValueError(f"{each!r} is not HOST:PORT")
        hosts.append((match[1].strip("[]"), int(match[2] or port)))
    if len(hosts) > 1 and not several:
        raise ValueError("names several servers: write redis+sentinel:// or redis+cluster://")
    if len(hosts) > HOSTS_MAX:
        raise ValueError(f"names {len(hosts)} servers, and {HOSTS_MAX} are enough to find the others")
    return tuple(hosts)


def _db(parts: list[str]) -> int:
    written = parts[0] if parts and parts[0] else "0"
    if len(parts) > 1 or not re.fullmatch(r"[0-9]{1,5}", written):
        raise ValueError(f"{'/'.join(parts)!r} is not the number of a database")
    return int(written)
