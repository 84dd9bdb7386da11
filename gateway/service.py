"""What the pipeline answers for: a route's models, or an endpoint's server, behind one face.

Rule of this file: values and shapes that both have, and what their configuration makes alike. It knows no tensor, no
path and no order: that is ``pipeline.py``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final, Generic, Protocol, Self, TypeVar
from urllib.parse import quote

import msgspec

from cache.bounded import Bounded
from cache.digest import Key
from cache.entry import Entry, Found
from cache.flight import Flights
from cache.policy import POLICIES, Policy
from cache.response import ResponseCache
from degrade.deadline import Deadline, Ticker
from degrade.gate import Priority
from degrade.ladder import Step
from gateway.admission.auth import Caller
from gateway.admission.quota import Quota
from gateway.config import CacheConfig, Endpoint, QuotaConfig, Route
from gateway.recall import RecallRules
from tiers.cascade import CascadeOptions
from tiers.inference import Passed, TableTold, UpstreamError

_QUOTA_NAME_SAFE: Final = " !$&'()*+,-.:;<=>@[]^_`{|}~"
"""What a quota's name keeps as it is: RFC 9651 strings hold printable ASCII and nothing else."""

FLIGHTS_MAX: Final = 4096
"""Distinct fills of one route or endpoint under way at once; beyond it callers fetch for themselves."""

ENTRY_OVERHEAD_BYTES: Final = 512
"""What an entry costs beyond its answer's size: key, bookkeeping of cache and policy."""

NO_EPOCH: Final = -1
"""Of an answer that is an old one, whatever happens."""

_ASIDE: Final = ("quota", "caller_quota", "timeout", "degrade", "priority", "brownout")
"""What a configuration says of who is answered, when and in which need, and not of answers."""

DECENT_SHARE: Final = 0.7
"""The share of a route's time whose silence speaks against a model. A tier with another behind it has eight tenths
of it; what a caller's own shorter time leaves says nothing, or one caller could take a model from all others."""


class Response(Protocol):
    """An answer as the cache and its labels see it; InferResponse or Page in life."""

    @property
    def version(self) -> str: ...
    @property
    def size(self) -> int: ...
    def compact(self) -> Self: ...


Q = TypeVar("Q")
R = TypeVar("R", bound=Response)
C = TypeVar("C", Route, Endpoint)
R_co = TypeVar("R_co", bound=Response, covariant=True)


class Served(msgspec.Struct, Generic[R_co], frozen=True, gc=False):
    """An answer and where it came from: what the cache keeps. ``tier``: the model whose answer it is; "" where there
    are none. ``batch`` is None when the model does not batch and the answer is one whole. ``tables``: what it was made
    of."""

    response: R_co
    tier: str = ""
    rows: int = 0
    rows_escalated: int = 0
    batch: int | None = None
    tables: tuple[TableTold, ...] = ()


class Terms(msgspec.Struct, frozen=True):
    """How a request is asked. ``key``: where its answer will be true; None: it is not to be kept. ``reuse``: whether
    parts of it that are known will do. ``options``: see ``CascadeOptions``."""

    caller: Caller
    key: Key | None
    reuse: bool
    options: CascadeOptions


class Given(msgspec.Struct, Generic[R], frozen=True):
    """What those asked have given: an answer, whose it is by rows, what failed on the way (see ``CascadeAnswer``), and
    how many rows were escalated for it.
    ``rows_kept``: how many of its rows were known already; ``made_at``: when its oldest part was made, if not now.
    ``second``: all of it is from where other processes leave answers; nobody was asked. ``has_nan``: some number of it
    is none, and it is not to be kept for that."""

    served: Served[R]
    tier_rows: tuple[tuple[str, int], ...] = ()
    passed: tuple[Passed, ...] = ()
    degraded: bool = False
    rows_escalated: int = 0
    rows_kept: int = 0
    made_at: float | None = None
    second: bool = False
    has_nan: bool = False

    @property
    def may_stay(self) -> bool:
        """Whether it may be kept."""
        return not (self.degraded or self.has_nan)

    @property
    def steps(self) -> tuple[str, ...]:
        """What was taken in place of what health would give, in order: of tables, then the ladder's steps."""
        of_tables = [step for told in self.served.tables for step in told.steps]
        return (*of_tables, *[each.step.value for each in self.passed])


