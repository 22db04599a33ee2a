"""What Linux knows of this process, under the names that Prometheus' own clients use.

Reads /proc/self only: under the unit's hardening nothing else of /proc is there, so the time of the system's
start comes from a clock and not from /proc/stat.
"""

from __future__ import annotations

import os
import resource
import time

from dandolo.control.exposition import Gauge, Kind

FAMILIES: dict[str, tuple[Kind, str]] = {
    "process_resident_memory_bytes": ("gauge", "Resident memory size in bytes."),
    "process_virtual_memory_bytes": ("gauge", "Virtual memory size in bytes."),
    "process_cpu_seconds_total": ("counter", "User and system CPU time in seconds."),
    "process_open_fds": ("gauge", "Open file descriptors."),
    "process_max_fds": ("gauge", "Limit of open file descriptors."),
    "process_start_time_seconds": ("gauge", "Start of the process, as Unix time in seconds."),
}
_started: dict[int, float] = {}


def resident_bytes() -> int:
    """Resident memory; 0 where it cannot be read."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read(256).split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return 0


def gauges() -> list[Gauge]:
    """The samples of this process; those that cannot be read are left out. About 30 µs and 5 µs per 100
    descriptors."""
    samples = [
        Gauge("process_cpu_seconds_total", time.process_time()),
        Gauge("process_max_fds", resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    ]
    try:
        with open("/proc/self/statm", "rb") as file:
            pages = file.read(256).split()
        page_bytes = resource.getpagesize()
        samples.append(Gauge("process_virtual_memory_bytes", int(pages[0]) * page_bytes))
        samples.append(Gauge("process_resident_memory_bytes", int(pages[1]) * page_bytes))
        # One of them is the listing's own.
        samples.append(Gauge("process_open_fds", len(os.listdir("/proc/self/fd")) - 1))
        samples.append(Gauge("process_start_time_seconds", _start_time()))
    except (OSError, ValueError, IndexError):
        pass
    return samples


def _start_time() -> float:
    """Unix time; computed once, so that a stepped clock does not make the process look restarted."""
    pid = os.getpid()
    if pid not in _started:
        with open("/proc/self/stat", "rb") as file:
            # proc(5): field 22 is the start in ticks since the system's; the name in field 2 may hold spaces.
            ticks = int(file.read(4096).rpartition(b")")[2].split()[19])
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        _started.clear()
        _started[pid] = booted + ticks / os.sysconf("SC_CLK_TCK")
    return _started[pid]
