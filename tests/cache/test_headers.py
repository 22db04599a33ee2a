"""What answers say of the cache, to the letter."""

import pytest

from dandolo.cache.headers import Outcome, forwarded, kept

KEPT = [
    (Outcome.HIT, "l1", 12.9, 376.2, b"X-Cache: HIT\r\nAge: 12\r\nCache-Status: dandolo; hit; ttl=376; detail=l1\r\n"),
    (
        Outcome.STALE,
        "l2",
        99.0,
        -0.5,
        b"X-Cache: STALE\r\nAge: 99\r\nCache-Status: dandolo; hit; ttl=-1; detail=l2\r\n",
    ),
    (
        Outcome.SEMANTIC,
        "l1",
        0.0,
        5.0,
        b"X-Cache: SEMANTIC\r\nAge: 0\r\nCache-Status: dandolo; hit; ttl=5; detail=semantic\r\n",
    ),
    (Outcome.HIT, "l3", -3.0, 0.5, b"X-Cache: HIT\r\nAge: 0\r\nCache-Status: dandolo; hit; ttl=0; detail=l3\r\n"),
]


@pytest.mark.parametrize(("outcome", "tier", "age_s", "ttl_s", "lines"), KEPT)
def test_kept_answers_tell_their_age(outcome: Outcome, tier: str, age_s: float, ttl_s: float, lines: bytes) -> None:
    assert kept(outcome, tier, age_s, ttl_s) == lines


def test_answers_of_providers_tell_why_they_were_asked() -> None:
    assert forwarded(Outcome.MISS, stored=True) == (b"X-Cache: MISS\r\nCache-Status: dandolo; fwd=uri-miss; stored\r\n")
    assert forwarded(Outcome.MISS, asked=True) == b"X-Cache: MISS\r\nCache-Status: dandolo; fwd=request\r\n"
    assert forwarded(Outcome.COLLAPSED) == (b"X-Cache: COLLAPSED\r\nCache-Status: dandolo; fwd=uri-miss; collapsed\r\n")
    assert forwarded(Outcome.BYPASS, "the temperature is above 0") == (
        b'X-Cache: BYPASS\r\nCache-Status: dandolo; fwd=bypass; detail="the temperature is above 0"\r\n'
    )


def test_a_reason_cannot_leave_its_string_or_its_line() -> None:
    assert forwarded(Outcome.BYPASS, 'a"b\\c\r\nX: y\u00e9').endswith(b'; detail="a\\"b\\\\cX: y"\r\n')
