"""How the process keeps the memory that it gives back to its allocator.

glibc returns what is free at the end of its heap to the kernel, and gives large blocks pages of their own. A
gateway that takes and gives back a body of 256 KB with every request then has the kernel make and clear the
same pages again and again: a quarter of all CPU time of such requests (`bench/load`, 256 KB). So what is free
is kept while there is work, and given back when there is none.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

KEPT_BYTES = 16 * 1024 * 1024
"""Free memory at the end of the heap that is not returned."""
MAPPED_BYTES_MIN = 1024 * 1024
"""Smaller blocks are taken from the heap, not from the kernel."""
WORK_MIN = 500
"""Requests after which there may be something to give back."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_memory() -> bool:
    """Set both thresholds (mallopt(3)); False where the C library knows no such thing, and nothing is changed."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES_MIN)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))


class Heap:
    """Gives free memory back when a busy process has become quiet. `beat` is called ten times a second."""

    def __init__(self) -> None:
        self._trim: Callable[[int], int] | None = None
        try:
            self._trim = ctypes.CDLL(None).malloc_trim
        except (OSError, AttributeError):
            pass
        self._worked = 0
        self._given_back_at = 0

    def beat(self, requests: int, in_flight: int) -> bool:
        """Take note of the requests since the start and of those under way; whether memory was given back.

        It takes a millisecond or two, so it waits for a beat without any request, and for WORK_MIN of them.
        """
        quiet = not in_flight and requests == self._worked
        self._worked = requests
        if not quiet or self._trim is None or requests - self._given_back_at < WORK_MIN:
            return False
        self._given_back_at = requests
        self._trim(0)
        return True
