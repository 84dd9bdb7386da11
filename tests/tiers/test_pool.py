"""The pool: who is chosen, what counts against whom, and when another replica is asked. Virtual time throughout."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from degrade.breaker import BreakerOptions, Change
from degrade.deadline import Deadline
from degrade.ladder import TABLE, Failure, Step
from tiers.backends.call import Call, Reply, Streamed
from tiers.choice import choose
from tiers.inference import InferRequest, InferResponse, Passed, Rejected, UpstreamError
from tiers.pool import Pool, PoolOptions, Work

REQUEST = InferRequest("m", ())
SEQUENCE = InferRequest("m", (), parameters={"sequence_id": 1})
OPTIONS = PoolOptions(breaker=BreakerOptions(consecutive_failures=2, open_seconds=4.0))
FAR = Deadline(1e9)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """A replica that does what ``fails`` says: a failure, Rejected, or nothing (None)."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.fails: Failure | Rejected | None = None
        self.ready = 200
        self.calls = 0
        self.gate: asyncio.Event | None = None
        self.waiting = asyncio.Event()

    async def infer(self, request: InferRequest, deadline: Deadline, now: float) -> InferResponse:
        self.calls += 1
        await self._work()
        return InferResponse(request.model, "1", ())

    async def exchange(self, call: Call, deadline: Deadline, now: float) -> Reply:
        await self._work()
        return Reply(self.ready, (), b"")

    @asynccontextmanager
    async def stream(self, call: Call, deadline: Deadline, now: float) -> AsyncIterator[Streamed]:
        await self._work()

        async def chunks() -> AsyncIterator[bytes]:
            yield b"x"

        yield Streamed(500, (), chunks())

    async def close(self) -> None:
        self.calls = -1

    async def _work(self) -> None:
        if self.gate is not None:
            self.waiting.set()
            await self.gate.wait()
        if isinstance(self.fails, Rejected):
            raise self.fails
        if self.fails is not None:
            raise UpstreamError(self.fails, f"{self.url} fails", before_answer=True)


def pool(*replicas: Fake, clock: Clock | None = None, options: PoolOptions = OPTIONS) -> Pool:
    return Pool(replicas, options, clock or Clock(), random.Random(7))


def state(made: Pool, index: int = 0) -> tuple[str, tuple[str, ...]]:
    return made.states()[index].breaker, made.states()[index].models_open


def test_choose_takes_the_less_loaded_of_two() -> None:
    chance = random.Random(1)
    assert choose([5], chance) == 0
    assert {choose([9, 1], chance) for _ in range(50)} == {1}
    drawn = [choose([0, 0, 0, 50], chance) for _ in range(300)]
    assert set(drawn) == {0, 1, 2}


@pytest.mark.parametrize(
    ("loads", "shares"), [([0, 0, 0], (1000, 1000, 1000)), ([0, 1, 2], (2000, 1000, 0)), ([2, 1, 0], (0, 1000, 2000))]
)
def test_all_pairs_are_drawn_alike(loads: list[int], shares: tuple[int, ...]) -> None:
    chance = random.Random(1)
    drawn = Counter(choose(loads, chance) for _ in range(3000))
    assert [drawn[index] for index in range(3)] == pytest.approx(shares, abs=120)


async def test_a_failure_of_its_own_is_retried_elsewhere_and_told() -> None:
    one, two = Fake("a"), Fake("b")
    one.fails = Failure.BROKEN
    made = pool(one, two)
    answers = [await made.infer(REQUEST, FAR) for _ in range(10)]
    assert {answer.replica for answer in answers} == {"b"}
    assert (Passed(Step.REPLICA, Failure.BROKEN, "a fails"),) in {answer.passed for answer in answers}
    assert one.calls == 2  # then its breaker for the model was open
    assert state(made) == ("closed", ("m",))
    await made.infer(InferRequest("other", ()), FAR)


@pytest.mark.parametrize("failure", Failure)
async def test_what_is_retried_elsewhere_is_what_the_ladders_table_says(failure: Failure) -> None:
    one, two = Fake("a"), Fake("b")
    one.fails = two.fails = failure
    with pytest.raises(UpstreamError) as caught:
        await pool(one, two).infer(REQUEST, FAR)
    assert caught.value.failure is failure
    assert one.calls + two.calls == (2 if Step.REPLICA in TABLE[failure] else 1)


