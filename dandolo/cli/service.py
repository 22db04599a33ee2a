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
import sys
import time
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any

from dandolo import __version__
from dandolo.cli.accounting import Accounting
from dandolo.cli.administration import Administration
from dandolo.cli.age import since_start_ms
from dandolo.cli.change import shown
from dandolo.cli.heap import keep_memory
from dandolo.cli.itself import managed_pid
from dandolo.cli.leftover import clear
from dandolo.cli.logs import Logs
from dandolo.cli.operators import Operators
from dandolo.cli.reload import Reload
from dandolo.cli.start import Start
from dandolo.cli.view import View, sources
from dandolo.cli.watching import REFRESH_S, Watching, budget_gauges
from dandolo.config import Config, ConfigError
from dandolo.control.afterwards import Afterwards
from dandolo.control.child import Child, Sample
from dandolo.control.exposition import Gauge
from dandolo.control.gauges import Gauges
from dandolo.control.keyring_routes import routes as keyring_routes
from dandolo.control.metrics import Metrics
from dandolo.control.notify import Notifier, watchdog_interval_s
from dandolo.control.sinks import Counted, Fanout
from dandolo.control.sockets import ADMIN, addresses, close_all
from dandolo.control.texts import Texts
from dandolo.control.upgrade import Upgrade
from dandolo.control.workers import Workers
from dandolo.net.listen import describe
from dandolo.net.succession import Followed, Given, orphans
from dandolo.net.sweep import PERIOD_S
from dandolo.net.tasks import Tasks
from dandolo.record import Record
from dandolo.text import Text

CLOSE_S = 2.0
CUT_S = 3.0
LOOK_S = 0.5
TICK_S = 1.0
ANSWER_S = 1.0
"""How long workers may take to tell their gauges: a page of metrics without one of them is better than none."""
PREPARE_S = 30.0
ORPHANS_S = 10.0
SETTLE_S = 1.0

_log = logging.getLogger("dandolo")


def run(start: Start) -> int:
    """Serve until a signal; the exit code. Raises ConfigError for what only workers see."""
    keep_memory()
    with asyncio.Runner() as runner:
        return runner.run(_serve(start))


async def _serve(start: Start) -> int:
    config = start.config
    secure = config.server.tls is not None
    where = ", ".join(_url(one, secure) for one in addresses(start.provisions.held))
    try:
        process = Process(start)
    except ConfigError:
        # Nobody would be there to end it.
        start.early.abandon()
        raise
    administered = ", ".join(_url(describe(sock), process.administration.secure) for sock in start.admin)
    try:
        await process.start()
    except (RuntimeError, OSError) as error:
        print(f"dandolo serve: workers could not be started: {error}", file=sys.stderr)
        return 1
    print(
        f"dandolo {__version__} ready in {since_start_ms():.0f} ms: {where}"
        f" | providers: {_runs(config)} | admin: {administered}",
        file=sys.stderr,
        flush=True,
    )
    return await process.until_ended(where)


def _runs(config: Config) -> str:
    count = config.server.workers
    workers = "" if count == 1 else f" | workers: {count}"
    return ", ".join(provider.name for provider in config.providers) + workers


class _End(Enum):
    """How it ends: after a delay for the load balancer, without one, or because somebody else serves."""

    DELAYED = auto()
    AT_ONCE = auto()
    FOLLOWED = auto()


