"""How this program is started again, and by which process number its manager knows it.

Both are different where Dandolo is one frozen file (`systemd/dandolo.spec`): there the interpreter is the program, and
it runs as a child of a small parent that unpacked it and passes signals on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping


def command() -> list[str]:
    """The words that run this program; its own arguments follow."""
    return [sys.executable] if _frozen() else [sys.executable, "-m", "dandolo"]


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a process gets that is started by `command` and may outlive this one: a frozen one unpacks itself anew,
    since what this one unpacked goes when it ends."""
    return {**environ, "PYINSTALLER_RESET_ENVIRONMENT": "1"} if _frozen() else dict(environ)


def managed_pid() -> int:
    """The process number that systemd started: what WATCHDOG_PID is compared with. (LISTEN_PID is rewritten for the
    child by the parent that unpacks.)"""
    if _frozen():
        parent = os.getppid()
        try:
            if os.path.samefile(f"/proc/{parent}/exe", "/proc/self/exe"):
                return parent
        except OSError:
            pass
    return os.getpid()


def _frozen() -> bool:
    return bool(getattr(sys, "frozen", False))
