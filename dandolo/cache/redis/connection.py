"""One connection to a Redis server: many commands in flight, replies matched to them in order.

Commands given within one turn of the event loop leave in one write. Every command has a deadline, after which
whoever waits is told and its place in the row is kept: the reply is still to come, and must not be taken for
the next one's. When order can no longer be trusted (garbage, a reply nobody asked for, none for HUNG_S) the
connection is closed and every command on it fails. Knows nothing of what commands mean.

Bounds: COMMANDS_MAX and UNANSWERED_BYTES_MAX of commands without a reply, abandoned ones among them; beyond,
`send` declines. Replies are bounded by `wire.resp`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from enum import Enum
from math import inf
from typing import Final, Protocol, TypeAlias, cast

from dandolo.wire.resp import ErrorReply, Push, Reply, ReplyReader, RespError, encode

_log = logging.getLogger("dandolo")

COMMANDS_MAX: Final = 1024
UNANSWERED_BYTES_MAX: Final = 8 * 1024 * 1024
BEAT_S: Final = 1.0
IDLE_S: Final = 5.0
"""After this much silence the server is asked whether it is there: a peer that vanished sends no invalidations."""
HUNG_S: Final = 2.0
"""No reply for this long while one is due: nothing behind it will come either."""
LATE_S: Final = 0.020
"""A timer this late means that our own loop stood still, perhaps before the command was even written: whoever
waits is told all the same, but it does not speak against the server. (Sockets are read before timers run, by asyncio
and by libuv since 1.45: a reply that has come is heard first.)"""


class Failure(Enum):
    """Why there is no reply."""

    DOWN = "not connected"
    OPEN = "the breaker is open"
    BUSY = "too much in flight"
    TIMEOUT = "no reply in time"
    LOST = "the connection ended"


Outcome: TypeAlias = "Reply | Failure"


class Taker(Protocol):
    """Where a command was sent."""

    def failed(self) -> None:
        """The server cannot serve now."""

    def drop(self, reason: str) -> None:
        """Order or role of the connection cannot be trusted: close it."""


class Command:
    """One command on its way. `data` is its encoding, `deadline` monotonic seconds of the event loop's clock."""

    __slots__ = ("abandoned", "data", "deadline", "taker")

    def __init__(self, data: bytes, deadline: float) -> None:
        self.data = data
        self.deadline = deadline
        self.abandoned = False
        self.taker: Taker | None = None
        """The link that took it last: who is told when its reply makes no sense."""

    def hear(self, outcome: Outcome) -> None:
        """Called exactly once for every `send` that was accepted."""
        raise NotImplementedError


class Call(Command):
    """A command whose outcome goes to a function."""

    __slots__ = ("_heard",)

    def __init__(self, data: bytes, deadline: float, heard: Callable[[Outcome], None]) -> None:
        super().__init__(data, deadline)
        self._heard = heard

    def hear(self, outcome: Outcome) -> None:
        self._heard(outcome)


class Listener(Protocol):
    """Whom a connection tells."""

    def answered(self) -> None:
        """A reply other than an error came in time (told once for several of one read)."""

    def failed(self) -> None:
        """A command got no reply."""

    def pushed(self, push: Push) -> None:
        """The server sent something unasked."""

    def ended(self, reason: str) -> None:
        """The connection is gone; all its commands have been told."""


