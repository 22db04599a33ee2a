"""One connection on a transport of the test's own: one write a turn, replies in order, deadlines, bounds."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Coroutine
from math import inf
from typing import Any

import pytest
from redis_waiting import until

from dandolo.cache.redis import connection as module
from dandolo.cache.redis.connection import COMMANDS_MAX, UNANSWERED_BYTES_MAX, Call, Connection, Failure, Outcome
from dandolo.wire.resp import ErrorReply, Push, encode

Run = Callable[[Coroutine[Any, Any, None]], None]


class FakeTransport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted


class Owner:
    """Keeps what a connection tells."""

    def __init__(self) -> None:
        self.answers = 0
        self.failures = 0
        self.pushes: list[Push] = []
        self.ends: list[str] = []

    def answered(self) -> None:
        self.answers += 1

    def failed(self) -> None:
        self.failures += 1

    def pushed(self, push: Push) -> None:
        self.pushes.append(push)

    def ended(self, reason: str) -> None:
        self.ends.append(reason)


class Bench:
    """A connection, its two ends and what commands on it heard."""

    def __init__(self) -> None:
        self.transport = FakeTransport()
        self.owner = Owner()
        self.heard: list[tuple[str, Outcome]] = []
        self.connection = Connection(asyncio.get_running_loop(), self.owner)
        self.connection.connection_made(self.transport)

    def send(self, name: str, in_s: float = inf, data: bytes | None = None) -> bool:
        deadline = asyncio.get_running_loop().time() + in_s
        return self.connection.send(
            Call(data or encode(name.encode()), deadline, lambda outcome: self.heard.append((name, outcome)))
        )

    def come(self, data: bytes) -> None:
        self.connection.data_received(data)

    def close(self) -> None:
        self.connection.close("the test is over")


def with_bench(run: Run, story: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        bench = Bench()
        try:
            await story(bench)
        finally:
            bench.close()

    run(main())


def test_commands_of_one_turn_leave_in_one_write(run: Run) -> None:
    async def story(bench: Bench) -> None:
        for name in "abc":
            assert bench.send(name)
        assert bench.transport.writes == []
        await asyncio.sleep(0)
        assert bench.transport.writes == [encode(b"a") + encode(b"b") + encode(b"c")]
        bench.send("d")
        await asyncio.sleep(0)
        assert bench.transport.writes[1:] == [encode(b"d")]
        bench.come(b"+1\r\n-E x\r\n")
        bench.come(b":3\r\n$-1\r\n")
        assert bench.heard == [("a", b"1"), ("b", ErrorReply(b"E x")), ("c", 3), ("d", None)]
        assert bench.connection.in_flight == 0
        assert bench.owner.answers == 2

    with_bench(run, story)


def test_an_error_alone_is_no_answer(run: Run) -> None:
    async def story(bench: Bench) -> None:
        bench.send("a")
        bench.come(b"-LOADING x\r\n")
        assert bench.owner.answers == 0

    with_bench(run, story)


def test_a_deadline_abandons_the_waiter_and_never_its_place(run: Run) -> None:
    async def story(bench: Bench) -> None:
        bench.send("late", in_s=0.01)
        bench.send("patient", in_s=1000)
        bench.send("late too", in_s=0.02)
        while len(bench.heard) < 2:
            await asyncio.sleep(0.005)
        assert bench.heard == [("late", Failure.TIMEOUT), ("late too", Failure.TIMEOUT)]
        assert bench.owner.failures == 2
        assert bench.connection.in_flight == 3
        bench.send("next", in_s=1000)
        bench.come(b"+reply of late\r\n+reply of patient\r\n")
        bench.come(b"+reply of late too\r\n+reply of next\r\n")
        assert bench.heard[2:] == [("patient", b"reply of patient"), ("next", b"reply of next")]
        assert bench.connection.late == 2
        assert bench.connection.in_flight == 0
        assert bench.owner.ends == []

    with_bench(run, story)


def test_an_earlier_deadline_behind_a_later_one_is_kept(run: Run) -> None:
    async def story(bench: Bench) -> None:
        bench.send("slow", in_s=1000)
        bench.send("quick", in_s=0.01)
        while not bench.heard:
            await asyncio.sleep(0.005)
        assert bench.heard == [("quick", Failure.TIMEOUT)]

    with_bench(run, story)


def test_a_stall_of_our_own_is_not_taken_for_the_servers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LATE_S", 0.020)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        owner = Owner()
        ours, theirs = socket.socketpair()
        with theirs:
            _, connection = await loop.create_connection(lambda: Connection(loop, owner), sock=ours)
            heard: list[Outcome] = []
            connection.send(Call(encode(b"a"), loop.time() + 0.01, heard.append))
            await asyncio.sleep(0)
            theirs.sendall(b"+in time\r\n")
            time.sleep(0.05)  # the loop stands still beyond the deadline, with the reply in the socket
            await until(lambda: heard)
            assert heard == [b"in time"]
            # And once more without a reply: nothing came in time, but who knows when it was asked for.
            connection.send(Call(encode(b"a"), loop.time() + 0.01, heard.append))
            time.sleep(0.05)
            await until(lambda: len(heard) == 2)
            assert heard[1] is Failure.TIMEOUT
            assert owner.failures == 0
            monkeypatch.setattr(module, "LATE_S", inf)
            connection.send(Call(encode(b"a"), loop.time() + 0.01, heard.append))
            await until(lambda: len(heard) == 3)
            assert owner.failures == 1
            connection.close("the test is over")

    run(main())


def test_a_reply_that_nobody_asked_for_ends_it(run: Run) -> None:
    async def story(bench: Bench) -> None:
        bench.send("a")
        bench.come(b"+1\r\n+2\r\n")
        assert bench.heard == [("a", b"1")]
        assert bench.owner.ends == ["a reply came that nobody asked for"]
        assert bench.transport.aborted
        assert not bench.send("b")
        bench.come(b"+3\r\n")
        bench.connection.connection_lost(None)
        assert len(bench.owner.ends) == 1

    with_bench(run, story)


def test_garbage_ends_it_and_fails_everything_behind(run: Run) -> None:
    async def story(bench: Bench) -> None:
        for name in "abc":
            bench.send(name)
        bench.come(b"+1\r\nHTTP/1.1 400 Bad Request\r\n")
        assert bench.heard == [("a", b"1"), ("b", Failure.LOST), ("c", Failure.LOST)]
        assert bench.owner.failures == 2
        assert "no Redis protocol" in bench.owner.ends[0]
        assert "HTTP" not in bench.owner.ends[0]

    with_bench(run, story)


def test_an_abandoned_command_is_told_once_when_the_connection_ends(run: Run) -> None:
    async def story(bench: Bench) -> None:
        bench.send("a", in_s=0.01)
        bench.send("b")
        while not bench.heard:
            await asyncio.sleep(0.005)
        bench.connection.connection_lost(ConnectionResetError())
        assert bench.heard == [("a", Failure.TIMEOUT), ("b", Failure.LOST)]
        assert bench.owner.failures == 2
        assert bench.owner.ends == ["the connection failed: ConnectionResetError"]

    with_bench(run, story)


def test_pushes_take_no_place(run: Run) -> None:
    async def story(bench: Bench) -> None:
        bench.send("a")
        bench.come(b">2\r\n+invalidate\r\n*1\r\n+k\r\n+1\r\n>2\r\n+invalidate\r\n_\r\n")
        assert bench.heard == [("a", b"1")]
        assert bench.owner.pushes == [Push(b"invalidate", [[b"k"]]), Push(b"invalidate", [None])]

    with_bench(run, story)


def test_commands_without_reply_are_bounded_in_number_abandoned_ones_too(run: Run) -> None:
    async def story(bench: Bench) -> None:
        for _ in range(COMMANDS_MAX):
            assert bench.send("a", in_s=0.01)
        assert not bench.send("b")
        while len(bench.heard) < COMMANDS_MAX:
            await asyncio.sleep(0.005)
        assert not bench.send("b")
        bench.come(b"+1\r\n")
        assert bench.send("b")
        assert not bench.send("b")

    with_bench(run, story)


def test_commands_without_reply_are_bounded_in_bytes(run: Run) -> None:
    async def story(bench: Bench) -> None:
        half = b"x" * (UNANSWERED_BYTES_MAX // 2)
        assert bench.send("a", data=half)
        assert bench.send("b", data=half)
        await asyncio.sleep(0)
        # Written, and yet not answered.
        assert not bench.send("c", data=b"x")
        bench.come(b"+1\r\n")
        assert bench.send("c", data=half)
        assert not bench.send("d", data=b"x")
        assert bench.heard == [("a", b"1")]

    with_bench(run, story)


def test_a_hearer_that_fails_does_not_shift_the_others(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def story(bench: Bench) -> None:
        def fail(outcome: Outcome) -> None:
            raise RuntimeError("broken")

        bench.send("a")
        bench.connection.send(Call(encode(b"b"), inf, fail))
        bench.send("c")
        bench.come(b"+1\r\n+2\r\n+3\r\n")
        assert bench.heard == [("a", b"1"), ("c", b"3")]
        assert [record.levelno for record in caplog.records] == [logging.ERROR]

    with_bench(run, story)


def test_commands_sent_while_replies_are_told_go_to_the_end(run: Run) -> None:
    async def story(bench: Bench) -> None:
        bench.connection.send(Call(encode(b"a"), inf, lambda _: bench.send("again") or None))
        bench.send("b")
        bench.come(b"+1\r\n+2\r\n")
        bench.come(b"+3\r\n")
        assert bench.heard == [("b", b"2"), ("again", b"3")]

    with_bench(run, story)


def test_a_hearer_may_close_it(run: Run) -> None:
    async def story(bench: Bench) -> None:
        bench.connection.send(Call(encode(b"a"), inf, lambda _: bench.close()))
        bench.send("b")
        bench.come(b"+1\r\n+2\r\n")
        assert bench.heard == [("b", Failure.LOST)]
        assert bench.owner.ends == ["the test is over"]

    with_bench(run, story)


def test_no_reply_for_long_ends_it_even_while_bytes_drip(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    monkeypatch.setattr(module, "HUNG_S", 0.05)

    async def story(bench: Bench) -> None:
        bench.send("a")
        bench.come(b"$1000\r\n")
        while not bench.owner.ends:
            await asyncio.sleep(0.005)
            bench.come(b"x")
        assert "no reply for" in bench.owner.ends[0]
        assert bench.heard == [("a", Failure.LOST)]

    with_bench(run, story)


def test_a_command_after_a_long_silence_has_its_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    monkeypatch.setattr(module, "HUNG_S", 0.4)

    async def story(bench: Bench) -> None:
        await asyncio.sleep(0.5)
        bench.send("a")
        await asyncio.sleep(0.05)
        bench.come(b"+1\r\n")
        assert bench.heard == [("a", b"1")]
        assert bench.owner.ends == []

    with_bench(run, story)


def test_silence_is_asked_about(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    monkeypatch.setattr(module, "IDLE_S", 0.03)

    async def story(bench: Bench) -> None:
        while not bench.transport.writes:
            await asyncio.sleep(0.005)
        assert bench.transport.writes == [encode(b"PING")]
        bench.come(b"+PONG\r\n")
        assert bench.connection.in_flight == 0
        monkeypatch.setattr(module, "HUNG_S", 0.05)
        while not bench.owner.ends:
            await asyncio.sleep(0.005)
        assert len(bench.transport.writes) == 2

    with_bench(run, story)
