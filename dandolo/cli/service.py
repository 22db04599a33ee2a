"""The gateway as a service: the control process, which has workers do the work.

It holds the listening sockets, reads the configuration for everybody, takes in records, answers operators, obeys
signals and tells the service manager. It handles no request; without it workers go on serving.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import msgspec

from dandolo import __version__
from dandolo.cli.age import since_start_ms
from dandolo.cli.configured import Choice
from dandolo.config import Config, ConfigError, Problem
from dandolo.config.schema import LogFormat
from dandolo.control.admin import Admin
from dandolo.control.basic import basic_routes, with_index
from dandolo.control.child import Child, Sample, samples
from dandolo.control.exposition import Gauge
from dandolo.control.gauges import Gauges
from dandolo.control.keyring import Keyring
from dandolo.control.logwriter import LogWriter, configure_logging
from dandolo.control.metrics import Metrics
from dandolo.control.notify import Notifier, watchdog_interval_s
from dandolo.control.route import Answer, Asked, Route, answer
from dandolo.control.sinks import AccessLog, Counted, Fanout, Sink
from dandolo.control.sockets import Held, addresses
from dandolo.control.spawn import Spawned
from dandolo.control.workers import Workers
from dandolo.errors import Refusal, RequestError
from dandolo.net.listen import Census, Listener, describe
from dandolo.net.sweep import PERIOD_S
from dandolo.net.tasks import Tasks
from dandolo.provision import Document, Provision
from dandolo.record import Record

ADMIN_CONNECTIONS_MAX = 64
CLOSE_S = 2.0
CUT_S = 3.0
LOOK_S = 1.0
ANSWER_S = 1.0
"""How long workers may take to tell their gauges: a page of metrics without one of them is better than none."""
PREPARE_S = 30.0
SETTLE_S = 1.0

_log = logging.getLogger("dandolo")


@dataclass(frozen=True, slots=True)
class Start:
    """What there is when a service starts: what holds, what was said from outside, and what has been opened."""

    config: Config
    document: Document
    choice: Choice
    workers: int
    log_format: LogFormat | None
    held: Sequence[Held]
    admin: Sequence[socket.socket]
    early: Spawned
    """A worker's process that is loading already."""


def run(start: Start) -> int:
    """Serve until a signal; the exit code. Raises ConfigError for what only workers see."""
    with asyncio.Runner() as runner:
        return runner.run(_serve(start))


async def _serve(start: Start) -> int:
    config = start.config
    secure = config.server.tls is not None
    where = ", ".join(_url(one, secure) for one in addresses(start.held))
    administered = ", ".join(_url(describe(sock), False) for sock in start.admin)
    process = Process(start)
    try:
        await process.start()
    except RuntimeError as error:
        print(f"dandolo serve: {error}", file=sys.stderr)
        return 1
    providers = ", ".join(provider.name for provider in config.providers)
    workers = "" if start.workers == 1 else f" | workers: {start.workers}"
    print(
        f"dandolo {__version__} ready in {since_start_ms():.0f} ms: {where}"
        f" | providers: {providers}{workers} | admin: {administered}",
        file=sys.stderr,
        flush=True,
    )
    return await process.until_ended(f"{where}; providers {providers}{workers}")


