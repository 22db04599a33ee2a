"""What is decided without any connection: owners, leases, purges in order, heat."""

from __future__ import annotations

import hashlib
from collections import Counter

from dandolo.cache.peers import heat, leases, purges
from dandolo.cache.peers.frames import Inv, Sync
from dandolo.cache.peers.heat import Heat
from dandolo.cache.peers.leases import LEASE_S, Leases
from dandolo.cache.peers.ownership import owner_of, seed_of
from dandolo.cache.peers.purges import Heard, Journal

KEYS = [hashlib.sha256(b"%d" % number).digest()[:20] for number in range(3000)]
KEY = KEYS[0]


def seeds(*names: str) -> list[tuple[str, int]]:
    return [(name, seed_of(name)) for name in names]


# -- owners --------------------------------------------------------------------------------------------------


def test_all_agree_on_the_owner_in_whatever_order_they_know_each_other() -> None:
    there, back = seeds("a", "b", "c"), seeds("c", "b", "a")
    assert [owner_of(key, there) for key in KEYS] == [owner_of(key, back) for key in KEYS]
    assert owner_of(KEY, []) == ""


def test_keys_are_spread_evenly() -> None:
    counts = Counter(owner_of(key, seeds("a", "b", "c")) for key in KEYS)
    assert set(counts) == {"a", "b", "c"}
    assert all(800 < count < 1200 for count in counts.values())


def test_one_that_goes_moves_only_its_own_keys() -> None:
    before = {key: owner_of(key, seeds("a", "b", "c")) for key in KEYS}
    after = {key: owner_of(key, seeds("a", "c")) for key in KEYS}
    assert all(after[key] == name for key, name in before.items() if name != "b")
    assert {after[key] for key, name in before.items() if name == "b"} == {"a", "c"}


# -- leases --------------------------------------------------------------------------------------------------


def test_first_gets_the_lease_and_the_others_wait_for_him() -> None:
    table = Leases()
    assert table.ask(KEY, "a", "", 0.0) == "a"
    assert table.ask(KEY, "b", "", 1.0) == "a"
    assert table.ask(KEY, "a", "", 1.0) == "a"
    assert table.ask(KEYS[1], "b", "", 1.0) == "b"
    table.release(KEY, "b")
    assert table.ask(KEY, "b", "", 1.0) == "a"
    table.release(KEY, "a")
    assert table.ask(KEY, "b", "", 1.0) == "b"


def test_a_lease_ends_unless_it_is_renewed() -> None:
    table = Leases()
    table.ask(KEY, "a", "", 0.0)
    table.renew([KEY, KEYS[1]], "a", 4.0)
    assert table.ask(KEY, "b", "", LEASE_S + 3.9) == "a"
    assert table.ask(KEY, "b", "", LEASE_S + 4.0) == "b"
    table.renew([KEY], "a", 9.5)
    assert table.ask(KEY, "c", "", 10.0) == "b"
    assert len(table) == 1


def test_one_of_those_who_lost_the_holder_replaces_him() -> None:
    table = Leases()
    table.ask(KEY, "a", "", 0.0)
    assert table.ask(KEY, "b", "a", 1.0) == "b"
    assert table.ask(KEY, "c", "a", 1.0) == "b"
    assert table.ask(KEY, "d", "a", 1.0) == "b"
    table.drop("b")
    assert table.ask(KEY, "c", "a", 1.0) == "c"


def test_leases_are_bounded_and_those_that_ended_make_room() -> None:
    table = Leases()
    for number in range(leases.LEASES_MAX):
        assert table.ask(number.to_bytes(20, "big"), "a", "", 0.0) == "a"
    assert table.ask(b"one too many........", "a", "", 1.0) is None
    assert table.ask((7).to_bytes(20, "big"), "b", "", 1.0) == "a"
    assert table.ask(b"one too many........", "b", "", LEASE_S) == "b"


# -- purges --------------------------------------------------------------------------------------------------


