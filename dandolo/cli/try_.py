"""`dandolo try`: asks every configured account one small question, as the gateway would.

For each account a data plane of its own, which knows nothing else, listens on a private Unix socket: what is
measured and what fails is then that account and no other. Keys are never shown; reasons are the gateway's.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from dandolo.cli.client import Answer, Broken, Client
from dandolo.cli.configured import find
from dandolo.config import Config, ConfigError
from dandolo.config.schema import Account, Provider
from dandolo.errors import GatewayError
from dandolo.gateway.worker import Worker
from dandolo.net.dial import Destination, Dialer
from dandolo.net.listen import open_unix
from dandolo.net.upstream import Upstream
from dandolo.record import Record
from dandolo.values import fit

TOKENS_MAX = 64
TIMEOUT_S = 60.0
RECORD_S = 1.0
SHOWN_CHARS = 60

_NOT_CHAT = re.compile(
    r"embed|rerank|tts|whisper|transcri|speech|audio|realtime|image|dall-e|moderation|video|sora|veo|upscale|flux|"
    r"diffusion|ocr|guard|bge|clip|kokoro|lustify|inpaint|davinci|babbage",
    re.IGNORECASE,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("question", nargs="?", default="Say hello in one short sentence.", metavar="TEXT")
    parser.add_argument(
        "--config", metavar="FILE", help="left out: ./dandolo.toml, or the environment where there is none"
    )
    parser.add_argument("--model", metavar="M", help="ask for this model; left out: the provider's first chat model")
    parser.add_argument("--provider", metavar="P", help="ask this provider only")
    parser.add_argument("--no-stream", action="store_true", help="ask for a plain answer")


@dataclass(slots=True)
class _Outcome:
    name: str
    model: str = ""
    reason: str = ""
    connect_ms: float | None = None
    answer: Answer | None = None
    record: Record | None = field(default=None)


def run(args: argparse.Namespace) -> int:
    """Prints a line for each account. Returns 0 when all answered, 1 when one did not, 78 for a configuration
    that cannot be used."""
    try:
        config = find(args.config, os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    providers = [one for one in config.providers if args.provider in (None, one.name)]
    if not providers:
        known = ", ".join(one.name for one in config.providers)
        print(f"dandolo try: no provider is called {fit(args.provider)!r}; configured: {known}", file=sys.stderr)
        return 2
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_try(config, providers, args))


async def _try(config: Config, providers: list[Provider], args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="dandolo-") as folder:
        asked = [
            asyncio.ensure_future(_ask(config, provider, account, args, Path(folder, f"{number}.sock")))
            for number, (provider, account) in enumerate(
                (provider, account) for provider in providers for account in provider.accounts
            )
        ]
        well = True
        for one in asked:
            outcome = await one
            well = well and not outcome.reason
            print("\n".join(_lines(outcome)), flush=True)
    return 0 if well else 1


async def _ask(config: Config, provider: Provider, account: Account, args: argparse.Namespace, path: Path) -> _Outcome:
    outcome = _Outcome(provider.name if len(provider.accounts) < 2 else f"{provider.name}/{account.owner}")
    ended = asyncio.Event()

    def take(record: Record) -> None:
        if record.endpoint != "models":
            outcome.record = record
            ended.set()

    try:
        worker = Worker(_alone(config, provider, account), take)
    except (GatewayError, OSError, ValueError) as error:
        outcome.reason = str(error)
        return outcome
    dialer = worker.gateway.dialer = _TimedDialer()
    chats = worker.gateway.plane.catalog.providers[0].speaks("chat")
    worker.start([open_unix(os.fspath(path))])
    try:
        async with asyncio.timeout(TIMEOUT_S), Client(unix=os.fspath(path)) as client:
            outcome.model = args.model or await _model(client, provider)
            if not outcome.model:
                outcome.reason = dialer.error or "it gave no list with a chat model: name one with --model"
                return outcome
            endpoint = "/v1/chat/completions" if chats else "/v1/messages"
            outcome.answer = await client.ask(
                endpoint,
                {
                    "model": _within(outcome.model, provider),
                    "messages": [{"role": "user", "content": args.question}],
                    "max_tokens": TOKENS_MAX,
                    **({} if args.no_stream else {"stream": True}),
                },
            )
            outcome.reason = outcome.answer.reason
        async with asyncio.timeout(RECORD_S):
            await ended.wait()
    except (Broken, OSError, TimeoutError) as error:
        if outcome.answer is None:
            outcome.reason = outcome.reason or str(error) or f"no answer within {TIMEOUT_S:g} s"
    finally:
        outcome.connect_ms = dialer.connect_ms
        await worker.close()
    return outcome


def _alone(config: Config, provider: Provider, account: Account) -> Config:
    """The same configuration for this account only: no keys, no failover, nobody else."""
    return dataclasses.replace(
        config,
        server=dataclasses.replace(config.server, tls=None, proxy_protocol=False, heartbeat=0.0, annotate=False),
        keys=(),
        models={},
        providers=(dataclasses.replace(provider, accounts=(account,)),),
        routing=dataclasses.replace(config.routing, attempts_max=1),
    )


async def _model(client: Client, provider: Provider) -> str:
    """The first model that looks like one for chat: from the configuration, else from the provider's own list."""
    names = [model.id for model in provider.models]
    if not names:
        listing = await client.ask("/v1/models")
        prefix = f"{provider.name}/"
        names = [
            str(item["id"])[len(prefix) :]
            for item in listing.body.get("data", ())
            if str(item.get("id", "")).startswith(prefix)
        ]
    return next((name for name in names if not _NOT_CHAT.search(name)), "")


def _within(model: str, provider: Provider) -> str:
    return model if model.startswith(f"{provider.name}/") else f"{provider.name}/{model}"


class _TimedDialer(Dialer):
    """Remembers how long the first connection took, or why there is none."""

    def __init__(self) -> None:
        super().__init__()
        self.connect_ms: float | None = None
        self.error = ""

    async def dial(self, destination: Destination, timeout_s: float) -> Upstream:
        """As `Dialer.dial`."""
        started = time.perf_counter()
        try:
            connection = await super().dial(destination, timeout_s)
        except GatewayError as error:
            self.error = str(error)
            raise
        if self.connect_ms is None:
            self.connect_ms = (time.perf_counter() - started) * 1000
        return connection


def _lines(outcome: _Outcome) -> list[str]:
    name = f"{outcome.name:<16}"
    if outcome.reason:
        model = f"{fit(outcome.model)}: " if outcome.model else ""
        return [f"{name} failed  {model}{fit(outcome.reason, 400)}"]
    answer, record = outcome.answer, outcome.record
    assert answer is not None, "an outcome has a reason or an answer"
    facts = [fit(outcome.model)]
    if outcome.connect_ms is not None:
        facts.append(f"connect {outcome.connect_ms:.0f} ms")
    if answer.first_token_ms is not None:
        facts.append(f"first token {answer.first_token_ms:.0f} ms")
    facts.append(f"total {answer.total_ms:.0f} ms")
    if record is not None and (record.input_tokens or record.output_tokens):
        about = "about " if record.estimated else ""
        facts.append(f"{about}{record.input_tokens} + {record.output_tokens} tokens")
    if record is not None:
        facts.append("cost unknown" if record.cost_usd is None else f"${record.cost_usd:.6f}")
    text = " ".join(answer.text.split())
    shown = text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1]}…"
    return [f"{name} ok      {', '.join(facts)}", f"{'':<16}         {fit(shown) or '(no text)'}"]