async def test_an_overload_that_is_everywhere_is_fed_within_the_retry_budget_alone() -> None:
    one, two = Fake("a"), Fake("b")
    one.fails = two.fails = Failure.OVERLOADED
    made = pool(one, two, options=PoolOptions(retry_ratio=0.2, retry_floor_per_second=0.0))
    for _ in range(50):
        with pytest.raises(UpstreamError):
            await made.infer(REQUEST, FAR)
    assert one.calls + two.calls == 60


async def test_what_may_not_run_twice_is_not_retried() -> None:
    one, two = Fake("a"), Fake("b")
    one.fails = two.fails = Failure.UNREACHABLE
    with pytest.raises(UpstreamError):
        await pool(one, two).infer(SEQUENCE, FAR)
    assert one.calls + two.calls == 1


async def test_retries_are_bounded_by_the_budget_and_the_deadline() -> None:
    for options, deadline in (
        (PoolOptions(retry_ratio=0.0, retry_floor_per_second=0.0), FAR),
        (OPTIONS, Deadline(100.0)),
    ):
        one, two = Fake("a"), Fake("b")
        one.fails = two.fails = Failure.UNREACHABLE
        with pytest.raises(UpstreamError):
            await pool(one, two, options=options).infer(REQUEST, deadline)
        assert one.calls + two.calls == 1


async def test_a_rejection_is_the_callers_and_speaks_for_the_replica() -> None:
    one = Fake("a")
    made = pool(one)
    for _ in range(4):  # fewer outcomes than the failure ratio needs
        one.fails = Rejected(400, "shape")
        with pytest.raises(Rejected):
            await made.infer(REQUEST, FAR)
        one.fails = Failure.BROKEN
        with pytest.raises(UpstreamError):
            await made.infer(REQUEST, FAR)
    assert state(made) == ("closed", ())


@pytest.mark.parametrize(
    ("failure", "raised", "states"),
    [
        (Failure.UNREACHABLE, Failure.UNREACHABLE, ("open", ())),
        (Failure.BROKEN, Failure.BROKEN, ("closed", ("m",))),
    ],
)
async def test_all_breakers_open_says_so_at_once(
    failure: Failure, raised: Failure, states: tuple[str, tuple[str, ...]]
) -> None:
    clock, one = Clock(), Fake("a")
    one.fails = failure
    made = pool(one, clock=clock)
    for _ in range(2):
        with pytest.raises(UpstreamError):
            await made.infer(REQUEST, FAR)
    assert state(made) == states
    with pytest.raises(UpstreamError, match=r"next try in 4\.0 s") as caught:
        await made.infer(REQUEST, FAR)
    assert caught.value.failure is raised
    assert caught.value.retry_after == pytest.approx(4.0)
    assert one.calls == 2
    clock.now += 4.0
    one.fails = None
    assert made.retry_after("m") == 0.0
    await made.infer(REQUEST, FAR)
    assert state(made) == ("closed", ())


@pytest.mark.parametrize(("seconds", "opened"), [(0.2, ()), (3.0, ("m",))])
async def test_only_a_timeout_of_decent_length_counts(seconds: float, opened: tuple[str, ...]) -> None:
    one = Fake("a")
    one.fails = Failure.TIMEOUT
    made = pool(one)
    for _ in range(2):
        with pytest.raises(UpstreamError):
            await made.infer(REQUEST, Deadline(100.0 + seconds))
    assert state(made) == ("closed", opened)


async def test_a_wrong_version_does_not_speak_against_the_model() -> None:
    one = Fake("a")
    one.fails = Failure.BROKEN
    made = pool(one)
    for _ in range(2):
        with pytest.raises(UpstreamError):
            await made.infer(InferRequest("m", (), version="9"), FAR)
    one.fails = None
    await made.infer(REQUEST, FAR)
    assert state(made) == ("closed", ("m/9",))


