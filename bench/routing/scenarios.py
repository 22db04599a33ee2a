"""One run: four workers, Poisson arrivals, one fault for a while; and what is counted of it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log

from bench.routing.policies import POLICIES, Oracle
from bench.routing.worker import Request, Worker
from bench.routing.world import Clock, Provider, fresh, three

WORKERS = 4
RATE = 20.0
EQUAL_RATE = 10.0
TOKENS_MEDIAN, TOKENS_SIGMA = 180.0, 0.8
PROMPT_MEDIAN, PROMPT_SIGMA = 400.0, 0.7
REASONS: dict[str, int] = {}
PRICES = "equal speed"


@dataclass(frozen=True, slots=True)
class Span:
    """Virtual seconds before the fault, of it, and after it."""

    before_s: float = 60.0
    fault_s: float = 180.0
    after_s: float = 30.0


LONG = Span()
SHORT = Span(40.0, 60.0, 15.0)


@dataclass(frozen=True, slots=True)
class Result:
    """A run. Times in seconds of requests that came within the fault; percentiles of those that succeeded."""

    scenario: str
    policy: str
    mode: str
    seed: int
    requests: int
    success: float
    p95_s: float
    first_p99_s: float
    exposed: int
    amplification: float
    usd_per_1000: float


def quantile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def tokens_of(draw: random.Random) -> tuple[int, int]:
    """Output and prompt tokens of a request."""
    return (
        max(1, int(draw.lognormvariate(log(TOKENS_MEDIAN), TOKENS_SIGMA))),
        max(1, int(draw.lognormvariate(log(PROMPT_MEDIAN), PROMPT_SIGMA))),
    )


def world(scenario: str, seed: int, *, jittered: bool) -> tuple[list[Provider], float]:
    """Providers and arrivals per second of a scenario."""
    equal = scenario == PRICES
    if jittered:
        providers, rate = fresh(seed, equal=equal)
        return providers, (min(rate, 0.7 * min(p.rate for p in providers)) if equal else rate)
    return three(equal=equal), EQUAL_RATE if equal else RATE


def drive(clock: Clock, workers: Sequence[Worker], arrivals: random.Random, rate: float, end: float) -> None:
    """Let requests arrive at `rate` a second (Poisson) until `end`, each at some worker, and all of it run out."""

    def arrive() -> None:
        clock.at(clock.now + arrivals.expovariate(rate), arrive)
        tokens, tokens_in = tokens_of(arrivals)
        if clock.now < end:
            workers[arrivals.randrange(WORKERS)].take(Request(clock.now, tokens, tokens_in))

    clock.at(0.0, arrive)
    clock.run(end + 120.0)


def run(
    scenario: str,
    policy: str,
    seed: int,
    *,
    full: bool,
    span: Span = LONG,
    jittered: bool = False,
    hedging: bool = True,
) -> Result:
    """Simulate a scenario with a policy. The arrivals of a seed are the same for every policy.

    "absent" is a world in which the provider that fails in the others never was.
    """
    providers, rate = world(scenario, seed, jittered=jittered)
    if scenario == "absent":
        del providers[0]
    clock = Clock()
    arrivals = random.Random(seed * 1009 + 1)
    fault_from, fault_until = span.before_s, span.before_s + span.fault_s
    if scenario not in ("healthy", "absent", PRICES):
        first = providers[0]
        first.fault, first.fault_from, first.fault_until = scenario, fault_from, fault_until
    done: list[Request] = []
    workers = []
    for index in range(WORKERS):
        draw = random.Random(seed * 31 + index)
        chooser = Oracle(draw, cheapest=True) if scenario == PRICES and policy == "oracle" else POLICIES[policy](draw)
        workers.append(Worker(clock, providers, chooser, draw, done.append, full=full, hedging=hedging))
    end = fault_until + span.after_s
    drive(clock, workers, arrivals, rate, end)
    REASONS.clear()
    for worker in workers:
        for why, n in worker.reasons.items():
            REASONS[why] = REASONS.get(why, 0) + n
    seen = [request for request in done if fault_from <= request.arrived < fault_until]
    well = [request for request in seen if request.ok]
    return Result(
        scenario,
        policy,
        "full" if full else "alone",
        seed,
        len(seen),
        100.0 * len(well) / len(seen),
        quantile((request.total_s for request in well), 0.95),
        quantile((request.first_at - request.arrived for request in well if request.first_at is not None), 0.99),
        sum(worker.exposed.get(providers[0].name, 0) for worker in workers),
        sum(request.attempts for request in seen) / len(seen),
        1000.0 * sum(request.cost for request in well) / max(1, len(well)),
    )
