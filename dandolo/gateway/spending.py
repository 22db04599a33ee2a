"""What a call may take of its key's tokens and budget, set aside before anybody is asked, and what it took.

Set aside is the worst case: the tokens sent, by their bytes, and the longest answer the caller allows
(OUTPUT_TOKENS_DEFAULT where it says nothing, the model's own bound where that is lower), at the dearest known price of
those who could be asked. Answers of the cache need nobody and take nothing. A key with a budget cannot ask where no
price is known: neither a bill that was made up nor one that is left out would be right.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from dandolo.api import steer
from dandolo.api.body import JsonBody
from dandolo.api.call import Call
from dandolo.api.openai import printable
from dandolo.api.usage import Usage, estimate_tokens
from dandolo.errors import GatewayError, Refusal, RequestError

if TYPE_CHECKING:
    from dandolo.gateway.choice import Route
    from dandolo.gateway.exchange import Exchange

OUTPUT_TOKENS_DEFAULT = 4096
INLINE_TOKENS = 1500
"""Of an image or a sound within a request: about what a picture of a screen takes at most providers."""
CHOICES_MAX = 128
CHARS_MAX = 64
RETRY_AFTER_S = 5.0
"""Where a provider's list, with its prices, could not be fetched."""
_BY_TOKENS = frozenset(("chat", "completions", "embeddings", "moderations", "responses", "messages"))
_SILENT = frozenset(("embeddings", "moderations"))
_FREE = frozenset(("models", "count_tokens", "responses.item", "image.styles"))
_INLINE = b";base64,"
_DIGIT_AT = _INLINE.index(b"6")

_now = time.monotonic


class Prices(NamedTuple):
    """The dearest of a route, micro-USD a token, and its longest answer (None: not known)."""

    input: float
    output: float
    output_tokens_max: int | None


class Held(msgspec.Struct, gc=False):
    """What is set aside for an exchange, since when, and what it is charged by if nobody tells what it took."""

    since: float
    tokens: int
    micro: int
    input_tokens: int
    prices: Prices | None


def reserve(exchange: Exchange, call: Call, route: Route, now: float) -> None:
    """Set aside what a call may take, once. Raises RequestError (429, 402, 400), with nothing set aside."""
    spending, name = exchange.admitted.tenant.spending, call.endpoint.name
    if spending is None or exchange.held is not None or name in _FREE:
        return
    sent, choices, asked, body = 0, 1, 0.0, call.json
    by_tokens = name in _BY_TOKENS
    if by_tokens:
        raw = call.raw
        # A search for one byte is many times as quick, and this one is rare in text; backwards a word is found in a
        # quarter of the time (3 µs in 32 KB).
        digit = raw.find(b"6")
        if digit < 0 or raw.rfind(_INLINE, digit - _DIGIT_AT if digit > _DIGIT_AT else 0) < 0:
            sent = estimate_tokens(len(raw))
        else:
            sent = int(steer.tokens_in(call)) + INLINE_TOKENS * raw.count(_INLINE)
    if name in _SILENT:
        choices, tokens = 0, sent
    else:
        if body is not None:
            fields = body.fields
            asked = steer.tokens_out_max(call)
            if "n" in fields or "best_of" in fields:
                choices = _choices(body)
        tokens = sent + int(asked or route.tokens_out) * choices
    if not spending.budgeted:
        exchange.held = Held(now, spending.reserve(now, 0.0, sent, tokens, 0), 0, sent, None)
        return
    prices = route.prices or _prices(route)
    if body is not None and "background" in body.fields and body.get("background") == b"true":
        # What it costs is told to whoever asks for it later, and to no request that could be charged.
        raise _refused("what a background answer costs is not known when it is asked for", "leave background out")
    if prices is None or (not by_tokens and (prices.input or prices.output)):
        raise _price_unknown(exchange, call, route)
    longest, most = asked or OUTPUT_TOKENS_DEFAULT, prices.output_tokens_max
    if most is not None and most < longest:
        longest = most
    micro = round(sent * prices.input + longest * choices * prices.output)
    exchange.held = Held(now, spending.reserve(now, time.time(), sent, tokens, micro), micro, sent, prices)


def must_learn(exchange: Exchange, route: Route) -> bool:
    """Whether a list of models has to be fetched before it is known what a call of a key with a budget may cost."""
    if route.prices is not None:
        return False
    spending = exchange.tenant.spending
    return spending is not None and spending.budgeted and _prices(route) is None and bool(_unlisted(exchange, route))


