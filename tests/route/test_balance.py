"""Who is asked: the score, the draw, the filters, tiers, stickiness, and what is told of all that."""

from __future__ import annotations

import random
from collections import Counter
from math import exp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dandolo.config.schema import Weights
from dandolo.route.balance import ERRORS_WORST, STICKY_MAX, Balancer
from dandolo.route.breaker import Breaker
from dandolo.route.candidate import Candidate
from dandolo.route.capacity import Slots
from dandolo.route.explain import explain
from dandolo.route.limit import Limit
from dandolo.route.pool import Pool
from dandolo.route.preference import NO_NEED, Need, Preference

NOW = 100.0


def candidate(
    name: str = "p",
    first_s: float = 0.5,
    speed: float = 50.0,
    *,
    price: float | None = 1e-6,
    in_use: int = 0,
    limit: int = 10,
    errors: float = 0.0,
    breaking: bool = True,
    rank: int = 0,
    region: str = "",
    context: int | None = None,
    capabilities: frozenset[str] | None = None,
) -> Candidate:
    slots = Slots(limit)
    slots.in_use = in_use
    made = Candidate(
        name,
        Limit(slots),
        Breaker(lambda: 0.5) if breaking else None,
        price_in=price,
        price_out=price,
        rank=rank,
        region=region,
        context_tokens=context,
        capabilities=capabilities,
    )
    made.measured.first_s = first_s
    made.measured.first_p95_s = 2 * first_s
    made.measured.stall_s = 5 * first_s
    made.measured.tokens_per_s = speed
    made.measured.errors = errors
    made.measured.errors_at = NOW
    return made


def balancer(*draws: float, seed: int = 1) -> Balancer:
    if not draws:
        return Balancer(random.Random(seed).random)
    left = list(draws)
    return Balancer(lambda: left.pop(0))


def score(*candidates: Candidate, n_in: float = 100.0, n_out: float = 100.0) -> list[float]:
    return balancer(0.0).score(candidates, NOW, n_in, n_out, Weights()).totals


def opened(made: Candidate) -> Candidate:
    assert made.breaker is not None
    for _ in range(3):
        made.breaker.failed(NOW)
    return made


def test_the_score_is_the_formula() -> None:
    fast = candidate("fast", 0.5, 100.0, price=4e-6, in_use=4)
    slow = candidate("slow", 1.0, 50.0, price=1e-6, errors=0.1)
    assert score(fast, slow) == pytest.approx(
        [
            0.4 + 0.3 + 0.2 * (1 - 0.5**2) + 0.1 * 0.25,
            0.4 * 1.5 / 3.0 + 0.3 * (1 - 0.1 / ERRORS_WORST) + 0.2 * (1 - 0.1**2) + 0.1,
        ]
    )


def test_errors_count_up_to_twice_the_rate_at_which_their_term_is_spent() -> None:
    spent, twice = score(candidate(errors=ERRORS_WORST))[0], score(candidate(errors=2 * ERRORS_WORST))[0]
    assert twice == pytest.approx(spent - 0.3)
    assert score(candidate(errors=0.9))[0] == pytest.approx(twice)


def test_a_brownout_is_not_outweighed_by_four_times_the_speed() -> None:
    failing, sound = score(candidate("quick", 0.25, 200.0, errors=0.25), candidate("slow", 1.0, 50.0))
    assert sound > failing


def test_a_dead_provider_ranks_below_a_sound_one_of_a_third_of_its_speed() -> None:
    dead = candidate("dead", 0.3, 130.0, errors=0.6, limit=100)
    slow = candidate("slow", 0.9, 43.0, in_use=6, price=1.3e-6)
    failing, sound = score(dead, slow)
    assert sound > failing + 0.1


def test_a_good_provider_is_not_left_while_it_is_half_idle() -> None:
    busy, idle = score(candidate("good", 0.5, 60.0, in_use=3), candidate("worse", 0.6, 50.0))
    assert busy > idle
    full, idle = score(candidate("good", 0.5, 60.0, in_use=9), candidate("worse", 0.6, 50.0))
    assert full < idle


def test_a_fast_provider_with_forty_percent_errors_ranks_below_a_slow_healthy_one() -> None:
    fast, slow = score(candidate("fast", 0.3, 100.0, errors=0.4), candidate("slow", 0.8, 50.0))
    assert slow > fast


