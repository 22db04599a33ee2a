"""The socket pair between the control process and a worker, as frames on an event loop.

Writing never waits: what the other end does not take is held up to a bound, and beyond it a frame that may be lost
is refused (the caller counts it), one that must not be lost ends the pipe. An end that stands still for so long is
of no use to anybody.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import cast

from dandolo.frames import PAYLOAD_BYTES_MAX, FrameError, Frames, Kind, encode

HELD_BYTES_MAX = 4 * 1024 * 1024
"""Of frames that may be lost: some ten thousand records."""
HELD_BYTES_SURE = 2 * PAYLOAD_BYTES_MAX
"""Of all frames."""
_log = logging.getLogger("dandolo")


class Pipe(asyncio.Protocol):
    """One end. `on_frame` is called for each frame, `on_lost` once when the other end has gone, or this one was
    closed. What `on_frame` raises ends the pipe."""

    def __init__(self, on_frame: Callable[[Kind, memoryview], None], on_lost: Callable[[], None]) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost = False

    @classmethod
    async def over(
        cls, sock: socket.socket, on_frame: Callable[[Kind, memoryview], None], on_lost: Callable[[], None]
    ) -> Pipe:
        """A pipe over one end of `pair`, which becomes the pipe's."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        _, pipe = await loop.create_unix_connection(lambda: cls(on_frame, on_lost), sock=sock)
        return pipe

    @property
    def held_bytes(self) -> int:
        """What the other end has not taken yet."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    @property
    def closing(self) -> bool:
        """Whether it takes nothing any more."""
        return self.lost or self._transport is None or self._transport.is_closing()

    def send(self, kind: Kind, payload: bytes, *, may_be_lost: bool = False) -> bool:
        """Send a frame; whether it is on its way."""
        transport = self._transport
        if transport is None or self.lost or transport.is_closing():
            return False
        held = transport.get_write_buffer_size()
        if held > (HELD_BYTES_MAX if may_be_lost else HELD_BYTES_SURE):
            if not may_be_lost:
                _log.error("a pipe holds %d bytes that its other end does not take: it is closed", held)
                self.abort()
            return False
        transport.write(encode(kind, payload))
        return True

    async def finish(self, within_s: float) -> None:
        """Close after what is held has gone out; what has not by then is lost."""
        if self._transport is not None:
            self._transport.close()
            await asyncio.wait((self._gone,), timeout=within_s)
            self._transport.abort()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        try:
            for kind, payload in self._frames.feed(data):
                if self.lost:
                    return
                self._on_frame(kind, payload)
        except FrameError as error:
            _log.error("a pipe is closed: %s", error)
            self.abort()
        except Exception as error:
            _log.error("a pipe is closed: a frame could not be dealt with", exc_info=error)
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        if not self.lost:
            self.lost = True
            self._gone.set_result(None)
            self._on_lost()
