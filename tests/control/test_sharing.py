"""Limits over several hosts: what each learns of the others, when nobody answers, and what strangers may write."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dandolo.board import IN_FLIGHT, REQUESTS, RESERVED, TOKENS, Board, Calendar
from dandolo.cache.redis.tier import RedisTier
from dandolo.config.redisurl import parse_redis_url
from dandolo.control.sharing import HASH, KEPT_S, STALE_S, Sharing
from dandolo.errors import RequestError
from dandolo.gateway.allowance import Allowance
from dandolo.policy import KeyTerms

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()


class Store:
    """The hash that hosts share; `well` False: it does not answer."""

    def __init__(self, *, flat: bool = False) -> None:
        self.fields: dict[bytes, bytes] = {}
        self.well = True
        self._flat = flat

    async def ask(self, command: bytes, *arguments: bytes) -> Any:
        if not self.well:
            return "no reply"
        if command == b"HSET":
            self.fields[arguments[0]] = arguments[1]
            return 0
        if command == b"HDEL":
            del self.fields[arguments[0]]
            return 1
        assert command == b"HGETALL"
        return [part for pair in self.fields.items() for part in pair] if self._flat else dict(self.fields)


class Host:
    """One host with a board, a worker and an allowance of the key "k". `boot` is when its monotonic clock began."""

    def __init__(self, name: str, store: Store, boot: float, *before: str, **terms: Any) -> None:
        self.board = Board.alone(10, shared=True)
        for other in before:
            # Places differ between hosts.
            self.board.claim(other)
        self.place = self.board.claim("k")
        self.allowance = Allowance(KeyTerms(name="k", **terms), self.board, self.place, Calendar(NOON))
        self.sharing = Sharing(self.board, name.encode(), store.ask)
        self._boot = boot

    def now(self, unix: float) -> float:
        return unix - self._boot

    def enter(self, unix: float) -> bool:
        return self.allowance.enter(self.now(unix))

    def exchange(self, unix: float) -> None:
        asyncio.run(self.sharing.exchange(self.now(unix), unix))


def hosts(store: Store, **terms: Any) -> tuple[Host, Host]:
    """Two whose clocks began at times that have nothing to do with each other."""
    return Host("a", store, NOON - 1234.56, **terms), Host("b", store, NOON - 99_999.01, "x", "y", **terms)


def together(unix: float, *several: Host) -> None:
    for _ in range(2):
        for host in several:
            host.exchange(unix)


@pytest.mark.parametrize("flat", [False, True])
def test_what_came_to_one_host_counts_on_the_other(flat: bool) -> None:
    store = Store(flat=flat)
    a, b = hosts(store, rpm=10)
    assert all(a.enter(NOON + 0.1) for _ in range(6))
    together(NOON + 0.2, a, b)
    assert [b.enter(NOON + 0.3) for _ in range(6)] == [True] * 4 + [False] * 2
    together(NOON + 0.4, a, b)
    assert not a.enter(NOON + 0.5)
    # Exchanged again and again it is no more than it was.
    for step in range(40):
        together(NOON + 1 + step, a, b)
    assert not a.enter(NOON + 59.0)
    assert not b.enter(NOON + 59.0)
    assert b.enter(NOON + 63.0)


def test_two_hosts_hold_a_limit_to_within_five_per_cent() -> None:
    store, chance, entered = Store(), random.Random(5), list[float]()
    a, b = hosts(store, rpm=1000)
    for step in range(200 * 20):
        unix = NOON + step * 0.05
        if step % 4 == 0:
            a.exchange(unix)
            b.exchange(unix)
        entered += [unix for _ in range(chance.randrange(3)) if (a if chance.random() < 0.9 else b).enter(unix)]
    for begin in range(0, len(entered), 10):
        count = sum(1 for at in entered if entered[begin] <= at < entered[begin] + 60)
        assert count <= 1050
    assert sum(1 for at in entered if at < NOON + 183) >= 0.95 * 3000


def test_money_set_aside_and_spent_elsewhere_is_not_there_any_more() -> None:
    store = Store()
    a, b = hosts(store, budget_day=100, concurrent=5)
    assert a.enter(NOON)
    a.allowance.reserve(a.now(NOON), NOON, 1, 1, 60)
    together(NOON, a, b)
    with pytest.raises(RequestError):
        b.allowance.reserve(b.now(NOON), NOON, 1, 1, 41)
    assert b.board.total(b.place, IN_FLIGHT) == 1
    a.allowance.settle(a.now(NOON), 1, 60, a.now(NOON), NOON, 1, 20)
    a.allowance.leave()
    together(NOON + 1, a, b)
    assert b.board.total(b.place, RESERVED) == b.board.total(b.place, IN_FLIGHT) == 0
    b.allowance.reserve(b.now(NOON), NOON, 1, 1, 80)
    with pytest.raises(RequestError):
        b.allowance.reserve(b.now(NOON), NOON, 1, 1, 1)
    # What others have spent is not this host's own: it is not told on, or it would grow with every exchange.
    together(NOON + 2, a, b)
    together(NOON + 3, a, b)
    b.allowance.settle(b.now(NOON), 1, 80, b.now(NOON), NOON, 1, 0)
    b.allowance.reserve(b.now(NOON), NOON, 1, 1, 80)


def test_tokens_are_shared_too() -> None:
    store = Store()
    a, b = hosts(store, tpm=1000)
    a.allowance.reserve(a.now(NOON), NOON, 1, 700, 0)
    together(NOON + 0.1, a, b)
    assert b.allowance.used(TOKENS, b.now(NOON + 0.2)) == 700
    with pytest.raises(RequestError):
        b.allowance.reserve(b.now(NOON + 0.2), NOON, 1, 301, 0)


def test_of_a_host_that_is_gone_only_what_it_spent_stays() -> None:
    store = Store()
    a, b = hosts(store, budget_day=100, concurrent=5)
    a.enter(NOON)
    a.allowance.settle(1.0, 1, 0, 1.0, NOON, 1, 30)
    a.allowance.reserve(1.0, NOON, 1, 1, 50)
    together(NOON, a, b)
    later = NOON + STALE_S + 1
    b.exchange(later)
    assert b.board.total(b.place, IN_FLIGHT) == b.board.total(b.place, RESERVED) == 0
    with pytest.raises(RequestError):
        b.allowance.reserve(b.now(later), later, 1, 1, 71)
    # Until its day is over; a month later it is forgotten.
    b.exchange(NOON + 86_400)
    b.allowance.reserve(b.now(NOON + 86_400), NOON + 86_400, 1, 1, 100)
    b.exchange(NOON + KEPT_S + 1)
    assert set(store.fields) == {b"b"}


def test_without_redis_each_goes_on_alone_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    store = Store()
    a, b = hosts(store, rpm=10)
    store.well = False
    for step in range(3):
        assert a.enter(NOON + step)
        together(NOON + step, a, b)
    assert b.allowance.used(REQUESTS, b.now(NOON + 3)) == 0
    store.well = True
    together(NOON + 3, a, b)
    # The seconds of a short silence are made up for.
    assert b.allowance.used(REQUESTS, b.now(NOON + 4)) == 3
    assert [record.getMessage().partition(":")[0] for record in caplog.records].count(
        "limits are not shared with other hosts"
    ) == 2


GOOD = msgspec.msgpack.encode([NOON, 1, 1, {}])


@pytest.mark.parametrize(
    "value",
    [
        b"", b"\xc1", b"\x91" * 100_000, b"x" * 5_000_000, GOOD[:-1], msgspec.msgpack.encode({"at": 1}),
        msgspec.msgpack.encode([NOON, 1, 1, {1: [{1: -5}, {}, -1, -1, -1, -1]}]),
        msgspec.msgpack.encode([NOON, 1, 1, {1: [{1: 2**63}, {}, 2**63, 1, 1, 1]}]),
    ],
    ids=range(8),
)  # fmt: skip
def test_what_strangers_write_changes_nothing(value: bytes) -> None:
    store = Store()
    a, b = hosts(store, rpm=10)
    store.fields[b"stranger"] = value
    assert a.enter(NOON)
    together(NOON, a, b)
    assert b.allowance.used(REQUESTS, b.now(NOON)) == 1
    assert b"stranger" in store.fields


def test_a_wrong_clock_harms_only_what_it_says() -> None:
    store = Store()
    a, b = hosts(store, rpm=10, budget_day=100)
    a.enter(NOON + 3600)
    a.exchange(NOON + 3600)
    b.exchange(NOON)
    assert b.allowance.used(REQUESTS, b.now(NOON)) == 0
    assert all(b.enter(NOON) for _ in range(10))


def test_a_key_that_only_others_know_is_passed_over() -> None:
    store = Store()
    a, b = hosts(store, rpm=10)
    b.board.claim("z")
    b.board.cells[b.board.at(b.board.claim("z"), 0) + IN_FLIGHT] = 3
    together(NOON, a, b)
    assert a.board.total(a.place, IN_FLIGHT) == 0


def test_over_a_real_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "cache" / "redis"))
    sys.modules.pop("redis_servers", None)
    from redis_servers import PROGRAM, RealRedis  # type: ignore[import-not-found]

    if PROGRAM is None:
        pytest.skip("no Redis server here")

    async def story(port: int) -> None:
        tiers = [RedisTier(parse_redis_url(f"redis://127.0.0.1:{port}/0")) for _ in "ab"]
        store = Store()
        several = hosts(store, rpm=10)
        for tier, host in zip(tiers, several, strict=True):
            tier.start()
            host.sharing._ask = asker(tier)
        async with asyncio.timeout(20):
            while not all(tier.health()[0].up for tier in tiers):
                await asyncio.sleep(0.01)
            assert all(several[0].enter(NOON) for _ in range(7))
            for host in several:
                await host.sharing.exchange(host.now(NOON), NOON)
            assert [several[1].enter(NOON) for _ in range(4)] == [True, True, True, False]
            assert all(host.sharing.well for host in several)
        for tier in tiers:
            await tier.close()

    def asker(tier: RedisTier) -> Callable[..., Any]:
        return lambda command, *arguments: tier.call(HASH, command, *arguments)

    with RealRedis(tmp_path) as server:
        asyncio.run(story(server.port))
