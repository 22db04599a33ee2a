"""One caller that waits at several accounts at once, for whichever has a slot first.

A queue to each account alone lets a waiter of one stand while another account has slots free; standing in
all of them makes them one queue, whose classes hold across accounts. The caller's ticket is set once.
"""

from __future__ import annotations

from collections.abc import Iterable

from dandolo.errors import Refusal
from dandolo.route.capacity import Slots
from dandolo.route.queue import NORMAL, Ticket


class Joint:
    """A ticket that stands in several queues. Once it is granted, `slots` are those to be left again."""

    __slots__ = ("_places", "_ticket", "slots")

    def __init__(self, ticket: Ticket) -> None:
        self.slots: Slots | None = None
        self._ticket = ticket
        self._places: list[_Place] = []

    def queue(
        self,
        everywhere: Iterable[Slots],
        now: float,
        priority: int = NORMAL,
        size: int = 0,
        key: str = "",
    ) -> None:
        """Wait at each of `everywhere`, of which none has a slot to give now (taken, or held by a cool-down).

        Raises Refusal when all queues are full.
        """
        refusal: Refusal | None = None
        for slots in everywhere:
            place = _Place(self, slots)
            try:
                slots.queue(place, now, priority, size, key)
            except Refusal as error:
                refusal = error
            else:
                self._places.append(place)
        if not self._places and refusal is not None:
            raise refusal

    def withdraw(self) -> None:
        """Stop waiting everywhere. What was granted meanwhile (`slots`) must be left instead."""
        for place in self._places:
            place.done = True
            place.slots.withdraw(place)
        self._places.clear()

    def granted(self, place: _Place) -> None:
        """A slot is there: the other places are given up before the caller goes on."""
        self.slots = place.slots
        self._places.remove(place)
        self.withdraw()
        self._ticket.set(True)

    def refused(self, place: _Place, error: BaseException) -> None:
        """Waited too long at one account: given up when that was the last."""
        self._places.remove(place)
        if not self._places:
            self._ticket.fail(error)


class _Place:
    """The place of a joint ticket in one queue."""

    __slots__ = ("_joint", "done", "slots")

    def __init__(self, joint: Joint, slots: Slots) -> None:
        self.done = False
        self.slots = slots
        self._joint = joint

    def set(self, value: bool) -> None:
        self.done = True
        self._joint.granted(self)

    def fail(self, error: BaseException) -> None:
        self.done = True
        self._joint.refused(self, error)
