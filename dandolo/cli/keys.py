"""`dandolo keys`: makes, lists, rotates and revokes keys for clients.

A running gateway is asked through its admin listener, with the key in DANDOLO_ADMIN_KEY where it wants one. Where
none runs, the database in the state directory is changed itself, which a running gateway sees within a second too.
A key is shown once, when it is made; what is kept is its SHA-256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import sys
import time
import tomllib
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

from dandolo.cli import configured, operator
from dandolo.config import Config, ConfigError
from dandolo.config.load import assemble
from dandolo.config.problem import Unfit
from dandolo.config.schema import Server, default_state_dir
from dandolo.config.units import duration
from dandolo.control.keys import OVERLAP_S, Keys, new_key, read_terms
from dandolo.control.listing import listing
from dandolo.errors import GatewayError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Refused(Exception):
    """What was asked for is refused; the text says why."""


class NotThere(Exception):
    """No gateway listens."""


class Place(Protocol):
    """Where keys are kept: a running gateway, or the database itself."""

    def create(self, name: str, terms: Mapping[str, Any]) -> str: ...
    def rotate(self, name: str, overlap_s: float) -> str: ...
    def revoke(self, name: str) -> None: ...
    def listed(self) -> list[dict[str, Any]]: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a key and show it, once")
    create.add_argument("name", nargs="?", default="default", metavar="NAME", help="what logs call it (default)")
    create.add_argument("--print", action="store_true", help="keep nothing: show the lines for the configuration")
    create.add_argument("--priority", choices=("high", "normal", "low"), help="class of its requests under load")
    create.add_argument("--rpm", type=int, metavar="N", help="requests per minute")
    create.add_argument("--tpm", type=int, metavar="N", help="tokens per minute")
    create.add_argument("--concurrent", type=int, metavar="N", help="requests at one time")
    create.add_argument("--budget-day", type=_usd, metavar="USD", help="spending in a day (UTC)")
    create.add_argument("--budget-month", type=_usd, metavar="USD", help="spending in a month (UTC)")
    create.add_argument("--model", action="append", metavar="PATTERN", help="a model it may use; several: repeat")
    create.add_argument("--cache-scope", choices=("key", "shared"), help="whose cached answers it sees")
    create.add_argument("--privacy", action="store_true", help="privacy mode for this key")
    create.add_argument("--tag", action="append", metavar="NAME=VALUE", help="a label for records; several: repeat")
    rotate = actions.add_parser("rotate", help="put a new key in the place of one, and show it, once")
    rotate.add_argument("name", metavar="NAME")
    rotate.add_argument(
        "--overlap", default="24h", metavar="TIME", help="how long the old key stays valid (24h); 0s: not at all"
    )
    revoke = actions.add_parser("revoke", help="make a key invalid, for good, within a second")
    revoke.add_argument("name", metavar="NAME")
    listed = actions.add_parser("list", help="all keys: where each comes from, what it may, what it has used")
    for one in (create, rotate, revoke, listed):
        one.add_argument("--config", metavar="FILE", help="left out: ./dandolo.toml, or the environment")
        one.add_argument("--offline", action="store_true", help="ask no gateway: use the database in state_dir itself")
        operator.add_place(one, "the gateway to ask, in place of server.admin")


def run(args: argparse.Namespace) -> int:
    """Prints what came of it. Returns 2 for arguments that cannot be, 1 for what is refused, 78 for a configuration
    that cannot be used."""
    if args.action != "list" and not _NAME.fullmatch(args.name):
        return _say("NAME takes 1 to 64 letters, digits, dots, dashes, underscores", 2)
    try:
        terms = _terms(args) if args.action == "create" else {}
        overlap_s = _overlap(args.overlap) if args.action == "rotate" else OVERLAP_S
        if args.action == "create" and args.print:
            return _print_lines(args.name, terms)
        config = _config(args)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except ValueError as error:
        return _say(str(error), 2)
    except GatewayError as error:
        return _say(error.message, 1)
    places: list[Place] = [Database(config)]
    if not args.offline:
        places.insert(0, Running(args, args.admin or operator.place_of(config)))
    for place in places:
        try:
            return _do(args, place, terms, overlap_s)
        except NotThere as error:
            if args.admin:
                return _say(str(error), 1)
        except (Refused, GatewayError) as error:
            return _say(str(error), 1)
    raise AssertionError("the database is always there")


def _do(args: argparse.Namespace, place: Place, terms: Mapping[str, Any], overlap_s: float) -> int:
    if args.action == "create":
        print(f"{place.create(args.name, terms)}\n")
        print(f"# This key is not shown again. Give it to the client. `dandolo keys revoke {args.name}` ends it.")
    elif args.action == "rotate":
        print(f"{place.rotate(args.name, overlap_s)}\n")
        until = f"stays valid for {args.overlap}" if overlap_s else "is not valid any more"
        print(f"# This key is not shown again. The one before {until}.")
    elif args.action == "revoke":
        place.revoke(args.name)
        print(f"{args.name} is revoked")
    else:
        print("\n".join(table(place.listed())))
    return 0


def _config(args: argparse.Namespace) -> Config:
    """The configuration; without one, and without a provider in the environment, what holds by default.

    The secrets of a service are not there for whoever types this, so of a file that cannot be used whole, what matters
    here is taken alone: where the state is, where the admin listener, and the keys. Raises ConfigError.
    """
    try:
        return configured.find(args.config, os.environ)
    except ConfigError as error:
        if args.config is None and error.problems[0].file == "environment":
            return Config(server=Server(state_dir=default_state_dir(os.environ)))
        try:
            with open(args.config or configured.DEFAULT_FILE, "rb") as file:
                document = tomllib.load(file)
        except (OSError, ValueError, RecursionError):
            raise error from None
        server, keys = document.get("server", {}), document.get("keys", [])
        if not isinstance(server, dict) or not isinstance(keys, list):
            raise
        part = {name: value for name, value in server.items() if name in ("state_dir", "admin")}
        tls = server.get("admin_tls")
        if isinstance(tls, dict) and os.access(str(tls.get("key")), os.R_OK):
            part["admin_tls"] = tls
        keys = [key for key in keys if isinstance(key, dict) and "sha256" in key]
        # No provider is needed to know these.
        stand_in = {"providers": [{"name": "x", "base_url": "http://192.0.2.1/v1"}]}
        config = assemble({"server": part, "keys": keys, **stand_in}, error.problems[0].file, os.environ)
        print(f"dandolo keys: the rest of the configuration is passed over: {error.problems[0]}", file=sys.stderr)
        return config


def _terms(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, as the admin API wants it. Raises ValueError."""
    given: dict[str, Any] = {
        "priority": args.priority,
        "rpm": args.rpm,
        "tpm": args.tpm,
        "concurrent": args.concurrent,
        "budget_usd_per_day": args.budget_day,
        "budget_usd_per_month": args.budget_month,
        "models": args.model,
        "cache_scope": args.cache_scope,
        "privacy": args.privacy or None,
    }
    if args.tag:
        pairs = [tag.partition("=") for tag in args.tag]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError("--tag takes NAME=VALUE")
        given["tags"] = {name: value for name, _, value in pairs}
    return {name: value for name, value in given.items() if value is not None}