def _unlisted(exchange: Exchange, route: Route) -> list[str]:
    """Providers of a route of whose models neither a list nor a configuration tells anything."""
    facts = exchange.plane.catalog.facts
    providers = {target.provider.name: target.provider for target in route.targets.values()}
    return [name for name, one in providers.items() if not one.prices and not facts.fetched(name)]


def settle(exchange: Exchange, *, answered: bool, left: bool) -> None:
    """Put what it took in the place of what was set aside.

    `answered`: the client got its answer; one that says nothing of tokens is charged by its size. `left`: the client
    has gone, and somebody may have worked for it: it is charged for what it sent.
    """
    held, spending, usage = exchange.held, exchange.admitted.tenant.spending, exchange.usage
    assert held is not None
    assert spending is not None
    exchange.held = None
    if usage is None or not (usage.input_tokens or usage.output_tokens or usage.cost_usd):
        if answered:
            usage = Usage(held.input_tokens, estimate_tokens(exchange.bytes_out) if held.input_tokens else 0)
        elif left and exchange.attempts:
            usage = Usage(held.input_tokens)
        else:
            usage = Usage()
    tokens_in, tokens_out = usage.input_tokens, usage.output_tokens
    if not spending.budgeted:
        spending.settle(held.since, held.tokens, 0, exchange.ended_at or _now(), 0.0, tokens_in + tokens_out, 0)
        return
    cost, target = usage.cost_usd, exchange.target
    if cost is None and target is not None:
        # The record says the same, and need not work it out again.
        cost = usage.cost_usd = target.cost_usd(tokens_in, tokens_out)
    if cost is not None:
        micro = round(cost * 1e6)
    elif held.prices is not None:
        # Of those who could be asked this one's price is not known: the dearest of the others.
        micro = round(tokens_in * held.prices.input + tokens_out * held.prices.output)
    else:
        micro = 0
    now = exchange.ended_at or _now()
    spending.settle(held.since, held.tokens, held.micro, now, time.time(), tokens_in + tokens_out, micro)


def _prices(route: Route) -> Prices | None:
    """The dearest of a route, None where no price is known. Worked out once: facts that change make new routes."""
    if route.prices is not None:
        return route.prices
    dearest: Prices | None = None
    for target in route.targets.values():
        facts = target.facts
        if facts is None or facts.input_usd_per_mtok is None or facts.output_usd_per_mtok is None:
            continue
        before = dearest or Prices(0.0, 0.0, 0)
        most = before.output_tokens_max
        if facts.output_tokens_max is None or most is None:
            most = None
        else:
            most = max(most, facts.output_tokens_max)
        # USD a million tokens are micro-USD a token.
        dearest = Prices(
            max(before.input, facts.input_usd_per_mtok), max(before.output, facts.output_usd_per_mtok), most
        )
    route.prices = dearest
    return dearest


def _choices(body: JsonBody) -> int:
    """How many answers are asked for at once."""
    most = 1
    for name in ("n", "best_of"):
        raw = body.get(name)
        if raw is not None:
            most = max(most, _count(raw))
    return most


def _count(raw: bytes) -> int:
    """A number of answers as lenient providers read it, too: 3, 3.0, 3e0 and "3". At least 1, at most CHOICES_MAX."""
    if len(raw) > CHARS_MAX:
        return CHOICES_MAX
    try:
        return int(max(1.0, min(float(raw.strip(b'"')), float(CHOICES_MAX))))
    except ValueError:
        return 1


def _price_unknown(exchange: Exchange, call: Call, route: Route) -> GatewayError:
    if call.endpoint.name in _BY_TOKENS:
        what = f"the price of {printable(call.model or 'the default model')} is not known"
        remedy = "set input_usd_per_mtok and output_usd_per_mtok for it under [[providers.models]]"
        missing = _unlisted(exchange, route)
        if missing:
            return Refusal(
                f"{what}, since the list of models of {', '.join(missing)} could not be fetched, and this key has a"
                f" budget; try again later, or {remedy}",
                code="prices_not_known_yet",
                retry_after_s=RETRY_AFTER_S,
            )
    else:
        what = f"what {call.endpoint.path} costs is not known, since it is not billed by tokens"
        remedy = "set both prices of the model to 0.0 if it is free"
    return _refused(what, remedy, "model" if call.models else None)


def _refused(what: str, remedy: str, param: str | None = "background") -> RequestError:
    return RequestError(
        f"{what}, and this key has a budget; {remedy}, or use a key without a budget",
        status=402,
        type="insufficient_quota",
        code="price_unknown",
        param=param,
    )
