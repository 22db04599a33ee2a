"""`python -m bench.load.workers`: what a second worker gives, on a machine whose cores are not free for it.

Throughput of N workers is N times one worker's as long as they share nothing that does not scale: as long as a request
costs the same CPU time, whoever else works. That can be measured where load and stub need cores too:

1. At a limited rate, each worker on a core of its own, alternated within every round: one worker at a rate, and two at
   twice the rate, so that each does what the one did. Load and stub work on the second core, so the one worker is
   measured on either core, and the mean of both is what two are compared with. Plain requests, and streams. One
   worker at half the rate, and two at the rate, tell what smaller batches cost: that is no matter of sharing.
2. As many requests as come through, from 64 connections, with everybody on all cores: the rate, and who took the cores.

`gain` is 2 × (CPU per request of one worker ÷ that of two): how many times the requests two workers answer where two
cores are free for them. The control process takes part of a core of its own, beside them: its CPU per request is told.

What a request costs also depends on how many come with one wake-up, and so on whether the cores are free in time: where
anything else takes more than OTHERS_MAX of a core, the run proves nothing, and says so.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load import generator, report
from bench.load.processes import descendants
from bench.load.run import RunInvalid, checked, say
from bench.load.targets import Place, Running, Wiring, dandolo, stub

RESULTS = Path(__file__).parent / "results"
GAIN_MIN = 1.8
RATE = 8_000.0
"""Two fifths of what one worker does with a core of its own, so that two at twice the rate leave room for load and stub
on the second core."""
STREAMS = 200
CHUNKS, INTERVAL_US = 50, 20_000
CONNECTIONS = 64
OTHERS_MAX = 0.1
SETTLES_S = 2.5
"""After a start: collections, first looks at gauges."""


@dataclass(frozen=True, slots=True)
class Case:
    """One load. `amount` is a rate, or a number of streams, in the unit that one worker gets; None: all that comes
    through. `where` are the workers' cores: 0 that which is theirs alone, 1 that of load and stub."""

    name: str
    title: str
    workers: int
    amount: float | None
    where: tuple[int, ...] = ()
    streams: bool = False


CASES = (
    Case("one", "one worker", 1, 1.0, (0,)),
    Case("one_beside", "one worker, on the core of the load", 1, 1.0, (1,)),
    Case("two_double", "two workers, twice the rate", 2, 2.0, (0, 1)),
    Case("half", "one worker, half the rate", 1, 0.5, (0,)),
    Case("half_beside", "one worker, half the rate, on the core of the load", 1, 0.5, (1,)),
    Case("two", "two workers, the rate", 2, 1.0, (0, 1)),
    Case("one_streams", "one worker", 1, 1.0, (0,), streams=True),
    Case("one_streams_beside", "one worker, on the core of the load", 1, 1.0, (1,), streams=True),
    Case("two_streams_double", "two workers, twice the streams", 2, 2.0, (0, 1), streams=True),
    Case("saturated_one", "one worker", 1, None),
    Case("saturated_two", "two workers", 2, None),
)
GAINS = (
    ("plain requests", "two_double", ("one", "one_beside")),
    ("plain requests at half that rate", "two", ("half", "half_beside")),
    ("events of streams", "two_streams_double", ("one_streams", "one_streams_beside")),
    ("plain requests, as many as come through", "saturated_two", ("saturated_one",)),
)
"""What is compared: the case of two workers, and those of one that do the same a worker."""


def run(
    case: Case, running: Running, stub_pid: int, cores: tuple[int, int], options: argparse.Namespace
) -> dict[str, float]:
    """The numbers of one case. Raises RunInvalid, GeneratorError."""
    # Asked now: the first answer came before all workers were there.
    control = running.pids[0]
    workers = descendants(control)
    if len(workers) != case.workers:
        raise RunInvalid(f"{len(workers)} processes beside the control process, expected {case.workers}")
    for index, pid in enumerate(workers):
        _pin(pid, {cores[case.where[index]]} if case.where else set(cores))
    for pid in (control, stub_pid):
        _pin(pid, {cores[1]} if case.where else set(cores))
    arguments = ["--port", str(running.port), "--key", running.key]
    arguments += ["--watch", ",".join(map(str, (control, *workers, stub_pid)))]
    times = ["--duration", str(options.duration), "--warmup", str(options.warmup)]
    amount = case.amount
    if case.streams:
        assert amount is not None
        chunks = ["--chunks", str(CHUNKS), "--interval-us", str(INTERVAL_US), "--ramp", "1"]
        repeat = max(1, round(options.duration / (CHUNKS * INTERVAL_US / 1e6)))
        arguments += ["--streams", str(round(options.streams * amount)), "--repeat", str(repeat), *chunks]
    elif amount is not None:
        arguments += ["--rate", str(options.rate * amount), "--connections", str(CONNECTIONS), *times]
    else:
        arguments += ["--connections", str(CONNECTIONS), *times]
    pids = (control, *workers, stub_pid)
    began, busy, own, woken = time.monotonic(), _busy_s(), _own_s(pids), _woken(workers)
    found = checked(generator.load(arguments, core=cores[1] if case.where else None))
    took_s = time.monotonic() - began
    others = (_busy_s() - busy - (_own_s(pids) - own)) / took_s
    cpu_s = [process["cpu_s"] for process in found["watched"]]
    done, seconds = found["chunks"] if case.streams else found["requests"], found["duration_s"]
    return {
        "rate": done / seconds,
        "worker_us": sum(cpu_s[1:-1]) / done * 1e6,
        "wakes": (_woken(workers) - woken) / took_s / (done / seconds),
        "control_us": cpu_s[0] / done * 1e6,
        "workers": sum(cpu_s[1:-1]) / seconds,
        "busiest": max(cpu_s[1:-1]) / seconds,
        "control": cpu_s[0] / seconds,
        "stub": cpu_s[-1] / seconds,
        "load": found["cpu_s"] / seconds,
        "others": others,
    }


