"""One seed's world, from its first moment to its last: gateways, servers, callers, an operator, and the weather.

Rule of this file: it makes the parts and lets time pass; every part of a gateway is the real one, from its read
callback to its connections, and what is beside it is simulated. What must hold is said in ``invariants.py``.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import hashlib
import math
import random
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

import msgspec
from msgspec import Struct

from degrade.breaker import Permit
from degrade.gate import Permit as GatePermit
from gateway.app import Gateway
from gateway.witness import Witness
from tests.sim import faults, lives, writers
from tests.sim.client import Callers, Question, Told, again, question_of
from tests.sim.disk import Disk
from tests.sim.faults import Spell, Weather
from tests.sim.ledger import Ledger, scores
from tests.sim.lives import Process
from tests.sim.loop import LIFE, Endless, Idle, SimLoop
from tests.sim.network import OWNER, Network
from tests.sim.redis import Redis
from tests.sim.scene import (
    ACTIVE_SECONDS,
    BEGINS,
    CALM_SECONDS,
    DRAIN_SECONDS,
    FAST,
    ONE,
    SHARED,
    TABLES,
    Scene,
    scene,
)
from tests.sim.surrounded import surrounded
from tests.sim.triton import WALL, Model, Triton

LOOK_SECONDS: Final = 0.5
"""How often the invariants of every moment are looked at, beside each answer's own."""
COPIED_SECONDS: Final = 10.0
"""The stated bound for copies: what was begun on a disk that hung is done by then, and what waited is written."""
KEEPALIVE_SECONDS: Final = 0.8
"""In the calm, every route is asked so often: a breaker closes by being tried."""
KNOWN: Final = 3
"""Questions that come again and again."""
UNSURE: Final = next(key for key in range(1, 9) if scores("small", (key, key * 7, 0))[0] < 0.6)
SURE_AND_UNSURE: Final = (UNSURE, 1)


