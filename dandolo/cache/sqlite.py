"""The tier on disk (L3): an SQLite file behind one reading and one writing thread.

The event loop never touches the file: lookups become requests to the reading thread, answers to keep go into a
bounded queue that the writing thread empties in batches, and purges take effect in memory before they return.
Nothing that goes wrong with file or disk is raised: a lookup is a miss, a write is counted as lost, `health`
tells. A damaged file is set aside and begun anew; on a full or read-only disk the tier is off, which costs one
line in the log, and tries again now and then. A filter in memory answers for most keys that are not there;
until it has been built from the file, every lookup goes to the disk.

It knows nothing of what it keeps but key, time to live and marks; text among the marks stands in the file as it
is, so a scope must be a tenant's name or a digest and never a key that opens anything. Cancelling what waits
leaves nothing behind but work that is thrown away when it is done.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dandolo.cache.generations import Generations, Kind, Marks
from dandolo.cache.sqlite_place import Place
from dandolo.cache.sqlite_reading import Lookup, Reading
from dandolo.cache.sqlite_row import KEY_BYTES, TAGS_BYTES_MAX, VALUE_BYTES_MAX, Row
from dandolo.cache.sqlite_writer import RETRY_S, State, Writer

CLOSE_S = 2.0
CLOSE_WAIT_S = 1.0
LOOKUPS_PER_GET = 3
BYTES_MIN = 1024 * 1024
NO_MARKS = Marks()
_LATEST_MS = 1 << 53

_log = logging.getLogger("dandolo")

_T = TypeVar("_T")


def steady_clock() -> Callable[[], float]:
    """Unix time in seconds that no correction of the wall clock moves: read once, counted on from there.

    Counted with the time the machine was suspended (CLOCK_BOOTTIME), which a time to live must include.
    """
    boot = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    start = time.time() - time.clock_gettime(boot)
    return lambda: start + time.clock_gettime(boot)


@dataclass(frozen=True, slots=True)
class Put:
    """What to keep under a key of 20 bytes until `expires`, in Unix seconds of the tier's clock.

    From then on it is gone: an entry that may be served stale gives the end of that time.
    """

    key: bytes
    value: bytes
    expires: float
    marks: Marks = NO_MARKS


@dataclass(frozen=True, slots=True)
class Found:
    """What is kept. `stale`: a soft purge came after it, so it may be served only where staleness may."""

    value: bytes
    expires: float
    stale: bool


@dataclass(frozen=True, slots=True)
class Health:
    """`state` is "starting" (the file is being checked, and read already), "open", "off" (for `reason`) or "closed".

    `unsaved_purges` are in force, but the file knows nothing of them yet: should the process end before the disk
    can be written again, what they purged comes back.
    """

    state: State
    reason: str
    unsaved_purges: int
    filter_ready: bool


class Sqlite:
    """The tier. All methods belong to the event loop in which `start` was awaited.

    `bytes_max` (1 MiB at least) bounds the file with its log; the oldest entries make room. No value is kept that
    is larger than 8 MiB or a twentieth of that. `clock` gives Unix seconds, and is asked in other threads too.
    After a failure of the disk the tier stays off for `retry_s` seconds.
    """

    def __init__(
        self, path: Path, bytes_max: int, *, clock: Callable[[], float] | None = None, retry_s: float = RETRY_S
    ) -> None:
        assert bytes_max >= BYTES_MIN
        self._clock = clock or steady_clock()
        self._writer = Writer(Place(path), bytes_max, self._clock, retry_s)
        self._value_bytes_max = min(VALUE_BYTES_MAX, bytes_max // 20)
        self._reading: Reading | None = None
        self._threads: list[threading.Thread] = []
        self._ended: list[asyncio.Future[None]] = []
        self.hits = 0
        self.misses = 0
        self.denied = 0
        """Lookups of a key that the filter answered, among the misses."""
        self.crowded = 0
        """Lookups that were not made because too many waited."""
        self.refused = 0
        """Puts with a value too large, or marks that are no text."""

    async def start(self) -> None:
        """Start the threads, which open the file: until then nothing is found. To be called once.

        While it is checked, which takes seconds for gigabytes, it is read; what is put waits in the queue.
        """
        assert self._reading is None, "started twice"
        loop = asyncio.get_running_loop()
        self._reading = Reading(self._writer, loop, self._clock, self._delete)
        for name, run in (("cache-write", self._writer.run), ("cache-read", self._reading.run)):
            ended: asyncio.Future[None] = loop.create_future()
            # Daemons: a disk that hangs must not keep the process from ending.
            thread = threading.Thread(target=_run, args=(run, loop, ended), name=name, daemon=True)
            self._ended.append(ended)
            self._threads.append(thread)
            thread.start()

    async def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Found]:
        """What is kept under these keys and may still be served; a key that is not in the answer is a miss.

        What is queued counts as kept. Waits for the disk as long as it takes: whoever calls sets a deadline.
        """
        writer, generations = self._writer, self._writer.generations
        latest, bloom = writer.backlog.latest, writer.filter
        alive: dict[bytes, Found] = {}
        filed: Sequence[bytes] = keys
        if latest:
            now_ms = self._clock() * 1000
            queued = {key: row for key in keys if (row := latest.get(key)) is not None}
            alive = _alive(queued, {k: row for k, row in queued.items() if row.expires_ms > now_ms}, generations)
            filed = [key for key in keys if key not in queued]
        likely = list(filed) if bloom is None else [key for key in filed if key in bloom]
        self.denied += len(filed) - len(likely)
        for _ in range(LOOKUPS_PER_GET if likely else 0):
            forgotten = generations.forgotten
            found = await self._look_up(likely)
            if generations.forgotten == forgotten:
                alive.update(_alive(likely, found, generations))
                break
            # A purge whose victims were deleted meanwhile is not noted any more, and they may be among the rows.
        self.hits += len(alive)
        self.misses += len(keys) - len(alive)
        return alive

    def likely(self, key: bytes) -> bool:
        """Whether to ask for a key at all: most of those that are not there the filter knows at once."""
        bloom = self._writer.filter
        if bloom is None or key in bloom or key in self._writer.backlog.latest:
            return True
        self.denied += 1
        self.misses += 1
        return False

    async def _look_up(self, keys: list[bytes]) -> Mapping[bytes, Row]:
        if not self._writer.epoch or self._reading is None:
            return {}
        lookup = Lookup(keys, asyncio.get_running_loop().create_future())
        if not self._reading.ask(lookup):
            self.crowded += 1
            return {}
        return await lookup.found

    async def put_many(self, puts: Iterable[Put]) -> None:
        """Queue what is to be kept, and return at once. What does not fit into the queue pushes the oldest out."""
        now_ms = int(self._clock() * 1000)
        rows = []
        for put in puts:
            try:
                row = Row(put.key, put.value, now_ms, int(put.expires * 1000), 0, put.marks)
            except (ValueError, OverflowError):
                self.refused += 1
                continue
            fits = len(row.value) <= self._value_bytes_max and len(row.tags) <= TAGS_BYTES_MAX
            if fits and len(row.key) == KEY_BYTES and row.expires_ms < _LATEST_MS:
                rows.append(row)
            else:
                self.refused += 1
        self._writer.put(rows)

    async def delete(self, keys: Iterable[bytes]) -> None:
        """Forget what is kept under these keys, at once; the file follows."""
        self._delete(list(keys))

    def forget(self, key: bytes) -> None:
        """The same for one key, without anything to wait for."""
        self._delete([key])

    async def purge(self, kind: Kind, name: str = "", *, soft: bool = False) -> bool:
        """Forget, or mark stale when `soft`, everything of that key (hexadecimal), tag, model, scope or class, or all.

        In force before this first waits. Waits for the file to know: True then; False: it cannot be told now, the
        purge holds while this process lives, and the file is told when it can be. Raises ValueError for a key that
        is no hexadecimal. Cancelled, only the waiting ends.
        """
        if kind == "key" and not soft:
            self._delete([bytes.fromhex(name)])
        else:
            with self._writer.lock:
                self._writer.generations.purge(kind, name.lower() if kind == "key" else name, soft=soft)
        return await self.flush()

    async def flush(self) -> bool:
        """Wait until the file has all that was put, deleted and purged before; False: it cannot be written now."""
        loop = asyncio.get_running_loop()
        written: asyncio.Future[bool] = loop.create_future()

        def told(result: bool) -> None:
            try:
                loop.call_soon_threadsafe(_set, written, result)
            except RuntimeError:
                # The loop has been closed, and everything that waited with it.
                pass

        self._writer.when_written(told)
        return await written

    def stats(self) -> dict[str, int]:
        """Counts since the start, and sizes now: `value_bytes` of values alone, `file_bytes` without the log."""
        writer, reading, counts = self._writer, self._reading, self._writer.counts
        bloom = writer.filter
        return {
            "rows": writer.rows,
            "value_bytes": writer.value_bytes,
            "file_bytes": writer.file_bytes,
            "filter_bytes": 0 if bloom is None else len(bloom),
            "queued": len(writer.backlog),
            "queued_bytes": writer.backlog.stored_bytes,
            "hits": self.hits,
            "misses": self.misses,
            "denied": self.denied,
            "crowded": self.crowded,
            "refused": self.refused,
            "written": counts.written,
            "dropped": counts.dropped,
            "lost": counts.lost,
            "evicted": counts.evicted,
            "expired": counts.expired,
            "deleted": counts.deleted,
            "damaged": 0 if reading is None else reading.damaged_rows,
            "read_errors": 0 if reading is None else reading.errors,
            "write_errors": counts.write_errors,
            "set_aside": counts.set_aside,
        }

    def health(self) -> Health:
        """How it is."""
        writer = self._writer
        unsaved = len(writer.generations.unsaved) + len(writer.generations.deletes)
        return Health(writer.state, writer.reason, unsaved, writer.filter is not None)

    async def close(self) -> None:
        """Write what is queued, for at most 2 s, and end the threads, waiting for at most another second."""
        if self._reading is None:
            return
        self._writer.close(CLOSE_S)
        self._reading.close()
        _, pending = await asyncio.wait(self._ended, timeout=CLOSE_S + CLOSE_WAIT_S)
        if pending:
            _log.warning("cache on disk: the disk does not answer; what was queued is lost")

    def _delete(self, keys: list[bytes]) -> None:
        """From any thread."""
        with self._writer.lock:
            self._writer.generations.delete(keys)
        self._writer.wake()


def _alive(keys: Iterable[bytes], rows: Mapping[bytes, Row], generations: Generations) -> dict[bytes, Found]:
    alive = {}
    for key in keys:
        row = rows.get(key)
        if row is not None and not generations.dead(key, row.born, row.marks):
            alive[key] = Found(row.value, row.expires_ms / 1000, generations.stale(key, row.born, row.marks))
    return alive


def _run(work: Callable[[], None], loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
    try:
        work()
    except Exception:
        _log.exception("cache on disk: a thread ended")
    finally:
        try:
            loop.call_soon_threadsafe(_set, ended, None)
        except RuntimeError:
            # The loop has been closed without `close`.
            pass


def _set(future: asyncio.Future[_T], result: _T) -> None:
    if not future.done():
        future.set_result(result)
