"""Whether the world agrees with a configuration: this process, the backends, what their models are, second levels.

Rule of this file: it asks and tells, and changes nothing. Asking (``survey``, asynchronous) is apart
from judging (``environment_faults``, ``route_faults``: pure), and everything wrong comes in one list.
The gateway itself does not need a single backend to start; ``tailrace check`` is for people and CI.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import resource
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from cache.stores.store import StoreError
from degrade.deadline import Deadline, Ticker
from gateway import sharing
from gateway.config import Config, Route, TierConfig
from gateway.config_backends import Backend
from gateway.config_server import Server
from gateway.default import misfits
from gateway.doors import certificates
from gateway.doors.listener import ADMIN_CONNECTIONS_MAX, ParserMissing, require_strict_parser
from gateway.homes import grpc_options, probe_of
from gateway.learning import merged_facts
from gateway.sources import GRPC_SCHEME
from gateway.units import Size
from tiers.backends.call import Call
from tiers.backends.triton_http import ASKING_CONNECTIONS_MAX, PROBING_CONNECTIONS_MAX, TritonHttp, TritonOptions
from tiers.catalog import Catalog, CatalogOptions
from tiers.datatype import FLOATS
from tiers.facts import ModelFacts
from tiers.inference import Rejected, UpstreamError
from tiers.seat import Replica
from tiers.watch import NOT_SPOKEN, READY_PATH, Probe

SPARE_FILES: Final = 64
"""Open files beside connections: listeners, logs, the interpreter's own."""
GRPC_CONNECTIONS: Final = 4
"""To each replica over gRPC: for routes, for what passes through, for streams, and for probes."""
ANSWER_SECONDS_MAX: Final = 5.0
NOT_NUMBERS: Final = frozenset({"BYTES", "BOOL"})


class Survey(msgspec.Struct, frozen=True):
    """What the backends said: faults, the facts of each (backend, model, version) that answered, and notes of what
    is no fault."""

    faults: tuple[str, ...]
    facts: Mapping[tuple[str, str, str], ModelFacts]
    notes: tuple[str, ...] = ()


class Findings(msgspec.Struct, frozen=True):
    """Everything wrong, and what an operator should know all the same."""

    faults: tuple[str, ...]
    notes: tuple[str, ...] = ()


async def findings(config: Config, offline: bool = False) -> Findings:
    """What is found between ``config`` and the world; ``offline`` asks no backend."""
    found = [*environment_faults(config, resource.getrlimit(resource.RLIMIT_NOFILE)[1]), *snapshot_faults(config)]
    notes = tuple(_beyond(config))
    if offline:
        return Findings(tuple(found), notes)
    asked = survey(config), table_faults(config), sharing.faults(config, ANSWER_SECONDS_MAX)
    surveyed, tables, seconds = await asyncio.gather(*asked)
    found += (*surveyed.faults, *tables, *seconds)
    for name, route in config.routes.items():
        found += route_faults(f"routes.{name}", route, surveyed.facts)
    return Findings(tuple(found), (*notes, *surveyed.notes))


def _beyond(config: Config) -> Iterator[str]:
    """Bounds of concurrency that the connections cannot come to. No faults: a reload must take a broken replica out,
    whatever was written for two."""
    for name, backend in config.backends.items():
        replicas = len(backend.http) or len(backend.grpc)
        for key, said in backend.concurrency.beyond(replicas, backend.connections_max):
            yield f"backends.{name}.concurrency.{key}: {said}"


async def table_faults(config: Config) -> list[str]:
    """Which tables' stores do not answer, and why. The stores' libraries are loaded only where there are tables."""
    if not config.tables:
        return []
    from gateway.stores import Source, Sources

    sources = Sources(time.monotonic)
    made = {name: sources.source(table) for name, table in config.tables.items()}

    async def fault_of(name: str, source: Source) -> str:
        try:
            await source.store.get_many(source.keyed.keys([b"0"]), ANSWER_SECONDS_MAX)
        except StoreError as error:
            return f"tables.{name}.store: {error}"
        return ""

    told = await asyncio.gather(*(fault_of(name, source) for name, source in made.items()))
    await asyncio.gather(*(source.store.close() for source in made.values()))
    return [fault for fault in told if fault]


