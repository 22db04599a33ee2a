"""What calls of one connection have in common: their route, and for each candidate a request's head ready made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dandolo.api import steer
from dandolo.api.call import Call
from dandolo.gateway.choice import Route
from dandolo.route.candidate import Candidate
from dandolo.route.catalog import Target

if TYPE_CHECKING:
    from dandolo.gateway.fleet import Runtime

WAYS_MAX = 16


class Way:
    """How calls of a lane are sent to one candidate: its runtime, and the request's head up to what varies."""

    __slots__ = ("prefix", "runtime", "target")

    def __init__(self, runtime: Runtime, target: Target, prefix: bytes) -> None:
        self.runtime = runtime
        self.target = target
        self.prefix = prefix


class Lane:
    """What was worked out for the calls of one connection that ask for the same models in the same way.

    It lives as long as the head it belongs to repeats, byte for byte but for lines that decide nothing.
    """

    __slots__ = ("cache_context", "generation", "models", "needs", "route", "stream", "varied", "ways")

    def __init__(self, call: Call, route: Route, generation: int) -> None:
        self.models = call.models
        self.varied = route.varied
        self.needs = route.needs
        self.stream = call.stream
        self.route = route
        self.generation = generation
        self.cache_context: bytes | None = None
        """What identifies such calls to the cache beside their bodies; None until that is certain."""
        self.ways: dict[Candidate, Way] = {}
        """Filled where no header of the client is to be forwarded. At most WAYS_MAX."""

    def fits(self, call: Call, generation: int) -> bool:
        """Whether the route is that of `call` too, as far as its model and its own wishes tell."""
        return (
            call.models is self.models
            and call.stream is self.stream
            and generation == self.generation
            and not call.wishes
            and (not self.varied or steer.needs(call) & self.varied == self.needs)
        )
