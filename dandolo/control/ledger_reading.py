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
from typing import Any, NamedTuple

import msgspec

from dandolo.clock import timestamp
from dandolo.control.ledger_batch import CACHE, NUMBER_MAX, SOURCES, SUMS, TIME_MAX, Known, cost_of
from dandolo.journal import (
    ANSWERED,
    CALL,
    NANO,
    NOBODY,
    REPEATED_ENTRY,
    REPEATED_SLOT,
    REQUEST,
    SETTLED,
    SETTLED_SLOT,
    STREAM,
    UNKNOWN,
)

BY = ("key", "model", "provider", "tag", "owner", "hour", "endpoint", "account", "upstream_model", "day", "month")
"""What sums may be grouped by, and `tag:NAME` for the values of one tag."""
ROWS_MAX = 10_000
UNSETTLED_TOLD_MAX = 1000
BUSY_MS = 2000
ID = re.compile(r"(req_[0-9a-f]{12})([0-9a-f]{10,16})")

_names = msgspec.msgpack.Decoder(dict[int, tuple[int, float | None, float | None, float | None, float | None]])
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
    # Times in their order, everything else the dearest first.
    times = [str(index + 1) for index, one in enumerate(question.by) if one in _TIMES]
    order = ", ".join([*times, "total(paid) DESC", "total(requests) DESC"])
    statement = (
        f"SELECT {''.join(f'{one}, ' for one in columns)}{sums} FROM hourly LEFT JOIN name ON name.id = hourly.name"  # noqa: S608 - of constants
        f" WHERE {' AND '.join(where)}{grouped} ORDER BY {order} LIMIT {ROWS_MAX + 1}"
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
    """One request: what it was and what it cost, never what was said. None when it is not (or no more) there.

    It may be of several settlements: calls that failed, one that was made for several, its own end.
    """
    match = ID.fullmatch(request_id)
    if match is None:
        return None
    prefix, number = match[1], int(match[2], 16)
    if number > NUMBER_MAX:
        return None
    with _reading(path) as connection:
        parts = [part for part in _parts(connection, prefix, number) if part.number == number]
        unsettled = connection.execute(
            "SELECT key, model, provider, reserved_micro, at, lost FROM unsettled"
            " LEFT JOIN name ON name.id = unsettled.name WHERE prefix = ? AND number = ? ORDER BY at LIMIT 16",
            (prefix, number),
        ).fetchall()
        told_of = {"id": request_id, **(_whole(connection, parts) if parts else {})}
    if not parts and not unsettled:
        return None
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


class Part(NamedTuple):
    """One settlement: whose, what it cost and by whose word, all that it says, when its request began."""

    prefix: str
    number: int
    name: int
    paid: int
    source: int
    fields: Sequence[Any]
    """As in `journal.SETTLED_WHOLE`."""
    started: float


def settlements(path: Path) -> list[Part]:
    """Every settlement that is kept, oldest first. Raises Unreadable."""
    with _reading(path) as connection:
        return list(_parts(connection))


def _parts(connection: sqlite3.Connection, prefix: str | None = None, number: int = 0) -> Iterator[Part]:
    """Settlements in order; with a prefix those of chunks in which a request may be."""
    columns = "SELECT prefix, offset_s, names, slots, repeated FROM chunk"
    if prefix is None:
        rows = connection.execute(f"{columns} ORDER BY n")
    else:
        rows = connection.execute(
            f"{columns} WHERE prefix = ? AND high >= ? AND low <= ? ORDER BY n", (prefix, number, number)
        )
    for of, offset_s, names, slots, repeated in rows:
        try:
            known = {at: Known(*one) for at, one in _names.decode(names).items()}
        except (msgspec.DecodeError, TypeError):
            continue
        for inner in SETTLED_SLOT.iter_unpack(slots[: len(slots) // SETTLED_SLOT.size * SETTLED_SLOT.size]):
            fields = (0, *inner)
            name = known.get(fields[7]) or Known(0, None, None, None, None)
            paid, source = cost_of(fields, name) if fields[3] & CALL else (0, 0)
            yield Part(of, fields[6], name.id, paid, source, fields, _time(fields[17] + offset_s))
        for fields in _repeated(repeated):
            name = known.get(fields[7]) or Known(0, None, None, None, None)
            yield Part(of, fields[6], name.id, 0, 0, fields, _time(fields[17] + offset_s))


def _time(unix_s: float) -> float:
    """A time that can be told: 1970 for one that no clock shows."""
    return unix_s if 0.0 <= unix_s < TIME_MAX else 0.0


def _repeated(slots: bytes) -> Iterator[tuple[Any, ...]]:
    """Requests that were answered alike, each as its own settlement."""
    place = 0
    while place + REPEATED_SLOT.size <= len(slots):
        (size, _, flags, position, name, count, cache, *tokens, saved, number, started) = REPEATED_SLOT.unpack_from(
            slots, place
        )
        first = place + REPEATED_SLOT.size
        entries = slots[first : first + count * REPEATED_ENTRY.size]
        for more, after_us, took_s in REPEATED_ENTRY.iter_unpack(
            entries[: len(entries) // REPEATED_ENTRY.size * REPEATED_ENTRY.size]
        ):
            yield (
                0, size, SETTLED, flags, position, NOBODY, number + more, name, 200, cache, 0, *tokens, UNKNOWN, saved,
                started + after_us / 1e6, took_s, -1.0,
            )  # fmt: skip
        # Its checksum is not kept.
        place += max(size - 4, REPEATED_SLOT.size)


def _whole(connection: sqlite3.Connection, parts: Sequence[Part]) -> dict[str, Any]:
    """Settlements of one request put together."""
    end = next((part for part in parts if part.fields[3] & REQUEST), parts[-1])
    answer = next((part for part in parts if part.fields[3] & ANSWERED), end)
    row = connection.execute(
        "SELECT key, tags, endpoint, model, provider, account, owner, upstream_model FROM name WHERE id = ?",
        (answer.name,),
    ).fetchone()
    key, tags, endpoint, model, provider, account, owner, upstream = row or ("",) * 8
    (_, _, _, flags, _, _, _, _, status, cache, attempts, *tokens, _, saved, _, duration_s, first_token_s) = end.fields
    return {
        "time": timestamp(min(part.started for part in parts)),
        "key": key,
        "tags": _tags(tags),
        "endpoint": endpoint,
        "model": model,
        "provider": provider,
        "account": account,
        "owner": owner,
        "upstream_model": upstream,
        "status": status,
        "stream": bool(flags & STREAM),
        "attempts": attempts,
        "cache": CACHE.get(cache, ""),
        "tokens_in": tokens[0],
        "tokens_out": tokens[1],
        "tokens_cached": tokens[2],
        "tokens_reasoning": tokens[3],
        "paid_usd": sum(part.paid for part in parts) / NANO,
        "cost_source": SOURCES[max(part.source for part in parts)],
        "saved_cache_usd": max(saved, 0) / NANO,
        "duration_ms": round(duration_s * 1e3, 3) if duration_s >= 0 else None,
        "first_token_ms": round(first_token_s * 1e3, 3) if first_token_s >= 0 else None,
    }


def spent(path: Path, since: float) -> dict[str, int]:
    """Micro-dollars by key since a time (whole hours), with what is reserved for calls that were never settled: where
    a budget goes on after a restart. Raises Unreadable."""
    with _reading(path) as connection:
        if not connection.execute("PRAGMA user_version").fetchone()[0]:
            # It is being made.
            return {}
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
        raise Unreadable(
            f"there is no ledger at {path}: `dandolo serve` writes it, with server.state_dir of the same place"
        )
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
