"""What a decision and its bookkeeping cost: `python -m bench.routing.decision`. µs a call, best of several runs."""

from __future__ import annotations

import random

from bench.micro.timing import best_us
from dandolo.route.balance import Balancer
from dandolo.route.breaker import Breaker
from dandolo.route.candidate import Candidate
from dandolo.route.capacity import Slots
from dandolo.route.explain import explain
from dandolo.route.limit import Limit
from dandolo.route.measure import Measured
from dandolo.route.pool import Pool

CALLS = 2000
SIZES = (1, 2, 3, 8, 16, 17, 64)


def candidates(count: int, seed: int = 1) -> list[Candidate]:
    """Candidates that have been measured for a while, alike enough for all to have a chance."""
    draw = random.Random(seed)
    made = []
    for index in range(count):
        candidate = Candidate(
            f"p{index}", Limit(Slots(64)), Breaker(draw.random), price_in=draw.uniform(1e-6, 2e-6), price_out=3e-6
        )
        for step in range(50):
            call, epoch = candidate.begin(step * 0.1)
            candidate.first_content(call, epoch, step * 0.1 + draw.lognormvariate(-1.0, 0.3))
            if draw.random() < 0.05:
                candidate.failed(call, epoch, step * 0.1 + 1)
            else:
                candidate.succeeded(call, epoch, step * 0.1 + 1 + draw.random(), 60)
        candidate.breaker = Breaker(draw.random)
        candidate.begin(5.5)
        made.append(candidate)
    return made


def decision_us(count: int) -> float:
    """One choice among `count`."""
    balancer, pool = Balancer(random.Random(2).random), Pool(candidates(count))

    def run() -> None:
        for _ in range(CALLS):
            balancer.choose(pool, 6.0, 500.0, 250.0)

    return best_us(run, CALLS)


def bookkeeping_us() -> dict[str, float]:
    """The life of a call in the measurement, and in the candidate with its limit and breaker."""
    measured, candidate = Measured(), candidates(1)[0]

    def plain() -> None:
        for at in range(CALLS):
            measured.finished(measured.begin(at * 0.01, False), at * 0.01 + 0.5, 100)

    def stream() -> None:
        for at in range(CALLS):
            now = at * 0.01
            call = measured.begin(now)
            measured.first_content(call, now + 0.3)
            measured.finished(call, now + 1.0, 100)

    def begin_and_finish() -> None:
        for at in range(CALLS):
            measured.finished(measured.begin(at * 0.01), at * 0.01 + 0.5, 100)

    def whole() -> None:
        for at in range(CALLS):
            now = 10 + at * 0.01
            call, epoch = candidate.begin(now)
            candidate.first_content(call, epoch, now + 0.3)
            candidate.succeeded(call, epoch, now + 1.0, 100)

    def slots() -> None:
        held = candidate.limit.slots
        for _ in range(CALLS):
            held.enter()
            held.leave(1.0)

    return {
        "measure: begin, finish (stream)": best_us(begin_and_finish, CALLS),
        "measure: begin, finish (plain)": best_us(plain, CALLS),
        "measure: begin, first content, finish": best_us(stream, CALLS),
        "candidate: begin, first content, success": best_us(whole, CALLS),
        "slots: enter, leave": best_us(slots, CALLS),
    }


def main() -> None:
    """Print the table."""
    for count in SIZES:
        print(f"{'decision, ' + str(count) + ' candidates':44}{decision_us(count):8.2f} µs")
    balancer, pool = Balancer(random.Random(2).random), Pool(candidates(8))
    told = best_us(lambda: [explain(balancer, pool, 6.0, 500.0, 250.0) for _ in range(100)], 100)
    print(f"{'explained, 8 candidates':44}{told:8.2f} µs")
    for what, us in bookkeeping_us().items():
        print(f"{what:44}{us:8.2f} µs")


if __name__ == "__main__":
    main()
