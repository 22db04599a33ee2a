"""Clusters: three real masters, and three of our own making for maps that a real one gives only when it breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from redis_fake import FakeRedis, bulk
from redis_servers import RealCluster
from redis_waiting import until

from dandolo.cache.redis import servers as servers_module
from dandolo.cache.redis import tier as module
from dandolo.cache.redis.commands import REDIRECTS_MAX
from dandolo.cache.redis.slots import SLOTS, slot_of
from dandolo.cache.redis.tier import RedisTier
from dandolo.config.redisurl import RedisUrl

Run = Callable[[Coroutine[Any, Any, None]], None]
HOUR_MS = 3_600_000
P = b"dandolo:"
KEYS = [b"%d" % number for number in range(200)]


class Tracker:
    """Keeps what the tier tells of changes."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.gaps: list[set[bytes]] = []

    def invalidated(self, keys: list[bytes]) -> None:
        self.keys += keys

    def lost_track(self, concerned: Callable[[bytes], bool]) -> None:
        self.gaps.append({key for key in KEYS if concerned(key)})


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines that a busy machine does not miss, and maps that are asked for again without delay."""
    monkeypatch.setattr(module, "LOOK_UP_S", 10.0)
    monkeypatch.setattr(module, "WRITE_S", 10.0)
    monkeypatch.setattr(servers_module, "REFRESH_SOON_S", 0.02)


@asynccontextmanager
async def tiered(port: int, nodes: int = 3, **more: Any) -> AsyncIterator[RedisTier]:
    """A tier that knows `nodes` masters, all up."""
    tier = RedisTier(RedisUrl(host="127.0.0.1", port=port, cluster=True), random=lambda: 0.0, **more)
    tier.start()
    try:
        await until(lambda: len(tier.health()) == nodes and all(node.up for node in tier.health()))
        yield tier
    finally:
        await tier.close()


async def fill(tier: RedisTier) -> None:
    assert await tier.put_many([(key, b"v" + key, HOUR_MS) for key in KEYS]) == len(KEYS)


VALUES = [b"v" + key for key in KEYS]


def test_keys_go_to_their_nodes_and_all_are_found(run_once: Run, real_cluster: RealCluster) -> None:
    async def main() -> None:
        for node in real_cluster.nodes:
            async with tiered(node.port) as tier:
                await fill(tier)
                assert await tier.get_many(KEYS) == VALUES
                assert tier.stats().redirects == 0
        for key in KEYS:
            assert real_cluster.owner(slot_of(P + key)).ask("GET", P + key) == b"v" + key
        assert all(isinstance(size := node.ask("DBSIZE"), int) and size > 20 for node in real_cluster.nodes)
        async with tiered(real_cluster.nodes[0].port) as tier:
            assert await tier.delete(KEYS[:50]) == 50
            purged = await tier.purge()
            assert (purged.keys, purged.complete) == (150, True)
        assert all(node.ask("DBSIZE") == 0 for node in real_cluster.nodes)

    run_once(main())


def test_a_slot_on_the_move_is_followed_by_ask_and_then_moved(run_once: Run, real_cluster: RealCluster) -> None:
    key = KEYS[0]
    slot = slot_of(P + key)
    source = real_cluster.owner(slot)
    target = next(node for node in real_cluster.nodes if node is not source)

    async def main() -> None:
        tracker = Tracker()
        async with tiered(source.port, tracker=tracker) as tier:
            await fill(tier)
            assert target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", real_cluster.name(source)) == b"OK"
            assert source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", real_cluster.name(target)) == b"OK"
            assert source.ask("MIGRATE", "127.0.0.1", target.port, P + key, 0, 5000) == b"OK"
            assert await tier.get_many(KEYS) == VALUES
            assert tier.stats().redirects == 1
            assert await tier.put_many([(key, b"new", HOUR_MS)]) == 1
            assert tier.stats().redirects == 2
            for node in (target, source):
                assert node.ask("CLUSTER", "SETSLOT", slot, "NODE", real_cluster.name(target)) == b"OK"
            tracker.gaps.clear()
            assert await tier.get_many(KEYS) == [b"new", *VALUES[1:]]
            assert tier.stats().redirects == 3
            # Learned from the redirection; changes of that slot may have gone untold meanwhile.
            await until(lambda: tracker.gaps)
            assert key in tracker.gaps[0]
            assert all(slot_of(P + one) == slot for one in tracker.gaps[0])
            assert await tier.get_many([key]) == [b"new"]
            assert tier.stats().redirects == 3
            assert tier.stats().errors == 0

    run_once(main())


def test_a_lost_node_costs_its_own_slots_until_it_is_back(run_once: Run, real_cluster: RealCluster) -> None:
    # Not the one of the URL: the others must be found without it as well, which the next test shows.
    lost = real_cluster.nodes[1]

    async def main() -> None:
        tracker = Tracker()
        async with tiered(real_cluster.nodes[0].port, tracker=tracker) as tier:
            await fill(tier)
            lost.kill()
            gone = {key for key in KEYS if real_cluster.owner(slot_of(P + key)) is lost}
            assert gone
            await until(lambda: sum(node.up for node in tier.health()) == 2)
            expected = [None if key in gone else b"v" + key for key in KEYS]
            assert await tier.get_many(KEYS) == expected
            assert await tier.put_many([(key, b"w", HOUR_MS) for key in KEYS]) == len(KEYS) - len(gone)
            tracker.gaps.clear()
            lost.start()
            await until(lambda: all(node.up for node in tier.health()) and len(tier.health()) == 3)
            await until(lambda: tracker.gaps)
            assert tracker.gaps[0] == gone
            # It serves again once the others have told it that it may.
            loop = asyncio.get_running_loop()
            end = loop.time() + 15
            while await tier.put_many([(key, b"x", HOUR_MS) for key in KEYS]) < len(KEYS):
                assert loop.time() < end
                await asyncio.sleep(0.05)
            assert await tier.get_many(KEYS) == [b"x"] * len(KEYS)

    run_once(main())


def test_the_node_of_the_url_may_be_the_one_that_is_lost(run_once: Run, real_cluster: RealCluster) -> None:
    async def main() -> None:
        async with tiered(real_cluster.nodes[0].port) as tier:
            await fill(tier)
            real_cluster.nodes[0].kill()
            await until(lambda: sum(node.up for node in tier.health()) == 2)
            for key in KEYS:
                value = b"v" + key if real_cluster.owner(slot_of(P + key)) is not real_cluster.nodes[0] else None
                assert await tier.get_many([key]) == [value]

    run_once(main())


def test_changes_on_every_node_are_told(run_once: Run, real_cluster: RealCluster) -> None:
    async def main() -> None:
        tracker = Tracker()
        port = real_cluster.nodes[0].port
        async with tiered(port, tracker=tracker) as ours, tiered(port) as theirs:
            await fill(ours)
            await until(lambda: len(tracker.gaps) >= 3)
            assert tracker.keys == []
            await fill(theirs)
            await until(lambda: len(tracker.keys) == len(KEYS))
            assert sorted(tracker.keys) == sorted(KEYS)
            assert set().union(*tracker.gaps) == set(KEYS)

    run_once(main())


@asynccontextmanager
async def faked(count: int = 3) -> AsyncIterator[list[FakeRedis]]:
    """Nodes that share the slots evenly and all say so."""
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(FakeRedis()) for _ in range(count)]
        share(nodes, nodes)
        yield nodes


def share(nodes: list[FakeRedis], among: list[FakeRedis]) -> None:
    """Have all `nodes` say that the slots are shared evenly `among` some."""
    count = len(among)
    for node in nodes:
        node.slots = [
            (index * SLOTS // count, (index + 1) * SLOTS // count - 1, owner) for index, owner in enumerate(among)
        ]


def moved(to: FakeRedis, kind: str = "MOVED") -> Callable[..., bytes]:
    """Answers that point to another node."""
    return lambda talk, key, *more: f"-{kind} {slot_of(key)} 127.0.0.1:{to.port}\r\n".encode()


def test_redirections_in_a_circle_end_as_a_miss(run: Run) -> None:
    async def main() -> None:
        async with faked() as nodes, tiered(nodes[0].port) as tier:
            for index, node in enumerate(nodes):
                node.on[b"GET"] = moved(nodes[(index + 1) % 3])
            assert await tier.get_many([b"a"]) == [None]
            assert sum(len(node.heard(b"GET")) for node in nodes) == 1 + REDIRECTS_MAX
            assert tier.stats().redirects == REDIRECTS_MAX
            for index, node in enumerate(nodes):
                node.on[b"GET"] = moved(nodes[(index + 1) % 3], "ASK")
            assert await tier.get_many([b"a"]) == [None]
            for node in nodes:
                node.on[b"GET"] = lambda talk, key: b"-MOVED nonsense\r\n"
            assert await tier.get_many([b"a"]) == [None]

    run(main())


def test_redirections_do_not_storm_the_map(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers_module, "REFRESH_SOON_S", 1000.0)

    async def main() -> None:
        async with faked() as nodes, tiered(nodes[0].port) as tier:
            await asyncio.sleep(0.05)
            asked = sum(len(node.heard(b"CLUSTER")) for node in nodes)
            for node in nodes[:2]:
                node.on[b"GET"] = moved(nodes[2])
            assert await tier.get_many(KEYS) == [None] * len(KEYS)
            assert tier.stats().redirects > 100
            assert sum(len(node.heard(b"CLUSTER")) for node in nodes) == asked

    run(main())


def test_redirections_do_not_put_the_map_off(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with faked() as nodes, tiered(nodes[0].port) as tier:
            await asyncio.sleep(0.1)
            asked = sum(len(node.heard(b"CLUSTER")) for node in nodes)
            monkeypatch.setattr(servers_module, "REFRESH_SOON_S", 0.2)
            for node in nodes[:2]:
                node.on[b"GET"] = moved(nodes[2])
            for key in KEYS[:60]:
                await tier.get_many([key])
                await asyncio.sleep(0.01)
            assert tier.stats().redirects > 20
            assert sum(len(node.heard(b"CLUSTER")) for node in nodes) > asked

    run(main())


def test_a_redirection_to_a_node_that_is_new_finds_it_there_soon(run: Run) -> None:
    async def main() -> None:
        async with faked() as nodes, FakeRedis() as new, tiered(nodes[0].port) as tier:
            new.values = {P + key: b"new" for key in KEYS}
            for node in nodes:
                node.on[b"GET"] = moved(new)
            # It is not connected yet: a miss at once, not a wait.
            assert await tier.get_many([b"1"]) == [None]
            share([*nodes, new], [*nodes[:2], new])
            await until(lambda: any(one.address.endswith(f":{new.port}") and one.up for one in tier.health()))
            assert await tier.get_many([b"1"]) == [b"new"]

    run(main())


def test_a_new_map_moves_slots_and_closes_what_is_no_master_any_more(run: Run) -> None:
    async def main() -> None:
        tracker = Tracker()
        async with faked() as nodes, FakeRedis() as heir, tiered(nodes[0].port, tracker=tracker) as tier:
            # The connection for maps is told of no changes: they come from the masters, once each.
            assert sum(len(node.heard(b"CLIENT")) for node in nodes) == 3
            heir.values = {P + key: b"heir" for key in KEYS}
            first = nodes[1].slots[1]
            gone = {key for key in KEYS if first[0] <= slot_of(P + key) <= first[1]}
            tracker.gaps.clear()
            share([*nodes, heir], [nodes[0], heir, nodes[2]])
            # The master goes away, and a replica has its place.
            await nodes[1].__aexit__()
            await until(lambda: {one.address for one in tier.health() if one.up} == {
                f"127.0.0.1:{node.port}" for node in (nodes[0], heir, nodes[2])
            })  # fmt: skip
            assert len(tier.health()) == 3
            assert await tier.get_many(sorted(gone)) == [b"heir"] * len(gone)
            await until(lambda: tracker.gaps)
            assert all(gap == gone for gap in tracker.gaps)

    run(main())


def test_maps_that_make_no_sense_are_asked_for_again(run: Run) -> None:
    async def main() -> None:
        async with faked() as nodes:
            answers = [b"-ERR This instance has cluster support disabled\r\n", b"*1\r\n:1\r\n", b"+OK\r\n"]
            right = nodes[0]._answer
            nodes[0].on[b"CLUSTER"] = lambda talk, *arguments: answers.pop() if answers else restored(talk, *arguments)

            def restored(talk: Any, *arguments: Any) -> bytes | None:
                del nodes[0].on[b"CLUSTER"]
                return right(talk, b"CLUSTER", *arguments)

            async with tiered(nodes[0].port) as tier:
                assert answers == []
                assert await tier.get_many([b"a"]) == [None]
                assert tier.stats().misses == 1

    run(main())


def test_slots_without_an_owner_are_misses(run: Run) -> None:
    async def main() -> None:
        async with faked(1) as (node,):
            node.slots = [(0, 99, node)]
            async with tiered(node.port, nodes=1) as tier:
                assert await tier.get_many(KEYS) == [None] * len(KEYS)
                assert tier.stats().down > 100
            node.slots = []
            tier = RedisTier(RedisUrl(host="127.0.0.1", port=node.port, cluster=True))
            tier.start()
            await until(lambda: len(node.heard(b"CLUSTER")) > 2)
            assert tier.health() == ()
            assert await tier.get_many([b"a"]) == [None]
            assert not (await tier.purge()).complete
            await tier.close()

    run(main())


def test_a_hung_node_costs_only_its_own_keys(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with faked() as nodes, tiered(nodes[0].port) as tier:
            nodes[0].on[b"GET"] = lambda talk, key: None
            for node in nodes[1:]:
                node.on[b"GET"] = lambda talk, key: bulk(b"there")
            last = nodes[0].slots[0][1]
            monkeypatch.setattr(module, "LOOK_UP_S", 0.05)
            hung = [key for key in KEYS if slot_of(P + key) <= last]
            for _ in range(2):
                got = await tier.get_many(hung[:5])
                assert got == [None] * 5
            monkeypatch.setattr(module, "LOOK_UP_S", 10.0)
            states = {node.breaker for node in tier.health()}
            assert states == {"open", "closed"}
            got = await tier.get_many(KEYS)
            assert got == [None if key in hung else b"there" for key in KEYS]

    run(main())
