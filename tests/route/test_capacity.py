"""Slots: the only queue. Never more than the limit, first come first served, nothing lost."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.errors import Refusal
from dandolo.net.strand import Strand, Waiter
from dandolo.route.capacity import RETRY_AFTER_MAX_S, ReservedSlots, Slots


class Place:
    """A ticket that notes when it was granted."""

    def __init__(self, name: int, granted: list[int]) -> None:
        self.done = False
        self._name, self._granted = name, granted

    def set(self, value: bool) -> None:
        self.done = True
        self._granted.append(self._name)


def test_slots_up_to_the_limit_are_free() -> None:
    slots = Slots(2)
    assert [slots.enter(), slots.enter(), slots.enter()] == [True, True, False]
    slots.leave(1.0)
    assert slots.enter()
    assert slots.in_use == 2


def test_waiters_are_served_in_the_order_they_came() -> None:
    slots, granted = Slots(1), []
    slots.enter()
    for name in range(5):
        slots.queue(Place(name, granted))
    for i in range(5):
        slots.leave(float(i + 1))
        assert slots.in_use == 1
    assert granted == [0, 1, 2, 3, 4]
    slots.leave(9.0)
    assert (slots.in_use, slots.waiting) == (0, 0)


def test_slots_that_come_free_in_a_cool_down_are_handed_on_after_it() -> None:
    slots, granted = Slots(64), []
    for _ in range(64):
        slots.enter()
    for name in range(18):
        slots.queue(Place(name, granted), 1.5)
    slots.held_until = 2.0
    for _ in range(40):
        slots.leave(1.6)
    slots.expire(1.9)
    assert (granted, slots.in_use, slots.waiting) == ([], 24, 18)
    slots.expire(2.0)
    assert granted == list(range(8)), "all at once would be refused at once"
    slots.expire(2.1)
    slots.expire(2.2)
    assert (granted, slots.in_use, slots.waiting) == (list(range(18)), 42, 0)


@pytest.mark.parametrize("slots", [Slots(5), ReservedSlots(5, {"vip": 0.2})], ids=["plain", "reserved"])
def test_nobody_overtakes_those_who_wait_when_a_cool_down_ends(slots: Slots) -> None:
    granted: list[int] = []
    while slots.enter():
        pass
    slots.queue(Place(0, granted), 1.0)
    slots.held_until = 2.0
    slots.leave(1.5)
    assert not slots.enter()
    slots.expire(2.0)
    assert granted == [0]
    slots.leave(2.1)
    assert slots.enter()


def test_small_limits_are_filled_at_once_after_a_cool_down() -> None:
    slots, granted = Slots(4), list[int]()
    for _ in range(4):
        slots.enter()
    for name in range(6):
        slots.queue(Place(name, granted), 1.5)
    slots.held_until = 2.0
    for _ in range(4):
        slots.leave(1.6)
    slots.expire(2.0)
    assert (granted, slots.in_use) == ([0, 1, 2, 3], 4)


def test_a_cool_down_that_begins_at_a_grant_stops_the_next() -> None:
    slots, granted = Slots(4), []
    for _ in range(4):
        slots.enter()

    class Refused(Place):
        def set(self, value: bool) -> None:
            super().set(value)
            slots.held_until = 5.0

    for name in range(3):
        slots.queue(Refused(name, granted), 0.0)
    slots.resize(6, 1.0)
    assert (granted, slots.in_use, slots.waiting) == ([0], 5, 2)


def test_who_withdraws_is_not_served() -> None:
    slots, granted = Slots(1), []
    slots.enter()
    places = [Place(name, granted) for name in range(3)]
    for place in places:
        slots.queue(place)
    slots.withdraw(places[0])
    slots.withdraw(places[0])
    places[1].done = True  # gave up without saying so
    slots.leave(1.0)
    assert granted == [2]
    assert slots.waiting == 0


def test_a_full_queue_refuses_with_a_wait() -> None:
    slots = Slots(1, waiters_max=2)
    slots.enter()
    for name in range(2):
        slots.queue(Place(name, []))
    with pytest.raises(Refusal) as caught:
        slots.queue(Place(3, []))
    assert (caught.value.status, caught.value.code) == (503, "overloaded")
    assert caught.value.retry_after_s is not None
    assert 1.0 <= caught.value.retry_after_s <= RETRY_AFTER_MAX_S
    assert slots.waiting == 2


def test_the_advertised_wait_follows_the_rate_of_leaving() -> None:
    def wait(interval: float) -> float:
        slots = Slots(1)
        slots.enter()
        now = 1.0
        for name in range(200):
            slots.queue(Place(name, []))
        for _ in range(150):
            now += interval
            slots.leave(now)
        return slots.retry_after_s()

    assert wait(0.001) == 1.0
    assert wait(0.1) == pytest.approx(5.1, rel=0.05)
    assert wait(100.0) == RETRY_AFTER_MAX_S


def test_a_slot_given_back_twice_is_noticed() -> None:
    slots = Slots(1)
    slots.enter()
    slots.leave(1.0)
    with pytest.raises(AssertionError):
        slots.leave(1.0)


def test_a_thousand_waiters_that_leave_at_once_do_not_nest() -> None:
    slots = Slots(1)
    ended: list[int] = []

    async def call(name: int) -> None:
        if not slots.enter():
            ticket: Waiter[bool] = Waiter()
            slots.queue(ticket)
            await ticket
        slots.leave(1.0)
        ended.append(name)

    slots.enter()
    for name in range(1000):
        Strand(call(name), lambda error: None).resume()
    slots.leave(1.0)
    assert ended == list(range(1000))
    assert (slots.in_use, slots.waiting) == (0, 0)


def test_a_caller_that_leaves_and_queues_again_within_its_grant_is_served_again() -> None:
    slots = Slots(1)
    turns: list[str] = []

    async def call(name: str) -> None:
        for _ in range(2):
            if not slots.enter():
                ticket: Waiter[bool] = Waiter()
                slots.queue(ticket)
                await ticket
            turns.append(name)
            slots.leave(1.0)

    slots.enter()
    for name in "ab":
        Strand(call(name), lambda error: None).resume()
    slots.leave(1.0)
    assert sorted(turns) == ["a", "a", "b", "b"]
    assert (slots.in_use, slots.waiting) == (0, 0)


def test_a_grant_that_raises_loses_no_slot() -> None:
    class Bad(Place):
        def set(self, value: bool) -> None:
            self.done = True
            slots.leave(1.0)
            raise ValueError

    slots = Slots(1)
    slots.enter()
    slots.queue(Bad(0, []))
    with pytest.raises(ValueError):
        slots.leave(1.0)
    assert slots.in_use == 0
    assert slots.enter()


@given(
    st.integers(1, 4),
    st.integers(0, 5),
    st.lists(st.sampled_from(["come", "come", "leave", "withdraw"]), max_size=120),
    st.randoms(use_true_random=False),
)
def test_the_count_keeps_its_bounds_and_the_queue_its_order(
    limit: int, waiters_max: int, steps: list[str], draw: random.Random
) -> None:
    slots = Slots(limit, waiters_max)
    granted: list[int] = []
    waiting: deque[tuple[int, Place]] = deque()
    held, now = 0, 0.0
    for name, step in enumerate(steps):
        now += 0.1
        if step == "come":
            if slots.enter():
                assert not waiting, "somebody was overtaken"
                held += 1
            else:
                place = Place(name, granted)
                try:
                    slots.queue(place)
                except Refusal:
                    assert len(waiting) == waiters_max
                else:
                    waiting.append((name, place))
        elif step == "leave" and held:
            before = len(granted)
            slots.leave(now)
            if waiting:
                assert granted[before:] == [waiting.popleft()[0]]
            else:
                held -= 1
        elif step == "withdraw" and waiting:
            at = draw.randrange(len(waiting))
            slots.withdraw(waiting[at][1])
            del waiting[at]
        assert 0 <= slots.in_use == held <= limit
        assert slots.waiting == len(waiting)
        assert not waiting or held == limit
        assert 1.0 <= slots.retry_after_s() <= RETRY_AFTER_MAX_S


def test_a_thousand_random_cancels_leak_nothing() -> None:
    draw = random.Random(7)
    slots = Slots(8)
    running: list[tuple[Strand, Waiter[None]]] = []

    async def call(work: Waiter[None]) -> None:
        if not slots.enter():
            ticket: Waiter[bool] = Waiter()
            slots.queue(ticket)
            try:
                await ticket
            except BaseException:
                if ticket.done:
                    slots.leave(1.0)
                else:
                    slots.withdraw(ticket)
                raise
        try:
            await work
        finally:
            slots.leave(1.0)

    for _ in range(1000):
        work: Waiter[None] = Waiter()
        strand = Strand(call(work), lambda error: None)
        running.append((strand, work))
        strand.resume()
        if len(running) > 60:
            strand, work = running.pop(draw.randrange(len(running)))
            if draw.random() < 0.7:
                strand.cancel()
            else:
                work.set(None)
    while running:
        strand, _ = running.pop(draw.randrange(len(running)))
        strand.cancel()
    assert (slots.in_use, slots.waiting) == (0, 0)
