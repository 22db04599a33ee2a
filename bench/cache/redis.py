"""What a GET from Redis costs: `python -m bench.cache.redis [--write]`.

Our tier against redis-py's asyncio client, both on uvloop in this process, 64 tasks that each wait for their own
GET of 1 KiB, one after the other; a real redis-server on a Unix socket and on loopback, pinned to another core.
CPU is this process's own (the server's is the same for both); a round trip is what one task waits. Both clients
check nothing of the values. redis-py is given what it recommends: a connection for each task, since one of its
connections carries one command at a time; and once more one pipeline of 64 GETs, which shares the cost but makes
64 callers wait for each other and needs somebody to gather them.

Rounds alternate between the clients, so that a slow moment of the machine meets all of them.

Then what a loss costs those who look up: the server is killed, or stopped where it stands, while 64 tasks ask
every few milliseconds; it comes back after a while. A loop that merely sleeps runs beside them: what it
oversleeps is the machine's doing.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
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

from bench.cache.redis_server import RedisServer
from dandolo.cache.redis import tier as tier_module
from dandolo.cache.redis.tier import LOOK_UP_S, PREFIX, RedisTier
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
    """The table for one server address. No deadline ends a look-up: every client waits for every answer."""
    tier_module.LOOK_UP_S = 60.0
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


class Asker:
    """Tasks that look up every few milliseconds: when each ended, what it waited, whether it hit."""

    def __init__(self, tier: RedisTier) -> None:
        self.seen: list[tuple[float, float, bool]] = []
        self.overslept_s: list[float] = []
        self._tier = tier
        self._over = False
        self._tasks = [asyncio.create_task(self._ask(number)) for number in range(IN_FLIGHT)]
        self._tasks.append(asyncio.create_task(self._sleep()))

    async def _ask(self, number: int) -> None:
        clock = time.perf_counter
        while not self._over:
            await asyncio.sleep(0.004 + 0.000_1 * (number % 16))
            start = clock()
            (value,) = await self._tier.get_many((NAMES[number],))
            self.seen.append((clock(), clock() - start, value is not None))

    async def _sleep(self) -> None:
        clock = time.perf_counter
        while not self._over:
            start = clock()
            await asyncio.sleep(0.005)
            self.overslept_s.append(clock() - start - 0.005)

    async def end(self) -> None:
        """Let every task finish; an exception of theirs is ours."""
        self._over = True
        await asyncio.gather(*self._tasks)

    def waits_ms(self, start: float, end: float) -> list[float]:
        """Sorted waits of the look-ups that ended between two moments."""
        return sorted(wait * 1000 for at, wait, _ in self.seen if start <= at < end)


async def lose(how: str, url: RedisUrl, away: Callable[[], None], back: Callable[[], None]) -> str:
    """A line of the table: the server goes `away` for three seconds, and comes `back`."""
    tier_module.LOOK_UP_S = LOOK_UP_S
    tier = RedisTier(url)
    tier.start()
    while not tier.health()[0].up or await tier.put_many([(name, VALUE, 3_600_000) for name in NAMES]) != KEYS:
        await asyncio.sleep(0.01)
    asker = Asker(tier)
    await asyncio.sleep(1.5)
    gone = time.perf_counter()
    away()
    await asyncio.sleep(3.0)
    back()
    returned = time.perf_counter()
    while await tier.put_many([(name, VALUE, 3_600_000) for name in NAMES]) != KEYS:
        assert time.perf_counter() - returned < 20, "it did not heal"
        await asyncio.sleep(0.02)
    healed = time.perf_counter() - returned
    await asyncio.sleep(1.0)
    await asker.end()
    counts = tier.stats()
    await tier.close()
    before, during = asker.waits_ms(0.0, gone), asker.waits_ms(gone, returned)
    after = asker.waits_ms(returned + healed, returned + healed + 100)

    def at(waits: list[float], share: float) -> str:
        return f"{waits[int(len(waits) * share)]:.2f}"

    return (
        f"| {how} | {at(before, 0.5)} / {at(before, 0.99)} | {at(during, 0.5)} / {at(during, 0.99)} / {during[-1]:.1f} "
        f"| {at(after, 0.5)} / {at(after, 0.99)} | {healed:.1f} s | {counts.timeouts} of {counts.gets:,} "
        f"| {max(asker.overslept_s) * 1000:.1f} |"
    )


LOSS_HEAD = [
    "### What a loss costs, 64 tasks asking every 5 ms, loopback",
    "",
    "Waits of a look-up in ms. No look-up raised: that would have ended the bench.",
    "",
    "| the server is | before, p50 / p99 | while away, p50 / p99 / most | healed, p50 / p99 | healed after | timed out "
    "| a bare sleep overslept, most, ms |",
    "|---|---|---|---|---|---|---|",
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
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder), cores[0])
        server.start()
        try:
            lines = [machine(), ""]
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                lines += runner.run(
                    compare(
                        "Loopback",
                        RedisUrl(host="127.0.0.1", port=server.port),
                        lambda most: redis.asyncio.Redis(host="127.0.0.1", port=server.port, max_connections=most),
                    )
                )
                lines += runner.run(
                    compare(
                        "Unix socket",
                        RedisUrl(path=server.path),
                        lambda most: redis.asyncio.Redis(unix_socket_path=server.path, max_connections=most),
                    )
                )
                url = RedisUrl(host="127.0.0.1", port=server.port)
                lines += [
                    *LOSS_HEAD,
                    runner.run(lose("killed, started again", url, server.kill, server.start)),
                    runner.run(
                        lose(
                            "stopped, continued",
                            url,
                            server.stand_still,
                            server.go_on,
                        )
                    ),
                    "",
                ]
        finally:
            server.kill()
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
