"""Copies of rows, and of answers that features were joined to: what the next gateway makes of them."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.digest import Key
from degrade.calendar import Calendar
from degrade.ladder import Failure
from degrade.record import seal
from degrade.snapshot import Snapshot, SnapshotOptions
from gateway import parcel
from gateway.copied import AnswerRows, Answers, Pages, fingerprint_of
from gateway.copies import Copies, Copy, CopyRules, Standing
from gateway.endpoint import Page
from gateway.lent import ROWS_MAX, TRIED_MAX, Lent
from gateway.problem import Refused
from gateway.row import Borrowed, Made, Row
from gateway.service import NO_EPOCH, Served
from gateway.storing import Life
from gateway.witness import Clocks, Witness
from tests.doors.house import opened
from tests.doors.question import Ask, Caller, doubled
from tests.gateway.conftest import EchoTriton
from tests.gateway.here import Here
from tests.gateway.test_copies import Host
from tests.gateway.test_features import Ranking, scores
from tests.gateway.test_pipeline import CACHE, NOBODY, SURE, House
from tiers.inference import InferResponse, TableTold, Tensor, UpstreamError
from tiers.rows import Plan

KEY = Key(b"", 0)
LADDER = ("replica", "tier", "stale", "snapshot")
A, B, C, D, E = (1.0, 2.0), (3.0, 4.0), (5.0, 6.0), (7.0, 8.0), (9.0, 10.0)


# -- rows, of a whole gateway ------------------------------------------------------------------------------------------


Live = Callable[..., contextlib.AbstractAsyncContextManager[Caller]]


@pytest.fixture
def live(triton_echo: EchoTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Live:
    """One life of a gateway whose route keeps rows, where ``word`` holds; in one that has none nobody finds out whether
    the model is still the same."""

    async def nothing(_: Witness) -> None: ...

    words: list[bytes | None] = [None]
    monkeypatch.setattr(Witness, "round", nothing)
    monkeypatch.setattr(Witness, "turn", property(lambda _: words[0]))

    @contextlib.asynccontextmanager
    async def lived(word: bytes | None = None, **cache: str) -> AsyncIterator[Caller]:
        words[0] = word
        kept = {"ttl": "1h", "max_stale": "1h", "rows": True, **cache}
        told = ", ".join(f"{key} = {msgspec.json.encode(value).decode()}" for key, value in kept.items())
        route = f'{{ tiers = [{{ backend = "upstream", model = "k" }}], cache = {{ {told} }} }}'
        disk = {"SNAPSHOT__PATH": str(tmp_path / "snapshot")}
        async with AsyncExitStack() as stack:
            house = await stack.enter_async_context(opened([triton_echo.url], True, ROUTES__R=route, **disk))
            yield house.caller("http-json")

    return lived


async def test_of_rows_that_were_copied_any_batch_is_an_old_answer(live: Live, triton_echo: EchoTriton) -> None:
    async with live(b"w") as caller:
        assert (await caller.ask(Ask(rows=(A, B)))).cache == "miss"
    triton_echo.status = b"503 Unavailable"
    async with live() as caller:
        for rows in ((B, A), (A,), (A, B, A)):
            found = await caller.ask(Ask(rows=rows))
            assert found.told == ("", "stale", "overloaded", "k", len(rows), 0, ("snapshot",), True, True, False)
            assert found.values == doubled(rows)
        assert (await caller.ask(Ask(rows=(A, C)))).problem == "unavailable"
        triton_echo.status = b"200 OK"
        found = await caller.ask(Ask(rows=(A, C)))
        assert (found.cache, found.reason) == ("miss", "absent"), "nobody can tell whether A is still true"


async def test_rows_of_two_words_are_no_answer(live: Live, triton_echo: EchoTriton) -> None:
    """Of one model loaded again in place nothing but the word tells the other."""
    for word, row in ((b"w", A), (b"v", B), (b"v", C), (None, D), (None, E)):
        async with live(word) as caller:
            assert (await caller.ask(Ask(rows=(row,)))).cache == "miss"
    triton_echo.status = b"503 Unavailable"
    async with live() as caller:
        assert (await caller.ask(Ask(rows=(B, C, B)))).values == doubled((B, C, B))
        for rows in ((A, B), (C, D, B), (D, E)):
            assert (await caller.ask(Ask(rows=rows))).problem == "unavailable"
        for row in (A, D):  # with itself it is of one model, whatever that was
            found = await caller.ask(Ask(rows=(row, row)))
            assert (found.values, found.steps) == (doubled((row, row)), ("snapshot",))
    async with live(snapshot="fresh") as caller:
        assert (await caller.ask(Ask(rows=(C, B)))).cache == "hit"
        assert (await caller.ask(Ask(rows=(C, A)))).problem == "unavailable"
        assert (await caller.ask(Ask(rows=(D, D, D)))).cache == "hit"
    async with live(b"v") as caller:
        found = await caller.ask(Ask(rows=(B, A)))
        assert found.problem == "unavailable", "B is of the model that is now, and A is not"
        assert (await caller.ask(Ask(rows=(B, C)))).cache == "hit"


async def test_a_row_of_this_epoch_and_one_of_the_word_that_is_now_are_of_one(
    live: Live, triton_echo: EchoTriton
) -> None:
    async with live(b"w") as caller:
        await caller.ask(Ask(rows=(A,)))
    async with live(b"w") as caller:
        await caller.ask(Ask(rows=(B,)))
        triton_echo.status = b"503 Unavailable"
        assert (await caller.ask(Ask(rows=(A, B)))).cache == "hit"
    async with live() as caller:
        triton_echo.status = b"200 OK"
        await caller.ask(Ask(rows=(B,)))
        triton_echo.status = b"503 Unavailable"
        found = await caller.ask(Ask(rows=(A, B)))
        assert found.steps == ("snapshot",), "the B that is new is of no word, and both are on the disk under one"


async def test_where_a_route_says_so_they_are_hits_and_stay_nowhere(live: Live, triton_echo: EchoTriton) -> None:
    async with live(b"w") as caller:
        await caller.ask(Ask(rows=(A, B)))
    asked = triton_echo.asked
    async with live(snapshot="fresh") as caller:
        for _ in range(2):
            found = await caller.ask(Ask(rows=(B, A)))
            assert (found.cache, found.reason, found.values) == ("hit", "snapshot", doubled((B, A)))
        assert triton_echo.asked == asked


# -- what is lent of a batch -------------------------------------------------------------------------------------------


class Shelf:
    """Copies of rows: those under keys that begin with b"k"."""

    def __init__(self, is_same: bool = True, trusts: bool = False) -> None:
        self.is_same, self._trusts, self.word = is_same, trusts, b"servers!w"
        self.asked = 0
        self.standing = self

    def trusts(self, word: bytes) -> bool:
        return self._trusts

    def epoch(self) -> int:
        return 3

    async def read(self, keys: Sequence[bytes], now: float, until: float) -> dict[bytes, Row]:
        self.asked += len(keys)
        return {key: ROW for key in keys if key.startswith(b"k")}

    def judged(self, row: Row | None, now: float) -> Copy[Row] | None:
        return None if row is None else Copy(row, now - 1.0, self.is_same, self.word)


MADE = Made(Plan((("y", "FP32", (2,)), ("t", "BYTES", (1,))), ({}, {"q": 1})), {"p": "x"}, "m", "1", 0)
ROW = Row(struct.pack("<2f", 1, 2) + b"\x02\0\0\0no", MADE)


async def test_of_a_new_batch_few_rows_are_looked_for_and_of_any_no_more_than_a_turn_takes() -> None:
    for start, looked in ((b"n", TRIED_MAX), (b"k", ROWS_MAX)):
        shelf = Shelf()
        lent = Lent(shelf, 10.0, 11.0)  # type: ignore[arg-type]  # all that it asks
        keys = [b"%b%d" % (start, number) for number in range(1000)]
        await lent.look(keys)
        found = [lent.row(key) for key in keys]
        assert shelf.asked == looked
        assert sum(each is not None for each in found) == lent.count == (looked if start == b"k" else 0)


@pytest.mark.parametrize(
    ("is_same", "trusts", "is_old", "stays"),
    [
        (True, False, False, True),
        (False, False, False, None),
        (False, True, False, False),
        (True, False, True, False),
        (False, False, True, False),
    ],
)
async def test_what_a_row_is_good_for(is_same: bool, trusts: bool, is_old: bool, stays: bool | None) -> None:
    shelf = Shelf(is_same, trusts)
    lent = Lent(shelf, 10.0, 11.0, is_old)  # type: ignore[arg-type]  # as above
    assert lent.row(b"k") is None, "it was not looked for"
    await lent.look([b"k"])
    epoch = NO_EPOCH if is_old else 3
    assert lent.row(b"k") == (None if stays is None else Borrowed(ROW, 9.0, epoch, shelf.word, stays))
    assert lent.is_unsure is (stays is False)
    shelf.word = b"servers!"
    assert lent.row(b"k") == (None if stays is None else Borrowed(ROW, 9.0, epoch, b"k", stays))


async def test_rows_of_models_that_are_the_same_stay_here_and_only_the_others_are_asked_for() -> None:
    house = House(cache=msgspec.structs.replace(CACHE, rows=True))
    await house.ask(SURE)
    key = house.route.shelves.asked(NOBODY, house.call(SURE).request, KEY, 1).keys[0]
    held = house.route.shelves.rows.cache.peek(key)  # type: ignore[union-attr]  # rows are on
    assert held is not None
    again = House(cache=msgspec.structs.replace(CACHE, rows=True))
    await again.ask(b"\0" * 8)
    shelf = Shelf()

    async def read(keys: Sequence[bytes], now: float, until: float) -> dict[bytes, Row]:
        return {each: held.value for each in keys if each == key}

    shelf.read = read  # type: ignore[method-assign]
    shelf.judged = lambda row, now: None if row is None else Copy(row, now - 3.0, True, b"w")  # type: ignore[method-assign]
    shelf.epoch = lambda: again.route.epoch  # type: ignore[method-assign]
    again.route.shelves.copied_rows = shelf  # type: ignore[assignment]  # as above
    asked = len(again.upstream.requests)
    told = (await again.ask(SURE + b"\x01" * 8, shape=(2, 2))).provenance
    assert (told.cache, told.reason, told.rows, told.rows_kept, told.age) == ("miss", "partial", 2, 1, 3.0)
    assert [request.inputs[0].shape for request in again.upstream.requests[asked:]] == [(1, 2)]
    whole = (await again.ask(SURE)).provenance
    assert (whole.cache, whole.reason, whole.age) == ("hit", "fresh", 3.0)


# -- answers with features ---------------------------------------------------------------------------------------------


class Copying:
    """A route's copies on one disk; each life is another process."""

    def __init__(self, folder: Path) -> None:
        self.host = Host(folder)

    async def share(self, house: Ranking) -> None:
        self.snapshot = Snapshot(self.host.folder, SnapshotOptions(16 * 2**20, inspection_seconds_max=60.0))
        self.snapshot.open()
        self.calendar = Calendar(house.clock, lambda: self.host.wall)
        clocks = Clocks(house.clock, lambda: self.host.wall, lambda: b"word")
        tables = {name: table.config for name, table in house.tables.items()}
        rules = CopyRules("routes/rank", fingerprint_of("rank", house.route.config, tables), b"s", 1000.0, False)
        standing = Standing(rules, self.calendar, self.host, clocks)
        house.route.copy(Copies(standing, Here(self.snapshot), Answers("rank")))
        await standing.purges.round()

    def write(self, house: Ranking) -> None:
        copied = house.route.shelves.copied
        assert copied is not None
        taken = copied.take(100)
        assert len(taken) == 1
        pairs = [(each.name, seal(each.name, each.written)) for each in taken]
        assert self.snapshot.write(pairs, self.calendar.now()) == "written"
        self.snapshot.close()


