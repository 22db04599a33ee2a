"""What the loss of Redis costs the clients of a whole server: `python -m bench.cache.outage [--write]`.

    killed   redis-server ends by kill -9 in the middle of a load, and is started again AWAY_S later
    stopped  it is stopped where it stands (SIGSTOP), its connections open, and goes on AWAY_S later

CLIENTS clients ask for one of TEXTS short answers each EVERY_S, whether the one before came soon or late: a wait counts
from when the request was due. `levels = ["redis"]`, so that every request looks there, and what is not found is asked
of a stub provider that answers at once. The breaker needs five failures to open; FIRST_S after the loss is
certain to hold that. The load's own lateness is the machine's doing and stands beside the waits.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import uvloop

from bench.cache.redis_server import RedisServer
from bench.cache.server import ROOT, dandolo
from bench.load.targets import CLIENT_KEY, MODEL, Place, stub

CLIENTS = 50
EVERY_S = 0.100
TEXTS = 400
BEFORE_S, AWAY_S, AFTER_S = 5.0, 8.0, 12.0
FIRST_S = 0.25
MORE_MS = 20.0
HEALED_S = 10.0
RESULTS = Path(__file__).parent / "results" / "outage.md"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: when it was due (monotonic), how long the client waited, how late the load was, what came."""

    due: float
    wait_s: float
    late_s: float
    good: bool
    from_redis: bool


