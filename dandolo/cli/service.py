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
from dandolo.cli.age import since_start_ms
from dandolo.cli.heap import keep_memory
from dandolo.cli.itself import managed_pid
from dandolo.cli.operators import Operators
from dandolo.cli.reload import Reload
from dandolo.cli.start import Start
from dandolo.cli.view import View, sources
from dandolo.cli.watching import REFRESH_S, Watching, budget_gauges
from dandolo.config import Config
from dandolo.control.admin import Admin
from dandolo.control.afterwards import Afterwards
from dandolo.control.basic import with_index
from dandolo.control.callers import Callers
from dandolo.control.child import Child, Sample
from dandolo.control.dashboard import page
from dandolo.control.exposition import Gauge
from dandolo.control.gauges import Gauges
from dandolo.control.logwriter import LogWriter, configure_logging
from dandolo.control.metrics import Metrics
from dandolo.control.notify import Notifier, watchdog_interval_s
from dandolo.control.route import Answer
from dandolo.control.sinks import AccessLog, Counted, Fanout
from dandolo.control.sockets import ADMIN, addresses, close_all
from dandolo.control.upgrade import Upgrade
from dandolo.control.workers import Workers
from dandolo.net.listen import Census, Listener, describe
from dandolo.net.succession import Followed, Given, orphans
from dandolo.net.sweep import PERIOD_S
from dandolo.net.tasks import Tasks
from dandolo.record import Record