def _usd(text: str) -> float:
    """A number for argparse, which JSON can hold: neither infinity nor none at all."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise argparse.ArgumentTypeError(f"observed {text!r}, expected a number of USD")
    return found


def _overlap(text: str) -> float:
    """Seconds. Raises ValueError."""
    try:
        return duration(text)
    except Unfit as error:
        raise ValueError(f"--overlap: {error}") from None


def _print_lines(name: str, terms: Mapping[str, Any]) -> int:
    """The key, and the table that makes it one. Raises GatewayError for terms that a key cannot have."""
    read_terms(name, terms)
    key = new_key()
    print(f"{key}\n")
    print("# This key is not shown again. Give it to the client; put these lines into dandolo.toml:\n")
    print(f'[[keys]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"')
    for term, value in terms.items():
        print(f"{term} = {_toml(value)}")
    return 0


def _toml(value: Any) -> str:
    """A term as TOML. JSON's strings, numbers and arrays are TOML's too."""
    if isinstance(value, dict):
        pairs = (f"{_toml(name)} = {_toml(text)}" for name, text in value.items())
        return f"{{ {', '.join(pairs)} }}"
    return json.dumps(value, ensure_ascii=False)


class Database:
    """The database itself."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def create(self, name: str, terms: Mapping[str, Any]) -> str:
        """The new key. Raises Refused, GatewayError."""
        if any(key.name.casefold() == name.casefold() for key in self._config.keys):
            raise Refused(f"the configuration's file has a key '{name}', which wins; choose another name")
        with Keys(self._config.server.state_dir) as keys:
            return keys.create(name, terms, time.time())[0]

    def rotate(self, name: str, overlap_s: float) -> str:
        """The new key. Raises GatewayError."""
        with Keys(self._config.server.state_dir) as keys:
            return keys.rotate(name, overlap_s, time.time())[0]

    def revoke(self, name: str) -> None:
        """Raises GatewayError."""
        with Keys(self._config.server.state_dir) as keys:
            keys.revoke(name, time.time())

    def listed(self) -> list[dict[str, Any]]:
        """All keys. Raises GatewayError."""
        with Keys(self._config.server.state_dir) as keys:
            return listing(self._config.keys, keys.listed())


