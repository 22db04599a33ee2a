"""The ledger's SQLite file, as its one writing thread sees it: schema, migration, batches, retention.

Owns every statement that changes it; values are always bound. A batch is one transaction: the sums, the requests,
the calls that are open, and how far each journal was read, so that a slot counts once or not at all whenever the
process dies. Money is whole nano-dollars, times of rows are whole hours of Unix time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from dandolo.control.ledger_batch import SUM_MAX, SUMS, Batch, Columns, Known, Source

APPLICATION_ID = 0x44414E4C
"""Stands in the file's header ("DANL"), and says that it is ours."""
BUSY_MS = 2000
STEP_ROWS = 32
"""Rows of one INSERT: 32 × 19 values stay below the 999 of old SQLite libraries, and each step gives the
interpreter's lock away."""
PRUNE_ROWS = 2000
CACHE_KIB = 512
"""Of the file's pages, in memory. What is written is hardly looked at again: a larger cache fills with it (180 bytes a
request), and makes nothing faster (8 MiB: the same CPU a row, bench.micro.records)."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE name (id INTEGER PRIMARY KEY, key TEXT NOT NULL, tags TEXT NOT NULL, endpoint TEXT NOT NULL,"
        " model TEXT NOT NULL, provider TEXT NOT NULL, account TEXT NOT NULL, owner TEXT NOT NULL,"
        " upstream_model TEXT NOT NULL)",
        "CREATE TABLE hourly (hour INTEGER NOT NULL, name INTEGER NOT NULL, "
        + ", ".join(f"{column} INTEGER NOT NULL" for column in SUMS)
        + ", PRIMARY KEY (hour, name)) WITHOUT ROWID",
        "CREATE TABLE chunk (n INTEGER PRIMARY KEY, prefix TEXT NOT NULL, low INTEGER NOT NULL, high INTEGER NOT NULL,"
        " requests INTEGER NOT NULL, written REAL NOT NULL, offset_s REAL NOT NULL, names BLOB NOT NULL,"
        " slots BLOB NOT NULL)",
        "CREATE INDEX chunk_requests ON chunk (prefix, high, low)",
        "CREATE TABLE unsettled (journal BLOB NOT NULL, position INTEGER NOT NULL, prefix TEXT NOT NULL,"
        " number INTEGER NOT NULL, name INTEGER NOT NULL, reserved_micro INTEGER NOT NULL, at REAL NOT NULL,"
        " lost INTEGER NOT NULL, PRIMARY KEY (journal, position)) WITHOUT ROWID",
        "CREATE TABLE journal (id BLOB PRIMARY KEY, cursor INTEGER NOT NULL, prefix TEXT NOT NULL,"
        " dropped INTEGER NOT NULL) WITHOUT ROWID",
        "CREATE TABLE journal_name (journal BLOB NOT NULL, number INTEGER NOT NULL, name INTEGER NOT NULL,"
        " price_in REAL, price_out REAL, direct_in REAL, direct_out REAL, PRIMARY KEY (journal, number)) WITHOUT ROWID",
        "CREATE TABLE slo (hour INTEGER NOT NULL, key TEXT NOT NULL, model TEXT NOT NULL, kind TEXT NOT NULL,"
        " cell BLOB NOT NULL, PRIMARY KEY (hour, key, model, kind)) WITHOUT ROWID",
        "CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    ),
    ("ALTER TABLE chunk ADD COLUMN repeated BLOB NOT NULL DEFAULT x''",),
)
"""What makes each version of the one before it; version 0 is an empty file."""
VERSION = len(MIGRATIONS)

_encode = msgspec.msgpack.Encoder().encode
_NAME_COLUMNS = ("key", "tags", "endpoint", "model", "provider", "account", "owner", "upstream_model")


def _places(rows: int, columns: int) -> str:
    return ",".join(["(" + ",".join("?" * columns) + ")"] * rows)


_HOURLY = [
    f"INSERT INTO hourly (hour, name, {', '.join(SUMS)}) VALUES {_places(n, 2 + len(SUMS))}"  # noqa: S608
    " ON CONFLICT (hour, name) DO UPDATE SET " + ", ".join(f"{one} = {one} + excluded.{one}" for one in SUMS)
    for n in range(STEP_ROWS + 1)
]


class Spoiled(Exception):
    """The file is damaged, somebody else's, or of a later version. `flaw` says which, in a word."""

    def __init__(self, flaw: str, text: str) -> None:
        super().__init__(text)
        self.flaw = flaw


