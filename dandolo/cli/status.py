"""`dandolo status`: what the dashboard shows, live in a terminal."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
import time

import msgspec

from dandolo.cli import operator
from dandolo.cli.operator import NotAnswered
from dandolo.cli.status_screen import screen
from dandolo.config import ConfigError
from dandolo.values import fit

ONE, LIVE = "/admin/snapshot", "/admin/live"
AGAIN_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    operator.add_arguments(parser)
    parser.add_argument("--once", action="store_true", help="print it once and leave; so it is where no terminal is")
    parser.add_argument("--json", action="store_true", help="JSON, one line a second")


def run(args: argparse.Namespace) -> int:
    """Show until Ctrl-C. Returns 1 when nothing answers or the key is refused, 78 for a broken configuration."""
    try:
        if args.json:
            return _lines(args)
        if args.once or not sys.stdout.isatty():
            print("\n".join(screen(operator.ask_json(args, "GET", ONE), _columns(), _coloured())))
            return 0
        return _live(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except NotAnswered as error:
        print(f"dandolo status: {fit(str(error), 1024)}", file=sys.stderr)
        return 1


def _lines(args: argparse.Namespace) -> int:
    for snapshot in [operator.ask_json(args, "GET", ONE)] if args.once else operator.events(args, LIVE):
        sys.stdout.write(msgspec.json.encode(snapshot).decode() + "\n")
        sys.stdout.flush()
    return 0


def _live(args: argparse.Namespace) -> int:
    """On the terminal's other screen, which it comes back from, whatever happens. Lost connections are tried again."""
    resized = threading.Event()
    signal.signal(signal.SIGWINCH, lambda *_: resized.set())
    first = True
    sys.stdout.write("\x1b[?1049h\x1b[?25l")
    try:
        while True:
            try:
                for snapshot in operator.events(args, LIVE):
                    first = False
                    _paint(screen(snapshot, _columns(), _coloured()), clear=resized.is_set())
                    resized.clear()
            except NotAnswered as error:
                if first or error.status:
                    raise
                _paint([fit(str(error), 1024)], clear=True)
            time.sleep(AGAIN_S)
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()


def _paint(lines: list[str], *, clear: bool) -> None:
    rows = shutil.get_terminal_size().lines
    # Each line is cleared to its end and what is below the last one too: nothing flickers.
    text = "".join(f"{line}\x1b[K\n" for line in lines[: rows - 1])
    sys.stdout.write(("\x1b[2J" if clear else "") + "\x1b[H" + text + "\x1b[J")
    sys.stdout.flush()


def _columns() -> int:
    # What goes into a file or a pipe is not cut.
    return max(60, shutil.get_terminal_size((1000, 40)).columns)


def _coloured() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")
