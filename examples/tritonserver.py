"""A real Triton Inference Server without a GPU: the 2.51 binary inside the wheel nvidia-pytriton.

Rule of this file: start it, wait until it is ready, always stop it; several run at once, each on
free ports of the loopback address. The wheel lives in a Python environment of its own (it pins
numpy<2) and is never modified: the python backend needs the stub of the environment's Python
version beside its library, so a private directory of links is made for every server.
It knows nothing of the gateway.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import http.client
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from examples.child import Child, group_members
from examples.ports import HOST, Held

ENVIRONMENT_VARIABLE: Final = "TAILRACE_TRITON_ENV"
PYTRITON: Final = "nvidia-pytriton==0.7.0"
READY_SECONDS: Final = 60.0
"""Restart to ready takes 2 to 4 s on two cores; a loaded machine may need many times that."""
LOG_LINES_SHOWN_MAX: Final = 30


class TritonMissing(RuntimeError):
    """There is no usable Triton here; the message is one sentence that says what to do."""


class TritonFailed(RuntimeError):
    """Triton did not come up; the message holds the end of its log."""


@dataclass(frozen=True)
class TritonEnvironment:
    """Where the parts of one unpacked nvidia-pytriton wheel are."""

    root: Path
    site_packages: Path
    python_version: str
    libpython_directory: Path | None

    @property
    def python(self) -> Path:
        return self.root / "bin" / "python"

    @property
    def home(self) -> Path:
        return self.site_packages / "pytriton" / "tritonserver"

    @property
    def server(self) -> Path:
        return self.home / "bin" / "tritonserver"

    @property
    def stub(self) -> Path:
        return self.home / "python_backend_stubs" / self.python_version / "triton_python_backend_stub"

    def environ(self) -> dict[str, str]:
        """Environment variables with which the server and its stubs find their libraries."""
        libraries = [str(self.site_packages / "nvidia_pytriton.libs")]
        if self.libpython_directory is not None:
            libraries.append(str(self.libpython_directory))
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR", "TZ") if name in os.environ}
        return kept | {
            "PATH": f"{self.root / 'bin'}:{os.environ.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": ":".join(libraries),
            "PYTHONPATH": str(self.site_packages),
            # One thread per model process: costs stay comparable and the cores stay shared fairly.
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }


def find_environment(root: Path | None = None) -> TritonEnvironment:
    """The environment that holds nvidia-pytriton: ``root``, or ``$TAILRACE_TRITON_ENV``, or ``.triton``.

    Raises TritonMissing with one sentence that says what is missing and how to get it.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise TritonMissing(
            f"A real Triton for the demo and the tests comes from the wheel {PYTRITON}, "
            f"which exists for Linux x86-64 only, and this is {platform.system()} {platform.machine()}."
        )
    named = os.environ.get(ENVIRONMENT_VARIABLE, "")
    where = root or (Path(named) if named else Path(__file__).resolve().parent.parent / ".triton")
    found = sorted(where.glob("lib/python3.*/site-packages/pytriton/tritonserver/bin/tritonserver"))
    if not found:
        raise TritonMissing(
            f"No Triton in {where}: run `make triton`, or install {PYTRITON} and scikit-learn into a "
            f"virtual environment of its own and name it in {ENVIRONMENT_VARIABLE}."
        )
    site_packages = found[0].parents[3]
    version = site_packages.parent.name.removeprefix("python")
    environment = TritonEnvironment(where.resolve(), site_packages.resolve(), version, _libpython(where, version))
    if not environment.stub.exists():
        raise TritonMissing(
            f"{PYTRITON} has no python-backend stub for Python {version}: make {where} with Python 3.11."
        )
    return environment


def _libpython(root: Path, version: str) -> Path | None:
    """The directory of the Python library that the stub links to; None if the system's loader finds it."""
    name = f"libpython{version}.so.1.0"
    base = ""
    with contextlib.suppress(OSError):
        for line in (root / "pyvenv.cfg").read_text().splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "home":
                base = value.strip()
    if base and (Path(base).resolve().parent / "lib" / name).exists():
        return Path(base).resolve().parent / "lib"
    if ctypes.util.find_library(f"python{version}") is not None:
        return None
    raise TritonMissing(
        f"Triton's python backend needs {name}, which is not installed: "
        f"on Debian and Ubuntu `apt-get install libpython{version}` provides it."
    )


