"""A story with two waits: on a strand, and in an asyncio task that waits for futures. `python -m bench.micro.strands`.

Each wait is ended from a callback of the loop, as a socket would end it; uvloop's and asyncio's loop.
"""

from __future__ import annotations

import asyncio

import uvloop

from bench.micro.timing import best_us
from dandolo.net.strand import Strand, Waiter

STORIES = 2000


def on_strands() -> None:
    """STORIES stories on strands, one after the other."""

    async def story(first: Waiter[int], second: Waiter[int]) -> None:
        await first
        await second

    async def run() -> None:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        left = STORIES

        def begin() -> None:
            first: Waiter[int] = Waiter()
            second: Waiter[int] = Waiter()
            Strand(story(first, second), end).resume()
            loop.call_soon(first.set, 1)
            loop.call_soon(second.set, 2)

        def end(error: BaseException | None) -> None:
            nonlocal left
            left -= 1
            if left:
                begin()
            else:
                ended.set_result(None)

        begin()
        await ended

    runner.run(run())


def on_tasks() -> None:
    """The same with tasks and futures."""

    async def story(first: asyncio.Future[int], second: asyncio.Future[int]) -> None:
        await first
        await second

    async def run() -> None:
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        left = STORIES

        def begin() -> None:
            first: asyncio.Future[int] = loop.create_future()
            second: asyncio.Future[int] = loop.create_future()
            loop.create_task(story(first, second)).add_done_callback(end)
            loop.call_soon(first.set_result, 1)
            loop.call_soon(second.set_result, 2)

        def end(task: asyncio.Task[None]) -> None:
            nonlocal left
            left -= 1
            if left:
                begin()
            else:
                ended.set_result(None)

        begin()
        await ended

    runner.run(run())


runner: asyncio.Runner


def main() -> None:
    """Print µs a story."""
    global runner
    for name, factory in (("uvloop", uvloop.new_event_loop), ("asyncio", None)):
        with asyncio.Runner(loop_factory=factory) as runner:
            for way in (on_strands, on_tasks):
                print(f"{name:8} {way.__name__[3:]:8} {best_us(way, STORIES):6.2f} µs a story of two waits")


if __name__ == "__main__":
    main()
