"""Whether a series of samples is flat.

The slope is Theil and Sen's, the median of the slopes between all pairs of samples: a single sample that lies far off
(a collection, a burst) moves it little. What counts is the growth that it comes to over the time that was judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

WARM_UP = 0.25
"""Of the run, at its beginning: caches fill, pools open, the allocator finds its size. Not judged."""
JUDGED_S = 300.0
"""What is judged over less than this is not judged: an allocator takes minutes to find its size."""
SHARE_MAX = 0.03
"""Growth over the judged time that still passes for flat, of the median."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`growth` is what the slope comes to over `seconds`, in the unit of the samples, `most` what it may be."""

    name: str
    middle: float
    low: float
    high: float
    growth: float
    most: float
    seconds: float

    @property
    def flat(self) -> bool | None:
        """None: too short to tell."""
        return None if self.seconds < JUDGED_S else self.growth <= self.most

    def line(self) -> str:
        """A row of a table."""
        said = {True: "flat", False: "grows", None: "too short to tell"}[self.flat]
        figures = f"{self.low:.1f} | {self.middle:.1f} | {self.high:.1f} | {self.growth:+.2f} | {self.most:.2f}"
        return f"| {self.name} | {figures} | {said} |"


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """The median slope; 0 for fewer than two samples."""
    slopes = [
        (values[j] - values[i]) / (times[j] - times[i])
        for i in range(len(times))
        for j in range(i + 1, len(times))
        if times[j] > times[i]
    ]
    return median(slopes) if slopes else 0.0


def judge(name: str, times: Sequence[float], values: Sequence[float], *, least: float) -> Verdict:
    """Judge all but the warm-up. `least` is a growth that is no growth, however small the median: noise of the unit."""
    begin = times[0] + WARM_UP * (times[-1] - times[0])
    kept = [(time, value) for time, value in zip(times, values, strict=True) if time >= begin]
    moments, found = [time for time, _ in kept], [value for _, value in kept]
    seconds = moments[-1] - moments[0]
    middle = median(found)
    growth = slope(moments, found) * seconds
    return Verdict(name, middle, min(found), max(found), growth, max(SHARE_MAX * middle, least), seconds)
