"""Sums over the last so many seconds, in buckets: what is older leaves a bucket at a time.

Pure and bounded: a window of `buckets` rows of `width` numbers, whatever comes. `now` is any clock that does not run
backwards; where it jumps ahead, what lies behind the window is gone.
"""

from __future__ import annotations

from collections.abc import Sequence


class Rolling:
    """A vector of `width` counts over the last `span_s` seconds, to the precision of a bucket.

    `sums` are the counts of the window as of the last `advance` or `add`. They cover between `span_s` less one
    bucket and `span_s` seconds.
    """

    __slots__ = ("_bucket_s", "_last", "_rows", "sums")

    def __init__(self, span_s: float, buckets: int, width: int) -> None:
        assert span_s > 0
        assert buckets > 0
        assert width > 0
        self._bucket_s = span_s / buckets
        self._rows = [[0] * width for _ in range(buckets)]
        self._last: int | None = None
        self.sums = [0] * width

    def advance(self, now: float) -> None:
        """Let go of what is too old by `now`."""
        at = int(now / self._bucket_s)
        if self._last is None:
            self._last = at
        # More steps than there are rows would only empty them again.
        for index in range(max(self._last + 1, at - len(self._rows) + 1), at + 1):
            row = self._rows[index % len(self._rows)]
            for place, count in enumerate(row):
                if count:
                    self.sums[place] -= count
                    row[place] = 0
        self._last = max(self._last, at)

    def add(self, counts: Sequence[int], now: float) -> None:
        """Count `counts` (as many as the width) in at `now`."""
        self.advance(now)
        assert self._last is not None
        row = self._rows[self._last % len(self._rows)]
        for place, count in enumerate(counts):
            if count:
                row[place] += count
                self.sums[place] += count
