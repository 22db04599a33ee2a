"""`dandolo init`: writes a configuration to begin with, every key in it, most as comments."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from dandolo.config.known import KNOWN, key_variable
from dandolo.config.reference import starter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", default="dandolo.toml", metavar="FILE", help="default: ./dandolo.toml")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


def run(args: argparse.Namespace) -> int:
    """Writes the file and says what to do next. Returns 1 when it is there already or cannot be written."""
    path = Path(args.path)
    names = _providers(os.environ)
    text = starter(names)
    try:
        # "x" refuses atomically what another process may just have written.
        with open(path, "w" if args.force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        print(f"dandolo init: {path} exists: --force replaces it", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"dandolo init: cannot write {path}: {error.strerror}", file=sys.stderr)
        return 1
    unset = [key_variable(name) for name in names if not os.environ.get(key_variable(name))]
    print(f"wrote {path}")
    if unset:
        print(f"next: set {', '.join(unset)}, then: dandolo check {path} && dandolo serve --config {path}")
    else:
        print(f"next: dandolo check {path} && dandolo serve --config {path}")
    return 0


def _providers(environ: Mapping[str, str]) -> list[str]:
    """The providers whose keys are in the environment; Venice where there is none."""
    return [name for name in KNOWN if environ.get(key_variable(name))] or ["venice"]
