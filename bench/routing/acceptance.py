"""The lines that must hold, each a figure per seed and a threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.routing.overload import Overloaded, Storm
from bench.routing.scenarios import PRICES, Result


@dataclass(frozen=True, slots=True)
class Verdict:
    """A line: its figures by seed, the threshold, whether less or more is wanted."""

    line: str
    unit: str
    figures: tuple[float, ...]
    threshold: float
    at_most: bool
    oracle: tuple[float, ...] = ()
    """The oracle's figures, where they are of the same kind."""

    @property
    def worst(self) -> float:
        """The worst figure of all seeds."""
        return max(self.figures) if self.at_most else min(self.figures)

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return fmean(self.figures)

    def holds(self, *, worst: bool) -> bool:
        """Whether the worst seed, else the mean, is within the threshold."""
        figure = self.worst if worst else self.mean
        return figure <= self.threshold if self.at_most else figure >= self.threshold


def verdicts(
    results: Sequence[Result],
    overloads: Sequence[Overloaded] = (),
    storms: Sequence[Storm] = (),
    decision_us: float = 0.0,
) -> list[Verdict]:
    """All lines for which there are results of the recommended policy (and of the oracle where it is compared with)."""
    made: list[Verdict] = []

    def line(
        name: str,
        unit: str,
        scenario: str,
        mode: str,
        threshold: float,
        figure: Callable[[Result, Result], float],
        at_most: bool = True,
    ) -> None:
        kept = {(r.policy, r.seed): r for r in results if r.scenario == scenario and r.mode == mode}
        seeds = sorted(seed for policy, seed in kept if policy == "recommended" and ("oracle", seed) in kept)
        if seeds:
            figures = tuple(figure(kept["recommended", seed], kept["oracle", seed]) for seed in seeds)
            best = tuple(figure(kept["oracle", seed], kept["oracle", seed]) for seed in seeds)
            made.append(Verdict(name, unit, figures, threshold, at_most, best))

    def success(ours: Result, oracle: Result) -> float:
        return ours.success

    def p95_ratio(ours: Result, oracle: Result) -> float:
        return ours.p95_s / oracle.p95_s

    line("RST, selection alone: success", "%", "rst", "alone", 95.0, success, at_most=False)
    line("brownout, selection alone: success", "%", "brownout", "alone", 96.0, success, at_most=False)
    line("healthy, selection alone: p95 over the oracle's", "×", "healthy", "alone", 1.15, p95_ratio)
    line("slow × 10, full: p95 over the oracle's", "×", "slow x10", "full", 1.15, p95_ratio)
    line("hard failure, full: success", "%", "rst", "full", 99.9, success, at_most=False)
    line("hard failure, full: attempts until out", "", "rst", "full", 15.0, lambda ours, oracle: float(ours.exposed))
    line("black hole, full: success", "%", "black hole", "full", 99.9, success, at_most=False)
    line(
        "black hole, full: first-token p99 above the oracle's", "s", "black hole", "full", 0.5,
        lambda ours, oracle: ours.first_p99_s - oracle.first_p99_s,
    )  # fmt: skip
    line("equal speed, prices 10:3:1: USD/1000", "$", PRICES, "full", 0.8, lambda ours, oracle: ours.usd_per_1000)
    ours = [storm for storm in storms if storm.policy == "recommended"]
    if ours:
        made.append(Verdict("retry storm: attempts a request", "", tuple(s.amplification for s in ours), 1.1, True))
        made.append(Verdict("retry storm: recovered after", "s", tuple(s.recovered_s for s in ours), 60.0, True))
    own = [one for one in overloads if one.policy == "recommended"]
    if own:
        made.append(Verdict("2 × overload: success of high", "%", tuple(o.high for o in own), 99.0, False))
        made.append(Verdict("2 × overload: wait of high, p99", "s", tuple(o.high_wait_p99_s for o in own), 1.0, True))
        made.append(Verdict("2 × overload: goodput", "", tuple(o.goodput for o in own), 0.95, False))
        made.append(Verdict("2 × overload: recovered after", "s", tuple(o.recovered_s for o in own), 5.0, True))
    if decision_us:
        made.append(Verdict("decision, 16 candidates", "µs", (decision_us,), 50.0, True))
    return made
