"""What a world allows: figures by which a missed line is told from an impossible one.

None of them loosens a line. Three kinds of world are beyond every policy that keeps the promises: where one
provider is left, nobody can take over its errors (each attempt goes to another account); where slots are
few, the next one comes free no sooner than it does; and where the weights prefer a cheaper provider whose
first token is slow, it is slow without any fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

from bench.routing.overload import MIX, slots_of
from bench.routing.scenarios import WORKERS, run
from bench.routing.worker import ATTEMPTS_MAX
from bench.routing.world import BASE_ERRORS, fresh

LOAD = 2.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one jittered world.

    `success` % that may be expected while the first provider is out; `wait_p99_s` of high at twice the load
    were it always served first; `first_p99_s` of the policy over the oracle's without the first provider and
    without any fault.
    """

    seed: int
    providers: int
    success: float
    wait_p99_s: float
    first_p99_s: float


def bounds(seed: int) -> Bounds:
    """Of the jittered world of a seed.

    The wait is that of M/M/1 with slots that come free as the server (the wait exceeds t with probability
    ρ · e^(−(μ − λ) t)), one queue to a worker.
    """
    providers = fresh(seed)[0]
    left = len(providers) - 1
    freed = slots_of(providers)[1] / WORKERS
    share = LOAD * MIX[0][1]
    ours, oracle = (run("absent", p, seed, full=True, jittered=True).first_p99_s for p in ("recommended", "oracle"))
    return Bounds(
        seed,
        len(providers),
        success=100.0 * (1.0 - BASE_ERRORS ** min(ATTEMPTS_MAX, left)),
        wait_p99_s=max(0.0, log(share / 0.01) / (freed * (1.0 - share))),
        first_p99_s=ours - oracle,
    )
