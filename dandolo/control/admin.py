"""The operator's listener: routes behind one door.

A service on the same connections as the gateway's own (`net.downstream`), so the same strict parser and
deadlines stand here. A head is judged in full before a body is read: where it comes from and who it is
(`control.guard`), which route it means, how large its body may be and what it is. It knows nothing of what it
serves: that comes as routes (`control.route`). Handlers that wait run as tasks that end with their client;
streams of events are bounded in number and in age, and a client that does not read is cut.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable
from contextlib import aclosing
from email.utils import formatdate
from typing import NamedTuple, Protocol, cast

import msgspec

from dandolo.api import openai
from dandolo.control.guard import Authenticate, Caller, check_caller, check_kind, check_place
from dandolo.control.route import EVENTS, JSON, Answer, Asked, Events, Route, Table
from dandolo.errors import GatewayError, InternalError, Refusal, RequestError
from dandolo.net.downstream import Downstream, DownstreamLimits
from dandolo.net.service import NoRepeats
from dandolo.net.sweep import Sweep
from dandolo.net.tasks import Tasks
from dandolo.values import fit
from dandolo.wire import fields
from dandolo.wire.server import HeadLimits, Request

BODY_BYTES_MAX = 4096
"""Of a request that takes no body; a small one is read past so that the connection can go on."""
STREAMS_MAX = 32
"""Streams of events at a time; beyond: 503."""
STREAM_S = 900.0
"""A stream ends after a quarter of an hour and is asked for again, with a key that must be known then."""
LIMITS = DownstreamLimits(
    HeadLimits(header_bytes_max=16 * 1024), body_idle_s=5.0, body_total_s=10.0, keep_alive_idle_s=120.0
)
"""Prometheus asks every 15 to 60 s over one connection: idle ones are kept longer than that."""

_SAFE = b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_log = logging.getLogger("dandolo")


class Audit(Protocol):
    """Whoever keeps what was changed, and by whom."""

    def note(self, asked: Asked, route: Route, outcome: int, reason: str) -> None:
        """A call that is to be written down has ended with this status (499: its client left first) and error code."""


class _Let(NamedTuple):
    """What was decided about a request when its head was seen."""

    route: Route
    caller: Caller
    rest: bytes


class Admin:
    """The service of the admin listener.

    `authenticate` judges a head (lower-case names to values), says whose key it presents and raises GatewayError when
    it is none; without it everybody may come in by a loopback name, or over a Unix socket.

    The owner calls `sweep.tick(now())` every `PERIOD_S`, sets `draining` when the process is to end, calls `close`
    at the end and then ends `tasks`.
    """

    def __init__(
        self,
        routes: Iterable[Route],
        *,
        authenticate: Authenticate | None = None,
        audit: Audit | None = None,
        tasks: Tasks | None = None,
        limits: DownstreamLimits = LIMITS,
    ) -> None:
        self.limits = limits
        self.sweep = Sweep()
        self.draining = False
        self.repeats = NoRepeats()
        self.tasks = Tasks() if tasks is None else tasks
        self.streams = 0
        """Streams of events that are open."""
        self._table = Table(routes)
        self.authenticate = authenticate
        """May be replaced at any time: the next head is judged by it."""
        self._audit = audit

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def close(self) -> None:
        """End every connection at once."""
        for item in list(self.sweep.items):
            if isinstance(item, Downstream):
                item.abort()

    # -- what a connection asks ------------------------------------------------------------------------

    def admit(self, connection: Downstream, request: Request) -> int:
        """Judge a head. Returns how many bytes of body are read; raises GatewayError."""
        head, method = request.fields, request.method.decode("ascii")
        request.context = None
        keyed = self.authenticate is not None
        tcp = bool(connection.peer)
        check_place(head, request.authority, keyed=keyed, tcp=tcp, method=request.method)
        methods, rest = self._table.at(request.path)
        route = methods.get("GET" if method == "HEAD" else method)
        caller = Caller()
        if self.authenticate is not None and (route is None or not route.open):
            caller = self.authenticate(head)
        if route is None:
            if not methods:
                raise RequestError(
                    "there is nothing at this path; GET / lists what is here", status=404, code="not_found"
                )
            allowed = ", ".join(sorted({*methods, *(("HEAD",) if "GET" in methods else ())}))
            raise RequestError(f"this path takes {allowed}", status=405, code="method_not_allowed", allow=allowed)
        try:
            check_caller(route, caller)
            if route.changes:
                check_kind(head, has_body=request.length != 0)
        except GatewayError as error:
            self._note(Asked(method, request.path, b"", b"", caller.name, rest), route, error)
            raise
        request.context = _Let(route, caller, rest)
        return route.body_bytes_max if route.changes else BODY_BYTES_MAX

    def enter_again(self, connection: Downstream, request: Request) -> bool:
        """Never: every head is judged in full, nothing here is in a hurry."""
        return False

    def begin(self, connection: Downstream, request: Request) -> None:
        """The same as `start`: nothing is counted here."""
        self.start(connection, request)

    def body_grew(self, connection: Downstream, size: int) -> None:
        """Nothing to count: bodies are bounded by their routes, connections in number."""

    def start(self, connection: Downstream, request: Request) -> None:
        """Answer at once, or begin what answers later."""
        route, caller, rest = cast(_Let, request.context)
        asked = Asked(
            request.method.decode("ascii"), request.path, request.query, request.body, caller.name, rest,
            request.fields.get(b"accept", b""),
        )  # fmt: skip
        try:
            if route.changes and asked.body:
                _check_json(asked.body)
                if route.schema is None and asked.body.strip() != b"{}":
                    raise RequestError("this path takes no body: expected none, or {}", code="body_not_expected")
            answer = route.handle(asked)
        except Exception as error:
            self._failed(connection, request, asked, route, error)
        else:
            if isinstance(answer, Answer):
                self._answered(connection, asked, route, answer)
            elif isinstance(answer, Events):
                self._stream(connection, request, asked, answer)
            else:
                waiting = self._wait(connection, request, asked, route, answer)
                connection.exchange = task = self.tasks.spawn(waiting, f"admin {asked.method}")
                if isinstance(answer, Coroutine):
                    # A task that is cancelled before its first step would leave it behind.
                    task.add_done_callback(lambda _: answer.close())

    def refusal(self, connection: Downstream, request: Request | None, error: GatewayError) -> tuple[int, bytes, bytes]:
        """Status, header lines and body (OpenAI's envelope) that tell `error`."""
        head = _head(JSON)
        if error.status == 401:
            head += b"WWW-Authenticate: Bearer\r\n"
        if error.allow is not None:
            head += fields.encode_fields([(b"Allow", error.allow.encode("ascii"))])
        if error.retry_after_s is not None:
            head += b"Retry-After: %d\r\n" % math.ceil(error.retry_after_s)
        return error.status, head, openai.error_body(error)

    def gone(self, connection: Downstream) -> None:
        """Cancel what runs for a connection."""
        if isinstance(connection.exchange, asyncio.Task):
            connection.exchange.cancel()

    # -- how it ends -----------------------------------------------------------------------------------

    async def _wait(
        self, connection: Downstream, request: Request, asked: Asked, route: Route, answer: Awaitable[Answer]
    ) -> None:
        try:
            async with asyncio.timeout(route.deadline_s):
                found = await answer
        except asyncio.CancelledError:
            self._note(asked, route, RequestError("", status=499, code="client_closed_request"))
            connection.abort()
            raise
        except TimeoutError:
            late = Refusal(f"this took longer than {route.deadline_s:g} s", status=504, code="timeout")
            self._failed(connection, request, asked, route, late)
        except Exception as error:
            self._failed(connection, request, asked, route, error)
        else:
            self._answered(connection, asked, route, found)

    def _answered(self, connection: Downstream, asked: Asked, route: Route, answer: Answer) -> None:
        if self._audit is not None and route.noted:
            self._audit.note(asked, route, answer.status, "")
        connection.answer(answer.status, _head(answer.kind, answer.policy), answer.body)
        connection.finish()

    def _failed(self, connection: Downstream, request: Request, asked: Asked, route: Route, error: Exception) -> None:
        if isinstance(error, msgspec.ValidationError):
            # It names what was expected and where, and repeats no value.
            error = RequestError(f"the body does not fit: {error}")
        elif not isinstance(error, GatewayError):
            _log.error("the admin listener failed to answer", exc_info=error)
            error = InternalError("an error within the gateway; it has been logged")
        self._note(asked, route, error)
        connection.answer(*self.refusal(connection, request, error))
        connection.finish()

    def _note(self, asked: Asked, route: Route, error: GatewayError) -> None:
        if self._audit is not None and route.noted:
            self._audit.note(asked, route, error.status, error.code or "")

    # -- streams of events -----------------------------------------------------------------------------

    def _stream(self, connection: Downstream, request: Request, asked: Asked, events: Events) -> None:
        if asked.method == "HEAD":
            connection.answer(200, _head(EVENTS), b"")
            connection.finish()
            return
        if self.streams >= STREAMS_MAX:
            busy = Refusal(f"{STREAMS_MAX} streams are open here, which is all there may be", retry_after_s=5.0)
            connection.answer(*self.refusal(connection, request, busy))
            connection.finish()
            return
        self.streams += 1
        pump = _Pump(connection)
        connection.begin_stream(200, _head(EVENTS), pump)
        connection.exchange = task = self.tasks.spawn(self._pump(connection, pump, events.source), "admin events")
        task.add_done_callback(self._streamed)

    def _streamed(self, _: asyncio.Task[None]) -> None:
        self.streams -= 1

    async def _pump(self, connection: Downstream, pump: _Pump, source: AsyncIterator[bytes]) -> None:
        try:
            try:
                async with asyncio.timeout(STREAM_S):
                    await pump.run(source)
            except TimeoutError:
                pass
            connection.end_stream()
        except asyncio.CancelledError:
            connection.abort()
            raise
        except Exception:
            _log.error("a stream of the admin listener failed", exc_info=True)
            connection.cut()
        connection.finish()


class _Pump:
    """Moves events from their source to a client, at the client's pace: while it does not read nothing is taken,
    and after `write_stall_s` its connection is ended."""

    __slots__ = ("_connection", "_room")

    def __init__(self, connection: Downstream) -> None:
        self._connection = connection
        self._room = asyncio.Event()
        self._room.set()

    def pause(self) -> None:
        self._room.clear()

    def resume(self) -> None:
        self._room.set()

    async def run(self, source: AsyncIterator[bytes]) -> None:
        """Until the source ends, or this is cancelled: the source is closed either way."""
        async with aclosing(source) as events:  # type: ignore[type-var]
            async for text in events:
                await self._room.wait()
                self._connection.write(b"".join(b"data: %b\n" % line for line in text.split(b"\n")) + b"\n")


def _check_json(body: bytes) -> None:
    """Raises RequestError (400) for what is no JSON, or says a thing twice (RFC 8259 §4: what that means is anybody's
    guess, and whoever audits may guess otherwise), whatever the handler would have made of it."""
    try:
        body.decode()
        msgspec.json.decode(body)
        json.loads(body, object_pairs_hook=_once, parse_int=_ignored, parse_float=_ignored)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, json.JSONDecodeError) as error:
        raise RequestError("the body cannot be read: expected JSON in UTF-8", code="invalid_json") from error


def _once(pairs: list[tuple[str, object]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            said = fit(name)
            raise RequestError(
                f"the body says '{said}' more than once: expected each name once", code="duplicate_name", param=said
            )
        seen.add(name)


def _ignored(digits: str) -> None:
    """Numbers were read above; a long one would cost."""


def _head(content_type: bytes, policy: bytes = b"") -> bytes:
    # no-store and nosniff: numbers of this moment, and never anything a browser might take for a page.
    return (
        b"Date: %b\r\nContent-Type: %b\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"
        b"X-Frame-Options: DENY\r\nReferrer-Policy: no-referrer\r\nCross-Origin-Resource-Policy: same-origin\r\n"
        b"Content-Security-Policy: %b\r\n"
    ) % (
        formatdate(usegmt=True).encode(),
        content_type,
        policy or _SAFE,
    )
