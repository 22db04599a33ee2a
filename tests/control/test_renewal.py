"""Workers that stand by and then take their slots: real processes that speak the pipe and do nothing else."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest
from test_replacing import HEAD, READY, Heard, until

from dandolo.config import ConfigError
from dandolo.config.schema import Listen
from dandolo.control import renewal, spawn, workers
from dandolo.control.renewal import Renewal
from dandolo.control.sockets import SHARED, Held, close_all, open_all, resized
from dandolo.control.workers import Workers
from dandolo.frames import Kind, encode
from dandolo.net.tasks import Tasks

WAITS = f"s.sendall(struct.pack('<IB', 0, {int(Kind.STANDS_BY)}))\n"
ASKED = f"""
def asked():
    size, kind = struct.unpack('<IB', s.recv(5, socket.MSG_WAITALL))
    question = s.recv(size, socket.MSG_WAITALL)
    # An array of three, whose number is its second byte while it is small; the answer is a number, too.
    s.sendall(struct.pack('<IB', 4, {int(Kind.ANSWER)}) + bytes([0x93, question[1], 0xc3, 1]))
    return question
"""
BEGINS = f"if b'waits' in what:\n    {WAITS}    asked()\n"
UNTIL_DRAINED = "while b'drain' not in asked():\n    pass\n"
SERVES = HEAD + ASKED + BEGINS + READY + UNTIL_DRAINED
FAILS_LATER = HEAD + ASKED + BEGINS + "sys.exit(4)\n"
ENDS = HEAD + "sys.exit(3)\n"


def first(slot: int, generation: int) -> tuple[bytes, list[int]]:
    return encode(Kind.PROVISION, b"begins"), []


def waiting(slot: int, generation: int) -> tuple[bytes, list[int]]:
    return encode(Kind.PROVISION, b"waits"), []


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what workers run from now on."""
    return lambda code: monkeypatch.setattr(spawn, "command", lambda: [sys.executable, "-S", "-c", code])


def ran(test: Callable[[Workers], Coroutine[Any, Any, None]], count: int = 2) -> None:
    async def run() -> None:
        tasks = Tasks()
        group = Workers(count, first, Heard(), tasks)
        try:
            async with asyncio.timeout(20):
                await group.start()
                await test(group)
        finally:
            await group.kill()
            await tasks.close()

    asyncio.run(run())


@pytest.mark.parametrize("count", [1, 2, 4])
def test_all_are_replaced_and_their_number_changes(program: Callable[[str], None], count: int) -> None:
    program(SERVES)

    async def test(group: Workers) -> None:
        before = [child.pid for child in group.serving]
        new = Renewal(group, count, waiting)
        await new.prepare()
        assert [child.pid for child in group.serving] == before
        assert len(group.children) == 2 + count
        group.look()
        assert await new.commit(0.0, 0.0) == []
        assert [child.slot for child in group.serving] == list(range(count))
        assert not {child.pid for child in group.serving} & set(before)
        await until(lambda: len(group.children) == count)
        # And back again, in slots that were there before.
        back = Renewal(group, 2, waiting)
        await back.prepare()
        assert await back.commit(0.0, 0.0) == []
        assert [child.slot for child in group.serving] == [0, 1]

    ran(test)


def test_one_that_ends_before_it_stands_by_changes_nothing(program: Callable[[str], None]) -> None:
    program(SERVES)

    async def test(group: Workers) -> None:
        before = [child.pid for child in group.serving]
        program(ENDS)
        with pytest.raises(RuntimeError, match="ended with 3"):
            await Renewal(group, 3, waiting).prepare()
        assert [child.pid for child in group.children] == before
        assert group.restarts == 0

    ran(test)


