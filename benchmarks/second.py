"""What a second-level hit costs: the same request answered by the local cache, by Redis, and by the model.

A real Triton with a model that takes a stated time for each row, a real redis-server, and two gateways that share it.
The first is asked what nobody has asked, and leaves the answer; the second is then asked by the same bytes twice: it
finds the answer in Redis, and after that in its own cache. A route of the second that keeps nothing asks the model. The
three come in turns within each round, and every answer's bytes are held against the model's, and its label against
where it should be from. Times are of the caller, over one kept connection: ratios of those within one round.

    make bench-second                   batches of 1 and 100 rows, a row taking half a millisecond
    python -m benchmarks.second --rows 1 256 --row-ms 1 --rounds 9
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import Struct
from tritonclient import http as client

from examples.gatewayprocess import ConfigValue, GatewayProcess
from examples.redisserver import RedisServer
from examples.tritonserver import TritonOptions, TritonServer, find_environment

MODELS: Final = Path(__file__).resolve().parent.parent / "tests" / "models"
MODEL: Final = "rowwise"
WIDTH: Final = 8
KEEPING: Final = ("answers", "rows")
"""Routes that keep: whole answers, single rows."""
LATE_SECONDS: Final = 30.0
FROM: Final = {"local": "cache=hit, reason=fresh", "second": "cache=hit, reason=second", "model": "cache=bypass"}
"""How an answer's label begins, by where it is from."""


class Told(Struct, frozen=True):
    """One answer: seconds, its outputs' bytes, and what its label says."""

    seconds: float
    outputs: tuple[bytes, ...]
    label: str


class Caller:
    """One kept connection to a gateway."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.gateway = gateway
        self._connection = HTTPConnection(gateway.http_address, timeout=LATE_SECONDS)

    def ask(self, route: str, body: bytes, head: Mapping[str, str]) -> Told:
        began = time.perf_counter()
        self._connection.request("POST", f"/v2/models/{route}/infer", body, dict(head))
        answer = self._connection.getresponse()
        data = answer.read()
        seconds = time.perf_counter() - began
        if answer.status != 200:
            raise RuntimeError(f"{route}: {answer.status} {data[:500]!r}")
        length = answer.headers["Inference-Header-Content-Length"]
        result = client.InferenceServerClient.parse_response_body(data, header_length=int(length))
        outputs = result.as_numpy("int64_out").tobytes(), *result.as_numpy("said").ravel().tolist()
        return Told(seconds, outputs, answer.headers["Tailrace-Provenance"])


def until(true: Callable[[], bool]) -> None:
    """Wait for something that a gateway will say."""
    end = time.monotonic() + LATE_SECONDS
    while not true():
        if time.monotonic() > end:
            raise TimeoutError("the gateways do not share")
        time.sleep(0.01)


def question(rows: int, row_ms: float, chance: random.Random) -> tuple[bytes, Mapping[str, str]]:
    """A batch that nobody has asked, int64 [rows, WIDTH]: its body, and the fields of its head."""
    values = np.frombuffer(chance.randbytes(rows * WIDTH * 8), np.int64).reshape(rows, WIDTH)
    tensor = client.InferInput("int64_in", [rows, WIDTH], "INT64")
    tensor.set_data_from_numpy(values)
    body, length = client.InferenceServerClient.generate_request_body([tensor], parameters={"row_ms": row_ms})
    return body, {"Inference-Header-Content-Length": str(length), "Content-Type": "application/octet-stream"}


class Bench:
    """Two gateways that share: ``leaving`` is asked first, ``finding`` is measured."""

    def __init__(self, leaving: Caller, finding: Caller, options: argparse.Namespace) -> None:
        self._leaving, self._finding = leaving, finding
        self._options = options
        self._chance = random.Random(options.seed)
        self._left = dict.fromkeys(KEEPING, 0)
        self.wrong: list[str] = []

    def round(self, route: str, rows: int) -> dict[str, float]:
        """The median seconds of each way to be answered, over ``options.requests`` requests of ``rows`` rows."""
        asked = [question(rows, self._options.row_ms, self._chance) for _ in range(self._options.requests)]
        known = [self._leaving.ask(route, *each) for each in asked]
        self._left[route] += len(asked) * (rows if route == "rows" else 1)
        until(lambda: self._written(route) >= self._left[route])
        seconds: dict[str, list[float]] = {way: [] for way in FROM}
        for position, (body, head) in enumerate(asked):
            for route_asked in self._chance.sample([route, "alone"], 2):
                for way, answer in self._answers(route_asked, body, head).items():
                    seconds[way].append(answer.seconds)
                    self.check(route, way, answer, known[position])
        return {way: statistics.median(each) for way, each in seconds.items()}

    def _answers(self, route: str, body: bytes, head: Mapping[str, str]) -> dict[str, Told]:
        if route == "alone":
            return {"model": self._finding.ask(route, body, head)}
        second = self._finding.ask(route, body, head)
        self._finding.ask(route, body, head)  # from now on it is known by its bytes, which is what a hit is
        return {"second": second, "local": self._finding.ask(route, body, head)}

    def _written(self, route: str) -> float:
        return self._leaving.gateway.metric("tailrace_second_total", route=route, outcome="write_written")

    def check(self, route: str, way: str, answer: Told, known: Told) -> None:
        """Note an answer that is not ``known``'s, or not from where it should be."""
        if answer.outputs != known.outputs:
            self.wrong.append(f"{route}, {way}: other bytes than the model's")
        if not answer.label.startswith(FROM[way]):
            self.wrong.append(f"{route}, {way}: {answer.label}")


