"""Workers that hang, refuse, or do not come up: real processes that speak the pipe and do nothing else."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
import pytest

from dandolo.config import ConfigError
from dandolo.control import spawn, workers
from dandolo.control.child import Child, Sample
from dandolo.control.workers import Workers
from dandolo.frames import Kind, encode
from dandolo.net.tasks import Tasks
from dandolo.record import Record

HEAD = "import socket, struct, sys, time\ns = socket.socket(fileno=3)\nwhat = s.recv(1000)\n"
READY = f"s.sendall(struct.pack('<IB', 0, {int(Kind.READY)}))\n"
SILENT = HEAD + READY + "time.sleep(60)\n"
ENDS = HEAD + "sys.exit(3)\n"
LOADS_FOR_EVER = HEAD + "time.sleep(60)\n"
NONSENSE = HEAD + "s.sendall(b'\\xff' * 100)\ntime.sleep(60)\n"


class Heard:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.ended: list[int] = []

    def records(self, records: Sequence[Record]) -> None:
        pass

    def event(self, kind: str, text: str) -> None:
        self.events.append(text)

    def leaving(self, child: Child) -> None:
        pass

    def last(self, child: Child, samples: list[Sample] | None) -> None:
        self.ended.append(child.pid)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what workers run from now on."""
    return lambda code: monkeypatch.setattr(spawn, "command", lambda: [sys.executable, "-S", "-c", code])


def ran(test: Callable[[Workers, Heard], Coroutine[Any, Any, None]], count: int = 1) -> None:
    async def run() -> None:
        heard, tasks = Heard(), Tasks()
        group = Workers(count, lambda slot, generation: (encode(Kind.PROVISION, b""), []), heard, tasks)
        try:
            async with asyncio.timeout(20):
                await test(group, heard)
        finally:
            await group.kill()
            await tasks.close()

    asyncio.run(run())


async def until(true: Callable[[], object]) -> None:
    while not true():
        await asyncio.sleep(0.01)


def test_a_worker_that_says_nothing_is_killed_and_replaced(
    program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "HUNG_S", 0.3)
    program(SILENT)

    async def test(group: Workers, heard: Heard) -> None:
        await group.start()
        (first,) = group.serving
        assert group.look()
        well = []
        while not heard.ended:
            well.append(group.look())
            await asyncio.sleep(0.05)
        assert heard.ended == [first.pid]
        assert not all(well)  # nobody served for a moment: the service manager would have heard nothing from us
        await until(lambda: group.serving)
        assert group.serving[0].pid != first.pid
        assert heard.events == ["worker 0 ended with signal SIGKILL"]

    ran(test)


def test_nobody_is_taken_to_hang_when_we_stood_still_ourselves(
    program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "HUNG_S", 0.2)
    monkeypatch.setattr(workers, "LATE_S", 0.1)
    program(SILENT)

    async def test(group: Workers, heard: Heard) -> None:
        await group.start()
        await asyncio.sleep(0.5)
        group.look()
        await asyncio.sleep(0.05)
        assert not heard.ended

    ran(test)


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [(ENDS, RuntimeError, "ended with 3"), (LOADS_FOR_EVER, RuntimeError, "did not get ready|signal 9")],
    ids=["ends", "loads for ever"],
)
def test_a_start_that_fails_is_told_and_leaves_nothing(
    program: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    error: type[Exception],
    said: str,
) -> None:
    monkeypatch.setattr(workers, "START_S", 0.5)
    program(code)

    async def test(group: Workers, heard: Heard) -> None:
        with pytest.raises(error, match=said):
            await group.start()
        assert not group.serving
        assert len(heard.ended) == 2

    ran(test, count=2)


def test_a_configuration_that_workers_refuse_is_told_as_one(program: Callable[[str], None]) -> None:
    payload = msgspec.msgpack.encode([["x.toml", 3, "key", "is no good"]])
    program(HEAD + f"s.sendall({encode(Kind.REFUSED, payload)!r})\nsys.exit(1)\n")

    async def test(group: Workers, heard: Heard) -> None:
        with pytest.raises(ConfigError, match=r"x\.toml:3: key: is no good"):
            await group.start()

    ran(test)


@pytest.mark.parametrize("code", [ENDS, LOADS_FOR_EVER], ids=["ends", "loads for ever"])
def test_the_old_worker_stays_when_the_new_one_does_not_come_up(
    program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    program(SILENT)

    async def test(group: Workers, heard: Heard) -> None:
        await group.start()
        before = [child.pid for child in group.serving]
        monkeypatch.setattr(workers, "START_S", 0.5)
        program(code)
        assert not await group.restart(0.0, 1.0)
        assert [child.pid for child in group.serving] == before
        await until(lambda: len(heard.ended) == 1)
        assert [child.pid for child in group.serving] == before

    ran(test, count=2)


def test_a_worker_that_talks_nonsense_is_replaced(program: Callable[[str], None]) -> None:
    program(SILENT)

    async def test(group: Workers, heard: Heard) -> None:
        await group.start()
        (first,) = group.serving
        with pytest.raises(Exception, match="did not answer within"):
            await first.ask("anything", None, 0.05)
        program(NONSENSE)
        first.kill()
        await until(lambda: len(heard.ended) >= 2)  # its successor is killed for what it says

    ran(test)
