"""Who breaks things and makes them well again, as a plan says.

Rule of this file: it knows how each part is broken, and leaves each part well before the next is touched. Processes are
ended by their id. What it did, what it could not do in time, and from when to when workers and links were broken,
is kept: the load's accounts are settled by that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final

from msgspec import Struct
from redis import Redis
from redis.exceptions import RedisError

from tests.chaos.house import MODELS, READY_SECONDS, WORKERS, House
from tests.chaos.plan import Deed
from tests.chaos.proxy import Fault

WELL_SECONDS_MAX: Final = 120.0
"""For a part to be well again. A worker that has died often is given a pause of up to 30 s by its supervisor."""
LATE_SECONDS: Final = 3.0
SLOW_SECONDS: Final = 3.0
HANGS_SECONDS: Final = 12.0
"""A Triton that is not well by then is ended and started; a model loads in one or two."""
LOOK_SECONDS: Final = 6.0
QUESTION: Final = b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'
FLAPS: Final = 2
TURN_SECONDS: Final = 0.05
PASSWORD: Final = "chaos"
NOWHERE: Final = 1
"""A port at which no master is."""
FILLER_KEYS: Final = 500
"""Read in again one by one, each with a pause: Redis says LOADING meanwhile."""


class Span(Struct, frozen=True):
    """From when to when (Unix seconds) a link was broken, a worker ended ("worker"), or one stood still ("stall")."""

    part: str
    began: float
    ended: float


class Hands:
    """Does the deeds of a plan to a house."""

    def __init__(self, house: House, began: float, seconds: float, tell: Callable[[str], None]) -> None:
        """``began``: monotonic seconds; after ``seconds`` nothing more is begun."""
        self.done: Counter[str] = Counter()
        self.left: list[str] = []
        self.spans: list[Span] = []
        self.open: dict[str, float] = {}
        """What is broken now, and since when (Unix seconds)."""
        self.aborts = 0
        """How often Triton ended by itself."""
        self._house = house
        self.began = began
        self._seconds = seconds
        self._tell = tell
        self._ways: dict[str, Callable[[Deed], Awaitable[None]]] = {
            "triton": self._triton, "stub": self._stub, "redis": self._redis, "answer": self._answer,
            "worker": self._worker,
        }  # fmt: skip

    async def run(self, deeds: Iterable[Deed]) -> None:
        """Do one lane's deeds, in order."""
        for deed in deeds:
            await asyncio.sleep(max(0.0, self.began + deed.at - time.monotonic()))
            now = time.monotonic() - self.began
            late = now - deed.at > LATE_SECONDS and deed.part.startswith("link-")
            if late or now + deed.seconds > self._seconds:
                self.left.append(deed.name)
                continue
            self._tell(f"{deed.name} for {deed.seconds:.1f} s")
            began = time.monotonic()
            await (self._link if deed.part.startswith("link-") else self._ways[deed.part])(deed)
            self.done[deed.name] += 1
            over = time.monotonic() - began - deed.seconds
            if over > SLOW_SECONDS:
                self._tell(f"{deed.name} was well again after {over:.1f} s more")

    @contextlib.contextmanager
    def _broken(self, part: str) -> Iterator[None]:
        """Note from when to when."""
        began = self.open[part] = time.time()
        try:
            yield
        finally:
            del self.open[part]
            self.spans.append(Span(part, began, time.time()))

    # -- Triton ----------------------------------------------------------------------------------------------------

    async def _triton(self, deed: Deed) -> None:
        server = self._house.triton
        match deed.what:
            case "kill":
                await asyncio.to_thread(server.kill)
                await asyncio.sleep(deed.seconds)
            case "stop":
                await asyncio.to_thread(server.pause)
                await asyncio.sleep(deed.seconds)
                server.resume()
            case "restart":
                await asyncio.to_thread(server.stop)
            case "flap":
                for _ in range(FLAPS):
                    await asyncio.to_thread(server.kill)
                    await asyncio.to_thread(server.start, READY_SECONDS)
                await asyncio.to_thread(server.kill)
        await asyncio.to_thread(self._triton_well)

    async def _stub(self, deed: Deed) -> None:
        server = self._house.triton
        model = MODELS[int(deed.at) % len(MODELS)]
        if deed.what == "kill":
            server.kill_stub(model)
            await asyncio.sleep(deed.seconds)
        elif deed.what == "flap":
            for _ in range(FLAPS):
                server.kill_stub(model)
                await asyncio.to_thread(self._triton_well)
            server.kill_stub(model)
        else:
            pids = server.stub_pids(model)
            _signal(pids, signal.SIGSTOP)
            await asyncio.sleep(deed.seconds)
            _signal(pids, signal.SIGCONT)
        await asyncio.to_thread(self._triton_well)

    def _triton_well(self) -> None:
        """It runs, and every model's process with it; what does not is made again."""
        server = self._house.triton
        since = time.monotonic()
        end = since + WELL_SECONDS_MAX
        asked_to_end = server.log() == ""
        while not (server.running and all(self._model_well(model) for model in MODELS)):
            now = time.monotonic()
            assert now < end, f"Triton does not become well:\n{server.log()[-2000:]}"
            hangs = now - since > HANGS_SECONDS  # so it does too when it has aborted and cannot even end
            if hangs or not server.running:
                self.aborts += not asked_to_end
                server.kill()
                server.start(READY_SECONDS)
                since, asked_to_end = time.monotonic(), False

    def _model_well(self, model: str) -> bool:
        """A model without its process says that it is ready, so it is asked. Triton does nothing about a load of what
        it has."""
        server = self._house.triton
        try:
            if server.request("GET", f"/v2/models/{model}/ready", seconds=LOOK_SECONDS)[0] == 200:
                if server.request("POST", f"/v2/models/{model}/infer", QUESTION, LOOK_SECONDS)[0] == 200:
                    return True
                self._repository(model, "unload")
            else:
                self._repository(model, "load")
        except Exception:  # it ends just now, or says no: the next look tells
            time.sleep(TURN_SECONDS)
        return False

    def _repository(self, model: str, verb: str) -> None:
        self._house.triton.request("POST", f"/v2/repository/models/{model}/{verb}", b"{}", LOOK_SECONDS)

    # -- Redis -----------------------------------------------------------------------------------------------------

    async def _redis(self, deed: Deed) -> None:
        server = self._house.redis
        match deed.what:
            case "kill":
                await asyncio.to_thread(server.kill)
                await asyncio.sleep(deed.seconds)
                await asyncio.to_thread(server.start)
            case "stop":
                server.pause()
                await asyncio.sleep(deed.seconds)
                server.resume()
            case "restart":
                await asyncio.to_thread(server.stop)
                await asyncio.to_thread(server.start)
            case "flap":
                for _ in range(FLAPS + 1):
                    await asyncio.to_thread(server.kill)
                    await asyncio.to_thread(server.start)
        await asyncio.to_thread(server.await_answer)

    async def _answer(self, deed: Deed) -> None:
        """The real server, in a state in which that is what it says."""
        with self._house.redis.client() as client:
            if deed.what == "loading":
                await asyncio.to_thread(_load, client, deed.seconds)
                (self._house.redis.folder / "dump.rdb").unlink(missing_ok=True)  # or the next start believes it
                return
            _misuse(client, deed.what)
            await asyncio.sleep(deed.seconds)
            _forgive(client)

    # -- workers and links -------------------------------------------------------------------------------------------

    async def _worker(self, deed: Deed) -> None:
        await self._workers_well()
        for _ in range(FLAPS if deed.what == "flap" else 1):
            pids = await asyncio.to_thread(self._house.workers)
            pid = pids[int(deed.at * 1000) % len(pids)]
            if deed.what == "stop":
                with self._broken("stall"):
                    _signal([pid], signal.SIGSTOP)
                    await asyncio.sleep(deed.seconds)
                    _signal([pid], signal.SIGCONT)
            else:
                with self._broken("worker"):
                    _signal([pid], signal.SIGTERM if deed.what == "restart" else signal.SIGKILL)
                    await self._gone(pid)
            await self._workers_well()

    async def _gone(self, pid: int) -> None:
        end = time.monotonic() + WELL_SECONDS_MAX
        while os.path.exists(f"/proc/{pid}"):  # noqa: ASYNC240 - procfs does not block
            assert time.monotonic() < end, "a worker does not end"
            await asyncio.sleep(TURN_SECONDS)

    async def _workers_well(self) -> None:
        end = time.monotonic() + WELL_SECONDS_MAX
        while len(await asyncio.to_thread(self._house.workers)) < WORKERS:
            assert time.monotonic() < end, "a worker does not come back"
            await asyncio.sleep(TURN_SECONDS)

    async def _link(self, deed: Deed) -> None:
        proxy = self._house.proxies[deed.part.removeprefix("link-")]
        with self._broken(deed.part):
            proxy.switch(Fault(deed.what))
            await asyncio.sleep(deed.seconds)
            proxy.switch(None)


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _misuse(client: Redis, what: str) -> None:
    match what:
        case "oom":
            client.config_set("maxmemory", 1)
        case "noreplicas":
            client.config_set("min-replicas-to-write", 1)
        case "noauth":
            client.config_set("requirepass", PASSWORD)
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes")
        case "readonly" | "masterdown":
            client.config_set("replica-serve-stale-data", "yes" if what == "readonly" else "no")
            client.execute_command("REPLICAOF", "127.0.0.1", NOWHERE)


def _forgive(client: Redis) -> None:
    client.execute_command("REPLICAOF", "NO", "ONE")
    for name, value in (
        ("maxmemory", 0), ("min-replicas-to-write", 0), ("requirepass", ""), ("replica-serve-stale-data", "yes"),
    ):  # fmt: skip
        client.config_set(name, value)


def _load(client: Redis, seconds: float) -> None:
    """It reads its own data in again, slowly."""
    client.mset({f"filler:{each}": "x" for each in range(FILLER_KEYS)})
    client.config_set("key-load-delay", int(seconds * 1e6 / FILLER_KEYS))
    with contextlib.suppress(RedisError):
        client.execute_command("DEBUG", "RELOAD")
    client.config_set("key-load-delay", 0)
