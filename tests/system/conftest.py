"""Callers that know the right answer, servers that can be broken, and the table of what came of it.

Rule of this file: an answer is judged by what the caller itself knows (``tests/chaos/judge.py``).
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import aiohttp
import pytest

from examples.gatewayprocess import ConfigValue, GatewayProcess
from examples.tritonserver import TritonEnvironment, TritonOptions, TritonServer
from tests.chaos.judge import BAD, DEADLINE_SECONDS, TTL_SECONDS, Answer, Board, Question, judged

CALLERS = 16
HOT_INPUTS = 32
SLACK_SECONDS = 5.0
"""Beyond its deadline, for cores that run Triton, its models, the gateway, the callers and other tests: what hangs
never answers."""
PAUSE_SECONDS = 0.02
OUTCOMES = ("fresh", "hit", "stale", "fast-only", "refused", *BAD)
NOBODY_WRITES = Board()
MODEL = Path(__file__).parent / "models" / "stamped"
TABLES: pytest.StashKey[list[str]] = pytest.StashKey()


@dataclass(frozen=True)
class Seen:
    """One request and what came of it; ``sent`` is Unix time, ``steps`` the ladder's as the answer told."""

    outcome: str
    sent: float
    seconds: float
    steps: tuple[str, ...]
    said: str


class Load:
    """Callers that ask without end, half of them for a few inputs again and again, half for new ones."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: list[Seen] = []
        self._new = count(1_000)
        self._begun = count()

    def tally(self, since: int = 0) -> Counter[str]:
        """How many requests had which outcome, from the ``since``-th on."""
        return Counter(each.outcome for each in self.seen[since:])

    def steps(self, since: int = 0) -> Counter[str]:
        return Counter(step for each in self.seen[since:] for step in each.steps)

    async def until(self, enough: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait until the callers have seen enough; AssertionError with the table if they never do."""
        end = time.monotonic() + seconds
        while not enough():
            assert time.monotonic() < end, f"not within {seconds:.0f} s: {dict(self.tally())}\n{self.last()}"
            await asyncio.sleep(0.02)

    async def until_more(self, outcome: str, number: int = 1, seconds: float = 30.0) -> None:
        """Wait for ``number`` more requests with this outcome."""
        since = len(self.seen)
        await self.until(lambda: self.tally(since)[outcome] >= number, seconds)

    def last(self, number: int = 8) -> str:
        return "\n".join(f"{each.outcome}: {each.said}" for each in self.seen[-number:])

    def judge(self) -> None:
        """No answer was wrong, late, unlabelled, an error, or none at all."""
        bad = [each for each in self.seen if each.outcome in BAD]
        assert not bad, f"{dict(self.tally())}: " + "\n".join(f"{each.outcome} {each.said}" for each in bad[:5])

    async def ask(self, session: aiohttp.ClientSession, number: int) -> Seen:
        """One request for the row [number, 3 * number + 1]."""
        row = [float(number), float(3 * number + 1)]
        body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": row}]}
        sent, began = time.time(), time.monotonic()
        try:
            async with asyncio.timeout(DEADLINE_SECONDS + SLACK_SECONDS):
                async with session.post(self.url, json=body) as answer:
                    document = await answer.json(content_type=None)
        except TimeoutError:
            return Seen("hung", sent, time.monotonic() - began, (), "no answer")
        except aiohttp.ClientError as error:
            return Seen("dropped", sent, time.monotonic() - began, (), repr(error))
        label = answer.headers.get("Tailrace-Provenance", "")
        question = Question("cascade" if "/cascade/" in self.url else "plain", ((row[0], row[1]),))
        verdict = judged(question, Answer(answer.status, answer.headers, document, sent, time.time()), NOBODY_WRITES)
        status = f"{answer.status} {answer.headers.get('Cache-Status', '')}"
        said = f"{status} | {label} | {str(document)[:300]} {verdict.why}"
        outcome = "refused" if verdict.outcome == "503" else verdict.outcome
        told = re.search(r"steps=\(([^)]*)\)", label)
        return Seen(outcome, sent, time.monotonic() - began, tuple(told[1].split()) if told else (), said)

    async def call(self, session: aiohttp.ClientSession) -> None:
        while True:
            turn = next(self._begun)
            number = turn // 2 % HOT_INPUTS if turn % 2 else next(self._new)
            self.seen.append(await self.ask(session, number))
            await asyncio.sleep(PAUSE_SECONDS)


