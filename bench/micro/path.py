"""The whole path of a plain request without sockets: what the gateway's own code costs, in µs a request.

Transports are replaced by objects that drop what they are given, so that only parsing, admission, routing,
the exchange, usage and the record remain. `python -m bench.micro.path [--limits] [--workers N] [--ledger] [--profile]`;
with `--limits` the key has every limit there is, none of which is reached; `--workers` has it read what so many workers
have counted; `--ledger` writes the journal too, which is emptied between rounds.

`--levels memory,redis` asks for what may be kept, each time something new, with these tiers (none of them is
started: they decline at once, and of a tier beyond memory only our own way to it is counted); `--siblings` besides
with a sibling to share with, who is not there, so that each key is our own. `--off` is the same without a cache.
"""

from __future__ import annotations

import asyncio
import cProfile
import gc
import itertools
import json
import mmap
import os
import pstats
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dandolo.board import Board
from dandolo.cache.peers.place import Membership
from dandolo.config import parse
from dandolo.config.address import Listen
from dandolo.control.log import format_record
from dandolo.gateway.books import Books
from dandolo.gateway.caching import secret_of
from dandolo.gateway.gateway import Gateway
from dandolo.gateway.sharing import Sharing
from dandolo.journal import CURSOR_AT, Journal
from dandolo.net.downstream import Downstream
from dandolo.net.upstream import Upstream

CONFIG = """
[[keys]]
name = "bench"
key = { env = "BENCH_KEY" }
LIMITS
[[providers]]
name = "stub"
base_url = "http://127.0.0.1:9/v1"
key = { env = "BENCH_PROVIDER_KEY" }
[[providers.models]]
id = "bench-model"
input_usd_per_mtok = 0.70
output_usd_per_mtok = 2.80
"""

LIMITS = """
rpm = 1_000_000_000
tpm = 1_000_000_000_000
concurrent = 1_000_000
budget_usd_per_day = 1e9
budget_usd_per_month = 1e9
"""

REQUEST_HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nAccept-Encoding: gzip, deflate\r\n"
    "Connection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\n"
    "User-Agent: OpenAI/Python 2.1.0\r\nX-Stainless-Lang: python\r\nX-Stainless-Async: false\r\n"
    "Authorization: Bearer bench-key-0123456789abcdef\r\nx-request: {:08d}\r\nContent-Length: {}\r\n\r\n"
)
ANSWER_HEAD = (
    "HTTP/1.1 200 OK\r\nDate: Mon, 23 Nov 2026 20:00:00 GMT\r\nContent-Type: application/json\r\n"
    "Content-Length: {}\r\nopenai-organization: bench\r\nopenai-processing-ms: 12\r\nopenai-version: 2020-10-01\r\n"
    "x-ratelimit-limit-requests: 10000\r\nx-ratelimit-remaining-requests: 9999\r\nx-request-id: req_{:08d}\r\n\r\n"
)


ROUNDS = 8


