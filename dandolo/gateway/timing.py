"""The one deadline of an exchange, which moves along with its story, and what happens when it has passed.

Four times share it: what the present wait may take, the whole request's end, the next sign of life on a silent
stream (`heartbeat`), and when somebody else is asked beside a silent provider (hedging). The sweep calls `expire`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from dandolo.errors import GatewayError, UpstreamTimeout
from dandolo.net.relay import BytesRelay, EventRelay
from dandolo.net.strand import Waiter
from dandolo.net.sweep import NEVER

if TYPE_CHECKING:
    from dandolo.gateway.flying import Following
    from dandolo.gateway.gateway import Gateway
    from dandolo.gateway.plane import Plane
    from dandolo.net.downstream import Downstream

_now = time.monotonic
LATE_SHARE = 0.25
"""Of the request's time; whoever was asked later had too little of it to be judged."""


class Timed:
    """An exchange as far as time concerns it. All times are monotonic seconds."""

    gateway: Gateway
    plane: Plane
    client: Downstream
    relay: EventRelay | BytesRelay | Following | None
    started: float
    sent_at: float
    first_byte_at: float | None
    first_token_at: float | None
    ended: bool

    hurried = False
    """The caller itself has set the end of the request."""
    deadline = NEVER
    total_at = NEVER
    wait_for = ""
    _wait_until = NEVER
    _heartbeat_at = NEVER
    _hedge_at = NEVER
    _idle_since = 0.0

    def interrupt(self, error: GatewayError) -> None:
        """End the story with `error` where it waits (the exchange does)."""

    def hedge_now(self) -> None:
        """Ask somebody else beside a provider that stays silent (the exchange does)."""

    def wait_no_more(self) -> None:
        """Somebody else's deadlines hold from here on."""
        self.deadline = self._wait_until = self._heartbeat_at = self._hedge_at = NEVER

    def hedge_at(self, at: float) -> None:
        """Call `hedge_now` when the present wait lasts until then."""
        self._hedge_at = at
        self.deadline = min(self.deadline, at)

    def await_until(self, at: float, what: str) -> None:
        """Set the deadline (monotonic seconds) of the wait that follows; never beyond the total."""
        self.wait_for = what
        self._wait_until = at if at < self.total_at else self.total_at
        self.deadline = self._wait_until if self._wait_until < self._heartbeat_at else self._heartbeat_at

    def await_still(self, what: str) -> None:
        """The wait goes on under the same deadline, for something else."""
        self.wait_for = what
        self.deadline = min(self._wait_until, self._heartbeat_at, self._hedge_at)

    def note_payload(self) -> None:
        """Something but a keep-alive has come: the idle time begins anew, by the clock of the sweep."""
        self._idle_from(self.gateway.sweep.now)

    def _idle_from(self, since: float) -> None:
        self._idle_since = since
        at = since + self.plane.config.timeouts.stream_idle
        if at > self.total_at:
            at = self.total_at
        if self._heartbeat_at is NEVER:
            self.deadline = self._wait_until = at
            return
        self._wait_until = at
        self._heartbeat_at = since + self.plane.config.server.heartbeat
        self.deadline = min(at, self._heartbeat_at)

    def begin_heartbeat(self) -> None:
        """A stream has begun: comments are due when it stays silent, if they are configured."""
        seconds = self.plane.config.server.heartbeat
        if seconds:
            self._heartbeat_at = _now() + seconds

    def end_heartbeat(self) -> None:
        """No more comments."""
        self._heartbeat_at = NEVER

    async def sleep(self, seconds: float, what: str) -> None:
        """Wait for a time, within the total."""
        waiter: Waiter[None] = Waiter()
        self.await_until(self.total_at, what)
        timer = asyncio.get_running_loop().call_later(seconds, waiter.set, None)
        try:
            await waiter
        finally:
            timer.cancel()

    def expire(self, now: float) -> None:
        """The deadline has passed (called by the sweep)."""
        relay = self.relay
        if isinstance(relay, EventRelay) and relay.payload_at > self._idle_since:
            # Most content is not reported as it passes (`EventRelay.payload_at`): there was some meanwhile.
            self._idle_from(relay.payload_at)
            if now < self.deadline:
                return
        if now >= self._hedge_at:
            self._hedge_at = NEVER
            self.hedge_now()
            if self.ended:
                return
            self.deadline = min(self._wait_until, self._heartbeat_at)
            if now < self.deadline:
                return
        if now < self._wait_until:
            self._heartbeat_at = now + self.plane.config.server.heartbeat
            self.deadline = min(self._wait_until, self._heartbeat_at)
            if isinstance(self.relay, EventRelay):
                self.relay.beat()
            return
        if self.client.stalled and now < self.total_at:
            # The provider is silent because we stopped reading; the client's own deadline is running.
            self.note_payload()
            return
        self.deadline = NEVER
        if now >= self.total_at:
            took = f"the request took its {self.total_at - self.started:g} s"
        else:
            took = f"nothing came for {now - max(self.sent_at, self.first_byte_at or 0.0):.1f} s"
        error = UpstreamTimeout(f"{took}, waiting for {self.wait_for}")
        error.counts = now < self.total_at or self._had_its_time()
        self.interrupt(error)

    def _had_its_time(self) -> bool:
        """Whether it speaks against the provider that the request's time is up.

        It does not where the caller was in a hurry, where most of the time had gone by before this one was asked (in a
        queue, with others), or where content was coming: then all that is known is that the answer is long.
        """
        asked_after_s, total_s = self.sent_at - self.started, self.total_at - self.started
        return not self.hurried and self.first_token_at is None and asked_after_s < LATE_SHARE * total_s
