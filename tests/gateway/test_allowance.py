"""What a key may use: rates over any minute, tokens, concurrency, budgets; between workers, and when days turn."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dandolo.board import IN_FLIGHT, REQUESTS, RESERVED, TOKENS, Board, Calendar
from dandolo.errors import RequestError
from dandolo.gateway.allowance import LINES_S, REQUESTS_MANY, Allowance
from dandolo.policy import KeyTerms

UNIX = datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()


def workers(count: int = 1, **terms: Any) -> list[Allowance]:
    """The allowances of one key in as many workers, on one board."""
    fd = Board.create(2, count)
    Board.attach(fd, None).claim("another")
    place = Board.attach(fd, None).claim("k")
    boards = [Board.attach(fd, row) for row in range(count)]
    os.close(fd)
    return [Allowance(KeyTerms(name="k", **terms), board, place, Calendar(UNIX)) for board in boards]


class Held:
    """Something set aside, to be settled."""

    def __init__(self, one: Allowance, now: float, unix: float, least: int, tokens: int, micro: int) -> None:
        self.one, self.now, self.micro = one, now, micro
        self.tokens = one.reserve(now, unix, least, tokens, micro)

    def settle(self, now: float, unix: float, tokens: int, micro: int) -> None:
        self.one.settle(self.now, self.tokens, self.micro, now, unix, tokens, micro)


def refused(call: Callable[[], object]) -> RequestError:
    with pytest.raises(RequestError) as caught:
        call()
    return caught.value


def test_as_many_requests_as_a_minute_may_have() -> None:
    (one,) = workers(rpm=3)
    assert [one.enter(1000.5) for _ in range(5)] == [True, True, True, False, False]
    assert not one.enter(1060.9)
    assert one.enter(1061.0)


def test_the_wait_that_is_told_is_the_one_that_suffices() -> None:
    (one,) = workers(rpm=10)
    for at in (1000.2, 1000.3, 1007.0, *[1020.0] * 7):
        assert one.enter(at)
    error = refused(lambda: one.check(1030.4))
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert error.retry_after_s == pytest.approx(30.6)
    again = 1030.4 + error.retry_after_s
    assert not one.enter(again - 0.01)
    assert [one.enter(again + 0.01) for _ in range(3)] == [True, True, False]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.floats(0.05, 2.0), st.integers(0, 10**6))
def test_no_minute_ever_has_more_and_none_much_less(count: int, rpm: int, gap_s: float, seed: int) -> None:
    """Load split unevenly over workers, at any pace: never more than the limit in 60 s; what is let in while more is
    asked for is never less than 60/61 of it."""
    several, now, entered, chance = workers(count, rpm=rpm), 1000.0, list[float](), random.Random(seed)
    while now < 1300.0:
        if several[0 if chance.random() < 0.9 else chance.randrange(count)].enter(now):
            entered.append(now)
        now += chance.expovariate(1.0 / gap_s) + 1e-6
    for index, at in enumerate(entered):
        assert sum(1 for later in entered[index:] if later < at + 60.0) <= rpm
    if 30.0 / gap_s > rpm:
        assert sum(1 for at in entered if 1000.0 <= at < 1244.0) >= 4 * rpm - 1


def test_workers_count_as_one_however_the_load_is_split() -> None:
    several = workers(4, rpm=1000)
    entered, chance = 0, random.Random(7)
    for number in range(3000):
        entered += several[0 if chance.random() < 0.9 else chance.randrange(1, 4)].enter(1000.0 + number / 60)
    assert entered == 1000
    assert all(one.used(REQUESTS, 1049.99) == 1000 for one in several)


def test_a_ring_that_has_gone_round_counts_nothing_of_before() -> None:
    (one,) = workers(rpm=5)
    for round_ in range(20):
        now = 1000.0 + 64 * round_
        assert [one.enter(now) for _ in range(6)] == [True] * 5 + [False]
    assert one.enter(1000.0 + 2**27)


def test_the_clock_of_a_late_reader_does_not_lose_counts() -> None:
    one, other = workers(2, rpm=2)
    assert one.enter(1001.0)
    assert other.enter(1000.9)
    assert not other.enter(1001.0)
    # Whoever has summed that second up already sees what was late at the next one.
    assert not one.enter(1002.0)


def test_requests_under_way_are_counted_over_all_workers() -> None:
    one, other = workers(2, concurrent=3, rpm=1000)
    assert [one.enter(1.0), other.enter(1.0), one.enter(1.0), other.enter(1.0)] == [True, True, True, False]
    error = refused(lambda: other.check(1.0))
    assert (error.status, error.retry_after_s) == (429, 1.0)
    one.leave()
    assert other.enter(1.0)
    # What was refused was not counted as made.
    assert other.used(REQUESTS, 1.0) == 4


def test_what_is_answered_at_once_counts_by_its_rate_and_waits_for_nobodys_end() -> None:
    one, other = workers(2, concurrent=2, rpm=5)
    assert [one.pass_through(1.0), other.pass_through(1.0), one.enter(1.0)] == [True] * 3
    assert one.pass_through(1.0)
    assert other.enter(1.0)
    # Two are under way, of both workers, and that is as many as may be.
    assert not one.pass_through(1.0)
    assert not other.pass_through(1.0)
    one.leave()
    # The sixth within a minute.
    assert not one.pass_through(1.0)
    assert (one.used(REQUESTS, 1.0), other.used(REQUESTS, 1.0)) == (5, 5)
    assert one.pass_through(61.5 + 1.0)


def test_tokens_are_set_aside_and_corrected() -> None:
    one, other = workers(2, tpm=1000)
    first = Held(one, 1000.0, UNIX, 100, 600, 0)
    error = refused(lambda: other.reserve(1001.0, UNIX, 100, 500, 0))
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert error.retry_after_s == pytest.approx(60.0)
    first.settle(1002.0, UNIX, 150, 0)
    second = Held(other, 1003.0, UNIX, 100, 500, 0)
    assert other.used(TOKENS, 1003.0) == 650
    # More than was set aside counts from when it is known.
    second.settle(1030.0, UNIX, 800, 0)
    assert one.used(TOKENS, 1031.0) == 950
    assert one.used(TOKENS, 1064.0) == 300
    assert one.used(TOKENS, 1091.0) == 0


def test_what_was_set_aside_long_ago_is_not_given_back_to_another_minute() -> None:
    (one,) = workers(tpm=1000)
    long = Held(one, 1000.0, UNIX, 100, 900, 0)
    recent = Held(one, 1064.0, UNIX, 100, 700, 0)
    long.settle(1064.5, UNIX, 10, 0)
    assert one.used(TOKENS, 1065.0) == 700
    recent.settle(1066.0, UNIX, 700, 0)
    assert one.used(TOKENS, 1066.0) == 700


def test_a_call_that_asks_for_the_longest_answer_is_let_in_by_an_empty_minute() -> None:
    (one,) = workers(tpm=1000)
    held = Held(one, 1000.0, UNIX, 100, 100_000, 0)
    held.settle(1001.0, UNIX, 120, 0)
    assert one.used(TOKENS, 1001.0) == 120
    assert refused(lambda: one.reserve(1002.0, UNIX, 100, 100_000, 0)).status == 429
    assert refused(lambda: one.reserve(1002.0, UNIX, 1001, 1001, 0)).status == 400


def test_a_budget_is_never_overspent_by_what_was_known_to_be_its_worst() -> None:
    several = workers(4, budget_day=10_000)
    held, errors = [], []
    for number in range(200):
        one = several[number % 4]
        try:
            held.append(Held(one, 1.0, UNIX, 1, 1, 1000))
        except RequestError as error:
            errors.append((error.status, error.code, error.retry_after_s))
    assert (len(held), set(errors)) == (10, {(402, "budget_exceeded", None)})
    for reserved in held:
        reserved.settle(2.0, UNIX, 1, 900)
    several[0].reserve(3.0, UNIX, 1, 1, 1000)
    message = refused(lambda: several[1].reserve(3.0, UNIX, 1, 1, 1)).message
    assert "0.01 USD a day" in message
    assert "2026-11-26T00:00:00Z" in message


def test_the_tighter_of_day_and_month_decides_and_each_begins_anew() -> None:
    (one,) = workers(budget_day=100, budget_month=150)
    night = datetime(2026, 11, 29, 23, 59, 59, tzinfo=UTC).timestamp()
    Held(one, 1.0, night, 1, 1, 100).settle(1.0, night, 1, 100)
    assert "a day" in refused(lambda: one.reserve(2.0, night, 1, 1, 1)).message
    held = Held(one, 3.0, night + 2, 1, 1, 50)
    held.settle(3.0, night + 2, 1, 50)
    assert "a month" in refused(lambda: one.reserve(4.0, night + 2, 1, 1, 1)).message
    one.reserve(5.0, night + 86_402, 1, 1, 100)


def test_a_call_across_midnight_is_spent_on_the_day_of_its_end() -> None:
    (one,) = workers(budget_day=100)
    midnight = datetime(2026, 11, 26, tzinfo=UTC).timestamp()
    held = Held(one, 1.0, midnight - 1, 1, 1, 60)
    # Under way it counts against whichever day it is.
    assert refused(lambda: one.reserve(2.0, midnight + 1, 1, 1, 60)).status == 402
    held.settle(3.0, midnight + 2, 1, 60)
    assert refused(lambda: one.reserve(4.0, midnight + 3, 1, 1, 60)).status == 402
    one.reserve(4.0, midnight + 86_400, 1, 1, 60)


def test_what_is_refused_for_money_gives_its_tokens_back() -> None:
    (one,) = workers(tpm=1000, budget_day=10)
    assert refused(lambda: one.reserve(1.0, UNIX, 1, 900, 11)).status == 402
    assert one.used(TOKENS, 1.0) == 0
    one.reserve(1.0, UNIX, 1, 900, 10)


def test_an_absurd_count_of_a_provider_fits() -> None:
    (one,) = workers(tpm=1000, budget_day=10**15)
    held = Held(one, 1.0, UNIX, 1, 1, 1)
    held.settle(1.0, UNIX, 2**48, 2**60)
    assert one.used(TOKENS, 1.0) >= 2**36 - 1
    assert refused(lambda: one.reserve(1.0, UNIX, 1, 1, 1)).status in (402, 429)
    assert one.used(TOKENS, 63.0) == 0


def test_headers_tell_limit_rest_and_when_it_is_whole_again() -> None:
    (one,) = workers(rpm=3, tpm=1000)
    assert one.enter(1000.25)
    one.reserve(1000.25, UNIX, 10, 400, 0)
    assert one.lines(1000.25).decode().splitlines() == [
        "x-ratelimit-limit-requests: 3",
        "x-ratelimit-remaining-requests: 2",
        "x-ratelimit-reset-requests: 61s",
        "x-ratelimit-limit-tokens: 1000",
        "x-ratelimit-remaining-tokens: 600",
        "x-ratelimit-reset-tokens: 61s",
    ]


def test_lines_of_plenty_may_be_a_moment_old_and_those_of_little_never() -> None:
    (one,) = workers(rpm=REQUESTS_MANY + 3)
    left = []
    for number in range(5):
        assert one.enter(1000.0 + number / 1000)
        left.append(int(one.lines(1000.0 + number / 1000).split(b"requests: ")[2].split(b"\r")[0]) - REQUESTS_MANY)
    assert left == [2, 2, 2, 2, 2]
    assert one.enter(1000.0 + LINES_S)
    left = []
    for _ in range(3):
        left.append(int(one.lines(1000.0 + LINES_S).split(b"requests: ")[2].split(b"\r")[0]) - REQUESTS_MANY)
        assert one.enter(1000.0 + LINES_S)
    assert left == [-3, -4, -5]


def test_what_runs_under_terms_before_counts_for_those_after() -> None:
    board = Board.alone(4)
    place = board.claim("k")
    old = Allowance(KeyTerms(name="k", concurrent=2, tpm=1000, budget_day=100), board, place, Calendar(UNIX))
    assert old.enter(1000.0)
    held = Held(old, 1000.0, UNIX, 1, 600, 60)
    new = Allowance(KeyTerms(name="k", concurrent=1, rpm=5, tpm=1000, budget_day=100), board, place, Calendar(UNIX))
    assert not new.enter(1000.5)
    assert refused(lambda: new.reserve(1000.5, UNIX, 1, 500, 1)).status == 429
    assert refused(lambda: new.reserve(1000.5, UNIX, 1, 300, 50)).status == 402
    old.leave()
    held.settle(1001.5, UNIX, 100, 10)
    assert new.enter(1001.6)
    assert new.used(TOKENS, 1001.6) == 100
    Held(new, 1001.7, UNIX, 1, 900, 90).settle(1002.0, UNIX, 1, 90)
    assert refused(lambda: new.reserve(1003.0, UNIX, 1, 1, 1)).status == 402
    new.leave()
    assert board.total(place, IN_FLIGHT) == board.total(place, RESERVED) == 0


def test_what_a_dead_worker_had_spent_stays_spent() -> None:
    fd = Board.create(2, 2)
    control = Board.attach(fd, None)
    place = control.claim("k")
    boards = [Board.attach(fd, row) for row in range(2)]
    os.close(fd)
    one, other = (Allowance(KeyTerms(name="k", budget_day=100), board, place, Calendar(UNIX)) for board in boards)
    Held(one, 1.0, UNIX, 1, 1, 10).settle(1.0, UNIX, 1, 10)
    Held(other, 1.0, UNIX, 1, 1, 60).settle(1.0, UNIX, 1, 60)
    assert refused(lambda: one.reserve(2.0, UNIX, 1, 1, 31)).status == 402
    control.fold(1, Calendar(UNIX))
    assert refused(lambda: one.reserve(3.0, UNIX, 1, 1, 31)).status == 402
    control.restore(place, Calendar(UNIX), 80, 80)
    assert refused(lambda: one.reserve(4.0, UNIX, 1, 1, 11)).status == 402
    one.reserve(5.0, UNIX, 1, 1, 10)


def test_everything_is_given_back() -> None:
    several = workers(3, rpm=10_000, tpm=10**9, concurrent=50, budget_day=10**9, budget_month=10**9)
    chance = random.Random(3)
    running: list[Held] = []
    now = 1000.0
    for _ in range(3000):
        now += 0.01
        if running and chance.random() < 0.5:
            held = running.pop(chance.randrange(len(running)))
            held.settle(now, UNIX, chance.randrange(2000), chance.randrange(500))
            held.one.leave()
        elif (one := chance.choice(several)).enter(now):
            running.append(Held(one, now, UNIX, 10, 1000, 250))
    for held in running:
        held.settle(now, UNIX, 1, 1)
        held.one.leave()
    tally = several[0]._tally
    board, place = tally._board, tally._place
    assert board.total(place, IN_FLIGHT) == board.total(place, RESERVED) == 0
