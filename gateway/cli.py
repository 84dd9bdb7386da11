"""The command line: runs the command that was typed, prints what is wrong, and hands over.

Rule of this file: nothing is decided here, and a command loads only what it needs; what may be typed is
``arguments.py``'s. A person never sees a traceback for something they wrote: faults come as a list, and the exit code
says whose they are (0 well, 1 the world does not fit, 2 the arguments or the configuration are wrong).
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import IO, Final, Protocol, cast

from gateway.arguments import read_arguments
from gateway.config import Config, Log
from gateway.schema import json_schema, nearest
from gateway.sources import ConfigError, Loaded, read

WELL: Final = 0
UNFIT: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130


class _Demo(Protocol):
    def main(self, keep: bool, redis: bool) -> int: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = read_arguments(given)
    try:
        return _run(chosen, given)
    except ConfigError as error:
        return _report(error.faults, MISUSED)
    except BrokenPipeError:
        # Whoever read our output has left; say nothing more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WELL
    except OSError as error:
        return _report((str(error),), UNFIT)
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(chosen: argparse.Namespace, given: Sequence[str]) -> int:
    match chosen.command:
        case "serve":
            return _serve(chosen, given)
        case "check":
            return _check(chosen)
        case "schema":
            return _schema()
        case "warm":
            return _warm(chosen)
        case "table":
            return _load(chosen)
        case "snapshot":
            return _snapshot(chosen)
        case "explain":
            return _explain(chosen)
        case _:
            return _demo(chosen.keep, chosen.redis)


def _serve(chosen: argparse.Namespace, given: Sequence[str]) -> int:
    config = _config(chosen)
    reread = partial(_read, chosen)
    if config.server.workers > 1 and chosen.worker is None:
        from gateway import supervisor

        return supervisor.supervise(config, reread, given, _announce)
    from gateway import process

    employment = None if chosen.worker is None else process.Employment(chosen.worker, chosen.notes)
    return process.serve(config, reread, _announce, employment)


def _check(chosen: argparse.Namespace) -> int:
    from gateway import check

    config = _config(chosen)
    found = asyncio.run(check.findings(config, chosen.offline))
    for note in found.notes:
        print(f"tailrace: note: {note}", file=sys.stderr)
    if found.faults:
        return _report(found.faults, UNFIT)
    asked = "not asked" if chosen.offline else "ready"
    backends, routes = _count(len(config.backends), "backend"), _count(len(config.routes), "route")
    endpoints = f", {_count(len(config.endpoints), 'endpoint')}" if config.endpoints else ""
    print(f"all well: {backends} ({asked}), {routes}{endpoints}")
    return WELL


def _warm(chosen: argparse.Namespace) -> int:
    from time import monotonic

    from gateway.warm import Warming, WarmOptions

    key = ""
    if chosen.key_file is not None:
        with open(chosen.key_file, encoding="utf-8") as file:
            key = file.read().strip()
    options = WarmOptions(chosen.url, chosen.rate, chosen.in_flight, key)

    async def run(lines: IO[bytes]) -> tuple[Warming, bool]:
        warming = Warming(options, monotonic, asyncio.sleep)
        return warming, await warming.run(lines)

    with open(chosen.file, "rb") if chosen.file != "-" else nullcontext(sys.stdin.buffer) as lines:
        warming, is_well = asyncio.run(run(lines))
    for fault in warming.faults:
        print(f"tailrace: {fault}", file=sys.stderr)
    print("warmed: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(warming.outcomes.items()) if count))
    return WELL if is_well else UNFIT


def _load(chosen: argparse.Namespace) -> int:
    from gateway import load

    config = read(chosen.config, os.environ).config
    table = config.tables.get(chosen.name)
    if table is None:
        known = ", ".join(config.tables) or "none"
        return _report((f"tables.{chosen.name}: there is no such table in {chosen.config}; there is {known}",), MISUSED)
    columns = tuple(chosen.columns.split(",")) if chosen.columns else ()
    request = load.Request(chosen.name, table, Path(chosen.source), chosen.id, columns, chosen.restart)
    try:
        done = load.load(request)
    except load.Failed as error:
        return _report((str(error),), UNFIT)
    print(f"tables.{chosen.name}: {done.rows} rows, {done.rows - done.before} of them written in {done.seconds:.1f} s")
    return WELL


def _snapshot(chosen: argparse.Namespace) -> int:
    from gateway import snapshot_tool

    config = read(chosen.config, os.environ).config.snapshot
    if config is None:
        return _report((f"{chosen.config} has no [snapshot] section",), MISUSED)
    return snapshot_tool.run(config, chosen)


def _explain(chosen: argparse.Namespace) -> int:
    from gateway.explain.conditions import read_conditions
    from gateway.explain.telling import explain
    from gateway.operate.log import set_up

    config = read(chosen.config, os.environ).config
    set_up(Log(level="error"))  # what the parts would log of all that fails here is what is told
    if chosen.route not in config.routes:
        if chosen.route in config.endpoints:
            told = f"{chosen.route} is an endpoint; explain knows routes only, whose models it can stand for"
            return _report((told,), MISUSED)
        known = nearest(chosen.route, list(config.routes)) or f"; there is {', '.join(config.routes) or 'none'}"
        return _report((f"there is no route {chosen.route} in {chosen.config}{known}",), MISUSED)
    print(explain(config, chosen.route, read_conditions(chosen.when, config)))
    return WELL


def _schema() -> int:
    print(json.dumps(json_schema(Config), indent=2))
    return WELL


def _demo(keep: bool, redis: bool) -> int:
    try:
        # By name: the product does not depend on its demo (import-linter holds that).
        demo = cast(_Demo, importlib.import_module("examples.demo"))
    except ModuleNotFoundError as error:
        return _report((f"the demo needs {error.name}: pip install 'tailrace[demo]'",), UNFIT)
    return demo.main(keep, redis)


def _config(chosen: argparse.Namespace) -> Config:
    loaded = _read(chosen)
    for warning in loaded.warnings if chosen.worker is None else ():  # by the first process alone
        print(f"tailrace: warning: {warning}", file=sys.stderr)
    return loaded.config


def _read(chosen: argparse.Namespace) -> Loaded:
    environ: Mapping[str, str] = os.environ
    # A TOML string, so that no address can be taken for a number.
    doors = {"HTTP": chosen.http, "GRPC": chosen.grpc, "RPC": chosen.rpc, "ADMIN": chosen.admin}
    listeners = {f"TAILRACE_SERVER__{name}": address for name, address in doors.items()}
    given = {name: json.dumps(address) for name, address in listeners.items() if address is not None}
    if chosen.workers is not None:
        given["TAILRACE_SERVER__WORKERS"] = str(chosen.workers)
    return read(chosen.config, {**environ, **given}, chosen.upstream)


def _announce(line: str) -> None:
    print(line, flush=True)


def _report(faults: Sequence[str], code: int) -> int:
    for fault in faults:
        print(f"tailrace: {fault}", file=sys.stderr)
    if len(faults) > 1:
        print(f"tailrace: {len(faults)} faults", file=sys.stderr)
    return code


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


if __name__ == "__main__":
    sys.exit(main())
