"""What was counted lately: columns of seconds, percentiles over a minute, sums by name. Bounded, and pure.

Time comes as `advance`, called once a second by whoever owns these; what is counted between two calls belongs to
the second that the later one closes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence

from dandolo.stats import Histogram, count_into

SLICE_S = 5
SLICES = 12
"""A minute, moved on by five seconds."""
NAMES_MAX = 64
"""Names that were seen within the minute; further ones are counted together."""
OTHER = "other"


def growing(first: float, last: float, factor: float) -> tuple[float, ...]:
    """Bounds from `first` to at least `last`, each `factor` times the one before."""
    bounds = [first]
    while bounds[-1] < last:
        bounds.append(bounds[-1] * factor)
    return tuple(bounds)


class Columns:
    """Sums of several things for each of the last `seconds`, the latest last."""

    __slots__ = ("_now", "closed", "names")

    def __init__(self, names: Sequence[str], seconds: int) -> None:
        self.names = tuple(names)
        self.closed: tuple[deque[float], ...] = tuple(deque([0.0] * seconds, maxlen=seconds) for _ in names)
        self._now = [0.0] * len(self.names)

    def add(self, index: int, value: float = 1.0) -> None:
        """Count in the second that is not over."""
        self._now[index] += value

    def advance(self) -> None:
        """The second is over."""
        for index, column in enumerate(self.closed):
            column.append(self._now[index])
            self._now[index] = 0.0

    def mean(self, index: int, seconds: int) -> float:
        """By second, over the last `seconds` that are over."""
        column = self.closed[index]
        return sum(column[n] for n in range(-seconds, 0)) / seconds

    def shown(self) -> dict[str, list[float]]:
        """All of it, whole numbers without a point."""
        return {
            name: [int(value) if value == int(value) else round(value, 6) for value in column]
            for name, column in zip(self.names, self.closed, strict=True)
        }


class Percentiles:
    """A histogram of the last minute. Values are in any unit, bounds in the same."""

    __slots__ = ("_slices", "bounds", "counts")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self._slices = deque([self.counts], maxlen=SLICES)

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1

    def observe_all(self, ordered: Sequence[float]) -> None:
        """Count many, which are sorted."""
        count_into(self.counts, self.bounds, ordered)

    def advance(self) -> None:
        """A slice of the minute is over."""
        self.counts = [0] * (len(self.bounds) + 1)
        self._slices.append(self.counts)

    def merged(self) -> Histogram:
        """The minute as one histogram (without a sum)."""
        whole = Histogram(self.bounds)
        whole.counts = [sum(counts) for counts in zip(*self._slices, strict=True)]
        return whole

    def shown(self) -> dict[str, float | int | None]:
        """`p50`, `p95`, `p99` (None without values) and the `count` they stand on."""
        whole = self.merged()
        said: dict[str, float | int | None] = {"count": whole.count}
        for name, share in (("p50", 0.50), ("p95", 0.95), ("p99", 0.99)):
            value = whole.quantile(share)
            said[name] = None if value is None else float(f"{value:.4g}")
        return said


class Names:
    """Sums of several things by name over the last minute. A name that was not seen for a minute is forgotten."""

    __slots__ = ("_columns", "_rows")

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = tuple(columns)
        self._rows: dict[str, deque[list[float]]] = {}

    def add(self, name: str, values: Iterable[float]) -> None:
        """Add to a name's sums, one value for each column."""
        row = self._rows.get(name)
        if row is None:
            if len(self._rows) >= NAMES_MAX:
                name = OTHER
            row = self._rows.setdefault(name, deque([[0.0] * len(self._columns)], maxlen=SLICES))
        latest = row[-1]
        for index, value in enumerate(values):
            latest[index] += value

    def advance(self) -> None:
        """A slice of the minute is over."""
        for name, row in list(self._rows.items()):
            row.append([0.0] * len(self._columns))
            if not any(map(any, row)):
                del self._rows[name]

    def shown(self) -> dict[str, dict[str, float]]:
        """The minute's sums by name, the one with most in the first column first."""
        sums = {name: [sum(column) for column in zip(*row, strict=True)] for name, row in self._rows.items()}
        ordered = sorted(sums.items(), key=lambda item: (-item[1][0], item[0]))
        return {
            name: {column: float(f"{value:.6g}") for column, value in zip(self._columns, values, strict=True)}
            for name, values in ordered
        }