def table(bench: Bench, options: argparse.Namespace) -> str:
    """All rounds, in turns; ratios as medians and ranges."""
    scenes = [(route, rows) for rows in options.rows for route in KEEPING]
    found: dict[tuple[str, int], list[dict[str, float]]] = {scene: [] for scene in scenes}
    for _ in range(options.rounds):
        for scene in scenes:
            found[scene].append(bench.round(*scene))
    lines = [
        f"{options.requests} requests a round, {options.rounds} rounds, INT64 rows of {WIDTH}, "
        f"{options.row_ms:g} ms a row",
        "",
        "| rows | kept as | second level / local cache | model / second level | model / local cache |",
        "| ---: | --- | ---: | ---: | ---: |",
    ]
    for (route, rows), rounds in found.items():
        pairs = (("second", "local"), ("model", "second"), ("model", "local"))
        ratios = [[each[one] / each[other] for each in rounds] for one, other in pairs]
        cells = [f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})" for each in ratios]
        lines.append(f"| {rows} | {route} | {' | '.join(cells)} |")
    return "\n".join(lines)


def configuration(triton: TritonServer, redis: RedisServer) -> dict[str, ConfigValue]:
    """A gateway with a route that keeps nothing and, for each of `KEEPING`, one that shares what it keeps."""
    tiers: Sequence[ConfigValue] = [{"backend": "b", "model": MODEL}]
    routes: dict[str, ConfigValue] = {"alone": {"tiers": tiers}}
    for name in KEEPING:
        cache = {"ttl": "1h", "rows": name == "rows", "second": redis.url, "second_timeout": "1s"}
        routes[name] = {"tiers": tiers, "cache": cache}
    return {"backends": {"b": {"http": [triton.http_url]}}, "routes": routes}


def run(options: argparse.Namespace, triton: TritonServer) -> tuple[str, list[str]]:
    """The table, and what was wrong."""
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        gateways = [stack.enter_context(GatewayProcess(configuration(triton, redis))) for _ in range(2)]
        for gateway in gateways:
            until(lambda gateway=gateway: gateway.metric("tailrace_second_used") == len(KEEPING))
        bench = Bench(*map(Caller, gateways), options)
        return table(bench, options), bench.wrong


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.second", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 100], help="of a batch (default: 1 and 100)")
    parser.add_argument("--row-ms", type=float, default=0.5, help="milliseconds that a row takes (default: 0.5)")
    parser.add_argument("--requests", type=int, default=30, help="of each kind in each round (default: 30)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=7)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 if any answer was wrong, or from elsewhere."""
    options = parsed(arguments)
    print("starting Triton, Redis and two gateways", file=sys.stderr)
    with TritonServer(TritonOptions((MODELS,)), find_environment()) as triton:
        told, wrong = run(options, triton)
    print(told)
    for each in wrong[:10]:
        print(f"wrong: {each}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
