"""The tier on disk with real files and threads: what is found, what goes, what never waits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from dandolo.cache import bloom, sqlite_reading, sqlite_row
from dandolo.cache.generations import Kind, Marks
from dandolo.cache.sqlite import Found, Put, Sqlite, steady_clock
from dandolo.cache.sqlite_file import SqliteFile, SqliteReader

MIB = 1024 * 1024
LATER = 4e9
"""A time to live that ends after all tests."""

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "cache.db"


async def until(true: Callable[[], object]) -> None:
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")


@contextlib.asynccontextmanager
async def opened(path: Path, bytes_max: int = 64 * MIB, **options: Any) -> AsyncIterator[Sqlite]:
    tier = Sqlite(path, bytes_max, **options)
    await tier.start()
    await until(lambda: tier.health().state == "open")
    try:
        yield tier
    finally:
        await tier.close()
        assert tier.health().state == "closed"


def threads_end() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("cache-"):
            thread.join(10)
            assert not thread.is_alive()


def key(n: int) -> bytes:
    return random.Random(n).randbytes(20)


def put(n: int, value: bytes = b"", expires: float = LATER, marks: Marks | None = None) -> Put:
    return Put(key(n), value or b"value %d" % n, expires, marks or Marks())


async def found(tier: Sqlite, numbers: range | list[int]) -> list[int]:
    there = await tier.get_many([key(n) for n in numbers])
    return [n for n in numbers if key(n) in there]


class Gate:
    """Holds a method's callers, in their threads, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        self.entered = threading.Event()
        self.open = threading.Event()
        real = getattr(owner, name)

        def gated(*args: Any, **kwargs: Any) -> Any:
            self.entered.set()
            assert self.open.wait(30)
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, gated)


@pytest.fixture
def writing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch, SqliteFile, "write")
    yield gate
    gate.open.set()


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch, SqliteReader, "rows")
    yield gate
    gate.open.set()


# -- keeping -------------------------------------------------------------------------------------------------------


def test_what_was_put_is_found(run: Run, path: Path) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            await tier.put_many([put(1, b"one", 3e9), put(2, b"\0" * 300_000)])
            assert await tier.flush()
            assert await tier.get_many([key(3), key(2), key(1), key(1)]) == {
                key(1): Found(b"one", 3e9, stale=False),
                key(2): Found(b"\0" * 300_000, LATER, stale=False),
            }
            assert await tier.get_many([]) == {}
            assert await found(tier, list(range(1, 200))) == [1, 2]

    run(main())


def test_the_later_of_two_values_counts(run: Run, path: Path) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            await tier.put_many([put(1, b"first"), put(1, b"second")])
            await tier.flush()
            assert (await tier.get_many([key(1)]))[key(1)].value == b"second"
            await tier.put_many([put(1, b"third")])
            await tier.flush()
            assert (await tier.get_many([key(1)]))[key(1)].value == b"third"
            assert (tier.stats()["rows"], tier.stats()["value_bytes"]) == (1, 5)

    run(main())


def test_it_outlives_the_process(run: Run, path: Path) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            # Not flushed: closing does.
            await tier.put_many(put(n) for n in range(1500))
        async with opened(path) as tier:
            assert await found(tier, range(1500)) == list(range(1500))
            assert tier.stats()["rows"] == 1500

    run(main())


