"""Several workers behind one port: started together, watched, started again, ended together.

Rule of this file: it knows processes and sockets, and no request. A worker is the ordinary gateway in a
process of its own, started by the same command line with its number; the kernel shares new connections
among those that listen (SO_REUSEPORT). What a worker keeps (cache, quotas, breakers) is its own.

A worker ends when its standard input does: so none outlives a supervisor that was killed. What it had in work when it
died is read from its notes (``notes.py``), and what two have died of is refused by all (``suspects.py``). One that
hangs gives no sign of life there, and is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Final

import msgspec
import structlog

from degrade.deadline import Ticker
from gateway.address import parse_address
from gateway.background import came
from gateway.config import Config
from gateway.config_server import Server
from gateway.doors import certificates
from gateway.doors.listener import ADMIN_CONNECTIONS_MAX, ADMIN_DRAIN_SECONDS, Listener, bind, listen, named
from gateway.notes import TELLS_WHERE, Notebook
from gateway.operate.fleet import Fleet, fleet_port
from gateway.operate.log import set_up
from gateway.reload import Reloads, Reread, reloading
from gateway.suspects import DEATHS_MAX, REFUSED_SECONDS, Suspects

READY_SECONDS_MAX: Final = 60.0
STEADY_SECONDS: Final = 60.0
"""A worker that lived so long had no trouble starting: its next start waits for nothing."""
BACKOFF_SECONDS: Final = 0.5
BACKOFF_SECONDS_MAX: Final = 30.0
PATIENCE_SECONDS: Final = 5.0
"""Beyond ``server.drain_notice`` and ``server.drain``, before a worker that does not end is killed."""
LOOK_SECONDS: Final = 0.5
"""Between two looks at a worker's signs of life. Looks are counted, and not the time: of a machine that slept nobody
can say that only its workers did."""
TRACEBACK_SECONDS: Final = 2.0
"""For a worker that hangs to write where, before it is killed."""
READY: Final = b"tailrace ready "

_log = structlog.get_logger("tailrace")


class WorkerFailed(Exception):
    """A worker ended before it was ever ready; ``code`` is its exit code. It has said why itself."""

    def __init__(self, worker: int, code: int) -> None:
        super().__init__(f"worker {worker} ended with {code} before it was ready")
        self.code = code


def backoff(failures: int) -> float:
    """Seconds to wait before the next start, after so many short lives in a row."""
    if failures == 0:
        return 0.0
    return float(min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2.0 ** min(failures - 1, 16)))


class Time(msgspec.Struct, frozen=True):
    """``ticker``: monotonic seconds; workers have the same. ``came``: whether an event happens, waiting so many seconds
    for it at most."""

    ticker: Ticker = monotonic
    came: Callable[[asyncio.Event, float], Awaitable[bool]] = came


REAL: Final = Time()


class Supervisor:
    """The workers of one gateway. ``command`` starts one, but for its number and addresses."""

    def __init__(self, config: Config, reread: Reread, command: Sequence[str], time: Time = REAL) -> None:
        self._config = config
        self._reread = reread
        self._hung_up = asyncio.Event()
        self._command = tuple(command)
        self._time = time
        self._stopping = asyncio.Event()
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._suspects = Suspects()
        self._notebook = Notebook(config.server.workers)

    def stop(self) -> None:
        """Let ``run`` end: every worker drains and ends."""
        self._stopping.set()

    def reload(self) -> None:
        """Let every worker take the configuration as it is written now."""
        self._hung_up.set()

    async def run(self, announce: Callable[[str], None]) -> None:
        """Run all workers until `stop`, once; ``announce`` gets one line when all of them are ready.

        Raises OSError when an address cannot be listened on, WorkerFailed when a first start fails.
        """
        server = self._config.server
        directory = Path(tempfile.mkdtemp(prefix="tailrace-"))
        held, where = _reserved(server)
        keepers: list[asyncio.Task[None]] = []
        listener: Listener | None = None
        listening: asyncio.Server | None = None
        try:
            sockets = [str(directory / f"worker-{worker}.sock") for worker in range(server.workers)]
            fleet = Fleet(sockets, lambda: self._suspects.refused(self._time.ticker()), self._time.ticker)

            async def take(config: Config) -> None:
                await fleet.reload()  # it is in order: each worker reads it for itself
                _warn_of_what_is_kept_apart(config)
                self._config = config

            reloads = Reloads(self._config, self._reread, take)
            address = parse_address(server.admin)
            port = fleet_port(fleet, reloads, address.host, self._config.chaos.enabled)
            listener = Listener(port.handle, int(server.header_bytes_max), ADMIN_CONNECTIONS_MAX)
            with named("server.admin", server.admin):
                listening, admin = await listen(listener, address)
            ready = [asyncio.Event() for _ in sockets]
            for worker, path in enumerate(sockets):
                arguments = ["--worker", str(worker), "--http", where["http"], "--admin", f"unix:{path}"]
                arguments += ["--grpc", where.get("grpc", "off")]
                arguments += ["--rpc", where["rpc"]] if "rpc" in where else []
                arguments += ["--notes", str(self._notebook.file)]
                keepers.append(asyncio.create_task(self._keep(worker, arguments, ready[worker], fleet)))
            await self._all_ready(ready, keepers)
            if not self._stopping.is_set():
                scheme = "http" if server.tls is None else "https"
                told = where | {"http": f"{scheme}://{where['http']}"}
                doors = " ".join(f"{door}={address}" for door, address in told.items())
                announce(f"tailrace ready {doors} admin={admin} workers={server.workers}")
            async with reloading(reloads, self._hung_up):
                await self._stopping.wait()
        finally:
            self._stopping.set()
            server = self._config.server  # as of the last reload
            await self._end(keepers, float(server.drain_notice) + float(server.drain) + PATIENCE_SECONDS)
            if listening is not None:
                listening.close()
            if listener is not None:
                await listener.shutdown(ADMIN_DRAIN_SECONDS)
            for each in held:
                each.close()
            self._notebook.close()
            shutil.rmtree(directory, ignore_errors=True)

    async def _all_ready(self, ready: Sequence[asyncio.Event], keepers: Sequence[asyncio.Task[None]]) -> None:
        """Wait until every worker is ready, or one has failed, or we are to stop."""

        async def everyone() -> None:
            for event in ready:
                await event.wait()

        async def stopped() -> None:
            await self._stopping.wait()

        waiting = [asyncio.create_task(everyone()), asyncio.create_task(stopped())]
        try:
            await asyncio.wait((*waiting, *keepers), return_when=asyncio.FIRST_COMPLETED)
            for keeper in keepers:
                if keeper.done():
                    keeper.result()
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _keep(self, worker: int, arguments: Sequence[str], ready: asyncio.Event, fleet: Fleet) -> None:
        """Start a worker, and again whenever it ends, until we are to stop."""
        failures = 0
        while not self._stopping.is_set():
            began = self._time.ticker()
            process = await asyncio.create_subprocess_exec(
                *self._command,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=(self._notebook.file,),
            )
            self._processes[worker] = process
            try:
                await self._watched(process, ready)
                watch = asyncio.create_task(self._end_if_it_hangs(worker, process))
                if not await fleet.returned(worker):
                    _log.warning("faults on purpose are not ordered again", worker=worker)
                code = await process.wait()
                watch.cancel()
            finally:
                del self._processes[worker]
            if self._stopping.is_set():
                return
            if not ready.is_set():
                raise WorkerFailed(worker, code)
            fleet.departed(worker)
            self._blame(worker, code)
            failures = 0 if self._time.ticker() - began >= STEADY_SECONDS else failures + 1
            pause = backoff(failures)
            _log.error("worker ended", worker=worker, code=code, again_in_seconds=pause)
            await self._time.came(self._stopping, pause)

    def _blame(self, worker: int, code: int) -> None:
        """Suspect what a worker has died with, and let no worker do again what two have died of. One that ended of
        itself (0) was told to, and what it had in work has nothing to do with it."""
        in_work = self._notebook.taken(worker)
        if not code:
            return
        now = self._time.ticker()
        self._suspects.acquitted(self._notebook.answered(), now)
        for digest in self._suspects.died(in_work, now):
            _log.error("deadly request", digest=digest.hex(), deaths=DEATHS_MAX, refused_seconds=REFUSED_SECONDS)
        self._notebook.publish(self._suspects.known())
        if in_work:
            _log.warning("requests lost", worker=worker, requests=len(in_work))

    async def _watched(self, process: asyncio.subprocess.Process, ready: asyncio.Event) -> None:
        """Wait for the ready line, or the process's end; one that says nothing for too long is killed."""
        assert process.stdout is not None
        try:
            async with asyncio.timeout(READY_SECONDS_MAX):
                while line := await process.stdout.readline():
                    if line.startswith(READY):
                        ready.set()
                        return
        except TimeoutError:
            _log.error("worker is not ready", seconds=READY_SECONDS_MAX, pid=process.pid)
            process.kill()

    async def _end_if_it_hangs(self, worker: int, process: asyncio.subprocess.Process) -> None:
        """Wait until a worker gives no sign of life any more, and end it."""
        beats, still = self._notebook.beats(worker), 0
        while still * LOOK_SECONDS < float(self._config.server.hang_timeout):
            await asyncio.sleep(LOOK_SECONDS)
            before, beats = beats, self._notebook.beats(worker)
            still = still + 1 if beats == before else 0
        _log.error("worker hangs", worker=worker, pid=process.pid, seconds=float(self._config.server.hang_timeout))
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(TELLS_WHERE)
            await asyncio.sleep(TRACEBACK_SECONDS)
            process.kill()

    async def _end(self, keepers: Sequence[asyncio.Task[None]], seconds: float) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        if keepers:
            await asyncio.wait(keepers, timeout=seconds)
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await asyncio.gather(*keepers, return_exceptions=True)


