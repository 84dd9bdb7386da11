"""The breaker's table: every (state, event) pair, and what a permit may do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from degrade.breaker import Breaker, BreakerOptions, Change, Permit

OPTIONS = BreakerOptions(consecutive_failures=2, volume_min=4, open_seconds=1.0, open_seconds_max=4.0)


class Story:
    """A breaker with its changes, brought to a state at a known time."""

    def __init__(self, options: BreakerOptions = OPTIONS) -> None:
        self.changes: list[Change] = []
        self.breaker = Breaker(options, self.changes.append)

    def permit(self, now: float) -> Permit:
        permit = self.breaker.acquire(now)
        assert permit is not None
        return permit

    def open(self, now: float) -> Story:
        for _ in range(2):
            self.permit(now).failed(now, "broken")
        assert self.breaker.state == "open"
        return self


def end(permit: Permit, event: str, now: float) -> None:
    if event == "failed":
        permit.failed(now, "http-500")
    else:
        {"succeeded": permit.succeeded, "ignored": permit.ignored}[event](now)


def closed() -> tuple[Story, Permit | None]:
    story = Story()
    return story, story.permit(10.0)


def closed_on_the_edge() -> tuple[Story, Permit | None]:
    story = Story()
    story.permit(10.0).failed(10.0, "broken")
    return story, story.permit(10.0)


def opened() -> tuple[Story, Permit | None]:
    return Story().open(10.0), None


def waited() -> tuple[Story, Permit | None]:
    return Story().open(9.0), None


def half_open() -> tuple[Story, Permit | None]:
    story = Story().open(9.0)
    return story, story.permit(10.0)


def opened_with_an_old_permit() -> tuple[Story, Permit | None]:
    story = Story()
    permit = story.permit(10.0)
    return story.open(10.0), permit


def half_open_with_an_old_permit() -> tuple[Story, Permit | None]:
    story = Story()
    old = story.permit(9.0)
    story.open(9.0)
    story.permit(10.0)
    return story, old


@pytest.mark.parametrize(
    ("begin", "event", "state", "reason"),
    [
        (closed, "acquire", "closed", None),
        (closed, "succeeded", "closed", None),
        (closed, "failed", "closed", None),
        (closed, "ignored", "closed", None),
        (closed_on_the_edge, "succeeded", "closed", None),
        (closed_on_the_edge, "failed", "open", "consecutive-failures"),
        (closed_on_the_edge, "ignored", "closed", None),
        (opened, "refused", "open", None),
        (waited, "acquire", "half_open", "trial"),
        (opened_with_an_old_permit, "succeeded", "open", None),
        (opened_with_an_old_permit, "failed", "open", None),
        (opened_with_an_old_permit, "ignored", "open", None),
        (half_open, "refused", "half_open", None),
        (half_open, "succeeded", "closed", "trials-succeeded"),
        (half_open, "failed", "open", "trial-failed"),
        (half_open, "ignored", "half_open", None),
        (half_open_with_an_old_permit, "succeeded", "half_open", None),
        (half_open_with_an_old_permit, "failed", "half_open", None),
        (half_open_with_an_old_permit, "ignored", "half_open", None),
        (half_open_with_an_old_permit, "refused", "half_open", None),
    ],
)
def test_every_state_and_event(
    begin: Callable[[], tuple[Story, Permit | None]], event: str, state: str, reason: str | None
) -> None:
    story, permit = begin()
    before = story.breaker.state
    story.changes.clear()
    if event in {"acquire", "refused"}:
        allowed = story.breaker.allows(10.0)
        assert story.breaker.state == before, "allows changes nothing"
        assert allowed == (event == "acquire")
        assert (story.breaker.acquire(10.0) is not None) == allowed
    else:
        assert permit is not None
        end(permit, event, 10.0)
    assert story.breaker.state == state
    cause = "http-500" if event == "failed" else ""
    expected = [] if reason is None else [Change(before, state, reason, 10.0, cause)]
    assert story.changes == expected


def test_the_failure_ratio_opens_only_with_volume() -> None:
    story = Story(BreakerOptions(consecutive_failures=100, volume_min=4))
    for ok in (True, False, False):
        permit = story.permit(0.0)
        permit.succeeded(0.0) if ok else permit.failed(0.0, "broken")
    assert story.breaker.state == "closed"
    story.permit(0.0).failed(0.0, "broken")
    assert story.changes == [Change("closed", "open", "failure-ratio", 0.0, "broken")]


def test_old_failures_leave_the_window() -> None:
    story = Story(BreakerOptions(consecutive_failures=100, volume_min=4, window=10.0))
    for now in (0.0, 0.0, 20.0, 40.0, 60.0):
        story.permit(now).failed(now, "broken")
    assert story.breaker.state == "closed"


def test_open_time_doubles_to_its_most_and_starts_again_when_closed() -> None:
    story = Story().open(0.0)
    now = 0.0
    for seconds in (1.0, 2.0, 4.0, 4.0, 4.0):
        assert story.breaker.retry_after(now) == pytest.approx(seconds)
        assert not story.breaker.allows(now + seconds - 0.001)
        now += seconds
        assert story.breaker.retry_after(now) == 0.0
        story.permit(now).failed(now, "broken")
    now += 4.0
    story.permit(now).succeeded(now)
    assert story.breaker.state == "closed"
    assert story.breaker.retry_after(now) == 0.0
    story.open(now)
    assert story.breaker.retry_after(now) == 1.0


def test_an_ignored_trial_gives_its_place_back() -> None:
    story = Story().open(0.0)
    first = story.permit(1.0)
    assert story.breaker.retry_after(1.0) > 0.0
    first.ignored(1.0)
    assert story.breaker.retry_after(1.0) == 0.0
    story.permit(1.0).succeeded(1.0)
    assert story.breaker.state == "closed"


def test_several_trials_must_all_succeed() -> None:
    story = Story(BreakerOptions(consecutive_failures=2, trials=2)).open(0.0)
    first, second = story.permit(1.0), story.permit(1.0)
    assert story.breaker.acquire(1.0) is None
    first.succeeded(1.0)
    assert story.breaker.state == "half_open"
    assert story.breaker.acquire(1.0) is None
    second.succeeded(1.0)
    assert story.breaker.state == "closed"


ENDS: list[Callable[[Permit], None]] = [
    lambda permit: permit.succeeded(0.0),
    lambda permit: permit.failed(0.0, "broken"),
    lambda permit: permit.ignored(0.0),
]


@pytest.mark.parametrize("first", ENDS)
@pytest.mark.parametrize("second", ENDS)
def test_a_permit_ends_exactly_once(
    first: Callable[[Permit], None], second: Callable[[Permit], None]
) -> None:
    permit = Story().permit(0.0)
    first(permit)
    with pytest.raises(AssertionError, match="once"):
        second(permit)


@given(
    st.lists(
        st.tuples(st.sampled_from(["acquire", "succeeded", "failed", "ignored"]), st.integers(0, 6)),
        max_size=80,
    )
)
def test_never_stuck_and_never_more_trials_than_allowed(events: list[tuple[str, int]]) -> None:
    story = Story(BreakerOptions(consecutive_failures=2, trials=2, open_seconds_max=4.0))
    held: list[tuple[Permit, str]] = []
    now = 0.0
    for event, passed in events:
        now += passed
        if event == "acquire":
            allowed = story.breaker.allows(now)
            permit = story.breaker.acquire(now)
            assert (permit is not None) == allowed
            if permit is not None:
                held.append((permit, story.breaker.state))
        elif held:
            end(held.pop(0)[0], event, now)
    for permit, _ in held:
        permit.ignored(now)
    assert story.breaker.allows(now + 4.0), "with nothing running, waiting the longest open time always helps"
    for one, two in zip(story.changes, story.changes[1:], strict=False):
        assert one.after == two.before


def test_options_are_checked() -> None:
    for wrong in ({"trials": 0}, {"failure_ratio": 0.0}, {"open_seconds": 31.0}):
        with pytest.raises(ValueError, match=r"at least|above"):
            BreakerOptions(**wrong)


def test_calls_that_fell_silent_together_are_no_proof_if_another_was_answered_meanwhile() -> None:
    breaker = Breaker(BreakerOptions(consecutive_failures=2))
    early = [breaker.acquire(0.0) for _ in range(5)]
    other = breaker.acquire(1.0)
    assert other is not None
    other.succeeded(2.0)
    for permit in early:
        assert permit is not None
        permit.silent(3.0, "timeout")
    assert breaker.state == "closed"
    for began in (3.0, 4.0):
        permit = breaker.acquire(began)
        assert permit is not None
        permit.silent(began + 1.0, "timeout")
    assert breaker.state == "open"