def tell(journal: Journal, heard: Heard, name: str = "a", instance: bytes = b"1") -> tuple[int, bool]:
    """Everything that is said on a new connection: how many purges were new, and whether some were missed."""
    new, flushed = 0, False
    for frame in journal.story():
        if isinstance(frame, Sync):
            flushed = heard.sync(name, instance, frame.first, frame.last)
        else:
            fresh, missed = heard.heard(instance, frame.sequence)
            new, flushed = new + fresh, flushed or missed
    return new, flushed


def add(journal: Journal, count: int) -> list[Inv]:
    return [journal.add(("tag", f"t{number}", False)) for number in range(count)]


def test_purges_are_numbered_and_heard_once() -> None:
    journal, heard = Journal(), Heard()
    assert tell(journal, heard) == (0, False)
    first, second = add(journal, 2)
    assert (first.sequence, second.sequence, second.name) == (1, 2, "t1")
    assert heard.heard(b"1", 1) == (True, False)
    assert heard.heard(b"1", 2) == (True, False)
    assert heard.heard(b"1", 2) == (False, False)
    assert tell(journal, heard) == (0, False)


def test_what_was_missed_while_apart_is_heard_on_the_next_connection() -> None:
    journal, heard = Journal(), Heard()
    add(journal, 3)
    assert tell(journal, heard) == (3, False)
    add(journal, purges.REMEMBERED_MAX)
    assert tell(journal, heard) == (purges.REMEMBERED_MAX, False)


def test_what_is_not_remembered_any_more_drops_everything_once() -> None:
    journal, heard = Journal(), Heard()
    tell(journal, heard)
    add(journal, purges.REMEMBERED_MAX + 1)
    assert tell(journal, heard) == (purges.REMEMBERED_MAX, True)
    assert tell(journal, heard) == (0, False)


def test_a_gap_on_a_connection_is_noticed() -> None:
    heard = Heard()
    heard.sync("a", b"1", 1, 0)
    assert heard.heard(b"1", 1) == (True, False)
    assert heard.heard(b"1", 3) == (True, True)
    assert heard.heard(b"1", 4) == (True, False)


def test_last_words_of_a_life_that_ended_in_silence_are_not_trusted() -> None:
    heard = Heard()
    heard.sync("a", b"1", 1, 0)
    # It closed the connection: whatever it had said was heard.
    assert not heard.sync("a", b"2", 1, 0)
    # The connection was given up, and the process came back as another.
    heard.silent("a")
    assert heard.sync("a", b"3", 1, 0)
    assert not heard.sync("a", b"3", 1, 0)
    # Given up, but it is still the same: it repeats what it had to say.
    heard.silent("a")
    assert not heard.sync("a", b"3", 1, 0)


def test_lives_are_remembered_within_bounds_and_forgetting_one_asks_for_its_purges_again() -> None:
    journal, heard = Journal(), Heard()
    add(journal, 1)
    assert tell(journal, heard) == (1, False)
    for number in range(purges.ORIGINS_MAX):
        heard.sync(f"n{number}", b"%d" % (number + 2), 1, 0)
    assert tell(journal, heard) == (1, False)


# -- heat ----------------------------------------------------------------------------------------------------


def test_a_key_is_hot_once_beyond_eight_hits_a_minute() -> None:
    counts = Heat()
    assert [counts.asked(KEY, 0.0) for _ in range(12)] == [False] * 8 + [True] + [False] * 3
    assert not any(counts.asked(KEY, 60.0 + number) for number in range(8))
    assert counts.asked(KEY, 119.0)
    assert not any(counts.asked(KEYS[1], float(number) * 8) for number in range(40))


def test_heat_is_bounded() -> None:
    counts = Heat()
    for number in range(heat.KEYS_MAX * 3):
        counts.asked(number.to_bytes(20, "big"), 0.0)
    assert len(counts._counts) <= heat.KEYS_MAX
