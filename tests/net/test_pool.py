"""Idle connections: the last used first, never a dead one."""

from __future__ import annotations

import asyncio
import socket

import pytest

from dandolo.net.pool import Pool
from dandolo.net.sweep import NEVER, Sweep
from dandolo.net.tasks import Tasks
from dandolo.net.upstream import Upstream


class Connection:
    def __init__(self, born: float = 0.0, *, secure: bool = False) -> None:
        self.born = self.idle_since = born
        self.reused = False
        self.secure = secure
        self.usable = True
        self.waiting = False
        self.asked = 0
        self.closed = False

    def readable(self) -> bool:
        self.asked += 1
        return self.waiting

    def close(self) -> None:
        self.closed = True


def pool(idle_s: float = 10.0, age_max_s: float = 100.0, idle_max: int = 4) -> Pool[Connection]:
    return Pool(idle_s=idle_s, age_max_s=age_max_s, idle_max=idle_max)


def test_the_connection_used_last_comes_first() -> None:
    idle, connections = pool(), [Connection() for _ in range(3)]
    for connection in connections:
        idle.give(connection, 1.0)
    assert [idle.take(2.0) for _ in range(4)] == [*reversed(connections), None]
    assert all(connection.reused for connection in connections)


@pytest.mark.parametrize(
    ("age", "idle_for", "kept"), [(10.0, 10.0, True), (50.0, 10.1, False), (100.0, 1.0, True), (100.1, 1.0, False)]
)
def test_what_was_idle_or_alive_too_long_is_closed(age: float, idle_for: float, kept: bool) -> None:
    for expire in (False, True):
        idle, connection = pool(), Connection(born=0.0)
        idle.give(connection, age - idle_for)
        if expire:
            idle.expire(age)
        taken = idle.take(age)
        assert (taken is connection, connection.closed) == (kept, not kept)


def test_dead_ones_are_passed_over_and_closed() -> None:
    idle, good, dead = pool(), Connection(), Connection()
    idle.give(good, 1.0)
    idle.give(dead, 1.0)
    # Reads stay armed: the end of an idle connection is seen, and `closed` set, when it comes.
    dead.closed = True
    assert idle.take(2.0) is good
    assert not good.closed
    assert idle.take(2.0) is None


def test_expiry_closes_what_the_provider_closed_and_keeps_the_order() -> None:
    idle, connections = pool(), [Connection() for _ in range(3)]
    for connection in connections:
        idle.give(connection, 1.0)
    connections[1].usable = False
    idle.expire(2.0)
    assert len(idle) == 2
    assert [idle.take(2.0), idle.take(2.0)] == [connections[2], connections[0]]


def test_a_connection_that_cannot_be_used_again_is_not_kept() -> None:
    idle = pool()
    unusable, old = Connection(), Connection(born=0.0)
    unusable.usable = False
    idle.give(unusable, 1.0)
    idle.give(old, 100.1)
    assert len(idle) == 0
    assert unusable.closed
    assert old.closed


def test_no_more_are_kept_than_the_bound() -> None:
    idle, connections = pool(idle_max=2), [Connection() for _ in range(3)]
    for connection in connections:
        idle.give(connection, 1.0)
    assert [connection.closed for connection in connections] == [False, False, True]


def test_the_kernel_is_asked_only_within_the_turn_that_gave_it_back() -> None:
    idle = pool()
    at_once, later, secure = Connection(), Connection(), Connection(secure=True)
    for connection in (at_once, later, secure):
        connection.waiting = True
    idle.give(at_once, 1.0)
    assert idle.take(1.0) is None
    assert at_once.closed
    idle.give(later, 1.0)
    assert idle.take(1.5) is later
    idle.give(secure, 2.0)
    assert idle.take(2.0) is secure
    assert (later.asked, secure.asked) == (0, 0)


def test_closing_closes_all() -> None:
    idle, connections = pool(), [Connection() for _ in range(3)]
    for connection in connections:
        idle.give(connection, 1.0)
    idle.close()
    assert all(connection.closed for connection in connections)
    assert idle.take(1.0) is None


@pytest.mark.parametrize("what", ["bytes", "end", "nothing"])
def test_bytes_waiting_on_a_real_idle_connection_mean_it_is_dead(what: str) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        _, connection = await loop.create_connection(lambda: Upstream(loop.time(), secure=False), sock=ours)
        answer = connection.send(b"GET / HTTP/1.1\r\n\r\n", b"")
        connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Type: application/json\r\n\r\n")
        assert answer.done
        assert connection.usable
        if what == "bytes":
            theirs.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsmuggled!")
        elif what == "end":
            theirs.shutdown(socket.SHUT_WR)
        idle: Pool[Upstream] = Pool(idle_s=10, age_max_s=100, idle_max=4)
        now = loop.time()
        idle.give(connection, now)
        # No turn of the loop in between: only the kernel knows.
        taken = idle.take(now)
        assert (taken is connection) is (what == "nothing")
        assert connection.closed is (what != "nothing")
        connection.close()
        theirs.close()
        await asyncio.sleep(0)

    asyncio.run(run())


# -- sweep ---------------------------------------------------------------------------------------------


class Thing:
    def __init__(self, deadline: float, sweep: Sweep, *, ends: tuple[Thing, ...] = ()) -> None:
        self.deadline, self._sweep, self._ends = deadline, sweep, ends
        self.expired: list[float] = []
        sweep.items.add(self)

    def expire(self, now: float) -> None:
        self.expired.append(now)
        self.deadline = NEVER
        for other in self._ends:
            self._sweep.items.discard(other)
            other.deadline = NEVER


def test_only_what_is_due_expires_and_once() -> None:
    sweep = Sweep()
    due, exact, later, never = (Thing(at, sweep) for at in (1.0, 2.0, 2.1, NEVER))
    sweep.tick(2.0)
    sweep.tick(2.0)
    assert [thing.expired for thing in (due, exact, later, never)] == [[2.0], [2.0], [], []]


def test_a_moved_deadline_holds() -> None:
    sweep = Sweep()
    thing = Thing(1.0, sweep)
    thing.deadline = 5.0
    sweep.tick(2.0)
    assert thing.expired == []


def test_what_another_ended_in_the_same_tick_does_not_expire() -> None:
    sweep = Sweep()
    first, second = Thing(1.0, sweep), Thing(1.0, sweep)
    first._ends, second._ends = (second,), (first,)
    sweep.tick(2.0)
    assert len(first.expired) + len(second.expired) == 1


# -- tasks ---------------------------------------------------------------------------------------------


def test_tasks_are_kept_until_their_end_and_ended_together(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        tasks, cancelled = Tasks(), []

        async def fails() -> None:
            raise ValueError("sk-secret")

        async def waits() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(1)
                raise

        failing = tasks.spawn(fails(), "fails")
        for i in range(3):
            tasks.spawn(waits(), f"waits-{i}")
        await asyncio.wait([failing])
        await asyncio.sleep(0)
        assert len(tasks) == 3
        await tasks.close()
        assert len(tasks) == 0
        assert len(cancelled) == 3

    asyncio.run(run())
    (record,) = caplog.records
    assert record.getMessage() == "task fails failed: ValueError"
