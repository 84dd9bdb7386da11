"""Overload at 1, 2, 4 and 8 times capacity, and a noisy tenant at 50 times its share: the gateway beside bare Triton.

Two real Tritons with a model of known cost (eight instances that sleep 320 ms: 25 answers a second, whatever else the
machine does), one bare, one behind a gateway; the same callers ask both, in turns, in one run. An answer is of use
within two seconds. A fifth of the capacity is asked by one caller of high priority; the rest by four others.

    make bench-overload                          some five minutes
    python -m benchmarks.overload --seconds 20 --loads 1 8
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.facts import machine
from benchmarks.overload.load import Stream, Target, run
from benchmarks.overload.report import Line, line, middle, recovered, table
from examples.gatewayprocess import GatewayProcess
from examples.tritonserver import TritonOptions, TritonServer, find_environment

MODELS: Final = Path(__file__).parent / "models"
RESULTS: Final = Path(__file__).parent.parent / "results"
MODEL: Final = "steady"
CAPACITY: Final = 25.0
"""Answers a second that the model can give: eight instances, 320 ms each."""
DEADLINE: Final = 2.0
HIGH_SHARE: Final = 0.2
QUIET_SHARE: Final = 0.16
"""Of the capacity, each of three tenants that a noisy one is beside."""
NOISY_TIMES: Final = 50.0
"""What the noisy tenant asks, in its fair share of the capacity (a fourth)."""
OTHERS: Final = ("ann", "bob", "cat", "dan")
LATER_SECONDS: Final = 10.0
"""How long recovery is looked for."""
WARM_SECONDS: Final = 3.0
"""Of asking before anything counts: a model's first answers take longer."""
SYSTEMS: Final = ("gateway", "bare Triton")


def key_of(name: str) -> str:
    return f"bench-key-of-{name}"


def configuration(url: str, gain: float) -> dict[str, object]:
    """A gateway as an operator has it: callers with keys, one of them of high priority; all else is default."""
    callers: dict[str, object] = {
        name: {"key_sha256": hashlib.sha256(key_of(name).encode()).hexdigest(), "tenant": name}
        for name in ("vip", *OTHERS)
    }
    callers["vip"] = {**callers["vip"], "priority": "high"}  # type: ignore[dict-item]
    return {
        "callers": callers,
        "backends": {"b": {"http": [url], "concurrency": {"gain": gain}}},
        "routes": {MODEL: {"tiers": [{"backend": "b", "model": MODEL}], "timeout": f"{DEADLINE:g}s"}},
    }


def streams(times: float) -> list[Stream]:
    """So many times the capacity: the caller of high priority, and four others who ask alike."""
    high = HIGH_SHARE * CAPACITY
    rest = (times * CAPACITY - high) / len(OTHERS)
    return [Stream("vip", high, key_of("vip")), *[Stream(name, rest, key_of(name)) for name in OTHERS]]


def tenants(noisy: bool) -> list[Stream]:
    """Three tenants well within their shares, and one far above."""
    quiet = [Stream(name, QUIET_SHARE * CAPACITY, key_of(name)) for name in OTHERS[:3]]
    loud = Stream(OTHERS[3], NOISY_TIMES * CAPACITY / 4, key_of(OTHERS[3]))
    return [*quiet, loud] if noisy else quiet


class Bench:
    """Two Tritons and a gateway, and what was seen of them."""

    def __init__(self, options: argparse.Namespace, bare: TritonServer, gateway: GatewayProcess) -> None:
        self.options = options
        self.bare = bare
        self.gateway = gateway
        self.lines: list[Line] = []
        self.usual: dict[str, float] = {}
        self.medians: dict[str, float] = {}
        self.limits: dict[str, float] = {}
        self._seed = options.seed

    def ask(self, system: str, asked: Sequence[Stream], seconds: float) -> list:
        """One run."""
        url = self.gateway.http_url if system == "gateway" else self.bare.http_url
        self._seed += 1
        target = Target(url.rstrip("/"), MODEL, DEADLINE)
        return asyncio.run(run(target, asked, seconds, self._seed))

    def unloaded(self) -> None:
        """The caller of high priority alone."""
        alone = [streams(1.0)[0]]
        for system in SYSTEMS:
            self.ask(system, alone, WARM_SECONDS)
            told = self.ask(system, alone, self.options.seconds)
            found = line(system, "unloaded", told, self.options.seconds, ("vip",))
            self.usual[system], self.medians[system] = found.p99, found.p50
            self._keep(found)

    def overloaded(self, times: float) -> None:
        """One load for each system, and what comes after it."""
        for system in random.Random(f"{self.options.seed} {times}").sample(SYSTEMS, len(SYSTEMS)):
            told = self.ask(system, streams(times), self.options.seconds)
            if system == "gateway":
                self.limits[f"{times:g}"] = self.gateway.metric("tailrace_concurrency_limit", model=MODEL)
            later = self.ask(system, [streams(1.0)[0]], LATER_SECONDS)
            found = line(system, f"{times:g} times", told, self.options.seconds, ("vip",))
            self._keep(msgspec.structs.replace(found, recovery=recovered(later, self.medians[system])))
            self._renew(system)

    def noisy(self) -> None:
        """Three tenants alone, and beside a noisy one."""
        spared = OTHERS[:3]
        for system in SYSTEMS:
            for loud in (False, True):
                told = self.ask(system, tenants(loud), self.options.seconds)
                said = "3 tenants and a noisy one" if loud else "3 tenants"
                theirs = [each for each in told if each.stream in spared]
                found = line(system, said, theirs, self.options.seconds, spared)
                found = msgspec.structs.replace(found, outcomes=line(system, said, told, 1.0, spared).outcomes)
                self._keep(found)
            self._renew(system)

    def _keep(self, found: Line) -> None:
        self.lines.append(found)
        said = f"{found.load} {found.system}: {found.goodput:.1f}/s, p99 {found.p99:.3f} s"
        print(said, file=sys.stderr, flush=True)

    def _renew(self, system: str) -> None:
        """A bare Triton works on what nobody waits for any more, for minutes; the next run begins with a new one."""
        if system == "bare Triton":
            self.bare.restart()
            self.ask(system, [streams(1.0)[0]], WARM_SECONDS)


