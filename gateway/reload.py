"""Another configuration for a gateway that runs: read, compared, and taken as a whole or not at all.

Rule of this file: it says whether a configuration may be taken, and what of it is new; who takes it does so in one
turn of its event loop (``app.py``), or lets each of its workers do so (``supervisor.py``). A configuration that has a
fault changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from threading import Thread
from typing import Final

import msgspec
import structlog

from gateway.config import Config
from gateway.config_server import Server
from gateway.sources import ConfigError, Loaded

Reread = Callable[[], Loaded]
"""Reads the configuration again, from where it came. Raises ConfigError."""

RELOADED: Final = frozenset(
    {
        "passthrough", "allow", "anonymous", "body_bytes_max", "buffered_bytes_max", "passthrough_bytes_max", "drain",
        "drain_notice", "ready", "trusted_proxies", "forwarded_field",
    }
)  # fmt: skip
"""The keys of ``server`` that are not its listeners', and so can be others while these are open."""

READ_SECONDS_MAX: Final = 10.0
"""How long a configuration may take to be read again."""

RESTART: Final = "which takes a restart; set it back to reload the rest"

SECTIONS: Final = ("callers", "backends", "tables", "routes", "endpoints")

_log = structlog.get_logger("tailrace")


class Difference(msgspec.Struct, frozen=True):
    """What is there now that was not, what is another, and what is gone: names of one section's entries."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


class TakenInPart(Exception):
    """Some of several workers have taken a configuration, and others have not: ``faults`` says which, and why."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class Outcome(msgspec.Struct, frozen=True):
    """What a reload came to. ``faults``: why nothing has changed, or (``in_part``) not everywhere; ``changed``: by
    section, what has."""

    faults: tuple[str, ...] = ()
    in_part: bool = False
    warnings: tuple[str, ...] = ()
    changed: Mapping[str, Difference] = {}