class NullTransport:
    """A transport that takes everything and keeps nothing."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def writelines(self, data: Any) -> None:
        self.written += sum(map(len, data))

    def set_write_buffer_limits(self, high: int = 0, low: int = 0) -> None: ...

    def set_read_buffer_limits(self, high: int = 0) -> None: ...

    def get_extra_info(self, name: str) -> None: ...

    def set_protocol(self, protocol: Any) -> None: ...

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def abort(self) -> None: ...


def body(size: int, messages: int, number: int, temperature: float = 0.7) -> bytes:
    """A chat completion of about `size` bytes."""
    text = 'the quick "brown" fox\njumps over the lazy dog and réflects upon its choice of path; '
    share = max(1, (size - 120) // messages // len(text.encode()))
    return json.dumps(
        {
            "model": "bench-model",
            "messages": [{"role": "user", "content": f"{number:08d} " + text * share} for _ in range(messages)],
            "temperature": temperature,
            "max_tokens": 256,
        },
        ensure_ascii=False,
        separators=(",", ":"),
    ).encode()


async def main() -> None:
    os.environ.update(BENCH_KEY="bench-key-0123456789abcdef", BENCH_PROVIDER_KEY="provider")
    text = CONFIG.replace("LIMITS", LIMITS if "--limits" in sys.argv else "")
    levels = sys.argv[sys.argv.index("--levels") + 1].split(",") if "--levels" in sys.argv else []
    kept = bool(levels) or "--off" in sys.argv
    folder = Path(tempfile.mkdtemp())
    if kept:
        text += f"[server]\nstate_dir = {json.dumps(str(folder))}\n[cache]\nlevels = {json.dumps(levels)}\n"
        if "redis" in levels:
            text += '[cache.redis]\nurl = "redis://127.0.0.1:9/0"\n'
    config = parse(text, "bench", os.environ)
    lines: list[bytes] = []

    def take(record: Any) -> None:
        lines.append(format_record(record, "json"))
        if len(lines) > 1000:
            lines.clear()

    workers = int(sys.argv[sys.argv.index("--workers") + 1]) if "--workers" in sys.argv else 1
    fd = Board.create(16, workers)
    gateway = Gateway(config, take, board=Board(mmap.mmap(fd, 0), 0, gives_places=True))
    journal: Journal | None = None
    if "--ledger" in sys.argv:
        journal = Journal(folder, gateway.request_prefix)
        gateway.books = Books(journal)
    if gateway.tiers is not None and gateway.tiers.redis is not None:
        gateway.tiers.redis._loop = asyncio.get_running_loop()
    if "--siblings" in sys.argv:
        members = Membership("a", (Listen("unix", path=str(folder / "a")),), (Listen("unix", path=str(folder / "b")),))
        gateway.sharing = Sharing(gateway, members, secret_of(config))
        gateway.sharing.peers._loop = asyncio.get_running_loop()
    client = Downstream(gateway, "127.0.0.1")
    client.connection_made(NullTransport())  # type: ignore[arg-type]
    runtime = next(iter(gateway.plane.fleet))
    provider = Upstream(gateway.now(), secure=True)
    provider.connection_made(NullTransport())  # type: ignore[arg-type]
    provider.reader.begin()
    provider.reader._state = 5
    runtime.pool._idle.append(provider)
    answer = json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "bench-model",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": "word " * 130}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 200, "completion_tokens": 150, "total_tokens": 350},
        }
    ).encode()
    gc.collect()
    gc.freeze()
    gc.disable()
    for size, messages, count in (
        (1024, 2, 100 if "--fixed" in sys.argv else 4000),
        (32 * 1024, 20, 1000),
        (256 * 1024, 40, 200),
    ):
        # Where answers are kept, each round asks for what nobody has asked for before.
        rounds = []
        for turn in range(ROUNDS if kept else 1):
            requests = []
            for number in range(count):
                content = body(size, messages, number + turn * count, 0.0 if kept else 0.7)
                requests.append(REQUEST_HEAD.format(number, len(content)).encode() + content)
            rounds.append(requests)
        turns = itertools.cycle(rounds)
        answers = [(ANSWER_HEAD.format(len(answer), number)).encode() + answer for number in range(count)]

        def once() -> None:
            for request, reply in zip(next(turns), answers, strict=True):  # noqa: B023
                client._requests = 0
                client.data_received(request)
                provider.data_received(reply)
            gateway.settle()
            if gateway.tiers is not None:
                # Written behind, by somebody who has no turn here.
                gateway.tiers._queue.clear()
            if journal is not None:
                struct.pack_into("<Q", journal._map, CURSOR_AT, journal._at)

        if "--fixed" in sys.argv:
            # For callgrind: run with two counts and divide the difference of instructions.
            for _ in range(int(sys.argv[sys.argv.index("--fixed") + 1])):
                once()
            break
        best = min(_timed(once) for _ in range(ROUNDS - 1)) / count
        print(f"{len(requests[0]):7d} bytes: {best * 1e6:7.2f} µs a request")
        if "--profile" in sys.argv and size == 1024:
            profile = cProfile.Profile()
            profile.runcall(once)
            pstats.Stats(profile).sort_stats("tottime").print_stats(45)


def _timed(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    asyncio.run(main())
