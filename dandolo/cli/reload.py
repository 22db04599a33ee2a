"""A reload: the configuration is read once, all workers prepare what follows from it, then all change, or none."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

import msgspec

from dandolo.cli.configured import Choice
from dandolo.cli.limits import Limits
from dandolo.config import Config, ConfigError, Problem
from dandolo.control.provisions import Provisions
from dandolo.control.workers import Workers
from dandolo.provision import Document

PREPARE_S = 30.0
FORGET_S = 1.0
_log = logging.getLogger("dandolo")


class Reload:
    """What holds, and how it is replaced. `on_changed` hears of every configuration that was taken."""

    def __init__(
        self,
        config: Config,
        choice: Choice,
        provisions: Provisions,
        on_changed: Callable[[Config], None],
        limits: Limits,
    ) -> None:
        self._limits = limits
        self.config = config
        self._texts_kept = config.prompt_log.enabled
        """Whether workers were made to keep them. (Those that were replaced since are not known here.)"""
        self.well = True
        """Whether the last one was taken."""
        self._choice = choice
        self._provisions = provisions
        self._on_changed = on_changed

    async def once(self, workers: Workers) -> list[str]:
        """Read and change; what speaks against it (then everything stays as it was)."""
        self.well = False
        try:
            found = await asyncio.get_running_loop().run_in_executor(None, self._choice.find, os.environ)
            config, document = found
            if self.config.keys and not config.keys and not self._limits.keyring.policy.closed:
                reason = "the last key is gone: to let everybody in, restart"
                raise ConfigError([Problem(config.source, 0, "keys", reason)])
            self._limits.check(config)
            await self._prepare(workers, document)
        except ConfigError as error:
            for problem in error.problems:
                _log.error("%s", problem)
            _log.error("reload refused: the configuration that was there goes on")
            return list(map(str, error.problems))
        for warning in config.warnings:
            _log.warning("%s", warning)
        was, server = self.config.server, config.server
        if (server.listen, server.admin) != (was.listen, was.admin):
            _log.warning("listeners change at the next start, not by a reload")
        if config.limits.shared != self._limits.board.shared:
            _log.warning("limits.shared changes at the next start, not by a reload")
        if config.prompt_log.enabled and not self._texts_kept:
            _log.warning("prompt_log.enabled begins when workers are replaced (SIGUSR2), not by a reload")
        if server.tls != was.tls:
            _log.warning("certificates change when workers are replaced (SIGUSR2), not by a reload")
        if server.workers != was.workers:
            _log.warning("there are %s workers: their number changes at the next start, not by a reload", was.workers)
        # From here on every worker that starts begins with it.
        self.config, self._provisions.document = config, document
        workers.kill_late()
        for reply in await workers.ask_all("swap", None, PREPARE_S):
            if not reply.well or not reply.value:
                # It missed the first half, so it is replaced by one that begins with all of it.
                workers.kill_one(reply.slot)
        self.well = True
        self._on_changed(config)
        _log.info("reloaded %s: providers %s", config.source, ", ".join(one.name for one in config.providers))
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
