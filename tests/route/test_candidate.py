"""A candidate: what an attempt reports reaches measurement, limit and breaker alike."""

from __future__ import annotations

import bisect
import random

import pytest

from dandolo.route.breaker import PROBE_EVERY_S, PROBE_EXTENDS_S, Breaker
from dandolo.route.candidate import Candidate
from dandolo.route.capacity import Slots
from dandolo.route.limit import SLOW_START_SHARE, Limit


def candidate() -> tuple[Candidate, Breaker]:
    breaker = Breaker(lambda: 0.5)
    return Candidate("p", Limit(Slots(100)), breaker, price_in=1e-6, price_out=2e-6), breaker


def fail(made: Candidate, times: int = 3, at: float = 0.0) -> None:
    for _ in range(times):
        call, epoch = made.begin(at)
        made.failed(call, epoch, at)


def test_long_streams_under_way_do_not_end_a_row_of_failures() -> None:
    made, breaker = candidate()
    streams = [made.begin(0.0) for _ in range(3)]
    for call, epoch in streams:
        made.first_content(call, epoch, 0.5)
    for call, epoch in streams:
        fail(made, 1, 10.0)
        made.succeeded(call, epoch, 10.1, 50)
    assert breaker.state == "open"


def test_a_few_errors_among_many_long_streams_open_nothing() -> None:
    """Two in a hundred, at a rate at which every stream ends after several later failures."""
    made, breaker = candidate()
    under_way: list[tuple[int, int, float]] = []
    for step in range(4000):
        now = step * 0.005
        if step % 50 == 0:
            fail(made, 1, now)
            continue
        call, epoch = made.begin(now)
        made.first_content(call, epoch, now)
        under_way.append((call, epoch, now + 4.0))
        while under_way[0][2] <= now:
            call, epoch, _ = under_way.pop(0)
            made.succeeded(call, epoch, now, 50)
    assert breaker.state == "closed"


def test_answers_from_before_an_outage_do_not_keep_it_asked() -> None:
    """A provider dies with calls under way: those still answer, whatever is sent from then on fails."""
    made, breaker = candidate()
    before = [made.begin(9.9) for _ in range(5)]
    for step, (call, epoch) in enumerate(before[:2]):
        fail(made, 1, 10.0 + step * 0.1)
        made.first_content(call, epoch, 10.05 + step * 0.1)
    assert breaker.state == "closed"
    fail(made, 1, 10.2)
    assert (breaker.state, breaker.reason) == ("open", "3 failures in a row")


def test_an_answer_while_others_sent_since_may_still_come_ends_the_row() -> None:
    made, breaker = candidate()
    old = made.begin(9.9)
    fail(made, 2, 10.0)
    made.begin(10.1)
    made.first_content(*old, 10.2)
    fail(made, 2, 10.3)
    assert breaker.state == "closed"


def test_first_tokens_that_come_late_with_many_waiting_lower_the_limit() -> None:
    made, _ = candidate()
    for step in range(40):
        call, epoch = made.begin(step * 0.1)
        made.first_content(call, epoch, step * 0.1 + 0.3)
    slots = made.limit.slots
    waiting = []
    for _ in range(60):
        assert slots.enter()
        waiting.append(made.begin(10.0))
    for step, (call, epoch) in enumerate(waiting[:40]):
        made.first_content(call, epoch, 12.0 + step * 0.05)
    assert made.limit.value < 50
    assert slots.limit == int(made.limit.value)
    assert made.limit.wait_s(14.0) == 0.0


def test_a_burst_of_short_waits_lowers_nothing() -> None:
    """A thousand calls at once take their time to be written and read, at a provider that has room for all."""
    made, _ = candidate()
    for step in range(80):
        call, epoch = made.begin(step * 0.1)
        made.first_content(call, epoch, step * 0.1 + 0.004)
    burst = [made.begin(10.0) for _ in range(1000)]
    for step, (call, epoch) in enumerate(burst):
        made.first_content(call, epoch, 10.05 + step * 0.0004)
    assert made.limit.value == made.limit.bound


def test_a_late_first_token_or_two_lower_nothing() -> None:
    made, _ = candidate()
    for step in range(40):
        call, epoch = made.begin(step * 0.1)
        made.first_content(call, epoch, step * 0.1 + 0.3)
    for at in range(20):
        call, epoch = made.begin(10.0 + 5 * at)
        made.first_content(call, epoch, 12.0 + 5 * at)
    assert made.measured.first_s > 1.9
    assert made.limit.value == 100


