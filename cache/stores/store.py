"""What a store is to us: keys in, values out, both bytes as the store holds them.

Rule of this file: the seam alone. What an adapter raises is a `StoreError` and nothing else; every call has its own
bound in time, and never waits longer. It knows neither tables nor what a value means (that is ``cache/vector.py``'s).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

KINDS: Final = (
    "unreachable",  # no connection, or it broke
    "timeout",  # no answer within the call's time
    "refused",  # it answers, and does not let us: password, ACL, read-only
    "loading",  # it reads its own data in
    "wrong-type",  # something else than a value of ours is under that key
    "full",  # it has no memory left, or its file no room
    "unavailable",  # it is up and cannot serve: no master, a slot without a node
    "corrupt",  # what it holds is not what it should be
    "open",  # not asked: a breaker has it that it would fail
    "crowded",  # not asked, or not soon enough: others' keys came first
    "late",  # it answered in time, and not for this key
)
"""What can be wrong with a store, each in one word: labels of metrics, fields of the log."""

OF_ONE_KEY: Final = frozenset({"wrong-type", "corrupt"})
"""Those that speak against one value, and not against the store."""

NOT_ASKED: Final = frozenset({"open", "crowded"})
"""Those that say nothing of the store at all."""


class StoreError(Exception):
    """A store did not do what it was asked. ``kind`` is one of `KINDS`."""

    def __init__(self, kind: str, message: str = "") -> None:
        assert kind in KINDS
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind = kind


Found = bytes | None | StoreError
"""What is under a key: its value, nothing, or why that key alone could not be read."""


class Store(Protocol):
    """A map from bytes to bytes, elsewhere. Every call may take ``seconds`` and no longer.

    All calls raise StoreError. Keys need not differ from each other; values come in the order of the keys.
    """

    async def get_many(self, keys: Sequence[bytes], seconds: float) -> list[Found]:
        """What is under each key. Raises only if no key at all could be read, and each for a reason of the store's;
        otherwise the reason stands in the key's place, so that one broken value, one broken node of a cluster, or more
        keys than can be read within ``seconds``, costs its own keys alone."""

    async def put_many(self, pairs: Sequence[tuple[bytes, bytes]], ttl: float | None, seconds: float) -> None:
        """Write every pair; after ``ttl`` seconds it is gone (None: never). If it raises, any of them may be
        written."""

    async def delete_many(self, keys: Sequence[bytes], seconds: float) -> None:
        """Remove what is under the keys, if anything is."""

    async def healthy(self, seconds: float) -> bool:
        """Whether it would answer a read now. Raises nothing."""

    async def close(self) -> None:
        """Give back what it holds. Calls afterwards fail."""


class Permit(Protocol):
    """Leave to make one call; ended exactly once (degrade/breaker.py's, in life)."""

    def succeeded(self, now: float) -> None: ...
    def failed(self, now: float, reason: str) -> None: ...
    def silent(self, now: float, reason: str) -> None: ...
    def ignored(self, now: float) -> None: ...


class Gate(Protocol):
    """Whether something may be asked now (a breaker, in life)."""

    @property
    def state(self) -> str: ...
    def allows(self, now: float) -> bool: ...
    def acquire(self, now: float) -> Permit | None: ...
    def retry_after(self, now: float) -> float: ...


def raise_if_nothing(found: Sequence[Found]) -> None:
    """Raise the first reason if there is nothing but reasons of the store's own."""
    first: StoreError | None = None
    for each in found:
        if not isinstance(each, StoreError) or each.kind in OF_ONE_KEY:
            return
        first = first or each
    if first is not None:
        raise StoreError(first.kind, str(first).partition(": ")[2])
