"""What a bench leaves behind: results.json, a Markdown table and a picture for the README."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

VERDICTS = {
    "aim": "aim met",
    "gate": "gate met",
    "missed": "**missed**",
    "reported": "reported",
    "not measured": "not measured",
}
NAMES = {
    "dandolo": "Dandolo",
    "nginx": "nginx",
    "nginx-512k": "nginx, 512k buffer",
    "starlette": "Starlette + aiohttp",
    "litellm": "LiteLLM",
}
COLOURS = {"dandolo": "#c2410c", "nginx": "#64748b", "starlette": "#94a3b8", "litellm": "#94a3b8"}


def _output(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return "not installed"
    return (done.stdout + done.stderr).strip()


def _packages(python: str, names: Sequence[str]) -> dict[str, str]:
    code = (
        "import importlib.metadata as m, json, platform\n"
        f"out = {{'python': platform.python_version()}}\nfor n in {list(names)!r}:\n"
        "    try: out[n] = m.version(n)\n    except m.PackageNotFoundError: out[n] = 'not installed'\n"
        "print(json.dumps(out))"
    )
    try:
        found: dict[str, str] = json.loads(_output(python, "-c", code))
    except ValueError:
        return {}
    return found


def machine(python: str, rivals_python: str, program: Path) -> dict[str, Any]:
    """The machine and the versions of everything that was measured."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = sum(line.startswith("processor") for line in Path("/proc/cpuinfo").read_text().splitlines())
    return {
        "cpu": model,
        "cores": cores,
        "kernel": platform.release().partition("-")[0],
        "architecture": platform.machine(),
        "nginx": _output("nginx", "-v").rpartition("/")[2] or "unknown",
        "openssl": _output("openssl", "version"),
        "compiler": _output("gcc", "--version").partition("\n")[0],
        "dandolo": _packages(python, ["dandolo", "uvloop", "httptools", "msgspec"]),
        "rivals": _packages(rivals_python, ["starlette", "uvicorn", "aiohttp", "uvloop"]),
        "generator_bytes": program.stat().st_size,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _figure(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def _spread(part: Mapping[str, Any] | None, unit: str = "") -> str:
    if part is None:
        return "–"
    return f"{_figure(part['median'])} [{_figure(part['min'])}–{_figure(part['max'])}]{' ' + unit if unit else ''}"


def _limit(measure: Mapping[str, Any], which: str) -> str:
    limit = measure[which]
    if limit is None:
        return "–"
    if measure["against"] == "itself":
        return f"≤ {limit:g} {measure['unit']}"
    more = measure["against"] not in ("nginx", "added")
    return f"{'≥' if more else '≤'} {limit:g} ×"


def markdown(results: Mapping[str, Any]) -> str:
    """The table, with the machine above and what did not count below."""
    machine, options = results["machine"], results["options"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}; nginx {machine['nginx']}; "
        f"Python {machine['dandolo'].get('python', '?')}, uvloop {machine['dandolo'].get('uvloop', '?')}; "
        f"{machine['openssl'].partition(' (')[0]}; "
        f"{machine['date']}. {options['rounds']} rounds of {options['duration_s']:g} s. Medians [least–greatest].",
        "",
        "| measure | target | its number | base | ratio | gate | aim | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    if options["quick"]:
        lines[0] += " **Quick run: shows that everything works, proves nothing.**"
    for measure in results["measures"]:
        base = measure["base"]
        base_numbers = measure["numbers"].get(base) if base else None
        rival_line = measure["against"] not in ("nginx", "added", "itself")
        if measure["gate"] is not None and measure["numbers"].get("dandolo") is None:
            gate, aim = _limit(measure, "gate"), _limit(measure, "aim")
            lines.append(
                f"| {measure['title']} | Dandolo | – | – | – | {gate} | {aim} | {VERDICTS[measure['verdict']]} |"
            )
        for target, numbers in measure["numbers"].items():
            if target == base or numbers is None:
                continue
            if rival_line and target != "dandolo":
                continue
            ours = target == "dandolo"
            base_words = f"{NAMES.get(base, base)} {_spread(base_numbers, measure['unit'])}" if base_numbers else "–"
            lines.append(
                f"| {measure['title']} | {NAMES.get(target, target)} "
                f"| {_spread(numbers, measure['unit'])} | {base_words} "
                f"| {_spread(measure['ratios'][target])} | {_limit(measure, 'gate') if ours else ''} "
                f"| {_limit(measure, 'aim') if ours else ''} | {VERDICTS[measure['verdict']] if ours else ''} |"
            )
    lines.append("")
    for name, proven in results["generator"].items():
        lines.append(
            f"Generator, {name}: direct {proven['direct_rate']:,.0f}/s, {proven['ratio']:.2f} × the fastest target "
            f"({proven['fastest']}, {proven['fastest_rate']:,.0f}/s){'' if proven['enough'] else ': **not enough**'}."
        )
    if results["invalid"]:
        lines += ["", f"**{len(results['invalid'])} runs did not count:**", ""]
        for run in results["invalid"]:
            reason = " ".join(run["reason"].split())[:200]
            lines.append(f"- {run['scenario']}, round {run['round']}, {run['target']}: {reason}")
    return "\n".join(lines) + "\n"


# Bars are to scale within a group: groups differ too much for one axis.
PICTURE = ("cpu_1k", "cpu_32k", "cpu_256k", "chunk_50", "chunk_1000")
SVG_STYLE = """\
  <style>
    text { font: 13px system-ui, sans-serif; fill: #1e293b }
    .title { font-weight: 600; font-size: 14px }
    .small { font-size: 11px; fill: #64748b }
    @media (prefers-color-scheme: dark) { text { fill: #e2e8f0 } .small { fill: #94a3b8 } }
  </style>
"""


def picture(results: Mapping[str, Any]) -> str:
    """Horizontal bars, a group a measure, each as a multiple of nginx; readable on light and dark."""
    groups: list[tuple[str, list[tuple[str, float, float]]]] = []
    for measure in results["measures"]:
        if measure["name"] not in PICTURE or measure["base"] is None:
            continue
        bars = [
            (target, numbers["median"], ratio["median"])
            for target, numbers in measure["numbers"].items()
            if numbers is not None
            and (ratio := measure["ratios"].get(target)) is not None
            and (target == measure["base"] or target not in ("nginx", "nginx-512k"))
        ]
        if bars:
            groups.append((measure["title"], sorted(bars, key=lambda bar: bar[1])))
    left, width, row = 150, 720, 22
    scale = 340.0
    height = 40 + sum(34 + row * len(bars) for _, bars in groups)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        'aria-label="CPU time beside nginx and other gateways">\n',
        SVG_STYLE,
    ]
    y = 8
    for title, bars in groups:
        greatest = max(number for _, number, _ in bars)
        y += 20
        parts.append(f'  <text x="8" y="{y}" class="title">{escape(title)}</text>\n')
        y += 8
        for target, number, ratio in bars:
            length = max(2.0, scale * number / greatest)
            base = "nginx" if target.startswith("nginx") else target
            parts.append(
                f'  <text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(NAMES.get(base, base))}</text>\n'
                f'  <rect x="{left}" y="{y + 2}" width="{length:.1f}" height="{row - 7}" rx="2" '
                f'fill="{COLOURS.get(base, "#94a3b8")}"/>\n'
                f'  <text x="{left + length + 8:.1f}" y="{y + 13}">{_figure(number)} µs  ({ratio:.2f} × nginx)</text>\n'
            )
            y += row
        y += 6
    machine = results["machine"]
    parts.append(
        f'  <text x="8" y="{height - 8}" class="small">{escape(machine["cpu"])}, one core for the gateway; '
        f"medians of {results['options']['rounds']} rounds; shorter is better</text>\n</svg>\n"
    )
    return "".join(parts)


def write(results: Mapping[str, Any], folder: Path) -> None:
    """results.json, results.md and picture.svg into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    (folder / "results.md").write_text(markdown(results))
    (folder / "picture.svg").write_text(picture(results))
