"""Sums over a window, against keeping everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dandolo.mind.rolling import Rolling

STEPS = st.lists(st.tuples(st.floats(0, 45), st.integers(0, 5), st.integers(0, 5)), max_size=60)


@given(STEPS)
def test_the_sums_are_those_of_the_window(steps: list[tuple[float, int, int]]) -> None:
    rolling, now, kept = Rolling(60.0, 6, 2), 1000.0, []
    for step, one, two in steps:
        now += step
        rolling.add((one, two), now)
        kept.append((int(now / 10), one, two))
        at = int(now / 10)
        expected = [sum(item[place] for item in kept if item[0] > at - 6) for place in (1, 2)]
        assert rolling.sums == expected


def test_what_is_far_behind_costs_no_more_than_the_window() -> None:
    rolling = Rolling(60.0, 6, 1)
    rolling.add((7,), 0.0)
    rolling.advance(1e12)
    assert rolling.sums == [0]


def test_a_clock_that_runs_backwards_moves_nothing() -> None:
    rolling = Rolling(60.0, 6, 1)
    rolling.add((1,), 1000.0)
    rolling.add((1,), 0.0)
    assert rolling.sums == [2]
