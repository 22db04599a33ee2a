"""The bench's command: runs scenarios in alternating rounds and turns runs into ratios and verdicts.

Each run has a fresh target alone on its core, a fresh stub and the load on the other.  Within a
round every target takes its turn, in an order that rotates, so that drift of the machine falls on
all alike; ratios are taken inside a round and their median is reported.  A run with any failed
request counts for nothing and makes the whole bench fail.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.load import generator, report
from bench.load.processes import memory_kb
from bench.load.scenarios import SCENARIOS, Measure, Scenario
from bench.load.targets import TARGETS, Place, Running, TargetError, Wiring, certificates, stub

Metrics = dict[str, float]
IDLE_SETTLES_S = 1.0
GENERATOR_MIN = 1.5  # how much faster than the best target the direct path must be
NGINXES = ("nginx", "nginx-512k")


class RunInvalid(Exception):
    """A run with failed requests, or one that did not measure what it should."""


def load_arguments(running: Running, extra: Sequence[str]) -> list[str]:
    """What every load needs to know of its target."""
    arguments = ["--port", str(running.port), "--key", running.key, *(["--tls"] if running.tls else [])]
    if running.pids:
        arguments += ["--watch", ",".join(map(str, running.pids))]
    return [*arguments, *running.extra, *extra]


def checked(result: Mapping[str, Any], *, least: int = 1) -> Mapping[str, Any]:
    """The load's report, if nothing in it failed."""
    if result["failures"] or result["dropped"]:
        raise RunInvalid(
            f"{result['failures']} failed {result['failed']}, {result['dropped']} dropped; {result['stderr'][:600]}"
        )
    if result["requests"] < least:
        raise RunInvalid(f"{result['requests']} requests, expected at least {least}")
    return result


def metrics(scenario: Scenario, result: Mapping[str, Any]) -> Metrics:
    """The numbers of one load's report that measures name."""
    cpu_us = sum(process["cpu_s"] for process in result["watched"]) * 1e6
    numbers: Metrics = {"rate": result["rate"], "load_cpu_share": result["cpu_s"] / result["duration_s"]}
    for share in ("50", "90", "99", "99_9"):
        numbers[f"p{share}_us"] = result["latency_us"][f"p{share}"]
    if result["watched"]:
        numbers["cpu_us_per_request"] = cpu_us / result["requests"]
        numbers["target_cpu_share"] = cpu_us / 1e6 / result["duration_s"]
    if scenario.kind == "streams":
        if result["watched"]:
            numbers["cpu_us_per_chunk"] = cpu_us / result["chunks"]
        delay = result["chunk_delay_us"]
        for share in ("50", "90", "99", "99_9"):
            numbers[f"delay_p{share}_us"] = delay[f"p{share}"]
        numbers["delay_p99_9_ms"] = delay["p99_9"] / 1e3
        numbers["delay_max_ms"] = delay["max"] / 1e3
        numbers["first_event_p50_us"] = result["first_event_us"]["p50"]
    return numbers


def run_once(
    scenario: Scenario, target: str, place: Place, options: argparse.Namespace, papers: tuple[Path, Path, Path]
) -> Metrics:
    """One run of one target; its numbers.  RunInvalid, TargetError or GeneratorError if it does not count."""
    cert, key, ca = papers
    stub_arguments = ["--cert", str(cert), "--private-key", str(key)] if scenario.stub_tls else []
    with stub(place, *stub_arguments) as stub_port:
        wiring = Wiring(stub_port, scenario.stub_tls, scenario.client_tls, cert, key, ca)
        with TARGETS[target](place, wiring) as running:
            return _measure(scenario, running, place, options)


