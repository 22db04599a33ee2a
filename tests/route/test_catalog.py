"""Names to candidates, as the configuration says."""

from __future__ import annotations

import pytest

from dandolo.api.profiles.listing import Listing, ModelFacts
from dandolo.api.profiles.profile import Endpoint as Speech
from dandolo.config import parse
from dandolo.route.catalog import REMEMBERED_MAX, Catalog, Target, allowed

TEXT = """
[[providers]]
name = "venice"
profile = "venice"
[[providers.accounts]]
owner = "alice"
key = { env = "K1" }
[[providers.accounts]]
owner = "bob"
key = { env = "K2" }
[[providers.models]]
id = "llama"
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
[[providers.models]]
id = "qwen"
input_usd_per_mtok = 1.0

[[providers]]
name = "spare"
role = "overflow"
base_url = "http://127.0.0.1:9/v1"
[[providers.models]]
id = "llama"

[[providers]]
name = "second"
role = "secondary"
base_url = "http://127.0.0.1:9/v1"
[[providers.models]]
id = "llama"
[[providers.models]]
id = "vendor/deep/model"

[[providers]]
name = "open"
profile = "openrouter"
key = { env = "K1" }

[[providers]]
name = "claude"
profile = "anthropic"
key = { env = "K1" }
[[providers.models]]
id = "opus"

[models]
fast = ["spare/llama", "venice/llama"]
smart = ["claude/opus", "open/vendor/big"]
"""


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog(parse(TEXT, "d.toml", {"K1": "sk-one-0123456789", "K2": "sk-two-0123456789", "HOME": "/x"}))


def listed(targets: tuple[Target, ...]) -> list[str]:
    return [f"{target.account.label}:{target.model}" for target in targets]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", ["venice/alice:llama", "venice/bob:llama", "second:llama", "spare:llama"]),
        ("qwen", ["venice/alice:qwen", "venice/bob:qwen"]),
        ("fast", ["spare:llama", "venice/alice:llama", "venice/bob:llama"]),
        ("venice/llama", ["venice/alice:llama", "venice/bob:llama"]),
        ("second/vendor/deep/model", ["second:vendor/deep/model"]),
        ("vendor/deep/model", ["second:vendor/deep/model"]),
        ("open/vendor/x", ["open:vendor/x"]),
        ("unknown", ["open:unknown"]),
        ("vendor/unknown", ["open:vendor/unknown"]),
        ("venice/", ["open:venice/"]),
        ("/llama", ["open:/llama"]),
        ("LLAMA", ["open:LLAMA"]),
    ],
)
def test_a_name_is_an_alias_or_a_listed_id_or_passed_on(catalog: Catalog, name: str, expected: list[str]) -> None:
    assert listed(catalog.candidates(name, "chat")) == expected
    assert all(target.name == name for target in catalog.candidates(name, "chat"))
    assert catalog.knows(name)


def test_only_providers_that_speak_the_endpoint_are_asked(catalog: Catalog) -> None:
    chat, messages = catalog.candidates("smart", "chat"), catalog.candidates("smart", "messages")
    assert {target.provider.name for target in messages} >= {"claude"}
    for speech, targets in (("chat", chat), ("messages", messages)):
        assert all(target.provider.speaks(speech) for target in targets)
    assert all(t.provider.name == "venice" for t in catalog.candidates("", "venice_image"))


def test_no_name_is_everybody_by_role(catalog: Catalog) -> None:
    roles = [target.provider.role for target in catalog.candidates("", "chat")]
    assert roles == sorted(roles)
    assert len(set(roles)) == 3


def test_names_list_aliases_and_every_model_with_its_provider(catalog: Catalog) -> None:
    names = catalog.names()
    assert names[:2] == ["fast", "smart"]
    assert {"venice/llama", "spare/llama", "second/vendor/deep/model", "claude/opus"} <= set(names)
    assert len(names) == len(set(names))


def test_nobody_has_an_unknown_name_when_every_provider_lists_its_models() -> None:
    text = TEXT.replace('[[providers]]\nname = "open"', '[[providers]]\nname = "open"\nmodels = [{ id = "x" }]')
    text = text.replace(', "open/vendor/big"', "")
    closed = Catalog(parse(text, "d.toml", {"K1": "sk-one-0123456789", "K2": "sk-two-0123456789", "HOME": "/x"}))
    assert closed.candidates("unknown", "chat") == ()
    assert not closed.knows("unknown")
    assert not closed.knows("venice/unknown")


