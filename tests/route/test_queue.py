"""The queue behind the slots: who is next, who has waited too long, what is kept for whom."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.errors import Refusal
from dandolo.route.capacity import ReservedSlots, Slots
from dandolo.route.joint import Joint
from dandolo.route.queue import DEADLINES_S, HIGH, LOW, NORMAL, Queue


class Place:
    def __init__(self, name: object, told: list[object]) -> None:
        self.done = False
        self.name, self.told = name, told
        self.error: BaseException | None = None

    def set(self, value: bool) -> None:
        self.done = True
        self.told.append(self.name)

    def fail(self, error: BaseException) -> None:
        self.done = True
        self.error = error


def test_classes_are_served_sixteen_to_four_to_one() -> None:
    queue = Queue()
    for name in range(300):
        for priority in (HIGH, NORMAL, LOW):
            queue.push(Place(name, []), priority, 0.0, 0, "")
    served = [queue.pop(0.5) for _ in range(210)]
    counts = [sum(place is not None and place.priority == p for place in served) for p in (HIGH, NORMAL, LOW)]
    assert counts == [160, 40, 10]


def test_a_class_that_waited_not_is_served_at_once_when_it_comes() -> None:
    queue = Queue()
    for name in range(50):
        queue.push(Place(name, []), LOW, 0.0, 0, "")
    for _ in range(20):
        queue.pop(0.5)
    for name in range(8):
        queue.push(Place(name, []), HIGH, 0.5, 0, "")
    assert [queue.pop(0.5).priority for _ in range(8)] == [HIGH] * 8  # type: ignore[union-attr]


def test_low_is_never_starved() -> None:
    queue = Queue()
    queue.push(Place("low", []), LOW, 0.0, 0, "")
    for turn in range(40):
        queue.push(Place(turn, []), HIGH, 0.0, 0, "")
        if queue.pop(0.1).priority == LOW:  # type: ignore[union-attr]
            return
    pytest.fail("40 grants, none for low")


def test_a_class_that_has_stood_for_a_second_is_served_from_its_end() -> None:
    queue = Queue()
    for name, at in ((0, 10.0), (1, 10.1), (2, 10.2)):
        queue.push(Place(name, []), NORMAL, at, 0, "")
    assert queue.pop(10.5).ticket.name == 0  # type: ignore[union-attr]
    assert queue.pop(11.5).ticket.name == 2  # type: ignore[union-attr]
    assert queue.pop(11.5).ticket.name == 1  # type: ignore[union-attr]
    queue.push(Place(3, []), NORMAL, 12.0, 0, "")
    queue.push(Place(4, []), NORMAL, 12.1, 0, "")
    assert queue.pop(12.5).ticket.name == 3, "it had been empty"  # type: ignore[union-attr]


@pytest.mark.parametrize("priority", [HIGH, NORMAL, LOW])
def test_waiters_are_dropped_at_a_fifth_of_their_deadline_while_it_stands(priority: int) -> None:
    deadline = DEADLINES_S[priority]
    slots, place = Slots(1), Place("late", [])
    slots.enter()
    slots.queue(place, 0.0, priority, 7)
    assert (slots.expire(0.19 * deadline), slots.waiting_bytes) == (0, 7)
    assert slots.expire(0.21 * deadline) == 1
    assert isinstance(place.error, Refusal)
    assert place.error.retry_after_s is not None
    assert (place.error.status, place.error.code) == (503, "overloaded")
    assert (slots.waiting, slots.waiting_bytes, slots.in_use) == (0, 0, 1)


def test_who_has_no_age_is_never_dropped() -> None:
    slots, place = Slots(1), Place("old", [])
    slots.enter()
    slots.queue(place)
    assert slots.expire(1e9) == 0
    slots.leave(1e9)
    assert place.told == ["old"]


def test_a_slot_is_not_given_to_one_who_waited_too_long() -> None:
    slots, told = Slots(1), []
    slots.enter()
    slots.queue(Place("gone", told), 0.0, HIGH)
    slots.queue(Place("fresh", told), 4.9, HIGH)
    slots.leave(5.0)
    assert told == ["fresh"]


@pytest.mark.parametrize("now", [0.5, 3.0])
def test_keys_of_one_class_take_turns(now: float) -> None:
    """One key's flood delays its own calls, also while the newest are served first; a key has its own order."""
    queue, told = Queue(), []
    for number in range(50):
        queue.push(Place(("flood", number), told), NORMAL, number / 1000, 1, "flood")
    for number in range(2):
        queue.push(Place(("calm", number), told), NORMAL, 0.1 + number / 1000, 1, "calm")
    queue.push(Place(("flood", 50), told), NORMAL, 0.2, 1, "flood")
    served = [place.ticket.name for place in (queue.pop(now) for _ in range(5)) if place is not None]  # type: ignore[attr-defined]
    old = [("flood", 0), ("calm", 0), ("flood", 1), ("calm", 1), ("flood", 2)]
    new = [("flood", 50), ("calm", 1), ("flood", 49), ("calm", 0), ("flood", 48)]
    assert served == (old if now < 1.0 else new)