async def test_a_cancelled_trial_leaves_room_for_the_next() -> None:
    clock, one = Clock(), Fake("a")
    one.fails = Failure.BROKEN
    made = pool(one, clock=clock)
    for _ in range(2):
        with pytest.raises(UpstreamError):
            await made.infer(REQUEST, FAR)
    clock.now += 4.0
    one.fails, one.gate = None, asyncio.Event()
    task = asyncio.create_task(made.infer(REQUEST, FAR))
    await one.waiting.wait()
    assert made.states()[0].in_flight == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    one.gate = None
    assert made.states()[0].in_flight == 0
    await made.infer(REQUEST, FAR)
    assert state(made) == ("closed", ())


async def test_answer_breakers_are_bounded() -> None:
    made = pool(Fake("a"), options=PoolOptions(models_max=3))
    for index in range(10):
        await made.infer(InferRequest(f"m{index}", ()), FAR)
    assert len(made._seats[0].answers) == 3


async def test_probes_open_and_a_ready_probe_closes_at_once() -> None:
    changes: list[tuple[str, str, str, str]] = []

    def heard(url: str, model: str, change: Change) -> None:
        changes.append((url, model, change.after, change.reason))

    one = Fake("a")
    made = Pool([one], OPTIONS, Clock(), random.Random(1), heard)
    one.fails = Failure.UNREACHABLE
    for _ in range(3):
        await made.probe_once()
    assert (state(made), made.states()[0].ready) == (("open", ()), False)
    one.fails = None
    await made.probe_once()
    assert (state(made), made.states()[0].ready) == (("closed", ()), True)
    assert changes == [("a", "", "open", "consecutive-failures"), ("a", "", "closed", "probe-ready")]


async def test_a_replica_that_stays_ready_while_its_model_fails_stays_out() -> None:
    one, two = Fake("a"), Fake("b")
    one.fails = Failure.BROKEN
    made = pool(one, two)
    for _ in range(10):
        await made.infer(REQUEST, FAR)
    one.fails = None
    await made.probe_once()
    assert state(made) == ("closed", ("m",))


async def test_a_restart_clears_what_was_learnt_of_its_models() -> None:
    one = Fake("a")
    one.fails = Failure.BROKEN
    made = pool(one)
    for _ in range(2):
        with pytest.raises(UpstreamError):
            await made.infer(REQUEST, FAR)
    one.fails = Failure.UNREACHABLE
    await made.probe_once()
    one.fails = None
    await made.probe_once()
    await made.infer(REQUEST, FAR)


async def test_nobody_is_called_ready_before_the_first_probe_yet_all_are_asked() -> None:
    made = pool(Fake("a"))
    assert not made.states()[0].ready
    assert (await made.infer(REQUEST, FAR)).replica == "a"
    await made.probe_once()
    assert made.states()[0].ready


async def test_a_model_that_changed_is_tried_at_once() -> None:
    one = Fake("a")
    made = pool(one)
    one.fails = Failure.BROKEN
    for version in ("", "", "2", "2"):
        with pytest.raises(UpstreamError):
            await made.infer(InferRequest("m", (), version=version), FAR)
    assert state(made) == ("closed", ("m", "m/2"))
    one.fails = None
    made.forget("other")
    assert state(made) == ("closed", ("m", "m/2"))
    made.forget("m")
    assert (await made.infer(REQUEST, FAR)).replica == "a"


async def test_who_is_being_asked_may_have_answered() -> None:
    """Found by the simulated world (seed 9603): a model was replaced while its answer dripped in, which is none yet."""
    one, two = Fake("a"), Fake("b")
    one.fails = two.fails = Failure.UNREACHABLE
    made = pool(one, two, clock=Clock())
    with pytest.raises(UpstreamError):
        await made.infer(REQUEST, FAR)
    assert not made.may_have_answered("a", "m")
    assert not made.may_have_answered("b", "m")
    one.fails, one.gate = None, asyncio.Event()
    two.fails = Failure.OVERLOADED
    asked = asyncio.ensure_future(made.ask(Work("m/2", lambda *_: one.infer(REQUEST, FAR, 0.0), False), FAR))
    await one.waiting.wait()
    may = {url: made.may_have_answered(url, "m") for url in "ab"}
    assert sorted(may.values()) == [False, True]
    assert not made.may_have_answered("a", "n")
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert not any(made.may_have_answered(url, "m") for url in "ab")
    one.gate.set()
    two.fails = None
    answer = await made.infer(REQUEST, FAR)
    assert made.may_have_answered(answer.replica, "m")
    made.forget("m")
    assert not made.may_have_answered(answer.replica, "m")


