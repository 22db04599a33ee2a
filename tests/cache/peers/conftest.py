"""A loop for a test, and the check that nothing is left behind on it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

sys.path.insert(0, str(Path(__file__).parent))

from peer_homes import Run


def descriptors() -> int:
    """Open files of this process."""
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test's coroutine; afterwards as many descriptors and tasks must be there as before."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    async def judged(main: Coroutine[Any, Any, None]) -> None:
        before = descriptors()
        async with asyncio.timeout(60):
            await main
        for _ in range(200):
            if descriptors() <= before:
                break
            await asyncio.sleep(0.005)
        assert descriptors() <= before
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def warm_up() -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        _, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        writer.close()
        server.close()
        await asyncio.sleep(0.01)

    def go(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            # What a loop opens when it first listens and connects is its own.
            runner.run(warm_up())
            runner.run(judged(main))

    return go
