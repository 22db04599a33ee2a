"""How long a provider asks us to wait, and how much it says is left, in every form providers use.

Pure functions of headers and the wall clock. Whatever cannot be read is None, never a guess: a wrong wait
either hammers a provider or idles an account. All waits are in seconds from `now_unix` (a Unix time).

OpenAI's `x-ratelimit-reset-*` is the time until the window is *full* again, not the time to wait (OpenAI,
*Rate limits*); so a reset becomes a wait only on a 429 whose matching remaining is 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from dandolo.api.profiles.profile import LimitHeaders, Profile

WAIT_S_MAX = 3600.0
"""Nobody is kept waiting longer by a header; after an hour it is worth asking again."""
ABSURD_S = 30 * 86_400.0
"""A Retry-After beyond this is a mistake (a Unix time, say), so it says nothing."""
RESET_S_MAX = 86_400.0
"""Groq counts requests by the day, and no longer window is known."""
VALUE_BYTES_MAX = 64
"""The longest form, an RFC 850 date, has 33."""


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What a provider says of its limits; None is "not told". Resets are seconds from now."""

    requests_limit: int | None = None
    requests_remaining: int | None = None
    requests_reset_s: float | None = None
    tokens_limit: int | None = None
    tokens_remaining: int | None = None
    tokens_reset_s: float | None = None


_NUMBER = re.compile(r"[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18}")
_COUNT = re.compile(r"(-?[0-9]{1,15})(?:\.[0-9]{1,9})?")

# RFC 9110 §5.6.7: a recipient "MUST accept all three HTTP-date formats".
_MONTHS = "janfebmaraprmayjunjulaugsepoctnovdec"
_MON = r"(?P<mon>[A-Za-z]{3})"
_TIME = r"(?P<h>\d\d):(?P<m>\d\d):(?P<s>\d\d)"
_DATES = (
    re.compile(rf"[A-Za-z]{{3}}, (?P<d>\d\d) {_MON} (?P<y>\d{{4}}) {_TIME} GMT", re.ASCII | re.I),
    re.compile(rf"[A-Za-z]{{6,9}}, (?P<d>\d\d)-{_MON}-(?P<y>\d\d) {_TIME} GMT", re.ASCII | re.I),
    re.compile(rf"[A-Za-z]{{3}} {_MON} (?P<d>[ \d]\d) {_TIME} (?P<y>\d{{4}})", re.ASCII | re.I),
)

# Go, time.Duration.String: "2m59.56s", "12ms", "1h2m3s", "1.5µs".
_DURATION = re.compile(r"(?:[0-9]{1,12}(?:\.[0-9]{0,12})?(?:ns|us|µs|μs|ms|s|m|h|d))+")
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?)(ns|us|µs|μs|ms|s|m|h|d)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_UNIT_S["d"] = 86_400.0

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d{1,12})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)

# OpenAI and Groq: "Please try again in 2m59.56s"; Azure: "Please retry after 26 seconds"; Venice: "Please
# wait 30s and try again".
_IN_TEXT = re.compile(
    r"(?:try again in|retry (?:after|in)|please wait)\s{1,4}([0-9]{1,9}(?:\.[0-9]{1,9})?)\s{0,2}"
    r"(?:(ms|milliseconds?)|(s|seconds?|secs?)|(m|minutes?|mins?)(?:([0-9]{1,4}(?:\.[0-9]{1,9})?)s)?)\b",
    re.I,
)


def retry_after_s(headers: Mapping[bytes, bytes], now_unix: float) -> float | None:
    """The wait the provider asks for, 0 … 3600 s: `retry-after-ms`, else `retry-after` (RFC 9110 §10.2.3).

    The order is openai-python's. Negative, past, absurd (beyond 30 days) and unreadable values are None.
    Header names are in lower case.
    """
    value = headers.get(b"retry-after-ms")
    if value is not None:
        wait = _number(_text(value))
        if wait is not None and wait / 1e3 <= ABSURD_S:
            return min(wait / 1e3, WAIT_S_MAX)
    value = headers.get(b"retry-after")
    if value is None:
        return None
    text = _text(value)
    wait = _number(text)
    if wait is None:
        date = _http_date(text, now_unix)
        wait = None if date is None else date - now_unix
    if wait is None or not 0 <= wait <= ABSURD_S:
        return None
    return min(wait, WAIT_S_MAX)


def reset_s(value: bytes | str, now_unix: float) -> float | None:
    """Seconds until a limit's window is full again, 0 … 86400, whatever the notation.

    A Go duration, seconds, a Unix time in seconds or milliseconds (told from a duration by its size: 10⁹ s
    are 31 years) or RFC 3339. A time in the past is 0. Negative and unreadable values are None.
    """
    text = _text(value)
    number = _number(text)
    if number is not None:
        if number >= 1e11:
            number = number / 1e3 - now_unix
        elif number >= 1e9:
            number -= now_unix
    elif _DURATION.fullmatch(text):
        number = sum(float(count) * _UNIT_S[unit] for count, unit in _PART.findall(text))
    elif _RFC3339.fullmatch(text):
        try:
            number = datetime.fromisoformat(text.upper()).timestamp() - now_unix
        except (ValueError, OverflowError):  # a 30th of February, a leap second
            return None
    if number is None or number != number:
        return None
    return min(max(number, 0.0), RESET_S_MAX)


