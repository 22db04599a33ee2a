"""What is known of models: configured above fetched, old lists until new ones come, and what is due when."""

from __future__ import annotations

from typing import Any

import pytest

from dandolo.api.profiles.listing import Listing, ModelFacts
from dandolo.config import parse
from dandolo.route.catalog import Catalog
from dandolo.route.facts import REFRESH_S, RETRY_S, Facts

TEXT = """
[[providers]]
name = "venice"
profile = "venice"
key = { env = "K1" }
[[providers]]
name = "closed"
base_url = "http://127.0.0.1:9/v1"
[[providers.models]]
id = "full"
input_usd_per_mtok = 5.0
output_usd_per_mtok = 6.0
context_tokens = 1000
output_tokens_max = 100
capabilities = ["tools"]
[[providers.models]]
id = "half"
output_usd_per_mtok = 6.0
[[providers.models]]
id = "bare"
[[providers.models]]
id = "none"
capabilities = []
[[providers]]
name = "azure"
profile = "azure"
base_url = "https://x.openai.azure.com/openai"
api_version = "2024-10-21"
key = { env = "K1" }
"""
ENVIRON = {"K1": "sk-one-0123456789", "HOME": "/x"}


@pytest.fixture
def facts() -> Facts:
    return Catalog(parse(TEXT, "d.toml", ENVIRON)).facts


def fetched(*ids: str, complete: bool = True) -> Listing:
    return Listing({name: rich(name) for name in ids}, complete=complete)


def rich(name: str, *prices: float | None, **more: Any) -> ModelFacts:
    base: dict[str, Any] = {
        "context_tokens": 9,
        "output_tokens_max": 8,
        "capabilities": frozenset(("vision",)),
        "kind": "text",
        "offline": True,
    }
    return ModelFacts(name, *(prices or (1.0, 2.0, 0.5)), **{**base, **more})


def test_before_any_list_the_configuration_is_all_there_is(facts: Facts) -> None:
    assert facts.of("venice", "llama") is None
    assert facts.of("closed", "bare") == ModelFacts("bare")
    assert facts.of("closed", "half") == ModelFacts("half", None, 6.0)
    assert facts.of("closed", "unheard") is None
    assert facts.of("nobody", "bare") is None
    assert facts.models("venice") == facts.models("nobody") == {}
    assert [facts.has(*pair) for pair in (("venice", "x"), ("closed", "x"), ("closed", "bare"), ("nobody", "x"))] == [
        None,
        False,
        True,
        None,
    ]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            "full",
            rich(
                "full",
                5.0,
                6.0,
                None,
                context_tokens=1000,
                output_tokens_max=100,
                capabilities=frozenset(("tools",)),
            ),
        ),
        ("half", rich("half", None, 6.0, None)),
        ("bare", rich("bare")),
        ("none", rich("none", capabilities=frozenset())),
    ],
)
def test_what_is_configured_stands_above_what_is_fetched(facts: Facts, model: str, expected: ModelFacts) -> None:
    facts.replace("closed", fetched("full", "half", "bare", "none", "more"), 0.0)
    assert facts.of("closed", model) == expected
    assert facts.of("closed", "more") is None
    assert set(facts.models("closed")) == {"full", "half", "bare", "none"}
    assert facts.has("closed", "more") is False


def test_a_list_is_replaced_whole_and_told_by_the_generation(facts: Facts) -> None:
    held = facts.models("venice")
    facts.replace("venice", fetched("a", "b"), 0.0)
    assert held == {}
    assert facts.generation == 1
    facts.replace("venice", fetched("b", "c"), 5.0)
    assert facts.generation == 2
    assert [facts.has("venice", name) for name in "abc"] == [False, True, True]
    facts.replace("nobody", fetched("a"), 5.0)
    facts.replace("venice", fetched("b", "c"), 9.0)
    assert facts.generation == 2
    assert facts.age_s("venice", 10.0) == 1.0


def test_a_page_of_a_list_denies_nothing(facts: Facts) -> None:
    facts.replace("venice", fetched("a", complete=False), 0.0)
    assert facts.has("venice", "a") is True
    assert facts.has("venice", "b") is None


def test_an_old_list_serves_until_there_is_a_new_one(facts: Facts) -> None:
    facts.replace("venice", fetched("a"), 0.0)
    now = 86_400.0
    assert facts.refused("venice", "observed nothing", now)
    assert facts.of("venice", "a") == rich("a")
    assert facts.age_s("venice", now) == now
    assert facts.problem("venice") == "observed nothing"
    facts.replace("venice", fetched("a"), now)
    assert facts.problem("venice") == ""


def test_only_a_new_reason_is_news(facts: Facts) -> None:
    assert facts.refused("venice", "one", 0.0)
    assert not facts.refused("venice", "one", 1.0)
    assert facts.refused("venice", "two", 2.0)
    facts.replace("venice", fetched("a"), 3.0)
    assert facts.refused("venice", "two", 4.0)
    assert not facts.refused("nobody", "one", 0.0)
    assert facts.problem("nobody") == ""


def test_a_list_is_due_at_once_then_every_ten_minutes_or_a_minute_after_a_bad_one(facts: Facts) -> None:
    assert facts.due("venice", 0.0)
    assert not facts.fetched("venice")
    facts.replace("venice", fetched("a"), 0.0)
    assert facts.fetched("venice")
    assert not facts.due("venice", REFRESH_S - 0.1)
    assert facts.due("venice", REFRESH_S)
    facts.refused("venice", "garbage", 700.0)
    assert not facts.due("venice", 700.0 + RETRY_S - 0.1)
    assert facts.due("venice", 700.0 + RETRY_S)
    facts.refused("venice", "no connection", 800.0, retry_s=0.0)
    assert facts.due("venice", 800.0)


def test_a_list_that_names_no_deployments_is_never_due(facts: Facts) -> None:
    assert not facts.due("azure", 1e9)
    assert not facts.due("nobody", 1e9)


def test_a_body_is_read_by_the_providers_profile(facts: Facts) -> None:
    assert facts.read("venice", b'{"data":[{"id":"a"}]}').models == {"a": ModelFacts("a")}
    with pytest.raises(ValueError, match="venice"):
        facts.read("venice", b"<html>")


def test_a_reload_keeps_the_lists_of_providers_that_are_the_same(facts: Facts) -> None:
    facts.replace("venice", fetched("a"), 7.0)
    facts.replace("closed", fetched("bare", "half"), 7.0)
    text = TEXT.replace("http://127.0.0.1:9/v1", "http://127.0.0.1:10/v1")
    moved = Catalog(parse(text, "d.toml", ENVIRON)).facts
    moved.inherit(facts)
    assert moved.of("venice", "a") == rich("a")
    assert moved.age_s("venice", 8.0) == 1.0
    assert not moved.due("venice", 8.0)
    assert moved.generation == 1
    assert not moved.fetched("closed")
    cheaper = Catalog(parse(TEXT.replace("= 5.0", "= 4.0").replace('id = "bare"', 'id = "new"'), "d.toml", ENVIRON))
    cheaper.facts.inherit(facts)
    assert cheaper.facts.of("closed", "half") == rich("half", None, 6.0, None)
    assert cheaper.facts.of("closed", "full") == facts_of("full", 4.0)
    assert cheaper.facts.of("closed", "bare") is None


def facts_of(name: str, price: float) -> ModelFacts:
    return ModelFacts(name, price, 6.0, context_tokens=1000, output_tokens_max=100, capabilities=frozenset(("tools",)))
