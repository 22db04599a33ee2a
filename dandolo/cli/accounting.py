"""What the control process keeps of money and promises: the ledger, the objectives, and how both are asked.

A sink of records (`take`, `tick`), which is told in words on the log and by `alert` when the ledger cannot be
written. Nothing here keeps the gateway from serving: without a folder to write to there is no ledger until it is there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence

from dandolo.config import Config
from dandolo.control import ledger_reading as reading
from dandolo.control.exposition import Gauge
from dandolo.control.ledger import Ledger
from dandolo.control.route import Route
from dandolo.control.usage import routes, slo_route
from dandolo.mind.slo import WINDOWS_S, Kept, Objectives
from dandolo.record import Record

_log = logging.getLogger("dandolo")


class Accounting:
    """`start` begins, `close` ends (up to five seconds). Call everything but `alert` in one thread.

    `alert` is told why the ledger cannot be written, and "" when it can again, in the ledger's thread.
    """

    def __init__(
        self,
        config: Config,
        alert: Callable[[str], None] | None = None,
        text_of: Callable[[str], str | None] = lambda name: None,
    ) -> None:
        self._text_of = text_of
        self.ledger: Ledger | None = None
        self._alert = alert
        self._enabled = False
        self._started = False
        self._enable(config)
        self._loaded = False
        self._settled = False
        self.objectives = Objectives(config.slo, self._keep)

    def _enable(self, config: Config) -> None:
        settings = config.ledger
        self._enabled = settings.enabled
        if self.ledger is not None:
            self.ledger.adopt(retention_s=settings.retention, requests_max=settings.requests)
        elif settings.enabled:
            # Where the folder cannot be made now, the ledger says so, and looks again.
            self.ledger = Ledger(
                config.server.state_dir,
                retention_s=settings.retention,
                requests_max=settings.requests,
                alert=self._alert,
            )
            if self._started:
                self.ledger.start()

    def _keep(self, cells: list[Kept]) -> None:
        if self.ledger is not None and self._enabled:
            self.ledger.keep(cells)

    def start(self) -> None:
        """Begin to read journals."""
        self._started = True
        if self.ledger is not None:
            self.ledger.start()

    def take(self, records: Sequence[Record], now: float) -> None:
        """Count records by objectives."""
        self.objectives.take(records, now)

    def tick(self, now: float) -> None:
        """Once a second. The first takes up the objectives where they were left (a thousand hours take 10 ms)."""
        if not self._loaded:
            self._loaded = True
            self._load(now)
        self.objectives.tick(now)

    def reload(self, config: Config) -> None:
        """Judge by other objectives, and keep as much as this says. A ledger that is not to be written any more can
        still be asked, and reads what workers have written until they are replaced."""
        self.objectives.agree(config.slo)
        self._enable(config)

    def caught_up(self, within_s: float) -> bool:
        """Wait until what workers have written down by now is in the ledger; False when that takes too long. Blocks."""
        return self.ledger is None or self.ledger.flush(within_s)

    def routes(self) -> list[Route]:
        """What the admin listener offers of it."""
        return [*routes(lambda: self.ledger, self._text_of), slo_route(self.objectives.state)]

    def gauges(self) -> Iterator[Gauge]:
        """Samples for /metrics."""
        for name, value, labels in self.objectives.gauges(time.time()):
            yield Gauge(name, value, labels)
        if self.ledger is not None:
            health = self.ledger.health()
            yield Gauge("dandolo_ledger_up", not health.told)
            yield Gauge("dandolo_ledger_rows_total", health.rows)
            yield Gauge("dandolo_ledger_dropped_total", health.dropped)

    def settle(self) -> None:
        """Hand on what is counted by objectives: nothing more will be."""
        if not self._settled:
            self._settled = True
            self.tick(time.time())
            self.objectives.settle()

    def close(self) -> None:
        """Write down what is left, and end. After `settle` in any thread; a second time it does nothing."""
        self.settle()
        if self.ledger is not None:
            self.ledger.close()

    def _load(self, now: float) -> None:
        if self.ledger is None:
            return
        try:
            self.objectives.load(reading.cells(self.ledger.path, now - WINDOWS_S["30d"], now + 3600))
        except reading.Unreadable as error:
            # A first start; or the ledger will say what is the matter.
            _log.debug("objectives begin anew: %s", error)
