"""Records of a worker whose control process has gone: kept within a bound, told to the one that comes."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest

from dandolo.cli import reporting
from dandolo.cli.reporting import BATCH_MAX, Reporting
from dandolo.frames import Kind
from dandolo.net.pipe import Pipe
from dandolo.record import Record


class Told:
    """A pipe that takes `most` frames."""

    def __init__(self, most: int = 1000) -> None:
        self.records: list[Record] = []
        self.closing = False
        self._most = most

    def send(self, kind: Kind, payload: bytes, *, may_be_lost: bool = False) -> bool:
        assert kind is Kind.RECORDS
        assert may_be_lost
        self._most -= 1
        if self._most < 0:
            return False
        self.records += msgspec.msgpack.decode(payload, type=list[Record])
        return True


def some(many: int, since: int = 0) -> list[Record]:
    return [Record("2026-01-01T00:00:00.000Z", f"req_{since + n}", 200, "POST", "chat", "key", "") for n in range(many)]


def test_what_is_kept_is_told_in_order_and_then_what_follows() -> None:
    mine, told = Reporting(), Told()
    for record in some(BATCH_MAX + 10):
        mine.take(record)
    mine.settle()
    assert mine.untold == BATCH_MAX + 10
    mine.take(some(1, 1000)[0])
    mine.go_on(cast(Pipe, told))
    assert [one.id for one in told.records] == [one.id for one in [*some(BATCH_MAX + 10), *some(1, 1000)]]
    assert (mine.untold, mine.dropped) == (0, 0)


def test_beyond_the_bound_they_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporting, "KEPT_BYTES_MAX", 100_000)
    mine, told = Reporting(), Told(most=1)
    for record in some(100 * BATCH_MAX):
        mine.take(record)
    assert 0 < mine.untold < 100 * BATCH_MAX
    assert mine.untold + mine.dropped == 100 * BATCH_MAX
    # What the pipe does not take is dropped too.
    mine.go_on(cast(Pipe, told))
    assert len(told.records) == BATCH_MAX
    assert mine.dropped == 99 * BATCH_MAX


def test_what_a_pipe_in_use_does_not_take_is_dropped_and_what_a_broken_one_does_not_is_kept() -> None:
    mine, told = Reporting(), Told(most=0)
    mine.pipe = cast(Pipe, told)
    for record in some(2):
        mine.take(record)
        mine.settle()
        told.closing = True
    assert (mine.untold, mine.dropped) == (1, 1)
