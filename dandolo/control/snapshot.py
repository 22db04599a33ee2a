"""What an operator sees at a glance: one JSON object of this second, made from records and from what others tell.

A sink of records (`take`, `tick`): traffic, percentiles and sums over the last minute, the last errors, events. State
that is not in records is told: that of workers (breakers, slots, scores) by `adopt`, that of other parts of the control
process (alerts, ledger) by `sources`, callables that give anything JSON can hold. What nobody tells, or fails, is
null: the page shows it as absent. Nothing here waits, and everything is bounded.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from dandolo import __version__
from dandolo.control.window import SLICE_S, Columns, Names, Percentiles, growing
from dandolo.record import NOT_CACHED, Record
from dandolo.tally import groups_of
from dandolo.values import fit

VERSION: Final = 1
"""Of the snapshot's form."""
SECONDS: Final = 120
SKIPPED_MAX: Final = SECONDS
RATE_S: Final = 5
"""Rates "now" are means over so many seconds."""
ERRORS_MAX: Final = 20
EVENTS_MAX: Final = 50
SUMS_MAX: Final = 1024
PRICED_MAX: Final = 256
SCORED_MAX: Final = 3
"""Models whose candidates are shown with their scores: those asked most."""
SOURCES: Final = ("load", "providers", "cache", "keys", "alerts", "ledger", "slo", "workers", "prompt_log")
"""What others may tell: `load` (requests and streams under way, connections, queue by priority), `providers` (as
/admin/routes tells accounts), `cache` (tiers), and what its name says."""

_REQUESTS, _ERRORS, _TOKENS, _HITS, _COST = range(5)
_COLUMNS = ("requests", "errors", "tokens", "hits", "usd")
_SUMS = ("requests", "errors", "input_tokens", "output_tokens", "usd")
_ERROR = ("time", "id", "status", "code", "model", "account", "key", "attempts")
_CACHED = frozenset(("hit", "stale", "collapsed"))
_MS = growing(0.1, 3_600_000.0, 1.2)

_log = logging.getLogger("dandolo")
_encode = msgspec.json.Encoder().encode


