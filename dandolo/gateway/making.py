"""Whoever makes the call of a flight: looks elsewhere first, asks, hands on what comes, and keeps it when it is fit."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dandolo.api.call import Call
from dandolo.api.usage import Usage
from dandolo.cache.flight import PIECES_BYTES_MAX, Flight
from dandolo.cache.headers import Outcome
from dandolo.cache.memory import Kept
from dandolo.cache.replay import assemble
from dandolo.errors import GatewayError, RequestError
from dandolo.gateway.detached import Detached
from dandolo.gateway.keeping import STEADY_OFFSET_S, Times
from dandolo.gateway.leading import Begun
from dandolo.record import NOT_CACHED
from dandolo.wire import sse

if TYPE_CHECKING:
    from dandolo.cache.tiers import Found
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.keeping import Plan
    from dandolo.gateway.seeking import Seeking

LAG_BYTES_MAX = 1024 * 1024
"""An answer too long to be kept waits for its slowest follower when that is so far behind."""

_now = time.monotonic


@dataclass(frozen=True, slots=True)
class Tiered:
    """An answer that another tier had, as it is given."""

    kept: Kept
    outcome: Outcome
    tier: str


class Leader:
    """Makes the call of a flight, and keeps its answer (a taker of `gateway.detached`).

    Before, it looks in the other tiers, and among other processes where they share the cache (`gateway.seeking`), one
    of which may feed the flight instead.
    """

    def __init__(self, exchange: Exchange, call: Call, plan: Plan, flight: Flight[Begun]) -> None:
        self.origin = exchange
        self.call = call
        self.plan = plan
        self.flight = flight
        self.alone = False
        """It refreshes a stale answer: nobody need follow."""
        self.detached = Detached(exchange, call, self, shares=True)
        self.seeking: Seeking | None = None
        self._asked_at = _now()
        self._looking = False
        self._abandoned = False
        self._seeks = False
        self._without = ""
        flight.leader = self

    def begin(self, without: str = "") -> None:
        """Look in the other tiers and among the peers, then ask. `without`: a peer that is of no use."""
        sharing = self.detached.gateway.sharing
        self._seeks = sharing is not None and sharing.concerns(self)
        self._without = without
        self._look(("l2",) if self._seeks else ())

    def make(self) -> None:
        """No peer has the answer or makes the call: look where only this process can, then ask."""
        self._look(("l3",))

    def left(self) -> None:
        """Nobody follows any more."""
        if self._looking:
            self._abandoned = True
        elif not self.alone and (self.seeking is None or not self.seeking.left()):
            self.detached.cancel()

    def let_go(self) -> None:
        """The flight has landed, and nobody waits to be told of it."""
        self.seeking = None

    def give(self, found: Found) -> bool:
        """Give what was found to everybody who waits; whether nothing is left to do."""
        flight, plan, detached = self.flight, self.plan, self.detached
        caching, now = detached.plane.caching, _now()
        if caching is None or flight.unwanted:
            return False
        kept = caching.promote(plan, found, now)
        steady = now + STEADY_OFFSET_S
        if kept is not None and kept.fresh(steady):
            flight.kept = Tiered(kept, Outcome.HIT, found.tier)
            flight.entry = kept.entry
            self._land()
            return True
        stale = kept is not None and plan.permission.max_age_s is None and steady < kept.entry.stale_until
        if kept is not None and stale and not self.alone and not plan.permission.only_if_cached:
            # Given to everybody who waits; a new one is fetched, for which nobody waits.
            self.alone = True
            flight.find(Tiered(kept, Outcome.STALE, found.tier))
        return False

    def _look(self, sources: tuple[str, ...]) -> None:
        tiers, permission = self.detached.gateway.tiers, self.plan.permission
        if tiers is None or not permission.lookup or permission.memory_only:
            self._looked(None)
        else:
            self._looking = True
            tiers.look_up(self.plan.key, permission.scope, self._looked, sources)

    def _looked(self, found: Found | None) -> None:
        """What the other tiers have."""
        self._looking = False
        if found is not None and self.give(found):
            return
        if self._abandoned and not self.alone:
            self._land()
        elif self._seeks:
            self._seeks = False
            sharing = self.detached.gateway.sharing
            assert sharing is not None
            sharing.seek(self, self._without)
        else:
            self._ask()

    def _land(self, error: GatewayError | None = None) -> None:
        self.detached.gateway.flights.end(self.flight)
        if self.seeking is not None:
            self.seeking.over()
        self.flight.land(error)

    def _ask(self) -> None:
        if self.plan.permission.only_if_cached:
            self._land(
                RequestError(
                    "no kept answer to this request may be given, and it asked for no other"
                    " (Cache-Control: only-if-cached)",
                    status=504,
                    code=NOT_CACHED,
                )
            )
        else:
            self.detached.begin()

    def moved_on(self) -> None:
        """A follower has taken more."""
        if self.seeking is not None:
            self.seeking.moved_on()
        if self.detached.audience.stalled and self.flight.trim() <= LAG_BYTES_MAX // 2:
            self.detached.audience.resume()

    # -- what the call tells ---------------------------------------------------------------------------

    def answered(self, status: int, body: bytes) -> None:
        """A plain answer, whole."""
        self.flight.begin(Begun(status, events=False, whole=True))
        self.flight.add(body)

    def begun(self, status: int, length: int | None) -> None:
        """An answer in pieces has begun."""
        self.flight.begin(Begun(status, events=self.call.stream, length=length))

    def piece(self, content: bytes) -> None:
        """The next piece."""
        flight = self.flight
        flight.add(content)
        if flight.bytes > PIECES_BYTES_MAX and flight.trim() > LAG_BYTES_MAX:
            self.detached.audience.pause()

    def over(self, error: GatewayError | None) -> None:
        """The answer is complete, or has failed."""
        flight, detached = self.flight, self.detached
        gateway, caching = detached.gateway, detached.plane.caching
        gateway.flights.end(flight)
        begun = flight.head
        if error is None and begun is not None and caching is not None and flight.bytes <= PIECES_BYTES_MAX:
            body, offsets = assembled(self.call, flight)
            flight.whole = body
            if body is not None and not flight.unwanted:
                target = detached.target
                flight.entry = entry = caching.keep(
                    self.plan,
                    self.call,
                    begun.status,
                    body,
                    offsets=offsets,
                    provider=target.provider.encoded_name if target is not None else b"",
                    usage=detached.costs(),
                    at=Times(self._asked_at, _now(), caching.tags.get(detached.tenant.name, ())),
                )
                tiers, permission = gateway.tiers, self.plan.permission
                if entry is not None and tiers is not None and not permission.memory_only:
                    tiers.keep(entry, permission.scope)
        elif error is not None and caching is not None and not flight.unwanted:
            caching.keep_refusal(self.plan, self.call, error, _now())
        if self.seeking is not None:
            self.seeking.over()
        flight.land(error)
        flight.let_go()

    # -- what followers are told of it -----------------------------------------------------------------

    def lend(self, exchange: Exchange) -> None:
        """What the call took is what a follower's request took."""
        if self.seeking is None or not self.seeking.lend(exchange):
            exchange.take_from(self.detached)

    @property
    def first_token_at(self) -> float | None:
        """When its first token came (monotonic); of another process's call that is not known, and long ago."""
        if self.seeking is not None and self.seeking.elsewhere:
            return 0.0
        return self.detached.first_token_at

    def costs(self) -> Usage | None:
        """Tokens and cost of the answer, as far as they are known."""
        usage = self.seeking.usage if self.seeking is not None else None
        return usage if usage is not None else self.detached.costs()


def assembled(call: Call, flight: Flight[Begun]) -> tuple[bytes | None, tuple[int, ...]]:
    """The answer of a flight that has all its pieces, as one plain body, and where those of a stream's text ended."""
    body = b"".join(flight.pieces)
    if flight.head is None or not flight.head.events:
        return body, ()
    datas = [data for event in sse.split(body) if (data := sse.parse(event)[1]) is not None]
    made = assemble(call.endpoint.dialect, datas)
    return (made.body, made.offsets) if made is not None else (None, ())