def _measure(scenario: Scenario, running: Running, place: Place, options: argparse.Namespace) -> Metrics:
    core = place.load_core
    arguments = load_arguments(running, scenario.arguments)
    if scenario.kind == "start":
        return {"start_s": running.start_s}
    if scenario.kind in ("closed", "open"):
        times = ["--duration", str(options.duration), "--warmup", str(options.warmup)]
        return metrics(scenario, checked(generator.load([*arguments, *times], core=core)))
    # A few requests or streams first: what is made once is neither per chunk nor per connection.
    if scenario.kind == "idle":
        warm = load_arguments(running, ["--connections", "1", "--duration", "0.3", "--warmup", "0"])
    else:
        warm = load_arguments(running, ["--streams", "20", "--ramp", "0.1", "--chunks", "20", "--interval-us", "2000"])
    checked(generator.load(warm, core=core))
    count = (
        int(scenario.arguments[scenario.arguments.index("--streams") + 1]) if "--streams" in scenario.arguments else 0
    )
    if scenario.kind == "streams":
        repeat = int(scenario.arguments[scenario.arguments.index("--repeat") + 1])
        return metrics(scenario, checked(generator.load(arguments, core=core), least=count * repeat))
    before = memory_kb(running.pids)
    held: list[float] = []

    def at_ready() -> None:
        if scenario.kind == "idle":
            # What stays, not what is still on its way to be given back.
            time.sleep(IDLE_SETTLES_S)
        held.append(memory_kb(running.pids))

    result = checked(generator.load(arguments, core=core, at_ready=at_ready), least=count)
    return {"kb_each": (held[0] - before) / result["connections"], "kb_before": before}


def _overhead(rounds: Mapping[str, Sequence[Metrics | None]], target: str, index: int, metric: str) -> float | None:
    run, base = rounds[target][index], rounds.get("direct", [None] * (index + 1))[index]
    if run is None or base is None:
        return None
    return run[metric] - base[metric]


def _number(rounds: Mapping[str, Sequence[Metrics | None]], target: str, index: int, metric: str) -> float | None:
    run = rounds[target][index]
    return None if run is None else run.get(metric)


def best_nginx(rounds: Mapping[str, Sequence[Metrics | None]], metric: str) -> str | None:
    """The nginx that did better by its median: the one to be measured against."""
    medians = {}
    for name in NGINXES:
        numbers = [run[metric] for run in rounds.get(name, ()) if run is not None and metric in run]
        if numbers:
            medians[name] = statistics.median(numbers)
    return min(medians, key=lambda name: medians[name]) if medians else None


def spread(numbers: Sequence[float]) -> dict[str, Any] | None:
    """Median, least, greatest and all of them; None of nothing."""
    if not numbers:
        return None
    return {"median": statistics.median(numbers), "min": min(numbers), "max": max(numbers), "values": list(numbers)}


def judge(measure: Measure, rounds: Mapping[str, Sequence[Metrics | None]]) -> dict[str, Any]:
    """One measure over all rounds: each target's numbers, ratios to the base, and the verdict on Dandolo."""
    against = measure.against
    base = best_nginx(rounds, measure.metric)
    inverse = against in TARGETS and against not in NGINXES
    outcome: dict[str, Any] = {
        "name": measure.name,
        "title": measure.title,
        "unit": measure.unit,
        "against": against,
        "gate": measure.gate,
        "aim": measure.aim,
        "base": against if inverse else base,
        "numbers": {},
        "ratios": {},
    }
    read = _overhead if against == "added" else _number
    for target, runs in rounds.items():
        # A rival's line is about the two of them only; the direct path serves as zero and as proof.
        if target == "direct" or (inverse and target not in ("dandolo", against)):
            continue
        numbers, ratios = [], []
        for index in range(len(runs)):
            number = read(rounds, target, index, measure.metric)
            if number is None:
                continue
            numbers.append(number)
            base_number = None
            if inverse:
                base_number = _number(rounds, against, index, measure.metric) if against in rounds else None
            elif base is not None:
                base_number = read(rounds, base, index, measure.metric)
            if base_number is not None and base_number > 0 and number > 0:
                ratios.append(base_number / number if inverse else number / base_number)
        outcome["numbers"][target] = spread(numbers)
        outcome["ratios"][target] = spread(ratios)
    judged = outcome["numbers"] if against == "itself" else outcome["ratios"]
    ours = judged.get("dandolo")
    outcome["verdict"] = verdict(ours["median"] if ours else None, measure, more_is_better=inverse)
    return outcome


