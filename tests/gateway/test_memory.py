"""The settings of a process at its start take effect, in a process of their own: they last as long as it does."""

from __future__ import annotations

import subprocess
import sys

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
