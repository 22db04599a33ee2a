"""Traces and metrics for an OpenTelemetry collector, made of records and sent by a thread of its own.

The control process takes records and counts; turning them into spans and metrics, and sending both by OTLP over HTTP,
is done by `otlp_export` with OpenTelemetry's SDK, which only the thread imports and only once there is something to
send. One export is under way at a time. Spans wait in a list of `SPANS_MAX`; what comes to a full one is dropped and
counted. A collector that is away or hangs costs spans, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from dandolo.config.otel import Otel
from dandolo.control.exposition import Gauge
from dandolo.control.metrics import Snapshot
from dandolo.record import Record

SPANS_MAX: Final = 8192
"""Requests whose spans wait."""
EXPORT_S: Final = 1.0
"""Between two exports of spans."""
CLOSE_S: Final = 1.5
_log = logging.getLogger("dandolo")


class Export(Protocol):
    """What the thread does (`otlp_export.Exporter`); both answer whether the collector took it."""

    def spans(self, records: Sequence[Record]) -> bool:
        """Send the spans of requests."""

    def metrics(self, snapshots: Sequence[Snapshot], now: float) -> bool:
        """Send what was counted, as of `now`."""

    def close(self) -> None:
        """Give up what is being tried; from any thread."""


class Otlp:
    """A sink of records: `take` them, `tick` about once a second, `close` at the end.

    `snapshots` gives what is counted. `begin` makes the exporter and is called in the thread: importing the SDK takes
    a quarter of a second.
    """

    def __init__(
        self, settings: Otel, snapshots: Callable[[], Sequence[Snapshot]], begin: Callable[[], Export]
    ) -> None:
        self.exported = self.failed = self.dropped = 0
        self._interval_s = settings.metrics_interval
        self._snapshots = snapshots
        self._begin = begin
        self._waiting: list[Record] = []
        self._spans_at = self._metrics_at = 0.0
        self._jobs: queue.SimpleQueue[Callable[[Export], None] | None] = queue.SimpleQueue()
        self._busy = False
        self._well = True
        self._export: Export | None = None
        self._thread: threading.Thread | None = None

    def take(self, records: Sequence[Record], now: float) -> None:
        """Keep the requests whose traces are recorded."""
        waiting = self._waiting
        for record in records:
            if record.trace.endswith("1"):
                if len(waiting) < SPANS_MAX:
                    waiting.append(record)
                else:
                    self.dropped += 1

    def tick(self, now: float) -> None:
        """Have the thread send what is due at `now` (Unix seconds), unless it is still busy."""
        if self._busy:
            return
        if not self._metrics_at:
            self._metrics_at = now + self._interval_s
        if self._waiting and not 0 <= now - self._spans_at < EXPORT_S:
            self._spans_at = now
            records, self._waiting = self._waiting, []
            self._hand_over(lambda export: self._send(records, export.spans(records)))
        elif now >= self._metrics_at or now < self._metrics_at - self._interval_s:
            self._metrics_at = now + self._interval_s
            snapshots = self._snapshots()
            self._hand_over(lambda export: self._send((), export.metrics(snapshots, now)))

    async def close(self) -> None:
        """Send what is left, for at most CLOSE_S seconds."""
        until = time.monotonic() + CLOSE_S
        while (self._busy or self._waiting) and time.monotonic() < until:
            self._spans_at = 0.0
            self.tick(time.time())
            await asyncio.sleep(0.01)
        self.dropped += len(self._waiting)
        self._waiting = []
        self._jobs.put(None)
        if self._export is not None:
            self._export.close()

    def gauges(self) -> Iterator[Gauge]:
        """For /metrics."""
        for outcome, count in (("exported", self.exported), ("failed", self.failed), ("dropped", self.dropped)):
            yield Gauge("dandolo_otel_requests_total", count, (("outcome", outcome),))

    # -- the thread ------------------------------------------------------------------------------------

    def _hand_over(self, job: Callable[[Export], None]) -> None:
        self._busy = True
        self._jobs.put(job)
        if self._thread is None:
            # A daemon: a collector that hangs must not keep the process from ending.
            self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._export is None:
                    self._export = self._begin()
                job(self._export)
            except Exception:
                _log.error("traces and metrics could not be exported", exc_info=True)
            finally:
                self._busy = False

    def _send(self, records: Sequence[Record], taken: bool) -> None:
        if taken:
            self.exported += len(records)
        else:
            self.failed += len(records)
        if taken != self._well:
            # One line a change, not one an export.
            self._well = taken
            if taken:
                _log.info("the OpenTelemetry collector takes what it is sent again")
            else:
                _log.warning("the OpenTelemetry collector does not take what it is sent; it is asked again")
