"""Who is asked: a score from live facts, and a draw that prefers the best without herding.

    L    = first token (or the age of the oldest unanswered call, where that is alarming) + n_out / tokens_per_s
    cost = n_in · price_in + n_out · price_out
    load = max((in_flight + 1) / capacity, 1 − headroom)
    S    = w_latency · Lmin/L + w_errors · max(−1, 1 − err/.17) + w_load · (1 − load²) + w_cost · costmin/cost

over the candidates that can be asked now; then two in a hundred calls go anywhere, the others by a softmax
of S / .02. Terms are relative to the best of the candidates, so that they mean the same for a model of
0.2 s and one of 20 s; load is squared, since a straight line leaves a good provider for slower ones while it
is half idle. A draw instead of the maximum keeps workers from herding onto one provider between two looks at
it, and the two in a hundred keep what is known of the others fresh. Above 16 candidates two are drawn and
compared (Mitzenmacher 2001). What is not known of a candidate is taken from its peers' median.
Time is monotonic seconds and always an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp

from dandolo.config.schema import Weights
from dandolo.route.candidate import Candidate
from dandolo.route.measure import ERRORS_HELD_S
from dandolo.route.pool import Pool
from dandolo.route.preference import Preference
from dandolo.route.queue import NORMAL
from dandolo.route.retry import LOCAL_WAIT_MAX_S

TEMPERATURE = 0.02
EXPLORATION = 0.02
ERRORS_WORST = 0.17
"""The error rate at which the term is spent. At a quarter, the estimate of a brownout of 30 % (an EWMA that
wanders by a tenth) crossed again and again the rate at which a provider of four times the speed is worth it."""
HEALTH_MIN = -1.0
"""At twice ERRORS_WORST. Were the term to end at zero, a provider that fails always would be as good as one that
fails a sixth of the time, and better than a sound one of a third of its speed: it went on being asked."""
SCORED_MAX = 16
DRAWS_OF_TWO = 4
STICKY_SHARE = 0.9
STICKY_MAX = 4096
_FAR = 20.0
"""Temperatures below the best at which a chance is 2 · 10⁻⁹, and not worth an exponential."""


@dataclass(slots=True)
class Scores:
    """Candidates that can be asked now with the terms of their scores (unweighted), all of one length."""

    able: list[Candidate]
    latencies: list[float]
    costs: list[float]
    healths: list[float]
    loads: list[float]
    totals: list[float]


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why nobody can be asked now, and what to do.

    `why` "full": wait for a slot of any of `full`, the soonest first; "cooling": wait `wait_s` for `candidate`,
    nothing has failed, or in the queues of `full` if there are any, whose accounts are well again soon; "open":
    every breaker is open, `candidate` is the least bad and may be asked if the retry budget allows, else 503 with
    Retry-After `wait_s`; "tried": all were asked already; "none": nobody fits the call.
    """

    why: str
    candidate: Candidate | None
    wait_s: float
    full: tuple[Candidate, ...] = ()


