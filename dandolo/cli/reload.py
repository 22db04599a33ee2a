"""A reload: the configuration is read once, all workers prepare what follows from it, then all change, or none.

What living workers cannot change to is prepared by new ones, which take their places once all of them can begin
(`control.renewal`). Until then nothing has changed, and whatever speaks against it leaves everything as it was.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import TypeVar

import msgspec

from dandolo.cli.change import FIXED, bounded, changes, files, kept, shown, wants_workers
from dandolo.cli.configured import Choice
from dandolo.cli.descriptors import within_descriptors
from dandolo.cli.limits import Limits
from dandolo.config import Config, ConfigError, Problem
from dandolo.control.provisions import Provisions
from dandolo.control.renewal import Renewal
from dandolo.control.sockets import Held, close_all, resized
from dandolo.control.workers import Workers
from dandolo.provision import Document

PREPARE_S = 30.0
FORGET_S = 1.0
A = TypeVar("A")
T = TypeVar("T")
_log = logging.getLogger("dandolo")


class Reload:
    """What holds, and how it is replaced. `on_changed` hears of every configuration that was taken, and of the keys
    that differ in it."""

    def __init__(
        self,
        config: Config,
        choice: Choice,
        provisions: Provisions,
        on_changed: Callable[[Config, list[str]], None],
        limits: Limits,
    ) -> None:
        self._limits = limits
        self.config = config
        self.well = True
        """Whether the last one was taken."""
        self.changed: list[str] = []
        """The keys that the last one changed."""
        self._choice = choice
        self._provisions = provisions
        self._on_changed = on_changed
        self._files = files(config)
        """Those that the configuration in force names: a reload tells by them what was renewed."""

    async def once(self, workers: Workers) -> list[str]:
        """Read and change; what speaks against it (then everything stays as it was)."""
        self.well = False
        renewal: tuple[Provisions, Renewal] | None = None
        try:
            config, document = await _in_thread(self._choice.find, os.environ)
            config, lowered = within_descriptors(config)
            config, document, waiting = kept(self.config, config, document)
            most = max(self._limits.slots_max, self._provisions.workers)
            config, document, wanted = bounded(config, document, most)
            if self.config.keys and not config.keys and not self._limits.keyring.policy.closed:
                reason = "the last key is gone: to let everybody in, restart"
                raise ConfigError([Problem(config.source, 0, "keys", reason)])
            self._limits.check(config)
            now = await _in_thread(files, config)
            changed = changes(self.config, config)
            changed += [key for key, digest in now.items() if self._files[key] != digest]
            changed = list(dict.fromkeys(changed))
            await self._prepare(workers, document)
            if wants_workers(changed):
                renewal = await self._renewal(workers, config, document)
        except ConfigError as error:
            for problem in error.problems:
                _log.error("%s", problem)
            _log.error("reload refused: the configuration that was there goes on")
            return list(map(str, error.problems))
        for warning in config.warnings:
            _log.warning("%s", warning)
        if lowered and "limits.connections_max" in changed:
            _log.warning("%s", lowered)
        for key in waiting:
            _log.warning("%s changes at the next start, not by a reload: %s", key, FIXED[key])
        if wanted:
            _log.warning(
                "server.workers is %d: there is room for %d workers until the next start", wanted, document.workers
            )
        # From here on every worker that starts begins with it.
        self.config, self._files = config, now
        form = self._choice.form(config, 2)
        self._provisions.log_format = form
        if renewal is not None:
            self._provisions.adopt(renewal[0])
        self._provisions.document = document
        workers.kill_late()
        for reply in await workers.ask_all("swap", form, PREPARE_S):
            if renewal is None and (not reply.well or not reply.value):
                # It missed the first half, so it is replaced by one that begins with all of it.
                workers.kill_one(reply.slot)
        self.changed = changed
        self._on_changed(config, changed)
        self.well = True
        if renewal is not None:
            server = config.server
            failed = await renewal[1].commit(server.drain_delay, server.drain_timeout)
            for slot in failed:
                self.well = False
                _log.error("worker %d goes on without what only new workers change: SIGUSR2 tries again", slot)
        replaced = "; workers are replaced" if renewal is not None else ""
        _log.info("reloaded %s: %s%s", config.source, shown(changed), replaced)
        return []

    async def _prepare(self, workers: Workers, document: Document) -> None:
        """Have every worker make what it needs. Raises ConfigError when one cannot; then all forget it."""
        problems: list[Problem] = []
        for reply in await workers.ask_all("prepare", msgspec.to_builtins(document), PREPARE_S):
            if reply.well:
                problems = problems or [Problem(*one) for one in reply.value]
            else:
                problems = problems or [Problem(document.source, 0, "", f"worker {reply.slot}: {reply.value}")]
        if problems:
            await workers.ask_all("forget", None, FORGET_S)
            raise ConfigError(problems)

    async def _renewal(self, workers: Workers, config: Config, document: Document) -> tuple[Provisions, Renewal]:
        """Workers that stand by with it, and what they were given. Raises ConfigError when one cannot; then none is
        left, and what the others prepared is forgotten."""
        here, held = self._provisions, list[Held]()
        board = self._limits.board
        was = board.shared
        try:
            if config.limits.shared != was:
                # They look at it when they begin; those that serve do not.
                board.share(config.limits.shared)
            held = resized(here.held, document.workers)
            following = here.following(document, held)
            following.log_format = self._choice.form(config, 2)
            renewal = Renewal(workers, document.workers, following.standby)
            try:
                await renewal.prepare()
            except BaseException:
                ours = {one.sock for one in here.held}
                close_all(one for one in held if one.sock not in ours)
                raise
        except (ConfigError, RuntimeError, OSError) as error:
            await workers.ask_all("forget", None, FORGET_S)
            if board.shared != was:
                board.share(was)
            if isinstance(error, ConfigError):
                raise
            reason = f"no new worker could begin with it: {error}"
            raise ConfigError([Problem(document.source, 0, "", reason)]) from error
        return following, renewal


async def _in_thread(call: Callable[[A], T], argument: A) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, call, argument)
