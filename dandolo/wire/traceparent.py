"""The header `traceparent`: which trace a request belongs to, and who is its parent there.

    traceparent = version "-" trace-id "-" parent-id "-" trace-flags        (00-32 hex-16 hex-2 hex)

W3C *Trace Context*, §3.2: lower-case hexadecimal only, ids that are all zero are invalid, version ff is invalid; a
higher version may carry more after another dash and is read as far as it is known. An invalid header is treated as
none, and then `tracestate` is not to be used either (§3.3).
"""

from __future__ import annotations

import re
from typing import NamedTuple

_FORM = re.compile(rb"(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
SAMPLED = 0x01


class TraceParent(NamedTuple):
    """Ids in hexadecimal as they are written: 32 and 16 digits. `sampled`: the parent may have recorded it."""

    trace_id: bytes
    parent_id: bytes
    sampled: bool


def parse(value: bytes) -> TraceParent | None:
    """What a header's value says; None for what is no traceparent (also for two that were joined)."""
    match = _FORM.fullmatch(value)
    if match is None or (match[1] == b"00" and match[5] is not None):
        return None
    return TraceParent(match[2], match[3], bool(int(match[4], 16) & SAMPLED))


def encode(trace_id: bytes, span_id: bytes, sampled: bool) -> bytes:
    """A value of version 00."""
    return b"00-%b-%b-%b" % (trace_id, span_id, b"01" if sampled else b"00")
