"""The journal's two ends over one file: what is whole is read once and in order, whatever else stands there."""

from __future__ import annotations

import os
import random
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dandolo.control.ledger_ring import Ring, Spoiled
from dandolo.journal import (
    ANSWERED,
    CALL,
    CAPACITY_MIN,
    CELL_BYTES,
    CELLS_MAX,
    CURSOR_AT,
    HEADER,
    HEADER_BYTES,
    NAME,
    NAMES_MAX,
    NOBODY,
    REPEATED,
    REPEATED_ENTRY,
    REPEATED_MAX,
    REPEATED_SLOT,
    REQUEST,
    SETTLED,
    SETTLED_BYTES,
    SETTLED_SLOT,
    Journal,
    Name,
    file_bytes,
)

PREFIX = b"req_0123456789ab"
BOTH = CALL | REQUEST | ANSWERED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def journal(folder: Path) -> Iterator[Journal]:
    made = Journal(folder, PREFIX, capacity=CAPACITY_MIN)
    yield made
    made.close()


@pytest.fixture
def ring(journal: Journal) -> Iterator[Ring]:
    made = Ring(journal.path)
    yield made
    made.close()


def settle(journal: Journal, intent: int, request: int, cost: int = 7) -> bool:
    return journal.settle(intent, request, 0, BOTH, 200, 0, 1, 10, 20, 0, 0, cost, -1, 5.0, 0.1, 0.05)


def test_what_is_written_is_read_as_it_was(journal: Journal, ring: Ring) -> None:
    name = Name('c"i', '{"team":"web"}', "chat", "fast", "venice", "venice/alice", "alice", "llama", 0.7, 2.8)
    assert journal.name(name) == 0
    intent = journal.intent(41, 0, 1234, 99.5)
    assert list(ring.open_calls().values()) == [(journal.pending_bytes, 41, 0, 1234, 99.5, 1)]
    assert journal.settle(intent, 41, 0, BOTH, 200, 2, 1, 10, 20, 3, 4, 500, 600, 5.0, 0.25, 0.125)
    assert journal.settle(-1, 42, 0, REQUEST, 429, 0, 0, 0, 0, 0, 0, -1, -1, 6.0, 0.5, -1.0)
    slots, cursor = ring.read(0, 1 << 20)
    assert slots[0] == (NAME, 0, name)
    assert [slot[0] for slot in slots[1:]] == [SETTLED, SETTLED]
    first, second = slots[1][1], slots[2][1]
    assert (first[3], *first[5:]) == (BOTH, intent, 41, 0, 200, 2, 1, 10, 20, 3, 4, 500, 600, 5.0, 0.25, 0.125)
    assert (second[3], *second[5:]) == (REQUEST, NOBODY, 42, 0, 429, 0, 0, 0, 0, 0, 0, -1, -1, 6.0, 0.5, -1.0)
    assert SETTLED_SLOT.unpack(slots[1][2]) == first[1:]
    assert ring.open_calls() == {}
    assert ring.read(cursor, 1 << 20) == ([], cursor)
    assert (ring.prefix, ring.id, ring.pid) == (PREFIX.decode(), journal.id, os.getpid())


def repeated(journal: Journal, number: int, count: int) -> bool:
    entries = b"".join(REPEATED_ENTRY.pack(n, 1000 * n, 0.5) for n in range(count))
    return journal.repeated(3, 1, 10, 20, 4, 5, 600, number, 7.0, entries)


def test_requests_that_were_answered_alike_are_one_slot_through_many_laps(journal: Journal, ring: Ring) -> None:
    rng, cursor, written, read = random.Random(2), 0, [], []
    for n in range(3000):
        count = rng.choice((1, 2, 3, REPEATED_MAX))
        assert repeated(journal, n, count)
        written.append((3, count, 1, 10, 20, 4, 5, 600, n, 7.0))
        if rng.random() < 0.3:
            assert settle(journal, -1, n)
        slots, cursor = ring.read(cursor, 1 << 20)
        ring.release(cursor)
        for kind, fields, inner in slots:
            if kind == REPEATED:
                read.append(fields[4:])
                entries = inner[REPEATED_SLOT.size :][: fields[5] * REPEATED_ENTRY.size]
                assert list(REPEATED_ENTRY.iter_unpack(entries)) == [(n, 1000 * n, 0.5) for n in range(fields[5])]
    assert read == written
    assert cursor > 10 * CAPACITY_MIN
    assert journal.dropped == 0


def test_requests_that_were_answered_alike_count_each_where_there_is_no_room(journal: Journal, ring: Ring) -> None:
    for count in (REPEATED_MAX, 5):
        before = journal.dropped
        while repeated(journal, 1, count):
            pass
        assert journal.dropped == ring.dropped() == before + count