class Snapshots:
    """The maker of snapshots. `sources` are callables by their names in SOURCES. `started` and every `now` are Unix
    seconds."""

    def __init__(
        self,
        started: float,
        sources: Mapping[str, Callable[[], Any]] | None = None,
    ) -> None:
        self.sources = dict(sources or {})
        self._state: Mapping[str, Any] = {}
        self._started = started
        self._now = started
        self._ticks = 0
        self._columns = Columns(_COLUMNS, SECONDS)
        self._duration, self._first = Percentiles(_MS), Percentiles(_MS)
        self._queue, self._overhead = Percentiles((0.0, *_MS)), Percentiles(growing(0.01, 1000.0, 1.15))
        self._minute = (self._duration, self._first, self._queue, self._overhead)
        self._lines = {
            "p95_ms": (self._duration, 0.95),
            "first_token_p95_ms": (self._first, 0.95),
            "overhead_p50_ms": (self._overhead, 0.50),
        }
        self._drawn: dict[str, deque[float | None]] = {
            name: deque([None] * SECONDS, maxlen=SECONDS) for name in self._lines
        }
        self._accounts, self._models, self._keys = Names(_SUMS), Names(_SUMS), Names(_SUMS)
        self._sums: dict[tuple[str, str, str, str], list[float]] = {}
        """What was counted since it was dealt out last, by account, model, key and what the cache did."""
        self._outcomes = Names(("requests",))
        self._by_name = (self._accounts, self._models, self._keys, self._outcomes)
        self._totals = dict.fromkeys(("requests", "errors", "input_tokens", "output_tokens", "usd", "saved_usd"), 0.0)
        self._cache_totals = dict.fromkeys(("hit", "stale", "collapsed", "miss"), 0)
        self._saved = Columns(("usd",), 60)
        self._priced: dict[str, tuple[float, float]] = {}
        """Tokens and USD of the paid answers of each model: what one that was kept would have cost."""
        self._errors: deque[Record] = deque(maxlen=ERRORS_MAX)
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_MAX)
        self._states: dict[tuple[str, str], str] = {}
        self._failing: set[str] = set()

    # -- what happens ----------------------------------------------------------------------------------

    def take(self, records: Sequence[Record], now: float) -> None:
        """Count finished requests. Sums are kept by all names together and dealt out once a second."""
        sums, failed = self._sums, False
        for group in groups_of(records):
            status, cache, attempts, count = group.status, group.cache, group.attempts, group.count
            # Names of models that nobody answered for are any text that a caller thought of.
            model = group.model if attempts or cache in _CACHED else ""
            names = (group.account, model, group.key, cache)
            sum_of = sums.get(names)
            if sum_of is None:
                if len(sums) >= SUMS_MAX:
                    self._deal_out()
                sum_of = sums[names] = [0.0] * len(_SUMS)
            sum_of[0] += count
            sum_of[2] += sum(group.input_tokens)
            sum_of[3] += sum(group.output_tokens)
            sum_of[4] += sum(group.costs_usd)
            # The caller's own mistakes (4xx) and leaving (499) say nothing about how well it goes here.
            if status >= 400 or group.code:
                if (status >= 500 or status < 400) and group.code != NOT_CACHED:
                    sum_of[1] += count
                failed = failed or status != 499
            self._duration.observe_all(group.durations_ms)
            self._first.observe_all(group.firsts_ms)
            if attempts:
                waited = group.queues_ms
                self._queue.counts[0] += count - len(waited)
                self._queue.observe_all(waited)
            self._overhead.observe_all(group.overheads_ms)
        if failed:
            self._errors.extend([one for one in records if (one.status >= 400 or one.code) and one.status != 499])

    def _deal_out(self) -> None:
        add = self._columns.add
        for (account, model, key, cache), sums in self._sums.items():
            requests, failed, tokens_in, tokens_out, usd = sums
            tokens = tokens_in + tokens_out
            add(_REQUESTS, requests)
            add(_ERRORS, failed)
            add(_TOKENS, tokens)
            add(_COST, usd)
            for name, value in zip(_SUMS, sums, strict=True):
                self._totals[name] += value
            if cache:
                self._outcomes.add(cache, (requests,))
                self._cache_totals[cache] = self._cache_totals.get(cache, 0) + int(requests)
            if cache in _CACHED:
                add(_HITS, requests)
                self._save(model, tokens)
            elif usd and tokens:
                self._learn_price(model, tokens, usd)
            if account:
                self._accounts.add(account, sums)
            if model:
                self._models.add(model, sums)
            self._keys.add(key, sums)
        self._sums.clear()

    def _learn_price(self, model: str, tokens: float, usd: float) -> None:
        if model not in self._priced and len(self._priced) >= PRICED_MAX:
            return
        before = self._priced.get(model, (0.0, 0.0))
        self._priced[model] = before[0] + tokens, before[1] + usd

    def _save(self, model: str, tokens: float) -> None:
        priced = self._priced.get(model)
        if priced is not None:
            saved = tokens * priced[1] / priced[0]
            self._saved.add(0, saved)
            self._totals["saved_usd"] += saved

    def adopt(self, state: Mapping[str, Any]) -> None:
        """What workers tell of themselves, put together (`control.together`): it holds until told again."""
        self._state = state

    def asked_most(self) -> list[str]:
        """The models whose `scores` are to be told."""
        return list(self._models.shown())[:SCORED_MAX]

    def asked_keys(self) -> list[str]:
        """The keys with which something was asked in the last minute."""
        return list(self._keys.shown())

    def event(self, kind: str, text: str, now: float) -> None:
        """Something that an operator wants to see in its place in time: a reload, a breaker, an alert."""
        self._events.append({"time": now, "kind": kind, "text": fit(text)})

    def tick(self, now: float) -> None:
        """A second is over (or several, when nobody had time)."""
        self._deal_out()
        steps = min(SKIPPED_MAX, max(1, round(now - self._now)))
        self._now = now
        for _ in range(steps):
            self._ticks += 1
            self._columns.advance()
            self._saved.advance()
            if self._ticks % SLICE_S == 0:
                for values in (*self._minute, *self._by_name):
                    values.advance()
        self._watch(now)
        for name, (values, share) in self._lines.items():
            value = values.merged().quantile(share)
            self._drawn[name].extend([None if value is None else _short(value)] * steps)

    def _watch(self, now: float) -> None:
        """Tell changes of breakers and probes as events."""
        states: dict[tuple[str, str], str] = {}
        for account in self._ask("providers") or ():
            probe = account.get("probe")
            if probe is not None:
                name = (account.get("account", ""), "")
                states[name] = "well" if probe.get("well") else "not well"
                if states[name] != self._states.get(name, "well"):
                    self.event("probe", f"{name[0]}: {probe.get('reason') or 'well again'}", now)
            for model in account.get("models", ()):
                name = (account.get("account", ""), model.get("model", ""))
                states[name] = state = model.get("breaker", "off")
                before = self._states.get(name, "closed")
                if state != before and {state, before} != {"closed", "off"}:
                    why = f" ({model['reason']})" if model.get("reason") and state == "open" else ""
                    self.event("breaker", f"{name[0]} {name[1]}: {state}{why}", now)
        self._states = states

    # -- what is shown ---------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """This second, as JSON can hold it."""
        self._deal_out()
        columns, outcomes = self._columns, self._outcomes.shown()
        lookups = sum(one["requests"] for one in outcomes.values())
        hits = sum(one["requests"] for name, one in outcomes.items() if name in _CACHED)
        total_lookups = sum(self._cache_totals.values())
        minute = columns.mean(_REQUESTS, 60) * 60
        return {
            "form": VERSION,
            "version": __version__,
            "now": self._now,
            "started": self._started,
            "traffic": {
                "per_s": _short(columns.mean(_REQUESTS, RATE_S)),
                "tokens_per_s": _short(columns.mean(_TOKENS, RATE_S)),
                "usd_per_h": _short(columns.mean(_COST, 60) * 3600),
                "minute": int(minute),
                "error_rate": _short(columns.mean(_ERRORS, 60) * 60 / minute) if minute else None,
                "seconds": columns.shown(),
                "total": {name: float(f"{value:.10g}") for name, value in self._totals.items()},
            },
            "latency": {
                "duration_ms": self._duration.shown(),
                "first_token_ms": self._first.shown(),
                "queue_ms": self._queue.shown(),
                "overhead_ms": self._overhead.shown(),
                **{name: list(values) for name, values in self._drawn.items()},
            },
            "saved": {
                "hit_rate": _short(hits / lookups) if lookups else None,
                "hit_rate_total": _short(
                    sum(count for name, count in self._cache_totals.items() if name in _CACHED) / total_lookups
                )
                if total_lookups
                else None,
                "outcomes": {name: int(one["requests"]) for name, one in outcomes.items()},
                "usd_per_h": _short(self._saved.mean(0, 60) * 3600),
                "usd_total": float(f"{self._totals['saved_usd']:.10g}"),
            },
            "by_account": self._accounts.shown(),
            "by_model": self._models.shown(),
            "by_key": self._keys.shown(),
            "scores": self._state.get("scores"),
            "errors": [{name: getattr(one, name) for name in _ERROR} for one in reversed(self._errors)],
            "events": list(reversed(self._events)),
            **{name: self._ask(name) for name in SOURCES},
        }

    def text(self) -> bytes:
        """The same as one line of JSON."""
        return _encode(self.snapshot())

    def _ask(self, name: str) -> Any:
        source = self.sources.get(name)
        if source is None:
            return self._state.get(name)
        try:
            told = source()
        except Exception:
            # One part that fails must not take the view of all others; it is said once until it works again.
            if name not in self._failing:
                self._failing.add(name)
                _log.exception("the snapshot does without %s", name)
            return None
        self._failing.discard(name)
        return self._state.get(name) if told is None else told


def _short(value: float) -> float:
    return float(f"{value:.4g}")
