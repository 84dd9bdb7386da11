"""The digits model repository on disk: made once, made again when anything it depends on has changed.

Rule of this file: training happens in the Triton environment, as a process of its own; here is only
where the result lives and whether it still fits. Several processes may ask at once; one trains.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from examples.tritonserver import TritonEnvironment

SOURCE: Final = Path(__file__).resolve().parent
CODE: Final = ("train.py", "towers.py")
LIBRARIES: Final = ("scikit_learn", "numpy", "nvidia_pytriton")
"""A model is trained again when one of these has another version."""
TRAIN_SECONDS_MAX: Final = 300.0


@dataclass(frozen=True)
class Ranking:
    """What ``digits_towers`` ranks: held-out digits, some as users; the others, and copies moved a pixel, as items."""

    tables: Path
    """Where ``user.npz`` and ``item.npz`` are: arrays ids (0, 1, 2 ...) and rows [n, 64], pixels 0 to 16."""
    users: npt.NDArray[np.int64]
    """[n], the class of each user."""
    items: npt.NDArray[np.int64]
    """[n], the class of each item; the right ones for a user are those of the same class."""

    def rows(self, table: str) -> npt.NDArray[np.float32]:
        """A table's rows [n, 64], in the order of their ids."""
        with np.load(self.tables / f"{table}.npz") as file:
            rows: npt.NDArray[np.float32] = file["rows"]
        return rows


@dataclass(frozen=True)
class Digits:
    """The models (both tiers, and the ranker) and the held-out part of the data, which no training has seen."""

    repository: Path
    images: npt.NDArray[np.float32]
    """[n, 64], pixels 0 to 16, row by row."""
    labels: npt.NDArray[np.int64]
    """[n], the truth."""
    trained_on: int
    """How many images the models were trained on."""
    small_ms: float
    """Milliseconds for one row in the small model, measured when it was trained (no server, no network)."""
    large_ms: float
    ranking: Ranking


class TrainingFailed(RuntimeError):
    """The training process ended with an error; the message holds the end of its output."""


def prepare(environment: TritonEnvironment) -> Digits:
    """The trained models, trained now if need be (a few seconds)."""
    target = default_directory()
    target.parent.mkdir(parents=True, exist_ok=True)
    stamp = fingerprint(environment)
    with target.with_name(target.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _fits(target, stamp):
            _build(environment, target, stamp)
    return _read(target)


def default_directory() -> Path:
    """``.cache/digits`` in a checkout of the project, else under the user's cache directory."""
    root = SOURCE.parents[1]
    if (root / "pyproject.toml").exists() and os.access(root, os.W_OK):
        return root / ".cache" / "digits"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tailrace" / "digits"


def fingerprint(environment: TritonEnvironment) -> str:
    """A digest of all that the models depend on: code, seed (it is in the code), library versions."""
    digest = hashlib.sha256(environment.python_version.encode())
    for path in sorted(
        [*(SOURCE / name for name in CODE), *(SOURCE / "models").rglob("*.py"), *(SOURCE / "models").rglob("*.pbtxt")]
    ):
        digest.update(path.relative_to(SOURCE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    for library in LIBRARIES:
        for found in sorted(environment.site_packages.glob(f"{library}-*.dist-info")):
            digest.update(found.name.encode() + b"\0")
    return digest.hexdigest()


def _fits(target: Path, stamp: str) -> bool:
    path = target / "stamp"
    return path.exists() and path.read_text() == stamp


def _build(environment: TritonEnvironment, target: Path, stamp: str) -> None:
    building = target.with_name(f"{target.name}.{os.getpid()}.building")
    try:
        shutil.copytree(SOURCE / "models", building / "models", ignore=shutil.ignore_patterns("__pycache__"))
        done = subprocess.run(
            [str(environment.python), str(SOURCE / "train.py"), str(building)],
            env=environment.environ(),
            capture_output=True,
            text=True,
            timeout=TRAIN_SECONDS_MAX,
            check=False,
        )
        if done.returncode != 0:
            raise TrainingFailed(f"training the digits failed:\n{(done.stdout + done.stderr)[-2000:]}")
        (building / "stamp").write_text(stamp)
        shutil.rmtree(target, ignore_errors=True)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _read(target: Path) -> Digits:
    facts = json.loads((target / "facts.json").read_text())
    with np.load(target / "held_out.npz") as held_out:
        images, labels = held_out["images"], held_out["labels"]
    with np.load(target / "classes.npz") as classes:
        ranking = Ranking(target, classes["user"], classes["item"])
    costs = facts["small_ms"], facts["large_ms"]
    return Digits(target / "models", images, labels, facts["trained_on"], *costs, ranking)
