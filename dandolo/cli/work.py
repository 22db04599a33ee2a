"""A worker's process: a data plane at the end of a pipe.

It is given everything: its configuration, its listening sockets, what it is to do. It reads no configuration file,
opens no admin listener, writes no access log. When the control process dies it goes on serving; when a successor
listens, it finishes (`orphan`).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
import uvloop

from dandolo.board import Board
from dandolo.cli.gauges import gauges
from dandolo.cli.heap import Heap, keep_memory
from dandolo.cli.journaling import REOPEN_S, Journaling
from dandolo.cli.planes import RETIRED_PERIOD_S, Planes, configuration, problems, unfit
from dandolo.cli.reporting import Reporting
from dandolo.cli.seen import Seen
from dandolo.config import Config, ConfigError
from dandolo.config.schema import LogFormat
from dandolo.control.logwriter import change_form, configure_logging
from dandolo.errors import GatewayError
from dandolo.frames import Frames, Kind, encode
from dandolo.gateway.explanation import routes
from dandolo.gateway.membership import membership_of
from dandolo.gateway.plane import Plane
from dandolo.gateway.worker import Worker
from dandolo.net.pipe import Pipe
from dandolo.net.succession import Followed, Given
from dandolo.net.tasks import Tasks
from dandolo.policy import NO_POLICY, Policy, unpack
from dandolo.provision import BEAT_S, Provision

CHANNEL = 3
PROVISION_S = 60.0
CLOSE_S = 2.0
SETTLE_S = 1.0
"""After the start, which collects nothing. One collection of everything takes 20 ms: no first answer waits for it."""
GC_THRESHOLDS = (50_000, 20, 100)
"""Requests make no cycles by intent; what does is collected, but seldom: a full collection takes milliseconds."""
DESCRIPTORS_MAX = 253
"""SCM_MAX_FD of the kernel."""

_encode = msgspec.msgpack.Encoder().encode
_log = logging.getLogger("dandolo")


def main() -> int:
    """Be a worker until told to end, or until a successor does the work. The exit code: 0 after an orderly end, 1
    for a configuration that cannot be used."""
    # Nothing that start-up makes is garbage worth looking for; `_settle` turns collection on again.
    gc.disable()
    # On a terminal Ctrl-C reaches every process: what it means is for the control process to say.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    channel = socket.socket(fileno=CHANNEL)
    channel.set_inheritable(False)
    received = receive(channel)
    if received is None:
        return 0  # the control process did not come to need us
    keep_memory()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_work(channel, *received))


def receive(channel: socket.socket) -> tuple[Provision, list[int]] | None:
    """The first frame and the descriptors that come with it; None when the other end has gone."""
    channel.settimeout(PROVISION_S)
    frames, found = Frames(), list[int]()
    try:
        while True:
            data, descriptors, _, _ = socket.recv_fds(channel, 256 * 1024, DESCRIPTORS_MAX)
            found += descriptors
            if not data:
                return None
            for kind, payload in frames.feed(data):
                assert kind is Kind.PROVISION, f"the first frame is of kind {kind}"
                return msgspec.msgpack.decode(payload, type=Provision), found
    except OSError:
        return None


async def _work(channel: socket.socket, provision: Provision, descriptors: list[int]) -> int:
    configure_logging(cast(LogFormat, provision.log_format))
    try:
        config = configuration(provision.document)
        try:
            process = Process(config, provision, descriptors)
        except (GatewayError, OSError, ValueError) as error:
            raise unfit(config, error) from error
    except ConfigError as error:
        channel.sendall(encode(Kind.REFUSED, _encode(problems(error))))
        return 1
    return await process.run(channel)


class Process:
    """Everything of a running worker."""

    def __init__(self, config: Config, provision: Provision, descriptors: list[int]) -> None:
        self._provision = provision
        self._tasks = Tasks()
        self._loop = asyncio.get_running_loop()
        self._heap = Heap()
        self._reporting = Reporting()
        count = len(provision.listeners)
        self._sockets = [socket.socket(fileno=number) for number in descriptors[:count]]
        self._owners: list[int] = []
        """The slots of the sockets that are siblings'."""
        self.descriptors = dict(zip(provision.descriptors, descriptors[count:], strict=True))
        """What came beside the listeners, by name."""
        board, policy = _limits(provision, self.descriptors)
        membership = membership_of(config, provision.slot, provision.workers)
        take, take_text = self._reporting.take, self._reporting.take_text
        self._worker = Worker(config, take, self._beat, provision.slot, membership, board, policy, take_text)
        self._seen = Seen(self._worker, str(provision.slot), lambda: self._reporting.probes)
        gateway = self._worker.gateway
        self._journaling = Journaling(gateway, config, provision.slot)
        self._planes = Planes(gateway, self._swapped, board, policy)
        self.answers: dict[str, Callable[[Any], Any]] = {
            "gauges": self._gauges,
            "routes": self._routes,
            "seen": self._seen.told,
            "purge": self._purge,
            "prepare": self._planes.prepare,
            "swap": self._swap,
            "forget": self._planes.forget,
            "policy": self._planes.adopt,
            "begin": self._begin,
            "stand_in": self._stand_in,
            "drain": self._drain,
            "cut": self._cut,
        }
        """What the control process may ask, by name: the argument to the answer, at once or awaited."""
        self._pipe: Pipe | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._ending = False
        self._begins: asyncio.Future[None] | None = self._loop.create_future() if provision.stands_by else None
        """The word to begin, while it is waited for."""
        self._followed: Followed | None = None

    async def run(self, channel: socket.socket) -> int:
        """Serve until the end; the exit code."""
        self._loop.set_exception_handler(_unhandled)
        self._pipe = self._reporting.pipe = await Pipe.over(channel, self._frame, self._orphaned)
        if self._begins is not None and not await self._stands_by(self._begins):
            # Nothing has begun yet that would want an orderly end.
            return self._ended.result()
        for sock in self._sockets:
            sock.setblocking(False)
        mine, siblings = list[socket.socket](), list[socket.socket]()
        for sock, owner in zip(self._sockets, self._provision.listeners, strict=True):
            if owner in (-1, self._provision.slot):
                mine.append(sock)
            else:
                siblings.append(sock)
                self._owners.append(owner)
        self._worker.start(mine, siblings)
        self._loop.add_signal_handler(signal.SIGTERM, self._told_to_leave)
        self._every("retired", RETIRED_PERIOD_S, self._planes.tend)
        self._every("beat", BEAT_S, self._report)
        self._every("journal", REOPEN_S, self._journaling.tend)
        self._timers["settle"] = self._loop.call_later(SETTLE_S, _settle)
        self._timers["probes"] = self._loop.call_later(SETTLE_S, self._probe)
        self._pipe.send(Kind.READY, b"")
        self._report()
        code = await self._ended
        await self._close()
        return code

    async def _stands_by(self, begins: asyncio.Future[None]) -> bool:
        """Wait for the word to begin; False when the end comes first. Nothing is accepted until then."""
        assert self._pipe is not None
        self._pipe.send(Kind.STANDS_BY, b"")
        await asyncio.wait((begins, self._ended), return_when=asyncio.FIRST_COMPLETED)
        self._begins = None
        return not self._ended.done()

    async def _close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        if self._followed is not None:
            self._followed.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._tasks.close()
                await self._worker.close()
        except TimeoutError:
            _log.error("some tasks did not end within %g s", CLOSE_S)
        self._planes.close()
        self._reporting.settle()
        self._reporting.settle_texts()
        self._journaling.close()
        if untold := self._reporting.untold:
            _log.warning("%d records were told to nobody: no control process has followed", untold)
        pipe = self._pipe
        if pipe is not None and pipe.send(Kind.LAST, _encode(self._gauges(None))):
            await pipe.finish(CLOSE_S)

    # -- what it tells ---------------------------------------------------------------------------------

    def _beat(self) -> None:
        """What is due ten times a second, in one go: an idle process wakes no oftener."""
        gateway = self._worker.gateway
        self._heap.beat(gateway.requests, gateway.admission.in_flight)
        self._reporting.settle()
        self._reporting.settle_texts()
        self._seen.beat(time.monotonic())

    def _report(self) -> None:
        self._reporting.report(self._worker)

    def _gauges(self, argument: Any) -> list[Any]:
        """Everything there is to know, after the records of what has finished."""
        self._worker.gateway.settle()
        self._reporting.settle()
        mine = self._reporting.gauges(self._provision.slot)
        return [*gauges(self._worker), *mine, *self._journaling.gauges()]

    def _routes(self, query: Any) -> Any:
        gateway = self._worker.gateway
        return routes(gateway.plane, query, gateway.now())

    # -- what it is asked ------------------------------------------------------------------------------

    def _frame(self, kind: Kind, payload: memoryview) -> None:
        assert kind is Kind.ASK, f"a worker was sent a frame of kind {kind.name}"
        number, question, argument = msgspec.msgpack.decode(payload)
        try:
            answer = self.answers[question](argument)
        except Exception as error:
            self._answer(number, False, _told(question, error))
            return
        if isinstance(answer, Awaitable):
            self._tasks.spawn(self._answer_later(number, question, answer), question)
        else:
            self._answer(number, True, answer)

    async def _answer_later(self, number: int, question: str, answer: Awaitable[Any]) -> None:
        try:
            value = await answer
        except Exception as error:
            self._answer(number, False, _told(question, error))
        else:
            self._answer(number, True, value)

    def _answer(self, number: int, well: bool, value: Any) -> None:
        if self._pipe is not None:
            self._pipe.send(Kind.ANSWER, _encode([number, well, value]))

    def _swap(self, log_format: Any) -> bool:
        """Put the plane that was prepared to work, and write the program's own lines in this form."""
        change_form(log_format)
        return self._planes.swap(None)

    def _begin(self, argument: Any) -> bool:
        """Accept from now on."""
        if self._begins is not None and not self._begins.done():
            self._begins.set_result(None)
        return True

    async def _purge(self, argument: Any) -> dict[str, Any]:
        """Forget kept answers: kind, name, softly."""
        kind, name, soft = argument
        return await self._worker.gateway.store.purge(kind, name, soft=soft)

    def _stand_in(self, slots: Any) -> bool:
        """Accept for the siblings of these slots, which do not at this moment, and for no others."""
        self._worker.stand_in([number for number, owner in enumerate(self._owners) if owner in slots])
        return True

    # -- probes ----------------------------------------------------------------------------------------

    def _probe(self) -> None:
        self._tasks.spawn(self._reporting.probe(self._worker, self._provision.workers), "probes")

    def _swapped(self, plane: Plane, tls: ssl.SSLContext | None) -> None:
        self._worker.adopt(plane.config, tls)
        self._probe()

    # -- the end ---------------------------------------------------------------------------------------

    def _drain(self, argument: Any) -> int:
        """Finish; how many requests are under way."""
        self._begin_drain(argument["delay_s"], argument["timeout_s"], replaced=argument["replaced"])
        return self._worker.gateway.admission.in_flight

    def _begin_drain(self, delay_s: float, timeout_s: float, *, replaced: bool) -> None:
        if self._begins is not None:
            self._end(0)
        elif not self._ending:
            self._ending = True
            if self._followed is not None:
                self._followed.close()
            self._tasks.spawn(self._until_drained(delay_s, timeout_s, replaced=replaced), "drain")

    async def _until_drained(self, delay_s: float, timeout_s: float, *, replaced: bool) -> None:
        await self._worker.drain(delay_s, timeout_s, replaced=replaced)
        self._end(0)

    def _cut(self, argument: Any) -> bool:
        """End at once."""
        self._ending = True
        # After the answer is on its way.
        self._loop.call_soon(self._end, 0)
        return True

    def _end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)

    def _told_to_leave(self) -> None:
        """SIGTERM to this process alone: whoever is in charge starts another one and then asks this one to finish."""
        if self._pipe is not None and self._pipe.send(Kind.LEAVING, b""):
            return
        server = self._worker.gateway.plane.config.server
        self._begin_drain(server.drain_delay, server.drain_timeout, replaced=False)

    def _orphaned(self) -> None:
        """The control process has gone."""
        self._pipe = self._reporting.pipe = None
        if self._ending:
            return
        if self._begins is not None:
            # Others serve: nobody will miss it.
            self._end(0)
            return
        server = self._worker.gateway.plane.config.server
        if not self._provision.identity:
            _log.warning("the control process has gone, and nobody can follow it at this address: ending")
            self._begin_drain(0.0, server.drain_timeout, replaced=False)
            return
        _log.warning("the control process has gone: this worker goes on serving until another one listens")
        self._followed = Followed(
            self._provision.identity,
            self._provision.slot,
            lambda: list(map(Given, self._sockets, self._provision.listeners)),
            self._succeeded,
        )
        self._followed.start()

    def _succeeded(self, pid: int) -> None:
        """Another control process has workers that serve."""
        _log.info("others serve now: this worker finishes what it has begun")
        pipe = self._followed.take_pipe() if self._followed is not None else None
        if pipe is not None:
            self._tasks.spawn(self._tell_successor(pipe), "successor")
        server = self._worker.gateway.plane.config.server
        self._begin_drain(server.drain_delay, server.drain_timeout, replaced=True)

    async def _tell_successor(self, sock: socket.socket) -> None:
        """Tell what was kept since the control process went, and what is still finished."""
        try:
            pipe = await Pipe.over(sock, lambda kind, payload: None, self._orphaned)
        except OSError:
            sock.close()
            return
        self._pipe = pipe
        self._reporting.go_on(pipe)

    def _every(self, name: str, seconds: float, call: Callable[[], object]) -> None:
        def again() -> None:
            self._timers[name] = self._loop.call_later(seconds, again)
            call()

        self._timers[name] = self._loop.call_later(seconds, again)


def _limits(provision: Provision, descriptors: dict[str, int]) -> tuple[Board | None, Policy]:
    """The board on which limits are counted, and the keys of the database (see `cli.limits`)."""
    policy = unpack(provision.blobs["policy"]) if "policy" in provision.blobs else NO_POLICY
    if "board" not in descriptors:
        return None, policy
    return Board.attach(descriptors["board"], int(provision.strings["board_row"])), policy


def _told(question: str, error: Exception) -> Any:
    """An error as an answer."""
    if isinstance(error, GatewayError):
        told = {"message": error.message, "status": error.status, "type": error.type, "code": error.code}
        return {**told, "param": error.param}
    _log.error("the question %s could not be answered", question, exc_info=error)
    return f"the worker could not answer: {type(error).__name__}"


def _unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody awaited, in our log and our form; asyncio would print a traceback."""
    error = context.get("exception")
    _log.error("unhandled: %s", context.get("message", ""), exc_info=error if error is not None else False)


def _settle() -> None:
    """What is there after the start stays: it is kept out of later collections."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    gc.enable()
