"""What a finished request costs the control process, in µs: its record read and given to every sink, and the ledger.

The sinks are those of `dandolo serve`, fed with frames as workers send them: `frame` decodes them, each sink takes the
batches by itself (least of several rounds), `all sinks` is all of it through one `Fanout`. `ledger` reads a journal as
long, sums it, and commits it to a file. `python -m bench.micro.records [--profile]`.
"""

from __future__ import annotations

import asyncio
import cProfile
import gc
import os
import pstats
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from dandolo.cli.alarms import Alarms
from dandolo.cli.reporting import BATCH_MAX
from dandolo.clock import timestamp
from dandolo.config import parse
from dandolo.control import child
from dandolo.control.ledger_batch import Batch, Names, Source
from dandolo.control.ledger_file import LedgerFile
from dandolo.control.ledger_ring import Ring
from dandolo.control.logwriter import LogWriter
from dandolo.control.metrics import Metrics
from dandolo.control.sinks import AccessLog, Counted, Fanout
from dandolo.control.snapshot import Snapshots
from dandolo.journal import ANSWERED, CALL, REQUEST, Journal, Name
from dandolo.mind.slo import Objectives
from dandolo.net.dial import Dialer
from dandolo.record import Record

COUNT = 100_000
ROUNDS = 7
NOW = 1_800_000_000.0
BATCH_BYTES = 1024 * 1024
CONFIG = """
[[providers]]
name = "stub"
base_url = "http://127.0.0.1:9/v1"
[[providers.models]]
id = "bench-model"
"""


def frames() -> list[bytes]:
    """COUNT records of plain requests that went well, as a worker sends them under load."""
    rng, encode, made = random.Random(1), msgspec.msgpack.Encoder().encode, []
    for first in range(0, COUNT, BATCH_MAX):
        batch = [
            Record(
                timestamp(NOW + number / 5000), f"req_0123456789ab{number:010x}", 200, "POST", "chat", "bench",
                "127.0.0.1", "bench-model", "stub", "stub", "bench-model", False, 1, "stop", "", 1024, 1580, 200, 150,
                0, 0, False, 0.00056, round(rng.lognormvariate(0.5, 0.4), 3), None, round(rng.random(), 3), None,
                round(rng.lognormvariate(-2.0, 0.3), 3), "",
            )
            for number in range(first, min(COUNT, first + BATCH_MAX))
        ]  # fmt: skip
        made.append(encode(batch))
    return made


def journal(folder: Path) -> tuple[Journal, int]:
    """A journal of COUNT requests, and where it begins."""
    made = Journal(folder, b"req_0123456789ab")
    name = made.name(Name("bench", "{}", "chat", "bench-model", "stub", "stub", "", "bench-model", 0.7, 2.8))
    start = time.monotonic()
    for number in range(COUNT):
        at = made.intent(number, name, 0, start)
        made.settle(
            at, number, name, CALL | REQUEST | ANSWERED, 200, 0, 1, 200, 150, 0, 0, 560_000, -1, start, 0.01, -1.0
        )
    return made, made.pending_bytes


async def main() -> None:
    log = LogWriter(os.open(os.devnull, os.O_WRONLY), bytes_max=1 << 62)
    metrics, snapshots, objectives = Metrics(), Snapshots(NOW), Objectives(())
    alarms = Alarms(parse(CONFIG, "bench", os.environ), list, Dialer())
    parts: list[tuple[str, Any]] = [
        ("metrics", Counted(metrics)),
        ("log", AccessLog(log, "json")),
        ("objectives", objectives),
        ("snapshot", snapshots),
        ("alerts", alarms.alerting),
    ]
    packed = frames()
    gc.collect()
    gc.freeze()

    def decode() -> None:
        for one in packed:
            child._records.decode(one)

    print(f"{'frame':12}{_best(decode):6.2f}")
    batches = [child._records.decode(one) for one in packed]
    for name, sink in parts:
        print(f"{name:12}{_best(lambda: [Fanout([sink]).take(one, NOW) for one in batches]):6.2f}")  # noqa: B023
    fanout = Fanout([sink for _, sink in parts])

    def everything() -> None:
        for one in packed:
            fanout.take(child._records.decode(one), NOW)

    print(f"{'all sinks':12}{_best(everything):6.2f}   (frame, and every sink, µs a record)")
    with tempfile.TemporaryDirectory() as folder:
        written, end = journal(Path(folder))
        ring, names, rounds = Ring(written.path), Names({}), iter(range(1000))
        file = LedgerFile(Path(folder) / "ledger.db")

        def read() -> None:
            at = 0
            while at < end:
                _, at = ring.read(at, BATCH_BYTES)

        def ledger() -> None:
            source = Source(next(rounds).to_bytes(8, "big"), "req_0123456789ab", NOW)
            at = 0
            while at < end:
                slots, at = ring.read(at, BATCH_BYTES)
                batch = Batch(names)
                batch.take(source, slots, at)
                file.apply(batch, [source], [], {}, NOW)
                batch.committed([source])

        print(f"{'ring':12}{_best(read):6.2f}")
        print(f"{'ledger':12}{_best(ledger):6.2f}   (ring, sums, and the file)")
        if "--profile" in sys.argv:
            for call in (everything, ledger):
                profile = cProfile.Profile()
                profile.runcall(call)
                pstats.Stats(profile).sort_stats("tottime").print_stats(20)
        file.close()
        ring.close()
        written.close()


def _best(call: Callable[[], object]) -> float:
    """µs of CPU a record (of all threads), the least of some rounds."""
    least = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        call()
        least = min(least, time.process_time() - start)
    return least / COUNT * 1e6


if __name__ == "__main__":
    asyncio.run(main())