class Reloads:
    """One at a time. ``config`` is what is in force, ``faults`` why the last one was refused."""

    def __init__(self, config: Config, reread: Reread, take: Callable[[Config], Awaitable[None]]) -> None:
        """``take`` puts a configuration in force, or raises ConfigError and changes nothing, or TakenInPart."""
        self.config = config
        self.faults: tuple[str, ...] = ()
        self.outcomes: Counter[str] = Counter(taken=0, refused=0, partly=0)
        self._reread = reread
        self._take = take
        self._turn = asyncio.Lock()
        self._read: asyncio.Future[Loaded] | None = None  # the last one

    async def reload(self) -> Outcome:
        """Read the configuration and take it. Never raises for what is wrong with it."""
        async with self._turn:
            try:
                loaded = await self._read_again()
                faults = tuple(fixed(self.config, loaded.config))
                if faults:
                    raise ConfigError(faults)
                await self._take(loaded.config)
            except ConfigError as error:
                _log.error("configuration refused, nothing has changed", faults=list(error.faults))
                return self._refused(error.faults)
            except TakenInPart as taken:
                _log.error("configuration not taken everywhere", faults=list(taken.faults))
                self.config, self.faults = loaded.config, taken.faults  # it is what was asked for, and the next is new
                self.outcomes["partly"] += 1
                return Outcome(faults=taken.faults, in_part=True)
            except Exception as bug:  # of ours: the next reload must find somebody to hear it
                _log.exception("configuration refused by a bug")
                return self._refused((f"a bug of Tailrace's, told in its log: {bug!r}",))
            before, self.config, self.faults = self.config, loaded.config, ()
            self.outcomes["taken"] += 1
            changed = differences(before, loaded.config)
            _log.warning("configuration taken", changed=msgspec.to_builtins(changed), warnings=list(loaded.warnings))
            return Outcome(warnings=loaded.warnings, changed=changed)

    async def _read_again(self) -> Loaded:
        """Read on a thread of its own, for a disk may be slow: one that nobody need wait for, not even the end."""
        if self._read is not None and not self._read.done():
            raise ConfigError(("the configuration is still being read by an earlier reload",))
        loop = asyncio.get_running_loop()
        read: asyncio.Future[Loaded] = loop.create_future()
        read.add_done_callback(lambda ended: ended.exception())  # looked at, also when nobody waits any more
        self._read = read

        def work() -> None:
            try:
                loaded = self._reread()
                said = partial(read.set_result, loaded)
            except Exception as error:
                said = partial(read.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(said)

        Thread(target=work, name="configuration", daemon=True).start()
        try:
            async with asyncio.timeout(READ_SECONDS_MAX):
                return await asyncio.shield(read)
        except TimeoutError:
            raise ConfigError((f"the configuration could not be read within {READ_SECONDS_MAX:g} s",)) from None

    def _refused(self, faults: tuple[str, ...]) -> Outcome:
        self.faults = faults
        self.outcomes["refused"] += 1
        return Outcome(faults=faults)


def fixed(before: Config, after: Config) -> Iterator[str]:
    """What differs and cannot be changed without a restart."""
    for name in Server.__struct_fields__:
        old, new = getattr(before.server, name), getattr(after.server, name)
        if old != new and name not in RELOADED:
            yield f"server.{name}: {_said(old)} is now {_said(new)}, {RESTART}"
    old, new = before.server.message_bytes_max, after.server.message_bytes_max
    if before.server.has_grpc and old != new:
        yield f"server.buffered_bytes_max: a gRPC message may have half of it, {old}, and now {new}, {RESTART}"
    for section in ("snapshot", "log", "chaos"):
        yield from _changed(section, getattr(before, section), getattr(after, section))


def _changed(section: str, before: msgspec.Struct | None, after: msgspec.Struct | None) -> Iterator[str]:
    """The keys of a section that differ; of one that was not there or is not, that alone."""
    if before is None or after is None:
        if before is not after:
            was, is_now = ("not there", "there") if before is None else ("there", "not there")
            yield f"{section}: was {was} and is now {is_now}, {RESTART}"
        return
    for key in before.__struct_fields__:
        old, new = getattr(before, key), getattr(after, key)
        if old != new:
            yield f"{section}.{key}: {_said(old)} is now {_said(new)}, {RESTART}"


def differences(before: Config, after: Config) -> dict[str, Difference]:
    """The sections whose entries differ, and how; of ``server``, the keys."""
    old, new = ({key: getattr(config.server, key) for key in RELOADED} for config in (before, after))
    found = {"server": _difference(old, new)}
    for section in SECTIONS:
        found[section] = _difference(getattr(before, section), getattr(after, section))
    return {section: difference for section, difference in found.items() if difference != Difference()}


@asynccontextmanager
async def reloading(reloads: Reloads, hung_up: asyncio.Event) -> AsyncIterator[None]:
    """Reload whenever the event is set, for as long as the block lasts."""

    async def whenever() -> None:
        while True:
            await hung_up.wait()
            hung_up.clear()
            await reloads.reload()

    task = asyncio.create_task(whenever())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _difference(old: Mapping[str, object], new: Mapping[str, object]) -> Difference:
    return Difference(
        tuple(sorted(name for name in new if name not in old)),
        tuple(sorted(name for name in new if name in old and old[name] != new[name])),
        tuple(sorted(name for name in old if name not in new)),
    )


def _said(value: object) -> str:
    """As a file has it."""
    match value:
        case None:
            return "left out"
        case bool():
            return str(value).lower()
        case str():
            return repr(str(value))
        case list() | tuple():
            return f"[{', '.join(map(_said, value))}]"
        case msgspec.Struct():
            keys = [key for key in value.__struct_fields__ if getattr(value, key) is not None]
            return f"{{ {', '.join(f'{key} = {_said(getattr(value, key))}' for key in keys)} }}"
        case _:
            return str(value)
