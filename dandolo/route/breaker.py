"""The circuit breaker of one account and model. Closed means calls flow, open means they do not.

It opens on three failures in a row, or when at least half of at least eight calls within ten seconds
failed: the count alone never trips on a brownout, the window never fills at three calls a second. Open
time doubles from one second to fifteen, spread by a fifth either way; then one call at a time probes it, and
two successes close it. A probe that never comes back is given up after its own deadline, so that it cannot
hold the breaker half open for ever.

Background probes, where there is a prober, spare users the trial: while a probe fails the open time is
extended beyond the next one, a probe that succeeds ends it. They never close it: only real calls do.
Time is monotonic seconds and always an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

FAILURES_MAX = 3
WINDOW_S = 10.0
WINDOW_CALLS_MIN = 8
WINDOW_CALLS_MAX = 256
FAILED_SHARE = 0.5
OPEN_FIRST_S = 1.0
OPEN_MAX_S = 15.0
SPREAD = 0.2
SUCCESSES_TO_CLOSE = 2
PROBE_S = 30.0
PROBE_EVERY_S = 2.0
PROBE_EXTENDS_S = 3.0
"""A failed background probe keeps it open until the next one has had its time."""


class Breaker:
    """One breaker. `random` gives numbers in [0, 1) (a test passes its own).

    `epoch` changes whenever it opens, closes or admits a probe. A caller that notes it right after `admits`
    and hands it back with the outcome is believed only while it is still the same: a call from before the
    breaker opened then neither closes it nor makes room for a second probe.
    """

    __slots__ = (
        "_calls", "_consecutive", "_cuts", "_open_until", "_probe_due", "_probe_until", "_random", "_successes",
        "_trips", "epoch", "reason", "row_since", "state",
    )  # fmt: skip

    def __init__(self, random: Callable[[], float]) -> None:
        self.state = "closed"
        self.epoch = 0
        self._random = random
        self._consecutive = 0
        self.row_since = 0.0
        """When the first failure of the row that has not ended was told, 0 without one."""
        self._cuts = 0
        self._calls: deque[tuple[float, bool]] = deque(maxlen=WINDOW_CALLS_MAX)
        self._open_until = 0.0
        self._probe_until = 0.0
        self._trips = 0
        self._successes = 0
        self._probe_due = 0.0
        self.reason = ""
        """Why it opened last, in words."""

    def admits(self, now: float) -> bool:
        """Whether a call may go now. In half-open, True makes the caller the probe."""
        if self.state == "closed":
            return True
        if self.state == "open":
            if now < self._open_until:
                return False
            self.state = "half-open"
            self._successes = 0
            self._probe_until = 0.0
        if now < self._probe_until:
            return False
        self._probe_until = now + PROBE_S
        self.epoch += 1
        return True

    def retry_after_s(self, now: float) -> float:
        """Seconds until it may admit a call again."""
        if self.state == "open":
            return max(0.0, self._open_until - now)
        return max(0.0, self._probe_until - now) if self.state == "half-open" else 0.0

    def answered(self, now: float, epoch: int | None = None, stale: bool = False) -> None:
        """Content has begun to come; the call's end is reported apart.

        It ends a row of failures and counts in the window now: were it to wait for the end, the failures of a
        busy provider, which come fast, would outnumber its successes, which take their time. `stale`: the call
        was sent before the row began, and all that were sent since have failed: it tells of better times.
        """
        if (epoch is None or epoch == self.epoch) and self.state == "closed":
            if not stale:
                self._consecutive = 0
                self.row_since = 0.0
            self._calls.append((now, True))

    def succeeded(self, now: float, epoch: int | None = None, answered: bool = True) -> None:
        """A call ended well. `answered` False: that it answered was told when it did (`answered`).

        Else the ends of long streams, begun in better times, would end a row of failures again and again.
        """
        if epoch is not None and epoch != self.epoch:
            return
        self._cuts = 0
        if self.state == "closed":
            if answered:
                self._consecutive = 0
                self.row_since = 0.0
                self._calls.append((now, True))
        elif self.state == "half-open":
            self._probe_until = 0.0
            self._successes += 1
            if self._successes >= SUCCESSES_TO_CLOSE:
                self.state = "closed"
                self.epoch += 1
                self._trips = 0
                self._calls.clear()

    def failed(self, now: float, epoch: int | None = None, answered: bool = False) -> None:
        """A call failed in a way that speaks against the provider. `answered`: after content had come (a cut).

        Cuts are a row of their own: content ends a row of failures, and every stream that is cut had some.
        """
        if epoch is not None and epoch != self.epoch:
            return
        if answered:
            self._cuts += 1
        else:
            self._consecutive += 1
            if self._consecutive == 1:
                self.row_since = now
        if self.state == "half-open":
            self._open(now, "a trial call failed")
            return
        if self.state == "open":
            return
        self._calls.append((now, False))
        if self._consecutive >= FAILURES_MAX:
            self._open(now, f"{self._consecutive} failures in a row")
        elif self._cuts >= FAILURES_MAX:
            self._open(now, f"{self._cuts} streams cut in a row")
        elif self._window_bad(now):
            failed = sum(not ok for _, ok in self._calls)
            self._open(now, f"{failed} of {len(self._calls)} calls failed within {WINDOW_S:g} s")

    def abandoned(self, epoch: int | None = None) -> None:
        """A call ended without saying anything (the client left): a probe makes room for the next."""
        if epoch is not None and epoch != self.epoch:
            return
        self._probe_until = 0.0

    def shut(self, now: float, until: float, reason: str) -> None:
        """Keep it open until a known time: no credit (402), a key's own limit, Venice's error budget."""
        if self.state != "open":
            self._open(now, reason)
        self.reason = reason
        self._open_until = max(self._open_until, until)
        self._probe_due = max(self._probe_due, until)

    def probe_due(self, now: float) -> bool:
        """Whether a background probe is to be sent now: every PROBE_EVERY_S while it is open.

        True obliges the caller to send one and to hand its result to `probed`.
        """
        if self.state != "open" or now < self._probe_due:
            return False
        self._probe_due = now + PROBE_EVERY_S
        return True

    def probed(self, now: float, well: bool) -> None:
        """A background probe has come back. `well`: the provider answered, with no 5xx."""
        if self.state != "open":
            return
        if well:
            self._open_until = min(self._open_until, now)
        else:
            self._open_until = max(self._open_until, now + PROBE_EXTENDS_S)

    def until(self, now: float) -> float | None:
        """When it may admit a call again (monotonic seconds), None while it admits them (explain)."""
        wait_s = self.retry_after_s(now)
        return now + wait_s if wait_s else None

    def _window_bad(self, now: float) -> bool:
        while self._calls and self._calls[0][0] < now - WINDOW_S:
            self._calls.popleft()
        if len(self._calls) < WINDOW_CALLS_MIN:
            return False
        failed = sum(not ok for _, ok in self._calls)
        return failed >= FAILED_SHARE * len(self._calls)

    def _open(self, now: float, reason: str) -> None:
        length = min(OPEN_MAX_S, OPEN_FIRST_S * 2**self._trips)
        self._trips = min(self._trips + 1, 8)
        self.state = "open"
        self.epoch += 1
        length *= 1 - SPREAD + 2 * SPREAD * self._random()
        self._open_until = now + length
        self._probe_until = 0.0
        # The first probe comes before the first trial, else a user would be it.
        self._probe_due = now + min(PROBE_EVERY_S, length / 2)
        self._consecutive = 0
        self.row_since = 0.0
        self._cuts = 0
        self.reason = reason
        self._calls.clear()
