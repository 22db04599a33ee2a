"""Who may look up, who may keep, for whom, and what request headers change of it."""

from typing import Any

import pytest
from cached_calls import asking, call

from dandolo.api.call import Call
from dandolo.cache.lifetime import TtlClass
from dandolo.cache.policy import NO_WISHES, Holder, Permission, Policy, Rules, Wishes, wishes
from dandolo.errors import RequestError

USUAL = Policy(Rules(), Holder(name="a"))
REUSE = Policy(Rules(sampled="reuse"), Holder(name="a"))
FORCE = Wishes(mode="force")


def asked(headers: dict[str, str], at: Policy = USUAL, of: Call | None = None) -> Permission:
    read = wishes({name.encode(): value.encode() for name, value in headers.items()})
    return at.permission(of or call(temperature=0), read)


PERMITTED = [
    ("temperature 0", call(temperature=0)),
    ("temperature 0.0", call(temperature=0.0)),
    ("a seed", call(seed=7)),
    ("a seed at any temperature", call(seed=7, temperature=1.3)),
    ("an embedding", call("/v1/embeddings", input="a")),
    ("a judgement", call("/v1/moderations", input="a")),
    ("an image with a seed", call("/v1/images/generations", prompt="a", seed=1)),
    ("Messages at 0", call("/v1/messages", max_tokens=9, temperature=0)),
    ("Responses that are not stored", call("/v1/responses", input="a", temperature=0, store=False)),
    ("a tool of the caller's", call(temperature=0, tools=[{"type": "function", "function": {"name": "f"}}])),
    (
        "tools of Anthropic's that run at the caller's",
        call(
            "/v1/messages",
            temperature=0,
            tools=[{"name": "f", "input_schema": {}}, {"type": "bash_20250124", "name": "bash"}],
        ),
    ),
    ("text and images as output", call(temperature=0, modalities=["text", "image"])),
    ("Venice without search", call(temperature=0, venice_parameters={"enable_web_search": "off"})),
]


@pytest.mark.parametrize("asks", [pytest.param(a, id=name) for name, a in PERMITTED])
def test_what_is_meant_to_be_repeatable_is_kept(asks: Call) -> None:
    granted = USUAL.permission(asks)
    assert (granted.lookup, granted.store, granted.scope) == (True, True, "key:a")
    assert granted.coalesces()


SAMPLED = [
    ("no temperature", call(), True),
    ("null for temperature and seed", call(temperature=None, seed=None), True),
    ("an image without a seed", call("/v1/images/generations", prompt="a"), True),
    ("a temperature", call(temperature=0.2), False),
    ("a temperature that is none", call(temperature="0"), False),
    ("a seed that is none", call(seed="x", temperature=0.2), False),
]


@pytest.mark.parametrize(("asks", "reused"), [pytest.param(a, b, id=name) for name, a, b in SAMPLED])
def test_samples_are_not_kept_unless_reuse_is_set_or_forced(asks: Call, reused: bool) -> None:
    refused = USUAL.permission(asks)
    assert refused.bypass
    assert not refused.coalesces()
    assert refused.reason
    assert REUSE.permission(asks).bypass is not reused
    forced = USUAL.permission(asks, FORCE)
    assert (forced.lookup, forced.store, forced.forced) == (True, True, True)


