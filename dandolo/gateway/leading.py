"""A call whose answer is to be kept, made the short way: its own client's, until somebody asks the same meanwhile.

Most calls that miss are asked by one client and by nobody else while they are under way. They need no flight and no
call detached from their client: it is enough that others would find them, and could then wait with them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dandolo.api.call import Call
from dandolo.api.usage import Usage
from dandolo.errors import GatewayError, InternalError

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.keeping import Plan

_now = time.monotonic


@dataclass(slots=True)
class Begun:
    """How an answer began: in events, in pieces of a plain body, or (neither) whole."""

    status: int
    events: bool
    length: int | None = None
    whole: bool = False


class Lone:
    """The leader of a flight that is a client's own call: somebody asked the same while it was under way.

    When its client leaves it goes on for the others; they end with it.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.detached = exchange
        self.abandoned = False

    def lend(self, exchange: Exchange) -> None:
        """What the call took is what a follower's request took."""
        exchange.take_from(self.detached)

    @property
    def first_token_at(self) -> float | None:
        """When its first token came (monotonic)."""
        return self.detached.first_token_at

    def costs(self) -> Usage | None:
        """Tokens and cost of the answer, as far as they are known."""
        return self.detached.costs()

    def left(self) -> None:
        """Nobody follows any more: it is its client's again, if that is still there."""
        if self.abandoned:
            self.detached.cancel()

    def let_go(self) -> None:
        """The flight has landed, and nobody waits to be told of it."""


def may_lead(exchange: Exchange, call: Call, plan: Plan) -> bool:
    """Whether a call may be made the short way though its answer is to be kept: nothing is there to be looked at."""
    gateway, caching, permission = exchange.gateway, exchange.plane.caching, plan.permission
    return (
        caching is not None
        and not call.stream
        and gateway.tiers is None
        and gateway.sharing is None
        and caching.aliases is None
        and permission.lookup
        and permission.store
        and not permission.memory_only
        and not permission.only_if_cached
        and plan.key not in caching.memory
        and not caching.refusals
        and gateway.flights.free(plan.key)
        and not (exchange.lane is not None and exchange.lane.long_answers)
    )


def landed(exchange: Exchange, error: BaseException | None) -> None:
    """A call that was made the short way under a plan is over: its answer is kept, and told to who joined."""
    flight, plan, call, body, lane = exchange.flight, exchange.plan, exchange.call, exchange.whole, exchange.lane
    gateway, caching = exchange.gateway, exchange.plane.caching
    assert plan is not None
    exchange.leads = False
    exchange.whole = None
    if body is None and error is None and lane is not None:
        lane.long_answers = True
    unwanted = False
    if flight is None:
        gateway.flights.leave(plan.key, exchange)
    else:
        gateway.flights.end(flight)
        unwanted = flight.unwanted
        flight.paid = True
    if caching is not None and call is not None and not unwanted:
        if error is None and body is not None and exchange.target is not None:
            caching.draft(exchange, plan, call, body)
        elif isinstance(error, GatewayError):
            caching.keep_refusal(plan, call, error, _now())
    if flight is not None:
        exchange.flight = None
        if error is None and body is not None:
            flight.begin(Begun(200, events=False, whole=True))
            flight.add(body)
        told = error
        if error is not None and not isinstance(error, GatewayError):
            told = InternalError("an error within the gateway; it was logged with another request's id")
        flight.land(told)
