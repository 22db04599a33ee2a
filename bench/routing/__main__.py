"""`python -m bench.routing [--seeds N] [--scenario NAME]… [--fresh] [--out DIR]`: the tables and the verdicts.

Everything runs in virtual time, one process, no sockets. With --fresh the recommended policy meets ten worlds
of two to eight providers whose speeds, prices, limits and arrivals are jittered by half, and the worst counts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.routing import report
from bench.routing.acceptance import verdicts
from bench.routing.bounds import bounds
from bench.routing.decision import decision_us
from bench.routing.overload import overload, storm
from bench.routing.policies import POLICIES
from bench.routing.scenarios import PRICES, run
from bench.routing.world import FAULTS

HIDDEN = "hidden queue"
SCENARIOS = (*FAULTS, PRICES, "overload", "storm", HIDDEN)
HIDDEN_LOADS = (0.9, 1.2, 2.0)
FRESH_POLICIES = ("round robin", "literal formula", "recommended", "oracle")
RESULTS = Path(__file__).parent / "results"


def command(jittered: bool, seeds: range, scenarios: Sequence[str] | None) -> str:
    """What to type for the same tables again."""
    words = ["python -m bench.routing", *(["--fresh"] if jittered else []), f"--first-seed {seeds[0]}"]
    words += [f"--seeds {len(seeds)}", *(f'--scenario "{name}"' for name in scenarios or ())]
    return " ".join(words)


def main() -> int:
    """Run what was asked for; 1 when a line of acceptance is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.routing", description=__doc__)
    parser.add_argument("--seeds", type=int, help="runs of each kind (default: 3, fresh 10)")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="only this one (may be repeated)")
    parser.add_argument("--fresh", action="store_true", help="jittered worlds, judged by the worst")
    parser.add_argument("--first-seed", type=int, help="the first seed (default: 1; fresh: from the clock)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for Markdown, JSON and SVG")
    options = parser.parse_args()
    first = options.first_seed
    if first is None:
        first = int(time.time()) % 1_000_000 if options.fresh else 1
    seeds = range(first, first + (options.seeds or (10 if options.fresh else 3)))
    chosen = options.scenario or SCENARIOS
    policies = FRESH_POLICIES if options.fresh else tuple(POLICIES)
    results, overloads, storms, told = [], [], [], []
    for scenario in chosen:
        print(f"{scenario} …", file=sys.stderr, flush=True)
        for seed in seeds:
            if scenario == "overload":
                overloads += [overload(policy, seed, jittered=options.fresh) for policy in ("fifo", "recommended")]
            elif scenario == "storm":
                storms += [storm(policy, seed, jittered=options.fresh) for policy in ("naive", "recommended")]
            elif scenario == HIDDEN:
                told += [
                    (load, overload(policy, seed, jittered=options.fresh, load=load, hidden=True))
                    for load in HIDDEN_LOADS
                    for policy in ("deaf", "recommended")
                ]
            else:
                results += [
                    run(scenario, policy, seed, full=full, jittered=options.fresh)
                    for full in (False, True)
                    for policy in policies
                ]
    judged = verdicts(results, overloads, storms, decision_us(16) if not options.scenario else 0.0)
    allowed = [bounds(seed) for seed in seeds] if options.fresh and not options.scenario else []
    text = "\n".join(
        part
        for part in (
            f"Seeds {seeds[0]} to {seeds[-1]}{', jittered worlds' if options.fresh else ''}, means over the seeds: "
            f"`{command(options.fresh, seeds, options.scenario)}`.\n",
            report.table(results, "alone", "Selection alone: success in the fault's window, %", lambda r: r.success, 1),
            report.table(results, "alone", "Selection alone: p95, s", lambda r: r.p95_s, 1),
            report.table(results, "full", "Full: success in the fault's window, %", lambda r: r.success, 2),
            report.table(results, "full", "Full: p95, s", lambda r: r.p95_s, 1),
            report.table(results, "full", "Full: first token, p99, s", lambda r: r.first_p99_s, 2),
            report.table(results, "full", "Full: attempts at the failing provider until out", lambda r: r.exposed, 0),
            report.table(results, "full", "Full: attempts a request", lambda r: r.amplification, 3),
            report.table(results, "full", "Full: USD per 1000 requests", lambda r: r.usd_per_1000, 2),
            report.loads(overloads, storms),
            report.hidden(told),
            report.judged(judged, worst=options.fresh),
            report.allowed(allowed, judged),
        )
        if part
    )
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    name = "fresh" if options.fresh else "results"
    (options.out / f"{name}.md").write_text(text)
    as_json = report.as_json(results, judged, overloads, storms, told, allowed, worst=options.fresh)
    (options.out / f"{name}.json").write_text(as_json + "\n")
    if results:
        (options.out / f"{name}.svg").write_text(report.picture(results))
    return 0 if all(one.holds(worst=options.fresh) for one in judged) else 1


if __name__ == "__main__":
    sys.exit(main())
