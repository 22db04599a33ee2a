"""The Redis protocol without I/O: RESP2 and RESP3 replies out of bytes in any pieces, commands into bytes.

Refuses to know what a command means and which reply belongs to which: its owner matches them in order.
Errors the server sends are values (`ErrorReply`), and so is what it sends unasked (`Push`). Bytes that are not
the protocol raise `RespError`; nothing after them can be matched to anything, so the owner must close the
connection. Every reply is bounded in bytes, elements and nesting before anything is kept for it.

Written after redis.io, "Redis serialization protocol specification". Streamed aggregates (`*?`, `$?`), which
no server sends, are refused; attributes are read and dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, TypeAlias

LINE_BYTES_MAX: Final = 4096
"""A simple string, an error or a length. Redis cuts what it quotes in errors to 128 bytes."""
REPLY_BYTES_MAX: Final = 16 * 1024 * 1024
ELEMENTS_MAX: Final = 256 * 1024
"""Of one reply, all levels together: an invalidation names every key changed in one turn of the server."""
DEPTH_MAX: Final = 8
"""CLUSTER SLOTS needs 4."""


class ErrorReply:
    """What the server answers when it declines: `-MOVED 3999 10.0.0.2:6379`."""

    __slots__ = ("message",)

    def __init__(self, message: bytes) -> None:
        self.message = message

    @property
    def code(self) -> bytes:
        """The first word, by which errors are told apart."""
        return self.message.split(b" ", 1)[0]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ErrorReply) and other.message == self.message

    def __hash__(self) -> int:
        return hash(self.message)

    def __repr__(self) -> str:
        # The rest of a message may quote a command's arguments.
        return f"ErrorReply({self.code!r}…)"


@dataclass(frozen=True, slots=True)
class Push:
    """What the server sends unasked, between replies: its kind (b"invalidate") and the rest."""

    kind: bytes
    items: list[Reply]


Reply: TypeAlias = "bytes | int | float | bool | ErrorReply | Push | list[Reply] | dict[bytes, Reply] | None"
"""Strings of every form are bytes, both nulls None, sets are lists; the keys of maps must be strings."""


class RespError(ValueError):
    """The bytes are not RESP, or more than is taken. `replies` came whole before them."""

    replies: list[Reply]

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.replies = []


_INTEGER = re.compile(rb"[+-]?[0-9]{1,19}")
_BIG = re.compile(rb"[+-]?[0-9]+")
_DOUBLE = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|inf)|nan")
_KINDS: Final = frozenset(b"+-:$*_,#(!=%~>|")
_BULK, _BULK_ERROR, _VERBATIM = _LONG = b"$!="
_SIMPLE, _ERROR, _NUMBER, _NULL, _REAL, _FLAG, _LARGE = b"+-:_,#("
_ARRAY, _MAP, _SET, _PUSH, _ATTRIBUTE = b"*%~>|"
_NONE_YET: Final = object()


class _Aggregate:
    """One that has begun: `want` values in all, those of a map's keys among them."""

    __slots__ = ("items", "kind", "want")

    def __init__(self, kind: int, want: int) -> None:
        self.kind = kind
        self.want = want
        self.items: list[Reply] = []


