"""The journal of one worker: money written down without a system call, so that it outlives whoever dies.

A memory-mapped file of two parts. Just before it asks a provider for something that may cost, the worker notes an
*intent* in a free cell of a table; when the call ends, it appends a *settlement* to a ring, and then frees the cell.
The control process reads the ring (`control.ledger_ring`), commits what it says to the ledger, and only then moves the
cursor in the file's header, which frees the room. The kernel keeps what was written to the mapping when a process is
killed, so either side may die at any moment: cells that a dead worker leaves taken are its unsettled calls, but for
the one whose settlement may be the last in the ring.

    header (4 KiB)   magic, version, capacity, journal id, pid, start of the process, boot id, clock, request prefix;
                     at CURSOR_AT the reader's cursor, at DROPPED_AT how many rows found no room, at TAKEN_AT how many
                     cells were ever taken
    ring             slots: crc32 of the rest (4), size (2), kind (1), flags (1), position (8), body
    cells            position of the ring's end when it was taken (8), request's number (8), name (4), reserved
                     micro-USD (8), monotonic time (8), 1 while it is taken (1): a cell's last byte is written last, and
                     none lies across the end of a page or sector. A settlement names its cell, and whatever is taken
                     after it begins at a later position

A position counts bytes since the journal began; a slot lies at position modulo capacity and never across the end (a
SKIP slot fills the rest of a lap). A slot counts when its checksum holds and it names the position it is read at, so
a torn last one and the lap before are told from what is whole. Names (key, model, provider …) are written once and
numbered, so that what is written for a request has a fixed size. The file is allocated in full: a disk that fills up
later cannot take the mapping away. It is locked (flock) while its writer lives.

Room is kept for the settlement of every intent. When there is none for an intent it is not written: whoever has a
budget must then be refused, others go on and are counted (`dropped`).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import struct
import time
from pathlib import Path
from typing import Final
from zlib import crc32

import msgspec

MAGIC: Final = b"DANDJRNL"
VERSION: Final = 2
HEADER_BYTES: Final = 4096
CURSOR_AT: Final = 1024
DROPPED_AT: Final = 2048
TAKEN_AT: Final = 3072
SUFFIX: Final = ".ring"
UNFINISHED: Final = ".new"
CAPACITY: Final = 32 * 1024 * 1024
"""112 bytes a request: 29 s without a reader at 10,000 requests a second, which no worker reaches."""
CAPACITY_MIN: Final = 64 * 1024
FILES_MAX: Final = 64
"""Journals that wait to be read; beyond, a new worker gets none (they are of dead ones, and nobody reads)."""

NAME, SETTLED, SKIP, REPEATED = 1, 3, 4, 5

CALL, REQUEST, ESTIMATED, STREAM, ANSWERED, ABSENT = 1, 2, 4, 8, 16, 32
"""Flags of a settlement: it carries what a call cost; it is the end of a client's request (both, usually); its tokens
are our own count; a stream; the client was sent the answer of this call; it wanted a
kept answer or none, and there was none."""

CACHE_CODES: Final = {"": 0, "hit": 1, "miss": 2, "stale": 3, "collapsed": 4, "semantic": 5}
NOBODY: Final = 2**64 - 1
"""The cell of an intent where there is none."""
UNKNOWN: Final = -1
COUNT_MAX: Final = 2**62
NANO: Final = 1_000_000_000

HEADER: Final = struct.Struct("<8sHHIQ8sIIQ16sd24s")
PREFIX: Final = struct.Struct("<IHBBQ")
NAME_HEAD: Final = struct.Struct("<IHBBQII")
"""The prefix, then the name's number and the length of what follows (`Name` in msgpack)."""
CELL: Final = struct.Struct("<QQIqdB")
"""position, request number, name, reserved (micro-USD), monotonic time, whether it is taken."""
CELL_BYTES: Final = 64
CELLS_MAX: Final = 65_536
"""Calls of one worker that are under way at a time; beyond, there is no room for an intent."""
SETTLED_SLOT: Final = struct.Struct("<HBBQQQIHBBQQQQqqddd")
"""size, kind, flags, position; intent, request number, name, status, cache, attempts; tokens in, out, cached,
reasoning; the provider's own cost and what the cache saved (nano-USD, UNKNOWN); start (monotonic), duration and time
to the first token in seconds (UNKNOWN)."""
SETTLED_WHOLE: Final = struct.Struct("<I" + SETTLED_SLOT.format[1:])
"""The same with the checksum before it."""
SETTLED_BYTES: Final = 4 + SETTLED_SLOT.size
REPEATED_SLOT: Final = struct.Struct("<HBBQIHBxQQQQqQd")
"""Requests that were answered alike from memory, for which nobody was called: size, kind, flags, position; name, how
many, cache; tokens in, out, cached, reasoning and what the cache saved (nano-USD), of each; the first one's number and
start. Of each an entry follows (`REPEATED_ENTRY`), and padding."""
REPEATED_ENTRY: Final = struct.Struct("<IIf")
"""What is to be added to the first one's number and, in microseconds, to its start; duration in seconds."""
REPEATED_MAX: Final = 256
"""In one slot."""
NAME_BYTES_MAX: Final = 4096
SLACK_BYTES: Final = 4 * NAME_BYTES_MAX
"""Kept free beside what intents reserve, for the ends of laps."""
CHUNK_BYTES: Final = 256 * 1024
"""What has been written is let go of from this process's memory in pieces of this size: once in 2,000 requests."""
NAMES_MAX: Final = 4096
"""Names at one time; beyond, numbering goes on anew, so that no caller's inventions fill the memory."""

