"""What exchanges put into the journal, where no real one can be made to say it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dandolo.api.usage import Usage
from dandolo.config.schema import Config, Ledger, Server
from dandolo.control.ledger_ring import Ring
from dandolo.gateway.books import Books
from dandolo.journal import CAPACITY_MIN, NAME, NAMES_MAX, SETTLED, Journal
from dandolo.policy import KeyTerms

PREFIX = b"req_0123456789ab"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path, PREFIX, capacity=CAPACITY_MIN)
    yield made
    made.close()


def exchange(**fields: Any) -> Any:
    """A request that has ended, answered by the cache unless `fields` say otherwise."""
    tenant = SimpleNamespace(name="ci", terms=None)
    return SimpleNamespace(
        **{
            "encoded_id": PREFIX + b"%010x" % 0xBEEF,
            "admitted": SimpleNamespace(tenant=tenant),
            "endpoint": SimpleNamespace(name="chat"),
            "usage": Usage(10, 20),
            "booked": None,
            "target": None,
            "lane": None,
            "model": "fast",
            "status": 200,
            "committed": True,
            "streamed": False,
            "cache": "hit",
            "attempts": 0,
            "saved_usd": 0.25,
            "started": 1.0,
            "ended_at": 1.5,
            "first_token_at": None,
            "held": None,
            "number": 0,
            **fields,
        }
    )


def slots(journal: Journal) -> list[Any]:
    ring = Ring(journal.path)
    try:
        return ring.read(0, 1 << 20)[0]
    finally:
        ring.close()


def test_a_kept_answer_is_a_request_without_a_call(journal: Journal) -> None:
    Books(journal).ended(exchange())
    (_, number, name), (kind, fields, _) = slots(journal)
    assert (number, name.key, name.model, name.provider) == (0, "ci", "fast", "")
    assert kind == SETTLED
    assert (fields[6], fields[8], fields[11:13], fields[16]) == (0xBEEF, 200, (10, 20), 250_000_000)


@pytest.mark.parametrize("usage", [Usage(-1, 2), Usage(1, 2**70), Usage(1, 2, -3), Usage(1, 2, 3, 2**64)])
def test_counts_that_cannot_be_are_dropped_and_counted(journal: Journal, usage: Usage) -> None:
    Books(journal).ended(exchange(usage=usage))
    assert [slot[0] for slot in slots(journal)] == [NAME]
    assert journal.dropped == 1


@pytest.mark.parametrize("saved", [float("nan"), float("inf"), -1.0, 1e300])
def test_savings_that_cannot_be_are_unknown(journal: Journal, saved: float) -> None:
    Books(journal).ended(exchange(saved_usd=saved))
    assert slots(journal)[1][1][16] == -1


def test_a_name_that_nobody_has_is_not_the_ledgers(journal: Journal) -> None:
    books = Books(journal)
    for n in range(50):
        books.ended(exchange(status=404, model=f"invented-{n}", cache=""))
    found = slots(journal)
    assert [slot[2].model for slot in found if slot[0] == NAME] == [""]
    assert len(found) == 51


def test_names_are_numbered_anew_when_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dandolo.gateway.books.NAMES_MAX", 4)
    journal = Journal(tmp_path, PREFIX, capacity=CAPACITY_MIN)
    books = Books(journal)
    for n in (*range(10), *range(10)):
        books.ended(exchange(model=f"m{n}"))
    found = slots(journal)
    names = {slot[1]: slot[2].model for slot in found if slot[0] == NAME}
    assert [names[slot[1][7]] for slot in found if slot[0] == SETTLED] == [f"m{n}" for n in (*range(10), *range(10))]
    assert len(books._names) <= 4 < NAMES_MAX
    journal.close()


def test_only_a_key_with_a_budget_is_refused_when_the_journal_is_full(journal: Journal) -> None:
    books = Books(journal)
    while journal.intent(1, 0, 0, 1.0) >= 0:
        pass
    target: Any = SimpleNamespace(
        model="m",
        facts=None,
        account=SimpleNamespace(provider=SimpleNamespace(name="p"), label="p", owner="o"),
    )
    asked = exchange(call=SimpleNamespace(model="fast"))
    assert books.intend(asked, target)
    asked.admitted.tenant.terms = KeyTerms(name="ci", budget_month=1_000_000)
    assert not books.intend(asked, target)
    # Nothing of it was written; its end is counted as missing.
    asked.booked = (-1, -1, 1)
    books.ended(asked)
    assert journal.dropped == 1
    assert SETTLED not in {slot[0] for slot in slots(journal)}


def test_a_lane_remembers_its_name_until_readers_may_have_forgotten_it(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dandolo.gateway.books.NAMES_MAX", 4)
    books = Books(journal)
    target: Any = SimpleNamespace(
        model="m", facts=None, account=SimpleNamespace(provider=SimpleNamespace(name="p"), label="p", owner="o")
    )
    # Longer than what the last intent leaves.
    target.model = "m" * 200
    lane = SimpleNamespace(booked=None, route=SimpleNamespace(targets={}))
    asked = exchange(call=SimpleNamespace(model="fast"), lane=lane)
    intents = []
    while (at := journal.intent(1, 0, 0, 1.0)) >= 0:
        intents.append(at)
    # A name that found no room is not remembered.
    assert books.intend(asked, target)
    assert lane.booked is None
    for at in intents:
        journal.settle(at, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1, 1.0, 1.0, -1.0)
    ring = Ring(journal.path)
    ring.release(ring.read(0, 1 << 20)[1])
    ring.close()
    assert books.intend(asked, target)
    assert lane.booked == (target, 0)
    for n in range(8):
        books.ended(exchange(model=f"m{n}"))
    assert books.intend(asked, target)
    assert lane.booked == (target, 9)


def test_books_are_kept_where_they_are_wanted_and_can_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def config(**ledger: Any) -> Config:
        return Config(server=Server(state_dir=tmp_path / "state"), ledger=Ledger(**ledger))

    assert Books.open(config(enabled=False), PREFIX) is None
    assert not list(tmp_path.iterdir())
    books = Books.open(config(journal_bytes=CAPACITY_MIN), PREFIX, slot=3)
    assert books is not None
    assert books.journal.path.name.startswith("3-")
    books.close()
    (tmp_path / "state" / "journal").rename(tmp_path / "away")
    (tmp_path / "state" / "journal").write_text("no folder")
    unwritten = Books.open(config(), PREFIX)
    assert unwritten is not None
    assert not unwritten.written
    assert "no journal" in caplog.text
    refusal = unwritten.no_room()
    assert (refusal.status, refusal.code) == (503, "ledger_full")
    assert "there is no journal" in refusal.message
    # Whoever ends is counted as not written down.
    unwritten.ended(exchange(status=404, model="invented", cache=""))
    assert unwritten.journal.dropped == 1
    unwritten.close()
    caplog.clear()
    Books.open(config(), PREFIX, quiet=True)
    assert not caplog.text