def test_what_they_refuse_is_told_as_a_configuration(program: Callable[[str], None]) -> None:
    program(SERVES)

    async def test(group: Workers) -> None:
        payload = msgspec.msgpack.encode([["x.toml", 3, "key", "is no good"]])
        program(HEAD + f"s.sendall({encode(Kind.REFUSED, payload)!r})\nsys.exit(1)\n")
        with pytest.raises(ConfigError, match=r"x\.toml:3: key: is no good"):
            await Renewal(group, 2, waiting).prepare()
        assert len(group.children) == 2

    ran(test)


def test_one_that_takes_too_long_is_given_up(program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    program(SERVES)

    async def test(group: Workers) -> None:
        monkeypatch.setattr(renewal, "START_S", 0.2)
        program(HEAD + "time.sleep(60)\n")
        with pytest.raises(RuntimeError, match="did not get ready"):
            await Renewal(group, 2, waiting).prepare()
        assert len(group.children) == 2

    ran(test)


def test_where_one_fails_to_begin_the_one_before_stays(program: Callable[[str], None]) -> None:
    program(SERVES)

    async def test(group: Workers) -> None:
        before = [child.pid for child in group.serving]
        program(FAILS_LATER)
        new = Renewal(group, 2, waiting)
        await new.prepare()
        program(ENDS)
        assert await new.commit(0.0, 0.0) == [0, 1]
        assert [child.pid for child in group.serving] == before
        assert group.restarts == 0

    ran(test)


def test_one_that_dies_while_it_stands_by_is_replaced_in_the_usual_way(program: Callable[[str], None]) -> None:
    program(SERVES)

    async def test(group: Workers) -> None:
        before = [child.pid for child in group.serving]
        new = Renewal(group, 3, waiting)
        await new.prepare()
        for child in group.children:
            if child.waits and child.slot != 1:
                child.kill()
        await until(lambda: sum(child.waits for child in group.children) == 1)
        assert await new.commit(0.0, 0.0) == [2]
        # The one of a slot that had none before is brought back as any that dies.
        await until(lambda: len(group.serving) == 3)
        assert not {child.pid for child in group.serving} & set(before)

    ran(test)


def test_a_worker_that_finishes_is_not_cut_by_many_reloads(
    program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "RETIRING_MAX", 1)
    monkeypatch.setattr(renewal, "RETIRING_MAX", 1)
    # Asked to end, it takes its time.
    program(SERVES + "time.sleep(0.3)\n")

    async def test(group: Workers) -> None:
        ends = [child.over for child in group.children]
        for _ in range(3):
            new = Renewal(group, 1, waiting)
            await new.prepare()
            ends += [child.over for child in group.children if child.waits]
            assert await new.commit(0.0, 10.0) == []
        await asyncio.wait(ends[:-1])
        assert [end.result() for end in ends[:-1]] == [0] * 3

    ran(test, count=1)


# -- sockets -------------------------------------------------------------------------------------------------------


def slots(held: list[Held]) -> list[int]:
    return [one.slot for one in held]


def test_sockets_of_more_slots_listen_once_somebody_accepts_there() -> None:
    held = open_all([Listen("tcp", host="127.0.0.1", port=0)], 2)
    more = resized(held, 4)
    try:
        assert slots(more) == [0, 1, 2, 3]
        assert [one.sock for one in more[:2]] == [one.sock for one in held]
        assert len({one.sock.getsockname() for one in more}) == 1
        option = (socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        assert [one.sock.getsockopt(*option) for one in more] == [1, 1, 0, 0]
    finally:
        close_all(more)


def test_sockets_of_fewer_slots_are_everybodys_and_are_taken_again() -> None:
    held = open_all([Listen("tcp", host="127.0.0.1", port=0)], 3)
    try:
        fewer = resized(held, 1)
        assert slots(fewer) == [0, SHARED, SHARED]
        again = resized(fewer, 3)
        assert slots(again) == [0, 1, 2]
        assert {one.sock for one in again} == {one.sock for one in held}
    finally:
        close_all(held)


def test_sockets_that_somebody_else_opened_stay_as_they_are() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        held = [Held(sock, SHARED)]
        assert resized(held, 5) == held
