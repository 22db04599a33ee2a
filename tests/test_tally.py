"""Records by what they have in common: counted by groups they come to what they come to one by one."""

from __future__ import annotations

import random
from bisect import bisect_left

from dandolo.record import Record
from dandolo.stats import count_into
from dandolo.tally import Batch, groups_of


def record(n: int, **fields: object) -> Record:
    return Record(time="", id=str(n), method="POST", endpoint="chat", **{"status": 200, **fields})  # type: ignore[arg-type]


def test_groups_stand_in_the_order_of_their_first_records_and_lose_none() -> None:
    records = [record(n, model="ab"[n % 3 == 0], status=200 if n % 5 else 502) for n in range(30)]
    groups = groups_of(records)
    assert [one.records[0].id for one in groups] == ["0", "1", "3", "5"]
    assert sorted((one.id for group in groups for one in group.records), key=int) == [one.id for one in records]
    assert all((one.model, one.status) == (group.model, group.status) for group in groups for one in group.records)


def test_a_batch_makes_its_groups_once_and_values_are_sorted() -> None:
    batch = Batch([record(1, duration_ms=3.0), record(2), record(3, duration_ms=1.0, cost_usd=0.0, queue_ms=2.0)])
    (group,) = batch.groups
    assert groups_of(batch)[0] is group
    assert (group.durations_ms, group.durations_s, group.costs_usd) == ([1.0, 3.0], [0.001, 0.003], [])
    assert (group.queues_ms, group.input_tokens, group.count) == ([2.0], [0, 0, 0], 3)
    assert groups_of([]) == []


def test_sorted_values_fall_into_the_buckets_that_each_would() -> None:
    rng, bounds = random.Random(1), (0.5, 1.0, 2.0, 8.0)
    for size in (0, 1, 2, 7, 300):
        values = [rng.choice([*bounds, 0.0, rng.random() * 10, 99.0]) for _ in range(size)]
        expected, counts = [0] * 5, [0] * 5
        for value in values:
            expected[bisect_left(bounds, value)] += 1
        count_into(counts, bounds, sorted(values))
        assert counts == expected
