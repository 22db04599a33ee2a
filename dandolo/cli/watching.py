"""What looks over the gateway's shoulder: alerts, and traces and metrics for a collector.

Both are sinks of records in the control process. Alerts begin a moment after the start and want the workers' gauges
every few seconds, whether or not anybody asks for metrics; the export begins at once, so that no span is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from dandolo.config import Config
from dandolo.control.alerting_routes import alerting_routes
from dandolo.control.exposition import Gauge
from dandolo.control.gauges import Gauges
from dandolo.control.metrics import Metrics
from dandolo.control.route import Route
from dandolo.control.sinks import Fanout
from dandolo.net.tasks import Tasks

if TYPE_CHECKING:
    from dandolo.cli.alarms import Alarms
    from dandolo.control.otlp import Otlp
    from dandolo.notice import Notice

REFRESH_S = 2.0
"""Between two looks at the workers' gauges."""
_log = logging.getLogger("dandolo")


def budget_gauges(budgets: Iterable[tuple[str, str, int, int, int]]) -> Iterator[Gauge]:
    """Budgets as alerts and /metrics know them; of each the key's name, "day" or "month", and in micro-USD what it
    is, what is spent of it, and what is reserved."""
    for key, period, budget, spent, _ in budgets:
        yield Gauge("dandolo_budget_used_share", spent / budget if budget else 1.0, (("key", key), ("period", period)))


class Watching:
    """The alerts and the export of one control process.

    `own` gives the control process's gauges, `refresh` has `gauges` filled anew, `event` is told what an operator wants
    to see. Call `begin` once all is served, `adopt` for each configuration that comes into force, `close` at the end.
    """

    def __init__(
        self,
        config: Config,
        sinks: Fanout,
        metrics: Metrics,
        gauges: Gauges,
        own: Callable[[], list[Gauge]],
        refresh: Callable[[], Awaitable[None]],
        event: Callable[[str, str], None],
        tasks: Tasks,
    ) -> None:
        self._config = config
        self._sinks = sinks
        self._metrics = metrics
        self._gauges = gauges
        self._own = own
        self._refresh = refresh
        self._event = event
        self._tasks = tasks
        self._alarms: Alarms | None = None
        self._otlp: Otlp | None = None
        self._refreshing = False
        self._export()

    def begin(self) -> None:
        """Judge from now on."""
        # Not needed for the first answer: loading it takes 10 ms.
        from dandolo.cli.alarms import Alarms
        from dandolo.net.dial import Dialer

        self._alarms = Alarms(self._config, lambda: [*self._gauges.each(), self._own()], Dialer())
        self._alarms.alerting.on_notice.append(self._noticed)
        self._sinks.add(self._alarms.alerting)

    def look(self) -> None:
        """Have the workers' gauges renewed (every REFRESH_S), unless that is still under way."""
        if self._alarms is not None and not self._refreshing:
            self._refreshing = True
            self._tasks.spawn(self._look(), "gauges for alerts")

    def adopt(self, config: Config, changed: Sequence[str]) -> None:
        """Go on with another configuration, in which these keys differ."""
        self._config = config
        try:
            if self._alarms is not None:
                self._alarms.adopt(config)
        except (OSError, ValueError) as error:
            # It was checked when it was read; a file may be gone since.
            _log.error("the receivers of alerts stay as they were: %s", error)
        if any(key == "server.region" or key.startswith("otel.") for key in changed):
            self._export()

    async def close(self) -> None:
        """Send what is left, for a moment, and let go of everything."""
        if self._otlp is not None:
            await self._otlp.close()
        if self._alarms is not None:
            await self._alarms.close()

    def routes(self) -> list[Route]:
        """What operators may ask."""
        return alerting_routes(lambda: self._alarms.alerting if self._alarms is not None else None)

    def gauges(self) -> Iterator[Gauge]:
        """For /metrics."""
        if self._alarms is not None:
            yield from self._alarms.alerting.gauges()
        if self._otlp is not None:
            yield from self._otlp.gauges()

    def _export(self) -> None:
        if self._otlp is not None:
            self._sinks.remove(self._otlp)
            self._tasks.spawn(self._otlp.close(), "last export")
            self._otlp = None
        if self._config.otel.endpoint is not None:
            from dandolo.cli.telemetry import otlp

            self._otlp = otlp(self._config, lambda: self._metrics.snapshots((*self._gauges.together(), *self._own())))
            self._sinks.add(self._otlp)

    async def _look(self) -> None:
        try:
            await self._refresh()
        finally:
            self._refreshing = False

    def standings(self) -> list[dict[str, Any]]:
        """All alerts as they stand, as /admin/alerts has them; none before they are judged."""
        if self._alarms is None:
            return []
        found: list[dict[str, Any]] = msgspec.to_builtins(self._alarms.alerting.state("firing")["alerts"])
        return found

    def _noticed(self, notice: Notice) -> None:
        about = f"{notice.alert} ({notice.subject})" if notice.subject else notice.alert
        self._event("alert", f"{notice.state} {about}: {notice.message}")
