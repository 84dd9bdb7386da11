"""Lives of gateways: how they begin, what an operator does to them meanwhile, and how they end, by order or at once.

Rule of this file: it does, and decides nothing but by chance of the world's seed. What lies on a disk outlives them.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.app import Gateway
from gateway.config import Config
from gateway.operate.admin import SETTLED_SECONDS_MAX, purged
from gateway.sources import ConfigError
from gateway.surroundings import Surroundings
from tests.sim import faults
from tests.sim.client import Question
from tests.sim.disk import Disk
from tests.sim.faults import Spell

if TYPE_CHECKING:
    from tests.sim.world import World

AGAIN: Final = 4
"""Questions that are asked again of a gateway that was killed, or had a route switched."""
SWITCHED_SHARE: Final = 0.4
"""Of the gateways with a disk, those where copies are switched off for a while, or a route is taken out."""


class Process:
    """One gateway. ``born`` counts its lives: what it counts begins anew with each; ``life`` is the number of the
    present one among all of the world."""

    def __init__(self, name: str, path: str, config: int, disk: Disk | None = None) -> None:
        self.name = name
        self.path = path
        self.config = config
        self.disk = disk
        self.born = 0
        self.life = 0
        self.gone: asyncio.Future[None]
        """Done when the present life is killed."""
        self.gateway: Gateway
        self.up = False
        self.is_there = False
        """It is up, or is being stopped."""
        self.reloads = asyncio.Lock()
        """One at a time, as ``gateway/reload.py`` has it."""
        self.begun: list[float] = []
        """When its quotas began anew: its lives, and reloads that changed one."""
        self.ended: list[float] = []
        self.killed: list[float] = []
        self.is_switched = False
        """A configuration of its own is in force for a while."""
        self.without: dict[str, tuple[float, float]] = {}
        """Since when, and until when, it had no such route."""
        self.unsettled: dict[tuple[str, float], None] = {}
        """Purges, by route and time, that are not on the disk or in the second level yet."""


async def start(world: World, process: Process) -> None:
    """Begin a life of a gateway."""
    config = world.scene.configs[process.config]
    server = msgspec.structs.replace(config.server, http=f"unix:{process.path}", admin=f"unix:{process.path}-admin")
    config = msgspec.structs.replace(config, server=server)
    process.born += 1
    world.lives += 1
    process.life, process.gone = world.lives, world.loop.create_future()
    for kind, at in process.unsettled:  # nobody was told that they are kept, and they may be forgotten
        purges = world.purges[process.name, kind]
        purges[:] = [each for each in purges if each != at]  # several, of one moment
    process.unsettled.clear()
    secrets = random.Random(f"secret {world.scene.seed} {process.name} {process.born}")
    around = Surroundings(world.loop.time, world.wall, random.Random(f"chance {process.born}"), secrets.randbytes)
    if process.disk is not None:
        around = msgspec.structs.replace(around, depot=process.disk.depot)
        process.disk.users += 1

    async def begin() -> None:
        process.gateway = Gateway(config, around=around)
        await process.gateway.start()

    for backend in config.backends:
        world.levels.setdefault((process.name, backend), []).append((world.loop.now, 0))
    await world.run_as(process.name, begin(), process.life)
    process.up = process.is_there = True
    process.begun.append(world.loop.now)
    world.note("start", process.name)


async def stop(world: World, process: Process) -> None:
    """End a life as an operator does."""
    process.up = False
    process.ended.append(world.loop.now)
    world.note("stop", process.name)
    await world.run_as(process.name, process.gateway.stop(), process.life)
    process.is_there = False
    if process.disk is not None:
        process.disk.users -= 1


def kill(world: World, process: Process) -> None:
    """End a life at once: nothing of it is done any more."""
    process.up = process.is_there = False
    process.killed.append(world.loop.now)
    world.note("kill", process.name)
    world.loop.end(process.life)
    world.network.end(process.life)
    process.gone.set_result(None)
    world.dead.append(process.gateway)
    world.permits = [permit for permit in world.permits if permit[0] != process.life]
    world.gate_permits = [permit for permit in world.gate_permits if permit[0] != process.life]
    del world.leaves[process.life]
    if process.disk is not None:
        process.disk.users -= 1


async def operator(world: World, process: Process) -> None:
    """Purges, reloads, restarts."""
    chance = random.Random(f"operator {world.scene.seed} {process.name}")
    while True:
        await asyncio.sleep(chance.expovariate(1.0))
        if world.loop.now >= world.scene.ends - 0.5:
            return
        what = chance.choice(("purge", "purge", "purge", "reload", "restart"))
        if not process.up:
            continue
        match what:
            case "purge":
                kind = chance.choice(world.scene.kinds)
                for each in _workers(world, process):
                    purge(world, each, kind)
            case "reload" if process.config + 1 < len(world.scene.configs) and not process.is_switched:
                await reload(world, process)
            case "restart" if chance.random() < 0.3:
                await stop(world, process)
                await start(world, process)
                world.met["operator restart"] += 1


def _workers(world: World, process: Process) -> Iterator[Process]:
    """Workers of one host are told together, as long as they are there."""
    for each in world.processes:
        if each is process or (each.is_there and each.disk is not None and each.disk is process.disk):
            yield each


def purge(world: World, process: Process, kind: str) -> None:
    """As the admin port does."""
    at, snapshots, route = world.loop.now, process.gateway.snapshots, process.gateway.routes.get(kind)
    if route is None:  # which the port refuses
        return
    if snapshots is not None:
        snapshots.marks.purge(kind)
    purged(route)
    world.purges.setdefault((process.name, kind), []).append(at)
    kept = [each for each in (route.second, None if snapshots is None else snapshots.marks) if each is not None]

    async def settle() -> None:
        if all(await asyncio.gather(*(each.settled(SETTLED_SECONDS_MAX) for each in kept))):
            process.unsettled.pop((kind, at), None)

    if kept:
        process.unsettled[kind, at] = None
        world._owned.add(world.run_as(process.name, settle(), process.life))
    world.note("purge", process.name, kind)
    world.met["operator purge"] += 1


def purge_all(world: World, process: Process) -> None:
    """As the admin port does with everything."""
    snapshots, at = process.gateway.snapshots, world.loop.now
    if snapshots is not None:
        snapshots.marks.purge(None)
    for each in process.gateway.routes.values():
        purged(each)
    kinds = [kind for kind in world.scene.kinds if kind in process.gateway.routes or not kind.startswith("second")]
    for kind in kinds:  # a second level whose route is not here just now is told nothing
        world.purges.setdefault((process.name, kind), []).append(at)
        process.unsettled[kind, at] = None

    async def settle() -> None:
        if snapshots is None or await snapshots.marks.settled(SETTLED_SECONDS_MAX):
            for kind in kinds:
                route = process.gateway.routes.get(kind)
                if route is None or route.second is None or await route.second.settled(SETTLED_SECONDS_MAX):
                    process.unsettled.pop((kind, at), None)

    world._owned.add(world.run_as(process.name, settle(), process.life))
    world.note("purge", process.name, "all")


async def reload(world: World, process: Process) -> None:
    """An operator loads the next configuration."""
    process.config += 1
    if await take(world, process, world.scene.configs[process.config]):
        world.met["operator reload"] += 1


async def take(world: World, process: Process, config: Config) -> bool:
    """Load a configuration; whether it is in force."""
    async with process.reloads:
        return await _taken(world, process, config)


async def _taken(world: World, process: Process, config: Config) -> bool:
    config = msgspec.structs.replace(config, server=process.gateway.standing.config.server)
    taking = world.run_as(process.name, process.gateway.take(config), process.life)
    await asyncio.wait((taking, process.gone), return_when=asyncio.FIRST_COMPLETED)
    if not taking.done():  # and never will be
        return False
    try:
        taking.result()
    except ConfigError as error:
        world.note("refused", process.name, error)
        return False
    process.begun.append(world.loop.now)
    for name, home in process.gateway.homes.items():  # one that was replaced begins anew
        world.levels[process.name, name].append((world.loop.now, home.pool.gates.level))
    world.note("reload", process.name)
    return True


async def switcher(world: World, process: Process) -> None:
    """An operator who switches the copies of a route off, or takes the route out, purges what there is, and puts it
    back as it was; who was answered before asks again."""
    chance = random.Random(f"switcher {world.scene.seed} {process.name}")
    if process.disk is None or chance.random() > SWITCHED_SHARE:
        return
    await asyncio.sleep(chance.uniform(0.6, 1.8))
    kind = chance.choice(world.scene.kinds)
    config, life = process.gateway.standing.config, process.life
    route = config.routes[kind]
    if not process.up or route.cache is None:
        return
    is_out = chance.random() < 0.5
    off = msgspec.structs.replace(route, cache=msgspec.structs.replace(route.cache, snapshot="off"))
    routes = {name: each for name, each in config.routes.items() if name != kind} | ({} if is_out else {kind: off})
    process.is_switched = True
    if is_out:
        process.without[kind] = world.loop.now, math.inf
    known = _asked(world, process, kind)
    if await take(world, process, msgspec.structs.replace(config, routes=routes)):
        await asyncio.sleep(chance.choice((0.0, 0.05, 0.4)))
        if process.up and process.life == life:
            for each in _workers(world, process):
                purge_all(world, each) if is_out else purge(world, each, kind)
            world.met["operator switch"] += 1
            await asyncio.sleep(chance.choice((0.0, 0.05, 0.4)))
        if process.up and process.life == life:
            await take(world, process, config)
    if is_out:  # or it was killed, and is back with what the file says
        process.without[kind] = process.without[kind][0], world.loop.now
    process.is_switched = False
    await asyncio.gather(*(world.now_and_later(question, 0.5) for question in known))


def _asked(world: World, process: Process, kind: str = "") -> list[Question]:
    """Some of what a gateway has answered, of one kind of route or of any."""
    told = [each for each in world.told if each.gateway == process.name and each.status == 200]
    known = [each.question for each in told if kind in ("", each.question.route)]
    known = list(dict.fromkeys(msgspec.structs.replace(each, directives="", leaves=0.0) for each in known))
    return world.chance.sample(known, min(len(known), AGAIN))


async def killed(world: World, process: Process, spell: Spell) -> None:
    """A gateway ends and comes back; who was answered asks again."""
    if not process.up:  # it is being stopped
        return
    kill(world, process)
    world.weather.suffered(faults.KILL)
    world.met["operator kill"] += 1
    again = _asked(world, process)
    await asyncio.sleep(max(0.0, spell.ends - world.loop.now))
    await start(world, process)
    await asyncio.gather(*(world.now_and_later(question, wait) for question in again for wait in (0.3, 2.5)))
