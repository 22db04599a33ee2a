"""`dandolo usage`: what was used and what it cost, from the gateway that runs, else from its ledger's file.

With `--slo` a report on the objectives instead: of a month (`--since 2026-01-01 --until 2026-02-01`), or of the last
thirty days.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from dandolo.cli import configured, operator
from dandolo.config import Config, ConfigError
from dandolo.control import ledger_reading as reading
from dandolo.control.ledger import FILE
from dandolo.control.usage import PARAMETERS, inert, moment, question_of, table
from dandolo.errors import RequestError
from dandolo.mind import slo
from dandolo.values import escaped

EX_UNAVAILABLE = 1
EX_USAGE = 2
CELL_CHARS_MAX = 40
MONTH_S = 30 * 86400.0

_SHOWN = (
    ("requests", "requests"),
    ("failed", "failed"),
    ("hits", "cache_hits"),
    ("tokens in", "tokens_in"),
    ("tokens out", "tokens_out"),
    ("paid $", "paid_usd"),
    ("direct $", "direct_usd"),
    ("saved $", "saved_cache_usd"),
    ("ratio", "ratio"),
)
"""Columns of the table: their heads, and what they show."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    operator.add_arguments(parser)
    parser.add_argument("--by", metavar="WHAT", default="", help=PARAMETERS["by"])
    parser.add_argument("--since", metavar="WHEN", help=PARAMETERS["since"])
    parser.add_argument("--until", metavar="WHEN", help=PARAMETERS["until"])
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="left out: table")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--slo", action="store_true", help="how objectives were kept, of the last 30 days or since WHEN"
    )
    instead.add_argument(
        "--unsettled", action="store_true", help="single calls whose cost is not known, since their worker died"
    )


def run(args: argparse.Namespace) -> int:
    """Prints the answer. Returns 1 when there is no ledger to be read, 2 for a question that cannot be read, 78 for a
    configuration that cannot be used."""
    now = time.time()
    if args.by and (args.slo or args.unsettled):
        print("dandolo usage: --by goes with neither --slo nor --unsettled", file=sys.stderr)
        return EX_USAGE
    asked = {name: value for name in ("by", "since", "until") if (value := getattr(args, name))}
    try:
        question_of(asked, now)
        if args.slo:
            return _report(args, now)
        told = _running(args, asked) or _resting(args, asked, now)
    except RequestError as error:
        print(f"dandolo usage: {error.message}", file=sys.stderr)
        return EX_USAGE
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except (operator.NotAnswered, reading.Unreadable) as error:
        print(f"dandolo usage: {error}", file=sys.stderr)
        return EX_UNAVAILABLE
    if args.unsettled:
        _unsettled(args.format, told["unsettled"])
    elif args.format == "json":
        print(json.dumps(told, indent=2))
    elif args.format == "csv":
        sys.stdout.write(table(told).decode().replace("\r\n", "\n"))
    else:
        print("\n".join(_table(told)))
    return 0


def _running(args: argparse.Namespace, asked: dict[str, str]) -> dict[str, Any] | None:
    """The answer of a gateway that runs, None when none does. Where `--admin` says there must be one: what this
    machine's file tells would be taken for the answer of another."""
    try:
        found: dict[str, Any] = operator.ask_json(
            args, "GET", f"/admin/usage?{urlencode(asked)}" if asked else "/admin/usage"
        )
    except operator.NotAnswered as error:
        if args.admin or (error.status and error.status != 404):
            raise
        return None
    return found


def _resting(args: argparse.Namespace, asked: dict[str, str], now: float) -> dict[str, Any]:
    """The answer of the file: what running workers wrote last may not be in it."""
    return reading.usage(_file(args), question_of(asked, now))


def _file(args: argparse.Namespace) -> Path:
    config = _config(args)
    # Without a configuration the state folder is where it is by default.
    return (config if config is not None else Config()).server.state_dir / FILE


def _config(args: argparse.Namespace) -> Config | None:
    try:
        return configured.find(args.config, os.environ)
    except ConfigError:
        if args.config is not None or Path(configured.DEFAULT_FILE).exists():
            raise
        return None


