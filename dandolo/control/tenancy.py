"""One control process for a state folder: it holds a lock on a file there for as long as it lives.

The kernel takes the lock from the dead, so a control process that was killed can be followed at once, whatever its
workers still do: they never hold it. A successor that takes over begins while its predecessor has the lock, and waits
for it in a thread. Where the folder cannot be written to there is nothing that two could spoil, and no lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Collection
from pathlib import Path

FILE = "serve.lock"
WAIT_S = 1.0
"""How long somebody else may have the lock: a predecessor that gives it up, a process that was killed and is not gone
yet."""
RETRY_S = 0.05


class Occupied(Exception):
    """Another control process uses the folder: `pid`, 0 where that is not known."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"process {pid} uses the folder")
        self.pid = pid


class Tenancy:
    """The lock on a state folder. `take` it, `close` it when another one takes over; a death does the same."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE
        self._file = -1
        self._turn = threading.Lock()
        """Held while the file is written to or closed."""
        self.held = False

    def take(self, predecessors: Collection[int] = ()) -> None:
        """Take the lock, or wait for it in a thread where one of `predecessors` (process ids) has it.

        Raises Occupied. Blocks for WAIT_S at most.
        """
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        until = time.monotonic() + WAIT_S
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    # A file system without locks.
                    self.close()
                    return
            else:
                self._have()
                return
            holder = self._holder()
            # On a full disk a holder cannot say who it is: then it is taken for the one that we follow.
            if holder in predecessors or (predecessors and not holder):
                threading.Thread(target=self._wait, name="state folder", daemon=True).start()
                return
            if time.monotonic() > until:
                self.close()
                raise Occupied(holder)
            time.sleep(RETRY_S)

    def close(self) -> None:
        """Give it up. A second time it does nothing."""
        with self._turn:
            if self._file >= 0:
                os.close(self._file)
                self._file, self.held = -1, False

    def _wait(self) -> None:
        # Its own descriptor: the lock is the file's as it was opened, and `close` may come meanwhile.
        with self._turn:
            if self._file < 0:
                return
            mine = os.dup(self._file)
        try:
            fcntl.flock(mine, fcntl.LOCK_EX)
        except OSError:
            return
        finally:
            os.close(mine)
        self._have()

    def _have(self) -> None:
        with self._turn:
            if self._file >= 0:
                self.held = True
                with contextlib.suppress(OSError):
                    # For people, and for successors; the lock holds on a full disk, too.
                    os.ftruncate(self._file, 0)
                    os.pwrite(self._file, b"%d\n" % os.getpid(), 0)

    def _holder(self) -> int:
        text = os.pread(self._file, 32, 0).strip()
        return int(text) if text.isdigit() else 0
