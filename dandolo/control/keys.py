"""Keys that are made and revoked while the gateway runs: a small SQLite file in the state directory.

Of a key only its SHA-256 is kept: it is random (192 bits), so that its digest needs no salt and no slow hash. A name of
the configuration's file wins over the same name here. What was revoked stays on record. Everything here may wait for a
disk: in a running gateway it is called in a thread.

Beside the keys stand what each has spent today and this month, written every few seconds (`save_spent`), from which a
start goes on where there is no ledger.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import msgspec

from dandolo.config import kinds
from dandolo.config.problem import Unfit
from dandolo.config.schema import Key
from dandolo.config.spec import Reading, keys_of
from dandolo.errors import InternalError, RequestError
from dandolo.policy import Digest, KeyTerms, Policy, micro

FILE: Final = "keys.sqlite"
PREFIX: Final = "dnd_"
RANDOM_BYTES: Final = 24
"""192 bits, 32 characters."""
KEYS_MAX: Final = 10_000
"""Valid at one time."""
OVERLAP_S: Final = 24 * 3600.0
OVERLAP_S_MAX: Final = 30 * 24 * 3600.0
BUSY_S: Final = 5.0
"""How long another process's writing is waited for."""
TERMS: Final = (
    "priority", "rpm", "tpm", "concurrent", "budget_usd_per_day", "budget_usd_per_month", "models", "cache_scope",
    "privacy", "tags",
)  # fmt: skip
"""What a key may be given here, as in `[[keys]]`."""

_VERSION = 1
_MIGRATIONS = (
    # From nothing to 1.
    """
    CREATE TABLE keys (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL COLLATE NOCASE, sha256 BLOB NOT NULL UNIQUE,
        terms TEXT NOT NULL, created REAL NOT NULL, revoked REAL, before BLOB, before_until REAL
    );
    CREATE UNIQUE INDEX keys_by_name ON keys (name) WHERE revoked IS NULL;
    CREATE TABLE spent (
        name TEXT NOT NULL COLLATE NOCASE, period TEXT NOT NULL, micro_usd INTEGER NOT NULL, PRIMARY KEY (name, period)
    ) WITHOUT ROWID;
    """,
)


class Kept(NamedTuple):
    """A key of the database as people are shown it. Times are Unix seconds; `revoked` None: it is valid."""

    name: str
    terms: KeyTerms
    created: float
    revoked: float | None
    before_until: float | None
    """Until when the key that it was rotated from is valid too."""


