"""Purges by generation, against a plain model that deletes at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.cache import generations
from dandolo.cache.generations import Generations, Kind, Marks

KEY = bytes(20)
MARKS = Marks("tenant", "llama", "code", ("a", "b"))


@pytest.mark.parametrize(
    ("kind", "name"),
    [("scope", "tenant"), ("model", "llama"), ("class", "code"), ("tag", "a"), ("tag", "b"), ("all", ""), ("all", "x")],
)
@pytest.mark.parametrize("soft", [False, True])
def test_a_purge_concerns_what_is_older_and_carries_the_name(kind: Kind, name: str, soft: bool) -> None:
    some = Generations()
    older = some.current
    some.purge(kind, name, soft=soft)
    newer = some.current
    assert some.dead(KEY, older, MARKS) is not soft
    assert some.stale(KEY, older, MARKS) is soft
    assert not some.dead(KEY, newer, MARKS)
    assert not some.stale(KEY, newer, MARKS)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("scope", "other"), ("scope", "llama"), ("model", "tenant"), ("class", "a"), ("tag", "code"), ("tag", "")],
)
def test_a_purge_leaves_what_carries_another_name(kind: Kind, name: str) -> None:
    some = Generations()
    some.purge(kind, name)
    some.purge(kind, name, soft=True)
    assert not some.dead(KEY, 0, MARKS)
    assert not some.stale(KEY, 0, MARKS)


def test_a_deletion_concerns_its_key() -> None:
    some = Generations()
    some.delete([KEY])
    assert some.dead(KEY, some.current - 1, MARKS)
    assert not some.dead(KEY, some.current, MARKS)
    assert not some.dead(b"x" * 20, 0, MARKS)
    some.deleted(some.current)
    assert not some.dead(KEY, 0, MARKS)
    assert some.forgotten == 1


def test_a_soft_purge_of_a_key() -> None:
    some = Generations()
    some.purge("key", KEY.hex(), soft=True)
    assert some.stale(KEY, 0, MARKS)
    assert not some.stale(b"x" * 20, 0, MARKS)


@pytest.mark.parametrize("soft", [False, True])
def test_too_many_names_become_a_purge_of_everything(monkeypatch: pytest.MonkeyPatch, soft: bool) -> None:
    monkeypatch.setattr(generations, "NAMES_MAX", 3)
    some = Generations()
    for n in range(3):
        some.purge("tag", str(n), soft=soft)
    assert not (some.stale if soft else some.dead)(KEY, 0, MARKS)
    some.purge("tag", "one too many", soft=soft)
    assert (some.stale if soft else some.dead)(KEY, some.current - 1, MARKS)
    assert len(some.soft if soft else some.hard) == len(some.unsaved) == 1


def test_too_many_deletions_become_a_purge_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generations, "NAMES_MAX", 3)
    some = Generations()
    some.delete(bytes([n]) * 20 for n in range(1, 6))
    assert all(some.dead(bytes([n]) * 20, 1, MARKS) for n in range(1, 6))
    assert some.dead(KEY, 1, MARKS)
    assert not some.dead(KEY, some.current, MARKS)
    assert not some.deletes


def test_a_file_s_generations_come_before_all_of_ours() -> None:
    some = Generations()
    early = some.current
    some.purge("tag", "a")
    some.delete([KEY])
    late = some.current
    some.rebase(1000, {("tag", "b", False): 900, ("tag", "a", False): 800, ("model", "llama", True): 950})
    only_a, only_b = Marks(tags=("a",)), Marks(tags=("b",))
    assert some.dead(b"", 1000 + early, only_a)
    assert some.dead(b"", 999, only_a)
    assert not some.dead(b"", 1000 + late, only_a)
    assert some.dead(b"", 899, only_b)
    assert not some.dead(b"", 900, only_b)
    assert some.dead(KEY, 1000 + early, Marks())
    assert some.stale(b"", 949, Marks(model="llama"))
    assert set(some.unsaved) == {("tag", "a", False)}


def test_what_is_settled_is_no_longer_noted() -> None:
    some = Generations()
    some.purge("tag", "a")
    middle = some.current
    some.purge("tag", "b")
    some.settled(middle, soft=False)
    assert set(some.hard) == {("tag", "b")}
    assert set(some.unsaved) == {("tag", "b", False)}
    assert some.forgotten == 1


names = st.sampled_from(["a", "b"])
steps = st.one_of(
    st.tuples(st.just("put"), st.builds(Marks, names, names, names, st.lists(names, max_size=2).map(tuple))),
    st.tuples(st.sampled_from(["scope", "model", "class", "tag", "all"]), names),
)


@given(st.lists(steps, max_size=30))
def test_agrees_with_a_model_that_deletes_at_once(told: list[tuple[str, object]]) -> None:
    some = Generations()
    births: list[tuple[int, Marks]] = []
    alive: set[int] = set()
    for what, value in told:
        if isinstance(value, Marks):
            alive.add(len(births))
            births.append((some.current, value))
            continue
        some.purge(what, str(value))  # type: ignore[arg-type]
        of = {
            "scope": lambda marks: [marks.scope],
            "model": lambda marks: [marks.model],
            "class": lambda marks: [marks.ttl_class],
            "tag": lambda marks: marks.tags,
            "all": lambda marks, value=value: [value],
        }[what]
        alive = {n for n in alive if value not in of(births[n][1])}
    assert {n for n, (born, marks) in enumerate(births) if not some.dead(b"", born, marks)} == alive
