"""Names to candidates, as the configuration says."""

from __future__ import annotations

import pytest

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
