"""What an answer is, by what its caller knows itself: its own input, when the model computed, who wrote what when.

Rule of this file: pure, and the only place that says what counts as what. What the gateway says of an answer (its
labels) is what is on trial. It knows no socket and no fault; that something was broken just then excuses nothing here.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

DEADLINE_SECONDS: Final = 2.0
TTL_SECONDS: Final = 1.0
SECOND_TTL_SECONDS: Final = 5.0
COHERENT_SECONDS: Final = 1.0
"""``coherent_within`` of the users' table."""

GOOD: Final = ("fresh", "hit", "stale", "snapshot", "fast-only", "default")
BAD: Final = ("wrong", "unlabelled", "hung", "error", "dropped")
OUTCOMES: Final = (*GOOD, "503", "cut", *BAD)
"""``snapshot``: right once, and left by an earlier process. ``cut``: its connection ended with the worker at its other
end, or with the link that was broken under it."""

KINDS: Final = ("plain", "cascade", "rows", "second", "rpc", "features")

Rows = tuple[tuple[float, ...], ...]


class Question(Struct, frozen=True):
    """``kind``: the route, or the model. ``rows`` of the route's model; with features (user, item). ``by_grpc``: how
    Triton itself is asked."""

    kind: str
    rows: Rows
    by_grpc: bool = False


class Answer(Struct, frozen=True):
    """What came, when it was asked for and when it came: Unix seconds. ``slack``: seconds that workers were held up by
    then, which no worker can know of."""

    status: int
    headers: Mapping[str, str]
    document: Mapping[str, Any]
    sent: float
    received: float
    slack: float = 0.0


class Verdict(Struct, frozen=True):
    """``age``: of what is stale, in seconds. ``why``: of what is bad."""

    outcome: str
    age: float = 0.0
    why: str = ""


class Board:
    """Who wrote what when: rows of users (number, version), whose versions only rise."""

    def __init__(self) -> None:
        self.written: dict[int, dict[int, float]] = {}
        """By user: when each version was sent."""
        self._acknowledged: dict[int, tuple[list[float], list[int]]] = {}

    def write(self, user: int, version: int, now: float) -> None:
        self.written.setdefault(user, {})[version] = now

    def acknowledge(self, user: int, version: int, now: float) -> None:
        times, versions = self._acknowledged.setdefault(user, ([], []))
        times.append(now)
        versions.append(version)

    def newest(self, user: int, at: float) -> int:
        """The last version that was acknowledged by then; 0: none."""
        times, versions = self._acknowledged.get(user, ([], []))
        place = bisect_right(times, at)
        return versions[place - 1] if place else 0


def item_row(item: float) -> tuple[float, float]:
    return item, 7 * item + 1


def judged(question: Question, answer: Answer, board: Board) -> Verdict:
    """What came of a question that was answered at all."""
    if answer.status == 503:
        return _refused(answer)
    if answer.status != 200:
        return Verdict("error", why=f"status {answer.status}: {answer.document.get('error')}")
    try:
        outputs = {output["name"]: output["data"] for output in answer.document["outputs"]}
        width = len(outputs["y"]) // len(outputs["at"])
        rows = [tuple(outputs["y"][start : start + width]) for start in range(0, len(outputs["y"]), width)]
        whole = Whole(rows, outputs["at"], outputs["who"], answer.headers.get("Tailrace-Provenance", ""))
    except (KeyError, TypeError, ZeroDivisionError) as error:
        return Verdict("wrong", why=f"no answer of the model: {error!r}")
    return _featured(question, answer, whole, board) if question.kind == "features" else _plain(question, answer, whole)


class Whole(Struct, frozen=True):
    """An answer's parts: rows as the model echoed them, when it did, and who."""

    rows: Sequence[tuple[float, ...]]
    at: Sequence[float]
    who: Sequence[float]
    label: str

    @property
    def cache(self) -> str:
        return _word(self.label, r"\bcache=(\w+)")

    @property
    def is_left(self) -> bool:
        """Whether it is a hit of what an earlier process has left."""
        return _word(self.label, r"\breason=(\w+)") == "snapshot"

    @property
    def steps(self) -> Sequence[str]:
        return _word(self.label, r"steps=\(([^)]*)\)").split()

    @property
    def degraded(self) -> bool:
        return re.search(r", degraded(?:,|$)", self.label) is not None

    def table(self, name: str) -> Mapping[str, int]:
        """How many of a table's rows were what."""
        told = _word(self.label, rf"[( ]{name}((?:;\w+=\d+)+)")
        return {word: int(count) for word, count in re.findall(r";(\w+)=(\d+)", told)}