def test_a_file_is_read_while_it_is_being_checked(run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            await tier.put_many(put(n, marks=Marks(tags=(str(n),))) for n in range(4))
        checking = Gate(monkeypatch, SqliteFile, "check")
        tier = Sqlite(path, 64 * MIB)
        await tier.start()
        await until(checking.entered.is_set)
        assert tier.health().state == "starting"
        await tier.put_many([put(5)])
        assert await found(tier, range(6)) == [0, 1, 2, 3, 5]
        await tier.delete([key(1)])
        assert not await tier.purge("tag", "2")
        assert await found(tier, range(6)) == [0, 3, 5]
        checking.open.set()
        await until(lambda: tier.health().state == "open")
        assert await tier.flush()
        assert await found(tier, range(6)) == [0, 3, 5]
        await tier.close()

    run(main())


def test_nobody_else_may_read_the_files(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            await tier.put_many([put(1)])
            await tier.flush()
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
            names = ("cache.db", "cache.db-wal", "cache.db-shm", "cache.db.lock")
            assert modes == dict.fromkeys(names, 0o600)

    umask = os.umask(0)
    try:
        asyncio.run(main())
        path.chmod(0o644)
        asyncio.run(main())
    finally:
        os.umask(umask)


def test_counts_are_those_of_the_file(path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        rng = random.Random(1)
        async with opened(path, 2 * MIB, clock=clock) as tier:
            for _ in range(60):
                await tier.put_many(
                    put(rng.randrange(3000), rng.randbytes(rng.randrange(1, 900)), clock.now + rng.randrange(1, 60))
                    for _ in range(100)
                )
                await tier.delete([key(rng.randrange(3000))])
                clock.now += 1
                await tier.flush()
            stats = tier.stats()
            assert stats["evicted"]
            assert stats["expired"]
            assert stats["deleted"]

    asyncio.run(main())
    with contextlib.closing(sqlite3.connect(path)) as file:
        counted = file.execute("SELECT count(*), sum(length(value)) FROM entry").fetchone()
        assert file.execute("SELECT rows, bytes FROM tally").fetchone() == counted
        assert counted[0]


@pytest.mark.parametrize(
    "bad",
    [
        Put(key(1), b"x" * (64 * MIB // 20 + 1), LATER),
        Put(key(1)[:19], b"x", LATER),
        Put(key(1), b"x", float("inf")),
        Put(key(1), b"x", float("nan")),
        Put(key(1), b"x", 1e300),
        Put(key(1), b"x", LATER, Marks(scope="\ud800")),
        Put(key(1), b"x", LATER, Marks(tags=("\ud800",))),
        Put(key(1), b"x", LATER, Marks(tags=("long " * 1000,))),
    ],
    ids=["too large", "short key", "for ever", "never", "until the sun dies", "no text", "no tag", "long tags"],
)
def test_what_cannot_be_kept_is_refused_and_counted(path: Path, bad: Put) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            await tier.put_many([bad, put(2)])
            assert await tier.flush()
            assert await found(tier, [2]) == [2]
            assert (tier.stats()["refused"], tier.stats()["rows"]) == (1, 1)

    asyncio.run(main())


def test_a_damaged_row_is_a_miss_and_goes(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            await tier.put_many(put(n, marks=Marks("a", "b", "c", ("d",))) for n in range(12))
            await tier.flush()
            with contextlib.closing(sqlite3.connect(path)) as file:
                for n, (column, value) in enumerate(
                    [
                        ("value", b"value X"),
                        ("value", "value 1"),
                        ("expires", 5 * 10**12),
                        ("created", 1),
                        ("generation", 5),
                        ("scope", "b"),
                        ("scope", b"\xff"),
                        ("model", ""),
                        ("class", "x"),
                        ("tags", b"\xc1"),
                        ("crc", 0),
                    ]
                ):
                    file.execute(f"UPDATE entry SET {column} = ? WHERE key = ?", (value, key(n)))
                file.execute("UPDATE entry SET scope = CAST(x'ff' AS TEXT) WHERE key = ?", (key(6),))
                file.commit()
            assert await found(tier, range(12)) == [11]
            await until(lambda: tier.stats()["rows"] == 1)
            assert tier.stats()["damaged"] == 11
            assert tier.health().state == "open"

    asyncio.run(main())


# -- time ----------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def test_what_is_past_its_time_is_not_found_and_goes(run: Run, path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with opened(path, clock=clock) as tier:
            await tier.put_many([put(1, expires=clock.now + 10), put(2, expires=clock.now + 20)])
            await tier.flush()
            clock.now += 9.9
            assert await found(tier, [1, 2]) == [1, 2]
            clock.now += 0.1
            assert await found(tier, [1, 2]) == [2]
            await until(lambda: tier.stats()["expired"])
            assert tier.stats()["rows"] == 1
            await tier.put_many([put(3, expires=clock.now)])
            assert await tier.flush()
            assert tier.stats()["rows"] == 1

    run(main())


@pytest.mark.parametrize("jump_s", [3600, -3600])
def test_a_jump_of_the_wall_clock_moves_no_time_to_live(
    path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    real = time.time
    clock = steady_clock()

    async def main() -> None:
        async with opened(path, clock=clock) as tier:
            await tier.put_many([put(1, expires=real() + 600), put(2, expires=real() - 1)])
            await tier.flush()
            monkeypatch.setattr(time, "time", lambda: real() + jump_s)
            assert await found(tier, [1, 2]) == [1]
            await tier.put_many([put(3, expires=clock() + 600)])
            await tier.flush()
            assert await found(tier, [1, 2, 3]) == [1, 3]

    asyncio.run(main())
    assert abs(clock() - real()) < 1


def test_a_row_from_the_future_is_not_found(path: Path) -> None:
    async def main() -> None:
        clock = Clock()
        async with opened(path, clock=clock) as tier:
            await tier.put_many([put(1, expires=clock.now + 600)])
        # The next process finds the wall clock an hour, and then a few seconds earlier.
        clock.now -= 3600
        async with opened(path, clock=clock) as tier:
            assert await found(tier, [1]) == []
        clock.now += 3600 - 5
        async with opened(path, clock=clock) as tier:
            assert await found(tier, [1]) == [1]

    asyncio.run(main())


# -- room ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bytes_max", "value_bytes"),
    [(MIB, 100), (MIB, 2100), (MIB, 4100), (MIB, 50_000), (8 * MIB, 1000), (8 * MIB, 400_000)],
)
def test_the_files_stay_within_their_bytes_and_the_oldest_go(path: Path, bytes_max: int, value_bytes: int) -> None:
    rng = random.Random(1)

    def size() -> int:
        return sum(file.stat().st_size for file in path.parent.iterdir() if not file.name.endswith("-shm"))

    async def main() -> None:
        async with opened(path, bytes_max) as tier:
            count = 3 * bytes_max // (value_bytes + 150)
            step = max(1, count // 40)
            for first in range(0, count, step):
                await tier.put_many(put(n, rng.randbytes(value_bytes)) for n in range(first, first + step))
                assert await tier.flush()
                assert size() <= bytes_max
            last = first + step
            there = await found(tier, range(last))
            # What is left is an unbroken run of the newest, and makes use of the room.
            assert there == list(range(there[0], last))
            assert len(there) * (value_bytes + sqlite_row.ROW_BYTES) > 0.25 * bytes_max
            stats = tier.stats()
            assert stats["evicted"] == there[0]
            assert not stats["lost"] + stats["dropped"] + stats["write_errors"]
        assert size() <= bytes_max

    asyncio.run(main())


def test_a_full_queue_drops_the_oldest_and_counts_them(run: Run, path: Path, writing: Gate) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            await tier.put_many([put(9999)])
            await until(writing.entered.is_set)
            for n in range(0, 2500, 100):
                await tier.put_many(put(m) for m in range(n, n + 100))
            assert (tier.stats()["queued"], tier.stats()["dropped"]) == (2000, 500)
            writing.open.set()
            assert await tier.flush()
            assert await found(tier, range(2500)) == list(range(500, 2500))

    run(main())


def test_a_queue_of_large_values_is_bounded_by_bytes(path: Path, writing: Gate) -> None:
    async def main() -> None:
        async with opened(path, 256 * MIB) as tier:
            await tier.put_many([put(9999)])
            await until(writing.entered.is_set)
            await tier.put_many(put(n, bytes(MIB)) for n in range(40))
            stats = tier.stats()
            assert (stats["queued"], stats["dropped"]) == (31, 9)
            assert stats["queued_bytes"] <= sqlite_row.QUEUE_BYTES_MAX
            writing.open.set()
            assert await tier.flush()
            assert await found(tier, range(40)) == list(range(9, 40))

    asyncio.run(main())


# -- purges --------------------------------------------------------------------------------------------------------

ALL_MARKS = {
    1: Marks("tenant", "llama", "code", ("x", "y")),
    2: Marks("other", "llama", "code", ("x",)),
    3: Marks("other", "qwen", "code", ("y",)),
    4: Marks("other", "qwen", "question"),
}
PURGES: list[tuple[Kind, str, list[int]]] = [
    ("key", key(1).hex(), [2, 3, 4]),
    ("key", key(1).hex().upper(), [2, 3, 4]),
    ("scope", "tenant", [2, 3, 4]),
    ("model", "llama", [3, 4]),
    ("class", "code", [4]),
    ("tag", "x", [3, 4]),
    ("tag", "y", [2, 4]),
    ("tag", "'; DROP TABLE entry; --", [1, 2, 3, 4]),
    ("all", "", []),
]


@pytest.mark.parametrize(("kind", "name", "left"), PURGES, ids=[f"{kind} {name[:6]}" for kind, name, _ in PURGES])
def test_a_purge_holds_at_once_and_in_the_next_process_and_its_bytes_go(
    path: Path, kind: Kind, name: str, left: list[int]
) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            await tier.put_many(put(n, b"secret %d" % n * 10, marks=marks) for n, marks in ALL_MARKS.items())
            await tier.flush()
            purge = asyncio.ensure_future(tier.purge(kind, name))
            await asyncio.sleep(0)
            assert await found(tier, [1, 2, 3, 4]) == left
            assert await purge
            assert await found(tier, [1, 2, 3, 4]) == left
            # What comes after it is none of its business.
            await tier.put_many([put(5, marks=ALL_MARKS[1])])
            await tier.flush()
            assert await found(tier, [1, 2, 3, 4, 5]) == [*left, 5]
            await until(lambda: tier.stats()["rows"] == len(left) + 1 and not tier._writer.generations.hard)
            assert tier.stats()["deleted"] == 4 - len(left)
        if kind != "key":
            # A key that is deleted is replaced by a better one as a rule; what a purge names is wanted gone.
            content = path.read_bytes()
            assert [n for n in ALL_MARKS if b"secret %d" % n in content] == left
        async with opened(path) as tier:
            assert await found(tier, [1, 2, 3, 4, 5]) == [*left, 5]

    asyncio.run(main())


@pytest.mark.parametrize(("kind", "name", "left"), PURGES, ids=[f"{kind} {name[:6]}" for kind, name, _ in PURGES])
def test_a_soft_purge_marks_as_stale_also_in_the_next_process(
    path: Path, kind: Kind, name: str, left: list[int]
) -> None:
    async def fresh(tier: Sqlite) -> list[int]:
        there = await tier.get_many([key(n) for n in range(1, 6)])
        assert len(there) == 5
        return [n for n in range(1, 6) if not there[key(n)].stale]

    async def main() -> None:
        async with opened(path) as tier:
            await tier.put_many(put(n, marks=marks) for n, marks in ALL_MARKS.items())
            await tier.flush()
            assert await tier.purge(kind, name, soft=True)
            await tier.put_many([put(5, marks=ALL_MARKS[1])])
            await tier.flush()
            assert await fresh(tier) == [*left, 5]
        async with opened(path) as tier:
            assert await fresh(tier) == [*left, 5]
            # Once nothing is older than it, it is forgotten.
            await tier.delete([key(n) for n in range(1, 5)])
            await tier.flush()
            await until(lambda: not tier._writer.generations.soft)

    asyncio.run(main())


def test_what_is_queued_when_a_purge_comes_never_gets_into_the_file(path: Path, writing: Gate) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            await tier.put_many([put(9999)])
            await until(writing.entered.is_set)
            # More than the batches of one turn, so that the purge is in the file before the last of them.
            await tier.put_many(put(n, marks=Marks(tags=("t",))) for n in range(1000))
            await tier.delete([key(1500)])
            purge = asyncio.ensure_future(tier.purge("tag", "t"))
            await asyncio.sleep(0)
            await tier.put_many(put(n, marks=Marks(tags=("t",))) for n in range(1000, 1010))
            writing.open.set()
            assert await purge
            assert await tier.flush()
            assert await found(tier, range(1010)) == list(range(1000, 1010))
            assert tier.stats()["rows"] == 11

    asyncio.run(main())


def test_a_purge_ends_while_rows_keep_coming(run: Run, path: Path) -> None:
    async def main() -> None:
        async with opened(path) as tier:

            async def keep_coming() -> None:
                n = 0
                while True:
                    n += 100
                    await tier.put_many(put(m) for m in range(n, n + 100))
                    while tier.stats()["queued"] > 1500:
                        await asyncio.sleep(0.001)

            coming = asyncio.ensure_future(keep_coming())
            await until(lambda: tier.stats()["written"])
            for n in range(5):
                assert await asyncio.wait_for(tier.purge("tag", str(n)), 20)
            assert not coming.done()
            coming.cancel()

    run(main())


def test_a_deleted_key_is_gone_and_may_come_again(run: Run, path: Path) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            await tier.put_many(put(n) for n in range(5))
            await tier.delete([key(1), key(2), key(77)])
            await tier.put_many([put(2, b"again")])
            assert await tier.flush()
            assert await found(tier, range(5)) == [0, 2, 3, 4]
            await tier.delete([key(0)])
            assert await found(tier, range(5)) == [2, 3, 4]
            assert (await tier.get_many([key(2)]))[key(2)].value == b"again"
            assert await tier.flush()
            assert tier.stats()["rows"] == 3

    run(main())


def test_a_row_read_before_its_deletion_is_not_given_after_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row is in the reader's hands when it is deleted from the file, and the deletion no longer noted."""
    read, go = threading.Event(), threading.Event()
    real = SqliteReader.rows

    def rows(self: SqliteReader, *args: Any) -> Any:
        result = real(self, *args)
        read.set()
        assert go.wait(30)
        return result

    async def main() -> None:
        async with opened(path) as tier:
            await tier.put_many([put(1)])
            await tier.flush()
            monkeypatch.setattr(SqliteReader, "rows", rows)
            looking = asyncio.ensure_future(tier.get_many([key(1)]))
            await until(read.is_set)
            await tier.delete([key(1)])
            assert await tier.flush()
            assert not tier._writer.generations.deletes
            go.set()
            assert await looking == {}

    asyncio.run(main())


def test_a_purge_of_a_key_that_is_none_is_an_error(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            with pytest.raises(ValueError, match="hexadecimal"):
                await tier.purge("key", "no key")

    asyncio.run(main())


def test_agrees_with_a_model_whatever_comes(run: Run, path: Path) -> None:
    async def main() -> None:
        rng = random.Random(7)
        model: dict[int, tuple[bytes, str, bool]] = {}

        async def agree(tier: Sqlite) -> None:
            there = await tier.get_many([key(n) for n in range(60)])
            assert {k: (one.value, one.stale) for k, one in there.items()} == {
                key(n): (value, stale) for n, (value, _, stale) in model.items()
            }

        tier = Sqlite(path, 64 * MIB)
        await tier.start()
        await until(lambda: tier.health().state == "open")
        for turn in range(400):
            what = rng.random()
            if what < 0.6:
                some = [(rng.randrange(60), rng.randbytes(8), rng.choice("xyz")) for _ in range(rng.randrange(1, 5))]
                await tier.put_many(put(n, value, marks=Marks(tags=(tag,))) for n, value, tag in some)
                model.update((n, (value, tag, False)) for n, value, tag in some)
            elif what < 0.7:
                gone = [rng.randrange(60) for _ in range(3)]
                await tier.delete([key(n) for n in gone])
                model = {n: entry for n, entry in model.items() if n not in gone}
            elif what < 0.85:
                tag, soft = rng.choice("xyz"), rng.random() < 0.5
                purge = asyncio.ensure_future(tier.purge("tag", tag, soft=soft))
                await asyncio.sleep(0)
                purge.cancel()
                if soft:
                    model = {n: (value, of, stale or of == tag) for n, (value, of, stale) in model.items()}
                else:
                    model = {n: entry for n, entry in model.items() if entry[1] != tag}
            elif what < 0.95:
                # Also while some of it is queued.
                await agree(tier)
            elif turn % 2:
                await tier.close()
                tier = Sqlite(path, 64 * MIB)
                await tier.start()
                await until(lambda tier=tier: tier.health().state == "open")
            if turn % 10 == 0:
                await until(lambda tier=tier: tier.health().state == "open")
                assert await tier.flush()
                await agree(tier)
        await tier.close()

    run(main())


def test_what_a_purged_row_replaced_does_not_come_back(path: Path, writing: Gate) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            writing.open.set()
            await tier.put_many([put(1, b"old", marks=Marks(tags=("a",)))])
            assert await tier.flush()
            writing.open.clear()
            writing.entered.clear()
            await tier.put_many([put(2)])
            await until(writing.entered.is_set)
            await tier.put_many([put(1, b"new", marks=Marks(tags=("b",)))])
            purge = asyncio.ensure_future(tier.purge("tag", "b"))
            await asyncio.sleep(0)
            writing.open.set()
            assert await purge
            assert await found(tier, [1, 2]) == [2]

    asyncio.run(main())


# -- the filter ----------------------------------------------------------------------------------------------------


def test_the_filter_denies_what_is_not_there_and_never_what_is(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            for first in range(0, 5000, 1000):
                await tier.put_many(put(n) for n in range(first, first + 1000))
                await tier.flush()
        tier = Sqlite(path, 64 * MIB)
        await tier.start()
        await until(lambda: tier.health().state == "open")
        # Written while the filter is being built, before and behind the place where the scan is.
        await tier.put_many(put(n) for n in range(5000, 6000))
        assert await found(tier, range(5000)) == list(range(5000))
        await until(lambda: tier.health().filter_ready)
        await tier.flush()
        await tier.put_many(put(n) for n in range(6000, 7000))
        await tier.flush()
        assert await found(tier, range(7000)) == list(range(7000))
        assert tier.stats()["denied"] == 0
        assert await found(tier, range(100_000, 102_000)) == []
        assert tier.stats()["denied"] > 1950
        await tier.close()

    asyncio.run(main())


def test_until_there_is_a_filter_reads_go_through(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanning = Gate(monkeypatch, SqliteReader, "keys")

    async def main() -> None:
        async with opened(path) as tier:
            await tier.put_many([put(1)])
            await tier.flush()
            looking = asyncio.ensure_future(found(tier, [1, 2]))
            await until(scanning.entered.is_set)
            assert not tier.health().filter_ready
            scanning.open.set()
            assert await looking == [1]
            assert tier.stats()["denied"] == 0

    asyncio.run(main())


def test_a_filter_that_is_full_is_built_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bloom, "KEYS_MIN", 512)
    monkeypatch.setattr(sqlite_reading, "SCAN_KEYS", 16)

    async def main() -> None:
        async with opened(path) as tier:
            await until(lambda: tier.health().filter_ready)
            small = tier.stats()["filter_bytes"]
            for first in range(0, 2000, 250):
                await tier.put_many(put(n) for n in range(first, first + 250))
                await tier.flush()
                assert await found(tier, range(first + 250)) == list(range(first + 250))
            await until(lambda: tier.stats()["filter_bytes"] >= 4 * small)
            await until(lambda: tier._writer.scan is None)
            assert await found(tier, range(2000)) == list(range(2000))
            assert tier.stats()["denied"] == 0

    asyncio.run(main())


# -- never waiting -------------------------------------------------------------------------------------------------


def test_the_loop_goes_on_while_the_disk_hangs_in_a_write(run: Run, path: Path, writing: Gate) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            await tier.put_many([put(1)])
            await until(writing.entered.is_set)
            for n in range(2, 300):
                await tier.put_many([put(n)])
                await tier.delete([key(n)])
            assert tier.stats()["queued"] == 298
            # Lookups have a thread of their own, and what is queued counts as kept.
            await tier.put_many([put(500)])
            assert await found(tier, [0, 1, 2, 500]) == [1, 500]
            purge = asyncio.ensure_future(tier.purge("all"))
            await asyncio.sleep(0)
            assert not purge.done()
            assert tier.health().state == "open"
            assert tier.health().unsaved_purges == 299
            assert await found(tier, [1, 500]) == []
            purge.cancel()
            await asyncio.gather(purge, return_exceptions=True)
            writing.open.set()
            assert await tier.flush()
            assert tier.health().unsaved_purges == 0

    run(main())


def test_the_loop_goes_on_while_the_disk_hangs_in_a_lookup(run: Run, path: Path, reading: Gate) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            await tier.put_many([put(1)])
            assert await tier.flush()
            first = asyncio.ensure_future(tier.get_many([key(1)]))
            await until(reading.entered.is_set)
            more = [asyncio.ensure_future(tier.get_many([key(1)])) for _ in range(sqlite_reading.LOOKUPS_MAX + 50)]
            await until(lambda: tier.stats()["crowded"] == 50)
            # Those beyond the bound are misses; the others wait, until their callers have enough.
            assert [one.result() for one in more if one.done()] == [{}] * 50
            for one in more:
                one.cancel()
            await asyncio.gather(*more, return_exceptions=True)
            await tier.put_many([put(2)])
            assert await tier.flush()
            reading.open.set()
            assert key(1) in await first
            # What nobody waits for any more is passed over.
            assert tier._reading is not None
            await until(tier._reading._lookups.empty)
            assert await found(tier, [1, 2]) == [1, 2]

    run(main())


def test_lookups_cancelled_at_any_moment_leave_the_tier_working(run: Run, path: Path) -> None:
    async def main() -> None:
        rng = random.Random(1)
        async with opened(path) as tier:
            await tier.put_many(put(n) for n in range(100))
            await tier.flush()
            for _ in range(200):
                some = asyncio.ensure_future(found(tier, range(10)))
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                some.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await some
            assert await found(tier, range(100)) == list(range(100))
            assert tier._reading is not None
            await until(tier._reading._lookups.empty)

    run(main())


def test_a_lock_held_by_another_costs_a_batch_and_no_more(path: Path) -> None:
    async def main() -> None:
        async with opened(path) as tier:
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                await tier.put_many([put(1)])
                assert not await tier.flush()
            assert (tier.stats()["lost"], tier.health().state) == (1, "open")
            await tier.put_many([put(2)])
            assert await tier.flush()
            assert await found(tier, [1, 2]) == [2]

    asyncio.run(main())


# -- the end -------------------------------------------------------------------------------------------------------


def test_after_the_end_nothing_is_found_and_nothing_kept(run: Run, path: Path) -> None:
    async def main() -> None:
        never = Sqlite(path, MIB)
        await never.close()
        async with opened(path) as tier:
            await tier.put_many([put(1)])
        threads_end()
        assert await found(tier, [1]) == []
        await tier.put_many([put(2)])
        assert tier.stats()["lost"] == 1
        assert not await tier.purge("all")
        await tier.close()

    run(main())


def test_the_end_does_not_wait_for_the_check_of_a_large_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(self: SqliteFile) -> None:
        checking.set()
        self._all("WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n")

    checking = threading.Event()
    monkeypatch.setattr(SqliteFile, "check", check)

    async def main() -> None:
        tier = Sqlite(path, MIB)
        await tier.start()
        await tier.put_many([put(1)])
        assert not await tier.purge("all")
        await until(checking.is_set)
        # The statement that never ends may be about to begin.
        while tier.health().state != "closed":
            await tier.close()

    asyncio.run(main())
    threads_end()


def test_the_end_does_not_wait_for_a_disk_that_hangs(
    path: Path, writing: Gate, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dandolo.cache.sqlite.CLOSE_S", 0.01)
    monkeypatch.setattr("dandolo.cache.sqlite.CLOSE_WAIT_S", 0.05)

    async def main() -> None:
        tier = Sqlite(path, MIB)
        await tier.start()
        await tier.put_many([put(1)])
        await until(writing.entered.is_set)
        waiting = asyncio.ensure_future(tier.flush())
        await asyncio.sleep(0)
        await tier.close()
        assert "does not answer" in caplog.text
        writing.open.set()
        await waiting
        await until(lambda: tier.health().state == "closed")

    asyncio.run(main())
