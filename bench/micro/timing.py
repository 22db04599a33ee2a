"""What the small benches share: the best of several runs, in µs a call."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

RUNS = 15


def best_us(run: Callable[[], object], calls: int) -> float:
    """`run` makes `calls` calls; the fastest of RUNS runs, after one that warms up, in µs a call."""
    run()
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        best = float("inf")
        for _ in range(RUNS):
            start = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - start)
    finally:
        if collecting:
            gc.enable()
    return best / calls * 1e6