def snapshot_faults(config: Config) -> Iterator[str]:
    """Why copies could not be kept where the configuration wants them. Makes nothing."""
    if config.snapshot is None:
        return
    path = Path(config.snapshot.path)
    there = next((each for each in (path, *path.absolute().parents) if each.exists()), Path("/"))
    if not there.is_dir():
        yield f"snapshot.path: {there} is there, and is no directory"
    elif not os.access(there, os.W_OK | os.X_OK):
        yield f"snapshot.path: this user may not write to {there}"
    else:
        free, wanted = shutil.disk_usage(there).free, int(config.snapshot.bytes_max)
        held = sum(each.stat().st_size for each in path.glob("*.mdb")) if path.is_dir() else 0
        if free + held < wanted:
            yield f"snapshot.bytes_max: is {config.snapshot.bytes_max}, and {there} has {Size(free)} free"


def open_files_needed(config: Config) -> int:
    """How many files a full gateway has open: callers, replicas, and a few of its own."""
    asking = ASKING_CONNECTIONS_MAX + PROBING_CONNECTIONS_MAX
    upstream = sum(
        (backend.connections_max + backend.passthrough_connections_max + asking) * len(backend.http)
        for backend in config.backends.values()
    )
    upstream += sum(GRPC_CONNECTIONS * len(backend.grpc) for backend in config.backends.values())
    doors = 1 + config.server.has_grpc + (config.server.rpc is not None)
    return doors * config.server.connections_max + ADMIN_CONNECTIONS_MAX + upstream + SPARE_FILES


def raise_open_files(config: Config) -> str:
    """Lift this process's soft limit to what is needed, as far as the hard limit lets it; what is wrong if that is
    not enough, or else nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = open_files_needed(config)
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return open_files_fault(config, hard)


def open_files_fault(config: Config, hard: int) -> str:
    """Why a full gateway cannot open all of its files under this hard limit; nothing if it can."""
    needed = open_files_needed(config)
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return ""
    return (
        f"open files: {needed} are needed (server.connections_max is {config.server.connections_max}; connections_max "
        f"and passthrough_connections_max of every replica) and the hard limit is {hard}; "
        "raise it (ulimit -Hn, LimitNOFILE) or lower those keys"
    )


def environment_faults(config: Config, files_hard_limit: int, clock: Ticker = time.time) -> Iterator[str]:
    """What is wrong with this process. The soft limit on files is not asked: serving lifts it. ``clock``: seconds since
    1970."""
    try:
        require_strict_parser()
    except ParserMissing as missing:
        yield str(missing)
    if importlib.util.find_spec("uvloop") is None:
        yield "uvloop: is not installed"
    yield from certificates.faults(config.server.tls)
    yield from certificates.doubts(config.server.tls, clock())
    fault = open_files_fault(config, files_hard_limit)
    if fault:
        yield fault


async def survey(config: Config, now: Ticker = time.monotonic) -> Survey:
    """Ask every replica whether it is ready, and about every model that a route's tier names."""
    wanted: dict[str, list[tuple[str, str]]] = {name: [] for name in config.backends}
    for route in config.routes.values():
        for tier in route.tiers:
            if (tier.model, tier.version) not in wanted[tier.backend]:
                wanted[tier.backend].append((tier.model, tier.version))
    found: list[str] = []
    notes: list[str] = []
    facts: dict[tuple[str, str, str], ModelFacts] = {}
    replicas = [(name, url) for name, backend in config.backends.items() for url in _urls(backend, config.server)]
    answers = await asyncio.gather(*(_replica(config, name, url, wanted[name], now) for name, url in replicas))
    for (name, url), answer in zip(replicas, answers, strict=True):
        found += [f"backends.{name}: {url}: {problem}" for problem in answer.problems]
        notes += [f"backends.{name}: {url}: {answer.note}"] if answer.note else []
        for (model, version), told in answer.models.items():
            first = facts.setdefault((name, model, version), told)
            found += [
                f"backends.{name}: {url}: model {model} is not the one of the other replicas: {difference}"
                for difference in _differences(first, told)
            ]
    return Survey(tuple(found), facts, tuple(notes))


