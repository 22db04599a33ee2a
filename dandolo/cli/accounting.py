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
from dandolo.mind.slo import WINDOWS_S, Objectives
from dandolo.record import Record

_log = logging.getLogger("dandolo")


class Accounting:
    """`start` begins, `close` ends (up to five seconds). Call everything but `alert` in one thread.

    `alert` is told why the ledger cannot be written, and "" when it can again, in the ledger's thread.
    """

    def __init__(self, config: Config, alert: Callable[[str], None] | None = None) -> None:
        self.ledger: Ledger | None = None
        settings = config.ledger
        if settings.enabled:
            # Where the folder cannot be made now, the ledger says so, and looks again.
            self.ledger = Ledger(
                config.server.state_dir,
                retention_s=settings.retention,
                requests_max=settings.requests,
                alert=alert,
            )
        self._loaded = False
        self._settled = False
        self.objectives = Objectives(config.slo, self.ledger.keep if self.ledger is not None else None)

    def start(self) -> None:
        """Begin to read journals."""
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
        """Judge by other objectives from now on. The ledger itself changes at the next start."""
        self.objectives.agree(config.slo)

    def routes(self) -> list[Route]:
        """What the admin listener offers of it."""
        found = [slo_route(self.objectives.state)]
        return found if self.ledger is None else [*routes(self.ledger), *found]

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
