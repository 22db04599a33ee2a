"""The command line. Only the chosen command's module is imported: start-up time is part of what `serve` promises."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final, Protocol, cast

from dandolo import __version__

COMMANDS: Final = {
    "demo": ("demo", "three simulated providers, the gateway in front of them, and four checks"),
    "serve": ("serve", "run the gateway"),
    "check": ("check", "say what is wrong with a configuration, or what would run with it"),
    "init": ("init", "write a dandolo.toml to begin with"),
    "try": ("try_", "ask every configured provider one small question, with timings"),
    "cache": ("cache", "forget kept answers of a running gateway"),
    "keys": ("keys", "make keys for clients"),
    "usage": ("usage", "say what was used and what it cost, or how objectives were kept"),
    "status": ("status", "what a running gateway does, live"),
    "backup": ("backup", "copy the state of a gateway, running or not"),
}
"""Command → its module in this package, and what it does."""

EX_SOFTWARE: Final = 70
"""sysexits.h: "an internal software error has been detected"."""


class _Command(Protocol):
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. A mistake of ours becomes one line, never a traceback."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given == ["_worker"]:
        # What `dandolo serve` starts (`control.spawn`), where `python -m dandolo` cannot: in a frozen program.
        return cast(int, import_module("dandolo.cli.work").main())
    chosen = next((word for word in given if not word.startswith("-")), "")
    try:
        code = _run(given, chosen)
        # Here and not at the very end of the process, where a reader that has gone could not be dealt with.
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone. What is still buffered must not raise again at the very end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        print(f"dandolo {chosen}: internal error: {type(error).__name__}: {error}", file=sys.stderr)
        return EX_SOFTWARE


def _run(given: list[str], chosen: str) -> int:
    parser = argparse.ArgumentParser(
        prog="dandolo", description="An LLM gateway: one URL for many inference providers."
    )
    parser.add_argument("--version", action="version", version=f"dandolo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    module: _Command | None = None
    for name, (file, about) in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        if name == chosen:
            module = cast(_Command, import_module(f"dandolo.cli.{file}"))
            module.add_arguments(command)
    args = parser.parse_args(given)
    assert module is not None, "argparse takes known commands only"
    return module.run(args)
