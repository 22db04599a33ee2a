"""The tier on disk when the disk, the file or the process fails: kill −9, full, read-only, damaged, somebody else's."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dandolo.cache import sqlite_writer
from dandolo.cache.generations import Marks
from dandolo.cache.sqlite import Put, Sqlite
from dandolo.cache.sqlite_file import APPLICATION_ID, VERSION

MIB = 1024 * 1024
LATER = 4e9


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "cache.db"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no small file system: {mounted.stderr.decode()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


async def until(true: Callable[[], object]) -> None:
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")


@contextlib.asynccontextmanager
async def started(path: Path, state: str = "open", bytes_max: int = 64 * MIB, **options: Any) -> AsyncIterator[Sqlite]:
    tier = Sqlite(path, bytes_max, **{"retry_s": 0.02, **options})
    await tier.start()
    try:
        await until(lambda: tier.health().state == state)
        yield tier
    finally:
        await tier.close()


def key(n: int) -> bytes:
    return hashlib.sha256(b"%d" % n).digest()[:20]


def value(n: int) -> bytes:
    """Tells from its own bytes whether it is whole, and of different lengths."""
    return key(n) * (1 + n % 300)


def puts(numbers: range) -> list[Put]:
    return [Put(key(n), value(n), LATER, Marks(tags=(f"t{n % 7}",))) for n in numbers]


async def whole(tier: Sqlite, numbers: range) -> list[int]:
    """Those that are found, none of which may be other than it was put."""
    there = await tier.get_many([key(n) for n in numbers])
    for n in numbers:
        assert key(n) not in there or there[key(n)].value == value(n)
    return [n for n in numbers if key(n) in there]


def fill(path: Path, numbers: range) -> None:
    async def main() -> None:
        async with started(path) as tier:
            for first in range(numbers.start, numbers.stop, 1000):
                await tier.put_many(puts(range(first, min(first + 1000, numbers.stop))))
                assert await tier.flush()

    asyncio.run(main())


def alerts(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def aside(path: Path, flaw: str) -> list[str]:
    names = [file.name for file in path.parent.iterdir() if file.name.startswith(f"{path.name}.{flaw}-")]
    return sorted(name for name in names if not name.endswith("-wal"))


KILLS = 50


# -- kill −9 -------------------------------------------------------------------------------------------------------

WRITER = f"""
import asyncio, random, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_sqlite_disk import key, puts
from dandolo.cache.sqlite import Sqlite

async def main():
    path, seed = Path(sys.argv[1]), int(sys.argv[2])
    rng = random.Random(seed)
    tier = Sqlite(path, 2 << 20)
    await tier.start()
    while tier.health().state != "open":
        await asyncio.sleep(0.001)
    while True:
        # Rows replaced, evicted, purged and deleted, in batches of many sizes.
        first = rng.randrange(3000)
        await tier.put_many(puts(range(first, first + rng.randrange(1, 400))))
        if rng.random() < 0.1:
            await tier.purge("tag", f"t{{rng.randrange(7)}}")
        if rng.random() < 0.1:
            await tier.delete([key(rng.randrange(3000))])
        if rng.random() < 0.5:
            await tier.flush()
        print("on", flush=True)

