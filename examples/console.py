"""What a program here tells a person while it runs, and how it ends.

Rule of this file: words go to the console that it is given, in plain lines where no terminal shows a spinner; and
however a program ends, what it started is stopped first. It knows nothing of what is shown.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Final

from rich.console import Console
from rich.text import Text

INTERRUPTED: Final = 130
"""The exit code of a program that Ctrl-C ended, as shells have it."""


def plain_console() -> Console:
    """Standard output; lines are not broken where no terminal has a width."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def exit_code(
    console: Console,
    name: str,
    work: Callable[[ExitStack], None],
    failures: tuple[type[Exception], ...],
    interrupted: int = INTERRUPTED,
) -> int:
    """Do ``work`` with a stack of what it starts, stop all of that, and return 0.

    Or 1 for one of ``failures``, whose words are shown after ``name``; or ``interrupted`` for Ctrl-C and SIGTERM.
    """
    try:
        with _ending_on_sigterm(), ExitStack() as stack:
            work(stack)
    except failures as error:
        console.print(Text(f"\n{name}: {error}", style="red"))
        return 1
    except KeyboardInterrupt:
        console.print("\nStopped; nothing is left running.")
        return interrupted
    return 0


@contextmanager
def step(console: Console, words: str) -> Iterator[None]:
    """Show that something takes time: a spinner on a terminal, a plain line elsewhere."""
    if console.is_terminal:
        with console.status(words):
            yield
    else:
        say(console, f"{words} ...")
        yield


def say(console: Console, words: str) -> None:
    """One line, a little in from the edge."""
    console.print(Text("  " + words))


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the program as Ctrl-C does, so that everything is stopped."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
