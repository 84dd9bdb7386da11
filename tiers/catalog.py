"""What the models say about themselves, and when one of them has become another.

Rule of this file: facts once learnt stay until better ones come, so that a dead backend does not make a
model unknown. A model has changed when, on any one replica, its versions or its configuration differ from
what that replica said before, its statistics went *down* (Triton resets them on reload and restart), or it
was gone and came back; and when a replica is first looked at that may have answered as another model before. It
must not know caches or epochs; it calls ``on_change`` and others draw conclusions.

Known limit: a reload of the same versions and configuration is not seen if by the next poll the model has
done at least the work that the last poll had seen of it (for one reloaded right after its first work: any).
A restart that a poll met is seen even then, as long as the model has done nothing since.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from typing import Protocol, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct

from cache.flight import Abandoned, Flights
from degrade.deadline import Deadline, Ticker
from degrade.ladder import Failure
from tiers.backends.call import Call, Reply
from tiers.facts import (
    Capacity,
    Metadata,
    ModelConfig,
    ModelFacts,
    Sight,
    Statistics,
    changed,
    read_facts,
    spent,
    totals,
)
from tiers.inference import Rejected, UpstreamError
from tiers.known import Known

T = TypeVar("T")


class Asked(Protocol):
    """One server that can be asked; TritonHttp in life."""

    @property
    def url(self) -> str: ...
    async def exchange(self, call: Call, deadline: Deadline, now: float) -> Reply: ...


class CatalogOptions(Struct, frozen=True):
    versions_max: int = 16
    """Versions of one model remembered beside the model itself; the first learnt goes first."""
    load_timeout: float = 5.0
    """Seconds for learning one model's facts, whoever waits for them."""
    loads_max: int = 64
    """Models being learnt at once."""


