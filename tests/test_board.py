"""The board by itself: keys and their places, days and months, a dead worker's row, its size and what it refuses."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from itertools import pairwise

import pytest

from dandolo.board import (
    AMOUNT_MAX,
    CELLS,
    COUNT_BITS,
    DAY,
    IN_FLIGHT,
    KEYS_MAX,
    MONTH,
    REQUESTS,
    RESERVED,
    SECONDS,
    STAMPS,
    Board,
    Calendar,
    NoPlace,
    add_spent,
)


def unix(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


NOW = unix("2026-11-25T12:00:00")


def test_a_key_has_one_place_which_workers_find() -> None:
    fd = Board.create(4, workers=2)
    control, worker = Board.attach(fd, None), Board.attach(fd, 1)
    os.close(fd)
    assert worker.find("a") is None
    places = [control.claim(name) for name in ("a", "b", "a", "é/\n🔑", "b" * 10_000)]
    assert places == [0, 1, 0, 2, 3]
    assert [worker.find(name) for name in ("b", "a", "é/\n🔑", "c")] == [1, 0, 2, None]
    with pytest.raises(NoPlace, match="4 keys with limits"):
        control.claim("one too many")
    assert control.claim("a") == 0
    assert worker.claim("a") == 0
    with pytest.raises(NoPlace, match="control process"):
        worker.claim("c")
    control.close()
    worker.close()


def test_rows_and_keys_do_not_overlap() -> None:
    board = Board.alone(3)
    blocks = sorted(board.at(key, row) for key in range(3) for row in range(3))
    assert all(after - before == CELLS for before, after in pairwise(blocks))
    assert (blocks[-1] + CELLS) * 8 == Board.size_bytes(3, 1)


def test_a_board_of_the_usual_size_takes_little_memory_until_it_is_used() -> None:
    def shared() -> int:
        with open("/proc/self/smaps_rollup", encoding="ascii") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith("Pss_Shmem"))

    before = shared()
    fd = Board.create(KEYS_MAX, workers=256)
    board = Board.attach(fd, None)
    os.close(fd)
    for number in range(30):
        board.cells[board.at(board.claim(f"key-{number}"), 0)] += 1
    assert Board.size_bytes(KEYS_MAX, 256) > 2 << 30
    assert shared() - before < 256
    board.close()


@pytest.mark.parametrize(("keys", "workers"), [(0, 1), (1, 0), (1, 2049), (1_000_001, 1)])
def test_a_size_beyond_the_bounds_is_refused(keys: int, workers: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 2048"):
        Board.create(keys, workers)


def test_what_is_no_board_and_who_has_no_row_is_refused() -> None:
    fd = os.memfd_create("other")
    os.ftruncate(fd, 4096)
    with pytest.raises(ValueError, match="no board"):
        Board.attach(fd, 0)
    os.close(fd)
    fd = Board.create(1, 2)
    with pytest.raises(ValueError, match="expected 0 to 1"):
        Board.attach(fd, 2)
    os.close(fd)


@pytest.mark.parametrize(
    ("before", "after", "day_turns", "month_turns"),
    [
        ("2026-11-25T23:59:59.9", "2026-11-26T00:00:00", True, False),
        ("2026-11-30T23:59:59.9", "2026-12-01T00:00:00", True, True),
        ("2026-12-31T23:59:59.9", "2027-01-01T00:00:00", True, True),
        ("2028-02-28T23:59:59.9", "2028-02-29T00:00:00", True, False),
        ("2026-11-25T00:00:00", "2026-11-25T23:59:59.9", False, False),
        # A clock that was set back turns back too.
        ("2026-12-01T00:00:00", "2026-11-30T23:59:59", True, True),
    ],
)
def test_days_and_months_turn_at_midnight_utc(before: str, after: str, day_turns: bool, month_turns: bool) -> None:
    calendar = Calendar(unix(before))
    day, month = calendar.day_stamp, calendar.month_stamp
    calendar.at(unix(after))
    assert (calendar.day_stamp != day, calendar.month_stamp != month) == (day_turns, month_turns)
    assert calendar.names == (after[:10], after[:7])


def test_when_budgets_begin_anew_is_said() -> None:
    calendar = Calendar(unix("2026-12-31T12:00:00"))
    assert (calendar.day_ends, calendar.month_ends) == ("2027-01-01T00:00:00Z", "2027-01-01T00:00:00Z")
    calendar = Calendar(unix("2026-01-31T12:00:00"))
    assert (calendar.day_ends, calendar.month_ends) == ("2026-02-01T00:00:00Z", "2026-02-01T00:00:00Z")


def test_what_was_spent_yesterday_does_not_count_today() -> None:
    board, calendar = Board.alone(1), Calendar(unix("2026-11-30T12:00:00"))
    key = board.claim("k")
    add_spent(board.cells, board.at(key, 0) + DAY, calendar.day_stamp, 5)
    add_spent(board.cells, board.at(key, 0) + MONTH, calendar.month_stamp, 5)
    assert board.spent(key, DAY, calendar.day) == board.spent(key, MONTH, calendar.month) == 5
    calendar.at(unix("2026-12-01T00:00:00"))
    assert board.spent(key, DAY, calendar.day) == board.spent(key, MONTH, calendar.month) == 0
    add_spent(board.cells, board.at(key, 0) + DAY, calendar.day_stamp, 3)
    assert board.spent(key, DAY, calendar.day) == 3


def test_an_amount_cannot_run_into_its_date() -> None:
    board, calendar = Board.alone(1), Calendar(NOW)
    at = board.at(board.claim("k"), 0) + DAY
    for amount in (AMOUNT_MAX, AMOUNT_MAX, 10**18):
        add_spent(board.cells, at, calendar.day_stamp, amount)
        assert board.spent(0, DAY, calendar.day) == AMOUNT_MAX


def test_the_row_of_a_dead_worker_is_folded_into_the_base() -> None:
    fd = Board.create(8, workers=3)
    control, dead, other = Board.attach(fd, None), Board.attach(fd, 1), Board.attach(fd, 2)
    os.close(fd)
    calendar = Calendar(NOW)
    keys = [control.claim(name) for name in "ab"]
    for board, amount in ((dead, 7), (other, 11)):
        assert board.row is not None
        for key in keys:
            at = board.at(key, board.row)
            board.cells[at + IN_FLIGHT] += 2
            board.cells[at + RESERVED] += 100
            add_spent(board.cells, at + DAY, calendar.day_stamp, amount)
            add_spent(board.cells, at + MONTH, calendar.month_stamp, amount)
    control.restore(keys[0], calendar, 1000, 2000)
    for _ in range(2):
        # Once more changes nothing.
        control.fold(1, calendar)
        for key, base in zip(keys, (1000, 0), strict=True):
            assert control.total(key, IN_FLIGHT) == 2
            assert control.total(key, RESERVED) == 100
            assert control.spent(key, DAY, calendar.day) == 18 + base
            assert control.spent(key, MONTH, calendar.month) == 18 + 2 * base


def test_what_a_dead_worker_spent_yesterday_is_not_folded_into_today() -> None:
    fd = Board.create(1, workers=1)
    control, dead = Board.attach(fd, None), Board.attach(fd, 0)
    os.close(fd)
    calendar = Calendar(NOW)
    key = control.claim("k")
    add_spent(dead.cells, dead.at(key, 0) + DAY, calendar.day_stamp, 7)
    calendar.at(NOW + 86400)
    control.fold(0, calendar)
    assert control.spent(key, DAY, calendar.day) == 0


def test_rows_are_given_to_workers_and_taken_back_from_the_dead() -> None:
    fd = Board.create(4, workers=3, opened=0)
    control = Board.attach(fd, None)
    calendar, key = Calendar(NOW), control.claim("k")
    assert control.opened == 0
    assert [control.open_row(), control.open_row()] == [0, 1]
    worker = Board.attach(fd, 1)
    os.close(fd)
    worker.cells[worker.at(key, 1) + IN_FLIGHT] += 1
    add_spent(worker.cells, worker.at(key, 1) + DAY, calendar.day_stamp, 7)
    assert control.total(key, IN_FLIGHT) == 1
    control.close_row(1, calendar)
    assert (control.total(key, IN_FLIGHT), control.spent(key, DAY, calendar.day)) == (0, 7)
    assert [control.open_row(), control.open_row()] == [1, 2]
    with pytest.raises(NoPlace, match="all 3 rows"):
        control.open_row()


def test_other_hosts_row_counts_from_when_it_is_said_and_begins_empty() -> None:
    fd = Board.create(2, 1)
    control = Board.attach(fd, None)
    place = control.claim("a")
    alone = Board.attach(fd, 0)
    assert control.elsewhere(place) == ()
    control.share(True)
    (at,) = control.elsewhere(place)
    control.cells[at + IN_FLIGHT] = 7
    # Whoever was there before goes on without it, whoever comes has it.
    assert alone.total(place, IN_FLIGHT) == 0
    later = Board.attach(fd, 0)
    os.close(fd)
    assert later.total(place, IN_FLIGHT) == 7
    control.share(False)
    control.share(True)
    assert control.total(place, IN_FLIGHT) == 0
    for board in (control, alone, later):
        board.close()


def test_a_place_is_taken_back_when_nothing_counts_there_and_nobody_takes_it_for_the_old_one() -> None:
    fd = Board.create(2, workers=2, shared=True)
    control, worker, sibling = Board.attach(fd, None), Board.attach(fd, 0), Board.attach(fd, 1)
    os.close(fd)
    calendar = Calendar(NOW)
    for name in ("a", "b"):
        control.claim(name)
    place = worker.claim("a")
    worker.tallies[place] = "what the worker remembers of a"
    sibling.claim("b")
    at = worker.at(place, 0)
    second = 1000
    stamp = (second & STAMPS) << COUNT_BITS
    worker.cells[at + REQUESTS + (second & (SECONDS - 1))] = stamp | 3
    for row in (1, 2, 3):
        add_spent(control.cells, control.at(place, row) + DAY, calendar.day_stamp, 7)
    for cell in (IN_FLIGHT, RESERVED):
        worker.cells[at + cell] = 1
        assert not control.release(place, 5000.0)
        worker.cells[at + cell] = 0
    control.cells[control.at(place, 3) + IN_FLIGHT] = 1
    assert not control.release(place, 5000.0), "under way on another host"
    control.cells[control.at(place, 3) + IN_FLIGHT] = 0
    assert not control.release(place, second + 60.5), "it counts within the minute"
    assert not control.room
    assert control.release(place, second + 61.5)
    assert control.room
    assert [one.find("a") for one in (control, worker, sibling)] == [None, None, None]
    assert [one.find("b") for one in (control, worker, sibling)] == [1, 1, 1]
    assert control.identity(place) == 0
    # Another has it, with nothing on it, wherever that was.
    assert control.claim("c") == place
    assert [one.claim("c") for one in (worker, sibling)] == [place, place]
    assert worker.tallies == {}
    assert control.spent(place, DAY, calendar.day, everywhere=True) == 0
    assert control.total(place, REQUESTS + (second & (SECONDS - 1))) == 0
    with pytest.raises(NoPlace):
        control.claim("a")
    for one in (control, worker, sibling):
        one.close()


def test_a_key_that_comes_back_is_not_given_the_place_it_had() -> None:
    board = Board.alone(2)
    assert (board.claim("a"), board.claim("b")) == (0, 1)
    assert board.release(0, 5000.0)
    # Whoever remembers it would not notice that it is new.
    with pytest.raises(NoPlace):
        board.claim("a")
    assert board.release(1, 5000.0)
    assert board.claim("a") == 1
    assert board.claim("b") == 0
