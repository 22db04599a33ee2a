"""A worker's journal: opened when it begins, and again and again where that could not be done.

Until then keys with a budget are refused, since what they spend could not be written down; `dandolo_journal_up` and an
alert say so. Where the configuration wants no ledger there is no journal, and budgets hold by the board alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from dandolo.config import Config
from dandolo.control.exposition import Gauge
from dandolo.gateway.books import Books
from dandolo.gateway.gateway import Gateway

REOPEN_S = 2.0
_log = logging.getLogger("dandolo")


class Journaling:
    """Gives the gateway its books. `tend` is due every REOPEN_S."""

    def __init__(self, gateway: Gateway, config: Config, slot: int) -> None:
        self._gateway, self._config, self._slot = gateway, config, slot
        self._lost = 0
        gateway.books = Books.open(config, gateway.request_prefix, slot)

    def tend(self) -> None:
        """Open what could not be opened. Calls under way stay unwritten."""
        books = self._gateway.books
        if books is None or books.written:
            return
        again = Books.open(self._config, self._gateway.request_prefix, self._slot, quiet=True)
        if again is not None and again.written:
            self._lost += books.journal.dropped
            self._gateway.books = again
            _log.info("there is a journal now: %d calls and requests were not written down", self._lost)

    def gauges(self) -> Iterator[Gauge]:
        """Whether calls are written down, and how many were not because there was no journal."""
        books = self._gateway.books
        if books is not None:
            mine = (("worker", str(self._slot)),)
            yield Gauge("dandolo_journal_up", books.written, mine)
            lost = self._lost + (0 if books.written else books.journal.dropped)
            yield Gauge("dandolo_journal_unwritten_total", lost, mine)

    def close(self) -> None:
        """Let go of the journal, which stays until it has been read."""
        books, self._gateway.books = self._gateway.books, None
        if books is not None:
            books.close()
