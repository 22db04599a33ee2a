"""A Bloom filter over cache keys: "certainly not there" without asking the disk.

A cache key is a keyed digest, so its own bytes are as good as four independent hashes and nobody outside can
choose keys that collide. Bits are only ever set: reading needs no lock, setting does, because two threads
that set bits of one byte at once would lose one, and a lost bit is an entry never found again.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable

BITS_PER_KEY = 8
"""At this filling 2.4 % of absent keys pass, (1 − e^(−4/8))^4; with room for twice its keys, 0.24 %."""
KEYS_MIN = 1 << 16
BYTES_MAX = 16 * 1024 * 1024
"""Room for 16.8 million keys; with more, more absent keys pass (15 % at twice as many)."""

_positions = struct.Struct("<4I").unpack_from
"""The four positions of a key, which must be 16 bytes at least."""


class Bloom:
    """The keys added so far, and a few others.

    `keys` is how many there are now: room is made for twice as many, within BYTES_MAX. `added` counts additions
    (of the same key too); past `full_at` the filter passes too much and is better built anew.
    """

    __slots__ = ("_bits", "_lock", "_mask", "added", "full_at")

    def __init__(self, keys: int) -> None:
        wanted = max(KEYS_MIN, 2 * keys) * BITS_PER_KEY
        bits = min(1 << (wanted - 1).bit_length(), BYTES_MAX * 8)
        self._bits = bytearray(bits // 8)
        self._mask = bits - 1
        self._lock = threading.Lock()
        self.added = 0
        # Where memory allows no larger one, half as much again: or it would be built anew for ever.
        self.full_at = max(bits // BITS_PER_KEY, keys + keys // 2)

    def __len__(self) -> int:
        """Its size in bytes."""
        return len(self._bits)

    def __contains__(self, key: bytes) -> bool:
        """False: certainly never added."""
        bits, mask = self._bits, self._mask
        for position in _positions(key):
            position &= mask
            if not bits[position >> 3] >> (position & 7) & 1:
                return False
        return True

    def add(self, keys: Iterable[bytes]) -> None:
        """Add keys; from any thread."""
        bits, mask = self._bits, self._mask
        with self._lock:
            for key in keys:
                for position in _positions(key):
                    position &= mask
                    bits[position >> 3] |= 1 << (position & 7)
                self.added += 1
