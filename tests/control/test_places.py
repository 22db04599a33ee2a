"""Places on the board: what happens when they are all taken, and when they are given back."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from dandolo.board import DAY, MONTH, Board, Calendar, NoPlace, add_spent
from dandolo.control import keyring, shown
from dandolo.control.keys import Keys
from dandolo.control.places import GRACE_S, Places
from dandolo.policy import Digest, KeyTerms, Policy

from .test_keyring import Ring, in_file, run, until


def key(name: str, rpm: int | None = 1) -> KeyTerms:
    return KeyTerms(name=name, digests=(Digest(hashlib.sha256(name.encode()).digest()),), rpm=rpm)


def names(policy: Policy) -> list[str]:
    return [one.name for one in policy.keys]


def test_keys_without_a_place_are_left_out_and_all_others_hold(caplog: pytest.LogCaptureFixture) -> None:
    places = Places(Board.alone(2))
    given = Policy(keys=(key("a"), key("free", None), key("b"), key("c"), key("d")), closed=True)
    fitting = places.fit(given)
    assert (names(fitting), fitting.closed) == (["a", "free", "b"], True)
    assert places.without == {"c", "d"}
    assert "2 keys of the database are not let in" in caplog.text
    caplog.clear()
    # A key of them that is revoked matters to nobody, and it is said once.
    assert names(places.fit(Policy(keys=(key("b"), key("c"))))) == ["b"]
    assert caplog.text == ""
    assert places.room_for(key("b"))
    assert places.room_for(key("x", None))
    assert not places.room_for(key("x"))
    with pytest.raises(NoPlace):
        places.claim([key("x")])
    same = Policy(keys=(key("a"), key("free", None)))
    assert places.fit(same) is same


def test_places_are_given_back_long_after_the_key_has_gone() -> None:
    board = Board.alone(3)
    places = Places(board)
    places.lasts_s = 600.0
    places.fit(Policy(keys=(key("a"), key("b"), key("c"))))
    assert places.crowded
    assert places.tend(["a", "b"], 1000.0) == 0
    assert places.tend(["a", "b"], 1000.0 + 600.0 + GRACE_S - 1) == 0
    # Who comes back in time keeps his place, and begins to be gone anew.
    assert places.tend(["a", "b", "c"], 1000.0 + 600.0 + GRACE_S) == 0
    assert places.tend(["a", "b"], 3000.0) == 0
    assert places.tend(["a", "b"], 3000.0 + 600.0 + GRACE_S) == 1
    assert places.room_for(key("d"))
    assert names(places.fit(Policy(keys=(key("d"), key("e"))))) == ["d"]
    assert places.tend(["a", "b", "d"], 9000.0) == 0


def test_when_all_places_are_taken_keys_are_refused_in_words_and_revoking_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        one = Ring(tmp_path, in_file("web", "rpm = 5"))
        one.ring._places.lasts_s = 1.0
        one.ring.load()
        one.ring.restore()
        for number in range(99):
            one.board.claim(f"other {number}")
        error = await one.refused("POST", "/admin/keys", {"name": "late", "rpm": 1})
        assert (error.status, error.code) == (409, "too_many_keys")
        assert "revoke some" in error.message
        assert (await one.ask("POST", "/admin/keys", {"name": "free"}))[0] == 201
        # The command line asks nobody: the key is there, is not let in, and is shown so.
        with Keys(tmp_path) as keys:
            keys.create("late", {"rpm": 1}, time.time())
            await one.ring._look(time.time())
            assert names(one.adopted[-1]) == ["free"]
            rows = {row["name"]: row["status"] for row in (await one.ask("GET", "/admin/keys"))[1]["keys"]}
            assert rows == {"web": "valid", "free": "valid", "late": "no place"}
            await one.ask("DELETE", "/admin/keys/free")
            assert names(one.adopted[-1]) == []
            # What is free again is theirs who waited for it.
            one.ring._places.tend(["web"], 1.0)
            one.ring._tend()
            assert not one.board.room
            one.ring._places._gone_at = dict.fromkeys(one.ring._places._gone_at, -1e9)
            one.ring._tend()
            await one.ring._look(time.time())
            assert names(one.adopted[-1]) == ["late"]
            assert one.board.find("web") is not None
        await one.ring.close()

    run(story)


def test_a_database_with_too_many_keys_keeps_nobody_from_starting(tmp_path: Path) -> None:
    async def story() -> None:
        with Keys(tmp_path) as keys:
            for number in range(5):
                keys.create(f"k{number}", {"rpm": 1}, time.time())
        one = Ring(tmp_path, in_file("web", "rpm = 5"))
        for number in range(97):
            one.board.claim(f"other {number}")
        one.ring.load()
        one.ring.restore()
        assert names(one.ring.policy) == ["k0", "k1"]
        assert one.board.find("web") is not None
        await one.ring.close()

    run(story)


def test_a_name_that_comes_back_goes_on_with_what_was_spent_under_it(tmp_path: Path) -> None:
    async def story() -> None:
        one = Ring(tmp_path)
        await one.ask("POST", "/admin/keys", {"name": "web", "budget_usd_per_day": 1.0})
        place, calendar = one.board.claim("web"), Calendar(time.time())
        for cell, stamp in ((DAY, calendar.day_stamp), (MONTH, calendar.month_stamp)):
            add_spent(one.board.cells, one.board.at(place, 0) + cell, stamp, 250_000)
        await one.ring._save(time.time())
        await one.ask("DELETE", "/admin/keys/web")
        one.ring._places.tend([], 0.0)
        assert one.ring._places.tend([], 1e9) == 1
        assert one.board.find("web") is None
        one.board.claim("another")
        await one.ask("POST", "/admin/keys", {"name": "web", "budget_usd_per_day": 1.0})
        usage = one.ring.usage("web")
        assert usage is not None
        assert (usage["spent_usd_day"], usage["spent_usd_month"]) == (0.25, 0.25)
        await until(lambda: names(one.adopted[-1]) == ["web"])
        await one.ring.close()

    run(story)


def test_many_keys_are_shown_as_the_first_hundred_and_the_fullest_budgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "SHOWN_MAX", 3)
    monkeypatch.setattr(keyring, "BUDGETS_MAX", 2)

    async def story() -> None:
        one = Ring(tmp_path, in_file("web", "rpm = 5"))
        one.ring.load()
        one.ring.restore()
        for number in range(5):
            await one.ask("POST", "/admin/keys", {"name": f"k{number}", "budget_usd_per_day": 1.0})
        rows = one.ring.shown(["k3", "k4"])
        assert [row["name"] for row in rows] == ["k3", "k4", "web", "and 3 more"]
        assert [row["name"] for row in shown.keys(rows)] == ["k3", "k4", "web", "and 3 more"]
        assert [row["name"] for row in one.ring.shown()] == ["web", "k0", "k1", "and 3 more"]
        calendar = Calendar(time.time())
        for name, micro in (("k2", 500_000), ("k4", 900_000)):
            add_spent(one.board.cells, one.board.at(one.board.claim(name), 0) + DAY, calendar.day_stamp, micro)
        assert [(name, spent) for name, _, _, spent, _ in one.ring.budgets()] == [("k4", 900_000), ("k2", 500_000)]
        # All of them are told to whoever asks for all.
        assert len((await one.ask("GET", "/admin/keys"))[1]["keys"]) == 6
        await one.ring.close()

    run(story)