class Process:
    """Everything of the control process of one `dandolo serve`."""

    def __init__(self, start: Start) -> None:
        config = start.config
        self._provisions = start.provisions
        self._name = start.provisions.name
        self.on_event: list[Callable[[str, str], None]] = []
        """Who hears of events: kind and text."""
        self._limits = start.limits
        self._reload = Reload(config, start.choice, start.provisions, self._changed, start.limits)
        self._tenancy = start.tenancy
        self._logs = Logs(start.choice, config)
        self._metrics = Metrics()
        self._gauges = Gauges()
        self.sinks = Fanout()
        self.sinks.add(Counted(self._metrics))
        self.sinks.add(self._logs.requests)
        self._texts = Texts(config.prompt_log)
        self._accounting = Accounting(config, text_of=self._texts.path_of)
        self.sinks.add(self._accounting)
        self._tasks = Tasks()
        self._loop = asyncio.get_running_loop()
        self.workers = Workers(start.provisions.workers, start.provisions.frame, self, self._tasks, start.early)
        self._view = View(config.server.state_dir, self.workers, self._tasks, self._accounting.caught_up)
        self.sinks.add(self._view)
        self.on_event.append(self._view.event)
        self.administration = Administration(config, start.admin, self._view.audit, self._tasks)
        self._upgrade = Upgrade(self._name)
        self._operators = Operators(
            self.workers,
            self._metrics,
            self._gauges,
            self._all_own_gauges,
            lambda: self._tasks.spawn(self._reload_now(), "reload"),
            lambda: self._reload.changed,
            self._roll,
            self._upgrade.begin,
        )
        self._watching = Watching(
            config,
            self.sinks,
            self._metrics,
            self._gauges,
            self._own_gauges,
            self._operators.refresh,
            self.event,
            self._tasks,
        )
        self._view.snapshots.sources = sources(
            self._view.snapshots, self._limits.keyring, self._accounting, self._watching, self._texts
        )
        self.administration.offer(
            [
                *self._operators.routes(),
                *keyring_routes(self._limits.keyring),
                *self._accounting.routes(),
                *self._texts.routes(),
                *self._view.routes(),
                *self._watching.routes(),
            ]
        )
        self._afterwards = Afterwards(self.records, self.texts, self._gauges, self._tasks)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._notifier = Notifier()
        self._where = ""
        self._before = list(start.before)
        self._followed: Followed | None = None
        self._ending: asyncio.Future[_End] = self._loop.create_future()
        self._now: asyncio.Future[int] = self._loop.create_future()
        self._changing = asyncio.Lock()
        """One change of workers at a time: a reload, or their replacement."""
        self._reload_wanted = False
        self._rolling = False
        self._well = True

    async def start(self) -> None:
        """Have workers accept, and answer operators and signals. Raises ConfigError, RuntimeError."""
        self._loop.set_exception_handler(_unhandled)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop, number)
        self._loop.add_signal_handler(signal.SIGHUP, self._hangup)
        self._loop.add_signal_handler(signal.SIGUSR2, self._roll)
        self._loop.add_signal_handler(signal.SIGUSR1, self._upgrade_asked)
        await self.workers.start()
        self._accounting.start()
        self.administration.start()
        for one in self._before:
            self._afterwards.hear(one)
        if self._name:
            self._followed = Followed(self._name, None, self._given, self._succeeded)
            self._followed.start()
            self._every("orphans", ORPHANS_S, self._dismiss)
        self._every("sweep", PERIOD_S, self.administration.tick)
        self._every("look", LOOK_S, self._look)
        self._every("tick", TICK_S, self._tick)
        self._limits.start(self.workers, self._tasks, self._reload.config)

    async def until_ended(self, where: str) -> int:
        """Tell the manager, wait for a signal, end in order; the exit code."""
        self._where = where
        self._notifier.ready(f"{where}; providers {_runs(self._reload.config)}")
        interval = watchdog_interval_s(os.environ, managed_pid())
        if interval is not None:
            self._every("watchdog", interval, self._watchdog)
        self._timers["watching"] = self._loop.call_later(SETTLE_S, self._watching.begin)
        self._every("gauges", REFRESH_S, self._watching.look)
        self._timers["settle"] = self._loop.call_later(SETTLE_S, self._settle)
        end = await self._ending
        server = self._reload.config.server
        # On a terminal nobody waits for a load balancer.
        delay = 0.0 if end is _End.AT_ONCE else server.drain_delay
        followed = end is _End.FOLLOWED
        if self._followed is not None:
            self._followed.close()
        self._operators.draining = True
        self.administration.drain()
        if followed:
            self._tenancy.close()
            self.administration.stop()
            # What our workers still write is for the successor to read, who waits for the ledger.
            self._accounting.settle()
            await self._loop.run_in_executor(None, self._accounting.close)
        self._loop.call_later(0.0 if followed else delay, close_all, self._provisions.held)
        under_way = await self.workers.drain(delay, server.drain_timeout, replaced=followed)
        _log.info("ending: %d requests under way, which have %g s", under_way, delay + server.drain_timeout)
        self._notifier.stopping(f"ending, {under_way} requests under way")
        drained = self._tasks.spawn(self.workers.over(), "drain")
        await asyncio.wait((drained, self._now), return_when=asyncio.FIRST_COMPLETED)
        code = self._now.result() if self._now.done() else 0
        if code:
            await self.workers.cut(CUT_S)
        await self._close()
        self._accounting.close()
        _log.info("ended")
        self._view.close()
        self._logs.close()
        return code

    async def _close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        close_all(self._provisions.held)
        self.administration.close()
        self._afterwards.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._watching.close()
                await self._tasks.close()
        except TimeoutError:
            _log.error("some tasks did not end within %g s", CLOSE_S)
        await self._limits.close()
        self.administration.forget()

    # -- who comes before and after ----------------------------------------------------------------------

    def _given(self) -> list[Given]:
        return [
            *(Given(one.sock, one.slot) for one in self._provisions.held),
            *(Given(sock, ADMIN) for sock in self.administration.sockets),
        ]

    def _succeeded(self, pid: int) -> None:
        """Another control process has taken over, with workers that accept."""
        if not self._ending.done():
            _log.info("process %d serves now: ending", pid)
            self._notifier.main_pid(pid)
            self._ending.set_result(_End.FOLLOWED)

    def _dismiss(self) -> None:
        """Workers of a control process that has gone, should one have been overlooked at the start."""
        for one in orphans(self._name):
            self._afterwards.hear(one)

    # -- workers ---------------------------------------------------------------------------------------

    def records(self, records: Sequence[Record]) -> None:
        """Requests that have finished, from any worker."""
        self.sinks.take(records, time.time())

    def texts(self, texts: Sequence[Text]) -> None:
        """What was asked and answered, where that is kept."""
        self._texts.take(texts)

    def last(self, child: Child, last: list[Sample] | None) -> None:
        """The end of a worker's process."""
        if last is not None:
            self._gauges.report(child.pid, last)
        else:
            self._gauges.gone(child.pid)
            self._limits.ended(child)

    def _own_gauges(self) -> list[Gauge]:
        return [
            Gauge("dandolo_log_lines_dropped_total", self._logs.dropped),
            Gauge("dandolo_config_reload_successful", self._reload.well),
            Gauge("dandolo_workers", len(self.workers.serving)),
            Gauge("dandolo_worker_restarts_total", self.workers.restarts),
            Gauge("dandolo_sink_failures_total", self.sinks.failures),
            *self._accounting.gauges(),
            *self._texts.gauges(),
            Gauge("dandolo_keys_without_place", len(self._limits.keyring.without)),
            *budget_gauges(self._limits.keyring.budgets()),
        ]

    def _all_own_gauges(self) -> list[Gauge]:
        return [*self._own_gauges(), *self._watching.gauges()]

    def event(self, kind: str, text: str) -> None:
        """Something happened that an operator wants to see beside the numbers: a reload, a worker's death."""
        for hear in self.on_event:
            hear(kind, text)

    def leaving(self, child: Child) -> None:
        """Somebody wants a worker to end: another takes its place."""
        _log.warning("worker %d (process %d) was told to end: another takes its place", child.slot, child.pid)
        self._tasks.spawn(self._replace(child), "replace")

    async def _replace(self, child: Child) -> None:
        async with self._changing:
            # A reload may have replaced it meanwhile.
            if not child.retiring and not child.over.done():
                server = self._reload.config.server
                await self.workers.replace(child.slot, server.drain_delay, server.drain_timeout)

    def _look(self) -> None:
        self._well = self.workers.look()

    def _watchdog(self) -> None:
        """The manager hears of us while any worker answers: those that hang are killed by us, and only if that does
        not help it is for the manager to restart everything."""
        if self._well:
            self._notifier.watchdog()

    # -- signals ---------------------------------------------------------------------------------------

    def _stop(self, number: int) -> None:
        if not self._ending.done():
            self._ending.set_result(_End.AT_ONCE if number == signal.SIGINT else _End.DELAYED)
        elif not self._now.done():
            _log.warning("a second signal: what is under way is cut")
            self._now.set_result(128 + number)

    def _hangup(self) -> None:
        if self._ending.done():
            return
        # Ten signals while one reload runs are one more.
        if not self._reload_wanted:
            self._reload_wanted = True
            self._tasks.spawn(self._reload_now(), "reload")

    def _roll(self) -> None:
        if not self._ending.done() and not self._rolling:
            self._rolling = True
            self._tasks.spawn(self._restart(), "restart")

    def _upgrade_asked(self) -> None:
        if not self._ending.done() and (reason := self._upgrade.begin()):
            _log.error("no upgrade: %s", reason)

    async def _restart(self) -> None:
        try:
            async with self._changing:
                server = self._reload.config.server
                _log.info("replacing %d workers", len(self.workers.slots))
                if await self.workers.restart(server.drain_delay, server.drain_timeout):
                    _log.info("all workers are replaced")
        finally:
            self._rolling = False

    async def _reload_now(self) -> list[str]:
        """Have all workers change to the configuration as it is now, or none; what speaks against it."""
        async with self._changing:
            self._reload_wanted = False
            if self._ending.done():
                return ["the gateway is ending"]
            self._notifier.reloading()
            try:
                reasons = await self._reload.once(self.workers)
                what = f"{self._reload.config.source} is in force: {shown(self._reload.changed)}"
                if not reasons and "server.workers" in self._reload.changed:
                    self._tasks.spawn(clear(self._reload.config, self.workers), "files of workers")
                self.event("reload", f"refused: {reasons[0]}" if reasons else what)
                return reasons
            finally:
                status = f"{self._where}; providers {_runs(self._reload.config)}"
                self._notifier.ready(status if self._reload.well else "the last reload was refused: see the log")

    def _changed(self, config: Config, changed: list[str]) -> None:
        self._limits.adopt(config)
        self.administration.adopt(config)
        self._accounting.reload(config)
        self._texts.adopt(config.prompt_log)
        self._watching.adopt(config, changed)
        self._logs.adopt(config)
        if any(key == "limits.shared" or key.startswith("cache.redis.") for key in changed):
            self._limits.share(config)

    def _settle(self) -> None:
        """What is there after the start stays: it is kept out of later collections."""
        gc.collect()
        gc.freeze()
        gc.enable()
        self._tasks.spawn(clear(self._reload.config, self.workers), "files of workers")

    def _tick(self) -> None:
        now = time.time()
        self.sinks.tick(now)
        self._limits.tick(now)
        self._texts.tick(now)

    def _every(self, name: str, seconds: float, call: Callable[[], object]) -> None:
        def again() -> None:
            self._timers[name] = self._loop.call_later(seconds, again)
            call()

        self._timers[name] = self._loop.call_later(seconds, again)


def _unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody awaited, in our log and our form; asyncio would print a traceback."""
    error = context.get("exception")
    _log.error("unhandled: %s", context.get("message", ""), exc_info=error if error is not None else False)


def _url(where: str, secure: bool) -> str:
    return where if where.startswith("unix:") else f"{'https' if secure else 'http'}://{where}"
