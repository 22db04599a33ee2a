"""The breaker of a server and the backoff of its connections, on made-up time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.cache.breaker import BACKOFF_FIRST_S, BACKOFF_MAX_S, OPEN_S, PROBE_S, STABLE_S, Backoff, Breaker


def opened(now: float = 100.0) -> Breaker:
    breaker = Breaker()
    for _ in range(5):
        assert breaker.admits(now)
        breaker.failed(now)
    assert not breaker.closed
    return breaker


def test_five_failures_within_ten_seconds_open_it() -> None:
    breaker = Breaker()
    for at in (0.0, 2.0, 4.0, 6.0):
        breaker.failed(at)
        assert breaker.admits(at)
    breaker.failed(10.0)
    assert not breaker.admits(10.0)
    assert breaker.state(10.0) == "open"
    assert breaker.trips == 1


def test_five_failures_over_more_than_ten_seconds_do_not() -> None:
    breaker = Breaker()
    for at in range(0, 300, 3):
        breaker.failed(float(at))
        assert breaker.admits(float(at))


def test_successes_between_failures_do_not_keep_it_closed() -> None:
    breaker = Breaker()
    for _ in range(5):
        breaker.succeeded()
        breaker.failed(1.0)
    assert not breaker.closed


def test_after_its_time_one_call_probes_and_closes_it() -> None:
    breaker = opened()
    assert not breaker.admits(100.0 + OPEN_S - 0.01)
    now = 100.0 + OPEN_S
    assert breaker.state(now) == "half-open"
    assert breaker.admits(now)
    assert not breaker.admits(now)
    breaker.succeeded()
    assert breaker.closed
    assert breaker.state(now) == "closed"
    # The failures that opened it are forgotten.
    breaker.failed(now)
    assert breaker.closed


def test_a_probe_that_fails_opens_it_again() -> None:
    breaker = opened()
    now = 100.0 + OPEN_S
    assert breaker.admits(now)
    breaker.failed(now + 0.02)
    assert not breaker.admits(now + OPEN_S)
    assert breaker.admits(now + 0.02 + OPEN_S)
    assert breaker.trips == 2


def test_a_probe_that_says_nothing_makes_room_for_the_next() -> None:
    breaker = opened()
    now = 100.0 + OPEN_S
    assert breaker.admits(now)
    assert not breaker.admits(now + PROBE_S - 0.01)
    assert breaker.admits(now + PROBE_S)


def test_outcomes_from_before_it_opened_change_nothing() -> None:
    breaker = opened()
    breaker.succeeded()
    breaker.failed(101.0)
    assert not breaker.closed
    assert breaker.trips == 1
    assert breaker.admits(100.0 + OPEN_S)


def test_a_new_connection_is_probed_at_once() -> None:
    breaker = opened()
    breaker.renewed()
    assert breaker.admits(100.1)
    assert not breaker.admits(100.1)
    breaker.succeeded()
    assert breaker.closed


def test_waits_double_to_their_bound_and_no_further() -> None:
    backoff = Backoff(lambda: 1.0)
    waits = [backoff.wait_s() for _ in range(40)]
    assert waits[:4] == [BACKOFF_FIRST_S, 2 * BACKOFF_FIRST_S, 4 * BACKOFF_FIRST_S, 8 * BACKOFF_FIRST_S]
    assert waits[-1] == BACKOFF_MAX_S
    assert sorted(waits) == waits


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=60))
def test_waits_are_spread_over_half_their_length(numbers: list[float]) -> None:
    chances = iter(numbers)
    backoff = Backoff(lambda: next(chances))
    for number in numbers:
        longest = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0**backoff.attempts)
        assert backoff.wait_s() == pytest.approx(longest * (0.5 + 0.5 * number))


def test_only_a_stable_connection_ends_a_row_of_attempts() -> None:
    backoff = Backoff(lambda: 1.0)
    for _ in range(10):
        backoff.wait_s()
        backoff.lived(STABLE_S - 0.1)
    assert backoff.wait_s() == BACKOFF_MAX_S
    backoff.lived(STABLE_S)
    assert backoff.wait_s() == BACKOFF_FIRST_S
