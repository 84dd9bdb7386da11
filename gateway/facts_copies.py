"""Copies of what models say of themselves in the snapshot: with them a start reads requests before a server answers.

Rule of this file: as ``copies.py``, for facts. They are few, and every pass looks at all of them: what has changed
since it was written last goes with the answers that were made by it. A catalog that was told of them has them until
its servers say something themselves (``tiers/catalog.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec
from blake3 import blake3

from cache.sealed import value_of
from degrade.calendar import Calendar
from degrade.record import Record, Terms, name_of, packed
from gateway.config import Config
from gateway.copies import Pending, Records
from gateway.learning import Home
from gateway.reads import LookTime
from gateway.sharing import addresses_of
from tiers.facts import ModelFacts

READ_SECONDS_MAX: Final = 15.0
"""For reading one at a start."""
FACTS_SECONDS_MAX: Final = 30 * 86400.0
"""What a model was so long ago is no help: it is asked anew as soon as it answers, however young that is."""
FACTS_AGAIN_SECONDS: Final = 86400.0
"""So often a model that stays what it is is written down again: it is not to be that old while a gateway runs."""
FACTS: Final = "facts"
_READ_TIME: Final = LookTime(READ_SECONDS_MAX, READ_SECONDS_MAX)


def _facts_of(payload: bytes) -> ModelFacts | None:
    return value_of(ModelFacts, payload)


_TERMS: Final = Terms(blake3(b"tailrace facts 1").digest(16), FACTS_SECONDS_MAX, _facts_of)

Remembered = Mapping[tuple[str, str], ModelFacts]
"""By backend and model."""


class FactsCopies:
    """Of all models that routes name. Belongs to one event loop."""

    def __init__(self, records: Records, calendar: Calendar) -> None:
        self._records = records
        self._calendar = calendar
        self._written: dict[tuple[str, str], tuple[ModelFacts, float]] = {}  # last, and when
        self._homes: Mapping[str, Home] = {}
        self._models: list[tuple[str, str, str]] = []
        self._servers: dict[str, bytes] = {}
        self.are_whole = False
        """Whether all models of the last configuration that was asked about are remembered, of the same servers."""

    async def remembered(self, config: Config) -> Remembered:
        """What the models of a configuration's routes said of themselves to an earlier process."""
        now, found = self._calendar.now(), {}
        models = _models_of(config)
        self.are_whole = bool(models)
        for backend, model, _ in models:
            key = model.encode()
            (good,) = await self._records.read(FACTS, _source(backend), [key], _TERMS, now, _READ_TIME)
            if good is not None:
                found[backend, model] = good.value
            self.are_whole &= good is not None and good.record.word == _servers(config, backend)
        return found

    def seed(self, config: Config, homes: Mapping[str, Home], remembered: Remembered) -> bool:
        """Tell the catalogs what models were, until they say so themselves; whether they were told anything. These are
        copied from now on, and no others."""
        self._homes, self._models = homes, _models_of(config)
        self._servers = {backend: _servers(config, backend) for backend, _, _ in self._models}
        for (backend, model), facts in remembered.items():
            homes[backend].catalog.remember(model, facts)
        return bool(remembered)

    def changed(self) -> list[Pending]:
        """What models say of themselves, where it is not what was written last. It is taken to be written now."""
        pending, now = [], self._calendar.now()
        for backend, model, _ in self._models:
            home = self._homes.get(backend)
            facts = None if home is None else home.catalog.recall(model, "")
            known, at = self._written.get((backend, model), (None, now))
            if facts is None or (facts == known and now - at < FACTS_AGAIN_SECONDS):
                continue
            self._written[backend, model] = facts, now
            key, source = model.encode(), _source(backend)
            payload = msgspec.msgpack.encode(facts)
            word = self._servers[backend]
            record = Record(FACTS, source, key, _TERMS.fingerprint, word, now, now, payload)
            pending.append(Pending(name_of(FACTS, source, key), packed(record)))
        return pending

    def again(self) -> None:
        """All are to be written with the next pass: the last one failed, or a new generation has begun."""
        self._written.clear()


def _source(backend: str) -> str:
    return f"backends/{backend}"


def _servers(config: Config, backend: str) -> bytes:
    """Which servers a backend has."""
    return blake3(msgspec.msgpack.encode(addresses_of(config, backend))).digest(16)


def _models_of(config: Config) -> list[tuple[str, str, str]]:
    """Backend, name and version of each, once."""
    tiers = [tier for route in config.routes.values() for tier in route.tiers]
    return list(dict.fromkeys((tier.backend, tier.model, tier.version) for tier in tiers))
