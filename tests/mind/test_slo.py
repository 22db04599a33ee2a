"""Objectives: what is bad, what may be, and what is left, over windows that move."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.config.objectives import Slo
from dandolo.mind.slo import (
    BOUNDS_S,
    DEFAULTS,
    OTHER,
    SERIES_MAX,
    Cell,
    Judged,
    Kept,
    Objectives,
    quantile,
    report,
    slower,
    workload,
)
from dandolo.record import Record

NOW = 1_800_000_000.0
HOUR = 3600.0


def record(
    status: int = 200,
    wait_s: float = 0.4,
    *,
    key: str = "ci",
    model: str = "fast",
    endpoint: str = "chat",
    cache: str = "",
    first_s: float | None = None,
) -> Record:
    return Record(
        "2026-01-01T00:00:00.000Z",
        "req_1",
        status,
        "POST",
        endpoint,
        key,
        model=model,
        cache=cache,
        duration_ms=wait_s * 1e3,
        stream=first_s is not None,
        first_token_ms=None if first_s is None else first_s * 1e3,
    )


def one(objectives: Objectives, window: str = "1h", now: float = NOW, target: str = "") -> Judged:
    found = [judged for judged in objectives.judged(window, now) if target in ("", judged.target)]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("window", ["1h", "24h", "30d"])
def test_a_p95_is_kept_until_one_in_twenty_is_slower(window: str) -> None:
    objectives = Objectives([Slo(name="chat", p95=2.0)])
    objectives.take([record(wait_s=0.4)] * 95 + [record(wait_s=9.0)] * 5, NOW)
    judged = one(objectives, window)
    assert (judged.total, judged.bad, judged.met) == (100, 5, True)
    assert judged.burn == pytest.approx(1.0)
    assert judged.budget == pytest.approx(0.0)
    objectives.take([record(wait_s=9.0)], NOW)
    assert not one(objectives, window).met


def test_failures_burn_the_budget_and_callers_own_mistakes_do_not() -> None:
    objectives = Objectives([Slo(name="availability", success=0.999)])
    objectives.take([record()] * 999 + [record(503)] + [record(400), record(429), record(499)] * 50, NOW)
    judged = one(objectives)
    assert (judged.total, judged.bad) == (1000, 1)
    assert judged.observed == pytest.approx(0.999)
    assert judged.burn == pytest.approx(1.0)


def test_a_stream_takes_as_long_as_its_first_token() -> None:
    objectives = Objectives([Slo(name="chat", p95=2.0, first_token_p95=1.0)])
    objectives.take([record(wait_s=60.0, first_s=0.4)] * 10, NOW)
    assert one(objectives, target="p95").bad == 0
    first = one(objectives, target="first_token_p95")
    assert (first.total, first.bad) == (10, 0)
    assert first.observed is not None
    assert 0.3 < first.observed <= 0.5


def test_the_hit_rate_is_of_what_the_cache_may_answer() -> None:
    objectives = Objectives([Slo(name="cache", cache_hit_rate=0.7)])
    objectives.take([record(cache="hit")] * 6 + [record(cache="collapsed")] + [record(cache="miss")] * 3, NOW)
    objectives.take([record()] * 100, NOW)
    judged = one(objectives)
    assert (judged.total, judged.observed, judged.met) == (10, pytest.approx(0.7), True)


def test_an_objective_counts_its_own_key_model_and_workload_only() -> None:
    objectives = Objectives(
        [
            Slo(name="key", key="ci", success=0.9),
            Slo(name="model", model="fast", success=0.9),
            Slo(name="image", workload="image", success=0.9),
        ]
    )
    objectives.take(
        [record(key="ci", model="slow"), record(key="x", model="fast"), record(endpoint="images.edits")], NOW
    )
    totals = {judged.slo: judged.total for judged in objectives.judged("1h", NOW)}
    assert totals == {"key": 2, "model": 2, "image": 1}
    assert [workload(name) for name in ("messages", "image.generate", "embeddings", "rerank")] == [
        "chat",
        "image",
        "embeddings",
        "any",
    ]


def test_what_is_past_leaves_its_window() -> None:
    objectives = Objectives([Slo(name="a", success=0.5)])
    objectives.take([record(500)] * 10, NOW)
    objectives.tick(NOW)
    for window, gone_s in (("1h", 1.2 * HOUR), ("24h", 26 * HOUR), ("30d", 32 * 24 * HOUR)):
        assert one(objectives, window, NOW + 0.5 * HOUR).total == 10
        assert one(objectives, window, NOW + gone_s).total == 0
    objectives.tick(NOW + 40 * 24 * HOUR)
    assert all(not cells for cells in objectives._cells.values())


def test_a_restart_goes_on_from_the_hours_that_were_kept() -> None:
    kept: dict[tuple[int, str, str, str], bytes] = {}

    def keep(cells: list[Kept]) -> None:
        kept.update({cell[:4]: cell[4] for cell in cells})

    slos = [Slo(name="a", success=0.9, p95=2.0)]
    before = Objectives(slos, keep)
    for n in range(30):
        before.take([record(500 if n % 10 == 0 else 200)], NOW + n * HOUR / 4)
        before.tick(NOW + n * HOUR / 4)
    end = NOW + 29 * HOUR / 4
    before.settle()
    rows = [(*place, cell) for place, cell in kept.items()]
    after = Objectives(slos, keep)
    after.load(rows)
    for window in ("24h", "30d"):
        assert after.judged(window, end) == before.judged(window, end)
    # The hour goes on, and takes the place of what was kept of it.
    after.take([record()], end)
    after.settle()
    told = report(slos, [(*place, cell) for place, cell in kept.items()])
    assert {judged.target: judged.total for judged in told} == {"success": 31, "p95": 28}


def test_cells_that_cannot_be_read_are_passed_over() -> None:
    good = msgspec.msgpack.encode(Cell(total=5))
    short = msgspec.msgpack.encode([1, 2, 3, 4, [1], [2]])
    rows: list[Kept] = [(1, "k", "m", "chat", data) for data in (b"", b"\xff", short, good)]
    objectives = Objectives([Slo(name="a", success=0.9)])
    objectives.load(rows)
    assert report([Slo(name="a", success=0.9)], rows)[0].total == 5


def test_callers_inventions_do_not_fill_the_memory() -> None:
    objectives = Objectives([Slo(name="a", success=0.9)])
    objectives.take([record(model=f"m{n}", key=f"k{n % 7}") for n in range(5000)], NOW)
    assert one(objectives).total == 5000
    series = {series for _, series in objectives._cells["1h"]}
    assert len(series) <= SERIES_MAX + 7
    assert any(model == OTHER for _, model, _ in series)
    objectives.take([record(key=f"k{n}", model="m") for n in range(5000)], NOW)
    assert len(objectives._cells["1h"]) <= 2 * SERIES_MAX + 1


def test_the_missions_table_is_the_default() -> None:
    objectives = Objectives(())
    assert objectives.slos == DEFAULTS
    told = {(slo.name, slo.p95, slo.success, slo.cache_hit_rate) for slo in DEFAULTS}
    assert ("chat", 2.0, None, None) in told
    assert ("image", 15.0, None, None) in told
    assert ("availability", None, 0.999, None) in told
    assert ("cache", None, None, 0.7) in told
    # Nothing observed is nothing broken, and no sample.
    assert all(judged.met for judged in objectives.judged("30d", NOW))
    assert list(objectives.gauges(NOW)) == []
    objectives.take([record()], NOW)
    names = {name for name, _, _ in objectives.gauges(NOW)}
    assert names == {"dandolo_slo_burn_rate", "dandolo_slo_error_budget_remaining", "dandolo_slo_observed"}
    assert msgspec.json.encode(objectives.state(NOW))


def test_a_promise_of_everything_is_broken_by_the_first_failure() -> None:
    objectives = Objectives([Slo(name="a", success=1.0)])
    objectives.take([record()] * 10, NOW)
    assert one(objectives).met
    objectives.take([record(500)], NOW)
    assert not one(objectives).met


@given(st.lists(st.floats(0, 400), min_size=1, max_size=200), st.sampled_from(BOUNDS_S))
def test_at_a_bound_the_share_that_is_slower_is_exact(waits: list[float], bound: float) -> None:
    objectives = Objectives([Slo(name="a", p95=bound)])
    objectives.take([record(wait_s=wait) for wait in waits], NOW)
    expected = sum(wait * 1e3 / 1e3 > bound for wait in waits)
    assert one(objectives).bad == expected


@given(st.lists(st.integers(0, 50), min_size=len(BOUNDS_S) + 1, max_size=len(BOUNDS_S) + 1), st.floats(0.001, 3600))
def test_between_bounds_it_lies_between_theirs(counts: list[int], bound: float) -> None:
    assert 0 <= slower(counts, bound) <= sum(counts)
    assert slower(counts, bound * 1.5) <= slower(counts, bound)
    found = quantile(counts, 0.95)
    assert (found is None) == (not sum(counts))


def test_an_answer_that_was_asked_for_from_the_cache_alone_is_no_failure() -> None:
    objectives = Objectives([Slo(name="availability", success=0.999)])
    objectives.take([record()] * 9 + [msgspec.structs.replace(record(status=504), code="not_cached")], NOW)
    assert (one(objectives).total, one(objectives).bad) == (9, 0)