def test_prices_count_only_when_both_are_known(catalog: Catalog) -> None:
    def cost(name: str) -> float | None:
        return catalog.candidates(name, "chat")[0].cost_usd(1_000_000, 500_000)

    assert cost("venice/llama") == pytest.approx(2.0)
    assert cost("qwen") is None
    assert cost("spare/llama") is None
    assert cost("unknown") is None


def test_secrets_are_not_shown(catalog: Catalog) -> None:
    account = catalog.candidates("llama", "chat")[0].account
    assert account.secret == "sk-one-0123456789"
    assert account.secret not in account.label


def test_what_is_remembered_is_bounded(catalog: Catalog) -> None:
    for i in range(REMEMBERED_MAX * 2 + 5):
        catalog.candidates(f"name-{i}", "chat")
        assert len(catalog._remembered) <= REMEMBERED_MAX
    assert catalog.candidates("name-1", "chat") == catalog.candidates("name-1", "chat")


@pytest.mark.parametrize(
    ("patterns", "name", "expected"),
    [
        (("*",), "llama", {"venice", "second", "spare"}),
        ((), "llama", set()),
        (("fast",), "llama", set()),
        (("fast",), "fast", {"venice", "spare"}),
        (("venice/*",), "llama", {"venice"}),
        (("venice/*",), "fast", {"venice"}),
        (("venice/llama", "spare/*"), "llama", {"venice", "spare"}),
        (("Venice/*",), "llama", set()),
        (("lla",), "llama", set()),
        (("lla*",), "llama", {"venice", "second", "spare"}),
    ],
)
def test_a_keys_patterns_admit_by_name_or_by_provider_and_id(
    catalog: Catalog, patterns: tuple[str, ...], name: str, expected: set[str]
) -> None:
    targets = catalog.candidates(name, "chat")
    assert {target.provider.name for target in targets if allowed(target, patterns)} == expected


# -- names that only fetched lists know ------------------------------------------------------------------------

OPEN = """
[[providers]]
name = "venice"
profile = "venice"
key = { env = "K1" }
[[providers]]
name = "local"
base_url = "http://127.0.0.1:9/v1"
[[providers]]
name = "openrouter"
profile = "openrouter"
role = "overflow"
key = { env = "K1" }
[[providers]]
name = "claude"
profile = "anthropic"
key = { env = "K1" }
[[providers]]
name = "closed"
base_url = "http://127.0.0.1:9/v1"
[[providers.models]]
id = "configured"
input_usd_per_mtok = 1.0
output_usd_per_mtok = 1.0
[models]
alias = ["local/llama", "openrouter/llama"]
"""
ALL = ["venice", "local", "openrouter"]


def opened(**lists: str) -> Catalog:
    catalog = Catalog(parse(OPEN, "d.toml", {"K1": "sk-one-0123456789", "HOME": "/x"}))
    for provider, ids in lists.items():
        *names, last = ids.split()
        more = last == "…"
        if not more:
            names.append(last)
        models = {name: ModelFacts(name, 1.0, 2.0) for name in names}
        catalog.facts.replace(provider, Listing(models, complete=not more), 0.0)
    return catalog


def asked(catalog: Catalog, name: str, speech: Speech = "chat") -> list[str]:
    return [
        ("" if target.listed else "?") + f"{target.provider.name}:{target.model}"
        for target in catalog.candidates(name, speech)
    ]


