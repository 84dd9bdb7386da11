"""``python -m benchmarks.siege``: what hostile clients of a door do to the p99 of its other callers.

Rule of this file: the siege is a process of its own, so that it takes nothing from the callers who are timed but what
it takes from the gateway (and from the cores). Rounds without and with it alternate before the same gateway; every
answer is compared.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import perf_counter
from typing import Final

import msgpack
from grpc import aio
from tritonclient.grpc import service_pb2 as pb

from benchmarks import facts, hostile
from benchmarks.growth.axes import config
from benchmarks.peers.upstream import static
from benchmarks.questions import question, wire
from benchmarks.report import Spread, rows, spread, told
from benchmarks.scenarios import MODEL, SMALL
from examples.gatewayprocess import GatewayProcess

IDLE: Final = 2000
SLOW: Final = 200
DEAF: Final = 4
UNREAD: Final = 20_000
"""Small answers that each of those does not read: more than the buffers on the way take."""
SETTLING_SECONDS: Final = 3.0
"""Until a siege is what it will be: connections open, buffers full."""
FLOODING: Final = 4
"""Connections that are opened and closed without end, at once."""
CALLERS: Final = 4
"""Who are timed: one after the other on a connection each."""
WARM_SECONDS: Final = 0.5
READY: Final = "under siege"
DOORS: Final = ("http", "grpc", "rpc")
KINDS: Final = ("idle", "slow", "deaf", "flood")

Ask = Callable[[], Awaitable[bytes]]


class Wrong(RuntimeError):
    """An answer was not the first one's."""


# -- the siege ---------------------------------------------------------------------------------------------------


async def besiege(kind: str, door: str, address: str) -> None:
    """Until it is ended; says READY when all are there."""
    if kind == "flood":
        tasks = [asyncio.create_task(_flood(address)) for _ in range(FLOODING)]
    else:
        manner, count = _manner(kind, door), {"idle": IDLE, "slow": SLOW, "deaf": DEAF}[kind]
        tasks = [asyncio.create_task(_again(address, manner)) for _ in range(count)]
    await asyncio.sleep(0.0 if kind == "flood" else SETTLING_SECONDS)  # a flood is what it is at once
    print(READY, flush=True)
    await asyncio.gather(*tasks)


def _manner(kind: str, door: str) -> hostile.Manner:
    """Of a crowd. The bench's model gives ten values whatever it is asked, so that many must go unread."""
    ways: Mapping[str, hostile.Manner] = {"http": hostile.http, "grpc": hostile.grpc, "rpc": hostile.rpc}[door](MODEL)
    if door == "grpc":
        return ways[{"idle": "answers no ping", "slow": "message", "deaf": "takes no answer"}[kind]]
    if kind == "deaf":
        sent = wire(question(SMALL, 1), MODEL, 0).text if door == "http" else _call()
        return hostile.Manner(("write_timeout",), UNREAD * sent, deaf=True, nudge=sent)
    return ways[{"idle": "silent", "slow": "body"}[kind]]


def _call() -> bytes:
    asked = question(SMALL, 1)
    tensor = {"name": "x", "shape": [1, SMALL], "datatype": "FP32", "data": asked.body[asked.json_bytes :]}
    packed: bytes = msgpack.packb([0, 1, "infer", [{"model": MODEL, "inputs": [tensor]}]])
    return packed


async def _again(address: str, manner: hostile.Manner) -> None:
    while True:
        with contextlib.suppress(OSError):
            await hostile.until_cut(address, manner)


async def _flood(address: str) -> None:
    host, _, port = address.rpartition(":")
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.transport.abort()


@contextlib.contextmanager
def siege(kind: str, door: str, address: str):  # type: ignore[no-untyped-def]  # a context manager of nothing
    """A process that besieges a door."""
    line = [sys.executable, "-m", "benchmarks.siege", "--besiege", kind, door, address]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != READY:
                raise Wrong("the siege did not begin")
            yield
        finally:
            process.send_signal(signal.SIGKILL)


# -- who is timed ------------------------------------------------------------------------------------------------


