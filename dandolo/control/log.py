"""The lines of the log: one for each finished request, and the program's own, in one of three forms.

`json` and `logfmt` are for machines, `text` is for people on a terminal. A line is one line whatever a caller
or a provider put into its values: whoever makes a record cuts them, and should one be forgotten it is cut
here at 256 bytes, in JSON as soon as the line is long; and each is escaped. There are no prompts in a record
and so none here; keys appear by name only. Writing is `logwriter`'s business.
"""

from __future__ import annotations

import logging
import math
import re
import traceback
from types import TracebackType
from typing import Literal

import msgspec

from dandolo.clock import timestamp
from dandolo.record import Record
from dandolo.values import VALUE_BYTES_MAX, cut, escaped, fit

Form = Literal["json", "logfmt", "text"]

MESSAGE_BYTES_MAX = 2048
"""Of one message of the program's own. Values that were put into it were cut at 256 bytes each before."""
TRACE_BYTES_MAX = 2048
LINE_BYTES_SURE = 1024
"""A JSON line of a record no longer than this is not looked at again: its values were cut when it was made."""
FRAMES_MAX = 16
CAUSES_MAX = 4


class _Said(msgspec.Struct, omit_defaults=True, gc=False):
    """A line of the program's own."""

    time: str
    level: str
    message: str
    error: str = ""
    trace: str = ""


_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines


def format_record(record: Record, form: Form) -> bytes:
    """The line of a finished request, with its line end.

    Durations are in milliseconds with three decimals (a JSON number drops trailing zeros), cost in USD. Fields
    that are empty or zero are left out, except status and those durations that are there; a cost of zero is
    said, an unknown one is not. A number that is none (NaN, infinite) is null in JSON, left out elsewhere.
    """
    if form == "json":
        return _json(record)
    return _logfmt(record) if form == "logfmt" else _text(record)


def format_records(records: list[Record], form: Form) -> bytes:
    """The lines of several requests. For JSON one encoding of all of them, when none needs a closer look."""
    if form == "json":
        try:
            encoded = _encode_lines(records)
        except UnicodeEncodeError:
            encoded = b""
        if encoded.isascii() and b"\x7f" not in encoded and 0 < max(map(len, encoded.split(b"\n"))) <= LINE_BYTES_SURE:
            return encoded
    return b"".join([format_record(record, form) for record in records])


def _json(line: Record | _Said) -> bytes:
    try:
        encoded = _encode(line)
        if len(encoded) > LINE_BYTES_SURE and isinstance(line, Record):
            encoded = _encode(_cut(line))
    except UnicodeEncodeError:  # a lone surrogate
        encoded = _encode(_cut(line))
    if not encoded.isascii() or b"\x7f" in encoded:
        # JSON escapes C0 by itself; what else is not printable can stand inside strings only.
        encoded = escaped(encoded.decode()).encode()
    return encoded + b"\n"


def _cut(line: Record | _Said) -> Record | _Said:
    """A copy (the record is not ours alone) with every text cut."""
    bytes_max = _bytes_max(line)
    texts = {name: value for name in line.__struct_fields__ if isinstance(value := getattr(line, name), str)}
    return msgspec.structs.replace(line, **{name: cut(value, bytes_max) for name, value in texts.items()})


def _bytes_max(line: Record | _Said) -> int:
    return VALUE_BYTES_MAX if isinstance(line, Record) else MESSAGE_BYTES_MAX


# -- logfmt ----------------------------------------------------------------------------------------------------

_BARE = re.compile(r"[!#-<>-\[\]-~]+")
"""What needs no quotes: printable ASCII but space, quote, equals sign and backslash."""


def _logfmt(line: Record | _Said) -> bytes:
    parts: list[str] = []
    bytes_max = _bytes_max(line)
    for name in line.__struct_fields__:
        value = getattr(line, name)
        if value is None or not (math.isfinite(value) if isinstance(value, float) else value):
            continue
        parts.append(f"{name}={_logfmt_value(name, value, bytes_max)}")
    return " ".join(parts).encode() + b"\n"


def _logfmt_value(name: str, value: object, bytes_max: int) -> str:
    if isinstance(value, str):
        value = cut(value, bytes_max)
        if _BARE.fullmatch(value):
            return value
        return '"' + escaped(value.replace("\\", "\\\\").replace('"', '\\"')) + '"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _usd(value) if name == "cost_usd" else f"{value:.3f}"
    return str(value)


