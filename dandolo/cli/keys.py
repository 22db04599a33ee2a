"""`dandolo keys`: makes keys for clients. The key is shown once; the configuration keeps its SHA-256."""

from __future__ import annotations

import argparse
import hashlib
import re
import secrets
import sys

PREFIX = "dnd_"
RANDOM_BYTES = 24
"""192 bits, 32 characters. Digests of keys this random need no salt and no slow hash."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="print a new key, once, and the lines for the configuration")
    create.add_argument("name", nargs="?", default="default", metavar="NAME", help="what logs call it")


def run(args: argparse.Namespace) -> int:
    """Prints the key on standard output. Returns 2 for a name that the configuration would refuse."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", args.name):
        print("dandolo keys: NAME takes 1 to 64 letters, digits, dots, dashes, underscores", file=sys.stderr)
        return 2
    key = new_key()
    print(f"{key}\n")
    print("# This key is not shown again. Give it to the client; put these lines into dandolo.toml:\n")
    print(f'[[keys]]\nname = "{args.name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"')
    return 0


def new_key() -> str:
    """A random key: `dnd_` and 32 characters that need no quoting in a URL, a header or a shell."""
    return PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