def test_headroom_counts_as_load_until_it_expires() -> None:
    made = candidate()
    free = score(made)[0]
    made.limit.told(2, 10, until=NOW + 1)
    assert score(made)[0] == pytest.approx(free - 0.2 * (0.8**2 - 0.1**2))
    made.limit.told_until = NOW - 1
    assert score(made)[0] == free


def test_a_silent_candidate_loses_its_latency_term() -> None:
    silent, other = candidate("silent", 0.3), candidate("other", 0.6)
    before = score(silent, other)[0]
    silent.measured.begin(NOW - 30.0)
    assert score(silent, other)[0] < before - 0.3


def test_cold_candidates_start_from_their_peers_median() -> None:
    cold = candidate("cold", 0.0, 0.0, price=None)
    peers = [candidate("a", 0.5, price=1e-6), candidate("b", 1.0, price=2e-6), candidate("c", 2.0, price=9e-6)]
    totals = score(cold, *peers)
    assert totals[0] == pytest.approx(totals[2])
    assert len(set(score(candidate("x", 0.0, 0.0), candidate("y", 0.0, 0.0)))) == 1


def test_free_candidates_have_the_whole_cost_term() -> None:
    assert score(candidate(price=0.0), candidate(price=1e-6)) == pytest.approx([0.998, 0.998 - 0.1])


def test_the_draw_follows_the_softmax_and_explores() -> None:
    one, two, three = candidate("1", 0.5), candidate("2", 0.52), candidate("3", 5.0)
    pool, chooser = Pool([one, two, three]), balancer(seed=5)
    seen = Counter(chooser.choose(pool, NOW, 100, 100) for _ in range(20_000))
    totals = score(one, two, three)
    odds = [exp(total / 0.02) for total in totals]
    for index, made in enumerate((one, two, three)):
        expected = 0.02 / 3 + 0.98 * odds[index] / sum(odds)
        assert seen[made] / 20_000 == pytest.approx(expected, abs=0.012)
    assert seen[three] > 50, "nobody looks whether it has become better"


def test_one_candidate_needs_no_draw() -> None:
    def never() -> float:
        raise AssertionError("drew")

    made = candidate()
    assert Balancer(never).choose(Pool([made]), NOW) is made


def test_above_sixteen_candidates_two_are_drawn_and_the_better_is_taken() -> None:
    made = [candidate(str(index), 0.1 * (index + 1)) for index in range(20)]
    # The draws 0.5 and 0.95 name the candidates 10 and 19: of those the faster.
    assert balancer(0.5, 0.95).choose(Pool(made), NOW, 100, 100) is made[10]
    out = [opened(one) for one in made[:19]]
    seen = Counter(balancer(seed=seed).choose(Pool([*out, made[19]]), NOW) for seed in range(50))
    assert seen == {made[19]: 50}


@pytest.mark.parametrize("how", ["breaker", "cool-down", "limit", "headroom", "slow start"])
def test_whoever_cannot_be_asked_is_not(how: str) -> None:
    out, well = candidate("out", 0.1), candidate("well", 3.0)
    if how == "breaker":
        opened(out)
    elif how == "cool-down":
        out.limit.cool(NOW + 1)
    elif how == "limit":
        out.limit.slots.in_use = 10
    elif how == "headroom":
        out.limit.told(0, 10, NOW + 1)
    else:
        out.limit.slots.in_use = 2
        out.limit.begin_slow_start(NOW)
    assert {balancer(seed=seed).choose(Pool([out, well]), NOW) for seed in range(100)} == {well}
    told = explain(balancer(0.5), Pool([out, well]), NOW)
    reason = {"headroom": "limit", "slow start": "limit"}.get(how, how)
    assert [term.left_out for term in told.terms] == [reason, None]
    assert balancer(0.5).choose(Pool([out]), NOW) is None


def test_half_open_lets_one_call_through() -> None:
    """And the others go elsewhere, though the one on trial would be the best."""
    trial, other = opened(candidate("trial", 0.1)), candidate("other", 3.0)
    pool, chooser = Pool([trial, other]), balancer(seed=2)
    assert {chooser.choose(pool, NOW + 0.5) for _ in range(50)} == {other}
    chosen = [chooser.choose(pool, NOW + 2) for _ in range(50)]
    assert chosen[0] is trial
    assert set(chosen[1:]) == {other}


def test_a_retry_is_no_trial_while_somebody_is_well() -> None:
    trial, failed, well = opened(candidate("trial", 0.1)), candidate("failed"), candidate("well", 3.0)
    pool = Pool([trial, failed, well])
    assert balancer(0.5).choose(pool, NOW + 2, tried=[failed]) is well
    assert balancer(0.5).choose(pool, NOW + 2, tried=[failed, well]) is trial
    assert balancer(0.5).choose(pool, NOW + 2, tried=[failed, well]) is None


