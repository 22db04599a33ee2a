"""Time as text. (Durations come from a monotonic clock and are arguments wherever they decide something.)"""

from __future__ import annotations

import time

_second: tuple[int, str] = (-1, "")
_MILLIS = tuple(f".{ms:03d}Z" for ms in range(1000))


def timestamp(unix_s: float) -> str:
    """Unix time as ISO 8601 in UTC with milliseconds: 2026-01-31T23:59:59.999Z."""
    global _second
    second = int(unix_s)
    known = _second
    if known[0] != second:
        # Assigned whole, so that another thread sees the old pair or the new one.
        known = _second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
    return known[1] + _MILLIS[int((unix_s - second) * 1000)]