@pytest.mark.parametrize("spread", ["two kinds", "long tail", "even"])
def test_uneven_first_tokens_are_no_queue(spread: str) -> None:
    """Prompts differ in length, and so do the times they take: that alone must never shut out calls."""
    made, _ = candidate()
    draw = random.Random(spread)
    first_s = {
        "two kinds": lambda: 0.3 if draw.random() < 0.7 else 4.0,
        "long tail": lambda: 0.5 * draw.lognormvariate(0, 1.0),
        "even": lambda: 0.5 * draw.lognormvariate(0, 0.3),
    }[spread]
    under_way: list[tuple[float, int, int]] = []
    now = 0.0
    for _ in range(8000):
        now += draw.expovariate(30.0)
        while under_way and under_way[0][0] <= now:
            at, call, epoch = under_way.pop(0)
            made.first_content(call, epoch, at)
            made.succeeded(call, epoch, at, 10)
            made.limit.slots.leave(at)
        assert made.limit.slots.enter(), "a healthy provider was taken for an overloaded one"
        bisect.insort(under_way, (now + first_s(), *made.begin(now)))
    assert made.limit.value == made.limit.bound


def test_streams_that_are_all_cut_open_it_though_each_had_content() -> None:
    made, breaker = candidate()
    for at in range(3):
        assert breaker.state == "closed"
        call, epoch = made.begin(at * 30.0)
        made.first_content(call, epoch, at * 30.0 + 0.5)
        made.failed(call, epoch, at * 30.0 + 2.0)
    assert (breaker.state, breaker.reason) == ("open", "3 streams cut in a row")


def test_a_success_that_began_after_a_failure_ends_the_row() -> None:
    made, breaker = candidate()
    for step in range(3):
        fail(made, 1, float(step))
        call, epoch = made.begin(step + 0.1)
        made.first_content(call, epoch, step + 0.2)
        made.succeeded(call, epoch, step + 0.3, 50)
    assert breaker.state == "closed"


def test_closing_forgives_and_starts_slowly() -> None:
    made, breaker = candidate()
    fail(made)
    assert made.measured.error_rate(0.0) > 0.2
    for at in (1.1, 1.2):
        assert breaker.admits(at)
        call, epoch = made.begin(at)
        made.first_content(call, epoch, at)
        made.succeeded(call, epoch, at, 5)
    assert breaker.state == "closed"
    assert made.measured.error_rate(1.2) == 0.0
    assert made.limit.capacity(1.2) == pytest.approx(100 * SLOW_START_SHARE)


def test_a_429_is_about_capacity_and_not_about_health() -> None:
    made, breaker = candidate()
    for at in range(20):
        call, epoch = made.begin(float(at))
        made.limited(call, epoch, float(at), 5.0)
    assert (breaker.state, made.measured.error_rate(20.0)) == ("closed", 0.0)
    assert made.blocked(20.0) == "cool-down"
    assert made.limit.value < 100
    assert made.measured.in_flight == 0


def test_a_client_that_leaves_says_nothing() -> None:
    made, breaker = candidate()
    for _ in range(20):
        made.abandoned(*made.begin(0.0))
    assert (breaker.state, made.measured.error_rate(0.0), made.measured.in_flight) == ("closed", 0.0, 0)


def test_hedging_does_not_hide_a_silent_provider() -> None:
    made, breaker = candidate()
    for at in range(10):
        call, epoch = made.begin(float(at))
        made.first_content(call, epoch, at + 0.3)
        made.succeeded(call, epoch, at + 1.0, 50)
    for _ in range(3):
        call, epoch = made.begin(20.0)
        made.outrun(call, epoch, 22.0)
    assert breaker.state == "open"


def test_while_background_probes_fail_no_call_is_spent_on_a_trial() -> None:
    made, breaker = candidate()
    fail(made)
    now, probes = 0.0, 0
    while now < 60.0:
        now += 0.1
        assert not breaker.admits(now)
        if breaker.probe_due(now):
            probes += 1
            made.probed(now, False)
    assert 60 / PROBE_EVERY_S - 3 <= probes <= 60 / PROBE_EVERY_S + 1
    while not breaker.probe_due(now):
        now += 0.1
    made.probed(now, True)
    assert breaker.state == "open", "a probe closes nothing, it only lets the trial begin"
    assert breaker.admits(now)
    assert not breaker.admits(now)


def test_the_first_probe_comes_before_the_first_trial() -> None:
    made, breaker = candidate()
    fail(made)
    assert not breaker.probe_due(0.4)
    assert breaker.probe_due(0.6)
    assert not breaker.probe_due(0.7)
    made.probed(0.9, False)
    assert breaker.retry_after_s(0.9) == PROBE_EXTENDS_S


def test_a_closed_account_stays_closed_until_its_reset() -> None:
    made, breaker = candidate()
    breaker.shut(0.0, 30.0, "no credit")
    assert (breaker.reason, breaker.until(0.0), made.blocked(29.9)) == ("no credit", 30.0, "breaker")
    assert not breaker.probe_due(29.0)
    assert breaker.admits(30.0)
    assert breaker.until(99.0) is None


def test_the_reason_for_opening_is_told() -> None:
    made, breaker = candidate()
    for index in range(8):
        (breaker.succeeded if index % 2 == 0 else breaker.failed)(0.0)
    assert (breaker.state, breaker.reason) == ("open", "4 of 8 calls failed within 10 s")
    assert made.cost_usd(1000, 500) == 0.002
