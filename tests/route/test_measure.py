"""What is measured of an account and model: latencies, speed, errors, calls under way."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.route.measure import (
    ALPHA,
    CLIP,
    ERRORS_CONFIRMED_S,
    ERRORS_GONE_S,
    ERRORS_HELD_S,
    NEVER,
    RECENT_MAX,
    STALL_COLD_S,
    STALL_MIN_S,
    Measured,
)


def streamed(made: Measured, at: float, first_s: float, total_s: float = 2.0, tokens: int = 101) -> None:
    call = made.begin(at)
    made.first_content(call, at + first_s)
    made.finished(call, at + total_s, tokens)


def test_nothing_is_known_at_first() -> None:
    made = Measured()
    assert (made.first_s, made.first_p95_s, made.tokens_per_s, made.error_rate(0.0), made.in_flight) == (0, 0, 0, 0, 0)
    assert made.latency_s(0.0, 100) == 0.0
    assert (made.oldest_at, made.stall_s) == (NEVER, STALL_COLD_S)


def test_the_first_sample_is_believed_and_the_next_weighs_a_tenth() -> None:
    made = Measured()
    streamed(made, 0.0, 0.5, 2.5)
    assert made.first_s == pytest.approx(0.5)
    assert made.tokens_per_s == pytest.approx(50.0)
    streamed(made, 0.1, 1.0, 3.0)
    assert made.first_s == pytest.approx(0.55)


@pytest.mark.parametrize(("pause", "weight"), [(0.5, 0.1), (1.0, 0.1), (10.0, 0.632), (60.0, 0.9975)])
def test_a_sample_after_a_pause_weighs_more(pause: float, weight: float) -> None:
    made = Measured()
    streamed(made, 0.0, 0.5)
    streamed(made, pause - 0.5, 1.0)  # its first token comes `pause` after the other's
    assert made.first_s == pytest.approx(0.5 + weight * 0.5, rel=0.01)


def test_one_straggler_counts_for_four_times_what_is_known() -> None:
    made = Measured()
    straggler = made.begin(-99.0)
    streamed(made, 0.0, 0.5)
    made.first_content(straggler, 1.0)
    assert made.first_s == pytest.approx(0.5 + ALPHA * (CLIP * 0.5 - 0.5))


def test_the_95th_percentile_is_found() -> None:
    made, draw = Measured(), random.Random(3)
    samples = [draw.lognormvariate(-1.0, 0.5) for _ in range(4000)]
    seen = []
    for index, first_s in enumerate(samples):
        streamed(made, index * 0.1, first_s)
        if index > 1000:
            seen.append(made.first_p95_s)
    true = sorted(samples)[int(0.95 * len(samples))]
    assert sum(seen) / len(seen) == pytest.approx(true, rel=0.15)


@pytest.mark.parametrize(
    ("idle", "left"),
    [(0.0, 1.0), (ERRORS_HELD_S, 1.0), ((ERRORS_HELD_S + ERRORS_GONE_S) / 2, 0.5), (ERRORS_GONE_S, 0.0), (1e6, 0.0)],
)
def test_errors_are_let_go_of_without_traffic(idle: float, left: float) -> None:
    made = Measured()
    made.failed(made.begin(0.0), 1.0)
    assert made.error_rate(1.0 + idle) == pytest.approx(ALPHA * left)


def test_time_without_a_failure_is_no_evidence() -> None:
    """A trial after the time for it: one failure brings back what was known, a success does not forget it."""
    made = Measured()
    for _ in range(20):
        made.failed(made.begin(0.0), 0.0)
    known = made.errors
    assert made.error_rate(ERRORS_GONE_S) == 0.0
    made.failed(made.begin(ERRORS_GONE_S), ERRORS_GONE_S)
    assert made.error_rate(ERRORS_GONE_S) == pytest.approx(known + ALPHA * (1 - known))
    later = 2 * ERRORS_GONE_S
    streamed(made, later, 0.1)
    assert made.error_rate(later) == 0.0, "a success was taken for a failure"
    made.failed(made.begin(later + 1), later + 1)
    assert made.error_rate(later + 1) > 0.8


def test_what_is_long_ago_is_not_brought_back() -> None:
    made = Measured()
    for _ in range(20):
        made.failed(made.begin(0.0), 0.0)
    made.failed(made.begin(0.0), ERRORS_CONFIRMED_S + 1)
    assert made.error_rate(ERRORS_CONFIRMED_S + 1) == pytest.approx(ALPHA)


def test_what_is_usual_is_the_slow_quarter_and_a_queue_does_not_change_it() -> None:
    made, now = Measured(), 0.0
    for step in range(400):
        now += 0.1
        streamed(made, now, 0.2 if step % 2 else 0.6)
    assert made.first_usual_s == pytest.approx(0.6)
    assert made.first_low_s == pytest.approx(0.2)
    for _ in range(400):
        now += 0.1
        streamed(made, now, 3.0)
    assert made.first_low_s == pytest.approx(3.0)
    assert made.first_usual_s < 1.5
    usual = made.first_usual_s
    for _ in range(4000):
        now += 0.1
        streamed(made, now, 3.0)
    assert made.first_usual_s == usual
    for _ in range(800):
        now += 0.1
        streamed(made, now, 0.3)
    assert made.first_usual_s == pytest.approx(0.3, rel=0.05)


def test_few_first_tokens_say_nothing_of_what_is_usual() -> None:
    made = Measured()
    for step in range(RECENT_MAX - 1):
        streamed(made, step * 0.1, 0.5)
    assert made.first_usual_s == 0.0


def test_streams_without_content_are_counted_and_the_youngest_known() -> None:
    made = Measured()
    assert (made.unanswered, made.newest_at) == (0, 0.0)
    first, second = made.begin(1.0), made.begin(2.0)
    assert (made.unanswered, made.newest_at) == (2, 2.0)
    assert made.first_content(first, 3.0) == 1.0
    made.failed(second, 4.0)
    assert (made.unanswered, made.newest_at) == (0, 0.0)


def test_errors_rise_by_a_tenth_and_fall_by_a_tenth() -> None:
    made = Measured()
    for _ in range(30):
        made.failed(made.begin(0.0), 1.0)
    assert made.error_rate(1.0) == pytest.approx(1 - 0.9**30)
    made.finished(made.begin(1.0), 1.0, 5)
    assert made.error_rate(1.0) == pytest.approx(0.9 * (1 - 0.9**30))
    for _ in range(100):
        made.finished(made.begin(1.0), 1.0, 5)
    assert made.errors == 0.0
    made.failed(made.begin(0.0), 2.0)
    made.forgive()
    assert made.error_rate(2.0) == 0.0


def test_a_fast_failing_provider_has_no_latency_to_attract_traffic_with() -> None:
    made = Measured()
    streamed(made, 0.0, 0.8)
    before = (made.first_s, made.first_p95_s, made.tokens_per_s, made.latency_s(3.0, 100))
    for at in range(50):
        made.failed(made.begin(3.0 + at * 0.01), 3.0 + at * 0.01 + 0.001)
    assert (made.first_s, made.first_p95_s, made.tokens_per_s, made.latency_s(3.6, 100)) == before


def test_the_age_of_the_oldest_unanswered_call_becomes_the_latency_once_it_alarms() -> None:
    made = Measured()
    streamed(made, 0.0, 0.5)
    normal = made.latency_s(2.0, 100)
    first, second = made.begin(10.0), made.begin(11.0)
    assert made.oldest_s(12.0) == 2.0
    assert made.latency_s(10.0 + made.stall_s, 100) == normal
    assert made.latency_s(20.0, 100) == pytest.approx(normal - 0.5 + 10.0)
    made.abandoned(first)
    assert made.oldest_s(12.0) == 1.0
    made.first_content(second, 12.0)
    assert (made.oldest_s(12.0), made.oldest_at) == (0.0, NEVER)


def test_a_silent_provider_of_which_nothing_else_is_known_is_slow() -> None:
    made = Measured()
    made.begin(0.0)
    assert made.latency_s(STALL_COLD_S, 100) == 0.0
    assert made.latency_s(STALL_COLD_S + 1, 100) == STALL_COLD_S + 1


def test_the_alarm_is_never_set_off_by_milliseconds() -> None:
    made = Measured()
    streamed(made, 0.0, 0.001)
    assert made.stall_s == STALL_MIN_S


def test_plain_calls_tell_total_time_and_tokens_only() -> None:
    made = Measured()
    call = made.begin(0.0, stream=False)
    assert call < 0
    made.finished(call, 4.0, 200)
    assert (made.first_s, made.tokens_per_s, made.total_s, made.total_tokens) == (0.0, 0.0, 4.0, 200.0)
    assert made.latency_s(5.0, 100) == pytest.approx(2.0)
    made.begin(10.0, stream=False)
    assert made.latency_s(12.0, 100) == pytest.approx(2.0)
    assert made.latency_s(200.0, 200) == pytest.approx(190.0)


def test_stale_counters_after_expiry() -> None:
    """Whatever is reported twice, late or of a call that is gone changes no count."""
    made = Measured()
    call = made.begin(0.0)
    for _ in range(3):
        made.first_content(call, 1.0)
    assert made.in_flight == 1
    for end in (made.abandoned, lambda call: made.finished(call, 2.0, 9), lambda call: made.failed(call, 2.0)):
        end(call)
        end(call)
    made.first_content(call, 9.0)
    assert made.in_flight == 0


@pytest.mark.parametrize(("waited", "failed"), [(0.4, False), (0.9, False), (3.0, True)])
def test_the_loser_of_a_hedge_counts_by_its_wait(waited: float, failed: bool) -> None:
    made = Measured()
    for at in range(40):
        streamed(made, at * 0.1, 0.5)
    p95, first = made.first_p95_s, made.first_s
    call = made.begin(10.0)
    assert made.outrun(call, 10.0 + waited) is failed
    assert made.first_p95_s == p95, "timers grow with the waits they cut"
    assert (made.first_s > first) is (not failed and waited > 0.5)
    assert (made.error_rate(10.0) > 0) is failed
    assert made.in_flight == 0


@given(st.lists(st.tuples(st.sampled_from("bpcfxao"), st.integers(0, 20), st.floats(0, 5)), max_size=150))
def test_counts_are_never_negative_and_never_leak(steps: list[tuple[str, int, float]]) -> None:
    made, now = Measured(), 0.0
    streams: dict[int, float] = {}
    answered: set[int] = set()
    plain: set[int] = set()
    known: list[int] = []
    for what, which, wait in steps:
        now += wait
        if what in "bp":
            call = made.begin(now, what == "b")
            known.append(call)
            if what == "b":
                streams[call] = now
            else:
                plain.add(call)
        elif known:
            call = known[which % len(known)]
            if what == "c":
                made.first_content(call, now)
                if call in streams:
                    del streams[call]
                    answered.add(call)
                continue
            if what == "f":
                made.finished(call, now, which)
            elif what == "x":
                made.failed(call, now)
            elif what == "a":
                made.abandoned(call)
            else:
                made.outrun(call, now)
            streams.pop(call, None)
            answered.discard(call)
            plain.discard(call)
        assert made.in_flight == len(streams) + len(answered) + len(plain)
        assert made.oldest_at == min(streams.values(), default=NEVER)
        assert 0.0 <= made.error_rate(now) <= 1.0
        assert made.first_s >= 0
        assert made.latency_s(now, 10) >= 0