class Keys:
    """The database of one state directory, opened by one thread. Use it as `with Keys(folder) as keys`.

    Raises InternalError for a file that cannot be used, from every method too.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Made by us, so that nobody else can read it from the first moment on.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            opened = os.stat(self.path)
            self._file = opened.st_dev, opened.st_ino
            self._db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from error
        try:
            self._db.execute("PRAGMA synchronous = FULL")
            self._migrate()
        except sqlite3.Error as error:
            self._db.close()
            raise self._unusable(error) from error
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    # -- what is there -----------------------------------------------------------------------------------

    def generation(self) -> int:
        """Another number whenever somebody else has changed the file."""
        return int(self._query("PRAGMA data_version")[0][0])

    def replaced(self) -> bool:
        """Whether another file stands under the name by now, or none."""
        try:
            there = os.stat(self.path)
        except OSError as error:
            raise self._unusable(error) from error
        return (there.st_dev, there.st_ino) != self._file

    def listed(self) -> list[Kept]:
        """All keys ever made, the latest last."""
        rows = self._query("SELECT name, sha256, terms, created, revoked, before, before_until FROM keys ORDER BY id")
        return [self._kept(row) for row in rows]

    def policy(self, now: float) -> Policy:
        """The keys that are valid at a Unix time, for workers."""
        listed = self.listed()
        return Policy(
            keys=tuple(
                msgspec.structs.replace(
                    kept.terms,
                    digests=tuple(one for one in kept.terms.digests if one.until is None or one.until > now),
                )
                for kept in listed
                if kept.revoked is None
            ),
            closed=bool(listed),
        )

    # -- what is done ------------------------------------------------------------------------------------

    def create(self, name: str, given: Mapping[str, Any], now: float) -> tuple[str, Kept]:
        """Make a key: the key itself, which is nowhere else, and what is kept of it.

        Raises RequestError: 400 for terms that cannot be, 409 where the name is taken or there are too many.
        """
        read_terms(name, given)
        key = new_key()
        text = msgspec.json.encode({one: given[one] for one in TERMS if given.get(one) is not None}).decode()
        with self._changing():
            if self._query("SELECT count(*) FROM keys WHERE revoked IS NULL")[0][0] >= KEYS_MAX:
                raise _conflict(f"there are {KEYS_MAX} keys, as many as there can be; revoke some", "too_many_keys")
            if self._query("SELECT 1 FROM keys WHERE name = ? AND revoked IS NULL", name):
                raise _conflict(f"there is a key '{name}' already; rotate it, or revoke it first", "key_exists")
            self._query(
                "INSERT INTO keys (name, sha256, terms, created) VALUES (?, ?, ?, ?)", name, _sha(key), text, now
            )
        return key, self._one(name)

    def rotate(self, name: str, overlap_s: float, now: float) -> tuple[str, Kept]:
        """Put a new key in the place of one, which stays valid for `overlap_s` seconds more (0: not at all).

        Raises RequestError: 404 where there is no such key, 400 for another overlap than 0 to OVERLAP_S_MAX.
        """
        if not 0.0 <= overlap_s <= OVERLAP_S_MAX:
            raise RequestError(
                f"observed an overlap of {overlap_s:.0f} s, expected 0 to {OVERLAP_S_MAX:.0f} (30 days)",
                param="overlap_s",
            )
        key = new_key()
        with self._changing():
            before = self._find(name)[1]
            self._query(
                "UPDATE keys SET sha256 = ?, before = ?, before_until = ? WHERE name = ? AND revoked IS NULL",
                _sha(key), before if overlap_s else None, now + overlap_s if overlap_s else None, name,
            )  # fmt: skip
        return key, self._one(name)

    def revoke(self, name: str, now: float) -> Kept:
        """Make a key invalid for good. Raises RequestError (404) where there is no such key."""
        with self._changing():
            kept = self._kept(self._find(name))
            self._query("UPDATE keys SET revoked = ?, before = NULL WHERE name = ? AND revoked IS NULL", now, name)
        return kept._replace(revoked=now)

    # -- what was spent ----------------------------------------------------------------------------------

    def spent(self, periods: Sequence[str]) -> dict[tuple[str, str], int]:
        """Micro-USD by folded name and period (2026-01-31, 2026-01)."""
        marks = ", ".join("?" * len(periods))
        rows = self._query(f"SELECT name, period, micro_usd FROM spent WHERE period IN ({marks})", *periods)  # noqa: S608
        return {(str(name).casefold(), str(period)): int(amount) for name, period, amount in rows}

    def save_spent(self, amounts: Mapping[tuple[str, str], int], periods: Sequence[str]) -> None:
        """Keep what was spent, and forget what is not of these periods."""
        marks = ", ".join("?" * len(periods))
        with self._changing():
            for (name, period), amount in amounts.items():
                self._query("INSERT OR REPLACE INTO spent VALUES (?, ?, ?)", name, period, amount)
            self._query(f"DELETE FROM spent WHERE period NOT IN ({marks})", *periods)  # noqa: S608

    # -- within ------------------------------------------------------------------------------------------

    def _migrate(self) -> None:
        version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        if version > _VERSION:
            raise InternalError(
                f"{self.path} is of a later version of Dandolo ({version}, expected {_VERSION} at most)"
            )
        if version == _VERSION:
            return
        with self._changing():
            # Somebody else may have been quicker.
            version = int(self._db.execute("PRAGMA user_version").fetchone()[0])
            for script in _MIGRATIONS[version:]:
                for statement in script.split(";"):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {_VERSION}")

    def _query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _changing(self) -> _Changing:
        return _Changing(self._db, self._unusable)

    def _find(self, name: str) -> tuple[Any, ...]:
        rows = self._query(
            "SELECT name, sha256, terms, created, revoked, before, before_until FROM keys"
            " WHERE name = ? AND revoked IS NULL",
            name,
        )
        if not rows:
            raise RequestError(
                f"there is no valid key '{_shown(name)}' in the database; `dandolo keys list` shows all (those of the"
                " configuration's file are changed there)",
                status=404,
                code="key_not_found",
            )
        return rows[0]

    def _one(self, name: str) -> Kept:
        return self._kept(self._find(name))

    def _kept(self, row: tuple[Any, ...]) -> Kept:
        name, sha256, text, created, revoked, before, until = row
        digests = [Digest(bytes(sha256))]
        if before is not None:
            digests.append(Digest(bytes(before), float(until)))
        try:
            terms = read_terms(str(name), msgspec.json.decode(text))
        except (RequestError, msgspec.DecodeError) as error:
            raise self._unusable(error) from error
        return Kept(name, msgspec.structs.replace(terms, digests=tuple(digests)), created, revoked, until)

    def _unusable(self, error: Exception) -> InternalError:
        return InternalError(f"{self.path} cannot be used: {error}")


class _Changing:
    """A transaction that writes, begun as one."""

    def __init__(self, db: sqlite3.Connection, unusable: Any) -> None:
        self._db = db
        self._unusable = unusable

    def __enter__(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._db.execute("COMMIT" if error is None else "ROLLBACK")
        except sqlite3.Error as failed:
            if error is None:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise self._unusable(failed) from failed


def read_terms(name: str, given: Mapping[str, Any]) -> KeyTerms:
    """Terms by the rules of `[[keys]]`. Raises RequestError (400) that names everything that is wrong."""
    reading = Reading("request", {}, Path(), {})
    root, specs, values = reading.root(), keys_of(Key), dict[str, Any]()
    if not isinstance(given, Mapping):
        raise RequestError("expected a JSON object")
    for field, value in (("name", name), *given.items()):
        here = root.child(str(field)[:64])
        if field != "name" and field not in TERMS:
            near = kinds.nearest(str(field), TERMS)
            here.report(f"is not known: did you mean {near}?" if near else f"is not known: expected {', '.join(TERMS)}")
        elif value is not None:
            read = specs[field].kind.read
            assert read is not None
            try:
                values[field] = read(value, here)
            except Unfit as error:
                here.report(str(error))
    if reading.problems:
        raise RequestError(
            "; ".join(f"{problem.key} {problem.reason}" for problem in reading.problems),
            code="invalid_key_terms",
            param=reading.problems[0].key,
        )
    values["budget_day"] = micro(values.pop("budget_usd_per_day", None))
    values["budget_month"] = micro(values.pop("budget_usd_per_month", None))
    if "tags" in values:
        values["tags"] = dict(values["tags"])
    return KeyTerms(**values)


def new_key() -> str:
    """A random key: `dnd_` and 32 characters that need no quoting in a URL, a header or a shell."""
    return PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def _sha(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _shown(name: str) -> str:
    return name[:64] if name.isprintable() else "?"


def _conflict(message: str, code: str) -> RequestError:
    return RequestError(message, status=409, code=code)
