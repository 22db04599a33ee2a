"""Profiles are complete, and no model name escapes a path."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dandolo.api.profiles import ENDPOINTS, PROFILES, Kind, path, profile
from dandolo.api.profiles.meaning import BY_KIND, by_status, client_status
from dandolo.errors import RequestError

AZURE = PROFILES["azure"]
OPENAI = PROFILES["openai"]
VERSION = "2024-10-21"


def test_every_profile_is_found_by_its_name() -> None:
    assert list(PROFILES) == ["venice", "openrouter", "openai", "anthropic", "azure", "generic"]
    for name, one in PROFILES.items():
        assert profile(name) is one
        assert one.name == name
        assert one.dialects <= ENDPOINTS
        assert one.base_url is None or one.base_url.startswith("https://")
        assert one.base_url is None or not one.base_url.endswith("/")
        assert all(key == key.lower() for key in one.codes)
        assert all(rule.fragment == rule.fragment.lower() for rule in one.texts)
        assert all(key == key.lower() for key in one.headers)


def test_an_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="venice, openrouter"):
        profile("venise")


CREDENTIALS = [
    ("venice", (b"authorization", b"Bearer k")),
    ("openrouter", (b"authorization", b"Bearer k")),
    ("openai", (b"authorization", b"Bearer k")),
    ("anthropic", (b"x-api-key", b"k")),
    ("azure", (b"api-key", b"k")),
    ("generic", (b"authorization", b"Bearer k")),
]


@pytest.mark.parametrize(("name", "expected"), CREDENTIALS, ids=[c[0] for c in CREDENTIALS])
def test_credential(name: str, expected: tuple[bytes, bytes]) -> None:
    assert PROFILES[name].credential("k") == expected


DIALECTS = [
    ("messages", {"anthropic"}),
    ("count_tokens", {"anthropic"}),
    ("venice_image", {"venice"}),
    ("chat", {"venice", "openrouter", "openai", "azure", "generic"}),
    ("responses", {"venice", "openrouter", "openai", "azure", "generic"}),
    ("moderations", {"openai", "generic"}),
    ("rerank", {"generic"}),
]


@pytest.mark.parametrize(("endpoint", "names"), DIALECTS, ids=[c[0] for c in DIALECTS])
def test_who_speaks_what(endpoint: str, names: set[str]) -> None:
    assert {name for name, one in PROFILES.items() if endpoint in one.dialects} == names


def test_usage_is_asked_for_where_it_is_understood() -> None:
    assert {n: p.include_usage for n, p in PROFILES.items()} == {
        "venice": "yes",
        "openrouter": "no",
        "openai": "yes",
        "anthropic": "no",
        "azure": "try",
        "generic": "try",
    }


PATHS = [
    ("plain", OPENAI, "/chat/completions", "gpt-4o", None, b"/chat/completions"),
    ("query kept", PROFILES["anthropic"], "/messages?beta=true", "m", None, b"/messages?beta=true"),
    ("no model needed", OPENAI, "/models", None, None, b"/models"),
    ("encoded id", OPENAI, "/models/a%2Fb", None, None, b"/models/a%2Fb"),
    (
        "azure",
        AZURE,
        "/chat/completions",
        "gpt-4o",
        VERSION,
        b"/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21",
    ),
    (
        "azure slash",
        AZURE,
        "/embeddings",
        "a/b c?d#e%2e",
        VERSION,
        b"/openai/deployments/a%2Fb%20c%3Fd%23e%252e/embeddings?api-version=2024-10-21",
    ),
    (
        "azure unicode",
        AZURE,
        "/completions",
        "modèle",
        VERSION,
        b"/openai/deployments/mod%C3%A8le/completions?api-version=2024-10-21",
    ),
    ("azure responses", AZURE, "/responses", "gpt-4o", VERSION, b"/openai/responses?api-version=2024-10-21"),
    (
        "azure query",
        AZURE,
        "/audio/speech?a=b",
        "tts",
        VERSION,
        b"/openai/deployments/tts/audio/speech?api-version=2024-10-21&a=b",
    ),
    ("azure odd version", AZURE, "/responses", None, "1&x=/..", b"/openai/responses?api-version=1%26x%3D%2F.."),
]


@pytest.mark.parametrize(
    ("one", "endpoint", "model", "version", "expected"), [c[1:] for c in PATHS], ids=[c[0] for c in PATHS]
)
def test_path(one, endpoint, model, version, expected) -> None:  # type: ignore[no-untyped-def]
    assert path(one, endpoint, model, version) == expected


REFUSED_MODELS = ["", ".", "..", "../x", "a/../b", "a\\..\\b", "a\nb", "a\x00", "\x7f", "\x85", "\ud800"]
REFUSED_MODELS += ["x" * 257]


@pytest.mark.parametrize("model", REFUSED_MODELS, ids=ascii)
def test_a_model_that_could_leave_its_segment_is_refused(model: str) -> None:
    with pytest.raises(RequestError) as caught:
        path(AZURE, "/chat/completions", model, VERSION)
    assert caught.value.param == "model"


REFUSED_PATHS = ["", "x", "//x", "/a//b", "/../x", "/a/..", "/a/%2e%2E/b", "/a b", "/a\r\nX: y"]
REFUSED_PATHS += ["/a#b", "/é", "/" + "a" * 4000]


@pytest.mark.parametrize("endpoint", REFUSED_PATHS, ids=ascii)
def test_a_path_that_could_leave_the_base_url_is_refused(endpoint: str) -> None:
    with pytest.raises(RequestError):
        path(OPENAI, endpoint)


def test_azure_without_a_version_is_a_mistake_of_the_configuration() -> None:
    with pytest.raises(ValueError, match="api_version"):
        path(AZURE, "/chat/completions", "gpt-4o")


def test_azure_needs_a_model_where_the_path_has_one() -> None:
    with pytest.raises(RequestError):
        path(AZURE, "/audio/transcriptions", None, VERSION)


@given(st.text(max_size=300))
def test_any_model_stays_one_segment(model: str) -> None:
    try:
        target = path(AZURE, "/chat/completions", model, VERSION)
    except RequestError:
        return
    segments = target.partition(b"?")[0].split(b"/")
    assert segments[:3] == [b"", b"openai", b"deployments"]
    assert segments[4:] == [b"chat", b"completions"]
    assert unquote(segments[3].decode("ascii")) == model
    assert all(0x21 <= byte <= 0x7E for byte in target)
    assert segments[3] not in (b".", b"..")


def test_every_kind_and_status_has_a_consequence() -> None:
    assert set(BY_KIND) == set(Kind)
    for status in range(1000):
        base, allowed = by_status(status)
        for kind in allowed | {base}:
            assert 400 <= client_status(kind, status) <= 504
            assert client_status(kind, status) not in (401, 407)
