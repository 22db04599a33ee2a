"""Ways to choose, all given the same candidates. Only the recommended one is the gateway's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from bench.routing.world import Provider
from dandolo.config.schema import Weights
from dandolo.route.balance import Balancer
from dandolo.route.candidate import Candidate
from dandolo.route.pool import Pool

TOKENS_IN = 500.0
TOKENS_OUT = 250.0
CACHED_S = 30.0
UNHEALTHY_S = 5.0


class Policy(Protocol):
    """One worker's chooser."""

    def choose(self, able: Sequence[Candidate], now: float, tokens: int) -> Candidate:
        """One of `able`, which is not empty."""


class RoundRobin:
    """In turn."""

    def __init__(self, draw: random.Random) -> None:
        self._turn = draw.randrange(1000)

    def choose(self, able: Sequence[Candidate], now: float, tokens: int) -> Candidate:
        self._turn += 1
        return able[self._turn % len(able)]


class LeastOutstanding:
    """The fewest calls under way, ties at random."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw

    def choose(self, able: Sequence[Candidate], now: float, tokens: int) -> Candidate:
        return min(able, key=lambda c: (c.measured.in_flight, self._draw.random()))


class PeakEwma:
    """Finagle's: latency that jumps up at once and decays over 10 s, times calls under way; the better of two."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw

    def choose(self, able: Sequence[Candidate], now: float, tokens: int) -> Candidate:
        two = self._draw.sample(list(able), 2) if len(able) > 2 else able
        return min(two, key=lambda c: (peak(c, now) * (c.measured.in_flight + 1), self._draw.random()))


def peak(candidate: Candidate, now: float) -> float:
    """The peak EWMA that the worker keeps in the candidate's tag."""
    log = candidate.tag
    assert isinstance(log, Log)
    return log.peak(now)


class Log:
    """What the other policies keep of one candidate: totals as they came, failures' too, as those policies do."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.ends: list[tuple[float, float, bool]] = []
        self._peak = 0.0
        self._peak_at = 0.0

    def ended(self, now: float, took_s: float, well: bool) -> None:
        """An attempt has ended after `took_s`."""
        self.ends.append((now, took_s, well))
        left = 2.718281828 ** (-(now - self._peak_at) / 10.0)
        self._peak = took_s if took_s > self._peak else self._peak * left + took_s * (1 - left)
        self._peak_at = now

    def peak(self, now: float) -> float:
        """The peak EWMA as of now."""
        return self._peak


class Literal:
    """The mission's formula as it is written: averages refreshed every 30 s, saturating terms, the maximum."""

    def __init__(self, draw: random.Random) -> None:
        self._read_at = -1e9
        self._facts: dict[str, tuple[float, float, float]] = {}

    def choose(self, able: Sequence[Candidate], now: float, tokens: int) -> Candidate:
        if now - self._read_at >= CACHED_S:
            self._read_at = now
            for candidate in able:
                log = candidate.tag
                assert isinstance(log, Log)
                seen = [end for end in log.ends if end[0] > now - CACHED_S]
                log.ends = seen
                if seen:
                    average = sum(end[1] for end in seen) / len(seen)
                    errors = sum(not end[2] for end in seen) / len(seen)
                    self._facts[candidate.account] = (average, errors, candidate.measured.in_flight / 100)
        well = [c for c in able if self._facts.get(c.account, (0.0,))[0] < UNHEALTHY_S] or able
        return max(well, key=self._score)

    def _score(self, candidate: Candidate) -> float:
        average, errors, load = self._facts.get(candidate.account, (0.0, 0.0, 0.0))
        return (
            0.4 / (1 + average)
            + 0.3 * (1 - errors)
            + 0.2 * (1 - load)
            + 0.1 / (1 + 1000 * (candidate.price_out or 0.0))
        )


class Oracle:
    """Knows every provider's state and what is left of its rate, and takes what will end soonest (or costs least)."""

    def __init__(self, draw: random.Random, *, cheapest: bool = False) -> None:
        self._cheapest = cheapest

    def choose(self, able: Sequence[Candidate], now: float, tokens: int) -> Candidate:
        def rank(candidate: Candidate) -> tuple[int, float]:
            log = candidate.tag
            assert isinstance(log, Log)
            provider = log.provider
            state = provider.state(now)
            bad = 3 if state in ("rst", "black hole") else 2 if state == "brownout" else 0
            if not bad and provider.room(now) < 1.0:
                bad = 1
            return bad, provider.price if self._cheapest else provider.expected_s(now, tokens)

        return min(able, key=rank)


class Recommended:
    """The gateway's own: `dandolo.route.balance`."""

    def __init__(self, draw: random.Random) -> None:
        self.balancer = Balancer(draw.random, Weights())
        self._pools: dict[tuple[int, ...], Pool] = {}

    def choose(self, able: Sequence[Candidate], now: float, tokens: int) -> Candidate:
        """Only for selection alone, where everybody is able: nobody may be left without a choice."""
        key = tuple(map(id, able))
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(able)
        chosen = self.balancer.choose(pool, now, TOKENS_IN, TOKENS_OUT)
        # All at their limits: the gateway would queue. Here the least loaded that does not fail is asked.
        return chosen or min(
            able, key=lambda c: (c.measured.error_rate(now) > 0.1, (c.limit.slots.in_use + 1) / c.limit.value)
        )


POLICIES: dict[str, type] = {
    "round robin": RoundRobin,
    "literal formula": Literal,
    "peak EWMA": PeakEwma,
    "least outstanding": LeastOutstanding,
    "recommended": Recommended,
    "oracle": Oracle,
}
