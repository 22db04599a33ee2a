"""Who can be asked: from what a call names and wishes to a pool of candidates, with what each is to be called.

A `Route` holds for every call of one kind: same names, endpoint, key's patterns and wishes. It is worked out
once and kept while the configuration and what is known of models stand, so that a decision (`route.balance`)
finds everything ready.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from dandolo.api import steer
from dandolo.api.call import Call
from dandolo.api.openai import model_not_found, printable
from dandolo.api.usage import estimate_tokens
from dandolo.errors import RequestError
from dandolo.gateway.pins import pinned
from dandolo.route.candidate import Candidate
from dandolo.route.catalog import Target, admits, allowed
from dandolo.route.pool import Pool
from dandolo.route.preference import NO_PREFERENCE, Need, Preference, Sort, read_preference

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.plane import Plane
    from dandolo.gateway.spending import Prices

ROUTES_MAX = 1024
WISH_BYTES_MAX = 4096
"""A longer `provider` object is read each time."""
TOKENS_OUT_START = 256.0
TOKENS_OUT_ALPHA = 0.1

_any = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


class Route:
    """Who may take the calls of one kind.

    `targets` tells for each candidate of `pool` under which name it knows the model; `tokens_out` how long
    answers are expected to be, learned from those that came. `varied` are capabilities that some of all those who
    have the model lack, `needs` those of them for which this route was narrowed.
    """

    __slots__ = ("needs", "pool", "prices", "targets", "tokens_out", "varied")

    def __init__(
        self,
        pool: Pool,
        targets: dict[Candidate, Target],
        varied: frozenset[str],
        needs: frozenset[str] = frozenset(),
    ) -> None:
        self.pool = pool
        self.targets = targets
        self.tokens_out = TOKENS_OUT_START
        self.prices: Prices | None = None
        """The dearest, once a key with a budget has asked."""
        self.varied = varied
        self.needs = needs

    def answered(self, tokens: int) -> None:
        """Take note of an answer's length in tokens."""
        self.tokens_out += TOKENS_OUT_ALPHA * (tokens - self.tokens_out)


class Ask:
    """What one call asks of a choice: expected tokens, the window it needs, what may be cached of it, its wishes."""

    __slots__ = ("prefix", "room", "tokens_in")

    def __init__(self, call: Call, route: Route, tenant: str) -> None:
        self.tokens_in = 0.0
        self.room = 0.0
        self.prefix: bytes | None = None
        pool = route.pool
        if pool.single is None:
            self.tokens_in = float(estimate_tokens(len(call.raw)))
            self.prefix = steer.opening(call, tenant)
            if pool.context_min < float("inf"):
                longest = steer.tokens_out_max(call)
                self.room = self.tokens_in + longest
                if self.room > pool.context_min:
                    # Only now it matters how much of it is text: 35 µs for 32 KiB.
                    self.tokens_in = steer.tokens_in(call)
                    self.room = self.tokens_in + longest


def route_of(exchange: Exchange, call: Call) -> Route:
    """The route of a call. Raises RequestError: 404 when nobody has the model, 400 for wishes that cannot be read."""
    wish = call.json.get("provider") if call.wishes and call.json is not None else None
    pin = pinned(exchange, call)
    key = (call.models, call.endpoint.speech, exchange.tenant.patterns, wish, exchange.region, pin)
    routes = exchange.plane.routes
    route = routes.get(key)
    if route is None:
        route = _new_route(exchange, call, wish, pin)
        _keep(routes, key, route)
    if route.varied and (wanted := steer.needs(call) & route.varied):
        narrow_key = (*key, wanted)
        narrow = routes.get(narrow_key)
        if narrow is None:
            narrow = _narrowed(route, wanted)
            _keep(routes, narrow_key, narrow)
        return narrow
    return route


def _keep(routes: dict[tuple[Any, ...], Route], key: tuple[Any, ...], route: Route) -> None:
    if key[3] is None or len(key[3]) <= WISH_BYTES_MAX:
        if len(routes) >= ROUTES_MAX:
            routes.clear()
        routes[key] = route