def test_the_queue_is_bounded_in_bytes() -> None:
    slots = Slots(1, bytes_max=100)
    slots.enter()
    slots.queue(Place(0, []), 0.0, NORMAL, 500)
    with pytest.raises(Refusal):
        slots.queue(Place(1, []), 0.0, NORMAL, 1)
    assert (slots.waiting, slots.waiting_bytes) == (1, 500)


@pytest.mark.parametrize(("now", "who"), [(0.5, "late"), (2.0, "early")])
def test_a_full_queue_of_low_makes_room_for_high(now: float, who: str) -> None:
    """Else a flood of the lowest class would be what refuses the highest. Who would be served last goes."""
    slots = Slots(1, waiters_max=3)
    slots.enter()
    places = {name: Place(name, []) for name in ("early", "middle", "late", "vip")}
    for name in ("early", "middle", "late"):
        slots.queue(places[name], 0.0, LOW)
    slots.queue(places["vip"], now, HIGH)
    assert slots.waiting == 3
    assert [name for name, place in places.items() if place.error is not None] == [who]
    with pytest.raises(Refusal):
        slots.queue(Place("more", []), now, LOW)


def test_a_full_queue_takes_a_place_from_the_key_that_has_most() -> None:
    slots = Slots(1, waiters_max=4)
    slots.enter()
    flood = [Place(number, []) for number in range(4)]
    for place in flood:
        slots.queue(place, 0.0, NORMAL, key="flood")
    for _ in range(2):
        slots.queue(Place("calm", []), 0.0, NORMAL, key="calm")
    assert [place.done for place in flood] == [False, False, True, True]
    for key in ("flood", "calm"):
        with pytest.raises(Refusal):
            slots.queue(Place("more", []), 0.0, NORMAL, key=key)


def test_nobody_gives_way_to_what_would_not_fit_all_the_same() -> None:
    slots = Slots(1, bytes_max=100)
    slots.enter()
    high, low = Place("high", []), Place("low", [])
    slots.queue(high, 0.0, HIGH, 90)
    slots.queue(low, 0.0, LOW, 10)
    with pytest.raises(Refusal):
        slots.queue(Place("large", []), 0.0, NORMAL, 20)
    assert (low.done, slots.waiting, slots.waiting_bytes) == (False, 2, 100)
    slots.queue(Place("small", []), 0.0, NORMAL, 10)
    assert (low.done, high.done, slots.waiting_bytes) == (True, False, 100)


def test_a_smaller_limit_takes_slots_back_and_a_larger_one_hands_them_on() -> None:
    slots, told = Slots(3), []
    for _ in range(3):
        slots.enter()
    for name in range(3):
        slots.queue(Place(name, told), 0.0)
    slots.resize(1, 0.0)
    slots.leave(0.1)
    slots.leave(0.1)
    assert (slots.in_use, told) == (1, [])
    slots.leave(0.1)
    assert (slots.in_use, told) == (1, [0])
    slots.resize(3, 0.2)
    assert (slots.in_use, told) == (3, [0, 1, 2])


def test_shares_stay_free_for_their_keys() -> None:
    slots = ReservedSlots(10, {"ci": 0.3})
    assert [slots.enter("web") for _ in range(8)] == [True] * 7 + [False]
    assert [slots.enter("ci") for _ in range(4)] == [True] * 3 + [False]
    slots.leave(1.0, "ci")
    assert not slots.enter("web")
    assert slots.enter("ci")
    slots.leave(1.0, "web")
    assert slots.enter("ci"), "beyond its share a key competes with everybody"


