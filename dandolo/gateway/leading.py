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
from dandolo.gateway.keeping import Times

if TYPE_CHECKING:
    from dandolo.cache.entry import Entry
    from dandolo.gateway.caching import Caching
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
    """Whether a call may be made the short way though its answer is to be kept: memory has nothing to be looked at."""
    gateway, caching, permission = exchange.gateway, exchange.plane.caching, plan.permission
    return (
        caching is not None
        and not call.stream
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
    entry: Entry | None = None
    if caching is not None and call is not None and not unwanted:
        if error is None and body is not None and exchange.target is not None:
            if exchange.looking is None or (flight is None and exchange.looking.ours):
                caching.draft(exchange, plan, call, body)
            else:
                entry = _keep(exchange, caching, plan, call, body)
        elif isinstance(error, GatewayError):
            caching.keep_refusal(plan, call, error, _now())
    if exchange.looking is not None:
        exchange.looking.landed(entry)
    if flight is not None:
        exchange.flight = None
        flight.entry = entry
        if error is None and body is not None:
            flight.begin(Begun(200, events=False, whole=True))
            flight.add(body)
        told = error
        if error is not None and not isinstance(error, GatewayError):
            told = InternalError("an error within the gateway; it was logged with another request's id")
        flight.land(told)


def _keep(exchange: Exchange, caching: Caching, plan: Plan, call: Call, body: bytes) -> Entry | None:
    """Keep a plain answer in every tier, judged at once, since others are given it as an entry."""
    assert exchange.target is not None
    at = Times(exchange.started, _now(), caching.tags.get(exchange.tenant.name, ()))
    provider = exchange.target.provider.encoded_name
    entry = caching.keep(plan, call, 200, body, offsets=(), provider=provider, usage=exchange.costs(), at=at)
    tiers = exchange.gateway.tiers
    if entry is not None and tiers is not None:
        tiers.keep(entry, plan.permission.scope)
    return entry
