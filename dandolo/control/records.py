"""Where finished requests go: counted and written in batches, a few times a second.

What is done for a record (count it, make its line, hand it to the writer) is cheap in a loop and dear one
at a time, between requests, in caches that have just been used for something else. So records wait for the
next beat, at most `BATCH_MAX` of them, and are then dealt with together. Nothing is lost by it but what a
killed process would have lost in its write buffer anyway.
"""

from __future__ import annotations

from dandolo.control.log import Form, format_records
from dandolo.control.logwriter import LogWriter
from dandolo.control.metrics import Metrics
from dandolo.record import Record

BATCH_MAX = 256


class Records:
    """The records of one process on their way to its log and its metrics."""

    __slots__ = ("_form", "_metrics", "_pending", "_writer")

    def __init__(self, metrics: Metrics, writer: LogWriter, form: Form) -> None:
        self._metrics = metrics
        self._writer = writer
        self._form: Form = form
        self._pending: list[Record] = []

    def take(self, record: Record) -> None:
        """Take a record; a full batch is dealt with at once."""
        pending = self._pending
        pending.append(record)
        if len(pending) >= BATCH_MAX:
            self.settle()

    def settle(self) -> None:
        """Deal with what is waiting: every beat, before metrics are read, and at the end."""
        pending = self._pending
        if not pending:
            return
        self._pending = []
        count = self._metrics.take
        for record in pending:
            count(record)
        self._writer.write(format_records(pending, self._form))
