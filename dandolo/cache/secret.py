"""The secret under which keys are made: the operator's, or one made once and kept in the state folder.

Whoever knows it could tell whether a guessed prompt was asked, so the file is the owner's alone. Without a tier that
outlives the process a new one at every start is better still.
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path
from typing import Final

from dandolo.cache.key import SECRET_BYTES_MIN

FILE: Final = "cache.secret"
BYTES: Final = 32

_log = logging.getLogger("dandolo")


def made_once(state_dir: Path) -> bytes:
    """The secret in the state folder, made when there is none. A new one that is not kept where that cannot be."""
    path = state_dir / FILE
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for _ in range(2):
            try:
                kept = bytes.fromhex(path.read_text("ascii").strip())
            except FileNotFoundError:
                _make(path)
                continue
            if len(kept) >= SECRET_BYTES_MIN:
                return kept
            raise ValueError(f"it has {len(kept)} bytes where {SECRET_BYTES_MIN} are the least")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        _log.error("%s cannot be used (%s): what is in the cache's tiers is lost at the next start", path, reason)
    return secrets.token_bytes(BYTES)


def _make(path: Path) -> None:
    """Write a new one under another name and give it its own only if nobody was first."""
    draft = path.with_name(f"{FILE}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
    finally:
        draft.unlink()
