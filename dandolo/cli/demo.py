"""`dandolo demo`: three simulated providers on real sockets, the gateway in front of them, four checks shown.

Everything runs in one process and needs no key and no network; only the providers are make-believe. What is
printed is measured by a client of its own over a real connection.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import uvloop

from dandolo import __version__
from dandolo.cli.age import since_start_ms
from dandolo.cli.client import Answer, Broken, Client
from dandolo.config import parse
from dandolo.control.log import format_record
from dandolo.gateway.worker import Worker
from dandolo.net.listen import open_tcp
from dandolo.record import Record
from dandolo.sim.script import Script
from dandolo.sim.server import SimProvider

PORT = 8080
CHECK_S = 10.0
QUESTION = "What does a gateway do?"

PROVIDERS = (
    ("swift", "primary", 0.20, Script(latency_s=0.004, first_token_s=0.008, tokens_per_s=1000, tokens=24)),
    ("solid", "secondary", 0.60, Script(latency_s=0.015, first_token_s=0.020, tokens_per_s=600, tokens=24)),
    ("spare", "overflow", 0.90, Script(latency_s=0.030, first_token_s=0.040, tokens_per_s=400, tokens=24)),
)
"""Name, role, USD per million tokens of the answer, conduct."""

CONFIG = """\
[server]
listen = ["127.0.0.1:{port}"]
admin = "127.0.0.1:0"
{providers}
[cache]
sampled = "reuse"
[models]
fast = [{targets}]
"""
PROVIDER = """\
[[providers]]
name = "{name}"
base_url = "{url}"
role = "{role}"
[[providers.models]]
id = "sim-small"
input_usd_per_mtok = 0.1
output_usd_per_mtok = {price}
"""


class _Failed(Exception):
    """A check failed; the text says why."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="leave after the checks, on a terminal too")


def run(args: argparse.Namespace) -> int:
    """Show the four checks; on a terminal, serve until Ctrl-C. Returns 1 when a check fails."""
    stay = sys.stdout.isatty() and not args.once
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_demo(stay))


def _asking(text: str) -> dict[str, object]:
    return {"model": "fast", "messages": [{"role": "user", "content": text}]}


