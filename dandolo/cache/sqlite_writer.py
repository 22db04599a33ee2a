"""The writing thread of the tier on disk: the file's life, batches, deletions.

Owns the queue of rows to write, the file, and what to do when it fails. Whoever fills the queue never waits
for more than the moment in which a batch is taken out. One turn of the thread writes what is queued and then
deletes what is due, rows past their time and rows that a purge has killed, in chunks so small that the next batch
does not wait for long. The oldest rows go when a batch needs their room.
"""

from __future__ import annotations

import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dandolo.cache.bloom import Bloom
from dandolo.cache.generations import Generations
from dandolo.cache.sqlite_file import SqliteFile
from dandolo.cache.sqlite_place import Held, Place, Spoiled, verdict
from dandolo.cache.sqlite_row import Backlog, Row
from dandolo.cache.sqlite_upkeep import Upkeep

State = Literal["starting", "open", "off", "closed"]

BATCH_ROWS = 256
BATCH_S = 0.05
BATCHES_PER_TURN = 8
CHUNKS_PER_TURN = 8
RETRY_S = 30.0
HELD_RETRY_S = 1.0
"""A process that is replaced still has the file for as long as it drains."""
HELD_S = 60.0
"""How long another process may have the file before that is a fault."""
TICK_S = 1.0
PAUSE_S = 0.002
"""Between turns while there is more to delete: the disk is others' too."""

_log = logging.getLogger("dandolo")


@dataclass(slots=True)
class Counts:
    """What happened so far, in rows unless it says otherwise."""

    written: int = 0
    dropped: int = 0
    """Pushed out of a full queue."""
    lost: int = 0
    """Not written because of an error, or while the tier was off."""
    evicted: int = 0
    expired: int = 0
    deleted: int = 0
    """By key or by a purge, in the file."""
    write_errors: int = 0
    set_aside: int = 0
    """Files."""


class Scan:
    """A filter that is being built for the file of an epoch; `after` is the last key that it has seen."""

    __slots__ = ("after", "bloom", "epoch")

    def __init__(self, rows: int, epoch: int) -> None:
        self.bloom = Bloom(rows)
        self.epoch = epoch
        self.after = b""


class _Waiter(NamedTuple):
    """Waits until so many rows have come out of the queue, and purges up to that generation are in the file."""

    rows: int
    generation: int
    told: Callable[[bool], None]


