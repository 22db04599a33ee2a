"""Deadlines by sweeping: one timer for everything that can time out, instead of one timer each.

Whatever has a `deadline` (monotonic seconds; infinity for none) is entered once and looked at every
`PERIOD_S`. Moving a deadline is then a plain assignment, which a relay does for every chunk. A deadline is
therefore kept to within PERIOD_S, which is far below the smallest limit there is (1 s).
"""

from __future__ import annotations

import logging
import math
from typing import Protocol

_log = logging.getLogger("dandolo")

PERIOD_S = 0.1
NEVER = math.inf


class Expiring(Protocol):
    """Something with a deadline."""

    deadline: float

    def expire(self, now: float) -> None:
        """Called once `deadline` has passed; must move or clear it."""


class Sweep:
    """The set of things that can expire."""

    __slots__ = ("items", "now")

    def __init__(self, now: float = 0.0) -> None:
        self.items: set[Expiring] = set()
        self.now = now
        """The time of the last tick, monotonic seconds: good enough for deadlines of seconds, and free to read."""

    def tick(self, now: float) -> None:
        """Expire everything whose deadline is at or before `now` (monotonic seconds)."""
        self.now = now
        for item in [item for item in self.items if item.deadline <= now]:
            # An earlier one may have ended this one.
            if item in self.items and item.deadline <= now:
                try:
                    item.expire(now)
                except Exception:
                    # One that fails must not keep the others from their deadlines.
                    item.deadline = NEVER
                    _log.exception("a deadline could not be handled")
