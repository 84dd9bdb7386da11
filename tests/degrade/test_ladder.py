"""The ladder's table, whole: every failure x everything that can remain x every order."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from degrade.ladder import TABLE, Failure, Remains, Step, next_step

FLAGS = ("replica", "tier", "stale", "snapshot", "default", "time")
EVERYTHING = [
    Remains(**dict(zip(FLAGS, flags, strict=True)))
    for flags in itertools.product((False, True), repeat=len(FLAGS))
]
WHOLE_ORDER = (Step.REPLICA, Step.TIER, Step.STALE, Step.SNAPSHOT, Step.DEFAULT)
ORDERS = st.lists(st.sampled_from(Step), max_size=8)


def expected(failure: Failure, remains: Remains) -> Step:
    """The whole order, written out by hand rather than read from the table."""
    here_only = (Failure.TIMEOUT, Failure.LATE, Failure.OVERSIZED, Failure.SHED)
    if remains.time and remains.replica and failure not in here_only:
        return Step.REPLICA
    if remains.time and remains.tier and failure not in (Failure.LATE, Failure.OVERSIZED):
        return Step.TIER
    if remains.stale:
        return Step.STALE
    if remains.snapshot:
        return Step.SNAPSHOT
    return Step.DEFAULT if remains.default and failure is not Failure.OVERSIZED else Step.REFUSE


def test_the_table_has_every_failure() -> None:
    assert set(TABLE) == set(Failure)


@pytest.mark.parametrize("failure", Failure)
def test_every_failure_with_everything_that_can_remain(failure: Failure) -> None:
    for remains in EVERYTHING:
        assert next_step(failure, remains, WHOLE_ORDER) is expected(failure, remains), remains


@given(st.sampled_from(EVERYTHING), ORDERS)
def test_a_timeout_never_goes_to_another_replica(remains: Remains, order: list[Step]) -> None:
    assert next_step(Failure.TIMEOUT, remains, order) is not Step.REPLICA


@given(st.sampled_from(Failure), st.sampled_from(EVERYTHING), ORDERS)
def test_a_step_is_wanted_and_possible(failure: Failure, remains: Remains, order: list[Step]) -> None:
    step = next_step(failure, remains, order)
    if step is Step.REFUSE:
        return
    assert step in order
    assert getattr(remains, step.value)
    assert remains.time or step not in {Step.REPLICA, Step.TIER}
    if Step.REFUSE in order:
        assert order.index(step) < order.index(Step.REFUSE)


@given(st.data(), st.sampled_from(EVERYTHING), ORDERS)
def test_every_walk_ends_in_a_refusal(data: st.DataObject, remains: Remains, order: list[Step]) -> None:
    for _ in range(len(FLAGS)):
        step = next_step(data.draw(st.sampled_from(Failure)), remains, order)
        if step is Step.REFUSE:
            return
        remains = msgspec.structs.replace(remains, **{step.value: False})
    assert next_step(Failure.BROKEN, remains, order) is Step.REFUSE


def test_the_routes_order_decides() -> None:
    everything = Remains(replica=True, tier=True, stale=True)
    assert next_step(Failure.BROKEN, everything, (Step.STALE, Step.REPLICA)) is Step.STALE
    assert next_step(Failure.BROKEN, everything, ()) is Step.REFUSE
