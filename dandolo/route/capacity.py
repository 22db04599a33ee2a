"""Slots: how many calls one account carries at a time, and who waits for the next one.

Synchronous and without I/O: `enter` says whether the caller may go, `leave` hands the slot to whoever is
next in the queue (`route.queue`: three classes, bounded). Its overflow, and a wait beyond a class's
deadline, is a refusal with a wait computed from how fast slots have been coming free. Whoever holds a slot
finds a connection or dials one, so this is the only queue (promise 33).
"""

from __future__ import annotations

from collections.abc import Mapping

from dandolo.errors import Refusal
from dandolo.route.queue import BYTES_MAX, NORMAL, WAITERS_MAX, Place, Queue, Ticket

__all__ = ["RETRY_AFTER_MAX_S", "WAITERS_MAX", "ReservedSlots", "Slots", "Ticket"]

RETRY_AFTER_MAX_S = 30.0
RESUMED_SHARE = 0.125
RESUMED_MIN = 4
"""Of the limit, handed on at a time after a cool-down, and at least so many: one by one a limit of four would stand
empty for most of the time between two refusals."""


class Slots:
    """Calls in flight of one account, at most `limit`, with a queue of at most `waiters_max` and `bytes_max`.

    `waiting` is how many stand in the queue. Before `held_until` (a cool-down, monotonic) no slot is handed on:
    it comes free, and the first `expire` after that time hands the free ones to those who wait.
    """

    __slots__ = ("_freed", "_granting", "_leave_interval_s", "_left_at", "_queue", "held_until", "in_use", "limit")

    def __init__(self, limit: int, waiters_max: int = WAITERS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self.limit = limit
        self.in_use = 0
        self.held_until = 0.0
        self._queue = Queue(waiters_max, bytes_max)
        self._left_at = 0.0
        self._leave_interval_s = 0.0
        self._granting = False
        self._freed = 0

    @property
    def waiting(self) -> int:
        """Callers in the queue."""
        return self._queue.count

    @property
    def waiting_by_class(self) -> tuple[int, ...]:
        """Callers in the queue by class: high, normal, low."""
        return self._queue.by_class

    @property
    def waiting_bytes(self) -> int:
        """Bytes of their requests, as far as they were told."""
        return self._queue.size

    def enter(self, key: str = "") -> bool:
        """Take a slot if one is free. True obliges the caller to call `leave` once (with the same key)."""
        if self.in_use >= self.limit or self._queue.count:
            # After a cool-down slots are free for a moment although somebody waits, who is not to be overtaken.
            return False
        self.in_use += 1
        return True

    def queue(
        self, ticket: Ticket, now: float | None = None, priority: int = NORMAL, size: int = 0, key: str = ""
    ) -> None:
        """Wait for a slot, in a class (`queue.HIGH`, `NORMAL`, `LOW`), holding `size` bytes meanwhile.

        Raises Refusal (503, with Retry-After) when the queue is full and nobody of a lower class, or of a key with more
        waiting, can give way. The ticket is granted (`set`) or, once it has waited too long or gives way, refused
        (`fail`); without `now` it is never too late.
        """
        gone: list[Place] = []
        if self._queue.full(size):
            gone = self._queue.make_room(priority, size, now, key)
            if not gone:
                raise self._crowded()
        self._queue.push(ticket, priority, now, size, key)
        for place in gone:
            if not place.ticket.done:
                place.ticket.fail(self._crowded())

    def _crowded(self) -> Refusal:
        return Refusal(
            f"all {self.limit} slots of the provider are in use and {self._queue.count} calls wait already; "
            "try again later",
            retry_after_s=self.retry_after_s(),
        )

    def withdraw(self, ticket: Ticket) -> None:
        """Stop waiting. A ticket that was granted meanwhile must `leave` instead."""
        self._queue.remove(ticket)

    def leave(self, now: float, key: str = "") -> None:
        """Give a slot back: to the next waiter, or to the free ones."""
        queue = self._queue
        if not queue.count and not self._left_at:
            self.in_use -= 1
            assert self.in_use >= 0, "a slot was given back twice"
            return
        assert self.in_use > self._freed, "a slot was given back twice"
        interval = min(now - self._left_at, RETRY_AFTER_MAX_S) if self._left_at else 0.0
        self._leave_interval_s += 0.1 * (interval - self._leave_interval_s)
        self._left_at = now if queue.count else 0.0
        if not queue.count:
            self.in_use -= 1
            return
        self._freed += 1
        if not self._granting:
            self._grant(now)

    def resize(self, limit: int, now: float) -> None:
        """Change the limit. Slots beyond a smaller one are not handed on when they are left."""
        more = limit - max(self.limit, self.in_use)
        self.limit = limit
        if more > 0 and self._queue.count and now >= self.held_until:
            self._hand_on(more, now)

    def expire(self, now: float) -> int:
        """Refuse those who have waited too long; how many. To be called now and then, every 100 ms say.

        Where slots came free while they were held, it also hands them on, a share at a time: whoever cooled
        down has just been refused, and all of them at once would be refused again.
        """
        dropped = self._queue.expire(now)
        for place in dropped:
            place.ticket.fail(self._too_long(place, now))
        if self._queue.count and self.in_use < self.limit and now >= self.held_until:
            self._hand_on(min(self.limit - self.in_use, max(RESUMED_MIN, int(RESUMED_SHARE * self.limit))), now)
        return len(dropped)

    def dismiss(self) -> None:
        """Send away everybody who waits: no slot will be handed on for longer than anybody should wait."""
        for place in self._queue.clear():
            place.ticket.set(False)

    def _hand_on(self, free: int, now: float) -> None:
        """Give up to `free` slots that nobody holds to those who wait."""
        if self._granting:
            return
        free = min(free, self._queue.count)
        self.in_use += free
        self._freed += free
        self._grant(now)

    def _too_long(self, place: Place, now: float) -> Refusal:
        return Refusal(
            f"no slot of the provider came free within {now - place.since:.1f} s and {self._queue.count} calls wait; "
            "try again later",
            retry_after_s=self.retry_after_s(),
        )

    def _grant(self, now: float) -> None:
        """Hand freed slots on. A grant runs its caller at once, who may leave at once: that must not nest."""
        self._granting = True
        try:
            if self._queue.count:
                self.expire(now)
            while self._freed:
                self._freed -= 1
                # A limit that has shrunk takes back what is beyond it; a cool-down may begin at any grant.
                place = self._next(now) if self.in_use <= self.limit and now >= self.held_until else None
                if place is None:
                    self.in_use -= 1
                else:
                    place.ticket.set(True)
        finally:
            self._granting = False
            self.in_use -= self._freed
            self._freed = 0

    def _next(self, now: float) -> Place | None:
        return self._queue.pop(now)

    def retry_after_s(self) -> float:
        """Seconds until the queue as it stands has drained, between 1 and RETRY_AFTER_MAX_S."""
        return max(1.0, min(RETRY_AFTER_MAX_S, self._leave_interval_s * (self._queue.count + 1)))

    def wait_s(self, priority: int = NORMAL) -> float:
        """Seconds a new waiter of a class may expect, 0 when a slot is free."""
        return 0.0 if self.in_use < self.limit else self._leave_interval_s * self._queue.ahead(priority)


class ReservedSlots(Slots):
    """Slots of which some keys have shares for themselves (`slots_reserved`).

    `shares` maps a key to its share of the limit, 0 … 1; their sum is scaled down to 1. A key beyond its
    share competes with everybody for what is not kept; what is kept stays free when its key is idle.
    """

    __slots__ = ("_held", "_reserved", "_shares")

    def __init__(
        self,
        limit: int,
        shares: Mapping[str, float],
        waiters_max: int = WAITERS_MAX,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        super().__init__(limit, waiters_max, bytes_max)
        scale = max(1.0, sum(shares.values()))
        self._shares = {key: share / scale for key, share in shares.items() if share > 0}
        self._held = dict.fromkeys(self._shares, 0)
        self._reserved: dict[str, int] = {}
        self._divide()

    def enter(self, key: str = "") -> bool:
        """Take a slot if one is free for this key."""
        if not self._may(key, self.in_use) or (self._queue.count and key not in self._held):
            return False
        self.in_use += 1
        if key in self._held:
            self._held[key] += 1
        return True

    def leave(self, now: float, key: str = "") -> None:
        """Give a slot of this key back."""
        if key in self._held:
            self._held[key] -= 1
            assert self._held[key] >= 0, "a slot was given back twice"
        super().leave(now)

    def resize(self, limit: int, now: float) -> None:
        """Change the limit, and the shares with it."""
        before, self.limit = self.limit, limit
        self._divide()
        self.limit = before
        super().resize(limit, now)

    def _divide(self) -> None:
        # Rounded down, so that a limit of one is everybody's.
        self._reserved = {key: int(share * self.limit + 1e-9) for key, share in self._shares.items()}

    def _may(self, key: str, in_use: int) -> bool:
        """Whether `key` may have one more when `in_use` are taken: what others have kept must stay free."""
        for other, reserved in self._reserved.items():
            if other != key and reserved > self._held[other]:
                in_use += reserved - self._held[other]
        return in_use < self.limit

    def _next(self, now: float) -> Place | None:
        # The slot to be handed on and those that wait to be are still counted as taken.
        taken = self.in_use - 1 - self._freed
        place = self._queue.pop(now, lambda waiting: self._may(waiting.key, taken))
        if place is not None and place.key in self._held:
            self._held[place.key] += 1
        return place
