"""A route at run time: a public model name, its tiers, its cache, its flights and its epoch.

Rule of this file: state that belongs to one route and the small decisions that need only it. The order
in which a request meets them is ``gateway/pipeline.py``'s; what the tiers are is ``tiers/``'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from operator import is_
from types import MappingProxyType
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec
import structlog

from cache.digest import Key, RequestDigester, request_digest
from cache.entry import Entry, Found, Freshness
from cache.flight import Flights
from cache.memo import Memo
from cache.response import ResponseCache
from degrade.deadline import Deadline, Ticker
from degrade.gate import Priority
from degrade.ladder import Step
from gateway.admission.auth import Caller
from gateway.admission.validate import EVERY_INPUT, TensorRule, Validator
from gateway.codec.http import BodyLimits
from gateway.config import Route as RouteConfig
from gateway.config import TierConfig
from gateway.config_load import priority_of
from gateway.copies import Copies, Standing
from gateway.default import Default, misfits
from gateway.fitting import Expected, expected
from gateway.learning import Home, Learning
from gateway.lent import Lent
from gateway.problem import Refused, not_found
from gateway.recall import RecallRules
from gateway.row import Asked, Assembled, Row
from gateway.rows import Rows
from gateway.second import SecondLevel
from gateway.service import (
    DECENT_SHARE,
    FLIGHTS_MAX,
    Admitted,
    Filled,
    Given,
    Served,
    Terms,
    Wire,
    allowances_of,
    cache_of,
)
from tiers import cascade
from tiers.backends.call import Call as Outbound
from tiers.cascade import Accept, CascadeAnswer, Tier
from tiers.facts import ModelFacts
from tiers.inference import (
    SCHEDULING_PARAMETERS,
    Form,
    InferRequest,
    InferResponse,
    Parameters,
    TableTold,
    UpstreamError,
)
from tiers.pool import Pool
from tiers.rows import batch_size
from tiers.rpc import RpcPool
from tiers.v2.forms import FORMS_MAX, RequestForms
from tiers.v2.message import Limits

ROWS_GRACE_SECONDS: Final = 1.0
"""By how much the wait for rows outlasts the tiers' time: at its end they say what one of them had answered, or which
failed, and that is worth more than a time-out. How long a caller waits is the pipeline's."""

_log = structlog.get_logger("tailrace")

_LOAD: Final = ("priority", "brownout")
"""What a configuration says of load, and not of answers."""

NO_TABLES: Final[Mapping[str, Table]] = MappingProxyType({})

NO_EPOCH: Final = -1
"""Of an answer that is an old one, whatever happens."""

ENTRY_OVERHEAD_BYTES: Final = 512
"""What an entry costs beyond its answer's size: key, bookkeeping of cache and policy."""


if TYPE_CHECKING:
    from gateway.features import Features
    from gateway.tables import Table


