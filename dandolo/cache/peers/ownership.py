"""Who is asked about a key: rendezvous hashing (Thaler and Ravishankar, 1998).

Everybody computes a weight for each live peer and the key; the heaviest owns it. A peer that goes moves only its own
keys, one that comes takes its share from all, and peers that see the same others agree without a word.
"""

from __future__ import annotations

from collections.abc import Iterable

import xxhash


def seed_of(name: str) -> int:
    """What stands for a peer's name when weights are computed."""
    return int(xxhash.xxh3_64_intdigest(name.encode()))


def owner_of(key: bytes, names: Iterable[tuple[str, int]]) -> str:
    """The name of the owner of `key` among `names`, given with their seeds; "" of none."""
    return max(names, key=lambda one: (xxhash.xxh3_64_intdigest(key, one[1]), one[0]), default=("", 0))[0]
