"""`dandolo cache`: forgets kept answers of a running gateway."""

from __future__ import annotations

import argparse
import sys

from dandolo.cli import operator
from dandolo.config import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    purge = actions.add_parser("purge", help="forget kept answers, in every tier and on every host that shares one")
    what = purge.add_mutually_exclusive_group(required=True)
    what.add_argument("--key", metavar="HEX", help="one answer, by x-dandolo-cache-key")
    what.add_argument("--tag", metavar="NAME=VALUE", help="a tag of keys, or provider=NAME")
    what.add_argument("--model", metavar="NAME", help="as requests name it")
    what.add_argument("--scope", metavar="KEY", help='answers of one key, by its name, or "shared"')
    what.add_argument("--class", dest="class_", metavar="CLASS", help="question, code, analysis, embedding, image, …")
    what.add_argument("--all", action="store_true", help="everything")
    purge.add_argument("--soft", action="store_true", help="give them once more while they are fetched anew")
    operator.add_arguments(purge)


def run(args: argparse.Namespace) -> int:
    """Prints what was purged. Returns 2 for a tag that is none, 1 when not all could be purged, or nobody answers."""
    if args.tag is not None and not all(args.tag.partition("=")[:2]):
        print("dandolo cache: --tag takes NAME=VALUE", file=sys.stderr)
        return 2
    wish = {
        kind: value
        for kind in ("key", "tag", "model", "scope", "class", "all")
        if (value := getattr(args, "class_" if kind == "class" else kind))
    }
    try:
        done = operator.ask_json(args, "POST", "/admin/cache/purge", wish | ({"soft": True} if args.soft else {}))
    except operator.NotAnswered as error:
        print(f"dandolo cache: {error}", file=sys.stderr)
        return 1
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    ((kind, name),) = wish.items()
    if kind == "key":
        print(f"key {name}: {'forgotten' if done.get('found') else 'was not in memory; forgotten elsewhere'}")
    else:
        what = "everything" if kind == "all" else f"{kind} {name}"
        print(f"{what}: {'to be fetched anew' if args.soft else 'forgotten'}")
    for sentence in done["failed"]:
        print(f"dandolo cache: {sentence}", file=sys.stderr)
    return 1 if done["failed"] else 0