class Route:
    """One route. ``epoch`` grows by one whenever a model behind it may have changed."""

    def __init__(
        self,
        name: str,
        config: RouteConfig,
        homes: Sequence[Home],
        body_bytes_max: int,
        tables: Mapping[str, Table] = NO_TABLES,
    ) -> None:
        """``homes``: of each tier, in order. ``tables``: those that ``config.features`` name, and maybe others."""
        assert len(homes) == len(config.tiers)
        self.name = name
        self.title = f"Route {name}"
        own_limit = config.limits.body_bytes_max is not None
        self.limit = f"routes.{name}.limits.body_bytes_max" if own_limit else "server.body_bytes_max"
        self.config = config
        pairs = zip(config.tiers, homes, strict=True)
        self.tiers = tuple(_tier(tier, home.pool, float(config.timeout)) for tier, home in pairs)
        self._last = homes[-1].pool
        self.steps = tuple(Step(step) for step in config.degrade)
        self.timeout = float(config.timeout)
        limits = config.limits
        bytes_max = int(limits.body_bytes_max or body_bytes_max)
        json_bytes_max = min(int(limits.json_bytes_max), bytes_max)  # a default may be more than the body's bound
        message = Limits(json_bytes_max=json_bytes_max, json_depth_max=limits.json_depth_max)
        self.body_limits = BodyLimits(bytes_max, message, RequestForms(message))
        self._homes = tuple(homes)
        self._body_bytes_max = body_bytes_max
        self._succeeded = False  # another route goes on with the answers kept here, and those of the second level
        self._tables = {} if config.features is None else {name: tables[name] for name in config.features.tables}
        self.features = None if config.features is None else _features(config, self._tables, bytes_max, self.limit)
        self.rules = _rules(config)
        self.validator = Validator(self.rules, config.limits.batch_max)
        self._digesters: Memo[tuple[Form, str, str], RequestDigester] = Memo(FORMS_MAX)
        self.learning = Learning(name, list(zip(config.tiers, homes, strict=True)), self._shown, self._heed)
        self.default = Default(name, config.default) if config.default else None
        self.allowances = allowances_of("route", name, config.quota, config.caller_quota)
        self.cache: ResponseCache[Served[InferResponse], Wire] | None = cache_of(config.cache)
        self.rows = None if config.cache is None or not config.cache.rows else Rows(name, config.cache)
        self.second: SecondLevel | None = None
        self.copied: Copies[Served[InferResponse]] | None = None
        self.copied_rows: Copies[Row] | None = None
        self._ttl = 0.0 if config.cache is None else float(config.cache.ttl)  # one object for all entries
        self._max_stale = 0.0 if config.cache is None else float(config.cache.max_stale)
        self.recall_rules = RecallRules(0.0 if config.cache is None else float(config.cache.refresh))
        self.refreshes_max = 0 if config.cache is None else config.cache.refreshes_max
        self.priority = priority_of(config.priority, Priority.NORMAL)
        self.browned = config.brownout
        self.flights: Flights[tuple[Key, int, Priority], Filled[InferResponse]] = Flights(FLIGHTS_MAX)
        self.refreshing: set[Key] = set()
        self.epoch = 0

    def under(
        self,
        config: RouteConfig,
        homes: Sequence[Home],
        body_bytes_max: int,
        tables: Mapping[str, Table] = NO_TABLES,
    ) -> Route:
        """This route under another configuration: the same one if nothing is different, else its successor, which
        goes on with the answers kept here unless others might be given now, or be refused."""
        bytes_alike = body_bytes_max == self._body_bytes_max
        alike = bytes_alike and len(homes) == len(self._homes) and all(map(is_, homes, self._homes))
        alike = alike and all(tables.get(name) is table for name, table in self._tables.items())
        if alike and config == self.config:
            return self
        successor = Route(self.name, config, homes, body_bytes_max, tables)
        if alike and _answers_alike(config, self.config):
            successor.cache, successor.rows, successor.epoch = self.cache, self.rows, self.epoch
            if self.second is not None:
                successor.share(self.second)
            if self.copied is not None:
                successor.copy(self.copied, self.copied_rows)
            self._succeeded = True
        return successor

    def share(self, second: SecondLevel) -> None:
        """Leave answers, or rows where those are kept, for other processes, and take theirs."""
        self.second = second
        second.watch(self.learning.looks)
        if self.rows is not None:
            self.rows.second = second

    def copy(self, copied: Copies[Served[InferResponse]], rows: Copies[Row] | None = None) -> None:
        """Leave copies of answers, and of rows where those are kept, on the disk, and take those that are there."""
        assert self.cache is not None
        assert rows is None or self.rows is not None
        self.copied, self.copied_rows = copied, rows
        copied.standing.watch(lambda: self.epoch, self.learning.looks, self.learning.schema)
        copied.watch(self.cache)
        if rows is not None and self.rows is not None:
            rows.watch(self.rows.cache)

    @property
    def copies(self) -> Standing | None:
        """What says whether copies of its answers may be used."""
        return None if self.copied is None else self.copied.standing

    @property
    def in_parts(self) -> bool:
        """Whether an answer may be made of rows that are older than it is, or be another process's."""
        return self.rows is not None or self.second is not None

    @property
    def row_cache(self) -> ResponseCache[Row, None] | None:
        """Its rows as operators see them."""
        return None if self.rows is None else self.rows.cache

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
    def level(self) -> int:
        """The highest brownout level of its tiers' backends."""
        homes = self._homes
        return homes[0].pool.gates.level if len(homes) == 1 else max([home.pool.gates.level for home in homes])

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
        if self.second is not None:
            self.second.end_turn()
        if self.copies is not None:
            self.copies.end_turn()

    def uncacheable(self, request: InferRequest) -> str:
        """Why a request is never cached, in one word; empty if it may be (DESIGN section 6)."""
        if request.form is not None:
            return ""  # no form has either
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
        facts = self.learning.known(request.version)
        if facts is None:
            async with asyncio.timeout(seconds):
                facts = await self.learning.facts(deadline, request.version)
        self.validator.check(request, facts)
        return Admitted(batch_size(request) if facts.max_batch > 0 else None, _stateful(facts))

    def find(self, caller: Caller, request: InferRequest, key: Key, now: float) -> Found[Served[InferResponse]] | None:
        """What is kept of an answer: as it was given once, as its rows are, or as it was copied to the disk."""
        assert self.cache is not None
        if self.rows is None and self.copied is None:
            return self.cache.find(key, now)
        found = self._found_here(caller, request, key, now)
        return found if found is not None else self._copied(key, now)

    def kept(
        self, caller: Caller, request: InferRequest, key: Key, now: float
    ) -> Found[Served[InferResponse]] | None:
        """What was copied of an answer, or of its rows, whatever its models are now: an old one, of no epoch that is
        now."""
        copy = None if self.copied is None else self.copied.find(key.digest, now)
        if copy is not None:
            entry = self.entry(copy.value, NO_EPOCH, copy.made_at)
        else:
            rows = None if self.copied_rows is None else self._known_rows(request)
            if self.rows is None or self.copied_rows is None or rows is None:
                return None
            lent = Lent(self.copied_rows, now, NO_EPOCH, is_old=True)
            made = self.rows.whole(self._in_rows(caller, request, key, rows), now, lent)
            if made is None:
                return None
            entry = self.entry(_of_rows(made), NO_EPOCH, made.made_at)
        freshness = entry.freshness(now, key.epoch)
        return None if freshness is Freshness.DEAD else Found(entry, freshness, is_copy=True)

    def declared(self, request: InferRequest) -> Callable[[], InferResponse] | str:
        """What makes the declared default an answer to a request, or why it is none. As long as a tier's model is not
        known, nobody can tell whether it fits, or the request does."""
        if self.default is None:
            return ""
        version = "" if self.learning.known(request.version) is None else request.version
        facts = self.learning.known(version)
        if facts is None:
            return self._undescribed(request, self.default)
        merged = self.learning.merged(version).merged
        for key, why in misfits(self.config.default, merged):
            return f"{self._default_key(key)} {why}"
        if version != request.version and request.version not in facts.versions:
            return f"the default is of no version {request.version}"
        try:
            self.validator.check(request, facts)
        except Refused:
            return "the default is for no request that its models would refuse"
        return self.default.due(request, self._rows_of(request, merged.max_batch))

    def _undescribed(self, request: InferRequest, default: Default) -> Callable[[], InferResponse] | str:
        """The default as long as a tier's model is not known: a request is held against the configuration alone."""
        if self.features is not None:
            try:
                self.validator.check(*self.features.declared(request))
            except Refused as refused:
                return f"the default is for no request that is to be refused: {refused.problem.detail}"
        return default.due(request, self._rows_of(request, 0), self.config.limits.batch_max is None)

    def _rows_of(self, request: InferRequest, max_batch: int) -> int | None:
        """How many rows an answer has; None if nobody can tell, or it is more than there may be."""
        if self.features is not None:
            return self.features.rows(request, max_batch)
        rows, most = batch_size(request), self.config.limits.batch_max
        return None if rows is not None and most is not None and rows > most else rows

    def _copied(self, key: Key, now: float) -> Found[Served[InferResponse]] | None:
        """The copy of an answer, if it may be served as if it had been here all the time."""
        copied = self.copied
        copy = None if copied is None else copied.find(key.digest, now)
        if self.cache is None or copied is None or copy is None or not (copy.is_same or copied.standing.trusts()):
            return None
        entry = self.entry(copy.value, key.epoch, copy.made_at)
        freshness = entry.freshness(now, key.epoch)
        if freshness is Freshness.DEAD:
            return None
        if copy.is_same:  # else it must not stay, should its models turn out to be others
            self.cache.store(key, entry, self.cache.ticket())
        return Found(entry, freshness, is_copy=True)

    def _found_here(
        self, caller: Caller, request: InferRequest, key: Key, now: float
    ) -> Found[Served[InferResponse]] | None:
        assert self.cache is not None
        found = self.cache.find(key, now)
        rows = None if found is not None and found.freshness is Freshness.FRESH else self._known_rows(request)
        if self.rows is None or rows is None:
            return found
        lent = None if self.copied_rows is None else Lent(self.copied_rows, now, key.epoch)
        made = self.rows.whole(self._in_rows(caller, request, key, rows), now, lent)
        if made is None:
            return found
        entry = self.entry(_of_rows(made), made.epoch, made.made_at)
        freshness = entry.freshness(now, key.epoch)
        if freshness is Freshness.FRESH:
            if lent is None or not lent.is_unsure:
                self.cache.store(key, entry, self.cache.ticket())
        elif found is not None or freshness is Freshness.DEAD:
            return found
        return Found(entry, freshness, is_copy=lent is not None and lent.count > 0)

    async def found(self, seconds: float) -> bool:
        """Of those whose answers will do for all rows."""
        return await self._last.found(seconds)

    async def ask(
        self, request: InferRequest, deadline: Deadline, terms: Terms, ticker: Ticker
    ) -> Given[InferResponse]:
        """The cascade's answer, under the route's name; of rows that are kept, theirs. Raises Rejected, UpstreamError,
        and where rows are kept Abandoned and TimeoutError."""
        rows, tables = terms.options.rows, tuple[TableTold, ...]()
        if self.features is not None:
            await self.learning.facts(deadline, request.version)
            facts = self.learning.merged(request.version).merged
            seconds = deadline.remaining(ticker())
            request, count, tables = await self.features.made(request, facts, seconds)
            rows = count if facts.max_batch > 0 else None
        is_degraded = any(told.steps for told in tables)

        def cascaded(request: InferRequest, rows: int | None) -> Coroutine[object, object, CascadeAnswer]:
            options = terms.options if rows == terms.options.rows else msgspec.structs.replace(terms.options, rows=rows)
            return cascade.run(self.tiers, request, deadline, options, ticker)

        if self.rows is not None and rows and terms.key is not None:
            asked = self._in_rows(terms.caller, request, terms.key, rows)
            expects = self._expected(request, rows) if self.second is not None else None
            asked = msgspec.structs.replace(asked, reuse=terms.reuse, keep=not is_degraded, expected=expects)
            seconds = deadline.remaining(ticker()) + ROWS_GRACE_SECONDS
            made = await self.rows.answer(asked, cascaded, seconds, ticker)
            return Given(
                _of_rows(made, tables), made.tier_rows, made.passed, made.degraded or is_degraded,
                made.escalated_now, made.kept, made.made_at, made.kept == rows and made.elsewhere > 0,
            )  # fmt: skip
        turn = None if self.second is None or terms.key is None else self.second.turn
        if self.second is not None and turn is not None and terms.key is not None and terms.reuse:
            expects = self._expected(request, rows)
            found = None if expects is None else await self.second.answer(turn, terms.key.digest, expects.fits)
            if found is not None:
                return Given(found[0], made_at=found[1], second=True)
        answer = await cascaded(request, rows)
        response = answer.response
        if response.model != self.name:
            response = msgspec.structs.replace(response, model=self.name)
        served = Served(response, answer.tier, answer.rows, answer.rows_escalated, terms.options.rows, tables)
        degraded = answer.degraded or is_degraded
        if self.second is not None and turn is not None and terms.key is not None and not degraded:
            self.second.keep_answer(turn, terms.key.digest, served, ticker())
        return Given(served, answer.tier_rows, answer.passed, degraded, answer.rows_escalated)

    def _expected(self, request: InferRequest, rows: int | None) -> Expected | None:
        """What an answer to it must be; None while a tier's model is not known."""
        if self.learning.known(request.version) is None:
            return None
        told = self.learning.merged(request.version).told
        return expected([tier.model for tier in self.tiers], told, request, rows)

    def _known_rows(self, request: InferRequest) -> int | None:
        """How many rows a request has whose answers may be here; None where that is not to be known, or it is to be
        refused."""
        if self.rows is None or self.features is not None:
            return None
        facts = self.learning.known(request.version)
        rows = batch_size(request)
        if facts is None or facts.max_batch < 1 or _stateful(facts) or not rows:
            return None
        try:
            self.validator.check(request, facts)
        except Refused:
            return None  # who admits it says why
        return rows

    def _in_rows(self, caller: Caller, request: InferRequest, key: Key, rows: int) -> Asked:
        """The request as rows."""
        assert self.rows is not None
        request = self.for_all(request)
        facts = self.learning.known(request.version)
        several = len(self.tiers) > 1 and facts is not None
        names = frozenset([output.name for output in facts.outputs]) if several and facts is not None else None
        return Asked(request, self.rows.keys(self._tenant(caller), request, rows), key.epoch, outputs=names)

    def settled(self, caller: Caller, request: InferRequest, key: Key, given: Given[InferResponse]) -> Key:
        """An inference is true for what it was asked."""
        return key

    def instead(self, error: UpstreamError) -> None:
        """Nothing: what a model says of its failure is in the problem."""

    def digest(self, caller: Caller, request: InferRequest) -> bytes:
        """What makes two requests the same one (DESIGN section 6), but for the epoch."""
        tenant = self._tenant(caller)
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
        inputs = request.inputs
        return digester((inputs[0].data,) if len(inputs) == 1 else [tensor.data for tensor in inputs])

    def _tenant(self, caller: Caller) -> str:
        """Whose answers a caller may have."""
        assert self.config.cache is not None
        return "" if self.config.cache.shared else caller.tenant

    def entry(self, served: Served[InferResponse], epoch: int, now: float) -> Entry[Served[InferResponse]]:
        """An entry for an answer that was made in ``epoch``."""
        response = served.response.compact()
        if response is not served.response:
            served = msgspec.structs.replace(served, response=response)
        size = response.size + ENTRY_OVERHEAD_BYTES
        return Entry(served, size, now, self._ttl, self._max_stale, epoch)

    def known_facts(self, version: str = "") -> ModelFacts | None:
        """What `facts` would say, if every tier's model is known."""
        return self.learning.known(version)

    async def facts(self, deadline: Deadline, version: str = "") -> ModelFacts:
        """What the route accepts and answers, by the tiers whose models are known (see ``Learning.facts``)."""
        return await self.learning.facts(deadline, version)

    def _shown(self, merged: ModelFacts) -> ModelFacts:
        """What callers send, where that is something else than what the models take."""
        return merged if self.features is None else self.features.facts(merged)

    def _heed(self, merged: ModelFacts) -> None:
        """Say what is wrong with the declared default, by what the models say of themselves."""
        for key, why in misfits(self.config.default, merged) if self.default is not None else ():
            _log.error("default is not served", route=self.name, key=self._default_key(key), reason=why)

    def _default_key(self, below: str) -> str:
        return f"routes.{self.name}.default" + (f".{below}" if below else "")

    def _check_version(self, asked: str) -> None:
        for tier in self.tiers:
            if asked and tier.version not in ("", asked):
                raise Refused(not_found(f"Route {self.name} serves version {tier.version} only, not {asked}."))

    def forget(self) -> None:
        """Drop what is kept, unless a successor goes on with it."""
        for shelf in () if self._succeeded else (self.cache, self.row_cache):
            if shelf is not None:
                shelf.purge()  # its queues are circles that nobody else would cut

    async def close(self) -> None:
        """Give up fills under way, and learning about tiers."""
        await self.flights.close()
        await self.learning.close()
        self.forget()
        if self.rows is not None and not self._succeeded:
            await self.rows.close()
        if self.second is not None and not self._succeeded:
            await self.second.close()

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


def _of_rows(made: Assembled, tables: tuple[TableTold, ...] = ()) -> Served[InferResponse]:
    """An answer made of rows as the cache keeps it."""
    rows = made.response.outputs[0].shape[0]
    return Served(made.response, made.tier, rows, made.escalated, rows, tables)


def _features(config: RouteConfig, tables: Mapping[str, Table], bytes_max: int, key: str) -> Features:
    """Clients of stores are loaded only where there are tables: they take their time and memory."""
    from gateway.features import Ceiling, Features

    assert config.features is not None
    return Features(config.features, tables, Ceiling(config.limits.batch_max, bytes_max, key))


def _answers_alike(one: RouteConfig, other: RouteConfig) -> bool:
    """Whether two configurations give the same answers to the same requests, and keep them for the same time."""
    aside = {name: getattr(other, name) for name in ("quota", "caller_quota", "timeout", "degrade", "default", *_LOAD)}
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
