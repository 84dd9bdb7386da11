"""Strain: backends' levels follow their own queues, and everybody's the event loop; each change is told with its
reason."""

from __future__ import annotations

import asyncio
import random
from types import SimpleNamespace

import msgspec
import pytest
import structlog

from degrade.brownout import BrownoutOptions
from degrade.gate import Claim, Permit, Priority
from degrade.limiter import LimiterOptions
from gateway.config_load import Brownout
from gateway.strain import ASKED_MIN, LOOK_SECONDS, LOOKS, PROCESS, Strain
from tests.tiers.test_pool import Clock
from tiers.gates import Gates, GatesOptions


class World:
    """Two backends, and nobody but the test who asks."""

    def __init__(self, enabled: bool = True) -> None:
        self.clock = Clock()
        self.options: BrownoutOptions | None = Brownout().options if enabled else None
        options = GatesOptions(LimiterOptions(least=1, most=1, adaptive=False))
        self.gates = {name: Gates(options, self.clock, random.Random(0)) for name in ("a", "b")}
        self.homes = {name: SimpleNamespace(pool=SimpleNamespace(gates=made)) for name, made in self.gates.items()}
        self.strain = Strain(lambda: self.homes, lambda: self.options, self.clock)  # type: ignore[arg-type,return-value]

    def look(self, looks: int, lag: float = 0.0) -> None:
        for _ in range(looks):
            self.clock.now += LOOK_SECONDS
            self.strain.look(lag)

    def crowd(self, name: str, requests: int = 1, priority: Priority = Priority.NORMAL) -> None:
        for _ in range(requests):
            self.gates[name].of("m").admit(Claim("x", priority), 10.0, self.clock())

    @property
    def levels(self) -> tuple[int, int]:
        return self.gates["a"].level, self.gates["b"].level


def test_a_queue_raises_its_own_backends_level_and_no_others() -> None:
    world = World()
    world.crowd("a", 2)
    world.look(60)
    assert world.levels == (3, 0)
    world.look(30)
    assert world.levels == (4, 0)
    assert world.strain.levels == {PROCESS: 0, "a": 4, "b": 0}


def test_a_late_loop_raises_everybodys() -> None:
    world = World()
    world.look(4, lag=0.6)
    assert world.levels == (2, 2)
    assert world.strain.lag == 0.6
    assert world.strain.late_seconds == pytest.approx(4 * 0.6)
    world.look(40)
    assert world.levels == (0, 0)


def test_what_waits_with_the_lowest_priority_raises_nothing() -> None:
    world = World()
    world.crowd("a", 1)
    world.crowd("a", 5, Priority.LOW)
    world.look(200)
    assert world.levels == (0, 0)


def test_the_share_that_found_no_place_raises_it_but_not_what_a_level_sheds() -> None:
    world = World()
    gate = world.gates["a"].of("m")
    for _ in range(2 * LOOKS):
        gate.asked += 10
        gate.shed["full", "normal"] += 6
        world.look(1)
    assert world.levels == (4, 0)
    for _ in range(60):
        gate.asked += 10
        gate.asked_apart += 9
        gate.shed["brownout", "low"] += 9
        gate.shed_apart += 9
        world.look(1)
    assert world.levels == (0, 0)


def test_a_crowd_of_the_lowest_priority_that_finds_no_place_raises_nothing() -> None:
    """Others are served as always, and must be as long as they are."""
    world = World()
    gate = world.gates["a"].of("m")
    for _ in range(10 * LOOKS):
        gate.asked += 100
        gate.asked_apart += 90
        gate.shed["displaced", "low"] += 80
        gate.shed_apart += 80
        world.look(1)
    assert world.levels == (0, 0)
    for _ in range(2 * LOOKS):
        gate.asked += 100
        gate.asked_apart += 90
        gate.shed["displaced", "normal"] += 6  # of ten
        world.look(1)
    assert world.levels == (4, 0)


def test_a_few_requests_are_no_share() -> None:
    world = World()
    gate = world.gates["a"].of("m")
    world.look(1)
    gate.asked += ASKED_MIN - 1
    gate.shed["full", "normal"] += ASKED_MIN - 1
    world.look(20)
    assert world.levels == (0, 0)
    gate.asked += ASKED_MIN
    gate.shed["full", "normal"] += ASKED_MIN
    world.look(LOOKS)
    assert world.levels == (4, 0)


def test_every_change_is_told_with_its_reason_and_counted() -> None:
    world = World()
    with structlog.testing.capture_logs() as logs:
        world.look(4, lag=5.0)
        world.look(50)
    assert [(line["event"], line["backend"], line["level"], line["reason"]) for line in logs] == [
        ("brownout", PROCESS, 4, "lag"),
        *[("brownout", PROCESS, level, "calm") for level in (3, 2, 1, 0)],
    ]
    assert world.strain.turns == {(PROCESS, "4", "lag"): 1, **{(PROCESS, str(n), "calm"): 1 for n in range(4)}}


def test_a_reload_that_turns_it_off_ends_every_level() -> None:
    world = World()
    world.look(4, lag=5.0)
    assert world.levels == (4, 4)
    world.options = None
    world.look(1)
    assert (world.levels, world.strain.levels) == ((0, 0), {})


def test_a_reload_that_changes_a_threshold_is_taken_at_once() -> None:
    world = World()
    world.look(4, lag=0.6)
    assert world.levels == (2, 2)
    assert world.options is not None
    world.options = msgspec.structs.replace(world.options, lag=(1.0, 2.0, 3.0, 4.0))
    world.look(4, lag=0.6)
    assert world.levels == (0, 0)


def test_a_backend_that_a_reload_takes_away_has_no_level() -> None:
    world = World()
    world.look(4, lag=0.6)
    del world.homes["b"]
    world.look(1, lag=0.6)
    assert world.strain.levels == {PROCESS: 2, "a": 0}


def test_the_longest_of_a_backends_queues_decides() -> None:
    world = World()
    for model in ("idle", "m", "other"):
        world.gates["a"].of(model)
    world.crowd("a", 2)
    world.look(60)
    assert world.levels == (3, 0)


async def test_lag_is_how_much_later_than_asked_it_is_woken() -> None:
    world, lags = World(), [0.0, 0.02, 3.0]

    async def sleep(seconds: float) -> None:
        if not lags:
            raise asyncio.CancelledError
        world.clock.now += seconds + lags.pop(0)

    with pytest.raises(asyncio.CancelledError):
        await world.strain.run(LOOK_SECONDS, sleep)
    assert abs(world.strain.lag - 3.0) < 1e-6


def test_a_gate_that_empties_lets_the_level_fall() -> None:
    world = World()
    permit = world.gates["a"].of("m").admit(Claim("x"), 10.0, world.clock())
    world.crowd("a", 1)
    world.look(90)
    assert world.levels[0] == 4
    assert isinstance(permit, Permit)
    permit.succeeded(world.clock())
    world.look(50)
    assert world.levels == (0, 0)
