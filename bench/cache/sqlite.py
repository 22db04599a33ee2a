"""The tier on disk with many rows. `python -m bench.cache.sqlite --rows N [--folder DIR] [--out FILE]`.

Fills a file with N rows of 100 to 300 bytes through the tier itself, as fast as its queue takes them, closes it,
opens it again (which checks it and builds the filter), and measures lookups in the event loop: alone, beside a
writer of a thousand rows a second, beside one that never pauses, and with the file thrown out of the system's
cache. The file is deleted afterwards. Keys are digests of numbers, so that any can be asked for again.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import platform
import queue
import random
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from dandolo.cache.generations import Marks
from dandolo.cache.sqlite import Put, Sqlite

BYTES_MAX = 64 * 1024**3
LOOKUPS = 5000
COLD_LOOKUPS = 2000
PUTS = 200
TTL_S = 30 * 86400.0
RESULTS = Path(__file__).parent / "results" / "sqlite.md"
_noise = random.Random(1).randbytes(1 << 16)


def key_of(n: int) -> bytes:
    """The key of row n."""
    return hashlib.blake2b(n.to_bytes(8, "big"), digest_size=20).digest()


def put_of(n: int, expires: float) -> Put:
    """Row n: 100 to 300 bytes, of one of a hundred tenants."""
    key = key_of(n)
    start = key[0] << 8 | key[1]
    value = key + _noise[start % 60000 : start % 60000 + 80 + start % 201]
    return Put(key, value, expires, Marks(f"tenant-{n % 100}", "llama-3.3-70b", "question"))


@dataclass
class Line:
    """What one kind of lookup took: milliseconds, and how late the loop's timers were meanwhile."""

    name: str
    p50_ms: float
    p99_ms: float
    most_ms: float
    late_p99_ms: float


def quantile(values: list[float], share: float) -> float:
    """The nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def fill(tier: Sqlite, first: int, count: int, expires: float) -> float:
    """Put rows and wait until all are in the file; seconds. None may be pushed out of the queue."""
    start = time.perf_counter()
    for n in range(first, first + count, PUTS):
        await tier.put_many(put_of(m, expires) for m in range(n, min(n + PUTS, first + count)))
        while tier.stats()["queued"] > 1500:
            await asyncio.sleep(0.001)
        if n % 500_000 < PUTS:
            print(
                f"{n - first:,} rows, {(n - first) / (time.perf_counter() - start):,.0f}/s", file=sys.stderr, flush=True
            )
    assert await tier.flush()
    assert not tier.stats()["dropped"]
    return time.perf_counter() - start


async def until(true: Callable[[], object]) -> float:
    """Seconds until it holds."""
    start = time.perf_counter()
    while not true():
        await asyncio.sleep(0.005)
    return time.perf_counter() - start


async def measure(name: str, look_up: Callable[[bytes], Awaitable[object]], keys: list[bytes]) -> Line:
    """Look keys up one by one, with a timer of 1 ms running beside."""
    late: list[float] = []

    async def tick() -> None:
        while True:
            due = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            late.append(time.perf_counter() - due)

    ticking = asyncio.create_task(tick())
    took = []
    for key in keys:
        start = time.perf_counter()
        await look_up(key)
        took.append((time.perf_counter() - start) * 1000)
        # A gateway has other things to do between two lookups.
        await asyncio.sleep(0)
    ticking.cancel()
    return Line(name, quantile(took, 0.5), quantile(took, 0.99), max(took), quantile(late or [0.0], 0.99) * 1000)


async def echo(keys: list[bytes]) -> Line:
    """The control: a thread that answers at once, without a file. What this takes is the machine's."""
    loop = asyncio.get_running_loop()
    asked: queue.SimpleQueue[asyncio.Future[None] | None] = queue.SimpleQueue()

    def answer() -> None:
        while (future := asked.get()) is not None:
            loop.call_soon_threadsafe(future.set_result, None)

    async def ask(key: bytes) -> None:
        future: asyncio.Future[None] = loop.create_future()
        asked.put(future)
        await future

    thread = threading.Thread(target=answer)
    thread.start()
    line = await measure("(a thread that answers without a file)", ask, keys)
    asked.put(None)
    thread.join()
    return line


async def beside(tier: Sqlite, first: int, expires: float, per_s: int | None) -> None:
    """Write rows until cancelled: so many a second, or as many as go."""
    n = first
    while True:
        count = PUTS if per_s is None else per_s // 100
        await tier.put_many(put_of(m, expires) for m in range(n, n + count))
        n += count
        await asyncio.sleep(0.01 if per_s is not None else 0.001)
        while tier.stats()["queued"] > 1500:
            await asyncio.sleep(0.001)