class ReplyReader:
    """Reads replies incrementally.

    `reply_bytes_max`, `elements_max` and `depth_max` bound one reply, with the attributes before it. What an
    unfinished reply holds is at most that, and a long string costs linear time however it is cut.
    """

    __slots__ = (
        "_broken", "_bytes", "_bytes_max", "_depth_max", "_elements", "_elements_max", "_held", "_need", "_pieces",
        "_stack",
    )  # fmt: skip

    def __init__(
        self,
        *,
        reply_bytes_max: int = REPLY_BYTES_MAX,
        elements_max: int = ELEMENTS_MAX,
        depth_max: int = DEPTH_MAX,
    ) -> None:
        self._bytes_max = reply_bytes_max
        self._elements_max = elements_max
        self._depth_max = depth_max
        self._pieces: list[bytes] = []
        self._held = 0
        self._need = 0
        self._stack: list[_Aggregate] = []
        self._bytes = 0
        self._elements = 0
        self._broken = False

    @property
    def held_bytes(self) -> int:
        """Bytes kept because the value they belong to is unfinished."""
        return self._held

    @property
    def at_boundary(self) -> bool:
        """Whether the next byte begins a reply."""
        return not self._stack and not self._pieces and not self._bytes

    def feed(self, data: bytes) -> list[Reply]:
        """The replies and pushes that are whole now, in order. Raises RespError; then nothing more is read."""
        if self._broken:
            raise RespError("the connection's bytes were no RESP before")
        if self._pieces:
            self._pieces.append(data)
            self._held += len(data)
            if self._held < self._need:
                return []
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._held = 0
        replies: list[Reply] = []
        try:
            at = self._read(data, replies)
        except RespError as error:
            self._broken = True
            self._stack.clear()
            error.replies = replies
            raise
        if at < len(data):
            self._pieces.append(data[at:])
            self._held = len(data) - at
        return replies

    def _read(self, data: bytes, replies: list[Reply]) -> int:
        """Read whole values from the start of `data`; how far that was. Leaves in `_need` what the next one takes."""
        at, size = 0, len(data)
        stack = self._stack
        while at < size:
            kind = data[at]
            end = data.find(b"\r\n", at, at + LINE_BYTES_MAX + 3)
            if kind == 36 and end >= 0 and not stack:
                # What nearly every reply is: one string, all of it here.
                text = data[at + 1 : end]
                if text.isdigit() and len(text) <= 10:
                    stop = end + 2 + int(text)
                    if data[stop : stop + 2] == b"\r\n" and stop - end <= self._bytes_max and not self._bytes:
                        replies.append(data[end + 2 : stop])
                        at = stop + 2
                        continue
            if end < 0:
                if kind not in _KINDS:
                    raise RespError("a reply begins with a byte that stands for no type")
                if size - at > LINE_BYTES_MAX + 2:
                    raise RespError(f"a line is longer than {LINE_BYTES_MAX} bytes")
                self._need = size - at + 1
                return at
            value: object
            if kind in _LONG:
                length = self._length(data[at + 1 : end])
                if length < 0:
                    if kind != _BULK:
                        raise RespError("a length is negative")
                    value, stop = None, end + 2
                else:
                    start = end + 2
                    stop = start + length + 2
                    if self._bytes + length > self._bytes_max:
                        raise RespError(f"a reply is longer than {self._bytes_max} bytes")
                    if stop > size:
                        self._need = stop - at
                        return at
                    if data[stop - 2 : stop] != b"\r\n":
                        raise RespError("a string is longer than its length says")
                    value = data[start : stop - 2]
                    if kind != _BULK:
                        value = _long(kind, data[start : stop - 2])
            else:
                value, stop = self._line(kind, data[at + 1 : end]), end + 2
            if not stack and value is not _NONE_YET and not self._bytes:
                replies.append(value)  # type: ignore[arg-type]
                at = stop
                continue
            self._bytes += stop - at
            if self._bytes > self._bytes_max:
                raise RespError(f"a reply is longer than {self._bytes_max} bytes")
            at = stop
            if value is not _NONE_YET:
                self._place(value, replies)  # type: ignore[arg-type]
        return at

    def _place(self, value: Reply, replies: list[Reply]) -> None:
        """Put a whole value where it belongs, and close every aggregate that it completes."""
        stack = self._stack
        while stack:
            aggregate = stack[-1]
            aggregate.items.append(value)
            if len(aggregate.items) < aggregate.want:
                return
            stack.pop()
            if aggregate.kind == _ATTRIBUTE:
                return
            value = _whole(aggregate)
        replies.append(value)
        self._bytes = self._elements = 0

    def _length(self, text: bytes) -> int:
        """A length of at most ten digits, or -1."""
        if text.isdigit() and len(text) <= 10:
            return int(text)
        if text == b"-1":
            return -1
        raise RespError("a length is no number")

    def _line(self, kind: int, line: bytes) -> object:
        """The value of a line, or _NONE_YET when it opened an aggregate or was an attribute without content."""
        if kind in (_SIMPLE, _ERROR):
            if b"\r" in line or b"\n" in line:
                raise RespError("a bare CR or LF in a line")
            return line if kind == _SIMPLE else ErrorReply(line)
        if kind == _NUMBER and _INTEGER.fullmatch(line):
            return int(line)
        if kind == _NULL and not line:
            return None
        if kind == _FLAG and line in (b"t", b"f"):
            return line == b"t"
        if kind == _REAL and _DOUBLE.fullmatch(line):
            return float(line)
        if kind == _LARGE and _BIG.fullmatch(line):
            return int(line)
        if kind in b"*%~>|":
            return self._open(kind, self._length(line))
        if kind in _KINDS:
            raise RespError("a value is not of the type it is said to be")
        raise RespError("a reply begins with a byte that stands for no type")

    def _open(self, kind: int, count: int) -> object:
        if count < 0:
            if kind != _ARRAY:
                raise RespError("a length is negative")
            return None
        if kind == _PUSH and (self._stack or not count):
            raise RespError("a push is empty, or within a reply")
        if len(self._stack) >= self._depth_max:
            raise RespError(f"a reply is nested more than {self._depth_max} deep")
        want = 2 * count if kind in (_MAP, _ATTRIBUTE) else count
        self._elements += want
        if self._elements > self._elements_max:
            raise RespError(f"a reply has more than {self._elements_max} elements")
        aggregate = _Aggregate(kind, want)
        if want:
            self._stack.append(aggregate)
            return _NONE_YET
        return _NONE_YET if kind == _ATTRIBUTE else _whole(aggregate)


def _long(kind: int, content: bytes) -> Reply:
    if kind == _BULK_ERROR:
        return ErrorReply(content)
    # Three characters name the format: "txt:Some string".
    if content[3:4] != b":":
        raise RespError("a verbatim string does not say its format")
    return content[4:]


def _whole(aggregate: _Aggregate) -> Reply:
    items = aggregate.items
    if aggregate.kind == _MAP:
        keys = items[::2]
        if not all(isinstance(key, bytes) for key in keys):
            raise RespError("a map has a key that is no string")
        return dict(zip(keys, items[1::2], strict=True))  # type: ignore[arg-type]
    if aggregate.kind == _PUSH:
        kind = items[0]
        if not isinstance(kind, bytes):
            raise RespError("a push does not begin with its kind")
        return Push(kind, items[1:])
    return items


def encode(*parts: bytes) -> bytes:
    """One command: its name and arguments, each any bytes."""
    pieces = [b"*%d\r\n" % len(parts)]
    pieces += [b"$%d\r\n%b\r\n" % (len(part), part) for part in parts]
    return b"".join(pieces)
