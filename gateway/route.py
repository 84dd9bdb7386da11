"""A route at run time: a public model name, its tiers, its cache, its flights and its epoch.

Rule of this file: state that belongs to one route and the small decisions that need only it. When two requests are the
same one is ``identity.py``'s, where their answers are kept ``shelves.py``'s, what the models say of themselves
``learning.py``'s. The order in which a request meets all this is ``pipeline.py``'s; what the tiers are is ``tiers/``'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from operator import is_
from types import MappingProxyType
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec
import structlog

from cache.digest import Key
from cache.flight import Flights
from cache.response import ResponseCache
from degrade.deadline import Deadline, Ticker
from degrade.gate import Priority
from degrade.ladder import Step
from gateway.admission.auth import Caller
from gateway.admission.validate import Validator, rules_of
from gateway.codec.http import BodyLimits
from gateway.config import Route as RouteConfig
from gateway.config import TierConfig
from gateway.config_load import priority_of
from gateway.copies import Copies, Standing
from gateway.default import Default, Resort
from gateway.fitting import Expected, expected, has_nan
from gateway.identity import Identity, stateful
from gateway.learning import Home, Learning
from gateway.problem import Refused, not_found
from gateway.recall import RecallRules
from gateway.row import Row
from gateway.second import SecondLevel
from gateway.service import (
    DECENT_SHARE,
    FLIGHTS_MAX,
    Admitted,
    Filled,
    Given,
    Served,
    Terms,
    allowances_of,
    answers_alike,
)
from gateway.shelves import Shelves
from tiers import cascade
from tiers.backends.call import Call as Outbound
from tiers.cascade import Accept, CascadeAnswer, CascadeOptions, Tier
from tiers.facts import ModelFacts
from tiers.inference import InferRequest, InferResponse, TableTold, UpstreamError
from tiers.pool import Pool
from tiers.rows import batch_size
from tiers.rpc import RpcPool
from tiers.v2.forms import RequestForms
from tiers.v2.message import Limits

ROWS_GRACE_SECONDS: Final = 1.0
"""By how much the wait for rows outlasts the tiers' time: at its end they say what one of them had answered, or which
failed, and that is worth more than a time-out. How long a caller waits is the pipeline's."""

_log = structlog.get_logger("tailrace")

