"""Places on the board: who has one, who finds none, and when one is given back.

A key with limits needs a place before any worker hears of it, and there are `Board.keys_max`. Once more than half are
taken, the places of keys that are no more (revoked, or gone from the file) are given back: when the key has been gone
for as long as a request may last, nothing of it is under way, and nothing of it counts within the last minute. Until
then a key that finds no place is not let in at all, rather than without its limits, and is told of; all others hold.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import Final

import msgspec

from dandolo.board import Board, NoPlace, identity_of
from dandolo.policy import KeyTerms, Policy

GRACE_S: Final = 120.0
"""Beyond the longest request: for workers that were told late, and for what ages within a minute."""
_log = logging.getLogger("dandolo")


class Places:
    """The places of one board (the control process). `lasts_s` is how long a request may take at most."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.lasts_s = 0.0
        self.without: frozenset[str] = frozenset()
        """Names of keys of the database that found no place."""
        self._gone_at: dict[int, float] = {}
        """Since when (monotonic) a key with a place has been gone, by its identity."""

    @property
    def crowded(self) -> bool:
        """Whether places are worth giving back."""
        return self._board.claimed * 2 > self._board.keys_max

    def claim(self, keys: Iterable[KeyTerms]) -> None:
        """Give every key with limits its place. Raises NoPlace."""
        for one in keys:
            if one.limited:
                self._board.claim(one.name)

    def room_for(self, one: KeyTerms) -> bool:
        """Whether a key has a place or can be given one now, or needs none."""
        return not one.limited or self._board.find(one.name) is not None or self._board.room

    def fit(self, policy: Policy) -> Policy:
        """The same without the keys that find no place; the very same where all do."""
        without = []
        for one in policy.keys:
            try:
                self.claim((one,))
            except NoPlace:
                without.append(one.name)
        before, self.without = self.without, frozenset(without)
        if self.without - before:
            _log.error(
                "%d keys of the database are not let in: all %d places for keys with limits are taken; those of keys"
                " that are revoked are given back %.0f minutes later",
                len(without),
                self._board.keys_max,
                self._waits_s / 60,
            )
        if not without:
            return policy
        return msgspec.structs.replace(policy, keys=tuple(one for one in policy.keys if one.name not in self.without))

    def tend(self, held: Collection[str], now: float) -> int:
        """Give back what is free by now (monotonic); `held` names all keys with limits that hold. How many were."""
        board, kept = self._board, {identity_of(name) for name in held}
        named = {board.identity(place): place for place in range(board.claimed)}
        gone = {identity: place for identity, place in named.items() if identity and identity not in kept}
        self._gone_at = {identity: self._gone_at.get(identity, now) for identity in gone}
        ripe = [place for identity, place in gone.items() if now - self._gone_at[identity] >= self._waits_s]
        return sum(board.release(place, now) for place in ripe)

    @property
    def _waits_s(self) -> float:
        return self.lasts_s + GRACE_S
