"""A row of the cache's SQLite file: what it holds, its checksum, and the queue in which it waits to be written."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgpack

from dandolo.cache.generations import Marks

KEY_BYTES = 20
VALUE_BYTES_MAX = 8 * 1024 * 1024
TAGS_BYTES_MAX = 4096
ROW_BYTES = 128
"""Beside texts and value: the key in row and index, the integers, the headers of row and cells."""
QUEUE_ROWS_MAX = 2000
QUEUE_BYTES_MAX = 32 * 1024 * 1024


@dataclass(slots=True)
class Row:
    """What is stored. `born` is the generation; `stored_bytes` what it counts for in queues and room."""

    key: bytes
    value: bytes
    created_ms: int
    expires_ms: int
    born: int
    marks: Marks
    tags: bytes = field(init=False)
    stored_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        """Raises UnicodeEncodeError for text that is none."""
        self.tags = msgpack.packb(self.marks.tags) if self.marks.tags else b""
        texts = len(self.marks.scope.encode()) + len(self.marks.model.encode()) + len(self.marks.ttl_class.encode())
        self.stored_bytes = ROW_BYTES + texts + len(self.tags) + len(self.value)

    def crc(self) -> int:
        """Over all columns, so that no flipped bit changes who may see what, or for how long."""
        marks = self.marks
        head = [self.key, self.created_ms, self.expires_ms, self.born, marks.scope, marks.model, marks.ttl_class]
        return zlib.crc32(self.value, zlib.crc32(self.tags, zlib.crc32(msgpack.packb(head))))


def read_marks(scope: str, model: str, ttl_class: str, tags: bytes) -> Marks:
    """Marks from their columns. Raises ValueError for damaged ones."""
    return Marks(scope, model, ttl_class, tuple(msgpack.unpackb(tags)) if tags else ())


class Backlog:
    """Rows that wait to be written, within QUEUE_ROWS_MAX and QUEUE_BYTES_MAX. Whoever uses it holds a lock.

    `latest` has the newest row of each key from `put` until `done`, and may be looked at without a lock: what it has
    is newer than what the file has. `came` counts the rows ever put.
    """

    __slots__ = ("_rows", "came", "latest", "stored_bytes")

    def __init__(self) -> None:
        self._rows: deque[Row] = deque()
        self.latest: dict[bytes, Row] = {}
        self.came = 0
        self.stored_bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, rows: Sequence[Row], born: int) -> int:
        """Append rows of this generation. Returns how many of the oldest fell out for them."""
        dropped = 0
        self.came += len(rows)
        for row in rows:
            row.born = born
            self._rows.append(row)
            self.latest[row.key] = row
            self.stored_bytes += row.stored_bytes
        while len(self._rows) > QUEUE_ROWS_MAX or self.stored_bytes > QUEUE_BYTES_MAX:
            oldest = self._rows.popleft()
            self.stored_bytes -= oldest.stored_bytes
            self.done([oldest])
            dropped += 1
        return dropped

    def take(self, count: int, bytes_max: int) -> list[Row]:
        """Take the oldest out: at most `count` and together at most `bytes_max`, but one at least if there is one.

        Once they are in the file, or lost, comes `done`.
        """
        taken: list[Row] = []
        size = 0
        while self._rows and len(taken) < count:
            size += self._rows[0].stored_bytes
            if taken and size > bytes_max:
                break
            taken.append(self._rows.popleft())
            self.stored_bytes -= taken[-1].stored_bytes
        return taken

    def done(self, rows: Iterable[Row]) -> None:
        """Let the file answer for them."""
        for row in rows:
            if self.latest.get(row.key) is row:
                del self.latest[row.key]

    def oldest(self, current: int) -> int:
        """The generation that nothing here is older than; with nothing here, the current one."""
        return self._rows[0].born if self._rows else current

    def rebase(self, by: int) -> None:
        """Raise all generations."""
        for row in self._rows:
            row.born += by

    def clear(self) -> int:
        """Throw all away. Returns how many."""
        count = len(self._rows)
        self._rows.clear()
        self.latest.clear()
        self.stored_bytes = 0
        return count
