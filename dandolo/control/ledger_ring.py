"""The reading end of a journal (`dandolo.journal`), which may be alive, dead, torn or not ours at all.

Reads with `pread` and never maps the file: one that is cut short under a mapping would kill the process. What is
read is whole slots in their order; where they end is the reader's next cursor. Beside them it reads the cells of calls
that are open. Decides nothing about money.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from dandolo.journal import (
    CAPACITY_MIN,
    CELL,
    CELL_BYTES,
    CELLS_MAX,
    CURSOR_AT,
    DROPPED_AT,
    HEADER,
    HEADER_BYTES,
    MAGIC,
    NAME,
    NAME_BYTES_MAX,
    NAME_HEAD,
    PREFIX,
    REPEATED,
    REPEATED_ENTRY,
    REPEATED_SLOT,
    SETTLED,
    SETTLED_BYTES,
    SETTLED_WHOLE,
    SKIP,
    TAKEN_AT,
    VERSION,
    Name,
    cells_of,
    file_bytes,
)

CAPACITY_MAX = 1 << 30
READ_BYTES = 256 * 1024
_BLANK = bytes(READ_BYTES)
_cell = struct.Struct("<Q")
_number = struct.Struct("<I")
_places = struct.Struct("<8xQ")
_settled = SETTLED_WHOLE.unpack_from
_name = msgspec.msgpack.Decoder(Name)

_SETTLED_HEAD = SETTLED_BYTES.to_bytes(2, "little") + bytes((SETTLED,))
_HEAD_AT = 4

Slot = tuple[int, Any, Any]
"""(SETTLED, fields, bytes), (REPEATED, fields, bytes) or (NAME, number, Name). Fields are those of
`journal.SETTLED_WHOLE` or `journal.REPEATED_SLOT`; bytes are the slot as it stands, without its checksum."""

Intent = tuple[int, int, int, int, float, int]
"""The fields of a cell (`journal.CELL`)."""
INDEX_BITS = 16
"""Of an intent's number, the lowest: its cell. The others are its position, in units of 16 bytes."""


class Spoiled(Exception):
    """The file is no journal that can be read. `flaw` says why in a word, the text in a sentence's half."""

    def __init__(self, flaw: str, text: str) -> None:
        super().__init__(text)
        self.flaw = flaw


