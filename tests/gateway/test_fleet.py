"""Accounts as they live: their candidates, what headers tell of their limits, what a new configuration takes over."""

from __future__ import annotations

import os

import pytest

from dandolo.config import parse
from dandolo.gateway.fleet import CANDIDATES_MAX, HINTS_EVERY_S, HINTS_HOLD_S, Runtime
from dandolo.gateway.plane import Plane

NOW = 1000.0
CONFIG = """
[[providers]]
name = "one"
base_url = "http://127.0.0.1:9/v1"
key = {{ env = "ONE" }}
concurrency_max = {slots}
[[providers.models]]
id = "listed"
input_usd_per_mtok = {price}
output_usd_per_mtok = 2.0
context_tokens = 8192
[routing]
breaker = {breaker}
"""


def plane(slots: int = 8, price: float = 1.0, breaker: str = "true", key: str = "k" * 20) -> Plane:
    return Plane(parse(CONFIG.format(slots=slots, price=price, breaker=breaker), "test", {**os.environ, "ONE": key}))


def runtime(made: Plane | None = None) -> Runtime:
    return next(iter((made or plane()).fleet))


def test_candidate_has_what_the_configuration_says() -> None:
    one = runtime().candidate("listed")
    assert (one.price_in, one.price_out, one.context_tokens) == (1e-6, 2e-6, 8192)
    unknown = runtime().candidate("unlisted")
    assert (unknown.price_in, unknown.context_tokens, unknown.capabilities) == (None, None, None)


def test_names_at_will_wash_nothing_away_that_is_known() -> None:
    account = runtime()
    good, ill = account.candidate("good"), account.candidate("ill")
    good.succeeded(*good.begin(NOW, stream=False), NOW + 1.0, 10)
    assert ill.breaker is not None
    for _ in range(3):
        ill.failed(*ill.begin(NOW), NOW)
    for number in range(3 * CANDIDATES_MAX):
        account.candidate(f"made up {number}")
    assert len(account.candidates) <= CANDIDATES_MAX
    assert account.candidate("good") is good
    assert account.candidate("ill") is ill


def test_candidates_that_all_answered_are_bounded_too() -> None:
    account = runtime()
    for number in range(2 * CANDIDATES_MAX):
        one = account.candidate(f"model {number}")
        one.succeeded(*one.begin(NOW, stream=False), NOW + 1.0, 10)
    assert len(account.candidates) <= CANDIDATES_MAX
    assert f"model {2 * CANDIDATES_MAX - 1}" in account.candidates


HEAD = {
    b"x-ratelimit-limit-requests": b"100",
    b"x-ratelimit-remaining-requests": b"80",
    b"x-ratelimit-reset-requests": b"3600s",
    b"x-ratelimit-limit-tokens": b"1000",
    b"x-ratelimit-remaining-tokens": b"100",
    b"x-ratelimit-reset-tokens": b"1s",
}


def test_headers_tell_the_scarcest_limit_for_a_short_time() -> None:
    account = runtime()
    account.read_hints(HEAD, NOW)
    assert account.limit.headroom == pytest.approx(0.1)
    assert account.limit.told_until == pytest.approx(NOW + 1.0)
    only_requests = {name: value for name, value in HEAD.items() if b"requests" in name}
    account.read_hints(only_requests, NOW + HINTS_EVERY_S / 2)
    assert account.limit.headroom == pytest.approx(0.1)
    account.read_hints(only_requests, NOW + HINTS_EVERY_S)
    assert account.limit.headroom == pytest.approx(0.8)
    assert account.limit.told_until == pytest.approx(NOW + HINTS_EVERY_S + HINTS_HOLD_S)


def test_headers_say_nothing_where_breakers_are_off() -> None:
    account = runtime(plane(breaker="false"))
    account.read_hints(HEAD, NOW)
    assert account.limit.told_until == 0.0
    assert account.candidate("listed").breaker is None


def test_new_configuration_goes_on_with_what_was_measured() -> None:
    before = plane()
    old = runtime(before).candidate("listed")
    old.failed(*old.begin(NOW), NOW)
    assert runtime(before).slots.enter()
    after = plane(price=3.0)
    after.inherit(before)
    new = runtime(after).candidate("listed")
    assert new is old
    assert new.price_in == pytest.approx(3e-6)
    assert runtime(after).slots.in_use == 1
    assert runtime(after).limit is new.limit


SHARED = """
[[providers]]
name = "one"
base_url = "http://127.0.0.1:9/v1"
[[providers.accounts]]
owner = "{first}"
key = {{ env = "ONE" }}
[[providers.accounts]]
owner = "bob"
key = {{ env = "ONE" }}
"""


def test_accounts_with_one_key_go_on_each_as_itself() -> None:
    def made(first: str) -> Plane:
        return Plane(parse(SHARED.format(first=first), "test", {**os.environ, "ONE": "k" * 20}))

    before, after = made("alice"), made("carol")
    old = list(before.fleet)
    after.inherit(before)
    assert [one.slots for one in after.fleet] == [one.slots for one in old]
    assert old[0].slots is not old[1].slots
    assert [one.candidate("m").account for one in after.fleet] == ["one/carol", "one/bob"]


@pytest.mark.parametrize("changed", [{"slots": 9}, {"breaker": "false"}, {"key": "z" * 20}])
def test_another_account_begins_anew(changed: dict[str, object]) -> None:
    before = plane()
    old = runtime(before).candidate("listed")
    after = plane(**changed)  # type: ignore[arg-type]
    after.inherit(before)
    assert runtime(after).candidate("listed") is not old
