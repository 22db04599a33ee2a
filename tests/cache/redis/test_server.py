"""The tier with a real redis-server: every way in, expiry, changes told, and its death in the middle of a load."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from redis_servers import RealRedis, free_port
from redis_waiting import until

from dandolo.cache.redis import tier as module
from dandolo.cache.redis.tier import RedisTier
from dandolo.config.redisurl import parse_redis_url

Run = Callable[[Coroutine[Any, Any, None]], None]
StartRedis = Callable[..., RealRedis]
HOUR_MS = 3_600_000
KEYS = [bytes([number]) * 20 for number in range(64)]


class Tracker:
    """Keeps what the tier tells of changes."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.gaps = 0

    def invalidated(self, keys: list[bytes]) -> None:
        self.keys += keys

    def lost_track(self, concerned: Callable[[bytes], bool]) -> None:
        assert concerned(b"any key")
        self.gaps += 1


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines that a busy machine does not miss; tests about deadlines set the real ones."""
    monkeypatch.setattr(module, "LOOK_UP_S", 10.0)
    monkeypatch.setattr(module, "WRITE_S", 10.0)


@asynccontextmanager
async def tiered(url: str, **more: Any) -> AsyncIterator[RedisTier]:
    """A tier that is up."""
    tier = RedisTier(parse_redis_url(url), **more)
    tier.start()
    try:
        await until(lambda: tier.health()[0].up)
        yield tier
    finally:
        await tier.close()


async def works(tier: RedisTier) -> None:
    """Store, find and remove; large values, any bytes."""
    values = [os.urandom(10 + 31 * number) for number in range(len(KEYS) - 1)] + [os.urandom(1 << 20)]
    entries = [(key, value, HOUR_MS) for key, value in zip(KEYS, values, strict=True)]
    assert await tier.put_many(entries) == len(KEYS)
    assert await tier.get_many([*KEYS, b"absent"]) == [*values, None]
    assert await tier.delete([*KEYS[:10], b"absent"]) == 10
    assert await tier.get_many(KEYS[:11]) == [None] * 10 + [values[10]]


def test_it_works_over_tcp_and_a_unix_socket(run: Run, redis: StartRedis) -> None:
    server = redis()

    async def main() -> None:
        for url in (f"redis://127.0.0.1:{server.port}", f"redis://localhost:{server.port}", f"unix://{server.path}"):
            async with tiered(url) as tier:
                await works(tier)

    run(main())


def test_keys_are_in_the_database_of_the_url_under_the_prefix(run: Run, redis: StartRedis) -> None:
    server = redis()

    async def main() -> None:
        async with tiered(f"redis://127.0.0.1:{server.port}/3", prefix=b"p:") as tier:
            await tier.put_many([(b"a", b"1", HOUR_MS)])
        keyspace = server.ask("INFO", "keyspace")
        assert isinstance(keyspace, bytes)
        assert b"db3:keys=1,expires=1" in keyspace
        assert b"db0" not in keyspace
        async with tiered(f"redis://127.0.0.1:{server.port}/3") as tier:
            assert await tier.get_many([b"a"]) == [None]

    run(main())


def test_entries_expire(run: Run, redis: StartRedis) -> None:
    server = redis()

    async def main() -> None:
        async with tiered(f"unix://{server.path}") as tier:
            await tier.put_many([(b"short", b"1", 30), (b"long", b"1", HOUR_MS)])
            left = server.ask("PTTL", "dandolo:long")
            assert isinstance(left, int)
            assert HOUR_MS - 60_000 < left <= HOUR_MS
            await until(lambda: server.ask("EXISTS", "dandolo:short") == 0)
            assert await tier.get_many([b"short", b"long"]) == [None, b"1"]

    run(main())


def test_a_password_and_a_user_with_few_rights_let_it_in(run: Run, redis: StartRedis) -> None:
    server = redis("--requirepass", "open sesame", "--user", "me", "on", ">s3cret/", "~dandolo:*", "-@all", "+hello",
                   "+select", "+ping", "+get", "+set", "+unlink", "+scan", "+client|tracking",
                   "+client|setname")  # fmt: skip

    async def main() -> None:
        for login in (":open%20sesame", "default:open%20sesame", "me:s3cret%2F"):
            async with tiered(f"redis://{login}@127.0.0.1:{server.port}", tracker=Tracker()) as tier:
                await works(tier)
                assert (await tier.purge()).complete
                assert tier.health()[0].tracking
                assert tier.stats().errors == 0
        for login, code in (("", "NOAUTH"), (":wrong@", "WRONGPASS"), ("me:wrong@", "WRONGPASS")):
            tier = RedisTier(parse_redis_url(f"redis://{login}127.0.0.1:{server.port}"))
            tier.start()
            await until(lambda tier=tier, code=code: code in tier.health()[0].reason)
            assert await tier.get_many([b"a"]) == [None]
            await tier.close()

    run(main())


def test_tls_with_a_private_authority(run: Run, redis: StartRedis, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    port = free_port()
    redis("--tls-port", str(port), "--tls-cert-file", str(tmp_path / "cert.pem"), "--tls-key-file",
          str(tmp_path / "key.pem"), "--tls-ca-cert-file", str(tmp_path / "ca.pem"), "--tls-auth-clients",
          "no")  # fmt: skip

    async def main() -> None:
        for host in ("localhost", "127.0.0.1"):
            async with tiered(f"rediss://{host}:{port}", ca=tmp_path / "ca.pem") as tier:
                await works(tier)
        tier = RedisTier(parse_redis_url(f"rediss://127.0.0.1:{port}"))
        tier.start()
        await until(lambda: "certificate was not accepted" in tier.health()[0].reason)
        await tier.close()

    run(main())


def test_changes_by_others_are_told_and_our_own_are_not(run: Run, redis: StartRedis) -> None:
    server = redis()

    async def main() -> None:
        tracker = Tracker()
        async with tiered(f"unix://{server.path}", tracker=tracker) as ours, tiered(f"unix://{server.path}") as theirs:
            await ours.put_many([(b"a", b"1", HOUR_MS), (b"b", b"1", HOUR_MS)])
            await ours.delete([b"b"])
            await theirs.put_many([(b"a", b"2", HOUR_MS), (b"c", b"1", 30)])
            await theirs.delete([b"a"])
            server.ask("SET", "other:a", "1")
            # Written, removed, written, and expired.
            await until(lambda: server.ask("EXISTS", "dandolo:c") == 0)
            await until(lambda: tracker.keys.count(b"c") == 2)
            assert sorted(set(tracker.keys)) == [b"a", b"c"]
            assert tracker.gaps == 1
            server.ask("FLUSHALL")
            await until(lambda: tracker.gaps == 2)
            server.ask("CLIENT", "KILL", "TYPE", "normal")
            await until(lambda: tracker.gaps == 3)
            tracker.keys.clear()
            server.ask("SET", "dandolo:d", "1")
            await until(lambda: tracker.keys == [b"d"])

    run(main())


def test_a_purge_leaves_what_is_not_ours(run: Run, redis: StartRedis) -> None:
    server = redis()

    async def main() -> None:
        async with tiered(f"unix://{server.path}") as tier:
            names = [b"s*:%d" % number for number in range(2000)]
            for start in range(0, len(names), 500):
                await tier.put_many([(name, b"1", HOUR_MS) for name in names[start : start + 500]])
            await tier.put_many([(b"sx:1", b"1", HOUR_MS)])
            server.ask("SET", "other", "1")
            purged = await tier.purge(b"s*:")
            assert (purged.keys, purged.complete) == (2000, True)
            assert server.ask("DBSIZE") == 2
            assert (await tier.purge()).keys == 1
            assert server.ask("EXISTS", "other") == 1

    run(main())


class Load:
    """Sixteen tasks that ask one after the other; anything but the value and a miss fails the test."""

    def __init__(self, tier: RedisTier) -> None:
        self.hits = self.misses = 0
        self._over = False
        self._tier = tier
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(16)]

    async def _ask(self) -> None:
        while not self._over:
            for value in await self._tier.get_many([b"a"]):
                assert value in (b"1", None)
                self.hits += value is not None
                self.misses += value is None
            await asyncio.sleep(0.001)

    async def some(self, name: str) -> None:
        """Wait for a hundred more `hits` or `misses`."""
        before = getattr(self, name)
        await until(lambda: getattr(self, name) > before + 100)

    async def end(self) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)


def test_a_server_killed_in_the_middle_of_a_load_costs_misses_only(
    run: Run, redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_UP_S", 0.020)
    server = redis()

    async def main() -> None:
        async with tiered(f"redis://127.0.0.1:{server.port}") as tier:
            await tier.put_many([(b"a", b"1", HOUR_MS)])
            load = Load(tier)
            await load.some("hits")
            server.kill()
            await load.some("misses")
            server.start()
            server.ask("SET", "dandolo:a", "1")
            await load.some("hits")
            await load.end()
            assert tier.health()[0].breaker == "closed"

    run(main())


def test_a_server_that_stands_still_costs_a_few_deadlines_and_heals(
    run_once: Run, redis: StartRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_UP_S", 0.020)
    server = redis()

    async def main() -> None:
        async with tiered(f"redis://127.0.0.1:{server.port}") as tier:
            await tier.put_many([(b"a", b"1", HOUR_MS)])
            load = Load(tier)
            await load.some("hits")
            server.signal(signal.SIGSTOP)
            await until(lambda: tier.health()[0].breaker != "closed" or not tier.health()[0].up)
            await load.some("misses")
            server.signal(signal.SIGCONT)
            await load.some("hits")
            await load.end()
            counts = tier.stats()
            # Those in flight when it stopped, and what it took to open the breaker once or twice.
            assert 0 < counts.timeouts < 100
            assert counts.errors == counts.nonsense == 0

    run_once(main())