async def asker(door: str, address: str) -> Ask:
    """Asks the same hit again and again, on a connection of its own."""
    host, _, port = address.rpartition(":")
    asked = question(SMALL, 1)
    tensor = asked.body[asked.json_bytes :]
    if door == "grpc":
        channel = aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        message = pb.ModelInferRequest(model_name=MODEL)
        message.inputs.add(name="x", datatype="FP32", shape=[1, SMALL])
        message.raw_input_contents.append(tensor)
        call, data = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer"), message.SerializeToString()

        async def by_grpc() -> bytes:
            answer: bytes = await call(data)
            return answer

        return by_grpc
    reader, writer = await asyncio.open_connection(host, int(port))
    if door == "http":
        sent = wire(asked, MODEL, 0).text

        async def by_http() -> bytes:
            writer.write(sent)
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.partition(b"\r\nContent-Length: ")[2].split(b"\r\n")[0]
            body = await reader.readexactly(int(length))
            return head[:12] + body

        return by_http
    packed = _call()

    async def by_rpc() -> bytes:
        unpacker = msgpack.Unpacker()
        writer.write(packed)
        while data := await reader.read(65536):
            unpacker.feed(data)
            for _, _, error, result in unpacker:
                if error is not None:
                    raise Wrong(str(error))
                found: bytes = result["outputs"][0]["data"]
                return found
        raise Wrong("the connection was closed")

    return by_rpc


async def p99(asking: Sequence[Ask], seconds: float) -> float:
    """Microseconds."""
    took: list[float] = []
    end = perf_counter() + seconds

    async def one(ask: Ask) -> None:
        right = await ask()
        began = perf_counter()
        while began < end or not took:  # one at least, however short the time
            if await ask() != right:
                raise Wrong("another answer than the first")
            took.append(perf_counter() - began)
            began = perf_counter()

    await asyncio.gather(*(one(ask) for ask in asking))
    took.sort()
    return took[int(len(took) * 0.99)] * 1e6


async def measured(kind: str, door: str, address: str, rounds: int, seconds: float) -> tuple[Spread, Spread, Spread]:
    """p99 without and with the siege, and the ratio of each round."""
    asking = [await asker(door, address) for _ in range(CALLERS)]
    await p99(asking, WARM_SECONDS)
    found: dict[bool, list[float]] = {False: [], True: []}
    for number in range(rounds):
        for is_there in (False, True) if number % 2 == 0 else (True, False):
            with siege(kind, door, address) if is_there else contextlib.nullcontext():
                found[is_there].append(await p99(asking, seconds))
    ratios = [with_it / without for with_it, without in zip(found[True], found[False], strict=True)]
    return spread(found[False]), spread(found[True]), spread(ratios)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 measured, 1 something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.siege", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kinds", nargs="*", default=[*KINDS], metavar="KIND", help=f"some of {', '.join(KINDS)}")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of each (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="length of each run (default 2)")
    parser.add_argument("--besiege", nargs=3, metavar=("KIND", "DOOR", "ADDRESS"), help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if unknown := [kind for kind in parsed.kinds if kind not in KINDS]:
        parser.error(f"no kind {unknown[0]!r}; there are {', '.join(KINDS)}")
    facts.allow_files(IDLE + 1000)
    if parsed.besiege:
        asyncio.run(besiege(*parsed.besiege))
        return 0
    cells = []
    text = f"[server]\nconnections_max = {2 * IDLE}\nconnections_per_address_max = {2 * IDLE}\n"
    try:
        with static() as upstream, GatewayProcess(text + config(upstream.url), ("--rpc", "127.0.0.1:0")) as gateway:
            addresses = {"http": gateway.http_address, "grpc": gateway.grpc_address, "rpc": gateway.rpc_address}
            for kind in parsed.kinds:
                for door in DOORS:
                    run = measured(kind, door, addresses[door], parsed.rounds, parsed.seconds)
                    without, with_it, ratio = asyncio.run(run)
                    cells.append([kind, door, told(without), told(with_it), told(ratio, 2)])
    except (Wrong, OSError) as error:
        print(f"wrong: {error}", file=sys.stderr)
        return 1
    print(f"{IDLE:,} idle; {SLOW} sending byte by byte; {DEAF} reading nothing; {FLOODING} opening and closing.\n")
    print(rows(["siege", "door", f"p99 of {CALLERS} callers, µs", "besieged", "ratio"], cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
