"""What may be typed after ``tailrace``: the commands, their options, how each value is read, and what --help says.

Rule of this file: it reads words and does nothing; what a command does is ``cli.py``'s. Who types what is no
value of an option hears what would be one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import metadata
from typing import Final, TypeAlias
from urllib.parse import urlsplit

from gateway.config_snapshot import VERBS

RATE_MAX: Final = 1e6
IN_FLIGHT_MAX: Final = 1024
GENERATIONS_MAX: Final = 16
"""As many as a directory of copies has at the most, which ``degrade/snapshot.py`` says: to import that would load LMDB
for every command."""
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

_RAW: Final = argparse.RawDescriptionHelpFormatter

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def read_arguments(given: Sequence[str]) -> argparse.Namespace:
    """What was typed; leaves as argparse does (SystemExit), with 0 after --help and 2 after what cannot be read."""
    parser = argparse.ArgumentParser(
        prog="tailrace",
        description="An edge cache and tiered-serving gateway for NVIDIA Triton Inference Server.",
        epilog=EXAMPLES,
        formatter_class=_RAW,
    )
    parser.add_argument("--version", action="version", version=f"tailrace {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _serve(commands)
    _check(commands)
    _warm(commands)
    _table(commands)
    _snapshot(commands)
    _explain(commands)
    commands.add_parser("schema", help="print the JSON Schema of tailrace.toml")
    _demo(commands)
    return parser.parse_args(given)


def _serve(commands: Commands) -> None:
    serve = commands.add_parser(
        "serve",
        help="stand before Triton and answer",
        description="Answer requests until SIGTERM or Ctrl-C, then finish the open ones (server.drain).\n"
        "SIGHUP reads the configuration again and takes it as a whole, or says why not and changes nothing.\n"
        "Prints one line when ready. With no file, every model passes through and nothing is cached.",
        epilog="ADDR is HOST:PORT or unix:PATH; port 0 takes a free one, and the ready line tells which.",
        formatter_class=_RAW,
    )
    _add_common(serve)
    serve.add_argument(
        "--workers", metavar="N", type=int, help="processes that answer on the same port (default: server.workers, 1)"
    )
    serve.add_argument("--worker", type=int, help=argparse.SUPPRESS)  # which of a supervisor's workers this one is
    serve.add_argument("--notes", type=int, help=argparse.SUPPRESS)  # and the descriptor of their notes


def _check(commands: Commands) -> None:
    check = commands.add_parser(
        "check",
        help="is the configuration right, and does the world agree?",
        description="Checks the file, then this machine, the backends, their models, and whether the\n"
        "tiers of each route fit together. Lists everything wrong.",
        epilog="exit codes: 0 all well, 1 something does not fit, 2 the file is wrong",
        formatter_class=_RAW,
    )
    check.add_argument("--offline", action="store_true", help="ask no backend")
    _add_common(check)
    check.set_defaults(workers=None, worker=None)


def _add_common(command: argparse.ArgumentParser) -> None:
    """What a configuration is read from."""
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


def _warm(commands: Commands) -> None:
    warm = commands.add_parser(
        "warm",
        help="fill a running gateway's caches from a file",
        description="Asks a running gateway every request of a file, at a bounded rate. One in each line, as JSON:\n"
        '  {"route": "digits", "inputs": {"image": [[0, 0, 5]]}}\n'
        '  {"path": "/v2/models/digits/infer", "body": {"inputs": [...]}}\n'
        "With several workers each fills the cache of whichever answers, and cache.second is for all of them.",
        epilog="exit codes: 0 all was answered, 1 something was not, 2 the arguments are wrong",
        formatter_class=_RAW,
    )
    warm.add_argument("file", metavar="FILE", help="the requests; - is standard input")
    warm.add_argument(
        "--url", metavar="URL", type=_door, default="http://127.0.0.1:8080", help="the gateway (default: %(default)s)"
    )
    warm.add_argument(
        "--rate", metavar="N", type=_rate, default=50.0, help="requests a second at most (default: %(default)g)"
    )
    warm.add_argument(
        "--in-flight", metavar="N", type=_up_to(IN_FLIGHT_MAX), default=8,
        help="requests at once at most (default: %(default)d)",
    )  # fmt: skip
    warm.add_argument("--key-file", metavar="FILE", help="a file with the API key to ask with")


def _table(commands: Commands) -> None:
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
        formatter_class=_RAW,
    )
    load.add_argument("name", metavar="NAME", help="a table of the configuration")
    load.add_argument("--config", metavar="FILE", required=True, help="a tailrace.toml")
    load.add_argument("--from", metavar="FILE", required=True, dest="source", help="a .parquet, .npz or .csv file")
    load.add_argument("--id", metavar="COLUMN", default="id", help="the column of ids (default: id)")
    load.add_argument("--columns", metavar="A,B", help="the columns of numbers, in their order (default: all others)")
    load.add_argument("--restart", action="store_true", help="from the first row, whatever was written before")


def _snapshot(commands: Commands) -> None:
    snapshot = commands.add_parser("snapshot", help="see, check and move the copies on this host's disk")
    verbs = snapshot.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, told in VERBS.items():
        each = verbs.add_parser(verb, help=told)
        each.add_argument("--config", metavar="FILE", required=True, help="a tailrace.toml with a [snapshot] section")
        if verb in ("export", "import"):
            beside = ", or - for standard output" if verb == "export" else ""
            each.add_argument("file", metavar="FILE", help=f"the exported file{beside}")
        if verb == "ls":
            each.add_argument("--json", action="store_true", help="for programs")
        if verb == "prune":
            count = _up_to(GENERATIONS_MAX)
            each.add_argument("--keep", metavar="N", type=count, default=1, help="generations to keep (default: 1)")


def _explain(commands: Commands) -> None:
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
        formatter_class=_RAW,
    )
    explain.add_argument("route", metavar="ROUTE", help="a route of the configuration")
    explain.add_argument("--config", metavar="FILE", required=True, help="a tailrace.toml")
    explain.add_argument("--when", metavar="CONDITIONS", default="", help="what is wrong (default: nothing)")


def _demo(commands: Commands) -> None:
    demo = commands.add_parser(
        "demo",
        help="see it with a real Triton and its models",
        description="Starts Triton and the gateway, sends handwritten digits, stops Triton, starts it\n"
        "again, and says what each part gained. Then a ranking of 200 items, their features in a\n"
        "file of this host, which is lost and comes back. Needs Linux on x86-64; no GPU.",
        formatter_class=_RAW,
    )
    demo.add_argument("--keep", action="store_true", help="leave all of it running, to try by hand")
    demo.add_argument(
        "--redis", action="store_true", help="features in a real Redis, which is written to and killed (make .redis)"
    )


def _rate(written: str) -> float:
    with suppress(ValueError):
        if 0 < float(written) <= RATE_MAX:
            return float(written)
    raise argparse.ArgumentTypeError(f"{written!r} is no number above 0 and up to {RATE_MAX:g}")


def _door(written: str) -> str:
    """A gateway's HTTP door, without a path."""
    parts = urlsplit(written)
    whole = parts.path in ("", "/") and not parts.query and not parts.fragment and parts.username is None
    with suppress(ValueError):
        if parts.scheme in ("http", "https") and parts.hostname and whole and parts.port != 0:
            return f"{parts.scheme}://{parts.netloc}"
    raise argparse.ArgumentTypeError(f"{written!r} is not http://HOST:PORT or https://HOST:PORT")


def _up_to(most: int) -> Callable[[str], int]:
    """Reads a whole number from 1 to ``most``."""

    def read(written: str) -> int:
        with suppress(ValueError):
            if 1 <= int(written) <= most:
                return int(written)
        raise argparse.ArgumentTypeError(f"{written!r} is no whole number from 1 to {most}")

    return read


def _version() -> str:
    try:
        return metadata.version("tailrace")
    except metadata.PackageNotFoundError:
        return "(not installed)"
