"""Candidates that may take a kind of call, in tiers: what does not change from one call to the next.

Built once per model name and need and kept; whoever is not in it is in `rejected` with the reason. Tiers are
asked one after another: the next only when nobody in the one before can be asked now. They come from the
configured role, or from the order a caller wishes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from dandolo.config.schema import Weights
from dandolo.route.candidate import Candidate
from dandolo.route.preference import NO_NEED, SORTED, Need, Preference

PER_MTOK = 1e6
LONG_TOKENS = 2000.0
"""The answer by whose length throughput is compared."""


class Pool:
    """Who may take a call. `weights` None: the balancer's own.

    `turns` puts candidates one after another whatever their rank (a caller's list of fallback models): those of
    turn 0 are asked before those of turn 1.
    """

    __slots__ = (
        "_need", "_turns", "context_min", "everybody", "fallbacks", "n_out", "rejected", "single", "strict", "tiers",
        "weights", "wish",
    )  # fmt: skip

    def __init__(
        self, candidates: Iterable[Candidate], need: Need = NO_NEED, turns: Mapping[Candidate, int] | None = None
    ) -> None:
        self._need = need
        self._turns = turns
        wish = need.preference
        fit: list[Candidate] = []
        self.rejected: list[tuple[Candidate, str]] = []
        for candidate in candidates:
            reason = _unfit(candidate, need)
            if reason is None:
                fit.append(candidate)
            else:
                self.rejected.append((candidate, reason))
        self.tiers = _tiers(fit, wish, turns or {})
        kept = {id(candidate) for tier in self.tiers for candidate in tier}
        self.rejected += [(candidate, "preference") for candidate in fit if id(candidate) not in kept]
        self.everybody = tuple(candidate for tier in self.tiers for candidate in tier)
        self.single = self.everybody[0] if len(self.everybody) == 1 else None
        self.fallbacks = wish.allow_fallbacks
        """Whether a second attempt may go to somebody else."""
        self.strict = wish.requires
        """Whether nobody is to be asked when all are found lacking."""
        self.wish = wish if wish.first_max_s is not None or wish.tokens_per_s_min is not None else None
        """Set where candidates are preferred by what is measured of them."""
        self.weights: Weights | None = SORTED[wish.sort] if wish.sort is not None else None
        self.n_out: float | None = {"latency": 0.0, "throughput": LONG_TOKENS}.get(wish.sort or "")
        """The length of answer to compare by; None: the call's own."""
        known = [c.context_tokens for c in self.everybody if c.context_tokens is not None]
        self.context_min: float = min(known) if known else float("inf")

    def widest(self) -> Pool:
        """Only those with the largest window, and none of them too small any more; itself where windows are unknown."""
        windows = [candidate.context_tokens or 0 for candidate in self.everybody]
        largest = max(windows, default=0)
        pool = Pool([c for c in self.everybody if (c.context_tokens or 0) == largest], self._need, self._turns)
        pool.context_min = float("inf")
        return pool

    def narrowed(self, capabilities: frozenset[str]) -> Pool:
        """The same without those that are known to lack one of `capabilities`."""
        everybody = [*self.everybody, *(candidate for candidate, _ in self.rejected)]
        return Pool(everybody, replace(self._need, capabilities=capabilities), self._turns)


def _tiers(fit: list[Candidate], wish: Preference, turns: Mapping[Candidate, int]) -> tuple[tuple[Candidate, ...], ...]:
    tiers: list[tuple[Candidate, ...]] = []
    for turn in sorted({turns.get(candidate, 0) for candidate in fit}):
        rest = [candidate for candidate in fit if turns.get(candidate, 0) == turn]
        for name in wish.order:
            tier = tuple(candidate for candidate in rest if _called(candidate, name))
            if tier:
                tiers.append(tier)
                rest = [candidate for candidate in rest if candidate not in tier]
        if wish.order and not wish.allow_fallbacks:
            continue
        for rank in sorted({candidate.rank for candidate in rest}):
            tiers.append(tuple(candidate for candidate in rest if candidate.rank == rank))
    return tuple(tiers)


def _unfit(candidate: Candidate, need: Need) -> str | None:
    """Why a candidate cannot take calls of this kind at all, None when it can."""
    wish = need.preference
    if need.capabilities:
        able = candidate.capabilities
        if wish.requires if able is None else not need.capabilities <= able:
            return "capability"
    if need.region and candidate.region != need.region:
        return "region"
    if need.pinned is not None and not any(_called(candidate, name) for name in need.pinned):
        return "tenant"
    if wish.only and not any(_called(candidate, name) for name in wish.only):
        return "preference"
    if any(_called(candidate, name) for name in wish.ignore):
        return "preference"
    for ceiling, price in ((wish.max_price_in, candidate.price_in), (wish.max_price_out, candidate.price_out)):
        # An unknown price might be above the ceiling: a bound on spending is not to be guessed.
        if ceiling is not None and (price is None or price * PER_MTOK > ceiling):
            return "price"
    return None


def _called(candidate: Candidate, name: str) -> bool:
    name = name.lower()
    return name in (candidate.provider.lower(), candidate.account.lower())
