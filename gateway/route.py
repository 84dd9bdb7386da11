"""A route at run time: a public model name, its tiers, its cache, its flights and its epoch.

Rule of this file: state that belongs to one route and the small decisions that need only it. The order
in which a request meets them is ``gateway/pipeline.py``'s; what the tiers are is ``tiers/``'s.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from operator import is_
from typing import Final
from urllib.parse import quote

import msgspec

from cache.digest import Key, RequestDigester, request_digest
from cache.entry import Entry
from cache.flight import Flights
from cache.memo import Memo
from cache.response import ResponseCache
from degrade.deadline import Deadline, Ticker
from degrade.ladder import Failure, Step
from gateway.admission.auth import Caller
from gateway.admission.validate import EVERY_INPUT, TensorRule, Validator
from gateway.codec.http import BodyLimits
from gateway.config import Route as RouteConfig
from gateway.config import TierConfig
from gateway.problem import Refused, not_found
from gateway.recall import RecallRules
from gateway.service import (
    DECENT_SHARE,
    FLIGHTS_MAX,
    Admitted,
    Filled,
    Given,
    Served,
    Wire,
    allowances_of,
    cache_of,
)
from tiers import cascade
from tiers.backends.triton_http import Call as Outbound
from tiers.cascade import Accept, CascadeOptions, Tier
from tiers.catalog import Catalog
from tiers.facts import ModelFacts, TensorFact
from tiers.inference import (
    SCHEDULING_PARAMETERS,
    Form,
    InferRequest,
    InferResponse,
    Parameters,
    Rejected,
    UpstreamError,
)
from tiers.pool import Pool
from tiers.rows import batch_size
from tiers.rpc import RpcPool
from tiers.v2.forms import FORMS_MAX, RequestForms
from tiers.v2.message import Limits

VERSIONS_MAX: Final = 16
"""Versions of a route's model whose facts are remembered as merged."""
LEARNING_GRACE_SECONDS: Final = 0.1
"""How long a tier not yet known is waited for once another is: a model tells its facts in a few milliseconds."""

ENTRY_OVERHEAD_BYTES: Final = 512
"""What an entry costs beyond its answer's size: key, bookkeeping of cache and policy."""


class Home(msgspec.Struct, frozen=True):
    """Where a tier's model lives: the replicas that run it and what they say about it. ``rpc``: the same servers as
    they are asked by RPC; None where nobody does."""

    pool: Pool
    catalog: Catalog
    rpc: RpcPool | None = None

    @property
    def pools(self) -> tuple[Pool, ...]:
        """All pools of replicas: RPCs may have one of their own."""
        return (self.pool,) if self.rpc is None or self.rpc.pool is self.pool else (self.pool, self.rpc.pool)

    async def close(self) -> None:
        """Ask nothing more, and hang up."""
        await self.catalog.close()
        for pool in self.pools:
            await pool.close()


