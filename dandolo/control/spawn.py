"""Starting a worker's process, and the first frame that it waits for.

A worker is exec'd, not forked: it has nothing of the control process but what it is given. It begins to load at once
and then waits for its `Provision`, so it can be started before anything is known of the configuration.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dandolo
from dandolo.net.pair import pair

WORKER_WORD = "_worker"
"""What `dandolo` is called with to become a worker. Not a command: it makes no sense without a pipe."""
CHANNEL = 3
"""The descriptor of a worker's end of the pipe."""
_RESET = (signal.SIGPIPE, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, slots=True)
class Spawned:
    """A process that has been started, our end of its pipe, and a descriptor that becomes readable at its end."""

    pid: int
    channel: socket.socket
    pidfd: int

    def abandon(self) -> None:
        """End it, as nobody needs it."""
        self.channel.close()
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.pidfd)


def command() -> list[str]:
    """The words that start a worker with this interpreter, its options and its way to our modules."""
    if getattr(sys, "frozen", False):
        return [sys.executable, WORKER_WORD]
    words = [sys.executable]
    # The working folder must not decide which modules are loaded, unless it did so for us too (`python -m` in a
    # checkout).
    home = str(Path(dandolo.__file__).resolve().parents[1])
    if sys.flags.safe_path or os.path.realpath(sys.path[0] or ".") != home or home in sys.path[1:]:
        words.append("-P")
    for option in sys.warnoptions:
        words += ["-W", option]
    for name, value in sys._xoptions.items():
        words += ["-X", name if value is True else f"{name}={value}"]
    return [*words, "-m", "dandolo", WORKER_WORD]


def spawn() -> Spawned:
    """Start a worker. Raises OSError when there is no room for another process."""
    ours, theirs = pair()
    words = command()
    try:
        # dup2 onto itself would leave close-on-exec set where the descriptor happens to have this number.
        if theirs.fileno() == CHANNEL:
            theirs = socket.socket(fileno=os.dup(theirs.detach()))
            os.set_inheritable(theirs.fileno(), False)
        pid = os.posix_spawn(
            words[0],
            words,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), CHANNEL),
            ],
            setsigmask=[],
            setsigdef=_RESET,
        )
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return Spawned(pid, ours, os.pidfd_open(pid))


def provide(channel: socket.socket, frame: bytes, descriptors: Sequence[int]) -> None:
    """Send a worker what it begins with: the frame of its `Provision`, and the descriptors that go with it.

    Blocks until the worker has read all that the socket does not hold. Raises OSError when it has gone.
    """
    sent = socket.send_fds(channel, [frame], list(descriptors))
    channel.sendall(memoryview(frame)[sent:])
