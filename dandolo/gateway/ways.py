"""What calls of one connection have in common: their route, and for each candidate a request's head ready made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dandolo.api import steer
from dandolo.api.call import Call
from dandolo.gateway.choice import Route
from dandolo.route.candidate import Candidate

if TYPE_CHECKING:
    from dandolo.cache.policy import Permission
    from dandolo.gateway.fleet import Way
    from dandolo.route.catalog import Target

WAYS_MAX = 16
_NONE: dict[Candidate, Way] = {}


class Lane:
    """What was worked out for the calls of one connection that ask for the same models in the same way.

    It lives as long as the head it belongs to repeats, byte for byte but for lines that decide nothing.
    """

    __slots__ = (
        "booked",
        "cache_context",
        "cache_granted",
        "generation",
        "long_answers",
        "models",
        "needs",
        "route",
        "stream",
        "varied",
        "ways",
    )

    def __init__(self, call: Call, route: Route, generation: int) -> None:
        self.models = call.models
        self.varied = route.varied
        self.needs = route.needs
        self.stream = call.stream
        self.route = route
        self.generation = generation
        self.long_answers = False
        """Whether one was too long to be passed on whole: such are kept, and shared, by a flight only."""
        self.cache_context: bytes | None = None
        """What identifies such calls to the cache beside their bodies; None until that is certain."""
        self.booked: tuple[Target, int] | None = None
        """Whom such a call was made to last, and the number of the name it was booked under."""
        self.cache_granted: tuple[tuple[str, bytes], Permission] | None = None
        """What the cache may do for calls that say the same of temperature and have no field that matters to it."""
        self.ways: dict[Candidate, Way] = _NONE
        """Filled (`learn`) where no header of the client is to be forwarded. At most WAYS_MAX."""

    def learn(self, candidate: Candidate, way: dict[Candidate, Way]) -> None:
        """Take over the way to a candidate. Most lanes have one, which they share: a connection is to cost little."""
        if not self.ways:
            self.ways = way
        elif candidate not in self.ways and len(self.ways) < WAYS_MAX:
            self.ways = {**self.ways, **way}

    def fits(self, call: Call, generation: int) -> bool:
        """Whether the route is that of `call` too, as far as its model and its own wishes tell."""
        return (
            call.models is self.models
            and call.stream is self.stream
            and generation == self.generation
            and not call.wishes
            and (not self.varied or steer.needs(call) & self.varied == self.needs)
        )