def _urls(backend: Backend, server: Server) -> list[str]:
    """The replicas as they will be asked: over gRPC too, if that is used."""
    asked = server.has_grpc or not backend.http
    return [*backend.http, *(f"{GRPC_SCHEME}{target}" for target in backend.grpc if asked)]


def _asked(url: str, backend: Backend, server: Server) -> Replica:
    if not url.startswith(GRPC_SCHEME):
        return TritonHttp(url, TritonOptions(connect_timeout=float(backend.connect_timeout)))
    from tiers.backends.triton_grpc import TritonGrpc

    return TritonGrpc(url.removeprefix(GRPC_SCHEME), grpc_options(backend, server))


class _Said(msgspec.Struct):
    """What one replica said: what is wrong, its models, and what is odd."""

    problems: list[str]
    models: dict[tuple[str, str], ModelFacts] = {}
    note: str = ""


async def _replica(config: Config, name: str, url: str, models: list[tuple[str, str]], now: Ticker) -> _Said:
    probe = Probe() if url.startswith(GRPC_SCHEME) else probe_of(config.backends[name], config.has_models(name))
    facts: dict[tuple[str, str], ModelFacts] = {}
    async with contextlib.AsyncExitStack() as opened:
        replica = _asked(url, config.backends[name], config.server)
        opened.push_async_callback(replica.close)
        catalog = Catalog((replica,), CatalogOptions(load_timeout=ANSWER_SECONDS_MAX), now, lambda _: None)
        opened.push_async_callback(catalog.close)

        async def status_of(target: str) -> int:
            deadline = Deadline.after(now(), ANSWER_SECONDS_MAX)
            return (await replica.exchange(Call("GET", target), deadline, now())).status

        try:
            status = await status_of(probe.path)
        except (UpstreamError, Rejected) as error:
            return _Said([str(error).removeprefix(f"{url} ")])
        problems, note = _judged(probe, status)
        for model, version in models:
            path = f"/v2/models/{quote(model, safe='')}" + (f"/versions/{version}" if version else "")
            named = f"model {model}" + (f" version {version}" if version else "")
            try:
                if await status_of(f"{path}/ready") != 200:
                    problems.append(f"{named} is not ready there, or not known")
                    continue
                deadline = Deadline.after(now(), ANSWER_SECONDS_MAX)
                facts[model, version] = await catalog.facts(model, version, deadline)
            except (UpstreamError, Rejected) as error:
                problems.append(f"{named}: {error}")
    return _Said(problems, facts, note)


def _judged(probe: Probe, status: int) -> tuple[list[str], str]:
    """What is wrong with a replica that answers its probe like this, and what is odd about it."""
    said = f"{probe.path} answers {status}"
    if probe.is_ready(status):
        odd = status in NOT_SPOKEN
        advice = "everything passes through; say what tells its health in probe_path"
        return [], f"lives, and is no Triton ({said}): {advice}" if odd else ""
    absent = probe.path == READY_PATH and status in NOT_SPOKEN
    why = f"is no Triton ({said}), and routes ask it for models" if absent else f"is not ready ({said})"
    return [why], ""