assert SETTLED_BYTES % 16 == PREFIX.size % 16 == 0, "a lap must end between slots"
assert 4 + REPEATED_SLOT.size + REPEATED_MAX * REPEATED_ENTRY.size <= NAME_BYTES_MAX, "no slot is longer"

_cell = struct.Struct("<Q")
_crc = struct.Struct("<I")
_TAKEN_BYTE: Final = CELL.size - 1
_pack_cell = CELL.pack_into
_pack_settled = SETTLED_SLOT.pack
_pack_crc = _crc.pack


class Name(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a call is booked under. Prices are USD per million tokens, None where unknown: those of whoever is asked,
    and those of the first candidate, whom a client without a gateway would have asked."""

    key: str = ""
    tags: str = "{}"
    """The key's tags as JSON, sorted."""
    endpoint: str = ""
    model: str = ""
    provider: str = ""
    account: str = ""
    owner: str = ""
    upstream_model: str = ""
    input_usd: float | None = None
    output_usd: float | None = None
    direct_input_usd: float | None = None
    direct_output_usd: float | None = None


_encode = msgspec.msgpack.Encoder().encode


class Journal:
    """The writing end. One thread; every method but `close` is a few writes to memory.

    `prefix` is what all request ids of the worker begin with (ASCII, at most 24 bytes), `label` stands in the file's
    name. Raises OSError when the file cannot be made: no room, no permission, too many journals unread.
    """

    __slots__ = (
        "_at", "_base", "_brim", "_capacity", "_chunk", "_edge", "_file", "_free", "_full", "_held", "_lap", "_map",
        "_names", "_read", "_taken",
        "dropped", "id", "path",
    )  # fmt: skip

    def __init__(self, folder: Path, prefix: bytes, *, label: str = "0", capacity: int = CAPACITY) -> None:
        capacity = max(CAPACITY_MIN, capacity // 4096 * 4096)
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if sum(1 for one in folder.iterdir() if one.name.endswith(SUFFIX)) >= FILES_MAX:
            raise OSError(f"{FILES_MAX} journals wait to be read")
        self.id = secrets.token_bytes(8)
        self.path = folder / f"{label}-{self.id.hex()}{SUFFIX}"
        made = self.path.with_suffix(UNFINISHED)
        self._file = os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Not ftruncate: touching a hole on a full disk kills the process.
            os.posix_fallocate(self._file, 0, file_bytes(capacity))
            self._map = mmap.mmap(self._file, file_bytes(capacity))
            head = HEADER.pack(
                MAGIC, VERSION, HEADER_BYTES, 0, capacity, self.id, os.getpid(), 0, process_start(os.getpid()),
                boot_id(), time.time() - time.monotonic(), prefix,
            )  # fmt: skip
            self._map[: len(head) + 4] = head + _pack_crc(crc32(head))
            # The reader sees a whole header or none.
            os.rename(made, self.path)
        except BaseException:
            os.close(self._file)
            made.unlink(missing_ok=True)
            raise
        self._capacity = capacity
        self._at = 0
        self._lap = capacity
        self._base = HEADER_BYTES
        """What makes a place in the file of a position in this lap."""
        self._chunk = 0
        self._edge = min(CHUNK_BYTES, capacity)
        self._read = 0
        self._full = capacity - SLACK_BYTES
        self._brim = self._full - SETTLED_BYTES
        self._held = 0
        self._taken = 0
        self._free: list[int] = []
        """Places of cells that may be taken again: those used last come first."""
        self._names = 0
        self.dropped = 0
        """Rows that found no room."""

    @property
    def pending_bytes(self) -> int:
        """What has been written and not yet read."""
        return self._at - self._cursor()

    def name(self, name: Name) -> int:
        """Write a name; its number, or -1 when there is no room. A number stays good for the next NAMES_MAX names."""
        body = _encode(name)
        if len(body) > NAME_BYTES_MAX - 64:
            body = _encode(msgspec.structs.replace(name, tags="{}"))
        number = self._names
        size = NAME_HEAD.size + len(body)
        size += -size % 16
        at = self._room(self._at, size)
        if at < 0:
            return -1
        slot = NAME_HEAD.pack(0, size, NAME, 0, at, number, len(body))[4:] + body
        slot += bytes(size - 4 - len(slot))
        self._put(at, slot, size)
        self._names = number + 1
        return number

    def intent(self, request: int, name: int, reserved_micro_usd: int, now: float) -> int:
        """Note that a call is about to be made, and keep room for its settlement; the place of its cell, or -1."""
        at = self._at
        if at + self._held > self._brim:
            self._look()
            if at + self._held > self._brim:
                return -1
        free = self._free
        if free:
            place = free.pop()
        elif (place := self._fresh()) < 0:
            return -1
        _pack_cell(self._map, place, at, request, name, reserved_micro_usd, now, 1)
        self._held += SETTLED_BYTES
        return place

    def settle(
        self,
        intent: int,
        request: int,
        name: int,
        flags: int,
        status: int,
        cache: int,
        attempts: int,
        tokens_in: int,
        tokens_out: int,
        tokens_cached: int,
        tokens_reasoning: int,
        cost_nano_usd: int,
        saved_nano_usd: int,
        started: float,
        duration_s: float,
        first_token_s: float,
    ) -> bool:
        """Note an end. `intent` is what `intent` gave, -1 where there was none; then there may be no
        room (False, and counted)."""
        at = self._at
        end = at + SETTLED_BYTES
        if intent < 0:
            intent = NOBODY
            if end > self._edge or end + self._held > self._full:
                at = self._room(at, SETTLED_BYTES)
                if at < 0:
                    self.drop()
                    return False
                end = at + SETTLED_BYTES
        else:
            self._held -= SETTLED_BYTES
            if end > self._edge:
                at = self._room(at, SETTLED_BYTES, kept=True)
                end = at + SETTLED_BYTES
        slot = _pack_settled(
            SETTLED_BYTES, SETTLED, flags, at, intent, request, name, status, cache, attempts, tokens_in, tokens_out,
            tokens_cached, tokens_reasoning, cost_nano_usd, saved_nano_usd, started, duration_s, first_token_s,
        )  # fmt: skip
        place = at + self._base
        self._map[place : place + SETTLED_BYTES] = _pack_crc(crc32(slot)) + slot
        self._at = end
        if intent != NOBODY:
            self._map[intent + _TAKEN_BYTE] = 0
            self._free.append(intent)
        return True

    def repeated(
        self,
        name: int,
        cache: int,
        tokens_in: int,
        tokens_out: int,
        tokens_cached: int,
        tokens_reasoning: int,
        saved_nano_usd: int,
        number: int,
        started: float,
        entries: bytes,
    ) -> bool:
        """Note requests that were answered alike from memory, at most REPEATED_MAX; `entries` are REPEATED_ENTRYs, of
        the first one too. False, and each counted, when there is no room."""
        count = len(entries) // REPEATED_ENTRY.size
        size = 4 + REPEATED_SLOT.size + len(entries)
        size += -size % 16
        at = self._room(self._at, size)
        if at < 0:
            self.drop(count)
            return False
        slot = REPEATED_SLOT.pack(
            size, REPEATED, REQUEST, at, name, count, cache, tokens_in, tokens_out, tokens_cached, tokens_reasoning,
            saved_nano_usd, number, started,
        ) + entries  # fmt: skip
        self._put(at, slot + bytes(size - 4 - len(slot)), size)
        return True

    def drop(self, count: int = 1) -> None:
        """Count rows that are lost, where the reader sees it."""
        self.dropped += count
        _cell.pack_into(self._map, DROPPED_AT, self.dropped)

    def close(self) -> None:
        """Let go of the file, which stays until it has been read."""
        self._map.close()
        os.close(self._file)

    # -- within ------------------------------------------------------------------------------------------------

    def _put(self, at: int, slot: bytes, size: int) -> None:
        place = at + self._base
        self._map[place : place + size] = _pack_crc(crc32(slot)) + slot
        self._at = at + size

    def _room(self, at: int, size: int, reserve: int = 0, *, kept: bool = False) -> int:
        """Where a slot of `size` goes, at the start of the next lap if need be; -1 when there is no room for it and
        `reserve` more. `kept`: the room was kept for it when its intent was written."""
        over = at + size > self._lap
        start = self._lap if over else at
        if not kept and start + size + reserve + self._held > self._full:
            self._look()
            if start + size + reserve + self._held > self._full:
                return -1
        if over:
            if at < self._lap:
                self._put(at, PREFIX.pack(0, PREFIX.size, SKIP, 0, at)[4:], PREFIX.size)
            self._at = start
            self._lap += self._capacity
            self._base -= self._capacity
        if start + size > self._edge:
            # Written pages stay in the file, and need not stay in this process too.
            chunk = start // CHUNK_BYTES * CHUNK_BYTES
            if chunk > self._chunk:
                behind = self._chunk % self._capacity
                length = min(CHUNK_BYTES, self._capacity - behind)
                self._map.madvise(mmap.MADV_DONTNEED, HEADER_BYTES + behind, length)
                self._chunk = chunk
            self._edge = min(chunk + CHUNK_BYTES, self._lap)
        return start

    def _fresh(self) -> int:
        """The place of a cell that was never taken, -1 when all were."""
        taken = self._taken
        if taken >= cells_of(self._capacity):
            return -1
        self._taken = taken + 1
        _cell.pack_into(self._map, TAKEN_AT, taken + 1)
        return HEADER_BYTES + self._capacity + taken * CELL_BYTES

    def _look(self) -> None:
        """Find out how much has been read."""
        self._read = self._cursor()
        self._full = self._read + self._capacity - SLACK_BYTES
        self._brim = self._full - SETTLED_BYTES

    def _cursor(self) -> int:
        """Up to where everything has been read. Whatever else stands there is not believed."""
        cursor: int = _cell.unpack_from(self._map, CURSOR_AT)[0]
        return cursor if self._read <= cursor <= self._at else self._read


def file_bytes(capacity: int) -> int:
    """The size of a journal's file."""
    return HEADER_BYTES + capacity + cells_of(capacity) * CELL_BYTES


def cells_of(capacity: int) -> int:
    """How many cells it has: no more than the settlements that could be kept room for."""
    return min(CELLS_MAX, capacity // SETTLED_BYTES)


def process_start(pid: int) -> int:
    """When a process began, in ticks since the system's start (proc(5), field 22); 0 where that cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read(4096).rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def boot_id() -> bytes:
    """16 bytes that tell this run of the system from others; zeros where that cannot be read."""
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return bytes.fromhex(file.read(64).decode("ascii").strip().replace("-", ""))[:16]
    except (OSError, ValueError):
        return bytes(16)