@pytest.mark.parametrize(
    ("name", "lists", "expected"),
    [
        # Nobody has it, as far as is known: to all of them, as without any list.
        ("llama", {}, [f"{one}:llama" for one in ALL]),
        ("default", {"venice": "llama", "local": "qwen", "openrouter": "z"}, [f"{one}:default" for one in ALL]),
        ("llama", {"venice": "qwen"}, [f"{one}:llama" for one in ALL]),
        # Somebody has it: whose list lacks it is left out, of whom nothing is known stands behind.
        ("llama", {"local": "llama"}, ["local:llama", "?venice:llama", "?openrouter:llama"]),
        ("llama", {"local": "llama", "venice": "qwen"}, ["local:llama", "?openrouter:llama"]),
        ("llama", {"local": "llama", "venice": "qwen", "openrouter": "z"}, ["local:llama"]),
        ("llama", {"openrouter": "llama", "venice": "qwen"}, ["openrouter:llama", "?local:llama"]),
        ("llama", {"openrouter": "llama", "local": "llama", "venice": "q"}, ["local:llama", "openrouter:llama"]),
        # A page of a list denies nothing.
        ("llama", {"local": "llama", "venice": "qwen …"}, ["local:llama", "?venice:llama", "?openrouter:llama"]),
        # A suffix stands in no list; where it has a meaning its stem is looked up.
        ("m/x:nitro", {"openrouter": "m/x", "local": "y", "venice": "z"}, ["openrouter:m/x:nitro"]),
        ("m/x:nitro", {"openrouter": "m/x"}, ["openrouter:m/x:nitro", "?venice:m/x:nitro", "?local:m/x:nitro"]),
        ("x:a=on&b=1", {"openrouter": "z", "local": "x", "venice": "x"}, ["venice:x:a=on&b=1"]),
        ("x:free:nitro", {"openrouter": "x:free", "local": "y", "venice": "z"}, ["openrouter:x:free:nitro"]),
        ("x:8b", {"local": "x:8b", "venice": "x", "openrouter": "x"}, ["local:x:8b"]),
        ("x:8b", {"local": "x", "venice": "y", "openrouter": "y"}, [f"{one}:x:8b" for one in ALL]),
        # Whoever names a provider means it.
        ("venice/llama", {"venice": "qwen", "openrouter": "venice/llama"}, ["venice:llama"]),
        ("openrouter/auto", {"openrouter": "openrouter/auto z"}, ["openrouter:openrouter/auto"]),
        ("openrouter/auto", {"openrouter": "openrouter/auto auto"}, ["openrouter:auto"]),
        ("openrouter/auto", {}, ["openrouter:auto"]),
        ("alias", {"local": "qwen", "openrouter": "llama"}, ["local:llama", "openrouter:llama"]),
        # What is configured stands above what is fetched.
        ("configured", {"venice": "configured", "local": "configured"}, ["closed:configured"]),
        ("other", {"closed": "other"}, [f"{one}:other" for one in ALL]),
    ],
)
def test_fetched_lists_order_and_narrow_the_open_ended(name: str, lists: dict[str, str], expected: list[str]) -> None:
    catalog = opened(**lists)
    assert asked(catalog, name) == expected
    assert catalog.knows(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alias", True),
        ("configured", True),
        ("closed/configured", True),
        ("x:free", True),
        ("openrouter/x:free", True),
        ("venice/x:free", False),
        ("x:cheap", False),
        ("x", False),
        ("", False),
        ("/", False),
    ],
)
def test_a_name_is_listed_or_only_passed_on(name: str, expected: bool) -> None:
    catalog = opened(openrouter="x:free", venice="llama")
    assert catalog.lists(name) is expected
    assert catalog.knows(name)


def test_who_cannot_be_asked_at_an_endpoint_shuts_out_nobody() -> None:
    catalog = opened(claude="opus", venice="llama", local="llama", openrouter="llama")
    assert asked(catalog, "opus") == [f"{one}:opus" for one in ALL]
    assert asked(catalog, "opus", "messages") == ["claude:opus"]


def test_a_new_list_is_heeded_at_once_and_an_equal_one_disturbs_nothing() -> None:
    catalog = opened(local="llama", venice="qwen", openrouter="qwen")
    before = catalog.candidates("qwen", "chat")
    assert asked(catalog, "llama") == ["local:llama"]
    catalog.facts.replace("local", Listing({"llama": ModelFacts("llama", 1.0, 2.0)}), 600.0)
    assert catalog.candidates("qwen", "chat") is before
    catalog.facts.replace("venice", Listing({"llama": ModelFacts("llama", 3.0, 4.0)}), 600.0)
    assert asked(catalog, "llama") == ["venice:llama", "local:llama"]
    assert asked(catalog, "qwen") == ["openrouter:qwen"]


def test_candidates_carry_facts_and_their_price() -> None:
    catalog = opened(venice="llama")
    target = catalog.candidates("llama", "chat")[0]
    assert target.facts == ModelFacts("llama", 1.0, 2.0)
    assert target.cost_usd(1_000_000, 500_000) == pytest.approx(2.0)
    assert catalog.candidates("local/llama", "chat")[0].facts is None
    assert catalog.candidates("configured", "chat")[0].facts == ModelFacts("configured", 1.0, 1.0)


def test_fetched_names_are_listed_with_their_provider() -> None:
    names = opened(venice="llama qwen", closed="other").names()
    assert names == ["alias", "venice/llama", "venice/qwen", "closed/configured"]
