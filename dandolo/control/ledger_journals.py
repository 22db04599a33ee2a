"""The journals of all workers as the ledger reads them: found, told good from bad, relieved while nothing can be kept.

Owns the folder: what is no journal is set aside in it under another name, what is read to its end is deleted. Knows
nothing of the ledger's file.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dandolo.control.ledger_batch import Source, hear
from dandolo.control.ledger_ring import INDEX_BITS, Intent, Ring, Spoiled
from dandolo.journal import NAME, SETTLED, SUFFIX, UNFINISHED, boot_id

STUCK_S = 2.0
"""How long a slot may be torn before what follows it is looked for."""
ASIDE_MAX = 4
"""Files set aside that are kept in a folder; older ones are deleted."""
OPEN_MAX = 256
UNFINISHED_S = 60.0

_log = logging.getLogger("dandolo")


@dataclass(slots=True)
class Open:
    """A journal that is read. `moved_at` (monotonic) is when something came last, `same_boot` whether it was begun
    since the system's start."""

    ring: Ring
    source: Source
    same_boot: bool
    moved_at: float
    ahead: int = 0
    """How far it was looked at while nothing could be written."""


class Journals:
    """Those in a folder. `drop` is told how many rows are lost."""

    def __init__(self, folder: Path, drop: Callable[[int], None]) -> None:
        self.folder = folder
        self.open: dict[Path, Open] = {}
        self._drop = drop
        self._boot_id = boot_id()

    def close(self) -> None:
        """Let go of all."""
        for one in self.open.values():
            one.ring.close()

    def discover(self, now: float) -> list[Open]:
        """Journals that have come, to be read from where their headers say. Others are set aside."""
        try:
            there = sorted(self.folder.iterdir())
        except FileNotFoundError:
            return []
        new: list[Open] = []
        for path in there:
            if path.suffix == UNFINISHED and time.time() - path.lstat().st_mtime > UNFINISHED_S:
                # Of a worker that died while it made its journal.
                path.unlink(missing_ok=True)
            if path.suffix != SUFFIX or path in self.open or len(self.open) >= OPEN_MAX:
                continue
            try:
                ring = Ring(path)
            except Spoiled as error:
                self._set_aside(path, error)
                continue
            except OSError as error:
                if error.errno != errno.ENOENT:
                    self._set_aside(path, Spoiled("foreign", f"it cannot be opened: {error.strerror}"))
                continue
            same_boot = ring.boot_id == self._boot_id
            offset_s = time.time() - time.monotonic() if same_boot else ring.clock_offset_s
            one = self.open[path] = Open(ring, Source(ring.id, ring.prefix, offset_s), same_boot, now)
            one.source.cursor = ring.cursor()
            new.append(one)
        return new

    def there(self, journal: bytes) -> bool:
        """Whether the file of a journal is there."""
        return any(self.folder.glob(f"*-{journal.hex()}{SUFFIX}"))

    def delete(self, one: Open) -> None:
        """It has been read to its end. Raises OSError."""
        one.ring.path.unlink(missing_ok=True)
        one.ring.close()
        del self.open[one.ring.path]

    def spill(self) -> None:
        """Make room in journals of which half is unread while nothing can be written."""
        for one in self.open.values():
            ring, source = one.ring, one.source
            _, one.ahead = ring.read(max(one.ahead, source.cursor), ring.capacity)
            if one.ahead - source.cursor <= ring.capacity // 2:
                continue
            slots, cursor = ring.read(source.cursor, ring.capacity // 4)
            for slot in slots:
                if slot[0] == NAME:
                    hear(source, slot[1], slot[2])
            source.cursor = cursor
            self._drop(sum(slot[0] == SETTLED for slot in slots))
            ring.release(cursor)

    def open_calls(self, one: Open, *, ended: bool) -> dict[int, Intent]:
        """The calls of a journal that are not settled. `ended`: its writer is dead."""
        found = one.ring.open_calls()
        if ended and found:
            ring = one.ring
            settled = ring.settled_last(one.source.cursor) if one.same_boot else ring.settled()
            found = {
                number: intent
                for number, intent in found.items()
                if settled.get(number & (1 << INDEX_BITS) - 1, -1) < intent[0]
            }
        return found

    def count_dropped(self, one: Open) -> bool:
        """Whether further rows found no room in their journal."""
        dropped, before = one.ring.dropped(), one.source.dropped
        if dropped > before:
            self._drop(dropped - before)
            one.source.dropped = dropped
        return dropped > before

    def pass_over(self, one: Open) -> bool:
        """Go on behind what is torn in the middle; False when nothing follows."""
        cursor = one.ring.beyond(one.source.cursor)
        if cursor is None:
            return False
        _log.error("a journal is damaged: %d bytes of it are passed over", cursor - one.source.cursor)
        self._drop(1)
        one.source.cursor = cursor
        return True

    def free_stuck(self, now: float) -> None:
        """Pass over slots that have been torn for so long that nobody is writing them."""
        for one in self.open.values():
            if now - one.moved_at > STUCK_S and one.ring.torn(one.source.cursor):
                one.moved_at = now
                self.pass_over(one)

    def _set_aside(self, path: Path, error: Spoiled) -> None:
        try:
            name = set_aside(path, error.flaw)
        except OSError as failed:
            _log.error("a journal cannot be read (%s) nor set aside: %s", error, failed.strerror)
            return
        self._drop(1)
        _log.error("a journal was set aside as %s: %s", name, error)


def set_aside(path: Path, flaw: str) -> str:
    """Rename a file and what belongs to it; of those set aside before only the newest are kept. Its new name."""
    stem = path.name.partition("-")[0] if path.suffix == SUFFIX else path.name
    old = sorted(path.parent.glob("*.aside-*"), key=lambda one: one.lstat().st_mtime)
    for one in old[: max(0, len(old) - ASIDE_MAX + 1)]:
        try:
            one.unlink(missing_ok=True)
        except OSError:
            # A folder, say: it is in nobody's way.
            pass
    name = f"{stem}.aside-{flaw}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}Z-{os.urandom(2).hex()}"
    for end in ("-wal", ""):
        try:
            os.rename(f"{path}{end}", path.with_name(name + end))
        except FileNotFoundError:
            pass
    Path(f"{path}-shm").unlink(missing_ok=True)
    return name