def test_connection_errors_that_never_cool_down() -> None:
    """Three refused connections take a candidate out; it stays out until its time has come."""
    bad, well = candidate("bad", 0.1), candidate("well", 3.0)
    pool = Pool([bad, well])
    for _ in range(3):
        call, epoch = bad.begin(NOW)
        bad.failed(call, epoch, NOW)
    assert {balancer(seed=seed).choose(pool, NOW + 0.5) for seed in range(50)} == {well}


def test_a_fast_failing_provider_attracts_no_traffic() -> None:
    bad, well = candidate("bad", 0.3, breaking=False), candidate("well", 0.6, breaking=False)
    pool, chooser, sent = Pool([bad, well]), balancer(seed=3), 0
    for step in range(200):
        now = NOW + step * 0.01
        chosen = chooser.choose(pool, now, 100, 100)
        assert chosen is not None
        call, epoch = chosen.begin(now)
        if chosen is bad:
            sent += 1
            chosen.failed(call, epoch, now + 0.001)
        else:
            chosen.first_content(call, epoch, now + 0.6)
            chosen.succeeded(call, epoch, now + 2, 70)
    assert sent <= 12


def test_tiers_are_asked_in_order_and_return() -> None:
    primary, secondary, overflow = candidate("a", 3.0), candidate("b", 0.1, rank=1), candidate("c", 0.1, rank=2)
    pool = Pool([overflow, secondary, primary])
    assert balancer(0.5).choose(pool, NOW) is primary
    primary.limit.slots.in_use = 10
    assert balancer(0.5).choose(pool, NOW) is secondary
    secondary.limit.cool(NOW + 5)
    assert balancer(0.5).choose(pool, NOW) is overflow
    assert balancer(0.5).choose(pool, NOW + 6) is secondary
    primary.limit.slots.in_use = 0
    assert balancer(0.5).choose(pool, NOW + 6) is primary


def test_a_prefix_stays_where_it_is_cached_until_that_is_worse_or_full() -> None:
    one, two = candidate("1", 0.50), candidate("2", 0.51)
    pool, chooser = Pool([one, two]), balancer(seed=9)
    first = chooser.choose(pool, NOW, 100, 100, prefix=b"p")
    assert {chooser.choose(pool, NOW, 100, 100, prefix=b"p") for _ in range(200)} == {first}
    assert len({chooser.choose(pool, NOW, 100, 100) for _ in range(200)}) == 2
    assert first is not None
    first.limit.slots.in_use = 9  # the last slot: its load would be 1
    assert two in {chooser.choose(pool, NOW, 100, 100, prefix=b"p") for _ in range(50)} or first is two
    first.limit.slots.in_use = 0
    first.measured.errors = 0.2
    other = two if first is one else one
    assert other in {chooser.choose(pool, NOW, 100, 100, prefix=b"p") for _ in range(50)}


def test_prefixes_remembered_are_bounded() -> None:
    chooser, pool = balancer(seed=1), Pool([candidate("1"), candidate("2")])
    for number in range(STICKY_MAX + 100):
        chooser.choose(pool, NOW, prefix=str(number).encode())
    assert len(chooser._sticky) == STICKY_MAX


@pytest.mark.parametrize(
    ("need", "reason"),
    [
        (Need(capabilities=frozenset({"tools"})), "capability"),
        (Need(region="eu"), "region"),
        (Need(pinned=frozenset({"other"})), "tenant"),
        (Need(preference=Preference(only=frozenset({"other"}))), "preference"),
        (Need(preference=Preference(ignore=frozenset({"bad"}))), "preference"),
        (Need(preference=Preference(max_price_in=5.0)), "price"),
        (Need(preference=Preference(max_price_out=5.0)), "price"),
        (Need(preference=Preference(order=("other",), allow_fallbacks=False)), "preference"),
    ],
)
def test_what_a_call_needs_leaves_out_who_lacks_it_and_says_why(need: Need, reason: str) -> None:
    bad = candidate("Bad", 0.1, price=9e-6, region="us", capabilities=frozenset({"vision"}))
    other = candidate("Other", 3.0, region="eu", capabilities=frozenset({"tools"}))
    pool = Pool([bad, other], need)
    assert pool.everybody == (other,)
    assert [(made.provider, why) for made, why in pool.rejected] == [("Bad", reason)]
    assert [term.left_out for term in explain(balancer(0.5), pool, NOW).terms] == [None, reason]


