"""A backup by the admin listener: into a folder of the state folder's own, never to a path that a caller names."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from dandolo.control.backup import back_up
from dandolo.control.route import Answer, Asked, Route, answer
from dandolo.errors import Refusal, RequestError

FOLDER: Final = "backups"
"""In the state folder."""
BACKUPS_MAX: Final = 8
DEADLINE_S: Final = 600.0
CATCH_UP_S: Final = 10.0
_log = logging.getLogger("dandolo")


class Backups:
    """The backups of one state folder, one at a time. `caught_up` takes what workers have written down so far into the
    ledger, in so many seconds; False when that took too long (it is called in a thread)."""

    def __init__(self, state_dir: Path, caught_up: Callable[[float], bool] = lambda within_s: True) -> None:
        self._state_dir = state_dir
        self._caught_up = caught_up
        self._running = False

    def routes(self) -> list[Route]:
        """`POST /admin/backup`."""
        about = f"copy the state to a new folder in {FOLDER}/ of the state folder, which keeps at most {BACKUPS_MAX}"
        return [Route("POST", b"/admin/backup", self._make, about, deadline_s=DEADLINE_S)]

    async def _make(self, asked: Asked) -> Answer:
        if self._running:
            raise Refusal(
                "a backup is being made: try again when it is done", code="backup_under_way", retry_after_s=5.0
            )
        self._running = True
        making = asyncio.get_running_loop().run_in_executor(None, self._copy)
        # A thread cannot be ended: whoever leaves, it goes on, and is the only one until it is done.
        making.add_done_callback(self._made)
        folder, files = await asyncio.shield(making)
        return answer({"folder": str(folder), "files": files}, 201)

    def _made(self, making: asyncio.Future[Any]) -> None:
        self._running = False
        if not making.cancelled():
            making.exception()

    def _copy(self) -> tuple[Path, list[dict[str, Any]]]:
        into = self._state_dir / FOLDER
        try:
            if not self._state_dir.is_dir():
                raise RequestError(
                    "nothing has been kept yet: the state folder is not there", status=409, code="no_state"
                )
            there = sum(one.is_dir() for one in into.iterdir()) if into.is_dir() else 0
            if there >= BACKUPS_MAX:
                raise RequestError(
                    f"observed {there} backups in {into}, expected fewer than {BACKUPS_MAX}: move or remove some",
                    status=409,
                    code="too_many_backups",
                )
            if not self._caught_up(CATCH_UP_S):
                _log.warning("a backup is made of a ledger that is not whole: journals were not read in time")
            return back_up(self._state_dir, into, time.time())
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise Refusal(f"nothing was copied: {why}", code="backup_failed", retry_after_s=5.0) from error
