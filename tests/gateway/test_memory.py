"""The settings of a process at its start take effect, in a process of their own: they last as long as it does."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
from gateway.memory import COLLECTED, keep_freed_memory, set_start_aside

print(keep_freed_memory())
set_start_aside()
print(gc.get_freeze_count() > 1000)
print(gc.get_threshold() == COLLECTED)
"""


def test_the_settings_take_effect_here() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["True"] * 3


def test_what_the_process_has_is_told() -> None:
    """In a process of its own: this one may have as much left over from tests before."""
    program = (
        "from gateway.memory import resident\n"
        "before = resident()\n"
        "block = bytearray(b'x') * (64 * 2**20)\n"
        "print(resident() - before)\n"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert 60 * 2**20 < int(told.stdout) < 80 * 2**20
