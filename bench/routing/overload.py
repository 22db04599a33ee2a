"""Too much work: twice the load on slots that are all taken, and retries after an outage of everybody.

Both are about what is let in, not about whom to ask: the queue of `route.capacity` against one in order of
arrival, and the budget and breakers of `route.retry` and `route.breaker` against three attempts whatever comes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.routing.policies import Recommended, RoundRobin
from bench.routing.scenarios import WORKERS, drive, quantile, tokens_of
from bench.routing.worker import Request, Worker
from bench.routing.world import FIRST_SIGMA, REFUSED_S, RESET_S, Answer, Clock, Provider, Queueing, fresh, three
from dandolo.route.limit import Limit
from dandolo.route.queue import DEADLINES_S, HIGH, LOW, NORMAL

MIX = ((HIGH, 0.2), (NORMAL, 0.3), (LOW, 0.5))
TOKENS_MEAN = 248.0
OUTAGE_S = 30.0
STORM_LOAD = 0.75
WINDOW_S = 5.0
WELL_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class Overloaded:
    """Twice the load: success of each class in %, seconds high waited (p99), useful work over capacity, recovery."""

    policy: str
    seed: int
    high: float
    normal: float
    low: float
    high_wait_p99_s: float
    goodput: float
    recovered_s: float


class Deaf(Limit):
    """A limit that learns from refusals alone."""

    def slowed(self, now: float, first_s: float, floor_s: float) -> bool:
        """Late first tokens say nothing to it."""
        return False


def slots_of(providers: Sequence[Provider]) -> tuple[list[int], float]:
    """A worker's slots at each provider, as many as carry its rate (Little's law), and what all carry a second."""
    bounds = [max(1, round(p.rate * p.expected_s(0.0, TOKENS_MEAN) / WORKERS)) for p in providers]
    carried = (WORKERS * n / p.expected_s(0.0, TOKENS_MEAN) for n, p in zip(bounds, providers, strict=True))
    return bounds, sum(carried)


def overload(
    policy: str, seed: int, *, jittered: bool = False, load_s: float = 120.0, load: float = 2.0, hidden: bool = False
) -> Overloaded:
    """`load` times what all slots carry, for `load_s`; "fifo" or "recommended".

    The bound is on slots, and there are no 429s. With `hidden` the slots are the providers', who let all that is
    beyond them wait out of our sight, and the limit is to be found out ("deaf": by refusals, of which there
    are none). Useful is what has its first content within the class's deadline; later the client has gone.
    """
    providers: Sequence[Provider] = fresh(seed, equal=False)[0] if jittered else three()
    bounds, capacity = slots_of(providers)
    if hidden:
        providers = [
            Queueing(p.name, p.first_s, p.tokens_per_s, p.price, p.rate, places=WORKERS * n)
            for p, n in zip(providers, bounds, strict=True)
        ]
        bounds = []
    for provider in providers:
        provider.rate = 1e9
    clock, arrivals, done = Clock(), random.Random(seed * 1009 + 1), list[Request]()
    start, stop = 30.0, 30.0 + load_s
    end = stop + 60.0
    workers = []
    for index in range(WORKERS):
        draw = random.Random(seed * 31 + index)
        workers.append(
            Worker(
                clock, list(providers), Recommended(draw), draw, done.append,
                full=True, hedging=False, fifo=policy == "fifo", bounds=bounds,
                limits=Deaf if policy == "deaf" else Limit,
            )
        )  # fmt: skip

    def arrive() -> None:
        rate = capacity * (load if start <= clock.now < stop else 0.5)
        clock.at(clock.now + arrivals.expovariate(rate), arrive)
        tokens, tokens_in = tokens_of(arrivals)
        draw, priority = arrivals.random(), LOW
        for kind, share in MIX:
            if draw < share:
                priority = kind
                break
            draw -= share
        if clock.now < end:
            workers[arrivals.randrange(WORKERS)].take(Request(clock.now, tokens, tokens_in, priority))

    clock.at(0.0, arrive)
    clock.run(end + 120.0)
    seen = [request for request in done if start <= request.arrived < stop]
    rates = [_useful_share([request for request in seen if request.priority == kind]) for kind, _ in MIX]
    high = [request for request in seen if request.priority == HIGH]
    after = [request for request in done if stop <= request.arrived < end]
    settled = start + 10.0
    useful = sum(1 for r in done if _useful(r) and settled <= r.arrived + r.total_s < stop)
    return Overloaded(
        policy,
        seed,
        high=100.0 * rates[0],
        normal=100.0 * rates[1],
        low=100.0 * rates[2],
        high_wait_p99_s=quantile((request.waited_s for request in high), 0.99),
        goodput=useful / (capacity * (stop - settled)),
        recovered_s=recovered_s(after, stop, end, lambda r: _useful(r) and r.waited_s <= 1.0),
    )


def _useful(request: Request) -> bool:
    return request.ok and request.first_at is not None and (
        request.first_at - request.arrived <= DEADLINES_S[request.priority]
    )  # fmt: skip


def _useful_share(requests: list[Request]) -> float:
    return sum(map(_useful, requests)) / max(1, len(requests))


def recovered_s(requests: list[Request], stop: float, end: float, well: Callable[[Request], bool]) -> float:
    """Seconds from `stop` until WELL_SHARE of the requests of each of six windows in a row are well; inf if never."""
    told: dict[int, list[bool]] = {}
    for request in requests:
        told.setdefault(int((request.arrived - stop) / WINDOW_S), []).append(well(request))
    fine = 0
    for window in range(int((end - stop) / WINDOW_S)):
        those = told.get(window, [])
        # Of few requests one may fail by chance.
        bad = len(those) - sum(those) > max(1.0, (1.0 - WELL_SHARE) * len(those))
        fine = 0 if bad else fine + 1
        if fine == 6:
            return (window - 5) * WINDOW_S
    return float("inf")


class Unforgiving(Provider):
    """A provider whose rate limit counts what it refuses too, as Venice's error budget does: hammered, it stays shut.

    A leaky bucket of one second's requests, filled by every attempt up to twice that, drained at the rate.
    """

    level = 0.0
    level_at = 0.0

    def ask(self, now: float, tokens: int, draw: random.Random) -> Answer:
        """Refused while the bucket is over full; the limit stands before what fails."""
        self.level = max(0.0, self.level - self.rate * (now - self.level_at))
        self.level_at = now
        self.level = min(2.0 * self.rate, self.level + 1.0)
        if self.level > self.rate:
            return Answer("429", end_at=now + REFUSED_S)
        if self.state(now) == "rst":
            return Answer("error", end_at=now + RESET_S)
        first_at = now + self.first_s * draw.lognormvariate(0.0, FIRST_SIGMA)
        return Answer("ok", first_at, first_at + tokens / self.tokens_per_s)


@dataclass(frozen=True, slots=True)
class Storm:
    """Retries after an outage of everybody.

    Attempts a request, seconds from the outage's end until all is well (inf: never), % of success after a minute.
    """

    policy: str
    seed: int
    amplification: float
    recovered_s: float
    success_after: float


def storm(policy: str, seed: int, *, jittered: bool = False) -> Storm:
    """All providers reset connections for OUTAGE_S, at 75 % load.

    "naive" makes three attempts, without a budget, a breaker or an ear for Retry-After; or "recommended".
    """
    source = fresh(seed)[0] if jittered else three()
    start, stop = 60.0, 60.0 + OUTAGE_S
    providers: list[Provider] = [
        Unforgiving(p.name, p.first_s, p.tokens_per_s, p.price, p.rate, "rst", start, stop) for p in source
    ]
    rate = STORM_LOAD * sum(provider.rate for provider in providers)
    clock, arrivals, done = Clock(), random.Random(seed * 1009 + 1), list[Request]()
    naive = policy == "naive"
    workers = []
    for index in range(WORKERS):
        draw = random.Random(seed * 31 + index)
        chooser = RoundRobin(draw) if naive else Recommended(draw)
        workers.append(Worker(clock, providers, chooser, draw, done.append, full=True, hedging=not naive, naive=naive))
    end = stop + 180.0
    drive(clock, workers, arrivals, rate, end)
    stormy = [request for request in done if start <= request.arrived < stop + 60.0]
    after = [request for request in done if stop <= request.arrived < end]
    late = [request for request in after if request.arrived >= stop + 60.0]
    return Storm(
        policy,
        seed,
        sum(request.attempts for request in stormy) / max(1, len(stormy)),
        recovered_s(after, stop, end, lambda r: r.ok),
        100.0 * sum(r.ok for r in late) / max(1, len(late)),
    )
