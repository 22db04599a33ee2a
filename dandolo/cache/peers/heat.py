"""Which answers are asked for so often that all peers should have them. Pure: time is an argument."""

from __future__ import annotations

from typing import Final

HOT_HITS: Final = 8
"""More than that many within WINDOW_S."""
WINDOW_S: Final = 60.0
KEYS_MAX: Final = 1024


class Heat:
    """Counts how often each key was asked for in its current minute. Of more than KEYS_MAX keys all are forgotten."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[bytes, tuple[float, int]] = {}

    def asked(self, key: bytes, now: float) -> bool:
        """Count; True when this one makes it hot, once in each of its minutes."""
        counts = self._counts
        began, count = counts.get(key, (now, 0))
        if now - began >= WINDOW_S:
            began, count = now, 0
        elif not count and len(counts) >= KEYS_MAX:
            counts.clear()
        counts[key] = began, count + 1
        return count == HOT_HITS
