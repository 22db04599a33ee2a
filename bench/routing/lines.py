"""The lines that must hold over sockets, each a figure per seed; and the tables that are left behind.

The median of the seeds counts; where a single case is one too many (`every`), the worst of them does.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from math import isfinite, nan
from pathlib import Path
from statistics import median

from bench.routing.reading import BROKEN, CUT, REFUSED, SPLICED, TIMED_OUT, TRUNCATED
from bench.routing.trial import Run

FAILOVER_S = 0.8
"""By so much the p99 of the first token may exceed the healthy world's of the same seed."""
SILENCE_S = 1.5
"""The same where a provider says nothing, which only time tells."""
OVERLOADS = (
    "Twice what the slots carry, a fifth of it high, two fifths each normal and low. `overload`: the slots are bounded "
    "by configuration (`concurrency_max`). `overload, learned`: the gateway has to learn them from 429s that name no "
    "time."
)
HARD = ("reset", "refused", "flapping", "fast 500", "brownout", "429")


@dataclass(frozen=True, slots=True)
class Line:
    """A line: its figures by seed, the threshold, whether less or more is wanted, whether every seed counts."""

    line: str
    unit: str
    figures: tuple[float, ...]
    threshold: float
    at_most: bool
    every: bool = False

    @property
    def worst(self) -> float:
        """The worst figure of all seeds; one that is none is the worst there is."""
        for figure in self.figures:
            if not isfinite(figure):
                return figure
        return max(self.figures) if self.at_most else min(self.figures)

    @property
    def figure(self) -> float:
        """What is judged."""
        return self.worst if self.every or not isfinite(self.worst) else median(self.figures)

    @property
    def holds(self) -> bool:
        """Whether it is within the threshold."""
        # A figure that is none is on neither side.
        return self.figure <= self.threshold if self.at_most else self.figure >= self.threshold


def lines(runs: Sequence[Run]) -> list[Line]:
    """All lines for which there are runs; those that compare need the healthy world of the same seed."""
    made: list[Line] = []
    healthy = {run.seed: run.first_p99_s for run in runs if run.scenario == "healthy"}

    def line(
        scenario: str, name: str, unit: str, threshold: float, figure: Callable[[Run], float], *, at_most: bool,
        every: bool = False,
    ) -> None:  # fmt: skip
        kept = [run for run in runs if run.scenario == scenario]
        if kept:
            made.append(Line(f"{scenario}: {name}", unit, tuple(map(figure, kept)), threshold, at_most, every))

    def success(scenario: str, threshold: float) -> None:
        line(scenario, "success outside reported cuts", "%", threshold, lambda run: run.success, at_most=False)

    def first_token(scenario: str, threshold: float) -> None:
        if all(run.seed in healthy for run in runs if run.scenario == scenario):
            line(
                scenario, "first token, p99 above healthy", "s", threshold,
                lambda run: run.first_p99_s - healthy[run.seed], at_most=True,
            )  # fmt: skip

    success("healthy", 99.9)
    line("healthy", "attempts a request", "", 1.05, lambda run: max(run.attempts, run.asked), at_most=True)
    for scenario in HARD:
        success(scenario, 99.9)
        first_token(scenario, FAILOVER_S)
    line("reset", "out of traffic after", "s", 2.0, lambda run: run.out_s, at_most=True)
    line("brownout", "its share of attempts", "%", 15.0, lambda run: run.first_share, at_most=True)
    success("black hole", 99.9)
    first_token("black hole", SILENCE_S)
    success("stall", 99.5)
    first_token("stall", SILENCE_S)
    for scenario in ("cuts", "cuts everywhere"):
        line(scenario, "streams cut, and told so", "", 1.0, partial(_counted, CUT), at_most=False, every=True)
        line(scenario, "silent truncations", "", 0.0, partial(_counted, TRUNCATED), at_most=True, every=True)
        line(scenario, "splices", "", 0.0, partial(_counted, SPLICED), at_most=True, every=True)
        line(scenario, "ended without a word", "", 0.0, partial(_counted, BROKEN), at_most=True, every=True)
    if runs:
        seeds = sorted({run.seed for run in runs})
        bad = [
            float(sum(run.outcomes[SPLICED] + run.outcomes[TRUNCATED] for run in runs if run.seed == seed))
            for seed in seeds
        ]
        made.append(Line("all scenarios: silent truncations and splices", "", tuple(bad), 0.0, True, True))
    for scenario in ("overload", "overload, learned"):
        line(scenario, "success of high", "%", 99.0, lambda run: run.classes.get("high", nan), at_most=False)
    return made


