"""The workers: started, asked, replaced one by one, brought back when they end, ended together.

Each has a slot. A slot always has one process that serves, or one that will; those that it replaced finish their
requests beside it. What a worker is given is its owner's business, what it says goes to its `Audience`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from dandolo.control.child import Child, Sample, Unanswered
from dandolo.control.spawn import Spawned, provide, spawn
from dandolo.errors import GatewayError
from dandolo.net.tasks import Tasks
from dandolo.record import Record
from dandolo.text import Text

START_S = 30.0
"""From a process's start until it accepts."""
HUNG_S = 10.0
"""Silence of a worker, which speaks twice a second, until it is killed."""
SILENT_S = 1.5
"""Silence of a worker until its siblings let in whoever waits for it."""
LATE_S = 2.0
"""When we come this late to look, silence says nothing about workers."""
BACKOFF_S = 0.5
BACKOFF_MAX_S = 30.0
STEADY_S = 30.0
"""A worker that lived this long is no crash loop."""
AT_ONCE_BYTES = 64 * 1024
MARGIN_S = 5.0
"""What a worker may take for its end beyond what it was given."""
RETIRING_MAX = 4
"""Replaced processes of one slot that may still finish their requests; the oldest is cut when there are more."""

_log = logging.getLogger("dandolo")


def backoff_s(failures: int) -> float:
    """How long to wait before the next process of a slot whose last `failures` ones ended early: at once for the
    first time, half a second after the second, then double each time up to 30 s."""
    return 0.0 if failures <= 1 else min(BACKOFF_MAX_S, BACKOFF_S * 2 ** min(failures - 2, 10))


class Reply(NamedTuple):
    """What a worker said to a question: `value` when `well`, otherwise the error."""

    slot: int
    generation: int
    well: bool
    value: Any


class Audience(Protocol):
    """Who hears what workers say."""

    def records(self, records: Sequence[Record]) -> None:
        """Requests that have finished."""

    def texts(self, texts: Sequence[Text]) -> None:
        """What was asked and answered, where that is kept."""

    def event(self, kind: str, text: str) -> None:
        """What an operator wants to see beside the numbers."""

    def leaving(self, child: Child) -> None:
        """A process was told to end by somebody else, and waits for `replace`."""

    def last(self, child: Child, samples: list[Sample] | None) -> None:
        """A process has ended. Its gauges at the end, None when it could not tell."""


