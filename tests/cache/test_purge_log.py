"""The log of purges that hosts share, against a hash that loses, ages and is written by others."""

from __future__ import annotations

import asyncio

import pytest

from dandolo.cache.purge_log import AHEAD_S, EVERYTHING, FORGOTTEN_S, POLL_S, PurgeLog
from dandolo.cache.redis.connection import Failure
from dandolo.wire.resp import ErrorReply

UNIX = 1_764_000_000.0
MODEL = b"model\0m\0000"


class Hash:
    """A hash and who it tells of purges."""

    tracks = True

    def __init__(self) -> None:
        self.fields: dict[bytes, bytes] = {}
        self.applied: list[tuple[str, str, float, bool]] = []
        self.refusal: object = None
        self.log = PurgeLog(self, lambda *purge: self.applied.append(purge))

    async def call(self, key: bytes, command: bytes, *arguments: bytes) -> object:
        if self.refusal is not None:
            return self.refusal
        if command == b"HSET":
            self.fields.update(zip(arguments[::2], arguments[1::2], strict=True))
            return 1
        if command == b"HDEL":
            for field in arguments:
                self.fields.pop(field, None)
            return len(arguments)
        return dict(self.fields)

    def read(self, unix: float = UNIX) -> None:
        assert asyncio.run(self.log.read(0.0, unix))

    def note(self, unix: float = UNIX) -> None:
        assert asyncio.run(self.log.note("model", "m", unix, soft=False))


def test_a_purge_that_is_missing_is_told_again_as_long_as_it_matters() -> None:
    hashed = Hash()
    hashed.note()
    hashed.fields.clear()
    hashed.read(UNIX + 1.0)
    assert hashed.fields == {MODEL: b"%f" % UNIX}
    hashed.fields.clear()
    hashed.read(UNIX + FORGOTTEN_S + 1.0)
    assert hashed.fields == {}
    # It was this process's own: nobody need be told of it.
    assert hashed.applied == []


def test_a_purge_of_everything_stands_for_those_before_it() -> None:
    hashed = Hash()
    hashed.note()
    hashed.fields = {EVERYTHING: b"%f" % (UNIX + 1.0)}
    hashed.read(UNIX + 2.0)
    assert set(hashed.fields) == {EVERYTHING}
    assert hashed.applied == [("all", "", UNIX + 1.0, False)]


def test_a_later_time_wins_on_either_side() -> None:
    hashed = Hash()
    hashed.note(UNIX)
    hashed.fields[MODEL] = b"%f" % (UNIX - 5.0)
    hashed.read(UNIX + 1.0)
    assert hashed.fields[MODEL] == b"%f" % UNIX
    hashed.fields[MODEL] = b"%f" % (UNIX + 5.0)
    hashed.read(UNIX + 6.0)
    assert hashed.applied[-1] == ("model", "m", UNIX + 5.0, False)
    assert hashed.fields[MODEL] == b"%f" % (UNIX + 5.0)


def test_what_claims_to_be_from_a_day_ahead_is_no_purge() -> None:
    hashed = Hash()
    hashed.fields = {EVERYTHING: b"%f" % (UNIX + AHEAD_S + 1.0), MODEL: b"1e300", b"tag\0t\0000": b"nan"}
    hashed.read()
    assert (hashed.applied, hashed.fields) == ([], {})


def test_a_list_that_is_refused_is_told_once_and_asked_for_less_often(caplog: pytest.LogCaptureFixture) -> None:
    hashed = Hash()
    log = hashed.log

    def refused(at: float) -> None:
        assert log.due(at)
        assert not asyncio.run(log.read(at, UNIX))
        assert not log.known

    caplog.set_level("INFO")
    hashed.refusal = ErrorReply(b"WRONGTYPE Operation against a key holding the wrong kind of value")
    refused(0.0)
    assert not log.due(POLL_S / 2)
    refused(POLL_S)
    assert len(caplog.records) == 1
    assert "dandolo:!purges" in caplog.text
    assert "UNLINK" in caplog.text
    hashed.refusal = Failure.DOWN
    refused(2 * POLL_S)
    hashed.refusal = ErrorReply(b"NOPERM no permissions")
    refused(3 * POLL_S)
    assert "+hgetall" in caplog.records[-1].getMessage()
    hashed.refusal = None
    assert log.due(4 * POLL_S)
    assert asyncio.run(log.read(4 * POLL_S, UNIX))
    assert log.known
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "INFO"]