@pytest.mark.parametrize("default", ["error", 7.0])
async def test_an_answer_with_features_is_copied_with_what_its_rows_were(tmp_path: Path, default: float | str) -> None:
    copying = Copying(tmp_path / "snapshot")
    house = Ranking(degrade=LADDER)
    await copying.share(house)
    first = await house.rank(b"bob", [3, 0])
    copying.write(house)
    again = Ranking(default, degrade=LADDER)
    await copying.share(again)
    await again.rank(b"ann", [1])
    again.ranker.failure = UpstreamError(Failure.UNREACHABLE, "away")
    if default != "error":  # rows would be others now
        with pytest.raises(Refused):
            await again.rank(b"bob", [3, 0])
        assert copying.snapshot.rejected["fingerprint"] > 0
    else:
        old = await again.rank(b"bob", [3, 0])
        told = old.provenance
        assert scores(old) == scores(first)
        assert (told.cache, told.steps, told.degraded) == ("stale", ("snapshot",), True)
        assert told.tables == first.provenance.tables
        assert [each.name for each in told.tables] == ["user", "item"]
    copying.snapshot.close()


# -- as bytes ----------------------------------------------------------------------------------------------------------


def page(**changes: object) -> Served[Page]:
    fields = (("Vary", "X-A"), ("X-Odd", b"\xff\xe9".decode("utf-8", "surrogateescape")))
    made = Page(200, fields, b"{}", Life(5.0, 60.0, 10.0))
    return Served(msgspec.structs.replace(made, **changes))