class Filled(msgspec.Struct, Generic[R], frozen=True):
    """What a fill brings to all who waited: the answer, the ladder's steps on the way, its entry. ``key``: where it is
    true; None: nowhere but for the one who asked. ``alike``: all who asked under the flight's key asked the same.
    ``rows_kept``: how many of its rows were known already; ``made_at``: when its oldest part was made, if not now.
    ``again``: an entry for an answer that nobody was asked for, kept or not."""

    served: Served[R]
    steps: tuple[str, ...]
    degraded: bool
    entry: Entry[Served[R]] | None
    key: Key | None
    alike: bool
    rows_kept: int = 0
    made_at: float | None = None
    again: Entry[Served[R]] | None = None


class Heading(msgspec.Struct, frozen=True):
    """How a hit's HTTP/1.1 response begins: the same for all entries that differ in their bytes only.

    ``lines`` are its status line, ``headers``, Content-Length and provenance, with places (``%d``) for the
    whole seconds of time to live, of age, and of age again; what changes from hit to hit follows them.
    """

    headers: tuple[tuple[str, str], ...]
    lines: bytes = b""


class Wire(msgspec.Struct, frozen=True, gc=False):
    """An answer in a wire's own bytes, ready to send."""

    body: bytes
    heading: Heading


class Allowance(msgspec.Struct, frozen=True):
    """One quota that a request must pass. ``per_caller``: each caller has one of its own."""

    quota: Quota
    hits_count: bool
    per_caller: bool


class Admitted(msgspec.Struct, frozen=True):
    """A request that may be worked on. ``rows``: how many, None if it is one whole. ``stateful``: why its answer is
    never cached after all, in one word; "" if it may be."""

    rows: int | None = None
    stateful: str = ""


class Shelf(Protocol):
    """A cache as operators see it."""

    @property
    def entries(self) -> int: ...
    @property
    def bytes_used(self) -> int: ...
    @property
    def bytes_max(self) -> int: ...
    @property
    def evictions(self) -> int: ...
    def purge(self) -> int: ...


class AnswerShelf(Shelf, Protocol):
    """A cache of answers, as those see it who do not ask what its answers are."""

    @property
    def wires(self) -> int: ...
    @property
    def rejections(self) -> int: ...
    def find_wire(self, wire: bytes, epoch: int, now: float) -> tuple[Entry[Served[Response]], Wire] | None: ...


class Underway(Protocol):
    """Flights as operators see them."""

    def __len__(self) -> int: ...
    @property
    def waiters(self) -> int: ...


class SecondShelf(Protocol):
    """What several processes share, as operators see it. ``state``: why it is used or not, in one word."""

    @property
    def state(self) -> str: ...
    @property
    def is_used(self) -> bool: ...
    @property
    def counts(self) -> Mapping[str, int]: ...
    @property
    def waiting(self) -> int: ...
    def end_turn(self) -> None: ...
    async def settled(self, seconds: float) -> bool: ...


class CopiesShown(Protocol):
    """What is copied to the disk, as operators see it. ``state``: see ``Standing``; ``outcomes``: of look-ups;
    ``large``: how many are not left there, being too large."""


    @property
    def state(self) -> str: ...
    @property
    def outcomes(self) -> Mapping[str, int]: ...
    @property
    def large(self) -> int: ...