class LedgerFile:
    """The writing side. Makes the file (0600, its folder 0700) where there is none.

    Raises Spoiled, sqlite3.Error and OSError; after an error of a method nothing of it is in the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite gives its log and index the mode of the file.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        self._connection = sqlite3.connect(path, BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._connection.close()
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise Spoiled("corrupt", "it is damaged") from error
            raise
        except BaseException:
            self._connection.close()
            raise

    def _open(self) -> None:
        run = self._connection.execute
        run(f"PRAGMA cache_size = -{CACHE_KIB}")
        run("PRAGMA trusted_schema = OFF")
        run("PRAGMA cell_size_check = ON")
        application, version = self._one("PRAGMA application_id"), self._one("PRAGMA user_version")
        if application not in (0, APPLICATION_ID) or (
            not application and self._one("SELECT count(*) FROM sqlite_master")
        ):
            raise Spoiled("foreign", "it is another program's")
        if version > VERSION:
            raise Spoiled("version", f"it has version {version}, and this program knows {VERSION}")
        if self._one("PRAGMA journal_mode = WAL") != "wal":
            raise sqlite3.OperationalError("the file system allows no write-ahead log")
        # A journal's room is freed when its rows are on the disk, and not in a cache that a power failure takes: a few
        # times a second, in this thread.
        run("PRAGMA synchronous = FULL")
        run("PRAGMA journal_size_limit = 4194304")
        if version < VERSION:
            self._transaction(lambda: self._migrate(version))
        # A disk that can be read but not written shows itself here, and not with the first batch.
        self._transaction(lambda: self.add("opened", 1))

    def _migrate(self, version: int) -> None:
        for step in MIGRATIONS[version:]:
            for statement in step:
                self._connection.execute(statement)
        self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self._connection.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        """Never raises."""
        try:
            self._connection.close()
        except sqlite3.Error:
            pass

    # -- what is there -----------------------------------------------------------------------------------------

    def names(self) -> dict[Columns, int]:
        """Every name and its number."""
        rows = self._connection.execute(f"SELECT id, {', '.join(_NAME_COLUMNS)} FROM name")  # noqa: S608
        return {tuple(row[1:]): row[0] for row in rows}

    def source(self, source: Source, header_cursor: int) -> None:
        """Find out how far a journal was read, and what its names are. What was freed by then cannot be read again."""
        row = self._connection.execute("SELECT cursor, dropped FROM journal WHERE id = ?", (source.id,)).fetchone()
        if row is not None:
            header_cursor, source.dropped = max(row[0], header_cursor), row[1]
        source.cursor = header_cursor
        rows = self._connection.execute(
            "SELECT number, name, price_in, price_out, direct_in, direct_out FROM journal_name WHERE journal = ?",
            (source.id,),
        )
        rows_open = self._connection.execute("SELECT position FROM unsettled WHERE journal = ?", (source.id,))
        source.listed = {row[0] for row in rows_open}
        source.known = {row[0]: Known(*row[1:]) for row in rows}

    def journals(self) -> list[bytes]:
        """The journals that the ledger remembers."""
        return [row[0] for row in self._connection.execute("SELECT id FROM journal")]

    def slo(self, since_hour: int) -> list[tuple[int, str, str, str, bytes]]:
        """The cells of objectives from an hour on: hour, key, model, kind, cell."""
        found = self._connection.execute("SELECT hour, key, model, kind, cell FROM slo WHERE hour >= ?", (since_hour,))
        return [tuple(row) for row in found]

    # -- what goes in ------------------------------------------------------------------------------------------

    def apply(
        self,
        batch: Batch,
        sources: Sequence[Source],
        cells: Iterable[tuple[int, str, str, str, bytes]],
        counts: dict[str, int],
        now: float,
    ) -> None:
        """One transaction with a batch, cells of objectives, and what is to be added to counters. `now`: Unix time."""

        # First, for it may learn of names.
        unsettled = batch.unsettled(sources)

        def work() -> None:
            run, many = self._connection.execute, self._connection.executemany
            if batch.names.fresh:
                many(
                    f"INSERT OR IGNORE INTO name (id, {', '.join(_NAME_COLUMNS)}) VALUES {_places(1, 9)}",  # noqa: S608
                    [(number, *columns) for columns, number in batch.names.fresh.items()],
                )
            many(
                "INSERT OR REPLACE INTO journal_name VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(journal, number, *known) for (journal, number), known in batch.learnt.items()],
            )
            self._rows(_HOURLY, [(*key, *(min(one, SUM_MAX) for one in sums)) for key, sums in batch.hourly.items()])
            many(
                "INSERT INTO chunk (prefix, low, high, requests, written, offset_s, names, slots, repeated)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (source.prefix, one.low, one.high, one.requests, now, source.offset_s, _encode(one.names),
                     b"".join(one.slots), b"".join(one.repeated))
                    for source in sources
                    if (one := batch.chunks.get(source.id)) is not None
                ],
            )  # fmt: skip
            many("DELETE FROM unsettled WHERE journal = ? AND position = ?", batch.closed)
            prefixes = {source.id: source.prefix for source in sources}
            dropped = {source.id: source.dropped for source in sources}
            many("INSERT OR REPLACE INTO unsettled VALUES (?, ?, ?, ?, ?, ?, ?, 0)", unsettled)
            for journal, cursor in batch.cursors.items():
                run(
                    "INSERT OR REPLACE INTO journal VALUES (?, ?, ?, ?)",
                    (journal, cursor, prefixes[journal], dropped[journal]),
                )
            many("INSERT OR REPLACE INTO slo VALUES (?, ?, ?, ?, ?)", cells)
            for name, value in counts.items():
                self.add(name, value)

        self._transaction(work)

    def add(self, name: str, value: int) -> None:
        """Add to a counter, within a transaction."""
        self._connection.execute(
            "INSERT INTO counter VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            (name, value),
        )

    def ended(self, journal: bytes) -> None:
        """A worker is dead and its journal read to the end: what is open stays so for good."""

        def work() -> None:
            self._connection.execute("UPDATE unsettled SET lost = 1 WHERE journal = ?", (journal,))
            self._connection.execute("DELETE FROM journal_name WHERE journal = ?", (journal,))

        self._transaction(work)

    def forget(self, journal: bytes) -> None:
        """A journal's file is gone: it cannot be read again."""
        self._connection.execute("DELETE FROM journal WHERE id = ?", (journal,))

    # -- what goes out -----------------------------------------------------------------------------------------

    def prune(self, before: float, requests_max: int) -> int:
        """Delete some of what is past its time: rows of hours before `before` (Unix time), and all but the newest
        `requests_max` requests. Returns how many rows it took; more may be left when that is PRUNE_ROWS or more."""
        hour = int(before) // 3600

        def work() -> int:
            run = self._connection.execute
            taken = run(
                "DELETE FROM hourly WHERE (hour, name) IN (SELECT hour, name FROM hourly WHERE hour < ? LIMIT ?)",
                (hour, PRUNE_ROWS),
            ).rowcount
            # The newest, and the one that makes them as many as are wanted.
            last = run(
                "SELECT n FROM (SELECT n, sum(requests) OVER (ORDER BY n DESC) AS so_far FROM chunk)"
                " WHERE so_far >= ? ORDER BY n DESC LIMIT 1",
                (requests_max,),
            ).fetchone()
            if last is not None:
                run("DELETE FROM chunk WHERE n < ?", last)
            run("DELETE FROM chunk WHERE written < ?", (before,))
            taken += run("DELETE FROM slo WHERE hour < ?", (hour,)).rowcount
            taken += run("DELETE FROM unsettled WHERE lost = 1 AND at < ?", (before,)).rowcount
            return int(taken)

        return int(self._transaction(work))

    def prune_names(self) -> None:
        """Delete names that nothing refers to any more. Reads all rows: once a day."""

        def work() -> None:
            self._connection.execute(
                "DELETE FROM name WHERE id NOT IN (SELECT name FROM hourly UNION SELECT name FROM unsettled"
                " UNION SELECT name FROM journal_name)"
            )

        self._transaction(work)

    # -- within ------------------------------------------------------------------------------------------------

    def _rows(self, statements: Sequence[str], rows: Sequence[tuple[object, ...]]) -> None:
        for first in range(0, len(rows), STEP_ROWS):
            some = rows[first : first + STEP_ROWS]
            self._connection.execute(statements[len(some)], [value for row in some for value in row])

    def _transaction(self, work: Callable[[], Any]) -> Any:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            result = work()
            self._connection.execute("COMMIT")
            return result
        except BaseException:
            if self._connection.in_transaction:
                self._connection.rollback()
            raise

    def _one(self, statement: str) -> Any:
        row = self._connection.execute(statement).fetchone()
        return None if row is None else row[0]
