"""One provider in a thread, on both kinds of loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from dandolo.sim import SimProvider, SimThread

# Modules beside the tests are imported by name; the importlib mode leaves sys.path alone.
sys.path.insert(0, str(Path(__file__).parent))

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop] | None] = {
    "asyncio": None,
    "uvloop": uvloop.new_event_loop,
}


@pytest.fixture(params=LOOPS)
def sim(request: pytest.FixtureRequest) -> Iterator[SimProvider]:
    provider = SimProvider("sim-a")
    with SimThread(provider, loop_factory=LOOPS[request.param]):
        yield provider
    assert provider.connections_open == 0
    assert provider.in_flight == 0
