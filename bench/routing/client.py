"""An open-loop client on raw sockets: every request at its time, whatever has become of those before.

Connections are kept alive and used again, the last one first, as an SDK's pool does. One that ends inside an
answer ends that answer; nothing is ever tried again here, since what is measured is what the gateway does.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from typing import cast

from bench.routing.reading import BROKEN, FACTS, WORDS, Reading

CONNECTIONS_MAX = 2000
"""Fewer than the gateway takes from one address: beyond them a request is counted as broken."""
TIMEOUT_S = 40.0
"""Longer than anything but a mistake takes: the queue gives up a low request after 12 s of standing."""
TOKENS_MEDIAN, TOKENS_SIGMA = 22.0, 0.4
TOKENS_MIN = FACTS + 3
TOKENS_MEAN = 23.8
"""Of the log-normal as it is drawn: median · exp(sigma² / 2)."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request to come: seconds after the start, pieces of its answer, the class of its key, the model."""

    at_s: float
    tokens: int
    priority: str = "normal"
    model: str = "all"


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that is over. Times are seconds, `at_s` after the start and the others after it was due."""

    at_s: float
    priority: str
    outcome: str
    code: str
    """Of the error event or the refusal, with its status; "" without one."""
    provider: str
    """By the words of the answer."""
    attempts: int
    """As the header tells, 0 without it."""
    first_s: float | None
    total_s: float


def arrivals(
    seed: int, phases: Sequence[tuple[float, float]], classes: Sequence[tuple[str, float]] = (("normal", 1.0),)
) -> list[Wanted]:
    """Poisson arrivals. `phases` are (seconds, requests a second) one after another, `classes` (name, share)."""
    draw = random.Random(seed * 1009 + 7)
    names, shares = [name for name, _ in classes], [share for _, share in classes]
    wanted: list[Wanted] = []
    at, end = 0.0, 0.0
    for seconds, rate in phases:
        at, end = max(at, end), end + seconds
        while True:
            at += draw.expovariate(rate)
            if at >= end:
                break
            tokens = int(draw.lognormvariate(log(TOKENS_MEDIAN), TOKENS_SIGMA))
            tokens = min(max(tokens, TOKENS_MIN), WORDS)
            wanted.append(Wanted(at, tokens, draw.choices(names, shares)[0]))
    return wanted


def introduced(wanted: Sequence[Wanted], models: Sequence[str], seconds: float) -> list[Wanted]:
    """The same, but those of the first `seconds` ask for one of `models` each in turn.

    A gateway that has just started knows nobody, and may find the fastest only by and by: what it is measured by
    here is how it meets failures of providers it knows.
    """
    return [
        replace(one, model=models[index % len(models)]) if one.at_s < seconds else one
        for index, one in enumerate(wanted)
    ]


class Caller:
    """Sends requests to a gateway on `port`; `keys` maps a class to its key."""

    def __init__(self, port: int, keys: dict[str, str]) -> None:
        self.seen: list[Seen] = []
        self._port = port
        self._keys = keys
        self._free: list[Connection] = []
        self._open: set[Connection] = set()
        self._left = 0
        self._over: asyncio.Future[None]
        self._opening: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._started = 0.0

    async def run(self, wanted: Sequence[Wanted]) -> None:
        """Send everything at its time from now on, and wait until all of it is over."""
        self._over = self._loop.create_future()
        self._left = len(wanted)
        self._started = self._loop.time()
        for one in wanted:
            self._loop.call_at(self._started + one.at_s, self._send, one)
        if self._left:
            await self._over
        for connection in list(self._open):
            connection.transport.abort()

    def _send(self, wanted: Wanted) -> None:
        if self._free:
            self._free.pop().ask(wanted)
        elif len(self._open) + len(self._opening) < CONNECTIONS_MAX:
            task = self._loop.create_task(self._connect(wanted))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)
        else:
            self._note(wanted, BROKEN, "no connection left", Reading(wanted.tokens))

    async def _connect(self, wanted: Wanted) -> None:
        try:
            _, connection = await self._loop.create_connection(lambda: Connection(self), "127.0.0.1", self._port)
        except OSError:
            self._note(wanted, BROKEN, "not connected", Reading(wanted.tokens))
        else:
            self._open.add(connection)
            connection.ask(wanted)

    def request(self, wanted: Wanted) -> bytes:
        """The bytes of a request."""
        body = json.dumps(
            {
                "model": wanted.model,
                "messages": [{"role": "user", "content": "tell me something about the harbour, in your own words"}],
                "stream": True,
                "max_tokens": wanted.tokens,
            }
        ).encode()
        return (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            f"Authorization: Bearer {self._keys[wanted.priority]}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    def now_s(self) -> float:
        """Seconds since the start."""
        return self._loop.time() - self._started

    def answered(self, connection: Connection, wanted: Wanted, reading: Reading) -> None:
        """An answer is over; its connection may be used again if nothing is wrong with it."""
        code = "" if reading.error is None else reading.error
        self._note(wanted, reading.outcome, f"{reading.status} {code}" if code else "", reading)
        if reading.reusable:
            self._free.append(connection)
        else:
            connection.transport.abort()

    def closed(self, connection: Connection) -> None:
        """A connection is gone."""
        self._open.discard(connection)
        if connection in self._free:
            self._free.remove(connection)

    def _note(self, wanted: Wanted, outcome: str, code: str, reading: Reading) -> None:
        first = None if reading.first_at is None else reading.first_at - wanted.at_s
        attempts = int(reading.headers.get("x-dandolo-attempts", "0"))
        total_s = self.now_s() - wanted.at_s
        self.seen.append(Seen(wanted.at_s, wanted.priority, outcome, code, reading.provider, attempts, first, total_s))
        self._left -= 1
        if not self._left:
            self._over.set_result(None)


class Connection(asyncio.Protocol):
    """One connection; at most one request is under way on it."""

    def __init__(self, caller: Caller) -> None:
        self.transport: asyncio.Transport
        self._caller = caller
        self._wanted: Wanted | None = None
        self._reading: Reading | None = None
        self._patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it

    def ask(self, wanted: Wanted) -> None:
        """Send a request now."""
        assert self._reading is None, "an answer is still to come"
        self._wanted, self._reading = wanted, Reading(wanted.tokens)
        self._patience = asyncio.get_running_loop().call_later(TIMEOUT_S, self._give_up)
        self.transport.write(self._caller.request(wanted))

    def data_received(self, data: bytes) -> None:
        if self._reading is None:
            self.transport.abort()  # bytes that nobody asked for: never to be taken for the next answer
        elif self._reading.feed(data, self._caller.now_s()):
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._caller.closed(self)
        self._end()

    def _give_up(self) -> None:
        if self._reading is not None:
            self._reading.give_up()
            self._end()

    def _end(self) -> None:
        wanted, reading = self._wanted, self._reading
        self._wanted = self._reading = None
        if self._patience is not None:
            self._patience.cancel()
        if wanted is not None and reading is not None:
            self._caller.answered(self, wanted, reading)
