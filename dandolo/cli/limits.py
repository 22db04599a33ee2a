"""Keys and their limits as the control process sees to them: the board, a row of it for each worker, and the policy.

A worker is given the board's descriptor, its row and the policy when it begins; a change of keys goes to all, to those
that stand by or are being started as soon as they listen. The row of a worker that has ended is taken over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dandolo.board import KEYS_MAX, ROWS_MAX, Board, Calendar, NoPlace
from dandolo.config import Config, ConfigError, Problem
from dandolo.control.child import Child
from dandolo.control.keyring import Keyring
from dandolo.control.provisions import Provisions
from dandolo.control.workers import RETIRING_MAX, Workers
from dandolo.net.tasks import Tasks
from dandolo.policy import Policy, pack

if TYPE_CHECKING:
    from dandolo.cli.hosts import Hosts

BOARD, ROW, POLICY = "board", "board_row", "policy"
"""Under which names a worker finds them."""
TELL_S = 1.0
ROWS_PER_SLOT = RETIRING_MAX + 3
"""A worker, those before it that finish their requests, one that stands by, and one whose end has not been seen yet."""
SLOTS_MIN = 8
"""A reload may ask for more workers than there were at the start: as many again, two a core, and this many."""

_log = logging.getLogger("dandolo")


class Limits:
    """Made before the first worker is given its part. Raises ConfigError for more keys than there are places,
    InternalError for a database that cannot be used."""

    def __init__(self, config: Config, provisions: Provisions) -> None:
        self.file = config.keys
        cores = len(os.sched_getaffinity(0))
        self.slots_max = min(max(2 * provisions.workers, 2 * cores, SLOTS_MIN), ROWS_MAX // ROWS_PER_SLOT)
        """As many workers as there can be. Rows that nobody has opened are address space and nothing else."""
        workers = max(self.slots_max, provisions.workers) * ROWS_PER_SLOT
        self.fd = Board.create(KEYS_MAX, workers, shared=config.limits.shared, opened=0)
        """Stays open: workers that begin later are given it too."""
        self.board = Board.attach(self.fd, None)
        self.keyring = Keyring(config.server.state_dir, self.board, lambda: self.file, self._adopt)
        self._ledger = _ledger(config.server.state_dir)
        self._compare(config)
        self._lasting(config)
        try:
            self.keyring.load()
            self.keyring.restore()
        except NoPlace as error:
            raise ConfigError([Problem(config.source, 0, "", f"cannot be put to use: {error}")]) from error
        self._calendar = Calendar(time.time())
        self._rows: dict[tuple[int, int], int] = {}
        self._told: dict[tuple[int, int], Policy] = {}
        self._workers: Workers | None = None
        self._tasks: Tasks | None = None
        self._hosts: Hosts | None = None
        provisions.descriptors[BOARD] = lambda slot, generation: self.fd
        provisions.strings[ROW] = self._row
        provisions.blobs[POLICY] = self._policy

    def start(self, workers: Workers, tasks: Tasks, config: Config) -> None:
        """From here on changes of keys are told to workers, and limits shared with other hosts as `config` says."""
        self._workers, self._tasks = workers, tasks
        tasks.spawn(self.keyring.watch(), "keys")
        self.share(config)

    def share(self, config: Config) -> None:
        """Share limits with other hosts, or not any more, as a configuration says."""
        if self._hosts is None and config.limits.shared:
            # Not needed for the first answer, nor by most, so not loaded before it.
            from dandolo.cli.hosts import Hosts

            assert self._tasks is not None
            self._hosts = Hosts(self.board, self._tasks)
        if self._hosts is not None:
            self._hosts.adopt(config)

    def adopt(self, config: Config) -> None:
        """Limit by another configuration, which was checked, from now on."""
        self.file = config.keys
        self._compare(config)

    def _compare(self, config: Config) -> None:
        """Hold what keys have spent against the ledger, where one is kept."""
        self.keyring.spent = self._ledger if config.ledger.enabled else None

    def check(self, config: Config) -> None:
        """A configuration is about to be given to workers: its keys need places. Raises ConfigError."""
        self._lasting(config)
        try:
            self.keyring.claim(config.keys)
        except NoPlace as error:
            raise ConfigError([Problem(config.source, 0, "keys", str(error))]) from error

    def _lasting(self, config: Config) -> None:
        self.keyring.lasting(max(config.timeouts.total, config.timeouts.stream_total))

    def ended(self, child: Child) -> None:
        """A worker's process is gone."""
        self._told.pop((child.slot, child.generation), None)
        row = self._rows.pop((child.slot, child.generation), None)
        if row is not None:
            self.board.close_row(row, self._calendar.at(time.time()))

    def tick(self, now: float) -> None:
        """Once a second: tell workers that began under another policy."""
        if self._workers is not None:
            late = [one for one in self._workers.serving if self._told.get(_which(one)) is not self.keyring.policy]
            for child in late:
                self._tell(child, self.keyring.policy)

    async def close(self) -> None:
        """After the last worker has ended: keep what was spent."""
        await self.keyring.close()

    def _row(self, slot: int, generation: int) -> str:
        row = self._rows.get((slot, generation))
        if row is None:
            row = self._rows[slot, generation] = self.board.open_row()
        return str(row)

    def _policy(self, slot: int, generation: int) -> bytes:
        policy = self._told[slot, generation] = self.keyring.policy
        return pack(policy)

    def _adopt(self, policy: Policy) -> None:
        if self._workers is not None:
            for child in self._workers.children:
                self._tell(child, policy)

    def _tell(self, child: Child, policy: Policy) -> None:
        assert self._tasks is not None
        self._told[_which(child)] = policy
        self._tasks.spawn(self._ask(child, policy), "policy")

    async def _ask(self, child: Child, policy: Policy) -> None:
        if child.ready_at is None and not child.waits:
            # It has taken nothing yet, and begins with what held when it was started.
            await asyncio.wait((child.ready, child.stands_by), return_when=asyncio.FIRST_COMPLETED)
            if self._told.get(_which(child)) is not policy:
                return  # there is another one by now, or it has ended
        try:
            if not await child.ask(POLICY, pack(policy), TELL_S):
                _log.error("worker %d has not taken over the keys", child.slot)
        except Exception as error:
            # It is asked again at the next tick, as long as it serves.
            self._told.pop(_which(child), None)
            _log.warning("worker %d was not told of a change of keys: %s", child.slot, type(error).__name__)


def _ledger(folder: Path) -> Callable[[float], Mapping[str, int]]:
    """What the ledger says each key has spent since a time, in micro-USD; nothing where there is none to be read."""

    well = True

    def spent(since: float) -> Mapping[str, int]:
        nonlocal well
        # Needed only where a key has a budget.
        from dandolo.control import ledger_reading
        from dandolo.control.ledger import FILE

        if not (folder / FILE).exists():
            return {}
        try:
            found = ledger_reading.spent(folder / FILE, since)
        except ledger_reading.Unreadable as error:
            # It is asked every few seconds: said once.
            if well:
                _log.error("what keys have spent is not known from the ledger: %s", error)
            well = False
            return {}
        well = True
        return found

    return spent


def _which(child: Child) -> tuple[int, int]:
    return child.slot, child.generation