class Running:
    """A running gateway, asked through its admin listener.

    Raises NotThere when nobody listens, Refused when it will not.
    """

    def __init__(self, args: argparse.Namespace, where: operator.Where) -> None:
        self._args = argparse.Namespace(admin=where, ca=args.ca, cert=args.cert)

    def create(self, name: str, terms: Mapping[str, Any]) -> str:
        """The new key."""
        return str(self._ask("POST", "/admin/keys", {"name": name, **terms})["key"])

    def rotate(self, name: str, overlap_s: float) -> str:
        """The new key."""
        return str(self._ask("POST", f"/admin/keys/{quote(name)}", {"overlap_s": overlap_s})["key"])

    def revoke(self, name: str) -> None:
        """End a key."""
        self._ask("DELETE", f"/admin/keys/{quote(name)}")

    def listed(self) -> list[dict[str, Any]]:
        """All keys."""
        return list(self._ask("GET", "/admin/keys")["keys"])

    def _ask(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> Any:
        try:
            return operator.ask_json(self._args, method, path, content)
        except operator.NotAnswered as error:
            if not error.status:
                raise NotThere(str(error)) from None
            hint = "; or change the database itself, with --offline" if error.status in (401, 403) else ""
            raise Refused(f"{error}{hint}") from None
        except ValueError:
            raise Refused(
                f"what answers at {self._args.admin} is no gateway; change the database itself: --offline"
            ) from None


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Keys as lines with columns: name, source, status, the beginning of the digest, limits with what is used."""
    if not rows:
        return ["no keys: everybody on this machine may call"]
    cells = [("NAME", "SOURCE", "STATUS", "SHA256", "MAY (USED)")]
    for row in rows:
        cells.append((row["name"], row["source"], row["status"], row["sha256"], ", ".join(_may(row)) or "everything"))
    widths = [max(len(str(one[column])) for one in cells) for column in range(4)]
    return ["  ".join([*(str(one[column]).ljust(widths[column]) for column in range(4)), one[4]]) for one in cells]


def _may(row: Mapping[str, Any]) -> list[str]:
    usage = row.get("usage") or {}

    def used(name: str) -> str:
        return f" ({usage[name]:.6g})" if name in usage else ""

    limits = [
        ("rpm", "{} requests a minute", "requests_per_minute"),
        ("tpm", "{} tokens a minute", "tokens_per_minute"),
        ("concurrent", "{} at one time", "in_flight"),
        ("budget_usd_per_day", "{:g} USD a day", "spent_usd_day"),
        ("budget_usd_per_month", "{:g} USD a month", "spent_usd_month"),
    ]
    found = [text.format(row[name]) + used(use) for name, text, use in limits if row.get(name) is not None]
    models = row.get("models") or ["*"]
    if list(models) != ["*"]:
        found.append(f"models {' '.join(models)}")
    if row.get("priority", "normal") != "normal":
        found.append(f"{row['priority']} priority")
    if "old_key_valid_until" in row:
        found.append(f"the key before until {row['old_key_valid_until']}")
    return found


def _say(text: str, code: int) -> int:
    print(f"dandolo keys: {text}", file=sys.stderr)
    return code