class Writer:
    """The file's owner. `run` is the thread; the rest may be called from any other.

    `state` and `reason` are for people; `epoch` counts files opened, and is 0 while there is none. `filter` is None
    until `scan` has been built. `generations` is changed only under `lock`.
    """

    def __init__(self, place: Place, bytes_max: int, clock: Callable[[], float], retry_s: float = RETRY_S) -> None:
        self.place = place
        self.generations = Generations()
        self.lock = threading.Lock()
        self.state: State = "starting"
        self.reason = ""
        self.epoch = 0
        self.filter: Bloom | None = None
        self.scan: Scan | None = None
        self.counts = Counts()
        self.rows = self.value_bytes = self.file_bytes = 0
        self.backlog = Backlog()
        self._bytes_max = bytes_max
        self._clock = clock
        self._retry_s = retry_s
        self._waiters: list[_Waiter] = []
        self._work = threading.Event()
        self._enough = threading.Event()
        self._closing = False
        self._deadline = 0.0
        self._file: SqliteFile | None = None
        self._opened = 0
        self._spoiled_epoch = -1
        self._retry_at = 0.0
        self._aside_at = -math.inf
        self._alerted = False
        self._held_at = 0.0
        self._sound = False
        self._opened_at = 0.0
        self._more = False
        self._upkeep = Upkeep(self.generations, self.backlog, self.lock)

    # -- for other threads -------------------------------------------------------------------------------------

    def put(self, rows: Sequence[Row]) -> None:
        """Queue rows; the oldest fall out of a full queue. While the tier is off they are lost at once."""
        with self.lock:
            if self.state in ("off", "closed") or self._closing:
                self.counts.lost += len(rows)
                return
            self.counts.dropped += self.backlog.put(rows, self.generations.current)
            enough = len(self.backlog) >= BATCH_ROWS
        self._work.set()
        if enough:
            self._enough.set()

    def when_written(self, told: Callable[[bool], None]) -> None:
        """Have `told` called in the writing thread: True once all that was queued or purged before is in the file."""
        with self.lock:
            waits = self.state == "open" and not self._closing
            if waits:
                self._waiters.append(_Waiter(self.backlog.came, self.generations.current, told))
        if not waits:
            told(False)
        self.wake()

    def wake(self) -> None:
        """Have the thread look for work now."""
        self._work.set()
        self._enough.set()

    def spoiled(self, epoch: int) -> None:
        """A reader says that the file of that epoch is damaged."""
        self._spoiled_epoch = epoch
        self.wake()

    def built(self, scan: Scan) -> None:
        """The scan has seen all keys: its filter answers from now on, unless the file has been replaced meanwhile."""
        with self.lock:
            if self.scan is scan:
                self.filter, self.scan = scan.bloom, None

    def close(self, within_s: float) -> None:
        """Let the thread write what is queued, for at most that time, and end."""
        with self.lock:
            self._deadline = time.monotonic() + within_s
            self._closing = True
            file = self._file if self.state == "starting" else None
        if file is not None:
            # It may be reading gigabytes to check them.
            try:
                file.interrupt()
            except sqlite3.Error:
                pass
        self.wake()

    # -- the thread --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `close`."""
        try:
            while not self._closing:
                self._turn_safely()
            while self.state == "open":
                self._turn_safely()
                if not self.backlog or time.monotonic() >= self._deadline:
                    break
            if self._file is not None and self.state == "open":
                self._file.empty_log()
        except sqlite3.Error:
            # The log stays beside the file, and the next process reads it.
            pass
        finally:
            self._close_file()
            with self.lock:
                self.state = "closed"
                self.counts.lost += self.backlog.clear()
            self._give_up()
            self.place.release()

    def _turn_safely(self) -> None:
        try:
            self._turn()
        except Exception as error:
            self._failed(error)

    def _turn(self) -> None:
        if self._file is None:
            left = self._retry_at - time.monotonic()
            if left > 0:
                self._work.wait(min(left, TICK_S))
                self._work.clear()
            else:
                self._open()
            return
        if not self._closing and self._work.wait(PAUSE_S if self._more else TICK_S) and not self._closing:
            # Something to write: let a batch gather.
            self._enough.wait(BATCH_S)
        self._enough.clear()
        self._work.clear()
        if self._spoiled_epoch == self.epoch:
            raise Spoiled("corrupt", "a lookup found it damaged")
        for _ in range(BATCHES_PER_TURN):
            if not self._write(self._file):
                break
        if self.backlog or self._waiters:
            self.wake()
        for _ in range(CHUNKS_PER_TURN):
            self._more = not self._closing and self._maintain(self._file)
            if not self._more or self._enough.is_set():
                break
        self._measure(self._file)

    def _write(self, file: SqliteFile) -> bool:
        """Write one batch, with all purges and deletions; False: there was nothing."""
        generations = self.generations
        with self.lock:
            taken = self.backlog.take(BATCH_ROWS, file.batch_bytes)
            out = self.backlog.came - len(self.backlog)
            current = generations.current
            deletes = list(generations.deletes)
            purges = list(generations.unsaved.items())
        if not (taken or deletes or purges):
            self._answer_up_to(file, out, current)
            return False
        now_ms = int(self._clock() * 1000)
        newest: dict[bytes, Row | None] = {}
        for row in taken:
            alive = row.expires_ms > now_ms and not generations.dead(row.key, row.born, row.marks)
            # What comes too late has still replaced what came before it.
            newest[row.key] = row if alive else None
        rows = [row for row in newest.values() if row is not None]
        deletes += [key for key, kept in newest.items() if kept is None]
        try:
            room = sum(row.stored_bytes for row in rows)
            while (lacking := file.lacking_bytes(room)) > 0:
                evicted = file.evict(lacking)
                self.counts.evicted += evicted
                if not evicted:
                    break
            # Before they are in the file: a key in the file that the filter denies would never be found.
            scan = self.scan
            for bloom in (scan.bloom if scan is not None else None, self.filter):
                if bloom is not None:
                    bloom.add(row.key for row in rows)
            self.counts.deleted += file.write(rows, current, deletes, purges)
        except Exception:
            self.counts.lost += len(rows)
            with self.lock:
                self.backlog.done(taken)
            raise
        self.counts.written += len(rows)
        with self.lock:
            self.backlog.done(taken)
            generations.deleted(min(current, self.backlog.oldest(current)))
            for purge, number in purges:
                if generations.unsaved.get(purge) == number:
                    del generations.unsaved[purge]
        if rows and self._alerted and time.monotonic() - self._opened_at > self._retry_s:
            # Not at the first that succeeds: a disk that is nearly full takes one and refuses the next.
            self._alerted = False
            _log.info("cache on disk: in use again")
        self._answer_up_to(file, out, current)
        return True

    def _maintain(self, file: SqliteFile) -> bool:
        """One chunk of each kind of deletion that is due; True: there is more."""
        done = self._upkeep.chunk(file, int(self._clock() * 1000))
        self.counts.expired += done.expired
        self.counts.deleted += done.purged
        bloom = self.filter
        if bloom is not None and self.scan is None and bloom.added > bloom.full_at:
            # Between two batches: what is written from now on is added, what was written before is scanned.
            self.scan = Scan(file.rows, self.epoch)
        return done.more

    # -- the file's life ---------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Open the file and let it be read; check it, which may take long; then let it be written.

        Reading does not wait for the check because every row has a checksum of its own.
        """
        with self.lock:
            self.state = "starting"
        file = SqliteFile(self.place, self._bytes_max)
        generations = self.generations
        with self.lock:
            self._file = file
        stored = file.purges()
        with self.lock:
            if self._closing:
                return
            if self._opened == 0:
                self.backlog.rebase(file.generation)
                generations.rebase(file.generation, stored)
            else:
                # Purges made while there was no file, and those that the lost one knew of.
                for noted, soft in ((generations.hard, False), (generations.soft, True)):
                    generations.unsaved.update({(*name, soft): number for name, number in noted.items()})
            self._opened += 1
            self._upkeep.begin()
            self.filter, self.scan = None, Scan(file.rows, self._opened)
            self.epoch = self._opened
        self._measure(file)
        if not self._sound:
            file.check()
            self._sound = True
        with self.lock:
            self.state, self.reason = "open", ""
            self._opened_at, self._held_at = time.monotonic(), 0.0
        self._work.set()

    def _failed(self, error: Exception) -> None:
        """Do what an error asks for; never raises."""
        self.counts.write_errors += 1
        self._recover(error)
        # After the state has changed: nobody waits for a file that is gone.
        self._give_up()

    def _recover(self, error: Exception) -> None:
        what = verdict(error)
        # A file that only could not grow need not be read through again.
        self._sound = self._sound and what in ("full", "busy")
        try:
            file = self._file
            if what == "full" and file is not None and file.at_cap():
                self.counts.evicted += file.evict(file.batch_bytes)
                return
            if what == "busy" and self.state == "open":
                return
            if what == "spoiled":
                self._close_file()
                with self.lock:
                    # Not open until the next file is: what is read meanwhile is of the old one.
                    self.state = "starting"
                flaw = error.flaw if isinstance(error, Spoiled) else "corrupt"
                name = self.place.set_aside(flaw)
                self.counts.set_aside += 1
                kept = f"it is kept as {name}" if name else "it is deleted"
                _log.error("cache on disk: the file is begun anew, for %s; %s", error, kept)
                last, self._aside_at = self._aside_at, time.monotonic()
                if self._aside_at - last > self._retry_s:
                    return
                error = OSError("its files go bad one after the other")
        except Exception as second:
            error = second
        self._switch_off(error)

    def _switch_off(self, error: Exception) -> None:
        self._close_file()
        held, now = isinstance(error, Held), time.monotonic()
        self._retry_at = now + (min(HELD_RETRY_S, self._retry_s) if held else self._retry_s)
        waits, self._held_at = not self._held_at, (self._held_at or now) if held else 0.0
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        with self.lock:
            self.state, self.reason = "off", reason
            self.counts.lost += self.backlog.clear()
        if self._closing or self._alerted:
            return
        if held and now - self._held_at < HELD_S:
            if waits:
                _log.info("cache on disk: off until another process is done with the file")
            return
        self._alerted = True
        if verdict(error) == "off" and not isinstance(error, OSError | sqlite3.Error):
            _log.error("cache on disk: off, and serving goes on without it", exc_info=error)
        else:
            _log.error("cache on disk: off, and serving goes on without it: %s", reason)

    def _close_file(self) -> None:
        with self.lock:
            file, self._file = self._file, None
            self.epoch = 0
            self.filter = self.scan = None
        if file is not None:
            file.close()

    def _measure(self, file: SqliteFile) -> None:
        self.rows, self.value_bytes, self.file_bytes = file.rows, file.value_bytes, file.file_bytes

    def _answer_up_to(self, file: SqliteFile, rows: int, generation: int) -> None:
        """Tell those who wait for no more than this: while rows keep coming, the queue may never be empty."""
        if not self._waiters:
            return
        # Whoever is told may look at the counts.
        self._measure(file)
        with self.lock:
            ready = [one for one in self._waiters if one.rows <= rows and one.generation <= generation]
            self._waiters = [one for one in self._waiters if one not in ready]
        for one in ready:
            one.told(True)

    def _give_up(self) -> None:
        """Tell all who wait that it cannot be written now."""
        with self.lock:
            waiters, self._waiters = self._waiters, []
        for one in waiters:
            one.told(False)
