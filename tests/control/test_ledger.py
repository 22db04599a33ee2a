"""The ledger when writers, readers, files and disks fail: what is written down is what was billed, exactly once."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dandolo.control import ledger_file
from dandolo.control import ledger_reading as reading
from dandolo.control.ledger import FILE, FOLDER, Ledger
from dandolo.control.ledger_reading import Question, Unreadable
from dandolo.journal import (
    ANSWERED,
    CACHE_CODES,
    CALL,
    CELL_BYTES,
    ESTIMATED,
    REPEATED_ENTRY,
    REQUEST,
    Journal,
    Name,
)

PREFIX = b"req_0123456789ab"
BOTH = CALL | REQUEST | ANSWERED
CAPACITY = 1 << 20
NAME = Name(
    "c'i\"; DROP TABLE hourly; --", '{"team":"we\'b"}', "chat", "fast", "venice", "venice", "alice", "llama", 1.0, 2.0
)


def until(true: Callable[[], object], what: str = "it never happened") -> None:
    for _ in range(4000):
        if true():
            return
        time.sleep(0.005)
    raise AssertionError(what)


@contextlib.contextmanager
def running(state: Path, **options: Any) -> Iterator[Ledger]:
    ledger = Ledger(state, **{"retention_s": 1e9, "requests_max": 10**6, "period_s": 0.01, "retry_s": 0.05, **options})
    ledger.start()
    try:
        yield ledger
    finally:
        ledger.close()


@contextlib.contextmanager
def journal_in(state: Path, capacity: int = CAPACITY, prefix: bytes = PREFIX) -> Iterator[Journal]:
    journal = Journal(state / FOLDER, prefix, capacity=capacity)
    journal.name(NAME)
    try:
        yield journal
    finally:
        journal.close()


def call(journal: Journal, request: int, cost: int = 1000, flags: int = BOTH, name: int = 0) -> None:
    """A request with one call, of `cost` nano-dollars (-1: by the price list, of 10 and 20 tokens)."""
    intent = journal.intent(request, name, 5, time.monotonic())
    assert journal.settle(intent, request, name, flags, 200, 0, 1, 10, 20, 0, 0, cost, -1, time.monotonic(), 0.1, -1.0)


def total(state: Path) -> dict[str, Any]:
    found: dict[str, Any] = reading.usage(state / FILE, Question())["total"]
    return found


# -- what is counted ---------------------------------------------------------------------------------------------------


def test_sums_requests_and_names_come_out_as_they_went_in(tmp_path: Path) -> None:
    with running(tmp_path) as ledger, journal_in(tmp_path) as journal:
        for n in range(100):
            call(journal, n, cost=-1)
        call(journal, 100, cost=7_000)
        call(journal, 101, cost=-1, flags=BOTH | ESTIMATED)
        assert ledger.flush(10)
        told = reading.usage(ledger.path, Question(("key", "owner", "tag:team")))
        row = told["rows"][0]
        assert (row["key"], row["owner"], row["tag:team"]) == (NAME.key, "alice", "we'b")
        assert (row["requests"], row["calls"], row["tokens_in"], row["tokens_out"]) == (102, 102, 1020, 2040)
        assert row["paid_list_usd"] == pytest.approx(100 * 50e-6)
        assert row["paid_estimated_usd"] == pytest.approx(50e-6)
        assert row["paid_usd"] == pytest.approx(101 * 50e-6 + 7e-6)
        one = reading.request(ledger.path, "req_0123456789ab0000000064")
        assert one is not None
        assert (one["key"], one["cost_source"], one["paid_usd"], one["tags"]) == (
            NAME.key,
            "provider",
            7e-6,
            {"team": "we'b"},
        )
        assert reading.request(ledger.path, "req_0123456789ab00000000ff") is None
        assert reading.request(ledger.path, "x' OR 1=1") is None


def test_requests_that_were_answered_alike_are_counted_and_found_one_by_one(tmp_path: Path) -> None:
    with running(tmp_path) as ledger, journal_in(tmp_path) as journal:
        call(journal, 0, cost=7_000)
        started = time.monotonic()
        entries = b"".join(REPEATED_ENTRY.pack(3 * n, 500_000 * n, 0.25) for n in range(5))
        assert journal.repeated(0, CACHE_CODES["hit"], 10, 20, 4, 0, 7_000, 8, started, entries)
        assert journal.repeated(0, CACHE_CODES["hit"], 10, 20, 4, 0, -1, 30, started, entries[:12])
        assert ledger.flush(10)
        row = total(tmp_path)
        assert (row["requests"], row["calls"], row["cache_hits"], row["tokens_in"]) == (7, 1, 6, 10)
        assert (row["paid_usd"], row["saved_cache_usd"], row["direct_usd"]) == (7e-6, 35e-6, 42e-6)
        for number, after_s in ((8, 0.0), (11, 0.5), (20, 2.0)):
            one = reading.request(ledger.path, f"{PREFIX.decode()}{number:010x}")
            assert one is not None
            assert (one["cache"], one["paid_usd"], one["saved_cache_usd"], one["status"]) == ("hit", 0, 7e-6, 200)
            assert (one["tokens_in"], one["tokens_out"], one["duration_ms"], one["key"]) == (10, 20, 250.0, NAME.key)
            began = datetime.fromisoformat(one["time"]).timestamp()
            assert began == pytest.approx(started + after_s + time.time() - time.monotonic(), abs=0.1)
        for number in (9, 21, 31):
            assert reading.request(ledger.path, f"{PREFIX.decode()}{number:010x}") is None
        assert len(reading.settlements(ledger.path)) == 7


def test_hours_come_in_their_order_and_everything_else_the_dearest_first(tmp_path: Path) -> None:
    with running(tmp_path) as ledger, journal_in(tmp_path) as journal:
        for hours, cost in ((0, 10), (5, 30), (2, 20)):
            name = journal.name(Name(model=f"m{hours}"))
            intent = journal.intent(hours, name, 0, 0.0)
            began = time.monotonic() - hours * 3600.0
            journal.settle(intent, hours, name, BOTH, 200, 0, 1, 1, 1, 0, 0, cost, -1, began, 0.1, -1.0)
        assert ledger.flush(10)
        hours_told = [row["hour"] for row in reading.usage(ledger.path, Question(("hour",)))["rows"]]
        models = [row["model"] for row in reading.usage(ledger.path, Question(("model",)))["rows"]]
    assert len(hours_told) == 3
    assert hours_told == sorted(hours_told)
    assert models == ["m5", "m2", "m0"]


def test_what_was_cheaper_or_kept_shows_against_going_direct(tmp_path: Path) -> None:
    with running(tmp_path) as ledger, journal_in(tmp_path) as journal:
        cheap = journal.name(
            Name(provider="cheap", input_usd=1.0, output_usd=1.0, direct_input_usd=2.0, direct_output_usd=2.0)
        )
        call(journal, 1, cost=-1, name=cheap)
        journal.settle(-1, 2, 0, REQUEST, 200, 1, 0, 10, 20, 0, 0, -1, 40_000, time.monotonic(), 0.001, -1.0)
        assert ledger.flush(10)
        told = total(tmp_path)
    assert told["paid_usd"] == pytest.approx(30e-6)
    assert told["saved_cache_usd"] == pytest.approx(40e-6)
    assert told["direct_usd"] == pytest.approx(100e-6)
    assert told["saved_routing_usd"] == pytest.approx(30e-6)
    assert told["ratio"] == 0.3
    assert told["cache_hits"] == 1


def test_a_call_without_a_price_is_unknown_and_not_free(tmp_path: Path) -> None:
    with running(tmp_path) as ledger, journal_in(tmp_path) as journal:
        nameless = journal.name(Name(provider="p"))
        call(journal, 1, cost=-1, name=nameless)
        assert ledger.flush(10)
    assert (total(tmp_path)["unknown"], total(tmp_path)["paid_usd"]) == (1, 0)


def test_a_call_for_others_is_added_to_the_request_it_was_first_made_for(tmp_path: Path) -> None:
    with running(tmp_path) as ledger, journal_in(tmp_path) as journal:
        call(journal, 7, cost=900, flags=CALL | ANSWERED)
        assert ledger.flush(10)
        journal.settle(-1, 7, 0, REQUEST, 200, 2, 1, 10, 20, 0, 0, -1, -1, time.monotonic(), 0.1, -1.0)
        assert ledger.flush(10)
        one = reading.request(ledger.path, "req_0123456789ab0000000007")
    assert one is not None
    assert (one["paid_usd"], one["status"], one["cache"]) == (9e-7, 200, "miss")
    assert (total(tmp_path)["requests"], total(tmp_path)["calls"]) == (1, 1)


# -- kill −9 -----------------------------------------------------------------------------------------------------------

WRITER = """
import os, random, sys, time
from pathlib import Path
from dandolo.journal import ANSWERED, CALL, REQUEST, Journal, Name
state, number, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
journal = Journal(state / "journal", b"req_%012x" % number, capacity=1 << 17)
bill = os.open(state / "bill", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
intents = os.open(state / "intents", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
name, open_calls, n = -1, [], 0
print("on", flush=True)
while True:
    if name < 0 or rng.random() < 0.01:
        name = journal.name(Name(model=f"m{rng.randrange(50)}"))
    # What the intent says first: one that was not written is a call that was not made.
    os.write(intents, b"%d %d\\n" % (number, n))
    at = journal.intent(n, name, 1, time.monotonic()) if name >= 0 else -1
    if at < 0:
        time.sleep(0.001)
        continue
    cost = rng.randrange(1, 10**6)
    os.write(bill, b"%d %d %d\\n" % (number, n, cost))
    open_calls.append((at, n, cost, name))
    n += 1
    while open_calls and (len(open_calls) > 8 or rng.random() < 0.5):
        at, request, cost, named = open_calls.pop(rng.randrange(len(open_calls)))
        journal.settle(at, request, named, CALL | REQUEST | ANSWERED, 200, 0, 1, 1, 1, 0, 0, cost, -1,
                       time.monotonic(), 0.1, -1.0)
"""

READER = """
import sys, time
from pathlib import Path
from dandolo.control.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), retention_s=1e9, requests_max=10**6, period_s=0.001)
ledger.start()
print("on", flush=True)
time.sleep(600)
"""


def spawned(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    return process


def killed(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def settle_accounts(state: Path) -> None:
    """Compare the ledger with the bill, after everybody was killed."""
    with running(state) as ledger:
        until(lambda: ledger.flush(5) and not list((state / FOLDER).glob("*.ring")), "journals are not read to the end")
        assert ledger.health().reason == ""
        assert ledger.health().dropped == 0
    billed = {(int(a), int(b)): int(c) for a, b, c in map(str.split, (state / "bill").read_text().splitlines())}
    with contextlib.closing(sqlite3.connect(state / FILE)) as file:
        paid: dict[tuple[int, int], int] = {}
        for part in reading.settlements(state / FILE):
            name = int(part.prefix[4:], 16), part.number
            assert name not in paid, "counted twice"
            paid[name] = part.paid
        unsettled = {
            (int(p[4:], 16), n) for p, n in file.execute("SELECT prefix, number FROM unsettled WHERE lost = 1")
        }
        left = file.execute("SELECT count(*) FROM unsettled WHERE lost = 0").fetchone()[0]
        summed = file.execute("SELECT sum(paid), sum(calls), sum(requests) FROM hourly").fetchone()
    assert len(billed) > 500
    # Every settled call at the price that was billed, and only once.
    assert paid == {name: billed[name] for name in paid}
    assert summed == (sum(paid.values()), len(paid), len(paid))
    # Every other call that was billed is listed.
    assert set(billed) - set(paid) <= unsettled
    assert not unsettled & set(paid)
    assert left == 0
    asked = {(int(a), int(b)) for a, b in map(str.split, (state / "intents").read_text().splitlines())}
    assert unsettled <= asked


def test_writers_that_are_killed_again_and_again_lose_nothing(tmp_path: Path) -> None:
    rng = random.Random(1)
    with running(tmp_path):
        for n in range(30):
            writer = spawned(WRITER, tmp_path, n, rng.randrange(10**9))
            time.sleep(rng.random() * 0.03)
            killed(writer)
    settle_accounts(tmp_path)


def test_a_reader_that_is_killed_again_and_again_counts_nothing_twice(tmp_path: Path) -> None:
    rng = random.Random(2)
    writer = spawned(WRITER, tmp_path, 1, 2)
    for _ in range(15):
        reader = spawned(READER, tmp_path)
        time.sleep(rng.random() * 0.06)
        killed(reader)
    killed(writer)
    settle_accounts(tmp_path)


def test_both_are_killed_again_and_again(tmp_path: Path) -> None:
    rng = random.Random(3)
    for n in range(10):
        processes = [spawned(WRITER, tmp_path, n, n), spawned(READER, tmp_path), spawned(WRITER, tmp_path, 100 + n, n)]
        time.sleep(rng.random() * 0.06)
        rng.shuffle(processes)
        for process in processes:
            killed(process)
    settle_accounts(tmp_path)


# -- disks -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small file system: {mounted.stderr.decode()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_costs_rows_and_one_alert_and_serving_goes_on(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    with running(disk, alert=told.append) as ledger, journal_in(disk, 1 << 17) as journal:
        call(journal, 0)
        assert ledger.flush(10)
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        answered = 1

        def ask() -> bool:
            """One more request; there is always room for it sooner or later."""
            nonlocal answered
            until(lambda: journal.pending_bytes < journal_room, "the journal stays full")
            call(journal, answered)
            answered += 1
            return ledger.health().dropped > 500

        journal_room = (1 << 17) * 3 // 4
        while not ask():
            assert answered < 20_000
        assert ledger.health().reason
        assert len(told) == 1
        ballast.unlink()
        until(lambda: ledger.flush(5))
        assert len(told) == 2
        assert told[1] == ""
        call(journal, answered)
        answered += 1
        assert ledger.flush(10)
        # What is not in it was counted.
        assert total(disk)["requests"] + ledger.health().dropped == answered
        assert reading.usage(ledger.path, Question())["dropped"] == ledger.health().dropped
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert "serving goes on" in errors[0]


def test_a_ledger_that_another_program_holds_is_told_once_and_nothing_is_lost(tmp_path: Path) -> None:
    told: list[str] = []
    with running(tmp_path, alert=told.append) as ledger, journal_in(tmp_path, 1 << 17) as journal:
        call(journal, 1)
        assert ledger.flush(10)
        with contextlib.closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            for n in range(2, 50):
                call(journal, n)
            until(lambda: told)
            other.execute("ROLLBACK")
        until(lambda: ledger.flush(5))
        assert told[1:] == [""]
        assert ledger.health().dropped == 0
    assert total(tmp_path)["requests"] == 49


def test_a_read_only_disk_is_told_once_and_what_comes_meanwhile_is_read_when_it_is_over(
    disk: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    with running(disk) as ledger:
        assert ledger.flush(10)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    ledger = Ledger(disk, retention_s=1e9, requests_max=100, period_s=0.01, retry_s=0.05, alert=told.append)
    # A disk with a journal that is written cannot be made read-only.
    ledger.folder = ledger._journals.folder = tmp_path / FOLDER
    ledger.start()
    try:
        with journal_in(tmp_path) as journal:
            for n in range(50):
                call(journal, n)
            until(lambda: told)
            assert not ledger.flush(1)
            assert len(told) == 1
            subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
            until(lambda: ledger.flush(5))
            assert told[1:] == [""]
            assert total(disk)["requests"] == 50
    finally:
        ledger.close()


def test_without_room_there_is_no_journal_and_no_crash(disk: Path) -> None:
    with pytest.raises(OSError, match="space"):
        Journal(disk / FOLDER, PREFIX, capacity=4 << 20)
    assert not list((disk / FOLDER).iterdir())


# -- files that are not what they should be ----------------------------------------------------------------------------


def test_hostile_journals_are_set_aside_and_the_others_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / FOLDER
    with journal_in(tmp_path) as journal:
        for n, content in enumerate((b"", b"garbage" * 10_000, journal.path.read_bytes()[:5000], bytes(1 << 16))):
            (folder / f"{n}-bad.ring").write_bytes(content)
        (folder / "9-link.ring").symlink_to("/etc/passwd")
        os.mkfifo(folder / "9-pipe.ring")
        (folder / "9-folder.ring").mkdir()
        with running(tmp_path) as ledger:
            call(journal, 1)
            assert ledger.flush(10)
            assert total(tmp_path)["requests"] == 1
            assert [path.name for path in folder.glob("*.ring")] == [journal.path.name]
            assert 0 < len(list(folder.glob("*.aside-*"))) <= 4
            assert ledger.flush(10)
    assert len([record for record in caplog.records if "set aside" in record.getMessage()]) == 7


def test_a_damaged_ledger_is_set_aside_and_the_next_one_knows_the_names(tmp_path: Path) -> None:
    with journal_in(tmp_path) as journal:
        with running(tmp_path) as ledger:
            call(journal, 1)
            assert ledger.flush(10)
        (tmp_path / FILE).write_bytes(b"\0" * 50_000)
        (tmp_path / f"{FILE}-wal").unlink(missing_ok=True)
        with running(tmp_path) as ledger:
            journal.name(NAME)
            call(journal, 2, name=1)
            until(lambda: ledger.flush(10))
            row = reading.usage(ledger.path, Question(("key",)))["rows"][0]
            assert (row["key"], row["requests"]) == (NAME.key, 1)
    assert list(tmp_path.glob(f"{FILE}.aside-corrupt-*"))


def test_a_ledger_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    with running(tmp_path) as ledger:
        assert ledger.flush(10)
    with contextlib.closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as file:
        file.execute("PRAGMA user_version = 99")
    with running(tmp_path) as ledger, journal_in(tmp_path, 1 << 16) as journal:
        until(lambda: "version 99" in ledger.health().reason)
        call(journal, 1)
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (99,)


def test_an_old_version_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(tmp_path) as ledger, journal_in(tmp_path) as journal:
        call(journal, 1)
        assert ledger.flush(10)
    later = (*ledger_file.MIGRATIONS, ("CREATE TABLE more (n INTEGER)",))
    monkeypatch.setattr(ledger_file, "MIGRATIONS", later)
    monkeypatch.setattr(ledger_file, "VERSION", len(later))
    with running(tmp_path) as ledger:
        assert ledger.flush(10)
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (len(later),)
        assert file.execute("SELECT count(*) FROM more").fetchone() == (0,)
    assert total(tmp_path)["requests"] == 1


def test_one_process_at_a_time_has_the_ledger(tmp_path: Path) -> None:
    with running(tmp_path) as first, journal_in(tmp_path) as journal:
        assert first.flush(10)
        with running(tmp_path) as second:
            until(lambda: "another process" in second.health().reason)
            for n in range(100):
                call(journal, n)
            assert first.flush(10)
            assert total(tmp_path)["requests"] == 100
            first.close()
            call(journal, 100)
            until(lambda: second.flush(5))
            assert total(tmp_path)["requests"] == 101


def test_slots_that_cannot_be_do_not_stop_the_ledger(tmp_path: Path) -> None:
    """Whole by their checksums, and none that a worker writes: the next ones must be read all the same."""
    nan, most = float("nan"), 2**64 - 1
    with running(tmp_path) as ledger, journal_in(tmp_path) as journal:
        for n, (tokens, cost, saved, at) in enumerate(
            (
                (most, -1, -1, 1.0),
                (2**48, -1, -1, 1.0),
                (1, 2**63 - 1, 2**63 - 1, 1.0),
                (1, -(2**63), -(2**63), nan),
                (1, 1, 1, float("inf")),
                (1, 1, 1, -1e300),
            )
        ):
            name = journal.name(
                Name(model=f"m{n}", input_usd=1e6, output_usd=1e6, direct_input_usd=nan, direct_output_usd=1e300)
            )
            for _ in range(20):
                intent = journal.intent(most, name, 2**63 - 1, at)
                journal.settle(
                    intent, most, name, BOTH, 65535, 255, 255, tokens, tokens, most, most, cost, saved, at, nan, nan
                )
                journal.intent(most, name, -(2**63), at)
            for number in (8, most):
                intent = journal.intent(number, name, 0, at)
                journal.settle(intent, number, name, BOTH, 200, 1, 1, 1, 1, 0, 0, 1, 1, at, nan, nan)
                journal.repeated(2**31, 255, most, most, most, most, saved, number, at, REPEATED_ENTRY.pack(1, 2, nan))
        journal.intent(5, 2**31, 0, 1.0)
        call(journal, 7, cost=123)
        assert ledger.flush(10)
        assert ledger.health().reason == ""
        one = reading.request(ledger.path, "req_0123456789ab0000000007")
        assert one is not None
        assert one["paid_usd"] == 1.23e-7
        assert json.dumps(reading.usage(ledger.path, Question(("model", "hour"))))
        for number in ("f" * 10, f"{8:010x}", f"{9:010x}"):
            assert json.dumps(reading.request(ledger.path, "req_0123456789ab" + number), allow_nan=False)
        assert reading.settlements(ledger.path)


@pytest.mark.parametrize("read_before", [False, True], ids=["unread", "read before"])
@pytest.mark.parametrize("rebooted", [False, True], ids=["killed", "power failure"])
def test_a_call_is_settled_or_listed_also_when_its_cell_was_not_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_before: bool, rebooted: bool
) -> None:
    """A worker died between a settlement and the freeing of its cell, while another call was open."""
    with journal_in(tmp_path) as journal:
        # A first attempt that failed, and the second one, which takes the same cell and stays open.
        first = journal.intent(7, 0, 3_000, time.monotonic())
        assert journal.settle(first, 7, 0, CALL, 0, 0, 0, 0, 0, 0, 0, -1, -1, time.monotonic(), 0.1, -1.0)
        assert journal.intent(7, 0, 4_000, time.monotonic()) == first
        cell = journal.intent(8, 0, 5_000, time.monotonic())
        taken = journal._map[cell : cell + CELL_BYTES]
        assert journal.settle(cell, 8, 0, BOTH, 200, 0, 1, 10, 20, 0, 0, 900, -1, time.monotonic(), 0.1, -1.0)
        journal._map[cell : cell + CELL_BYTES] = taken
        if read_before:
            with running(tmp_path) as ledger:
                assert ledger.flush(10)
    if rebooted:
        monkeypatch.setattr("dandolo.control.ledger_journals.boot_id", lambda: bytes(16))
    with running(tmp_path) as ledger:
        until(lambda: ledger.flush(5) and not list((tmp_path / FOLDER).glob("*.ring")))
        told = reading.usage(ledger.path, Question())
    assert told["unsettled"]["count"] == 1
    assert [one["id"][len(PREFIX) :] for one in told["unsettled"]["newest"]] == ["0000000007"]
    assert told["total"]["calls"] == 2


def test_calls_under_way_are_listed_while_they_are(tmp_path: Path) -> None:
    with running(tmp_path) as ledger, journal_in(tmp_path) as journal:
        intents = [journal.intent(n, 0, 0, time.monotonic()) for n in range(3)]
        assert ledger.flush(10)

        def listed() -> list[int]:
            with contextlib.closing(sqlite3.connect(ledger.path)) as file:
                return [row[0] for row in file.execute("SELECT number FROM unsettled WHERE lost = 0 ORDER BY 1")]

        assert listed() == [0, 1, 2]
        journal.settle(intents[1], 1, 0, BOTH, 200, 0, 1, 1, 1, 0, 0, 5, -1, time.monotonic(), 0.1, -1.0)
        assert ledger.flush(10)
        assert listed() == [0, 2]


# -- upkeep ------------------------------------------------------------------------------------------------------------


def test_only_so_many_requests_are_kept_and_old_hours_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dandolo.control.ledger.PRUNE_S", 0.0)
    with running(tmp_path, requests_max=10, retention_s=86400.0) as ledger, journal_in(tmp_path) as journal:
        intent = journal.intent(0, 0, 0, time.monotonic())
        long_ago = time.monotonic() - 3 * 86400.0
        journal.settle(intent, 0, 0, BOTH, 200, 0, 1, 1, 1, 0, 0, 5, -1, long_ago, 0.1, -1.0)
        for n in range(1, 100):
            call(journal, n)
            if n % 5 == 0:
                assert ledger.flush(10)
        assert ledger.flush(10)

        def left() -> tuple[int, int]:
            with contextlib.closing(sqlite3.connect(ledger.path)) as file:
                hours = file.execute("SELECT count(*) FROM hourly").fetchone()[0]
            return len(reading.settlements(ledger.path)), hours

        # What was committed together goes together.
        until(lambda: 10 <= left()[0] < 20 and left()[1] == 1)
        assert reading.request(ledger.path, "req_0123456789ab0000000063") is not None
        assert reading.request(ledger.path, "req_0123456789ab0000000001") is None
    assert total(tmp_path)["requests"] == 99


def test_no_requests_are_kept_where_none_are_wanted(tmp_path: Path) -> None:
    with running(tmp_path, requests_max=0) as ledger, journal_in(tmp_path) as journal:
        call(journal, 1)
        assert ledger.flush(10)
        assert reading.settlements(ledger.path) == []
    assert total(tmp_path)["requests"] == 1


def test_callers_inventions_do_not_fill_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dandolo.control.ledger_batch.NAMES_KNOWN_MAX", 20)
    with running(tmp_path) as ledger, journal_in(tmp_path) as journal:
        for n in range(200):
            name = journal.name(Name(key="ci", model=f"invented-{n}"))
            call(journal, n, name=name)
            if n % 50 == 0:
                assert ledger.flush(10)
        assert ledger.flush(10)
        rows = reading.usage(ledger.path, Question(("model",)))["rows"]
    assert len(rows) <= 22
    assert sum(row["requests"] for row in rows) == 200
    assert any(row["model"] == "other" for row in rows)


def test_what_a_key_has_spent_counts_what_was_never_settled(tmp_path: Path) -> None:
    with running(tmp_path) as ledger:
        with journal_in(tmp_path) as journal:
            for n in range(10):
                call(journal, n, cost=1_500_000)
            assert journal.intent(11, 0, 7_000, time.monotonic()) >= 0
            assert ledger.flush(10)
            assert reading.spent(ledger.path, time.time() - 3600) == {NAME.key: 15_000}
        # Its writer is gone: what was set aside may have been spent.
        until(lambda: ledger.flush(10) and not list((tmp_path / FOLDER).glob("*.ring")))
        assert reading.spent(ledger.path, time.time() - 3600) == {NAME.key: 22_000}
        assert reading.spent(ledger.path, time.time() + 7200) == {}
        told = reading.usage(ledger.path, Question())["unsettled"]
        assert (told["count"], told["reserved_usd"], told["newest"][0]["id"]) == (
            1,
            0.007,
            "req_0123456789ab000000000b",
        )


def test_a_copy_is_made_while_it_is_in_use(tmp_path: Path) -> None:
    with running(tmp_path) as ledger, journal_in(tmp_path) as journal:
        for n in range(100):
            call(journal, n)
        assert ledger.flush(10)
        reading.backup(ledger.path, tmp_path / "copy.db")
        call(journal, 100)
        assert ledger.flush(10)
        assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
        assert reading.usage(tmp_path / "copy.db", Question())["total"]["requests"] == 100
        with pytest.raises(FileExistsError):
            reading.backup(ledger.path, tmp_path / "copy.db")
        with pytest.raises(Unreadable):
            reading.backup(tmp_path / "none.db", tmp_path / "other.db")
    assert not (tmp_path / "other.db").exists()


def test_cells_of_objectives_are_kept_and_replaced(tmp_path: Path) -> None:
    with running(tmp_path) as ledger:
        hour = int(time.time()) // 3600
        ledger.keep([(hour, "k", "m'", "chat", b"one"), (hour + 1, "k", "m'", "chat", b"two")])
        ledger.keep([(hour, "k", "m'", "chat", b"three")])
        assert ledger.flush(10)
        later = (hour + 1, "k", "m'", "chat", b"two")
        assert sorted(reading.cells(ledger.path, 0, 1e10)) == [(hour, "k", "m'", "chat", b"three"), later]
        assert reading.cells(ledger.path, (hour + 1) * 3600, 1e10) == [later]
