"""What the cache costs and saves, through whole servers: `python -m bench.cache.server [--write]`.

    hit     the same 1 KB request again and again: Dandolo's memory beside nginx's proxy_cache, whose key is the body
            (with open_file_cache besides, nginx takes a quarter less)
    miss    a new request each time that may be kept: Dandolo with `levels = ["memory"]` beside `levels = []`
    bypass  a new request each time that may not (a temperature): the same two
    stream  100 clients that ask for one and the same stream at one time: how late chunks are, shared and each its own
    batch   64 clients that ask for one embedding each, before a provider that takes 20 ms a call and four calls at a
            time: batches beside none; and one client alone, whose wait must not grow

CPU is that of the server's processes, the steadiest figure of a shared machine. Every target runs alone on its core,
fresh for each run; load and stub are on the other. Targets alternate within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.load import generator
from bench.load.processes import Child, descendants
from bench.load.run import checked, load_arguments
from bench.load.targets import (
    CLIENT_KEY,
    DANDOLO,
    MODEL,
    PROVIDER_KEY,
    Place,
    Running,
    Wiring,
    _answering,
    _until_answer,
    free_port,
    stub,
)

RESULTS = Path(__file__).parent / "results" / "server.md"
ROOT = Path(__file__).parents[2]

NGINX = """\
{user}worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_rlimit_nofile 20000;
events {{ worker_connections 16384; }}
http {{
    access_log {folder}/access.log combined buffer=64k flush=1s;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    proxy_cache_path {folder}/cache levels=1:2 keys_zone=answers:16m max_size=64m inactive=1h use_temp_path=off;
    keepalive_timeout 75s;
    keepalive_requests 100000000;
    client_max_body_size 32m;
    client_body_buffer_size 512k;
    upstream provider {{ server 127.0.0.1:{stub_port}; keepalive 256; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://provider;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Authorization "Bearer {provider_key}";
            proxy_cache answers;
            proxy_cache_methods POST;
            proxy_cache_key "$http_authorization|$request_uri|$request_body";
            proxy_cache_valid 200 1h;
            proxy_ignore_headers Cache-Control Expires Set-Cookie Vary;
            add_header X-Cache $upstream_cache_status;
        }}
    }}
}}
"""


@contextmanager
def nginx(place: Place, stub_port: int) -> Iterator[Running]:
    """nginx with proxy_cache."""
    port = free_port()
    folder = place.folder / f"nginx-{port}"
    folder.mkdir(exist_ok=True)
    config = folder / "nginx.conf"
    user = "user root;\n" if os.geteuid() == 0 else ""
    config.write_text(NGINX.format(user=user, folder=folder, port=port, stub_port=stub_port, provider_key=PROVIDER_KEY))
    argv = ["nginx", "-p", str(folder), "-c", str(config), "-g", "daemon off;"]
    child = Child(argv, place.target_core, folder / "output.log")
    try:
        start_s = _until_answer(child, port, CLIENT_KEY, tls=False)
        yield Running(port, CLIENT_KEY, False, tuple(descendants(child.process.pid)), start_s)
    finally:
        child.stop()


def dandolo(more: str) -> Callable[[Place, int], Iterator[Running]]:
    """``dandolo serve`` with further lines of configuration."""

    def run(place: Place, stub_port: int) -> Iterator[Running]:

        port = free_port()
        folder = place.folder / f"dandolo-{port}"
        folder.mkdir(exist_ok=True)
        config = folder / "dandolo.toml"
        text = DANDOLO.format(
            workers=1,
            port=port,
            admin=free_port(),
            state=json.dumps(str(folder / "state")),
            stub_port=stub_port,
            model=MODEL,
            digest=hashlib.sha256(CLIENT_KEY.encode()).hexdigest(),
            scheme="http",
            tls="",
            ca="",
        )
        config.write_text(text + more)
        child = Child(
            [place.python, "-m", "dandolo", "serve", "--config", str(config)],
            place.target_core,
            folder / "output.log",
            cwd=ROOT,
            env={"BENCH_PROVIDER_KEY": PROVIDER_KEY},
        )
        yield from _answering(child, port, Wiring(stub_port))

    return contextmanager(run)


@dataclass(frozen=True, slots=True)
class Case:
    """A load, the targets it is given to, and the bound on the first one's CPU over the second's."""

    name: str
    title: str
    arguments: tuple[str, ...]
    targets: tuple[tuple[str, Callable[[Place, int], Iterator[Running]]], ...]
    gate: float
    aim: float | None = None


ON, OFF = '\n[cache]\nlevels = ["memory"]\n', "\n[cache]\nlevels = []\n"
PAIR = (("memory", dandolo(ON)), ("off", dandolo(OFF)))
CASES = (
    Case(
        "hit", "a hit, 1 KB", ("--same", "--temperature", "0"), (("Dandolo", dandolo(ON)), ("nginx", nginx)), 0.6, 0.4
    ),
    Case("miss", "a miss that is kept, 1 KB", ("--temperature", "0"), PAIR, 1.15),
    Case("bypass", "a call that is not kept, 1 KB", (), PAIR, 1.15),
)


def measure(place: Place, case: Case, rounds: int, duration: float) -> dict[str, list[float]]:
    """CPU µs per request of each target, by round."""
    numbers: dict[str, list[float]] = {name: [] for name, _ in case.targets}
    for _ in range(rounds):
        for name, target in case.targets:
            with stub(place) as stub_port, target(place, stub_port) as running:  # type: ignore[attr-defined]
                times = ["--duration", str(duration), "--warmup", "1"]
                arguments = [*load_arguments(running, case.arguments), *times]
                result = checked(generator.load(arguments, core=place.load_core))
                cpu_us = sum(process["cpu_s"] for process in result["watched"]) * 1e6
                numbers[name].append(cpu_us / result["requests"])
    return numbers


# -- one stream for many -------------------------------------------------------------------------------------

STREAMS = ("--streams", "100", "--ramp", "0", "--chunks", "50", "--interval-us", "20000", "--temperature", "0")
SETTLED_S = 2.0
"""After its start a server still loads what a first answer does not need."""


def shared_stream(place: Place, rounds: int) -> list[tuple[float, float, float]]:
    """By round: the 99th percentile of a chunk's delay in ms, of 100 identical streams, the first of their kind and
    others after those, and of 100 different ones.

    All ask at once, a moment before the first chunk: whoever comes later is late for those that were sent before, which
    says nothing of the server. A chunk's delay is from the provider's writing it to the client's having read it.
    """
    found = []
    for _ in range(rounds):
        delays = []
        for kinds in ((("--same",), ("--same", "--bytes", "1100")), ((),)):
            with stub(place) as stub_port, dandolo(ON)(place, stub_port) as running:  # type: ignore[attr-defined]
                time.sleep(SETTLED_S)
                warm = load_arguments(running, ("--streams", "5", "--chunks", "5", "--interval-us", "2000"))
                checked(generator.load(warm, core=place.load_core))
                for more in kinds:
                    arguments = load_arguments(running, (*STREAMS, *more))
                    result = checked(generator.load(arguments, core=place.load_core), least=100)
                    delays.append(result["chunk_delay_us"]["p99"] / 1e3)
        found.append((delays[0], delays[1], delays[2]))
    return found


# -- batches -------------------------------------------------------------------------------------------------

CALL_S = 0.020
AT_ONCE = 4


async def _embeddings(port: int, clients: int, seconds: float) -> tuple[float, float]:
    """Answers a second and the median wait in ms of clients that ask one after another."""
    waits: list[float] = []
    until = time.monotonic() + seconds

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        asked = 0
        while time.monotonic() < until:
            asked += 1
            body = json.dumps({"model": MODEL, "input": f"text {number} {asked}"}).encode()
            writer.write(
                b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (CLIENT_KEY.encode(), len(body), body)
            )
            began = time.monotonic()
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            answer = json.loads(await reader.readexactly(length))
            assert head.startswith(b"HTTP/1.1 200"), answer
            assert len(answer["data"]) == 1, answer
            waits.append(time.monotonic() - began)
        writer.close()

    began = time.monotonic()
    await asyncio.gather(*map(client, range(clients)))
    return len(waits) / (time.monotonic() - began), statistics.median(waits) * 1e3


async def _stub() -> tuple[asyncio.Server, int]:
    """A provider of embeddings: CALL_S a call whatever its size, AT_ONCE calls at a time."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int((head.lower().partition(b"content-length:")[2] or b"0").split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length)) if length else {}
                inputs = body.get("input", [])
                inputs = [inputs] if isinstance(inputs, str) else inputs
                async with slots:
                    await asyncio.sleep(CALL_S if inputs else 0)
                data = [{"object": "embedding", "index": i, "embedding": [0.5] * 8} for i in range(len(inputs))]
                count = 4 * len(inputs)
                usage = {"prompt_tokens": count, "total_tokens": count}
                answer = json.dumps({"object": "list", "data": data, "model": MODEL, "usage": usage}).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                    % (len(answer), answer)
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


