"""Who is asked: the candidates of a call, and the next of them, in configured order.

This is the seam at which choosing by live measurement will stand: it sees candidates, what is known of
their health, and what was tried; it decides and returns.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dandolo.api.call import Call
from dandolo.api.openai import model_not_found
from dandolo.errors import Refusal, RequestError
from dandolo.net.sweep import NEVER
from dandolo.route.catalog import Target, admits, allowed

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange

_now = time.monotonic


def candidates(exchange: Exchange, call: Call) -> tuple[Target, ...]:
    """Everybody who can take the call and whom the key may use, in order. Raises RequestError (404)."""
    catalog, tenant = exchange.plane.catalog, exchange.tenant
    speech = call.endpoint.speech
    if len(call.models) < 2:
        found = catalog.candidates(call.model, speech)
    else:
        found = tuple(target for name in call.models for target in catalog.candidates(name, speech))
    patterns = tenant.patterns
    if patterns is not None:
        found = tuple(target for target in found if allowed(target, patterns))
    if found:
        return found
    if patterns is None and (not call.models or any(catalog.knows(name) for name in call.models)):
        raise RequestError(
            f"no configured provider of this model offers {call.endpoint.path}",
            status=404,
            code="endpoint_not_available",
            param="model" if call.models else None,
        )
    names = [name for name in catalog.names() if patterns is None or admits(patterns, name)]
    raise model_not_found(call.model, names)


def choose(exchange: Exchange, targets: tuple[Target, ...], tried: list[Target]) -> Target:
    """The next to ask: in order, those that are well before those that are cooling down.

    This is the seam at which choosing by live measurement will stand. Raises Refusal when every breaker
    is open.
    """
    now = _now()
    fleet = exchange.plane.fleet
    first = targets[0]
    if not tried and fleet[first.account].well(first.model):
        return first
    cooling: list[tuple[float, Target]] = []
    soonest = NEVER
    for target in targets:
        if tried and _asked(target, tried):
            continue
        runtime = fleet[target.account]
        wait_s = runtime.cooling_s(target.model, now)
        if wait_s:
            cooling.append((wait_s, target))
            continue
        breaker = runtime.breaker(target.model)
        if breaker is None or breaker.admits(now):
            return target
        soonest = min(soonest, breaker.retry_after_s(now))
    if cooling:
        return min(cooling, key=lambda pair: pair[0])[1]
    if exchange.error is not None:
        raise exchange.error
    raise Refusal(
        "every provider of this model is failing and being left alone for a moment; try again later",
        code="no_provider_available",
        retry_after_s=max(1.0, soonest if soonest < NEVER else 1.0),
    )


def more(exchange: Exchange, targets: tuple[Target, ...], tried: list[Target]) -> bool:
    """Whether anybody could take over after `tried`."""
    if len(targets) == 1 or exchange.attempts >= exchange.plane.config.routing.attempts_max:
        return False
    now = _now()
    for target in targets:
        if not _asked(target, tried):
            breaker = exchange.plane.fleet[target.account].breaker(target.model)
            if breaker is None or breaker.retry_after_s(now) <= 0:
                return True
    return False


def _asked(target: Target, tried: list[Target]) -> bool:
    """Whether a target was tried already: each attempt goes to another account, or to another model on it."""
    return any(target.account is other.account and target.model == other.model for other in tried)
