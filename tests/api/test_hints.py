"""Waits and limits in every notation, and nothing but None out of garbage."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.api import hints
from dandolo.api.hints import RateLimits, limits, reset_s, retry_after_s, wait_in_text_s, wait_s
from dandolo.api.profiles import PROFILES

# 1994-11-06T08:49:37Z, RFC 9110's example, ten seconds earlier.
NOW_1994 = 784111777.0 - 10
NOW = 1_760_000_000.0
GENERIC = PROFILES["generic"]

RETRY_AFTER = [
    ("absent", {}, None),
    ("seconds", {b"retry-after": b"7"}, 7.0),
    ("zero", {b"retry-after": b"0"}, 0.0),
    ("float", {b"retry-after": b"1.5"}, 1.5),
    ("white space", {b"retry-after": b" 3 "}, 3.0),
    ("milliseconds", {b"retry-after-ms": b"1250"}, 1.25),
    ("milliseconds float", {b"retry-after-ms": b"12.5"}, 0.0125),
    ("milliseconds win", {b"retry-after-ms": b"1250", b"retry-after": b"9"}, 1.25),
    ("bad milliseconds fall back", {b"retry-after-ms": b"soon", b"retry-after": b"9"}, 9.0),
    ("negative milliseconds fall back", {b"retry-after-ms": b"-1", b"retry-after": b"9"}, 9.0),
    ("clamped", {b"retry-after": b"7200"}, 3600.0),
    ("clamped milliseconds", {b"retry-after-ms": b"7200000"}, 3600.0),
    ("negative", {b"retry-after": b"-1"}, None),
    ("unix time", {b"retry-after": b"1760000005"}, None),
    ("huge", {b"retry-after": b"9" * 400}, None),
    ("exponent", {b"retry-after": b"1e3"}, None),
    ("nan", {b"retry-after": b"nan"}, None),
    ("inf", {b"retry-after": b"inf"}, None),
    ("underscore", {b"retry-after": b"1_0"}, None),
    ("plus", {b"retry-after": b"+5"}, None),
    ("arabic digits", {b"retry-after": "٣".encode()}, None),
    ("words", {b"retry-after": b"later"}, None),
    ("empty", {b"retry-after": b""}, None),
    ("list", {b"retry-after": b"1, 2"}, None),
    ("not utf-8", {b"retry-after": b"\xff\xfe"}, None),
]


@pytest.mark.parametrize(("headers", "expected"), [c[1:] for c in RETRY_AFTER], ids=[c[0] for c in RETRY_AFTER])
def test_retry_after(headers: dict[bytes, bytes], expected: float | None) -> None:
    assert retry_after_s(headers, NOW) == expected


DATES = [
    ("IMF-fixdate", b"Sun, 06 Nov 1994 08:49:37 GMT", 10.0),
    ("RFC 850", b"Sunday, 06-Nov-94 08:49:37 GMT", 10.0),
    ("asctime", b"Sun Nov  6 08:49:37 1994", 10.0),
    ("lower case", b"sun, 06 nov 1994 08:49:37 gmt", 10.0),
    ("past", b"Sun, 06 Nov 1994 08:49:00 GMT", None),
    ("far", b"Mon, 06 Nov 1995 08:49:37 GMT", None),
    ("an hour and more", b"Sun, 06 Nov 1994 12:49:37 GMT", 3600.0),
    ("leap second", b"Sun, 06 Nov 1994 08:49:60 GMT", 32.0),
    ("no such day", b"Sun, 31 Nov 1994 08:49:37 GMT", None),
    ("no such hour", b"Sun, 06 Nov 1994 25:49:37 GMT", None),
    ("no such month", b"Sun, 06 Nox 1994 08:49:37 GMT", None),
    ("month across two names", b"Sun, 06 anf 1994 08:49:37 GMT", None),
    ("other zone", b"Sun, 06 Nov 1994 08:49:37 CET", None),
    ("year 0", b"Sun, 06 Nov 0000 08:49:37 GMT", None),
]


@pytest.mark.parametrize(("value", "expected"), [c[1:] for c in DATES], ids=[c[0] for c in DATES])
def test_retry_after_as_http_date(value: bytes, expected: float | None) -> None:
    assert retry_after_s({b"retry-after": value}, NOW_1994) == expected


def test_two_digit_year_is_of_the_nearest_century() -> None:
    assert retry_after_s({b"retry-after": b"Friday, 01-Jan-00 00:00:05 GMT"}, 4102444800.0) == 5.0
    assert retry_after_s({b"retry-after": b"Friday, 01-Jan-00 00:00:05 GMT"}, 4102444799.0) == 6.0


RESETS = [
    ("openai seconds", b"1s", 1.0),
    ("openai minutes", b"6m0s", 360.0),
    ("openai milliseconds", b"12ms", 0.012),
    ("groq", b"2m59.56s", 179.56),
    ("groq short", b"7.66s", 7.66),
    ("hours", b"1h2m3s", 3723.0),
    ("micro sign", "120µs".encode(), 0.00012),
    ("greek mu", "120μs".encode(), 0.00012),
    ("nanoseconds", b"5ns", 5e-9),
    ("days", b"2d", 86_400.0),
    ("text", "1s", 1.0),
    ("bare seconds", b"42", 42.0),
    ("bare float", b"0.25", 0.25),
    ("unix seconds", b"1760000030", 30.0),
    ("unix seconds, float", b"1760000030.5", 30.5),
    ("unix milliseconds", b"1760000030000", 30.0),
    ("unix past", b"1759999000", 0.0),
    ("rfc 3339", b"2025-10-09T08:53:50Z", 30.0),
    ("rfc 3339 fraction", b"2025-10-09T08:53:50.25Z", 30.25),
    ("rfc 3339 offset", b"2025-10-09T10:53:50+02:00", 30.0),
    ("rfc 3339 small letters", b"2025-10-09t08:53:50z", 30.0),
    ("rfc 3339 past", b"2025-10-09T08:00:00Z", 0.0),
    ("rfc 3339 no zone", b"2025-10-09T08:53:50", None),
    ("rfc 3339 no such day", b"2025-02-30T08:53:50Z", None),
    ("a year", b"8760h", 86_400.0),
    ("negative", b"-5", None),
    ("negative duration", b"-5s", None),
    ("unit only", b"s", None),
    ("garbage", b"soon", None),
    ("trailing", b"1s!", None),
    ("empty", b"", None),
    ("long", b"1s" * 100, None),
]


@pytest.mark.parametrize(("value", "expected"), [c[1:] for c in RESETS], ids=[c[0] for c in RESETS])
def test_reset(value: bytes | str, expected: float | None) -> None:
    assert reset_s(value, NOW) == (None if expected is None else pytest.approx(expected))


LIMITS = [
    (
        "openai",
        "openai",
        {
            b"x-ratelimit-limit-requests": b"60",
            b"x-ratelimit-remaining-requests": b"59",
            b"x-ratelimit-reset-requests": b"1s",
            b"x-ratelimit-limit-tokens": b"150000",
            b"x-ratelimit-remaining-tokens": b"149984",
            b"x-ratelimit-reset-tokens": b"6m0s",
        },
        RateLimits(60, 59, 1.0, 150000, 149984, 360.0),
    ),
    (
        "venice: a Unix time for requests, a duration for tokens",
        "venice",
        {
            b"x-ratelimit-limit-requests": b"50",
            b"x-ratelimit-remaining-requests": b"0",
            b"x-ratelimit-reset-requests": b"1760000012",
            b"x-ratelimit-limit-tokens": b"750000",
            b"x-ratelimit-remaining-tokens": b"1000",
            b"x-ratelimit-reset-tokens": b"33",
        },
        RateLimits(50, 0, 12.0, 750000, 1000, 33.0),
    ),
    (
        "anthropic: the tightest token limit",
        "anthropic",
        {
            b"anthropic-ratelimit-requests-limit": b"50",
            b"anthropic-ratelimit-requests-remaining": b"49",
            b"anthropic-ratelimit-requests-reset": b"2025-10-09T08:53:21Z",
            b"anthropic-ratelimit-input-tokens-limit": b"40000",
            b"anthropic-ratelimit-input-tokens-remaining": b"39000",
            b"anthropic-ratelimit-input-tokens-reset": b"2025-10-09T08:53:22Z",
            b"anthropic-ratelimit-output-tokens-limit": b"8000",
            b"anthropic-ratelimit-output-tokens-remaining": b"0",
            b"anthropic-ratelimit-output-tokens-reset": b"2025-10-09T08:53:50Z",
        },
        RateLimits(50, 49, 1.0, 8000, 0, 30.0),
    ),
    (
        "openrouter: milliseconds",
        "openrouter",
        {
            b"x-ratelimit-limit": b"20",
            b"x-ratelimit-remaining": b"0",
            b"x-ratelimit-reset": b"1760000060000",
        },
        RateLimits(20, 0, 60.0),
    ),
    (
        "azure: -1 and 0 are unknown",
        "azure",
        {
            b"x-ratelimit-limit-requests": b"-1",
            b"x-ratelimit-remaining-requests": b"0",
            b"x-ratelimit-limit-tokens": b"0",
            b"x-ratelimit-remaining-tokens": b"-1",
        },
        RateLimits(),
    ),
    (
        "azure: a remaining 0 without a limit is unknown",
        "azure",
        {b"x-ratelimit-remaining-requests": b"0", b"x-ratelimit-remaining-tokens": b"900"},
        RateLimits(tokens_remaining=900),
    ),
    ("nothing", "openai", {}, RateLimits()),
    ("garbage", "openai", {b"x-ratelimit-limit-requests": b"many"}, RateLimits()),
    ("fraction", "openai", {b"x-ratelimit-remaining-tokens": b"12.0"}, RateLimits(tokens_remaining=12)),
]


@pytest.mark.parametrize(("profile", "headers", "expected"), [c[1:] for c in LIMITS], ids=[c[0] for c in LIMITS])
def test_limits(profile: str, headers: dict[bytes, bytes], expected: RateLimits) -> None:
    assert limits(headers, PROFILES[profile], NOW) == expected


FULL = {
    b"x-ratelimit-limit-requests": b"60",
    b"x-ratelimit-remaining-requests": b"12",
    b"x-ratelimit-reset-requests": b"48s",
    b"x-ratelimit-limit-tokens": b"1000",
    b"x-ratelimit-remaining-tokens": b"0",
    b"x-ratelimit-reset-tokens": b"6s",
}


def test_reset_is_no_wait_unless_a_429_has_nothing_left() -> None:
    assert wait_s(429, FULL, GENERIC, NOW) == 6.0
    assert wait_s(503, FULL, GENERIC, NOW) is None
    assert wait_s(200, FULL, GENERIC, NOW) is None
    assert wait_s(429, {**FULL, b"x-ratelimit-remaining-tokens": b"5"}, GENERIC, NOW) is None


def test_retry_after_outranks_a_reset() -> None:
    assert wait_s(429, {**FULL, b"retry-after": b"2"}, GENERIC, NOW) == 2.0
    assert wait_s(503, {b"retry-after": b"2"}, GENERIC, NOW) == 2.0


def test_the_longer_of_two_spent_limits_counts_and_is_clamped() -> None:
    spent = {**FULL, b"x-ratelimit-remaining-requests": b"0"}
    assert wait_s(429, spent, GENERIC, NOW) == 48.0
    assert wait_s(429, {**spent, b"x-ratelimit-reset-requests": b"23h"}, GENERIC, NOW) == hints.WAIT_S_MAX


TEXTS = [
    ("openai", "Rate limit reached. Please try again in 20s. Visit …", 20.0),
    ("openai ms", "Please try again in 120ms.", 0.12),
    ("groq", "Please try again in 2m59.56s.", 179.56),
    ("groq seconds", "Please try again in 7.66s. Need more tokens?", 7.66),
    ("azure", "Please retry after 26 seconds.", 26.0),
    ("venice", "Please wait 30s and try again.", 30.0),
    ("google", "Please retry in 34.07s.", 34.07),
    ("minutes", "try again in 2 minutes", 120.0),
    ("none", "Please try again later.", None),
    ("no unit", "try again in 5", None),
]


@pytest.mark.parametrize(("text", "expected"), [c[1:] for c in TEXTS], ids=[c[0] for c in TEXTS])
def test_wait_in_text(text: str, expected: float | None) -> None:
    assert wait_in_text_s(text) == (None if expected is None else pytest.approx(expected))


@given(st.binary(max_size=80) | st.from_regex(rb"[0-9.hmsunTZ:+ -]{0,70}", fullmatch=True))
def test_any_value_is_none_or_within_bounds(value: bytes) -> None:
    for headers in ({b"retry-after": value}, {b"retry-after-ms": value}):
        wait = retry_after_s(headers, NOW)
        assert wait is None or 0 <= wait <= hints.WAIT_S_MAX
    reset = reset_s(value, NOW)
    assert reset is None or (math.isfinite(reset) and 0 <= reset <= hints.RESET_S_MAX)


@given(st.text(max_size=3000))
def test_any_text_names_a_bounded_wait(text: str) -> None:
    wait = wait_in_text_s("try again in " + text)
    assert wait is None or 0 <= wait <= hints.WAIT_S_MAX


LIMIT_NAMES = sorted({n for p in PROFILES.values() for h in p.limits for n in (h.limit, h.remaining, h.reset)})


@given(
    st.sampled_from(sorted(PROFILES)),
    st.dictionaries(
        st.sampled_from(LIMIT_NAMES),
        st.binary(max_size=20) | st.from_regex(rb"-?[0-9]{1,16}s?", fullmatch=True),
    ),
)
def test_any_limits_are_read_without_raising(profile: str, headers: dict[bytes, bytes]) -> None:
    found = limits(headers, PROFILES[profile], NOW)
    assert found.requests_limit is None or found.requests_limit > 0
    assert found.tokens_remaining is None or found.tokens_remaining >= 0
    wait = wait_s(429, headers, PROFILES[profile], NOW)
    assert wait is None or 0 <= wait <= hints.WAIT_S_MAX
