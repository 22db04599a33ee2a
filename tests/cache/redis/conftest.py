"""Runners, real servers where there are any, and the check that nothing is left behind.

Modules beside the tests are imported by name; the importlib mode leaves sys.path alone.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from math import inf
from pathlib import Path
from typing import Any

import pytest
import uvloop

from dandolo.cache.redis import connection

sys.path.insert(0, str(Path(__file__).parent))

from redis_servers import PROGRAM, RealCluster, RealRedis
from redis_waiting import descriptors, settled

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(autouse=True)
def punctual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures count however late this machine runs its timers; the test of that sets the real bound."""
    monkeypatch.setattr(connection, "LATE_S", inf)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test's coroutine; afterwards as many descriptors and tasks must be there as before."""
    return runner(uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop)


@pytest.fixture
def run_once() -> Run:
    """The same on the loop that serves only, for tests that take seconds."""
    return runner(uvloop.new_event_loop)


def runner(factory: Callable[[], asyncio.AbstractEventLoop]) -> Run:
    async def judged(main: Coroutine[Any, Any, None]) -> None:
        before = descriptors()
        async with asyncio.timeout(60):
            await main
        assert await settled(before) <= before
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def go(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            # What a loop opens when it first resolves, listens and connects is its own.
            runner.run(_warm_up())
            runner.run(judged(main))

    return go


async def _warm_up() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
    writer.close()
    server.close()
    await asyncio.sleep(0.01)


StartRedis = Callable[..., RealRedis]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[StartRedis]:
    """Start a real server with further arguments; it ends with the test. Skips without redis-server."""
    if PROGRAM is None:
        pytest.skip("redis-server is not here")
    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(RealRedis(tmp_path, *arguments))


@pytest.fixture
def real_cluster(tmp_path: Path) -> Iterator[RealCluster]:
    """Three real masters. Skips without redis-server."""
    if PROGRAM is None:
        pytest.skip("redis-server is not here: no cluster")
    with RealCluster(tmp_path) as running:
        yield running