def verdict(number: float | None, measure: Measure, *, more_is_better: bool) -> str:
    """``aim``, ``gate`` or ``missed``; ``not measured``; ``reported`` where nothing is asked."""
    if number is None:
        return "not measured"
    if measure.gate is None:
        return "reported"
    sign = -1 if more_is_better else 1
    if measure.aim is not None and sign * number <= sign * measure.aim:
        return "aim"
    return "gate" if sign * number <= sign * measure.gate else "missed"


def proof(rounds: Mapping[str, Sequence[Metrics | None]]) -> dict[str, Any] | None:
    """How much faster the direct path was than the fastest target, by median rates."""
    rates = {
        target: statistics.median(runs)
        for target, all_runs in rounds.items()
        if (runs := [run["rate"] for run in all_runs if run is not None])
    }
    direct = rates.pop("direct", None)
    if direct is None or not rates:
        return None
    fastest = max(rates, key=lambda target: rates[target])
    ratio = direct / rates[fastest]
    return {
        "direct_rate": direct,
        "fastest": fastest,
        "fastest_rate": rates[fastest],
        "ratio": ratio,
        "enough": ratio >= GENERATOR_MIN,
    }


def say(text: str) -> None:
    """Progress for people, apart from results."""
    print(text, file=sys.stderr, flush=True)