asyncio.run(main())
"""


def test_a_process_killed_while_it_writes_leaves_a_file_that_is_sound(path: Path) -> None:
    rng = random.Random()
    survived = 0
    for turn in range(KILLS):
        process = subprocess.Popen([sys.executable, "-c", WRITER, path, str(turn)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(rng.randrange(1, 40)):
            assert process.stdout.readline() == b"on\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        # The file as it was left, log and all, before anybody repairs anything.
        with contextlib.closing(sqlite3.connect(path)) as file:
            assert file.execute("PRAGMA quick_check").fetchall() == [("ok",)]
            counted = file.execute("SELECT count(*), coalesce(sum(length(value)), 0) FROM entry").fetchone()
            assert file.execute("SELECT rows, bytes FROM tally").fetchone() == counted

        async def look() -> int:
            async with started(path, bytes_max=2 * MIB) as tier:
                there = await whole(tier, range(3500))
                assert tier.stats()["damaged"] == 0
                assert tier.stats()["set_aside"] == 0
                return len(there)

        survived += asyncio.run(look()) > 0
    assert survived > KILLS // 2


# -- damage --------------------------------------------------------------------------------------------------------


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def damage_head(path: Path) -> None:
    overwrite(path, 0, b"this is no database at all")


def damage_tree(path: Path) -> None:
    overwrite(path, 2 * 4096, os.urandom(6 * 4096))


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)


def cut_to_a_stub(path: Path) -> None:
    os.truncate(path, 100)


@pytest.mark.parametrize("damage", [damage_head, damage_tree, cut_short, cut_to_a_stub])
def test_a_damaged_file_is_set_aside_and_begun_anew(
    path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    fill(path, range(2000))
    damage(path)
    damaged = path.read_bytes()

    async def main() -> None:
        async with started(path) as tier:
            assert await whole(tier, range(2000)) == []
            await tier.put_many(puts(range(10)))
            assert await tier.flush()
            assert await whole(tier, range(10)) == list(range(10))
            assert tier.stats()["set_aside"] == 1
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

    asyncio.run(main())
    (name,) = aside(path, "corrupt")
    assert path.with_name(name).read_bytes() == damaged
    assert len(alerts(caplog)) == 1
    assert name in alerts(caplog)[0]


def test_only_the_newest_damaged_file_is_kept(path: Path) -> None:
    for n in range(3):
        fill(path, range(10 + n))
        damage_head(path)
    fill(path, range(10))
    assert len(aside(path, "corrupt")) == 1


def test_damage_while_the_file_is_in_use_is_found_and_begun_anew(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(path, range(3000))

    async def main() -> None:
        async with started(path) as tier:
            await until(lambda: tier.health().filter_ready)
            overwrite(path, 4096, os.urandom(path.stat().st_size - 4096))

            async def begun_anew() -> None:
                while not tier.stats()["set_aside"]:
                    await whole(tier, range(3000))
                    await asyncio.sleep(0.005)

            await asyncio.wait_for(begun_anew(), 20)
            await until(lambda: tier.health().state == "open")
            await tier.put_many(puts(range(10)))
            assert await tier.flush()
            assert await whole(tier, range(3000)) == list(range(10))

    asyncio.run(main())
    assert len(aside(path, "corrupt")) == 1
    assert len(alerts(caplog)) == 1


def test_bytes_flipped_anywhere_never_give_a_wrong_value(tmp_path: Path) -> None:
    rng = random.Random(5)
    sound = tmp_path / "sound.db"
    fill(sound, range(400))
    content = sound.read_bytes()
    outcomes = set()

    async def look(path: Path) -> str:
        async with started(path) as tier:
            there = await whole(tier, range(400))
            if not await tier.flush():
                # Where the damaged rows were to be deleted, the tree was found to be damaged too.
                await until(lambda: tier.health().state == "open" and tier.stats()["set_aside"])
                there = []
            assert await whole(tier, range(400)) == there
            return "set aside" if tier.stats()["set_aside"] else "rows lost" if len(there) < 400 else "whole"

    for n in range(12):
        path = tmp_path / f"{n}.db"
        flipped = bytearray(content)
        for _ in range(rng.choice([1, 1, 20])):
            flipped[rng.randrange(100, len(flipped))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        outcomes.add(asyncio.run(look(path)))
    assert "rows lost" in outcomes


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_a_log_cut_short_loses_the_last_writes_and_nothing_else(path: Path, tmp_path: Path, share: float) -> None:
    copy = tmp_path / "copy" / "cache.db"

    async def write() -> None:
        async with started(path) as tier:
            for first in range(0, 1000, 50):
                await tier.put_many(puts(range(first, first + 50)))
                assert await tier.flush()
            # As a machine that loses its power leaves it.
            copy.parent.mkdir()
            for end in ("", "-wal"):
                copy.with_name(f"cache.db{end}").write_bytes(path.with_name(f"cache.db{end}").read_bytes())

    async def look() -> None:
        async with started(copy) as tier:
            there = await whole(tier, range(1000))
            assert there == list(range(len(there)))
            assert len(there) % 50 == 0
            assert tier.stats()["rows"] == len(there)
            if share > 0.9:
                assert len(there) > 800

    asyncio.run(write())
    log = copy.with_name("cache.db-wal")
    os.truncate(log, int(log.stat().st_size * share))
    asyncio.run(look())


# -- somebody else's -----------------------------------------------------------------------------------------------


def test_another_program_s_database_is_set_aside_and_never_deleted(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(3):
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(path)) as file:
            file.execute("CREATE TABLE entry (precious TEXT)")
            file.execute("INSERT INTO entry VALUES (?)", (f"row {n}",))
            file.commit()
        fill(path, range(10))
    names = aside(path, "foreign")
    assert len(names) == len(alerts(caplog)) == 3
    kept = set()
    for name in names:
        with contextlib.closing(sqlite3.connect(path.with_name(name))) as file:
            kept.add(file.execute("SELECT precious FROM entry").fetchone()[0])
    assert kept == {"row 0", "row 1", "row 2"}


def test_another_version_is_set_aside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(path, range(10))
    with contextlib.closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        file.execute(f"PRAGMA user_version = {VERSION + 1}")
    fill(path, range(10))
    assert len(aside(path, "version")) == len(alerts(caplog)) == 1


def test_a_file_beyond_a_lowered_bound_is_begun_anew(path: Path) -> None:
    fill(path, range(2000))
    assert path.stat().st_size > MIB

    async def main() -> None:
        async with started(path, bytes_max=MIB) as tier:
            assert tier.stats()["rows"] == 0
            assert sum(file.stat().st_size for file in path.parent.iterdir() if "-shm" not in file.name) < MIB

    asyncio.run(main())


@pytest.mark.parametrize("held_s", [60.0, 0.0], ids=["for a while", "for too long"])
def test_one_process_at_a_time_has_the_file_and_the_next_takes_over(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, held_s: float
) -> None:
    monkeypatch.setattr(sqlite_writer, "HELD_S", held_s)
    caplog.set_level(logging.INFO, "dandolo")

    async def main() -> None:
        async with started(path) as first:
            await first.put_many(puts(range(10)))
            await first.flush()
            async with started(path, "off") as second:
                assert "another process" in second.health().reason
                assert await whole(second, range(10)) == []
                await second.put_many(puts(range(10)))
                assert second.stats()["lost"] == 10
                await first.close()
                await until(lambda: second.health().state == "open")
                assert await whole(second, range(10)) == list(range(10))

    asyncio.run(main())
    # Whoever is replaced has it for a while yet.
    assert len(alerts(caplog)) == (0 if held_s else 1)
    assert ("off until another process is done" in caplog.text) is bool(held_s)


def a_folder(path: Path) -> None:
    path.mkdir(parents=True)


def a_pipe(path: Path) -> None:
    path.parent.mkdir()
    os.mkfifo(path)


def a_link(path: Path) -> None:
    path.parent.mkdir()
    target = path.with_name("elsewhere")
    target.write_bytes(b"precious")
    path.symlink_to(target)


@pytest.mark.parametrize("make", [a_folder, a_pipe, a_link])
def test_what_is_no_plain_file_is_left_alone(
    path: Path, make: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    make(path)
    before = os.lstat(path)

    async def main() -> None:
        async with started(path, "off") as tier:
            assert await whole(tier, range(10)) == []
            assert not await tier.purge("all")

    asyncio.run(main())
    assert os.lstat(path) == before
    assert not path.is_symlink() or path.read_bytes() == b"precious"
    assert len(alerts(caplog)) == 1


# -- full and read-only --------------------------------------------------------------------------------------------


def test_a_full_disk_costs_the_tier_one_alert_and_it_comes_back(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    path = disk / "cache.db"

    async def main() -> None:
        async with started(path, bytes_max=MIB, retry_s=0.2) as tier:
            await tier.put_many(puts(range(100)))
            assert await tier.flush()
            ballast = disk / "ballast"
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            # However often it is tried again, nobody is told again, and nothing is raised.
            for _ in range(5):
                tries = tier.stats()["write_errors"]
                await until(lambda: tier.health().state == "open")
                await tier.put_many(puts(range(100, 2000)))
                assert not await tier.flush()
                await until(lambda tries=tries: tier.stats()["write_errors"] > tries)
            await until(lambda: tier.health().state == "off")
            await tier.put_many(puts(range(100)))
            await tier.delete([key(3)])
            assert not await tier.purge("tag", "t1")
            assert tier.health().unsaved_purges == 2
            assert len(alerts(caplog)) == 1
            ballast.unlink()
            await until(lambda: tier.health().state == "open")
            await tier.put_many(puts(range(200, 240)))
            assert await tier.flush()
            assert tier.health().unsaved_purges == 0
            there = await whole(tier, range(100))
            assert there == [n for n in range(100) if n != 3 and n % 7 != 1]
            assert await whole(tier, range(200, 240)) == list(range(200, 240))

            async def in_use_again() -> None:
                while "in use again" not in caplog.text:
                    await tier.put_many(puts(range(200, 201)))
                    await tier.flush()

            await asyncio.wait_for(in_use_again(), 20)

    asyncio.run(main())
    assert len(alerts(caplog)) == 1


def test_a_read_only_disk_costs_the_tier_one_alert_and_it_comes_back(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = disk / "cache.db"
    fill(path, range(10))

    async def main() -> None:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        async with started(path, "off") as tier:
            assert await whole(tier, range(10)) == []
            await tier.put_many(puts(range(10)))
            tries = tier.stats()["write_errors"]
            await until(lambda: tier.stats()["write_errors"] > tries + 2)
            assert len(alerts(caplog)) == 1
            subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
            await until(lambda: tier.health().state == "open")
            assert await whole(tier, range(10)) == list(range(10))

    asyncio.run(main())


def test_a_directory_that_cannot_be_written_costs_the_tier_one_alert(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; the read-only disk stands for this")
    path.parent.mkdir(mode=0o500)

    async def main() -> None:
        async with started(path, "off") as tier:
            await tier.put_many(puts(range(10)))
            assert await whole(tier, range(10)) == []

    asyncio.run(main())
    assert len(alerts(caplog)) == 1


LIMITED = f"""
import asyncio, logging, resource, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_sqlite_disk import puts, until, whole
from dandolo.cache.sqlite import Sqlite

lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("dandolo").addHandler(handler)

async def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
    tier = Sqlite(Path(sys.argv[1]), 64 << 20, retry_s=0.02)
    await tier.start()
    await until(lambda: tier.health().state == "open")
    for first in range(0, 2000, 100):
        await tier.put_many(puts(range(first, first + 100)))
        await tier.flush()
        await whole(tier, range(2000))
    assert tier.stats()["lost"]
    await tier.close()
    assert len(lines) >= 1, lines
    assert all("serving goes on without it" in line or "in use again" in line for line in lines), lines

asyncio.run(main())
print("served")
"""


def test_a_file_that_may_not_grow_is_no_error_for_anybody(path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, path], capture_output=True, timeout=60)
    assert done.stdout == b"served\n", done.stderr.decode()
    assert path.stat().st_size <= 500_000
    # Whoever is allowed more goes on with what is there.

    async def main() -> None:
        async with started(path) as tier:
            assert await whole(tier, range(2000))
            assert tier.stats()["set_aside"] == 0

    asyncio.run(main())
