"""The ledger on the admin listener: `/admin/usage`, `/admin/requests/{id}`, `/admin/slo`.

What reads the file does so in a thread, after the journals have been read up to now, for a bounded time.
"""

from __future__ import annotations

import asyncio
import csv
import io
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from dandolo.control import ledger_reading as reading
from dandolo.control.ledger import Ledger
from dandolo.control.ledger_reading import BY, Question, Unreadable
from dandolo.control.route import CSV, JSON, Answer, Asked, Route
from dandolo.errors import Refusal, RequestError

FLUSH_S = 1.0
ANSWER_S = 20.0
BY_MAX = 4
QUERY_BYTES_MAX = 4096
_SPANS = {"h": 3600.0, "d": 86400.0}
_encode = msgspec.json.Encoder().encode

PARAMETERS: Mapping[str, str] = {
    "by": f"comma-separated, at most {BY_MAX} of {', '.join(BY)}, or tag:NAME",
    "since": "a day (2026-01-31), a time (2026-01-31T12:00:00Z), or so long ago (24h, 30d); whole hours count",
    "until": "the same; left out: now",
    "format": "json (default) or csv",
}


def slo_route(state: Callable[[float], Any]) -> Route:
    """`/admin/slo`; `state` gives that of all objectives at a time (Unix seconds), as JSON can hold it."""
    about = "objectives, how they are kept, and what is left of their error budgets"
    return Route("GET", b"/admin/slo", lambda asked: Answer(200, JSON, _encode(state(time.time()))), about)


def routes(there: Callable[[], Ledger | None], text_of: Callable[[str], str | None] = lambda name: None) -> list[Route]:
    """The routes of a ledger; `there` gives it, None while there is none. `text_of` says where the text of a request
    is, if it is kept."""

    def found() -> Ledger:
        ledger = there()
        if ledger is None:
            raise RequestError("there is no ledger (see ledger.enabled)", status=404, code="not_found")
        return ledger

    async def usage(asked: Asked) -> Answer:
        ledger = found()
        given = _given(asked.query, PARAMETERS)
        form = given.pop("format", "json")
        if form not in ("json", "csv"):
            raise RequestError(f"format is {form[:32]!r}; expected json or csv", param="format")
        question = question_of(given, time.time())
        told = await _read(lambda: (ledger.flush(FLUSH_S), reading.usage(ledger.path, question))[1])
        health = ledger.health()
        told["ledger"] = {"writable": not health.reason, "reason": health.reason, "dropped": health.dropped}
        return Answer(200, CSV, table(told)) if form == "csv" else Answer(200, JSON, _encode(told))

    async def request(asked: Asked) -> Answer:
        ledger = found()
        name = asked.rest.decode("ascii", "replace")
        if reading.ID.fullmatch(name) is None:
            raise RequestError("expected the id of a request, as its x-request-id header says: req_ and 22 digits")
        told = await _read(lambda: (ledger.flush(FLUSH_S), reading.request(ledger.path, name))[1])
        if told is None:
            raise RequestError(
                "no such request is in the ledger (any more): it keeps the newest of them, ledger.requests many",
                status=404,
                code="not_found",
            )
        if (text := text_of(name)) is not None:
            told["text"] = text
        return Answer(200, JSON, _encode(told))

    return [
        Route("GET", b"/admin/usage", usage, "requests, tokens and money, summed by anything", PARAMETERS),
        Route(
            "GET",
            b"/admin/requests/",
            request,
            "one request by its id: facts, and where its text is, should that be kept",
        ),
    ]


def question_of(given: Mapping[str, str], now: float) -> Question:
    """What `by`, `since` and `until` ask. Raises RequestError for what cannot be read."""
    by = tuple(one for one in given.get("by", "").split(",") if one)
    for one in by:
        if one not in BY and not (one.startswith("tag:") and 4 < len(one) <= 68):
            raise RequestError(f"by is {one[:64]!r}; expected {', '.join(BY)}, or tag:NAME", param="by")
    if len(by) > BY_MAX or len(set(by)) < len(by) or sum(one.startswith("tag") for one in by) > 1:
        raise RequestError(
            f"by names too much: expected at most {BY_MAX} different ones, one of them a tag", param="by"
        )
    since, until = (moment(given[one], now, one) if one in given else None for one in ("since", "until"))
    if since is not None and since >= (now if until is None else until):
        raise RequestError("since is not before until: nothing can be between them", param="since")
    return Question(by, since, until)


def moment(text: str, now: float, param: str) -> float:
    """Unix seconds of a day, a time (UTC unless it says otherwise), or so long before `now`. Raises RequestError."""
    if text[-1:] in _SPANS and text[:-1].isascii() and text[:-1].isdigit() and len(text) < 8:
        return max(0.0, now - int(text[:-1]) * _SPANS[text[-1]])
    try:
        found = datetime.fromisoformat(text[:40])
        at = (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        at = -1.0
    if not 0.0 <= at < 1e11:
        raise RequestError(f"{param} is {text[:40]!r}; expected {PARAMETERS['since']}", param=param)
    return at


def table(told: Mapping[str, Any]) -> bytes:
    """Rows as CSV (RFC 4180), with a last one for the total where there is more than one."""
    out = io.StringIO()
    writer = csv.writer(out)
    numbers = list(told["total"])
    writer.writerow([*told["by"], *numbers])
    for row in told["rows"]:
        writer.writerow([*(inert(row[one]) for one in told["by"]), *(row[one] for one in numbers)])
    return out.getvalue().encode()


def inert(text: str) -> str:
    """A text that no spreadsheet takes for a formula: model names come from callers."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _given(query: bytes, known: Mapping[str, str]) -> dict[str, str]:
    try:
        pairs = (
            parse_qsl(query[: QUERY_BYTES_MAX + 1].decode("ascii"), strict_parsing=True, max_num_fields=16)
            if query
            else []
        )
    except ValueError:
        raise RequestError("the query cannot be read: expected name=value pairs joined by &") from None
    for name, _ in pairs:
        if name not in known:
            raise RequestError(f"{name[:64]!r} is no parameter here; expected {', '.join(known)}", param=name[:64])
    if len(query) > QUERY_BYTES_MAX or len({name for name, _ in pairs}) < len(pairs):
        raise RequestError(f"the query names a parameter twice, or is longer than {QUERY_BYTES_MAX} bytes")
    return dict(pairs)


async def _read(question: Callable[[], Any]) -> Any:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(ANSWER_S):
            return await loop.run_in_executor(None, question)
    except Unreadable as error:
        raise Refusal(str(error), code="ledger_unavailable", retry_after_s=1.0) from error
    except TimeoutError:
        raise Refusal(f"the ledger did not answer within {ANSWER_S:g} s", code="ledger_unavailable") from None
