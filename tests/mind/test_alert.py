"""The rules of alerts, on a clock of the test's own."""

from __future__ import annotations

from typing import Any

import pytest

from dandolo.mind.alert import SUBJECTS_MAX, Alerts, Facts, Thresholds
from dandolo.notice import Notice
from dandolo.record import Record

BEGIN = 1_764_000_000.0
WELL = Facts()


def record(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "time": "2026-01-01T00:00:00.000Z",
        "id": "req_1",
        "status": 200,
        "method": "POST",
        "endpoint": "chat",
        "duration_ms": 100.0,
    }
    return Record(**{**values, **changes})


GOOD = record()
BAD = record(status=502, code="upstream_unavailable")


class Clocked:
    """Alerts that are ticked once a second."""

    def __init__(self, **changes: Any) -> None:
        self.alerts = Alerts(Thresholds(**changes))
        self.now = BEGIN
        self.told: list[Notice] = []

    def run(self, seconds: int, records: list[Record] | None = None, facts: Facts = WELL) -> list[str]:
        """So many seconds with the same records in each; what was told in them."""
        before = len(self.told)
        for _ in range(seconds):
            self.now += 1
            self.alerts.take(records or [])
            self.told += self.alerts.tick(facts, self.now)
        return [f"{one.alert}{':' * bool(one.subject)}{one.subject} {one.state}" for one in self.told[before:]]

    def state(self, alert: str) -> str:
        return next(one.state for one in self.alerts.standings() if one.alert == alert)


def test_a_quiet_gateway_and_a_well_one_tell_nothing() -> None:
    clocked = Clocked()
    assert clocked.run(300) == []
    assert clocked.run(3600, [GOOD] * 10) == []
    assert {one.state for one in clocked.alerts.standings()} == {"ok"}


def test_an_incident_is_told_once_and_its_end_once() -> None:
    clocked = Clocked(success_target=0.5)
    clocked.run(300, [GOOD] * 9)
    assert clocked.run(600, [GOOD] * 9 + [BAD]) == ["errors firing"]
    notice = clocked.told[-1]
    assert notice.severity == "page"
    assert notice.value == pytest.approx(0.06, rel=0.05)
    assert notice.threshold == 0.05
    assert "requests failed within 5 min, expected at most 5.0%" in notice.message
    assert notice.since == pytest.approx(notice.at - 30)
    assert clocked.run(900, [GOOD] * 10) == ["errors recovered"]
    assert clocked.told[-1].id == notice.id
    assert clocked.told[-1].since == notice.since
    # The next incident is another one.
    clocked.run(600, [BAD])
    assert clocked.told[-1].id != notice.id


def test_what_hovers_about_the_threshold_is_one_incident() -> None:
    clocked = Clocked(success_target=0.5, window_s=30, recover_s=60)
    told = []
    for _ in range(20):
        told += clocked.run(60, [GOOD] * 93 + [BAD] * 7)
        told += clocked.run(30, [GOOD] * 955 + [BAD] * 45)
    assert told == ["errors firing"]


def test_a_short_spell_is_not_told() -> None:
    clocked = Clocked(success_target=0.5, window_s=10, hold_s=60)
    clocked.run(60, [GOOD] * 10)
    assert clocked.run(30, [BAD] * 10) == []
    assert clocked.state("errors") == "pending"
    assert clocked.run(60, [GOOD] * 10) == []
    assert clocked.state("errors") == "ok"


def test_few_requests_prove_nothing() -> None:
    clocked = Clocked(samples_min=20)
    clocked.run(1, [BAD] * 19)
    assert clocked.run(280) == []
    assert clocked.state("errors") == "ok"
    clocked = Clocked(samples_min=20)
    clocked.run(1, [BAD] * 20)
    assert "errors firing" in clocked.run(280)
    # When nobody calls any more there is nothing to judge, and no incident.
    assert "errors recovered" in clocked.run(600)


def test_callers_mistakes_and_departures_are_no_failures() -> None:
    clocked = Clocked()
    mistakes = [record(status=status, code="bad_request") for status in (400, 401, 404, 413, 429, 499)]
    assert clocked.run(900, mistakes) == []
    # Nor do they dilute the failures of others.
    assert "errors firing" in clocked.run(300, [*mistakes * 20, BAD, GOOD])


def test_a_stream_that_broke_is_a_failure() -> None:
    broken = record(stream=True, first_token_ms=10.0, code="upstream_stream_error")
    assert "errors firing" in Clocked().run(300, [broken, GOOD])


@pytest.mark.parametrize(
    ("kind", "alert", "slow_ms", "fine_ms"),
    [
        ({"endpoint": "chat"}, "latency", 2100.0, 1900.0),
        ({"endpoint": "messages"}, "latency", 2100.0, 1900.0),
        ({"endpoint": "images.generations"}, "latency_images", 15500.0, 14500.0),
        ({"endpoint": "image.generate"}, "latency_images", 15500.0, 14500.0),
    ],
)
def test_the_95th_percentile_is_compared_exactly(
    kind: dict[str, str], alert: str, slow_ms: float, fine_ms: float
) -> None:
    fine, slow = record(duration_ms=fine_ms, **kind), record(duration_ms=slow_ms, **kind)
    assert Clocked().run(400, [fine] * 95 + [slow] * 5) == []
    assert Clocked().run(400, [fine] * 94 + [slow] * 6) == [f"{alert} firing"]


