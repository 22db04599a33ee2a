"""Results as Markdown, JSON and a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from html import escape
from math import isfinite
from statistics import fmean

from bench.routing.acceptance import Verdict
from bench.routing.bounds import Bounds
from bench.routing.overload import Overloaded, Storm
from bench.routing.scenarios import Result

COLOURS = {
    "round robin": "#9aa5b1", "literal formula": "#c2554d", "peak EWMA": "#d9a441", "least outstanding": "#7d6b91",
    "recommended": "#2f7d5d", "oracle": "#30475e",
}  # fmt: skip


def _mean(results: Sequence[Result], scenario: str, policy: str, figure: Callable[[Result], float]) -> float | None:
    values = [figure(r) for r in results if r.scenario == scenario and r.policy == policy]
    return fmean(values) if values else None


def table(results: Sequence[Result], mode: str, title: str, figure: Callable[[Result], float], digits: int) -> str:
    """Policies by scenarios, the mean over the seeds."""
    results = [result for result in results if result.mode == mode]
    scenarios = list(dict.fromkeys(result.scenario for result in results))
    policies = list(dict.fromkeys(result.policy for result in results))
    if not scenarios:
        return ""
    lines = [f"### {title}", "", "| policy | " + " | ".join(scenarios) + " |", "|---" * (len(scenarios) + 1) + "|"]
    for policy in policies:
        cells = []
        for scenario in scenarios:
            value = _mean(results, scenario, policy, figure)
            cells.append("" if value is None else f"{value:.{digits}f}")
        name = f"**{policy}**" if policy == "recommended" else policy
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def judged(verdicts: Sequence[Verdict], *, worst: bool) -> str:
    """The acceptance table; judged by the worst seed or by the mean."""
    lines = [
        f"### Acceptance (judged by {'the worst seed' if worst else 'the mean'})",
        "",
        "| line | must reach | mean | worst | oracle's worst | |",
        "|---|---|---|---|---|---|",
    ]
    for one in verdicts:
        sign = "≤" if one.at_most else "≥"
        best = f"{(max if one.at_most else min)(one.oracle):.2f}" if one.oracle else ""
        held = "holds" if one.holds(worst=worst) else "**missed**"
        lines.append(
            f"| {one.line} | {sign} {one.threshold:g} {one.unit} | {one.mean:.2f} | {one.worst:.2f} | {best} | {held} |"
        )
    return "\n".join(lines) + "\n"


def allowed(bounds: Sequence[Bounds], verdicts: Sequence[Verdict]) -> str:
    """What each world allows beside what was reached in it; those that forbid a line in bold."""
    lines = [
        "### What these worlds allow (`bench/routing/bounds.py`)",
        "",
        "Success: nobody can take over the errors of the only provider left. Wait: high always first. First token:",
        "the same policy over the oracle where the failing provider never was, so that no fault is in it.",
        "",
        "| seed | providers | success allowed % | RST, black hole reached % | wait of high allowed, p99 s | reached s "
        "| first token without a fault + s | black hole reached + s |",
        "|---" * 8 + "|",
    ]
    kept = {one.line: one for one in verdicts}
    names = (
        "hard failure, full: success", "black hole, full: success", "2 × overload: wait of high, p99",
        "black hole, full: first-token p99 above the oracle's",
    )  # fmt: skip
    if not bounds or any(name not in kept for name in names):
        return ""
    rst, hole, wait, first = (kept[name] for name in names)

    def strong(value: float, line: Verdict, digits: int) -> str:
        beyond = value > line.threshold if line.at_most else value < line.threshold
        return f"**{value:.{digits}f}**" if beyond else f"{value:.{digits}f}"

    for index, one in enumerate(bounds):
        lines.append(
            f"| {one.seed} | {one.providers} | {strong(one.success, rst, 2)} "
            f"| {rst.figures[index]:.2f}, {hole.figures[index]:.2f} "
            f"| {strong(one.wait_p99_s, wait, 2)} | {wait.figures[index]:.2f} "
            f"| {strong(one.first_p99_s, first, 2)} | {first.figures[index]:.2f} |"
        )
    return "\n".join(lines) + "\n"


def hidden(told: Sequence[tuple[float, Overloaded]]) -> str:
    """Providers that queue out of sight: the mean over the seeds, by load."""
    if not told:
        return ""
    lines = [
        "### Servers that refuse nothing and queue out of sight",
        "",
        "| load | limit | high % | normal % | low % | goodput | goodput, worst | recovered s, worst |",
        "|---" * 8 + "|",
    ]
    for load, policy in dict.fromkeys((load, one.policy) for load, one in told):
        own = [one for at, one in told if at == load and one.policy == policy]
        high, normal, low = (fmean(f) for f in zip(*((o.high, o.normal, o.low) for o in own), strict=True))
        goodputs = [o.goodput for o in own]
        name = {"deaf": "learns from refusals alone", "recommended": "**recommended**"}[policy]
        lines.append(
            f"| {load:g} | {name} | {high:.1f} | {normal:.1f} | {low:.1f} | {fmean(goodputs):.2f} "
            f"| {min(goodputs):.2f} | {max(o.recovered_s for o in own):.0f} |"
        )
    return "\n".join(lines) + "\n"


def loads(overloads: Sequence[Overloaded], storms: Sequence[Storm]) -> str:
    """Overload and retry storm, the mean over the seeds."""
    lines: list[str] = []
    if overloads:
        lines += [
            "### 2 × overload",
            "",
            "| queue | high % | normal % | low % | wait of high, p99 s | goodput | recovered s |",
            "|---|---|---|---|---|---|---|",
        ]
        for policy in dict.fromkeys(one.policy for one in overloads):
            own = [one for one in overloads if one.policy == policy]
            figures = [fmean(f) for f in zip(*((o.high, o.normal, o.low, o.high_wait_p99_s) for o in own), strict=True)]
            lines.append(
                f"| {policy} | "
                + " | ".join(f"{figure:.1f}" for figure in figures)
                + f" | {fmean(o.goodput for o in own):.2f} | {fmean(o.recovered_s for o in own):.0f} |"
            )
        lines.append("")
    if storms:
        lines += [
            "### Retry storm, 75 % load, everybody out for 30 s",
            "",
            "| retries | attempts a request | recovered s | success after a minute % |",
            "|---|---|---|---|",
        ]
        for policy in dict.fromkeys(one.policy for one in storms):
            kept = [one for one in storms if one.policy == policy]
            lines.append(
                f"| {policy} | {fmean(s.amplification for s in kept):.2f} | {fmean(s.recovered_s for s in kept):.0f} "
                f"| {fmean(s.success_after for s in kept):.1f} |"
            )
    return "\n".join(lines) + "\n" if lines else ""


def as_json(
    results: Sequence[Result], verdicts: Sequence[Verdict], overloads: Sequence[Overloaded], storms: Sequence[Storm],
    told: Sequence[tuple[float, Overloaded]] = (), bounds: Sequence[Bounds] = (), *, worst: bool,
) -> str:  # fmt: skip
    """Everything, one object."""

    def plain(row: object) -> dict[str, object]:
        return {
            key: (value if not isinstance(value, float) or isfinite(value) else None)
            for key, value in asdict(row).items()  # type: ignore[call-overload]
        }

    return json.dumps(
        {
            "runs": [plain(result) for result in results],
            "overload": [plain(one) for one in overloads],
            "storm": [plain(one) for one in storms],
            "hidden queue": [plain(one) | {"load": load} for load, one in told],
            "bounds": [plain(one) for one in bounds],
            "acceptance": [plain(one) | {"holds": one.holds(worst=worst)} for one in verdicts],
        },
        indent=1,
        ensure_ascii=False,
    )


def picture(results: Sequence[Result]) -> str:
    """Success of selection alone, and the p99 of the first token in full, by scenario and policy, as SVG."""
    panels: list[tuple[str, str, Callable[[Result], float], float, str]] = [
        ("alone", "success in the fault's window, selection alone, %", lambda r: r.success, 100.0, "{:.0f}"),
        ("full", "first token, p99, with breaker, retries and hedging, s", lambda r: r.first_p99_s, 0.0, "{:.1f}"),
    ]
    width, height, top = 1080, 230, 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {len(panels) * (height + 70) + 40}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
    ]
    policies = [policy for policy in COLOURS if any(r.policy == policy for r in results)]
    for index, policy in enumerate(policies):
        parts.append(f'<rect x="{40 + index * 165}" y="12" width="12" height="12" fill="{COLOURS[policy]}"/>')
        parts.append(f'<text x="{57 + index * 165}" y="22">{escape(policy)}</text>')
    for number, (mode, title, figure, most, form) in enumerate(panels):
        own = [result for result in results if result.mode == mode]
        scenarios = list(dict.fromkeys(result.scenario for result in own))
        if not scenarios:
            continue
        base = top + number * (height + 70) + height
        values = {(s, p): _mean(own, s, p, figure) for s in scenarios for p in policies}
        scale = (most or max(value or 0.0 for value in values.values())) or 1.0
        parts.append(f'<text x="40" y="{base - height + 10}" font-weight="bold">{escape(title)}</text>')
        group = (width - 60) / len(scenarios)
        bar = (group - 16) / max(1, len(policies))
        for i, scenario in enumerate(scenarios):
            left = 40 + i * group
            parts.append(f'<text x="{left + (group - 16) / 2}" y="{base + 16}" text-anchor="middle">{scenario}</text>')
            for j, policy in enumerate(policies):
                value = values[scenario, policy]
                if value is None:
                    continue
                tall = (height - 40) * value / scale
                x = left + j * bar
                parts.append(
                    f'<rect x="{x:.1f}" y="{base - tall:.1f}" width="{bar - 1:.1f}" height="{tall:.1f}" '
                    f'fill="{COLOURS[policy]}"/><text x="{x + bar / 2:.1f}" y="{base - tall - 3:.1f}" font-size="8" '
                    f'text-anchor="middle">{form.format(value)}</text>'
                )
        parts.append(f'<line x1="40" y1="{base}" x2="{width - 20}" y2="{base}" stroke="#888"/>')
    return "".join([*parts, "</svg>\n"])
