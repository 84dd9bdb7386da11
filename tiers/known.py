"""What is known of one model: what each of a backend's replicas last said of it and has done, joined into one word.

Rule of this file: it keeps and joins; it asks nobody (``tiers/catalog.py`` does), and says of no look what it means.
"""

from __future__ import annotations

from tiers.facts import Capacity, ModelFacts, Sight, Spent


class Known:
    """A model's facts, those of versions that were asked for by number, and by position what each replica that
    answers says of the model and the last look at it there."""

    __slots__ = (
        "began", "capacity", "facts", "instances", "is_remembered", "of_version", "sights", "taken", "told", "turns",
    )  # fmt: skip

    def __init__(self, facts: ModelFacts) -> None:
        self.facts = facts
        self.began: dict[int, float] = {}  # when each of those looks began
        self.told: dict[int, ModelFacts] = {}
        self.of_version: dict[str, ModelFacts] = {}
        self.sights: dict[int, Sight] = {}
        self.instances: dict[int, int] = {}  # of each that has it, as it last said: a late look says nothing
        self.taken: dict[int, tuple[float, float]] = {}  # seconds of a request lately: by its instance, in the server
        self.capacity: Capacity | None = None
        self.is_remembered = False  # an earlier process's word
        self.turns = 0  # how often it has become another model

    def tell(self, position: int, facts: ModelFacts | None) -> None:
        """What a replica says now; None: nothing. While nobody says anything the facts stay."""
        if facts is None:
            self.told.pop(position, None)
        else:
            self.told[position] = facts
        if self.told:
            self.facts = self.told[min(self.told)]

    def take(self, position: int, facts: ModelFacts | None, before: Sight | None, after: Sight) -> None:
        """What a replica has done between two looks, or before the first; ``facts`` None: the model has gone."""
        if facts is None:
            self.instances.pop(position, None)
        else:
            self.instances[position] = facts.instances
        then = before.spent if before is not None and before.spent.requests <= after.spent.requests else Spent()
        requests = after.spent.requests - then.requests
        if requests > 0:
            computed, served = after.spent.computed_ns - then.computed_ns, after.spent.served_ns - then.served_ns
            self.taken[position] = computed / requests / 1e9, served / requests / 1e9
        self._measure()

    def _measure(self) -> None:
        """All of those who have it; None as long as that is not known of each."""
        taken = [self.taken[position] for position in self.instances if position in self.taken]
        self.capacity = None
        if all(self.instances.values()) and taken:
            computed, served = (sum(each) / len(taken) for each in zip(*taken, strict=True))
            places = sum(self.instances.values())
            self.capacity = Capacity(places, computed, served) if computed > 0.0 else None
