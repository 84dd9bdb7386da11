"""Lives of gateways: how they begin, what an operator does to them meanwhile, and how they end, by order or at once.

Rule of this file: it does, and decides nothing but by chance of the world's seed. What lies on a disk outlives them.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.app import Gateway
from gateway.operate.admin import SETTLED_SECONDS_MAX, purged
from gateway.sources import ConfigError
from gateway.surroundings import Surroundings
from tests.sim import faults
from tests.sim.disk import Disk
from tests.sim.faults import Spell

if TYPE_CHECKING:
    from tests.sim.world import World

AGAIN: Final = 4
"""Questions that are asked again of a gateway that was killed."""


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
        self.begun: list[float] = []
        """When its quotas began anew: its lives, and reloads that changed one."""
        self.ended: list[float] = []
        self.killed: list[float] = []
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
        world.purges[process.name, kind].remove(at)
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
                for each in world.processes:  # workers of one host are told together, as long as they are there
                    if each is process or (each.is_there and each.disk is not None and each.disk is process.disk):
                        purge(world, each, kind)
            case "reload" if process.config + 1 < len(world.scene.configs):
                await reload(world, process)
            case "restart" if chance.random() < 0.3:
                await stop(world, process)
                await start(world, process)
                world.met["operator restart"] += 1


def purge(world: World, process: Process, kind: str) -> None:
    """As the admin port does."""
    route, at, snapshots = process.gateway.routes[kind], world.loop.now, process.gateway.snapshots
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


async def reload(world: World, process: Process) -> None:
    """An operator loads the next configuration."""
    config = world.scene.configs[process.config + 1]
    server = process.gateway.standing.config.server
    process.config += 1
    config = msgspec.structs.replace(config, server=server)
    taking = world.run_as(process.name, process.gateway.take(config), process.life)
    await asyncio.wait((taking, process.gone), return_when=asyncio.FIRST_COMPLETED)
    if not taking.done():  # and never will be
        return
    try:
        taking.result()
    except ConfigError as error:
        world.note("refused", process.name, error)
        return
    process.begun.append(world.loop.now)
    for name, home in process.gateway.homes.items():  # one that was replaced begins anew
        world.levels[process.name, name].append((world.loop.now, home.pool.gates.level))
    world.note("reload", process.name)
    world.met["operator reload"] += 1


async def killed(world: World, process: Process, spell: Spell) -> None:
    """A gateway ends and comes back; who was answered asks again."""
    if not process.up:  # it is being stopped
        return
    kill(world, process)
    world.weather.suffered(faults.KILL)
    world.met["operator kill"] += 1
    known = [each.question for each in world.told if each.gateway == process.name and each.status == 200]
    known = list(dict.fromkeys(msgspec.structs.replace(each, directives="", leaves=0.0) for each in known))
    again = world.chance.sample(known, min(len(known), AGAIN))
    await asyncio.sleep(max(0.0, spell.ends - world.loop.now))
    await start(world, process)
    await asyncio.gather(*(world.now_and_later(question, wait) for question in again for wait in (0.3, 2.5)))
