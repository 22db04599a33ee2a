"""Where peers come in: accepting within bounds, and TLS before anything else is made of a connection.

The loop's own servers forget connections whose handshake is under way, so that neither their number nor their end is
in anybody's hands. Here each has a task until it is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Final

from dandolo.cache.peers.greeting import GREETING_S

OPENING_MAX: Final = 64
"""Connections whose handshake is under way; beyond, new ones are closed at once."""
PAUSE_S: Final = 0.1
"""After the kernel would not let us accept."""


class Door:
    """One listening socket, which becomes its own. `made` makes the protocol of a connection."""

    __slots__ = ("_again", "_loop", "_made", "_opening", "_socket", "_tls")

    def __init__(
        self, sock: socket.socket, tls: ssl.SSLContext | None, made: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        self._socket = sock
        self._tls = tls
        self._made = made
        self._opening: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._again: asyncio.TimerHandle | None = None

    @property
    def address(self) -> object:
        """Where it is, as the kernel says it."""
        return self._socket.getsockname()

    def discard(self) -> None:
        """Close it before it was started."""
        self._socket.close()

    def start(self) -> None:
        """Accept, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._accept)

    async def close(self) -> None:
        """Accept no more, and end the handshakes that are under way."""
        if self._loop is not None and self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
        if self._again is not None:
            self._again.cancel()
        self._socket.close()
        opening = list(self._opening)
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)

    def _accept(self) -> None:
        loop = self._loop
        assert loop is not None
        try:
            sock, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:
            # Out of descriptors, most likely: the connection waits in the kernel meanwhile.
            loop.remove_reader(self._socket)
            self._again = loop.call_later(PAUSE_S, self.start)
            return
        if len(self._opening) >= OPENING_MAX:
            sock.close()
            return
        sock.setblocking(False)
        task = loop.create_task(self._open(sock), name="cache peer comes in")
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, sock: socket.socket) -> None:
        assert self._loop is not None
        handshake_s = GREETING_S if self._tls is not None else None
        # A handshake that fails is the dialler's business; its own log says why.
        with contextlib.suppress(OSError):
            await self._loop.connect_accepted_socket(self._made, sock, ssl=self._tls, ssl_handshake_timeout=handshake_s)