class Catalog:
    """The models of one backend. Belongs to one event loop.

    None that is in use is ever forgotten, however many there are: whose changes nobody sees, his answers would go on as
    fresh. It is told what is in use (``keep``).
    """

    def __init__(
        self,
        replicas: Sequence[Asked],
        options: CatalogOptions,
        now: Ticker,
        on_change: Callable[[str], None],
        may_have_answered: Callable[[str, str], bool] = lambda *_: False,
        on_doubt: Callable[[str], None] | None = None,
    ) -> None:
        """``may_have_answered``: whether a replica, by its URL, has answered for a model or is being asked.
        ``on_doubt``: called in the place of ``on_change``, where nothing is known but that a replica may have answered
        as another model before it was looked at for the first time."""
        assert replicas, "a catalog needs a replica"
        self._replicas = tuple(replicas)
        self._options = options
        self._now = now
        self._on_change = on_change
        self._known: dict[str, Known] = {}
        self._may_have_answered = may_have_answered
        self._on_doubt = on_doubt or on_change
        self._slow: dict[int, set[str]] = {}  # by replica: models that did not say in time what they are
        self._late: set[asyncio.Future[ModelFacts]] = set()  # looks at replicas that were not the first to answer
        self._loads: Flights[tuple[str, str, int], ModelFacts] = Flights(options.loads_max)

    async def close(self) -> None:
        await self._loads.close()
        await _end(tuple(self._late))

    async def facts(self, model: str, version: str, deadline: Deadline) -> ModelFacts:
        """The model's facts, asked for once and then remembered. ``version`` empty: of the one that answers
        who names none. Versions may differ, where Triton completes each one's configuration from its files.

        Raises Rejected(404) if no replica has the model or it lacks the version,
        UpstreamError if nobody could say.
        """
        found = self.recall(model, version)
        if found is not None:
            return found
        known = self._known.get(model)
        facts = await self._learn(model, "", deadline) if known is None else known.facts
        if not version or facts.versions == (version,):
            return facts
        return await self._learn(model, version, deadline)

    def recall(self, model: str, version: str) -> ModelFacts | None:
        """What `facts` would give without asking anyone."""
        known = self._known.get(model)
        if known is None:
            return None
        if not version or known.facts.versions == (version,):
            return known.facts
        return known.of_version.get(version)

    def remember(self, model: str, facts: ModelFacts) -> None:
        """What the model was when somebody last asked it, until it says something itself: an earlier process's word.
        It is no look at the model."""
        if model not in self._known:
            self._known[model] = Known(facts)
            self._known[model].is_remembered = True

    def keep(self, models: Container[str]) -> None:
        """Forget all others: nobody asks for them any more."""
        for gone in [model for model in self._known if model not in models]:
            del self._known[gone]
            for slow in self._slow.values():
                slow.discard(gone)

    def capacity(self, model: str) -> Capacity | None:
        """What the replicas that have it can do together, the same object until one is looked at again; None: not known
        of all, or not before they have worked. Asks nobody."""
        known = self._known.get(model)
        return None if known is None else known.capacity

    def looked(self, model: str) -> Mapping[str, tuple[float, Sight]]:
        """The last look at a model on each replica, by its URL, and when that look began (monotonic seconds). Asks
        nobody; empty if the model is not known."""
        known = self._known.get(model)
        if known is None:
            return {}
        return {self._replicas[at].url: (known.began[at], sight) for at, sight in known.sights.items()}

    async def look_once(self, deadline: Deadline) -> None:
        """One look at each replica, all at once."""
        await asyncio.gather(*(self.look(position, deadline) for position in range(len(self._replicas))))

    async def run(self, interval: float, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Look for ever, ``interval`` seconds apart and at each model within ``load_timeout``, at each replica by
        itself, so that one that hangs holds up no other; cancel it to stop."""

        async def watch(position: int) -> None:
            while True:
                await self.look(position, Deadline(math.inf))
                await sleep(interval)

        watches = [asyncio.ensure_future(watch(position)) for position in range(len(self._replicas))]
        try:
            await asyncio.gather(*watches)
        finally:
            await _end(watches)

    async def _learn(self, model: str, version: str, deadline: Deadline) -> ModelFacts:
        remaining = deadline.remaining(self._now())
        known = self._known.get(model)
        turns = 0 if known is None else known.turns  # what was begun before a turn is nothing for who comes after
        try:
            async with asyncio.timeout(None if math.isinf(remaining) else remaining):
                facts, _ = await self._loads.join((model, version, turns), lambda: self._load(model, version))
        except TimeoutError as error:
            raise UpstreamError(Failure.TIMEOUT, f"no facts about model {model!r} in {remaining:.3g} s") from error
        except Abandoned as error:
            raise UpstreamError(Failure.UNREACHABLE, "the catalog is closed") from error
        return facts

    async def _load(self, model: str, version: str) -> ModelFacts:
        """From the first replica that answers and knows: all are asked at once, for one of them may hang. Of a model
        the looks at the others go on: what a replica is like is to be known before it answers."""
        deadline = Deadline.after(self._now(), self._options.load_timeout)
        unknown: Rejected | None = None
        failed: UpstreamError | None = None
        asked = [
            asyncio.ensure_future(self._ask(position, model, version, deadline))
            for position in range(len(self._replicas))
        ]
        try:
            for answered in asyncio.as_completed(asked):
                try:
                    facts = await answered
                    if not version and len(self._late) < self._options.loads_max:
                        self._go_on(asked)
                        asked = []
                    return facts
                except Rejected as error:
                    unknown = error
                except UpstreamError as error:
                    failed = error
        finally:
            await _end(asked)
        if failed is not None:  # who did not answer may have it
            raise failed
        assert unknown is not None
        raise unknown

    async def _ask(self, position: int, model: str, version: str, deadline: Deadline) -> ModelFacts:
        """One replica. A model is kept with the look at it, a version with its model."""
        replica = self._replicas[position]
        if version:
            asked_of = self._known.get(model)
            turns = 0 if asked_of is None else asked_of.turns
            facts = await self._describe(replica, model, version, deadline)
            same = asked_of is self._known.get(model) and (asked_of is None or asked_of.turns == turns)
            return self._keep(model, version, facts) if same else facts
        began = self._now()
        sight, facts = await self._see(replica, model, deadline, probe=False)
        known = self._known.get(model)
        if known is not None:  # by another replica, a moment ago
            if position not in known.sights:
                self._hold(position, model, began, sight, facts, timely=True)
            return known.facts
        self._known[model] = Known(facts)
        self._hold(position, model, began, sight, facts, timely=True)
        return facts

    def _keep(self, model: str, version: str, facts: ModelFacts) -> ModelFacts:
        known = self._known.get(model)
        if known is None:  # nobody's any more
            return facts
        others = tuple(each for each in known.facts.versions if each != version)
        facts = msgspec.structs.replace(facts, versions=(*others, version))
        known.of_version[version] = facts
        if len(known.of_version) > self._options.versions_max:
            del known.of_version[next(iter(known.of_version))]
        return facts

    async def look(self, position: int, deadline: Deadline) -> list[str]:
        """Look at every remembered model on one replica, one after another: it must not be a burst. The models
        that changed; each is told as soon as it is seen.

        A replica that does not answer within the deadline, or ``load_timeout`` for one model, keeps what was last seen
        of it.
        """
        turned: list[str] = []
        slow = self._slow.setdefault(position, set())
        models = sorted(self._known, key=slow.__contains__)  # of one that hangs the others are seen all the same
        for index, model in enumerate(models):
            seen: tuple[Sight, ModelFacts | None]
            began = self._now()
            try:
                within = deadline.sooner(Deadline.after(began, self._options.load_timeout))
                seen = await self._see(self._replicas[position], model, within, probe=True)
                slow.discard(model)
            except Rejected:
                seen = (Sight(frozenset(), b"", {}, gone=True), None)
                slow.discard(model)
            except UpstreamError as error:
                if error.failure is Failure.TIMEOUT:
                    slow.add(model)
                rest = error.failure in {Failure.UNREACHABLE, Failure.DROPPED, Failure.TIMEOUT}  # would only wait too
                for lost in models[index:] if rest else (model,):
                    self._lose(position, lost)
                if rest:
                    break
                continue
            if self._hold(position, model, began, *seen):
                turned.append(model)
        return turned

    def _go_on(self, asked: Sequence[asyncio.Future[ModelFacts]]) -> None:
        """Let looks end by themselves; they are bounded in time."""

        def ended(look: asyncio.Future[ModelFacts]) -> None:
            self._late.discard(look)
            if not look.cancelled():
                look.exception()  # who does not answer is looked at again by the next poll

        for look in asked:
            self._late.add(look)
            look.add_done_callback(ended)

    def _hold(
        self, position: int, model: str, began: float, sight: Sight, facts: ModelFacts | None, *, timely: bool = False
    ) -> bool:
        """Remember a look; whether it shows, or may, another model than the one before, which is told. What the first
        of the replicas that answer says of the model holds for all.

        A first look has none before it. If it began when the model was learnt (``timely``) it shows what has answered,
        unless the replica may have done so already; if it came later, what answered until then may have been another
        one. Of a model that was only remembered nothing has answered yet, unless the replica may have.
        """
        known = self._known.get(model)
        if known is None:  # nobody's any more
            return False
        before = known.sights.get(position)
        known.sights[position], known.began[position] = sight, began
        known.take(position, facts, before, sight)
        known.tell(position, facts)
        if before is None:
            is_another = not sight.gone and (
                not (timely or known.is_remembered) or self._may_have_answered(self._replicas[position].url, model)
            )
        else:
            is_another = changed(before, sight)
        if not is_another:
            return False
        known.of_version.clear()
        known.turns += 1
        (self._on_doubt if before is None else self._on_change)(model)
        return True

    def _lose(self, position: int, model: str) -> None:
        known = self._known.get(model)
        if known is None:
            return
        known.tell(position, None)
        if position in known.sights:
            known.sights[position] = msgspec.structs.replace(known.sights[position], lost=True)

    async def _see(self, replica: Asked, model: str, deadline: Deadline, probe: bool) -> tuple[Sight, ModelFacts]:
        """Look at a model; a ``probe`` waits behind nothing that callers ask, or they could keep a change from
        being seen."""
        path = _path(model, "")
        metadata_body = await self._get(replica, path, deadline, probe=probe)
        config_body = await self._get(replica, path + "/config", deadline, probe=probe)
        stats_body = await self._get(replica, path + "/stats", deadline, probe=probe)
        metadata = _decoded(metadata_body, Metadata, replica, path)
        config = _decoded(config_body, ModelConfig, replica, path)
        _require_same(model, metadata, config, replica)
        stats = _decoded(stats_body, Statistics, replica, path)
        sight = Sight(
            frozenset(metadata.versions),
            # Not adversarial and off the hot path: the replica's own bytes, only ever compared with its own.
            hashlib.blake2b(config_body, digest_size=16).digest(),
            {each.version: totals(each) for each in stats.model_stats},
            {each.version: each.last_inference for each in stats.model_stats},
            spent(stats),
        )
        return sight, read_facts(metadata, config)

    async def _describe(self, replica: Asked, model: str, version: str, deadline: Deadline) -> ModelFacts:
        path = _path(model, version)
        metadata = _decoded(await self._get(replica, path, deadline), Metadata, replica, path)
        config = _decoded(await self._get(replica, path + "/config", deadline), ModelConfig, replica, path)
        _require_same(model, metadata, config, replica)
        return read_facts(metadata, config)

    async def _get(self, replica: Asked, path: str, deadline: Deadline, probe: bool = False) -> bytes:
        reply = await replica.exchange(Call("GET", path, probe=probe), deadline, self._now())
        if reply.status == 200:
            return reply.body
        text = reply.body[:500].decode("utf-8", "replace")
        if reply.status in {400, 404}:  # Triton says 400 for the statistics of a model that is not loaded
            try:
                text = msgspec.json.decode(reply.body, type=dict[str, str]).get("error", text)
            except msgspec.DecodeError:
                raise UpstreamError(Failure.BROKEN, f"{replica.url} is no Triton: {text}", reply.status) from None
            raise Rejected(404, text)
        failure = Failure.OVERLOADED if reply.status in {429, 503} else Failure.BROKEN
        raise UpstreamError(failure, f"{replica.url} answered {path} with {reply.status}: {text}", reply.status)


async def _end(tasks: Sequence[asyncio.Future[T]]) -> None:
    """Cancel what is left of them, and see to it that it is over."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _path(model: str, version: str) -> str:
    path = f"/v2/models/{quote(model, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _require_same(model: str, metadata: Metadata, config: ModelConfig, replica: Asked) -> None:
    """Raise if it tells of something else than was asked for: Triton hears a request line wrongly that comes to it in
    pieces (see ``backends/refusal.py``), and its own metadata have a name too, and no inputs."""
    if metadata.name != model or config.name not in ("", model):
        said = f"{replica.url} was asked about {model} and told of {metadata.name} and {config.name}"
        raise UpstreamError(Failure.BROKEN, said, 200)


def _decoded(body: bytes, kind: type[T], replica: Asked, path: str) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamError(Failure.BROKEN, f"{replica.url} answered {path} with nonsense: {error}", 200) from error
