"""What stands in a journal's place where none can be opened: it has no room for anything, and counts what is lost.

So keys with a budget are refused, as they are when a journal is full, and everybody else is served.
"""

from __future__ import annotations

from dandolo.journal import Name


class Unwritten:
    """`reason` says why there is no journal. Otherwise as `journal.Journal` when it is full."""

    __slots__ = ("dropped", "reason")

    def __init__(self, reason: str) -> None:
        self.reason = reason
        self.dropped = 0
        """Rows that were not written."""

    def name(self, name: Name) -> int:
        """No number."""
        return -1

    def intent(self, request: int, name: int, reserved_micro_usd: int, now: float) -> int:
        """No room."""
        return -1

    def settle(self, *row: object) -> bool:
        """No room: counted."""
        self.dropped += 1
        return False

    def repeated(self, *row: object) -> bool:
        """No room. Without a number for their name nobody comes here."""
        return False

    def drop(self, count: int = 1) -> None:
        """Count rows that are lost."""
        self.dropped += count

    def close(self) -> None:
        """Nothing to let go of."""
