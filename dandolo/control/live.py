"""Snapshots on their way to whoever looks: one a second, made once for all of them and only while somebody looks.

Who is slow misses some: a client gets the latest when it has taken the one before. Nothing is queued.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from dandolo.control.route import JSON, Answer, Asked, Events, Route
from dandolo.control.snapshot import Snapshots

ASKED_S = 10
"""Who asks for single snapshots gets state of this second if they ask at least so often."""
UNWATCHED_S = 5


class Live:
    """The snapshots of one process. The owner calls `tick` once a second."""

    def __init__(self, snapshots: Snapshots) -> None:
        self.snapshots = snapshots
        self.watchers = 0
        self._ticks = 0
        self._asked_at = -ASKED_S
        self._turn = asyncio.Event()
        self._text = b""

    @property
    def wants(self) -> bool:
        """Whether workers should be asked how they are before the next tick: at every one while somebody looks (or has
        looked just now), else at one in five, for what changes is told as an event."""
        return self.watchers > 0 or self._ticks - self._asked_at < ASKED_S or self._ticks % UNWATCHED_S == 0

    def tick(self, now: float) -> None:
        """A second is over; `now` is Unix seconds."""
        self._ticks += 1
        self.snapshots.tick(now)
        self._text = b""
        self._turn.set()
        self._turn = asyncio.Event()

    def text(self) -> bytes:
        """The snapshot of this second."""
        self._asked_at = self._ticks
        if not self._text:
            self._text = self.snapshots.text()
        return self._text

    async def events(self) -> AsyncIterator[bytes]:
        """The snapshot of now, then one each second."""
        self.watchers += 1
        try:
            while True:
                turn = self._turn
                yield self.text()
                # A slow client comes back after its turn was over: it gets this second's at once.
                await turn.wait()
        finally:
            self.watchers -= 1

    def routes(self) -> list[Route]:
        """What of this the admin listener offers."""

        def once(_: Asked) -> Answer:
            return Answer(200, JSON, self.text())

        return [
            Route("GET", b"/admin/snapshot", once, "all that the page shows, of this second"),
            Route(
                "GET", b"/admin/live", lambda _: Events(self.events()), "the same as a stream of events, one a second"
            ),
        ]
