"""The cache's SQLite file, as one thread sees it: schema, batches, chunks of deletion, reads.

Owns every SQL statement. They are constants, or built of constants and a number of question marks; values are
bound. It knows nothing of queues, threads and loops, and time is an argument. Statements take many rows at
once, because every step of a statement gives the interpreter's lock away and may have to wait for it.

The file is never mapped into memory (`mmap_size` stays 0): a mapped file that is cut short kills the process.
How many rows and bytes there are is kept in a row of its own, changed with every transaction, so nobody counts.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dandolo.cache.generations import Marks, Purge
from dandolo.cache.sqlite_place import Place, Spoiled
from dandolo.cache.sqlite_row import KEY_BYTES, ROW_BYTES, VALUE_BYTES_MAX, Row, read_marks

APPLICATION_ID = 0x44414E44
"""Stands in the file's header ("DAND"), and says that it is ours."""
VERSION = 1
BUSY_MS = 100
CHUNK_ROWS = 256
STEP_ROWS = 64
"""Rows of one INSERT: 64 × 10 values stay below the 999 of old SQLite libraries."""
WRITE_CACHE_KIB = 16 * 1024
READ_CACHE_KIB = 8 * 1024
FUTURE_S = 60.0
"""A row from further in the future was written under another clock, and how long it may live is unknown."""
_SPARE_PAGES = 16

_T = TypeVar("_T")