@contextmanager
def _embedder() -> Iterator[int]:
    """Such a provider on a thread of its own; its port."""
    loop = asyncio.new_event_loop()
    server, port = loop.run_until_complete(_stub())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def batches(place: Place, rounds: int, seconds: float) -> list[tuple[float, float, float, float]]:
    """By round: answers a second with batches and without, the median wait in ms alone with and without."""
    found = []
    for _ in range(rounds):
        numbers: list[tuple[float, float]] = []
        for window in ("3ms", "0s"):
            routing = f'\n[routing]\nbatch_window = "{window}"\n'
            with _embedder() as port, dandolo(OFF + routing)(place, port) as running:  # type: ignore[attr-defined]
                rate, _ = asyncio.run(_embeddings(running.port, 64, seconds))
                _, alone_ms = asyncio.run(_embeddings(running.port, 1, seconds / 2))
                numbers.append((rate, alone_ms))
        (with_, alone), (without, single) = numbers
        found.append((with_, without, alone, single))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cache.server", description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=float, default=2.0, help="seconds of load a run")
    parser.add_argument("--only", default="hit,miss,bypass,stream,batch")
    parser.add_argument("--python", default=str(ROOT / ".venv" / "bin" / "python"))
    parser.add_argument("--write", action="store_true", help="the table into results/server.md")
    options = parser.parse_args()
    only = options.only.split(",")
    lines = [
        "| load | CPU µs a request | base | ratio [least–greatest] | gate | aim | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder), 0, 1, options.python, options.python, options.python)
        for case in CASES:
            if case.name not in only:
                continue
            numbers = measure(place, case, options.rounds, options.duration)
            (ours, base), values = numbers, list(numbers.values())
            ratios = [mine / theirs for mine, theirs in zip(*values, strict=True)]
            ratio = statistics.median(ratios)
            missed |= ratio > case.gate
            verdict = "**missed**" if ratio > case.gate else "aim met" if case.aim and ratio <= case.aim else "gate met"
            lines.append(
                f"| {case.title} | {ours} {statistics.median(values[0]):.1f} | {base}"
                f" {statistics.median(values[1]):.1f} | {ratio:.2f} [{min(ratios):.2f}–{max(ratios):.2f}]"
                f" | ≤ {case.gate:g} × | {f'≤ {case.aim:g} ×' if case.aim else '–'} | {verdict} |"
            )
            print(lines[-1], flush=True)
        if "stream" in only:
            delays = shared_stream(place, options.rounds)
            cold, warm, different = (statistics.median(numbers) for numbers in zip(*delays, strict=True))
            missed |= warm > 5.0
            lines.append("")
            lines.append(
                f"One stream for 100 clients that ask at once (50 chunks, 20 ms apart): a chunk's delay is"
                f" {warm:.2f} ms at the 99th percentile (≤ 5 ms: {'**missed**' if warm > 5.0 else 'met'}),"
                f" {cold:.2f} ms the first time after a start; 100 different streams: {different:.2f} ms."
            )
            print(lines[-1], flush=True)
        if "batch" in only:
            found = batches(place, options.rounds, options.duration)
            gains = [with_ / without for with_, without, _, _ in found]
            slower = [alone - single for _, _, alone, single in found]
            gain = statistics.median(gains)
            missed |= gain < 1.3
            lines.append("")
            lines.append(
                f"Batches of embeddings, 64 clients before a provider of {CALL_S * 1e3:g} ms a call and {AT_ONCE} calls"
                f" at a time: {statistics.median(row[0] for row in found):.0f} answers a second, without"
                f" {statistics.median(row[1] for row in found):.0f}: {gain:.1f} × (≥ 1.3 ×: "
                f"{'**missed**' if gain < 1.3 else 'met'}). Alone the median wait differs by"
                f" {statistics.median(slower):+.2f} ms."
            )
            print(lines[-1], flush=True)
    if options.write:
        head = (
            "# What the cache costs and saves, through whole servers\n\n"
            f"{platform.system()} {platform.release().partition('-')[0]},"
            f" Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC;"
            f" {options.rounds} rounds of {options.duration:g} s. Made by `python -m bench.cache.server --write`.\n\n"
        )
        RESULTS.write_text(head + "\n".join(lines) + "\n")
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
