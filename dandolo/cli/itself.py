"""By which process number a service manager knows this program.

It is another one where Dandolo is one frozen file (`systemd/dandolo.spec`): there it runs as the child of a small
parent that unpacked it and passes signals on.
"""

from __future__ import annotations

import os
import sys


def managed_pid() -> int:
    """The process number that systemd started: what WATCHDOG_PID is compared with. (LISTEN_PID is rewritten for the
    child by the parent that unpacks.)"""
    if getattr(sys, "frozen", False):
        parent = os.getppid()
        try:
            if os.path.samefile(f"/proc/{parent}/exe", "/proc/self/exe"):
                return parent
        except OSError:
            pass
    return os.getpid()
