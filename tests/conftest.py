"""The fixtures that put a real Triton and a real gateway under a test.

Rule of this file: what a fixture starts, it stops; no fixed sleep decides a test; without Triton the
tests that need one fail with the sentence that says how to get it, they are not skipped.
"""

from __future__ import annotations

import shutil
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trustme
from hypothesis import settings

from examples.digits.repository import Digits, prepare
from examples.gatewayprocess import ConfigValue, GatewayProcess
from examples.redisserver import RedisServer
from examples.tritonserver import (
    ModelStatistics,
    TritonEnvironment,
    TritonOptions,
    TritonServer,
    find_environment,
)
from tests.redises import Nodes, Watched, clustering, watching

settings.register_profile("tailrace", deadline=None)  # a busy machine must not decide a test
settings.load_profile("tailrace")

MODELS = Path(__file__).parent / "models"
LONG = (
    "tests/system/test_chaos.py",
    "tests/soak/test_soak.py",
    "tests/gateway/test_lanes.py",
    "tests/system/test_links.py",
    "tests/examples/test_demo.py",
)
"""Begun first: whoever came to one of these last would have no company for a minute."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


class Pem:
    """An authority, and the files of what it has signed: ``certificate`` with ``key`` for this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.ca = folder / "ca.pem"
        self.authority.cert_pem.write_to_path(str(self.ca))
        self.certificate, self.key = self.issue("server")

    def issue(self, name: str, authority: trustme.CA | None = None) -> tuple[Path, Path]:
        """A chain and its key, as NAME.pem and NAME.key; what was there before is replaced."""
        made = (authority or self.authority).issue_cert("localhost", "127.0.0.1")
        chain, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        chain.write_bytes(b"".join(each.bytes() for each in made.cert_chain_pems))
        made.private_key_pem.write_to_path(str(key))
        return chain, key

    def caller(self, shown: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        """What a client needs that trusts the authority, and shows a certificate of its own if it has one."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if shown is not None:
            context.load_cert_chain(*shown)
        return context


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    """Certificates that nobody changes."""
    return Pem(tmp_path_factory.mktemp("pem"))


@pytest.fixture
def own_pem(tmp_path: Path) -> Pem:
    """Certificates of the test's own."""
    return Pem(tmp_path)


@pytest.fixture(scope="session")
def triton_environment() -> TritonEnvironment:
    """The environment that holds nvidia-pytriton."""
    return find_environment()


@pytest.fixture(scope="session")
def digits(triton_environment: TritonEnvironment) -> Digits:
    """The demo's held-out digits and model repository; trained once, kept on disk.

    ``digits.images`` FP32 [n, 64], ``digits.labels`` INT64 [n], ``digits.repository`` a path.
    """
    return prepare(triton_environment)


@pytest.fixture(scope="session")
def triton(triton_environment: TritonEnvironment, digits: Digits) -> Iterator[TritonServer]:
    """One Triton for the whole session: the digits tiers and every model of tests/models, explicit control.

    Tests that kill, pause, reload or unload anything take ``triton_factory`` instead.
    """
    options = TritonOptions(repositories=(digits.repository, MODELS))
    with TritonServer(options, triton_environment) as server:
        yield server


@pytest.fixture
def model_repository(tmp_path: Path, digits: Digits) -> Callable[..., Path]:
    """``model_repository("echo_fp32", "digits_small")`` -> a private, changeable copy of these models."""

    def build(*models: str) -> Path:
        target = tmp_path / "models"
        for model in models:
            source = MODELS / model if (MODELS / model).exists() else digits.repository / model
            shutil.copytree(source, target / model, ignore=shutil.ignore_patterns("__pycache__"))
        return target

    return build


@pytest.fixture
def triton_factory(
    triton_environment: TritonEnvironment, model_repository: Callable[..., Path]
) -> Iterator[Callable[..., TritonServer]]:
    """``triton_factory("echo_fp32", response_cache_bytes=0, ...)`` -> a started server of the test's own.

    Models by name, from tests/models or the digits; keyword arguments are those of TritonOptions
    (``repositories=`` overrides the names). All servers are stopped at the test's end.
    """
    with ExitStack() as stack:

        def start(*models: str, **options: object) -> TritonServer:
            if "repositories" not in options:
                options["repositories"] = (model_repository(*models),)
            server = TritonServer(TritonOptions(**options), triton_environment)  # type: ignore[arg-type]  # checked there
            return stack.enter_context(server)

        yield start


@pytest.fixture
def gateway_factory() -> Iterator[Callable[..., GatewayProcess]]:
    """``gateway_factory(config, arguments=(), environ={})`` -> a started `tailrace serve` on free ports.

    ``config`` is TOML text, a mapping, or None (then ``arguments`` such as ``["--upstream", url]``).
    All gateways are stopped at the test's end.
    """
    with ExitStack() as stack:

        def start(
            config: str | Mapping[str, ConfigValue] | None = None,
            arguments: Sequence[str] = (),
            environ: Mapping[str, str] | None = None,
        ) -> GatewayProcess:
            return stack.enter_context(GatewayProcess(config, arguments, environ))

        yield start


def settled(server: TritonServer, model: str) -> ModelStatistics:
    """Triton's statistics, once they stay the same: it answers first and books afterwards."""
    told, same = server.statistics(model), 0
    for _ in range(500):
        time.sleep(0.02)
        before, told = told, server.statistics(model)
        same = same + 1 if told == before else 0
        if same == 3:
            return told
    raise AssertionError(f"the statistics of {model} do not come to rest")


class Counted:
    """What happened at a model between the beginning and the end of a ``counting`` block."""

    def __init__(self) -> None:
        self.requests = 0
        self.failed = 0
        self.rows = 0
        self.executions = 0

    def fill(self, difference: ModelStatistics) -> None:
        self.requests, self.failed = difference.requests, difference.failed
        self.rows, self.executions = difference.rows, difference.executions


@pytest.fixture
def counting() -> Callable[..., object]:
    """``with counting(server, "digits_small") as counted: ...`` then ``counted.requests``, ``counted.rows``.

    The figures are Triton's own statistics, so an answer from a cache does not count.
    """

    @contextmanager
    def block(server: TritonServer, model: str) -> Iterator[Counted]:
        counted = Counted()
        before = settled(server, model)
        yield counted
        counted.fill(settled(server, model) - before)

    return block


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    with RedisServer(["enable-debug-command yes"]) as server:
        yield server


@pytest.fixture
def redis(shared_redis: RedisServer) -> RedisServer:
    """A server that all may use, empty, and that none may harm."""
    with shared_redis.client() as client:
        client.flushall()
    return shared_redis


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server of the test's own."""
    with RedisServer(["enable-debug-command yes"]) as server:
        yield server
        server.resume()  # one that a test has paused does not end


@pytest.fixture
def watched() -> Iterator[Watched]:
    """A master and its replica, with three Sentinels."""
    with watching() as made:
        yield made


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A cluster of three masters."""
    with clustering() as made:
        yield made
