"""What the ledger says, to whoever asks: sums by anything, one request by its id, copies.

Each question opens the file for itself, read-only, and closes it: it stands beside the writing thread, in any other
thread, and works as well when nothing runs. What may be grouped by is a fixed list; every value is bound.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from dandolo.clock import timestamp
from dandolo.control.ledger_batch import CACHE, NUMBER_BITS, SOURCES, SUMS
from dandolo.journal import NANO, SETTLED_SLOT, STREAM

BY = ("key", "model", "provider", "tag", "owner", "hour", "endpoint", "account", "upstream_model", "day", "month")
"""What sums may be grouped by, and `tag:NAME` for the values of one tag."""
ROWS_MAX = 10_000
UNSETTLED_TOLD_MAX = 100
BUSY_MS = 2000
ID = re.compile(r"(req_[0-9a-f]{12})([0-9a-f]{10,16})")

_MONEY = frozenset(("paid", "paid_list", "paid_estimated", "direct", "saved_cache"))
_TIMES = {
    "hour": "strftime('%Y-%m-%dT%H:00Z', hour * 3600, 'unixepoch')",
    "day": "strftime('%Y-%m-%d', hour * 3600, 'unixepoch')",
    "month": "strftime('%Y-%m', hour * 3600, 'unixepoch')",
}


class Unreadable(Exception):
    """There is no ledger, or it cannot be read."""


@dataclass(frozen=True, slots=True)
class Question:
    """Which sums: grouped `by` (of BY), from `since` to before `until` (Unix seconds; whole hours count), None for
    no bound."""

    by: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None


def usage(path: Path, question: Question) -> dict[str, Any]:
    """Sums as rows, the same summed up, and what is not settled. Raises Unreadable.

    In dollars: `paid_usd` (`paid_list_usd` of it by the price list, `paid_estimated_usd` by our own count),
    `direct_usd` as if every answer had been fetched from the first candidate, `saved_cache_usd`, `saved_routing_usd`
    (negative: dearer than direct), and `ratio` of paid to direct (None where nothing was).
    """
    columns, names, rejoin = _grouping(question.by)
    where, values = ["1 = 1"], []
    if question.since is not None:
        where.append("hour >= ?")
        values.append(int(question.since) // 3600)
    if question.until is not None:
        where.append("hour < ?")
        values.append(-(-int(question.until) // 3600))
    sums = ", ".join(f"total({one})" for one in SUMS)
    grouped = f" GROUP BY {', '.join(str(n + 1) for n in range(len(columns)))}" if columns else ""
    statement = (
        f"SELECT {''.join(f'{one}, ' for one in columns)}{sums} FROM hourly LEFT JOIN name ON name.id = hourly.name"  # noqa: S608 - of constants
        f" WHERE {' AND '.join(where)}{grouped} ORDER BY total(paid) DESC LIMIT {ROWS_MAX + 1}"
    )
    with _reading(path) as connection:
        found = connection.execute(statement, values).fetchall()
        whole = connection.execute(
            f"SELECT {sums} FROM hourly WHERE {' AND '.join(where)}",  # noqa: S608
            values,
        ).fetchone()
        open_count, open_micro = connection.execute(
            "SELECT count(*), total(reserved_micro) FROM unsettled WHERE lost = 1 AND at >= ? AND at < ?",
            (question.since or 0.0, question.until or 1e12),
        ).fetchone()
        listed = connection.execute(
            "SELECT prefix, number, key, model, provider, reserved_micro, at FROM unsettled"
            " LEFT JOIN name ON name.id = unsettled.name WHERE lost = 1 AND at >= ? AND at < ?"
            " ORDER BY at DESC LIMIT ?",
            (question.since or 0.0, question.until or 1e12, UNSETTLED_TOLD_MAX),
        ).fetchall()
        dropped = connection.execute("SELECT total(value) FROM counter WHERE name = 'dropped'").fetchone()[0]
    rows = [(list(row[: len(columns)]), list(map(int, row[len(columns) :]))) for row in found[:ROWS_MAX]]
    if rejoin is not None:
        rows = _by_tag(rows, rejoin, question.by[rejoin])
    return {
        "by": list(question.by),
        "since": None if question.since is None else timestamp(question.since),
        "until": None if question.until is None else timestamp(question.until),
        "rows": [{**dict(zip(names, place, strict=True)), **told(sums_)} for place, sums_ in rows],
        "total": told(list(map(int, whole))),
        "truncated": len(found) > ROWS_MAX,
        "unsettled": {
            "count": open_count,
            "reserved_usd": open_micro / 1e6,
            "newest": [
                {
                    "id": f"{prefix}{number:010x}",
                    "key": key or "",
                    "model": model or "",
                    "provider": provider or "",
                    "reserved_usd": micro / 1e6,
                    "time": timestamp(at),
                }
                for prefix, number, key, model, provider, micro, at in listed
            ],
        },
        "dropped": int(dropped),
    }


def told(sums: Sequence[int]) -> dict[str, Any]:
    """Sums (in the order of `SUMS`) as they are told."""
    found: dict[str, Any] = {}
    for name, value in zip(SUMS, sums, strict=True):
        if name in _MONEY:
            found[f"{name}_usd"] = value / NANO
        else:
            found[name] = value
    paid, direct = found["paid_usd"], found["direct_usd"]
    found["saved_routing_usd"] = round(direct - found["saved_cache_usd"] - paid, 9)
    found["ratio"] = round(paid / direct, 4) if direct else None
    return found


def request(path: Path, request_id: str) -> dict[str, Any] | None:
    """One request: what it was and what it cost, never what was said. None when it is not (or no more) there."""
    match = ID.fullmatch(request_id)
    if match is None:
        return None
    where = (match[1], int(match[2], 16))
    if where[1] >= 1 << NUMBER_BITS:
        return None
    with _reading(path) as connection:
        row = connection.execute(
            "SELECT key, tags, endpoint, model, provider, account, owner, upstream_model, request.started, paid,"
            " source, slot FROM run JOIN request ON request.id = (run.n << ?) | ? LEFT JOIN name ON name.id = request.name"
            " WHERE run.prefix = ?",
            (NUMBER_BITS, where[1], where[0]),
        ).fetchone()
        unsettled = connection.execute(
            "SELECT key, model, provider, reserved_micro, at, lost FROM unsettled"
            " LEFT JOIN name ON name.id = unsettled.name WHERE prefix = ? AND number = ? ORDER BY at LIMIT 16",
            where,
        ).fetchall()
    if row is None and not unsettled:
        return None
    told_of: dict[str, Any] = {"id": request_id}
    if row is not None:
        key, tags, endpoint, model, provider, account, owner, upstream, started, paid, source, slot = row
        (_, _, flags, _, _, _, _, status, cache, attempts, t_in, t_out, t_cached, t_reasoning, _, saved, _, duration_s,
         first_token_s) = SETTLED_SLOT.unpack(slot)  # fmt: skip
        told_of |= {
            "time": timestamp(started),
            "key": key or "",
            "tags": _tags(tags),
            "endpoint": endpoint or "",
            "model": model or "",
            "provider": provider or "",
            "account": account or "",
            "owner": owner or "",
            "upstream_model": upstream or "",
            "status": status,
            "stream": bool(flags & STREAM),
            "attempts": attempts,
            "cache": CACHE.get(cache, ""),
            "tokens_in": t_in,
            "tokens_out": t_out,
            "tokens_cached": t_cached,
            "tokens_reasoning": t_reasoning,
            "paid_usd": paid / NANO,
            "cost_source": SOURCES[source] if 0 <= source < len(SOURCES) else "",
            "saved_cache_usd": max(saved, 0) / NANO,
            "duration_ms": round(duration_s * 1e3, 3) if duration_s >= 0 else None,
            "first_token_ms": round(first_token_s * 1e3, 3) if first_token_s >= 0 else None,
        }
    told_of["unsettled"] = [
        {
            "key": key or "",
            "model": model or "",
            "provider": provider or "",
            "reserved_usd": micro / 1e6,
            "time": timestamp(at),
            "state": "lost" if lost else "open",
        }
        for key, model, provider, micro, at, lost in unsettled
    ]
    return told_of


def spent(path: Path, since: float) -> dict[str, int]:
    """Micro-dollars by key since a time (whole hours), with what is reserved for calls that were never settled: where
    a budget goes on after a restart. Raises Unreadable."""
    with _reading(path) as connection:
        found = dict(
            connection.execute(
                "SELECT coalesce(key, ''), sum(paid) FROM hourly LEFT JOIN name ON name.id = hourly.name"
                " WHERE hour >= ? GROUP BY 1",
                (int(since) // 3600,),
            ).fetchall()
        )
        for key, micro in connection.execute(
            "SELECT coalesce(key, ''), sum(reserved_micro) FROM unsettled LEFT JOIN name ON name.id = unsettled.name"
            " WHERE lost = 1 AND at >= ? GROUP BY 1",
            (since,),
        ):
            found[key] = found.get(key, 0) + micro * 1000
    return {key: -(-nano // 1000) for key, nano in found.items()}


def cells(path: Path, since: float, until: float) -> list[tuple[int, str, str, str, bytes]]:
    """What objectives are judged by, of the hours from `since` to before `until`: hour, key, model, kind, cell."""
    with _reading(path) as connection:
        found = connection.execute(
            "SELECT hour, key, model, kind, cell FROM slo WHERE hour >= ? AND hour < ?",
            (int(since) // 3600, -(-int(until) // 3600)),
        )
        return [tuple(row) for row in found]


def backup(path: Path, target: Path) -> None:
    """Copy the ledger to a new file (0600), while it is in use. Raises Unreadable, or OSError when the new file
    cannot be made."""
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    try:
        with _reading(path) as connection:
            copy = sqlite3.connect(target)
            try:
                # In one piece: it is of one moment, and writers need not wait for it (WAL).
                connection.backup(copy)
            finally:
                copy.close()
    except BaseException:
        target.unlink(missing_ok=True)
        raise


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.exists():
        raise Unreadable(f"there is no ledger at {path}")
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", BUSY_MS / 1000, uri=True)
    except sqlite3.Error as error:
        raise Unreadable(f"the ledger cannot be opened: {error}") from error
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        yield connection
    except sqlite3.Error as error:
        raise Unreadable(f"the ledger cannot be read: {error}") from error
    finally:
        connection.close()


def _grouping(by: Sequence[str]) -> tuple[list[str], list[str], int | None]:
    """Columns in SQL, what they are called, and which of them is tags that are to be taken apart."""
    columns, names, rejoin = [], [], None
    for index, one in enumerate(by):
        assert one in BY or one.startswith("tag:"), one
        if one == "tag" or one.startswith("tag:"):
            columns.append("coalesce(name.tags, '{}')")
            rejoin = index
        else:
            columns.append(_TIMES.get(one) or f"coalesce(name.{one}, '')")
        names.append(one)
    return columns, names, rejoin


def _by_tag(rows: list[tuple[list[Any], list[int]]], place: int, what: str) -> list[tuple[list[Any], list[int]]]:
    """Rows with one value of a tag, or all tags in words, in the place of what stood in the file."""
    wanted = what.partition(":")[2]
    found: dict[tuple[Any, ...], list[int]] = {}
    for columns, sums in rows:
        tags = _tags(columns[place])
        word = tags.get(wanted, "") if wanted else ", ".join(f"{name}={value}" for name, value in tags.items())
        key = (*columns[:place], word, *columns[place + 1 :])
        known = found.setdefault(key, [0] * len(sums))
        for index, value in enumerate(sums):
            known[index] += value
    return [(list(key), sums) for key, sums in found.items()]


def _tags(text: str | None) -> dict[str, str]:
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, str])
    except msgspec.DecodeError:
        return {}