async def test_that_a_replica_has_answered_stays_known_when_it_comes_back() -> None:
    """Found by the simulated world (seed 30316): a server was away before its model had been looked at, and came back
    with another one."""
    one = Fake("a")
    made = pool(one)
    await made.probe_once()
    await made.infer(REQUEST, FAR)
    one.fails = Failure.UNREACHABLE
    await made.probe_once()
    one.fails = None
    await made.probe_once()
    assert made.may_have_answered("a", "m")
    assert not made.may_have_answered("a", "n")
    made.forget("m")
    assert not made.may_have_answered("a", "m")


async def test_without_leave_nobody_else_is_asked() -> None:
    one, two = Fake("a"), Fake("b")
    one.fails = two.fails = Failure.UNREACHABLE
    with pytest.raises(UpstreamError):
        await pool(one, two).infer(REQUEST, FAR, again=False)
    assert one.calls + two.calls == 1


async def test_unready_replicas_are_asked_only_when_no_other_is_left() -> None:
    one, two = Fake("a"), Fake("b")
    one.ready = 400
    made = pool(one, two)
    await made.probe_once()
    assert {(await made.infer(REQUEST, FAR)).replica for _ in range(10)} == {"b"}
    two.ready = 400
    await made.probe_once()
    assert {(await made.infer(REQUEST, FAR)).replica for _ in range(20)} == {"a", "b"}


async def test_forward_counts_only_being_reached() -> None:
    one = Fake("a")
    made = pool(one)
    for _ in range(5):
        async with made.forward(Call("GET", "/x"), FAR) as streamed:
            assert streamed.status == 500
            assert made.states()[0].in_flight == 1
    one.fails = Failure.TIMEOUT
    for _ in range(5):
        with pytest.raises(UpstreamError):
            async with made.forward(Call("GET", "/x"), FAR):
                pass
    assert state(made) == ("closed", ())
    one.fails = Failure.UNREACHABLE
    for _ in range(2):
        with pytest.raises(UpstreamError):
            async with made.forward(Call("GET", "/x"), FAR):
                pass
    assert state(made) == ("open", ())
    with pytest.raises(UpstreamError, match="no replica can be reached"):
        async with made.forward(Call("GET", "/x"), FAR):
            pass
    with pytest.raises(UpstreamError, match="no replica can be reached"):
        await made.exchange(Call("GET", "/x"), FAR)
    assert made.states()[0].in_flight == 0


async def test_a_body_that_fails_while_passing_through_ends_the_permit_once() -> None:
    made = pool(Fake("a"))
    with pytest.raises(RuntimeError):
        async with made.forward(Call("GET", "/x"), FAR):
            raise RuntimeError
    assert made.states()[0].in_flight == 0


async def test_each_asks_everyone() -> None:
    one, two = Fake("a"), Fake("b")
    two.fails = Failure.UNREACHABLE
    replies = await pool(one, two).each(Call("POST", "/v2/repository/models/m/load"), FAR)
    assert [url for url, _ in replies] == ["a", "b"]
    assert isinstance(replies[0][1], Reply)
    assert isinstance(replies[1][1], UpstreamError)


async def test_run_probes_until_cancelled() -> None:
    one, two = Fake("a"), Fake("b")
    one.ready = 503
    made = pool(one, two)
    running = asyncio.create_task(made.run(2.0, asyncio.sleep))
    for _ in range(20):
        await asyncio.sleep(0)
    assert made.states()[1].ready
    assert not made.states()[0].ready
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await made.close()
    assert one.calls == -1


# -- what one request can bring about says nothing of a replica ---------------------------------------


@pytest.mark.parametrize("failure", [Failure.RAISED, Failure.DROPPED, Failure.OVERSIZED])
async def test_what_one_request_can_bring_about_opens_nothing(failure: Failure) -> None:
    one, two = Fake("a"), Fake("b")
    one.fails = two.fails = failure
    made = pool(one, two)
    for _ in range(20):
        with pytest.raises(UpstreamError) as caught:
            await made.infer(REQUEST, FAR)
        assert caught.value.failure is failure
    one.fails = two.fails = None
    await made.infer(REQUEST, FAR)
    assert state(made, 0) == state(made, 1) == ("closed", ())