def _counted(outcome: str, run: Run) -> float:
    return run.outcomes[outcome]


def machine() -> str:
    """What it ran on, without a name of it."""
    model = platform.machine()
    for one in Path("/proc/cpuinfo").read_text().splitlines():
        if one.startswith("model name"):
            model = one.partition(":")[2].strip()
            break
    return (
        f"{model}, {os.cpu_count()} cores shared by gateway, providers and client; {platform.system()}, "
        f"Python {platform.python_version()}, uvloop {version('uvloop')}"
    )


_COLUMNS: tuple[tuple[str, int, Callable[[Run], float]], ...] = (
    ("requests", 0, lambda run: run.requests),
    ("success %", 2, lambda run: run.success),
    ("cut, told", 0, lambda run: run.outcomes[CUT]),
    ("refused", 0, lambda run: run.outcomes[REFUSED]),
    ("timed out", 0, lambda run: run.outcomes[TIMED_OUT]),
    ("first token p50 s", 2, lambda run: run.first_p50_s),
    ("p99 s", 2, lambda run: run.first_p99_s),
    ("max s", 2, lambda run: run.first_max_s),
    ("answer p95 s", 2, lambda run: run.total_p95_s),
    ("attempts", 3, lambda run: run.attempts),
    ("share of the first %", 1, lambda run: run.first_share),
    ("out after s", 2, lambda run: run.out_s),
)


def markdown(runs: Sequence[Run], judged: Sequence[Line], about: str) -> str:
    """The verdicts, then what was counted (medians over the seeds)."""
    text = [
        about,
        "",
        "### Acceptance over sockets",
        "",
        "| line | must reach | figure | worst | |",
        "|---|---|---|---|---|",
    ]
    for one in judged:
        sign, unit = "≤" if one.at_most else "≥", f" {one.unit}" if one.unit else ""
        held = "holds" if one.holds else "**missed**"
        text.append(f"| {one.line} | {sign} {one.threshold:g}{unit} | {one.figure:.2f} | {one.worst:.2f} | {held} |")
    text += [
        "",
        "### What was counted",
        "",
        "| scenario | " + " | ".join(name for name, _, _ in _COLUMNS) + " |",
        "|---" * (len(_COLUMNS) + 1) + "|",
    ]
    for scenario in dict.fromkeys(run.scenario for run in runs):
        kept = [run for run in runs if run.scenario == scenario]
        cells = [f"{median(map(figure, kept)):.{digits}f}" for _, digits, figure in _COLUMNS]
        text.append(f"| {scenario} | " + " | ".join(cells) + " |")
    overloads = [run for run in runs if len(run.classes) > 1]
    if overloads:
        text += ["", "### Overload by class, success %", "", OVERLOADS, ""]
        text += ["| scenario | high | normal | low |", "|---|---|---|---|"]
        for scenario in dict.fromkeys(run.scenario for run in overloads):
            kept = [run for run in overloads if run.scenario == scenario]
            cells = [f"{median(run.classes.get(name, nan) for run in kept):.1f}" for name in ("high", "normal", "low")]
            text.append(f"| {scenario} | " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def as_json(runs: Sequence[Run], judged: Sequence[Line], options: dict[str, object]) -> str:
    """Everything, one object; what is no number is null."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(one) for one in value]
        if isinstance(value, float):
            return round(value, 4) if isfinite(value) else None
        return value

    return json.dumps(
        plain(
            {
                "machine": machine(),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "options": options,
                "acceptance": [asdict(one) | {"figure": one.figure, "holds": one.holds} for one in judged],
                "runs": [asdict(run) for run in runs],
            }
        ),
        indent=1,
        ensure_ascii=False,
    )
