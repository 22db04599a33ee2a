"""The ledger at work: a thread that reads the workers' journals and commits what they say, a few times a second.

A slot's room in a journal is freed only when what it says is in the file (`ledger_file`), in one transaction with how
far the journal was read: killed at any moment, the next ledger goes on where the last commit ended. Journals of dead
workers are read to their end and deleted; calls that were never settled stay listed.

While the file cannot be written (a full disk, a read-only one) the journals hold what comes; beyond half of their
room the oldest is dropped and counted, so that serving goes on for everybody. One alert is raised when that begins
and one word said when it is over. Only one process has the ledger at a time (a lock beside the file).
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dandolo.control import ledger_file
from dandolo.control.ledger_batch import Batch, Names
from dandolo.control.ledger_file import LedgerFile
from dandolo.control.ledger_journals import Journals, Open, set_aside

FILE = "ledger.db"
FOLDER = "journal"
PERIOD_S = 0.25
RETRY_S = 1.0
DISCOVER_S = 1.0
PRUNE_S = 60.0
PRUNE_NAMES_S = 86400.0
BATCH_BYTES = 1024 * 1024
"""Read from one journal for one transaction: some thousand requests."""
CELLS_MAX = 4096
"""Cells of objectives that wait to be written; those beyond are written when they next change."""
HELD_S = 60.0
"""How long another process may have the ledger before that is told."""
CLOSE_S = 5.0

Cell = tuple[int, str, str, str, bytes]
Alert = Callable[[str], None]
"""Told why the ledger cannot be written, and "" when it can again. Called in the ledger's thread."""

_log = logging.getLogger("dandolo")


class Held(OSError):
    """Another process has the ledger."""


@dataclass(frozen=True, slots=True)
class Health:
    """`reason` is "" when all is well, `told` whether that is a reason to worry: a predecessor that is ending has the
    ledger for a while. `dropped` counts rows that are in no ledger, `rows` those taken in."""

    reason: str
    told: bool
    rows: int
    dropped: int
    journals: int


@dataclass(slots=True)
class _State:
    rows: int = 0
    dropped: int = 0
    reason: str = ""
    counts: dict[str, int] = field(default_factory=dict)


