"""Sizes and durations as they are written in the file: "64MiB", "500ms".

A unit is always written out, so that nobody has to know whether 30 means seconds or milliseconds; the
exceptions are plain integers for sizes (bytes) and the number 0 for durations.
"""

from __future__ import annotations

import re
from typing import Final

from dandolo.config.problem import Unfit, quote

_SIZE_UNITS: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

# Digits are spelled out: \d and int() take other scripts' digits too.
_SIZE = re.compile(r"([0-9]{1,15})\s?([A-Za-z]{1,4})")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s?([A-Za-z]{1,4})")

SIZE_FORM: Final = 'a whole number of bytes, or a string such as "64MiB" (B, KiB, MiB, GiB, TiB)'
DURATION_FORM: Final = 'a string such as "500ms", "10s", "5m", "1h" or "1d"'


def describe(value: object) -> str:
    """A value's kind in TOML's words: what to say of a value that must not be shown."""
    if isinstance(value, bool):
        return "a boolean"
    for kind, words in (
        (str, "a string"),
        (int, "an integer"),
        (float, "a float"),
        (list, "an array"),
        (dict, "a table"),
    ):
        if isinstance(value, kind):
            return words
    return "a date or time"


def show(value: object) -> str:
    """A value for an error text: short strings quoted, numbers as they are, the rest by kind.

    A long string in the place of a number is most likely something pasted into the wrong line, and may
    be a key: it is not shown.
    """
    if isinstance(value, str):
        return quote(value) if len(value) <= 24 else f"a string of {len(value)} characters"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        # Python refuses to print an int of more than 4,300 digits.
        return str(value) if abs(value) < 1 << 80 else "a very large integer"
    if isinstance(value, float):
        return repr(value)
    return describe(value)


def size(value: object) -> int:
    """Bytes of "8KiB" or 8192. Raises Unfit for anything else, negative numbers included."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < 1 << 63:
            raise Unfit(f"observed {show(value)}, expected {SIZE_FORM}")
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        unit = _SIZE_UNITS.get(match[2])
        if unit is not None:
            return int(match[1]) * unit
        near = next((name for name in _SIZE_UNITS if name[0].lower() == match[2][0].lower()), "MiB")
        raise Unfit(f'unknown unit in {show(value)}: write "{match[1]}{near}" (B, KiB, MiB, GiB, TiB)')
    raise Unfit(f"observed {show(value)}, expected {SIZE_FORM}")


def duration(value: object) -> float:
    """Seconds of "500ms", "10s", "1h" or 0. Raises Unfit for anything else, bare numbers included."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if value == 0:
            return 0.0
        raise Unfit(f'observed {show(value)} without a unit: write it as a string, "{show(value)}s" for seconds')
    if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
        unit = _DURATION_UNITS.get(match[2])
        if unit is None:
            raise Unfit(f"unknown unit in {show(value)}: expected ms, s, m, h or d")
        # Milliseconds are divided, so that "500ms" is exactly the float that 0.5 is.
        return float(match[1]) / 1000 if match[2] == "ms" else float(match[1]) * unit
    raise Unfit(f"observed {show(value)}, expected {DURATION_FORM}")


def show_size(count: int) -> str:
    """The shortest exact form: 65536 is "64KiB", 1000 is "1000B"."""
    for name, unit in reversed(_SIZE_UNITS.items()):
        if count and count % unit == 0:
            return f"{count // unit}{name}"
    return f"{count}B"


def show_duration(seconds: float) -> str:
    """The form of the largest unit that keeps a whole number: 0.5 is "500ms", 90 is "90s"."""
    if seconds and seconds < 1:
        return f"{seconds * 1000:g}ms"
    for name in ("d", "h", "m"):
        if seconds and seconds % _DURATION_UNITS[name] == 0:
            return f"{seconds / _DURATION_UNITS[name]:g}{name}"
    return f"{seconds:.10g}s"
