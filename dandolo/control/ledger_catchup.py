"""Having what workers have written down so far taken into the ledger, from outside of the gateway: before a backup.

Where a gateway runs its own ledger reads the journals, a few times a second, and it is enough to wait. Where none does,
journals that killed ones left are read here, by the same ledger under the same lock.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from dandolo.control.ledger import FOLDER, Ledger
from dandolo.control.ledger_ring import Ring, Spoiled
from dandolo.journal import SUFFIX

LOOK_S = 0.05


def catch_up(state_dir: Path, within_s: float, *, retention_s: float, requests_max: int) -> int:
    """Wait until what is in the journals now is in the ledger; how many bytes of it are not, after `within_s`.

    `retention_s` and `requests_max` are the ledger's. Blocks. Raises OSError for a folder that cannot be looked at.
    """
    owner = state_dir.stat().st_uid
    until = time.monotonic() + within_s
    left = _ends(state_dir, owner)
    if left and owner == os.geteuid():
        # Another user would leave files behind that a gateway cannot open.
        ledger = Ledger(state_dir, retention_s=retention_s, requests_max=requests_max)
        ledger.start()
        ledger.flush(within_s)
        ledger.close()
    while True:
        left = {path: end for path, end in left.items() if _unread(path, end, owner)}
        if not left or time.monotonic() > until:
            return sum(_unread(path, end, owner) for path, end in left.items())
        time.sleep(LOOK_S)


def _ends(state_dir: Path, owner: int) -> dict[Path, int]:
    """Up to where each journal is written."""
    found = {}
    folder = state_dir / FOLDER
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        ring = _open(path, owner) if path.suffix == SUFFIX else None
        if ring is not None:
            try:
                found[path] = ring.read(ring.cursor(), ring.capacity)[1]
            finally:
                ring.close()
    return found


def _unread(path: Path, end: int, owner: int) -> int:
    """How many bytes before `end` have not been read; a journal that was read to its end is gone."""
    ring = _open(path, owner)
    if ring is None:
        return 0
    try:
        return max(0, end - ring.cursor())
    finally:
        ring.close()


def _open(path: Path, owner: int) -> Ring | None:
    try:
        return Ring(path, owner=owner)
    except (Spoiled, OSError):
        return None