class Ledger:
    """`start`, then `close` at the end. `flush` waits until all that is written in journals now has been read.

    `state_dir` holds the file and the folder of journals. Rows are kept for `retention_s` seconds, single requests at
    most `requests_max`. Methods may be called from any thread and never raise for the disk's troubles.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        retention_s: float,
        requests_max: int,
        alert: Alert | None = None,
        period_s: float = PERIOD_S,
        retry_s: float = RETRY_S,
    ) -> None:
        self.path = state_dir / FILE
        self.folder = state_dir / FOLDER
        self._retention_s = retention_s
        self._requests_max = requests_max
        self._alert = alert
        self._period_s = period_s
        self._retry_s = retry_s
        self._file: LedgerFile | None = None
        self._lock: int | None = None
        self._names = Names({})
        self._journals = Journals(self.folder, self._drop)
        self._cells: dict[tuple[int, str, str, str], bytes] = {}
        self._cells_lock = threading.Lock()
        self._state = _State()
        self._asked = 0
        self._answered = 0
        self._turn = threading.Condition()
        self._closing = False
        self._failed_at = 0.0
        self._told = False
        self._due: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """Read what is there, for at most CLOSE_S, and end."""
        with self._turn:
            self._closing = True
            self._turn.notify_all()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    def adopt(self, *, retention_s: float, requests_max: int) -> None:
        """Keep so much from now on; what is more is deleted bit by bit."""
        self._retention_s, self._requests_max = retention_s, requests_max

    def flush(self, timeout_s: float) -> bool:
        """Wait until what is in the journals now is in the file. False when that took too long, or failed."""
        with self._turn:
            self._asked += 1
            mine = self._asked
            self._turn.notify_all()
            return self._turn.wait_for(lambda: self._answered >= mine, timeout_s) and not self._state.reason

    def health(self) -> Health:
        """How it is."""
        state = self._state
        return Health(state.reason, self._told, state.rows, state.dropped, len(self._journals.open))

    def keep(self, cells: list[Cell]) -> None:
        """Write cells of objectives, each in place of the one with its hour, key, model and kind."""
        with self._cells_lock:
            for hour, name, model, kind, cell in cells:
                key = (hour, name, model, kind)
                if key in self._cells or len(self._cells) < CELLS_MAX:
                    self._cells[key] = cell

    # -- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        until = 0.0
        while True:
            with self._turn:
                if not self._closing and self._asked == self._answered:
                    self._turn.wait(self._period_s)
                asked, closing = self._asked, self._closing
            now = time.monotonic()
            if closing and not until:
                until = now + CLOSE_S / 2
            more = False
            try:
                more = self._round(now, eager=closing or asked != self._answered)
            except Exception as error:
                self._failed(error)
            if more and not (closing and now > until):
                continue
            with self._turn:
                self._answered = asked
                self._turn.notify_all()
            if closing:
                break
        if self._file is not None:
            self._file.close()
        self._journals.close()
        if self._lock is not None:
            os.close(self._lock)

    def _round(self, now: float, *, eager: bool) -> bool:
        """One look at everything; True when there is more to read at once."""
        if eager or self._is_due("discover", now, DISCOVER_S):
            for one in self._journals.discover(now):
                if self._file is not None:
                    self._file.source(one.source, one.ring.cursor())
        if self._file is None:
            if now < self._due.get("open", 0.0):
                if self._lock is not None:
                    self._journals.spill()
                return False
            self._open()
        file = self._file
        assert file is not None
        batch = Batch(self._names)
        journals = list(self._journals.open.values())
        # Asked before it is read: what a dead writer wrote is all there then.
        dead = [one for one in journals if (eager or now - one.moved_at > 1.0) and not one.ring.alive()]
        more = False
        for one in journals:
            slots, cursor = one.ring.read(one.source.cursor, BATCH_BYTES)
            moved, ended = cursor != one.source.cursor, one in dead
            if moved:
                batch.take(one.source, slots, cursor)
                one.moved_at = now
                more = more or cursor - one.source.cursor >= BATCH_BYTES
            batch.look(
                one.source,
                self._journals.open_calls(one, ended=ended),
                closely=eager or ended,
                last=ended and not moved,
            )
            if self._journals.count_dropped(one):
                batch.cursors.setdefault(one.source.id, one.source.cursor)
        self._commit(file, batch)
        for one in dead:
            # Only a power failure tears what is not the last: what was killed has written in order.
            if one.source.id not in batch.cursors and (one.same_boot or not self._journals.pass_over(one)):
                self._end(file, one)
                more = True
        self._journals.free_stuck(now)
        if self._is_due("prune", now, PRUNE_S):
            taken = file.prune(time.time() - self._retention_s, self._requests_max)
            if taken >= ledger_file.PRUNE_ROWS:
                self._due["prune"] = now + self._period_s
            if self._is_due("names", now, PRUNE_NAMES_S) and len(self._names):
                file.prune_names()
                self._names = Names(file.names())
        if self._state.reason:
            self._recovered()
        return more

    def _commit(self, file: LedgerFile, batch: Batch) -> None:
        with self._cells_lock:
            cells, self._cells = self._cells, {}
        counts, self._state.counts = self._state.counts, {}
        if not (batch.cursors or batch.opened or batch.closed or cells or counts):
            return
        sources = [one.source for one in self._journals.open.values()]
        if not self._requests_max:
            batch.chunks.clear()
        try:
            file.apply(batch, sources, [(*place, cell) for place, cell in cells.items()], counts, time.time())
        except BaseException:
            with self._cells_lock:
                self._cells = {**cells, **self._cells}
            self._state.counts = counts
            raise
        batch.committed(sources)
        self._state.rows += batch.rows
        for one in self._journals.open.values():
            if one.source.id in batch.cursors:
                one.ring.release(one.source.cursor)

    def _open(self) -> None:
        """Take the lock and open the file; one that cannot be used is set aside, and a new one made."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._lock is None:
            lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                raise Held("another process has the ledger") from None
            self._lock = lock
        try:
            file = LedgerFile(self.path)
        except ledger_file.Spoiled as error:
            if error.flaw == "version":
                # A later program's figures are sound: it is for the operator to say what becomes of them.
                raise
            name = set_aside(self.path, error.flaw)
            _log.error("the ledger's file was set aside as %s, and a new one begun: %s", name, error)
            file = LedgerFile(self.path)
        try:
            # What names were numbered since the last commit is numbered anew.
            self._names = Names(file.names())
            for journal in file.journals():
                if not self._journals.there(journal):
                    file.forget(journal)
            for one in self._journals.open.values():
                file.source(one.source, one.ring.cursor())
        except BaseException:
            file.close()
            raise
        self._file = file

    # -- what goes wrong ---------------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._due["open"] = time.monotonic() + self._retry_s
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            try:
                name = set_aside(self.path, "corrupt")
                _log.error("the ledger's file was set aside as %s: it is damaged", name)
                self._due["open"] = 0.0
            except OSError:
                pass
        reason = str(error) or type(error).__name__
        now = time.monotonic()
        self._failed_at = self._failed_at or now
        # A predecessor that is ending has it for a while.
        if not self._told and (not isinstance(error, Held) or now - self._failed_at > HELD_S):
            self._told = True
            expected = isinstance(error, (OSError, sqlite3.Error, ledger_file.Spoiled))
            _log.error("the ledger cannot be written, serving goes on without it: %s", reason, exc_info=not expected)
            self._tell(reason)
        self._state.reason = reason

    def _recovered(self) -> None:
        self._state.reason, self._failed_at = "", 0.0
        if not self._told:
            return
        self._told = False
        _log.info("the ledger is in use again; %d rows were dropped", self._state.dropped)
        self._tell("")

    def _tell(self, reason: str) -> None:
        if self._alert is not None:
            try:
                self._alert(reason)
            except Exception:
                _log.error("telling of the ledger failed", exc_info=True)

    def _drop(self, rows: int) -> None:
        if rows:
            self._state.dropped += rows
            self._state.counts["dropped"] = self._state.counts.get("dropped", 0) + rows

    def _end(self, file: LedgerFile, one: Open) -> None:
        """A dead worker's journal has been read."""
        file.ended(one.source.id)
        self._journals.delete(one)
        file.forget(one.source.id)

    def _is_due(self, what: str, now: float, period_s: float) -> bool:
        if now < self._due.get(what, 0.0):
            return False
        self._due[what] = now + period_s
        return True
