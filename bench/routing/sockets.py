"""`python -m bench.routing.sockets [--only NAME]… [--seeds N] [--seconds S] [--quick]`: failures end to end.

A `dandolo serve` process with shipped defaults stands before three simulated providers on real sockets: fast and
dear, middling, slow and cheap. Something goes wrong with the fast one while an open-loop client asks for streams
(Poisson arrivals, log-normal lengths) and counts what becomes of every one. Seeds jitter speeds and load by half.
Exit code 1 when a line of acceptance is missed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import uvloop

from bench.routing.lines import as_json, lines, machine, markdown
from bench.routing.staged import SCENARIOS
from bench.routing.trial import SECONDS, WARM_S, Run, run

RESULTS = Path(__file__).parent / "results"
QUICK = ("healthy", "reset")
QUICK_SECONDS, QUICK_WARM_S = 3.0, 1.5


def main() -> int:
    """Run what was asked for; 1 when a line of acceptance is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.routing.sockets", description=__doc__)
    parser.add_argument("--only", action="append", choices=SCENARIOS, help="only this one (may be repeated)")
    parser.add_argument("--seeds", type=int, help="runs of each (default: 3)")
    parser.add_argument("--first-seed", type=int, default=1, help="the first seed (default: 1)")
    parser.add_argument("--seconds", type=float, help=f"how long the fault lasts (default: {SECONDS:g})")
    parser.add_argument("--quick", action="store_true", help="one short run of two scenarios: shows that it works")
    parser.add_argument("--hedge", action="store_true", help="with routing.hedge, which is off by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for sockets.md and sockets.json")
    parser.add_argument("--keep", type=Path, help="folder for logs, routes and requests of every run (else removed)")
    options = parser.parse_args()
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    seeds = range(options.first_seed, options.first_seed + (options.seeds or (1 if options.quick else 3)))
    chosen = list(options.only or (QUICK if options.quick else SCENARIOS))
    if "healthy" not in chosen:
        # What the others are compared with.
        chosen.insert(0, "healthy")
    kept = options.keep or Path(tempfile.mkdtemp(prefix="dandolo-sockets-"))
    runs: list[Run] = []
    try:
        for seed in seeds:
            for name in chosen:
                made = uvloop.run(
                    run(
                        name, seed, kept / f"{name}-{seed}".replace(" ", "-"),
                        seconds=seconds, warm_s=QUICK_WARM_S if options.quick else WARM_S, hedge=options.hedge,
                    )
                )  # fmt: skip
                runs.append(made)
                print(
                    f"{name}, seed {seed}: {made.success:.2f} % of {made.requests}, first token p99 "
                    f"{made.first_p99_s:.2f} s, {made.attempts:.3f} attempts {made.codes or ''}",
                    file=sys.stderr,
                    flush=True,
                )
    finally:
        if options.keep is None:
            shutil.rmtree(kept, ignore_errors=True)
    runs.sort(key=lambda one: chosen.index(one.scenario))
    judged = lines(runs)
    about = (
        f"`python -m bench.routing.sockets`. {machine()}. Seeds {seeds[0]} to {seeds[-1]}, {seconds:g} s of each fault; "
        f"medians over the seeds, and the worst seed beside them.{' Hedging on.' if options.hedge else ''}"
        f"{' **Quick run: shows that it works, proves nothing.**' if options.quick else ''}"
    )
    text = markdown(runs, judged, about)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "sockets.md").write_text(text, "utf-8")
    told: dict[str, object] = {"seeds": list(seeds), "seconds": seconds, "hedge": options.hedge, "quick": options.quick}
    (options.out / "sockets.json").write_text(as_json(runs, judged, told) + "\n", "utf-8")
    return 0 if all(one.holds for one in judged) else 1


if __name__ == "__main__":
    sys.exit(main())
