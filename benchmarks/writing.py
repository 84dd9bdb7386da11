"""A report's three files: JSON for programs, Markdown for people, and the picture in it.

Rule of this file: it only writes; what the figures are is the report's.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from rich.console import Console

from benchmarks import chart
from benchmarks.report import Report, markdown
from benchmarks.scenarios import TITLES


def write(made: Report, directory: Path, name: str, console: Console) -> None:
    """Write ``name``.json, .md and .svg, and show the page."""
    page = markdown(made, f"{name}.svg")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n")
    (directory / f"{name}.md").write_text(page)
    (directory / f"{name}.svg").write_text(picture(made))
    console.print(page, markup=False, highlight=False, soft_wrap=True)
    console.print(f"written: {directory / name}.json, .md and .svg", markup=False, highlight=False)


def picture(made: Report) -> str:
    """All lines of a report as bars, a group for each table."""
    groups: dict[tuple[str, int], list[chart.Bar]] = {}
    for line in made.lines:
        rate = line.requests_per_second
        bar = chart.Bar(TITLES[line.peer], rate.median, rate.low, rate.high)
        groups.setdefault((line.scenario, line.connections), []).append(bar)
    named = [chart.Group(f"{name}, {number} connections", tuple(found)) for (name, number), found in groups.items()]
    return chart.bars(f"requests per second, {made.started}", named)
