"""A choice told: in a header of the answer to whoever asked for it, and to the operator for all accounts at once."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import fields
from math import isfinite
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec

from dandolo.api.openai import printable
from dandolo.errors import RequestError
from dandolo.gateway import auto
from dandolo.gateway.choice import TOKENS_OUT_START
from dandolo.gateway.fleet import Runtime
from dandolo.route.candidate import Candidate
from dandolo.route.explain import Explanation, Term, explain, why
from dandolo.route.models import Selection
from dandolo.route.pool import Pool
from dandolo.route.preference import Need, Preference

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.plane import Plane

HEADER_BYTES_MAX = 8 * 1024
REASON_BYTES_MAX = 256
CANDIDATES_MAX = 32
ROUTES_MAX = 256

_encoder = msgspec.json.Encoder()


def told(explanation: Explanation, now: float, candidates_max: int = CANDIDATES_MAX) -> dict[str, Any]:
    """A decision as JSON: the chosen one, how, the draw, and every candidate with its terms, the best first."""
    terms = sorted(explanation.terms, key=lambda term: -(term.score if term.score is not None else -1.0))
    chosen = explanation.chosen
    said: dict[str, Any] = {
        "chosen": None if chosen is None else f"{chosen.account} {chosen.model}",
        "how": explanation.how,
        "candidates": [_term(term, now) for term in terms[:candidates_max]],
    }
    if explanation.draw is not None:
        said["draw"] = _short(explanation.draw)
    if len(terms) > candidates_max:
        said["more"] = len(terms) - candidates_max
    return said


def about_choice(exchange: Exchange, now: float) -> bytes:
    """Header lines about a choice: who failed before, which model was chosen, and all of it if that was asked for."""
    lines = b""
    if exchange.failures:
        lines = b"x-dandolo-reason: %b\r\n" % "; ".join(exchange.failures).encode("ascii", "replace")[:REASON_BYTES_MAX]
    if exchange.selection is not None and exchange.target is not None:
        lines += auto.header(exchange.selection, exchange.target.name)
    if exchange.explains:
        told_all = header(exchange.explanations, exchange.failures, exchange.selection, now)
        lines += b"x-dandolo-explain: %b\r\n" % told_all
    return lines


def header(
    explanations: Sequence[Explanation], failures: Sequence[str], selection: Selection | None, now: float
) -> bytes:
    """The value of `x-dandolo-explain`: JSON in ASCII, a decision for each attempt. At most HEADER_BYTES_MAX.

    What would be longer is told of fewer candidates.
    """
    for candidates_max in (CANDIDATES_MAX, 8, 2, 0):
        said: dict[str, Any] = {"attempts": [told(one, now, candidates_max) for one in explanations]}
        if selection is not None:
            said["auto"] = auto.told(selection)
        if failures:
            said["failed"] = list(failures)
        value = ascii_json(said)
        if len(value) <= HEADER_BYTES_MAX:
            return value
    return b'{"error":"too long to be told in a header"}'


def ascii_json(value: Any) -> bytes:
    """JSON of ASCII only: what a header may carry whatever the names in it."""
    text = _encoder.encode(value).decode()
    if text.isascii():
        return text.encode("ascii")
    # Every character beyond the first plane is two escapes (RFC 8259 §7).
    return b"".join(
        char.encode("ascii")
        if char.isascii()
        else "".join(f"\\u{unit:04x}" for unit in memoryview(char.encode("utf-16-le")).cast("H")).encode("ascii")
        for char in text
    )


def routes(plane: Plane, query: bytes, now: float, models_max: int | None = None) -> dict[str, Any]:
    """What `GET /admin/routes` answers. Raises RequestError (400, 404).

    Every account and model that was asked, as a decision would find it now; times in ms, prices in USD per million
    tokens. `models_max`: of each account only so many, those in trouble and those in use first, and how many `more`
    there are. With `model=NAME` (and `tokens_in=N`, `tokens_out=N`, `endpoint=chat`) what a call for it would find.
    """
    asked = {name: values[-1] for name, values in parse_qs(query.decode("latin-1"), max_num_fields=16).items()}
    model = asked.get("model")
    if model is None:
        return {"accounts": [_account(runtime, now, models_max) for runtime in plane.fleet]}
    speech: Any = asked.get("endpoint", "chat")
    found, sort = plane.catalog.sorted_candidates(model, speech)
    if not found:
        raise RequestError(
            f"no provider has the model {printable(model)} at the endpoint {printable(str(speech))}",
            status=404,
            code="model_not_found",
            param="model",
        )
    candidates = [plane.fleet[target.account].candidate(target.model) for target in found]
    pool = Pool(candidates, Need(preference=Preference(sort=sort)))
    tokens_in, tokens_out = _count(asked, "tokens_in", 1000.0), _count(asked, "tokens_out", TOKENS_OUT_START)
    explanation = explain(plane.balancer, pool, now, tokens_in, tokens_out, dry=True)
    return {"model": model, "tiers": len(pool.tiers), **told(explanation, now, ROUTES_MAX)}


def _count(asked: dict[str, str], name: str, default: float) -> float:
    value = asked.get(name)
    if value is None:
        return default
    if not value.isdecimal() or len(value) > 9:
        raise RequestError(f"{name} is {printable(value)}; expected a whole number of tokens", param=name)
    return float(value)


def _account(runtime: Runtime, now: float, models_max: int | None) -> dict[str, Any]:
    candidates: Iterable[Candidate] = runtime.candidates.values()
    more = 0 if models_max is None else len(runtime.candidates) - models_max
    if more > 0:
        candidates = heapq.nlargest(models_max or 0, candidates, key=_notable)
    limit, slots, config = runtime.limit, runtime.slots, runtime.account.provider.config
    said: dict[str, Any] = {
        "account": runtime.account.label,
        "provider": runtime.account.provider.name,
        "role": config.role,
        "region": config.region,
        "slots": {
            "in_use": slots.in_use,
            "limit": slots.limit,
            "learned_limit": _short(limit.value),
            "capacity": _short(limit.capacity(now)),
            "waiting": slots.waiting,
        },
        "models": [_candidate(candidate, now) for candidate in _ordered(candidates)],
    }
    if more > 0:
        said["more"] = more
    if limit.wait_s(now):
        said["cooling_ms"] = _ms(limit.wait_s(now))
        said["reason"] = limit.reason or "nothing left of its rate limit"
    if limit.told_until > now:
        said["headroom"] = _short(limit.headroom)
    return said


def _notable(candidate: Candidate) -> tuple[bool, bool, float]:
    """Open or half-open, in use, asked last."""
    breaker, measured = candidate.breaker, candidate.measured
    troubled = breaker is not None and breaker.state != "closed"
    return troubled, measured.in_flight > 0, max(measured.first_at, measured.errors_at)


def _ordered(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda candidate: candidate.model)


def _candidate(candidate: Candidate, now: float) -> dict[str, Any]:
    breaker, measured = candidate.breaker, candidate.measured
    said: dict[str, Any] = {
        "model": candidate.model,
        "breaker": breaker.state if breaker is not None else "off",
        "in_flight": measured.in_flight,
        "error_rate": _short(measured.error_rate(now)),
        "first_token_ms": _ms(measured.first_s),
        "first_token_p95_ms": _ms(measured.first_p95_s),
        "tokens_per_s": _short(measured.tokens_per_s),
        "plain_ms": _ms(measured.total_s),
        "input_usd_per_mtok": None if candidate.price_in is None else _short(candidate.price_in * 1e6),
        "output_usd_per_mtok": None if candidate.price_out is None else _short(candidate.price_out * 1e6),
        "context_tokens": candidate.context_tokens,
        "capabilities": None if candidate.capabilities is None else sorted(candidate.capabilities),
    }
    waits_s = max(candidate.cooled_until - now, breaker.retry_after_s(now) if breaker is not None else 0.0)
    if waits_s > 0:
        said["left_alone_ms"] = _ms(waits_s)
        said["reason"] = why(candidate, now)
    if measured.oldest_s(now):
        said["oldest_unanswered_ms"] = _ms(measured.oldest_s(now))
    return {name: value for name, value in said.items() if value is not None}


def _term(term: Term, now: float) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for field in fields(term):
        value = getattr(term, field.name)
        if value is None or value == "" or (field.name == "breaker" and value == "closed"):
            continue
        if field.name == "until":
            said["for_ms"] = _ms(value - now)
        else:
            said[field.name] = _short(value) if isinstance(value, float) else value
    return said


def _short(value: float) -> float | None:
    """Four significant digits."""
    return float(f"{value:.4g}") if isfinite(value) else None


def _ms(seconds: float) -> float | None:
    """Milliseconds, None for an unknown (0)."""
    return _short(seconds * 1e3) if seconds > 0 else None