def _table(told: dict[str, Any]) -> Iterable[str]:
    by: list[str] = told["by"]
    rows = [
        [*(_cell(row[one]) for one in by), *(_figure(row[name], name) for _, name in _SHOWN)] for row in told["rows"]
    ]
    total = [
        *(["total", *[""] * (len(by) - 1)] if by else []),
        *(_figure(told["total"][name], name) for _, name in _SHOWN),
    ]
    yield from _aligned([[*by, *(head for head, _ in _SHOWN)], *(rows if by else []), total], len(by))
    whole, unsettled = told["total"], told["unsettled"]
    parts = [f"${whole['paid_list_usd']:.6f} by the price list"] if whole["paid_list_usd"] else []
    parts += [f"${whole['paid_estimated_usd']:.6f} estimated"] if whole["paid_estimated_usd"] else []
    said = whole["paid_usd"] - whole["paid_list_usd"] - whole["paid_estimated_usd"]
    if parts:
        parts += [f"${said:.6f} as providers said"] if said > 1e-9 else []
        yield f"of what was paid: {', '.join(parts)}"
    if whole["unknown"]:
        yield f"{whole['unknown']} calls of unknown cost (no price is known: set it in [[providers.models]])"
    if unsettled["count"]:
        reserved = f"${unsettled['reserved_usd']:.6f} was reserved"
        yield f"{unsettled['count']} calls unsettled: their worker died ({reserved}; --unsettled lists them)"
    if told["dropped"]:
        yield f"{told['dropped']} rows were dropped: the ledger, or a journal, was full"
    if told["truncated"]:
        yield f"only the {len(told['rows'])} dearest rows are shown: ask for less"


def _unsettled(form: str, told: dict[str, Any]) -> None:
    """Print the newest calls that were never settled."""
    calls, columns = told["newest"], ("time", "id", "key", "model", "provider", "reserved_usd")
    if form == "json":
        print(json.dumps(told, indent=2))
        return
    if form == "csv":
        writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**one, **{name: inert(one[name]) for name in ("key", "model", "provider")}} for one in calls)
        return
    rows = [[*(_cell(one[name]) for name in columns[:-1]), f"{one['reserved_usd']:.6f}"] for one in calls]
    print("\n".join(_aligned([[*columns[:-1], "reserved $"], *rows], len(columns) - 1)))
    if told["count"] > len(calls):
        print(f"only the newest {len(calls)} of {told['count']} are shown: ask for less with --since and --until")


def _report(args: argparse.Namespace, now: float) -> int:
    config = _config(args)
    slos = config.slo if config is not None else ()
    since = moment(args.since, now, "since") if args.since else now - MONTH_S
    until = moment(args.until, now, "until") if args.until else now
    judged = slo.report(slos or slo.DEFAULTS, reading.cells(_file(args), since, until))
    told = [{"slo": one.slo, **slo.told(one)} for one in judged]
    if args.format == "json":
        print(json.dumps(told, indent=2))
        return 0
    if args.format == "csv":
        writer = csv.DictWriter(sys.stdout, list(told[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(told)
        return 0
    rows = [["objective", "target", "wanted", "observed", "requests", "budget left", ""]]
    for one in judged:
        seconds = one.target in ("p95", "p99", "first_token_p95")
        rows.append(
            [
                one.slo,
                one.target,
                _measure(one.wanted, seconds),
                _measure(one.observed, seconds),
                f"{one.total}",
                f"{one.budget * 100:.1f} %" if one.total else "-",
                "" if not one.total else "kept" if one.met else "BROKEN",
            ]
        )
    print("\n".join(_aligned(rows, 2)))
    return 0


def _measure(value: float | None, seconds: bool) -> str:
    if value is None:
        return "-"
    return f"{value:.3g} s" if seconds else f"{value * 100:.4g} %"


def _figure(value: float | None, name: str) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if name == "ratio" else f"{value:.6f}" if isinstance(value, float) else f"{value}"


def _cell(text: str) -> str:
    """A name from outside, as it may stand on a terminal."""
    shown = escaped(text) or "-"
    return shown if len(shown) <= CELL_CHARS_MAX else shown[: CELL_CHARS_MAX - 1] + "…"


def _aligned(rows: Sequence[Sequence[str]], left: int) -> Iterable[str]:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    for row in rows:
        cells = [
            one.ljust(width) if n < left else one.rjust(width)
            for n, (one, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
