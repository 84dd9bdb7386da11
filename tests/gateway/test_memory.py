"""The settings of a process at its start take effect, in a process of their own: they last as long as it does."""

from __future__ import annotations

import subprocess
import sys

from gateway.memory import resident

PROGRAM = """
import gc
from gateway.memory import keep_freed_memory, set_start_aside

print(keep_freed_memory())
set_start_aside()
print(gc.get_freeze_count() > 1000)
"""


def test_the_settings_take_effect_here() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["True", "True"]


def test_what_the_process_has_is_told() -> None:
    before = resident()
    block = bytearray(b"x") * (64 * 2**20)
    now = resident()
    assert before is not None
    assert now is not None
    assert 60 * 2**20 < now - before < 80 * 2**20, len(block)