def test_what_is_copied_comes_back_as_it_was() -> None:
    tables = (TableTold("user", fresh=1, stale=2, age=3.5),)
    answer = Served(InferResponse("r", "1", (Tensor("y", "FP32", (1,), b"\0\0\0\0"),)), "m", 1, 0, 1, tables)
    assert Answers("r").read(Answers("r").packed(answer, 1.0) or b"") == answer
    assert AnswerRows().read(AnswerRows().packed(ROW, 1.0) or b"") == ROW
    assert Pages().read(Pages().packed(page(), 1.0) or b"") == page(life=Life(0.0, 60.0, 10.0))


@pytest.mark.parametrize("form", [Answers("r"), AnswerRows(), Pages()], ids=lambda form: form.kind)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_value_or_nothing(form: Answers | AnswerRows | Pages, data: bytes) -> None:
    form.read(data)


@pytest.mark.parametrize("at", ["answer", "row", "page", "what rows have in common"])
def test_members_that_lie_too_deep_are_no_value(at: str) -> None:
    """A member more than there should be, of 100,000 arrays one in the other."""
    made = parcel.packed_made(ROW.made) or b""
    answer = Served(InferResponse("r", "1", ()), "m", 1, 0, 1)
    form, packed = {
        "answer": (Answers("r"), Answers("r").packed(answer, 1.0)),
        "row": (AnswerRows(), AnswerRows().packed(ROW, 1.0)),
        "page": (Pages(), Pages().packed(page(), 1.0)),
        "what rows have in common": (AnswerRows(), parcel.packed_row(ROW, with_deep(made), 1.0)),
    }[at]
    assert packed is not None
    if at == "what rows have in common":
        assert form.read(packed) is None
    else:
        assert form.read(packed) is not None
        assert form.read(with_deep(packed)) is None


