"""The choice for `model: "auto"`: bounds from body, header and configuration; filters; ranks; refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.api.body import judge
from dandolo.api.intent import USE_CASES, Features, Intent
from dandolo.config.schema import Auto, AutoModel, UseCase
from dandolo.errors import RequestError
from dandolo.route.models import NEUTRAL, Bounds, Facts, Table, read_bounds

ANY = Bounds(3600.0, 1e6, 0.0)


def intent(use: UseCase = "question", tokens: int = 1000, most: int | None = None, *needs: str) -> Intent:
    features = Features(input_tokens=tokens, output_tokens_max=most, capabilities=frozenset(needs))
    return Intent(use, features, "")


def facts(price: float = 1.0, **other: Any) -> Facts:
    """Prices in USD per million tokens, both ways alike."""
    return Facts(price_in=price / 1e6, price_out=price / 1e6, **other)


def table(*rows: AutoModel, cost_weight: float = 10.0) -> Table:
    return Table(Auto(cost_weight=cost_weight, models=rows))


def bounds(body: dict[str, Any] | None = None, **headers: str) -> Bounds:
    fields = judge(json.dumps({"model": "auto", **(body or {})}).encode()).fields
    given = {f"x-dandolo-{name.replace('_', '-')}".encode(): value.encode() for name, value in headers.items()}
    return read_bounds(Auto(), fields, given)


def refused(chosen: Table, known: dict[str, Facts], asked: Intent, within: Bounds = ANY) -> RequestError:
    with pytest.raises(RequestError) as caught:
        chosen.choose(asked, within, known, 500)
    assert caught.value.status == 422
    assert caught.value.code == "no_model_fits"
    return caught.value


# -- bounds ---------------------------------------------------------------------------------------------


def test_the_defaults_are_five_seconds_a_cent_and_a_quality_of_four_fifths() -> None:
    assert bounds() == Bounds(5.0, 0.01, 0.8)
    assert bounds({"auto": None}) == bounds({"auto": {}}) == bounds()


def test_the_operators_bounds_hold_where_a_request_states_none() -> None:
    fields = judge(b'{"model":"auto"}').fields
    assert read_bounds(Auto(max_latency=2.0, max_cost_usd=0.5, quality=0.3), fields, {}) == Bounds(2.0, 0.5, 0.3)


def test_a_request_states_bounds_in_its_body_or_in_headers_and_the_body_wins() -> None:
    both = bounds({"auto": {"max_latency": 1500, "quality": 0.9}}, max_latency="2s", max_cost="0.25")
    assert both == Bounds(1.5, 0.25, 0.9, frozenset({"max_latency", "max_cost", "quality"}))


@pytest.mark.parametrize(
    ("value", "seconds"), [("1500ms", 1.5), ("2s", 2.0), (1500, 1.5), (0.5, 0.0005), ("1m", 60.0), ("1h", 3600.0)]
)
def test_a_wait_has_a_unit_or_is_in_milliseconds(value: Any, seconds: float) -> None:
    assert bounds({"auto": {"max_latency": value}}).max_latency_s == pytest.approx(seconds)
    assert bounds(max_latency=str(value)).max_latency_s == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("body", "headers", "param"),
    [
        ({"auto": []}, {}, "auto"),
        ({"auto": "fast"}, {}, "auto"),
        ({"auto": {"max_latncy": 3}}, {}, "auto.max_latncy"),
        ({"auto": {"max_latency": "soon"}}, {}, "auto.max_latency"),
        ({"auto": {"max_latency": 0}}, {}, "auto.max_latency"),
        ({"auto": {"max_latency": True}}, {}, "auto.max_latency"),
        ({"auto": {"max_latency": "2h"}}, {}, "auto.max_latency"),
        ({"auto": {"max_latency": -5}}, {}, "auto.max_latency"),
        ({"auto": {"max_latency": 10**400}}, {}, "auto.max_latency"),
        ({"auto": {"max_latency": -(10**400)}}, {}, "auto.max_latency"),
        ({"auto": {"max_cost": "0.1"}}, {}, "auto.max_cost"),
        ({"auto": {"max_cost": -0.1}}, {}, "auto.max_cost"),
        ({"auto": {"quality": 1.1}}, {}, "auto.quality"),
        ({"auto": {"quality": False}}, {}, "auto.quality"),
        ({}, {"max_latency": "soon"}, "x-dandolo-max-latency"),
        ({}, {"max_latency": ""}, "x-dandolo-max-latency"),
        ({}, {"max_cost": "inf"}, "x-dandolo-max-cost"),
        ({}, {"max_cost": "1e-3"}, "x-dandolo-max-cost"),
        ({}, {"quality": "2"}, "x-dandolo-quality"),
        ({}, {"quality": "9" * 400}, "x-dandolo-quality"),
    ],
)
def test_what_is_no_bound_is_refused_by_name(body: dict[str, Any], headers: dict[str, str], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        bounds(body, **headers)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert param in caught.value.message


# -- filters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("worse", "asked", "within", "reason"),
    [
        (facts(capabilities=frozenset({"tools"})), intent("multimodal", 1000, None, "vision"), ANY, "capability"),
        (facts(context_tokens=8000), intent("long_context", 9000), ANY, "context"),
        (facts(context_tokens=8000), intent("question", 5000, 4000), ANY, "context"),
        (facts(latency_s=6.0), intent(), Bounds(5.0, 1.0, 0.0), "max_latency"),
        (facts(100.0), intent(), Bounds(5.0, 0.01, 0.0), "max_cost"),
    ],
)
def test_what_cannot_answer_is_left_out_and_says_why(worse: Facts, asked: Intent, within: Bounds, reason: str) -> None:
    able = facts(0.1, context_tokens=100_000, capabilities=frozenset({"tools", "vision"}), latency_s=1.0)
    found = table().choose(asked, within, {"worse": worse, "able": able}, 500)
    assert found.names == ("able",)
    assert {row.name: row.left_out for row in found.rows} == {"worse": reason, "able": None}


def test_a_quality_below_what_is_asked_for_is_left_out() -> None:
    rows = (AutoModel(name="small", quality={"code": 0.5}), AutoModel(name="large", quality={"code": 0.9}))
    known = {"small": facts(0.1), "large": facts(5.0)}
    assert table(*rows).choose(intent("code"), Bounds(5.0, 1.0, 0.8), known, 500).names == ("large",)
    # What is asked for is what counts: for questions nobody said anything, so both are neutral.
    assert table(*rows).choose(intent(), Bounds(5.0, 1.0, 0.8), known, 500).names == ("small", "large")


def test_a_longer_context_goes_to_the_next_model_whose_window_fits() -> None:
    known = {"8k": facts(0.1, context_tokens=8192), "32k": facts(0.2, context_tokens=32_768)}
    known["128k"] = facts(0.4, context_tokens=131_072)
    for tokens, names in ((1000, ("8k", "32k", "128k")), (8193, ("32k", "128k")), (100_000, ("128k",))):
        assert table().choose(intent("long_context", tokens), ANY, known, 500).names == names


def test_the_operators_window_capabilities_and_wait_count() -> None:
    row = AutoModel(name="m", context_tokens=100, capabilities=("vision",), latency=9.0)
    known = {"m": Facts(context_tokens=10_000, capabilities=frozenset({"tools"}))}
    assert "window of 100" in refused(table(row), known, intent(tokens=200)).message
    assert "tools" in refused(table(row), known, intent("tools", 10, None, "tools")).message
    assert "9 s" in refused(table(row), known, intent(tokens=10), Bounds(5.0, 1.0, 0.0)).message
    # What is measured is better than what was expected.
    assert table(row).choose(intent(tokens=10), Bounds(5.0, 1.0, 0.0), {"m": Facts(latency_s=1.0)}, 5).names == ("m",)


# -- ranks ----------------------------------------------------------------------------------------------


def test_the_best_is_quality_less_weighted_cost() -> None:
    rows = (AutoModel(name="good", quality={"code": 0.95}), AutoModel(name="cheap", quality={"code": 0.85}))
    known = {"good": facts(10.0), "cheap": facts(1.0)}
    found = table(*rows, cost_weight=10.0).choose(intent("code"), ANY, known, 1000)
    # 2,000 tokens: 0.02 and 0.002 USD.
    assert found.names == ("cheap", "good")
    assert [row.score for row in found.rows] == pytest.approx([0.95 - 0.2, 0.85 - 0.02])
    assert [row.cost_usd for row in found.rows] == pytest.approx([0.02, 0.002])
    assert table(*rows, cost_weight=1.0).choose(intent("code"), ANY, known, 1000).names == ("good", "cheap")


def test_equals_are_ranked_by_their_wait_and_then_by_their_order() -> None:
    known = {"c": facts(), "b": facts(latency_s=2.0), "a": facts(latency_s=1.0), "d": facts()}
    assert table().choose(intent(), ANY, known, 500).names == ("a", "b", "c", "d")


def test_who_surely_has_the_capability_comes_before_who_may_have_it() -> None:
    known = {"cheap": facts(0.1), "sure": facts(9.0, capabilities=frozenset({"vision"}))}
    found = table().choose(intent("multimodal", 100, None, "vision"), ANY, known, 100)
    assert found.names == ("sure", "cheap")
    assert [row.sure for row in found.rows] == [False, True]


def test_an_unknown_price_ranks_last_and_is_no_answer_to_a_stated_bound() -> None:
    known = {"unknown": Facts(), "known": facts(1.0)}
    assert table().choose(intent(), Bounds(5.0, 0.01, 0.8), known, 500).names == ("known", "unknown")
    stated = Bounds(5.0, 0.01, 0.8, frozenset({"max_cost"}))
    assert table().choose(intent(), stated, known, 500).names == ("known",)
    assert "price is not known" in refused(table(), {"unknown": Facts()}, intent(), stated).message


@pytest.mark.parametrize(
    ("use", "first", "second"),
    [
        ("question", "venice/llama-3.3-70b", "openrouter/mistralai/mixtral-8x7b-instruct"),
        ("code", "deepseek/deepseek-coder", "codellama-34b"),
        ("long_context", "anthropic/claude-3-haiku", "openai/gpt-4-turbo"),
        ("multimodal", "gpt-4-vision-preview", "llava-v1.6"),
    ],
)
def test_without_a_table_names_tell_what_models_are_good_at(use: UseCase, first: str, second: str) -> None:
    known = {"anything": facts(0.01), second: facts(0.02), first: facts(0.03)}
    assert table().choose(intent(use), ANY, known, 500).names == (first, second, "anything")
    assert Table(Auto()).quality("anything", use) == NEUTRAL == Auto().quality


def test_with_a_table_only_its_models_take_part() -> None:
    known = {"a": facts(1.0), "b": facts(2.0)}
    assert table(AutoModel(name="b"), AutoModel(name="c")).choose(intent(), ANY, known, 500).names == ("b",)


# -- refusals -------------------------------------------------------------------------------------------


def test_when_nothing_fits_the_bound_and_the_nearest_model_are_named() -> None:
    known = {"far": facts(900.0), "near": facts(20.0), "slow": facts(900.0, latency_s=60.0)}
    error = refused(table(), known, intent(), Bounds(5.0, 0.01, 0.8))
    assert error.param == "auto.max_cost"
    assert error.message == (
        "none of 3 models fits; the nearest is 'near': its cost of about 0.03 USD is beyond max_cost, 0.01 USD"
    )


def test_a_missing_capability_is_further_away_than_any_price() -> None:
    blind = facts(0.001, capabilities=frozenset())
    dear = facts(1e6, capabilities=frozenset({"vision"}))
    error = refused(
        table(), {"blind": blind, "dear": dear}, intent("multimodal", 9, None, "vision"), Bounds(5, 0.01, 0.5)
    )
    assert "'dear'" in error.message
    alone = refused(table(), {"blind": blind}, intent("multimodal", 9, None, "vision"))
    assert alone.param == "model"
    assert (
        alone.message
        == "the only model does not fit; the nearest is 'blind': the request needs vision, which it does not have"
    )


def test_no_model_at_all_is_said_so() -> None:
    assert refused(table(), {}, intent()).param == "model"
    assert refused(table(AutoModel(name="gone")), {"other": facts()}, intent()).param == "model"


# -- whatever comes -------------------------------------------------------------------------------------

_prices = st.one_of(st.none(), st.floats(0, 1e-3))
_facts = st.builds(
    Facts,
    context_tokens=st.one_of(st.none(), st.integers(1, 10**6)),
    capabilities=st.one_of(st.none(), st.frozensets(st.sampled_from(["tools", "vision"]))),
    price_in=_prices,
    price_out=_prices,
    latency_s=st.one_of(st.none(), st.floats(0, 100)),
)


@given(
    known=st.dictionaries(st.sampled_from("abcdefgh"), _facts, min_size=1),
    use=st.sampled_from(USE_CASES),
    tokens=st.integers(0, 10**6),
    needs=st.frozensets(st.sampled_from(["tools", "vision"])),
    within=st.builds(Bounds, st.floats(0.001, 100), st.floats(0, 1), st.floats(0, 1)),
)
def test_every_model_is_either_ranked_or_left_out_and_the_ranked_keep_all_bounds(
    known: dict[str, Facts], use: UseCase, tokens: int, needs: frozenset[str], within: Bounds
) -> None:
    asked = intent(use, tokens, None, *needs)
    try:
        found = table().choose(asked, within, known, 500)
    except RequestError:
        # Then none of them would have been taken alone either.
        for name, fact in known.items():
            refused(table(), {name: fact}, asked, within)
        return
    assert found.names
    assert sorted(found.names) == sorted(row.name for row in found.rows if row.left_out is None)
    assert {row.name for row in found.rows} == set(known)
    for row in found.rows:
        if row.left_out is None:
            fact = known[row.name]
            assert fact.capabilities is None or needs <= fact.capabilities
            assert fact.context_tokens is None or tokens <= fact.context_tokens
            assert row.cost_usd is None or row.cost_usd <= within.max_cost_usd
            assert row.latency_s is None or row.latency_s <= within.max_latency_s
            assert row.quality >= within.quality