class Slot:
    """A place for one serving worker. `child` is the newest process, `retiring` those before it, `standby` one that
    waits to take its place (`control.renewal`)."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.child: Child | None = None
        self.retiring: list[Child] = []
        self.standby: Child | None = None
        self.generation = 0
        self.failures = 0
        self.again: asyncio.TimerHandle | None = None

    def all(self) -> list[Child]:
        """Every process of it that has not ended."""
        return [*self.retiring, *(one for one in (self.child, self.standby) if one is not None)]


FirstFrame = Callable[[int, int], tuple[bytes, list[int]]]


class Workers:
    """All workers of a control process.

    `first_frame` gives what a process of a slot begins with (slot, generation) and the descriptors that go with it.
    `early` is the first slot's process, which has it already.
    """

    def __init__(
        self,
        count: int,
        first_frame: FirstFrame,
        audience: Audience,
        tasks: Tasks,
        early: Spawned | None = None,
    ) -> None:
        self.slots = [Slot(number) for number in range(count)]
        self.idle: dict[int, Slot] = {}
        """Slots by number that are not to serve any more, or not yet."""
        self.ending = False
        self.restarts = 0
        """Workers that ended and were brought back."""
        self._first_frame = first_frame
        self._audience = audience
        self._tasks = tasks
        self._early = early
        self._loop = asyncio.get_running_loop()
        self._looked_at = self._loop.time()
        self._started = False
        self._told: tuple[list[int], list[int]] = ([], [])
        """The slots for which siblings stand in, and the siblings that know."""

    # -- starting --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start one process a slot and wait until all accept. Raises ConfigError for a configuration that they
        refuse, RuntimeError when one ends or takes too long; then all have ended."""
        children = [await self._begin(slot) for slot in self.slots]
        await asyncio.wait([child.ready for child in children], timeout=START_S)
        for child in children:
            if not child.ready.done() or not child.ready.result():
                await self.kill()
                raise child.problem()
        self._started = True

    async def _begin(self, slot: Slot) -> Child:
        early, self._early = self._early, None
        return await self._provided(slot, early or spawn(), self._first_frame, early=early is not None)

    async def stand_by(self, slot: Slot, first_frame: FirstFrame) -> Child:
        """Start a process of a slot that is given this and waits (`Child.stands_by`). Raises OSError."""
        return await self._provided(slot, spawn(), first_frame, stands_by=True)

    async def _provided(
        self, slot: Slot, spawned: Spawned, first_frame: FirstFrame, *, early: bool = False, stands_by: bool = False
    ) -> Child:
        generation, slot.generation = slot.generation, slot.generation + 1
        try:
            frame, descriptors = (b"", []) if early else first_frame(slot.number, generation)
        except ValueError as error:
            spawned.abandon()
            raise OSError(errno.ENOSPC, str(error)) from error
        child = Child(slot.number, generation, spawned, self, self._loop.time)
        if stands_by:
            slot.standby = child
        else:
            slot.child = child
        try:
            spawned.channel.settimeout(START_S)
            if early:
                pass
            elif len(frame) <= AT_ONCE_BYTES:
                provide(spawned.channel, frame, descriptors)
            else:
                # More than the socket holds, while the worker is still loading.
                await self._loop.run_in_executor(None, provide, spawned.channel, frame, descriptors)
        except OSError as error:
            _log.error("worker %d (process %d) took nothing: %s", slot.number, child.pid, error)
        await child.attend()
        return child

    # -- asking ----------------------------------------------------------------------------------------

    @property
    def children(self) -> list[Child]:
        """Every process that has not ended."""
        return [child for slot in (*self.slots, *self.idle.values()) for child in slot.all()]

    def _slot(self, number: int) -> Slot:
        return self.slots[number] if number < len(self.slots) else self.idle[number]

    @property
    def serving(self) -> list[Child]:
        """The newest process of each slot, where it accepts."""
        return [slot.child for slot in self.slots if slot.child is not None and slot.child.ready_at is not None]

    async def ask_all(self, question: str, argument: Any = None, deadline_s: float = 1.0) -> list[Reply]:
        """Ask every serving worker; the replies in the order of slots, within `deadline_s`.

        A worker that does not answer has a reply that is not `well`; one that is being brought back has none.
        """
        return list(await asyncio.gather(*(self._reply(one, question, argument, deadline_s) for one in self.serving)))

    async def ask_everyone(self, question: str, argument: Any = None, deadline_s: float = 1.0) -> list[Reply]:
        """The same of all processes, those too that only finish what they have begun."""
        everyone = [child for child in self.children if child.ready_at is not None]
        return list(await asyncio.gather(*(self._reply(one, question, argument, deadline_s) for one in everyone)))

    async def _reply(self, child: Child, question: str, argument: Any, deadline_s: float) -> Reply:
        try:
            return Reply(child.slot, child.generation, True, await child.ask(question, argument, deadline_s))
        except (Unanswered, GatewayError) as error:
            return Reply(child.slot, child.generation, False, error)

    # -- replacing -------------------------------------------------------------------------------------

    async def restart(self, delay_s: float, timeout_s: float) -> bool:
        """Replace every worker, one slot after the other: the new one accepts before the old one stops. Whether
        all were replaced; where a new one does not come up, the old one stays and the rest is left alone."""
        for slot in self.slots:
            if self.ending:
                return False
            if not await self.replace(slot.number, delay_s, timeout_s):
                return False
        return True

    async def replace(self, number: int, delay_s: float, timeout_s: float) -> bool:
        """Replace the worker of one slot; whether that went well."""
        slot = self.slots[number]
        old = slot.child
        if old is None or old.ready_at is None:
            return True  # a new one is on its way anyhow
        slot.retiring.append(old)
        try:
            new = await self._begin(slot)
        except OSError as error:
            slot.retiring.remove(old)
            _log.error("no worker %d could be started, the old one stays: %s", slot.number, error.strerror)
            return False
        try:
            async with asyncio.timeout(START_S):
                well = await asyncio.shield(new.ready)
        except TimeoutError:
            well = False
            new.kill()
        if not well and self.ending:
            return False
        if not well:
            _log.error("a new worker %d did not come up, the old one stays: %s", slot.number, new.problem())
            if old in slot.retiring and not old.over.done():
                slot.retiring.remove(old)
                slot.child = old
            return False
        self.retire(slot, old, delay_s, timeout_s)
        return True

    def retire(self, slot: Slot, old: Child, delay_s: float, timeout_s: float) -> None:
        """Have one of `slot.retiring` finish its requests and end; others accept already at its sockets."""
        old.retiring = True
        self._tasks.spawn(self._let_go(old, delay_s, timeout_s, replaced=True), "retire")
        for child in slot.retiring[:-RETIRING_MAX]:
            child.kill()

    async def _let_go(self, child: Child, delay_s: float, timeout_s: float, *, replaced: bool) -> int:
        """Ask a worker to finish, and see to it that it ends; how many requests it had under way."""
        under_way = 0
        argument = {"delay_s": delay_s, "timeout_s": timeout_s, "replaced": replaced}
        try:
            under_way = await child.ask("drain", argument, MARGIN_S)
        except (Unanswered, GatewayError) as error:
            if child.ends:
                return 0  # it was asked before, and has finished
            _log.error("worker %d (process %d) is killed: %s", child.slot, child.pid, error)
            child.kill()
        self._loop.call_later(delay_s + timeout_s + MARGIN_S, child.kill)
        return under_way

    # -- ending ----------------------------------------------------------------------------------------

    async def drain(self, delay_s: float, timeout_s: float, *, replaced: bool = False) -> int:
        """Ask all to finish; how many requests are under way. `over` waits for their ends. `replaced`: others accept
        already at the same sockets."""
        self.ending = True
        under_way = 0
        children = self.children
        for slot in self.slots:
            if slot.again is not None:
                slot.again.cancel()
        for child in children:
            child.retiring = True
            if child.ready_at is None:
                child.kill()
        asked = [
            self._let_go(one, delay_s, timeout_s, replaced=replaced) for one in children if one.ready_at is not None
        ]
        for count in await asyncio.gather(*asked):
            under_way += count
        return under_way

    async def over(self) -> None:
        """Wait until every process has ended."""
        while children := self.children:
            await asyncio.wait([child.over for child in children])

    async def cut(self, within_s: float) -> None:
        """End all at once: what is under way is cut, and recorded as far as that takes no longer than `within_s`."""
        self.ending = True
        await self.ask_everyone("cut", None, within_s)
        try:
            async with asyncio.timeout(within_s):
                await self.over()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """End all without ceremony."""
        self.ending = True
        for slot in self.slots:
            if slot.again is not None:
                slot.again.cancel()
        for child in self.children:
            child.kill()
        await self.over()

    def kill_one(self, slot: int) -> None:
        """End the process of a slot: another takes its place."""
        child = self._slot(slot).child
        if child is not None:
            child.kill()

    def kill_late(self) -> None:
        """End the processes that do not accept yet: what they were given no longer holds."""
        for slot in self.slots:
            if slot.child is not None and slot.child.ready_at is None:
                slot.child.kill()

    # -- watching --------------------------------------------------------------------------------------

    def look(self) -> bool:
        """Twice a second: kill workers that hang. Whether any that serves has been heard of lately."""
        now = self._loop.time()
        late, self._looked_at = now - self._looked_at > LATE_S, now
        well = False
        for child in self.children:
            silent_s = now - child.heard_at
            if late:
                child.heard_at = max(child.heard_at, now - HUNG_S / 2)
            elif silent_s > (HUNG_S if child.ready_at is not None else START_S) and not child.waits:
                _log.error(
                    "worker %d (process %d) has said nothing for %.0f s: it is killed",
                    child.slot, child.pid, silent_s,
                )  # fmt: skip
                child.kill()
        for slot in self.slots:
            newest = slot.child
            if newest is not None and newest.ready_at is not None and now - newest.heard_at <= HUNG_S:
                well = True
        self._fill_in()
        return well

    def _fill_in(self) -> None:
        """Have siblings accept for the slots at which nobody does, and no longer for the others."""
        if self.ending or not self._started or len(self.slots) == 1:
            return
        now = self._loop.time()
        vacant = [
            slot.number
            for slot in self.slots
            if slot.child is None or slot.child.ready_at is None or now - slot.child.heard_at > SILENT_S
        ]
        told = (vacant, [child.pid for child in self.serving])
        if told != self._told and (vacant or self._told[0]):
            self._tasks.spawn(self.ask_all("stand_in", vacant), "stand in")
        self._told = told

    # -- what children tell ----------------------------------------------------------------------------

    def ready(self, child: Child) -> None:
        """A worker accepts."""
        self._fill_in()

    def records(self, child: Child, records: list[Record]) -> None:
        """Requests of one have finished."""
        self._audience.records(records)

    def texts(self, child: Child, texts: list[Text]) -> None:
        """What was asked and answered."""
        self._audience.texts(texts)

    def last(self, child: Child, samples: list[Sample]) -> None:
        """One ends in order."""
        self._audience.last(child, samples)

    def leaving(self, child: Child) -> None:
        """Somebody sent one SIGTERM."""
        if not self.ending and self._slot(child.slot).child is child:
            self._audience.leaving(child)

    def gone(self, child: Child, status: int) -> None:
        """A process has ended."""
        self._audience.last(child, None)
        slot = self._slot(child.slot)
        if child in slot.retiring:
            slot.retiring.remove(child)
            return
        if slot.standby is child:
            slot.standby = None
            return
        if slot.child is not child:
            return
        slot.child = next((one for one in slot.retiring if not one.retiring), None)
        if slot.child is not None:
            # It was to replace this one, which was not asked to end yet.
            slot.retiring.remove(slot.child)
            return
        if self.ending or not self._started:
            return
        lived_s = self._loop.time() - child.started_at
        slot.failures = 1 if lived_s >= STEADY_S else slot.failures + 1
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
        wait_s = backoff_s(slot.failures)
        _log.error(
            "worker %d (process %d) ended after %.1f s with %s: the next one starts %s",
            child.slot, child.pid, lived_s, how, f"in {wait_s:g} s" if wait_s else "now",
        )  # fmt: skip
        self._audience.event("worker", f"worker {child.slot} ended with {how}")
        for problem in child.refused:
            _log.error("%s", problem)
        self.bring_back(slot)

    def bring_back(self, slot: Slot) -> None:
        wait_s = backoff_s(slot.failures)
        self.restarts += 1
        self._fill_in()
        slot.again = self._loop.call_later(wait_s, lambda: self._tasks.spawn(self._again(slot), "worker"))

    async def _again(self, slot: Slot) -> None:
        if slot.child is not None or self.ending or slot.number in self.idle:
            return
        try:
            await self._begin(slot)
        except OSError as error:
            slot.failures += 1
            _log.error("no worker %d could be started: %s", slot.number, error.strerror)
            self.bring_back(slot)
