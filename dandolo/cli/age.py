"""How long this process has been running, the interpreter's own start included."""

from __future__ import annotations

import os
import time


def since_start_ms() -> float:
    """Milliseconds since the process began, to the kernel's 10 ms."""
    try:
        with open("/proc/self/stat", "rb") as file:
            # proc(5): field 22; the name in field 2 may hold spaces.
            ticks = int(file.read(4096).rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return time.process_time() * 1000
    return (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")) * 1000
