"""How this process takes memory and gives it back, settled once at its start.

Rule of this file: it sets what the C library and the interpreter let a process set, says what it did, and
knows nothing of requests. Each setting stands beside what it is for; what they gain is in docs/performance.md.
"""

from __future__ import annotations

import ctypes
import gc
import os
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_TOP_PAD: Final = -2
M_MMAP_THRESHOLD: Final = -3

KEPT_BYTES: Final = 256 * 1024 * 1024
"""Free memory at the heap's end that is kept. glibc gives back all above 128 KiB by default, and takes it again a
moment later, page by page: bodies of that size and more would cost dozens of page faults each."""

PADDED_BYTES: Final = 16 * 1024 * 1024
"""By how much more than is needed the heap grows, for the same reason."""

MAPPED_BYTES: Final = 32 * 1024 * 1024
"""Blocks above this are mapped one by one, and given back at once; glibc takes no more than this."""

COLLECTED: Final = (5_000, 10, 10)
"""New objects until the young are looked at, and the two older generations after so many looks (Python: 700, 10, 10).
Most of what the young ones are is in work and will be gone by itself; what a cache keeps is nothing for the collector,
but counts as new. A look takes 0.1 ms then, and one at the second generation 1.5 ms."""

PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def keep_freed_memory() -> bool:
    """Let bodies reuse the memory of those before them; False where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    settings = ((M_TRIM_THRESHOLD, KEPT_BYTES), (M_TOP_PAD, PADDED_BYTES), (M_MMAP_THRESHOLD, MAPPED_BYTES))
    results = [mallopt(parameter, value) for parameter, value in settings]
    return results == [1, 1, 1]


def set_start_aside() -> None:
    """What is there when a gateway is ready lives as long as the process: the collector need not look at it again. And
    it need not look so often at what requests in work hold."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTED)


def resident() -> int | None:
    """Bytes of memory that this process has of the machine; None where nobody tells. What is freed is hardly given
    back, so this grows by what is needed beyond all that was needed before. (glibc's own count, mallinfo2, walks all
    free blocks: it took 131 ms where a cache had left 200,000.)"""
    try:
        with open("/proc/self/statm", "rb") as told:
            return int(told.read().split()[1]) * PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return None
