"""When to leave a server alone: a breaker for calls, a backoff for connections. Pure: time is an argument.

The breaker opens on five failures within ten seconds and stays open for five; then one call probes. A
provider's breaker (`route.breaker`) weighs shares and streaks, since refusing a provider costs an answer;
refusing a cache costs a miss, so here the count is enough.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

FAILURES_MAX: Final = 5
WINDOW_S: Final = 10.0
OPEN_S: Final = 5.0
PROBE_S: Final = 1.0
"""After which a probe that said nothing makes room for the next."""

BACKOFF_FIRST_S: Final = 0.05
BACKOFF_MAX_S: Final = 2.0
STABLE_S: Final = 10.0
"""A connection that lived this long ends a row of attempts; one that is taken and dropped again does not."""


class Breaker:
    """Closed means calls flow. `closed` may be read instead of asking `admits`: True answers for it."""

    __slots__ = ("_failures", "_open_until", "_probe_until", "closed", "trips")

    def __init__(self) -> None:
        self.closed = True
        self.trips = 0
        """How often it opened."""
        self._failures: deque[float] = deque(maxlen=FAILURES_MAX)
        self._open_until = 0.0
        self._probe_until = 0.0

    def admits(self, now: float) -> bool:
        """Whether a call may go now. While it is not closed, True makes the caller the probe."""
        if self.closed:
            return True
        if now < self._open_until or now < self._probe_until:
            return False
        self._probe_until = now + PROBE_S
        return True

    def failed(self, now: float) -> None:
        """A call got no answer in time, or none that it can use because of the server's state."""
        if not self.closed:
            if self._probe_until:
                self._open(now)
            return
        failures = self._failures
        failures.append(now)
        if len(failures) == FAILURES_MAX and now - failures[0] <= WINDOW_S:
            self._open(now)

    def succeeded(self) -> None:
        """A call was answered in time. Closes it when that was a probe."""
        if not self.closed and self._probe_until:
            self.closed = True
            self._probe_until = 0.0
            self._failures.clear()

    def renewed(self) -> None:
        """There is a new connection, logged in: the next call may probe at once."""
        self._open_until = self._probe_until = 0.0

    def state(self, now: float) -> str:
        """ "closed", "open" or "half-open"."""
        if self.closed:
            return "closed"
        return "open" if now < self._open_until else "half-open"

    def _open(self, now: float) -> None:
        self.closed = False
        self.trips += 1
        self._open_until = now + OPEN_S
        self._probe_until = 0.0
        self._failures.clear()


class Backoff:
    """How long to wait before connecting again: doubling to BACKOFF_MAX_S, halved at most by chance, so that the
    workers of many hosts do not come back in step. `random` gives numbers in [0, 1)."""

    __slots__ = ("_random", "attempts")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self.attempts = 0
        """Waits since a connection was stable."""

    def wait_s(self) -> float:
        """Seconds to wait now."""
        longest = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(self.attempts, 16))
        self.attempts += 1
        return longest * (0.5 + 0.5 * self._random())

    def lived(self, seconds: float) -> None:
        """A connection that was logged in has ended after `seconds`."""
        if seconds >= STABLE_S:
            self.attempts = 0
