"""L1 against a plain model: what is given is what was put, fresh, and within both caps."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dandolo.cache.entry import Entry
from dandolo.cache.lifetime import TtlClass
from dandolo.cache.memory import ENTRY_BYTES, SHARE_MAX, Memory
from dandolo.cache.purges import PURGES_MAX


def key_of(number: int) -> bytes:
    return number.to_bytes(20, "big")


def made(number: int, now: float = 0.0, ttl_s: float = 1_000.0, **changed: Any) -> Entry:
    usual: dict[str, Any] = {
        "key": key_of(number),
        "created": now,
        "expires": now + ttl_s,
        "stale_until": now + ttl_s + ttl_s / 10,
        "kind": TtlClass.CODE,
        "status": 200,
        "model": "m",
        "usage": None,
        "cost_usd": None,
        "gen_ms": 1,
        "tags": (),
        "body": b"%d" % number,
    }
    return Entry(**{**usual, **changed})


def put(memory: Memory, number: int, now: float = 0.0, scope: str = "key:a", **changed: Any) -> bool:
    return memory.put(made(number, now, **changed), b"head", scope, now)


def present(memory: Memory, *numbers: int) -> list[int]:
    return [number for number in numbers if key_of(number) in memory]


def whole(memory: Memory) -> None:
    """No key is lost or counted twice."""
    queued = {**memory._small, **memory._main}
    assert queued == memory._kept
    assert len(memory._small) + len(memory._main) == len(queued)
    assert memory.bytes == sum(kept.size for kept in queued.values())
    assert memory._small_bytes == sum(kept.size for kept in memory._small.values())
    assert all(kept.in_main == (key in memory._main) for key, kept in queued.items())
    assert not (memory._ghost.keys() | memory._displaced.keys()) & queued.keys()


# -- answers ---------------------------------------------------------------------------------------------------


def test_what_was_put_is_given_until_it_expires() -> None:
    memory = Memory()
    assert memory.get(key_of(1), 0.0) is None
    assert put(memory, 1, now=10.0, ttl_s=100.0)
    kept = memory.get(key_of(1), 109.9)
    assert kept is not None
    assert (kept.head, kept.entry.body) == (b"head", b"1")
    assert memory.get(key_of(1), 110.0) is None
    assert memory.stats().expired == 1


def test_an_expired_answer_is_stale_for_a_while_and_then_gone() -> None:
    memory = Memory()
    put(memory, 1, ttl_s=100.0)
    assert memory.get(key_of(1), 105.0) is None
    assert memory.stale(key_of(1), 105.0) is not None
    assert memory.stale(key_of(1), 110.0) is None
    assert memory.get(key_of(1), 110.0) is None
    assert len(memory) == 0
    whole(memory)


def test_questions_outlast_errors() -> None:
    memory = Memory()
    put(memory, 1, ttl_s=100.0, kind=TtlClass.QUESTION)
    assert memory.stale(key_of(1), 5_000.0) is None
    assert memory.get(key_of(1), 5_000.0) is None
    assert memory.stale(key_of(1), 5_000.0, for_error=True) is not None
    assert memory.stale(key_of(1), 86_500.0, for_error=True) is None


def test_putting_again_replaces_and_keeps_the_place() -> None:
    memory = Memory()
    put(memory, 1)
    assert memory.put(made(1, body=b"new"), b"h", "key:a", 5.0)
    kept = memory.get(key_of(1), 6.0)
    assert kept is not None
    assert kept.entry.body == b"new"
    assert len(memory) == 1
    whole(memory)


def test_no_object_over_a_twentieth_of_the_bytes_is_kept_and_what_it_replaces_goes() -> None:
    memory = Memory(100, 200_000)
    most = 200_000 // SHARE_MAX - ENTRY_BYTES - len(b"head")
    assert put(memory, 1, body=bytes(most))
    assert not put(memory, 1, body=bytes(most + 1))
    assert len(memory) == 0
    assert memory.stats().refused == 1
    whole(memory)


def test_what_has_expired_is_not_taken() -> None:
    memory = Memory()
    assert not memory.put(made(1, ttl_s=10.0), b"", "key:a", 11.1)
    assert memory.put(made(1, ttl_s=10.0), b"", "key:a", 10.5)
    assert memory.get(key_of(1), 10.5) is None
    assert memory.stale(key_of(1), 10.5) is not None


@pytest.mark.parametrize("bad", [(0, 1), (1, 0)])
def test_a_tier_of_nothing_is_refused(bad: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        Memory(*bad)


# -- who stays -------------------------------------------------------------------------------------------------


def test_one_off_prompts_do_not_displace_what_was_asked_for_again() -> None:
    memory = Memory(100)
    for number in range(50):
        put(memory, number)
        memory.get(key_of(number), 1.0)
    for number in range(1_000, 3_000):
        put(memory, number)
    assert present(memory, *range(50)) == list(range(50))
    assert len(memory) == 100
    whole(memory)


def test_a_key_that_comes_back_as_a_ghost_enters_main_at_once() -> None:
    memory = Memory(10)
    for number in range(11):
        put(memory, number)
    assert present(memory, 0) == []
    put(memory, 0)
    for number in range(100, 130):
        put(memory, number)
    assert present(memory, 0) == [0]


def test_main_is_left_by_what_is_not_asked_for_any_more() -> None:
    memory = Memory(10)
    for number in range(10):
        put(memory, number)
        memory.get(key_of(number), 1.0)
    for number in range(100, 140):
        put(memory, number)
        memory.get(key_of(number), 1.0)
    assert present(memory, *range(10)) == []
    whole(memory)


def test_misses_of_what_was_displaced_tell_what_twice_the_size_would_give() -> None:
    memory = Memory(50)
    # A round of 90 keys: nothing for 50 places that are filled in order, nearly all for 100.
    for _ in range(20):
        for number in range(90):
            if memory.get(key_of(number), 1.0) is None:
                put(memory, number)
    stats = memory.stats()
    assert stats.hit_rate < 0.75
    assert stats.hit_rate_at_double > 0.9
    small = Memory(200)
    for _ in range(20):
        for number in range(90):
            if small.get(key_of(number), 1.0) is None:
                put(small, number)
    assert small.stats().hits_at_double == small.stats().hits


def test_the_hottest_come_youngest_first() -> None:
    memory = Memory(10)
    for number in range(30):
        put(memory, number)
        memory.get(key_of(number), 1.0)
    hottest = [kept.key for kept in memory.hottest(3)]
    assert len(hottest) == 3
    assert hottest == list(reversed(memory._main))[:3]


# -- purging ---------------------------------------------------------------------------------------------------


NAMES: list[tuple[Any, str]] = [("tag", "t"), ("scope", "key:a"), ("model", "m"), ("class", "CODE")]


@pytest.mark.parametrize(("what", "name"), NAMES)
def test_a_hard_purge_forgets_what_was_made_before_and_nothing_else(what: Any, name: str) -> None:
    memory = Memory()
    put(memory, 1, tags=("s", "t"))
    put(memory, 2, scope="key:b", model="n", kind=TtlClass.OTHER)
    memory.purge(what, name, 10.0)
    assert memory.get(key_of(1), 11.0) is None
    assert memory.get(key_of(2), 11.0) is not None
    assert present(memory, 1) == []
    assert memory.stats().purged == 1
    put(memory, 1, now=12.0, tags=("t",))
    assert memory.get(key_of(1), 13.0) is not None
    whole(memory)


@pytest.mark.parametrize(("what", "name"), NAMES)
def test_a_soft_purge_leaves_it_stale(what: Any, name: str) -> None:
    memory = Memory()
    put(memory, 1, tags=("t",))
    memory.purge(what, name, 10.0, soft=True)
    assert memory.get(key_of(1), 10.0) is None
    assert memory.stale(key_of(1), 10.0) is not None
    put(memory, 1, now=12.0, tags=("t",))
    assert memory.get(key_of(1), 13.0) is not None


@pytest.mark.parametrize(("what", "name"), NAMES)
def test_copies_from_elsewhere_and_answers_under_way_are_caught_by_a_purge(what: Any, name: str) -> None:
    memory = Memory()
    memory.purge(what, name, 10.0)
    assert not memory.put(made(1, 5.0, tags=("t",)), b"", "key:a", 11.0)
    assert not memory.put(made(1, 11.0, tags=("t",)), b"", "key:a", 11.0, asked_at=9.0)
    assert memory.put(made(1, 11.0, tags=("t",)), b"", "key:a", 11.0, asked_at=10.5)
    memory.purge(what, name, 20.0, soft=True)
    assert memory.put(made(2, 15.0, tags=("t",)), b"", "key:a", 21.0)
    assert memory.get(key_of(2), 21.0) is None
    assert memory.stale(key_of(2), 21.0) is not None


def test_purging_everything_frees_it_and_a_soft_one_lets_it_expire() -> None:
    memory = Memory(10)
    for number in range(20):
        put(memory, number)
    memory.purge_all(5.0, soft=True)
    assert memory.get(key_of(19), 5.0) is None
    assert memory.stale(key_of(19), 5.0) is not None
    memory.purge_all(6.0)
    assert (len(memory), memory.bytes) == (0, 0)
    assert not memory.put(made(1, 5.5), b"", "key:a", 7.0)
    whole(memory)


def test_purging_a_key() -> None:
    memory = Memory()
    put(memory, 1)
    put(memory, 2)
    assert memory.purge_key(key_of(1), 5.0)
    assert memory.purge_key(key_of(2), 5.0, soft=True)
    assert not memory.purge_key(key_of(3), 5.0, soft=True)
    assert present(memory, 1, 2) == [2]
    assert memory.get(key_of(2), 5.0) is None
    assert memory.stale(key_of(2), 5.0) is not None


@pytest.mark.parametrize("soft", [False, True])
def test_forgotten_purges_purge_too_much_rather_than_too_little(soft: bool) -> None:
    memory = Memory()
    put(memory, 1, now=0.0)
    put(memory, 2, now=3.0)
    memory.purge("tag", "first", 2.0, soft=soft)
    for number in range(PURGES_MAX):
        memory.purge("tag", f"tag{number}", 4.0, soft=soft)
    assert memory.get(key_of(1), 5.0) is None
    assert memory.get(key_of(2), 5.0) is not None
    assert len(memory.purges._hard) + len(memory.purges._soft) == PURGES_MAX


# -- against a model -------------------------------------------------------------------------------------------

NUMBERS = st.integers(0, 40)
TAGS = ("t0", "t1", "t2")


class Model(RuleBasedStateMachine):
    """A dict of what was put last, with nothing evicted: L1 may forget, it may never say anything else."""

    @initialize(entries=st.integers(1, 24), kilobytes=st.integers(25, 60))
    def start(self, entries: int, kilobytes: int) -> None:
        self.entries, self.bytes = entries, kilobytes * 1_000
        self.memory = Memory(self.entries, self.bytes)
        self.now = 0.0
        self.truth: dict[int, Entry] = {}
        self.lookups = 0

    @rule(seconds=st.sampled_from([1.0, 7.0, 50.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        number=NUMBERS, ttl_s=st.sampled_from([5.0, 60.0, 1e6]), size=st.integers(0, 3_000), tag=st.sampled_from(TAGS)
    )
    def put(self, number: int, ttl_s: float, size: int, tag: str) -> None:
        self.now += 1.0
        entry = made(number, self.now, ttl_s, tags=(tag,), body=b"%d@%d " % (number, self.now) + bytes(size))
        if self.memory.put(entry, b"", "key:a", self.now):
            self.truth[number] = entry
        else:
            self.truth.pop(number, None)

    @rule(number=NUMBERS)
    def get(self, number: int) -> None:
        self.lookups += 1
        kept = self.memory.get(key_of(number), self.now)
        if kept is not None:
            assert kept.entry is self.truth[number]
            assert self.now < kept.entry.expires
        stale = self.memory.stale(key_of(number), self.now)
        if stale is not None:
            assert stale.entry is self.truth[number]
            assert self.now < stale.entry.stale_until

    @rule(number=NUMBERS)
    def delete(self, number: int) -> None:
        self.memory.delete(key_of(number))
        self.truth.pop(number, None)

    @rule(tag=st.sampled_from(TAGS))
    def purge(self, tag: str) -> None:
        self.memory.purge("tag", tag, self.now)
        self.truth = {number: entry for number, entry in self.truth.items() if tag not in entry.tags}

    @rule()
    def purge_all(self) -> None:
        self.memory.purge_all(self.now)
        self.truth = {}

    @invariant()
    def caps_are_kept_and_no_key_is_lost(self) -> None:
        if not hasattr(self, "memory"):
            return
        assert len(self.memory) <= self.entries
        assert self.memory.bytes <= self.bytes
        assert len(self.memory._ghost) <= self.entries
        assert len(self.memory._displaced) <= self.entries
        whole(self.memory)
        stats = self.memory.stats()
        assert stats.hits + stats.misses == self.lookups
        assert stats.hits <= stats.hits_at_double <= self.lookups


Model.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestAgainstAModel = Model.TestCase


@given(st.lists(st.integers(0, 60), max_size=300), st.integers(1, 12))
@settings(deadline=None, max_examples=50)
def test_queues_follow_the_paper(keys: list[int], size: int) -> None:
    """The same decisions as S3-FIFO written down plainly with lists, for entries of one size."""
    memory = Memory(size)
    small: list[int] = []
    main: list[int] = []
    ghost: list[int] = []
    uses: dict[int, int] = {}
    for key in keys:
        hit = memory.get(key_of(key), 1.0) is not None
        assert hit == (key in uses)
        if hit:
            uses[key] = min(3, uses[key] + 1)
            continue
        put(memory, key)
        uses[key] = 0
        if key in ghost:
            ghost.remove(key)
            main.append(key)
        else:
            small.append(key)
        while len(uses) > size:
            if small and (not main or len(small) * 10 > size):
                first = small.pop(0)
                if uses[first]:
                    uses[first] = 0
                    main.append(first)
                else:
                    del uses[first]
                    ghost.append(first)
                    del ghost[: max(0, len(ghost) - (size - size // 10))]
            else:
                first = main.pop(0)
                if uses[first]:
                    uses[first] -= 1
                    main.append(first)
                else:
                    del uses[first]
        assert [key_of(one) for one in small] == list(memory._small)
        assert [key_of(one) for one in main] == list(memory._main)
        assert [key_of(one) for one in ghost] == list(memory._ghost)
