"""A decision told: every candidate with its terms, why others were left out, the draw and the chances.

Computed only when somebody asks; it decides by the same code as `Balancer.choose`, so what it tells is what
was done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dandolo.route.balance import Balancer, preferred_first, too_small
from dandolo.route.candidate import Candidate
from dandolo.route.pool import Pool


@dataclass(frozen=True, slots=True)
class Term:
    """A candidate in a decision.

    `left_out` is the filter that took it out ("capability", "context", "region", "tenant", "preference",
    "price", "breaker", "cool-down", "limit", "tried", "tier") or None; then the weighted terms add up to
    `score`, and `probability` is its chance before stickiness. `latency_s`, `cost_usd` (None: unknown), `error_rate`
    and `load` are the facts behind them. `until` is when breaker or cool-down end (monotonic seconds).
    """

    account: str
    model: str
    left_out: str | None
    score: float | None = None
    of_latency: float | None = None
    of_errors: float | None = None
    of_load: float | None = None
    of_cost: float | None = None
    probability: float | None = None
    latency_s: float | None = None
    cost_usd: float | None = None
    error_rate: float | None = None
    load: float | None = None
    breaker: str = "closed"
    reason: str = ""
    until: float | None = None
    in_flight: int = 0
    limit: float = 0.0


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision: `chosen` (None: nobody), how ("draw", "sticky", "only", "trial", "nobody"), the draw, everybody."""

    chosen: Candidate | None
    how: str
    draw: float | None
    terms: tuple[Term, ...]


def explain(
    balancer: Balancer,
    pool: Pool,
    now: float,
    n_in: float = 0.0,
    n_out: float = 0.0,
    tried: Sequence[Candidate] = (),
    prefix: bytes | None = None,
    room: float = 0.0,
    *,
    dry: bool = False,
) -> Explanation:
    """Decide as `balancer.choose` does, with the same arguments, and tell how.

    `dry`: tell what there is to decide from and decide nothing (a decision may make somebody a breaker's trial).
    """
    draws: list[float] = []
    left_out = {id(candidate): reason for candidate, reason in pool.rejected}
    everybody = [*pool.everybody, *(candidate for candidate, _ in pool.rejected)]
    compared = n_out if pool.n_out is None else pool.n_out
    tokens = max(n_in + n_out, room)
    weights = pool.weights or balancer.weights
    scored: dict[int, Term] = {}
    held: Candidate | None = None
    tight = tokens > pool.context_min
    for tier in pool.tiers:
        members = []
        for candidate in tier:
            if candidate in tried:
                left_out[id(candidate)] = "tried"
            elif tight and too_small(candidate, tokens):
                left_out[id(candidate)] = "context"
            else:
                members.append(candidate)
        for group in (members,) if pool.wish is None else preferred_first(members, pool.wish):
            if scored:
                # Somebody before them can be asked.
                behind = "tier" if pool.wish is None or len(group) == len(members) else "preference"
                left_out |= {id(candidate): candidate.blocked(now) or behind for candidate in group}
                continue
            scores = balancer.score(group, now, n_in, compared, weights)
            for candidate in group:
                if candidate not in scores.able:
                    left_out[id(candidate)] = candidate.blocked(now) or "breaker"
            if not scores.able:
                continue
            if prefix is not None:
                held = balancer.held(scores, prefix)
            chances = balancer.chances(scores)
            best, cheapest = min(scores.latencies), min(scores.costs)
            for index, candidate in enumerate(scores.able):
                latency, cost = scores.latencies[index], scores.costs[index]
                scored[id(candidate)] = _term(
                    candidate,
                    now,
                    None,
                    score=scores.totals[index],
                    of_latency=weights.latency * (best / latency if latency else 1.0),
                    of_errors=weights.errors * scores.healths[index],
                    of_load=weights.load * (1.0 - scores.loads[index] * scores.loads[index]),
                    of_cost=weights.cost * (cheapest / cost if cost > 0 else 1.0),
                    probability=chances[index],
                    latency_s=latency or None,
                    cost_usd=candidate.cost_usd(n_in, n_out),
                    error_rate=candidate.measured.error_rate(now),
                    load=scores.loads[index],
                )
    source = balancer.random

    def noted() -> float:
        draws.append(source())
        return draws[-1]

    if dry:
        terms = tuple(scored.get(id(c)) or _term(c, now, left_out.get(id(c), "breaker")) for c in everybody)
        return Explanation(None, "undecided", None, terms)
    balancer.random = noted
    try:
        chosen = balancer.choose(pool, now, n_in, n_out, tried, prefix, room)
    finally:
        balancer.random = source
    if chosen is None:
        how = "nobody"
    elif id(chosen) not in scored:
        how = "trial"
    elif len(scored) == 1:
        how = "only"
    else:
        how = "sticky" if chosen is held else "draw"
    terms = tuple(scored.get(id(c)) or _term(c, now, left_out.get(id(c), "breaker")) for c in everybody)
    return Explanation(chosen, how, draws[-1] if draws else None, terms)


def _term(candidate: Candidate, now: float, left_out: str | None, **facts: float | None) -> Term:
    breaker, limit = candidate.breaker, candidate.limit
    until = breaker.until(now) if breaker is not None else None
    wait_s = candidate.wait_s(now)
    if until is None and wait_s > 0:
        until = now + wait_s
    return Term(
        candidate.account,
        candidate.model,
        left_out,
        breaker=breaker.state if breaker is not None else "off",
        reason=why(candidate, now),
        until=until,
        in_flight=limit.slots.in_use,
        limit=limit.capacity(now),
        **facts,
    )


def why(candidate: Candidate, now: float) -> str:
    """Why a candidate is not asked now, in words; "" when nothing speaks against it."""
    breaker, limit = candidate.breaker, candidate.limit
    if breaker is not None and breaker.state != "closed":
        return breaker.reason
    if limit.cooled_until > now:
        return limit.reason
    return candidate.reason if candidate.cooled_until > now else ""