class Balancer:
    """One worker's chooser. `random` gives numbers in [0, 1) (a test passes its own)."""

    __slots__ = ("_sticky", "exploration", "random", "temperature", "weights")

    def __init__(
        self,
        random: Callable[[], float],
        weights: Weights | None = None,
        *,
        temperature: float = TEMPERATURE,
        exploration: float = EXPLORATION,
    ) -> None:
        self.weights = weights if weights is not None else Weights()
        self.temperature = temperature
        self.exploration = exploration
        self.random = random
        self._sticky: dict[bytes, Candidate] = {}

    def choose(
        self,
        pool: Pool,
        now: float,
        n_in: float = 0.0,
        n_out: float = 0.0,
        tried: Sequence[Candidate] = (),
        prefix: bytes | None = None,
        room: float = 0.0,
    ) -> Candidate | None:
        """Who is asked now; None when nobody can be (`blocked` says why and what to do).

        `n_in` and `n_out` are expected tokens; `tried` are not asked again; `prefix` is a hash of what the
        provider may have cached; `room` is the window the call asks for where that is more than it is expected to
        need. A candidate in half-open is returned as its trial: report its outcome.
        """
        tokens = n_in + n_out
        if room > tokens:
            tokens = room
        only = pool.single
        if only is not None:
            breaker, limit = only.breaker, only.limit
            if (
                only in tried
                or limit.cooled_until > now
                or only.cooled_until > now
                or not limit.room(now)
                or tokens > pool.context_min
                or not (breaker is None or breaker.state == "closed" or breaker.admits(now))
            ):
                return None
            return only
        weights = pool.weights or self.weights
        if pool.n_out is not None:
            n_out = pool.n_out
        due: Candidate | None = None
        tight = tokens > pool.context_min
        for tier in pool.tiers:
            members: Sequence[Candidate] = tier
            if tried or tight:
                members = [c for c in tier if c not in tried and not (tight and too_small(c, tokens))]
            for group in (members,) if pool.wish is None else preferred_first(members, pool.wish):
                for candidate in group:
                    breaker = candidate.breaker
                    if breaker is not None and breaker.state != "closed" and not breaker.retry_after_s(now):
                        if not tried and candidate.limit.cooled_until <= now and candidate.cooled_until <= now:
                            # Somebody has to try whether it is well again, and nobody was let down yet.
                            breaker.admits(now)
                            return candidate
                        due = due or candidate
                if len(group) > SCORED_MAX:
                    found = self._of_two(group, now, n_in, n_out, weights)
                    if found is not None:
                        return found
                scores = self.score(group, now, n_in, n_out, weights)
                if scores.able:
                    return self._pick(scores, self.random(), prefix)
        if due is not None and due.breaker is not None and due.breaker.admits(now):
            return due
        return None

    def score(self, members: Sequence[Candidate], now: float, n_in: float, n_out: float, weights: Weights) -> Scores:
        """Those of `members` that can be asked now, with their scores and the terms of them."""
        able: list[Candidate] = []
        latencies: list[float] = []
        costs: list[float] = []
        healths: list[float] = []
        loads: list[float] = []
        cold = unpriced = False
        for candidate in members:
            breaker = candidate.breaker
            if breaker is not None and breaker.state != "closed":
                continue
            limit = candidate.limit
            if limit.cooled_until > now or candidate.cooled_until > now:
                continue
            capacity = limit.value if limit.slow_until <= now else limit.capacity(now)
            load = (limit.slots.in_use + 1) / capacity
            if load > 1.0:
                continue
            if limit.told_until > now:
                if limit.headroom <= 0.0:
                    continue
                if 1.0 - limit.headroom > load:
                    load = 1.0 - limit.headroom
            measured = candidate.measured
            latency = measured.first_s
            if latency and measured.tokens_per_s:
                age = now - measured.oldest_at
                if age > measured.stall_s and age > latency:
                    latency = age
                latency += n_out / measured.tokens_per_s
            else:
                latency = measured.latency_s(now, n_out)
                if not latency:
                    cold = True
            price_in, price_out = candidate.price_in, candidate.price_out
            if price_in is None or price_out is None:
                unpriced = True
                cost = -1.0
            else:
                cost = n_in * price_in + n_out * price_out
            errors = measured.errors
            if errors:
                if now - measured.errors_at > ERRORS_HELD_S:
                    errors = measured.error_rate(now)
                health = 1.0 - errors / ERRORS_WORST
                healths.append(health if health > HEALTH_MIN else HEALTH_MIN)
            else:
                healths.append(1.0)
            able.append(candidate)
            latencies.append(latency)
            costs.append(cost)
            loads.append(load)
        if cold:
            if not any(latencies):
                # Nothing is known of anybody: where each of them serves from is all there is to go by.
                latencies = [candidate.prior_s for candidate in able]
            _fill(latencies, 0.0)
        if unpriced:
            _fill(costs, -1.0)
        totals: list[float] = []
        if able:
            # Where nothing is known of anybody, or all are free, a term is the same for all. A load above 1 was
            # left out above, so that its term needs no floor.
            of_latency, of_errors, of_load, of_cost = weights.latency, weights.errors, weights.load, weights.cost
            best, cheapest = of_latency * min(latencies), of_cost * min(costs)
            totals = [
                (best / latency if latency else of_latency)
                + of_errors * health
                + of_load * (1.0 - load * load)
                + (cheapest / cost if cost > 0.0 else of_cost)
                for latency, health, load, cost in zip(latencies, healths, loads, costs, strict=True)
            ]
        return Scores(able, latencies, costs, healths, loads, totals)

    def chances(self, scores: Scores) -> list[float]:
        """The probability of each candidate of `scores` (stickiness apart); they add up to 1."""
        top = max(scores.totals)
        odds = [exp((total - top) / self.temperature) for total in scores.totals]
        share = (1.0 - self.exploration) / sum(odds)
        return [self.exploration / len(odds) + share * one for one in odds]

    def held(self, scores: Scores, prefix: bytes) -> Candidate | None:
        """The account that has this prefix cached, while it is nearly the best and has room."""
        holder = self._sticky.get(prefix)
        if holder is not None and holder in scores.able:
            index = scores.able.index(holder)
            if scores.totals[index] >= STICKY_SHARE * max(scores.totals) and scores.loads[index] < 1.0:
                return holder
        return None

    def keep(self, prefix: bytes, candidate: Candidate) -> None:
        """Remember who has a prefix; the oldest are forgotten."""
        if self._sticky.get(prefix) is not candidate:
            self._sticky.pop(prefix, None)
            if len(self._sticky) >= STICKY_MAX:
                del self._sticky[next(iter(self._sticky))]
            self._sticky[prefix] = candidate

    def _pick(self, scores: Scores, draw: float, prefix: bytes | None) -> Candidate:
        """One draw in [0, 1) decides both whether to explore and whom to ask."""
        if prefix is None:
            return self._drawn(scores, draw)
        candidate = self.held(scores, prefix) or self._drawn(scores, draw)
        self.keep(prefix, candidate)
        return candidate

    def _drawn(self, scores: Scores, draw: float) -> Candidate:
        able = scores.able
        if len(able) == 1:
            return able[0]
        exploration = self.exploration
        if draw < exploration:
            return able[int(draw / exploration * len(able))]
        totals, temperature = scores.totals, self.temperature
        top = max(totals)
        bar = top - _FAR * temperature
        odds = [exp((total - top) / temperature) if total > bar else 0.0 for total in totals]
        left = (draw - exploration) / (1.0 - exploration) * sum(odds)
        for index, one in enumerate(odds):
            left -= one
            if left < 0.0:
                return able[index]
        return able[totals.index(top)]

    def _of_two(
        self, members: Sequence[Candidate], now: float, n_in: float, n_out: float, weights: Weights
    ) -> Candidate | None:
        """The better of two drawn at random; None when those drawn could not be asked."""
        for _ in range(DRAWS_OF_TWO):
            one = int(self.random() * len(members))
            other = int(self.random() * (len(members) - 1))
            pair = (members[one], members[other + (other >= one)])
            scores = self.score(pair, now, n_in, n_out, weights)
            if scores.able:
                return scores.able[scores.totals.index(max(scores.totals))]
        return None

    def blocked(
        self,
        pool: Pool,
        now: float,
        tokens: float = 0.0,
        tried: Sequence[Candidate] = (),
        priority: int = NORMAL,
    ) -> Blocked:
        """What to do after `choose` found nobody for a call of this many tokens and this class."""
        # As `choose` has it: a pool of the widest windows finds nobody too small.
        tight = tokens > pool.context_min
        fit = [c for c in pool.everybody if not (tight and too_small(c, tokens))]
        left = [c for c in fit if c not in tried]
        if not left:
            return Blocked("tried" if fit else "none", None, 0.0)
        shut = {id(c): c.breaker.retry_after_s(now) if c.breaker is not None else 0.0 for c in left}
        well = [c for c in left if not shut[id(c)]]
        full = [c for c in well if c.wait_s(now) <= 0]
        # Accounts that cool down hand nothing on before that has ended, and may then be the first to. Of a model's
        # own pause, or of what headers told, their queues know nothing.
        cooling = sorted(
            (c for c in well if c.cooled_until <= now and 0 < c.limit.wait_s(now) <= c.limit.cooled_until - now),
            key=lambda c: c.limit.cooled_until,
        )
        if full:
            full.sort(key=lambda c: (c.limit.slots.wait_s(priority), c.limit.slots.waiting))
            return Blocked("full", full[0], full[0].limit.slots.wait_s(priority), (*full, *cooling))
        if well:
            soonest = min(well, key=lambda c: c.wait_s(now))
            soon = tuple(c for c in cooling if c.limit.cooled_until - now <= LOCAL_WAIT_MAX_S)
            return Blocked("cooling", soonest, soonest.wait_s(now), soon)
        least_bad = min(left, key=lambda c: (c.wait_s(now) > 0, shut[id(c)]))
        return Blocked("open", least_bad, max(1.0, min(shut.values())))


