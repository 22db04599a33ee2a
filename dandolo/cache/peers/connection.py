"""One connection between two peers, whichever of them dialled: frames in and out, after both have proved themselves.

Frames given within one turn of the event loop leave in one write. Before the greeting is over nothing is handed on,
frames are short, and there are GREETING_S. Bounds: what the other side does not read is held up to HELD_BYTES_MAX,
after which `send` declines; whoever sends pieces stops at `paused` already.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol, cast

from dandolo.cache.peers.frames import FRAME_BYTES_MAX, Frame, FrameError, FrameReader, encode
from dandolo.cache.peers.greeting import GREETING_S, Greeting, Refused

_log = logging.getLogger("dandolo")

HELD_BYTES_MAX: Final = 2 * FRAME_BYTES_MAX


class End(Protocol):
    """Who owns a connection."""

    def greeted(self, connection: Connection) -> None:
        """Both sides believe each other: `connection.greeting` tells who it is. May raise Refused."""

    def heard(self, frame: Frame) -> None:
        """A frame has come. May raise Refused for one that has no place here."""

    def writable(self) -> None:
        """`paused` has ended."""

    def ended(self, reason: str, *, closed: bool) -> None:
        """It is gone; told once. `closed`: by the other side, so that everything it had said was heard."""


class Connection(asyncio.Protocol):
    """The protocol of one transport. `made(connection)` gives whom to tell."""

    __slots__ = (
        "_end", "_ended", "_held", "_loop", "_made", "_pending", "_reader", "_timer", "_transport",
        "greeting", "heard_at", "paused",
    )  # fmt: skip

    def __init__(
        self, loop: asyncio.AbstractEventLoop, greeting: Greeting, made: Callable[[Connection], End | None]
    ) -> None:
        self._loop = loop
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._pending: list[bytes] = []
        self._held = 0
        self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        self.greeting = greeting
        self.paused = False
        """The other side does not read what it is sent."""
        self.heard_at = loop.time()
        self._made = made
        self._end: End | None = None

    @property
    def open(self) -> bool:
        """Whether it has not ended."""
        return not self._ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's: the transport is there."""
        self._transport = cast("asyncio.Transport", transport)
        self._end = self._made(self)
        if self._end is None:
            # There are too many.
            self.close("")
            return
        self._timer = self._loop.call_later(GREETING_S, self.close, f"it did not prove itself within {GREETING_S:g} s")
        for frame in self.greeting.begin():
            self._write(encode(frame))

    def send(self, frame: Frame) -> bool:
        """Queue a frame for this turn's write. False: too much is held already, and it is not sent."""
        if self._ended or self._transport is None:
            return False
        if self._held + self._transport.get_write_buffer_size() > HELD_BYTES_MAX:
            return False
        self._write(encode(frame))
        return True

    def close(self, reason: str) -> None:
        """End it now."""
        self._finish(reason, closed=False)

    def data_received(self, data: bytes) -> None:
        """asyncio's: bytes came."""
        if self._ended:
            return
        self.heard_at = self._loop.time()
        broken = ""
        while True:
            try:
                frames = self._reader.feed(data)
            except FrameError as error:
                frames, broken = error.frames, str(error)
            fresh = self.greeting.believes()
            for frame in frames:
                if not self.open:
                    return
                try:
                    self._hear(frame)
                except Refused as error:
                    self.close(str(error))
                except Exception:
                    _log.exception("a frame of a cache peer could not be handled")
                    self.close("what it said could not be handled")
            if broken or self._ended:
                break
            if fresh or not self.greeting.believes():
                return
            # Whatever came behind the greeting may be long.
            data = b""
        if not self._ended:
            self.close(f"what came is not of our protocol: {broken}")

    def pause_writing(self) -> None:
        """asyncio's: much is waiting to be read."""
        self.paused = True

    def resume_writing(self) -> None:
        """asyncio's: little is."""
        self.paused = False
        if self._end is not None and not self._ended:
            self._end.writable()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's: the transport is gone."""
        # What was sent before a reset is read before it; after anything else there may have been more.
        closed = exc is None or isinstance(exc, ConnectionResetError)
        self._finish("it was closed" if exc is None else f"it failed: {type(exc).__name__}", closed=closed)

    def _hear(self, frame: Frame) -> None:
        greeting = self.greeting
        if greeting.believes():
            assert self._end is not None
            self._end.heard(frame)
            return
        for answer in greeting.hear(frame):
            self._write(encode(answer))
        if greeting.believes() and self._end is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._reader.bytes_max = FRAME_BYTES_MAX
            self._end.greeted(self)

    def _write(self, data: bytes) -> None:
        pending = self._pending
        if not pending:
            self._loop.call_soon(self._flush)
        pending.append(data)
        self._held += len(data)

    def _flush(self) -> None:
        pending = self._pending
        if pending and self._transport is not None:
            data = pending[0] if len(pending) == 1 else b"".join(pending)
            pending.clear()
            self._held = 0
            if not self._transport.is_closing():
                self._transport.write(data)

    def _finish(self, reason: str, *, closed: bool) -> None:
        if self._ended:
            return
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._flush()
            self._transport.abort()
        if self._end is not None:
            self._end.ended(reason, closed=closed)
            self._end = None
