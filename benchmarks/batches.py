"""What rows save: batches of which most rows are known, beside the same batches by a route that keeps nothing.

A real Triton with a model that takes a stated time for each row; two routes of one gateway to it, one of which keeps
rows. In each round both are asked for the same new batches, in turns, and every answer is compared with the other's,
value by value; the gateway's own count says how many rows it asked for (tests hold it against Triton's).

    make bench-rows                     batches of 100 rows, a row taking half a millisecond
    python -m benchmarks.batches --rows 256 --row-ms 1 --rounds 9
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from msgspec import Struct
from tritonclient import http as client

from examples.gatewayprocess import GatewayProcess
from examples.tritonserver import TritonOptions, TritonServer, find_environment

MODELS: Final = Path(__file__).resolve().parent.parent / "tests" / "models"
MODEL: Final = "rowwise"
KNOWN_SHARES: Final = (0.0, 0.5, 0.9, 1.0)
WIDTH: Final = 8
ROUTES: Final = ("whole", "rows")


class Asked(Struct, frozen=True):
    """One batch by one route: seconds, its answer, and the rows that the models were asked for."""

    seconds: float
    answer: list[object]
    rows: int


def ask(
    asking: client.InferenceServerClient, gateway: GatewayProcess, route: str, rows: np.ndarray, row_ms: float
) -> Asked:
    """One batch: int64 [rows, WIDTH]."""
    tensor = client.InferInput("int64_in", list(rows.shape), "INT64")
    tensor.set_data_from_numpy(rows)
    before = gateway.metric("tailrace_tier_rows_total", route=route)
    began = time.perf_counter()
    answer = asking.infer(route, [tensor], parameters={"row_ms": row_ms})
    seconds = time.perf_counter() - began
    told = [answer.as_numpy("int64_out").tolist(), answer.as_numpy("said").tolist()]
    return Asked(seconds, told, int(gateway.metric("tailrace_tier_rows_total", route=route) - before))


def run(options: argparse.Namespace, gateway: GatewayProcess) -> int:
    """All shares in every round; prints the table. Returns how many answers were wrong."""
    asking = client.InferenceServerClient(gateway.http_address, network_timeout=60.0)
    chance = random.Random(options.seed)
    ratios: dict[float, list[float]] = {share: [] for share in KNOWN_SHARES}
    sent: dict[float, set[int]] = {share: set() for share in KNOWN_SHARES}
    wrong = 0
    for number in range(options.rounds):
        if sys.stderr.isatty():
            print(f"round {number + 1} of {options.rounds}", end="\r", file=sys.stderr, flush=True)
        for share in chance.sample(KNOWN_SHARES, len(KNOWN_SHARES)):
            batch = np.frombuffer(chance.randbytes(options.rows * WIDTH * 8), np.int64).reshape(options.rows, WIDTH)
            known = round(options.rows * share)
            if known:
                ask(asking, gateway, "rows", batch[:known], options.row_ms)
            batch = batch[np.array(chance.sample(range(options.rows), options.rows))]
            order = chance.sample(ROUTES, len(ROUTES))
            told = {route: ask(asking, gateway, route, batch, options.row_ms) for route in order}
            wrong += told["rows"].answer != told["whole"].answer
            ratios[share].append(told["whole"].seconds / told["rows"].seconds)
            sent[share].add(told["rows"].rows)
    print(f"{options.rows} rows of {WIDTH} INT64, {options.row_ms:g} ms a row, {options.rounds} rounds\n")
    print("| rows known | rows sent to Triton | times as fast as without (median, range) |\n|---:|---:|---:|")
    for share, times in ratios.items():
        counts = " or ".join(map(str, sorted(sent[share])))
        middle = statistics.median(times)
        print(f"| {share:.0%} | {counts} | {middle:.2f} ({min(times):.2f} to {max(times):.2f}) |")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 if any answer was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batches", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100, help="of a batch, up to 256 (default: 100)")
    parser.add_argument("--row-ms", type=float, default=0.5, help="milliseconds that a row takes (default: 0.5)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args(arguments)
    tiers = [{"backend": "b", "model": MODEL}]
    cache = {"ttl": "1h", "rows": True}
    print("starting Triton and a gateway", file=sys.stderr)
    with TritonServer(TritonOptions((MODELS,)), find_environment()) as triton:
        config = {
            "backends": {"b": {"http": [triton.http_url]}},
            "routes": {"whole": {"tiers": tiers}, "rows": {"tiers": tiers, "cache": cache}},
        }
        with GatewayProcess(config) as gateway:
            wrong = run(options, gateway)
    if wrong:
        print(f"\n{wrong} answers were not those of the whole batch")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
