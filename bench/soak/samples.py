"""What a running gateway holds: memory, descriptors and threads of all its processes, and what it says of itself."""

from __future__ import annotations

import os
import re
import urllib.request
from dataclasses import dataclass

from bench.load.processes import descendants

_SAMPLE = re.compile(r"^([a-z_]+)(?:\{[^}]*\})? ([0-9.e+-]+)$", re.MULTILINE)
SAID = (
    "dandolo_tasks",
    "dandolo_connections",
    "dandolo_requests_in_flight",
    "dandolo_slots_in_use",
    "dandolo_slots_waiting",
    "dandolo_request_body_bytes",
    "dandolo_flights",
    "dandolo_idle_connections",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment. `said` are gauges of the gateway, summed over their labels."""

    at_s: float
    rss_mb: float
    fds: int
    threads: int
    cpu_s: float
    said: dict[str, float]

    @property
    def unexplained(self) -> float:
        """Descriptors that are neither a client's connection nor a provider's: those come and go with the load."""
        known = ("dandolo_connections", "dandolo_idle_connections", "dandolo_slots_in_use")
        return self.fds - sum(self.said[name] for name in known)


def sample(pid: int, admin_port: int, at_s: float) -> Sample:
    """Look at a gateway whose first process is `pid`."""
    rss_kb = fds = threads = 0
    cpu_s = 0.0
    for process in (pid, *descendants(pid)):
        try:
            with open(f"/proc/{process}/status") as file:
                status = file.read()
            rss_kb += int(status.partition("VmRSS:")[2].split()[0])
            threads += int(status.partition("Threads:")[2].split()[0])
            fds += len(os.listdir(f"/proc/{process}/fd"))
            with open(f"/proc/{process}/stat") as file:
                times = file.read().rpartition(")")[2].split()[11:13]
            cpu_s += sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
        except (FileNotFoundError, ProcessLookupError, IndexError):
            continue  # it has ended meanwhile
    said = dict.fromkeys(SAID, 0.0)
    request = urllib.request.Request(f"http://127.0.0.1:{admin_port}/metrics", headers={"Connection": "close"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        for name, value in _SAMPLE.findall(answer.read().decode()):
            if name in said:
                said[name] += float(value)
    return Sample(at_s, rss_kb / 1024, fds, threads, cpu_s, said)
