"""Starting our own successor: the same command, with whatever program stands there now.

The new process finds us by our name, takes our listening sockets, and says when it serves; then we end. Should it
not come that far, nothing has changed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import MutableMapping

from dandolo.net.succession import Predecessor

FOLLOWS = "DANDOLO_FOLLOWS"
"""In the environment of a successor: under which name its predecessor is found."""
_NOT_PASSED_ON = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID")
_log = logging.getLogger("dandolo")


def predecessor(environ: MutableMapping[str, str]) -> Predecessor | None:
    """Who started us to take over from it; None when nobody did."""
    name = environ.pop(FOLLOWS, "")
    return Predecessor.find(name, None) if name else None


class Upgrade:
    """At most one successor at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop = asyncio.get_running_loop()
        self.pid = 0
        """Of the successor that is coming up; 0: there is none."""

    def begin(self) -> str:
        """Start it; why that cannot be done, "" when it could."""
        if not self._name:
            return "a successor needs to know the ports: none of them may be 0"
        if self.pid:
            return f"process {self.pid} is already coming up to take over"
        environ = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
        words = [sys.executable, *sys.orig_argv[1:]]
        try:
            self.pid = os.posix_spawn(words[0], words, {**environ, FOLLOWS: self._name}, setsigmask=[])
        except OSError as error:
            return f"it cannot be started: {error.strerror}"
        pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(pidfd, self._ended, pidfd)
        _log.info("process %d comes up to take over", self.pid)
        return ""

    def _ended(self, pidfd: int) -> None:
        """It has ended, while we are still here."""
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        _log.error("process %d, which was to take over, ended with %d: this one goes on", self.pid, code)
        self.pid = 0
