"""The project's own files: locks that install the same everywhere, and names that agree."""

from __future__ import annotations

import re
import stat
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(lock: Path) -> dict[str, str]:
    return dict(re.findall(r"(?m)^([a-z0-9._-]+)==([^ ;\\]+)", lock.read_text()))


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9_-]", entry)[0].lower() for entry in requirements}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_locks_have_hashes_and_no_place(lock: Path) -> None:
    text = lock.read_text()
    assert "://" not in text
    assert not re.search(r"(?m)^(-|--)(i|index|extra|find)", text)
    blocks = re.split(r"(?m)^(?=[a-z0-9._-]+==)", text)[1:]
    assert blocks
    assert all("--hash=sha256:" in block for block in blocks)


def test_locks_agree_with_each_other() -> None:
    dev = pins(ROOT / "requirements" / "dev.lock")
    for name in ("runtime", "build", "uv"):
        for package, version in pins(ROOT / "requirements" / f"{name}.lock").items():
            assert dev[package] == version, f"{name}.lock has another {package}: run make lock"


def test_locks_hold_what_the_project_names() -> None:
    project = PROJECT["project"]
    assert names(project["dependencies"]) <= set(pins(ROOT / "requirements" / "runtime.lock"))
    for extra in project["optional-dependencies"].values():
        assert names(extra) - {"tailrace"} <= set(pins(ROOT / "requirements" / "dev.lock"))


def test_every_dependency_has_a_lower_bound() -> None:
    assert all(">=" in entry for entry in PROJECT["project"]["dependencies"])


def test_ci_runs_what_everyone_runs() -> None:
    run = ROOT / ".ci" / "run"
    assert run.stat().st_mode & stat.S_IXUSR
    assert run.read_text().rstrip().endswith("exec make test")


def test_the_licence_is_the_whole_licence() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"


def test_the_changelog_knows_this_version() -> None:
    assert f"## {PROJECT['project']['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_packages_hold_only_a_docstring_in_their_init() -> None:
    for package in ("cache", "degrade", "tiers", "gateway"):
        for init in (ROOT / package).rglob("__init__.py"):
            assert re.fullmatch(r'""".*"""\n', init.read_text(), re.DOTALL), init
