"""Slots: how many calls one account carries at a time, and who waits for the next one.

Synchronous and without I/O: `enter` says whether the caller may go, `leave` hands the slot to whoever has
waited longest. The queue is bounded; its overflow is a refusal with a wait computed from how fast slots
have been coming free. Whoever holds a slot finds a connection or dials one, so this is the only queue
(promise 33).
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from dandolo.errors import Refusal

WAITERS_MAX = 1024
RETRY_AFTER_MAX_S = 30.0


class Ticket(Protocol):
    """A place in the queue: `set(True)` grants the slot. `done` is true once granted or given up."""

    done: bool

    def set(self, value: bool) -> None:
        """Grant the slot."""


class Slots:
    """Calls in flight of one account, at most `limit`, with a FIFO queue of at most `waiters_max`."""

    __slots__ = ("_freed", "_granting", "_leave_interval_s", "_left_at", "_waiters", "_waiters_max", "in_use", "limit")

    def __init__(self, limit: int, waiters_max: int = WAITERS_MAX) -> None:
        self.limit = limit
        self.in_use = 0
        self._waiters: deque[Ticket] = deque()
        self._waiters_max = waiters_max
        self._left_at = 0.0
        self._leave_interval_s = 0.0
        self._granting = False
        self._freed = 0

    @property
    def waiting(self) -> int:
        """Callers in the queue."""
        return len(self._waiters)

    def enter(self) -> bool:
        """Take a slot if one is free. True obliges the caller to call `leave` once."""
        if self.in_use >= self.limit:
            return False
        self.in_use += 1
        return True

    def queue(self, ticket: Ticket) -> None:
        """Wait for a slot. Raises Refusal (503, with Retry-After) when the queue is full."""
        if len(self._waiters) >= self._waiters_max:
            raise Refusal(
                f"all {self.limit} slots of the provider are in use and {len(self._waiters)} calls wait already; "
                "try again later",
                retry_after_s=self.retry_after_s(),
            )
        self._waiters.append(ticket)

    def withdraw(self, ticket: Ticket) -> None:
        """Stop waiting. A ticket that was granted meanwhile must `leave` instead."""
        try:
            self._waiters.remove(ticket)
        except ValueError:
            pass

    def leave(self, now: float) -> None:
        """Give a slot back: to the longest waiter, or to the free ones."""
        if not self._waiters and not self._left_at:
            self.in_use -= 1
            assert self.in_use >= 0, "a slot was given back twice"
            return
        interval = min(now - self._left_at, RETRY_AFTER_MAX_S) if self._left_at else 0.0
        self._leave_interval_s += 0.1 * (interval - self._leave_interval_s)
        self._left_at = now if self._waiters else 0.0
        if not self._waiters:
            self.in_use -= 1
            assert self.in_use >= 0, "a slot was given back twice"
            return
        self._freed += 1
        if not self._granting:
            self._grant()

    def _grant(self) -> None:
        """Hand freed slots on. A grant runs its caller at once, who may leave at once: that must not nest."""
        self._granting = True
        try:
            while self._freed and self._waiters:
                ticket = self._waiters.popleft()
                if not ticket.done:
                    self._freed -= 1
                    ticket.set(True)
        finally:
            self._granting = False
            self.in_use -= self._freed
            self._freed = 0

    def retry_after_s(self) -> float:
        """Seconds until the queue as it stands has drained, between 1 and RETRY_AFTER_MAX_S."""
        return max(1.0, min(RETRY_AFTER_MAX_S, self._leave_interval_s * (len(self._waiters) + 1)))