class Violated(Exception):
    """Something that must hold does not: which, and how."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant


class Report(Struct, frozen=True):
    """What came of a run. ``trace``: a digest of all that happened, in order. ``violation`` is empty where all held."""

    seed: int
    violation: str
    invariant: str
    trace: str
    met: dict[str, int]
    answers: int
    steps: int
    story: tuple[str, ...] = ()


class World:
    """All there is."""

    def __init__(self, seed: int, loop: SimLoop, plan: Scene) -> None:
        self.scene = plan
        self.loop = loop
        self.chance = random.Random(f"world {seed}")
        self.weather = Weather(plan.spells, random.Random(f"weather {seed}"))
        self.network = Network(loop, self.weather, random.Random(f"network {seed}"))
        doors = (faults.LATENCY, faults.DRIP)
        self.network.of_askers = {f"net:sim{index}": doors for index in range(plan.gateways)}
        self.ledger = Ledger()
        self.callers = Callers(self.network)
        self.met: Counter[str] = Counter()
        self.told: list[Told] = []
        self.stalls: list[tuple[float, float]] = []
        self.stepped = 0.0
        """Seconds by which the civil clock has been set, all together."""
        self.purges: dict[tuple[str, str], list[float]] = {}
        self.permits: list[tuple[int, Permit]] = []
        """Of breakers, with the life that has each."""
        self.gate_permits: list[tuple[int, GatePermit]] = []
        self.leaves: Counter[int] = Counter()
        """Leave that breakers have given and that has not ended, by life."""
        self.levels: dict[tuple[str, str], list[tuple[float, int]]] = {}
        """Brownout levels, by gateway and backend, and since when."""
        self.rounds: dict[Witness, list[tuple[float, float, str]]] = {}
        """When each round was that read a word, from and to, and what was known then."""
        self.dead: list[Gateway] = []
        """Those who were killed, so that nobody clears them away before the run is over."""
        self.tenants: dict[tuple[str, int], str] = {}
        """Whose an execution's answer was, by route."""
        self.bugs: list[str] = []
        self.calm = False
        self.violated = False
        self.story: list[str] = []
        self._trace = hashlib.blake2b(digest_size=12)
        self._offset = 0.0
        self._owned: set[asyncio.Task[Any]] = set()
        self._generations = 1
        self.tritons = self._tritons()
        self.stores = self._stores()
        self.network.far = plan.far
        for triton in self.tritons.values():
            triton.pace = plan.pace
        disks = {name: Disk(loop, self.weather, random.Random(f"{name} {seed}"), name) for name in plan.disks}
        self.disks = disks
        self.lives = 0
        self.processes = [
            Process(f"gateway{index}", f"sim{index}", 0, disks[plan.disks[index]] if disks else None)
            for index in range(plan.gateways)
        ]

    def note(self, *what: object) -> None:
        """Something happened: into the trace, and the story."""
        line = f"{self.loop.now - BEGINS:9.4f} {' '.join(map(str, what))}"
        self._trace.update(line.encode())
        self.story.append(line)

    @property
    def trace(self) -> str:
        return self._trace.hexdigest()

    def wall(self) -> float:
        return WALL + self.loop.now + self._offset

    def stalled(self, begins: float, ends: float) -> float:
        """Seconds between the two in which the event loop did nothing, and those just before."""
        return sum(seconds for at, seconds in self.stalls if begins - 1.0 <= at <= ends)

    def on_the_way(self, told: Told) -> float:
        """How long a question and its answer may have been on the way, by the weather at the door."""
        return sum(2.0 * spell.seconds for spell in self._at_the_door(told))

    def met_an_end(self, told: Told) -> bool:
        """Whether a question may have come to a gateway as it stopped, or after that, over a connection that rested: a
        caller hears of its end as late as the network tells."""
        of_it = [at for each in self.processes if each.name == told.gateway for at in (*each.killed, *each.ended)]
        if any(0.0 < told.opened <= at <= told.asked for at in of_it):
            return True
        last = told.asked + self.on_the_way(told) + 0.01
        if any(told.asked - 0.01 <= at <= told.answered for each in self.processes for at in each.killed):
            return True
        ends = [at for process in self.processes for at in process.ended]
        cut = [at for at in ends if told.asked <= at and told.answered >= at + DRAIN_SECONDS - 0.1]
        return bool(cut) or any(told.asked - 0.01 <= at <= last for at in ends)

    def had_no_route(self, told: Told) -> bool:
        """Whether an operator may have taken the route out that was asked for."""
        process = next(each for each in self.processes if each.name == told.gateway)
        out, back = process.without.get(told.question.route, (math.inf, math.inf))
        return out <= told.answered and told.asked <= back

    def may_break(self, told: Told) -> bool:
        """Whether a caller's own connection may have broken."""
        return any(spell.kind == faults.RESET for spell in self._at_the_door(told))

    def _at_the_door(self, told: Told) -> list[Spell]:
        place = f"net:{told.gateway.replace('gateway', 'sim')}"
        return [each for each in self.weather.at(place) if each.begins <= told.answered and told.asked <= each.ends]

    # -- the parts ----------------------------------------------------------------------------------

    def _tritons(self) -> dict[str, Triton]:
        chance = random.Random(f"models {self.scene.seed}")
        made = {}
        for host in ONE:
            models = [Model("one"), Model("large"), Model("ranker", 6, True)]
            made[host] = Triton(self.network, host, models, self.ledger, chance)
        for host in FAST:
            made[host] = Triton(self.network, host, [Model("small")], self.ledger, chance)
        return made

    def _stores(self) -> dict[str, Redis]:
        def rot(value: bytes) -> bytes:
            if len(value) == 12:  # a row of a table, which has no checksum: of another length, then
                return value[:-2]
            at = self.chance.randrange(len(value)) if value else 0
            return value[:at] + bytes([value[at] ^ 0x55]) + value[at + 1 :] if value else b"?"

        return {host: Redis(self.network, host, rot) for host in (TABLES, SHARED)}

    def run_as(self, owner: str, work: Coroutine[Any, Any, Any], life: int = 0) -> asyncio.Task[Any]:
        """A task of this process's."""
        context = contextvars.copy_context()
        context.run(OWNER.set, owner)
        context.run(LIFE.set, life)
        return self.loop.create_task(work, context=context)

    # -- what happens -------------------------------------------------------------------------------

    def own(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of the world's, and of no gateway's."""
        task = self.run_as("world", work)
        self._owned.add(task)
        return task

    def tasks(self) -> list[asyncio.Task[Any]]:
        """All that the gateways have under way."""
        tasks = [task for task in asyncio.all_tasks(self.loop) if task not in self._owned]
        return [task for task in tasks if not self.loop.has_ended(task)]

    async def ask(self, question: Question, process: Process) -> Told:
        told = await self.callers.ask(question, process.path, process.name)
        self.told.append(told)
        self._meet(told)
        return told

    def _meet(self, told: Told) -> None:
        serials = [row[0] for row in told.output("y")] if told.status == 200 else []
        self.note(told.gateway, told.question.route, told.question.caller, told.question.rows, told.status,
                  told.fields.get("tailrace-provenance", ""), serials, "left" if told.left else told.lost)  # fmt: skip
        self.met["left" if told.left else f"status {told.status}"] += 1
        labels = told.labels
        if told.status:
            self.met[f"cache {told.state}"] += 1
            self.met[f"reason {labels.get('reason', '')}"] += 1
            self.met[f"level {labels.get('brownout', '0')}"] += 1
        for words in told.tables.values():
            self.met.update({f"rows {word}": words[word] for word in words if word != "age"})
        for step in labels.get("steps", "").strip("()").split():
            self.met[f"step {step.strip(chr(34)).partition(':')[2] or step}"] += 1

    async def clients(self, process: Process) -> None:
        chance = random.Random(f"clients {self.scene.seed} {process.name}")
        asked = []
        known = [question_of(chance.choice(self.scene.kinds), self.scene.rows, chance) for _ in range(KNOWN)]
        for _ in range(self.scene.requests):
            await asyncio.sleep(chance.expovariate(self.scene.requests / ACTIVE_SECONDS))
            for _ in range(chance.choice((1, 1, 1, 2, 6))):  # now and then several at once, of the same
                question = again(chance.choice(known), chance)
                if chance.random() < 0.2:
                    question = question_of(chance.choice(self.scene.kinds), self.scene.rows, chance)
                for _ in range(chance.choice((1, 1, 1, 3))):
                    if process.up:
                        asked.append(self.own(self.judged(question, process)))
            if self.loop.now >= self.scene.ends:
                break
        await asyncio.gather(*asked)

    async def crowd(self, process: Process, at: float, count: int) -> None:
        """Many at once: some ask what has been asked before, some have never been heard of."""
        await asyncio.sleep(at - self.loop.now)
        chance = random.Random(f"crowd {self.scene.seed} {process.name} {at}")
        known = [each.question for each in self.told if each.gateway == process.name and each.status == 200]
        asked = []
        for place in range(count):
            question = question_of(chance.choice(self.scene.kinds), self.scene.rows, chance)
            question = msgspec.structs.replace(question, scale=0 if question.user else 10 + place, timeout=0.0)
            if known and place % 2:
                question = msgspec.structs.replace(chance.choice(known), directives="", timeout=0.0, leaves=0.0)
            if process.up:
                asked.append(self.own(self.judged(question, process)))
            await asyncio.sleep(0.02 if place % 2 else 0.0)
        await asyncio.gather(*asked)

    async def passer(self, process: Process) -> None:
        """Somebody asks a server itself, which is no route of the gateway's."""
        from tests.sim import invariants

        chance = random.Random(f"passer {self.scene.seed} {process.name}")
        for _ in range(self.scene.passers):
            await asyncio.sleep(chance.expovariate(self.scene.passers / ACTIVE_SECONDS))
            if process.up and self.loop.now < self.scene.ends:
                invariants.of_passing(self, await self.passed(process))

    async def passed(self, process: Process) -> Told:
        told = await self.callers.look("one", process.path, process.name)
        self.note(process.name, "passes", told.status, told.document, told.lost)
        self.met[f"passed {told.status}"] += 1
        return told

    async def judged(self, question: Question, process: Process) -> Told:
        from tests.sim import invariants

        told = await self.ask(question, process)
        invariants.of_answer(self, told)
        return told

    async def now_and_later(self, question: Question, seconds: float) -> None:
        """What is asked while something changes is asked again when that should be known."""
        for wait in (0.0, seconds):
            await asyncio.sleep(wait)
            await asyncio.gather(*(self.judged(question, process) for process in self.processes if process.up))

    # -- the weather's own hand ---------------------------------------------------------------------

    async def hand(self, spell: Spell) -> None:
        """What no server can do to itself by being asked."""
        await asyncio.sleep(max(0.0, spell.begins - self.loop.now))
        kind, host = spell.kind, spell.place.partition(":")[2]
        self.note("weather", spell.place, kind)
        match kind:
            case faults.STALL:
                seconds = min(spell.seconds, 0.5)
                self.stalls.append((self.loop.now, seconds))
                self.loop.stall(seconds)
            case faults.STEP:
                step = 6.0 * spell.at - 3.0
                self.stepped += abs(step)
                self._offset += step
            case faults.KILL if host.startswith("gateway"):
                await lives.killed(self, next(each for each in self.processes if each.name == host), spell)
                return
            case faults.DISK_ROTS:
                self.disks[host].rot(spell.share)
            case faults.DISK_GONE:
                self.disks[host].remove()
            case faults.KILL:
                server: Any = self.tritons.get(host) or self.stores[host]
                server.kill()
                await asyncio.sleep(max(0.0, spell.ends - self.loop.now))
                server.start()
            case faults.RELOAD:
                await self._roll(host, spell)
            case faults.FLUSH:
                if host == TABLES:
                    for table, key in list(self.ledger.written):
                        self.ledger.write(table, key, 0, self.loop.now)
                self.stores[host].flush()
            case faults.EARS:
                self.stores[host].cut_ears()
            case _:
                return
        self.weather.suffered(kind)

    async def _roll(self, host: str, spell: Spell) -> None:
        """A model becomes another one, on one replica after the other."""
        self._generations += 1
        generation, silent = self._generations, spell.at < 0.3
        first = self.tritons[host]
        names = list(first.models)
        kind = self.chance.choice(self.scene.kinds)
        question = Question(kind, "ada", (1, 2), user=int(kind == "ranked"))
        asked = self.own(self.now_and_later(question, 2.0))
        await asyncio.sleep(self.chance.uniform(0.0, 4 * self.scene.far + 0.002))
        for triton in (first, *(each for each in self.tritons.values() if each is not first)):
            for name in names:
                if name in triton.models and triton.models[name].generation < generation:
                    triton.reload(name, generation, silent)
                    self.note("generation", triton.host, name, generation)
            await asyncio.sleep(min(spell.seconds, 0.7))
        await asked

    # -- from the first moment to the last ------------------------------------------------------------

    async def live(self) -> None:
        from tests.sim import conditions

        for process in self.processes:
            await lives.start(self, process)
        looking = self.own(self._look())
        work = [self.own(self.clients(process)) for process in self.processes]
        work += [self.own(lives.operator(self, process)) for process in self.processes]
        work += [self.own(lives.switcher(self, process)) for process in self.processes]
        work += [self.own(self.hand(spell)) for spell in self.weather.spells if by_hand(spell)]
        for process in self.processes:
            work += [self.own(self.crowd(process, at, count)) for at, count in self.scene.crowds]
            work += [self.own(self.passer(process))]
        if "ranked" in self.scene.kinds:
            work += [self.own(writers.writer(self)), self.own(writers.remover(self))]
        work.append(self.own(asyncio.sleep(max(0.0, self.scene.ends - self.loop.now))))
        await asyncio.gather(*work)
        await self._converge()
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        conditions.of_calm(self)
        await self._drain()
        conditions.of_end(self)

    async def _look(self) -> None:
        from tests.sim import conditions

        while True:
            await asyncio.sleep(LOOK_SECONDS)
            conditions.of_moment(self)

    async def _converge(self) -> None:
        """All is well from here on; every route is asked now and then until it should be well too."""
        from tests.sim import conditions, invariants

        self.note("calm")
        until = self.loop.now + CALM_SECONDS
        is_well = False
        while self.loop.now < until and not is_well:  # sooner is well too
            answers = []
            for process in self.processes:
                for kind in self.scene.kinds:
                    question = Question(kind, "ada", SURE_AND_UNSURE, user=int(kind == "ranked"), directives="no-cache")
                    answers.append(await self.judged(question, process))
            is_well = all(each.status in (200, 429) and "degraded" not in each.labels for each in answers)
            is_well = is_well and not any(conditions.breakers_close(self)) and not any(conditions.levels_fall(self))
            await asyncio.sleep(KEEPALIVE_SECONDS)
        self.calm = True
        await asyncio.sleep(1.5)  # quotas are earned back
        for process in self.processes:
            invariants.of_passing(self, await self.passed(process))
            for kind in self.scene.kinds:
                for caller, directives in (("ada", "no-cache"), ("bob", "")):
                    question = Question(kind, caller, (1, 2), user=int(kind == "ranked"), directives=directives)
                    await self.judged(question, process)
        await asyncio.sleep(0.5 + self.scene.pace[1])  # what was asked behind a caller is answered
        for _ in range(int(COPIED_SECONDS / LOOK_SECONDS)):
            if not any(conditions.copies_are_written(self)):
                break
            await asyncio.sleep(LOOK_SECONDS)

    async def _drain(self) -> None:
        """Stop while some are still asking: they are answered."""
        last = []
        for process in self.processes:
            for kind in self.scene.kinds:
                question = Question(kind, "bob", (2, 1), user=int(kind == "ranked"), directives="no-cache")
                last.append(self.own(self.judged(question, process)))
        await asyncio.sleep(0.001 + 3 * self.scene.far)  # long enough to be there, and hardly to be answered
        for process in self.processes:
            await lives.stop(self, process)
        await asyncio.gather(*last)
        self.callers.hang_up()
        await asyncio.sleep(0.5)


BY_HAND: Final = (faults.FLUSH, faults.EARS, faults.DISK_ROTS, faults.DISK_GONE)


def by_hand(spell: Spell) -> bool:
    return spell.place.startswith("process") or spell.kind in BY_HAND


def run(seed: int, story: bool = False) -> Report:
    """One seed's world. Raises nothing of what it finds: it is in the report."""
    from tests.sim import conditions

    plan = scene(seed)
    loop = SimLoop(BEGINS)
    world = World(seed, loop, plan)
    violation, invariant = "", ""
    with surrounded(world):
        try:
            loop.run_until_complete(world.own(world.live()))
        except Violated as error:
            violation, invariant = str(error), error.invariant
        except (Idle, Endless) as error:
            violation, invariant = f"the world stands still: {error!r}", "nobody_waits_for_ever"
        if not violation:
            try:
                conditions.of_silence(world)
            except Violated as error:
                violation, invariant = str(error), error.invariant
        world.violated = bool(violation)
        steps, trace = loop.steps, world.trace
        _bury(world)
    world.met.update({f"fault {kind}": count for kind, count in world.weather.struck.items()})
    return Report(
        seed, violation, invariant, trace, dict(world.met), len(world.told), steps,
        tuple(world.story) if story or violation else (),
    )  # fmt: skip


def _bury(world: World) -> None:
    """End what is left after a violation, so that nothing of it is heard of in the next run."""
    loop = world.loop
    loop.set_exception_handler(lambda *_: None)
    loop.bury()

    async def last() -> None:
        await asyncio.sleep(0.1)

    for _ in range(20):
        left = asyncio.all_tasks(loop)
        if not left:
            break
        for task in left:
            task.cancel()
        with suppress(Exception):  # it is over
            loop.run_until_complete(loop.create_task(last()))
    loop.close()
    if world.violated:
        world.loop = world.network = world.processes = None  # type: ignore[assignment]
        gc.collect()
