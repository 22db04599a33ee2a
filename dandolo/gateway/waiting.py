"""Who is asked next, and the waits that may come before: for a slot, or for a cool-down to pass.

`next_candidate` decides by `route.balance`, and where nobody can be asked now by what stands in the way: all full
is a place in their queues at once, all cooling down a short sleep, every breaker open the least bad if the retry
budget pays. It returns with a slot taken, which the attempt leaves; cancelled or refused, it has given
everything back. Every wait ends with the request's own deadline.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dandolo.api import steer
from dandolo.api.call import Call
from dandolo.errors import GatewayError, Refusal
from dandolo.gateway.choice import Ask, Route
from dandolo.net.strand import Waiter
from dandolo.route.balance import Blocked
from dandolo.route.candidate import Candidate
from dandolo.route.capacity import Slots
from dandolo.route.explain import explain, why
from dandolo.route.hedge import READ_AT_ONCE_TOKENS, reading_s
from dandolo.route.joint import Joint
from dandolo.route.limit import RATE_LIMITED
from dandolo.route.pool import Pool
from dandolo.route.retry import LOCAL_WAIT_MAX_S

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange

_now = time.monotonic
MISSING = "no such model"
EXPLANATIONS_MAX = 8
"""Decisions of one request that are kept to be told; the oldest are forgotten."""
SLOT = "a free slot at a provider"
COOL_DOWN = "the provider's rate limit to pass"


async def next_candidate(exchange: Exchange, route: Route, ask: Ask, tried: Sequence[Candidate]) -> Candidate:
    """The next to ask, with a slot of its account taken for the exchange's tenant.

    Raises the error of the last attempt when nobody is left, Refusal or a 429 when nobody can be asked for long.
    """
    balancer = exchange.plane.balancer
    pool, tenant = route.pool, exchange.tenant.name
    slept_s = 0.0
    kept: tuple[Candidate, ...] = ()
    """Whose last slots are kept for other keys, as was found out on asking."""
    while True:
        now = _now()
        anyway = False
        candidate, exchange.chosen = exchange.chosen, None
        if candidate is None:
            asked = (*tried, *kept) if kept else tried
            arguments = (pool, now, ask.tokens_in, route.tokens_out, asked, ask.prefix, ask.room)
            if exchange.explains:
                told = explain(balancer, *arguments)
                exchange.explanations = (*exchange.explanations[1 - EXPLANATIONS_MAX :], told)
                candidate = told.chosen
            else:
                candidate = balancer.choose(*arguments)
        full: Sequence[Candidate] = ()
        if candidate is None:
            tokens = max(ask.tokens_in + route.tokens_out, ask.room)
            blocked = balancer.blocked(pool, now, tokens, tried, exchange.priority)
            kept = ()
            if blocked.why == "none":
                # By our estimate too long for everybody: the largest window may hold it all the same, and if not
                # its provider says so with the right words.
                ask.tokens_in = ask.room = 0.0
                pool = pool.widest()
                continue
            full = tuple(one for one in blocked.full if one.wait_s(now) <= LOCAL_WAIT_MAX_S)
            if not full and (candidate := _anyway(exchange, pool, blocked, now)) is not None:
                anyway = True
            elif not full:
                slept_s += blocked.wait_s
                if blocked.why != "cooling" or slept_s > LOCAL_WAIT_MAX_S:
                    raise exchange.error or _left_alone(pool.everybody, blocked, now)
                # Spread by a tenth, so that those who wait do not come all at once.
                await exchange.sleep(blocked.wait_s * (1.0 + 0.1 * random.random()), COOL_DOWN)  # noqa: S311
                continue
        if candidate is not None:
            if candidate.limit.slots.enter(tenant):
                return candidate
            # No breaker's trial is held meanwhile.
            give_up_trial(candidate)
            if not anyway:
                # The last ones are kept for others: somebody else may be free, before a place in the queues is taken.
                kept = (*kept, candidate)
                continue
            full = (candidate,)
        candidate = await _queue(exchange, full)
        if candidate is None:
            continue
        now = _now()
        breaker = candidate.breaker
        # What was true when the wait began may be so no longer: it may have been refused or have failed since.
        if anyway or (candidate.wait_s(now) <= 0 and (breaker is None or breaker.admits(now))):
            return candidate
        candidate.limit.slots.leave(now, tenant)


def _anyway(exchange: Exchange, pool: Pool, blocked: Blocked, now: float) -> Candidate | None:
    """Whom to ask although something speaks against everybody; None: nobody."""
    candidate = blocked.candidate
    if candidate is None or exchange.error is not None:
        return None
    if blocked.why == "cooling":
        # Its provider said that it has no such model, and nobody else is there to be asked: it may say so again.
        return candidate if candidate.reason == MISSING and candidate.limit.wait_s(now) <= 0 else None
    # All of several breakers are open, so some call must find out. With one alone its own trials do.
    if pool.single is None and candidate.wait_s(now) <= 0 and exchange.purse().spend():
        return candidate
    return None


def others(exchange: Exchange, route: Route, tried: Sequence[Candidate], now: float) -> bool:
    """Whether somebody else could take over after `tried`."""
    pool = route.pool
    if pool.single is not None or not pool.fallbacks or exchange.attempts >= exchange.plane.config.routing.attempts_max:
        return False
    for candidate in pool.everybody:
        if candidate not in tried:
            breaker = candidate.breaker
            if (breaker is None or breaker.retry_after_s(now) <= 0) and candidate.wait_s(now) <= LOCAL_WAIT_MAX_S:
                return True
    return False


def grace_s(call: Call) -> float:
    """Seconds that a provider is granted for reading this call's prompt, beyond those of usual ones."""
    return reading_s(steer.tokens_in(call)) if len(call.raw) > 4 * READ_AT_ONCE_TOKENS else 0.0


