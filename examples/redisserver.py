"""A real Redis (or Valkey) server in a process of its own, for the demo and the tests: always stopped.

Rule of this file: it knows the server's command line and protocol, and nothing of Tailrace. What it starts keeps
nothing outside of a temporary folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from types import TracebackType
from typing import Final, Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from examples.child import Child
from examples.ports import HOST, Held

PROGRAMS: Final = ("redis-server", "valkey-server")
READY_SECONDS: Final = 20.0
ANSWER_SECONDS: Final = 10.0


class RedisMissing(RuntimeError):
    """There is no server on this machine; the message says how to get one."""


class RedisFailed(RuntimeError):
    """The server did not come up; the message holds what it wrote."""


def find_program() -> str:
    """The server's program; raises RedisMissing."""
    for name in PROGRAMS:
        found = shutil.which(name)
        if found is not None:
            return found
    raise RedisMissing("there is no redis-server on this machine: make .redis, or apt-get install redis-server")


class RedisServer:
    """``redis-server`` as a child process, as a context manager. ``settings`` are lines of its configuration; what they
    say goes before what is said here. The port stays the same from start to start, and nobody else is given it."""

    def __init__(self, settings: Sequence[str] = (), arguments: Sequence[str] = (), password: str = "") -> None:
        self._held = Held()
        (self.port,) = self._held.numbers
        self._settings = tuple(settings)
        self._arguments = tuple(arguments)
        self._password = password
        self._folder: Path | None = None
        self._child: Child | None = None

    @property
    def host(self) -> str:
        return HOST

    @property
    def address(self) -> str:
        """``HOST:PORT``."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self.address}/0"

    @property
    def child(self) -> Child:
        assert self._child is not None, "the server was not started"
        return self._child

    @property
    def folder(self) -> Path:
        """Where its files are; there from the first start on."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="tailrace-redis-"))
        return self._folder

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._held.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def start(self, ready: bool = True) -> None:
        """Start it; ``ready``: wait until it answers."""
        plain = [
            f"bind {self.host}",
            f"port {self.port}",
            f"dir {self.folder}",
            'save ""',
            "appendonly no",
            "daemonize no",
            "loglevel notice",
            f"requirepass {self._password}" if self._password else "",
        ]
        path = self.folder / "server.conf"
        if not path.exists():  # Sentinel writes into its own
            path.write_text("\n".join([*plain, *self._settings, ""]))
        self._child = Child([find_program(), str(path), *self._arguments], os.environ, self.folder, "server")
        if ready:
            self.await_answer()

    def await_answer(self, seconds: float = READY_SECONDS) -> None:
        """Wait until it answers PING; raises RedisFailed."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.child.running:
            with contextlib.suppress(RedisError), self.client() as client:
                client.ping()
                return
            time.sleep(0.02)
        raise RedisFailed(f"redis-server did not answer within {seconds:.0f} s:\n{self.child.log()[-4000:]}")

    @contextlib.contextmanager
    def client(self) -> Iterator[Redis]:
        """A plain client of it."""
        client = Redis(
            host=self.host,
            port=self.port,
            password=self._password or None,
            protocol=2,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            yield client
        finally:
            client.close()

    def pause(self) -> None:
        """It keeps its port and its connections, and says nothing. Returns once all of it has stopped."""
        self.child.signal(SIGSTOP)
        with contextlib.suppress(ChildProcessError):  # it has ended
            os.waitid(os.P_PID, self.child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        self.child.signal(SIGCONT)

    def kill(self) -> None:
        """Gone at once; `start` brings it back on the same port."""
        if self._child is not None:
            self._child.kill()

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()
