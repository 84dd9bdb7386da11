"""ARCHITECTURE.md's walk names every module of the four packages, and no file that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cache", "degrade", "tiers", "gateway")
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
NAMED = frozenset(re.findall(r"`([a-z_]+/[a-z_0-9/]+\.py)`", TEXT))
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if path.name != "__init__.py"
)


@pytest.mark.parametrize("module", MODULES)
def test_every_module_is_on_the_walk(module: str) -> None:
    assert module in NAMED, f"ARCHITECTURE.md does not say what {module} is for"


def test_the_walk_names_only_what_is_there() -> None:
    assert set(MODULES) >= NAMED, f"ARCHITECTURE.md names {sorted(NAMED - set(MODULES))}, which do not exist"
