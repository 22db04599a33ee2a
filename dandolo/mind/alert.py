"""When an operator is to be told, and when that it is over: rules over rolling windows and over facts.

    alert            judged over        true when
    providers_open   facts              every provider's breakers are open
    ledger           facts              the ledger is in trouble
    cache_tier       facts, per tier    a tier of the cache is down
    budget           facts, per budget  a budget is used up to `budget_share`
    errors           the window         more than `error_rate` of the requests failed
    latency          the window         p95 of text above `p95_s` (streams: until the first token)
    latency_images   the window         p95 of images above `p95_images_s`
    burn_fast        5 m and 1 h        the error budget burns 14.4 times as fast as it may
    burn_slow        30 m and 6 h       the error budget burns 6 times as fast as it may

A rule is true or well or neither: between the threshold and `CLEAR_SHARE` of it nothing changes. It fires once it has
been true for `hold_s`, and recovers once it has been well for `recover_s`; each of the two is told once. Windows with
fewer than `samples_min` requests prove nothing: they fire no rule, and let one that fires recover. What a rule
explains (`SILENCES`) is not told while that fires or is about to, nor afterwards as long as it is still in the window.
Nothing is remembered over a restart.

The burn rates are those of Google's *Site Reliability Workbook*, chapter 5, "Multiwindow, Multi-Burn-Rate Alerts": 2 %
of a month's budget within an hour, 5 % within six; the short window ends the alert soon after its cause is gone.

A request counts when a provider or the cache answered it or the gateway failed at it: it is bad with a status of 500
and above, and when its stream broke. What callers do wrong (4xx) or break off (499) says nothing of the service.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from dandolo.mind.rolling import Rolling
from dandolo.notice import Notice, Severity, Standing
from dandolo.record import NOT_CACHED, Record
from dandolo.stats import Histogram
from dandolo.tally import groups_of

CLEAR_SHARE: Final = 0.8
"""Of a threshold: below it things are well again."""
SUBJECTS_MAX: Final = 64
"""Subjects of one alert; the worst of them are watched."""
STEP_S_MAX: Final = 60.0
"""A clock that steps farther between two ticks was set, or the machine slept: the windows stay as they are."""
WINDOW_BUCKETS: Final = 30
FAST: Final = 14.4
SLOW: Final = 6.0
_BURNS: Final = (("burn_fast", FAST, 300, 3600), ("burn_slow", SLOW, 1800, 6 * 3600))
_BUCKETS: Final = 60

SILENCES: Final[Mapping[str, frozenset[str]]] = {
    "errors": frozenset(("providers_open",)),
    "latency": frozenset(("providers_open",)),
    "burn_fast": frozenset(("errors", "providers_open")),
    "burn_slow": frozenset(("burn_fast", "errors", "providers_open")),
}
"""By alert: which others, when they fire, explain it."""

_TEXT: Final = frozenset(("chat", "completions", "responses", "messages", "embeddings", "moderations", "rerank"))
_IMAGES: Final = ("images.", "image.")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What is too much. Shares are 0 to 1; `success_target` is what the error budget is the rest of."""

    p95_s: float = 2.0
    p95_images_s: float = 15.0
    error_rate: float = 0.05
    success_target: float = 0.999
    budget_share: float = 0.8
    window_s: float = 300.0
    samples_min: int = 20
    hold_s: float = 30.0
    recover_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is so now, beside what records tell. `budgets` are used shares by name; `ledger` says what is the matter
    with it, "" for nothing."""

    providers_open: bool = False
    tiers_down: Sequence[str] = ()
    budgets: Mapping[str, float] = field(default_factory=dict)
    ledger: str = ""


class _Reading(NamedTuple):
    """How a rule looks at one moment. Neither `true` nor `well`: it stays as it is."""

    alert: str
    subject: str
    severity: Severity
    true: bool
    well: bool
    value: float | None
    threshold: float | None
    unit: str
    message: str
    hold_s: float
    memory_s: float = 0.0
    """How long what is over goes on to show in `value`."""


@dataclass(slots=True)
class _Watch:
    """What is remembered of one rule: since when it is true, since when well; the incident, while it fires."""

    reading: _Reading
    true_since: float | None = None
    well_since: float | None = None
    incident: str = ""
    silenced: bool = False
    silenced_until: float = 0.0


class _Latency:
    """Latencies of one kind of request. The threshold and what clears it are bounds of its buckets, so that
    comparing a percentile with them is exact."""

    __slots__ = ("pending", "threshold_s", "window")

    def __init__(self, threshold_s: float, window_s: float) -> None:
        self.threshold_s = threshold_s
        # 1 / CLEAR_SHARE to the power of -20 to 12: 1 % to 15 times the threshold.
        self.pending = Histogram([threshold_s * (1 / CLEAR_SHARE) ** step for step in range(-20, 13)])
        self.window = Rolling(window_s, WINDOW_BUCKETS, len(self.pending.counts))

    def pour(self, now: float) -> None:
        self.window.add(self.pending.counts, now)
        self.pending.counts = [0] * len(self.pending.counts)

    def p95_s(self) -> tuple[float | None, int]:
        """The percentile and of how many."""
        seen = Histogram(self.pending.bounds)
        seen.counts = self.window.sums
        return seen.quantile(0.95), seen.count


class Alerts:
    """All rules of one gateway. Give it records as they come and call `tick` about once a second.

    Not for several threads. It takes a few µs a group of records and 50 µs a tick.
    """

    def __init__(self, thresholds: Thresholds) -> None:
        self._thresholds = thresholds
        self._text = _Latency(thresholds.p95_s, thresholds.window_s)
        self._images = _Latency(thresholds.p95_images_s, thresholds.window_s)
        self._good = self._bad = 0
        self._outcomes = Rolling(thresholds.window_s, WINDOW_BUCKETS, 2)
        self._burns = {span: Rolling(span, _BUCKETS, 2) for _, _, short, long in _BURNS for span in (short, long)}
        self._watches: dict[tuple[str, str], _Watch] = {}
        self._steady = 0.0
        self._last: float | None = None
        self._incidents = 0

    def adopt(self, thresholds: Thresholds) -> None:
        """Go on with other thresholds. Incidents go on; windows start anew where they no longer fit."""
        before, self._thresholds = self._thresholds, thresholds
        if thresholds.window_s != before.window_s:
            self._outcomes = Rolling(thresholds.window_s, WINDOW_BUCKETS, 2)
        if (thresholds.p95_s, thresholds.window_s) != (before.p95_s, before.window_s):
            self._text = _Latency(thresholds.p95_s, thresholds.window_s)
        if (thresholds.p95_images_s, thresholds.window_s) != (before.p95_images_s, before.window_s):
            self._images = _Latency(thresholds.p95_images_s, thresholds.window_s)

    def take(self, records: Sequence[Record]) -> None:
        """Count finished requests in; they are seen by the next `tick`."""
        for group in groups_of(records):
            status, count = group.status, group.count
            if group.code == NOT_CACHED:
                continue
            if status >= 500 or (status < 400 and group.code):
                self._bad += count
                continue
            if status >= 400:
                continue
            self._good += count
            waits = group.firsts_s if group.stream else group.durations_s
            if group.endpoint in _TEXT:
                self._text.pending.observe_all(waits)
            elif group.endpoint.startswith(_IMAGES):
                self._images.pending.observe_all(waits)

    def tick(self, facts: Facts, now: float) -> list[Notice]:
        """Judge everything at `now` (Unix seconds). Returns what is to be told: each incident once, its end once."""
        steady = self._advance(now)
        notices: list[Notice] = []
        seen = set()
        for reading in self._readings(facts):
            seen.add((reading.alert, reading.subject))
            watch = self._watches.setdefault((reading.alert, reading.subject), _Watch(reading))
            watch.reading = reading
            notice = self._judge(watch, steady, now)
            if notice is not None:
                notices.append(notice)
        # A subject that is heard of no more (a tier that was taken out, a key that is gone) is well.
        for key in [key for key in self._watches if key not in seen]:
            watch = self._watches[key]
            watch.reading = watch.reading._replace(true=False, well=True, message=f"{key[1]} is no longer reported")
            notice = self._judge(watch, steady, now)
            if notice is not None:
                notices.append(notice)
            if not watch.incident:
                del self._watches[key]
        return notices

    def standings(self) -> list[Standing]:
        """How every alert stands as of the last tick."""
        found = []
        offset = (self._last or 0.0) - self._steady
        for watch in self._watches.values():
            reading, since = watch.reading, watch.true_since
            state = "ok" if since is None else "silenced" if watch.silenced else "pending"
            message = reading.message
            if watch.incident and watch.well_since is not None:
                message += f"; over when that has held for {_span(self._thresholds.recover_s)}"
            found.append(
                Standing(
                    reading.alert,
                    reading.subject,
                    "firing" if watch.incident else state,  # type: ignore[arg-type]
                    reading.severity,
                    None if since is None else since + offset,
                    reading.value,
                    reading.threshold,
                    reading.unit,
                    message,
                )
            )
        return found

    def burn_rates(self) -> dict[str, float]:
        """How many times as fast as it may the error budget burns, by window ("5m", "30m", "1h", "6h")."""
        names = {300: "5m", 1800: "30m", 3600: "1h", 6 * 3600: "6h"}
        return {names[span]: self._burn(span) for span in self._burns}

    # -- windows ---------------------------------------------------------------------------------------

    def _advance(self, now: float) -> float:
        """Our own time, which never runs backwards nor jumps; what has come since the last tick is counted at it."""
        if self._last is not None:
            self._steady += min(max(0.0, now - self._last), STEP_S_MAX)
        self._last = now
        steady = self._steady
        counts = (self._good, self._bad)
        self._good = self._bad = 0
        for window in (self._outcomes, *self._burns.values()):
            window.add(counts, steady)
        self._text.pour(steady)
        self._images.pour(steady)
        return steady

    def _burn(self, span_s: int) -> float:
        good, bad = self._burns[span_s].sums
        if not bad:
            return 0.0
        return bad / (good + bad) / (1 - self._thresholds.success_target)

    # -- rules -----------------------------------------------------------------------------------------

    def _readings(self, facts: Facts) -> Iterator[_Reading]:
        """Every rule, those that silence others first."""
        limits = self._thresholds
        message = "every provider's breaker is open: no request can be served"
        yield self._fact("providers_open", "", "page", facts.providers_open, message, "a provider can be asked")
        message = f"the ledger is in trouble: {facts.ledger}"
        yield self._fact("ledger", "", "page", bool(facts.ledger), message, "the ledger is written")
        for tier in sorted(facts.tiers_down)[:SUBJECTS_MAX]:
            yield self._fact("cache_tier", tier, "ticket", True, f"the cache's {tier} tier is down", "")
        worst = sorted(facts.budgets.items(), key=lambda item: -item[1])[:SUBJECTS_MAX]
        for name, share in worst:
            yield self._measured(
                "budget", name, "ticket", share, limits.budget_share, "share",
                f"{share:.0%} of the budget {name} is used, told from {limits.budget_share:.0%} on",
                hold_s=0.0,
            )  # fmt: skip
        good, bad = self._outcomes.sums
        count = good + bad
        rate = bad / count if count else 0.0
        yield self._measured(
            "errors", "", "page", rate, limits.error_rate, "share",
            f"{rate:.1%} of {count} requests failed within {_span(limits.window_s)}, expected at most"
            f" {limits.error_rate:.1%}",
            count=count,
            memory_s=limits.window_s,
        )  # fmt: skip
        for alert, what, latency in (
            ("latency", "requests", self._text),
            ("latency_images", "image requests", self._images),
        ):
            p95_s, count = latency.p95_s()
            yield self._measured(
                alert, "", "ticket", p95_s or 0.0, latency.threshold_s, "s",
                f"p95 of {count} {what} is {p95_s or 0.0:.3g} s within {_span(limits.window_s)}, expected at most"
                f" {latency.threshold_s:g} s",
                count=count,
                memory_s=limits.window_s,
            )  # fmt: skip
        for alert, factor, short, long in _BURNS:
            burn = min(self._burn(short), self._burn(long))
            yield self._measured(
                alert, "", "page" if factor == FAST else "ticket", burn, factor, "times",
                f"the error budget of {1 - limits.success_target:.3g} burns {self._burn(short):.1f} times as fast as it"
                f" may over {_span(short)}, {self._burn(long):.1f} times over {_span(long)}; told from {factor:g} on",
                count=sum(self._burns[short].sums),
                memory_s=short,
            )  # fmt: skip

    def _fact(self, alert: str, subject: str, severity: Severity, true: bool, bad: str, well: str) -> _Reading:
        hold_s = self._thresholds.hold_s
        return _Reading(alert, subject, severity, true, not true, None, None, "", bad if true else well, hold_s)

    def _measured(
        self,
        alert: str,
        subject: str,
        severity: Severity,
        value: float,
        threshold: float,
        unit: str,
        message: str,
        *,
        count: int | None = None,
        hold_s: float | None = None,
        memory_s: float = 0.0,
    ) -> _Reading:
        """A rule with a number; `count` is how many requests it was made of."""
        true, well = value > threshold, value <= threshold * CLEAR_SHARE
        if alert == "budget":
            true, well = value >= threshold, value < threshold * CLEAR_SHARE
        if count is not None and count < self._thresholds.samples_min:
            true, well = False, True
            message = f"{count} requests are too few to tell (expected {self._thresholds.samples_min})"
        hold_s = self._thresholds.hold_s if hold_s is None else hold_s
        return _Reading(alert, subject, severity, true, well, value, threshold, unit, message, hold_s, memory_s)

    def _judge(self, watch: _Watch, steady: float, now: float) -> Notice | None:
        reading = watch.reading
        if not watch.incident:
            if not reading.true:
                watch.true_since, watch.silenced, watch.silenced_until = None, False, 0.0
                return None
            if watch.true_since is None:
                watch.true_since = steady
            if self._explained(reading.alert, firing=True):
                # What another alert explains stays in the windows a while after that one is over.
                watch.silenced_until = steady + reading.memory_s
                watch.silenced = True
            else:
                # One that may explain it and is not yet told is waited for.
                watch.silenced = steady < watch.silenced_until or self._explained(reading.alert, firing=False)
            if watch.silenced or steady - watch.true_since < reading.hold_s:
                return None
            self._incidents += 1
            watch.incident = f"{reading.alert}-{int(now)}-{self._incidents}"
            watch.well_since = None
            return self._notice(watch, "firing", steady, now)
        if not reading.well:
            watch.well_since = None
            return None
        if watch.well_since is None:
            watch.well_since = steady
        if steady - watch.well_since < self._thresholds.recover_s:
            return None
        notice = self._notice(watch, "recovered", steady, now)
        watch.incident, watch.true_since = "", None
        return notice

    def _explained(self, alert: str, *, firing: bool) -> bool:
        """Whether one that explains it fires, or is true and about to."""
        by = SILENCES.get(alert, frozenset())
        return any(
            name in by and (watch.incident if firing else watch.true_since is not None and not watch.silenced)
            for (name, _), watch in self._watches.items()
        )

    def _notice(self, watch: _Watch, state: str, steady: float, now: float) -> Notice:
        reading = watch.reading
        since = now - (steady - (watch.true_since or 0.0))
        return Notice(
            watch.incident,
            reading.alert,
            reading.subject,
            state,  # type: ignore[arg-type]
            reading.severity,
            now,
            since,
            reading.value,
            reading.threshold,
            reading.unit,
            reading.message if state == "firing" else f"recovered: {reading.message}",
        )


def _span(seconds: float) -> str:
    """ "5 min", "1 h", "90 s"."""
    if seconds % 3600 == 0:
        return f"{seconds / 3600:g} h"
    return f"{seconds / 60:g} min" if seconds % 60 == 0 else f"{seconds:g} s"
