"""The breaker: every change of state, one probe at a time, and no way to stay half open for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.route.breaker import (
    OPEN_FIRST_S,
    OPEN_MAX_S,
    PROBE_S,
    SPREAD,
    WINDOW_CALLS_MIN,
    WINDOW_S,
    Breaker,
)


def breaker(draw: float = 0.5) -> Breaker:
    return Breaker(lambda: draw)


def opened(at: float = 0.0) -> Breaker:
    made = breaker()
    for _ in range(3):
        made.failed(at)
    assert made.state == "open"
    return made


# Each script is a row of steps: "F" a failure, "S" a success, "A" an abandoned call, "?+"/"?-" whether a call is
# admitted, a number the seconds that pass. The draw of .5 makes open times exact: 1, 2, 4, 8, 15, 15 s.
TABLE = [
    ("new", "?+", "closed"),
    ("two failures", "F F ?+", "closed"),
    ("three failures in a row", "F F F ?-", "open"),
    ("a success between", "F F S F F ?+", "closed"),
    ("an abandoned call says nothing", "F F A F", "open"),
    ("slow failures in a row", "F 100 F 100 F", "open"),
    ("half of eight", "S F S F S F S F", "open"),
    ("half of seven", "F S F S F S F", "closed"),
    ("under half", "S S F S F S S F S F", "closed"),
    ("half of eight, over more than ten seconds", "F S F 11 S F S F S", "closed"),
    ("open until its time", "F F F .9 ?-", "open"),
    ("half open after its time", "F F F 1 ?+", "half-open"),
    ("one probe only", "F F F 1 ?+ ?-", "half-open"),
    ("one success is not enough", "F F F 1 ?+ S ?+", "half-open"),
    ("two successes close", "F F F 1 ?+ S ?+ S ?+ ?+", "closed"),
    ("a failing probe opens", "F F F 1 ?+ F ?-", "open"),
    ("for twice as long", "F F F 1 ?+ F 1.9 ?- .1 ?+", "half-open"),
    ("a failing second probe opens", "F F F 1 ?+ S ?+ F ?-", "open"),
    ("an abandoned probe makes room", "F F F 1 ?+ A ?+ ?-", "half-open"),
    ("a stuck probe blocks", "F F F 1 ?+ 29.9 ?-", "half-open"),
    ("but not for ever", "F F F 1 ?+ 30 ?+ ?-", "half-open"),
    ("closing forgets the trips", "F F F 1 ?+ F 2 ?+ S ?+ S F F F .9 ?- .1 ?+", "half-open"),
    ("closing forgets the failures", "F F F 1 ?+ S ?+ S F F ?+", "closed"),
    ("outcomes while open change nothing", "F F F S S F F .9 ?- .1 ?+", "half-open"),
    ("open time is capped", "F F F 1 ?+ F 2 ?+ F 4 ?+ F 8 ?+ F 14.9 ?- .1 ?+ F 14.9 ?- .1 ?+", "half-open"),
]


@pytest.mark.parametrize(("script", "state"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_states_follow_outcomes(script: str, state: str) -> None:
    made, now = breaker(), 1000.0
    for step in script.split():
        match step:
            case "F":
                made.failed(now)
            case "S":
                made.succeeded(now)
            case "A":
                made.abandoned()
            case "?+":
                assert made.admits(now), step
            case "?-":
                assert not made.admits(now), step
            case _:
                now += float(step) + 1e-9
    assert made.state == state


@pytest.mark.parametrize(("draw", "length"), [(0.0, 1 - SPREAD), (0.5, 1.0), (0.999999, 1 + SPREAD)])
def test_open_time_is_spread_by_a_fifth(draw: float, length: float) -> None:
    made = breaker(draw)
    for _ in range(3):
        made.failed(0.0)
    assert made.retry_after_s(0.0) == pytest.approx(OPEN_FIRST_S * length, rel=1e-4)


def test_the_wait_counts_down_and_is_never_negative() -> None:
    made = opened()
    assert [made.retry_after_s(t) for t in (0.0, 0.75, 1.0, 9.0)] == pytest.approx([1.0, 0.25, 0.0, 0.0])
    made.admits(1.0)
    assert made.retry_after_s(1.0) == PROBE_S
    made.abandoned()
    assert made.retry_after_s(1.0) == 0.0
    assert breaker().retry_after_s(0.0) == 0.0


def test_time_going_on_for_months_loses_no_precision() -> None:
    made = opened(at=1e7)
    assert not made.admits(1e7 + 0.99)
    assert made.admits(1e7 + 1.01)


def test_the_window_is_bounded_in_memory_and_time() -> None:
    made = breaker()
    for i in range(10_000):
        made.succeeded(i * 0.001)
    assert len(made._calls) <= 256
    made.failed(10.0 + WINDOW_S * 2)
    assert len(made._calls) == 1


def test_a_brownout_of_a_third_stays_closed_and_one_of_a_half_opens() -> None:
    third, half = breaker(), breaker()
    for i in range(60):
        (third.succeeded if i % 3 else third.failed)(i * 0.1)
    for i in range(WINDOW_CALLS_MIN):
        (half.succeeded if i % 2 == 0 else half.failed)(i * 0.1)
    assert (third.state, half.state) == ("closed", "open")


def test_a_call_from_before_the_breaker_opened_is_not_taken_for_the_probe() -> None:
    made = breaker()
    assert made.admits(0.0)
    stale = made.epoch
    for _ in range(3):
        made.failed(0.0, stale)
    assert made.state == "open"
    assert made.admits(1.1)
    probe = made.epoch
    made.abandoned(stale)
    assert not made.admits(1.2), "a stale call made room for a second probe"
    made.succeeded(1.2, stale)
    made.failed(1.2, stale)
    assert made.state == "half-open"
    made.succeeded(1.3, probe)
    assert made.admits(1.3)
    made.succeeded(1.4, probe)
    assert made.state == "half-open", "the first probe was counted twice"
    made.succeeded(1.4, made.epoch)
    assert made.state == "closed"


_steps = st.lists(
    st.tuples(st.sampled_from(["call", "succeed", "fail", "abandon"]), st.floats(0, 40), st.integers(0, 5)), max_size=80
)


@given(_steps, st.floats(0, 0.999999))
def test_no_two_probes_at_once_and_open_times_within_bounds(steps: list[tuple[str, float, int]], draw: float) -> None:
    made, now = breaker(draw), 0.0
    calls: list[tuple[int, str, float]] = []  # epoch and state at admission, and when
    for what, wait, which in steps:
        now += wait
        if what == "call":
            if made.admits(now):
                if made.state == "half-open":
                    others = [c for c in calls if c[1] == "half-open" and c[0] == made.epoch - 1]
                    assert all(now - since >= PROBE_S for _, _, since in others), "two probes at once"
                calls.append((made.epoch, made.state, now))
        elif calls:
            epoch, _, _ = calls.pop(which % len(calls))
            before = made.state
            if what == "succeed":
                made.succeeded(now, epoch)
            elif what == "fail":
                made.failed(now, epoch)
                if made.state == "open" and before != "open":
                    length = made.retry_after_s(now)
                    assert OPEN_FIRST_S * (1 - SPREAD) - 1e-6 <= length <= OPEN_MAX_S * (1 + SPREAD) + 1e-6
            else:
                made.abandoned(epoch)
        assert made.retry_after_s(now) >= 0
    # However it was left, it lets a call through once everything has had its time.
    now += OPEN_MAX_S * (1 + SPREAD) + PROBE_S
    assert made.admits(now)
