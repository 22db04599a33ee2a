"""Where finished requests go: everything that wants to know of them, a batch at a time.

A sink is cheap, or hands what is not to a thread of its own. One that fails takes nothing from the others: its
error is logged, at most once in a while.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Protocol

from dandolo.control.log import Form, format_records
from dandolo.control.logwriter import LogWriter
from dandolo.control.metrics import Metrics
from dandolo.record import Record
from dandolo.tally import Batch

COMPLAIN_S = 60.0
_log = logging.getLogger("dandolo")


class Sink(Protocol):
    """Takes records. `now` is Unix time in seconds. One with a `tick(now)` has it called once a second."""

    def take(self, records: Sequence[Record], now: float) -> None:
        """Deal with finished requests."""


class AccessLog:
    """One line a request."""

    def __init__(self, writer: LogWriter, form: Form) -> None:
        self._writer = writer
        self._form: Form = form

    def adopt(self, form: Form) -> None:
        """Make lines of another form from now on."""
        self._form = form
        self._writer.adopt(form)

    def take(self, records: Sequence[Record], now: float) -> None:
        """Make their lines."""
        self._writer.write(format_records(list(records), self._form))


class Counted:
    """What Prometheus is told."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def take(self, records: Sequence[Record], now: float) -> None:
        """Count them."""
        self._metrics.take(records)


class Fanout:
    """Gives every batch to every sink, in their order."""

    def __init__(self, sinks: Iterable[Sink] = ()) -> None:
        self._sinks: list[Sink] = list(sinks)
        self._complain_at = 0.0
        self.failures = 0
        """Batches, or ticks, that a sink could not deal with."""

    def add(self, sink: Sink) -> None:
        """From now on `sink` takes records too, after the others."""
        self._sinks.append(sink)

    def remove(self, sink: Sink) -> None:
        """`sink` takes none any more."""
        self._sinks.remove(sink)

    def take(self, records: Sequence[Record], now: float) -> None:
        """Records of one worker, in the order of their ends."""
        if not records:
            return
        # Most sinks count by groups: they share them.
        records = Batch(records)
        for sink in self._sinks:
            try:
                sink.take(records, now)
            except Exception:
                self._failed(now)

    def tick(self, now: float) -> None:
        """Once a second."""
        for sink in self._sinks:
            tick = getattr(sink, "tick", None)
            if tick is not None:
                try:
                    tick(now)
                except Exception:
                    self._failed(now)

    def _failed(self, now: float) -> None:
        self.failures += 1
        if now >= self._complain_at:
            self._complain_at = now + COMPLAIN_S
            _log.exception("records could not be dealt with (%d times so far)", self.failures)