def give_up_trial(candidate: Candidate) -> None:
    """A candidate that was chosen is not asked after all: if it was a breaker's trial, the next call is."""
    breaker = candidate.breaker
    if breaker is not None and breaker.state == "half-open":
        breaker.abandoned(breaker.epoch)


async def _queue(exchange: Exchange, full: Sequence[Candidate]) -> Candidate | None:
    """Wait for a slot of any of `full`; None when all of them have come to cool down for long.

    Raises Refusal (503) when the queues are full, or the wait is too long.
    """
    places: dict[Slots, Candidate] = {}
    for candidate in full:
        places.setdefault(candidate.limit.slots, candidate)
    ticket: Waiter[bool] = Waiter()
    joint = Joint(ticket)
    since, tenant = _now(), exchange.tenant.name
    joint.queue(places, since, exchange.priority, len(exchange.request.body), tenant)
    exchange.await_until(exchange.total_at, SLOT)
    try:
        if not await ticket:
            return None
    except BaseException:
        if joint.slots is not None:
            joint.slots.leave(_now(), tenant)
        else:
            joint.withdraw()
        raise
    finally:
        exchange.queue_s += _now() - since
    assert joint.slots is not None
    return places[joint.slots]


def _left_alone(everybody: Sequence[Candidate], blocked: Blocked, now: float) -> GatewayError:
    """Why nobody is asked, in words, with who stands in the way and for how long."""
    said: list[str] = []
    limited = blocked.why == "cooling"
    for candidate in everybody[:8]:
        reason = why(candidate, now) or "left alone"
        limited = limited and reason == RATE_LIMITED
        breaker = candidate.breaker
        wait_s = max(candidate.wait_s(now), breaker.retry_after_s(now) if breaker is not None else 0.0)
        said.append(f"{candidate.account} ({reason}, {wait_s:.0f} s)")
    message = f"every provider of this model is being left alone for a moment: {', '.join(said)}; try again later"
    wait_s = max(1.0, blocked.wait_s)
    if limited:
        return Refusal(message, status=429, type="rate_limit_error", code="rate_limit_exceeded", retry_after_s=wait_s)
    return Refusal(message, code="no_provider_available", retry_after_s=wait_s)
