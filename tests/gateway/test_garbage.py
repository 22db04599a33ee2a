"""Requests leave nothing behind that only a garbage collection would find, however they end."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections import Counter
from pathlib import Path

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


async def garbage(
    sim: SimProvider, kind: str, *, leave: bool = False, at_once: int = 1, cache: str = ""
) -> Counter[str]:
    """What a collection finds after EACH requests of a kind, by type; each asked by so many clients at once."""
    path, fields, fault = KINDS[kind]
    config = parse(
        f'[[providers]]\nname = "sim"\nbase_url = "{sim.base_url}"\n[routing]\nbreaker = false\n{cache}', "test", {}
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
            await asyncio.gather(*(ask(port, path, asked, leave=leave) for _ in range(at_once)))
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


def found(sim: SimProvider, kind: str, *, leave: bool = False, at_once: int = 1, cache: str = "") -> Counter[str]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(garbage(sim, kind, leave=leave, at_once=at_once, cache=cache))


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_is_over_is_no_garbage(sim: SimProvider, kind: str) -> None:
    left = found(sim, kind)
    assert left[Exchange.__name__] + left["Detached"] <= GARBAGE_MAX, left
    assert left[EventRelay.__name__] <= GARBAGE_MAX, left


def test_a_client_that_leaves_its_stream_leaves_no_garbage(sim: SimProvider) -> None:
    left = found(sim, "a stream", leave=True)
    assert left[Exchange.__name__] + left[EventRelay.__name__] <= GARBAGE_MAX, left


@pytest.mark.parametrize("kind", ["kept", "a stream that is kept", "a stream that is cut"])
def test_a_call_that_several_share_is_no_garbage(sim: SimProvider, kind: str) -> None:
    left = found(sim, kind, at_once=3)
    assert left[Exchange.__name__] + left["Detached"] + left["Flight"] + left["Row"] <= GARBAGE_MAX, left


@pytest.mark.parametrize("kind", ["kept", "a stream that is kept", "a failure"])
@pytest.mark.parametrize("at_once", [1, 3])
def test_a_call_whose_answer_goes_to_the_disk_is_no_garbage(
    sim: SimProvider, tmp_path: Path, kind: str, at_once: int
) -> None:
    cache = f'[server]\nstate_dir = "{tmp_path}"\n[cache]\nlevels = ["memory", "sqlite"]\n'
    left = found(sim, kind, at_once=at_once, cache=cache)
    assert left[Exchange.__name__] + left["Detached"] + left["Flight"] + left["Looking"] <= GARBAGE_MAX, left
