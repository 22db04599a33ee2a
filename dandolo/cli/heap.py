"""How the process keeps the memory that it gives back to its allocator.

glibc returns what is free at the end of its heap to the kernel, and gives large blocks pages of their own. A
gateway that takes and gives back a body of 256 KB with every request then has the kernel make and clear the
same pages again and again: a quarter of all CPU time of such requests (`bench/load`, 256 KB). The price of
keeping them is up to KEPT_BYTES of resident memory after a burst.
"""

from __future__ import annotations

import ctypes

KEPT_BYTES = 16 * 1024 * 1024
"""Free memory at the end of the heap that is not returned."""
MAPPED_BYTES_MIN = 1024 * 1024
"""Smaller blocks are taken from the heap, not from the kernel."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_memory() -> bool:
    """Set both thresholds (mallopt(3)); False where the C library knows no such thing, and nothing is changed."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES_MIN)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