def route_faults(path: str, route: Route, facts: Mapping[tuple[str, str, str], ModelFacts]) -> Iterator[str]:
    """What is wrong between a route and its models, and between the models of its tiers.

    A tier whose model did not answer is left out: the survey has said so already.
    """
    known: list[tuple[str, TierConfig, ModelFacts]] = []
    for index, tier in enumerate(route.tiers):
        told = facts.get((tier.backend, tier.model, tier.version))
        if told is not None:
            known.append((f"{path}.tiers[{index}]", tier, told))
    for where, tier, told in known:
        yield from _tier_faults(where, tier, told, route)
    for where, _, told in known[1:]:
        first = known[0][2]
        for difference in _differences(first, told):
            yield f"{where}: model {told.name} cannot stand in for {first.name}: {difference}"
        most = min(route.limits.batch_max or first.max_batch, first.max_batch)
        if told.max_batch == 0 and most > 0:
            yield (
                f"{where}: model {told.name} takes no batches, and {first.name} lets {most} rows in, which may all "
                "escalate; give that tier a model that batches"
            )
        elif told.max_batch < most:
            yield (
                f"{where}: model {told.name} takes batches of {told.max_batch}, and {first.name} lets "
                f"{most} rows in, which may all escalate; set {path}.limits.batch_max = {told.max_batch}"
            )
    if known:
        yield from _input_faults(path, route, known[0][2])
        merged = merged_facts(known[0][2].name, [told for _, _, told in known])
        for key, why in misfits(path, route.default, merged) if route.default else ():
            yield f"{key}: {why}"


def _tier_faults(where: str, tier: TierConfig, told: ModelFacts, route: Route) -> Iterator[str]:
    if told.decoupled:
        yield f"{where}: model {told.name} is decoupled; only pass-through serves such models"
    if told.sequence and (route.cache is not None or len(route.tiers) > 1):
        yield f"{where}: model {told.name} keeps state between requests: no cache, and no second tier"
    if route.cache is not None and route.cache.rows and told.max_batch < 1:
        yield f"{where}: cache.rows is on, and model {told.name} takes no batches"
    batch_max = route.limits.batch_max
    if batch_max is not None and batch_max > max(told.max_batch, 1):
        yield f"{where}: limits.batch_max is {batch_max}, and model {told.name} takes {told.max_batch}"
    if tier.accept is None:
        return
    output = next((entry for entry in told.outputs if entry.name == tier.accept.output), None)
    if output is None:
        names = ", ".join(entry.name for entry in told.outputs)
        yield f"{where}.accept.output: model {told.name} has no output {tier.accept.output!r}; it has {names}"
    elif output.datatype not in FLOATS:
        yield f"{where}.accept.output: {output.name} is {output.datatype}, and a rule needs floats"
    elif tier.accept.rule == "margin" and output.shape and output.shape[-1] == 1:
        yield f"{where}.accept.rule: a margin needs two values a row, and {output.name} has one"


def _input_faults(path: str, route: Route, told: ModelFacts) -> Iterator[str]:
    inputs = {entry.name: entry for entry in told.inputs}
    for name, rule in route.inputs.items():
        entry = inputs.get(name)
        if entry is None:
            yield f"{path}.inputs.{name}: model {told.name} has no such input; it has {', '.join(inputs)}"
        elif entry.datatype in NOT_NUMBERS and (rule.min is not None or rule.max is not None):
            yield f"{path}.inputs.{name}: is {entry.datatype}, which has no min or max"
        elif entry.datatype != "BYTES" and rule.element_bytes_max is not None:
            yield f"{path}.inputs.{name}.element_bytes_max: is for BYTES, and this is {entry.datatype}"


def _differences(one: ModelFacts, other: ModelFacts) -> Iterator[str]:
    """Why ``other`` cannot answer what ``one`` is asked, in the same form."""
    for kind, ours, theirs in (
        ("input", one.inputs, other.inputs),
        ("output", one.outputs, other.outputs),
    ):
        left, right = {entry.name: entry for entry in ours}, {entry.name: entry for entry in theirs}
        for name in sorted(left.keys() ^ right.keys()):
            if not (left.get(name) or right[name]).optional:
                yield f"only {one.name if name in left else other.name} has {kind} {name}"
        for name in sorted(left.keys() & right.keys()):
            a, b = left[name], right[name]
            if a.datatype != b.datatype:
                yield f"{kind} {name} is {a.datatype} and {b.datatype}"
            elif not _shapes_meet(a.shape, b.shape):
                yield f"{kind} {name} has shape {list(a.shape)} and {list(b.shape)}"


def _shapes_meet(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    if len(one) != len(other):
        return False
    return all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))
