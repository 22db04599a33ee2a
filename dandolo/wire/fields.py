"""The field grammar that both halves of the wire share: header lines, lists, lengths, outgoing names and values.

Owns what a header line may look like (RFC 9110 §5, RFC 9112 §5) and remembers lines it has judged: the
same bytes always have the same outcome, so a line seen before costs one dictionary look-up. The memory
is bounded in entries and in the length of a line, and is thrown away whole when full. Measured for a head of
ten lines with one unseen line (`bench/micro/heads.py`): 3.1 µs here, 1.9 to 3 µs in httptools before the
checks that it leaves to its caller, 28 µs in h11; and there is no leniency here to be switched off.

It knows nothing of requests, responses or sockets.
"""

from __future__ import annotations

import re
from http import HTTPStatus

from dandolo.errors import InternalError

TCHAR = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
# field-line = field-name ":" OWS field-value OWS; a value holds SP, HTAB, VCHAR and obs-text (RFC 9110 §5.5).
_LINE = re.compile(rb"([" + TCHAR + rb"]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_TOKEN = re.compile(rb"[" + TCHAR + rb"]+")
_VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
LENGTH_DIGITS_MAX = 15

REMEMBERED_LINES_MAX = 4096
REMEMBERED_LINE_BYTES_MAX = 256

Field = tuple[bytes, bytes]
_remembered: dict[bytes, Field] = {}


class FieldError(ValueError):
    """A header line that is not a field line; the message says what was seen, never the value."""


def parse_line(line: bytes) -> Field:
    """Return (lower-case name, value without surrounding white space) of one line without its CRLF.

    Raises FieldError for folding, white space before the colon, an empty or non-token name and any
    control character (bare CR and LF among them).
    """
    match = _LINE.fullmatch(line)
    if match is None:
        raise FieldError(_why(line))
    field = (match[1].lower(), match[2].rstrip(b" \t"))
    if len(line) <= REMEMBERED_LINE_BYTES_MAX:
        if len(_remembered) >= REMEMBERED_LINES_MAX:
            _remembered.clear()
        _remembered[line] = field
    return field


def parse_lines(lines: list[bytes]) -> list[Field]:
    """Parse field lines in order. Raises FieldError for the first that is not one."""
    known = _remembered.get
    return [known(line) or parse_line(line) for line in lines]


def _why(line: bytes) -> str:
    if line[:1] in (b" ", b"\t"):
        return "a folded header line (RFC 9112 §5.2 forbids sending it)"
    name, colon, value = line.partition(b":")
    if not colon:
        return "a header line without a colon"
    if name != name.rstrip(b" \t"):
        return "white space between a header name and its colon"
    if not _TOKEN.fullmatch(name):
        return "a header name that is empty or holds a character outside RFC 9110's token"
    if b"\r" in value or b"\n" in value:
        return "a bare CR or LF in a header line"
    return "a control character in a header value"


def parse_length(value: bytes) -> int | None:
    """A Content-Length of 1 to 15 ASCII digits, or None for anything else.

    The test stands before int(), which would take '+5' and '5_0'; bytes.isdigit knows ASCII digits only.
    """
    return int(value) if value.isdigit() and len(value) <= LENGTH_DIGITS_MAX else None


def list_members(value: bytes) -> list[bytes]:
    """Members of a comma-separated list, lower-cased, without parameters, empty ones left out (RFC 9110 §5.6.1)."""
    members = (part.partition(b";")[0].strip(b" \t").lower() for part in value.split(b","))
    return [member for member in members if member]


STATUS_LINES = {int(status): b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


def status_line(status: int) -> bytes:
    """The status line of an answer; statuses without a registered phrase get an empty one."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def is_token(name: bytes) -> bool:
    """Whether `name` may be sent as a field name or a method."""
    return _TOKEN.fullmatch(name) is not None


def is_value(value: bytes) -> bool:
    """Whether `value` may be sent as a field value."""
    return _VALUE.fullmatch(value) is not None


def encode_fields(fields: list[Field]) -> bytes:
    """Field lines ready to send, each with its CRLF. The one place where a header we send is checked.

    Raises InternalError, and nothing is sent, when a name or value would break the framing (promise 18).
    """
    lines = []
    for name, value in fields:
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise InternalError("an outgoing header was not fit to be sent; nothing was sent")
        lines.append(b"%b: %b\r\n" % (name, value))
    return b"".join(lines)


def forget_lines() -> None:
    """Drop every remembered line (tests, memory pressure)."""
    _remembered.clear()


__all__ = [
    "Field",
    "FieldError",
    "encode_fields",
    "forget_lines",
    "is_token",
    "is_value",
    "list_members",
    "parse_length",
    "parse_line",
    "parse_lines",
    "status_line",
]