NEVER: list[tuple[str, Call, str]] = [
    ("stored", call(temperature=0, store=True), "store"),
    ("stored by default", call("/v1/responses", input="a", temperature=0), "store"),
    ("continued", call("/v1/responses", input="a", temperature=0, store=False, previous_response_id="r"), "continues"),
    ("a conversation", call("/v1/responses", input="a", temperature=0, store=False, conversation="c"), "continues"),
    ("in the background", call("/v1/responses", input="a", temperature=0, store=False, background=True), "background"),
    ("audio", call(temperature=0, modalities=["text", "audio"]), "audio"),
    ("audio settings", call(temperature=0, audio={"voice": "x"}), "audio"),
    ("search in Chat", call(temperature=0, web_search_options={}), "web_search_options"),
    ("plugins", call(temperature=0, plugins=[{"id": "web"}]), "plugins"),
    ("remote tools", call("/v1/messages", temperature=0, mcp_servers=[{"url": "x"}]), "mcp_servers"),
    (
        "search in Messages",
        call("/v1/messages", temperature=0, tools=[{"type": "web_search_20250305", "name": "w"}]),
        "tool",
    ),
    (
        "search in Responses",
        call("/v1/responses", input="a", temperature=0, store=False, tools=[{"type": "web_search"}]),
        "tool",
    ),
    ("tools beyond understanding", call(temperature=0, tools="all"), "tools"),
    ("search at Venice", call(temperature=0, venice_parameters={"enable_web_search": "auto"}), "enable_web_search"),
    ("a searching model", call(temperature=0, model="x/y:online"), "web"),
    ("speech", call("/v1/audio/speech", input="a", voice="x", seed=1), "endpoint"),
    ("reranking", call("/v1/rerank", query="a", seed=1), "endpoint"),
]


@pytest.mark.parametrize(("asks", "why"), [pytest.param(a, b, id=name) for name, a, b in NEVER])
def test_what_has_effects_or_state_is_never_kept_even_when_forced(asks: Call, why: str) -> None:
    for at in (USUAL, REUSE):
        for wish in (NO_WISHES, FORCE):
            refused = at.permission(asks, wish)
            assert refused.bypass
            assert why in refused.reason


SCOPES: list[tuple[dict[str, Any], dict[str, Any], bool, str]] = [
    ({}, {"scope": "key"}, False, "key:a"),
    ({}, {"scope": "shared"}, False, "key:a"),
    ({"shared": True}, {"scope": "key"}, False, "key:a"),
    ({"shared": True}, {"scope": "shared"}, False, "shared"),
    ({"shared": True}, {"scope": "shared"}, True, "key:a"),
    ({"shared": True}, {"scope": "shared", "privacy": True}, False, "key:a"),
    ({"shared": True, "privacy": True}, {"scope": "shared"}, False, "key:a"),
]


@pytest.mark.parametrize(("rules", "holder", "own_key", "scope"), SCOPES)
def test_sharing_needs_the_operator_s_and_the_key_s_consent(
    rules: dict[str, Any], holder: dict[str, Any], own_key: bool, scope: str
) -> None:
    at = Policy(Rules(**rules), Holder(name="a", **holder))
    for wish in (NO_WISHES, FORCE):
        assert at.permission(call(temperature=0), wish, own_key=own_key).scope == scope


def test_a_key_named_shared_is_not_the_shared_scope() -> None:
    assert Policy(Rules(), Holder(name="shared")).permission(call(temperature=0)).scope != "shared"


def test_privacy_keeps_to_this_process_and_to_exact_matches() -> None:
    for at in (Policy(Rules(privacy=True), Holder()), Policy(Rules(), Holder(privacy=True))):
        for wish in (NO_WISHES, Wishes(mode="semantic")):
            granted = at.permission(call(temperature=0), wish)
            assert granted.memory_only
            assert not granted.semantic
    assert USUAL.permission(call(temperature=0)).semantic
    assert not USUAL.permission(call(temperature=0)).memory_only


def test_off_is_off() -> None:
    assert Policy(Rules(on=False), Holder()).permission(call(temperature=0), FORCE).bypass


