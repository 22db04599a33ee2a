"""Objectives: how well they are kept over rolling windows, what is left of their error budgets, how fast it goes.

A *cell* counts the requests of one hour, key, model and workload, with histograms of how long they took. Cells of five
minutes make the window of an hour, those of hours the window of a day, those of days the window of thirty days; the
hours go to the ledger and come back from there after a restart. Pure: records, cells and `now` are arguments.

Every objective is a share of requests that may be *bad*: 5 % may be slower than a P95's bound, 0.1 % may fail where
99.9 % success is promised. Burn rate is the share that was bad over the share that may be: at 1 the budget is used up
exactly at the end of the window (Google, *The Site Reliability Workbook*, chapter 5). A request takes as long as its
client waits for something to show: a plain answer until it is complete, a stream until its first token. What the
caller caused (4xx) or gave up (499) counts nowhere.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from dandolo.config.objectives import Slo
from dandolo.record import NOT_CACHED, Record
from dandolo.stats import count_into
from dandolo.tally import Group, groups_of

WINDOWS_S = {"1h": 3600, "24h": 86_400, "30d": 30 * 86_400}
GRAINS_S = {"1h": 300, "24h": 3600, "30d": 86_400}
"""The length of the cells that each window is made of: it is older by at most so much."""
SERIES_MAX = 100
"""Keys, models and workloads that are told apart; models beyond go by `other`."""
OTHER = "other"
MODEL_CHARS_MAX = 200
KEEP_S = 10.0
"""How often hours that changed are handed on to be kept."""
BOUNDS_S = (
    0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 120.0, 300.0,
)  # fmt: skip
_BUCKETS = len(BOUNDS_S) + 1
_CHAT = frozenset(("chat", "completions", "responses", "messages"))
_HITS = frozenset(("hit", "semantic", "stale", "collapsed"))

DEFAULTS = (
    Slo(name="chat", workload="chat", p95=2.0),
    Slo(name="image", workload="image", p95=15.0),
    Slo(name="availability", success=0.999),
    Slo(name="cache", cache_hit_rate=0.7),
)
"""Where the configuration has no `[[slo]]`."""

Series = tuple[str, str, str]
"""Key, model, workload."""
Kept = tuple[int, str, str, str, bytes]
"""Hour (of Unix time), key, model, workload, cell."""


class Cell(msgspec.Struct, array_like=True, gc=False):
    """Counts: requests that count, those of them that failed, those the cache may answer, and did."""

    total: int = 0
    failed: int = 0
    cacheable: int = 0
    hits: int = 0
    waits: list[int] = msgspec.field(default_factory=lambda: [0] * _BUCKETS)
    """How many took how long: the last bucket is what is beyond BOUNDS_S."""
    firsts: list[int] = msgspec.field(default_factory=lambda: [0] * _BUCKETS)
    """The same for the first tokens of streams."""

    def add(self, other: Cell) -> None:
        """Count what another has counted, too."""
        self.total += other.total
        self.failed += other.failed
        self.cacheable += other.cacheable
        self.hits += other.hits
        self.waits = list(map(sum, zip(self.waits, other.waits, strict=True)))
        self.firsts = list(map(sum, zip(self.firsts, other.firsts, strict=True)))


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Cell).decode


class Judged(NamedTuple):
    """One target over one window: how many counted, how many were bad, the share that may be, what was observed (in
    the target's unit: seconds or a share; None: nothing to observe)."""

    slo: str
    target: str
    wanted: float
    total: int
    bad: float
    allowed: float
    observed: float | None

    @property
    def burn(self) -> float:
        """How fast the error budget goes: 1 uses it up in just the window."""
        return self.bad / self.total / self.allowed if self.total and self.allowed else float(self.bad > 0) * 1e3

    @property
    def budget(self) -> float:
        """What is left of it, as a share; negative when overdrawn."""
        return 1.0 - self.burn

    @property
    def met(self) -> bool:
        """Whether the target is kept."""
        return self.burn <= 1.0


def workload(endpoint: str) -> str:
    """chat, image, embeddings, or any for the rest, of an endpoint's name."""
    if endpoint in _CHAT:
        return "chat"
    return "image" if endpoint.startswith("image") else "embeddings" if endpoint == "embeddings" else "any"


def judge(slo: Slo, cells: Iterable[tuple[Series, Cell]]) -> list[Judged]:
    """What each target of an objective comes to over the cells of a window."""
    sums = Cell()
    for (key, model, kind), cell in cells:
        if (
            (slo.workload == "any" or kind == slo.workload)
            and (slo.key is None or key == slo.key)
            and (slo.model is None or model == slo.model)
        ):
            sums.add(cell)
    found: list[Judged] = []
    for target, bound, counts, share in (
        ("p95", slo.p95, sums.waits, 0.05),
        ("p99", slo.p99, sums.waits, 0.01),
        ("first_token_p95", slo.first_token_p95, sums.firsts, 0.05),
    ):
        if bound is not None:
            observed = quantile(counts, 1.0 - share)
            found.append(Judged(slo.name, target, bound, sum(counts), slower(counts, bound), share, observed))
    for target, wanted, total, bad in (
        ("success", slo.success, sums.total, sums.failed),
        ("cache_hit_rate", slo.cache_hit_rate, sums.cacheable, sums.cacheable - sums.hits),
    ):
        if wanted is not None:
            observed = 1.0 - bad / total if total else None
            # 100 % leaves nothing that may be bad; then the first one overdraws.
            found.append(Judged(slo.name, target, wanted, total, bad, 1.0 - wanted, observed))
    return found


def slower(counts: Sequence[int], bound_s: float) -> float:
    """How many took longer than a bound; linear within the bucket it lies in."""
    place = bisect_left(BOUNDS_S, bound_s)
    beyond = float(sum(counts[place + 1 :]))
    if place == len(BOUNDS_S):
        return beyond + counts[place]
    low, high = BOUNDS_S[place - 1] if place else 0.0, BOUNDS_S[place]
    return beyond + counts[place] * (high - bound_s) / (high - low)


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Seconds below which a share lies, linear within buckets; the last bucket answers with its lower bound."""
    rank, below, low = share * sum(counts), 0, 0.0
    if not rank:
        return None
    for bound, count in zip(BOUNDS_S, counts, strict=False):
        if count and below + count >= rank:
            return low + (bound - low) * (rank - below) / count
        below, low = below + count, bound
    return BOUNDS_S[-1]


def report(slos: Sequence[Slo], kept: Iterable[Kept]) -> list[Judged]:
    """Every target over kept hours (a month, say). Cells that cannot be read are passed over."""
    cells = [((key, model, kind), cell) for _, key, model, kind, data in kept if (cell := _cell(data)) is not None]
    return [judged for slo in slos for judged in judge(slo, cells)]


class Objectives:
    """A sink of records. `keep` is handed the cells of hours that have changed, every KEEP_S and at `settle`.

    Memory is bounded: SERIES_MAX series in 13 + 26 + 32 cells of half a kilobyte.
    """

    def __init__(self, slos: Sequence[Slo], keep: Callable[[list[Kept]], None] | None = None) -> None:
        self.agree(slos)
        self._keep = keep
        self._series: set[Series] = set()
        self._cells: dict[str, dict[tuple[int, Series], Cell]] = {window: {} for window in WINDOWS_S}
        self._changed: set[tuple[int, Series]] = set()
        self._kept_at = 0.0

    def agree(self, slos: Sequence[Slo]) -> None:
        """Judge by these objectives, or the DEFAULTS where there are none."""
        self.slos = tuple(slos) or DEFAULTS

    def load(self, kept: Iterable[Kept]) -> None:
        """Go on from the hours that were kept before. To be called once, before the first `tick`."""
        for hour, key, model, kind, data in kept:
            cell = _cell(data)
            if cell is None:
                continue
            series = self._known((key, model, kind))
            for window in ("24h", "30d"):
                place = (hour * 3600 // GRAINS_S[window], series)
                known = self._cells[window].get(place)
                if known is None:
                    known = self._cells[window][place] = Cell()
                known.add(cell)

    def take(self, records: Sequence[Record], now: float) -> None:
        """Count requests that have ended about `now` (Unix seconds)."""
        for group in groups_of(records):
            status, total = group.status, len(group.durations_s)
            if 400 <= status < 500 or not status or not total or group.code == NOT_CACHED:
                continue
            series = self._known((group.key, group.model[:MODEL_CHARS_MAX], workload(group.endpoint)))
            firsts = group.firsts_s if group.stream else ()
            waits = group.durations_s
            if firsts:
                waits = firsts if len(firsts) == total == group.count else _waits_s(group)
            for window, grain in GRAINS_S.items():
                cells, place = self._cells[window], (int(now) // grain, series)
                cell = cells.get(place)
                if cell is None:
                    cell = cells[place] = Cell()
                cell.total += total
                if status >= 500:
                    cell.failed += total
                else:
                    count_into(cell.waits, BOUNDS_S, waits)
                    count_into(cell.firsts, BOUNDS_S, firsts)
                if group.cache:
                    cell.cacheable += total
                    cell.hits += total if group.cache in _HITS else 0
            self._changed.add((int(now) // 3600, series))

    def tick(self, now: float) -> None:
        """Forget what has left its window; hand on what has changed."""
        if now - self._kept_at < KEEP_S:
            return
        self._kept_at = now
        for window, cells in self._cells.items():
            oldest = (int(now) - WINDOWS_S[window]) // GRAINS_S[window]
            for place in [place for place in cells if place[0] < oldest]:
                del cells[place]
        self._series = {series for _, series in self._cells["30d"]}
        self.settle()

    def settle(self) -> None:
        """Hand on what has changed, at the end."""
        changed, self._changed = self._changed, set()
        if self._keep is not None and changed:
            hours = self._cells["24h"]
            self._keep(
                [(hour, *series, _encode(cell)) for hour, series in changed if (cell := hours.get((hour, series)))]
            )

    def judged(self, window: str, now: float) -> list[Judged]:
        """Every target over a window (of WINDOWS_S) that ends now."""
        oldest = (int(now) - WINDOWS_S[window]) // GRAINS_S[window]
        cells = [(series, cell) for (place, series), cell in self._cells[window].items() if place >= oldest]
        return [judged for slo in self.slos for judged in judge(slo, cells)]

    def state(self, now: float) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        windows = {window: self.judged(window, now) for window in WINDOWS_S}
        return {
            "objectives": [
                {
                    "name": slo.name,
                    "workload": slo.workload,
                    "key": slo.key,
                    "model": slo.model,
                    "targets": _targets(slo.name, windows),
                }
                for slo in self.slos
            ]
        }

    def gauges(self, now: float) -> Iterator[tuple[str, float, tuple[tuple[str, str], ...]]]:
        """Samples for /metrics: name, value, labels. Targets of which nothing was observed have none."""
        for window in WINDOWS_S:
            for one in self.judged(window, now):
                if not one.total:
                    continue
                labels = (("slo", one.slo), ("target", one.target), ("window", window))
                yield "dandolo_slo_burn_rate", one.burn, labels
                yield "dandolo_slo_error_budget_remaining", one.budget, labels
                if one.observed is not None:
                    yield "dandolo_slo_observed", one.observed, labels

    def _known(self, series: Series) -> Series:
        if series in self._series:
            return series
        if len(self._series) >= SERIES_MAX:
            series = (series[0], OTHER, series[2])
            # Keys are the operator's own, and few; were they many, they too would have to share.
            if series not in self._series and len(self._series) >= 2 * SERIES_MAX:
                series = (OTHER, OTHER, series[2])
        self._series.add(series)
        return series


def told(one: Judged) -> dict[str, Any]:
    """A target over a window, as JSON can hold it."""
    return {
        "target": one.target,
        "wanted": one.wanted,
        "observed": None if one.observed is None else round(one.observed, 6),
        "requests": one.total,
        "bad": round(one.bad, 1),
        "burn_rate": round(one.burn, 4),
        "budget_remaining": round(one.budget, 4),
        "met": one.met,
    }


def _targets(name: str, windows: dict[str, list[Judged]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for window, judged in windows.items():
        for one in judged:
            if one.slo == name:
                entry = found.setdefault(one.target, {"target": one.target, "wanted": one.wanted, "windows": {}})
                entry["windows"][window] = {
                    name: value for name, value in told(one).items() if name not in ("target", "wanted")
                }
    return list(found.values())


def _cell(data: bytes) -> Cell | None:
    try:
        cell = _decode(data)
    except msgspec.DecodeError:
        return None
    return cell if len(cell.waits) == _BUCKETS == len(cell.firsts) else None


def _waits_s(group: Group) -> list[float]:
    """What the clients of streams waited for, where some never saw a token."""
    return sorted(
        [
            (one.duration_ms if one.first_token_ms is None else one.first_token_ms) / 1e3
            for one in group.records
            if one.duration_ms is not None
        ]
    )
