"""One process that serves: what it sets for itself, which signals it hears, and the line that says it is ready.

Rule of this file: what is a process's and not a gateway's. SIGTERM and SIGINT end it, SIGHUP lets it read its
configuration again.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
from collections.abc import Callable

import msgspec
import structlog
import uvloop

from gateway.app import Gateway
from gateway.check import raise_open_files
from gateway.config import Config
from gateway.config_server import ALLOW_ALL
from gateway.doors.certificates import Unusable
from gateway.doors.listener import ParserMissing, require_strict_parser
from gateway.memory import keep_freed_memory, set_start_aside
from gateway.notes import TELLS_WHERE, Notes
from gateway.operate.log import set_up
from gateway.reload import Reread, reloading

_log = structlog.get_logger("tailrace")


class Employment(msgspec.Struct, frozen=True):
    """What a worker is told by its supervisor: its number, and the descriptor of its ``Notes``, if there are any."""

    worker: int
    notes: int | None = None


def serve(config: Config, reread: Reread, announce: Callable[[str], None], employment: Employment | None = None) -> int:
    """Run a gateway until SIGTERM or SIGINT; returns the process's exit code.

    ``announce`` gets one line when it is ready. ``employment``: of a supervisor's worker, which ends when its
    standard input does.
    """
    worker = None if employment is None else employment.worker
    set_up(config.log, worker)
    try:
        require_strict_parser()
    except ParserMissing as error:
        print(f"tailrace: {error}", file=sys.stderr)
        return 1
    if config.server.allow == ALLOW_ALL:
        _log.warning("callers may change the servers behind this gateway", allow=ALLOW_ALL)

    short = raise_open_files(config)
    if short:
        _log.warning("callers may be refused for want of open files", reason=short)
    keep_freed_memory()
    faulthandler.enable()  # a crash leaves a traceback
    faulthandler.register(TELLS_WHERE)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong there is told by us, once and in our format

    async def main() -> None:
        stopping, hung_up = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        # A worker's supervisor tells it to reload: a terminal that is closed tells both.
        loop.add_signal_handler(signal.SIGHUP, hung_up.set if worker is None else _nothing)
        if worker is not None:
            loop.add_reader(sys.stdin.fileno(), stopping.set)  # nobody writes there: readable means its end
        gateway = Gateway(config, shared=worker is not None, reread=reread)
        if employment is not None and employment.notes is not None:
            gateway.note(Notes(employment.notes, employment.worker))
        try:
            http, admin = await gateway.start()
            doors = gateway.doors
            ready = {"http": http, "grpc": doors.grpc_address, "rpc": doors.rpc_address, "admin": admin}
            set_start_aside()
            announce(f"tailrace ready {' '.join(f'{name}={url}' for name, url in ready.items() if url)}")
            assert gateway.reloads is not None
            async with reloading(gateway.reloads, hung_up):
                await stopping.wait()
            _log.info("draining", seconds=float(gateway.standing.config.server.drain))
        finally:
            await gateway.stop()
            if worker is not None:
                loop.remove_reader(sys.stdin.fileno())

    try:
        uvloop.run(main())
    except Unusable as unusable:
        for fault in unusable.faults:
            print(f"tailrace: {fault}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"tailrace: cannot listen: {error}", file=sys.stderr)
        return 1
    return 0


def _nothing() -> None:
    """What a worker does when a terminal hangs up."""