NO_TABLES: Final[Mapping[str, Table]] = MappingProxyType({})

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
        self.validator = Validator(rules_of(limits, config.inputs), limits.batch_max)
        self.learning = Learning(name, list(zip(config.tiers, homes, strict=True)), self._shown, self._heed)
        self.default = Default(name, config.default) if config.default else None
        judges = self.learning, self.validator, self.features, limits.batch_max
        self._resort = None if self.default is None else Resort(self.default, *judges)
        self.allowances = allowances_of("route", name, config.quota, config.caller_quota)
        identity = Identity(name, config.cache is not None and config.cache.shared)
        self.shelves = Shelves(name, config, identity, self.learning, self.validator)
        self.cache = self.shelves.cache
        # Of Service's face as they are, with no step between: the pipeline calls them for every request.
        self.uncacheable, self.for_all, self.digest = identity.uncacheable, identity.for_all, identity.digest
        self.find, self.kept, self.entry = self.shelves.find, self.shelves.kept, self.shelves.entry
        self.second: SecondLevel | None = None
        self.recall_rules = RecallRules(0.0 if config.cache is None else float(config.cache.refresh))
        self.refreshes_max = 0 if config.cache is None else config.cache.refreshes_max
        self._keeps_nan = config.cache is None or config.cache.nan
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
        if alike and answers_alike(config, self.config, "default"):
            successor.shelves.go_on(self.shelves)
            successor.cache, successor.epoch = self.cache, self.epoch
            if self.second is not None:
                successor.share(self.second)
            if self.shelves.copied is not None:
                successor.copy(self.shelves.copied, self.shelves.copied_rows)
            self._succeeded = True
        return successor

    def share(self, second: SecondLevel) -> None:
        """Leave answers, or rows where those are kept, for other processes, and take theirs."""
        self.second = second
        second.watch(self.learning.looks, self._changed_unseen)
        if self.shelves.rows is not None:
            self.shelves.rows.second = second

    def copy(self, copied: Copies[Served[InferResponse]], rows: Copies[Row] | None = None) -> None:
        """Leave copies of answers, and of rows where those are kept, on the disk, and take those that are there."""
        learning = self.learning
        copied.standing.watch(lambda: self.epoch, learning.looks, learning.schema, self._changed_unseen)
        self.shelves.copy(copied, rows)

    @property
    def copies(self) -> Standing | None:
        """What says whether copies of its answers may be used."""
        copied = self.shelves.copied
        return None if copied is None else copied.standing

    @property
    def in_parts(self) -> bool:
        """Whether an answer may be made of rows that are older than it is, or be another process's."""
        return self.shelves.rows is not None or self.second is not None

    @property
    def row_cache(self) -> ResponseCache[Row, None] | None:
        """Its rows as operators see them."""
        rows = self.shelves.rows
        return None if rows is None else rows.cache

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

    def turn(self, is_known: bool = True) -> None:
        """Begin a new epoch: every entry is stale at once. ``is_known``: a model has changed; else it may have, before
        it was looked at for the first time."""
        self.epoch += 1
        for kept in (self.second, self.copies):
            if kept is not None:
                kept.end_turn() if is_known else kept.doubt()

    async def admit(self, request: InferRequest, deadline: Deadline, seconds: float) -> Admitted:
        """Hold a request against the route's versions, its models' facts and its rules. Raises Refused, Rejected,
        UpstreamError, and TimeoutError when the models have not described themselves within ``seconds``."""
        self._check_version(request.version)
        facts = self.learning.known(request.version)
        if facts is None:
            async with asyncio.timeout(seconds):
                facts = await self.learning.facts(deadline, request.version)
        self.validator.check(request, facts)
        return Admitted(batch_size(request) if facts.max_batch > 0 else None, stateful(facts))

    def declared(self, request: InferRequest) -> Callable[[], InferResponse] | str:
        """What makes the declared default an answer to a request, or why it is none."""
        return "" if self._resort is None else self._resort.answer(request)

    async def found(self, seconds: float) -> bool:
        """Of those whose answers will do for all rows."""
        return await self.last_pool.found(seconds)

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
        if self.shelves.rows is not None and rows and terms.key is not None:
            return await self._in_rows(request, rows, tables, deadline, terms, ticker)
        turn = None if self.second is None or terms.key is None else self.second.turn
        if self.second is not None and turn is not None and terms.key is not None and terms.reuse:
            expects = self._expected(request, rows)
            found = None if expects is None else await self.second.answer(turn, terms.key.digest, expects.fits)
            if found is not None:
                return Given(found[0], made_at=found[1], second=True)
        options = _options(terms, rows)
        answer = self._looked_at(await cascade.run(self.tiers, request, deadline, options, ticker), terms)
        response, escalated = answer.response, answer.rows_escalated
        if response.model != self.name:
            response = msgspec.structs.replace(response, model=self.name)
        served = Served(response, answer.tier, answer.rows, escalated, terms.options.rows, tables)
        given = Given(
            served, answer.tier_rows, answer.passed, answer.degraded or any(told.steps for told in tables), escalated,
            has_nan=answer.has_nan,
        )  # fmt: skip
        if self.second is not None and turn is not None and terms.key is not None and given.may_stay:
            self.second.keep_answer(turn, terms.key.digest, served, ticker())
        return given

    async def _in_rows(
        self,
        request: InferRequest,
        rows: int,
        tables: tuple[TableTold, ...],
        deadline: Deadline,
        terms: Terms,
        ticker: Ticker,
    ) -> Given[InferResponse]:
        """`ask` where rows are kept: only those that are not known are asked for."""
        assert self.shelves.rows is not None
        assert terms.key is not None

        async def cascaded(request: InferRequest, rows: int | None) -> CascadeAnswer:
            options = _options(terms, rows)
            return self._looked_at(await cascade.run(self.tiers, request, deadline, options, ticker), terms)

        is_degraded = any(told.steps for told in tables)
        asked = self.shelves.asked(terms.caller, request, terms.key, rows)
        expects = self._expected(request, rows) if self.second is not None else None
        asked = msgspec.structs.replace(asked, reuse=terms.reuse, keep=not is_degraded, expected=expects)
        seconds = deadline.remaining(ticker()) + ROWS_GRACE_SECONDS
        made = await self.shelves.rows.answer(asked, cascaded, seconds, ticker)
        return Given(
            made.served(tables), made.tier_rows, made.passed, made.degraded or is_degraded,
            made.escalated_now, made.kept, made.made_at, made.kept == rows and made.elsewhere > 0,
            made.has_nan,
        )  # fmt: skip

    def _looked_at(self, answer: CascadeAnswer, terms: Terms) -> CascadeAnswer:
        """The tiers' answer, with what the route has to say of its numbers."""
        if self._keeps_nan or terms.key is None or not has_nan(answer.response.outputs):
            return answer
        return msgspec.structs.replace(answer, has_nan=True)

    def _expected(self, request: InferRequest, rows: int | None) -> Expected | None:
        """What an answer to it must be; None while a tier's model is not known."""
        if self.learning.known(request.version) is None:
            return None
        told = self.learning.merged(request.version).told
        return expected([tier.model for tier in self.tiers], told, request, rows)

    def settled(self, caller: Caller, request: InferRequest, key: Key, given: Given[InferResponse]) -> Key:
        """An inference is true for what it was asked."""
        return key

    def instead(self, error: UpstreamError) -> None:
        """Nothing: what a model says of its failure is in the problem."""

    def _shown(self, merged: ModelFacts) -> ModelFacts:
        """What callers send, where that is something else than what the models take."""
        return merged if self.features is None else self.features.facts(merged)

    def _heed(self, merged: ModelFacts) -> None:
        """Say what is wrong with the declared default, by what the models say of themselves."""
        for key, why in () if self.default is None else self.default.misfits(merged):
            _log.error("default is not served", route=self.name, key=key, reason=why)

    def _changed_unseen(self) -> None:
        """What was taken of others is of models that became others while this process could not look."""
        self.turn()
        _log.warning("epoch", route=self.name, models=self.asks, epoch=self.epoch)

    def _check_version(self, asked: str) -> None:
        for tier in self.tiers:
            if asked and tier.version not in ("", asked):
                raise Refused(not_found(f"Route {self.name} serves version {tier.version} only, not {asked}."))

    def forget(self) -> None:
        """Drop what is kept, unless a successor goes on with it."""
        if not self._succeeded:
            self.shelves.forget()

    async def close(self) -> None:
        """Give up fills under way, and learning about tiers."""
        await self.flights.close()
        await self.learning.close()
        self.forget()
        if self.shelves.rows is not None and not self._succeeded:
            await self.shelves.rows.close()
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


def _features(config: RouteConfig, tables: Mapping[str, Table], bytes_max: int, key: str) -> Features:
    """Clients of stores are loaded only where there are tables: they take their time and memory."""
    from gateway.features import Ceiling, Features

    assert config.features is not None
    return Features(config.features, tables, Ceiling(config.limits.batch_max, bytes_max, key))


def _options(terms: Terms, rows: int | None) -> CascadeOptions:
    """How the tiers are asked about so many rows."""
    return terms.options if rows == terms.options.rows else msgspec.structs.replace(terms.options, rows=rows)


def _tier(config: TierConfig, pool: Pool, timeout: float) -> Tier:
    accept = config.accept
    rule = None if accept is None else Accept(accept.output, accept.rule, accept.at_least)
    return Tier(config.model, config.version, rule, pool, timeout * DECENT_SHARE)