async def _demo(stay: bool) -> int:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with contextlib.AsyncExitStack() as stack:
        sims = [await stack.enter_async_context(SimProvider(name, script=one)) for name, _, _, one in PROVIDERS]
        sockets = _open()
        port = sockets[0].getsockname()[1]
        show = Show()
        records: list[Record] = []
        take: Callable[[Record], None] = records.append
        worker = Worker(parse(_config(port, sims), "demo", {}), lambda record: take(record))
        worker.start(sockets)
        stack.push_async_callback(worker.close)
        show.head(port)
        checking = asyncio.ensure_future(_checks(Checks(port, sims), show))
        stopping = asyncio.ensure_future(stopped.wait())
        await asyncio.wait((checking, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not checking.done():
            checking.cancel()
            return 130
        if not checking.result():
            stopping.cancel()
            return 1
        show.next(port, stay)
        if stay:
            take = show.record
            await sims[0].revive()
            await stopped.wait()
            print()
        stopping.cancel()
    return 0


def _open() -> list[socket.socket]:
    try:
        return open_tcp("127.0.0.1", PORT)
    except OSError:
        return open_tcp("127.0.0.1", 0)


def _config(port: int, sims: list[SimProvider]) -> str:
    tables = [
        PROVIDER.format(name=name, url=sim.base_url, role=role, price=price)
        for (name, role, price, _), sim in zip(PROVIDERS, sims, strict=True)
    ]
    targets = ", ".join(f'"{name}/sim-small"' for name, *_ in PROVIDERS)
    return CONFIG.format(port=port, providers="".join(tables), targets=targets)


async def _checks(checks: Checks, show: Show) -> bool:
    async with Client(host="127.0.0.1", port=checks.port) as client:
        for name, check in (
            ("chat", checks.chat),
            ("same again", checks.same_again),
            ("provider killed", checks.killed),
            ("stream", checks.stream),
        ):
            try:
                async with asyncio.timeout(CHECK_S):
                    shown = await check(client)
            except (_Failed, Broken, OSError) as error:
                show.failed(name, str(error))
                return False
            except TimeoutError:
                show.failed(name, f"no answer within {CHECK_S:g} s")
                return False
            show.passed(name, *shown)
    return True


@dataclass
class Checks:
    """The four checks. Each returns who answered, the milliseconds, and a sentence."""

    port: int
    sims: list[SimProvider]

    async def chat(self, client: Client) -> tuple[str, float, str]:
        answer = await self._ask(client)
        return *_whom(answer), f"{_overhead(answer)} ms in the gateway; {_cut(answer.text)}"

    async def same_again(self, client: Client) -> tuple[str, float, str]:
        before = self._calls()
        answer = await self._ask(client)
        if self._calls() > before or answer.headers.get("x-cache") != "HIT":
            raise _Failed("the provider was asked again although the answer was kept")
        return "cache", _whom(answer)[1], f"kept from {answer.headers.get('x-dandolo-provider', '?')}; nobody was asked"

    async def killed(self, client: Client) -> tuple[str, float, str]:
        dead = self.sims[0]
        dead.kill()
        answer = await self._ask(client, "And what when a provider fails?")
        who, ms = _whom(answer)
        if who == dead.name:
            raise _Failed(f"{dead.name} was killed and yet answered")
        attempts = answer.headers.get("x-dandolo-attempts", "?")
        return who, ms, f"{dead.name} is dead, {who} answered; {attempts} attempts"

    async def stream(self, client: Client) -> tuple[str, float, str]:
        asked = {**_asking("What is a token bucket?"), "stream": True, "stream_options": _USAGE}
        answer = await client.ask("/v1/chat/completions", asked)
        if answer.status != 200 or answer.reason or answer.first_token_ms is None:
            raise _Failed(answer.reason or f"status {answer.status} and no content")
        said = f"first token after {answer.first_token_ms:.1f} ms, {answer.output_tokens} tokens, [DONE]"
        return *_whom(answer), said

    async def _ask(self, client: Client, text: str = QUESTION) -> Answer:
        answer = await client.ask("/v1/chat/completions", _asking(text))
        if answer.status != 200 or not answer.text:
            raise _Failed(answer.reason or f"status {answer.status} and no text")
        return answer

    def _calls(self) -> int:
        return sum(sim.received for sim in self.sims)


_USAGE = {"include_usage": True}


def _whom(answer: Answer) -> tuple[str, float]:
    return answer.headers.get("x-dandolo-provider", "?"), answer.total_ms


def _overhead(answer: Answer) -> str:
    return f"{float(answer.headers.get('x-dandolo-overhead-ms', 'nan')):.2f}"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return f'"{line[:34]}…"' if len(line) > 35 else f'"{line}"'


class Show:
    """Standard output, in colour on a terminal unless NO_COLOR says otherwise (no-color.org)."""

    def __init__(self) -> None:
        self._coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def head(self, port: int) -> None:
        names = [f"{name} ({role})" for name, role, *_ in PROVIDERS]
        self._say(
            f"dandolo {__version__} ready in {since_start_ms():.0f} ms on {self._bold(f'http://127.0.0.1:{port}')}"
        )
        self._say(f"simulated providers: {', '.join(names)}\n")

    def passed(self, name: str, who: str, ms: float, sentence: str) -> None:
        self._say(f"  {self._paint('ok', 32)}      {name:<16} {who:<6} {ms:7.1f} ms  {sentence}")

    def failed(self, name: str, reason: str) -> None:
        self._say(f"  {self._paint('failed', 31)}  {name:<16} {reason}")

    def next(self, port: int, stay: bool) -> None:
        body = msgspec.json.encode(_asking(QUESTION)).decode()
        curl = (
            f"curl http://127.0.0.1:{port}/v1/chat/completions -H 'content-type: application/json' \\\n    -d '{body}'"
        )
        if stay:
            self._say(f"\nIt goes on serving (Ctrl-C ends it). In another terminal:\n\n  {curl}\n")
        else:
            self._say(f"\nOn a terminal `dandolo demo` goes on serving; then this works too:\n\n  {curl}\n")
        self._say("With a provider of your own: set VENICE_API_KEY (or OPENROUTER_API_KEY, …) and run `dandolo serve`.")

    def record(self, record: Record) -> None:
        self._say(format_record(record, "text").decode().rstrip())

    @staticmethod
    def _say(text: str) -> None:
        print(text, flush=True)

    def _paint(self, text: str, colour: int) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._coloured else text

    def _bold(self, text: str) -> str:
        return self._paint(text, 1)
