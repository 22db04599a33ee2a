"""Server-sent events without I/O: where events end in a byte stream, what an event says, how ours are written.

WHATWG HTML, "Server-sent events": lines end in CR, LF or CRLF; a blank line ends an event; a line that
starts with a colon is a comment; one space after the colon of a field is dropped; a BOM may stand at the
very start. Everything here works on bytes after their lines are split, so a cut inside a UTF-8 sequence
cannot matter: the bytes that separate are never part of one.

`EventStream` only finds boundaries, so that complete events can be passed on before anybody looks into
them; `parse` looks into one.
"""

from __future__ import annotations

import re

BOM = b"\xef\xbb\xbf"
DONE_EVENT = b"data: [DONE]\n\n"

# A line end followed by an empty line. '\r' followed by '\n' is one line end, never two.
_BOUNDARY = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_ENDS = (b"\n\n", b"\n\r\n", b"\r\r", b"\n\r", b"\r\r\n")
_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventStream:
    """Splits a stream at event boundaries.

    `push` returns the bytes through the last boundary seen, together with what was held back before;
    `tail` is the unfinished rest, which the caller bounds.
    """

    __slots__ = ("tail",)

    def __init__(self) -> None:
        self.tail = b""

    @property
    def tail_bytes(self) -> int:
        """Bytes held because their event is unfinished."""
        return len(self.tail)

    def push(self, data: bytes) -> bytes:
        """Add bytes; return all complete events now available (b"" when there is none)."""
        tail = self.tail
        if not tail and data.endswith(b"\n\n"):
            return data
        # A boundary may straddle the pieces: look again at the last three bytes of the tail, no more,
        # so that an event that comes byte by byte costs linear time.
        start = max(0, len(tail) - 3)
        if tail:
            data = tail + data
        end = data.rfind(b"\n\n", start) + 2
        if data.find(b"\r", start) >= 0:
            for match in _BOUNDARY.finditer(data, start):
                end = max(end, match.end())
        if end < 2:
            self.tail = data
            return b""
        self.tail = data[end:]
        return data[:end]

    def take_tail(self) -> bytes:
        """Give up the unfinished rest and return it."""
        tail, self.tail = self.tail, b""
        return tail


def split(complete: bytes) -> list[bytes]:
    """Cut complete events apart; each piece keeps its terminating blank line. Joined they are `complete` again."""
    if b"\r" not in complete:
        pieces = complete.split(b"\n\n")
        last = pieces.pop()
        events = [piece + b"\n\n" for piece in pieces]
        if last:
            events.append(last)
        return events
    events = []
    at = 0
    for match in _BOUNDARY.finditer(complete):
        if match.start() < at:
            continue
        events.append(complete[at : match.end()])
        at = match.end()
    if at < len(complete):
        events.append(complete[at:])
    return events


def ends_event(content: bytes) -> bool:
    """Whether part of a stream ends where an event does: a line's end, then an empty line."""
    return content.endswith(_ENDS)


def parse(event: bytes) -> tuple[bytes, bytes | None]:
    """Event type (b"" when none is given) and data of one event; data is None when it has no data line.

    Several data lines are joined with LF, as the specification says.
    """
    # The common form first: one data line and nothing else.
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return b"", event[6:-2]
    if event.startswith(BOM):
        event = event[3:]
    name = b""
    data: list[bytes] = []
    for line in _LINE_END.split(event):
        if not line or line.startswith(b":"):
            continue
        field, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return name, b"\n".join(data) if data else None


def field_value(event: bytes, wanted: bytes) -> bytes | None:
    """The value of the first field `wanted` of an event (llama.cpp once said its errors in `error:`)."""
    for line in _LINE_END.split(event.removeprefix(BOM)):
        field, colon, value = line.partition(b":")
        if colon and field == wanted:
            return value[1:] if value.startswith(b" ") else value
    return None


def is_comment(event: bytes) -> bool:
    """Whether an event holds only comments and blank lines: a keep-alive, no payload."""
    return all(not line or line.startswith(b":") for line in _LINE_END.split(event.removeprefix(BOM)))


def encode(data: bytes, event: bytes = b"") -> bytes:
    """One event of our own around one line of JSON. `event` comes from a fixed set, never from a caller."""
    assert b"\n" not in data
    assert b"\r" not in data
    if event:
        return b"event: %b\ndata: %b\n\n" % (event, data)
    return b"data: %b\n\n" % data
