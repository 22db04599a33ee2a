"""Limits learned from refusals: what takes them down, what raises them, and what keeps a candidate out for a while."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dandolo.route.capacity import Slots
from dandolo.route.limit import (
    COOL_DOWN_MAX_S,
    COOL_DOWN_S,
    DECREASE,
    DECREASE_EVERY_S,
    LIMIT_MIN,
    REACH,
    SLOW_START_S,
    SLOWED_DECREASE,
    SLOWED_EPISODE_S,
    SLOWED_FACTOR,
    Limit,
)


def limit(in_use: int, bound: int = 100) -> Limit:
    slots = Slots(bound)
    for _ in range(in_use):
        assert slots.enter()
    return Limit(slots)


def test_it_starts_at_the_bound_and_keeps_the_slots_in_step() -> None:
    made = limit(80)
    assert (made.value, made.slots.limit) == (100.0, 100)
    made.refused(0.0, None)
    assert made.value == pytest.approx(90.0)
    assert made.slots.limit == 90


def test_a_volley_of_refusals_takes_one_tenth() -> None:
    made = limit(80)
    for at in (0.0, 0.05, 0.1, 0.19):
        made.refused(at, 0.0)
    assert made.value == pytest.approx(90.0)
    made.refused(DECREASE_EVERY_S, 0.0)
    assert made.value == pytest.approx(81.0)


def test_a_bound_that_was_never_neared_is_left_behind_at_once() -> None:
    made = limit(10)
    made.refused(0.0, None)
    assert made.value == pytest.approx(DECREASE * REACH * 10)


def test_it_never_falls_below_one() -> None:
    made = limit(0)
    for at in range(200):
        made.refused(float(at), 0.0)
    assert (made.value, made.slots.limit) == (LIMIT_MIN, 1)


def test_a_success_adds_its_share_when_the_limit_is_used() -> None:
    made = limit(30)
    made.refused(0.0, 0.0)
    before = made.value
    made._ceiling = 0.0
    made.succeeded(1.0)
    assert made.value == pytest.approx(before + 1 / before)
    idle = limit(1)
    idle.refused(0.0, 0.0)
    idle.slots.in_use = 0
    before = idle.value
    idle.succeeded(1.0)
    assert idle.value == before


def test_growth_is_careful_below_the_level_last_refused_and_forgets_it() -> None:
    made = limit(90)
    made.refused(0.0, 0.0)
    before = made.value
    made.succeeded(1.0)
    careful = made.value - before
    made.succeeded(100.0)
    assert careful < 0.5 / before
    assert made.value - before - careful == pytest.approx(1 / (before + careful))


class Place:
    """A ticket of which only matters that it waits, and whether it was granted."""

    def __init__(self) -> None:
        self.done = False

    def set(self, value: bool) -> None:
        self.done = value

    def fail(self, error: BaseException) -> None:
        raise AssertionError(error)


def test_growth_is_not_careful_while_callers_wait() -> None:
    made = limit(90)
    made.refused(0.0, 0.0)
    made.slots.queue(Place(), 0.0)
    before = made.value
    made.succeeded(1.0)
    assert made.value - before > 1 / before


def test_a_queue_out_of_sight_takes_the_limit_down_from_what_is_in_flight() -> None:
    made = limit(40)
    assert not made.slowed(0.0, 0.6, 0.3)
    assert made.value == pytest.approx(40 * SLOWED_FACTOR / 2)
    assert not made.slowed(0.5, 0.6, 0.3), "it is no sooner seen than after a first token whether that helped"
    assert made.value == pytest.approx(40 * SLOWED_FACTOR / 2)
    made.slowed(1.0, 0.45, 0.3)
    assert made.value == pytest.approx(40 * SLOWED_FACTOR / 2 * SLOWED_FACTOR / 1.5)
    assert made.wait_s(1.0) == 0.0, "nobody refused anything"


def test_one_look_takes_a_half_at_most() -> None:
    made = limit(40)
    made.slowed(0.0, 9.0, 0.3)
    assert made.value == pytest.approx(SLOWED_DECREASE * 40)


def test_a_provider_that_is_slow_whatever_is_asked_of_it_keeps_its_limit() -> None:
    made, now = limit(40), 0.0
    told = [made.slowed(now, 3.0, 0.3)]
    while not told[-1] and now < 60.0:
        made.slots.in_use = min(40, made.slots.limit)
        now += 3.1
        told.append(made.slowed(now, 3.0, 0.3))
    assert told[-1], "it was strangled for a queue it does not have"
    assert made.value >= 0.25 * 40


def test_a_queue_that_shortens_is_no_slow_provider() -> None:
    made = limit(64)
    for step, first_s in enumerate((4.0, 2.0, 1.2, 0.8)):
        assert not made.slowed(step * 4.1, first_s, 0.3)
        made.slots.in_use = made.slots.limit


def test_a_new_episode_is_judged_by_itself() -> None:
    made = limit(40)
    made.slowed(0.0, 1.0, 0.3)
    made.slots.in_use = 10
    later = 2.0 + SLOWED_EPISODE_S
    assert not made.slowed(later, 1.0, 0.3)


def test_a_cool_down_holds_what_waits_and_headroom_lets_it_go() -> None:
    made = limit(3, bound=3)
    made.cool(7.0)
    assert made.slots.held_until == 7.0
    made.told(0, 60, until=9.0)
    assert made.slots.held_until == 9.0
    made.told(5, 60, until=9.0)
    assert made.slots.held_until == 7.0


def test_it_never_grows_beyond_its_bound() -> None:
    made = limit(10, bound=10)
    made.refused(0.0, 0.0)
    for at in range(1000):
        made.succeeded(float(at))
    assert (made.value, made.slots.limit) == (10.0, 10)


@pytest.mark.parametrize(("asked", "wait"), [(None, COOL_DOWN_S), (7.5, 7.5), (0.0, DECREASE_EVERY_S)])
def test_a_refusal_cools_down_for_as_long_as_it_asks(asked: float | None, wait: float) -> None:
    made = limit(5)
    made.refused(10.0, asked)
    assert made.wait_s(10.0) == pytest.approx(wait)
    made.cool(10.01)
    assert made.wait_s(10.0) == pytest.approx(wait), "an earlier end took a later one's place"
    assert made.wait_s(1000.0) == 0.0


def test_cool_downs_of_no_stated_length_grow_until_something_succeeds() -> None:
    made = limit(50)
    waits = []
    for at in range(10, 15):
        made.refused(float(at), None)
        made.refused(at + 0.01, None)  # of the same volley
        waits.append(made.cooled_until - at)
    assert waits == pytest.approx([0.21, 0.41, 0.81, COOL_DOWN_MAX_S + 0.01, COOL_DOWN_MAX_S + 0.01])
    made.succeeded(20.0)
    made.refused(21.0, None)
    assert made.wait_s(21.0) == pytest.approx(COOL_DOWN_S)


def test_nobody_who_waits_is_sent_while_the_account_cools_down() -> None:
    made = limit(5)
    made.refused(10.0, 3.0)
    assert made.slots.held_until == made.cooled_until == 13.0


def test_headroom_holds_until_its_expiry() -> None:
    made = limit(5)
    made.told(0, 60, until=20.0)
    assert (made.room(19.0), made.room(20.1)) == (False, True)
    assert made.wait_s(15.0) == 5.0
    made.told(15, 60, until=20.0)
    assert made.headroom == 0.25
    assert made.room(15.0)
    made.told(-1, 0, until=99.0)
    assert made.headroom == 0.25, "Azure's -1 of 0 was believed"


@pytest.mark.parametrize(("after", "share"), [(0.0, 0.1), (SLOW_START_S / 2, 0.55), (SLOW_START_S, 1.0), (99.0, 1.0)])
def test_slow_start_gives_a_tenth_and_then_more(after: float, share: float) -> None:
    made = limit(0)
    made.begin_slow_start(50.0)
    assert made.capacity(50.0 + after) == pytest.approx(100 * share)


def test_slow_start_lets_at_least_one_call_through() -> None:
    made = limit(0, bound=3)
    made.begin_slow_start(0.0)
    assert made.room(0.0)


@given(
    st.integers(1, 300),
    st.lists(st.tuples(st.sampled_from("efrslg"), st.floats(0, 3), st.floats(0, 10)), max_size=200),
)
@example(1, [("g", 0.0, 0.0)])
def test_limit_and_slots_agree_and_stay_within_bounds(bound: int, steps: list[tuple[str, float, float]]) -> None:
    slots = Slots(bound)
    made, now, held = Limit(slots), 0.0, 0
    for what, wait, number in steps:
        now += wait
        if what == "e":
            held += slots.enter()
        elif what == "r":
            made.refused(now, number)
        elif what == "s":
            made.succeeded(now)
        elif what == "f":
            made.begin_slow_start(now)
        elif what == "g":
            made.slowed(now, number + 0.1, 0.1)
        elif held:
            slots.leave(now)
            held -= 1
        assert LIMIT_MIN <= made.value <= bound
        assert slots.limit == int(made.value)
        assert slots.in_use == held
        assert 1.0 <= made.capacity(now) <= bound
