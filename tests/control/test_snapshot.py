"""The snapshot: what it counts over which time, what it is told, what bounds it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from dandolo.control.live import Live
from dandolo.control.snapshot import ERRORS_MAX, EVENTS_MAX, SECONDS, SOURCES, Snapshots
from dandolo.control.window import NAMES_MAX, Columns, Names, Percentiles
from dandolo.record import Record

START = 1_700_000_000.0


def record(status: int = 200, **more: Any) -> Record:
    usual: dict[str, Any] = {
        "time": "2026-01-01T00:00:00.000Z", "id": "req_1", "method": "POST", "endpoint": "chat", "model": "m",
        "account": "one", "provider": "one", "attempts": 1, "duration_ms": 100.0, "overhead_ms": 0.1,
    }  # fmt: skip
    return Record(status=status, **{**usual, **more})


class Played:
    """Snapshots with a clock of their own."""

    def __init__(self, **sources: Callable[[], Any]) -> None:
        self.snapshots = Snapshots(START, sources)
        self.now = START

    def second(self, *records: Record, seconds: int = 1) -> dict[str, Any]:
        self.snapshots.take(records, self.now)
        self.now += seconds
        self.snapshots.tick(self.now)
        shown: dict[str, Any] = json.loads(self.snapshots.text())
        return shown


def test_an_empty_one_has_every_part_and_nothing_made_up() -> None:
    shown = Played().second()
    assert {name: shown[name] for name in SOURCES} == dict.fromkeys(SOURCES)
    assert shown["scores"] is None
    assert shown["traffic"]["error_rate"] is None
    assert shown["latency"]["duration_ms"] == {"count": 0, "p50": None, "p95": None, "p99": None}
    assert shown["saved"]["hit_rate"] is None
    assert (shown["errors"], shown["events"], shown["by_model"]) == ([], [], {})


def test_rates_are_of_the_last_seconds_and_the_rest_of_a_minute() -> None:
    played = Played()
    shown = played.second(*[record(input_tokens=10, output_tokens=40, cost_usd=0.001)] * 10)
    traffic = shown["traffic"]
    assert (traffic["per_s"], traffic["tokens_per_s"], traffic["minute"]) == (2.0, 100.0, 10)
    assert traffic["usd_per_h"] == pytest.approx(0.6)
    assert traffic["seconds"]["requests"][-2:] == [0, 10]
    assert len(traffic["seconds"]["requests"]) == SECONDS
    for _ in range(5):
        shown = played.second()
    assert (shown["traffic"]["per_s"], shown["traffic"]["minute"]) == (0.0, 10)
    for _ in range(60):
        shown = played.second()
    assert shown["traffic"]["minute"] == 0
    assert shown["latency"]["duration_ms"]["count"] == 0
    assert shown["by_model"] == shown["by_account"] == {}
    assert shown["traffic"]["total"]["requests"] == 10


def test_seconds_nobody_had_time_for_are_empty_ones() -> None:
    played = Played()
    played.second(record())
    shown = played.second(record(), seconds=3)
    assert shown["traffic"]["seconds"]["requests"][-5:] == [0, 1, 1, 0, 0]
    # A clock that is set forward by a year costs two minutes of steps, one that is set back is one second.
    assert played.second(seconds=10**8)["traffic"]["minute"] == 0
    assert played.second(record(), seconds=-(10**8))["traffic"]["minute"] == 1


def test_percentiles_are_near_the_values() -> None:
    values = [
        record(duration_ms=float(n), first_token_ms=n / 10, overhead_ms=0.05, queue_ms=0.0) for n in range(1, 101)
    ]
    latency = Played().second(*values)["latency"]
    assert latency["duration_ms"]["p50"] == pytest.approx(50, rel=0.2)
    assert latency["duration_ms"]["p95"] == pytest.approx(95, rel=0.2)
    assert latency["first_token_ms"]["p95"] == pytest.approx(9.5, rel=0.2)
    assert latency["overhead_ms"]["p50"] == pytest.approx(0.05, rel=0.2)
    assert latency["queue_ms"] == {"count": 100, "p50": 0.0, "p95": 0.0, "p99": 0.0}
    assert latency["p95_ms"][-1] == latency["duration_ms"]["p95"]


def test_failures_are_ours_and_the_providers_not_the_callers() -> None:
    shown = Played().second(
        record(502, code="upstream_error", id="a"),
        record(200, code="upstream_stream_error", id="b"),
        record(429, code="rate_limit_exceeded", id="c"),
        record(499, code="client_closed", id="d"),
        record(200, id="e"),
    )
    assert shown["traffic"]["error_rate"] == 0.4
    assert [one["id"] for one in shown["errors"]] == ["c", "b", "a"]
    assert shown["by_account"]["one"]["errors"] == 2


def test_what_the_cache_saved_is_priced_by_what_its_model_cost() -> None:
    shown = Played().second(
        record(input_tokens=50, output_tokens=50, cost_usd=0.01, cache="miss"),
        record(input_tokens=50, output_tokens=150, cost_usd=0.0, cache="hit", attempts=0),
        record(input_tokens=1, output_tokens=1, cache="hit", attempts=0, model="never paid"),
        record(),
    )
    saved = shown["saved"]
    assert saved["hit_rate"] == pytest.approx(2 / 3, abs=1e-4)
    assert saved["outcomes"] == {"hit": 2, "miss": 1}
    assert saved["usd_total"] == pytest.approx(0.02)


def test_names_of_callers_are_shown_only_where_somebody_answered_and_are_bounded() -> None:
    played = Played()
    shown = played.second(
        *[record(404, code="model_not_found", model=f"made up {n}", attempts=0, account="") for n in range(500)]
    )
    assert shown["by_model"] == {}
    assert len(shown["errors"]) == ERRORS_MAX
    shown = played.second(*[record(key=f"key-{n}") for n in range(500)])
    assert len(shown["by_key"]) <= NAMES_MAX + 1
    assert shown["by_key"]["other"]["requests"] >= 400


def test_a_source_that_fails_is_absent_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Any:
        raise ValueError("no")

    played = Played(workers=broken, load=lambda: {"in_flight": 3})
    with caplog.at_level(logging.ERROR, "dandolo"):
        for _ in range(3):
            shown = played.second()
    assert shown["workers"] is None
    assert shown["load"] == {"in_flight": 3}
    assert len(caplog.records) == 1


def test_breakers_and_probes_become_events() -> None:
    state: dict[str, Any] = {"breaker": "closed", "well": True}
    played = Played(
        providers=lambda: [
            {
                "account": "one",
                "models": [{"model": "m", "breaker": state["breaker"], "reason": "3 failures in a row"}],
                "probe": {"well": state["well"], "reason": "" if state["well"] else "no connection"},
            }
        ],
    )
    assert played.second()["events"] == []
    state.update(breaker="open", well=False)
    texts = {event["text"] for event in played.second()["events"]}
    assert texts == {"one m: open (3 failures in a row)", "one: no connection"}
    assert len(played.second()["events"]) == 2
    state.update(breaker="closed", well=True)
    assert [event["text"] for event in played.second()["events"][:2]] == ["one m: closed", "one: well again"]
    for number in range(EVENTS_MAX * 2):
        played.snapshots.event("reload", f"number {number}\n\x1b[31m", played.now)
    events = played.second()["events"]
    assert len(events) == EVENTS_MAX
    assert events[0]["text"] == f"number {EVENTS_MAX * 2 - 1}\\n\\u001b[31m"


def test_what_workers_tell_holds_until_they_tell_again() -> None:
    played = Played(load=lambda: {"in_flight": 1})
    played.second(*[record(model=f"m{n}") for n in range(5) for _ in range(n + 1)])
    assert played.snapshots.asked_most() == ["m4", "m3", "m2"]
    played.snapshots.adopt({"scores": {"m4": {}}, "workers": [{"name": "0"}], "load": {"in_flight": 2}})
    for _ in range(2):
        shown = played.second()
        assert (shown["scores"], shown["workers"]) == ({"m4": {}}, [{"name": "0"}])
        assert shown["load"] == {"in_flight": 1}, "a source that was named goes before"


def test_workers_are_asked_each_second_only_while_somebody_looks() -> None:
    live = Live(Snapshots(START))

    def seconds(number: int) -> list[bool]:
        wanted = []
        for _ in range(number):
            wanted.append(live.wants)
            live.tick(START)
        return wanted

    assert sum(seconds(50)) == 10
    live.text()
    assert all(seconds(10))
    assert sum(seconds(50)) == 10


def test_live_gives_every_watcher_each_second_made_once() -> None:
    async def main() -> None:
        made = 0

        def count() -> dict[str, int]:
            nonlocal made
            made += 1
            return {"in_flight": made}

        live = Live(Snapshots(START, {"load": count}))
        watchers = [live.events() for _ in range(3)]
        first = [json.loads(await anext(one)) for one in watchers]
        assert made == 1
        assert [one["load"]["in_flight"] for one in first] == [1, 1, 1]
        waiting = [asyncio.ensure_future(anext(one)) for one in watchers[:2]]
        await asyncio.sleep(0)
        live.tick(START + 1)
        assert [json.loads(one)["now"] for one in await asyncio.gather(*waiting)] == [START + 1] * 2
        live.tick(START + 2)
        # The third was slow: it gets the latest at once, and not one for each second it missed.
        assert json.loads(await anext(watchers[2]))["now"] == START + 2
        assert live.watchers == 3
        for one in watchers:
            await one.aclose()
        assert live.watchers == 0
        made = 0
        live.tick(START + 3)
        assert made == 0, "nobody looks, nothing is made"

    asyncio.run(main())


def test_windows_forget() -> None:
    columns = Columns(("a",), 3)
    for value in (1.5, 2.0, 3.0, 4.0):
        columns.add(0, value)
        columns.advance()
    assert columns.shown() == {"a": [2, 3, 4]}
    percentiles, names = Percentiles((1.0, 2.0)), Names(("n",))
    percentiles.observe(1.5)
    names.add("x", (1.0,))
    for _ in range(11):
        percentiles.advance()
        names.advance()
    assert percentiles.merged().count == 1
    assert names.shown() == {"x": {"n": 1.0}}
    percentiles.advance()
    names.advance()
    assert percentiles.merged().count == 0
    assert names.shown() == {}
