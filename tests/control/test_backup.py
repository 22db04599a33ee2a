"""Backups of databases that are being written, of files that grow, and of what cannot be copied."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from dandolo.control import backup
from dandolo.control.backup import StateFile, back_up

NOW = 1_700_000_000.0


@pytest.fixture(autouse=True)
def _files(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [StateFile("keys.db", "database", "keys"), StateFile("audit*.jsonl", "plain", "audit")]
    monkeypatch.setattr(backup, "STATE_FILES", files)


def database(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA user_version=7")
    connection.execute("CREATE TABLE one (n INTEGER, twice INTEGER)")
    connection.commit()
    return connection


def test_a_database_is_copied_whole_while_it_is_written(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    connection = database(state / "keys.db")
    stop, begun = threading.Event(), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with connection:
                connection.execute("INSERT INTO one VALUES (?, 0)", (number,))
                connection.execute("UPDATE one SET twice = 2 * n WHERE n = ?", (number,))
            if number == 50:
                begun.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert begun.wait(10)
        folder, files = back_up(state, tmp_path / "backups", NOW)
    finally:
        stop.set()
        writer.join()
        connection.close()
    assert folder.name == "dandolo-2023-11-14-221320"
    assert {path.name for path in folder.iterdir()} == {"keys.db", "manifest.json"}
    with sqlite3.connect(folder / "keys.db") as copied:
        total, wrong = copied.execute("SELECT count(*), sum(twice != 2 * n) FROM one").fetchone()
    copied.close()
    assert total >= 50
    assert wrong == 0
    assert files[0]["form"] == 7
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["form"], manifest["files"]) == (1, files)
    assert files[0]["sha256"] == hashlib.sha256((folder / "keys.db").read_bytes()).hexdigest()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "keys.db").stat().st_mode) == 0o600


def test_names_may_stand_for_several_files(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    for name in ("audit.jsonl", "audit.1.jsonl", "other"):
        (state / name).write_text(name)
    folder, files = back_up(state, tmp_path, NOW)
    assert [one["name"] for one in files] == ["audit.1.jsonl", "audit.jsonl"]
    assert (folder / "audit.jsonl").read_text() == "audit.jsonl"
    assert not (folder / "other").exists()


def test_what_cannot_be_copied_leaves_nothing_behind(tmp_path: Path) -> None:
    state, target = tmp_path / "state", tmp_path / "backups"
    state.mkdir()
    (state / "keys.db").write_bytes(b"no database" * 1000)
    with pytest.raises(ValueError, match="not a database"):
        back_up(state, target, NOW)
    assert list(target.iterdir()) == []


def test_an_earlier_backup_is_never_written_over(tmp_path: Path) -> None:
    state, target = tmp_path / "state", tmp_path / "backups"
    state.mkdir()
    folder, _ = back_up(state, target, NOW)
    with pytest.raises(FileExistsError):
        back_up(state, target, NOW)
    assert [path.name for path in target.iterdir()] == [folder.name]