async def _client(number: int, port: int, until: float, asked: list[Asked]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    due = time.monotonic() + EVERY_S * number / CLIENTS
    turn = 0
    while due < until:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        late_s = time.monotonic() - due
        text = f"What is number {(number * 97 + turn) % TEXTS}?"
        body = json.dumps({"model": MODEL, "temperature": 0, "messages": [{"role": "user", "content": text}]}).encode()
        good = from_redis = False
        try:
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (CLIENT_KEY.encode(), len(body), body)
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            answer = json.loads(await reader.readexactly(length))
            good = head.startswith(b"HTTP/1.1 200") and "choices" in answer
            from_redis = b"detail=l2" in head
        except (OSError, EOFError, ValueError):
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        asked.append(Asked(due, time.monotonic() - due, late_s, good, from_redis))
        turn += 1
        due += EVERY_S
    writer.close()


async def _load(
    port: int, asked: list[Asked], lose: Callable[[], None], mend: Callable[[], None]
) -> tuple[float, float]:
    """Ask all the while; when the server was lost and when it was back (monotonic)."""
    began = time.monotonic()
    until = began + BEFORE_S + AWAY_S + AFTER_S
    loop = asyncio.get_running_loop()
    clients = [asyncio.create_task(_client(number, port, until, asked)) for number in range(CLIENTS)]
    await asyncio.sleep(BEFORE_S)
    lost = time.monotonic()
    lose()
    await asyncio.sleep(AWAY_S)
    await loop.run_in_executor(None, mend)
    back = time.monotonic()
    await asyncio.gather(*clients)
    return lost, back


@dataclass(frozen=True, slots=True)
class Outage:
    """What one loss came to. Waits are the sorted ms of a phase; `late_ms` the load's own worst."""

    errors: int
    requests: int
    before: list[float]
    first: list[float]
    away: list[float]
    after: list[float]
    healed_s: float
    late_ms: float

    @property
    def more_ms(self) -> float:
        """What the loss adds to the 99th percentile until the breaker opens."""
        return share(self.first, 0.99) - share(self.before, 0.99)


def share(waits: list[float], part: float) -> float:
    """A percentile of sorted waits."""
    return waits[min(len(waits) - 1, int(len(waits) * part))] if waits else float("nan")


def outage(place: Place, how: str) -> Outage:
    """One loss of a server, from a fresh start of everything."""
    redis = RedisServer(place.folder, place.load_core)
    redis.start()
    more = f'\n[cache]\nlevels = ["redis"]\n[cache.redis]\nurl = "redis://127.0.0.1:{redis.port}/0"\n'
    asked: list[Asked] = []
    try:
        with stub(place) as stub_port, dandolo(more)(place, stub_port) as running, on_core(place.load_core):  # type: ignore[attr-defined]
            # Once everything, so that the load finds it.
            uvloop.run(_warm(running.port))
            if how == "killed":
                lose, mend = redis.kill, redis.start
            else:
                lose, mend = redis.stand_still, redis.go_on
            lost, back = uvloop.run(_load(running.port, asked, lose, mend))
    finally:
        redis.kill()

    def waits(start: float, end: float) -> list[float]:
        return sorted(one.wait_s * 1e3 for one in asked if start <= one.due < end)

    healed = min((one.due for one in asked if one.from_redis and one.due >= back), default=float("inf")) - back
    assert sum(one.from_redis for one in asked if one.due < lost) > 100, "Redis was never asked"
    return Outage(
        errors=sum(not one.good for one in asked),
        requests=len(asked),
        before=waits(lost - BEFORE_S + 1.0, lost),
        first=waits(lost - EVERY_S / CLIENTS, lost + FIRST_S),
        away=waits(lost + FIRST_S, back),
        after=waits(back + healed, float("inf")),
        healed_s=healed,
        late_ms=max(one.late_s for one in asked) * 1e3,
    )


async def _warm(port: int) -> None:
    asked: list[Asked] = []
    until = time.monotonic() + max(2.0, EVERY_S * TEXTS / CLIENTS * 3)
    await asyncio.gather(*(_client(number, port, until, asked) for number in range(CLIENTS)))


@contextmanager
def on_core(core: int):  # type: ignore[no-untyped-def]
    """This process's load on a core of its own."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def row(how: str, found: list[Outage]) -> str:
    """A line of the table: medians of the rounds, errors of all."""

    def ms(phase: Callable[[Outage], list[float]], *parts: float) -> str:
        return " / ".join(f"{statistics.median(share(phase(one), part) for one in found):.1f}" for part in parts)

    errors, requests = sum(one.errors for one in found), sum(one.requests for one in found)
    more = statistics.median(one.more_ms for one in found)
    healed, late_ms = max(one.healed_s for one in found), max(one.late_ms for one in found)
    met = errors == 0 and more <= MORE_MS and healed <= HEALED_S
    verdict = "unclear: the load was late" if late_ms > MORE_MS else "met" if met else "**missed**"
    cells = (
        how, f"{errors} of {requests:,}", ms(lambda o: o.before, 0.5, 0.99), ms(lambda o: o.first, 0.5, 0.99, 1),
        f"{more:+.1f}", ms(lambda o: o.away, 0.5, 0.99, 1), f"{healed:.1f} s", ms(lambda o: o.after, 0.5, 0.99),
        f"{late_ms:.1f}", verdict,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


HEAD = f"""\
# What the loss of Redis costs the clients of a whole server

{{machine}}; {{rounds}} rounds. Made by `python -m bench.cache.outage --write`.

{CLIENTS} clients, {CLIENTS / EVERY_S:.0f} requests a second, `levels = ["redis"]`; waits in ms, medians of the \
rounds. Wanted: no error, p99 in the first {FIRST_S * 1e3:.0f} ms (which hold the breaker's opening) at most \
{MORE_MS:.0f} ms over that before, healed within {HEALED_S:.0f} s of its being back.

| the server is | errors | before, p50 / p99 | first {FIRST_S * 1e3:.0f} ms, p50 / p99 / most | p99 more \
| then while away, p50 / p99 / most | healed after, most | after, p50 / p99 | the load itself late, most | verdict |
|---|---|---|---|---|---|---|---|---|---|
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cache.outage", description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", default=str(ROOT / ".venv" / "bin" / "python"))
    parser.add_argument("--write", action="store_true", help="the table into results/outage.md")
    options = parser.parse_args()
    lines, missed = [], False
    for how, title in (("killed", "killed, started again"), ("stopped", "stopped, continued")):
        found = []
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                place = Place(Path(folder), 0, 1, options.python, options.python, options.python)
                found.append(outage(place, how))
        lines.append(row(title, found))
        missed |= not lines[-1].endswith("met |")
        print(lines[-1], flush=True)
    machine = (
        f"{platform.system()} {platform.release().partition('-')[0]}, Python {platform.python_version()},"
        f" {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )
    if options.write:
        RESULTS.write_text(HEAD.format(machine=machine, rounds=options.rounds) + "\n".join(lines) + "\n")
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
