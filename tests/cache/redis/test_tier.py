"""The tier against a server that does as it is told: whatever it does, a miss and never an exception."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis_fake import FakeRedis, Talk, array, bulk
from redis_waiting import until

from dandolo.cache.redis import connection as connections
from dandolo.cache.redis import tier as module
from dandolo.cache.redis.commands import Counts
from dandolo.cache.redis.connection import COMMANDS_MAX
from dandolo.cache.redis.tier import Purged, RedisTier
from dandolo.config.redisurl import RedisUrl
from dandolo.wire.resp import REPLY_BYTES_MAX

Run = Callable[[Coroutine[Any, Any, None]], None]
P = b"dandolo:"


class Tracker:
    """Keeps what the tier tells of changes."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.gaps: list[Callable[[bytes], bool]] = []

    def invalidated(self, keys: list[bytes]) -> None:
        self.keys += keys

    def lost_track(self, concerned: Callable[[bytes], bool]) -> None:
        self.gaps.append(concerned)


@asynccontextmanager
async def tiered(fake: FakeRedis, **more: Any) -> AsyncIterator[RedisTier]:
    """A tier that is up."""
    tier = RedisTier(RedisUrl(host="127.0.0.1", port=fake.port), random=lambda: 0.0, **more)
    tier.start()
    await until(lambda: tier.health()[0].up)
    try:
        yield tier
    finally:
        await tier.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines that a slow machine does not miss, for what is not about deadlines."""
    monkeypatch.setattr(module, "LOOK_UP_S", 10.0)
    monkeypatch.setattr(module, "WRITE_S", 10.0)


pytestmark = pytest.mark.usefixtures("patient")


@pytest.fixture
def hasty(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real deadline of a look-up, for what is."""
    monkeypatch.setattr(module, "LOOK_UP_S", 0.020)


