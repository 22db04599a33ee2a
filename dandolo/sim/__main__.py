"""`python -m dandolo.sim`: one simulated provider as a process of its own, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import get_args

from dandolo.sim.script import KINDS, Dialect, Script
from dandolo.sim.server import SimProvider


def main(argv: list[str] | None = None) -> int:
    """Serve; prints one line with the base URL when it listens. 2: the arguments or the script are wrong."""
    parser = argparse.ArgumentParser(prog="python -m dandolo.sim", description=__doc__)
    parser.add_argument("--name", default="sim", help="the provider's name, part of its answers")
    parser.add_argument("--dialect", default="openai", choices=get_args(Dialect))
    parser.add_argument("--script", default="{}", help="JSON of a script, or @FILE")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--unix", help="path of a Unix socket instead of host and port")
    parser.add_argument("--key", action="append", help="demand this API key; may be given several times")
    parser.add_argument("--model", action="append", help="a model to list; may be given several times")
    parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"), help="PEM files: serve TLS")
    parser.add_argument("--base-path", default="/v1")
    parser.add_argument("--loop", default="asyncio", choices=("asyncio", "uvloop"))
    parser.add_argument("--faults", action="store_true", help="list the kinds of faults and leave")
    options = parser.parse_args(argv)
    if options.faults:
        for kind, meaning in KINDS.items():
            print(f"{kind:20} {meaning}")
        return 0
    try:
        text = options.script
        if text.startswith("@"):
            with open(text[1:], encoding="utf-8") as file:
                text = file.read()
        script = Script.from_json(text)
    except (ValueError, OSError) as error:
        print(f"--script: {error}", file=sys.stderr)
        return 2
    context = None
    if options.tls:
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*options.tls)
    provider = SimProvider(
        options.name,
        options.dialect,
        script,
        key=options.key,
        models=options.model or ("sim-small", "sim-large"),
        ssl=context,
        unix=options.unix,
        host=options.host,
        port=options.port,
        base_path=options.base_path,
    )
    factory = None
    if options.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(provider))
    return 0


async def _serve(provider: SimProvider) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with provider:
        print(provider.base_url, flush=True)
        await stopping.wait()


if __name__ == "__main__":
    sys.exit(main())