def limits(headers: Mapping[bytes, bytes], profile: Profile, now_unix: float) -> RateLimits:
    """The limits reported in an answer's headers, by the names `profile` gives.

    Of several limits of one kind (Anthropic: all, input and output tokens) the one with the least left
    counts. A limit of -1 or 0 means that the provider does not say (Azure), and so does a negative
    remaining.
    """
    requests = tokens = _UNKNOWN
    for names in profile.limits:
        if names.remaining in headers or names.limit in headers or names.reset in headers:
            found = _limit(headers, names, profile, now_unix)
            if names.counts == "requests":
                requests = _tighter(requests, found)
            else:
                tokens = _tighter(tokens, found)
    return RateLimits(*requests, *tokens)


def wait_s(status: int, headers: Mapping[bytes, bytes], profile: Profile, now_unix: float) -> float | None:
    """How long to leave the provider alone after an answer of `status`, 0 … 3600 s; None: it does not say.

    Retry-After in either form wins; else, on a 429, the reset of whichever limit has nothing left.
    """
    wait = retry_after_s(headers, now_unix)
    if wait is not None or status != 429:
        return wait
    said = limits(headers, profile, now_unix)
    resets = [
        reset
        for remaining, reset in (
            (said.requests_remaining, said.requests_reset_s),
            (said.tokens_remaining, said.tokens_reset_s),
        )
        if remaining == 0 and reset is not None
    ]
    return min(max(resets), WAIT_S_MAX) if resets else None


def wait_in_text_s(message: str) -> float | None:
    """The wait a message names ("Please try again in 7.66s"), 0 … 3600 s; looks at 2,048 characters."""
    found = _IN_TEXT.search(message, 0, 2048)
    if found is None:
        return None
    count = float(found[1])
    if found[2]:
        count /= 1e3
    elif found[4]:
        count = count * 60.0 + float(found[5] or 0.0)
    return min(count, WAIT_S_MAX) if count <= ABSURD_S else None


_Limit = tuple[int | None, int | None, float | None]
_UNKNOWN: _Limit = (None, None, None)


def _limit(headers: Mapping[bytes, bytes], names: LimitHeaders, profile: Profile, now_unix: float) -> _Limit:
    limit = _count(headers.get(names.limit))
    if limit is not None and limit <= 0:
        return _UNKNOWN
    remaining = _count(headers.get(names.remaining))
    unsaid = profile.deployments and limit is None  # Azure sends a bare 0 for "not told"
    if remaining is not None and (remaining < 0 or (remaining == 0 and unsaid)):
        remaining = None
    value = headers.get(names.reset)
    return limit, remaining, None if value is None else reset_s(value, now_unix)


def _tighter(one: _Limit, other: _Limit) -> _Limit:
    if one is _UNKNOWN:
        return other
    if other[1] is None:
        return one
    return other if one[1] is None or other[1] < one[1] else one


def _text(value: bytes | str) -> str:
    """`value` without optional white space, empty when too long to be any of the forms."""
    if len(value) > VALUE_BYTES_MAX:
        return ""
    if isinstance(value, bytes):
        try:
            value = value.decode()  # a Go duration may carry the micro sign
        except UnicodeDecodeError:
            return ""
    return value.strip(" \t")


def _number(text: str) -> float | None:
    # float() would take "1e3", "inf", "nan", "1_0" and Arabic digits.
    return float(text) if _NUMBER.fullmatch(text) else None


def _count(value: bytes | None) -> int | None:
    if value is None:
        return None
    found = _COUNT.fullmatch(_text(value))
    return None if found is None else int(found[1])


def _http_date(text: str, now_unix: float) -> float | None:
    for form in _DATES:
        found = form.fullmatch(text)
        if found is not None:
            break
    else:
        return None
    place = _MONTHS.find(found["mon"].lower())
    if place % 3:
        return None
    month = place // 3 + 1
    year = int(found["y"])
    try:
        if len(found["y"]) == 2:
            # RFC 9110 §5.6.7: a date that "appears to be more than 50 years in the future" is of the past
            # century.
            this_year = datetime.fromtimestamp(now_unix, UTC).year
            year += this_year - this_year % 100
            if year > this_year + 50:
                year -= 100
            elif year < this_year - 50:
                year += 100
        # A leap second (":60") is a valid HTTP-date, but not a valid datetime.
        second = min(int(found["s"]), 59)
        return datetime(year, month, int(found["d"]), int(found["h"]), int(found["m"]), second, tzinfo=UTC).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
