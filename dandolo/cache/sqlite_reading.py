"""The reading thread of the tier on disk: lookups, and the scan that builds the filter.

Owns its connection, which follows the file: a new one for every epoch. Lookups that wait together are read with
one statement, and those that nobody waits for any more are passed over. The scan is made in pieces while nobody
looks anything up, with one piece after each round of lookups, so that a busy tier gets its filter as well.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from dandolo.cache.sqlite_file import STEP_ROWS, SqliteReader
from dandolo.cache.sqlite_place import verdict
from dandolo.cache.sqlite_row import Row
from dandolo.cache.sqlite_writer import Scan, Writer

LOOKUPS_MAX = 1024
"""Waiting for the thread."""
SCAN_KEYS = 512
SCAN_PAUSE_S = 0.001
"""Between pieces, each of which keeps the interpreter's lock for some 0.4 ms."""
TICK_S = 1.0
START_S = 0.05
"""While there is no filter: one may have to be built soon."""

_log = logging.getLogger("dandolo")


@dataclass(slots=True)
class Lookup:
    """Keys to find, and the future that gets the rows."""

    keys: list[bytes]
    found: asyncio.Future[dict[bytes, Row]]


class Reading:
    """The reader. `run` is the thread; `ask` and `close` are called in the event loop.

    `damaged` is told keys whose rows are damaged, in the thread. `errors` and `damaged_rows` count.
    """

    def __init__(
        self,
        writer: Writer,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
        damaged: Callable[[list[bytes]], None],
    ) -> None:
        self._writer = writer
        self._loop = loop
        self._clock = clock
        self._damaged = damaged
        self._lookups: queue.SimpleQueue[Lookup | None] = queue.SimpleQueue()
        self._reader: SqliteReader | None = None
        self._epoch = 0
        self._ended = False
        self.errors = 0
        self.damaged_rows = 0

    def ask(self, lookup: Lookup) -> bool:
        """Have it looked up; False: too many wait already, and the future will never be done.

        Those that were given up count until the thread comes to them: where it has not come for so long, a miss at
        once is better than another wait.
        """
        if self._lookups.qsize() >= LOOKUPS_MAX:
            return False
        self._lookups.put(lookup)
        return True

    def close(self) -> None:
        """Let the thread end after the lookup it is at. Those that wait find nothing."""
        self._ended = True
        self._lookups.put(None)

    # -- the thread --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `close`."""
        try:
            while not self._ended:
                self._round()
        finally:
            self._drop()
            self._deliver(self._waiting(), {})

    def _round(self) -> None:
        scan = self._writer.scan
        lookups = []
        try:
            if scan is not None:
                wait_s = SCAN_PAUSE_S
            else:
                wait_s = START_S if self._writer.filter is None else TICK_S
            first = self._lookups.get(timeout=wait_s)
            if first is not None:
                lookups = [first, *self._waiting()]
        except queue.Empty:
            pass
        found: dict[bytes, Row] = {}
        try:
            if self._connected():
                found = self._found(lookups)
                if scan is not None and not self._ended:
                    self._scan(scan)
        except Exception as error:
            self._failed(error)
        self._deliver(lookups, found)

    def _waiting(self) -> list[Lookup]:
        """More that wait, up to what one statement takes (each brings a key at least)."""
        lookups: list[Lookup] = []
        try:
            while len(lookups) < STEP_ROWS:
                lookup = self._lookups.get_nowait()
                if lookup is not None:
                    lookups.append(lookup)
        except queue.Empty:
            pass
        return lookups

    def _connected(self) -> bool:
        epoch = self._writer.epoch
        if epoch != self._epoch:
            self._drop()
            if epoch:
                self._reader = SqliteReader(self._writer.place)
                self._epoch = epoch
        return self._reader is not None

    def _found(self, lookups: list[Lookup]) -> dict[bytes, Row]:
        assert self._reader is not None
        # A dict keeps each once, and the order. Whether a future is done may be asked from any thread.
        keys = list(dict.fromkeys(key for lookup in lookups if not lookup.found.done() for key in lookup.keys))
        found: dict[bytes, Row] = {}
        now_ms = int(self._clock() * 1000)
        for n in range(0, len(keys), STEP_ROWS):
            rows, damaged = self._reader.rows(keys[n : n + STEP_ROWS], now_ms)
            found.update(rows)
            if damaged:
                self.damaged_rows += len(damaged)
                self._damaged(damaged)
        return found

    def _scan(self, scan: Scan) -> None:
        assert self._reader is not None
        if scan.epoch != self._epoch:
            return
        keys, last = self._reader.keys(scan.after, SCAN_KEYS)
        scan.bloom.add(keys)
        if last is None:
            self._writer.built(scan)
        else:
            scan.after = last

    def _failed(self, error: Exception) -> None:
        self.errors += 1
        epoch = self._epoch
        self._drop()
        if verdict(error) == "spoiled":
            self._writer.spoiled(epoch)
        elif not isinstance(error, sqlite3.Error | OSError):
            _log.error("cache on disk: a lookup failed", exc_info=error)

    def _drop(self) -> None:
        reader, self._reader, self._epoch = self._reader, None, 0
        if reader is not None:
            reader.close()

    def _deliver(self, lookups: list[Lookup], found: dict[bytes, Row]) -> None:
        if lookups:
            try:
                self._loop.call_soon_threadsafe(_settle, lookups, found)
            except RuntimeError:
                # The loop has been closed, and everything that waited with it.
                pass


def _settle(lookups: list[Lookup], found: dict[bytes, Row]) -> None:
    for lookup in lookups:
        if not lookup.found.done():
            lookup.found.set_result(found)