def test_of_a_stream_the_first_token_counts_and_of_files_nothing() -> None:
    stream = record(stream=True, first_token_ms=300.0, duration_ms=60_000.0)
    audio = record(endpoint="audio.speech", duration_ms=60_000.0)
    assert Clocked().run(400, [stream, audio]) == []
    assert Clocked().run(400, [record(stream=True, first_token_ms=3000.0)]) == ["latency firing"]


def test_burn_rates_need_both_windows() -> None:
    clocked = Clocked(error_rate=0.5)
    clocked.run(3600, [GOOD] * 10)
    # 2 % of errors burn a budget of 0.1 % 20 times as fast: told once an hour's window has burnt 14.4 times.
    clocked.run(1800, [GOOD] * 49 + [BAD])
    assert clocked.alerts.burn_rates()["5m"] == pytest.approx(20, rel=0.1)
    fast = [one for one in clocked.told if one.alert == "burn_fast"]
    assert len(fast) == 1
    assert 1200 < fast[0].at - BEGIN - 3600 < 1800
    assert "over 5 min" in fast[0].message
    # And it ends with its cause, not an hour later.
    clocked.run(600, [GOOD] * 50)
    assert clocked.told[-1].alert == "burn_fast"
    assert clocked.told[-1].state == "recovered"


def test_a_slow_burn_is_a_ticket() -> None:
    clocked = Clocked()
    assert clocked.run(3600, [GOOD] * 99 + [BAD] * 1) == ["burn_slow firing"]
    assert clocked.told[0].severity == "ticket"


def test_what_a_firing_alert_explains_is_not_told_beside_it() -> None:
    clocked = Clocked(hold_s=5)
    open_ = Facts(providers_open=True)
    assert clocked.run(20, facts=open_) == ["providers_open firing"]
    assert clocked.run(900, [BAD] * 5, open_) == []
    assert clocked.state("errors") == "silenced"
    assert clocked.state("burn_fast") == "silenced"
    told = clocked.run(1200, [GOOD] * 5)
    assert told == ["providers_open recovered"]


def test_what_comes_first_waits_for_its_explanation() -> None:
    clocked = Clocked()
    assert clocked.run(20, [BAD] * 5) == []
    # It would have been told after 30 s; what explains it is noticed late, and told after 30 s of its own.
    assert clocked.run(60, [BAD] * 5, Facts(providers_open=True)) == ["providers_open firing"]
    # What seemed to explain it and did not holds it up no longer than it seemed so.
    clocked = Clocked()
    clocked.run(20, [BAD] * 5)
    assert clocked.run(15, [BAD] * 5, Facts(providers_open=True)) == []
    assert clocked.run(2, [BAD] * 5) == ["errors firing"]


def test_what_goes_on_after_its_explanation_is_told() -> None:
    clocked = Clocked(hold_s=5)
    clocked.run(300, [BAD] * 5, Facts(providers_open=True))
    assert clocked.run(1200, [BAD] * 5) == ["providers_open recovered", "errors firing"]


def test_facts_are_told_by_subject() -> None:
    clocked = Clocked()
    facts = Facts(tiers_down=("redis", "sqlite"), budgets={"ci/day": 0.85, "web/day": 0.5}, ledger="the disk is full")
    told = clocked.run(60, facts=facts)
    assert sorted(told) == [
        "budget:ci/day firing",
        "cache_tier:redis firing",
        "cache_tier:sqlite firing",
        "ledger firing",
    ]
    assert "the ledger is in trouble: the disk is full" in [one.message for one in clocked.told]
    assert "85% of the budget ci/day is used, told from 80% on" in [one.message for one in clocked.told]
    told = clocked.run(300, facts=Facts(tiers_down=("sqlite",), budgets={"ci/day": 0.7}))
    # Between 64 and 80 % nothing is over.
    assert sorted(told) == ["cache_tier:redis recovered", "ledger recovered"]
    assert sorted(clocked.run(300)) == ["budget:ci/day recovered", "cache_tier:sqlite recovered"]
    assert len(clocked.alerts.standings()) == 7


def test_a_budget_is_told_at_once() -> None:
    assert Clocked().run(1, facts=Facts(budgets={"ci/day": 1.2})) == ["budget:ci/day firing"]


def test_subjects_are_bounded_and_the_worst_are_watched() -> None:
    clocked = Clocked()
    budgets = {f"key{number}/day": number / 100 for number in range(1000)}
    told = clocked.run(2, facts=Facts(budgets=budgets))
    assert len(told) == SUBJECTS_MAX
    assert "budget:key999/day firing" in told


@pytest.mark.parametrize("jump_s", [-7200.0, 7200.0, 86400.0])
def test_a_clock_that_is_set_neither_ends_nor_makes_an_incident(jump_s: float) -> None:
    clocked = Clocked()
    clocked.run(600, [GOOD] * 10)
    clocked.now += jump_s
    assert clocked.run(600, [GOOD] * 10) == []
    # The window goes on to be one of five minutes.
    assert "errors firing" in clocked.run(120, [BAD] * 10)


def test_thresholds_change_while_an_incident_goes_on() -> None:
    clocked = Clocked(success_target=0.5)
    assert clocked.run(400, [GOOD] * 9 + [BAD]) == ["errors firing"]
    clocked.alerts.adopt(Thresholds(success_target=0.5, error_rate=0.5, window_s=60, p95_s=0.05))
    told = clocked.run(400, [GOOD] * 9 + [BAD])
    assert sorted(told) == ["errors recovered", "latency firing"]


def test_an_answer_that_was_asked_for_from_the_cache_alone_is_no_failure() -> None:
    clocked = Clocked()
    assert clocked.run(600, [record(status=504, code="not_cached")] * 10) == []