ADMIN_CONNECTIONS_MAX = 64
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
    administered = ", ".join(_url(describe(sock), False) for sock in start.admin)
    process = Process(start)
    try:
        await process.start()
    except (RuntimeError, OSError) as error:
        print(f"dandolo serve: workers could not be started: {error}", file=sys.stderr)
        return 1
    providers = ", ".join(provider.name for provider in config.providers)
    count = start.provisions.workers
    workers = "" if count == 1 else f" | workers: {count}"
    print(
        f"dandolo {__version__} ready in {since_start_ms():.0f} ms: {where}"
        f" | providers: {providers}{workers} | admin: {administered}",
        file=sys.stderr,
        flush=True,
    )
    return await process.until_ended(f"{where}; providers {providers}{workers}")


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
        self._held = start.provisions.held
        self._admin_sockets = start.admin
        self._tenancy = start.tenancy
        self._access = LogWriter(1, form=start.access_form)
        self._program = configure_logging(start.program_form)
        self._metrics = Metrics()
        self._gauges = Gauges()
        self.sinks = Fanout()
        self.sinks.add(Counted(self._metrics))
        self.sinks.add(AccessLog(self._access, start.access_form))
        self._accounting = Accounting(config)
        self.sinks.add(self._accounting)
        self._tasks = Tasks()
        self._loop = asyncio.get_running_loop()
        self.workers = Workers(start.provisions.workers, start.provisions.frame, self, self._tasks, start.early)
        self._view = View(config.server.state_dir, self.workers, self._tasks)
        self.sinks.add(self._view)
        self.on_event.append(self._view.event)
        self._callers = Callers(config.keys)
        self._upgrade = Upgrade(self._name)
        self._operators = Operators(
            self.workers,
            self._metrics,
            self._gauges,
            self._all_own_gauges,
            self._reload_now,
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
        self._view.snapshots.sources = sources(self._limits.keyring, self._accounting, self._watching)
        self._admin = Admin(
            with_index(
                [
                    *self._operators.routes(),
                    *self._limits.keyring.routes(),
                    *self._accounting.routes(),
                    *self._view.routes(),
                    *self._watching.routes(),
                ],
                self._page,
            ),
            audit=self._view.audit,
            authenticate=self._callers.authenticate if config.keys else None,
            tasks=self._tasks,
        )
        self._afterwards = Afterwards(self.records, self._gauges, self._tasks)
        self._census = Census(ADMIN_CONNECTIONS_MAX, ADMIN_CONNECTIONS_MAX)
        self._listeners: list[Listener] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._notifier = Notifier()
        self._status = ""
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
        for sock in self._admin_sockets:
            listener = Listener(sock, self._admin, self._census, self._tasks)
            self._listeners.append(listener)
            listener.start()
        for one in self._before:
            self._afterwards.hear(one)
        if self._name:
            self._followed = Followed(self._name, None, self._given, self._succeeded)
            self._followed.start()
            self._every("orphans", ORPHANS_S, self._dismiss)
        self._every("sweep", PERIOD_S, lambda: self._admin.sweep.tick(self._admin.now()))
        self._every("look", LOOK_S, self._look)
        self._every("tick", TICK_S, self._tick)
        self._limits.start(self.workers, self._tasks)
        if self._limits.board.shared:
            # Not needed for the first answer, so not loaded before it.
            from dandolo.cli.hosts import share_limits

            self._tasks.spawn(share_limits(self._reload.config, self._limits.board), "limits of all hosts")

    async def until_ended(self, status: str) -> int:
        """Tell the manager, wait for a signal, end in order; the exit code."""
        self._status = status
        self._notifier.ready(status)
        interval = watchdog_interval_s(os.environ, managed_pid())
        if interval is not None:
            self._every("watchdog", interval, self._watchdog)
        self._timers["watching"] = self._loop.call_later(SETTLE_S, self._watching.begin)
        self._every("gauges", REFRESH_S, self._watching.look)
        self._timers["settle"] = self._loop.call_later(SETTLE_S, _settle)
        end = await self._ending
        server = self._reload.config.server
        # On a terminal nobody waits for a load balancer.
        delay = 0.0 if end is _End.AT_ONCE else server.drain_delay
        followed = end is _End.FOLLOWED
        if self._followed is not None:
            self._followed.close()
        self._admin.draining = self._operators.draining = True
        if followed:
            self._tenancy.close()
            self._close_listeners()
            # What our workers still write is for the successor to read, who waits for the ledger.
            self._accounting.settle()
            await self._loop.run_in_executor(None, self._accounting.close)
        self._loop.call_later(0.0 if followed else delay, close_all, self._held)
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
        self._access.close()
        self._program.close()
        return code

    async def _close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._close_listeners()
        close_all(self._held)
        self._admin.close()
        self._afterwards.close()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._watching.close()
                await self._tasks.close()
        except TimeoutError:
            _log.error("some tasks did not end within %g s", CLOSE_S)
        await self._limits.close()
        self._census.close()

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    # -- who comes before and after ----------------------------------------------------------------------

    def _given(self) -> list[Given]:
        return [
            *(Given(one.sock, one.slot) for one in self._held),
            *(Given(sock, ADMIN) for sock in self._admin_sockets),
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

    def last(self, child: Child, last: list[Sample] | None) -> None:
        """The end of a worker's process."""
        if last is not None:
            self._gauges.report(child.pid, last)
        else:
            self._gauges.gone(child.pid)
            self._limits.ended(child)

    def _own_gauges(self) -> list[Gauge]:
        return [
            Gauge("dandolo_log_lines_dropped_total", self._access.dropped + self._program.dropped),
            Gauge("dandolo_config_reload_successful", self._reload.well),
            Gauge("dandolo_workers", len(self.workers.serving)),
            Gauge("dandolo_worker_restarts_total", self.workers.restarts),
            Gauge("dandolo_sink_failures_total", self.sinks.failures),
            *self._accounting.gauges(),
            *budget_gauges(self._limits.keyring.budgets()),
        ]

    def _page(self) -> Answer:
        return page(keyed=self._admin.authenticate is not None)

    def _all_own_gauges(self) -> list[Gauge]:
        return [*self._own_gauges(), *self._watching.gauges()]

    def event(self, kind: str, text: str) -> None:
        """Something happened that an operator wants to see beside the numbers: a reload, a worker's death."""
        for hear in self.on_event:
            hear(kind, text)

    def leaving(self, child: Child) -> None:
        """Somebody wants a worker to end: another takes its place."""
        _log.warning("worker %d (process %d) was told to end: another takes its place", child.slot, child.pid)
        self._tasks.spawn(self._replace(child.slot), "replace")

    async def _replace(self, slot: int) -> None:
        async with self._changing:
            server = self._reload.config.server
            await self.workers.replace(slot, server.drain_delay, server.drain_timeout)

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
                self.event(
                    "reload", f"refused: {reasons[0]}" if reasons else f"{self._reload.config.source} is in force"
                )
                return reasons
            finally:
                well = self._reload.well
                self._notifier.ready(self._status if well else "the last reload was refused: see the log")

    def _changed(self, config: Config) -> None:
        self._callers.keys = self._limits.file = config.keys
        # The first key may have come with it: from then on one is wanted here too.
        self._admin.authenticate = self._callers.authenticate if config.keys else None
        self._accounting.reload(config)
        self._watching.adopt(config)

    def _tick(self) -> None:
        now = time.time()
        self.sinks.tick(now)
        self._limits.tick(now)

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


def _url(where: str, secure: bool) -> str:
    return where if where.startswith("unix:") else f"{'https' if secure else 'http'}://{where}"
