"""Requests leave nothing behind that only a garbage collection would find, however they end."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections import Counter

import pytest
import uvloop

from dandolo.config import parse
from dandolo.gateway.exchange import Exchange
from dandolo.gateway.worker import Worker
from dandolo.net.relay import EventRelay
from dandolo.sim import Fault, Script, SimProvider, SimThread

EACH = 12
GARBAGE_MAX = 4
"""Exchanges: one each that is found wherever the story ended is a mistake, some by the way (a refresh) are not."""
KINDS: dict[str, tuple[str, dict[str, object], Fault | None]] = {
    "plain": ("chat/completions", {}, None),
    "kept": ("chat/completions", {"temperature": 0}, None),
    "a stream": ("chat/completions", {"stream": True}, None),
    "a stream that is kept": ("chat/completions", {"stream": True, "temperature": 0}, None),
    "embeddings": ("embeddings", {"input": ["one", "two"]}, None),
    "an answer that is none": ("chat/completions", {}, Fault("html_200")),
    "a failure": ("chat/completions", {"stream": True}, Fault("status", status=500)),
    "no answer": ("chat/completions", {}, Fault("reset_before_answer")),
    "a stream that is cut": ("chat/completions", {"stream": True}, Fault("cut_rst", after=4)),
    "a stream of bad chunks": ("chat/completions", {"stream": True}, Fault("bad_chunk", after=3)),
}


async def ask(port: int, path: str, body: dict[str, object], *, leave: bool = False) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    writer.write(
        b"POST /v1/%b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
        % (path.encode(), len(data), data)
    )
    await (reader.read(200) if leave else reader.read())
    writer.close()


async def garbage(sim: SimProvider, kind: str, *, leave: bool = False) -> Counter[str]:
    """What a collection finds after EACH requests of a kind, by type."""
    path, fields, fault = KINDS[kind]
    config = parse(
        f'[[providers]]\nname = "sim"\nbase_url = "{sim.base_url}"\n[routing]\nbreaker = false\n', "test", {}
    )
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    worker = Worker(config, lambda record: None)
    worker.start([sock])
    number = 0

    async def some() -> None:
        nonlocal number
        for _ in range(EACH):
            number += 1
            messages = [{"role": "user", "content": f"{kind} {leave} {number}"}]
            asked = {"model": "m", **({"messages": messages} if "input" not in fields else {}), **fields}
            await ask(port, path, asked, leave=leave)
        async with asyncio.timeout(10.0):
            while worker.gateway.admission.in_flight:
                await asyncio.sleep(0.01)

    sim.script = Script(tokens=20, tokens_per_s=2000.0, default_fault=fault)
    try:
        # What is made once, and asked for once, comes first.
        await some()
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        await some()
        gc.collect()
        return Counter(type(one).__name__ for one in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        await worker.drain(0.0, 0.0)
        await worker.close()


@pytest.fixture(scope="module")
def sim():
    provider = SimProvider("sim")
    with SimThread(provider):
        yield provider


def found(sim: SimProvider, kind: str, *, leave: bool = False) -> Counter[str]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(garbage(sim, kind, leave=leave))


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_is_over_is_no_garbage(sim: SimProvider, kind: str) -> None:
    left = found(sim, kind)
    assert left[Exchange.__name__] + left["Detached"] <= GARBAGE_MAX, left
    assert left[EventRelay.__name__] <= GARBAGE_MAX, left


def test_a_client_that_leaves_its_stream_leaves_no_garbage(sim: SimProvider) -> None:
    left = found(sim, "a stream", leave=True)
    assert left[Exchange.__name__] + left[EventRelay.__name__] <= GARBAGE_MAX, left
