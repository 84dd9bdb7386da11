"""What the second act plays on: one gateway whose tables are in one store, the questions put to it, and how its tables
are loaded.

Rule of this file: it starts, stops and loads, as commands do; what is shown of it is ``act.py``'s and ``endings.py``'s.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from rich.console import Console
from rich.text import Text

from examples.console import DemoFailed, quote, say, step
from examples.digits.repository import Ranking
from examples.gatewayprocess import GatewayProcess, environment, toml
from examples.ranking.asking import TABLES, Ranked, Ranker, Table, configuration

ITEMS: Final = 200
"""Candidates of one request."""
QUESTIONS: Final = 15
"""Each of another user about other items; those that are left over stay unasked for."""
SEED: Final = 5
LOAD_SECONDS_MAX: Final = 60.0


@dataclass(frozen=True)
class Question:
    """One user, and the candidates to put in order."""

    user: int
    items: tuple[int, ...]


class Scene:
    """The gateway, as a context manager, and who asks it. ``folder`` is for what it is made of."""

    def __init__(
        self, console: Console, triton_url: str, ranking: Ranking, folder: Path, tables: Mapping[str, Table]
    ) -> None:
        """``tables``: where each is, and what else the store makes of it."""
        self.console = console
        self.ranking = ranking
        self.folder = folder
        config = configuration(triton_url, tables)
        self._file = folder / "tailrace.toml"
        self._file.write_text(toml(config))
        self.gateway = GatewayProcess(config)
        self.ranker = Ranker("")
        mixed = [int(each) for each in np.random.default_rng(SEED).permutation(len(ranking.items))]
        self.questions = [
            Question(number, tuple(mixed[number * ITEMS : (number + 1) * ITEMS])) for number in range(QUESTIONS)
        ]
        self.spare = mixed[QUESTIONS * ITEMS :]
        """Items that no question is about."""

    @property
    def stranger(self) -> int:
        """A user whom no question is of."""
        return len(self.ranking.users) - 1

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        self.gateway.start()
        self.ranker = Ranker(self.gateway.http_address)

    def stop(self) -> None:
        self.ranker.close()
        self.gateway.stop()

    def restart(self) -> None:
        with step(self.console, "starting the gateway anew"):
            self.stop()
            self.start()

    def load(self) -> None:
        """Fill the store with the command that users have for that. Raises DemoFailed with its words."""
        for name in TABLES:
            source = self.ranking.tables / f"{name}.npz"
            self.tell(f"$ tailrace table load {name} --config {self._file.name} --from {source.name}")
            arguments = ["table", "load", name, "--config", str(self._file), "--from", str(source), "--restart"]
            done = subprocess.run(
                [sys.executable, "-m", "gateway.cli", *arguments],
                env=environment(),
                capture_output=True,
                text=True,
                timeout=LOAD_SECONDS_MAX,
                check=False,
            )
            if done.returncode != 0:
                raise DemoFailed(f"table {name} was not loaded: {done.stderr[-2000:]}")
            quote(self.console, done.stdout.splitlines(), True)

    def tell(self, command: str) -> None:
        """A command as a person would type it."""
        self.console.print(Text("    " + command, style="green"), soft_wrap=True)

    def show(self, answer: Ranked, words: str) -> None:
        """An answer, under what it is an answer to."""
        say(self.console, words)
        lines = [f"HTTP {answer.status}"] + ([f"Tailrace-Provenance: {answer.header}"] if answer.header else [])
        if not len(answer.scores):
            lines.append(str(answer.told.get("detail", answer.told)))
        quote(self.console, lines, len(answer.scores) > 0)