def test_the_file_is_the_users_alone_and_all_of_it_is_there(journal: Journal) -> None:
    found = journal.path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert stat.S_IMODE(journal.path.parent.stat().st_mode) == 0o700
    assert found.st_size == file_bytes(CAPACITY_MIN)
    assert found.st_blocks * 512 >= found.st_size


def test_many_laps_lose_nothing(journal: Journal, ring: Ring) -> None:
    rng = random.Random(1)
    cursor, written, read = 0, [], []
    open_calls: list[tuple[int, int]] = []
    for n in range(20_000):
        if rng.random() < 0.01:
            journal.name(Name(model="m" * rng.randrange(200)))
        intent = journal.intent(n, 0, 0, 1.0)
        if intent >= 0:
            open_calls.append((intent, n))
        while open_calls and (rng.random() < 0.6 or len(open_calls) > 50):
            at, number = open_calls.pop(rng.randrange(len(open_calls)))
            assert settle(journal, at, number)
            written.append((at, number))
        if intent < 0 or rng.random() < 0.05:
            slots, cursor = ring.read(cursor, rng.randrange(1, 1 << 17))
            read += [slot[1][5:7] for slot in slots if slot[0] == SETTLED]
            ring.release(cursor)
    slots, cursor = ring.read(cursor, 1 << 20)
    read += [slot[1][5:7] for slot in slots if slot[0] == SETTLED]
    assert read == written
    assert cursor > 10 * CAPACITY_MIN
    assert journal.dropped == 0


