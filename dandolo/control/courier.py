"""Takes notices to one place, one after another, patiently but not for ever.

A queue of `QUEUE_MAX`, of which the oldest goes when a new one comes to a full one; each notice is tried at most
`ATTEMPTS_MAX` times, with pauses that double. What is dropped or given up is counted and said in the log. How a notice
is delivered is the business of a sink: it raises `Undelivered` when it was not.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from dandolo.notice import Notice

QUEUE_MAX: Final = 64
ATTEMPTS_MAX: Final = 7
PAUSE_S: Final = 1.0
"""Before the second attempt; then 2, 4, 8, 16, 32: a receiver may be away for a minute."""

_log = logging.getLogger("dandolo")


class Undelivered(Exception):
    """A notice was not taken. `again`: another attempt may fare better."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class Courier:
    """The notices on their way to one sink. `name` is shown; `deliver` bounds its own time."""

    def __init__(
        self,
        name: str,
        deliver: Callable[[Notice], Awaitable[None]],
        *,
        pause_s: float = PAUSE_S,
        attempts_max: int = ATTEMPTS_MAX,
    ) -> None:
        self.name = name
        self.delivered = self.failed = self.dropped = 0
        self._deliver = deliver
        self._pause_s = pause_s
        self._attempts_max = attempts_max
        self._waiting: deque[Notice] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Notices that are not there yet, the one that is being tried included."""
        return len(self._waiting)

    def send(self, notice: Notice) -> None:
        """Take a notice; returns at once."""
        if len(self._waiting) >= QUEUE_MAX:
            # Not the one under way: that is the first.
            del self._waiting[1]
            self.dropped += 1
            _log.warning("%s: more than %d notices wait, the oldest is dropped", self.name, QUEUE_MAX)
        self._waiting.append(notice)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name=f"alerts to {self.name}")

    async def close(self) -> None:
        """Let go of what waits."""
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._waiting:
            _log.warning("%s: %d notices were not delivered", self.name, len(self._waiting))
            self.dropped += len(self._waiting)
            self._waiting.clear()

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._carry(self._waiting[0])
                self._waiting.popleft()
        finally:
            self._task = None

    async def _carry(self, notice: Notice) -> None:
        pause_s = self._pause_s
        for attempt in range(1, self._attempts_max + 1):
            try:
                await self._deliver(notice)
            except Undelivered as error:
                if error.again and attempt < self._attempts_max:
                    if attempt == 1:
                        _log.warning("%s did not take notice %s and is asked again: %s", self.name, notice.id, error)
                    await asyncio.sleep(pause_s)
                    pause_s *= 2
                    continue
                _log.error("%s did not take notice %s, which is given up: %s", self.name, notice.id, error)
            except Exception as error:
                # A fault of ours must not stop the notices that follow.
                _log.error("%s failed at notice %s", self.name, notice.id, exc_info=error)
            else:
                self.delivered += 1
                return
            self.failed += 1
            return
