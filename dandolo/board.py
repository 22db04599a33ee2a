"""The board: what every key has used, in memory that all workers of a host share. No lock, no call, no I/O.

A row for each worker, one (the base) for the control process and, where hosts share limits, one for what all others
have used (`control.sharing` writes it). In each row a block of cells for each key. Everybody
writes in their own row only and reads the sum of all, so that a count is never lost to another's write, and all counts
hold while any of the others stands still. What is counted must be seen before it is judged: count first, then read the
sum, and take back what was too much.

Cells are aligned 8-byte integers. Python's memoryview reads and writes one by a copy of fixed size, which is one load
or store on every 64-bit machine, and these are atomic where they are aligned: nobody ever reads half of an old number
and half of a new one. What belongs together (a count and the time it is about) shares a cell. Stores may be seen by
another processor some nanoseconds later: within that time each worker can let in one too many, no more.

    requests, tokens   a ring of seconds each: `second mod 2^27 << 36 | count`. A minute is the 60 full seconds before
                       the present one, and that: never more than the limit in any 60 s, never less than 60/61 of it.
    in flight          requests under way
    reserved           micro-USD set aside for requests under way
    day, month         micro-USD spent in it (UTC): `period mod 2^13 << 50 | amount`

A key has its place until it is taken back (`release`), long after the key is gone; then another may have it.

Seconds are of CLOCK_MONOTONIC, which all processes of a host share. A board's memory is taken page by page as keys are
used: 4 KiB for 3 keys and worker, so that its size (`size_bytes`: 11 MiB a worker with 10,000 keys) is address space.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import threading
from datetime import UTC, datetime, timedelta
from typing import Final

KEYS_MAX: Final = 10_000
ROWS_MAX: Final = 2048

SECONDS: Final = 64
"""Places of a ring; 61 are needed."""
WINDOW_S: Final = 60
COUNT_BITS: Final = 36
COUNT_MAX: Final = (1 << COUNT_BITS) - 1
"""6.9e10 tokens a second, worker and key."""
STAMPS: Final = (1 << 27) - 1
AMOUNT_BITS: Final = 50
AMOUNT_MAX: Final = (1 << AMOUNT_BITS) - 1
"""1.1e9 USD, the highest budget there can be."""
PERIODS: Final = (1 << 13) - 1

REQUESTS: Final = 0
TOKENS: Final = SECONDS
IN_FLIGHT, RESERVED, DAY, MONTH = range(2 * SECONDS, 2 * SECONDS + 4)
CELLS: Final = 2 * SECONDS + 8
"""Of one key in one row: 1,088 bytes."""

_MAGIC: Final = 0x64616E646F6C6F33
_HEAD: Final = 16
_CLAIMED: Final = 4
_SHARED: Final = 5
OPENED: Final = 6
TAKEN_OVER: Final = 7
"""How often the base has changed: written after it and before what was added to it is cleared elsewhere."""
_REUSED: Final = 8
"""How often a place was taken back: names that were read before may have changed."""
_ring: Final = struct.Struct(f"{SECONDS}q")


class NoPlace(ValueError):
    """A key has no place on the board and cannot be given one: it is full, or this is not the control process."""


class Board:
    """A mapped board. `row` is whose row this process writes in (None: it only reads, or is the control process).

    Offsets are indexes into `cells`; `at(key, row)` is where a key's block begins.
    """

    __slots__ = (
        "_base", "_gives_places", "_known", "_lock", "_map", "_raw", "_reused", "_seen", "_spare", "_taken", "cells",
        "keys_max", "row", "shared", "tallies", "workers",
    )  # fmt: skip

    def __init__(self, memory: mmap.mmap, row: int | None, *, gives_places: bool) -> None:
        self._map = memory
        self._raw = memoryview(memory)
        self.cells = self._raw.cast("q")
        if self.cells[0] != _MAGIC:
            raise ValueError("this memory is no board, or one of another version of Dandolo")
        self.keys_max, self.workers = self.cells[2], self.cells[3]
        self.shared = bool(self.cells[_SHARED])
        if row is not None and not 0 <= row < self.workers:
            raise ValueError(f"observed worker slot {row}, expected 0 to {self.workers - 1}")
        self.row = row
        self._gives_places = gives_places
        self._base = _HEAD + self.keys_max
        self._known: dict[int, int] = {}
        self._taken: set[int] = set()
        self._seen = self._reused = 0
        self._spare: dict[int, int] = {}
        """Places that were taken back (the control process), and whose they were."""
        self._lock = threading.Lock()
        self.tallies: dict[int, object] = {}
        """By key: what whoever writes in this process's row remembers of it (`gateway.tally`)."""

    # -- how one comes to be -----------------------------------------------------------------------------

    @staticmethod
    def size_bytes(keys_max: int, workers: int) -> int:
        """Of a board, in address space: that of the base and of the row for other hosts, too."""
        return 8 * (_HEAD + keys_max + (workers + 2) * keys_max * CELLS)

    @staticmethod
    def create(keys_max: int = KEYS_MAX, workers: int = 1, *, shared: bool = False, opened: int | None = None) -> int:
        """A new board in a file of memory: its descriptor, to be passed on to workers and closed by the caller.
        `shared`: other hosts' row counts. `opened`: how many of the workers' rows are read from the beginning (None:
        all); the others once they are opened (`open_row`)."""
        fd = os.memfd_create("dandolo-board", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, Board.size_bytes(keys_max, workers))
            with mmap.mmap(fd, 8 * _HEAD) as memory:
                _begin(memory, keys_max, workers, shared, workers if opened is None else opened)
        except BaseException:
            os.close(fd)
            raise
        return fd

    @classmethod
    def attach(cls, fd: int, slot: int | None) -> Board:
        """The board behind a descriptor, which may be closed afterwards. `slot`: the worker's, from 0; None: the
        control process. Raises ValueError for what is no board."""
        return cls(mmap.mmap(fd, 0), slot, gives_places=slot is None)

    @classmethod
    def alone(cls, keys_max: int = KEYS_MAX, *, shared: bool = False) -> Board:
        """A board for a single process that is its own only worker."""
        memory = mmap.mmap(-1, cls.size_bytes(keys_max, 1))
        _begin(memory, keys_max, 1, shared, 1)
        return cls(memory, 0, gives_places=True)

    def close(self) -> None:
        """Unmap it."""
        self.cells.release()
        self._raw.release()
        self._map.close()

    # -- keys --------------------------------------------------------------------------------------------

    def find(self, name: str) -> int | None:
        """The place of a key, None while it has none."""
        identity = identity_of(name)
        if self._seen < self.cells[_CLAIMED] or self._reused != self.cells[_REUSED]:
            with self._lock:
                self._read_new()
        return self._known.get(identity)

    def claim(self, name: str) -> int:
        """The place of a key, which is given one if it has none. It keeps it until it is taken back (`release`).

        For the control process (or a process alone), before the key is made known to workers. Raises NoPlace.
        """
        identity = identity_of(name)
        with self._lock:
            self._read_new()
            place = self._known.get(identity)
            if place is None:
                if not self._gives_places:
                    raise NoPlace("the control process has given a key with limits no place on the board")
                spare = self._spare_for(identity)
                if spare is not None:
                    place = spare
                    del self._spare[place]
                elif self._seen < self.keys_max:
                    place = self._seen
                else:
                    raise NoPlace(f"{self.keys_max} keys with limits are as many as there can be at one time")
                self.cells[_HEAD + place] = identity
                # Last: a place that is counted has its name.
                if place == self._seen:
                    self.cells[_CLAIMED] = self._seen = place + 1
                else:
                    self._rename()
                self._known[identity] = place
        return place

    @property
    def room(self) -> bool:
        """Whether another key can be given a place (the control process)."""
        return bool(self._spare) or self._seen < self.keys_max

    def release(self, place: int, now: float) -> bool:
        """Take back the place of a key that is no more; False while anything of it is under way, or counts within the
        last minute (monotonic time).

        For the control process, when no request can be under way any more that began while there was the key: what one
        settles later would be another's. It writes in all rows, in which then nobody else does at this place.
        """
        busy = self.total(place, IN_FLIGHT) or self.total(place, RESERVED)
        if busy or any(self.minute(place, ring, now) for ring in (REQUESTS, TOKENS)):
            return False
        with self._lock:
            identity = self.cells[_HEAD + place]
            self.cells[_HEAD + place] = 0
            self._known.pop(identity, None)
            self._rename()
            for row in (*range(self.opened), self.workers, *((self.workers + 1,) if self.shared else ())):
                at = 8 * self.at(place, row)
                self._raw[at : at + 8 * CELLS] = bytes(8 * CELLS)
            self.cells[TAKEN_OVER] += 1
            self.tallies.pop(place, None)
            self._spare[place] = identity
        return True

    def _spare_for(self, identity: int) -> int | None:
        """A place that was another's: who remembers what the same key counted there would not notice that it is new."""
        return next((place for place, before in self._spare.items() if before != identity), None)

    def _rename(self) -> None:
        self.cells[_REUSED] = self._reused = self._reused + 1

    @property
    def opened(self) -> int:
        """How many of the workers' rows there is anything to be read in, from the first."""
        return self.cells[OPENED]

    def open_row(self) -> int:
        """A row for a worker that is about to begin (the control process). Raises NoPlace when all are taken."""
        for row in range(self.workers):
            if row not in self._taken:
                self._taken.add(row)
                if self.cells[OPENED] <= row:
                    self.cells[OPENED] = row + 1
                return row
        raise NoPlace(f"all {self.workers} rows of workers are taken")

    def close_row(self, row: int, calendar: Calendar) -> None:
        """The worker of a row has ended, however: what it left is taken over, another may have the row."""
        self.fold(row, calendar)
        self._taken.discard(row)

    def identity(self, place: int) -> int:
        """What a key is known by on every board; 0 for a place that was taken back."""
        return self.cells[_HEAD + place]

    def identified(self, identity: int) -> int | None:
        """The place of a key that another board knows by `identity`; None while it has none here."""
        return self._known.get(identity)

    @property
    def claimed(self) -> int:
        """How many places were ever given away: all that have a name are below it."""
        return self.cells[_CLAIMED]

    def _read_new(self) -> None:
        if self._reused != self.cells[_REUSED]:
            # First: what changes while the names are read is read once more.
            self._reused = self.cells[_REUSED]
            for identity, place in tuple(self._known.items()):
                if self.cells[_HEAD + place] != identity:
                    del self._known[identity]
                    self.tallies.pop(place, None)
            for place in range(self._seen):
                if identity := self.cells[_HEAD + place]:
                    self._known[identity] = place
        for place in range(self._seen, self.cells[_CLAIMED]):
            self._known[self.cells[_HEAD + place]] = place
            self._seen = place + 1

    # -- cells -------------------------------------------------------------------------------------------

    def at(self, key: int, row: int) -> int:
        """Where the block of a key begins in a row; row `workers` is the base."""
        return self._base + (row * self.keys_max + key) * CELLS

    def rows(self, key: int) -> tuple[int, ...]:
        """Where the blocks of a key begin in the workers' rows that have been opened."""
        return tuple(self.at(key, row) for row in range(self.opened))

    def elsewhere(self, key: int) -> tuple[int, ...]:
        """Where the block of a key begins in the row for other hosts; () where there is none."""
        return (self.at(key, self.workers + 1),) if self.shared else ()

    def ring(self, at: int) -> tuple[int, ...]:
        """The cells of a ring."""
        return _ring.unpack_from(self._raw, 8 * at)

    def total(self, key: int, cell: int) -> int:
        """The sum of a plain cell (IN_FLIGHT, RESERVED) over all workers, of other hosts too."""
        return sum(self.cells[at + cell] for at in (*self.rows(key), *self.elsewhere(key)))

    def spent(self, key: int, cell: int, period: int, *, everywhere: bool = False) -> int:
        """Micro-USD spent in a period (`cell` DAY or MONTH, its number from `Calendar`) on this host, or on all."""
        stamp, total = (period & PERIODS) << AMOUNT_BITS, 0
        rows = (*range(self.opened), self.workers, *((self.workers + 1,) if everywhere and self.shared else ()))
        for row in rows:
            amount = self.cells[self.at(key, row) + cell] ^ stamp
            if 0 <= amount <= AMOUNT_MAX:
                total += amount
        return total

    def minute(self, key: int, ring: int, now: float) -> int:
        """What was counted in REQUESTS or TOKENS within the last minute (monotonic time), by all workers."""
        second = int(now) & STAMPS
        return sum(
            cell & COUNT_MAX
            for at in (*self.rows(key), *self.elsewhere(key))
            for cell in self.ring(at + ring)
            if cell and (second - (cell >> COUNT_BITS)) & STAMPS <= WINDOW_S
        )

    # -- for the control process -------------------------------------------------------------------------

    def restore(self, key: int, calendar: Calendar, day: int, month: int) -> None:
        """Set what was spent (micro-USD) before the workers' rows were begun: after a start, from the ledger."""
        at = self.at(key, self.workers)
        self.cells[at + DAY] = calendar.day_stamp | min(max(day, 0), AMOUNT_MAX)
        self.cells[at + MONTH] = calendar.month_stamp | min(max(month, 0), AMOUNT_MAX)
        self._base_changed()

    def charge(self, key: int, cell: int, stamp: int, micro: int) -> None:
        """Add to what was spent in a period (`cell` DAY or MONTH) what no worker of this board knows of."""
        add_spent(self.cells, self.at(key, self.workers) + cell, stamp, micro)
        self._base_changed()

    def fold(self, slot: int, calendar: Calendar) -> None:
        """Take over the row of a worker that is dead, so that another can begin in its slot.

        What it spent goes into the base, what it had reserved and under way is released. First added, then cleared: for
        a moment it counts twice, never not at all. What it counted in the last minute stays and ages.
        """
        cells, periods = self.cells, ((DAY, calendar.day_stamp), (MONTH, calendar.month_stamp))
        for key in range(self.claimed):
            row, base = self.at(key, slot), self.at(key, self.workers)
            for cell, stamp in periods:
                amount = cells[row + cell] ^ stamp
                if 0 < amount <= AMOUNT_MAX:
                    add_spent(cells, base + cell, stamp, amount)
                    self._base_changed()
                    cells[row + cell] = 0
            # Pages that were never touched are not touched to be cleared.
            for cell in (IN_FLIGHT, RESERVED):
                if cells[row + cell]:
                    cells[row + cell] = 0

    def share(self, shared: bool) -> None:
        """Whether other hosts' row counts from now on, for us and for workers that begin later. What it held before
        is forgotten; its counts by the second age."""
        self.cells[_SHARED] = self.shared = shared
        for key in range(self.claimed):
            at = self.at(key, self.workers + 1)
            for cell in (IN_FLIGHT, RESERVED, DAY, MONTH):
                if self.cells[at + cell]:
                    self.cells[at + cell] = 0

    def _base_changed(self) -> None:
        with self._lock:
            self.cells[TAKEN_OVER] += 1