def test_what_was_put_is_got_in_order_until_it_is_deleted(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake, tiered(fake) as tier:
            entries = [(b"a", b"1", 1000), (b"b", b"\r\n", 2000), (b"c", b"", 1), (b"d", b"late", 0), (b"e", b"x", -5)]
            assert await tier.put_many(entries) == 3
            assert fake.heard(b"SET")[1] == [b"SET", P + b"b", b"\r\n", b"PX", b"2000"]
            assert await tier.get_many([b"c", b"x", b"a", b"b", b"a"]) == [b"", None, b"1", b"\r\n", b"1"]
            assert await tier.delete([b"a", b"x"]) == 1
            assert await tier.get_many([b"a"]) == [None]
            assert await tier.get_many([]) == []
            assert await tier.put_many([]) == 0
            assert await tier.delete([]) == 0
            counts = tier.stats()
            assert (counts.gets, counts.hits, counts.misses, counts.puts, counts.deletes) == (6, 4, 2, 3, 1)

    run(main())


def test_look_ups_call_back_once_and_at_once_where_there_is_no_server(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake:
            heard: list[list[bytes | None]] = []
            down = RedisTier(RedisUrl(host="127.0.0.1", port=fake.port))
            down.start()
            down.look_up([b"a", b"b"], heard.append)
            assert heard == [[None, None]]
            assert down.stats().down == 2
            await down.close()
            async with tiered(fake) as tier:
                fake.values[P + b"a"] = b"1"
                tier.look_up([b"a", b"b"], heard.append)
                assert len(heard) == 1
                await until(lambda: len(heard) == 2)
                assert heard[1] == [b"1", None]

    run(main())


def test_commands_of_one_turn_arrive_together(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake, tiered(fake) as tier:
            before = fake.reads
            await asyncio.gather(*(tier.get_many([b"%d" % number]) for number in range(100)))
            assert fake.reads == before + 1
            assert len(fake.heard(b"GET")) == 100

    run(main())


def test_a_cancelled_look_up_keeps_its_place(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake, tiered(fake) as tier:
            fake.values |= {P + b"a": b"1", P + b"b": b"2"}
            task = asyncio.create_task(tier.get_many([b"a"]))
            await asyncio.sleep(0)
            task.cancel()
            assert await tier.get_many([b"b"]) == [b"2"]
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())


@pytest.mark.usefixtures("hasty")
def test_a_late_reply_is_never_the_next_ones(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake, tiered(fake) as tier:
            held: list[bytes] = []
            fake.on[b"GET"] = lambda talk, key: held.append(bulk(b"value of " + key))
            assert await tier.get_many([b"a"]) == [None]
            assert tier.stats().timeouts == 1
            fake.on[b"GET"] = lambda talk, key: held.pop() + bulk(b"value of " + key) if held else None
            # Its own reply comes behind the late one, in the same read.
            module.LOOK_UP_S = 10.0
            assert await tier.get_many([b"b"]) == [b"value of dandolo:b"]
            assert tier.health()[0].up

    run(main())


@pytest.mark.usefixtures("hasty")
def test_a_hung_server_is_left_alone_and_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "BEAT_S", 0.02)
    monkeypatch.setattr(connections, "HUNG_S", 0.3)

    async def main() -> None:
        async with FakeRedis() as fake, tiered(fake) as tier:
            fake.on[b"GET"] = lambda talk, key: None
            for _ in range(8):
                assert await tier.get_many([b"a"]) == [None]
            counts = tier.stats()
            assert (counts.timeouts, counts.bypassed) == (5, 3)
            assert tier.health()[0].breaker == "open"
            await until(lambda: fake.accepted == 2)
            del fake.on[b"GET"]
            fake.values[P + b"a"] = b"1"
            module.LOOK_UP_S = 10.0
            await until(lambda: tier.health()[0].up)
            # The new connection may be probed, although the open time is not over.
            assert await tier.get_many([b"a"]) == [b"1"]
            assert tier.health()[0].breaker == "closed"

    run(main())


def _half(talk: Talk, key: bytes) -> None:
    talk.say(b"$100\r\nhalf of it")
    talk.close()


BAD: list[tuple[str, Callable[..., bytes | None], str]] = [
    ("garbage", lambda talk, key: b"\x00\x01\x02\x03\r\n", "lost"),
    ("http", lambda talk, key: b"HTTP/1.1 400 Bad Request\r\n\r\n", "lost"),
    ("half", _half, "lost"),
    ("closed", lambda talk, key: talk.close(), "lost"),
    ("oversized", lambda talk, key: b"$%d\r\n" % (REPLY_BYTES_MAX + 1), "lost"),
    ("oversized-array", lambda talk, key: b"*999999999\r\n", "lost"),
    ("nested", lambda talk, key: b"*1\r\n" * 100, "lost"),
    ("two-replies", lambda talk, key: b"$1\r\na\r\n$1\r\nb\r\n", ""),
    ("an-array", lambda talk, key: b"*1\r\n:1\r\n", "nonsense"),
    ("a-number", lambda talk, key: b":1\r\n", "nonsense"),
    ("a-map", lambda talk, key: b"%0\r\n", "nonsense"),
]


@pytest.mark.parametrize(("id", "answer", "counted"), BAD, ids=[row[0] for row in BAD])
def test_replies_that_break_the_protocol_close_the_connection(
    run: Run, id: str, answer: Callable[..., bytes | None], counted: str
) -> None:
    async def main() -> None:
        async with FakeRedis() as fake, tiered(fake) as tier:
            fake.on[b"GET"] = answer
            (got,) = await tier.get_many([b"a"])
            assert got == (None if counted else b"a")
            if counted:
                assert getattr(tier.stats(), counted) == 1
            await until(lambda: fake.accepted == 2)
            del fake.on[b"GET"]
            fake.values[P + b"a"] = b"1"
            await until(lambda: tier.health()[0].up)
            assert await tier.get_many([b"a"]) == [b"1"]

    run(main())


def test_a_set_that_is_answered_with_a_value_closes_the_connection(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake, tiered(fake) as tier:
            fake.on[b"SET"] = lambda talk, *arguments: b"$1\r\na\r\n"
            assert await tier.put_many([(b"a", b"1", 1000)]) == 0
            fake.on[b"UNLINK"] = lambda talk, key: b"+OK\r\n"
            await until(lambda: fake.accepted == 2 and tier.health()[0].up)
            assert await tier.delete([b"a"]) == 0
            await until(lambda: fake.accepted == 3)
            assert tier.stats().nonsense == 2
            assert tier.stats().puts_failed == 1

    run(main())


def test_replies_in_the_wrong_order_close_the_connection_and_are_misses(run: Run) -> None:
    """The protocol cannot show it; the values can, to who can read them."""

    async def main() -> None:
        def belongs(key: bytes, value: bytes) -> bool:
            return value == b"value of " + key

        async with FakeRedis() as fake, tiered(fake, belongs=belongs) as tier:
            held: list[bytes] = []

            def swapped(talk: Talk, key: bytes) -> bytes | None:
                held.append(bulk(b"value of " + key.removeprefix(P)))
                return held[1] + held[0] if len(held) == 2 else None

            fake.on[b"GET"] = swapped
            fake.values[P + b"a"] = b"foreign"
            assert await tier.get_many([b"a", b"b"]) == [None, None]
            assert (tier.stats().foreign, tier.stats().lost) == (1, 1)
            # What cannot be trusted is removed once that can be asked for.
            await until(lambda: fake.accepted == 2 and fake.heard(b"UNLINK") == [[b"UNLINK", P + b"a"]])
            del fake.on[b"GET"]
            assert P + b"a" not in fake.values
            fake.values[P + b"a"] = b"value of a"
            assert await tier.get_many([b"a"]) == [b"value of a"]

    run(main())


ERRORS: list[tuple[bytes, str, bool]] = [
    (b"LOADING Redis is loading the dataset in memory", "open", True),
    (b"MASTERDOWN Link with MASTER is down", "open", True),
    (b"CLUSTERDOWN The cluster is down", "open", True),
    (b"NOAUTH Authentication required.", "open", True),
    (b"NOPERM this user has no permissions", "closed", True),
    (b"OOM command not allowed", "closed", True),
    (b"MOVED 1 127.0.0.1:1", "open", True),
    (b"READONLY You can't write against a read only replica.", "closed", False),
]


@pytest.mark.parametrize(("message", "breaker", "kept"), ERRORS, ids=[row[0].split()[0].decode() for row in ERRORS])
def test_error_replies_are_misses_and_those_about_the_server_open_the_breaker(
    run: Run, message: bytes, breaker: str, kept: bool
) -> None:
    async def main() -> None:
        async with FakeRedis() as fake, tiered(fake) as tier:
            fake.on[b"GET"] = fake.on[b"SET"] = lambda talk, *arguments: b"-%b\r\n" % message
            for _ in range(5):
                assert await tier.get_many([b"a"]) == [None]
                assert await tier.put_many([(b"a", b"1", 1000)]) == 0
            assert tier.health()[0].breaker == breaker
            if kept:
                assert fake.accepted == 1
            else:
                await until(lambda: fake.accepted >= 2)
            counts = tier.stats()
            assert counts.errors + counts.redirects > 0
            assert counts.hits == counts.puts == 0

    run(main())


def test_a_key_that_holds_no_string_is_removed(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake, tiered(fake) as tier:
            fake.on[b"GET"] = lambda talk, key: b"-WRONGTYPE Operation against a key\r\n"
            assert await tier.get_many([b"a"]) == [None]
            await until(lambda: fake.heard(b"UNLINK") == [[b"UNLINK", P + b"a"]])
            assert fake.accepted == 1

    run(main())


def test_too_much_in_flight_is_a_miss_and_counted(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake, tiered(fake) as tier:
            fake.values[P + b"a"] = b"1"
            heard: list[list[bytes | None]] = []
            for _ in range(COMMANDS_MAX + 50):
                tier.look_up([b"a"], heard.append)
            assert heard == [[None]] * 50
            assert tier.stats().overflows == 50
            await until(lambda: len(heard) == COMMANDS_MAX + 50)
            assert tier.stats().hits == COMMANDS_MAX
            assert tier.health()[0].breaker == "closed"
            assert await tier.get_many([b"a"]) == [b"1"]

    run(main())


def test_values_too_large_are_not_sent_and_too_many_bytes_not_queued(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake, tiered(fake) as tier:
            fake.on[b"SET"] = lambda talk, key, value, *arguments: b"+OK\r\n"
            large = b"x" * module.VALUE_BYTES_MAX
            assert await tier.put_many([(b"a", large + b"x", 1000)]) == 0
            assert fake.heard(b"SET") == []
            assert tier.stats().oversize == 1
            # One fits beside another's unanswered bytes, a third does not.
            assert await tier.put_many([(b"%d" % number, large[:-200], 1000) for number in range(3)]) == 2
            assert tier.stats().overflows == 1
            assert tier.stats().puts_failed == 1

    run(main())


def test_a_server_that_goes_away_under_load_is_found_again(run: Run) -> None:
    async def main() -> None:
        fake = FakeRedis()
        async with fake:
            fake.values[P + b"a"] = b"1"
            async with tiered(fake) as tier:
                got: list[bytes | None] = []
                over = False

                async def ask() -> None:
                    while not over:
                        got.extend(await tier.get_many([b"a"]))
                        await asyncio.sleep(0.001)

                tasks = [asyncio.create_task(ask()) for _ in range(16)]
                await until(lambda: len(got) > 100)
                await fake.__aexit__()
                await until(lambda: not tier.health()[0].up)
                seen = len(got)
                await until(lambda: len(got) > seen + 100)
                assert got[-1] is None
                await fake.__aenter__()
                await until(lambda: got[-1] == b"1")
                over = True
                await asyncio.gather(*tasks)
                assert set(got) == {b"1", None}
                assert tier.health()[0].connects == 2

    run(main())


def test_changes_are_told_without_the_prefix_and_gaps_on_every_new_connection(run: Run) -> None:
    async def main() -> None:
        tracker = Tracker()
        async with FakeRedis() as fake, tiered(fake, tracker=tracker) as tier:
            assert tier.health()[0].tracking
            await until(lambda: len(tracker.gaps) == 1)
            fake.say_to_all(b">2\r\n+invalidate\r\n" + array(bulk(P + b"a"), bulk(b"other"), bulk(P + b"b")))
            await until(lambda: tracker.keys)
            assert tracker.keys == [b"a", b"b"]
            fake.say_to_all(b">2\r\n+invalidate\r\n_\r\n")
            await until(lambda: len(tracker.gaps) == 2)
            fake.talks[-1].close()
            await until(lambda: len(tracker.gaps) == 3)
            assert all(concerned(key) for concerned in tracker.gaps for key in (b"", b"a"))
            counts = tier.stats()
            assert (counts.invalidations, counts.gaps) == (2, 3)

    run(main())


def test_a_value_that_was_read_before_a_change_is_handed_on_before_it_is_told(run: Run) -> None:
    async def main() -> None:
        order: list[str] = []

        class Ordered(Tracker):
            def invalidated(self, keys: list[bytes]) -> None:
                order.append("changed")

        async with FakeRedis() as fake, tiered(fake, tracker=Ordered()) as tier:
            # Reply and push come in one read.
            fake.on[b"GET"] = lambda talk, key: bulk(b"old") + b">2\r\n+invalidate\r\n" + array(bulk(key))

            async def ask() -> None:
                assert await tier.get_many([b"a"]) == [b"old"]
                order.append("handed on")

            await asyncio.gather(ask())
            await until(lambda: len(order) == 2)
            assert order == ["handed on", "changed"]

    run(main())


def test_changes_told_unasked_are_nobodys(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake, tiered(fake) as tier:
            assert fake.heard(b"CLIENT") == []
            fake.values[P + b"a"] = b"1"
            fake.say_to_all(b">2\r\n+invalidate\r\n_\r\n>2\r\n+invalidate\r\n" + array(bulk(P + b"a")))
            assert await tier.get_many([b"a"]) == [b"1"]
            assert tier.health()[0].connects == 1
            assert tier.stats().invalidations == tier.stats().gaps == 0

    run(main())


@pytest.mark.parametrize("seed", range(6))
def test_whatever_a_server_does_a_key_gets_its_own_value_or_none(
    run: Run, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Held, late, missing and broken replies at random, while tasks ask, are cancelled and ask again."""
    chances = random.Random(seed)

    async def main() -> None:
        held: dict[Talk, list[bytes]] = {}
        stuck: set[Talk] = set()

        def release(talk: Talk) -> None:
            stuck.discard(talk)
            talk.say(b"".join(held[talk]))
            held[talk].clear()

        def answer(talk: Talk, key: bytes) -> bytes | None:
            waiting = held.setdefault(talk, [])
            chance = chances.random()
            if chance < 0.02:
                talk.say(b"".join(waiting) + chances.choice((b"garbage", b"$9\r\nhalf", b":1\r\n", b"*1\r\n")))
                talk.close()
                return None
            waiting.append(
                b"-ERR no\r\n" if chance < 0.07 else bulk(None) if chance < 0.12 else bulk(b"value of " + key)
            )
            if chance < 0.16 and talk not in stuck:
                # Longer than the hasty wait.
                stuck.add(talk)
                asyncio.get_running_loop().call_later(0.02, release, talk)
            if chance > 0.35 and talk not in stuck:
                release(talk)
            return None

        async with FakeRedis() as fake, tiered(fake) as tier:
            fake.on[b"GET"] = answer
            hits = 0

            async def ask(number: int) -> None:
                nonlocal hits
                for turn in range(60):
                    keys = [b"%d-%d-%d" % (number, turn, index) for index in range(chances.randrange(1, 4))]
                    # Some are patient, so that a slow machine finds something too.
                    monkeypatch.setattr(module, "LOOK_UP_S", chances.choice((0.002, 0.5)))
                    task = asyncio.create_task(tier.get_many(keys))
                    await asyncio.sleep(0)
                    if chances.random() < 0.1:
                        task.cancel()
                        await asyncio.wait((task,))
                        continue
                    for key, value in zip(keys, await task, strict=True):
                        assert value in (None, b"value of " + P + key)
                        hits += value is not None
                    # A connection that is gone comes back after a while, and a breaker closes.
                    for link in tier._servers.links():
                        link.breaker.renewed()
                        link.backoff.attempts = 0
                    await asyncio.sleep(0.001 if tier.health()[0].up else 0.01)

            await asyncio.gather(*(ask(number) for number in range(8)))
            counts = tier.stats()
            assert hits > 50
            assert counts.timeouts > 0
            assert counts.lost > 0
            assert sum(talk.heard != [] for talk in fake.talks) > 1

    run(main())


def scanning(fake: FakeRedis, page: int) -> None:
    """Answer SCAN with the keys that stand under the pattern's literal beginning, `page` at a time."""
    names = sorted(fake.values)

    def scan(talk: Talk, cursor: bytes, _match: bytes, pattern: bytes, *more: bytes) -> bytes:
        start = int(cursor)
        literal = pattern.removesuffix(b"*").replace(b"\\", b"")
        found = [bulk(name) for name in names[start : start + page] if name.startswith(literal)]
        following = start + page if start + page < len(names) else 0
        return array(bulk(b"%d" % following), array(*found))

    fake.on[b"SCAN"] = scan


def test_a_purge_removes_what_is_under_a_prefix_and_nothing_else(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake, tiered(fake) as tier:
            fake.values = {P + b"t[1]:%d" % number: b"x" for number in range(700)}
            fake.values |= {P + b"t1:a": b"y", b"other": b"z"}
            scanning(fake, 300)
            assert await tier.purge(b"t[1]:") == Purged(700, True)
            assert set(fake.values) == {P + b"t1:a", b"other"}
            assert fake.heard(b"SCAN")[0][3] == rb"dandolo:t\[1\]:*"
            assert await tier.purge() == Purged(1, True)
            assert set(fake.values) == {b"other"}

    run(main())


def test_a_purge_that_did_not_reach_all_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PURGE_STEP_S", 0.02)

    async def main() -> None:
        async with FakeRedis() as fake, tiered(fake) as tier:
            fake.values = {P + b"a": b"x", P + b"b": b"x"}
            for answer in (b"-ERR no\r\n", b":1\r\n", array(bulk(b"0")), array(b":0\r\n", array()), None):
                fake.on[b"SCAN"] = lambda talk, *arguments, answer=answer: answer
                assert await tier.purge() == Purged(0, False)
            fake.say_to_all(b"*0\r\n")  # the reply that was late
            scanning(fake, 10)
            refusals = [b"-NOPERM no\r\n"]
            fake.on[b"UNLINK"] = lambda talk, key: refusals.pop() if refusals else b":1\r\n"
            assert await tier.purge() == Purged(1, False)
            # A scan without end has one.
            fake.on[b"SCAN"] = lambda talk, *arguments: array(bulk(b"7"), array())
            monkeypatch.setattr(module, "PURGE_S", 0.05)
            assert await tier.purge() == Purged(0, False)
            await tier.close()
            assert await tier.purge() == Purged(0, False)

    run(main())


def test_closing_ends_what_is_in_flight_as_a_miss(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake, tiered(fake) as tier:
            fake.on[b"GET"] = lambda talk, key: None
            task = asyncio.create_task(tier.get_many([b"a", b"b"]))
            await until(lambda: len(fake.heard(b"GET")) == 2)
            await tier.close()
            assert await task == [None, None]
            assert await tier.get_many([b"a"]) == [None]
            await asyncio.sleep(0.05)
            assert fake.accepted == 1

    run(main())


def test_counts_are_copied(run: Run) -> None:
    async def main() -> None:
        async with FakeRedis() as fake, tiered(fake) as tier:
            before = tier.stats()
            await tier.get_many([b"a"])
            assert before == Counts()
            assert tier.stats() == Counts(gets=1, misses=1)

    run(main())