def verdicts(bench: Bench) -> list[str]:
    """What must show, and whether it does."""
    of = {(each.system, each.load): each for each in bench.lines}
    found = []
    loads = [each for each in bench.lines if each.system == "gateway" and each.load.endswith("times")]
    if loads:
        peak = max(each.goodput for each in loads)
        last = loads[-1]
        ratio = last.p99 / bench.usual["gateway"]
        found.append(f"goodput at {last.load} is {last.goodput / peak:.0%} of its peak (at least 90 %)")
        found.append(f"p99 of high priority at {last.load} is {ratio:.2f} times its unloaded value (at most 2)")
        slowest = max(each.recovery for each in loads)
        found.append(f"normal again {slowest:.1f} s after a load's end at the latest (within 5 s)")
    if ("gateway", "3 tenants") in of:
        alone, beside = of["gateway", "3 tenants"], of["gateway", "3 tenants and a noisy one"]
        times = beside.p99 / alone.p99
        found.append(f"p99 of three tenants beside a noisy one is {times:.2f} times theirs (at most 1.5)")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 if any answer was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overload", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load (default: 15)")
    parser.add_argument("--loads", type=float, nargs="*", default=[1.0, 2.0, 4.0, 8.0], help="times the capacity")
    parser.add_argument("--no-tenants", action="store_true", help="leave the noisy tenant out")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIRECTORY")
    parser.add_argument("--gain", type=float, default=0.07, help="backends.NAME.concurrency.gain (default: 0.07)")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args(arguments)
    print("starting two Tritons and a gateway", file=sys.stderr)
    environment = find_environment()
    before = machine()
    with (
        TritonServer(TritonOptions((MODELS,)), environment) as bare,
        TritonServer(TritonOptions((MODELS,)), environment) as behind,
        GatewayProcess(configuration(behind.http_url, options.gain)) as gateway,  # type: ignore[arg-type]
    ):
        bench = Bench(options, bare, gateway)
        bench.unloaded()
        for times in options.loads:
            bench.overloaded(times)
        if not options.no_tenants:
            bench.noisy()
    text = _text(bench, before)
    print(text)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "overload.md").write_text(text + "\n")
    told = {"machine": before, "limits": bench.limits, "lines": [msgspec.to_builtins(each) for each in bench.lines]}
    (options.results / "overload.json").write_text(json.dumps(_finite(told), indent=1) + "\n")
    return 1 if any(each.outcomes.get("wrong") for each in bench.lines) else 0


def _text(bench: Bench, before: dict[str, str]) -> str:
    def peak(system: str) -> float:
        return max([each.goodput for each in bench.lines if each.system == system and "times" in each.load],
        default=0.0)

    peaks = {system: peak(system) for system in SYSTEMS}
    limits = ", ".join(f"{limit:.0f} at {times} times" for times, limit in bench.limits.items())
    median = middle(bench.limits.values())
    return "\n".join(
        [
            "# Overload: the gateway beside bare Triton",
            "",
            f"`make bench-overload`, {bench.options.seconds:g} s of each load, on {before['processor']}, "
            f"{before['cores']} cores, load before {before['load before']}. Eight instances of 320 ms: {CAPACITY:g}/s; "
            f"deadline {DEADLINE:g} s, concurrency.gain {bench.options.gain:g}. Spared: who has high priority; in the "
            "last lines, the three tenants.",
            "",
            table(bench.lines, peaks, bench.usual),
            "",
            f"The limiter's limit at the end of each load: {limits} (median {median:.0f}; 8 keep the model busy).",
            "",
            *[f"- {said}" for said in verdicts(bench)],
        ]
    )


def _finite(value: object) -> object:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