HEADERS: list[tuple[dict[str, str], dict[str, Any]]] = [
    ({"cache-control": "no-store"}, {"lookup": False, "store": False}),
    ({"cache-control": "no-cache"}, {"lookup": False, "store": True}),
    ({"cache-control": "max-age=0"}, {"lookup": False, "store": True}),
    ({"cache-control": "Max-Age=60, something=new"}, {"lookup": True, "max_age_s": 60.0}),
    ({"cache-control": "max-age=60, max-age=9"}, {"max_age_s": 9.0}),
    ({"cache-control": "max-age=soon"}, {"lookup": False}),
    ({"cache-control": "only-if-cached"}, {"lookup": True, "only_if_cached": True}),
    ({"cache-control": "no-store, only-if-cached"}, {"lookup": False, "store": False, "only_if_cached": True}),
    ({"dandolo-cache": "OFF"}, {"lookup": False, "store": False}),
    ({"dandolo-cache": "exact"}, {"lookup": True, "semantic": False}),
    ({"dandolo-cache": "semantic"}, {"lookup": True, "semantic": True}),
    ({"dandolo-cache": "force", "cache-control": "no-cache"}, {"lookup": False, "store": True, "forced": True}),
    ({"dandolo-cache-ttl": "60"}, {"ttl_s": 60.0, "store": True}),
    ({"dandolo-cache-ttl": "2h"}, {"ttl_s": 7200.0}),
    ({"dandolo-cache-ttl": "900d"}, {"ttl_s": 30 * 86_400.0}),
    ({"dandolo-cache-ttl": "0"}, {"store": False, "lookup": True}),
]


@pytest.mark.parametrize(("headers", "expected"), HEADERS)
def test_headers_change_what_is_permitted(headers: dict[str, str], expected: dict[str, Any]) -> None:
    granted = asked(headers)
    assert {name: getattr(granted, name) for name in expected} == expected


def test_only_if_cached_is_kept_where_the_cache_is_bypassed() -> None:
    refused = asked({"cache-control": "only-if-cached"}, of=call(temperature=1))
    assert refused.bypass
    assert refused.only_if_cached


@pytest.mark.parametrize("headers", [{"dandolo-cache": "of"}, {"dandolo-cache-ttl": "-1"}, {"dandolo-cache-ttl": "1w"}])
def test_our_own_headers_misspelt_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(RequestError, match="must be"):
        asked(headers)


def test_no_headers_cost_nothing() -> None:
    assert wishes({b"accept": b"*/*"}) is NO_WISHES


def test_lifetimes_set_by_operator_key_and_request_in_rising_order() -> None:
    operator = Rules(ttl_s=100.0, ttl_max_s=500.0)
    assert Policy(operator, Holder()).permission(call(temperature=0)).ttl_s == 100.0
    key = Policy(operator, Holder(ttl_s=200.0))
    assert key.permission(call(temperature=0)).ttl_s == 200.0
    assert asked({"dandolo-cache-ttl": "300"}, key).ttl_s == 300.0
    assert asked({"dandolo-cache-ttl": "900"}, key).ttl_s == 500.0
    assert Policy(operator, Holder(ttl_s=900.0)).permission(call(temperature=0)).ttl_s == 500.0
    assert not Policy(operator, Holder(ttl_s=0.0)).permission(call(temperature=0)).store


def test_what_one_caller_forced_is_not_given_to_others() -> None:
    usual = USUAL.permission(call(temperature=0))
    forced = USUAL.permission(call(temperature=0), FORCE)
    assert not usual.admits(TtlClass.VOLATILE, 0.0, 1.0)
    assert forced.admits(TtlClass.VOLATILE, 0.0, 1.0)
    assert usual.admits(TtlClass.QUESTION, 0.0, 1.0)


def test_max_age_bounds_what_is_given() -> None:
    granted = asked({"cache-control": "max-age=60"})
    assert granted.admits(TtlClass.QUESTION, 100.0, 160.0)
    assert not granted.admits(TtlClass.QUESTION, 100.0, 160.1)


def test_the_reason_never_repeats_what_was_asked() -> None:
    secret = "a very private question"
    for at in (USUAL, REUSE):
        assert secret not in at.permission(asking(secret)).reason
