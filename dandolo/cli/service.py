"""The gateway as a process: a worker, the admin listener, logs, signals, the service manager.

Owns what belongs to the process and not to the data plane. A reload prepares everything in a thread and
then swaps the worker's plane in one assignment; requests under way end on the plane they began with.
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
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import uvloop

from dandolo import __version__
from dandolo.cache.generations import Kind
from dandolo.cli.age import since_start_ms
from dandolo.cli.configured import Choice
from dandolo.cli.gauges import gauges
from dandolo.cli.heap import Heap, keep_memory
from dandolo.config import Config, ConfigError, Problem
from dandolo.config.schema import LogFormat
from dandolo.control.admin import Admin
from dandolo.control.basic import basic_routes, with_index
from dandolo.control.exposition import Gauge
from dandolo.control.guard import Caller
from dandolo.control.logwriter import LogWriter, configure_logging
from dandolo.control.metrics import Metrics
from dandolo.control.notify import Notifier, watchdog_interval_s
from dandolo.control.purging import purge_routes
from dandolo.control.records import Records
from dandolo.errors import GatewayError
from dandolo.gateway.explanation import routes
from dandolo.gateway.gateway import limits_of
from dandolo.gateway.plane import Plane
from dandolo.gateway.worker import Worker
from dandolo.net.listen import Census, Listener, describe
from dandolo.net.tasks import Tasks

if TYPE_CHECKING:
    from dandolo.cli.probing import ProbedAccount
    from dandolo.mind.probe import Prober
    from dandolo.mind.verdict import Verdict

ADMIN_CONNECTIONS_MAX = 64
RETIRED_PERIOD_S = 5.0
CLOSE_S = 2.0
SETTLE_S = 1.0
"""After the start, which collects nothing. One collection of everything takes 20 ms: no first answer waits for it."""
GC_THRESHOLDS = (50_000, 20, 100)
"""Requests make no cycles by intent; what does is collected, but seldom: a full collection takes milliseconds."""

_log = logging.getLogger("dandolo")


def run(
    config: Config,
    sockets: Sequence[socket.socket],
    admin: Sequence[socket.socket],
    choice: Choice,
    log_format: LogFormat | None,
) -> int:
    """Serve on listening sockets until a signal; the exit code. `choice` is asked again at a reload.

    Raises ConfigError for what no validation sees, before anything is accepted.
    """
    keep_memory()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(config, sockets, admin, choice, log_format))


async def _serve(
    config: Config,
    sockets: Sequence[socket.socket],
    admin: Sequence[socket.socket],
    choice: Choice,
    log_format: LogFormat | None,
) -> int:
    addresses = ", ".join(_url(sock, config.server.tls is not None) for sock in sockets)
    administered = ", ".join(_url(sock, False) for sock in admin)
    try:
        process = Process(config, choice, log_format)
    except (GatewayError, OSError, ValueError) as error:
        # What only shows when it is put to use: a CA bundle that is none, a header that would break framing.
        raise ConfigError([Problem(config.source, 0, "", f"cannot be put to use: {error}")]) from error
    process.start(sockets, admin)
    providers = ", ".join(provider.name for provider in config.providers)
    print(
        f"dandolo {__version__} ready in {since_start_ms():.0f} ms: {addresses}"
        f" | providers: {providers} | admin: {administered}",
        file=sys.stderr,
        flush=True,
    )
    return await process.until_ended(f"{addresses}; providers {providers}")


class Process:
    """Everything of one running `dandolo serve`."""

    def __init__(self, config: Config, choice: Choice, log_format: LogFormat | None) -> None:
        self._choice = choice
        access_form, program_form = log_format or _form(config, 1), log_format or _form(config, 2)
        self._access = LogWriter(1, form=access_form)
        self._program = configure_logging(program_form)
        self._heap = Heap()
        self._metrics = Metrics()
        self._records = Records(self._metrics, self._access, access_form)
        self.worker = Worker(config, self._records.take, self._beat)
        self._tasks = Tasks()
        self._admin = self._administration(config)
        self._census = Census(ADMIN_CONNECTIONS_MAX, ADMIN_CONNECTIONS_MAX)
        self._listeners: list[Listener] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._notifier = Notifier()
        self._status = ""
        self._loop = asyncio.get_running_loop()
        self._ending: asyncio.Future[bool] = self._loop.create_future()
        self._now: asyncio.Future[int] = self._loop.create_future()
        self._listen = config.server.listen, config.server.admin, config.server.tls
        self._retired: list[tuple[Plane, float]] = []
        self._reloading = False
        self._reload_wanted = False
        self._reload_well = True
        self._prober: Prober[ProbedAccount] | None = None
        self._wells: dict[str, bool] = {}
        """How the last probe of each account went."""

    def start(self, sockets: Sequence[socket.socket], admin: Sequence[socket.socket]) -> None:
        """Accept, and answer to signals."""
        self._loop.set_exception_handler(_unhandled)
        self.worker.start(list(sockets))
        for sock in admin:
            listener = Listener(sock, self._admin, self._census, self._tasks)
            self._listeners.append(listener)
            listener.start()
        self._every("retired", RETIRED_PERIOD_S, self._tend_retired)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop, number)
        self._loop.add_signal_handler(signal.SIGHUP, self._hangup)

    async def until_ended(self, status: str) -> int:
        """Tell the manager, wait for a signal, end in order; the exit code."""
        self._status = status
        self._notifier.ready(status)
        interval = watchdog_interval_s(os.environ, os.getpid())
        if interval is not None:
            self._every("watchdog", interval, self._notifier.watchdog)
        self._timers["settle"] = self._loop.call_later(SETTLE_S, _settle)
        self._timers["probes"] = self._loop.call_later(SETTLE_S, self._begin_probing)
        delayed = await self._ending
        server = self.worker.gateway.plane.config.server
        delay = server.drain_delay if delayed else 0.0
        under_way = self.worker.gateway.admission.in_flight
        _log.info("ending: %d requests under way, which have %g s", under_way, delay + server.drain_timeout)
        self._notifier.stopping(f"ending, {under_way} requests under way")
        self._admin.draining = True
        drained = self._tasks.spawn(self.worker.drain(delay, server.drain_timeout), "drain")
        await asyncio.wait((drained, self._now), return_when=asyncio.FIRST_COMPLETED)
        code = self._now.result() if self._now.done() else 0
        await self._close()
        _log.info("ended")
        self.worker.gateway.settle()
        self._records.settle()
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
                if self._prober is not None:
                    await self._prober.close()
                await self._tasks.close()
                await self.worker.close()
        except TimeoutError:
            _log.error("some tasks did not end within %g s", CLOSE_S)
        for plane, _ in self._retired:
            plane.fleet.close()
        self._census.close()

    # -- what is counted and logged --------------------------------------------------------------------

    def _beat(self) -> None:
        """What is due ten times a second, in one go: an idle process wakes no oftener."""
        gateway = self.worker.gateway
        self._heap.beat(gateway.requests, gateway.admission.in_flight)
        self._records.settle()
        self._admin.sweep.tick(self._admin.now())

    def _metrics_text(self) -> bytes:
        self.worker.gateway.settle()
        self._records.settle()
        return self._metrics.text(
            (
                *gauges(self.worker),
                Gauge("dandolo_log_lines_dropped_total", self._access.dropped + self._program.dropped),
                Gauge("dandolo_config_reload_successful", self._reload_well),
                *(Gauge("dandolo_probe_well", well, (("account", label),)) for label, well in self._wells.items()),
            )
        )

    async def _purge(self, kind: str, name: str, soft: bool) -> dict[str, Any]:
        return await self.worker.gateway.store.purge(cast(Kind, kind), name, soft=soft)

    def _routes(self, query: bytes) -> Any:
        gateway = self.worker.gateway
        return routes(gateway.plane, query, gateway.now())

    def _administration(self, config: Config) -> Admin:
        """What operators ask, and may change, on the admin listener."""
        routes = basic_routes(metrics_text=self._metrics_text, ready=self.worker.gateway.ready, routes=self._routes)
        routes += purge_routes(self._purge)
        return Admin(with_index(routes), authenticate=self._authenticate if config.keys else None, tasks=self._tasks)

    def _authenticate(self, head: Mapping[bytes, bytes]) -> Caller:
        tenant = self.worker.gateway.admission.authenticate(head)
        return Caller(tenant.name, tenant.config is not None and tenant.config.admin)

    def _begin_probing(self) -> None:
        self._tasks.spawn(self._probe(self.worker.gateway.plane), "first probes")

    async def _probe(self, plane: Plane) -> None:
        """Probe the accounts of a plane from now on, and no others."""
        # Not needed for the first answer, so not loaded before it.
        from dandolo.cli.probing import prober

        if self._prober is not None:
            await self._prober.close()
        labels = {runtime.account.label for runtime in plane.fleet}
        self._wells = {label: well for label, well in self._wells.items() if label in labels}
        self._prober = prober(plane, self.worker.gateway.dialer, self._probed)
        self._tasks.spawn(self._prober.run(), "probes")

    def _probed(self, account: ProbedAccount, verdict: Verdict) -> None:
        self._wells[account.label] = verdict.well

    # -- signals ---------------------------------------------------------------------------------------

    def _stop(self, number: signal.Signals) -> None:
        if not self._ending.done():
            # On a terminal nobody waits for a load balancer.
            self._ending.set_result(number != signal.SIGINT)
        elif not self._now.done():
            _log.warning("a second signal: what is under way is cut")
            self._now.set_result(128 + number)

    def _hangup(self) -> None:
        if self._ending.done():
            return
        self._reload_wanted = True
        if not self._reloading:
            self._reloading = True
            self._tasks.spawn(self._reload(), "reload")

    async def _reload(self) -> None:
        try:
            while self._reload_wanted and not self._ending.done():
                self._reload_wanted = False
                self._notifier.reloading()
                self._reload_well = await self._reload_once()
                self._notifier.ready(self._status if self._reload_well else "the last reload was refused: see the log")
        finally:
            self._reloading = False

    async def _reload_once(self) -> bool:
        gateway = self.worker.gateway
        try:
            config, plane = await self._loop.run_in_executor(None, self._prepare)
        except ConfigError as error:
            for problem in error.problems:
                _log.error("%s", problem)
            _log.error("reload refused: the configuration that was there goes on")
            return False
        except (GatewayError, OSError, ValueError) as error:
            _log.error("reload refused, the configuration that was there goes on: %s", error)
            return False
        for warning in config.warnings:
            _log.warning("%s", warning)
        server = config.server
        if (server.listen, server.admin, server.tls) != self._listen:
            _log.warning("listeners and certificates change at the next start, not by a reload")
        # Bodies that are held now are let go of in the new plane's count.
        plane.admission.body_bytes = gateway.admission.body_bytes
        plane.inherit(gateway.plane)
        old, gateway.plane = gateway.plane, plane
        await self._probe(plane)
        gateway.limits = limits_of(config)
        self._retired.append((old, 0.0))
        _log.info("reloaded %s: providers %s", config.source, ", ".join(one.name for one in config.providers))
        return True

    def _prepare(self) -> tuple[Config, Plane]:
        """In a thread: files are read and certificates loaded, which takes milliseconds each."""
        config = self._choice.find(os.environ)
        if self.worker.gateway.plane.config.keys and not config.keys:
            reason = "the last key is gone: to let everybody in, restart"
            raise ConfigError([Problem(config.source, 0, "keys", reason)])
        return config, Plane(config)

    def _tend_retired(self) -> None:
        """Close what replaced planes still hold, and forget them once their last request is over."""
        now, kept = time.monotonic(), []
        for plane, idle_since in self._retired:
            plane.fleet.close()
            for runtime in plane.fleet:
                # The gateway's own beat looks at the accounts that are still configured.
                runtime.slots.expire(now)
            if plane.admission.in_flight:
                kept.append((plane, 0.0))
            elif not idle_since or now - idle_since < RETIRED_PERIOD_S:
                # A provider's connection may come back shortly after its request.
                kept.append((plane, idle_since or now))
        self._retired = kept

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
    gc.set_threshold(*GC_THRESHOLDS)
    gc.enable()


def _form(config: Config, descriptor: int) -> LogFormat:
    """What the configuration says; where it says nothing, text for people and the default for everything else."""
    if ("server", "log_format") in config.lines or not os.isatty(descriptor):
        return config.server.log_format
    return "text"


def _url(sock: socket.socket, secure: bool) -> str:
    where = describe(sock)
    return where if where.startswith("unix:") else f"{'https' if secure else 'http'}://{where}"
