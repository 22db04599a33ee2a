"""One stream for many clients without sockets: what the gateway's own code costs for each of them.

`python -m bench.micro.followers [--clients 100] [--pieces 50] [--profile begin|piece|end] [--fixed ROUNDS]` prints µs a
client to begin (a new connection and its first request), a client and piece, and a client to end. For instructions,
run it under callgrind with `--fixed` of two counts, or of two numbers of pieces, and divide the difference.
"""

from __future__ import annotations

import asyncio
import cProfile
import gc
import json
import os
import pstats
import sys
import time
from collections.abc import Callable

from bench.micro.path import CONFIG, LIMITS, REQUEST_HEAD, NullTransport
from dandolo.config import parse
from dandolo.gateway.gateway import Gateway
from dandolo.net.downstream import Downstream
from dandolo.net.upstream import Upstream
from dandolo.record import Record

HEAD = (
    b"HTTP/1.1 200 OK\r\nDate: Mon, 23 Nov 2026 20:00:00 GMT\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\nopenai-organization: bench\r\nx-request-id: req_1\r\n\r\n"
)


def event(number: int) -> bytes:
    """A chunk of the provider's, framed."""
    data = json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "bench-model",
            "choices": [{"index": 0, "delta": {"content": f" word {number}"}, "finish_reason": None}],
        }
    )
    content = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(content), content)


END = b"".join(
    b"%x\r\n%b\r\n" % (len(content), content)
    for content in (
        b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"bench-model","choices":'
        b'[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
        b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"bench-model","choices":'
        b'[],"usage":{"prompt_tokens":20,"completion_tokens":50,"total_tokens":70}}\n\ndata: [DONE]\n\n',
        b"",
    )
)


class Round:
    """One stream, from the first client's connection to the last one's end."""

    def __init__(self, gateway: Gateway, clients: int, pieces: int) -> None:
        self.gateway = gateway
        self.clients = clients
        self.pieces = [event(number) for number in range(pieces)]
        self.number = 0
        self.transports: list[NullTransport] = []
        self.provider: Upstream | None = None

    def begin(self) -> None:
        """All clients connect and ask; the provider's head comes."""
        self.number += 1
        gateway = self.gateway
        provider = self.provider = Upstream(gateway.now(), secure=True)
        provider.connection_made(NullTransport())  # type: ignore[arg-type]
        provider.reader.begin()
        provider.reader._state = 5
        runtime = next(iter(gateway.plane.fleet))
        runtime.pool._idle.append(provider)
        content = json.dumps(
            {
                "model": "bench-model",
                "messages": [{"role": "user", "content": f"{self.number} " + "word " * 180}],
                "temperature": 0,
                "stream": True,
            }
        ).encode()
        request = REQUEST_HEAD.format(0, len(content)).encode() + content
        self.transports = [NullTransport() for _ in range(self.clients)]
        self.connections = [Downstream(gateway, "127.0.0.1") for _ in range(self.clients)]
        for connection, transport in zip(self.connections, self.transports, strict=True):
            connection.connection_made(transport)  # type: ignore[arg-type]
            connection.data_received(request)
        provider.data_received(HEAD)

    def send(self) -> None:
        """The pieces come, each in a turn of its own."""
        assert self.provider is not None
        outbox = self.connections[0].outbox
        for piece in self.pieces:
            self.provider.data_received(piece)
            outbox.flush()

    def end(self) -> None:
        """The stream ends for everybody."""
        assert self.provider is not None
        self.provider.data_received(END)
        self.connections[0].outbox.flush()

    def after(self) -> None:
        """What the next beat does, and the clients' leaving."""
        self.gateway.settle()
        for connection in self.connections:
            connection.connection_lost(None)


def _option(name: str, otherwise: str) -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else otherwise


def _timed(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


async def main() -> None:
    os.environ.update(BENCH_KEY="bench-key-0123456789abcdef", BENCH_PROVIDER_KEY="provider")
    config = parse(CONFIG.replace("LIMITS", LIMITS if "--limits" in sys.argv else ""), "bench", os.environ)
    records: list[Record] = []
    gateway = Gateway(config, records.append)
    clients, pieces = int(_option("--clients", "100")), int(_option("--pieces", "50"))
    story = Round(gateway, clients, pieces)
    steps = (story.begin, story.send, story.end, story.after)
    if "--fixed" in sys.argv:
        gc.disable()
        for _ in range(int(_option("--fixed", "1"))):
            for step in steps:
                step()
        return
    profile, profiled = cProfile.Profile(), _option("--profile", "")
    best = [float("inf")] * len(steps)
    first = [0.0] * len(steps)
    gc.disable()
    for number in range(40):
        gc.collect()
        for index, step in enumerate(steps):
            if number > 20 and step.__name__ == profiled:
                profile.runcall(step)
                continue
            took = _timed(step)
            first[index] = first[index] or took
            best[index] = min(best[index], took)
        written = {transport.written for transport in story.transports}
        assert max(written) - min(written) < 100, written
        assert len(records) == clients, len(records)
        assert len(gateway.flights) == 0
        records.clear()
    for step, cold, warm in zip(steps, first, best, strict=True):
        share = clients * (pieces if step.__name__ == "send" else 1)
        print(f"{step.__name__:6s} {warm / share * 1e6:7.2f} µs a client, the first time {cold / share * 1e6:7.2f}")
    if profiled:
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    asyncio.run(main())