def _word(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""


def _refused(answer: Answer) -> Verdict:
    """A 503 says what is wrong, in the form of a problem, and when to come again where that is of use."""
    document = answer.document
    in_vain = str(document.get("type", "")).endswith(":model-failed")
    again = in_vain or int(answer.headers.get("Retry-After") or "0") >= 1
    if "problem+json" in answer.headers.get("Content-Type", "") and document.get("error") and again:
        return Verdict("503")
    return Verdict("error", why="a 503 that is no problem document")


def _plain(question: Question, answer: Answer, whole: Whole) -> Verdict:
    if tuple(whole.rows) != question.rows:
        return Verdict("wrong", why=f"{question.rows} came back as {whole.rows}")
    age = answer.sent - min(whole.at)
    unsure = [row[0] % 2 == 1 and who == 0.0 for row, who in zip(whole.rows, whole.who, strict=True)]
    fast_only = question.kind == "cascade" and any(unsure)
    status = answer.headers.get("Cache-Status", "")
    late = DEADLINE_SECONDS + answer.slack
    if fast_only:
        told = whole.degraded and "tier" in whole.steps and whole.cache in ("miss", "bypass") and "stored" not in status
        return Verdict("fast-only") if told else Verdict("unlabelled", why="a fast tier's answer that it was unsure of")
    match whole.cache:
        case "stale":
            said = float(answer.headers.get("Age", "-1"))
            told = age - late - 1.0 <= said <= answer.received - min(whole.at) + 1.0
            left = "snapshot" in whole.steps  # maybe within its ttl: nobody can say whether its model is the same
            if ("ttl=-" in status or left) and whole.degraded and told:
                return Verdict("snapshot" if left else "stale", max(0.0, age))
            return Verdict("unlabelled", why=f"stale, and {age:.1f} s old")
        case "hit":
            lives = SECOND_TTL_SECONDS if question.kind == "second" else TTL_SECONDS
            ok, outcome = age <= lives + late and not whole.degraded, "snapshot" if whole.is_left else "hit"
        case "miss" | "bypass":
            kept = TTL_SECONDS if "kept=" in whole.label else 0.0
            ok, outcome = age <= kept + late and not whole.degraded, "fresh"
        case _:
            return Verdict("unlabelled", why="no label")
    return Verdict(outcome) if ok else Verdict("unlabelled", why=f"called {outcome} and {age:.1f} s old")


_WORSE: Final = ("fresh", "stale", "snapshot", "default", "unlabelled", "wrong")


def _featured(question: Question, answer: Answer, whole: Whole, board: Board) -> Verdict:
    """One user and one item: rows of two tables, side by side."""
    ((user, item),) = question.rows
    if len(whole.rows) != 1 or len(whole.rows[0]) != 4:
        return Verdict("wrong", why=f"rows {whole.rows}")
    found = whole.rows[0]
    if answer.sent - whole.at[0] > DEADLINE_SECONDS + answer.slack:
        return Verdict("unlabelled", why="a model's answer of before")
    verdicts = [
        _user(int(user), found[:2], answer, whole.table("user"), board),
        _item(item, found[2:], whole.table("item")),
    ]
    worst = max(verdicts, key=lambda verdict: _WORSE.index(verdict.outcome))
    lost = any(whole.table(name).get(word) for name in ("user", "item") for word in ("lost", "stale", "snapshot"))
    if worst.outcome in GOOD and bool(lost) != whole.degraded:
        return Verdict("unlabelled", why="degraded where it is not, or not where it is")
    return worst


def _user(user: int, row: tuple[float, ...], answer: Answer, told: Mapping[str, int], board: Board) -> Verdict:
    if row == (0.0, 0.0):
        return _default("user", told)
    version = int(row[1])
    if row[0] != user or version not in board.written.get(user, {}):
        return Verdict("wrong", why=f"user {user} came back as {row}")
    if told.get("stale") or told.get("snapshot"):
        return Verdict("stale" if told.get("stale") else "snapshot", answer.sent - board.written[user][version])
    newest = board.newest(user, answer.sent - COHERENT_SECONDS - DEADLINE_SECONDS - answer.slack)
    if told.get("fresh") and version >= newest:
        return Verdict("fresh")
    return Verdict("unlabelled", why=f"user {user} is of version {version}, and {newest} was written long before")


def _item(item: float, row: tuple[float, ...], told: Mapping[str, int]) -> Verdict:
    if row == (0.0, 0.0):
        return _default("item", told)
    if row != item_row(item):
        return Verdict("wrong", why=f"item {item} came back as {row}")
    if told.get("stale") or told.get("snapshot"):
        return Verdict("stale" if told.get("stale") else "snapshot")
    return Verdict("fresh") if told.get("fresh") else Verdict("unlabelled", why=f"item {item}: {told}")


def _default(table: str, told: Mapping[str, int]) -> Verdict:
    if told.get("lost") or told.get("absent"):
        return Verdict("default")
    return Verdict("unlabelled", why=f"a default of {table}: {told}")