class Route:
    """One route. ``epoch`` grows by one whenever a model behind it may have changed."""

    def __init__(self, name: str, config: RouteConfig, homes: Sequence[Home], body_bytes_max: int) -> None:
        assert len(homes) == len(config.tiers)
        self.name = name
        self.title = f"Route {name}"
        own_limit = config.limits.body_bytes_max is not None
        self.limit = f"routes.{name}.limits.body_bytes_max" if own_limit else "server.body_bytes_max"
        self.config = config
        pairs = zip(config.tiers, homes, strict=True)
        self.tiers = tuple(_tier(tier, home.pool, float(config.timeout)) for tier, home in pairs)
        self.steps = tuple(Step(step) for step in config.degrade)
        self.timeout = float(config.timeout)
        limits = config.limits
        bytes_max = int(limits.body_bytes_max or body_bytes_max)
        json_bytes_max = min(int(limits.json_bytes_max), bytes_max)  # a default may be more than the body's bound
        message = Limits(json_bytes_max=json_bytes_max, json_depth_max=limits.json_depth_max)
        self.body_limits = BodyLimits(bytes_max, message, RequestForms(message))
        self._homes = tuple(homes)
        self._body_bytes_max = body_bytes_max
        self._succeeded = False  # another route goes on with the answers kept here
        self.rules = _rules(config)
        self.validator = Validator(self.rules, config.limits.batch_max)
        self._digesters: Memo[tuple[Form, str, str], RequestDigester] = Memo(FORMS_MAX)
        self._merged: Memo[str, tuple[tuple[ModelFacts, ...], ModelFacts]] = Memo(VERSIONS_MAX)
        self.allowances = allowances_of("route", name, config.quota, config.caller_quota)
        self.cache: ResponseCache[Served[InferResponse], Wire] | None = cache_of(config.cache)
        self._ttl = 0.0 if config.cache is None else float(config.cache.ttl)  # one object for all entries
        self._max_stale = 0.0 if config.cache is None else float(config.cache.max_stale)
        self.recall_rules = RecallRules(0.0 if config.cache is None else float(config.cache.refresh))
        self.refreshes_max = 0 if config.cache is None else config.cache.refreshes_max
        self.flights: Flights[tuple[Key, int], Filled[InferResponse]] = Flights(FLIGHTS_MAX)
        self.refreshing: set[Key] = set()
        self._learnt: set[int] = set()
        self._learning: dict[int, asyncio.Task[None]] = {}
        self.epoch = 0

    def under(self, config: RouteConfig, homes: Sequence[Home], body_bytes_max: int) -> Route:
        """This route under another configuration: the same one if nothing is different, else its successor, which
        goes on with the answers kept here unless others might be given now, or be refused."""
        bytes_alike = body_bytes_max == self._body_bytes_max
        alike = bytes_alike and len(homes) == len(self._homes) and all(map(is_, homes, self._homes))
        if alike and config == self.config:
            return self
        successor = Route(self.name, config, homes, body_bytes_max)
        if alike and _answers_alike(config, self.config):
            successor.cache, successor.epoch = self.cache, self.epoch
            self._succeeded = True
        return successor

    @property
    def last_pool(self) -> Pool:
        """Where the route's last tier lives: it answers for what the route itself does not have."""
        return self._homes[-1].pool

    @property
    def last_rpc(self) -> RpcPool:
        """The same, asked by RPC."""
        rpc = self._homes[-1].rpc
        assert rpc is not None, "made without a gRPC door"
        return rpc

    @property
    def refreshes(self) -> int:
        """Background refreshes under way, each of another key."""
        return len(self.refreshing)

    @property
    def asks(self) -> list[str]:
        """Its tiers, as BACKEND/MODEL."""
        return [f"{tier.backend}/{tier.model}" for tier in self.config.tiers]

    def serves(self, backend: str, model: str) -> bool:
        """Whether a tier of this route is that model of that backend."""
        return any(tier.backend == backend and tier.model == model for tier in self.config.tiers)

    def turn(self) -> None:
        """Begin a new epoch: every entry is stale at once."""
        self.epoch += 1

    def uncacheable(self, request: InferRequest) -> str:
        """Why a request is never cached, in one word; empty if it may be (DESIGN section 6)."""
        if request.in_shared_memory:
            return "shared-memory"
        return "sequence" if request.in_sequence else ""

    def for_all(self, request: InferRequest) -> InferRequest:
        """A request as a flight sends it: the timeout and the priority of the caller who began it are not the
        others'."""
        if SCHEDULING_PARAMETERS.isdisjoint(request.parameters):
            return request
        return msgspec.structs.replace(request, parameters=_semantic(request), form=None)

    async def admit(self, request: InferRequest, deadline: Deadline, seconds: float) -> Admitted:
        """Hold a request against the route's versions, its models' facts and its rules. Raises Refused, Rejected,
        UpstreamError, and TimeoutError when the models have not described themselves within ``seconds``."""
        self._check_version(request.version)
        facts = self.known_facts(request.version)
        if facts is None:
            async with asyncio.timeout(seconds):
                facts = await self.facts(deadline, request.version)
        self.validator.check(request, facts)
        return Admitted(batch_size(request) if facts.max_batch > 0 else None, _stateful(facts))

    async def ask(
        self, request: InferRequest, deadline: Deadline, options: CascadeOptions, ticker: Ticker
    ) -> Given[InferResponse]:
        """The cascade's answer, under the route's name. Raises Rejected and UpstreamError."""
        answer = await cascade.run(self.tiers, request, deadline, options, ticker)
        response = answer.response
        if response.model != self.name:
            response = msgspec.structs.replace(response, model=self.name)
        served = Served(response, answer.tier, answer.rows, answer.rows_escalated, options.rows)
        return Given(served, answer.tier_rows, answer.passed, answer.degraded)

    def settled(self, caller: Caller, request: InferRequest, key: Key, given: Given[InferResponse]) -> Key:
        """An inference is true for what it was asked."""
        return key

    def instead(self, error: UpstreamError) -> None:
        """Nothing: what a model says of its failure is in the problem."""

    def digest(self, caller: Caller, request: InferRequest) -> bytes:
        """What makes two requests the same one (DESIGN section 6), but for the epoch."""
        assert self.config.cache is not None
        tenant = "" if self.config.cache.shared else caller.tenant
        form = request.form
        if form is None:
            return request_digest(
                route=self.name,
                tenant=tenant,
                version=request.version,
                inputs=request.inputs,
                parameters=_semantic(request),
                outputs=_asked(request),
            )
        key = form, tenant, request.version
        digester = self._digesters.get(key)
        if digester is None:
            digester = RequestDigester(
                route=self.name,
                tenant=tenant,
                version=request.version,
                inputs=form.tensors,
                parameters=_semantic(request),
                outputs=_asked(request),
            )
            self._digesters.put(key, digester)
        return digester([tensor.data for tensor in request.inputs])

    def entry(self, served: Served[InferResponse], epoch: int, now: float) -> Entry[Served[InferResponse]]:
        """An entry for an answer that was made in ``epoch``."""
        response = served.response.compact()
        if response is not served.response:
            served = msgspec.structs.replace(served, response=response)
        size = response.size + ENTRY_OVERHEAD_BYTES
        return Entry(served, size, now, self._ttl, self._max_stale, epoch)

    def known_facts(self, version: str = "") -> ModelFacts | None:
        """What `facts` would say, if every tier's model is known."""
        told = []
        for tier, home in zip(self.config.tiers, self._homes, strict=True):
            known = home.catalog.recall(tier.model, tier.version or version)
            if known is None:
                return None
            told.append(known)
        return self._merge(version, told)

    async def facts(self, deadline: Deadline, version: str = "") -> ModelFacts:
        """What the route accepts and answers, by the tiers whose models are known: a tier that has not been
        seen since the start must not keep the others from answering. ``version``: the one a caller asks for,
        of tiers that are not bound to one.

        A tier not yet known is waited for a little while the others are, by those who came first to ask it; it
        goes on being learnt behind their backs. Raises UpstreamError if no tier is known, and Rejected(404) if one
        lacks the version asked for.
        """
        told: dict[int, ModelFacts] = {}
        unknown: UpstreamError | None = None
        asked: dict[asyncio.Task[ModelFacts], int] = {}
        slow = set(self._learning)
        for position in range(len(self.tiers)):
            if len(self.tiers) > 1 and (version or position not in self._learnt):
                asked[asyncio.create_task(self._told(position, version, deadline))] = position
                continue
            try:  # known, so at once; or nobody else is there to wait for
                told[position] = await self._told(position, version, deadline)
            except UpstreamError as error:
                unknown = error
        pending = set(asked)
        try:
            while pending:
                patience = 0.0 if all(asked[task] in slow for task in pending) else LEARNING_GRACE_SECONDS
                done, pending = await asyncio.wait(
                    pending, timeout=patience if told else None, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for task in done:
                    try:
                        told[asked[task]] = task.result()
                    except UpstreamError as error:
                        unknown = error
            for task in pending:
                self._learn(asked[task])
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        if not told:
            assert unknown is not None
            raise unknown
        return self._merge(version, [told[position] for position in sorted(told)])

    def _merge(self, version: str, told: Sequence[ModelFacts]) -> ModelFacts:
        """The tiers' facts as the route's: one object as long as they are the same."""
        held = self._merged.get(version)
        if held is not None and len(held[0]) == len(told) and all(map(is_, held[0], told)):
            return held[1]
        merged = merged_facts(self.name, told)
        self._merged.put(version, (tuple(told), merged))
        return merged

    def _check_version(self, asked: str) -> None:
        for tier in self.tiers:
            if asked and tier.version not in ("", asked):
                raise Refused(not_found(f"Route {self.name} serves version {tier.version} only, not {asked}."))

    def forget(self) -> None:
        """Drop what is kept, unless a successor goes on with it."""
        if self.cache is not None and not self._succeeded:
            self.cache.purge()  # its queues are circles that nobody else would cut

    async def close(self) -> None:
        """Give up fills under way, and learning about tiers."""
        await self.flights.close()
        tasks = tuple(self._learning.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.forget()

    async def _told(self, position: int, version: str, deadline: Deadline) -> ModelFacts:
        """What a tier says of itself. Once it has, its catalog remembers."""
        try:
            told = await _told(self.config.tiers[position], self._homes[position].catalog, version, deadline)
        except UpstreamError:
            self._learnt.discard(position)
            raise
        self._learnt.add(position)
        return told

    def _learn(self, position: int) -> None:
        """Go on learning about a tier that nobody waits for any more; the catalog bounds the time."""
        if position in self._learning:
            return

        async def learn() -> None:
            try:
                await self._told(position, "", Deadline(math.inf))
            except UpstreamError:
                pass  # whoever asks next begins anew
            finally:
                del self._learning[position]

        self._learning[position] = asyncio.create_task(learn())

    def versions(self, facts: ModelFacts) -> tuple[str, ...]:
        """Those that a caller may ask for: a bound tier's alone, and none of several tiers'."""
        if len(self.tiers) > 1:
            return ()
        bound = self.config.tiers[0].version
        return (bound,) if bound else facts.versions

    async def ready(self, deadline: Deadline, asked: str = "") -> bool:
        """Whether some tier's model says it is ready and its answers do not say otherwise. ``asked``: the
        version that a caller means, of a tier that is not bound to one."""
        for tier, home in zip(self.config.tiers, self._homes, strict=True):
            path = f"/v2/models/{quote(tier.model, safe='')}"
            version = tier.version or asked
            path += f"/versions/{quote(version, safe='')}/ready" if version else "/ready"
            if await home.pool.some(Outbound("GET", path), deadline, tier.model, version):
                return True
        return False


def _answers_alike(one: RouteConfig, other: RouteConfig) -> bool:
    """Whether two configurations give the same answers to the same requests, and keep them for the same time."""
    aside = {name: getattr(other, name) for name in ("quota", "caller_quota", "timeout", "degrade")}
    return msgspec.structs.replace(one, **aside) == other


def _semantic(request: InferRequest) -> Parameters:
    """The parameters that say what to compute."""
    if SCHEDULING_PARAMETERS.isdisjoint(request.parameters):
        return request.parameters
    return {name: value for name, value in request.parameters.items() if name not in SCHEDULING_PARAMETERS}


def _stateful(facts: ModelFacts) -> str:
    """Why a model's answers are never cached, in one word; empty if they may be."""
    if facts.sequence:
        return "sequence"
    return "decoupled" if facts.decoupled else ""


def _asked(request: InferRequest) -> list[tuple[str, Parameters]]:
    return [(output.name, output.parameters) for output in request.outputs]


async def _told(tier: TierConfig, catalog: Catalog, version: str, deadline: Deadline) -> ModelFacts:
    """What a tier's model says of itself, in the version that will answer."""
    try:
        told = await catalog.facts(tier.model, tier.version, deadline)
    except Rejected as error:  # the operator named this model, not the caller: no fault of the caller's
        raise UpstreamError(Failure.BROKEN, f"a tier's model is not there: {error}") from error
    if not version or tier.version:
        return told
    return await catalog.facts(tier.model, version, deadline)


def merged_facts(name: str, facts: Sequence[ModelFacts]) -> ModelFacts:
    """A route's facts from its tiers': all tiers must be able to take what the route accepts.

    Inputs are the first tier's (``tailrace check`` proves that the others agree), outputs those that
    every tier has, the batch limit is the smallest, and one stateful tier makes the route stateful.
    """
    first, last = facts[0], facts[-1]
    common: list[TensorFact] = [
        output
        for output in last.outputs
        if all(any(other.name == output.name for other in fact.outputs) for fact in facts)
    ]
    return ModelFacts(
        name=name,
        versions=last.versions,
        inputs=first.inputs,
        outputs=tuple(common),
        max_batch=min(fact.max_batch for fact in facts),
        sequence=any(fact.sequence for fact in facts),
        decoupled=any(fact.decoupled for fact in facts),
    )


def _tier(config: TierConfig, pool: Pool, timeout: float) -> Tier:
    accept = config.accept
    rule = None if accept is None else Accept(accept.output, accept.rule, accept.at_least)
    return Tier(config.model, config.version, rule, pool, timeout * DECENT_SHARE)


def _rules(config: RouteConfig) -> Mapping[str, TensorRule]:
    """Value rules by input; "*" holds for the inputs that the route says nothing of."""
    element_bytes_max = int(config.limits.element_bytes_max)
    rules = {EVERY_INPUT: TensorRule(finite=False, element_bytes_max=element_bytes_max)}
    for name, rule in config.inputs.items():
        own = element_bytes_max if rule.element_bytes_max is None else int(rule.element_bytes_max)
        rules[name] = TensorRule(rule.min, rule.max, rule.finite, own)
    return rules
