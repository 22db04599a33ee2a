"""What is written behind an answer, and unpacked before one, with a real file."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path

import pytest

from dandolo.cache import tiers as module
from dandolo.cache.entry import Entry, decode, encode, unpacked_bytes
from dandolo.cache.lifetime import TtlClass
from dandolo.cache.purges import NEVER, Latest
from dandolo.cache.redis.servers import Concerned
from dandolo.cache.sqlite import Sqlite
from dandolo.cache.tiers import THREAD_BYTES, Found, Tiers

NOW = 1_000.0


class Memory:
    """What stands in front of the tiers: nothing was purged by name."""

    def purged(self, entry: Entry, scope: str) -> Latest:
        return Latest(NEVER, NEVER)

    def dropped(self, keys: list[bytes]) -> None: ...

    def lost_track(self, concerned: Concerned) -> None: ...

    def purged_elsewhere(self, kind: str, name: str, at: float, soft: bool) -> None: ...


def made(number: int, body: bytes) -> Entry:
    return Entry(
        key=b"%020d" % number, created=NOW, expires=NOW + 1000, stale_until=NOW + 1100, kind=TtlClass.QUESTION,
        status=200, model="m", usage=None, cost_usd=None, gen_ms=1, tags=(), body=body,
    )  # fmt: skip


async def started(path: Path) -> tuple[Tiers, Sqlite]:
    sqlite = Sqlite(path / "cache.db", 1 << 26, clock=lambda: NOW)
    tiers = Tiers(Memory(), lambda: NOW)
    tiers.add_disk(sqlite)
    await tiers.start()
    async with asyncio.timeout(10):
        while sqlite.health().state != "open":
            await asyncio.sleep(0.005)
    return tiers, sqlite


def test_a_key_forgotten_while_its_answer_is_being_written_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Large enough to be packed in a thread, which is held up until the key has been forgotten.
    packing, forgotten = threading.Event(), threading.Event()

    def slowly(entry: Entry) -> bytes:
        packing.set()
        assert forgotten.wait(10)
        return encode(entry)

    monkeypatch.setattr(module, "encode", slowly)

    async def main() -> None:
        tiers, sqlite = await started(tmp_path)
        entry, other = (made(number, random.Random(number).randbytes(THREAD_BYTES + 1)) for number in (1, 2))
        tiers.keep(entry, "key:one")
        tiers.keep(other, "key:one")
        assert await asyncio.to_thread(packing.wait, 10)
        tiers.forget(entry.key)
        forgotten.set()
        async with asyncio.timeout(10):
            while other.key not in await sqlite.get_many((other.key,)):
                await asyncio.sleep(0.005)
        assert await sqlite.get_many((entry.key,)) == {}
        await tiers.close()

    asyncio.run(main())


def test_what_unpacks_to_much_is_unpacked_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def noted(record: bytes, key: bytes) -> Entry | None:
        threads.append(threading.current_thread())
        return decode(record, key)

    monkeypatch.setattr(module, "decode", noted)
    entry = made(1, b"a" * (1 << 20))
    record = encode(entry)
    assert len(record) < THREAD_BYTES < unpacked_bytes(record)

    async def main() -> None:
        tiers, sqlite = await started(tmp_path)
        tiers.keep(entry, "key:one")
        async with asyncio.timeout(10):
            while entry.key not in await sqlite.get_many((entry.key,)):
                await asyncio.sleep(0.005)
            heard: asyncio.Future[Found | None] = asyncio.get_running_loop().create_future()
            tiers.look_up(entry.key, "key:one", heard.set_result)
            found = await heard
        assert found is not None
        assert found.entry == entry
        await tiers.close()

    asyncio.run(main())
    assert threads
    assert threading.main_thread() not in threads
