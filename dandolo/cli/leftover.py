"""Files that workers leave behind whose slots are no more: each slot's tier on disk has one of its own."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
from pathlib import Path

from dandolo.config import Config
from dandolo.control.workers import Workers

_FILE = re.compile(r"cache-([1-9][0-9]{0,3})\.db")
"""See `gateway.tiers.file_of`, which is not worth loading for it."""
_log = logging.getLogger("dandolo")


async def clear(config: Config, workers: Workers) -> None:
    """Remove what belongs to slots beyond `config.server.workers`, once their processes have ended."""
    if "sqlite" not in config.cache.levels:
        return
    count = config.server.workers
    assert isinstance(count, int)
    while last := [child.over for number, slot in workers.idle.items() if number >= count for child in slot.all()]:
        await asyncio.wait(last)
    if len(workers.slots) <= count:
        removed = await asyncio.get_running_loop().run_in_executor(None, remove, config.server.state_dir, count)
        if removed:
            _log.info("removed %s: there are %d workers", ", ".join(removed), count)


def remove(folder: Path, count: int) -> list[str]:
    """Remove the files of slots from `count` on that no process has open; their names. Blocks."""
    removed = list[str]()
    for path in sorted(folder.glob("cache-*.db")):
        found = _FILE.fullmatch(path.name)
        if found is None or int(found[1]) < count:
            continue
        try:
            lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for end in ("-wal", "-shm", "-journal", "", ".lock"):
                    Path(f"{path}{end}").unlink(missing_ok=True)
            finally:
                os.close(lock)
        except BlockingIOError:
            continue  # somebody has it: whoever starts or reloads next looks again
        except OSError as error:
            _log.warning("%s of a worker that is no more cannot be removed: %s", path.name, error.strerror)
        else:
            removed.append(path.name)
    return removed
