"""What operators see of all workers: the snapshot, kept by asking them, and what was changed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dandolo.cli.accounting import Accounting
from dandolo.cli.watching import Watching
from dandolo.control import shown
from dandolo.control.audit import AuditLog
from dandolo.control.backup_routes import Backups
from dandolo.control.keyring import Keyring
from dandolo.control.live import Live
from dandolo.control.route import Route
from dandolo.control.snapshot import Snapshots
from dandolo.control.texts import Texts
from dandolo.control.together import together
from dandolo.control.workers import Workers
from dandolo.net.tasks import Tasks
from dandolo.record import Record

ANSWER_S = 0.5
"""How long workers may take to tell how they are: a second is over without one of them, too."""

_log = logging.getLogger("dandolo")


class View:
    """A sink of records (`control.sinks`). The owner calls `event` for what happens, and `close` at the end.

    `snapshots.sources` takes what other parts of the control process tell; `audit` is for the admin listener,
    `caught_up` for backups (`control.backup_routes`).
    """

    def __init__(
        self,
        state_dir: Path,
        workers: Workers,
        tasks: Tasks,
        caught_up: Callable[[float], bool] = lambda within_s: True,
    ) -> None:
        self.snapshots = Snapshots(time.time())
        self.audit = AuditLog(state_dir, time.time)
        self._live = Live(self.snapshots)
        self._backups = Backups(state_dir, caught_up)
        self._workers = workers
        self._tasks = tasks
        self._asking = False

    def take(self, records: Sequence[Record], now: float) -> None:
        """Count finished requests."""
        self.snapshots.take(records, now)

    def tick(self, now: float) -> None:
        """A second is over."""
        if not self._live.wants:
            self._live.tick(now)
        elif not self._asking:
            # Should they take longer than a second, the next snapshot is of two.
            self._asking = True
            self._tasks.spawn(self._ask(), "view")

    async def _ask(self) -> None:
        try:
            replies = await self._workers.ask_all("seen", self.snapshots.asked_most(), ANSWER_S)
            self.snapshots.adopt(together([reply.value for reply in replies if reply.well]))
        except Exception:
            _log.exception("what workers tell cannot be shown")
            self.snapshots.adopt({})
        finally:
            self._asking = False
        self._live.tick(time.time())

    def event(self, kind: str, text: str) -> None:
        """Something happened."""
        self.snapshots.event(kind, text, time.time())

    def routes(self) -> list[Route]:
        """What is offered."""
        return [*self._live.routes(), *self.audit.routes(), *self._backups.routes()]

    def close(self) -> None:
        """Write what is held."""
        self.audit.close()


def sources(
    snapshots: Snapshots, keyring: Keyring, accounting: Accounting, watching: Watching, texts: Texts
) -> dict[str, Callable[[], Any]]:
    """What the control process itself tells for the snapshot. Where there are no keys, workers tell of open access."""
    return {
        "keys": lambda: shown.keys(keyring.shown(snapshots.asked_keys())) or None,
        "alerts": lambda: shown.alerts(watching.standings()),
        "slo": lambda: shown.objectives(accounting.objectives.state(time.time())),
        "ledger": lambda: None if accounting.ledger is None else asdict(accounting.ledger.health()),
        "prompt_log": texts.state,
    }
