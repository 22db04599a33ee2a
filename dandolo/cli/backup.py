"""`dandolo backup DIR`: copies the state of a gateway, which may be running, into a new folder in DIR.

First what workers have written down by now is taken into the ledger, by the gateway, or here where none runs. With
`--admin` the gateway that answers there makes one, in its own state folder: for operators on another machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dandolo.cli import configured, operator
from dandolo.config import Config, ConfigError
from dandolo.config.schema import Server, default_state_dir
from dandolo.config.units import show_size
from dandolo.control.backup import back_up
from dandolo.control.ledger_catchup import catch_up

CATCH_UP_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, nargs="?", help="where; made if it is missing")
    parser.add_argument(
        "--config", metavar="FILE", help="whose server.state_dir is copied; left out: ./dandolo.toml, or the default"
    )
    operator.add_place(parser, "the gateway that copies its own state to its own disk, in place of DIR")


def run(args: argparse.Namespace) -> int:
    """Copies, and prints what. Returns 1 when something cannot be copied, 2 for neither DIR nor --admin, or both, 78
    for a broken configuration."""
    if (args.folder is None) is (args.admin is None):
        print("dandolo backup: expected DIR, or --admin with the gateway that is to make one", file=sys.stderr)
        return 2
    if args.admin is not None:
        return _asked(args)
    try:
        config = configured.find(args.config, os.environ)
    except ConfigError as error:
        if args.config is not None or Path(configured.DEFAULT_FILE).exists():
            print(error, file=sys.stderr)
            return error.exit_code
        config = Config(server=Server(state_dir=default_state_dir(os.environ)))
    state_dir, ledger = config.server.state_dir, config.ledger
    if not state_dir.is_dir():
        print(f"dandolo backup: {state_dir} is not there: nothing has been kept yet", file=sys.stderr)
        return 1
    try:
        left = catch_up(state_dir, CATCH_UP_S, retention_s=ledger.retention, requests_max=ledger.requests)
        folder, copied = back_up(state_dir, args.folder, time.time())
    except (OSError, ValueError) as error:
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        print(f"dandolo backup: nothing was copied: {why}", file=sys.stderr)
        return 1
    _list(copied)
    if left:
        print(
            f"dandolo backup: the ledger is not whole: {show_size(left)} of journals have not been read within"
            f" {CATCH_UP_S:g} s (does the gateway say that its ledger cannot be written?)",
            file=sys.stderr,
        )
    print(f"{state_dir} is copied to {folder}. To go back to it: stop the gateway, copy the files back, start it.")
    return 0


def _asked(args: argparse.Namespace) -> int:
    try:
        made = operator.ask_json(args, "POST", "/admin/backup", {})
    except operator.NotAnswered as error:
        print(f"dandolo backup: {error}", file=sys.stderr)
        return 1
    _list(made["files"])
    print(f"copied to {made['folder']} on the gateway's machine")
    return 0


def _list(copied: Sequence[Mapping[str, Any]]) -> None:
    for one in copied:
        print(f"{one['name']:<24} {show_size(one['bytes'])}")
