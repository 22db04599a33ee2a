"""Embedding and moderation calls that come at one time travel together: one call upstream, its answer in parts.

A call that finds nobody of its kind under way goes at once, alone. Those that come while it is under way wait for one
another, at most the window (`routing.batch_window`) or until it is back, and go as one. Kind is everything but the
input: tenant, models, every other field. A batch that the provider refuses as a whole is asked again one by one, so
that one bad input never fails its neighbours; who leaves meanwhile is passed over, and when all have left the call is
cancelled.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from dandolo.api.call import Call, read
from dandolo.api.merge import LISTS, alike, merged, parts, texts
from dandolo.api.usage import facts, of
from dandolo.errors import GatewayError, Retry
from dandolo.gateway.detached import Detached
from dandolo.net.strand import Waiter

if TYPE_CHECKING:
    from dandolo.gateway.exchange import Exchange
    from dandolo.gateway.ways import Lane

INPUTS_MAX = 32
"""Of one batch. Some servers take no more at a time."""
BYTES_MAX = 64 * 1024
"""Of text in one batch; a longer call goes alone."""
REFUSED_S = 60.0
"""How long calls of a kind go alone after a batch of them was refused."""

REFUSED_MAX = 1024

_now = time.monotonic
Kind = tuple[object, ...]


class Member:
    """One call of a batch. Its waiter gets its part of the answer, None when it must ask alone."""

    __slots__ = ("batch", "call", "exchange", "inputs", "size", "waiter")

    def __init__(self, exchange: Exchange, call: Call, inputs: list[bytes]) -> None:
        self.exchange = exchange
        self.call = call
        self.inputs = inputs
        self.size = sum(map(len, inputs))
        self.batch: _Batch | None = None
        self.waiter: Waiter[bytes | None] = Waiter()


class Line:
    """Calls of one kind: how many are under way, and who waits for company."""

    __slots__ = ("count", "flying", "kind", "size", "timer", "waiting")

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.flying = 0
        self.waiting: list[Member] = []
        self.count = 0
        self.size = 0
        self.timer: asyncio.TimerHandle | None = None


class Batches:
    """The lines of one worker. A line is there only while a call of its kind is under way."""

    def __init__(self) -> None:
        self._lines: dict[Kind, Line] = {}
        self._refused: dict[Kind, float] = {}

    def __len__(self) -> int:
        return len(self._lines)

    async def ask(self, exchange: Exchange, call: Call, lane: Lane) -> None:
        """Answer a call, alone or with others."""
        assert call.json is not None
        inputs = texts(call.json, INPUTS_MAX)
        if inputs is None or len(call.raw) > BYTES_MAX:
            await exchange.ask(call, lane)
            return
        kind: Kind = (call.endpoint.name, exchange.tenant.name, call.models, exchange.region, alike(call.json))
        line = self._lines.get(kind)
        if line is None:
            line = self._lines[kind] = Line(kind)
        elif _now() >= self._refused.get(kind, 0.0):
            answered = await self._together(Member(exchange, call, inputs), line)
            if answered:
                return
        await self._alone(exchange, call, lane, line)

    async def _alone(self, exchange: Exchange, call: Call, lane: Lane, line: Line) -> None:
        line.flying += 1
        try:
            await exchange.ask(call, lane)
        finally:
            self.back(line)

    async def _together(self, member: Member, line: Line) -> bool:
        """Wait for company and the answer. False when the call must be asked alone after all."""
        exchange, count = member.exchange, len(member.inputs)
        if line.count + count > INPUTS_MAX or line.size + member.size > BYTES_MAX:
            self._fly(line)
        line.waiting.append(member)
        line.count += count
        line.size += member.size
        if line.timer is None:
            window_s = exchange.plane.config.routing.batch_window
            line.timer = asyncio.get_running_loop().call_later(window_s, self._fly, line)
        exchange.await_until(exchange.total_at, "others to be asked for together, and their answer")
        try:
            part = await member.waiter
        except BaseException:
            if member in line.waiting:
                line.waiting.remove(member)
                line.count -= count
                line.size -= member.size
            elif member.batch is not None:
                member.batch.left()
            raise
        if part is None:
            return False
        found = facts(part)
        exchange.usage = of(found) if found is not None else None
        exchange.send_whole(part)
        return True

    def refused(self, line: Line) -> None:
        """A batch of this kind was refused as a whole: for a while its calls go alone."""
        if len(self._refused) >= REFUSED_MAX:
            self._refused.clear()
        self._refused[line.kind] = _now() + REFUSED_S

    def back(self, line: Line) -> None:
        """A call or batch of a line is over: whoever waits goes now."""
        line.flying -= 1
        if line.waiting:
            self._fly(line)
        elif not line.flying and self._lines.get(line.kind) is line:
            del self._lines[line.kind]

    def _fly(self, line: Line) -> None:
        """Send those who wait: together, or one by itself."""
        if line.timer is not None:
            line.timer.cancel()
            line.timer = None
        members, line.waiting = line.waiting, []
        line.count = line.size = 0
        if len(members) == 1:
            members[0].waiter.set(None)
        elif members:
            line.flying += 1
            _Batch(self, line, members).begin()


class _Batch:
    """Several calls under way as one."""

    def __init__(self, batches: Batches, line: Line, members: list[Member]) -> None:
        self._batches = batches
        self._line = line
        self._members = members
        self._body: bytes | None = None
        self._detached: Detached | None = None

    def begin(self) -> None:
        """Ask."""
        first = self._members[0]
        assert first.call.json is not None
        raw = merged(first.call.json, [text for member in self._members for text in member.inputs])
        call = read(first.call.endpoint, raw, b"application/json")
        self._detached = Detached(first.exchange, call, self)
        for member in self._members:
            member.batch = self
        self._detached.begin()

    def left(self) -> None:
        """A member has left: when it was the last, nobody needs the answer."""
        if self._detached is not None and not any(member.waiter.wanted for member in self._members):
            self._detached.cancel()

    # -- what the call tells ---------------------------------------------------------------------------

    def answered(self, status: int, body: bytes) -> None:
        """A plain answer, whole."""
        self._body = body

    def begun(self, status: int, length: int | None) -> None:
        """An answer too long to be gathered has begun."""
        self._body = b""

    def piece(self, content: bytes) -> None:
        """The next piece of it."""
        self._body = (self._body or b"") + content

    def over(self, error: GatewayError | None) -> None:
        """The call has ended: everybody gets their part, or asks alone, or fails."""
        members, detached = self._members, self._detached
        self._batches.back(self._line)
        for member in members:
            member.batch = None
        if error is not None:
            if error.retry is Retry.NEVER and 400 <= error.status < 500:
                # Perhaps one input is bad, perhaps there are too many: each finds out for itself.
                if error.status not in (402, 429):
                    self._batches.refused(self._line)
                self._tell([None] * len(members))
            else:
                for member in members:
                    member.waiter.fail(error)
            return
        assert detached is not None
        listed = LISTS[members[0].call.endpoint.name]
        counts = [len(member.inputs) for member in members]
        found = parts(self._body or b"", listed, counts, [member.size for member in members])
        if found is None:
            # Not one entry for each input: a server that takes one at a time.
            self._batches.refused(self._line)
            self._tell([None] * len(members))
            return
        for member in members:
            member.exchange.take_from(detached)
        self._tell(list(found))

    def _tell(self, outcome: list[bytes | None]) -> None:
        for member, part in zip(self._members, outcome, strict=True):
            member.waiter.set(part)
