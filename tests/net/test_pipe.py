"""The pipe between processes, over a real socket pair: what is lost when nobody reads, and what is not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvloop

from dandolo.frames import Kind, encode
from dandolo.net import pipe as pipes
from dandolo.net.pair import pair
from dandolo.net.pipe import Pipe


class End:
    """One end that takes note."""

    def __init__(self) -> None:
        self.frames: list[tuple[Kind, bytes]] = []
        self.lost = asyncio.Event()
        self.pipe: Pipe

    async def take(self, sock: socket.socket) -> End:
        self.pipe = await Pipe.over(
            sock, lambda kind, payload: self.frames.append((kind, bytes(payload))), self.lost.set
        )
        return self


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> asyncio.Runner:
    return asyncio.Runner(loop_factory=request.param)


def test_frames_go_both_ways_and_the_end_is_told(runner: asyncio.Runner) -> None:
    async def run() -> None:
        ours, theirs = pair()
        one, two = await End().take(ours), await End().take(theirs)
        large = bytes(3_000_000)
        assert one.pipe.send(Kind.ASK, large)
        assert two.pipe.send(Kind.ANSWER, b"yes")
        await until(lambda: two.frames and one.frames)
        assert (two.frames, one.frames) == ([(Kind.ASK, large)], [(Kind.ANSWER, b"yes")])
        one.pipe.send(Kind.ASK, b"last")
        await one.pipe.finish(5)
        await until(two.lost.is_set)
        assert two.frames[-1] == (Kind.ASK, b"last")
        assert one.pipe.lost
        assert not one.pipe.send(Kind.ASK, b"")
        assert not two.pipe.send(Kind.ASK, b"")

    with runner:
        runner.run(run())


def test_what_may_be_lost_is_lost_when_nobody_reads_and_the_rest_is_not(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipes, "HELD_BYTES_MAX", 100_000)

    async def run() -> None:
        ours, theirs = pair()
        one = await End().take(ours)
        sent = 0
        while one.pipe.send(Kind.RECORDS, bytes(50_000), may_be_lost=True):
            sent += 1
            assert sent < 1000
        assert one.pipe.send(Kind.ANSWER, b"sure")
        two = await End().take(theirs)
        await until(lambda: len(two.frames) == sent + 1)
        assert two.frames[-1] == (Kind.ANSWER, b"sure")
        await until(lambda: one.pipe.held_bytes == 0)
        assert one.pipe.send(Kind.RECORDS, b"again", may_be_lost=True)
        one.pipe.abort()
        two.pipe.abort()
        await until(lambda: one.lost.is_set() and two.lost.is_set())

    with runner:
        runner.run(run())


def test_an_end_that_never_reads_is_given_up(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "HELD_BYTES_SURE", 200_000)

    async def run() -> None:
        ours, theirs = pair()
        one = await End().take(ours)
        for _ in range(1000):
            if not one.pipe.send(Kind.ASK, bytes(50_000)):
                break
        await until(one.lost.is_set)
        theirs.close()

    with runner:
        runner.run(run())


@pytest.mark.parametrize("data", [b"\xff" * 16, encode(Kind.BEAT, b"x") + b"\x00\x00\x00\x00\x63"])
def test_what_is_no_frame_ends_the_pipe(runner: asyncio.Runner, data: bytes) -> None:
    async def run() -> None:
        ours, theirs = pair()
        one = await End().take(ours)
        theirs.sendall(data)
        await until(one.lost.is_set)
        theirs.close()

    with runner:
        runner.run(run())


def test_a_frame_that_cannot_be_dealt_with_ends_the_pipe(runner: asyncio.Runner) -> None:
    async def run() -> None:
        ours, theirs = pair()
        lost = asyncio.Event()

        def fail(kind: Kind, payload: memoryview) -> None:
            raise ValueError("no")

        await Pipe.over(ours, fail, lost.set)
        theirs.sendall(encode(Kind.BEAT, b""))
        await until(lost.is_set)
        theirs.close()

    with runner:
        runner.run(run())
