"""What the writing thread does between batches: delete what is past its time and what purges have killed.

A purge is in force without any of this. It is forgotten, in memory and in the file, once nothing is left that is
older than it: the rows of the file after a walk from the first to the last, the queued ones when they have come
out of the queue. Soft purges kill nothing, and are forgotten when the oldest row is younger.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from dandolo.cache.generations import Generations
from dandolo.cache.sqlite_file import CHUNK_ROWS, SqliteFile
from dandolo.cache.sqlite_row import Backlog


class Done(NamedTuple):
    """Rows deleted, and whether there is more to do."""

    expired: int
    purged: int
    more: bool


class Upkeep:
    """Where the walk stands. `lock` is the one that `generations` and `backlog` are changed under."""

    __slots__ = ("_after", "_backlog", "_before", "_generations", "_lock", "_walked")

    def __init__(self, generations: Generations, backlog: Backlog, lock: threading.Lock) -> None:
        self._generations = generations
        self._backlog = backlog
        self._lock = lock
        self.begin()

    def begin(self) -> None:
        """Begin with another file."""
        self._after: int | None = None
        self._before = 0
        self._walked = 0

    def chunk(self, file: SqliteFile, now_ms: int) -> Done:
        """Do a chunk of each kind. Raises sqlite3.Error; what it deletes it has deleted then, or not."""
        expired = file.sweep(now_ms)
        purged, walking = self._walk(file)
        self._forget_soft(file)
        return Done(expired, purged, expired == CHUNK_ROWS or walking)

    def _walk(self, file: SqliteFile) -> tuple[int, bool]:
        """Delete some of what hard purges have killed. Returns how many rows, and whether there is more."""
        generations = self._generations
        if self._after is None:
            with self._lock:
                if max(generations.hard.values(), default=0) <= self._walked:
                    return 0, False
                self._before = generations.current
            self._after = 0
        after, died = file.walk(self._after, self._before, generations.dead_by_name)
        if after is not None:
            self._after = after
            return died, True
        with self._lock:
            if self._backlog.oldest(generations.current) < self._before:
                # Rows from before the purge are still queued, and must find it noted.
                return died, True
        self._after = None
        file.forget_purges(self._before, soft=False)
        with self._lock:
            self._walked = self._before
            generations.settled(self._before, soft=False)
        return died, False

    def _forget_soft(self, file: SqliteFile) -> None:
        soft = self._generations.soft
        if not soft:
            return
        before = file.oldest_generation()
        with self._lock:
            before = min(before, self._backlog.oldest(self._generations.current))
            if min(soft.values()) > before:
                return
        file.forget_purges(before, soft=True)
        with self._lock:
            self._generations.settled(before, soft=True)