class Process:
    """Everything of the control process of one `dandolo serve`."""

    def __init__(self, start: Start) -> None:
        config = start.config
        self._config = config
        self._document = start.document
        self._choice = start.choice
        self._held = tuple(start.held)
        self._admin_sockets = start.admin
        access_form, self._form = start.log_format or _form(config, 1), start.log_format or _form(config, 2)
        self._access = LogWriter(1, form=access_form)
        self._program: LogWriter = configure_logging(self._form)
        self._metrics = Metrics()
        self._gauges = Gauges()
        sinks: list[Sink] = [Counted(self._metrics), AccessLog(self._access, access_form)]
        self._fanout = Fanout(sinks)
        self._tasks = Tasks()
        self._loop = asyncio.get_running_loop()
        self.workers = Workers(start.workers, self._provision, self, self._tasks, start.early)
        self._keyring = Keyring(config.keys)
        self._admin = Admin(
            with_index(self._routes_offered()),
            authenticate=self._keyring.authenticate if config.keys else None,
            tasks=self._tasks,
        )
        self._census = Census(ADMIN_CONNECTIONS_MAX, ADMIN_CONNECTIONS_MAX)
        self._listeners: list[Listener] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._notifier = Notifier()
        self._status = ""
        self._ending: asyncio.Future[bool] = self._loop.create_future()
        self._now: asyncio.Future[int] = self._loop.create_future()
        self._changing = asyncio.Lock()
        """One change of workers at a time: a reload, or their replacement."""
        self._reload_wanted = False
        self._reload_well = True

    async def start(self) -> None:
        """Have workers accept, and answer operators and signals. Raises ConfigError, RuntimeError."""
        self._loop.set_exception_handler(_unhandled)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop, number)
        self._loop.add_signal_handler(signal.SIGHUP, self._hangup)
        self._loop.add_signal_handler(signal.SIGUSR2, self._roll)
        await self.workers.start()
        for sock in self._admin_sockets:
            listener = Listener(sock, self._admin, self._census, self._tasks)
            self._listeners.append(listener)
            listener.start()
        self._every("sweep", PERIOD_S, lambda: self._admin.sweep.tick(self._admin.now()))
        self._every("look", LOOK_S, self._look)

    async def until_ended(self, status: str) -> int:
        """Tell the manager, wait for a signal, end in order; the exit code."""
        self._status = status
        self._notifier.ready(status)
        interval = watchdog_interval_s(os.environ, os.getpid())
        if interval is not None:
            self._every("watchdog", interval, self._watchdog)
        self._timers["settle"] = self._loop.call_later(SETTLE_S, _settle)
        delayed = await self._ending
        server = self._config.server
        delay = server.drain_delay if delayed else 0.0
        self._admin.draining = True
        under_way = await self.workers.drain(delay, server.drain_timeout)
        _log.info("ending: %d requests under way, which have %g s", under_way, delay + server.drain_timeout)
        self._notifier.stopping(f"ending, {under_way} requests under way")
        drained = self._tasks.spawn(self.workers.over(), "drain")
        await asyncio.wait((drained, self._now), return_when=asyncio.FIRST_COMPLETED)
        code = self._now.result() if self._now.done() else 0
        if code:
            await self.workers.cut(CUT_S)
        await self._close()
        _log.info("ended")
        self._access.close()
        self._program.close()
        return code

    async def _close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for listener in self._listeners:
            listener.close()
        self._admin.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._tasks.close()
        except TimeoutError:
            _log.error("some tasks did not end within %g s", CLOSE_S)
        self._census.close()

    # -- workers ---------------------------------------------------------------------------------------

    def _provision(self, slot: int, generation: int) -> tuple[Provision, list[int]]:
        """What a worker begins with. Whoever has something for workers (a path, a descriptor) adds it here."""
        named: dict[str, int] = {}
        strings: dict[str, str] = {}
        provision = Provision(
            slot=slot,
            workers=len(self.workers.slots),
            generation=generation,
            document=self._document,
            log_format=self._form,
            listeners=tuple(one.slot for one in self._held),
            descriptors=tuple(named),
            strings=strings,
        )
        return provision, [*(one.sock.fileno() for one in self._held), *named.values()]

    def records(self, records: Sequence[Record]) -> None:
        """Requests that have finished, from any worker."""
        self._fanout.take(records, time.time())

    def last(self, child: Child, last: list[Sample] | None) -> None:
        """The end of a worker's process."""
        if last is not None:
            self._gauges.report(child.pid, last)
        else:
            self._gauges.gone(child.pid)

    def _look(self) -> None:
        self._all_well = self.workers.look()
        self._fanout.tick(time.time())

    def _watchdog(self) -> None:
        """The manager hears of us while workers live: one that hangs is killed by us, and only if that does not help
        it is for the manager to restart everything."""
        if self.workers.serving:
            self._notifier.watchdog()

    # -- what operators ask ----------------------------------------------------------------------------

    def _routes_offered(self) -> list[Route]:
        return [
            *basic_routes(metrics_text=self._metrics_text, ready=self._ready, routes=self._routes),
            Route("POST", b"/admin/reload", self._reload_asked, "read the configuration again, as SIGHUP does"),
            Route("POST", b"/admin/restart", self._restart_asked, "replace all workers, one after the other"),
        ]

    def _ready(self) -> tuple[bool, str]:
        if self._ending.done():
            return False, "draining"
        reason = "no worker is ready"
        for child in self.workers.serving:
            if child.beat is None or child.beat.ready:
                return True, ""
            reason = child.beat.reason
        return False, reason

    async def _metrics_text(self) -> bytes:
        children = self.workers.serving
        for child, reply in zip(children, await self.workers.ask_all("gauges", None, ANSWER_S), strict=True):
            if reply.well and not child.over.done():
                self._gauges.report(child.pid, samples(reply.value))
        return self._metrics.text(
            (
                *self._gauges.together(),
                Gauge("dandolo_log_lines_dropped_total", self._access.dropped + self._program.dropped),
                Gauge("dandolo_config_reload_successful", self._reload_well),
                Gauge("dandolo_workers", len(self.workers.serving)),
                Gauge("dandolo_worker_restarts_total", self.workers.restarts),
                Gauge("dandolo_sink_failures_total", self._fanout.failures),
            )
        )

    async def _routes(self, query: bytes) -> Any:
        """Each worker measures for itself: one of them is asked, the first or the one that `worker` names."""
        given = parse_qs(query.decode("latin-1")).get("worker", [""])[0]
        children = self.workers.serving
        if given:
            children = [child for child in children if str(child.slot) == given]
            if not children:
                known = ", ".join(str(child.slot) for child in self.workers.serving)
                raise RequestError(f"no worker {given!r}: expected one of {known}", param="worker", status=404)
        if not children:
            raise Refusal("no worker serves at this moment", retry_after_s=1.0)
        return await children[0].ask("routes", query, ANSWER_S)

    async def _reload_asked(self, asked: Asked) -> Answer:
        reasons = await self._reload()
        if reasons:
            raise RequestError("reload refused: " + "; ".join(reasons[:8]), status=422, code="configuration_refused")
        return answer({"status": "reloaded", "workers": len(self.workers.serving)})

    async def _restart_asked(self, asked: Asked) -> Answer:
        self._roll()
        return answer({"status": "workers are being replaced", "workers": len(self.workers.slots)}, 202)

    # -- signals ---------------------------------------------------------------------------------------

    def _stop(self, number: int) -> None:
        if not self._ending.done():
            # On a terminal nobody waits for a load balancer.
            self._ending.set_result(number != signal.SIGINT)
        elif not self._now.done():
            _log.warning("a second signal: what is under way is cut")
            self._now.set_result(128 + number)

    def _hangup(self) -> None:
        if self._ending.done():
            return
        # Ten signals while one reload runs are one more.
        if not self._reload_wanted:
            self._reload_wanted = True
            self._tasks.spawn(self._reload(), "reload")

    def _roll(self) -> None:
        if not self._ending.done() and not self._rolling:
            self._rolling = True
            self._tasks.spawn(self._restart(), "restart")

    _rolling = False

    async def _restart(self) -> None:
        try:
            async with self._changing:
                server = self._config.server
                _log.info("replacing %d workers", len(self.workers.slots))
                if await self.workers.restart(server.drain_delay, server.drain_timeout):
                    _log.info("all workers are replaced")
        finally:
            self._rolling = False

    async def _reload(self) -> list[str]:
        """Read the configuration and have all workers change to it, or none; what speaks against it."""
        async with self._changing:
            self._reload_wanted = False
            if self._ending.done():
                return ["the gateway is ending"]
            self._notifier.reloading()
            try:
                reasons = await self._reload_once()
            finally:
                self._notifier.ready(self._status if self._reload_well else "the last reload was refused: see the log")
            return reasons

    async def _reload_once(self) -> list[str]:
        self._reload_well = False
        try:
            config, document = await self._loop.run_in_executor(None, self._choice.find, os.environ)
            if self._config.keys and not config.keys:
                reason = "the last key is gone: to let everybody in, restart"
                raise ConfigError([Problem(config.source, 0, "keys", reason)])
            await self._prepare(document)
        except ConfigError as error:
            for problem in error.problems:
                _log.error("%s", problem)
            _log.error("reload refused: the configuration that was there goes on")
            return list(map(str, error.problems))
        for warning in config.warnings:
            _log.warning("%s", warning)
        was, server = self._config.server, config.server
        if (server.listen, server.admin, server.tls) != (was.listen, was.admin, was.tls):
            _log.warning("listeners and certificates change at the next start, not by a reload")
            document = msgspec.structs.replace(document, listen=self._document.listen, admin=self._document.admin)
        # From here on every worker that starts begins with it.
        self._config, self._document = config, document
        self._keyring.keys = config.keys
        for reply in await self.workers.ask_all("swap", None, PREPARE_S):
            if not reply.well or not reply.value:
                # It missed the first half: what it does not have now it has from its start.
                self.workers.kill_one(reply.slot)
        self._reload_well = True
        _log.info("reloaded %s: providers %s", config.source, ", ".join(one.name for one in config.providers))
        return []

    async def _prepare(self, document: Document) -> None:
        """Have every worker make what it needs. Raises ConfigError when one cannot; then all forget it."""
        asked = msgspec.to_builtins(document)
        problems: list[Problem] = []
        for reply in await self.workers.ask_all("prepare", asked, PREPARE_S):
            if reply.well:
                problems = problems or [Problem(*one) for one in reply.value]
            else:
                problems = problems or [Problem(document.source, 0, "", f"worker {reply.slot}: {reply.value}")]
        if problems:
            await self.workers.ask_all("forget", None, ANSWER_S)
            raise ConfigError(problems)

    def _every(self, name: str, seconds: float, call: Callable[[], object]) -> None:
        def again() -> None:
            self._timers[name] = self._loop.call_later(seconds, again)
            call()

        self._timers[name] = self._loop.call_later(seconds, again)


def _unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody awaited, in our log and our form; asyncio would print a traceback."""
    error = context.get("exception")
    _log.error("unhandled: %s", context.get("message", ""), exc_info=error if error is not None else False)


def _settle() -> None:
    """What is there after the start stays: it is kept out of later collections."""
    gc.collect()
    gc.freeze()
    gc.enable()


def _form(config: Config, descriptor: int) -> LogFormat:
    """What the configuration says; where it says nothing, text for people and the default for everything else."""
    if ("server", "log_format") in config.lines or not os.isatty(descriptor):
        return config.server.log_format
    return "text"


def _url(where: str, secure: bool) -> str:
    return where if where.startswith("unix:") else f"{'https' if secure else 'http'}://{where}"
