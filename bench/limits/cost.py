"""What limits cost a request: the board alone, by number of workers.  `python -m bench.limits.cost`

The best of several repeats, in ns of one call. `enter + leave` is what every request of a key with a rate or a bound
on concurrency pays, `reserve + settle` what those with tokens or a budget pay beside it; `turn` comes once a second and
key.
"""

from __future__ import annotations

import os
import time
import timeit
from collections.abc import Callable

from dandolo.board import Board, Calendar
from dandolo.gateway.allowance import Allowance
from dandolo.policy import KeyTerms

CALLS = 20_000
REPEATS = 7


def best_ns(call: Callable[[], object]) -> float:
    """Of one call."""
    return min(timeit.repeat(call, number=CALLS, repeat=REPEATS)) / CALLS * 1e9


def allowance(workers: int, terms: KeyTerms) -> Allowance:
    """Of a worker on a board of the usual size."""
    fd = Board.create(workers=workers)
    place = Board.attach(fd, None).claim(terms.name)
    board = Board.attach(fd, 0)
    os.close(fd)
    return Allowance(terms, board, place, Calendar(time.time()))


def main() -> None:
    rates = KeyTerms(name="k", rpm=10**9, concurrent=10**6)
    everything = KeyTerms(
        name="k", rpm=10**9, concurrent=10**6, tpm=10**12, budget_day=10**12, budget_month=10**12
    )  # fmt: skip
    print("workers  enter + leave  reserve + settle  header lines  turn    (ns)")
    for workers in (1, 2, 4, 8, 32):
        gate, whole = allowance(workers, rates), allowance(workers, everything)
        unix = time.time()

        def entered(gate: Allowance = gate) -> None:
            gate.enter(time.monotonic())
            gate.leave()

        def spent(whole: Allowance = whole, unix: float = unix) -> None:
            now = time.monotonic()
            held = whole.reserve(now, unix, 100, 300, 500)
            whole.settle(now, held, 500, now, unix, 200, 300)

        def turned(gate: Allowance = gate) -> None:
            gate._tally.second = 0
            gate._tally.turn(time.monotonic())

        figures = [best_ns(call) for call in (entered, spent, lambda: gate.lines(time.monotonic()), turned)]  # noqa: B023
        print(f"{workers:7d}  {figures[0]:13.0f}  {figures[1]:16.0f}  {figures[2]:12.0f}  {figures[3]:6.0f}")


if __name__ == "__main__":
    main()
