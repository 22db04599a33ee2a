"""Writes of one turn of the event loop, sent together at its end.

A write to a socket whose reader sleeps wakes it, which costs several microseconds of kernel time (an
interrupt to another processor); while it is awake, further writes wake nobody. Sent one after another at
the end of a turn, the writes of a busy gateway cost a third less kernel time than each at its own moment, and
nothing waits for anything but the rest of the turn. (Measured in `bench/load`, 64 connections.)

Order is kept for each transport as long as all its writes come through here; whoever is about to close a
transport or look at its buffer calls `flush` first. What is held is bounded by `WRITES_MAX` writes below `LARGE_BYTES`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from weakref import WeakKeyDictionary

_log = logging.getLogger("dandolo")

WRITES_MAX = 64
QUIET_WRITES = 800
"""Writes between two beats (0.1 s) below which each goes out at its own moment."""
LARGE_BYTES = 16 * 1024
"""A write of this size gains nothing by waiting, and must be seen by its transport's high-water mark at once."""


class Outbox:
    """The pending writes of one event loop.

    Whoever writes very often may do what `write` does by itself: count in `writes`, and while `quiet` and with
    nothing `pending` write to the transport.
    """

    __slots__ = ("_flushing", "_loop", "pending", "quiet", "writes")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._flushing = False
        self.quiet = True
        self.writes = 0
        self._loop = loop
        self.pending: list[tuple[asyncio.WriteTransport, bytes]] = []

    def write(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Send `data` at the end of this turn of the loop."""
        pending = self.pending
        self.writes += 1
        if not pending:
            if self.quiet and not transport.is_closing():
                transport.write(data)
                return
            self._loop.call_soon(self.flush)
        pending.append((transport, data))
        if len(pending) >= WRITES_MAX or len(data) >= LARGE_BYTES:
            self.flush()

    def spread(self, transports: Collection[asyncio.WriteTransport], data: bytes) -> None:
        """Send the same to many, now, after what waits: they are a turn's writes by themselves."""
        self.writes += len(transports)
        self.flush()
        if self._flushing:
            # In the middle of a flush, which goes on until nothing is left.
            self.pending.extend((transport, data) for transport in transports)
            return
        for transport in transports:
            if not transport.is_closing():
                try:
                    transport.write(data)
                except Exception:
                    _log.exception("a write failed; the others of its row go on")

    def beat(self) -> None:
        """Tell what the traffic is like, every tenth of a second: when it is thin, writes go out at once.

        Then there is nothing to send together with, and the way through the loop would only take time.
        """
        self.quiet = self.writes < QUIET_WRITES
        self.writes = 0

    def flush(self) -> None:
        """Send everything now."""
        if self._flushing:
            return
        self._flushing = True
        try:
            while self.pending:
                pending, self.pending = self.pending, []
                for transport, data in pending:
                    # A client that leaves closes its transport at once; its protocol hears of it a turn later.
                    if not transport.is_closing():
                        try:
                            transport.write(data)
                        except Exception:
                            _log.exception("a write failed; the others of its turn go on")
        finally:
            self._flushing = False


_outboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, Outbox] = WeakKeyDictionary()


def running_outbox() -> Outbox:
    """The outbox of the running event loop."""
    loop = asyncio.get_running_loop()
    outbox = _outboxes.get(loop)
    if outbox is None:
        outbox = _outboxes[loop] = Outbox(loop)
    return outbox
