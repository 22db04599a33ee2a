"""The outbox: writes of one turn leave together, in order, whatever becomes of one of their transports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
import uvloop

from dandolo.net.outbox import QUIET_WRITES, WRITES_MAX, Outbox, running_outbox


class Transport:
    """Writes down what it is given, in a list that may be shared."""

    def __init__(self, name: str, log: list[tuple[str, bytes]]) -> None:
        self.name, self.log = name, log
        self.error: Exception | None = None
        self.closing = False
        self.on_write: Callable[[], None] | None = None

    def write(self, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.log.append((self.name, data))
        if self.on_write is not None:
            then, self.on_write = self.on_write, None
            then()

    def is_closing(self) -> bool:
        return self.closing


class Nowhere:
    """A transport that is gone: nothing is written to it."""

    def is_closing(self) -> bool:
        return True


def make_busy(outbox: Outbox) -> None:
    """Let it believe in dense traffic, in which writes wait for the end of their turn."""
    for _ in range(QUIET_WRITES):
        outbox.write(cast(asyncio.WriteTransport, Nowhere()), b"")
    outbox.flush()
    outbox.beat()


class Rig:
    def __init__(self) -> None:
        self.log: list[tuple[str, bytes]] = []
        self.a, self.b = Transport("a", self.log), Transport("b", self.log)
        self.outbox = Outbox(asyncio.get_running_loop())
        make_busy(self.outbox)

    def write(self, transport: Transport, data: bytes) -> None:
        self.outbox.write(cast(asyncio.WriteTransport, transport), data)


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    return cast(Callable[[Coroutine[Any, Any, None]], None], request.param)


Run = Callable[[Coroutine[Any, Any, None]], None]


def test_writes_leave_at_the_end_of_the_turn_and_in_order(run: Run) -> None:
    async def story() -> None:
        rig = Rig()
        for number in range(3):
            rig.write(rig.a, b"%d" % number)
            rig.write(rig.b, b"%d" % number)
        assert rig.log == []
        await asyncio.sleep(0)
        assert rig.log == [(name, b"%d" % number) for number in range(3) for name in "ab"]
        # And again in a later turn.
        rig.write(rig.a, b"later")
        assert len(rig.log) == 6
        await asyncio.sleep(0)
        assert rig.log[6:] == [("a", b"later")]

    run(story())


def test_a_flush_sends_at_once_and_only_once(run: Run) -> None:
    async def story() -> None:
        rig = Rig()
        rig.write(rig.a, b"1")
        rig.outbox.flush()
        assert rig.log == [("a", b"1")]
        rig.write(rig.a, b"2")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert rig.log == [("a", b"1"), ("a", b"2")]

    run(story())


def test_what_is_held_is_bounded(run: Run) -> None:
    async def story() -> None:
        rig = Rig()
        for number in range(WRITES_MAX - 1):
            rig.write(rig.a, b"%d" % number)
        assert rig.log == []
        rig.write(rig.b, b"x")
        assert rig.log == [*(("a", b"%d" % number) for number in range(WRITES_MAX - 1)), ("b", b"x")]
        # Counting begins anew.
        rig.write(rig.a, b"y")
        assert len(rig.log) == WRITES_MAX
        await asyncio.sleep(0)
        assert len(rig.log) == WRITES_MAX + 1

    run(story())


def test_a_failing_transport_does_not_lose_the_writes_of_others(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        rig = Rig()
        rig.a.error = RuntimeError("write after end")
        rig.write(rig.a, b"1")
        rig.write(rig.b, b"1")
        rig.outbox.flush()
        assert rig.log == [("b", b"1")]

    run(story())
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_transport_lost_since_is_nothing_to_tell(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        rig = Rig()
        rig.a.error, rig.a.closing = RuntimeError("the handler is closed"), True
        rig.write(rig.a, b"1")
        rig.write(rig.b, b"1")
        rig.outbox.flush()
        assert rig.log == [("b", b"1")]

    run(story())
    assert not caplog.records


def test_what_a_write_calls_may_write_without_upsetting_the_order(run: Run) -> None:
    async def story() -> None:
        rig = Rig()
        rig.a.on_write = lambda: rig.write(rig.b, b"3")
        rig.write(rig.a, b"1")
        rig.write(rig.b, b"2")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert rig.log == [("a", b"1"), ("b", b"2"), ("b", b"3")]

    run(story())


def test_a_real_transport_that_was_lost_harms_nobody(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        pairs = [socket.socketpair() for _ in range(2)]
        lost, good = [(await loop.create_connection(asyncio.Protocol, sock=ours))[0] for ours, _ in pairs]
        lost.abort()
        await asyncio.sleep(0.01)
        outbox = running_outbox()
        make_busy(outbox)
        outbox.write(lost, b"nobody")
        outbox.write(good, b"somebody")
        await asyncio.sleep(0.01)
        assert pairs[1][1].recv(100) == b"somebody"
        good.close()
        for _, theirs in pairs:
            theirs.close()
        await asyncio.sleep(0.01)

    run(story())
    assert not caplog.records


def test_what_is_for_many_follows_what_waits_and_leaves_at_once(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        rig = Rig()
        broken, closing = Transport("broken", rig.log), Transport("closing", rig.log)
        broken.error, closing.closing = RuntimeError("gone"), True
        row = [cast(asyncio.WriteTransport, one) for one in (rig.a, broken, closing, rig.b)]
        rig.write(rig.b, b"before")
        rig.outbox.spread(row, b"all")
        assert rig.log == [("b", b"before"), ("a", b"all"), ("b", b"all")]
        # In the middle of a flush its rest comes first.
        rig.log.clear()
        rig.write(rig.a, b"1")
        rig.write(rig.b, b"2")
        rig.a.on_write = lambda: rig.outbox.spread(row[3:], b"3")
        rig.outbox.flush()
        assert rig.log == [("a", b"1"), ("b", b"2"), ("b", b"3")]

    run(story())
    assert len(caplog.records) == 1


def test_each_loop_has_one(run: Run) -> None:
    seen: list[Outbox] = []

    async def story() -> None:
        seen.append(running_outbox())
        assert running_outbox() is seen[-1]

    run(story())
    run(story())
    assert seen[0] is not seen[1]


def test_in_thin_traffic_a_write_leaves_at_once(run: Run) -> None:
    async def story() -> None:
        rig = Rig()
        rig.outbox.beat()
        rig.write(rig.a, b"now")
        assert rig.log == [("a", b"now")]

    run(story())
