"""The cache's bench: its trace is what it says, its rivals do what they are known to do."""

from collections import Counter
from pathlib import Path

import pytest

from bench.cache import memory as command
from bench.cache.policies import belady, lru, s3_fifo, sieve
from bench.cache.trace import Shape, trace

KEYS = trace(20_000, 1)


def test_a_trace_comes_from_its_seed_and_has_its_shape() -> None:
    assert trace(20_000, 1) == KEYS
    assert trace(20_000, 2) != KEYS
    asked = Counter(KEYS)
    new = [key for key in KEYS if key > 1_000_000_000]
    assert 0.42 < len(set(new)) / len(KEYS) < 0.48
    usual = [count for key, count in asked.most_common() if key < 1_000_000_000]
    assert usual[0] > 5 * usual[100]


def test_a_trace_without_one_offs_repeats_and_drift_is_zipf_s() -> None:
    shape = Shape(one_off=0.0, repeats=0.0, tenants=1, prompts=100, drift_every=10**9)
    asked = Counter(trace(50_000, 1, shape))
    assert asked[0] / asked[9] == pytest.approx(10, rel=0.2)


def test_rivals_on_a_trace_done_by_hand() -> None:
    keys = [1, 2, 1, 3, 1, 2, 4, 1]
    # LRU of 2: 1 2 (1) 3→2 out (1) 2→3 out 4→1 out 1.
    assert lru(keys, 2) == 2
    # The oracle keeps 1 throughout, and lets 3 and 4 pass.
    assert belady(keys, 2) == 4
    # SIEVE: the visited 1 loses its mark and 2 goes for 3; visited again it loses it and 3 goes for 2; then 1 for 4.
    assert sieve(keys, 2) == 2


def test_sieve_spares_what_was_visited_where_lru_does_not() -> None:
    once = list(range(100, 200))
    keys = [1, 1, *once[:50], 1, *once[50:]]
    assert lru(keys, 10) == 1
    assert sieve(keys, 10) == 2


def test_nothing_beats_the_oracle_and_ours_beats_lru() -> None:
    for size in (50, 400):
        best = belady(KEYS, size)
        ours = s3_fifo(KEYS, size)
        assert max(lru(KEYS, size), sieve(KEYS, size), ours.hits) <= best
        assert lru(KEYS, size) < ours.hits
        assert ours.hits + ours.misses == len(KEYS)
        assert ours.entries == size


def test_the_estimate_for_twice_the_size_is_near_what_twice_the_size_gives() -> None:
    assert s3_fifo(KEYS, 400).hit_rate_at_double == pytest.approx(s3_fifo(KEYS, 800).hit_rate, abs=0.03)


def test_the_command_writes_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "SEEDS", (1,))
    monkeypatch.setattr(command, "BATCHES", 1)
    monkeypatch.setattr(command, "KIB", (1,))
    monkeypatch.setattr("sys.argv", ["memory", "--requests", "2000", "--out", str(tmp_path / "found.md")])
    command.main()
    found = (tmp_path / "found.md").read_text()
    assert found.rstrip() == "\n".join([found.splitlines()[0], "", capsys.readouterr().out.rstrip()])
    assert "| usual |" in found
    assert "ns a hit" in found