def test_a_reserved_slot_goes_to_its_key_though_others_wait_longer() -> None:
    slots, told = ReservedSlots(4, {"ci": 0.5}), []
    for key in ("ci", "ci", "web", "web"):
        assert slots.enter(key)
    slots.queue(Place("web", told), 0.0, HIGH, key="web")
    slots.leave(0.1, "ci")
    assert (told, slots.in_use) == ([], 3)
    slots.queue(Place("ci", told), 0.2, LOW, key="ci")
    slots.leave(0.3, "ci")
    assert told == ["ci"]
    slots.leave(0.4, "web")
    assert told == ["ci", "web"]


def test_a_limit_of_one_is_everybodys() -> None:
    slots = ReservedSlots(1, {"a": 0.5, "b": 0.5})
    assert slots.enter("c")


def test_a_joint_waiter_takes_the_first_slot_and_leaves_all_other_queues() -> None:
    one, other, told = Slots(1), Slots(1), []
    one.enter()
    other.enter()
    joint = Joint(Place("joint", told))
    joint.queue((one, other), 0.0)
    assert (one.waiting, other.waiting) == (1, 1)
    other.leave(0.1)
    assert (told, joint.slots) == (["joint"], other)
    assert (one.waiting, other.waiting, one.in_use, other.in_use) == (0, 0, 1, 1)


def test_a_joint_waiter_is_refused_once_and_only_by_the_last() -> None:
    one, other = Slots(1), Slots(1, waiters_max=0)
    one.enter()
    other.enter()
    place = Place("joint", [])
    Joint(place).queue((one, other), 0.0, HIGH)
    one.expire(9.0)
    assert isinstance(place.error, Refusal)
    with pytest.raises(Refusal):
        Joint(Place("none", [])).queue((other,), 0.0)
    third = Joint(Place("left", []))
    third.queue((one,), 10.0)
    third.withdraw()
    assert one.waiting == 0


_steps = st.lists(
    st.tuples(
        st.sampled_from(["come", "come", "come", "leave", "leave", "withdraw", "expire", "resize"]),
        st.sampled_from([HIGH, NORMAL, LOW]),
        st.sampled_from(["", "a", "b"]),
        st.floats(0, 4),
    ),
    max_size=150,
)


@given(st.integers(1, 8), _steps, st.booleans(), st.randoms(use_true_random=False))
def test_slots_never_leak_and_never_go_negative(
    limit: int, steps: list[tuple[str, int, str, float]], reserved: bool, draw: random.Random
) -> None:
    slots: Slots = ReservedSlots(limit, {"a": 0.3, "b": 0.2}, 9) if reserved else Slots(limit, 9)
    told: list[object] = []
    waiting: list[tuple[Place, str]] = []
    held: list[str] = []
    now = 0.0
    for name, (step, priority, key, wait) in enumerate(steps):
        now += wait
        if step == "come":
            if slots.enter(key):
                held.append(key)
            else:
                place = Place(name, told)
                try:
                    slots.queue(place, now, priority, 3, key)
                except Refusal:
                    continue
                waiting.append((place, key))
        elif step == "leave" and held:
            slots.leave(now, held.pop(draw.randrange(len(held))))
        elif step == "withdraw" and waiting:
            place, _ = waiting.pop(draw.randrange(len(waiting)))
            slots.withdraw(place)
        elif step == "expire":
            slots.expire(now)
        elif step == "resize":
            limit = 1 + priority * 3
            slots.resize(limit, now)
        held += [key for place, key in waiting if place.done and place.error is None]
        waiting = [(place, key) for place, key in waiting if not place.done]
        assert slots.in_use == len(held)
        assert slots.waiting == len(waiting)
        assert slots.waiting_bytes == 3 * len(waiting)
    for key in held:
        slots.leave(now, key)
    for place, key in waiting:
        if place.done and place.error is None:
            slots.leave(now, key)
    slots.expire(now + 1e6)
    while slots.in_use:  # those granted in this very loop
        slots.leave(now)
    assert slots.waiting == 0


@given(st.lists(st.sampled_from([HIGH, NORMAL, LOW]), min_size=1, max_size=60))
def test_order_within_a_class_is_that_of_coming(classes: list[int]) -> None:
    queue = Queue()
    for name, priority in enumerate(classes):
        queue.push(Place(name, []), priority, 0.0, 0, "")
    served = [queue.pop(0.5) for _ in classes]
    for priority in (HIGH, NORMAL, LOW):
        names = [place.ticket.name for place in served if place is not None and place.priority == priority]  # type: ignore[attr-defined]
        assert names == sorted(names)
    assert queue.pop(0.5) is None
    assert (queue.count, queue.size) == (0, 0)
