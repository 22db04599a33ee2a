"""Keys of the database: what is kept of them, what is refused, how they are rotated and revoked, and old files."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from dandolo.control.keys import FILE, OVERLAP_S_MAX, TERMS, Keys, read_terms
from dandolo.errors import InternalError, RequestError
from dandolo.policy import Digest, pack, unpack

NOW = 1_764_000_000.0
FULL: dict[str, Any] = {
    "priority": "high",
    "rpm": 60,
    "tpm": 1000,
    "concurrent": 4,
    "budget_usd_per_day": 1.5,
    "budget_usd_per_month": 20,
    "models": ["fast", "venice/*"],
    "cache_scope": "shared",
    "privacy": True,
    "tags": {"team": "web"},
}


def sha(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


@pytest.fixture
def keys(tmp_path: Path) -> Any:
    with Keys(tmp_path / "state") as opened:
        yield opened


def test_of_a_key_only_its_digest_is_kept_and_nobody_else_may_read_it(keys: Keys) -> None:
    key, kept = keys.create("web", FULL, NOW)
    assert kept.terms.digests == (Digest(sha(key)),)
    assert len(key) == 36
    content = keys.path.read_bytes()
    assert key.encode() not in content
    assert sha(key) in content
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.path.parent.stat().st_mode) == 0o700


def test_terms_come_back_as_they_were_given(keys: Keys) -> None:
    _, kept = keys.create("web", FULL, NOW)
    terms = keys.policy(NOW).keys[0]
    assert terms == kept.terms
    assert (terms.budget_day, terms.budget_month, terms.models) == (1_500_000, 20_000_000, ("fast", "venice/*"))
    assert set(FULL) == set(TERMS)
    assert unpack(pack(keys.policy(NOW))) == keys.policy(NOW)


def test_two_keys_differ_and_one_name_has_one(keys: Keys) -> None:
    first, _ = keys.create("a", {}, NOW)
    second, _ = keys.create("b", {}, NOW)
    assert first != second
    with pytest.raises(RequestError) as caught:
        keys.create("A", {}, NOW)
    assert (caught.value.status, caught.value.code) == (409, "key_exists")


@pytest.mark.parametrize(
    ("name", "terms", "says"),
    [
        ("", {}, "name observed an empty string"),
        ("a b", {}, "name"),
        ("a" * 65, {}, "name"),
        ("a\n[[keys]]", {}, "name"),
        ("'; DROP TABLE keys; --", {}, "name"),
        ("../../etc/passwd", {}, "name"),
        ("\ud800", {}, "name"),
        ("a", {"rpm": 0}, "rpm observed 0"),
        ("a", {"rpm": "60"}, "rpm observed"),
        ("a", {"rpm": True}, "rpm observed"),
        ("a", {"rpm": 1.5}, "rpm observed"),
        ("a", {"tpm": 10**13}, "tpm observed"),
        ("a", {"budget_usd_per_day": -1}, "budget_usd_per_day observed"),
        ("a", {"budget_usd_per_day": float("nan")}, "budget_usd_per_day observed"),
        ("a", {"models": []}, "models observed 0"),
        ("a", {"models": ["a*b"]}, "models"),
        ("a", {"priority": "highest"}, "priority"),
        ("a", {"tags": {"a b": "c"}}, "tags"),
        ("a", {"rmp": 60}, "did you mean rpm"),
        ("a", {"sha256": "0" * 64}, "is not known"),
        ("a", {"x" * 10_000: 1}, "is not known"),
    ],
)
def test_what_a_key_cannot_be_is_said_and_nothing_is_kept(
    keys: Keys, name: str, terms: dict[str, Any], says: str
) -> None:
    with pytest.raises(RequestError) as caught:
        keys.create(name, terms, NOW)
    assert caught.value.status == 400
    assert says in caught.value.message
    assert len(caught.value.message) < 1000
    assert keys.listed() == []


def test_everything_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(RequestError, match=r"rpm observed 0.*; tpm observed 0"):
        read_terms("a", {"rpm": 0, "tpm": 0})


def test_a_rotated_key_is_valid_beside_the_new_one_for_as_long_as_was_said(keys: Keys) -> None:
    old, _ = keys.create("web", {"rpm": 5}, NOW)
    new, kept = keys.rotate("web", 60.0, NOW)
    assert kept.before_until == NOW + 60.0
    assert [one.sha256 for one in keys.policy(NOW + 59).keys[0].digests] == [sha(new), sha(old)]
    assert [one.sha256 for one in keys.policy(NOW + 60).keys[0].digests] == [sha(new)]
    assert keys.policy(NOW).keys[0].rpm == 5


def test_of_a_key_rotated_twice_only_the_last_but_one_stays(keys: Keys) -> None:
    keys.create("web", {}, NOW)
    second, _ = keys.rotate("web", 60.0, NOW)
    third, _ = keys.rotate("web", 60.0, NOW)
    assert [one.sha256 for one in keys.policy(NOW).keys[0].digests] == [sha(third), sha(second)]
    fourth, _ = keys.rotate("web", 0.0, NOW)
    assert [one.sha256 for one in keys.policy(NOW).keys[0].digests] == [sha(fourth)]


@pytest.mark.parametrize("overlap_s", [-1.0, OVERLAP_S_MAX + 1, float("nan"), float("inf")])
def test_an_overlap_beyond_its_bounds_is_refused(keys: Keys, overlap_s: float) -> None:
    keys.create("web", {}, NOW)
    with pytest.raises(RequestError, match="expected 0 to"):
        keys.rotate("web", overlap_s, NOW)


def test_a_revoked_key_stays_on_record_and_its_name_may_be_used_again(keys: Keys) -> None:
    keys.create("web", {}, NOW)
    assert keys.revoke("WEB", NOW + 1).revoked == NOW + 1
    policy = keys.policy(NOW + 1)
    assert policy.keys == ()
    # Nobody is let in without a key because the last one is gone.
    assert policy.closed
    for change in (lambda: keys.revoke("web", NOW), lambda: keys.rotate("web", 0, NOW)):
        with pytest.raises(RequestError) as caught:
            change()
        assert (caught.value.status, caught.value.code) == (404, "key_not_found")
    keys.create("web", {}, NOW + 2)
    assert [(one.name, one.revoked) for one in keys.listed()] == [("web", NOW + 1), ("web", None)]


def test_another_process_sees_that_something_has_changed(keys: Keys) -> None:
    with Keys(keys.path.parent) as other:
        before = keys.generation()
        assert keys.generation() == before
        other.create("a", {}, NOW)
        assert keys.generation() != before


def test_what_was_spent_is_kept_and_what_is_over_is_forgotten(keys: Keys) -> None:
    keys.save_spent({("web", "2026-11-24"): 5, ("web", "2026-11"): 7}, ("2026-11-24", "2026-11"))
    keys.save_spent({("web", "2026-11-25"): 1, ("web", "2026-11"): 8}, ("2026-11-25", "2026-11"))
    assert keys.spent(("2026-11-24", "2026-11-25", "2026-11")) == {("web", "2026-11-25"): 1, ("web", "2026-11"): 8}


def test_a_file_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    with Keys(tmp_path) as keys:
        keys.create("a", {}, NOW)
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(InternalError, match="later version"):
        Keys(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("content", [b"not a database, but long enough to be read as one" * 100, b"SQLite format 3\0"])
def test_what_is_no_database_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(InternalError, match=r"keys\.sqlite cannot be used"):
        Keys(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InternalError, match="cannot be used"):
        Keys(tmp_path / "state")
