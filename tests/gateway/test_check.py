"""The check of file and world: judging as tables over facts, asking against a small false Triton."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator

import msgspec
import pytest
from aiohttp import web
from aiohttp.http_parser import HttpRequestParserPy

from examples.redisserver import RedisServer
from gateway.check import (
    Findings,
    environment_faults,
    findings,
    open_files_needed,
    raise_open_files,
    route_faults,
    table_faults,
)
from gateway.config import Accept, CacheConfig, Config, InputRule, Limits, Route, TierConfig
from gateway.config_backends import Backend
from gateway.config_default import DefaultOutput
from gateway.config_load import Concurrency
from gateway.config_tables import TableConfig
from gateway.doors import listener
from gateway.units import Seconds, Size
from tiers.facts import ModelFacts, TensorFact

PIXELS = TensorFact("pixels", "FP32", (-1, 64))
PROBABILITIES = TensorFact("probabilities", "FP32", (-1, 10))
LABEL = TensorFact("label", "INT64", (-1, 1))
SMALL = ModelFacts("small", ("1",), (PIXELS,), (PROBABILITIES, LABEL), 32, False, False)
LARGE = msgspec.structs.replace(SMALL, name="large")
FLAT = DefaultOutput("FP32", (-1, 10), 0.1)
LABELS = DefaultOutput("INT64", (-1, 1), -1)


def changed(facts: ModelFacts, **values: object) -> ModelFacts:
    return msgspec.structs.replace(facts, **values)


def route(**values: object) -> Route:
    accept = values.pop("accept", Accept(output="probabilities", at_least=0.6))
    tiers = (TierConfig("gpu", "small", "", accept), TierConfig("gpu", "large"))  # type: ignore[arg-type] # table
    return Route(tiers, **values)  # type: ignore[arg-type] # values of a case table


def judged(small: ModelFacts, large: ModelFacts, policy: Route) -> list[str]:
    facts = {("gpu", "small", ""): small, ("gpu", "large", ""): large}
    return list(route_faults("routes.r", policy, facts))


CASES = [
    ("the same", LARGE, route(), None),
    ("any batch", changed(LARGE, inputs=(TensorFact("pixels", "FP32", (-1, -1)),)), route(), None),
    (
        "an optional input more",
        changed(LARGE, inputs=(PIXELS, TensorFact("hint", "INT32", (-1, 1), True))),
        route(),
        None,
    ),
    ("one input more", changed(LARGE, inputs=(PIXELS, LABEL)), route(), "only large has input label"),
    ("one output less", changed(LARGE, outputs=(PROBABILITIES,)), route(), "only small has output label"),
    (
        "another datatype",
        changed(LARGE, inputs=(TensorFact("pixels", "FP16", (-1, 64)),)),
        route(),
        "input pixels is FP32 and FP16",
    ),
    (
        "another shape",
        changed(LARGE, inputs=(TensorFact("pixels", "FP32", (-1, 65)),)),
        route(),
        "input pixels has shape [-1, 64] and [-1, 65]",
    ),
    (
        "another rank",
        changed(LARGE, inputs=(TensorFact("pixels", "FP32", (-1, 8, 8)),)),
        route(),
        "input pixels has shape",
    ),
    ("smaller batches", changed(LARGE, max_batch=8), route(), "may all escalate"),
    ("smaller batches, bounded", changed(LARGE, max_batch=8), route(limits=Limits(batch_max=8)), None),
    ("too large a bound", LARGE, route(limits=Limits(batch_max=64)), "limits.batch_max is 64"),
    ("decoupled", changed(LARGE, decoupled=True), route(), "is decoupled"),
    ("a sequence model", changed(LARGE, sequence=True), route(), "keeps state"),
    ("no such output", LARGE, route(accept=Accept(output="p", at_least=1)), "has no output 'p'"),
    ("no floats", LARGE, route(accept=Accept(output="label", at_least=1)), "is INT64, and a rule needs floats"),
    ("no such input", LARGE, route(inputs={"x": InputRule()}), "has no such input"),
    ("a default", LARGE, route(default={"probabilities": FLAT, "label": LABELS}), None),
    ("half a default", LARGE, route(default={"probabilities": FLAT}), "routes.r.default.label: is not declared"),
    (
        "a default without a batch",
        LARGE,
        route(default={"probabilities": DefaultOutput("FP32", (10,), 0.1), "label": LABELS}),
        "routes.r.default.probabilities.shape: is [10], and model small takes batches",
    ),
    (
        "a default of another shape",
        LARGE,
        route(default={"probabilities": DefaultOutput("FP32", (-1, 9), 0.1), "label": LABELS}),
        "routes.r.default.probabilities.shape: is [-1, 9], and model small answers [-1, 10]",
    ),
    (
        "a default of another datatype",
        LARGE,
        route(default={"probabilities": DefaultOutput("FP64", (-1, 10), 0.1), "label": LABELS}),
        "routes.r.default.probabilities.datatype: is FP64, and model small answers FP32",
    ),
    (
        "a default of nothing",
        LARGE,
        route(default={"probabilities": FLAT, "label": LABELS, "p": FLAT}),
        "routes.r.default.p: model small has no such output; it has probabilities, label",
    ),
    ("a default of a sequence", changed(LARGE, sequence=True), route(default={"p": FLAT}), "it can have no default"),
    ("a size for a number", LARGE, route(inputs={"pixels": InputRule(element_bytes_max=Size(1))}), "BYTES"),
]


@pytest.mark.parametrize(("large", "policy", "told"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_tiers_of_a_route(large: ModelFacts, policy: Route, told: str | None) -> None:
    found = judged(SMALL, large, policy)
    assert (told is None) == (not found)
    assert told is None or any(told in line for line in found)
    assert all(line.startswith("routes.r.") for line in found)


def test_a_stateful_model_is_not_cached() -> None:
    tiers = (TierConfig("gpu", "small"),)
    facts = {("gpu", "small", ""): changed(SMALL, sequence=True)}
    assert not list(route_faults("routes.r", Route(tiers), facts))
    assert list(route_faults("routes.r", Route(tiers, CacheConfig(Seconds(1))), facts))


def test_a_tier_that_did_not_answer_is_left_to_the_survey() -> None:
    assert not list(route_faults("routes.r", route(), {}))


def test_this_environment_is_well_but_few_files_are_told() -> None:
    config = Config(backends={"gpu": Backend(("http://a:1", "http://b:1"), connections_max=10)})
    needed = open_files_needed(config)
    assert needed > config.server.connections_max + 20
    assert not list(environment_faults(config, needed))
    assert not list(environment_faults(config, resource.RLIM_INFINITY))
    (line,) = environment_faults(config, needed - 1)
    assert line.startswith(f"open files: {needed} are needed")


def test_the_python_parser_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HttpRequestParser", HttpRequestParserPy)
    (line,) = environment_faults(Config(), resource.RLIM_INFINITY)
    assert "C parser" in line


def test_the_soft_limit_is_lifted_as_far_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    lifted: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: lifted.append(limits))
    said = []
    for current in ((16, 32), (16, 10**6), (10**6, 10**6)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, current=current: current)
        said.append(raise_open_files(Config()))
    assert "server.connections_max is 4096" in said[0]
    assert "the hard limit is 32" in said[0]
    assert said[1:] == ["", ""]
    assert lifted == [(32, 32), (open_files_needed(Config()), 10**6)]


METADATA = {
    "name": "small",
    "versions": ["1"],
    "platform": "python",
    "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, 64]}],
    "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}],
}


async def small_triton(request: web.Request) -> web.Response:
    match request.path:
        case "/v2/health/ready" | "/v2/models/small/ready":
            return web.Response()
        case "/v2/models/small":
            return web.json_response(METADATA)
        case "/v2/models/small/config":
            return web.json_response({"name": "small", "max_batch_size": 32})
        case "/v2/models/small/stats":
            return web.json_response({"model_stats": []})
        case _:
            return web.json_response({"error": "unknown"}, status=400)


@pytest.fixture
async def triton() -> AsyncIterator[str]:
    runner = web.ServerRunner(web.Server(small_triton))  # type: ignore[arg-type] # handlers of a low-level server
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_ready_model_is_well(triton: str) -> None:
    config = Config(backends={"gpu": Backend((triton,))}, routes={"r": Route((TierConfig("gpu", "small"),))})
    assert await findings(config) == Findings(())


async def test_everything_wrong_comes_in_one_list(triton: str, unused_tcp_port: int) -> None:
    dead = f"http://127.0.0.1:{unused_tcp_port}"
    accept = Accept(output="scores", at_least=0.5)
    tiers = (TierConfig("gpu", "small", "", accept), TierConfig("gpu", "large"))
    config = Config(backends={"gpu": Backend((triton, dead))}, routes={"r": Route(tiers)})
    found = (await findings(config)).faults
    assert len(found) == 3
    assert any("model large is not ready there" in line for line in found)
    assert any(line.startswith(f"backends.gpu: {dead}: ") for line in found)
    assert any("has no output 'scores'" in line for line in found)
    assert await findings(config, offline=True) == Findings(())


async def test_the_stores_of_tables_are_asked() -> None:
    plain = TableConfig(store="redis://u:secret@127.0.0.1:1/0", key="{id}", shape=(2,), ttl=Seconds(60))
    with RedisServer() as server:
        tables = {
            "well": msgspec.structs.replace(plain, store=server.url),
            "away": plain,
            "file": msgspec.structs.replace(plain, store="lmdb:/nowhere/at/all"),
        }
        away, file = await table_faults(Config(tables=tables))
    assert away.startswith("tables.away.store: unreachable: 127.0.0.1:1: ")
    assert "secret" not in away
    assert file == "tables.file.store: unreachable: /nowhere/at/all: there is no such file"
    assert await table_faults(Config()) == []


@pytest.mark.parametrize(
    ("servers", "bounds", "told"),
    [
        (2, {"min": 129}, "min: is 129, and 2 replicas with connections_max = 64 can be asked 128 at once; lower it"),
        (1, {"max": 65}, "max: is 65, and 1 replica with connections_max = 64 can be asked 64 at once"),
        (2, {"min": 128, "max": 128}, ""),
        (1, {}, ""),
    ],
)
async def test_bounds_that_the_connections_cannot_come_to_are_told_and_no_faults(
    servers: int, bounds: dict[str, int], told: str
) -> None:
    """Whoever takes a broken replica out must not be refused for what was written for two."""
    urls = tuple(f"http://h{number}" for number in range(servers))
    backend = Backend(urls, concurrency=Concurrency(**bounds))
    found = await findings(Config(backends={"b": backend}), offline=True)
    assert found.faults == ()
    notes = [note.removeprefix("backends.b.concurrency.") for note in found.notes]
    assert [note[: len(told)] for note in notes] == ([told] if told else [])
