"""What other parts tell, in the snapshot's form."""

from __future__ import annotations

from dandolo.control import shown


def test_keys_have_what_they_used_beside_what_they_may() -> None:
    rows = [
        {
            "name": "ci", "status": "valid", "priority": "high", "rpm": 60, "budget_usd_per_day": 1.0,
            "usage": {"requests_per_minute": 30, "tokens_per_minute": 900, "in_flight": 0, "spent_usd_day": 0.25},
        },
        {"name": "new", "status": "valid", "concurrent": 4, "usage": None},
        {"name": "ci", "status": "shadowed"},
        {"name": "old", "status": "revoked"},
    ]  # fmt: skip
    assert shown.keys(rows) == [
        {
            "name": "ci", "priority": "high", "rpm": {"used": 30, "limit": 60}, "tpm": {"used": 900, "limit": None},
            "day_usd": {"used": 0.25, "limit": 1.0},
        },
        {"name": "new", "priority": "normal", "concurrent": {"used": 0, "limit": 4}},
        {"name": "ci (shadowed)", "priority": "normal"},
    ]  # fmt: skip


def test_only_what_fires_is_an_alert() -> None:
    one = {
        "alert": "budget",
        "subject": "ci/day",
        "state": "firing",
        "severity": "page",
        "since": 5.0,
        "message": "91 %",
    }
    told = shown.alerts([one, {**one, "state": "silenced"}, {**one, "state": "ok"}, {**one, "subject": ""}])
    assert [alert["name"] for alert in told] == ["budget ci/day", "budget"]
    assert told[0]["text"] == "91 %"


def test_objectives_are_flat_and_measured() -> None:
    judged = {"requests": 10, "observed": 1.5, "budget_remaining": 0.9, "met": True}
    state = {
        "objectives": [
            {
                "name": "chat",
                "targets": [
                    {"target": "p95", "wanted": 2.0, "windows": {"30d": judged, "1h": {**judged, "requests": 1}}},
                    {"target": "success", "wanted": 0.999, "windows": {"30d": {**judged, "requests": 0}}},
                ],
            }
        ]
    }
    assert shown.objectives(state) == [
        {
            "objective": "chat", "target": "p95", "wanted": 2.0, "observed": 1.5, "budget_left": 0.9, "requests": 10,
            "met": "yes",
        }
    ]  # fmt: skip
