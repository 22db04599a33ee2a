"""Numbers kept about many things: histograms with fixed buckets.

Owns counting only; what is counted, how it is named and who reads it belongs to others. One thread at a
time: there is no lock.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate


class Histogram:
    """Counts of values by fixed upper bounds, with their sum.

    `bounds` are upper bounds in ascending order, each inclusive (as Prometheus' `le`), in the unit of the
    values (seconds for durations); a last bucket without a bound takes the rest. `counts` are the buckets'
    own, not cumulative.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        assert self.bounds, "a histogram needs a bound"
        assert all(one < two for one, two in zip(self.bounds, self.bounds[1:], strict=False)), "bounds must ascend"
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum: float = 0.0

    def observe(self, value: float) -> None:
        """Count one value. It must be a number: a NaN would spoil the sum for good."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def observe_all(self, ordered: Sequence[float]) -> None:
        """Count many, which are sorted."""
        count_into(self.counts, self.bounds, ordered)
        self.sum += sum(ordered)

    def copy(self) -> Histogram:
        """One that does not change with this one."""
        made = Histogram(self.bounds)
        made.counts, made.sum = list(self.counts), self.sum
        return made

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)

    def cumulative(self) -> list[int]:
        """For each bound how many values were at or below it, and at the end all of them."""
        return list(accumulate(self.counts))

    def quantile(self, share: float) -> float | None:
        """An estimate of the value below which `share` (0 to 1) of all values lie; None when there are none.

        Linear within a bucket from its lower bound (0 for the first), as Prometheus' histogram_quantile; the
        last bucket answers with the largest bound.
        """
        total = self.count
        if not total:
            return None
        rank = share * total
        below = 0
        lower = 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= rank:
                return lower + (bound - lower) * max(0.0, rank - below) / count
            below += count
            lower = bound
        return self.bounds[-1]


def count_into(counts: list[int], bounds: Sequence[float], ordered: Sequence[float]) -> None:
    """Count sorted values into buckets by their inclusive upper bounds, in the values' unit."""
    at, end, last = 0, len(ordered), len(bounds)
    while at < end:
        bucket = bisect_left(bounds, ordered[at])
        after = bisect_right(ordered, bounds[bucket], at + 1) if bucket < last else end
        counts[bucket] += after - at
        at = after
