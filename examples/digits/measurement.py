"""The first act's figures: the models alone and the cascade over held-out digits, asked one way after the other.

Rule of this file: it asks as any client does (tritonclient over HTTP), every figure is measured in this run, and what
the gateway did is read from Triton's own statistics, so the table does not have to believe the gateway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import tritonclient.http as triton_http
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from examples.console import DemoFailed
from examples.tritonserver import ModelStatistics, TritonServer

SMALL: Final = "digits_small"
LARGE: Final = "digits_large"
BATCH: Final = 32
WANTED: Final = ("label", "probabilities")
"""Outputs asked for, in one order everywhere: another set or order is another question, and another entry."""

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass
class Pass:
    """What one walk over the digits gave: a label for each, and what each request took at the client."""

    labels: Labels
    seconds: list[float]

    def accuracy(self, truth: Labels) -> float:
        return float(np.mean(self.labels == truth))

    def percentile(self, share: float) -> str:
        return f"{np.percentile(np.array(self.seconds), share) * 1000:.2f} ms"


@dataclass
class Measured:
    """All that the table shows."""

    truth: Labels
    small: Pass
    large: Pass
    first: Pass
    second: Pass
    batches: Pass
    batches_again: Pass
    rows: int
    rows_escalated: int
    requests_again: int
    requests_again_at_triton: int


def measure(
    console: Console, client: triton_http.InferenceServerClient, triton: TritonServer, images: Images, truth: Labels
) -> Measured:
    """Send the digits every way the table needs. The models alone go through the gateway too, uncached."""
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:

        def walk(what: str, model: str, size: int = 1) -> Pass:
            task = progress.add_task(what, total=len(images))
            return _walk(client, model, images, size, lambda rows: progress.advance(task, rows))

        _walk(client, SMALL, images[:BATCH], 1, _nothing)  # connections and code paths warm up
        _walk(client, LARGE, images[:BATCH], 1, _nothing)
        small = walk(f"{SMALL} alone, uncached", SMALL)
        large = walk(f"{LARGE} alone, uncached", LARGE)
        cold = _counted(triton)
        first = walk("cascade, first pass, single rows", "digits")
        batches = walk(f"cascade, first pass, batches of {BATCH}", "digits", BATCH)
        warm = _counted(triton)
        second = walk("cascade, second pass, single rows", "digits")
        batches_again = walk(f"cascade, second pass, batches of {BATCH}", "digits", BATCH)
        after = _counted(triton)
    if not np.array_equal(first.labels, second.labels) or not np.array_equal(batches.labels, batches_again.labels):
        raise DemoFailed("the second pass gave other labels than the first")
    return Measured(
        truth=truth,
        small=small,
        large=large,
        first=first,
        second=second,
        batches=batches,
        batches_again=batches_again,
        rows=warm[SMALL].rows - cold[SMALL].rows,
        rows_escalated=warm[LARGE].rows - cold[LARGE].rows,
        requests_again=len(second.seconds) + len(batches_again.seconds),
        requests_again_at_triton=after[SMALL].requests - warm[SMALL].requests,
    )


def table(measured: Measured) -> Table:
    """The figures, as a person reads them."""
    shown = Table(title=f"{len(measured.truth)} held-out digits, each figure from this run", title_justify="left")
    for heading in ("", "accuracy", "p50", "p99"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for name, done in (
        ("fast tier alone", measured.small),
        ("large tier alone", measured.large),
        ("cascade, first time", measured.first),
        ("cascade, again (hits)", measured.second),
    ):
        shown.add_row(name, f"{done.accuracy(measured.truth):.2%}", done.percentile(50), done.percentile(99))
    shown.add_section()
    same = float(np.mean(measured.first.labels != measured.large.labels))
    escalated = measured.rows_escalated / max(measured.rows, 1)
    hits = 1 - measured.requests_again_at_triton / measured.requests_again
    shown.add_row("rows sent on to the large tier", f"{escalated:.1%}")
    shown.add_row("labels that differ from the large tier's", f"{same:.2%}")
    shown.add_row("second pass answered without Triton", f"{hits:.1%}")
    shown.caption = (
        "Latencies are of single-row requests, one at a time, measured at the client. "
        "Rows and requests are from Triton's own statistics."
    )
    shown.caption_justify = "left"
    return shown


def _walk(
    client: triton_http.InferenceServerClient,
    model: str,
    images: Images,
    size: int,
    advance: Callable[[int], object],
) -> Pass:
    labels: list[Labels] = []
    seconds = []
    wanted = [triton_http.InferRequestedOutput(name) for name in WANTED]
    for rows in _batches(images, size):
        tensor = triton_http.InferInput("image", list(rows.shape), "FP32")
        tensor.set_data_from_numpy(rows)
        began = time.perf_counter()
        answer = client.infer(model, [tensor], outputs=wanted)
        seconds.append(time.perf_counter() - began)
        labels.append(answer.as_numpy("label")[:, 0])
        advance(len(rows))
    return Pass(np.concatenate(labels), seconds)


def _batches(images: Images, size: int) -> Iterator[Images]:
    for at in range(0, len(images), size):
        yield images[at : at + size]


def _counted(triton: TritonServer) -> dict[str, ModelStatistics]:
    return {model: triton.statistics(model) for model in (SMALL, LARGE)}


def _nothing(_rows: int) -> None:
    return None
