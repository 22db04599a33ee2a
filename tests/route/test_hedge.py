"""When a second provider is asked, when the first is given up, and when nobody is to blame but ourselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.route.candidate import Candidate
from dandolo.route.capacity import Slots
from dandolo.route.hedge import (
    DEADLINE_COLD_S,
    DEADLINE_MIN_S,
    HEDGE_MIN_S,
    LAG_REMEMBERED_S,
    Watch,
    first_token_deadline_s,
    hedge_after_s,
    may_hedge,
    reading_s,
)
from dandolo.route.limit import Limit
from dandolo.route.measure import Measured
from dandolo.route.retry import TOKENS_MAX, TOKENS_PER_REQUEST, Budget


def measured(p95: float) -> Measured:
    made = Measured()
    made.first_p95_s = p95
    return made


@pytest.mark.parametrize(("p95", "after"), [(0.0, None), (0.01, HEDGE_MIN_S), (1.0, 1.5), (8.0, 12.0)])
def test_a_hedge_comes_at_one_and_a_half_times_the_95th_percentile(p95: float, after: float | None) -> None:
    assert hedge_after_s(measured(p95)) == after


@pytest.mark.parametrize(
    ("p95", "configured", "deadline"),
    [(0.0, 600.0, 600.0), (0.1, 600.0, DEADLINE_MIN_S), (3.0, 600.0, 12.0), (3.0, 5.0, 5.0), (0.1, 0.5, 0.5)],
)
def test_the_first_token_deadline_is_learned(p95: float, configured: float, deadline: float) -> None:
    assert first_token_deadline_s(measured(p95), configured) == deadline


@pytest.mark.parametrize(("tokens", "seconds"), [(0.0, 0.0), (4096.0, 0.0), (14_096.0, 10.0)])
def test_a_long_prompt_is_granted_the_time_to_read_it(tokens: float, seconds: float) -> None:
    made = measured(1.0)
    assert reading_s(tokens) == seconds
    assert hedge_after_s(made, reading_s(tokens)) == 1.5 + seconds
    assert first_token_deadline_s(made, 600.0, reading_s(tokens)) == 4.0 + seconds
    assert first_token_deadline_s(made, 5.0, reading_s(tokens)) == min(5.0, 4.0 + seconds)
    assert may_hedge(made, 5.0, Budget(), reading_s(tokens)) is (seconds < 3.5)
    call = made.begin(0.0)
    assert made.outrun(call, 5.0, reading_s(tokens)) is (seconds < 3.0)


@pytest.mark.parametrize(
    ("peers", "configured", "deadline"),
    [((), 600.0, 600.0), ((0.0, 0.0), 600.0, 600.0), ((0.1, 0.0), 600.0, DEADLINE_COLD_S), ((0.1, 5.0), 600.0, 20.0),
     ((0.1,), 7.0, 7.0)],
)  # fmt: skip
def test_unknown_black_hole_is_given_up_by_what_is_known_of_its_peers(
    peers: tuple[float, ...], configured: float, deadline: float
) -> None:
    others = []
    for p95 in peers:
        others.append(Candidate("peer", Limit(Slots(8)), None))
        others[-1].measured.first_p95_s = p95
    assert first_token_deadline_s(measured(0.0), configured, 0.0, others) == deadline
    assert first_token_deadline_s(measured(3.0), 600.0, 0.0, others) == 12.0


def test_keep_alive_comments_satisfy_no_first_token_deadline() -> None:
    """Only `first_content` ends the wait; a stream of comments is as silent as no stream."""
    made = measured(0.5)
    made.begin(0.0)
    assert made.oldest_s(30.0) == 30.0
    assert made.latency_s(30.0, 10) == 30.0


def test_hedges_and_retries_draw_on_one_budget() -> None:
    made, budget = measured(1.0), Budget()
    assert not may_hedge(made, 1.4, budget)
    assert budget.tokens == TOKENS_MAX
    hedges = sum(may_hedge(made, 2.0, budget) for _ in range(15))
    retries = sum(budget.spend() for _ in range(15))
    assert (hedges, retries) == (15, 5)
    assert not may_hedge(made, 2.0, budget)


@given(st.lists(st.sampled_from(["request", "retry", "hedge"]), max_size=400))
def test_the_budget_is_never_exceeded(steps: list[str]) -> None:
    made, budget = measured(1.0), Budget()
    requests = extra = 0
    for step in steps:
        if step == "request":
            requests += 1
            budget.earn()
        else:
            extra += budget.spend() if step == "retry" else may_hedge(made, 9.0, budget)
        assert extra <= TOKENS_MAX + TOKENS_PER_REQUEST * requests + 1e-6
        assert 0.0 <= budget.tokens <= TOKENS_MAX


def test_retries_multiplying_with_the_sdks() -> None:
    """An SDK that tries thrice, each of which we would try thrice: the budget lets through a fifth more, not nine."""
    budget, attempts = Budget(), 0
    for _ in range(1000 * 3):
        budget.earn()
        attempts += 1
        for _ in range(2):
            attempts += budget.spend()
    assert attempts <= 3000 * 1.2 + TOKENS_MAX


def test_our_own_lateness_is_blamed_on_nobody() -> None:
    watch = Watch()
    assert watch.ticked(10.04, due=10.0) == 0.0
    assert not watch.excused(10.04)
    assert watch.ticked(10.9, due=10.1) == pytest.approx(0.8)
    assert watch.excused(10.9 + LAG_REMEMBERED_S)
    assert not watch.excused(11.0 + LAG_REMEMBERED_S)
