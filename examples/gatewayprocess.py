"""A gateway as users run it: the command `tailrace serve` in a process of its own, always stopped.

Rule of this file: it knows the command line, the ready line and the Prometheus text format, and
nothing of the gateway's inside, so that a test through it is a test of what is shipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from examples.child import Child

READY_SECONDS: Final = 30.0
LOG_CHARACTERS_SHOWN_MAX: Final = 6000
CONFIG: Final = "tailrace.toml"
READY_LINE: Final = re.compile(
    r"^tailrace ready http=(?P<http>https?://\S+)(?: grpc=(?P<grpc>\S+))?(?: rpc=(?P<rpc>\S+))?"
    r" admin=(?P<admin>http://\S+)",
    re.MULTILINE,
)
SAMPLE: Final = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
LABEL: Final = re.compile(r'(?P<name>\w+)="(?P<value>(?:[^"\\]|\\.)*)"')

ConfigValue = bool | int | float | str | Sequence["ConfigValue"] | Mapping[str, "ConfigValue"]
"""What a TOML document can hold, dates left out."""


class GatewayFailed(RuntimeError):
    """The gateway did not come up; the message holds what it wrote."""


class GatewayProcess:
    """`tailrace serve` as a child process, as a context manager; ports are free ones unless configured."""

    def __init__(
        self,
        config: str | Mapping[str, ConfigValue] | None,
        arguments: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """``config``: TOML text, or the same as a mapping, or None for a run by ``arguments`` alone."""
        self.http_url = ""
        self.grpc_address = ""
        self.admin_url = ""
        self.rpc_address = ""  # host:port or unix:path, if that door is open
        self._config = config if config is None or isinstance(config, str) else toml(config)
        self._arguments = tuple(arguments)
        self._environ = dict(environ or {})
        self._child: Child | None = None
        self._directory: Path | None = None
        self._last_log = ""

    @property
    def process(self) -> Child:
        """The running child: ``pid``, ``returncode``, ``signal``, ``wait``."""
        if self._child is None:
            raise GatewayFailed("the gateway is not started")
        return self._child

    @property
    def http_address(self) -> str:
        """``host:port``, as tritonclient wants it."""
        return self.http_url.partition("://")[2]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, ready_seconds: float = READY_SECONDS) -> None:
        """Start and wait for the ready line. Raises GatewayFailed with the output; nothing stays behind."""
        try:
            self.begin()
            self._await_ready(self.process, ready_seconds)
        except BaseException:
            self.stop()
            raise

    def begin(self) -> None:
        """Start, and do not wait until it is ready: its addresses are not known. ``stop`` it."""
        self._directory = Path(tempfile.mkdtemp(prefix="tailrace-gateway-"))
        self._child = Child(self._command(self._directory), environment() | self._environ, self._directory, "gateway")

    @property
    def is_ready(self) -> bool:
        """Whether it has said so."""
        return READY_LINE.search(self.process.out()) is not None

    def rewrite(self, config: str | Mapping[str, ConfigValue]) -> None:
        """Write the configuration's file anew; it is read at a reload."""
        if self._directory is None:
            raise GatewayFailed("the gateway is not started")
        (self._directory / CONFIG).write_text(config if isinstance(config, str) else toml(config))

    def stop(self) -> None:
        """SIGTERM, then SIGKILL. Safe to call any number of times; ``log()`` still answers afterwards."""
        if self._child is not None:
            self._child.stop(10.0)
            self._last_log = self._child.log()
            self._child = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def log(self) -> str:
        """All that the gateway has written up to now, or up to its end."""
        return self._child.log() if self._child is not None else self._last_log

    def metrics(self) -> dict[str, float]:
        """The admin port's samples: ``name`` or ``name{a="x",b="y"}``, labels sorted, -> value."""
        return samples(self.exposition())

    def exposition(self) -> str:
        """All that the admin port tells, in Prometheus' text format."""
        with urllib.request.urlopen(f"{self.admin_url}/metrics", timeout=10.0) as answer:
            told: bytes = answer.read()
        return told.decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of ``name`` that carry at least these labels; 0 if there is none.

        Raises KeyError for a name that the gateway does not tell of at all: a word misspelt is not a 0.
        """
        wanted = {f'{label}="{value}"' for label, value in labels.items()}
        total = 0.0
        text = self.exposition()
        family = name.removesuffix("_total").removesuffix("_count").removesuffix("_sum").removesuffix("_bucket")
        if f"# TYPE {family} " not in text and f"# TYPE {family}_total " not in text:
            raise KeyError(f"no metric {name}")
        for sample, value in samples(text).items():
            base, _, rest = sample.partition("{")
            carried = {f'{label["name"]}="{label["value"]}"' for label in LABEL.finditer(rest)}
            if base == name and wanted <= carried:
                total += value
        return total

    def _command(self, directory: Path) -> list[str]:
        command = [sys.executable, "-m", "gateway.cli", "serve"]
        if self._config is not None:
            path = directory / CONFIG
            path.write_text(self._config)
            command += ["--config", str(path)]
        for flag in ("--http", "--grpc", "--admin"):
            if flag not in self._arguments:
                command += [flag, "127.0.0.1:0"]
        return [*command, *self._arguments]

    def _await_ready(self, child: Child, ready_seconds: float) -> None:
        end = time.monotonic() + ready_seconds
        while time.monotonic() < end:
            ended = not child.running
            found = READY_LINE.search(child.out())
            if found is not None:
                self.http_url, self.admin_url = found["http"], found["admin"]
                self.rpc_address, self.grpc_address = found["rpc"] or "", found["grpc"] or ""
                return
            if ended:
                raise GatewayFailed(f"the gateway ended with {child.returncode}:\n{self._tail(child)}")
            time.sleep(0.01)
        raise GatewayFailed(f"no ready line within {ready_seconds:.0f} s:\n{self._tail(child)}")

    def _tail(self, child: Child) -> str:
        return child.log()[-LOG_CHARACTERS_SHOWN_MAX:]


def environment() -> dict[str, str]:
    """Variables with which ``python -m gateway.cli`` is this source, whatever the folder."""
    root = str(Path(__file__).resolve().parent.parent)
    # Overrides meant for another gateway of the caller's must not reach this one.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TAILRACE_")}
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(":"))]
    return inherited | {"PYTHONPATH": ":".join(paths), "PYTHONUNBUFFERED": "1"}


def samples(text: str) -> dict[str, float]:
    """Parse the Prometheus text format; labels are put in sorted order."""
    found = {}
    for line in text.splitlines():
        match = SAMPLE.match(line)
        if match is None:
            continue
        labels = sorted(f'{label["name"]}="{label["value"]}"' for label in LABEL.finditer(match["labels"] or ""))
        found[match["name"] + (f"{{{','.join(labels)}}}" if labels else "")] = float(match["value"])
    return found


def toml(document: Mapping[str, ConfigValue]) -> str:
    """A TOML document, one line for each top-level key (tables are written inline)."""
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in document.items())


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _string(key)


def _string(text: str) -> str:
    """A JSON string is a TOML basic string, but for surrogate escapes and a bare DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: ConfigValue) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    return "[" + ", ".join(_value(inner) for inner in value) + "]"
