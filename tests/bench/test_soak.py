"""The soak: its judgement of series, and a run of seconds that exercises all of it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from bench.soak.__main__ import soak
from bench.soak.verdict import judge, slope
from bench.soak.world import FAULTS, faulty

TIMES = [10.0 * n for n in range(61)]


def test_a_series_that_grows_after_its_beginning_is_told() -> None:
    grows = judge("RSS MB", TIMES, [60 + 0.01 * time for time in TIMES], least=2.0)
    assert grows.flat is False
    assert grows.growth == pytest.approx(4.5)
    assert "grows" in grows.line()


def test_growth_at_the_beginning_noise_and_single_bursts_are_none() -> None:
    noise = random.Random(3)
    warm = [
        min(60.0, 40 + 0.3 * time) + noise.uniform(-1, 1) + (30 if n % 17 == 5 else 0) for n, time in enumerate(TIMES)
    ]
    assert judge("RSS MB", TIMES, warm, least=2.0).flat
    assert judge("RSS MB", TIMES, [60 - 0.1 * time for time in TIMES], least=2.0).flat


def test_a_short_run_is_not_judged() -> None:
    verdict = judge("RSS MB", TIMES[:7], [40.0 + n for n in range(7)], least=2.0)
    assert verdict.flat is None
    assert "too short" in verdict.line()


def test_the_slope_of_little_is_none() -> None:
    assert slope([1.0], [5.0]) == 0.0
    assert slope([1.0, 1.0], [5.0, 6.0]) == 0.0


def test_every_fault_has_its_turn() -> None:
    chance = random.Random(1)
    used = {fault.kind for _ in range(5) for fault in faulty(chance).faults}
    assert used == {"ok", *(fault.kind for fault in FAULTS)}


def test_a_run_of_seconds_leaves_nothing_over(tmp_path: Path) -> None:
    lines, well = asyncio.run(soak(tmp_path, 0.1, 60.0, 1, period_s=1.0))
    assert well, "\n".join(lines)
    assert lines[-1] == "**Nothing left over; too short to tell whether anything grows.**"
    report = "\n".join(lines)
    for kind in ("plain 200", "stream 200", "embedding 200", "leaves", "slow 200", "wrong 400"):
        assert f"| {kind}" in report