def test_a_call_too_long_for_a_window_goes_to_one_that_fits() -> None:
    small, large = candidate("small", 0.1, context=4096), candidate("large", 3.0, context=65_536)
    pool = Pool([small, large])
    assert balancer(0.5).choose(pool, NOW, 4000, 96) is small
    assert balancer(0.5).choose(pool, NOW, 4000, 97) is large
    assert balancer(0.5).choose(pool, NOW, 99_000, 1) is None
    assert balancer(0.5).blocked(pool, NOW, 99_001).why == "none"
    assert balancer(0.5).choose(Pool([small]), NOW, 4000, 97) is None


@pytest.mark.parametrize(
    ("wish", "name"),
    [
        (Preference(sort="price"), "cheap"),
        (Preference(sort="latency"), "prompt"),
        (Preference(sort="throughput"), "quick"),
        (Preference(order=("cheap", "quick")), "cheap"),
    ],
)
def test_a_callers_order_turns_the_weights(wish: Preference, name: str) -> None:
    made = [
        candidate("cheap", 1.0, 40.0, price=1e-6),
        candidate("prompt", 0.2, 45.0, price=3e-6),
        candidate("quick", 0.8, 120.0, price=5e-6),
    ]
    pool = Pool(made, Need(preference=wish))
    chosen = balancer(0.5).choose(pool, NOW, 100, 100)
    assert chosen is not None
    assert chosen.provider == name
    chosen.measured.errors = 1.0
    chosen.limit.cool(NOW + 1)
    assert balancer(0.5).choose(pool, NOW, 100, 100) is not None, "a wish does not outlive its provider"


def test_a_preferred_speed_puts_the_others_behind_and_nobody_out() -> None:
    quick, slow, cold = candidate("quick", 0.2, 50), candidate("slow", 3.0, 400), candidate("cold", 0.0, 0)
    pool = Pool([slow, quick, cold], Need(preference=Preference(first_max_s=1.0)))
    assert {balancer(seed=seed).choose(pool, NOW) for seed in range(40)} == {quick, cold}
    assert [term.left_out for term in explain(balancer(), pool, NOW).terms] == ["preference", None, None]
    pool = Pool([slow, quick], Need(preference=Preference(tokens_per_s_min=100.0)))
    assert balancer().choose(pool, NOW) is slow
    pool = Pool([slow, quick], Need(preference=Preference(first_max_s=0.1)))
    assert balancer().choose(pool, NOW) in (slow, quick)


def test_a_preference_is_for_nobody_who_cannot_be_asked() -> None:
    """Those behind are free: to wait for a slot of theirs would be to wait for nobody."""
    quick, slow = candidate("quick", 0.2), candidate("slow", 3.0)
    pool = Pool([quick, slow], Need(preference=Preference(first_max_s=1.0)))
    quick.limit.cool(NOW + 30)
    assert balancer().choose(pool, NOW) is slow
    told = explain(balancer(), pool, NOW)
    assert (told.chosen, told.how) == (slow, "only")
    assert [term.left_out for term in told.terms] == ["cool-down", None]


def test_the_widest_window_is_too_small_for_nobody() -> None:
    """Also when somebody was asked before, and in the words of an explanation."""
    a, b = candidate("a", context=64), candidate("b", context=64)
    pool = Pool([a, b]).widest()
    assert balancer().choose(pool, NOW, 0, 256, (a,)) is b
    assert explain(balancer(), pool, NOW, 0, 256, (a,)).chosen is b
    assert {term.left_out for term in explain(balancer(), pool, NOW, 0, 256).terms} == {None}
    b.limit.cool(NOW + 3)
    assert balancer().blocked(pool, NOW, 256, (a,)).why == "cooling"
    assert balancer().blocked(pool, NOW, 256, (a, b)).why == "tried"


def test_requirements_leave_out_who_is_not_known_to_meet_them() -> None:
    unknown, able = candidate("unknown"), candidate("able")
    able.capabilities = frozenset({"tools"})
    pool = Pool([unknown, able], Need(preference=Preference(requires=True)))
    assert pool.narrowed(frozenset({"tools"})).everybody == (able,)
    assert Pool([unknown, able]).narrowed(frozenset({"tools"})).everybody == (unknown, able)


