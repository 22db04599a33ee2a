"""Where the cache's file stands: who may read it, who else has it open, and what to do with a bad one.

Owns paths, modes, the lock beside the file and the verdict on an error. One process at a time has the file:
counts and the filter before the reads are kept in memory and would be wrong beside a second writer. The lock
lies on a file of its own, because closing any descriptor of a database drops SQLite's own locks on it.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import sqlite3
import stat
import time
from pathlib import Path
from typing import Literal

Flaw = Literal["corrupt", "foreign", "oversize", "version"]
Verdict = Literal["spoiled", "busy", "full", "off"]

_WITH = ("-wal", "-journal")
"""Files that belong to a database and go where it goes."""


class Spoiled(Exception):
    """The file must be set aside. `flaw` says why in a word, the text in a sentence's half."""

    def __init__(self, flaw: Flaw, text: str) -> None:
        super().__init__(text)
        self.flaw: Flaw = flaw


class Held(OSError):
    """Another process has the file."""


def verdict(error: Exception) -> Verdict:
    """What an error means: set the file aside, try again, the file may not grow, or do without for a while."""
    if isinstance(error, Spoiled):
        return "spoiled"
    # Extended codes carry the primary one in their low byte (https://www.sqlite.org/rescode.html).
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    # Keys are deleted before they are inserted: one that is there twice means that index and table disagree.
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT):
        return "spoiled"
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_INTERRUPT):
        return "busy"
    return "full" if primary == sqlite3.SQLITE_FULL else "off"


class Place:
    """A path, and the lock on it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def secure(self) -> bool:
        """Make the directory (0700) and the file (0600) and take the lock; True: the file is new or empty.

        Raises Held when another process has it, and OSError when it is no plain file of ours or cannot be made.
        To be called while no connection of this process is open on it.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._lock is None:
            lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(lock)
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    raise Held(errno.EAGAIN, "another process has the file open") from None
                raise
            self._lock = lock
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "there is something that is no file")
            if found.st_uid != os.geteuid():
                raise OSError(errno.EPERM, "the file belongs to another user")
            # SQLite gives its log and index the mode of the file.
            os.fchmod(file, 0o600)
            return found.st_size == 0
        finally:
            os.close(file)

    def set_aside(self, flaw: Flaw) -> str:
        """Rename the file, and return its new name. Raises OSError.

        Of our own files only the newest set aside is kept, or a failing disk would fill itself with them;
        another program's file is never deleted. One that is only too large is sound, and deleted ("" is returned).
        """
        if flaw == "oversize":
            for end in ("-wal", "-shm", ""):
                Path(f"{self.path}{end}").unlink(missing_ok=True)
            return ""
        if flaw != "foreign":
            for old in self.path.parent.glob(f"{glob.escape(self.path.name)}.{flaw}-*"):
                old.unlink(missing_ok=True)
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        name, n = f"{self.path.name}.{flaw}-{stamp}Z", 0
        while (aside := self.path.with_name(name)).exists():
            n += 1
            name = f"{self.path.name}.{flaw}-{stamp}Z-{n}"
        for end in _WITH:
            # Before the file itself: its log must never lie beside a new one.
            try:
                os.rename(f"{self.path}{end}", f"{aside}{end}")
            except FileNotFoundError:
                pass
        os.rename(self.path, aside)
        Path(f"{self.path}-shm").unlink(missing_ok=True)
        return name

    def release(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
