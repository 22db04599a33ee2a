"""What was changed on the admin listener, when, by whom and with what outcome. Never a body, never a secret.

Whoever reads what clients said (`control.texts`) is written down like one who changes something.

One line of JSON a call, appended to `audit.jsonl` in the state folder (mode 0600) by a thread of its own; a full file
becomes `audit.1.jsonl`, and the one before that is gone. The last entries are kept in memory too, and read back at
the start, so that reading never waits for a disk. Calls without a key are not written, and of those that a key must
not make one a minute, with the number of the others: nobody can push what happened out of the file.
A disk that is full or gone stops no call: entries that could not be written are counted, logged, and still shown.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec

from dandolo.clock import timestamp
from dandolo.control.logwriter import LogWriter
from dandolo.control.route import Answer, Asked, Route, answer
from dandolo.errors import RequestError
from dandolo.values import fit

FILE: Final = "audit.jsonl"
OLDER: Final = "audit.1.jsonl"
BYTES_MAX: Final = 4 * 1024 * 1024
"""Of one file; there are two."""
ENTRIES_MAX: Final = 1000
"""In memory, and what can be asked for."""
REFUSED_EVERY_S: Final = 60.0
REFUSED_KEYS_MAX: Final = 256
TAIL_BYTES: Final = 512 * 1024
"""Of each file is read back so much."""
FORM: Final = 1

_log = logging.getLogger("dandolo")
_encode = msgspec.json.Encoder().encode


class AuditLog:
    """The audit log of one control process.

    `folder` is made, and the file opened, for the first entry; None, or one that cannot be written, keeps entries in
    memory only. `wall` gives Unix seconds. `close` writes what is held.
    """

    def __init__(self, folder: Path | None, wall: Callable[[], float], *, bytes_max: int = BYTES_MAX) -> None:
        self._folder = folder
        self._wall = wall
        self._bytes_max = bytes_max
        self._entries: deque[dict[str, Any]] = deque(maxlen=ENTRIES_MAX)
        self._descriptor = -1
        self._size = 0
        self._writer: LogWriter | None = None
        self._was_read = self._was_opened = False
        self._refused: dict[str, tuple[float, int]] = {}
        """Of each key when a refused call of it was written last, and how many were not since."""

    @property
    def lost(self) -> int:
        """Entries that could not be written."""
        return self._writer.dropped if self._writer is not None else 0

    def note(self, asked: Asked, route: Route, outcome: int, reason: str) -> None:
        """A call that changes something has ended (`control.admin.Audit`)."""
        now = self._wall()
        unwritten = 0
        if outcome in (401, 403):
            since, unwritten = self._refused.get(asked.who, (0.0, 0))
            if 0 <= now - since < REFUSED_EVERY_S:
                self._refused[asked.who] = since, unwritten + 1
                return
            if len(self._refused) >= REFUSED_KEYS_MAX:
                self._refused.clear()
            self._refused[asked.who] = now, 0
        self._read()
        if not self._was_opened:
            self._open()
        entry: dict[str, Any] = {
            "form": FORM,
            "time": timestamp(now),
            "who": fit(asked.who),
            "method": asked.method,
            "path": fit(asked.path.decode("latin-1")),
            "status": outcome,
        }
        if reason:
            entry["code"] = fit(reason)
        if unwritten:
            entry["refused_before"] = unwritten
        if facts := _facts(asked.body, route.facts):
            entry["facts"] = facts
        self._entries.append(entry)
        if self._writer is not None:
            line = _encode(entry) + b"\n"
            if self._size + len(line) > self._bytes_max:
                self._turn_over()
            self._size += len(line)
            self._writer.write(line, urgent=True)

    def close(self) -> None:
        """Write what is held and let go of the file."""
        if self._writer is not None:
            self._writer.close()
            os.close(self._descriptor)
            self._writer = None

    def routes(self) -> list[Route]:
        """`GET /admin/audit`."""
        asked_for = {"limit": f"how many, the latest first; at most {ENTRIES_MAX}, 100 if left out"}
        return [Route("GET", b"/admin/audit", self._told, "who changed what, and when", parameters=asked_for)]

    def _told(self, asked: Asked) -> Answer:
        try:
            given = parse_qs(asked.query.decode("latin-1"), max_num_fields=16).get("limit", ["100"])[-1]
        except ValueError:
            raise RequestError("the query cannot be read: expected limit=N or nothing") from None
        if not (given.isascii() and given.isdecimal()) or not 1 <= int(given[:9]) <= ENTRIES_MAX:
            raise RequestError(f"limit: expected a whole number, 1 to {ENTRIES_MAX}", param="limit")
        self._read()
        latest = list(reversed(self._entries))[: int(given)]
        return answer({"entries": latest, "kept": self._kept, "lost": self.lost})

    # -- the file --------------------------------------------------------------------------------------

    @property
    def _kept(self) -> str:
        return "memory" if self._folder is None or (self._was_opened and self._writer is None) else "file"

    def _open(self) -> None:
        self._was_opened = True
        if self._folder is None:
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = _append(self._folder / FILE)
            self._size = os.fstat(self._descriptor).st_size
        except OSError as error:
            _log.error("the audit log is kept in memory only: %s", error.strerror or type(error).__name__)
            return
        self._writer = LogWriter(self._descriptor, bytes_max=1024 * 1024)

    def _read(self) -> None:
        if self._was_read or self._folder is None:
            return
        self._was_read = True
        for name in (OLDER, FILE):
            try:
                lines = _tail(self._folder / name)
            except OSError:
                continue
            for line in lines:
                try:
                    self._entries.append(msgspec.json.decode(line, type=dict[str, Any]))
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                    continue  # torn by a crash

    def _turn_over(self) -> None:
        """The file is full: it becomes the older one. The writer goes on with the same descriptor, which is the new
        file's from here on; lines that it still holds go there too."""
        assert self._folder is not None
        try:
            os.replace(self._folder / FILE, self._folder / OLDER)
            fresh = _append(self._folder / FILE)
            os.dup2(fresh, self._descriptor, inheritable=False)
            os.close(fresh)
            self._size = 0
        except OSError as error:
            _log.error("the audit log cannot be turned over: %s", error.strerror or type(error).__name__)
            self._size = 0


def _append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _tail(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        begin = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
        file.seek(begin)
        lines = file.read(TAIL_BYTES).splitlines()
    # The first of a part is a part.
    return lines[1:] if begin else lines


def _facts(body: bytes, names: tuple[str, ...]) -> dict[str, Any]:
    """What a route allows to be repeated of a body: short texts, numbers and truths."""
    if not names or not body:
        return {}
    try:
        members = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    return {
        name: fit(value) if isinstance(value, str) else value
        for name in names
        if isinstance(value := members.get(name), (str, int, float, bool))
    }