def test_a_full_ring_refuses_intents_and_still_has_room_for_their_settlements(journal: Journal, ring: Ring) -> None:
    intents = []
    while (at := journal.intent(len(intents), 0, 0, 1.0)) >= 0:
        intents.append(at)
    assert len(intents) > (CAPACITY_MIN // SETTLED_BYTES) // 2
    assert journal.name(Name(model="m" * 200)) == -1
    # Nobody kept room for these: they are counted, where the reader sees it.
    assert not settle(journal, -1, 1)
    assert not settle(journal, -1, 2)
    assert ring.dropped() == journal.dropped == 2
    assert all(settle(journal, at, n) for n, at in enumerate(intents))
    slots, cursor = ring.read(0, 1 << 20)
    assert sum(slot[0] == SETTLED for slot in slots) == len(intents)
    ring.release(cursor)
    assert journal.intent(1, 0, 0, 1.0) >= 0


def test_twenty_seconds_of_ten_thousand_requests_a_second_fit_without_a_reader(folder: Path) -> None:
    journal = Journal(folder, PREFIX)
    journal.name(Name())
    for n in range(200_000):
        intent = journal.intent(n, 0, 0, 1.0)
        assert intent >= 0
        settle(journal, intent, n)
    assert journal.dropped == 0
    journal.close()


def test_a_cursor_that_cannot_be_is_not_believed(journal: Journal, ring: Ring) -> None:
    while settle(journal, -1, 1):
        pass
    for wrong in (1 << 63, 2**64 - 1, CAPACITY_MIN + 1):
        ring.release(wrong)
        assert journal.intent(1, 0, 0, 1.0) == -1


@pytest.mark.parametrize("cut", range(1, SETTLED_BYTES, 7))
def test_a_torn_last_slot_is_as_if_it_were_not_there(journal: Journal, ring: Ring, cut: int) -> None:
    settle(journal, -1, 0)
    settle(journal, journal.intent(1, 0, 0, 1.0), 1)
    whole, end = ring.read(0, 1 << 20)
    with journal.path.open("r+b") as file:
        file.seek(HEADER_BYTES + end - SETTLED_BYTES + cut)
        file.write(bytes(SETTLED_BYTES - cut))
    slots, cursor = ring.read(0, 1 << 20)
    assert (slots, cursor) == (whole[:1], end - SETTLED_BYTES)
    assert ring.torn(cursor) == (cut >= 15)
    assert ring.beyond(cursor) is None


def test_reading_goes_on_behind_what_a_power_failure_has_torn(journal: Journal, ring: Ring) -> None:
    places = []
    for n in range(100):
        places.append(journal.pending_bytes)
        settle(journal, -1, n)
    with journal.path.open("r+b") as file:
        file.seek(HEADER_BYTES + places[10])
        file.write(bytes(places[20] - places[10]))
    slots, cursor = ring.read(0, 1 << 20)
    assert (len(slots), cursor) == (10, places[10])
    assert ring.beyond(cursor) == places[20]
    assert len(ring.read(places[20], 1 << 20)[0]) == 80


def test_the_lock_tells_the_living_from_the_dead(folder: Path) -> None:
    journal = Journal(folder, PREFIX, capacity=CAPACITY_MIN)
    ring = Ring(journal.path)
    assert ring.alive()
    journal.close()
    assert not ring.alive()
    ring.close()


def flipped(data: bytearray) -> None:
    data[HEADER.size - 1] ^= 1


def other_version(data: bytearray) -> None:
    import zlib

    struct.pack_into("<H", data, 8, 9)
    struct.pack_into("<I", data, HEADER.size, zlib.crc32(data[: HEADER.size]))


def garbage(data: bytearray) -> None:
    data[:] = random.Random(2).randbytes(len(data))


def cut_short(data: bytearray) -> None:
    del data[HEADER_BYTES + 100 :]


def emptied(data: bytearray) -> None:
    data.clear()


def too_large(data: bytearray) -> None:
    import zlib

    struct.pack_into("<Q", data, 16, 1 << 62)
    struct.pack_into("<I", data, HEADER.size, zlib.crc32(data[: HEADER.size]))


@pytest.mark.parametrize("spoil", [flipped, other_version, garbage, cut_short, emptied, too_large])
def test_what_is_no_journal_is_told(folder: Path, spoil: Callable[[bytearray], None]) -> None:
    journal = Journal(folder, PREFIX, capacity=CAPACITY_MIN)
    journal.close()
    data = bytearray(journal.path.read_bytes())
    spoil(data)
    journal.path.write_bytes(data)
    with pytest.raises(Spoiled):
        Ring(journal.path)


def test_garbage_in_the_slots_ends_the_reading_and_nothing_else(journal: Journal, ring: Ring) -> None:
    rng = random.Random(3)
    for _ in range(200):
        with journal.path.open("r+b") as file:
            file.seek(HEADER_BYTES)
            file.write(rng.randbytes(4096))
            # Sizes and positions that look right.
            file.seek(HEADER_BYTES + 4)
            file.write(struct.pack("<HBBQ", rng.choice([0, 15, 16, 48, 112, 65535]), rng.randrange(6), 0, 0))
        assert ring.read(0, 1 << 20) == ([], 0)


def test_a_folder_full_of_unread_journals_takes_no_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dandolo.journal.FILES_MAX", 2)
    for _ in range(2):
        Journal(folder, PREFIX, capacity=CAPACITY_MIN).close()
    with pytest.raises(OSError, match="wait to be read"):
        Journal(folder, PREFIX, capacity=CAPACITY_MIN)


def test_a_long_name_goes_without_its_tags(journal: Journal, ring: Ring) -> None:
    journal.name(Name(tags="t" * 5000, model="m"))
    assert ring.read(0, 1 << 20)[0] == [(NAME, 0, Name(model="m"))]
    assert CURSOR_AT < HEADER_BYTES
    assert NAMES_MAX >= 1024


def test_cells_are_taken_again_and_every_intent_has_a_number_of_its_own(journal: Journal, ring: Ring) -> None:
    seen: set[int] = set()
    places: set[int] = set()
    for n in range(2000):
        intents = [journal.intent(n, 0, 0, 1.0) for _ in range(1 + n % 3)]
        numbers = ring.open_calls().keys()
        assert len(numbers) == len(intents)
        assert not seen & numbers
        seen |= numbers
        places |= set(intents)
        assert all(settle(journal, one, n) for one in intents)
        ring.release(journal.pending_bytes + ring.cursor())
    assert len(places) == 3
    assert journal.dropped == 0


def test_no_more_calls_are_open_than_there_are_cells(folder: Path) -> None:
    journal = Journal(folder, PREFIX)
    ring = Ring(journal.path)
    intents = [journal.intent(n, 0, 0, 1.0) for n in range(CELLS_MAX)]
    assert journal.intent(1, 0, 0, 1.0) == -1
    assert len(ring.open_calls()) == CELLS_MAX
    assert settle(journal, intents[7], 7)
    assert journal.intent(1, 0, 0, 1.0) >= 0
    ring.close()
    journal.close()


@pytest.mark.parametrize("laps", [0, 3])
def test_a_settlement_whose_cell_was_never_freed_is_known_as_the_last(journal: Journal, ring: Ring, laps: int) -> None:
    for n in range(laps * CAPACITY_MIN // SETTLED_BYTES):
        assert settle(journal, -1, n)
        ring.release(ring.cursor() + journal.pending_bytes)
    before, intent = journal.intent(1, 0, 0, 1.0), journal.intent(2, 0, 0, 1.0)
    with journal.path.open("rb") as file:
        cells = file.read()[HEADER_BYTES + CAPACITY_MIN :][: 2 * CELL_BYTES]
    settle(journal, intent, 2)
    with journal.path.open("r+b") as file:
        file.seek(HEADER_BYTES + CAPACITY_MIN)
        file.write(cells)
    end = ring.cursor() + journal.pending_bytes
    assert [one[1] for one in ring.open_calls().values()] == [1, 2]
    assert (before, intent) == (HEADER_BYTES + CAPACITY_MIN, HEADER_BYTES + CAPACITY_MIN + CELL_BYTES)
    assert ring.settled_last(end) == {1: end - SETTLED_BYTES}
    assert 1 not in ring.settled_last(end - SETTLED_BYTES)
    assert ring.settled()[1] == end - SETTLED_BYTES
    assert 0 not in ring.settled()
