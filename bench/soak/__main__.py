"""`python -m bench.soak [--minutes N]`: mixed load with faults injected, a row each 10 s, and what was not flat.

Exit code 0 when nothing grew, nothing was left over at the end, and no answer was what must never be.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from bench.load.processes import descendants
from bench.soak.callers import Callers
from bench.soak.samples import Sample, sample
from bench.soak.verdict import WARM_UP, Verdict, judge
from bench.soak.world import NAMES, faulty, providers
from dandolo.sim import SimThread

PERIOD_S = 10.0
REST_S = 60.0
LEFT_OVER = (
    "dandolo_requests_in_flight",
    "dandolo_slots_in_use",
    "dandolo_slots_waiting",
    "dandolo_request_body_bytes",
    "dandolo_flights",
)
"""Of which nothing may be left when nobody calls any more."""


async def soak(
    folder: Path, minutes: float, rate: float, workers: int, period_s: float = PERIOD_S
) -> tuple[list[str], bool]:
    """Run it; the lines of the report, and whether all was well."""
    chance = random.Random(1)
    with SimThread(*providers()) as sims:
        port, admin = _free_port(), _free_port()
        config = folder / "dandolo.toml"
        urls = {name: sims[name].base_url for name in NAMES}
        tables = "".join(f'[[providers]]\nname = "{name}"\nbase_url = "{url}"\n' for name, url in urls.items())
        config.write_text(
            f'[server]\nlisten = ["127.0.0.1:{port}"]\nadmin = "127.0.0.1:{admin}"\nworkers = {workers}\n'
            f'drain_delay = "0s"\nstate_dir = "{folder}/state"\n'
            f'[timeouts]\nfirst_byte = "5s"\nfirst_byte_stream = "5s"\nstream_idle = "5s"\nwrite_stall = "5s"\n'
            f"{tables}"
        )
        with (folder / "log").open("wb") as log, (folder / "errors").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "dandolo", "serve", "--config", str(config)], stdout=log, stderr=errors
            )
            try:
                return await _watched(process, port, admin, sims, chance, minutes, rate, folder, period_s)
            finally:
                # Workers outlive the process that started them.
                family = descendants(process.pid)
                if process.poll() is None:
                    process.kill()
                process.wait()
                for pid in family:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


async def _watched(
    process: subprocess.Popen[bytes],
    port: int,
    admin: int,
    sims: SimThread,
    chance: random.Random,
    minutes: float,
    rate: float,
    folder: Path,
    period_s: float,
) -> tuple[list[str], bool]:
    began = time.monotonic()

    def now() -> Sample:
        return sample(process.pid, admin, time.monotonic() - began)

    await _until(lambda: _listens(admin), 20.0)
    await asyncio.sleep(2.0)
    before = now()
    callers = Callers(port, rate)
    running = asyncio.create_task(callers.run())
    lines = [
        "| s | RSS MB | fds | tasks | clients | in flight | CPU % | answers | failures |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    samples = []
    seen: Counter[str] = Counter()
    last = before
    print("\n".join(lines))
    while time.monotonic() - began < minutes * 60 and process.poll() is None:
        await asyncio.sleep(period_s)
        sims["faulty"].script = faulty(chance)
        # What a provider remembers of its requests would be our own growth.
        for name in NAMES:
            sims[name].forget()
        found = await asyncio.get_running_loop().run_in_executor(None, now)
        fresh = callers.outcomes - seen
        seen = callers.outcomes.copy()
        line = _row(found, last, fresh)
        print(line, flush=True)
        lines.append(line)
        samples.append(found)
        last = found
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    wrong = [f"the gateway ended with {process.poll()}"] if process.poll() is not None else []
    rest = now() if not wrong else last
    if not wrong:
        try:
            await _until(lambda: not _left(now()), REST_S)
        except TimeoutError:
            pass
        rest = now()
        wrong += [f"left over: {name} {value:g}" for name, value in _left(rest).items()]
        if rest.said["dandolo_tasks"] > before.said["dandolo_tasks"] + 4:
            wrong.append(
                f"tasks at rest: {before.said['dandolo_tasks']:g} before, {rest.said['dandolo_tasks']:g} after"
            )
    process.send_signal(signal.SIGTERM)
    code = await asyncio.get_running_loop().run_in_executor(None, process.wait, 60)
    if code:
        wrong.append(f"the end was not orderly: exit {code}")
    errors = (folder / "errors").read_text(errors="replace")
    if "Traceback" in errors or '"unhandled' in errors:
        wrong.append("a traceback in the log")
    wrong += [f"must never be: {one}" for one in callers.broken[:10]]
    verdicts = _verdicts(samples)
    grown = [f"{one.name} grows by {one.growth:.2f} in {one.seconds:.0f} s" for one in verdicts if one.flat is False]
    wrong += grown
    lines += _report(callers, verdicts, before, rest, wrong)
    return lines, not wrong


def _verdicts(samples: list[Sample]) -> list[Verdict]:
    times = [one.at_s for one in samples]
    return [
        judge("RSS MB", times, [one.rss_mb for one in samples], least=2.0),
        judge("descriptors beside connections", times, [one.unexplained for one in samples], least=10.0),
        judge("tasks", times, [one.said["dandolo_tasks"] for one in samples], least=5.0),
        judge("threads", times, [float(one.threads) for one in samples], least=1.0),
    ]


def _report(callers: Callers, verdicts: list[Verdict], before: Sample, rest: Sample, wrong: list[str]) -> list[str]:
    lines = [
        "",
        f"Judged after the first {WARM_UP:.0%} of the run; growth is the median slope over the judged time.",
        "",
        "| | least | median | most | growth | may be | |",
        "|---|---|---|---|---|---|---|",
        *(one.line() for one in verdicts),
        "",
        "| outcome | answers |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in sorted(callers.outcomes.items())),
        "",
        f"Before the load: {before.rss_mb:.1f} MB, {before.fds} descriptors, {before.said['dandolo_tasks']:g} tasks;"
        f" at rest after it: {rest.rss_mb:.1f} MB, {rest.fds} descriptors, {rest.said['dandolo_tasks']:g} tasks."
        f" Calls skipped because too many were under way: {callers.skipped}.",
        "",
        _well(verdicts) if not wrong else "**Not well:** " + "; ".join(wrong),
    ]
    return lines


def _well(verdicts: list[Verdict]) -> str:
    if any(one.flat is None for one in verdicts):
        return "**Nothing left over; too short to tell whether anything grows.**"
    return "**Flat, and nothing left over.**"


def _row(found: Sample, last: Sample, fresh: Counter[str]) -> str:
    failures: Counter[str] = Counter()
    for name, count in fresh.items():
        kind, _, outcome = name.partition(" ")
        if outcome != "200" and kind not in ("leaves", "wrong"):
            failures[outcome] += count
    said = ", ".join(f"{name} {count}" for name, count in failures.most_common(6)) or "none"
    cpu = (found.cpu_s - last.cpu_s) / max(0.001, found.at_s - last.at_s) * 100
    return (
        f"| {found.at_s:.0f} | {found.rss_mb:.1f} | {found.fds} | {found.said['dandolo_tasks']:g}"
        f" | {found.said['dandolo_connections']:g} | {found.said['dandolo_requests_in_flight']:g} | {cpu:.0f}"
        f" | {fresh.total()} | {said} |"
    )


def _left(found: Sample) -> dict[str, float]:
    return {name: found.said[name] for name in LEFT_OVER if found.said[name]}


async def _until(true: object, patience_s: float) -> None:
    assert callable(true)
    end = time.monotonic() + patience_s
    while not true():
        if time.monotonic() > end:
            raise TimeoutError
        await asyncio.sleep(0.1)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (10)")
    parser.add_argument("--rate", type=float, default=120.0, help="calls a second (120)")
    parser.add_argument("--workers", type=int, default=1, help="worker processes (1)")
    parser.add_argument("--out", type=Path, help="a file for the table, in Markdown")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines, well = asyncio.run(soak(Path(folder), args.minutes, args.rate, args.workers))
    header = lines.index("")
    print("\n".join(lines[header:]))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        command = f"`python -m bench.soak --minutes {args.minutes:g} --rate {args.rate:g} --workers {args.workers}`"
        args.out.write_text("\n".join([f"{command}", "", *lines, ""]))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
