"""The filter: never a false "not there", few false "perhaps", bounded memory."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.cache import bloom
from dandolo.cache.bloom import Bloom


@given(st.sets(st.binary(min_size=20, max_size=20), max_size=200))
def test_a_key_that_was_added_is_never_denied(keys: set[bytes]) -> None:
    some = Bloom(0)
    some.add(keys)
    assert all(key in some for key in keys)


def test_few_absent_keys_pass() -> None:
    rng = random.Random(1)
    some = Bloom(40_000)
    some.add(rng.randbytes(20) for _ in range(40_000))
    passed = sum(rng.randbytes(20) in some for _ in range(20_000))
    # 131,072 × 8 bits: (1 − e^(−4 × 40,000 / 2^20))^4 is 0.04 %.
    assert passed < 40


def test_an_empty_filter_denies_everything() -> None:
    rng = random.Random(1)
    some = Bloom(0)
    assert not any(rng.randbytes(20) in some for _ in range(1000))


def test_no_key_is_lost_when_two_threads_add_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # A filter so small that both threads set bits of the same bytes all the time.
    monkeypatch.setattr(bloom, "KEYS_MIN", 512)
    rng = random.Random(1)
    for _ in range(20):
        some = Bloom(0)
        halves = [[rng.randbytes(20) for _ in range(300)] for _ in range(2)]
        threads = [threading.Thread(target=some.add, args=(half,)) for half in halves]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(key in some for half in halves for key in half)
        assert some.added == 600


@pytest.mark.parametrize("keys", [0, 1, 32_768, 32_769, 1_000_000, 10_000_000, 10**12])
def test_memory_is_bounded_and_there_is_room_for_twice_the_keys(keys: int) -> None:
    some = Bloom(keys)
    assert len(some) <= bloom.BYTES_MAX
    assert len(some) == bloom.BYTES_MAX or len(some) * 8 >= 2 * keys * bloom.BITS_PER_KEY
    # Otherwise a filter for more keys than memory allows would be built anew as soon as it is built.
    assert some.full_at >= keys + keys // 2
