"""The two programs in C, compiled when they are first needed: the client and the static upstream.

Rule of this file: it compiles and says where the program is. A program is named after its source's digest, so
that a changed source is never run from an old binary.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
COMPILED: Final = HERE.parent.parent / ".cache" / "bench"
FLAGS: Final = ("-std=gnu11", "-O2", "-Wall", "-Wextra")
COMPILE_SECONDS_MAX: Final = 120.0


class CompilerFailed(RuntimeError):
    """The compiler is missing or refused; the message holds what it wrote."""


def program(name: str, directory: Path = COMPILED) -> Path:
    """The program made of ``name``.c. Raises CompilerFailed."""
    source = HERE / f"{name}.c"
    digest = hashlib.sha256(" ".join(FLAGS).encode() + source.read_bytes()).hexdigest()
    made = directory / f"{name}-{digest[:16]}"
    if made.exists():
        return made
    directory.mkdir(parents=True, exist_ok=True)
    building = directory / f"{made.name}.{os.getpid()}"
    command = ["cc", *FLAGS, "-o", str(building), str(source), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS_MAX, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompilerFailed(f"{source.name} was not compiled: {error}") from error
    if done.returncode:
        raise CompilerFailed(f"{source.name} was not compiled:\n{done.stderr[-4000:]}")
    building.rename(made)
    return made