async def test_a_request_that_is_dropped_on_its_way_through_opens_nothing() -> None:
    one = Fake("a")
    one.fails = Failure.DROPPED
    made = pool(one)
    for _ in range(20):
        with pytest.raises(UpstreamError):
            async with made.forward(Call("GET", "/v2"), FAR):
                pass
    assert state(made) == ("closed", ())


@pytest.mark.parametrize("failure", [Failure.RAISED, Failure.DROPPED])
async def test_a_model_that_fails_here_and_answers_elsewhere_leaves_rotation_here(failure: Failure) -> None:
    """Without that a replica that drops all it is asked has nearly all: it is always the less loaded."""
    one, two = Fake("a"), Fake("b")
    one.fails = failure
    made = pool(one, two)
    answers = [await made.infer(REQUEST, FAR) for _ in range(20)]
    assert {answer.replica for answer in answers} == {"b"}
    assert one.calls == 2  # then its breaker for the model was open
    assert (state(made, 0), state(made, 1)) == (("closed", ("m",)), ("closed", ()))


async def test_its_trials_are_judged_likewise() -> None:
    """A trial that is dropped ends for nobody; what is answered in its place keeps the breaker open, ever longer."""
    clock, one, two = Clock(), Fake("a"), Fake("b")
    one.fails = Failure.DROPPED
    made = pool(one, two, clock=clock)
    for _ in range(400):
        await made.infer(REQUEST, FAR)
        clock.now += 0.1
    assert state(made) == ("closed", ("m",))
    assert one.calls == 2 + 3, "after 4 s, 8 and 16"
    one.fails = None
    clock.now += 40.0
    for _ in range(20):
        await made.infer(REQUEST, FAR)
    assert state(made) == ("closed", ())


async def test_a_connection_that_breaks_where_others_are_answered_speaks_against_nobody() -> None:
    clock = Clock()

    class Breaking(Fake):
        async def infer(self, request: InferRequest, deadline: Deadline, now: float) -> InferResponse:
            clock.now += 1.0
            if request is REQUEST:
                other = await super().infer(request, deadline, now)
                clock.now += 1.0
                return other
            two.fails = Failure.UNREACHABLE  # so that the other, who comes meanwhile, is answered here
            await made.infer(REQUEST, FAR)
            two.fails = None
            raise UpstreamError(Failure.DROPPED, "reset", before_answer=True)

    one, two = Breaking("a"), Fake("b")
    made = pool(one, two, clock=clock)
    passed = 0
    for _ in range(40):
        passed += bool((await made.infer(InferRequest("m", ()), FAR)).passed)
    assert passed > 10
    assert (state(made, 0), state(made, 1)) == (("closed", ()), ("closed", ()))


async def test_a_bad_input_that_fails_those_it_was_batched_with_opens_nothing() -> None:
    """Triton fails a whole batch: who was in it with a bad input is answered elsewhere, and others here."""
    clock = Clock()

    class Batching(Fake):
        answered = 0

        async def infer(self, request: InferRequest, deadline: Deadline, now: float) -> InferResponse:
            self.calls += 1
            if "bad" not in request.parameters:
                self.answered += 1
                return InferResponse(request.model, "1", ())
            clock.now += 1.0
            two.fails = Failure.UNREACHABLE  # so that the other, who comes meanwhile, is answered here
            await made.infer(REQUEST, FAR)
            two.fails = None
            raise UpstreamError(Failure.RAISED, "the batch failed")

    one, two = Batching("a"), Fake("b")
    made = pool(one, two, clock=clock)
    together = msgspec.structs.replace(REQUEST, parameters={"bad": True})
    raised = 0
    for _ in range(40):
        raised += bool((await made.infer(together, FAR)).passed)
    assert raised > 10
    assert (state(made, 0), state(made, 1)) == (("closed", ()), ("closed", ()))


