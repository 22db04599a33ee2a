"""Telling the service manager how we are: sd_notify(3) and sd_watchdog_enabled(3), without a library.

One datagram a message. No manager, or one that has gone, is no error: the program runs the same without.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

WAIT_S = 1.0
"""How long a change of state waits for room in the manager's queue. Watchdog and status do not wait: the next
one comes soon."""
_MESSAGE_BYTES_MAX = 1024
_log = logging.getLogger("dandolo")


class Notifier:
    """The way to the service manager named in `environ` (NOTIFY_SOCKET; nowhere when it is unset).

    Every method returns whether the message was handed over, and raises nothing.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # "@" stands for the NUL byte of an abstract address; vsock and relative names are not for us.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        if not address.startswith(("/", "@")) or len(address) < 2:
            self._address = ""

    def ready(self, status: str = "") -> bool:
        """Start-up, or a reload, is complete."""
        return self._send("READY=1\n" + _status(status), WAIT_S)

    def stopping(self, status: str = "") -> bool:
        """The end has begun."""
        return self._send("STOPPING=1\n" + _status(status), WAIT_S)

    def reloading(self) -> bool:
        """Configuration is being read again; `ready` must follow."""
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}\n", WAIT_S)

    def watchdog(self) -> bool:
        """We are alive. To be called from the event loop, so that a loop that hangs says nothing."""
        return self._send("WATCHDOG=1\n", 0.0)

    def main_pid(self, pid: int) -> bool:
        """Another process is the main one from now on, and ready. Should a reload be under way here, nobody else could
        say that it is over: we are not listened to any more, and the other one knows of none."""
        return self._send(f"MAINPID={pid}\nREADY=1\n", WAIT_S)

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self._send(_status(text), 0.0)

    def _send(self, message: str, wait_s: float) -> bool:
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(wait_s)
                sock.connect(self._address)
                sock.send(message.encode("utf-8", "replace"))
        except (OSError, ValueError) as error:
            _log.debug("the service manager was not told: %s", error)
            return False
        return True


def _status(text: str) -> str:
    """A STATUS line. A line end in `text` would begin another assignment."""
    if not text:
        return ""
    encoded = " ".join(text.split()).replace("\0", "").encode("utf-8", "replace")[:_MESSAGE_BYTES_MAX]
    return f"STATUS={encoded.decode('utf-8', 'ignore')}\n"


def watchdog_interval_s(environ: Mapping[str, str], pid: int) -> float | None:
    """Seconds between calls of `Notifier.watchdog`: half of what the manager allows, as sd_watchdog_enabled(3)
    advises. None when it does not watch process `pid`."""
    allowed = environ.get("WATCHDOG_USEC", "")
    watched = environ.get("WATCHDOG_PID", str(pid))
    if not (allowed.isascii() and allowed.isdigit() and len(allowed) < 20) or watched != str(pid):
        return None
    return int(allowed) / 2e6 or None