def _busy_s() -> float:
    """CPU time that all processors have spent so far on anything, or were kept from (proc(5): all but idle, iowait)."""
    times = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
    return (sum(times) - times[3] - times[4]) / os.sysconf("SC_CLK_TCK")


def _own_s(pids: Iterable[int]) -> float:
    """That of these processes, of this one, and of its children that have ended (the load)."""
    ticks = 0
    for pid in pids:
        ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    own = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return ticks / os.sysconf("SC_CLK_TCK") + sum(one.ru_utime + one.ru_stime for one in own)


def _woken(pids: Iterable[int]) -> int:
    """How often these processes have slept so far."""
    return sum(
        int(Path(f"/proc/{pid}/status").read_text().rpartition("\nvoluntary_ctxt_switches:")[2].split()[0])
        for pid in pids
    )


def _pin(pid: int, cores: set[int]) -> None:
    """Keep a process, with all its threads, on some cores."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), cores)


def one_round(
    cases: Sequence[Case], place: Place, cores: tuple[int, int], options: argparse.Namespace
) -> dict[str, dict[str, float] | None]:
    """Every case once, in their order, before two fresh gateways. None where a run did not count."""
    found: dict[str, dict[str, float] | None] = {}
    with ExitStack() as opened:
        before = set(descendants(os.getpid()))
        port = opened.enter_context(stub(place))
        (stub_pid,) = set(descendants(os.getpid())) - before
        gateways = {n: opened.enter_context(dandolo(place, Wiring(port), n)) for n in {case.workers for case in cases}}
        time.sleep(SETTLES_S)
        for case in cases:
            try:
                numbers = run(case, gateways[case.workers], stub_pid, cores, options)
            except (RunInvalid, generator.GeneratorError) as error:
                say(f"  !! INVALID {case.name}: {error}")
                found[case.name] = None
                continue
            found[case.name] = numbers
            shown = ", ".join(f"{name} {value:,.4g}" for name, value in numbers.items())
            say(f"  {case.name:<20} {shown}")
    return found


def median(rounds: Iterable[Mapping[str, Mapping[str, float] | None]], case: str, number: str) -> float | None:
    """Over the rounds that counted."""
    values = [found[number] for one in rounds if (found := one.get(case)) is not None]
    return statistics.median(values) if values else None


def gains(rounds: Sequence[Mapping[str, Mapping[str, float] | None]]) -> dict[str, list[float]]:
    """By what is compared: of each round, 2 × the CPU of one worker over that of two."""
    found: dict[str, list[float]] = {}
    for title, two, ones in GAINS:
        for one in rounds:
            numbers = [one.get(name) for name in (two, *ones)]
            known = [each["worker_us"] for each in numbers if each is not None]
            if len(known) == len(numbers):
                found.setdefault(title, []).append(2 * statistics.mean(known[1:]) / known[0])
    return found


def markdown(results: Mapping[str, Any]) -> str:
    """The tables."""
    machine, options, rounds = results["machine"], results["options"], results["rounds"]
    lines = [
        f"`python -m bench.load.workers`. {machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}; "
        f"Python {machine['dandolo'].get('python', '?')}, uvloop {machine['dandolo'].get('uvloop', '?')}; "
        f"{machine['date']}. {len(rounds)} rounds of {options['duration']:g} s; medians.",
        "",
        "| load | | per s | workers' CPU, µs each | wake-ups each | control's, µs"
        " | workers' cores | load's | stub's | control's | others' |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    if options["quick"]:
        lines[0] += " **Quick run: shows that everything works, proves nothing.**"
    for case in CASES:
        load = (
            f"{options['streams']} streams a worker, each event"
            if case.streams
            else "1 KB"
            if case.where
            else "1 KB, saturated"
        )
        numbers = [
            median(rounds, case.name, name)
            for name in ("rate", "worker_us", "wakes", "control_us", "workers", "load", "stub", "control", "others")
        ]
        if None not in numbers:
            rate, worker_us, wakes, control_us, *shares = (number or 0.0 for number in numbers)
            each = f"{worker_us:.1f} | {wakes:.2f} | {control_us:.2f}"
            cells = " | ".join(f"{share:.2f}" for share in shares)
            lines.append(f"| {load} | {case.title} | {rate:,.0f} | {each} | {cells} |")
    lines += [
        "",
        "| two workers where two cores are free: times one worker's throughput | [least–greatest] | wanted | |",
    ]
    lines += ["|---|---|---|---|"]
    for title, found in results["gains"].items():
        middle = statistics.median(found)
        holds = "holds" if middle >= GAIN_MIN else "**missed**"
        lines.append(f"| {title}: {middle:.2f} | {min(found):.2f}–{max(found):.2f} | ≥ {GAIN_MIN} | {holds} |")
    rates = [median(rounds, name, "rate") for name in ("saturated_one", "saturated_two")]
    taken = [median(rounds, "saturated_two", name) for name in ("load", "stub", "control")]
    if None not in (*rates, *taken):
        one, two = (rate or 0.0 for rate in rates)
        left = machine["cores"] - sum(share or 0.0 for share in taken)
        lines += [
            "",
            f"This machine allowed {two:,.0f} requests a second with two workers where one did {one:,.0f} "
            f"({two / one:.2f} times): of its {machine['cores']} cores load, stub and control process left "
            f"{left:.2f} to the workers.",
        ]
    if (others := disturbed(rounds)) > OTHERS_MAX:
        lines += ["", f"**Something else took {others:.2f} of a core meanwhile: this proves nothing.**"]
    return "\n".join(lines) + "\n"


def disturbed(rounds: Iterable[Mapping[str, Mapping[str, float] | None]]) -> float:
    """How much of a core anything else took: the median of all cases and rounds."""
    taken = [numbers["others"] for one in rounds for numbers in one.values() if numbers is not None]
    return statistics.median(taken) if taken else 0.0


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write `workers.md` and `workers.json`; 0 when two workers give what they must."""
    parser = argparse.ArgumentParser(prog="python -m bench.load.workers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, help="default 5; with --quick 1")
    parser.add_argument("--quick", action="store_true", help="short runs: shows that all works, proves nothing")
    parser.add_argument("--only", action="append", choices=[case.name for case in CASES], help="may be repeated")
    parser.add_argument("--rate", type=float, default=RATE, help=f"requests a second and worker (default {RATE:g})")
    parser.add_argument("--streams", type=int, default=STREAMS, help=f"streams a worker (default {STREAMS})")
    parser.add_argument("--duration", type=float, help="measured seconds a run, default 4; with --quick 1")
    parser.add_argument("--warmup", type=float, default=0.5, help="seconds before it (0.5)")
    parser.add_argument("--out", type=Path, help="folder (bench/load/results; with --quick none)")
    options = parser.parse_args(words)
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.duration = options.duration or (1.0 if options.quick else 4.0)
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        parser.error("two cores are needed")
    cores = allowed[0], allowed[-1]
    cases = [case for case in CASES if not options.only or case.name in options.only]
    program = generator.build()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rounds: list[dict[str, dict[str, float] | None]] = []
    with tempfile.TemporaryDirectory(prefix="dandolo-bench-") as folder:
        place = Place(Path(folder), cores[0], cores[1], sys.executable, sys.executable, "")
        for index in range(options.rounds):
            say(f"round {index + 1} of {options.rounds}")
            turn = index * 2 % len(cases)
            rounds.append(one_round([*cases[turn:], *cases[:turn]], place, cores, options))
    results = {
        "machine": report.machine(sys.executable, sys.executable, program),
        "options": {
            "rate": options.rate,
            "streams": options.streams,
            "duration": options.duration,
            "warmup": options.warmup,
            "quick": options.quick,
        },
        "rounds": rounds,
        "gains": gains(rounds),
    }
    print(markdown(results))
    out = options.out or (None if options.quick else RESULTS)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "workers.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        (out / "workers.md").write_text(markdown(results), "utf-8")
    counted = all(numbers is not None for one in rounds for numbers in one.values())
    calm = disturbed(rounds) <= OTHERS_MAX
    return (
        0
        if counted and calm and all(statistics.median(found) >= GAIN_MIN for found in results["gains"].values())
        else 1
    )


if __name__ == "__main__":
    sys.exit(main())
