"""One worker's process as the control process sees it: its pipe, its questions and answers, its end."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import msgspec

from dandolo.config import ConfigError, Problem
from dandolo.control.spawn import Spawned
from dandolo.errors import GatewayError, Refusal, RequestError
from dandolo.frames import FrameError, Kind
from dandolo.net.pipe import Pipe
from dandolo.provision import Beat
from dandolo.record import Record
from dandolo.text import Text, unpack

QUESTIONS_MAX = 256
"""Unanswered ones of one worker; beyond, it is taken not to answer."""

_log = logging.getLogger("dandolo")
_encode = msgspec.msgpack.Encoder().encode
_records = msgspec.msgpack.Decoder(list[Record])
_beat = msgspec.msgpack.Decoder(Beat)
_any = msgspec.msgpack.Decoder()


class Unanswered(Exception):
    """A worker did not answer: it has gone, its deadline passed, or too many questions are waiting."""


class Sample(NamedTuple):
    """A gauge as a worker tells it: name, value, labels."""

    name: str
    value: float
    labels: tuple[tuple[str, str], ...]


class Family(Protocol):
    """What a child tells whoever started it. `child` is always the one that calls."""

    def ready(self, child: Child) -> None:
        """It accepts."""

    def records(self, child: Child, records: list[Record]) -> None:
        """Requests of its have finished."""

    def texts(self, child: Child, texts: list[Text]) -> None:
        """What was asked and answered in requests of its that have finished."""

    def leaving(self, child: Child) -> None:
        """Somebody else than us wants it to end: it waits to be replaced."""

    def last(self, child: Child, samples: list[Sample]) -> None:
        """It ends: its gauges as they were at last."""

    def gone(self, child: Child, status: int) -> None:
        """Its process has ended: 0 or more is its exit code, less than 0 the number of a signal."""


class Child:
    """A worker's process in its slot. `generation` counts the processes of a slot."""

    def __init__(self, slot: int, generation: int, spawned: Spawned, family: Family, now: Callable[[], float]) -> None:
        self.slot = slot
        self.generation = generation
        self.pid = spawned.pid
        self.started_at = self.heard_at = now()
        self.ready_at: float | None = None
        self.retiring = False
        """It was asked to end, or said that it does."""
        self.beat: Beat | None = None
        self.refused: list[Problem] = []
        self.ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Whether it came to accept; False once it ended before."""
        self.stands_by: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Whether it came to wait for the word to begin; False once it ended before."""
        self.over: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Its exit status."""
        self._spawned = spawned
        self._family = family
        self._now = now
        self._pipe: Pipe | None = None
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._status: int | None = None

    @property
    def ends(self) -> bool:
        """Whether its pipe has ended, as its process is about to."""
        return self._pipe is not None and self._pipe.lost

    @property
    def waits(self) -> bool:
        """Whether it stands by, and has nothing to say until it is told to begin."""
        return self.ready_at is None and self.stands_by.done() and self.stands_by.result()

    async def attend(self) -> None:
        """Take up its pipe, and notice its end. To be called once, after its provision has been sent."""
        asyncio.get_running_loop().add_reader(self._spawned.pidfd, self._ended)
        self._pipe = await Pipe.over(self._spawned.channel, self._frame, self._lost)

    async def ask(self, question: str, argument: Any, deadline_s: float) -> Any:
        """The answer to a question. Raises Unanswered, or GatewayError where the answer is one."""
        if self._pipe is None or len(self._questions) >= QUESTIONS_MAX:
            raise Unanswered(f"worker {self.slot} (process {self.pid}) takes no questions")
        number = next(self._numbers)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        try:
            if not self._pipe.send(Kind.ASK, _encode([number, question, argument])):
                raise Unanswered(f"worker {self.slot} (process {self.pid}) has gone")
            async with asyncio.timeout(deadline_s):
                return await answer
        except TimeoutError:
            raise Unanswered(
                f"worker {self.slot} (process {self.pid}) did not answer within {deadline_s:g} s"
            ) from None
        finally:
            del self._questions[number]

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send its process a signal, if it is still there."""
        if self._status is None:
            signal.pidfd_send_signal(self._spawned.pidfd, number)

    # -- what it says ----------------------------------------------------------------------------------

    def _frame(self, kind: Kind, payload: memoryview) -> None:
        self.heard_at = self._now()
        try:
            match kind:
                case Kind.RECORDS:
                    self._family.records(self, _records.decode(payload))
                case Kind.TEXTS:
                    self._family.texts(self, unpack(payload))
                case Kind.BEAT:
                    self.beat = _beat.decode(payload)
                case Kind.ANSWER:
                    self._answered(*_any.decode(payload))
                case Kind.READY:
                    self.ready_at = self._now()
                    if not self.ready.done():
                        self.ready.set_result(True)
                    self._family.ready(self)
                case Kind.STANDS_BY:
                    if not self.stands_by.done():
                        self.stands_by.set_result(True)
                case Kind.REFUSED:
                    self.refused = [Problem(*problem) for problem in _any.decode(payload)]
                case Kind.LEAVING:
                    self._family.leaving(self)
                case Kind.LAST:
                    self._family.last(self, samples(_any.decode(payload)))
                case _:
                    raise FrameError(f"a worker sent a frame of kind {kind.name}")
        except (msgspec.MsgspecError, TypeError) as error:
            raise FrameError(f"a frame of kind {kind.name} cannot be read: {error}") from None

    def _answered(self, number: int, well: bool, value: Any) -> None:
        answer = self._questions.get(number)
        if answer is None or answer.done():
            return  # too late
        if well:
            answer.set_result(value)
        else:
            answer.set_exception(told(value))

    # -- its end ---------------------------------------------------------------------------------------

    def _lost(self) -> None:
        """Its pipe has ended: so has it, or it is of no use to us."""
        for answer in self._questions.values():
            if not answer.done():
                answer.set_exception(Unanswered(f"worker {self.slot} (process {self.pid}) has gone"))
        if self._status is None:
            # One that ends in order closes its pipe first and is gone in a moment.
            asyncio.get_running_loop().call_later(2.0, self.kill)
        else:
            self._close()

    def _ended(self) -> None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return
        self._status = os.waitstatus_to_exitcode(status)
        asyncio.get_running_loop().remove_reader(self._spawned.pidfd)
        os.close(self._spawned.pidfd)
        # What it has said before is still to be read: the end of the pipe comes after it.
        if self._pipe is None or self._pipe.lost:
            self._close()

    def _close(self) -> None:
        if self.over.done():
            return
        assert self._status is not None
        for told in (self.ready, self.stands_by):
            if not told.done():
                told.set_result(False)
        self.over.set_result(self._status)
        self._family.gone(self, self._status)

    def problem(self) -> Exception:
        """Why it never came to accept."""
        if self.refused:
            return ConfigError(self.refused)
        status = self.over.result() if self.over.done() else None
        how = "did not get ready" if status is None else f"ended with {status}" if status >= 0 else f"signal {-status}"
        return RuntimeError(f"worker {self.slot} (process {self.pid}) {how}")


def samples(value: Any) -> list[Sample]:
    """Gauges from their frame. Raises TypeError for what are none."""
    return [Sample(name, number, tuple((one, two) for one, two in labels)) for name, number, labels in value]


def told(value: Any) -> GatewayError:
    """The error that a worker tells as its answer."""
    if not isinstance(value, dict):
        return Refusal(str(value))
    return RequestError(
        str(value.get("message", "")),
        status=int(value.get("status", 500)),
        type=str(value.get("type", "server_error")),
        code=value.get("code"),
        param=value.get("param"),
    )