def supervise(config: Config, reread: Reread, arguments: Sequence[str], announce: Callable[[str], None]) -> int:
    """Run ``server.workers`` workers until SIGTERM or SIGINT; returns the process's exit code.

    ``arguments`` are those of this process's own command line.
    """
    set_up(config.log)
    unusable = certificates.faults(config.server.tls)  # told once, and not by each worker
    for fault in unusable:
        print(f"tailrace: {fault}", file=sys.stderr)
    if unusable:
        return 1
    _warn_of_what_is_kept_apart(config)
    # -P: what lies in the current directory is not ours to import.
    supervisor = Supervisor(config, reread, (sys.executable, "-P", "-m", "gateway.cli", *arguments))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.stop)
        loop.add_signal_handler(signal.SIGHUP, supervisor.reload)
        await supervisor.run(announce)

    try:
        asyncio.run(main())
    except WorkerFailed as failed:
        print(f"tailrace: {failed}", file=sys.stderr)
        return failed.code if failed.code > 0 else 1
    except OSError as error:
        print(f"tailrace: cannot listen: {error}", file=sys.stderr)
        return 1
    return 0


def _reserved(server: Server) -> tuple[list[socket.socket], dict[str, str]]:
    """Sockets that do not listen, and where each door is: they hold the ports for the workers, also while none is
    there. Raises OSError."""
    written = {"http": server.http, "grpc": server.grpc if server.has_grpc else None, "rpc": server.rpc}
    held: list[socket.socket] = []
    where: dict[str, str] = {}
    try:
        for door, address in written.items():
            if address is not None:
                with named(f"server.{door}", address):
                    bound, where[door] = bind(parse_address(address), shared=True)
                held.append(bound)
    except OSError:
        for each in held:
            each.close()
        raise
    return held, where


def _warn_of_what_is_kept_apart(config: Config) -> None:
    quotas = any(route.quota or route.caller_quota for route in config.routes.values())
    quotas = quotas or any(endpoint.quota or endpoint.caller_quota for endpoint in config.endpoints.values())
    if quotas or any(caller.quota for caller in config.callers.values()):
        _log.warning("each worker counts quotas for itself", workers=config.server.workers)
