"""The gauges of all workers as those of one gateway.

What workers count for themselves is added up, and a worker that has ended leaves what it had counted: a counter
never falls. What each knows on its own is added up too, but for states, of which the worst counts.
"""

from __future__ import annotations

from collections.abc import Iterable

from dandolo.control.child import Sample
from dandolo.control.exposition import Gauge, Labels

WORST = {"dandolo_breaker_state": max, "dandolo_probe_well": min, "dandolo_cache_hit_rate_at_double": max,
         "dandolo_cache_tier_up": min, "dandolo_cache_tier_breaker_open": max}  # fmt: skip
"""How one value is made of several where it is not their sum."""
KEPT_MAX = 1000
"""Counters of workers that have ended; they have no labels that grow."""


class Gauges:
    """The last known gauges of every process, by its id."""

    def __init__(self) -> None:
        self._now: dict[int, list[Sample]] = {}
        self._before: dict[tuple[str, Labels], float] = {}

    def report(self, pid: int, samples: list[Sample]) -> None:
        """What a process tells."""
        self._now[pid] = samples

    def gone(self, pid: int) -> None:
        """A process has ended: what it counted stays."""
        for one in self._now.pop(pid, ()):
            key = one.name, one.labels
            if one.name.endswith("_total") and (key in self._before or len(self._before) < KEPT_MAX):
                self._before[key] = self._before.get(key, 0) + one.value

    def each(self) -> list[list[Gauge]]:
        """What every process told last, apart."""
        return [[Gauge(one.name, one.value, one.labels) for one in samples] for samples in self._now.values()]

    def together(self) -> Iterable[Gauge]:
        """One sample a name and labels."""
        values = dict(self._before)
        for samples in self._now.values():
            for name, value, labels in samples:
                key = name, labels
                before = values.get(key)
                how = WORST.get(name)
                values[key] = value if before is None else how(before, value) if how else before + value
        return [Gauge(name, value, labels) for (name, labels), value in values.items()]