class Connection(asyncio.Protocol):
    """The protocol of one transport. Made by `loop.create_connection`; commands may be sent once it is made."""

    __slots__ = (
        "_beat", "_bytes", "_commands", "_ended", "_heard_at", "_listener", "_loop", "_moved_at",
        "_pending", "_reader", "_sweep_at", "_timer", "_transport", "late", "received_bytes", "sent_bytes",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: Listener) -> None:
        self._loop = loop
        self._listener = listener
        self._reader = ReplyReader()
        self._transport: asyncio.Transport | None = None
        self._commands: deque[Command] = deque()
        self._pending: list[bytes] = []
        self._bytes = 0
        self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._sweep_at = inf
        self._beat: asyncio.TimerHandle | None = None
        self._heard_at = self._moved_at = loop.time()
        self.late = 0
        """Replies that came after their deadline."""
        self.received_bytes = 0
        self.sent_bytes = 0

    @property
    def open(self) -> bool:
        """Whether it has not ended."""
        return not self._ended

    @property
    def in_flight(self) -> int:
        """Commands without a reply, abandoned ones among them."""
        return len(self._commands)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's: the transport is there."""
        self._transport = cast("asyncio.Transport", transport)
        self._beat = self._loop.call_later(BEAT_S, self._on_beat)

    def send(self, command: Command) -> bool:
        """Queue a command for this turn's write. False: too much is unanswered, and it will hear nothing."""
        commands = self._commands
        held = self._bytes + len(command.data)
        if len(commands) >= COMMANDS_MAX or held > UNANSWERED_BYTES_MAX or self._ended:
            return False
        if not commands:
            self._moved_at = self._loop.time()
        self._bytes = held
        commands.append(command)
        pending = self._pending
        if not pending:
            self._loop.call_soon(self._flush)
        pending.append(command.data)
        if command.deadline < self._sweep_at:
            self._sweep_by(command.deadline)
        return True

    def close(self, reason: str) -> None:
        """End it now; every command on it fails before this returns."""
        if self._ended:
            return
        self._ended = True
        for timer in (self._timer, self._beat):
            if timer is not None:
                timer.cancel()
        self._pending.clear()
        if self._transport is not None:
            self._transport.abort()
        commands, self._commands = self._commands, deque()
        for command in commands:
            if not command.abandoned:
                self._listener.failed()
                self._tell(command, Failure.LOST)
        self._listener.ended(reason)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's: the transport is gone."""
        self.close("the server closed it" if exc is None else f"the connection failed: {type(exc).__name__}")

    def data_received(self, data: bytes) -> None:
        """asyncio's: bytes came."""
        if self._ended:
            return
        self._heard_at = self._loop.time()
        self.received_bytes += len(data)
        broken = None
        try:
            replies = self._reader.feed(data)
        except RespError as error:
            replies, broken = error.replies, f"what came is no Redis protocol: {error}"
        answered = False
        commands = self._commands
        for reply in replies:
            if type(reply) is Push:
                self._listener.pushed(reply)
                continue
            if not commands:
                broken = "a reply came that nobody asked for"
                break
            command = commands.popleft()
            self._moved_at = self._heard_at
            self._bytes -= len(command.data)
            if command.abandoned:
                self.late += 1
                continue
            if type(reply) is not ErrorReply:
                answered = True
            try:
                command.hear(reply)
            except Exception:
                # The next reply belongs to the next command all the same.
                _log.exception("the outcome of a Redis command could not be handled")
            if self._commands is not commands:
                # It was closed meanwhile.
                return
        if answered:
            self._listener.answered()
        if broken is not None:
            self.close(broken)

    def _flush(self) -> None:
        pending = self._pending
        if pending and self._transport is not None:
            data = pending[0] if len(pending) == 1 else b"".join(pending)
            pending.clear()
            self.sent_bytes += len(data)
            if not self._transport.is_closing():
                self._transport.write(data)

    def _tell(self, command: Command, failure: Failure) -> None:
        try:
            command.hear(failure)
        except Exception:
            _log.exception("the failure of a Redis command could not be handled")

    def _sweep_by(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._sweep_at = deadline
        self._timer = self._loop.call_at(deadline, self._sweep)

    def _sweep(self) -> None:
        """Abandon every command whose deadline has passed."""
        now = self._loop.time()
        self._timer = None
        late = now - self._sweep_at > LATE_S
        self._sweep_at = inf
        earliest = inf
        expired = []
        for command in self._commands:
            if command.abandoned:
                continue
            if command.deadline <= now:
                command.abandoned = True
                expired.append(command)
            elif command.deadline < earliest:
                earliest = command.deadline
        if earliest < inf:
            self._sweep_by(earliest)
        for command in expired:
            if not late:
                self._listener.failed()
            self._tell(command, Failure.TIMEOUT)

    def _on_beat(self) -> None:
        now = self._loop.time()
        self._beat = self._loop.call_later(BEAT_S, self._on_beat)
        if self._commands:
            if now - self._moved_at > HUNG_S:
                self.close(f"no reply for {HUNG_S:g} s")
        elif now - self._heard_at >= IDLE_S:
            self.send(Call(encode(b"PING"), inf, _ignore))


def _ignore(outcome: Outcome) -> None:
    """A ping's outcome: that it came is all there is to know."""