@dataclass(frozen=True)
class TritonOptions:
    """How one server is started. For a port of 0 one is found; it stays the same, and nobody else's, over restarts."""

    repositories: tuple[Path, ...]
    http_port: int = 0
    grpc_port: int = 0
    explicit: bool = True
    """Explicit model control: models are loaded and unloaded by request; False loads all, for good."""
    load_models: tuple[str, ...] = ("*",)
    response_cache_bytes: int = 0
    exit_timeout_seconds: int = 1
    """How long Triton, told to end, waits for requests that are under way."""
    extra_flags: tuple[str, ...] = ()
    environ: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelStatistics:
    """What Triton itself counted for one model, over all its versions."""

    requests: int
    """Requests that succeeded, hits of Triton's own response cache among them."""
    failed: int
    rows: int
    """Triton's ``inference_count``: rows computed (a batch of 8 counts 8); a Triton cache hit counts none."""
    executions: int
    """Triton's ``execution_count``: calls of the model; dynamic batching makes it less than ``rows``."""

    def __sub__(self, earlier: ModelStatistics) -> ModelStatistics:
        return ModelStatistics(
            self.requests - earlier.requests,
            self.failed - earlier.failed,
            self.rows - earlier.rows,
            self.executions - earlier.executions,
        )


class TritonServer:
    """One Triton process and its stubs, as a context manager. Not for use from several threads at once."""

    def __init__(self, options: TritonOptions, environment: TritonEnvironment | None = None) -> None:
        self.options = options
        self.environment = environment or find_environment()
        self._held = Held(2)
        http_port, grpc_port = self._held.numbers
        self.http_port = options.http_port or http_port
        self.grpc_port = options.grpc_port or grpc_port
        self.starts = 0
        self._child: Child | None = None
        self._directory: Path | None = None
        self._shared_memory_prefix = ""

    @property
    def http_url(self) -> str:
        """Base URL, such as ``http://127.0.0.1:8000``."""
        return f"http://{HOST}:{self.http_port}"

    @property
    def http_address(self) -> str:
        """``host:port``, as tritonclient wants it."""
        return f"{HOST}:{self.http_port}"

    @property
    def grpc_address(self) -> str:
        return f"{HOST}:{self.grpc_port}"

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def pid(self) -> int:
        """The process id of the server itself."""
        if self._child is None:
            raise TritonFailed("Triton is not started")
        return self._child.pid

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._held.close()

    def start(self, ready_seconds: float = READY_SECONDS) -> None:
        """Start and wait until ready. Raises TritonFailed with the log's end; nothing stays behind."""
        if self.running:
            raise TritonFailed("Triton is already running")
        try:
            self._spawn()
            self._await_ready(ready_seconds)
        except BaseException:
            self.stop()
            raise
        self.starts += 1

    def stop(self) -> None:
        """End the server and its stubs (SIGTERM, then SIGKILL for the group). Always safe to call."""
        if self._child is not None:
            self._child.stop(self.options.exit_timeout_seconds + 4.0)
        self._clean()

    def kill(self) -> None:
        """SIGKILL the server and its stubs at once, as a crash would."""
        if self._child is not None:
            self._child.kill()
        self._clean()

    def terminate(self) -> None:
        """Send SIGTERM and return: the server counts down up to ``exit_timeout_seconds``."""
        if self._child is not None:
            self._child.signal(signal.SIGTERM)

    def restart(self, ready_seconds: float = READY_SECONDS) -> None:
        """Stop if running, then start again on the same ports."""
        self.stop()
        self.start(ready_seconds)

    def pause(self) -> None:
        """Freeze the server: connections are accepted by the kernel, nothing is answered.

        Its stubs go on: Triton 2.51 may abort when a stub was frozen for more than a second. Returns once
        every thread has stopped: until then one of them may still answer.
        """
        if self._child is not None:
            os.kill(self._child.pid, signal.SIGSTOP)
            os.waitid(os.P_PID, self._child.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        if self._child is not None:
            os.kill(self._child.pid, signal.SIGCONT)

    def stub_pids(self, model: str = "") -> list[int]:
        """Process ids of the python-backend stubs: of one model, or of all."""
        if self._child is None:
            return []
        return sorted(
            pid
            for pid, command in group_members(self._child.pid).items()
            if "triton_python_backend_stub" in command.partition(" ")[0] and (not model or f"/{model}/" in command)
        )

    def kill_stub(self, model: str) -> int:
        """SIGKILL the stubs of one model while the server stays up; how many there were."""
        pids = self.stub_pids(model)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(pids)

    def log(self) -> str:
        """What the present process has logged; empty when it has been stopped."""
        return self._child.log() if self._child is not None else ""

    def statistics(self, model: str) -> ModelStatistics:
        """What Triton counted for a model since it was loaded. Raises TritonFailed if it does not say."""
        status, body = self.request("GET", f"/v2/models/{model}/stats")
        if status != http.client.OK:
            raise TritonFailed(f"no statistics of {model}: {status} {body.decode(errors='replace')}")
        versions = json.loads(body)["model_stats"]
        return ModelStatistics(
            requests=sum(v["inference_stats"]["success"]["count"] for v in versions),
            failed=sum(v["inference_stats"]["fail"]["count"] for v in versions),
            rows=sum(v["inference_count"] for v in versions),
            executions=sum(v["execution_count"] for v in versions),
        )

    def load(self, model: str) -> None:
        """Load or reload one model (explicit control only)."""
        self._repository(model, "load")

    def unload(self, model: str) -> None:
        self._repository(model, "unload")

    def request(self, method: str, path: str, body: bytes = b"", seconds: float = 10.0) -> tuple[int, bytes]:
        """One plain HTTP exchange with the server itself: (status, body)."""
        connection = http.client.HTTPConnection(HOST, self.http_port, timeout=seconds)
        try:
            connection.request(method, path, body=body or None)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _repository(self, model: str, verb: str) -> None:
        status, body = self.request("POST", f"/v2/repository/models/{model}/{verb}", b"{}", READY_SECONDS)
        if status != http.client.OK:
            raise TritonFailed(f"cannot {verb} {model}: {status} {body.decode(errors='replace')}")

    def _spawn(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="tailrace-triton-"))
        self._directory = directory
        self._shared_memory_prefix = f"tailrace_{uuid.uuid4().hex[:12]}"
        backends = _backend_directory(self.environment, directory)
        self._child = Child(
            self._command(backends),
            self.environment.environ() | dict(self.options.environ),
            directory,
            "triton",
        )

    def _command(self, backends: Path) -> list[str]:
        options = self.options
        command = [
            str(self.environment.server),
            *(f"--model-repository={path}" for path in options.repositories),
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory_prefix}",
            f"--cache-directory={self.environment.home / 'caches'}",
            f"--http-address={HOST}",
            f"--http-port={self.http_port}",
            f"--grpc-address={HOST}",
            f"--grpc-port={self.grpc_port}",
            "--allow-metrics=false",
            "--log-verbose=0",
            f"--exit-timeout-secs={options.exit_timeout_seconds}",
        ]
        if options.response_cache_bytes:
            command.append(f"--cache-config=local,size={options.response_cache_bytes}")
        if options.explicit:
            command.append("--model-control-mode=explicit")
            command.extend(f"--load-model={model}" for model in options.load_models)
        return [*command, *options.extra_flags]

    def _await_ready(self, ready_seconds: float) -> None:
        end = time.monotonic() + ready_seconds
        while time.monotonic() < end:
            if not self.running:
                raise TritonFailed(f"Triton ended before it was ready:\n{self._last_lines()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.request("GET", "/v2/health/ready", seconds=1.0)[0] == http.client.OK:
                    return
            time.sleep(0.02)
        raise TritonFailed(f"Triton was not ready within {ready_seconds:.0f} s:\n{self._last_lines()}")

    def _last_lines(self) -> str:
        lines = [line[:300] for line in self.log().splitlines() if line and not line.startswith(("|", "+"))]
        return "\n".join(lines[-LOG_LINES_SHOWN_MAX:])

    def _clean(self) -> None:
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
        if self._shared_memory_prefix:  # a killed python backend leaves its regions behind
            for region in Path("/dev/shm").glob(f"{self._shared_memory_prefix}*"):
                region.unlink(missing_ok=True)
        self._child = None


def _backend_directory(environment: TritonEnvironment, directory: Path) -> Path:
    """A backend directory of links in which the python backend has the stub of the right Python version."""
    backends = directory / "backends"
    target = backends / "python"
    target.mkdir(parents=True)
    source = environment.home / "backends" / "python"
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        (target / name).symlink_to(source / name)
    (target / environment.stub.name).symlink_to(environment.stub)
    return backends
