"""The command line: reads arguments, prints what is wrong, and hands over.

Rule of this file: nothing is decided here, and a command loads only what it needs. A person never
sees a traceback for something they wrote: faults come as a list, and the exit code says whose they
are (0 well, 1 the world does not fit, 2 the arguments or the configuration are wrong).
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import IO, Final, Protocol, cast
from urllib.parse import urlsplit

from gateway.config import Config, Log
from gateway.sources import ConfigError, Loaded, read

WELL: Final = 0
UNFIT: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130
RATE_MAX: Final = 1e6
IN_FLIGHT_MAX: Final = 1024
"""Of ``warm``: more is a mistake, or an attack on one's own gateway."""

EXAMPLES: Final = """\
examples:
  tailrace serve --upstream http://127.0.0.1:8000
      stand before one Triton and change nothing: every model passes through
  tailrace serve --upstream http://127.0.0.1:8000 --upstream grpc://127.0.0.1:8001
      the same, with all of gRPC passed on as it comes (streams of decoupled models too)
  tailrace serve --upstream http://a:8000 --upstream http://b:8000
      the same before two replicas
  tailrace serve --config tailrace.toml
      with routes: caches, tiers, quotas
  tailrace check --config tailrace.toml
      is the file right, are the backends there, do the tiers fit?
  TAILRACE_SERVER__HTTP=0.0.0.0:8080 tailrace serve --config tailrace.toml
      any key can be set from outside: TAILRACE_SECTION__KEY
  tailrace warm requests.jsonl --rate 20
      ask a running gateway what will be asked anyway, before callers do
  tailrace table load user --config tailrace.toml --from users.parquet
      fill a table's store from a file; interrupted, the same command goes on
  tailrace snapshot export warm.snapshot --config tailrace.toml
      what this host knows, as a file for another one (tailrace snapshot import)
  tailrace explain digits --config tailrace.toml --when "gpu down, cache old"
      what would a caller get then, and why?
  tailrace schema > tailrace.schema.json
      for an editor that completes and checks TOML
  tailrace demo
      see it all with a real Triton and its models, in two minutes

tailrace.example.toml holds every key with its default and its reason.
"""


class _Demo(Protocol):
    def main(self, keep: bool, redis: bool) -> int: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = _parser().parse_args(given)
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


def _positive(written: str) -> float:
    value = float(written)
    if not 0 < value <= RATE_MAX:
        raise ValueError
    return value


def _door(written: str) -> str:
    """A gateway's HTTP door, without a path."""
    parts = urlsplit(written)
    whole = parts.path in ("", "/") and not parts.query and not parts.fragment and parts.username is None
    with suppress(ValueError):
        if parts.scheme in ("http", "https") and parts.hostname and whole and parts.port != 0:
            return f"{parts.scheme}://{parts.netloc}"
    raise argparse.ArgumentTypeError(f"{written!r} is not http://HOST:PORT or https://HOST:PORT")


def _kept(written: str) -> int:
    value = int(written)
    if value < 1:
        raise ValueError
    return value


def _in_flight(written: str) -> int:
    value = int(written)
    if not 1 <= value <= IN_FLIGHT_MAX:
        raise ValueError
    return value


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
        from gateway.schema import nearest

        if chosen.route in config.endpoints:
            told = f"{chosen.route} is an endpoint; explain knows routes only, whose models it can stand for"
            return _report((told,), MISUSED)
        known = nearest(chosen.route, list(config.routes)) or f"; there is {', '.join(config.routes) or 'none'}"
        return _report((f"there is no route {chosen.route} in {chosen.config}{known}",), MISUSED)
    print(explain(config, chosen.route, read_conditions(chosen.when, config)))
    return WELL


def _schema() -> int:
    from gateway.schema import json_schema

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