async def test_some_replica_that_says_yes_is_enough_and_one_that_hangs_delays_nothing() -> None:
    no, hangs, yes = Fake("a"), Fake("b"), Fake("c")
    no.ready, hangs.gate = 404, asyncio.Event()
    call = Call("GET", "/v2/models/m/ready")
    async with asyncio.timeout(10.0):
        assert await pool(no, hangs, yes).some(call, FAR, "m")
    yes.fails = Failure.UNREACHABLE
    made = pool(no, yes)
    for _ in range(5):
        assert not await made.some(call, FAR, "m")
    assert [state(made, index) for index in (0, 1)] == [("closed", ())] * 2
    broken = Fake("d")
    made = pool(broken)
    broken.fails = Failure.BROKEN
    for _ in range(2):
        with pytest.raises(UpstreamError):
            await made.infer(REQUEST, FAR)
    broken.fails = None  # it says yes, but its answers have said otherwise
    assert not await made.some(call, FAR, "m")
    assert await made.some(call, FAR, "other")


async def test_probes_that_are_dropped_do_open() -> None:
    one = Fake("a")
    one.fails = Failure.DROPPED
    made = pool(one)
    for _ in range(2):
        await made.probe_once()
    assert state(made) == ("open", ())


@pytest.mark.parametrize(("waited", "opened"), [(0.5, ()), (1.5, ("m",))])
async def test_who_leaves_after_a_decent_time_has_seen_a_silence(waited: float, opened: tuple[str, ...]) -> None:
    clock, one = Clock(), Fake("a")
    one.gate = asyncio.Event()
    made = pool(one, clock=clock)
    for _ in range(2):
        one.waiting.clear()
        asked = asyncio.create_task(made.infer(REQUEST, FAR, decent=1.0))
        await one.waiting.wait()
        clock.now += waited
        asked.cancel()
        await asyncio.wait((asked,))
    assert state(made) == ("closed", opened)


@pytest.mark.parametrize(("decent", "opened"), [(0.1, ("m",)), (0.3, ())])
async def test_how_long_is_decent_is_the_routes_to_say(decent: float, opened: tuple[str, ...]) -> None:
    one = Fake("a")
    one.fails = Failure.TIMEOUT
    made = pool(one)
    for _ in range(2):
        with pytest.raises(UpstreamError):
            await made.infer(REQUEST, Deadline(100.2), decent=decent)
    assert state(made) == ("closed", opened)


async def test_a_sequence_stays_on_its_replica_and_sequences_are_spread() -> None:
    made = pool(Fake("a"), Fake("b"), Fake("c"))

    async def replicas(sequence: int | str) -> set[str]:
        request = InferRequest("m", (), parameters={"sequence_id": sequence})
        return {(await made.infer(request, FAR)).replica for _ in range(10)}

    homes = [await replicas(sequence) for sequence in range(30)]
    assert all(len(home) == 1 for home in homes)
    assert set().union(*homes) == {"a", "b", "c"}


async def test_a_sequence_begins_elsewhere_while_its_replica_is_out_of_rotation() -> None:
    one, two = Fake("a"), Fake("b")
    made = pool(one, two)
    home = (await made.infer(SEQUENCE, FAR)).replica
    here, other = (one, two) if home == "a" else (two, one)
    here.fails = Failure.UNREACHABLE
    for _ in range(2):
        with pytest.raises(UpstreamError):
            await made.infer(SEQUENCE, FAR)
    assert (await made.infer(SEQUENCE, FAR)).replica == other.url


@pytest.mark.parametrize(
    ("failures", "drops"),
    [
        ((Failure.DROPPED, Failure.DROPPED), 2),
        ((Failure.DROPPED, Failure.BROKEN), 2),
        ((Failure.BROKEN, Failure.DROPPED), 1),
        ((Failure.BROKEN, Failure.BROKEN), 0),
    ],
)
async def test_an_error_tells_how_many_may_have_died_of_the_request(
    failures: tuple[Failure, Failure], drops: int
) -> None:
    replicas = [Fake(url) for url in "abc"]
    order = iter(failures)

    async def work(fake: Fake) -> None:
        raise UpstreamError(next(order), fake.url)

    for fake in replicas:
        fake._work = lambda fake=fake: work(fake)  # type: ignore[method-assign]  # the order counts, not who it is
    with pytest.raises(UpstreamError) as caught:
        await pool(*replicas).infer(REQUEST, FAR)
    assert (caught.value.drops, sum(fake.calls for fake in replicas)) == (drops, 2)
