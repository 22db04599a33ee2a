"""Limits shared with other hosts: the exchange of `control.sharing`, over a connection to Redis of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from pathlib import Path
from typing import Any, Final

from dandolo.board import Board
from dandolo.cache.redis.tier import RedisTier
from dandolo.config import Config
from dandolo.config.redisurl import parse_redis_url
from dandolo.control.sharing import HASH, Sharing
from dandolo.net.tasks import Tasks

PREFIX: Final = b"dandolo-limits:"
"""Not the cache's: what is purged there is not what was spent."""
HOST_FILE: Final = "host_id"
CONNECT_S: Final = 0.05
CONNECT_TRIES: Final = 40
"""Before it is said that nobody answers."""

_log = logging.getLogger("dandolo")


class Hosts:
    """Whether this host exchanges with others, as the configuration in force says."""

    def __init__(self, board: Board, tasks: Tasks) -> None:
        self._board = board
        self._tasks = tasks
        self._task: asyncio.Task[Any] | None = None

    def adopt(self, config: Config) -> None:
        """Go on with a configuration: over other connections, or not at all."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if config.limits.shared:
            self._task = self._tasks.spawn(share_limits(config, self._board), "limits of all hosts")


async def share_limits(config: Config, board: Board) -> None:
    """Exchange until cancelled. A host without a state directory that can be written goes on alone, and says so."""
    try:
        host = host_id(config.server.state_dir)
        redis = config.cache.redis
        tier = RedisTier(parse_redis_url(redis.url.reveal()), ca=redis.ca, prefix=PREFIX)
    except (OSError, ValueError) as error:
        _log.error("limits are not shared with other hosts: %s", error)
        return

    async def ask(command: bytes, *arguments: bytes) -> Any:
        return await tier.call(HASH, command, *arguments)

    tier.start()
    try:
        for _ in range(CONNECT_TRIES):
            if any(node.up for node in tier.health()):
                break
            await asyncio.sleep(CONNECT_S)
        await Sharing(board, host, ask).run()
    finally:
        await tier.close()


def host_id(folder: Path) -> bytes:
    """What this host is called among others: made once and kept, since what it spent stands under it.

    Raises OSError.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / HOST_FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        pass
    else:
        with open(descriptor, "wb") as file:
            file.write(secrets.token_hex(8).encode())
    found = path.read_bytes()[:64].strip()
    if not found.isalnum():
        raise OSError(f"{path} holds no name of a host: remove it")
    return found
