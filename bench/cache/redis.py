"""What a GET from Redis costs: `python -m bench.cache.redis [--write]`.

Our tier against redis-py's asyncio client, both on uvloop in this process, 64 tasks that each wait for their own
GET of 1 KiB, one after the other; a real redis-server on a Unix socket and on loopback, pinned to another core.
CPU is this process's own (the server's is the same for both); a round trip is what one task waits. Both clients
check nothing of the values. redis-py is given what it recommends: a connection for each task, since one of its
connections carries one command at a time; and once more one pipeline of 64 GETs, which shares the cost but makes
64 callers wait for each other and needs somebody to gather them.

Rounds alternate between the clients, so that a slow moment of the machine meets all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import redis
import redis.asyncio
import uvloop

from bench.load.processes import Child
from dandolo.cache.redis.tier import PREFIX, RedisTier
from dandolo.config.redisurl import RedisUrl

IN_FLIGHT = 64
KEYS = 1000
NAMES = [b"%020d" % number for number in range(KEYS)]
VALUE = os.urandom(1024)
GETS = 20_000
ROUNDS = 9
RESULTS = Path(__file__).parent / "results" / "redis.md"

Get = Callable[[bytes], Awaitable[bytes | None]]


class Measure:
    """One way to GET: CPU µs a GET of every round, and round trips in µs of all rounds."""

    def __init__(self, name: str, get: Get, gets: int, at_once: int = 1) -> None:
        self.name = name
        self.get = get
        self.gets = gets
        self.at_once = at_once
        """Keys that one call of `get` asks for."""
        self.cpu_us: list[float] = []
        self.waits_us: list[float] = []

    async def round(self, in_flight: int, keep: bool) -> None:
        """Twice `gets` GETs by `in_flight` tasks: one half for CPU, without a clock in it; one for round trips."""
        waits: list[float] = []
        clock, get = time.perf_counter, self.get

        async def ask(first: int) -> None:
            for number in range(first, self.gets // self.at_once, in_flight):
                if await get(NAMES[number % KEYS]) is None:
                    raise AssertionError("a GET found nothing")

        async def ask_timed(first: int) -> None:
            for number in range(first, self.gets // self.at_once, in_flight):
                start = clock()
                value = await get(NAMES[number % KEYS])
                waits.append(clock() - start)
                assert value == VALUE

        gc.collect()
        gc.disable()
        before = time.process_time()
        await asyncio.gather(*(ask(first) for first in range(in_flight)))
        spent = time.process_time() - before
        await asyncio.gather(*(ask_timed(first) for first in range(in_flight)))
        gc.enable()
        if keep:
            self.cpu_us.append(spent / self.gets * 1e6)
            self.waits_us += [wait * 1e6 for wait in waits]

    @property
    def cpu(self) -> float:
        """Median CPU of a GET in µs."""
        return statistics.median(self.cpu_us)

    def row(self, ours: float) -> str:
        """A line of the table."""
        waits = sorted(self.waits_us)
        p50, p99 = waits[len(waits) // 2], waits[int(len(waits) * 0.99)]
        return (
            f"| {self.name} | {self.cpu:.1f} [{min(self.cpu_us):.1f}–{max(self.cpu_us):.1f}] "
            f"| {self.cpu / ours:.1f} × | {p50:,.0f} | {p99:,.0f} |"
        )


async def compare(where: str, url: RedisUrl, client: Callable[[int], redis.asyncio.Redis]) -> list[str]:
    """The table for one server address."""
    tier = RedisTier(url)
    tier.start()
    while not tier.health()[0].up:
        await asyncio.sleep(0.01)
    assert await tier.put_many([(name, VALUE, 3_600_000) for name in NAMES]) == KEYS
    theirs = client(IN_FLIGHT)

    async def ours_get(key: bytes) -> bytes | None:
        return (await tier.get_many((key,)))[0]

    async def theirs_get(key: bytes) -> bytes | None:
        return await theirs.get(PREFIX + key)

    async def theirs_pipelined(key: bytes) -> bytes | None:
        pipeline = theirs.pipeline(transaction=False)
        for _ in range(IN_FLIGHT):
            pipeline.get(PREFIX + key)
        return (await pipeline.execute())[0]

    ours = Measure("Dandolo", ours_get, GETS)
    many = [
        (ours, IN_FLIGHT),
        (Measure("redis-py, a connection for each task", theirs_get, GETS // 4), IN_FLIGHT),
        (Measure("redis-py, one pipeline of 64 (one caller)", theirs_pipelined, GETS // 4, IN_FLIGHT), 1),
    ]
    alone = [(Measure("Dandolo", ours_get, GETS // 10), 1), (Measure("redis-py", theirs_get, GETS // 10), 1)]
    for number in range(ROUNDS + 1):
        for measure, in_flight in many + alone:
            await measure.round(in_flight, keep=number > 0)
    await theirs.aclose()
    failures = tier.stats()
    await tier.close()
    head = ["| client | CPU a GET, µs | to ours | round trip p50, µs | p99, µs |", "|---|---|---|---|---|"]
    missed = failures.gets - failures.hits
    assert not missed, f"{missed} look-ups were no hits"
    return [
        f"### {where}, {IN_FLIGHT} in flight",
        "",
        *head,
        *(measure.row(ours.cpu) for measure, _ in many),
        "",
        f"### {where}, one at a time",
        "",
        *head,
        *(measure.row(alone[0][0].cpu) for measure, _ in alone),
        "",
    ]


def machine() -> str:
    """What was measured on, without its name."""
    model = "unknown processor"
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return (
        f"{model}, {os.cpu_count()} cores, Linux; Python {platform.python_version()}, uvloop {uvloop.__version__}, "
        f"redis-py {redis.__version__}; {datetime.now(UTC).isoformat(timespec='seconds')}"
    )


def main() -> None:
    """Start a server, compare, print; `--write` also writes results/redis.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the tables to bench/cache/results/redis.md")
    write = parser.parse_args().write
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise SystemExit("redis-server is not here: apt-get install redis-server")
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/r.sock"
        port = 20_000 + os.getpid() % 10_000
        server = Child(
            [program, "--port", str(port), "--bind", "127.0.0.1", "--unixsocket", path, "--save", "", "--dir", folder],
            cores[0],
            Path(folder) / "log",
        )
        try:
            until = time.monotonic() + 5
            while not os.path.exists(path):
                if not server.alive() or time.monotonic() > until:
                    raise SystemExit(f"redis-server did not start:\n{server.log_tail()}")
                time.sleep(0.01)
            lines = [machine(), ""]
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                lines += runner.run(
                    compare(
                        "Loopback",
                        RedisUrl(host="127.0.0.1", port=port),
                        lambda most: redis.asyncio.Redis(host="127.0.0.1", port=port, max_connections=most),
                    )
                )
                lines += runner.run(
                    compare(
                        "Unix socket",
                        RedisUrl(path=path),
                        lambda most: redis.asyncio.Redis(unix_socket_path=path, max_connections=most),
                    )
                )
        finally:
            server.stop()
    text = "\n".join(lines)
    print(text)
    if write:
        about = (
            "Written by `python -m bench.cache.redis --write`: GETs of 1 KiB values; medians of "
            f"{ROUNDS} rounds [least–greatest]. CPU is the client's own process.\n\n"
        )
        RESULTS.write_text("## A GET from Redis\n\n" + about + text)


if __name__ == "__main__":
    main()