def _usd(value: float) -> str:
    """Dollars with as many decimals as they have, nine at most, never an exponent."""
    return f"{value:.9f}".rstrip("0").rstrip(".")


# -- text ------------------------------------------------------------------------------------------------------


def _text(line: Record) -> bytes:
    """time status method/endpoint model → provider duration (first token) tokens cost code key."""
    parts = [line.time, str(line.status), f"{fit(line.method)}/{fit(line.endpoint)}"]
    if line.model:
        parts.append(fit(line.model))
    if line.provider:
        parts.append(f"→ {fit(line.account or line.provider)}")
        if line.upstream_model and line.upstream_model != line.model:
            parts.append(f"as {fit(line.upstream_model)}")
    duration = line.duration_ms or 0.0
    if math.isfinite(duration):
        parts.append(f"{duration:.3f} ms")
    if line.first_token_ms is not None and math.isfinite(line.first_token_ms):
        parts.append(f"(first token {line.first_token_ms:.3f})")
    if line.input_tokens or line.output_tokens:
        about = "~" if line.estimated else ""
        parts.append(f"{about}{line.input_tokens}+{line.output_tokens} tokens")
    if line.cost_usd is not None and math.isfinite(line.cost_usd):
        parts.append(f"${_usd(line.cost_usd)}")
    if line.attempts > 1:
        parts.append(f"{line.attempts} attempts")
    if line.code:
        parts.append(fit(line.code))
    parts.append(fit(line.id))
    return " ".join(parts).encode() + b"\n"


# -- the program's own lines -----------------------------------------------------------------------------------


def format_message(unix_s: float, level: str, message: str, form: Form, *, error: str = "", trace: str = "") -> bytes:
    """A line of the program's own. `level` is a word such as "warning", `error` an exception, `trace` where."""
    said = _Said(
        timestamp(unix_s),
        level,
        cut(message, MESSAGE_BYTES_MAX),
        cut(error, MESSAGE_BYTES_MAX),
        cut(trace, TRACE_BYTES_MAX),
    )
    if form == "json":
        return _json(said)
    if form == "logfmt":
        return _logfmt(said)
    line = f"{said.time} {said.level}: {escaped(said.message)}"
    if said.error:
        line += f": {escaped(said.error)}"
    if said.trace:
        line += "".join(f"\n    {escaped(frame)}" for frame in said.trace.split(" < "))
    return line.encode() + b"\n"


class LineFormatter(logging.Formatter):
    """Makes a line of a `LogRecord`. Of a traceback it shows places, never source, locals or arguments."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self._form: Form = form

    def format(self, record: logging.LogRecord) -> str:
        """The line without its end."""
        return self.line(record)[:-1].decode()

    def line(self, record: logging.LogRecord) -> bytes:
        """The line with its end. Never raises for a message whose arguments do not fit."""
        error = trace = ""
        if record.exc_info and record.exc_info[1] is not None:
            error, trace = _told(record.exc_info[1]), _places(record.exc_info[2])
        return format_message(
            record.created, record.levelname.lower(), _message(record), self._form, error=error, trace=trace
        )


def _message(record: logging.LogRecord) -> str:
    message = str(record.msg)
    args = record.args
    if not args:
        return message
    try:
        if isinstance(args, tuple):
            return message % tuple(_short(value) for value in args)
        return message % {name: _short(value) for name, value in args.items()}
    except Exception:
        return message


def _short(value: object) -> object:
    if isinstance(value, (int, float)):
        return value
    return cut(str(value))


def _told(error: BaseException) -> str:
    """The error and what caused it, outermost first: `Type: text ← Type: text`."""
    told: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(told) < CAUSES_MAX:
        try:
            text = cut(str(cause))
        except Exception:
            text = ""
        told.append(f"{type(cause).__name__}: {text}" if text else type(cause).__name__)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return " ← ".join(told)


def _places(trace: TracebackType | None) -> str:
    """Where it was raised, innermost first: `file:line function < file:line function`."""
    walked = [(frame.f_code.co_filename, number, frame.f_code.co_name) for frame, number in traceback.walk_tb(trace)]
    return " < ".join(
        f"{'/'.join(path.rsplit('/', 3)[-3:])}:{number} {name}" for path, number, name in reversed(walked[-FRAMES_MAX:])
    )
