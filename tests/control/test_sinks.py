"""Records to those who want them: one that fails takes nothing from the others."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from dandolo.control.sinks import Fanout
from dandolo.record import Record

ONE = Record(time="", id="1", status=200, method="POST", endpoint="chat")


class Kept:
    def __init__(self) -> None:
        self.taken: list[str] = []
        self.ticks: list[float] = []

    def take(self, records: Sequence[Record], now: float) -> None:
        self.taken += [record.id for record in records]

    def tick(self, now: float) -> None:
        self.ticks.append(now)


class Broken:
    def take(self, records: Sequence[Record], now: float) -> None:
        raise ValueError("broken")


def test_a_sink_that_fails_is_counted_and_said_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("dandolo").propagate = True
    before, after = Kept(), Kept()
    fanout = Fanout([before, Broken(), after])
    for now in (1000.0, 1001.0, 1061.0):
        fanout.take([ONE], now)
    fanout.take([], 1062.0)
    fanout.tick(1063.0)
    assert before.taken == after.taken == ["1"] * 3
    assert after.ticks == [1063.0]
    assert fanout.failures == 3
    assert len([one for one in caplog.records if "could not be dealt with" in one.message]) == 2


def test_sinks_come_and_go() -> None:
    first, second, fanout = Kept(), Kept(), Fanout()
    fanout.add(first)
    fanout.take([ONE], 1.0)
    fanout.add(second)
    fanout.remove(first)
    fanout.take([ONE], 2.0)
    fanout.tick(3.0)
    assert (first.taken, first.ticks) == (["1"], [])
    assert (second.taken, second.ticks) == (["1"], [3.0])