_SCHEMA = (
    "CREATE TABLE entry (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, created INTEGER NOT NULL,"
    " expires INTEGER NOT NULL, generation INTEGER NOT NULL, scope TEXT NOT NULL, model TEXT NOT NULL,"
    " class TEXT NOT NULL, tags BLOB NOT NULL, crc INTEGER NOT NULL, value BLOB NOT NULL)",
    "CREATE INDEX entry_expires ON entry (expires)",
    "CREATE TABLE generation (kind TEXT NOT NULL, name TEXT NOT NULL, soft INTEGER NOT NULL,"
    " number INTEGER NOT NULL, PRIMARY KEY (kind, name, soft)) WITHOUT ROWID",
    "CREATE TABLE tally (one INTEGER PRIMARY KEY CHECK (one = 1), rows INTEGER NOT NULL, bytes INTEGER NOT NULL,"
    " generation INTEGER NOT NULL)",
    "INSERT INTO tally VALUES (1, 0, 0, 0)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)
"""Times are milliseconds of Unix time. An id is higher than all before it, so the lowest is the oldest."""

_COLUMNS = "key, created, expires, generation, scope, model, class, tags, crc, value"


def _places(rows: int, columns: int) -> str:
    """For values to be bound to, as `(?,?),(?,?)`."""
    return ",".join(["(" + ",".join("?" * columns) + ")"] * rows)


_INSERT = [f"INSERT INTO entry ({_COLUMNS}) VALUES {_places(n, 10)}" for n in range(STEP_ROWS + 1)]  # noqa: S608
_IN = [_places(1, n) for n in range(STEP_ROWS + 1)]
_SELECT = [f"SELECT {_COLUMNS} FROM entry WHERE key IN {some}" for some in _IN]  # noqa: S608
_SIZES = [f"SELECT total(1), total(length(value)) FROM entry WHERE key IN {some}" for some in _IN]  # noqa: S608
_DELETE = [f"DELETE FROM entry WHERE key IN {some}" for some in _IN]  # noqa: S608


def _connect(place: Place, cache_kib: int) -> sqlite3.Connection:
    connection = sqlite3.connect(place.path, BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA cache_size = -{cache_kib}")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    # A damaged text must not spoil the statement that reads it with others: its row's checksum will tell.
    connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    return connection


class SqliteFile:
    """The writing side. Opening it makes the file where there is none.

    Raises Spoiled when it is damaged, somebody else's or of another version, and sqlite3.Error or OSError for
    the disk's troubles; after an error of a method the transaction is undone and the counts are as before.
    `bytes_max` bounds the file together with its write-ahead log. `rows` and `value_bytes` are running counts.
    """

    def __init__(self, place: Place, bytes_max: int) -> None:
        # The log is emptied into the file at a quarter of its allowance, and a batch is at most another; what
        # is left is for a reader that holds it up, and for pages of indexes.
        log_bytes = min(16 * 1024 * 1024, bytes_max // 4)
        self.batch_bytes = log_bytes // 4
        self.value_bytes_max = min(VALUE_BYTES_MAX, bytes_max // 20)
        self.rows = self.value_bytes = self.generation = 0
        fresh = place.secure()
        self._connection = _connect(place, WRITE_CACHE_KIB)
        try:
            if not fresh:
                self._recognise()
            self._page_bytes: int = self._one("PRAGMA page_size")
            self._pages_max = (bytes_max - log_bytes) // self._page_bytes
            if self._pages() > self._pages_max:
                # A database gives nothing back to its disk unless it is copied, and there may be no room for that.
                raise Spoiled("oversize", "it is larger than it may be now")
            if self._one("PRAGMA journal_mode = WAL") != "wal":
                raise sqlite3.OperationalError("the file system allows no write-ahead log")
            self._run("PRAGMA synchronous = NORMAL")
            self._run(f"PRAGMA wal_autocheckpoint = {max(16, log_bytes // 4 // self._page_bytes)}")
            self._run(f"PRAGMA journal_size_limit = {log_bytes // 4}")
            # Should room be estimated wrongly, SQLite itself refuses to grow.
            self._run(f"PRAGMA max_page_count = {self._pages_max}")
            if self._one("PRAGMA user_version") == 0:
                self._transaction(self._make)
            self.rows, self.value_bytes, self.generation = self._all("SELECT rows, bytes, generation FROM tally")[0]
            # A disk that can be read but not written shows itself here, and not with the first answer.
            self._transaction(self._tally)
        except BaseException:
            self._connection.close()
            raise

    def check(self) -> None:
        """Read all of the file and raise Spoiled when its structure is damaged. Takes seconds for gigabytes."""
        found = self._one("PRAGMA quick_check(1)")
        if found != "ok":
            raise Spoiled("corrupt", "it fails its check")

    def interrupt(self) -> None:
        """Stop what is running, from another thread."""
        self._connection.interrupt()

    def empty_log(self) -> None:
        """Move what is in the log into the file, also beside a reader that is still there."""
        self._all("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Never raises."""
        try:
            self._connection.close()
        except sqlite3.Error:
            pass

    @property
    def used_bytes(self) -> int:
        """Pages in use, in bytes."""
        return (self._pages() - int(self._one("PRAGMA freelist_count"))) * self._page_bytes

    @property
    def file_bytes(self) -> int:
        """Size of the file without its log."""
        return self._pages() * self._page_bytes

    def at_cap(self) -> bool:
        """Whether the file may not grow by more than a few pages: "full" is our bound then, and not the disk's."""
        return bool(self._pages() >= self._pages_max - _SPARE_PAGES)

    # -- what goes in ------------------------------------------------------------------------------------------

    def write(
        self,
        rows: Sequence[Row],
        generation: int,
        deletes: Sequence[bytes] = (),
        purges: Sequence[tuple[Purge, int]] = (),
    ) -> int:
        """Store rows of different keys, each replacing that of its key, in one transaction with deletions and purges.

        Each of `purges` comes with its generation. A transaction that has any, or deletions, is on the disk when this
        returns; others may be lost with the power. Returns how many rows were deleted and not replaced.
        """
        keys = [row.key for row in rows]
        kept = set(keys)
        gone = [key for key in deletes if key not in kept]

        def work() -> int:
            before = self.rows
            self._drop(keys)
            replaced = before - self.rows
            self._drop(gone)
            for n in range(0, len(rows), STEP_ROWS):
                some = rows[n : n + STEP_ROWS]
                self._run(_INSERT[len(some)], [value for row in some for value in self._values(row)])
            self.rows += len(rows)
            self.value_bytes += sum(len(row.value) for row in rows)
            for (kind, name, soft), number in purges:
                if kind == "all":
                    self._run("DELETE FROM generation WHERE soft = ? AND number < ?", (soft, number))
                self._run("INSERT OR REPLACE INTO generation VALUES (?, ?, ?, ?)", (kind, name, soft, number))
            self.generation = generation
            self._tally()
            return before - replaced + len(rows) - self.rows

        durable = bool(purges or deletes)
        if durable:
            self._run("PRAGMA synchronous = FULL")
        try:
            return self._transaction(work)
        finally:
            if durable:
                self._run("PRAGMA synchronous = NORMAL")

    def lacking_bytes(self, stored_bytes: int) -> int:
        """How much must go for rows of that size together to fit: twice, for a page may be half empty."""
        return int(self.used_bytes + 2 * stored_bytes - (self._pages_max - _SPARE_PAGES) * self._page_bytes)

    # -- what goes out: each a chunk, each returns how many rows it took --------------------------------------

    def evict(self, wanted_bytes: int) -> int:
        """Delete the oldest rows: so many that this is freed, but not more than a chunk."""
        wanted_bytes = max(wanted_bytes, self.batch_bytes // 4)
        found: list[Any] = []
        for row in self._all("SELECT id, length(value) FROM entry ORDER BY id LIMIT ?", (CHUNK_ROWS,)):
            if wanted_bytes <= 0:
                break
            wanted_bytes -= ROW_BYTES + row[1]
            found.append(row)
        if found:
            self._delete_ids(found)
        return len(found)

    def sweep(self, now_ms: int) -> int:
        """Delete some of the rows that are past their time."""
        chosen = "SELECT id, length(value) FROM entry WHERE expires <= ? LIMIT ?"
        found = self._all(chosen, (now_ms, CHUNK_ROWS))
        if found:
            self._delete_ids(found)
        return len(found)

    def walk(self, after: int, before: int, dead: Callable[[int, Marks], bool]) -> tuple[int | None, int]:
        """Delete the dead among the next rows with ids above `after` and a generation below `before`.

        `dead` is asked (generation, marks). Returns the id to go on after, None at the end, and how many died.
        What is deleted here is overwritten with zeros: somebody wanted it gone.
        """
        found = self._all(
            "SELECT id, length(value), generation, scope, model, class, tags FROM entry"
            " WHERE id > ? ORDER BY id LIMIT ?",
            (after, CHUNK_ROWS),
        )
        older = [row for row in found if row[2] < before]
        doomed = [row[:2] for row in older if self._doomed(dead, *row[2:])]
        if doomed:
            self._run("PRAGMA secure_delete = ON")
            try:
                self._delete_ids(doomed)
            finally:
                self._run("PRAGMA secure_delete = OFF")
        return (found[-1][0] if len(older) == CHUNK_ROWS else None), len(doomed)

    def purges(self) -> dict[Purge, int]:
        """The purges that the file remembers, with their generations."""
        found = self._all("SELECT kind, name, soft, number FROM generation")
        return {(kind, name, bool(soft)): number for kind, name, soft, number in found}

    def oldest_generation(self) -> int:
        """That of the oldest row; with no row the current one."""
        found = self._all("SELECT generation FROM entry ORDER BY id LIMIT 1")
        return int(found[0][0]) if found else self.generation

    def forget_purges(self, before: int, *, soft: bool) -> None:
        """Drop purges up to that generation."""
        self._run("DELETE FROM generation WHERE number <= ? AND soft = ?", (before, soft))

    # -- within ------------------------------------------------------------------------------------------------

    def _make(self) -> None:
        for statement in _SCHEMA:
            self._run(statement)

    def _recognise(self) -> None:
        application, version = self._one("PRAGMA application_id"), self._one("PRAGMA user_version")
        if application == APPLICATION_ID and version == VERSION:
            return
        if application == APPLICATION_ID:
            raise Spoiled("version", f"it has version {version}, and not {VERSION}")
        if application or version or self._all("SELECT name FROM sqlite_master LIMIT 1"):
            raise Spoiled("foreign", "it is another program's")

    def _doomed(self, dead: Callable[[int, Marks], bool], born: int, *columns: Any) -> bool:
        try:
            return dead(born, read_marks(*columns))
        except ValueError:
            # Nobody can say any more what it was.
            return True

    def _values(self, row: Row) -> tuple[object, ...]:
        marks = row.marks
        times = (row.created_ms, row.expires_ms, row.born)
        return (row.key, *times, marks.scope, marks.model, marks.ttl_class, row.tags, row.crc(), row.value)

    def _drop(self, keys: list[bytes]) -> None:
        for n in range(0, len(keys), STEP_ROWS):
            some = keys[n : n + STEP_ROWS]
            rows, size = self._all(_SIZES[len(some)], some)[0]
            if rows:
                self._run(_DELETE[len(some)], some)
                self.rows -= int(rows)
                self.value_bytes -= int(size)

    def _delete_ids(self, found: list[Any]) -> None:
        def work() -> None:
            self._connection.executemany("DELETE FROM entry WHERE id = ?", [(row[0],) for row in found])
            self.rows -= len(found)
            self.value_bytes -= sum(row[1] for row in found)
            self._tally()

        self._transaction(work)

    def _tally(self) -> None:
        counts = (self.rows, self.value_bytes, self.generation)
        self._run("UPDATE tally SET rows = ?, bytes = ?, generation = ?", counts)

    def _transaction(self, work: Callable[[], _T]) -> _T:
        counts = self.rows, self.value_bytes, self.generation
        self._run("BEGIN IMMEDIATE")
        try:
            result = work()
            self._run("COMMIT")
            return result
        except BaseException:
            self.rows, self.value_bytes, self.generation = counts
            if self._connection.in_transaction:
                self._connection.rollback()
            raise

    def _pages(self) -> int:
        return int(self._one("PRAGMA page_count"))

    def _one(self, statement: str) -> Any:
        return self._all(statement)[0][0]

    def _all(self, statement: str, arguments: Sequence[Any] = ()) -> list[Any]:
        return self._connection.execute(statement, arguments).fetchall()

    def _run(self, statement: str, arguments: Sequence[Any] = ()) -> None:
        self._connection.execute(statement, arguments).close()


class SqliteReader:
    """The reading side: a connection of its own, so that no read waits for a write. Raises sqlite3.Error."""

    def __init__(self, place: Place) -> None:
        self._connection = _connect(place, READ_CACHE_KIB)
        self._connection.execute("PRAGMA query_only = ON")

    def rows(self, keys: Sequence[bytes], now_ms: int) -> tuple[dict[bytes, Row], list[bytes]]:
        """The live rows under at most STEP_ROWS keys, and the keys of damaged ones, which are to be deleted."""
        found: dict[bytes, Row] = {}
        damaged: list[bytes] = []
        for key, created, expires, born, scope, model, ttl_class, tags, crc, value in self._all(
            _SELECT[len(keys)], keys
        ):
            try:
                row = Row(key, value, created, expires, born, read_marks(scope, model, ttl_class, tags))
                whole = row.crc() == crc
            except (TypeError, ValueError, AttributeError):
                whole = False
            if not whole:
                damaged.append(key)
            elif expires > now_ms and created <= now_ms + FUTURE_S * 1000:
                found[key] = row
        return found, damaged

    def keys(self, after: bytes, count: int) -> tuple[list[bytes], bytes | None]:
        """The next keys, from the index alone, and the last of them; None: these were all.

        They come as one text, because a step for each would cost more than the rest.
        """
        text = self._all(
            "SELECT group_concat(hex(key), ' ') FROM (SELECT key FROM entry WHERE key > ? ORDER BY key LIMIT ?)",
            (after, count),
        )[0][0]
        keys = [bytes.fromhex(key) for key in text.split(" ")] if text else []
        # A damaged key may have another length, and is never asked for.
        return [key for key in keys if len(key) == KEY_BYTES], max(keys) if len(keys) == count else None

    def _all(self, statement: str, arguments: Sequence[Any]) -> list[Any]:
        return self._connection.execute(statement, arguments).fetchall()

    def close(self) -> None:
        """Never raises."""
        try:
            self._connection.close()
        except sqlite3.Error:
            pass