class Ring:
    """An open journal. Raises Spoiled, or OSError when it cannot be opened at all. It must be its reader's own, or that
    of the user `owner`."""

    def __init__(self, path: Path, *, owner: int | None = None) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            found = os.fstat(self._file)
            if not stat.S_ISREG(found.st_mode):
                raise Spoiled("foreign", "there is something that is no file")
            if found.st_uid != (os.geteuid() if owner is None else owner):
                raise Spoiled("foreign", "it belongs to another user")
            head = os.pread(self._file, HEADER.size + 4, 0)
            if len(head) < HEADER.size + 4 or head[:8] != MAGIC:
                raise Spoiled("foreign", "it is no journal")
            (_, version, header_bytes, _, capacity, self.id, self.pid, _, self.process_start, self.boot_id,
             self.clock_offset_s, prefix) = HEADER.unpack_from(head)  # fmt: skip
            if crc32(head[: HEADER.size]) != _number.unpack_from(head, HEADER.size)[0]:
                raise Spoiled("corrupt", "its header fails its check")
            if version != VERSION or header_bytes != HEADER_BYTES:
                raise Spoiled("version", f"it has version {version}, and not {VERSION}")
            if not CAPACITY_MIN <= capacity <= CAPACITY_MAX or capacity % 4096:
                raise Spoiled("corrupt", f"it says that it holds {capacity} bytes")
            if found.st_size != file_bytes(capacity):
                raise Spoiled("corrupt", f"it has {found.st_size} bytes where {file_bytes(capacity)} belong")
            self.prefix = prefix.rstrip(b"\0").decode("ascii", "replace")
            self.capacity: int = capacity
        except BaseException:
            os.close(self._file)
            raise

    def cursor(self) -> int:
        """Where the header says that reading goes on."""
        return self._at(CURSOR_AT)

    def dropped(self) -> int:
        """Rows that found no room, as the writer counts them."""
        return self._at(DROPPED_AT)

    def release(self, cursor: int) -> None:
        """Everything before `cursor` is in the ledger: the writer may use the room again."""
        os.pwrite(self._file, _cell.pack(cursor), CURSOR_AT)

    def alive(self) -> bool:
        """Whether its writer lives (it holds the lock, which the kernel takes from the dead)."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return False

    def read(self, cursor: int, bytes_max: int) -> tuple[list[Slot], int]:
        """The whole slots from `cursor` on, about `bytes_max` bytes of them, and the cursor behind them."""
        slots: list[Slot] = []
        at, most = cursor, cursor + bytes_max
        while at < most:
            left = self.capacity - at % self.capacity
            data = os.pread(self._file, min(READ_BYTES, left), HEADER_BYTES + at % self.capacity)
            taken = _slots(data, at, left, slots)
            if not taken:
                break
            at += taken
        return slots, at

    def open_calls(self) -> dict[int, Intent]:
        """The intents that are not settled, by their numbers; of a living writer, about now."""
        size = min(self._at(TAKEN_AT), cells_of(self.capacity)) * CELL_BYTES
        data = os.pread(self._file, size, HEADER_BYTES + self.capacity)
        found: dict[int, Intent] = {}
        assert CELLS_MAX <= 1 << INDEX_BITS
        for place in range(0, len(data) - CELL_BYTES + 1, CELL_BYTES):
            if data[place + CELL.size - 1] == 1:
                intent: Intent = CELL.unpack_from(data, place)
                found[intent[0] // 16 << INDEX_BITS | place // CELL_BYTES] = intent
        return found

    def settled_last(self, cursor: int) -> dict[int, int]:
        """The cell of the settlement that ends at `cursor`, if one does, and its position: its writer may have been
        killed before it could free the cell."""
        place = (cursor - SETTLED_BYTES) % self.capacity
        data = os.pread(self._file, SETTLED_BYTES, HEADER_BYTES + place)
        slots: list[Slot] = []
        _slots(data, cursor - SETTLED_BYTES, 0, slots)
        return {self._index(slots[0][1][5]): slots[0][1][4]} if slots and slots[0][0] == SETTLED else {}

    def settled(self) -> dict[int, int]:
        """The cells of all settlements that still stand in the ring, read or not, and the last position of each: what
        a power failure has left may be older in the cells than here. Reads all of the file."""
        found: dict[int, int] = {}
        for offset in range(0, self.capacity, READ_BYTES):
            # With what a slot that begins in this piece has in the next.
            data = os.pread(self._file, min(READ_BYTES + SETTLED_BYTES, self.capacity - offset), HEADER_BYTES + offset)
            place = data.find(_SETTLED_HEAD, _HEAD_AT) - _HEAD_AT
            while place >= 0:
                slot = data[place : place + SETTLED_BYTES]
                if len(slot) == SETTLED_BYTES and crc32(slot[4:]) == _number.unpack_from(slot)[0]:
                    fields = _settled(slot)
                    index = self._index(fields[5])
                    found[index] = max(fields[4], found.get(index, 0))
                place = data.find(_SETTLED_HEAD, place + _HEAD_AT + 1) - _HEAD_AT
        return found

    def torn(self, cursor: int) -> bool:
        """Whether a slot stands at `cursor` that is not whole: it is being written now, or never will be."""
        data = os.pread(self._file, PREFIX.size, HEADER_BYTES + cursor % self.capacity)
        return len(data) == PREFIX.size and PREFIX.unpack(data)[4] == cursor and any(data)

    def beyond(self, cursor: int) -> int | None:
        """The next place after `cursor` where whole slots begin again, None when there is none.

        Reads all of the file (tenths of a second): for what a power failure has torn in the middle.
        """
        best: int | None = None
        for offset in range(0, self.capacity, READ_BYTES):
            data = os.pread(self._file, READ_BYTES, HEADER_BYTES + offset)
            data = data[: len(data) // 16 * 16]
            if data == _BLANK[: len(data)]:
                continue
            for index, (position,) in enumerate(_places.iter_unpack(data)):
                if not cursor < position < cursor + self.capacity or (best is not None and position >= best):
                    continue
                place = offset + index * 16
                if position % self.capacity == place and self.read(position, 1)[1] > position:
                    best = position
        return best

    def _index(self, place: int) -> int:
        """Which cell lies there."""
        return (place - HEADER_BYTES - self.capacity) // CELL_BYTES

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def _at(self, place: int) -> int:
        data = os.pread(self._file, 8, place)
        return int(_cell.unpack(data)[0]) if len(data) == 8 else 0


def _slots(data: bytes, at: int, left: int, into: list[Slot]) -> int:
    """Put the whole slots at the start of `data` into a list; how many bytes they (and a skipped rest) take.

    `at` is the position of `data`, `left` how far the lap goes from there.
    """
    place, end = 0, len(data)
    put = into.append
    # Once for every request: the usual kind comes first, and is unpacked once.
    while place + PREFIX.size <= end:
        kind = data[place + 6]
        if kind == SETTLED:
            inner = data[place + 4 : place + SETTLED_BYTES]
            if place + SETTLED_BYTES > end:
                break
            fields = _settled(data, place)
            if fields[1] != SETTLED_BYTES or fields[4] != at + place or crc32(inner) != fields[0]:
                break
            put((SETTLED, fields, inner))
            place += SETTLED_BYTES
            continue
        crc, size, kind, _, position = PREFIX.unpack_from(data, place)
        if position != at + place or size < PREFIX.size or size % 16 or size > NAME_BYTES_MAX or place + size > end:
            break
        inner = data[place + 4 : place + size]
        if crc32(inner) != crc:
            break
        if kind == NAME and size >= NAME_HEAD.size:
            number, length = NAME_HEAD.unpack_from(data, place)[5:]
            put((NAME, number, _named(inner[NAME_HEAD.size - 4 :][:length])))
        elif kind == REPEATED and size >= 4 + REPEATED_SLOT.size:
            fields = REPEATED_SLOT.unpack_from(inner)
            if 0 < fields[5] <= (len(inner) - REPEATED_SLOT.size) // REPEATED_ENTRY.size:
                put((REPEATED, fields, inner))
        elif kind == SKIP:
            return left
        place += size
    return place


def _named(body: bytes) -> Name:
    try:
        return _name.decode(body)
    except msgspec.DecodeError:
        # Its checksum holds, so a writer of another make wrote it: what is booked under it is nobody's.
        return Name()
