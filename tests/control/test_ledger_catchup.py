"""Waiting until what is in journals is in the ledger, beside whoever reads them."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

import pytest

from dandolo.control.ledger_catchup import catch_up
from dandolo.journal import CALL, CAPACITY_MIN, REQUEST, UNKNOWN, Journal, Name

PREFIX = b"req_0123456789ab"


def written(state: Path, calls: int) -> Journal:
    journal = Journal(state / "journal", PREFIX, capacity=CAPACITY_MIN)
    name = journal.name(Name("key", provider="p"))
    for number in range(calls):
        at = journal.intent(number, name, 0, time.monotonic())
        journal.settle(at, number, name, CALL | REQUEST, 200, 0, 1, 1, 1, 0, 0, 1000, UNKNOWN, 0.0, 0.0, -1.0)
    return journal


def test_what_nobody_reads_is_read_here(tmp_path: Path) -> None:
    journal = written(tmp_path, 10)
    assert catch_up(tmp_path, 10.0, retention_s=1e9, requests_max=100) == 0
    assert journal.pending_bytes == 0
    journal.close()


def test_where_there_is_nothing_to_read_nothing_is_made(tmp_path: Path) -> None:
    assert catch_up(tmp_path, 10.0, retention_s=1e9, requests_max=100) == 0
    assert not list(tmp_path.iterdir())
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal/0-0123456789abcdef.ring").write_text("no journal")
    assert catch_up(tmp_path, 10.0, retention_s=1e9, requests_max=100) == 0
    with pytest.raises(OSError, match="No such file"):
        catch_up(tmp_path / "elsewhere", 10.0, retention_s=1e9, requests_max=100)


def test_what_its_reader_leaves_unread_is_told(tmp_path: Path) -> None:
    journal = written(tmp_path, 10)
    # A gateway has the ledger, and does not read.
    with (tmp_path / "ledger.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert catch_up(tmp_path, 0.1, retention_s=1e9, requests_max=100) == journal.pending_bytes > 10 * 100
    journal.close()
