"""Where a configuration comes from: a file, then the environment, then the command line.

Rule of this file: it puts the sources over each other, opens nothing but that one file, and judges
nothing itself: what the result may hold is said by ``gateway/config.py`` and ``gateway/consistency.py``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from gateway.config import ALLOW_ALL, Config
from gateway.consistency import between
from gateway.schema import Reader

UPSTREAM: Final = "upstream"
"""The name of the backend that ``--upstream`` makes."""

PREFIX: Final = "TAILRACE_"
NOT_CONFIGURATION: Final = frozenset({"TAILRACE_TRITON_ENV"})
"""Variables with our prefix that other programs read: where the demo and the tests find a Triton."""
LATER: Final[Mapping[str, str]] = {
    "grpc": "is not in this version yet: only the HTTP door exists so far",
    "rpc": "is not in this version yet: only the HTTP door exists so far",
    "tables": "is not in this version yet: routes cannot join feature tables so far",
    "rows": "is not in this version yet: whole requests are cached, not single rows",
    "snapshot": "is not in this version yet: there are no snapshots so far",
    "default": "is not in this version yet: routes cannot declare a default answer so far",
}

# Kubernetes puts these into every container beside a Service called "tailrace"; they are not ours.
_SERVICE_LINK: Final = re.compile(
    r"TAILRACE_(?:[A-Z0-9]+_)*(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT(?:_\d+_[A-Z]+(?:_[A-Z]+)?)?)"
)


class ConfigError(Exception):
    """The configuration cannot be used. ``faults`` has one line per fault, each with its key's path."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def load(path: str | None, environ: Mapping[str, str], upstreams: Sequence[str] = ()) -> Config:
    """The configuration of ``path`` (None: no file), then ``environ``, then ``--upstream`` URLs.

    Upstreams become one backend called "upstream". With no file they are all there is, and every
    path that changes a server is allowed: whoever runs that wants a transparent proxy.
    Raises ConfigError with every fault there is.
    """
    raw = _file(path) if path is not None else {}
    if upstreams:
        backends = raw.setdefault("backends", {})
        if isinstance(backends, dict):
            backends[UPSTREAM] = {"http": list(upstreams)}
        if path is None:
            raw["server"] = {"allow": list(ALLOW_ALL)}
    reader = Reader(LATER)
    _override(raw, environ, reader)
    config = reader.read(raw, Config)
    if config is not None:
        for where, message in between(config, raw):
            reader.fault(where, message)
    if config is None or reader.faults:
        raise ConfigError(tuple(reader.faults))
    return _with_plain_urls(config)


def _file(path: str) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError((f"{path}: cannot be read: {error.strerror}",)) from None
    except UnicodeDecodeError:
        raise ConfigError((f"{path}: is not UTF-8 text",)) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError((f"{path}: is not TOML: {error}",)) from None


def _override(raw: dict[str, object], environ: Mapping[str, str], reader: Reader) -> None:
    """Lay ``TAILRACE_SECTION__KEY`` variables over the file; names match without regard to case."""
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in NOT_CONFIGURATION or _SERVICE_LINK.fullmatch(name):
            continue
        keys = name.removeprefix(PREFIX).split("__")
        if len(keys) < 2 or not all(keys):
            reader.fault(name, "is not TAILRACE_SECTION__KEY, such as TAILRACE_SERVER__HTTP")
            continue
        table: object = raw
        for key in keys[:-1]:
            if not isinstance(table, dict):
                break
            table = table.setdefault(_existing(table, key), {})
        if isinstance(table, dict):
            table[_existing(table, keys[-1])] = _toml_value(environ[name])
        else:
            reader.fault(name, "goes through a key that is no table")


def _existing(table: Mapping[str, object], key: str) -> str:
    return next((known for known in table if known.lower() == key.lower()), key.lower())


def _toml_value(written: str) -> object:
    """``4`` is a number and ``[1, 2]`` a list; what is no TOML value (``250ms``) is a string."""
    try:
        parsed = tomllib.loads(f"value = {written}")
    except tomllib.TOMLDecodeError:
        return written
    return parsed["value"] if len(parsed) == 1 else written


def _with_plain_urls(config: Config) -> Config:
    """Replica URLs without the trailing slash, so that paths can be joined to them."""
    backends = {
        name: msgspec.structs.replace(backend, http=tuple(url.rstrip("/") for url in backend.http))
        for name, backend in config.backends.items()
    }
    return msgspec.structs.replace(config, backends=backends)
