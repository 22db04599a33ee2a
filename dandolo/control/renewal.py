"""New workers for a configuration that living ones cannot change to: all are made first, then one after the other
takes its slot.

Each makes everything it needs and stands by, accepting nothing. Only when every slot has one does the first begin and
the one before it finish, so that a configuration that no worker can begin with changes nothing. The number of slots
may change with it: what is too many finishes last, when all others accept at its sockets.
"""

from __future__ import annotations

import asyncio
import logging

from dandolo.control.child import Child, Unanswered
from dandolo.control.workers import RETIRING_MAX, START_S, FirstFrame, Slot, Workers
from dandolo.errors import GatewayError

BEGIN_S = 5.0
_log = logging.getLogger("dandolo")


class Renewal:
    """`count` workers that begin with `first_frame`: `prepare`, then `commit` or `abandon`. Nobody else may replace
    workers meanwhile; those that die are brought back all the same."""

    def __init__(self, workers: Workers, count: int, first_frame: FirstFrame) -> None:
        self._workers = workers
        self._count = count
        self._first_frame = first_frame
        self._slots: list[Slot] = []

    async def prepare(self) -> None:
        """Have one stand by for every slot, made one after the other. Raises ConfigError for a configuration that they
        refuse, RuntimeError when one ends or takes too long; then none is left. Cancelled, `abandon` must follow."""
        workers = self._workers
        for number in range(self._count):
            served = number < len(workers.slots)
            slot = workers.slots[number] if served else workers.idle.setdefault(number, Slot(number))
            self._slots.append(slot)
            try:
                await self._make(slot)
            except Exception:
                await self.abandon()
                raise

    async def _make(self, slot: Slot) -> None:
        while len(slot.retiring) >= RETIRING_MAX and not self._workers.ending:
            # They are told when they must end. One more would cut the oldest.
            await asyncio.wait([child.over for child in slot.retiring], return_when=asyncio.FIRST_COMPLETED)
        if self._workers.ending:
            raise RuntimeError("the gateway is ending")
        try:
            child = await self._workers.stand_by(slot, self._first_frame)
        except OSError as error:
            raise RuntimeError(f"no worker {slot.number} could be started: {error.strerror}") from None
        try:
            async with asyncio.timeout(START_S):
                well = await asyncio.shield(child.stands_by)
        except TimeoutError:
            well = False
        if not well:
            raise child.problem()

    async def abandon(self) -> None:
        """End those that stand by; all is as it was."""
        waiting = [slot.standby for slot in self._slots if slot.standby is not None]
        for child in waiting:
            child.kill()
        if waiting:
            await asyncio.wait([child.over for child in waiting])

    async def commit(self, delay_s: float, timeout_s: float) -> list[int]:
        """Have them take their slots, and those before them finish (see `Workers.replace`); the slots where that did
        not work. There the one before stays, or another one is on its way."""
        workers, failed = self._workers, list[int]()
        for slot in self._slots:
            if slot.number in workers.idle:
                workers.slots.append(workers.idle.pop(slot.number))
            if not workers.ending and not await self._take_over(slot, delay_s, timeout_s):
                failed.append(slot.number)
        if workers.ending:
            # Whoever ends all workers ends these too.
            return []
        for slot in workers.slots[self._count :]:
            workers.slots.remove(slot)
            workers.idle[slot.number] = slot
            self._leave(slot, delay_s, timeout_s)
        return failed

    async def _take_over(self, slot: Slot, delay_s: float, timeout_s: float) -> bool:
        new, old = slot.standby, slot.child
        if new is None:
            # It has ended meanwhile.
            if old is None:
                self._workers.bring_back(slot)
                return False
            return await self._workers.replace(slot.number, delay_s, timeout_s)
        if slot.again is not None:
            slot.again.cancel()
            slot.again = None
        slot.standby, slot.child = None, new
        if old is not None:
            slot.retiring.append(old)
        if await self._begins(new):
            if old is not None:
                self._retire(slot, old, delay_s, timeout_s)
            return True
        if self._workers.ending:
            return False
        _log.error("a new worker %d did not begin: %s", slot.number, new.problem())
        if old is None or old.over.done():
            # Its end, which is noticed, has another one begin.
            return False
        if old in slot.retiring:
            slot.retiring.remove(old)
            slot.child = old
        return await self._workers.replace(slot.number, delay_s, timeout_s)

    async def _begins(self, child: Child) -> bool:
        try:
            await child.ask("begin", None, BEGIN_S)
            async with asyncio.timeout(START_S):
                return await asyncio.shield(child.ready)
        except (Unanswered, GatewayError, TimeoutError):
            child.kill()
            return False

    def _leave(self, slot: Slot, delay_s: float, timeout_s: float) -> None:
        """A slot that is not wanted any more."""
        if slot.again is not None:
            slot.again.cancel()
            slot.again = None
        old, slot.child = slot.child, None
        if old is not None:
            slot.retiring.append(old)
            self._retire(slot, old, delay_s, timeout_s)

    def _retire(self, slot: Slot, old: Child, delay_s: float, timeout_s: float) -> None:
        if old.ready_at is None:
            # It was on its way, with what no longer holds.
            old.kill()
        elif not old.over.done():
            self._workers.retire(slot, old, delay_s, timeout_s)
