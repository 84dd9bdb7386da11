"""The fixtures that put a real Triton and a real gateway under a test.

Rule of this file: what a fixture starts, it stops; no fixed sleep decides a test; without Triton the
tests that need one fail with the sentence that says how to get it, they are not skipped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from examples.digits.repository import Digits, prepare
from examples.gatewayprocess import ConfigValue, GatewayProcess
from examples.tritonserver import (
    ModelStatistics,
    TritonEnvironment,
    TritonOptions,
    TritonServer,
    find_environment,
)

MODELS = Path(__file__).parent / "models"


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
        before = server.statistics(model)
        yield counted
        counted.fill(server.statistics(model) - before)

    return block
