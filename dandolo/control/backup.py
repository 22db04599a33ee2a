"""Copies the state of a gateway while it runs.

Whoever keeps a file in the state folder lists it in `STATE_FILES`; they are copied in that order, into a folder that
appears whole or not at all, with a manifest. A database is copied by SQLite's own online backup in one read
transaction, which a writer does not notice (WAL), and the copy is checked; other files are read as they are.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from dandolo import __version__
from dandolo.clock import timestamp
from dandolo.control import audit, keys, ledger

FORM: Final = 1
MANIFEST: Final = "manifest.json"
BUSY_S: Final = 10.0
_PIECE_BYTES = 1024 * 1024


class StateFile(NamedTuple):
    """A file of the state folder, by its name there (`*` stands for any text). `database` is SQLite's."""

    name: str
    kind: Literal["database", "plain"]
    about: str


STATE_FILES: list[StateFile] = [
    StateFile(keys.FILE, "database", "keys that were made while it ran"),
    StateFile(ledger.FILE, "database", "the ledger; what is only in journals is not in a copy (see `ledger_catchup`)"),
    StateFile(audit.OLDER, "plain", "what was changed on the admin listener, the older part"),
    StateFile(audit.FILE, "plain", "what was changed on the admin listener"),
]
"""What a backup holds. Parts of the control plane add theirs."""


def back_up(state_dir: Path, into: Path, unix_s: float) -> tuple[Path, list[dict[str, Any]]]:
    """Copy everything of `STATE_FILES` that is there into a new folder in `into`, which is made.

    Returns the folder and, for each file, its name, kind, bytes, SHA-256 and, of a database, its `form` (user_version).
    Raises OSError, and ValueError for a database that cannot be copied whole.
    """
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = "dandolo-" + timestamp(unix_s)[:19].replace(":", "").replace("T", "-")
    folder, partial = into / name, into / f".{name}.partial"
    partial.mkdir(mode=0o700)
    try:
        copied = []
        for file in STATE_FILES:
            for source in sorted(state_dir.glob(file.name)):
                copied.append({"name": source.name, "kind": file.kind, **_copy(file, source, partial / source.name)})
        manifest = {"form": FORM, "version": __version__, "time": timestamp(unix_s), "files": copied}
        with _new(partial / MANIFEST) as target:
            target.write(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
            target.flush()
            os.fsync(target.fileno())
        if folder.exists():
            raise FileExistsError(17, "a backup of this second is there already", str(folder))
        partial.rename(folder)
        _sync_folder(into)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder, copied


def _copy(file: StateFile, source: Path, target: Path) -> dict[str, Any]:
    form: dict[str, Any] = {}
    if file.kind == "database":
        _new(target).close()
        form["form"] = _copy_database(source, target)
    else:
        with source.open("rb") as reading, _new(target) as writing:
            # So much as there was when it began: a file that grows while it is read has no end.
            left = os.fstat(reading.fileno()).st_size
            while left > 0 and (piece := reading.read(min(left, _PIECE_BYTES))):
                writing.write(piece)
                left -= len(piece)
            writing.flush()
            os.fsync(writing.fileno())
    digest = hashlib.sha256()
    with target.open("rb") as copied:
        while piece := copied.read(_PIECE_BYTES):
            digest.update(piece)
    return {"bytes": target.stat().st_size, "sha256": digest.hexdigest(), **form}


def _copy_database(source: Path, target: Path) -> int:
    """The copy's user_version."""
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_S)) as reading,
            closing(sqlite3.connect(target)) as writing,
        ):
            reading.backup(writing)
            # One file that stands alone, without a log beside it.
            writing.execute("PRAGMA journal_mode=DELETE")
            found = writing.execute("PRAGMA quick_check(1)").fetchone()[0]
            form = int(writing.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.Error as error:
        raise ValueError(f"{source}: {error}") from error
    if found != "ok":
        raise ValueError(f"{source}: the copy is not sound: {found}")
    return form


def _new(path: Path) -> Any:
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