def options_parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line; cores default to the first for the target and the last for the load."""
    cores = sorted(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        prog="python -m bench.load", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--rounds", type=int, default=None, help="default 5; with --quick 2")
    parser.add_argument("--quick", action="store_true", help="short runs: shows that all works, proves nothing")
    parser.add_argument(
        "--only", default="", metavar="NAME,…", help="scenarios: " + ", ".join(s.name for s in SCENARIOS)
    )
    parser.add_argument("--targets", default="", metavar="NAME,…", help="targets: " + ", ".join(TARGETS))
    parser.add_argument(
        "--duration", type=float, default=None, help="seconds of a measured run, default 4; with --quick 1"
    )
    parser.add_argument("--warmup", type=float, default=None, help="seconds before it, default 1; with --quick 0.3")
    parser.add_argument(
        "--out", type=Path, default=Path("bench-results"), help="folder for results.json, results.md, picture.svg"
    )
    parser.add_argument("--python", default=sys.executable, help="runs dandolo")
    parser.add_argument(
        "--rivals-python", default=sys.executable, help="has the bench extra: starlette, uvicorn, aiohttp"
    )
    parser.add_argument("--litellm-python", default="", help="has litellm[proxy]; left out, LiteLLM is not measured")
    parser.add_argument("--target-core", type=int, default=cores[0])
    parser.add_argument("--load-core", type=int, default=cores[-1])
    options = parser.parse_args(words)
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.duration = options.duration or (1.0 if options.quick else 4.0)
    options.warmup = options.warmup if options.warmup is not None else (0.3 if options.quick else 1.0)
    if options.target_core == options.load_core:
        parser.error("two cores are needed: one for the target, one for stub and load")
    if options.target_core not in cores or options.load_core not in cores:
        parser.error(f"this process may use the cores {cores} only")
    for chosen, known in ((options.only, {s.name for s in SCENARIOS}), (options.targets, set(TARGETS))):
        if unknown := set(filter(None, chosen.split(","))) - known:
            parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
    return options


def run_scenario(
    scenario: Scenario,
    targets: Sequence[str],
    place: Place,
    options: argparse.Namespace,
    papers: tuple[Path, Path, Path],
    invalid: list[dict[str, Any]],
) -> dict[str, list[Metrics | None]]:
    """All rounds of one scenario; None where a run did not count."""
    rounds: dict[str, list[Metrics | None]] = {target: [] for target in targets}
    for index in range(options.rounds):
        turn = index % len(targets)
        for target in [*targets[turn:], *targets[:turn]]:
            try:
                numbers = run_once(scenario, target, place, options, papers)
            except (RunInvalid, TargetError, generator.GeneratorError) as error:
                rounds[target].append(None)
                invalid.append({"scenario": scenario.name, "round": index + 1, "target": target, "reason": str(error)})
                say(f"  !! INVALID {scenario.name} round {index + 1} {target}: {error}")
                continue
            rounds[target].append(numbers)
            shown = dict.fromkeys([*(m.metric for m in scenario.measures), "rate", "target_cpu_share"])
            words = [f"{name} {numbers[name]:,.4g}" for name in shown if name in numbers]
            say(f"  {scenario.name} {index + 1}/{options.rounds} {target:<11} " + "  ".join(words))
    return rounds


def main(words: Sequence[str] | None = None) -> int:
    """Runs the bench; 0 if every run counted, the generator was fast enough and no gate was missed."""
    options = options_parse(words)
    only, wanted = set(filter(None, options.only.split(","))), set(filter(None, options.targets.split(",")))
    program = generator.build()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # children are ended on the way out
    os.sched_setaffinity(0, {options.load_core})
    results: dict[str, Any] = {
        "machine": report.machine(options.python, options.rivals_python, program),
        "options": {
            "rounds": options.rounds,
            "duration_s": options.duration,
            "warmup_s": options.warmup,
            "quick": options.quick,
        },
        "scenarios": {},
        "measures": [],
        "generator": {},
        "invalid": [],
    }
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="dandolo-bench-") as folder:
            place = Place(
                Path(folder),
                options.target_core,
                options.load_core,
                options.python,
                options.rivals_python,
                options.litellm_python,
            )
            papers = certificates(place.folder)
            for scenario in SCENARIOS:
                targets = [
                    target
                    for target in scenario.targets
                    if (not wanted or target in wanted) and (target != "litellm" or options.litellm_python)
                ]
                if (only and scenario.name not in only) or not targets:
                    continue
                say(f"{scenario.name}: {', '.join(targets)}")
                rounds = run_scenario(scenario, targets, place, options, papers, results["invalid"])
                results["scenarios"][scenario.name] = {
                    "kind": scenario.kind,
                    "arguments": list(scenario.arguments),
                    "stub_tls": scenario.stub_tls,
                    "client_tls": scenario.client_tls,
                    "rounds": rounds,
                }
                results["measures"] += [judge(measure, rounds) for measure in scenario.measures]
                if scenario.proves_generator and (proven := proof(rounds)) is not None:
                    results["generator"][scenario.name] = proven
    except KeyboardInterrupt:
        say("interrupted: all children ended, nothing written")
        return 130
    results["took_s"] = time.monotonic() - began
    report.write(results, options.out)
    print(report.markdown(results))
    return outcome(results)


def outcome(results: Mapping[str, Any]) -> int:
    """The exit code, and why it is not 0."""
    code = 0
    if results["invalid"]:
        say(f'!! {len(results["invalid"])} runs did not count: see "invalid" in results.json')
        code = 1
    for name, proven in results["generator"].items():
        if not proven["enough"]:
            say(
                f"!! {name}: the direct path is only {proven['ratio']:.2f} × the fastest target, "
                f"{GENERATOR_MIN} × is needed"
            )
            code = 1
    missed = [measure["title"] for measure in results["measures"] if measure["verdict"] == "missed"]
    if missed:
        say("!! gates missed: " + "; ".join(missed))
        code = 1
    return code