def forget(path: Path) -> None:
    """Throw the file's clean pages out of the system's cache."""
    os.sync()
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


async def run(rows: int, path: Path) -> str:
    """Everything, as Markdown."""
    expires = time.time() + TTL_S
    tier = Sqlite(path, BYTES_MAX)
    await tier.start()
    await until(lambda: tier.health().state == "open")
    filled_s = await fill(tier, 0, rows, expires)
    close_start = time.perf_counter()
    await tier.close()
    close_s = time.perf_counter() - close_start
    size = path.stat().st_size

    tier = Sqlite(path, BYTES_MAX)
    await tier.start()
    open_s = await until(lambda: tier.health().state == "open")
    rng = random.Random(2)
    some = [key_of(rng.randrange(rows)) for _ in range(LOOKUPS)]
    absent = [rng.randbytes(20) for _ in range(LOOKUPS)]
    lines = [await echo(some)]

    async def present(key: bytes) -> None:
        assert key in await tier.get_many([key])

    async def missing(key: bytes) -> None:
        assert not await tier.get_many([key])

    start = time.perf_counter()
    await until(lambda: tier.health().filter_ready)
    filter_s = time.perf_counter() - start
    filter_bytes = tier.stats()["filter_bytes"]
    denied = tier.stats()["denied"]
    lines.append(await measure("absent", missing, absent))
    passed = LOOKUPS - (tier.stats()["denied"] - denied)
    lines.append(await measure("there", present, some))
    forget(path)
    lines.append(await measure("there, file not in the system's cache", present, some[:COLD_LOOKUPS]))
    await measure("warm again", present, some)
    written = []
    for name, per_s in (("there, beside 1,000 rows/s", 1000), ("there, beside a writer without pause", None)):
        before, start = tier.stats()["written"], time.perf_counter()
        writing = asyncio.create_task(beside(tier, rows * (2 if per_s else 3), expires, per_s))
        lines.append(await measure(name, present, some))
        written.append((tier.stats()["written"] - before) / (time.perf_counter() - start))
        writing.cancel()
    await tier.flush()
    start = time.perf_counter()
    assert await tier.purge("scope", "tenant-7")
    purge_ms = (time.perf_counter() - start) * 1000
    await until(lambda: not tier._writer.generations.hard)
    swept_s = time.perf_counter() - start
    gone = tier.stats()["deleted"]
    await tier.close()

    cores = len(os.sched_getaffinity(0))
    table = "\n".join(
        f"| {one.name} | {one.p50_ms:.3f} | {one.p99_ms:.3f} | {one.most_ms:.2f} | {one.late_p99_ms:.2f} |"
        for one in lines
    )
    python = platform.python_version()
    return f"""# The tier on disk with {rows:,} rows

Values of 100 to 300 bytes; loop, reader and writer on {cores} core(s) that other work shared. SQLite
{sqlite3.sqlite_version}, Python {python}, asyncio's own loop. `python -m bench.cache.sqlite --rows {rows}`

| lookup of one key, ms | p50 | p99 | most | loop's timers late, p99 |
|---|---|---|---|---|
{table}

The last two wrote {written[0]:,.0f} and {written[1]:,.0f} rows/s meanwhile.

| | |
|---|---|
| filling, rows/s, mean | {rows / filled_s:,.0f} |
| file, GB (bytes per row) | {size / 1e9:.2f} ({size / rows:.0f}) |
| closing after filling, s | {close_s:.2f} |
| opening with its check, s | {open_s:.2f} |
| building the filter, s ({filter_bytes / 1024 / 1024:.1f} MiB) | {filter_s:.1f} |
| absent keys that the filter let through | {passed / LOOKUPS:.2%} |
| purge of one scope in a hundred, until the file knows, ms | {purge_ms:.1f} |
| the same, until its {gone:,} rows are deleted, s | {swept_s:.1f} |
"""


def main() -> None:
    """Run it in a folder that is deleted afterwards."""
    parser = argparse.ArgumentParser(prog="python -m bench.cache.sqlite", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the file is made (default: the system's temporary folder)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dandolo-bench-", dir=options.folder))
    try:
        text = asyncio.run(run(options.rows, folder / "cache.db"))
    finally:
        shutil.rmtree(folder)
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)


if __name__ == "__main__":
    main()