def test_turns_come_before_ranks() -> None:
    first, second = candidate("first"), candidate("second")
    first.rank, second.rank = 2, 0
    assert Pool([second, first], NO_NEED, {first: 0, second: 1}).tiers == ((first,), (second,))


def test_blocked_says_what_to_do() -> None:
    def why(*candidates: Candidate, tried: tuple[Candidate, ...] = ()) -> tuple[str, str | None, float]:
        told = balancer(0.5).blocked(Pool(candidates), NOW, tried=tried)
        return told.why, told.candidate.provider if told.candidate is not None else None, told.wait_s

    full, cooling, shut = candidate("full", in_use=10), candidate("cooling"), opened(candidate("shut"))
    cooling.limit.cool(NOW + 3)
    assert why(full, cooling, shut)[:2] == ("full", "full")
    assert why(cooling, shut) == ("cooling", "cooling", pytest.approx(3.0))
    assert why(shut) == ("open", "shut", 1.0)
    assert why(full, tried=(full,)) == ("tried", None, 0.0)
    assert why() == ("none", None, 0.0)


def test_who_waits_for_a_slot_waits_also_where_a_cool_down_will_end() -> None:
    full, cooling, shut = candidate("full", in_use=10), candidate("cooling"), opened(candidate("shut"))
    cooling.limit.cool(NOW + 1)
    told = balancer(0.5).blocked(Pool([cooling, full, shut]), NOW)
    assert (told.why, told.candidate) == ("full", full)
    assert told.full == (full, cooling)


def test_accounts_that_cool_down_for_a_moment_have_queues_to_wait_in() -> None:
    full, soon, late, model = candidate("full", in_use=10), candidate("soon"), candidate("late"), candidate("model")
    soon.limit.cool(NOW + 3)
    late.limit.cool(NOW + 20)
    model.cool(NOW + 1, "overloaded")  # which its account's queue does not know
    assert balancer(0.5).blocked(Pool([soon, late, model]), NOW).full == (soon,)
    assert balancer(0.5).blocked(Pool([full, late, soon, model]), NOW).full == (full, soon, late)
    assert balancer(0.5).blocked(Pool([late, model]), NOW).full == ()
    soon.limit.told(0, 60, until=NOW + 4)  # nor does it know of headers
    assert balancer(0.5).blocked(Pool([soon, late]), NOW).full == ()


def test_an_explanation_adds_up_and_is_what_was_done() -> None:
    made = [candidate("a", 0.5, price=3e-6), candidate("b", 0.6, in_use=3), candidate("c", 0.4, errors=0.05)]
    pool = Pool([*made, opened(candidate("d"))])
    for seed in range(30):
        told = explain(balancer(seed=seed), pool, NOW, 100, 100)
        assert told.chosen is balancer(seed=seed).choose(pool, NOW, 100, 100)
        assert told.how == "draw"
        scored = [term for term in told.terms if term.score is not None]
        assert [term.account for term in scored] == ["a", "b", "c"]
        for term in scored:
            parts = (term.of_latency, term.of_errors, term.of_load, term.of_cost)
            assert sum(part for part in parts if part is not None) == pytest.approx(term.score)
        assert sum(term.probability or 0.0 for term in scored) == pytest.approx(1.0)
        last = told.terms[-1]
        assert (last.left_out, last.breaker, last.reason) == ("breaker", "open", "3 failures in a row")
        assert last.until == pytest.approx(NOW + 1.0)


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.floats(0, 300), st.integers(0, 12), st.floats(0, 1), st.sampled_from("wbc")),
        min_size=1,
        max_size=20,
    ),
    st.integers(0, 10**6),
)
def test_the_choice_and_its_explanation_agree(facts: list[tuple[float, float, int, float, str]], seed: int) -> None:
    made = []
    for index, (first_s, speed, in_use, errors, state) in enumerate(facts):
        one = candidate(str(index), first_s, speed, in_use=in_use, errors=errors)
        if state == "b":
            opened(one)
        elif state == "c":
            one.limit.cool(NOW + 1)
        made.append(one)
    pool = Pool(made)
    chosen = balancer(seed=seed).choose(pool, NOW, 100, 100)
    told = explain(balancer(seed=seed), pool, NOW, 100, 100)
    assert told.chosen is chosen
    able = [one for one in made if one.blocked(NOW) is None]
    assert (chosen is None) == (not able)
    assert chosen is None or chosen in able
    assert [term.left_out for term in told.terms] == [one.blocked(NOW) for one in made]
