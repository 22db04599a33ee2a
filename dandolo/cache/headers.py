"""What an answer says of the cache: `X-Cache`, `Age` (RFC 9111 §5.1) and `Cache-Status` (RFC 9211)."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache


class Outcome(Enum):
    """Where an answer came from."""

    HIT = "HIT"
    MISS = "MISS"
    COLLAPSED = "COLLAPSED"
    """Another call's flight brought it."""
    SEMANTIC = "SEMANTIC"
    """Kept for a request that means the same."""
    STALE = "STALE"
    BYPASS = "BYPASS"


CACHE = "dandolo"
SECONDS_MAX = 2**31
"""RFC 9111 §1.2.2: a greater number of seconds is to be taken as this one."""


def kept(outcome: Outcome, tier: str, age_s: float, ttl_s: float) -> bytes:
    """Lines for a kept answer: HIT, SEMANTIC or STALE. `tier` is "l1", "l2", "l3" or "peer".

    `ttl_s` is what is left of its life, negative when it is stale; both are cut to whole seconds.
    """
    detail = "semantic" if outcome is Outcome.SEMANTIC else tier
    return b"X-Cache: %b\r\nAge: %d\r\nCache-Status: %b; hit; ttl=%d; detail=%b\r\n" % (
        outcome.value.encode(),
        min(max(0, int(age_s)), SECONDS_MAX),
        CACHE.encode(),
        max(-SECONDS_MAX, min(int(ttl_s // 1), SECONDS_MAX)),
        detail.encode(),
    )


@lru_cache(256)
def forwarded(outcome: Outcome, reason: str = "", *, asked: bool = False, stored: bool = False) -> bytes:
    """Lines for an answer of a provider: MISS, COLLAPSED or BYPASS.

    `reason` says why the cache was passed by, `asked` that the request wanted no kept answer, `stored` that this
    one is being kept (as far as is known when the head is sent).
    """
    if outcome is Outcome.BYPASS:
        forward = "fwd=bypass"
    else:
        forward = "fwd=request" if asked else "fwd=uri-miss"
    parts = [CACHE, forward]
    if stored:
        parts.append("stored")
    if outcome is Outcome.COLLAPSED:
        parts.append("collapsed")
    if reason:
        # RFC 9651 §3.3.3: a string is printable ASCII, its quotes and backslashes escaped.
        plain = "".join(letter for letter in reason if " " <= letter <= "~")
        parts.append('detail="' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"')
    return f"X-Cache: {outcome.value}\r\nCache-Status: {'; '.join(parts)}\r\n".encode()
