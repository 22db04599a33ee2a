"""The ledger against the providers' bills: the judgement, and a run of seconds with every kind of kill."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from bench.ledger.__main__ import drill
from bench.ledger.managed import KILLS
from bench.ledger.verdict import Found, Price, judge
from dandolo.sim.answer import Charge


def charge(number: int, user: str = "ops", cost_usd: float | None = None) -> Charge:
    return Charge(f"req_{number}", user, False, 10, 20, cost_usd)


WELL = Found(
    bills={"billing": [charge(1, cost_usd=0.000_5), charge(2, cost_usd=0.000_25)], "listed": [charge(3, "free")]},
    prices={"listed": Price(700, 2800)},
    answered={"req_1"},
    settled=[("req_1", 500_000), ("req_3", 63_000)],
    sums={("billing", "ops"): (1, 500_000), ("listed", "free"): (1, 63_000)},
    unsettled={"req_2"},
    unsettled_told=1,
    dropped=0,
    unsettled_max=16,
)


def test_a_ledger_that_is_the_bill_is_well() -> None:
    lines, wrong = judge(WELL)
    assert wrong == []
    assert "| billing | ops | 2 | 1 | 0.000500000 | 0.000500000 | 1 | 0 |" in lines


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settled": [*WELL.settled, ("req_1", 500_000)]}, "counted twice"),
        ({"settled": [*WELL.settled, ("req_2", 250_000)]}, "settled and listed as unsettled too"),
        ({"settled": [*WELL.settled, ("req_9", 1)]}, "never billed"),
        ({"settled": [("req_1", 500_001), WELL.settled[1]]}, "at another cost"),
        ({"unsettled": set(), "unsettled_told": 0}, "neither settled nor listed"),
        ({"unsettled_told": 2}, "tells 2 unsettled"),
        ({"answered": {"req_1", "req_2"}}, "answered in full, and not settled"),
        ({"sums": {("billing", "ops"): (1, 500_000)}}, "listed, free"),
        ({"dropped": 3}, "3 rows dropped"),
        ({"unsettled_max": 0}, "at most 0"),
        ({"bills": {**WELL.bills, "other": [charge(1, cost_usd=0.0005)]}}, "billed twice"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_is_wrong_is_told(change: dict[str, object], said: str) -> None:
    _, wrong = judge(replace(WELL, **change))  # type: ignore[arg-type]
    assert any(said in one for one in wrong), wrong


def test_a_short_run_with_every_kill_ends_with_the_providers_bill(tmp_path: Path) -> None:
    lines, wrong = asyncio.run(drill(tmp_path, 1_000, kills=KILLS))
    assert wrong == [], "\n".join(lines)
    assert any("started 4 times" in line for line in lines)