def with_deep(packed: bytes) -> bytes:
    return bytes([packed[0] + 1]) + packed[1:] + b"\x91" * 100_000


def test_rows_that_are_none_are_not_copied_and_not_believed() -> None:
    nan = Row(struct.pack("<2f", 1, np.nan) + ROW.data[8:], MADE)
    short = Row(ROW.data[:-1], MADE)
    odd = Row(b"", msgspec.structs.replace(MADE, plan=Plan((("y", "FP99", (0,)),), ({},))))
    negative = Row(b"", msgspec.structs.replace(MADE, plan=Plan((("y", "FP32", (-1, 0)),), ({},))))
    for row in (nan, short, odd, negative):
        assert AnswerRows().packed(row, 1.0) is None
        made = parcel.packed_made(row.made)
        assert made is not None
        assert AnswerRows().read(parcel.packed_row(row, made, 1.0) or b"") is None


def test_an_answer_of_very_many_outputs_is_not_left_and_not_read() -> None:
    def answer(count: int, said: int = 0) -> Served[InferResponse]:
        parameters = {str(number): 1 for number in range(said)}
        outputs = [Tensor(str(number), "BYTES", (0,), b"", parameters) for number in range(count)]
        return Served(InferResponse("r", "1", tuple(outputs)), "m")

    most = parcel.packed(answer(parcel.OUTPUTS_MAX, parcel.PARAMETERS_MAX), 1.0)
    assert most is not None
    assert parcel.unpacked("r", most) is not None
    assert parcel.packed(answer(parcel.OUTPUTS_MAX + 1), 1.0) is None
    assert parcel.packed(answer(1, parcel.PARAMETERS_MAX + 1), 1.0) is None
    told = msgspec.msgpack.decode(most)
    told[-2] = told[-2] * 2
    assert parcel.unpacked("r", msgspec.msgpack.encode(told)) is None
