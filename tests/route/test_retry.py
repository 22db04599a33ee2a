"""Retries: never more than the budget, never for what the caller caused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.errors import (
    GatewayError,
    InternalError,
    ProtocolError,
    Refusal,
    RequestError,
    Retry,
    UpstreamError,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from dandolo.route.retry import (
    LOCAL_WAIT_MAX_S,
    TOKENS_MAX,
    TOKENS_OWN_MAX,
    TOKENS_PER_REQUEST,
    Budget,
    Purse,
    local_wait_s,
    may_take_over,
)


def test_a_full_bucket_is_spent_and_then_empty() -> None:
    budget = Budget()
    assert sum(budget.spend() for _ in range(100)) == int(TOKENS_MAX)
    assert not budget.spend()


def test_five_requests_earn_one_retry() -> None:
    budget = Budget()
    while budget.spend():
        pass
    for _ in range(6):
        budget.earn()
    assert budget.spend()
    assert not budget.spend()


@given(st.lists(st.booleans(), max_size=2000))
def test_retries_never_exceed_the_budget(requests: list[bool]) -> None:
    budget, earned, spent = Budget(), 0, 0
    for is_request in requests:
        if is_request:
            budget.earn()
            earned += 1
        else:
            spent += budget.spend()
        assert 0 <= budget.tokens <= TOKENS_MAX
        assert spent <= TOKENS_MAX + TOKENS_PER_REQUEST * earned + 1e-6


def test_an_outage_multiplies_traffic_by_a_fifth_at_most() -> None:
    budget, retries = Budget(), 0
    for _ in range(10_000):
        budget.earn()
        retries += sum(budget.spend() for _ in range(2))
    assert retries <= TOKENS_MAX + 10_000 * TOKENS_PER_REQUEST + 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UpstreamUnavailable("x"), True),
        (UpstreamInvalid("x"), True),
        (UpstreamTimeout("x"), True),
        (UpstreamError("x", status=429), True),
        (UpstreamUnavailable("x", retry=Retry.SAME), True),
        (UpstreamError("x", status=400, retry=Retry.NEVER), False),
        (RequestError("x"), False),
        (ProtocolError("x"), False),
        (Refusal("x"), False),
        (InternalError("x"), False),
    ],
)
def test_only_a_providers_failure_is_taken_elsewhere(error: GatewayError, expected: bool) -> None:
    assert may_take_over(error) is expected


@pytest.mark.parametrize(
    ("status", "retry_after_s", "remaining_s", "spread", "expected"),
    [
        (429, 1.0, 10.0, 0.0, 1.0),
        (429, 1.0, 10.0, 0.5, 1.05),
        (429, 0.0, 10.0, 0.5, 0.0),
        (429, LOCAL_WAIT_MAX_S, 100.0, 0.0, LOCAL_WAIT_MAX_S),
        (429, LOCAL_WAIT_MAX_S + 0.1, 100.0, 0.0, None),
        (429, None, 100.0, 0.0, None),
        (429, 3.0, 3.0, 0.0, None),
        (429, 3.0, -1.0, 0.0, None),
        (503, 1.0, 100.0, 0.0, None),
    ],
)
def test_a_429_is_waited_out_only_when_it_is_short_and_the_deadline_allows(
    status: int, retry_after_s: float | None, remaining_s: float, spread: float, expected: float | None
) -> None:
    error = UpstreamError("x", status=status, retry_after_s=retry_after_s)
    found = local_wait_s(error, remaining_s, spread)
    assert found == (None if expected is None else pytest.approx(expected))


def test_a_purse_holds_no_more_than_its_owner_and_the_others_left() -> None:
    common = Budget()
    greedy, modest = (Purse(common, Budget(TOKENS_OWN_MAX)) for _ in range(2))
    assert sum(greedy.spend() for _ in range(100)) == TOKENS_OWN_MAX
    assert common.tokens == TOKENS_MAX - TOKENS_OWN_MAX
    for _ in range(100):
        greedy.earn()
        greedy.spend()
    assert sum(modest.spend() for _ in range(100)) >= TOKENS_OWN_MAX - 1
    assert not modest.spend()
    assert modest.own.tokens >= 0.0
