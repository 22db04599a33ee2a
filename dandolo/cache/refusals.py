"""Refusals that would be given again: a 400 or 404 of a provider for the very same request, for a few seconds.

A client in a loop then costs nobody a call. Never 401, 403, 429 or 5xx: they speak of a moment or of an account.
Kept in this process only; a stream and a plain call are refused for themselves, since a provider may take one and
not the other.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from dandolo.errors import GatewayError, UpstreamError

STATUSES = frozenset((400, 404))
ENTRIES_MAX = 1_000
_PASSING = (
    "rate limit", "rate_limit", "quota", "overload", "capacity", "timeout", "timed out", "temporar", "unavailable",
    "try again", "auth", "billing", "credit", "loading",
)  # fmt: skip
"""Words in a 400 or 404 that speak of a moment after all (providers wrap each other's errors)."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a provider said, and when, in seconds of the caller's clock."""

    error: UpstreamError
    created: float
    expires: float


class Refusals:
    """The last ENTRIES_MAX refusals."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[bytes, bool], Refusal] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes, stream: bool, now: float) -> Refusal | None:
        """The refusal of that request, while it holds."""
        if not self._kept:
            return None
        found = self._kept.get((key, stream))
        if found is not None and now >= found.expires:
            del self._kept[key, stream]
            return None
        return found

    def put(self, key: bytes, stream: bool, error: GatewayError, now: float, ttl_s: float) -> bool:
        """Keep a refusal if it would be given again; whether it is kept."""
        if not lasting(error) or ttl_s <= 0:
            return False
        copy = UpstreamError(
            error.message, status=error.status, type=error.type, code=error.code, param=error.param, retry=error.retry
        )
        copy.counts = False
        self._kept[key, stream] = Refusal(copy, now, now + ttl_s)
        if len(self._kept) > ENTRIES_MAX:
            self._kept.popitem(last=False)
        return True

    def clear(self) -> None:
        """Forget all: after any purge, since none of them lives long enough to be worth telling apart."""
        self._kept.clear()


def lasting(error: GatewayError) -> bool:
    """Whether the same request would be refused again."""
    if not isinstance(error, UpstreamError) or error.status not in STATUSES or error.retry_after_s is not None:
        return False
    text = f"{error.code} {error.message}".lower()
    return not any(word in text for word in _PASSING)
