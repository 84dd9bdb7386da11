"""Where a configuration comes from: a file, then the environment, then the command line.

Rule of this file: it puts the sources over each other, opens nothing but that one file, and judges
nothing itself: what the result may hold is said by ``gateway/config.py`` and ``gateway/consistency.py``.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from gateway.config import Config
from gateway.config_server import ALLOW_ALL
from gateway.consistency import between, doubts, said
from gateway.schema import Reader

UPSTREAM: Final = "upstream"
"""The name of the backend that ``--upstream`` makes."""

GRPC_SCHEME: Final = "grpc://"
"""How ``--upstream`` names a Triton's gRPC address."""

PREFIX: Final = "TAILRACE_"
FORM: Final = "TAILRACE_SECTION__KEY, such as TAILRACE_SERVER__HTTP"
NOT_CONFIGURATION: Final = frozenset({"TAILRACE_TRITON_ENV"})
"""Variables with our prefix that other programs read: where the demo and the tests find a Triton."""

# Kubernetes puts these into every container beside a Service called "tailrace"; they are not ours.
_SERVICE_LINK: Final = re.compile(
    r"TAILRACE_(?:[A-Z0-9]+_)*(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT(?:_\d+_[A-Z]+(?:_[A-Z]+)?)?)"
)


class ConfigError(Exception):
    """The configuration cannot be used. ``faults`` has one line per fault, each with its key's path."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class Loaded(msgspec.Struct, frozen=True):
    """A configuration that can be used, and what its operator should know all the same."""

    config: Config
    warnings: tuple[str, ...] = ()


def load(path: str | None, environ: Mapping[str, str], upstreams: Sequence[str] = ()) -> Config:
    """What ``read`` reads, for those who have nobody to warn."""
    return read(path, environ, upstreams).config


def read(path: str | None, environ: Mapping[str, str], upstreams: Sequence[str] = ()) -> Loaded:
    """The configuration of ``path`` (None: no file) under ``environ`` and ``--upstream`` URLs.

    Upstreams (``http://``, ``https://``, ``grpc://``) become one backend called "upstream", which serves every
    model without a route. With no file they are all there is, and every path that changes a server is allowed:
    whoever runs that wants a transparent proxy. Raises ConfigError with every fault there is.
    """
    raw = _file(path) if path is not None else {}
    if upstreams and path is None:
        raw["server"] = {"allow": list(ALLOW_ALL)}
    for key, scheme in (("grpc", True), ("http", False)):
        urls = [url.removeprefix(GRPC_SCHEME) for url in upstreams if url.startswith(GRPC_SCHEME) is scheme]
        if urls:
            _enter(raw, "backends", UPSTREAM, key, value=urls)
    reader = Reader()
    _override(raw, environ, reader)
    if upstreams and said(raw, "server", "passthrough") is None:
        _enter(raw, "server", "passthrough", value=UPSTREAM)
    config = reader.read(raw, Config)
    if config is not None:
        for where, message in between(config, raw):
            reader.fault(where, message)
        if upstreams and not _asks(config, UPSTREAM):
            chosen = f"server.passthrough is {config.passthrough!r} and no route or endpoint names backend {UPSTREAM!r}"
            reader.fault("--upstream", f"nothing would ever be asked of it: {chosen}; leave one of the two out")
    if config is None or reader.faults:
        raise ConfigError(tuple(reader.faults))
    return Loaded(_with_whole_paths(_with_plain_urls(config), path), (*_strangers(environ), *doubts(config, raw)))


def _enter(raw: dict[str, object], *keys: str, value: object) -> None:
    """Write a key; where the file has something else than a table on the way, reading it will tell."""
    table = raw
    for key in keys[:-1]:
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            return
        table = inner
    table[keys[-1]] = value


def _asks(config: Config, backend: str) -> bool:
    tiers = (tier for route in config.routes.values() for tier in route.tiers)
    posted = any(config.backend_of(endpoint) == backend for endpoint in config.endpoints.values())
    return config.passthrough == backend or posted or any(tier.backend == backend for tier in tiers)


def _file(path: str) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError((f"{path}: cannot be read: {error.strerror}",)) from None
    except UnicodeDecodeError:
        raise ConfigError((f"{path}: is not UTF-8 text",)) from None
    except (tomllib.TOMLDecodeError, ValueError) as error:  # an integer of thousands of digits is the latter
        raise ConfigError((f"{path}: is not TOML: {error}",)) from None
    except RecursionError:
        raise ConfigError((f"{path}: is nested too deeply",)) from None


def _override(raw: dict[str, object], environ: Mapping[str, str], reader: Reader) -> None:
    """Lay ``TAILRACE_SECTION__KEY`` variables over the file; names match without regard to case."""
    for name in sorted(environ):
        keys = name.removeprefix(PREFIX).split("__")
        if not name.startswith(PREFIX) or len(keys) < 2 or _SERVICE_LINK.fullmatch(name):
            continue
        if not all(keys):
            reader.fault(name, f"is not {FORM}")
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


def _strangers(environ: Mapping[str, str]) -> Iterator[str]:
    """Variables with our prefix that cannot be a key: most likely another program's, so no fault; but
    whoever meant a key must learn that it has no effect. Values are never told: they may be secrets."""
    for name in sorted(environ):
        ours = name.startswith(PREFIX) and name not in NOT_CONFIGURATION and not _SERVICE_LINK.fullmatch(name)
        if ours and "__" not in name:
            yield f"{name}: names no key and has no effect; keys are {FORM}"


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


def _with_whole_paths(config: Config, path: str | None) -> Config:
    """Files named from the folder of the configuration's file, wherever the process was started; without a file,
    from where it was."""
    folder = Path() if path is None else Path(path).absolute().parent
    tls = config.server.tls
    if tls is not None:
        client_ca = None if tls.client_ca is None else str(folder / tls.client_ca)
        whole = msgspec.structs.replace(
            tls, certificate=str(folder / tls.certificate), key=str(folder / tls.key), client_ca=client_ca
        )
        config = msgspec.structs.replace(config, server=msgspec.structs.replace(config.server, tls=whole))
    tables = {name: table.from_folder(folder) for name, table in config.tables.items()}
    snapshot = None if config.snapshot is None else config.snapshot.from_folder(folder)
    return msgspec.structs.replace(config, tables=tables, snapshot=snapshot)