class Calendar:
    """Which day and month it is (UTC), worked out once a day. `at` is asked before the rest is read, unless the time
    lies between `since` and `until` (Unix seconds), where the day begins and ends."""

    __slots__ = ("day", "day_stamp", "month", "month_stamp", "since", "until")

    def __init__(self, unix_s: float) -> None:
        self.since = self.until = 0.0
        self.day = self.month = self.day_stamp = self.month_stamp = 0
        self.at(unix_s)

    def at(self, unix_s: float) -> Calendar:
        """Turn to the day of a Unix time; back too, should the clock have been set."""
        if not self.since <= unix_s < self.until:
            self.day = int(unix_s // 86400)
            self.since, self.until = self.day * 86400.0, (self.day + 1) * 86400.0
            date = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=self.day)
            self.month = date.year * 12 + date.month - 1
            self.day_stamp = (self.day & PERIODS) << AMOUNT_BITS
            self.month_stamp = (self.month & PERIODS) << AMOUNT_BITS
        return self

    @property
    def names(self) -> tuple[str, str]:
        """The day and the month as people write them: 2026-01-31 and 2026-01."""
        day = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=self.day)).strftime("%Y-%m-%d")
        return day, day[:7]

    @property
    def began(self) -> tuple[float, float]:
        """When the day and the month began, as Unix times."""
        year, month = divmod(self.month, 12)
        return self.day * 86400.0, datetime(year, month + 1, 1, tzinfo=UTC).timestamp()

    @property
    def day_ends(self) -> str:
        """When the day's budget begins anew."""
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=self.day + 1)).strftime("%Y-%m-%dT00:00:00Z")

    @property
    def month_ends(self) -> str:
        """When the month's budget begins anew."""
        year, month = divmod(self.month + 1, 12)
        return f"{year:04d}-{month + 1:02d}-01T00:00:00Z"


def add_spent(cells: memoryview, at: int, stamp: int, amount: int) -> None:
    """Add micro-USD to a cell of one's own row; a cell of another period begins anew."""
    before = cells[at] ^ stamp
    total = before + amount if 0 <= before <= AMOUNT_MAX else amount
    cells[at] = stamp | (total if total <= AMOUNT_MAX else AMOUNT_MAX)


def _begin(memory: mmap.mmap, keys_max: int, workers: int, shared: bool, opened: int) -> None:
    if not 1 <= workers <= ROWS_MAX or not 1 <= keys_max <= 1_000_000:
        raise ValueError(f"observed {workers} workers and {keys_max} keys, expected 1 to {ROWS_MAX}, 1 to 1000000")
    struct.pack_into("8q", memory, 0, _MAGIC, 1, keys_max, workers, 0, shared, opened, 0)


def identity_of(name: str) -> int:
    """63 bits of a name, never 0. That two of 10,000 names share them happens once in 1.8e11 boards."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1 | 1