def _version() -> str:
    try:
        return metadata.version("tailrace")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="tailrace",
        description="An edge cache and tiered-serving gateway for NVIDIA Triton Inference Server.",
        epilog=EXAMPLES,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=f"tailrace {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    serve = commands.add_parser(
        "serve",
        help="stand before Triton and answer",
        description="Answer requests until SIGTERM or Ctrl-C, then finish the open ones (server.drain).\n"
        "SIGHUP reads the configuration again and takes it as a whole, or says why not and changes nothing.\n"
        "Prints one line when ready. With no file, every model passes through and nothing is cached.",
        epilog="ADDR is HOST:PORT or unix:PATH; port 0 takes a free one, and the ready line tells which.",
        formatter_class=raw,
    )
    check = commands.add_parser(
        "check",
        help="is the configuration right, and does the world agree?",
        description="Checks the file, then this machine, the backends, their models, and whether the\n"
        "tiers of each route fit together. Lists everything wrong.",
        epilog="exit codes: 0 all well, 1 something does not fit, 2 the file is wrong",
        formatter_class=raw,
    )
    check.add_argument("--offline", action="store_true", help="ask no backend")
    for command in (serve, check):
        command.add_argument("--config", metavar="FILE", help="a tailrace.toml")
        command.add_argument(
            "--upstream",
            metavar="URL",
            action="append",
            default=[],
            help="a server's address, http://HOST:PORT or grpc://HOST:PORT, for all that has no route; again for "
            "each replica and for each of the two protocols",
        )
        command.add_argument("--http", metavar="ADDR", help="where to answer (default: 127.0.0.1:8080)")
        command.add_argument(
            "--grpc", metavar="ADDR", help="where to answer gRPC, or off (default: 127.0.0.1:8081)"
        )
        command.add_argument("--rpc", metavar="ADDR", help="where to answer MessagePack-RPC (default: nowhere)")
        command.add_argument("--admin", metavar="ADDR", help="where metrics are (default: 127.0.0.1:9090)")
    check.set_defaults(workers=None, worker=None)
    serve.add_argument(
        "--workers", metavar="N", type=int, help="processes that answer on the same port (default: server.workers, 1)"
    )
    serve.add_argument("--worker", type=int, help=argparse.SUPPRESS)  # which of a supervisor's workers this one is
    serve.add_argument("--notes", type=int, help=argparse.SUPPRESS)  # and the descriptor of their notes
    warm = commands.add_parser(
        "warm",
        help="fill a running gateway's caches from a file",
        description="Asks a running gateway every request of a file, at a bounded rate. One in each line, as JSON:\n"
        '  {"route": "digits", "inputs": {"image": [[0, 0, 5]]}}\n'
        '  {"path": "/v2/models/digits/infer", "body": {"inputs": [...]}}\n'
        "With several workers each fills the cache of whichever answers, and cache.second is for all of them.",
        epilog="exit codes: 0 all was answered, 1 something was not, 2 the arguments are wrong",
        formatter_class=raw,
    )
    warm.add_argument("file", metavar="FILE", help="the requests; - is standard input")
    warm.add_argument(
        "--url", metavar="URL", type=_door, default="http://127.0.0.1:8080", help="the gateway (default: %(default)s)"
    )
    warm.add_argument(
        "--rate", metavar="N", type=_positive, default=50.0, help="requests a second at most (default: %(default)g)"
    )
    warm.add_argument(
        "--in-flight", metavar="N", type=_in_flight, default=8, help="requests at once at most (default: %(default)d)"
    )
    warm.add_argument("--key-file", metavar="FILE", help="a file with the API key to ask with")
    _table_parser(commands)
    _snapshot_parser(commands)
    _explain_parser(commands)
    commands.add_parser("schema", help="print the JSON Schema of tailrace.toml")
    demo = commands.add_parser(
        "demo",
        help="see it with a real Triton and its models",
        description="Starts Triton and the gateway, sends handwritten digits, stops Triton, starts it\n"
        "again, and says what each part gained. Then a ranking of 200 items, their features in a\n"
        "file of this host, which is lost and comes back. Needs Linux on x86-64; no GPU.",
        formatter_class=raw,
    )
    demo.add_argument("--keep", action="store_true", help="leave all of it running, to try by hand")
    demo.add_argument(
        "--redis", action="store_true", help="features in a real Redis, which is written to and killed (make .redis)"
    )
    return parser


def _snapshot_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from gateway.config_snapshot import VERBS

    snapshot = commands.add_parser("snapshot", help="see, check and move the copies on this host's disk")
    verbs = snapshot.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, told in VERBS.items():
        each = verbs.add_parser(verb, help=told)
        each.add_argument("--config", metavar="FILE", required=True, help="a tailrace.toml with a [snapshot] section")
        if verb in ("export", "import"):
            each.add_argument("file", metavar="FILE", help="the exported file")
        if verb == "ls":
            each.add_argument("--json", action="store_true", help="for programs")
        if verb == "prune":
            each.add_argument("--keep", metavar="N", type=_kept, default=1, help="generations to keep (default: 1)")


def _explain_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    explain = commands.add_parser(
        "explain",
        help="what a caller of a route would get if something failed, and why",
        description="Sends one request through the gateway's own pipeline, in a world of the conditions: no network,\n"
        "no waiting. Conditions stand apart by commas:\n"
        "  BACKEND or a replica's URL    down slow overloaded broken\n"
        "  MODEL                         broken failing slow overloaded unsure\n"
        "  TABLE, redis or lmdb          down slow loading refusing\n"
        "  cache or rows                 empty fresh old dead\n"
        "  snapshot                      none fresh unknown old\n"
        "  second                        empty fresh down slow\n"
        "  brownout                      1 2 3 4\n"
        "cache is what is held of the answer, rows what is held of the tables' rows; both are empty unless said.\n"
        "snapshot is what an earlier process has left (unknown: nobody can tell if the models are the same), second\n"
        "what the second level has.",
        epilog='tailrace explain digits --config tailrace.toml --when "gpu down, cache old"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    explain.add_argument("route", metavar="ROUTE", help="a route of the configuration")
    explain.add_argument("--config", metavar="FILE", required=True, help="a tailrace.toml")
    explain.add_argument("--when", metavar="CONDITIONS", default="", help="what is wrong (default: nothing)")


def _table_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    table = commands.add_parser("table", help="fill a table's store from a file")
    verbs = table.add_subparsers(dest="verb", metavar="VERB", required=True)
    load = verbs.add_parser(
        "load",
        help="rows from Parquet, NPZ or CSV into the store",
        description="Every row is held against the table: type, shape, finite numbers, bounds; the first wrong one\n"
        "ends it, named by its number, and nothing of its batch is written. Interrupted, the same command\n"
        "goes on where it was.",
        epilog="CSV: a line of names, a column of ids, a column for each number. NPZ: arrays ids and rows. Parquet: a\n"
        "column of ids, and one of lists or one for each number.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    load.add_argument("name", metavar="NAME", help="a table of the configuration")
    load.add_argument("--config", metavar="FILE", required=True, help="a tailrace.toml")
    load.add_argument("--from", metavar="FILE", required=True, dest="source", help="a .parquet, .npz or .csv file")
    load.add_argument("--id", metavar="COLUMN", default="id", help="the column of ids (default: id)")
    load.add_argument("--columns", metavar="A,B", help="the columns of numbers, in their order (default: all others)")
    load.add_argument("--restart", action="store_true", help="from the first row, whatever was written before")


if __name__ == "__main__":
    sys.exit(main())