def _new_route(exchange: Exchange, call: Call, wish: bytes | None, pin: str) -> Route:
    plane = exchange.plane
    preference = _preference(plane, wish) if wish is not None else NO_PREFERENCE
    targets: dict[Candidate, Target] = {}
    turns: dict[Candidate, int] = {}
    sort: Sort | None = None
    for turn, (found, sorted_by) in enumerate(_found(exchange, call)):
        sort = sort or sorted_by
        for target in found:
            candidate = plane.fleet[target.account].candidate(target.model)
            if candidate not in targets:
                targets[candidate] = target
                # Of whom nothing is known yet is asked after those who are known to have the model.
                turns[candidate] = 2 * turn + (not target.listed)
    if sort is not None and preference.sort is None:
        preference = replace(preference, sort=sort)
    own = frozenset((pin,)) if pin else None
    pool = Pool(targets, Need(region=exchange.region, pinned=own, preference=preference), turns)
    if not pool.everybody:
        raise _nobody_fits(pool)
    varied: frozenset[str] = frozenset()
    if pool.single is None or preference.requires:
        known = [c.capabilities for c in pool.everybody if c.capabilities is not None or preference.requires]
        varied = frozenset(need for need in steer.NEEDS if any(need not in (able or ()) for able in known))
    return Route(pool, targets, varied)


def _narrowed(route: Route, wanted: frozenset[str]) -> Route:
    """A route without those that lack something. Where all lack it nobody is left out: lists of models can be wrong."""
    pool = route.pool.narrowed(wanted)
    if not pool.everybody and pool.strict:
        raise _nobody_fits(pool)
    return Route(pool if pool.everybody else route.pool, route.targets, route.varied, wanted)


def _found(exchange: Exchange, call: Call) -> list[tuple[tuple[Target, ...], Sort | None]]:
    """For each name of the call who can take it and whom the key may use. Raises RequestError (404)."""
    catalog, patterns = exchange.plane.catalog, exchange.tenant.patterns
    speech = call.endpoint.speech
    found = [catalog.sorted_candidates(name, speech) for name in call.models or ("",)]
    if patterns is not None:
        found = [(tuple(t for t in targets if allowed(t, patterns)), sort) for targets, sort in found]
    if any(targets for targets, _ in found):
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


def _preference(plane: Plane, wish: bytes) -> Preference:
    try:
        value: Any = _any.decode(wish)
        preference = read_preference(value)
    except (ValueError, RecursionError) as error:
        message = "the field 'provider' cannot be decoded" if isinstance(error, RecursionError) else str(error)
        raise RequestError(message, param="provider") from None
    # Names that are none of ours are meant for a provider that routes by itself, which gets them passed on.
    known = plane.provider_names
    order = tuple(name for name in preference.order if name in known)
    only = preference.only & known
    if preference.only and not only:
        only = plane.routing_providers
        if not only:
            raise RequestError(
                f"provider.only names {printable(', '.join(sorted(preference.only)))}; expected one of "
                f"{', '.join(sorted(known))}",
                status=404,
                code="provider_not_found",
                param="provider",
            )
    return replace(preference, only=only, order=order)


def wish_for(target: Target, wish: bytes, ours: frozenset[str]) -> bytes | None:
    """What of a caller's `provider` object is passed on to a provider, None when nothing is.

    Only one that routes by itself knows the vocabulary, and our names mean nothing to it.
    """
    if not target.provider.profile.routes:
        return None
    value: Any = _any.decode(wish)
    changed = False
    for field in ("order", "only", "ignore"):
        names = value.get(field)
        if isinstance(names, list):
            theirs = [name for name in names if str(name).lower() not in ours]
            if len(theirs) < len(names):
                changed = True
                if theirs:
                    value[field] = theirs
                else:
                    del value[field]
    if not changed:
        return wish
    return _encoder.encode(value) if value else None


def _nobody_fits(pool: Pool) -> RequestError:
    reasons = sorted({reason for _, reason in pool.rejected})
    named = ", ".join(f"{candidate.account} ({reason})" for candidate, reason in pool.rejected[:8])
    param = "provider" if {"preference", "price"} & set(reasons) else "model"
    return RequestError(
        f"no provider of this model meets what the request asks for: {named}; relax it or name another model",
        status=404,
        code="no_provider_fits",
        param=param,
    )