@pytest.fixture
def loading(request: pytest.FixtureRequest) -> Callable[..., object]:
    """``async with loading(gateway, "route") as load:`` 16 callers ask until the block ends."""

    @asynccontextmanager
    async def block(gateway: GatewayProcess, route: str) -> AsyncIterator[Load]:
        load = Load(f"{gateway.http_url}/v2/models/{route}/infer")
        async with aiohttp.ClientSession() as session:
            callers = [asyncio.create_task(load.call(session)) for _ in range(CALLERS)]
            try:
                yield load
            finally:
                for caller in callers:
                    caller.cancel()
                ended = await asyncio.gather(*callers, return_exceptions=True)
        counts = load.tally()
        cells = " ".join(f"{counts[outcome]:>10}" for outcome in OUTCOMES)
        slowest = max((each.seconds for each in load.seen), default=0.0)
        request.config.stash[TABLES].append(f"{request.node.name[5:59]:<55}{cells} {slowest:>8.2f}")
        faults = [each for each in ended if isinstance(each, Exception)]
        assert not faults, faults
        assert gateway.metric("tailrace_responses_total", status="500") == 0
        assert "Traceback" not in gateway.log()

    return block


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TABLES] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    tables = config.stash.get(TABLES, [])
    if tables:
        terminalreporter.section("answers while things fail")
        terminalreporter.line(f"{'':<55}" + " ".join(f"{name:>10}" for name in OUTCOMES) + "  slowest")
        for line in tables:
            terminalreporter.line(line)


class Breakable:
    """A Triton with the stamped model under several names, and the switches to break them."""

    def __init__(self, server: TritonServer, repository: Path) -> None:
        self.server = server
        self._repository = repository

    def tell(self, model: str, what: str) -> None:
        """``fail`` or ``hang``, until ``heal``."""
        (self._repository / model / what).touch()

    def heal(self) -> None:
        for path in self._repository.glob("*/*"):
            if path.name in ("fail", "hang"):
                path.unlink()

    def restore(self) -> None:
        """Running, and every model loaded and well."""
        self.heal()
        self.server.resume()
        if not self._answers():
            self.server.restart()
        for model in os.listdir(self._repository):
            ready = self.server.request("GET", f"/v2/models/{model}/ready")[0] == 200
            if not (ready and self.server.stub_pids(model)):  # a model without its process is still "ready"
                self.reload(model)

    def _answers(self) -> bool:
        """A server in its countdown runs and refuses."""
        try:
            return self.server.running and self.server.request("GET", "/v2/health/live")[0] == 200
        except OSError:
            return False

    def reload(self, model: str) -> None:
        """Away and back: Triton does nothing about a load of what it has and that has not changed."""
        self.server.unload(model)
        end = time.monotonic() + 20.0
        while self.server.request("GET", f"/v2/models/{model}/ready")[0] == 200:
            assert time.monotonic() < end, f"{model} does not unload"
            time.sleep(0.05)
        self.server.load(model)


@pytest.fixture(scope="module")
def breakable_factory(
    triton_environment: TritonEnvironment, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Breakable]]:
    """``breakable_factory("stamped", "fast", ...)`` -> a running Triton whose models can be told to fail."""
    servers: list[TritonServer] = []

    def start(*models: str) -> Breakable:
        repository = tmp_path_factory.mktemp("models")
        for model in models:
            shutil.copytree(MODEL, repository / model, ignore=shutil.ignore_patterns("__pycache__"))
        options = TritonOptions((repository,), exit_timeout_seconds=5, environ={"PYTHONDONTWRITEBYTECODE": "1"})
        server = TritonServer(options, triton_environment)
        servers.append(server)
        server.start()
        return Breakable(server, repository)

    try:
        yield start
    finally:
        for server in servers:
            server.kill()


@pytest.fixture
def configured() -> Callable[..., Mapping[str, ConfigValue]]:
    """A gateway's configuration: routes ``stamped`` and ``cascade`` with a ttl of 1 s, before these servers."""

    def make(
        *urls: str,
        degrade: Sequence[str] = ("replica", "tier", "stale"),
        drain: str = "10s",
        timeout: str = f"{DEADLINE_SECONDS:g}s",
    ) -> Mapping[str, ConfigValue]:
        shared: dict[str, ConfigValue] = {
            "timeout": timeout,
            "cache": {"ttl": f"{TTL_SECONDS:g}s", "max_stale": "1h"},
            "degrade": list(degrade),
        }
        accept: dict[str, ConfigValue] = {"output": "p", "rule": "margin", "at_least": 0.5}
        cascade: list[ConfigValue] = [
            {"backend": "b", "model": "fast", "accept": accept},
            {"backend": "b", "model": "large"},
        ]
        return {
            "server": {"drain": drain},
            "backends": {"b": {"http": list(urls)}},
            "routes": {
                "stamped": {"tiers": [{"backend": "b", "model": "stamped"}], **shared},
                "cascade": {"tiers": cascade, **shared},
            },
        }

    return make
