"""Who waits for a slot, and who is next: three classes served 16 : 4 : 1, bounded in count and bytes.

Between classes weighted fair queueing by virtual time (stride scheduling, Waldspurger and Weihl 1995);
within a class the keys by turns, so that one that asks for ten times what there is takes it from itself; of
one key first come first served, until its class has stood for a second: then last come first served,
because under overload those at the front are about to be given up anyway and only the new can still be
answered in time. Whoever has waited 80 % of the class's deadline is dropped, 20 % while the class stands
(after CoDel, RFC 8289, as Facebook's adaptive LIFO). Decisions only: `expire` returns those to be refused.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

HIGH, NORMAL, LOW = 0, 1, 2
PRIORITIES = {"high": HIGH, "normal": NORMAL, "low": LOW}
WEIGHTS = (16, 4, 1)
CREDIT = 1.0
"""Virtual time a class may have saved up while nobody of it waited: one grant of the lowest, 16 of the highest.

Without it a burst of a class that takes less than its share is held to that share at once: at twice the load
with a fifth of it high, high waited 1.3 s (p99) instead of .5."""
DEADLINES_S = (10.0, 30.0, 60.0)
DROP_SHARE = 0.8
DROP_SHARE_STANDING = 0.2
STANDING_S = 1.0
WAITERS_MAX = 1024
BYTES_MAX = 64 * 1024 * 1024
NEVER = float("inf")


class Ticket(Protocol):
    """A place in the queue: `set(True)` grants the slot, `fail` refuses it. `done` once granted or given up.

    `set(False)`: the wait here has become pointless, and whoever waits had better choose again.
    """

    done: bool

    def set(self, value: bool) -> None:
        """Grant the slot, or send away."""

    def fail(self, error: BaseException) -> None:
        """Refuse it: the wait was too long."""


class Place:
    """A ticket with what is known of it: its class, since when it waits (NEVER: no age), its bytes, its key."""

    __slots__ = ("key", "priority", "since", "size", "ticket")

    def __init__(self, ticket: Ticket, priority: int, since: float, size: int, key: str) -> None:
        self.ticket = ticket
        self.priority = priority
        self.since = since
        self.size = size
        self.key = key


class Queue:
    """Places in three classes. `count` and `size` (bytes) are what waits now."""

    __slots__ = ("_classes", "_keys", "_passes", "_places", "_standing_since", "_virtual", "bytes_max", "count", "size",
                 "waiters_max")  # fmt: skip

    def __init__(self, waiters_max: int = WAITERS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self.waiters_max = waiters_max
        self.bytes_max = bytes_max
        self.count = 0
        self.size = 0
        self._places: dict[Ticket, Place] = {}
        self._classes: tuple[OrderedDict[Ticket, Place], ...] = tuple(OrderedDict() for _ in WEIGHTS)
        self._keys: tuple[OrderedDict[str, OrderedDict[Ticket, Place]], ...] = tuple(OrderedDict() for _ in WEIGHTS)
        """The same by key; the key whose turn is next stands first."""
        self._passes = [0.0] * len(WEIGHTS)
        self._virtual = 0.0
        self._standing_since = [NEVER] * len(WEIGHTS)

    @property
    def by_class(self) -> tuple[int, ...]:
        """How many wait in each class: high, normal, low."""
        return tuple(map(len, self._classes))

    def full(self, size: int) -> bool:
        """Whether one more of `size` bytes would be beyond a bound. An empty queue takes any size."""
        return self.count >= self.waiters_max or (self.count > 0 and self.size + size > self.bytes_max)

    def make_room(self, priority: int, size: int, now: float | None, key: str) -> list[Place]:
        """Those who must go for one more of `size` bytes of `key` in `priority`, taken out; the caller refuses them.

        Of the lowest class below it, and where none is, one of a key of its own class that has more waiting: of the key
        with most, who would be served last. Nobody goes when that would not be enough.
        """
        lower = sum(place.size for members in self._classes[priority + 1 :] for place in members.values())
        gone: list[Place] = []
        if any(self._classes[priority + 1 :]) and self.size - lower + size <= self.bytes_max:
            for below in range(len(WEIGHTS) - 1, priority, -1):
                while self._keys[below] and self.full(size):
                    gone.append(self._take(self._last(below, now)))
        elif self.size + size <= self.bytes_max:
            most = max(map(len, self._keys[priority].values()), default=0)
            if most > len(self._keys[priority].get(key, ())) + 1:
                gone.append(self._take(self._last(priority, now)))
        return gone

    def _last(self, priority: int, now: float | None) -> Place:
        """Of the key that has most waiting in a class, who would be served last."""
        most = max(self._keys[priority].values(), key=len)
        oldest = now is not None and self.standing(priority, now)
        return most[next(iter(most)) if oldest else next(reversed(most))]

    def push(self, ticket: Ticket, priority: int, now: float | None, size: int, key: str) -> None:
        """Put a ticket at the end of its class. `now` None: its age is unknown, it is never dropped."""
        place = Place(ticket, priority, NEVER if now is None else now, size, key)
        members = self._classes[priority]
        if not members:
            self._standing_since[priority] = NEVER if now is None else now
            # A class that was empty has saved up no more than CREDIT.
            self._passes[priority] = max(self._passes[priority], self._virtual - CREDIT)
        members[ticket] = self._places[ticket] = place
        ring = self._keys[priority]
        own = ring.get(key)
        if own is None:
            own = ring[key] = OrderedDict()
        own[ticket] = place
        self.count += 1
        self.size += size

    def remove(self, ticket: Ticket) -> bool:
        """Take a ticket out, wherever it stands. False when it is not here (any more)."""
        place = self._places.get(ticket)
        if place is None:
            return False
        self._take(place)
        return True

    def pop(self, now: float, may: Callable[[Place], bool] | None = None) -> Place | None:
        """The next to be served, taken out; None when nobody (whom `may` admits, which only their key decides) waits.

        Tickets that gave up without saying so are passed over. `expire` first, lest the dead be served.
        """
        order = sorted((p for p in range(len(WEIGHTS)) if self._classes[p]), key=self._passes.__getitem__)
        for priority in order:
            place = self._first(self._keys[priority], self.standing(priority, now), may)
            if place is not None:
                self._virtual = self._passes[priority]
                self._passes[priority] += 1.0 / WEIGHTS[priority]
                self._take(place)
                return place
        return None

    def _first(
        self,
        ring: OrderedDict[str, OrderedDict[Ticket, Place]],
        newest: bool,
        may: Callable[[Place], bool] | None,
    ) -> Place | None:
        for key in [*ring]:
            own = ring[key]
            while own:
                place = own[next(reversed(own)) if newest else next(iter(own))]
                if place.ticket.done:
                    self._take(place)
                elif may is None or may(place):
                    ring.move_to_end(key)
                    return place
                else:
                    break
        return None

    def ahead(self, priority: int) -> float:
        """Grants until a new waiter of a class is served, if nobody else comes: its class by its share."""
        shares = sum(WEIGHTS[p] for p in range(len(WEIGHTS)) if p == priority or self._classes[p])
        return min(self.count + 1.0, (len(self._classes[priority]) + 1) * shares / WEIGHTS[priority])

    def standing(self, priority: int, now: float) -> bool:
        """Whether somebody of a class has waited at every moment of the last second."""
        return now - self._standing_since[priority] > STANDING_S

    def expire(self, now: float) -> list[Place]:
        """Those who have waited too long, taken out and to be refused by the caller. Constant when there are none."""
        dropped: list[Place] = []
        if not self.count:
            return dropped
        for priority, members in enumerate(self._classes):
            share = DROP_SHARE_STANDING if self.standing(priority, now) else DROP_SHARE
            oldest = now - share * DEADLINES_S[priority]
            while members:
                place = next(iter(members.values()))
                if place.since > oldest:
                    break
                self._take(place)
                if not place.ticket.done:
                    dropped.append(place)
        return dropped

    def clear(self) -> list[Place]:
        """Take everybody out who still waits."""
        waiting = [place for place in self._places.values() if not place.ticket.done]
        for place in list(self._places.values()):
            self._take(place)
        return waiting

    def _take(self, place: Place) -> Place:
        del self._classes[place.priority][place.ticket]
        ring = self._keys[place.priority]
        own = ring[place.key]
        del own[place.ticket]
        if not own:
            del ring[place.key]
        del self._places[place.ticket]
        self.count -= 1
        self.size -= place.size
        return place
