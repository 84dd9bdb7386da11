"""`tailrace explain`: conditions as they are written, what it tells of each, and that a real gateway does the same."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from time import monotonic

import pytest
import structlog

from gateway.cli import MISUSED, WELL, main
from gateway.config import Config
from gateway.explain.conditions import Condition, read_conditions
from gateway.explain.telling import CROWDS, Outcome, explain, least_lucky
from gateway.sources import ConfigError, read
from tests.doors.house import opened, until
from tests.doors.question import NUMBERS, Ask
from tests.gateway.conftest import EchoTriton


@pytest.fixture(autouse=True)
def logs_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets up logs for its process, which here is that of other tests too: loggers keep what they had when
    they were first used."""
    monkeypatch.setattr("gateway.operate.log.set_up", lambda _: None)


EXAMPLE = Path(__file__).parents[2] / "tailrace.example.toml"
FILE = """
[snapshot]
path = "snapshot"
[backends.gpu]
http = ["http://a:8000", "http://b:8000"]
[backends.cpu]
http = ["http://c:8000"]
[tables.user]
store = "redis://127.0.0.1:6379/0"
key = "u:{id}"
shape = [4]
ttl = "5m"
max_stale = "1h"
default = "zeros"
[tables.item]
store = "lmdb:./items"
key = "i:{id}"
shape = [2, 3]
ttl = "5m"
coherence = "ttl"
[routes.plain]
tiers = [{ backend = "gpu", model = "large" }]
[routes.kept]
tiers = [{ backend = "gpu", model = "large" }]
cache = { ttl = "10m", max_stale = "1h" }
[routes.short]
tiers = [{ backend = "gpu", model = "large" }]
timeout = "1ms"
[routes.alone]
tiers = [{ backend = "gpu", model = "large" }]
cache = { ttl = "10m", max_stale = "1h" }
degrade = []
[routes.cascade]
tiers = [
  { backend = "cpu", model = "small", accept = { output = "p", at_least = 0.6 } },
  { backend = "gpu", model = "large" },
]
inputs = { text = { element_bytes_max = "1KiB" }, x = { min = 2.0, max = 3.0 } }
[routes.browned]
tiers = [
  { backend = "cpu", model = "small", accept = { output = "p", at_least = 0.6 } },
  { backend = "gpu", model = "large" },
]
cache = { ttl = "10m", max_stale = "1h" }
brownout = ["fast", "stale"]
[routes.declared]
tiers = [{ backend = "gpu", model = "large" }]
cache = { ttl = "10m", max_stale = "1h" }
[routes.declared.default]
y = { datatype = "FP32", shape = [-1, 2], value = 0.5 }
[routes.shared]
tiers = [{ backend = "gpu", model = "large" }]
cache = { ttl = "10m", max_stale = "1h", second = "redis://127.0.0.1:6379/1" }
[routes.rows]
tiers = [{ backend = "gpu", model = "large" }]
cache = { ttl = "10m", snapshot = "fresh", rows = true, second = "redis://127.0.0.1:6379/1" }
[routes.rank]
tiers = [{ backend = "gpu", model = "ranker" }]
[routes.rank.features]
entities = { u = { many = false }, i = { many = true, datatype = "BYTES" } }
inputs = { q = { parts = [{ entity = "u", table = "user" }] }, d = { parts = [{ entity = "i", table = "item" }] } }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tailrace.toml"
    path.write_text(FILE.replace('coherence = "ttl"\n', 'ids = "text"\n'))
    return path


@pytest.fixture
def config(file: Path) -> Config:
    return read(str(file), {}).config


# -- what is written --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("", []),
        ("gpu down", ["backend gpu down"]),
        ("gpu down, redis slow", ["backend gpu down", "stores redis slow"]),
        ("gpu down and cache old", ["backend gpu down", "cache cache old"]),
        ("http://a:8000 overloaded,", ["replica http://a:8000 overloaded"]),
        ("large failing, user loading", ["model large failing", "table user loading"]),
        ("model large slow, backend cpu slow", ["model large slow", "backend cpu slow"]),
        ("gpu down, gpu down, rows dead", ["backend gpu down", "rows rows dead"]),
    ],
)  # fmt: skip
def test_conditions_as_they_are_written(config: Config, text: str, kinds: list[str]) -> None:
    expected = tuple(Condition(*each.split()) for each in kinds)
    assert read_conditions(text, config) == expected


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("gpux down", "--when: 'gpux down': there is no gpux; did you mean gpu?"),
        ("gpu dwn", "--when: 'gpu dwn': gpu cannot be dwn; did you mean down?"),
        ("gpu unsure", "--when: 'gpu unsure': gpu cannot be unsure; say down, slow, overloaded, broken"),
        ("gpu", "--when: 'gpu': say what and how, such as \"gpu down\""),
        ("gpu down, gpu slow", "--when: 'gpu slow': gpu is said to be down already"),
        ("table zzz down", "--when: 'table zzz down': there is no zzz; there is user, item"),
        ("cache cold", "--when: 'cache cold': cache cannot be cold; did you mean old?"),
        ("redis down, second fresh", "--when: 'second fresh': it is in redis, which is said to be down"),
        ("snapshot dead", "--when: 'snapshot dead': snapshot cannot be dead; say none, fresh, unknown, old"),
    ],
)
def test_what_is_not_known_is_named_with_what_is(config: Config, text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_conditions(text, config)
    assert caught.value.faults == (fault,)


def test_every_fault_is_told_and_the_number_is_bounded(config: Config) -> None:
    with pytest.raises(ConfigError) as caught:
        read_conditions("a down, b down", config)
    assert len(caught.value.faults) == 2
    with pytest.raises(ConfigError, match="33 conditions; 32 at most"):
        read_conditions(", ".join(["gpu down"] * 33), config)


def test_the_example_is_explained() -> None:
    config = read(str(EXAMPLE), {}).config
    for name in config.routes:
        assert "  gets   200: an answer, of " in explain(config, name, ())
    old = explain(config, "digits", read_conditions("cache old", config))
    assert "cache=miss, " in old  # it keeps nothing that is stale
    assert "  replica  there is no other replica; " in old


# -- what is told of it -----------------------------------------------------------------------------------


def gist(outcome: Outcome) -> str:
    """In one line: who was asked, and what a caller gets."""
    told, problem = outcome.provenance, outcome.problem
    asked = " ".join(f"{each.what.split()[1]}:{each.came}" for each in outcome.asked)
    answered = f"{told.cache}/{told.reason} {told.tier}".strip()
    got = answered if problem is None else f"{problem.status} {problem.slug}"
    steps = "".join(f" +{step}" for step in told.steps)
    return f"{asked} => {got}{steps}{' degraded' if told.degraded else ''}"


CASES = [
    ("plain", "", "large:answered => bypass/off large", None),
    ("plain", "gpu down", "large:unreachable large:unreachable => 503 unavailable degraded",
     "=> 503 unavailable degraded"),
    ("plain", "http://a:8000 down", "large:unreachable large:answered => bypass/off large +replica",
     "large:answered => bypass/off large"),
    ("plain", "gpu slow", "large:timeout => 503 deadline degraded", "=> 503 unavailable degraded"),
    ("plain", "gpu overloaded", "large:overloaded large:overloaded => 503 unavailable degraded", None),
    ("plain", "large failing", "large:raised large:raised => 503 model-failed degraded", None),
    ("plain", "large broken, cpu down", "large:broken large:broken => 503 unavailable degraded",
     "=> 503 unavailable degraded"),
    ("short", "", "large:answered => bypass/off large", None),
    ("kept", "cache fresh, gpu down", "=> hit/fresh large", None),
    ("kept", "cache old", "large:answered => miss/expired large", None),
    ("kept", "cache old, gpu slow", "large:timeout => stale/timeout large +stale degraded",
     "=> stale/broken large +stale degraded"),
    ("kept", "cache dead, gpu down", "large:unreachable large:unreachable => 503 unavailable degraded",
     "=> 503 unavailable degraded"),
    ("declared", "gpu down", "large:unreachable large:unreachable => miss/unreachable +default degraded",
     "=> miss/unreachable +default degraded"),
    ("declared", "gpu down, cache old",
     "large:unreachable large:unreachable => stale/unreachable large +stale degraded",
     "=> stale/unreachable large +stale degraded"),
    ("alone", "gpu down, cache old", "large:unreachable => 503 unavailable degraded", "=> 503 unavailable degraded"),
    ("kept", "gpu down, cache empty, snapshot old",
     "large:unreachable large:unreachable => stale/unreachable large +snapshot degraded",
     "=> stale/unreachable large +snapshot degraded"),
    ("kept", "gpu down, snapshot fresh", "=> hit/snapshot large", None),
    ("kept", "gpu slow, snapshot unknown", "large:timeout => stale/timeout large +snapshot degraded",
     "=> stale/broken large +snapshot degraded"),
    ("kept", "gpu down, cache old, snapshot old",
     "large:unreachable large:unreachable => stale/unreachable large +stale degraded",
     "=> stale/unreachable large +stale degraded"),
    ("kept", "snapshot old", "large:answered => miss/absent large", None),
    ("rows", "gpu down, snapshot unknown", "=> hit/snapshot large", None),
    ("rows", "gpu down, snapshot old", "large:unreachable large:unreachable => 503 unavailable degraded",
     "=> 503 unavailable degraded"),
    ("shared", "gpu down, second fresh", "=> hit/second large", None),
    ("shared", "gpu down, second empty", "large:unreachable large:unreachable => 503 unavailable degraded",
     "=> 503 unavailable degraded"),
    ("shared", "second slow", "large:answered => miss/absent large", None),
    ("shared", "redis slow", "large:answered => miss/absent large", None),
    ("shared", "gpu down, redis down", "large:unreachable large:unreachable => 503 unavailable degraded",
     "=> 503 unavailable degraded"),
    ("cascade", "", "small:answered => bypass/off small", None),
    ("cascade", "small unsure", "small:unsure large:answered => bypass/off large", None),
    ("cascade", "cpu down", "small:unreachable large:answered => bypass/off large +tier",
     "large:answered => bypass/off large +tier"),
    ("cascade", "small unsure, gpu down",
     "small:unsure large:unreachable large:unreachable => bypass/off small +replica +tier degraded",
     "small:unsure => bypass/off small +tier degraded"),
    ("browned", "small unsure, brownout 1", "small:unsure large:answered => miss/absent large", None),
    ("browned", "small unsure, brownout 2", "small:unsure => miss/absent small +tier degraded", None),
    ("browned", "cache old, brownout 3", "=> stale/brownout small +stale degraded", None),
    ("rank", "", "user:answered item:answered ranker:answered => bypass/off ranker", None),
    ("rank", "redis down", "user:unreachable item:answered ranker:answered => bypass/off ranker +user:default degraded",
     "item:answered ranker:answered => bypass/off ranker +user:default degraded"),
    ("rank", "user slow, rows old",
     "item:answered user:timeout ranker:answered => bypass/off ranker +user:stale degraded",
     "item:answered ranker:answered => bypass/off ranker +user:stale degraded"),
    ("rank", "redis loading, lmdb down, rows fresh", "ranker:answered => bypass/off ranker", None),
    ("rank", "redis down, snapshot old",
     "user:unreachable item:answered ranker:answered => bypass/off ranker +user:snapshot degraded",
     "item:answered ranker:answered => bypass/off ranker +user:snapshot degraded"),
    ("rank", "item refusing", "user:answered item:refused => 503 unavailable degraded",
     "user:answered => 503 unavailable degraded"),
]  # fmt: skip


@pytest.mark.parametrize(("route", "when", "first", "later"), CASES, ids=lambda each: each)
def test_what_a_caller_gets_at_first_and_later(
    config: Config, route: str, when: str, first: str, later: str | None
) -> None:
    conditions = read_conditions(when, config)
    assert gist(least_lucky(config, route, conditions)).strip() == first
    told = gist(least_lucky(config, route, conditions, CROWDS)).strip()
    assert told == (first if later is None else later)


def test_the_text_has_the_time_that_passes_and_the_ladder_with_its_bounds(config: Config) -> None:
    text = explain(config, "kept", read_conditions("gpu slow, cache old", config))
    assert "after 9.9 s 200: an old answer from the cache, of large, which is less than health would give" in text
    assert "Cache-Status: tailrace; hit; ttl=-" in text
    assert "After 64 callers who met the same:\n  nobody is asked\n" in text
    assert "  replica  one other of 2 replicas; retries are 20% of requests at most, and 10 a second" in text
    assert "  stale    up to cache.max_stale (1h) beyond cache.ttl (10m); taken" in text


def test_a_step_that_makes_no_sense_is_told_to_make_none(config: Config) -> None:
    lines = explain(config, "plain", read_conditions("gpu slow", config)).splitlines()
    assert [line.rpartition("; ")[2] for line in lines if line.startswith("  replica")] == [
        "makes no sense after timeout"
    ]
    text = explain(config, "plain", read_conditions("large overloaded", config))
    assert "makes no sense" not in text
    assert "  refuse   at the latest after routes.timeout (10s); taken" in text


def test_the_text_says_that_it_is_a_declared_default(config: Config) -> None:
    text = explain(config, "declared", read_conditions("large failing", config))
    assert "  gets   200: the declared default, which is less than health would give\n" in text
    assert "steps=(default), degraded" in text
    assert "  default  what is declared (y, of each row); taken" in text
    assert "  default  none is declared" in explain(config, "plain", ())


@pytest.mark.parametrize(
    ("route", "concerned", "not_concerned"),
    [
        ("plain", "gpu slow, http://a:8000 slow, large slow, brownout 2",
         "cpu slow, user slow, redis slow, lmdb slow, cache old, rows old, snapshot old, second slow"),
        ("shared", "redis slow, cache old, second slow, snapshot old", "user slow, rows old, lmdb slow"),
        ("rank", "user slow, redis slow, rows old, lmdb slow, snapshot old", "second slow"),
    ],
)  # fmt: skip
def test_what_is_nothing_to_a_route_is_said(config: Config, route: str, concerned: str, not_concerned: str) -> None:
    text = explain(config, route, read_conditions(f"{concerned}, {not_concerned}", config))
    told = re.findall(r'^"(.*)" is nothing to this route', text, re.MULTILINE)
    assert told == not_concerned.split(", ")


def test_a_redis_of_the_second_level_alone_is_known(tmp_path: Path) -> None:
    path = tmp_path / "second.toml"
    route = "[routes.r]\ntiers = [{ backend = 'b', model = 'm' }]\ncache = { ttl = '1m', second = 'redis://h/0' }\n"
    path.write_text("[backends.b]\nhttp = ['http://a']\n" + route)
    assert read_conditions("redis slow", read(str(path), {}).config) == (Condition("stores", "redis", "slow"),)


def test_what_is_kept_elsewhere_is_told_with_what_bounds_it(config: Config, tmp_path: Path) -> None:
    text = explain(config, "shared", read_conditions("gpu down, snapshot old, second slow", config))
    assert "after 0.02 s 200: an old answer from the snapshot, of large, which is less than" in text
    rung = next(line for line in text.splitlines() if line.startswith("  snapshot"))
    assert rung.endswith("an earlier process has left, within the same ages; say snapshot fresh, unknown or old; taken")
    assert "second level" not in text
    assert "a fresh answer from the second level, of large\n" in explain(
        config, "shared", read_conditions("second fresh", config)
    )
    assert 'say "second fresh" for the other case' in explain(config, "shared", ())
    assert "  snapshot nothing is copied: nothing is cached" in explain(config, "plain", ())
    path = tmp_path / "bare.toml"
    path.write_text("[backends.b]\nhttp = ['http://a']\n[routes.r]\ntiers = [{ backend = 'b', model = 'm' }]\n")
    bare = read(str(path), {}).config
    assert "  snapshot nothing is copied: there is no [snapshot]" in explain(bare, "r", ())
    for text, why in (("snapshot old", "the configuration has no [snap"), ("second fresh", "no route has cache.sec")):
        with pytest.raises(ConfigError, match=re.escape(f"there is none: {why}")):
            read_conditions(text, bare)


def test_the_command_prints_it_and_names_what_is_not_there(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with structlog.testing.capture_logs():  # which the command would turn off
        assert main(["explain", "kept", "--config", str(file), "--when", "gpu down, cache old"]) == WELL
    told = capsys.readouterr()
    assert told.out.startswith("route kept, when gpu down, cache old\n")
    assert not told.err
    assert main(["explain", "kep", "--config", str(file)]) == MISUSED
    assert "there is no route kep" in (said := capsys.readouterr().err)
    assert "did you mean kept?" in said
    file.write_text(file.read_text() + "[endpoints.score]\npath = '/predict'\n")
    assert main(["explain", "score", "--config", str(file)]) == MISUSED
    assert "score is an endpoint; explain knows routes only" in capsys.readouterr().err
    assert main(["explain", "kept", "--config", str(file), "--when", "gpux down"]) == MISUSED
    assert "did you mean gpu?" in capsys.readouterr().err


# -- that it is so ----------------------------------------------------------------------------------------


class Breakable:
    """An upstream that can be away."""

    def __init__(self) -> None:
        self.triton = EchoTriton()
        self._writers: list[asyncio.StreamWriter] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        await self.triton.serve(reader, writer)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**24)
        self.triton.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def leave(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()


@pytest.fixture
async def upstream() -> AsyncIterator[Breakable]:
    found = Breakable()
    await found.start()
    yield found
    found.triton.gate.set()
    found.leave()
    await asyncio.gather(*(task for task in found.triton.serving if task is not None), return_exceptions=True)


ONE = 'tiers = [{ backend = "upstream", model = "m" }]'
TWO = (
    'tiers = [{ backend = "upstream", model = "m", accept = { output = "y", at_least = 0.1 } }, '
    '{ backend = "upstream", model = "b2" }]'
).replace("b2", "l")
OLD = 'cache = { ttl = "20ms", max_stale = "1h" }'
KEPT = 'cache = { ttl = "1h" }'


@pytest.mark.parametrize(
    ("route", "when"),
    [
        ((ONE, KEPT), ""),
        ((ONE,), "upstream down"),
        ((ONE, KEPT), "upstream overloaded"),
        ((ONE,), "m failing"),
        ((ONE, 'timeout = "400ms"'), "upstream slow"),
        ((ONE, KEPT), "upstream down, cache fresh"),
        ((ONE, OLD), "upstream down, cache old"),
        ((ONE, OLD, 'timeout = "400ms"'), "upstream slow, cache old"),
        ((ONE, OLD, "degrade = []"), "upstream down, cache old"),
        ((TWO,), ""),
        ((TWO,), "m overloaded"),
        ((ONE, 'default = { y = { datatype = "FP32", shape = [1, 2], value = 0.5 } }'), "upstream overloaded"),
    ],
)
async def test_a_real_gateway_does_what_is_told(upstream: Breakable, route: tuple[str, ...], when: str) -> None:
    triton = upstream.triton
    async with opened([triton.url], True, ROUTES__R=f"{{ {', '.join(route)} }}") as house:
        config = house.gateway.standing.config
        caller = house.caller("http-json")
        await caller.ask(Ask(rows=((7.0, 7.5),)))  # its models are known
        if "cache" in when:
            await caller.ask(Ask())
        if "old" in when:
            began = monotonic()
            await until(lambda: monotonic() > began + 0.03)
        match next((each.split() for each in when.split(", ") if "cache" not in each), ["", ""]):
            case [_, "down"]:
                upstream.leave()
            case [_, "slow"]:
                triton.gate.clear()
            case ["m", "overloaded"]:
                triton.failing.add("m")
            case [_, "overloaded"]:
                triton.status = b"503 Unavailable"
            case [_, "failing"]:
                triton.status = b"500 Error"
        real = await caller.ask(Ask())
    told = await asyncio.to_thread(least_lucky, config, "r", read_conditions(when, config))
    said = told.provenance
    assert real.problem == ("" if told.problem is None else told.problem.slug)
    assert told.problem is None or NUMBERS[real.problem][0] == told.problem.status
    assert (real.cache, real.reason, real.tier) == (said.cache, said.reason, said.tier)
    assert (real.steps, real.degraded, real.stored) == (said.steps, said.degraded, said.stored)