def is_preferred(candidate: Candidate, wish: Preference) -> bool:
    """Whether a candidate is as quick as the caller prefers, as far as is known."""
    measured = candidate.measured
    if wish.first_max_s is not None and measured.first_s > wish.first_max_s:
        return False
    return wish.tokens_per_s_min is None or not 0.0 < measured.tokens_per_s < wish.tokens_per_s_min


def preferred_first(members: Sequence[Candidate], wish: Preference) -> tuple[list[Candidate], list[Candidate]]:
    """Those who are as quick as the caller prefers, and the others, who are asked when none of these can be."""
    quick = [candidate for candidate in members if is_preferred(candidate, wish)]
    return quick, [candidate for candidate in members if candidate not in quick]


def too_small(candidate: Candidate, tokens: float) -> bool:
    """Whether a candidate's window is known not to hold a call of so many tokens."""
    return candidate.context_tokens is not None and tokens > candidate.context_tokens


def _fill(values: list[float], unknown: float) -> None:
    """Put the median of what is known in the place of what is not."""
    known = sorted(value for value in values if value != unknown)
    if known:
        middle = known[len(known) // 2] if len(known) % 2 else (known[len(known) // 2 - 1] + known[len(known) // 2]) / 2
        values[:] = [middle if value == unknown else value for value in values]