class Watched(Protocol):
    """A service, whatever it is asked and answers. ``limit``: the key of the bound on its bodies; ``asks``: what it
    asks, in operators' words (BACKEND/MODEL, BACKEND/PATH)."""

    @property
    def name(self) -> str: ...
    @property
    def limit(self) -> str: ...
    @property
    def asks(self) -> list[str]: ...
    @property
    def cache(self) -> AnswerShelf | None: ...
    @property
    def flights(self) -> Underway: ...
    @property
    def refreshes(self) -> int: ...
    @property
    def level(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def row_cache(self) -> Shelf | None: ...
    @property
    def second(self) -> SecondShelf | None: ...
    @property
    def copies(self) -> CopiesShown | None: ...


class Service(Protocol[Q, R]):
    """Something that is asked ``Q`` and answers ``R``; Route and Endpoint in life.

    ``title`` is how problems name it; ``epoch`` grows when every answer so far may be wrong.
    """

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def timeout(self) -> float: ...
    @property
    def steps(self) -> tuple[Step, ...]: ...
    @property
    def allowances(self) -> tuple[Allowance, ...]: ...
    @property
    def priority(self) -> Priority: ...
    @property
    def browned(self) -> Collection[str]:
        """What may be done in a brownout: ``fast`` (the first tier's word), ``stale`` (an old answer first)."""

    @property
    def level(self) -> int:
        """The brownout level of those who are asked, now."""

    @property
    def cache(self) -> ResponseCache[Served[R], Wire] | None: ...
    @property
    def recall_rules(self) -> RecallRules: ...
    @property
    def in_parts(self) -> bool:
        """Whether parts of an answer are kept too, so that one given now may be older than that."""

    @property
    def flights(self) -> Flights[tuple[Key, int, Priority], Filled[R]]: ...
    @property
    def refreshing(self) -> set[Key]: ...
    @property
    def refreshes_max(self) -> int: ...
    @property
    def epoch(self) -> int: ...

    def uncacheable(self, request: Q) -> str:
        """Why a request is never cached, in one word; empty if it may be (DESIGN section 6)."""

    def digest(self, caller: Caller, request: Q) -> bytes:
        """What makes two requests the same one, but for the epoch."""

    def for_all(self, request: Q) -> Q:
        """The request as a flight sends it, less what is one caller's own."""

    async def admit(self, request: Q, deadline: Deadline, seconds: float) -> Admitted:
        """Hold a request against what is known of those who will be asked. Raises Refused, Rejected, UpstreamError,
        and TimeoutError after ``seconds``."""

    async def find(self, caller: Caller, request: Q, key: Key, now: float, until: float) -> Found[Served[R]] | None:
        """What is kept of the answer. There is a cache. ``until``: the request has time, monotonic seconds."""

    async def kept(self, caller: Caller, request: Q, key: Key, now: float, until: float) -> Found[Served[R]] | None:
        """What an earlier process has left of the answer, for the ladder: an old one, whatever it was then."""

    def declared(self, request: Q) -> Callable[[], R] | str:
        """What makes the answer that is declared for when nothing else is left; or why there is none, "" where nothing
        is declared."""

    async def found(self, seconds: float) -> bool:
        """Wait so long for those who cannot be reached to be back; whether one is."""

    async def ask(self, request: Q, deadline: Deadline, terms: Terms, ticker: Ticker) -> Given[R]:
        """The answer. Raises Rejected and UpstreamError."""

    def settled(self, caller: Caller, request: Q, key: Key, given: Given[R]) -> Key | None:
        """Where an answer to what was asked under ``key`` is true: there (that very key), or, as the answer tells,
        where more of the request is in it, or for nobody but who asked (None)."""

    def entry(self, served: Served[R], epoch: int, now: float) -> Entry[Served[R]]:
        """An entry for an answer that was made in ``epoch``."""

    def instead(self, error: UpstreamError) -> R | None:
        """What a caller gets where the ladder has come to its end, if that is not a problem of ours."""


def quota_of(name: str, config: QuotaConfig) -> Quota:
    """A configured quota as the limiter knows it; its name is told to callers, in printable ASCII."""
    told = quote(name, safe=_QUOTA_NAME_SAFE)
    return Quota(rate=float(config.rate), per=float(config.per), burst=config.burst_size, name=told)


def allowances_of(kind: str, name: str, shared: QuotaConfig | None, each: QuotaConfig | None) -> tuple[Allowance, ...]:
    """The quota of all callers together and that of each, of a ``kind`` of service ("route")."""
    found: list[Allowance] = []
    if shared is not None:
        found.append(Allowance(quota_of(f"{kind}:{name}", shared), shared.hits_count, per_caller=False))
    if each is not None:
        # Not "caller:": that is a caller's own quota, and a caller may be called like a route.
        found.append(Allowance(quota_of(f"{kind}-caller:{name}", each), each.hits_count, per_caller=True))
    return tuple(found)


def answers_alike(one: C, other: C, aside: str) -> bool:
    """Whether two configurations give the same answers to the same requests, and keep them for the same time.
    ``aside``: one more key that says nothing of that."""
    return msgspec.structs.replace(one, **{name: getattr(other, name) for name in (*_ASIDE, aside)}) == other


def cache_of(config: CacheConfig | None) -> ResponseCache[Served[R], Wire] | None:
    """An empty cache; None where nothing is cached."""
    if config is None:
        return None
    bytes_max = int(config.bytes_max)
    policy: Policy[Entry[Served[R]]] = POLICIES[config.policy](bytes_max)
    return ResponseCache(Bounded(bytes_max, policy))
