"""The `[otel]` section, with and without its extra."""

from __future__ import annotations

from pathlib import Path

import pytest

from dandolo.config import ConfigError, parse, rules
from dandolo.config.otel import Otel

PROVIDER = '[[providers]]\nname = "p"\nbase_url = "http://127.0.0.1:1/v1"\n'
ENDPOINT = '[otel]\nendpoint = "http://127.0.0.1:4318/"\n'


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(PROVIDER + text, "test", {"KEY": "sesame"})
    return str(caught.value)


def test_it_is_off_unless_an_endpoint_is_named() -> None:
    assert parse(PROVIDER, "test", {}).otel == Otel()
    assert Otel().endpoint is None


def test_it_is_read() -> None:
    more = 'secret = { env = "KEY" }\nsecret_header = "x-team"\nsample = 0.1\n'
    otel = parse(PROVIDER + ENDPOINT + more, "test", {"KEY": "sesame"}).otel
    assert otel.endpoint == "http://127.0.0.1:4318"
    assert (otel.secret_header, otel.sample, otel.metrics_interval) == ("x-team", 0.1, 60.0)
    assert otel.secret is not None
    assert "sesame" not in repr(otel)


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.exporter.otlp"])
def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def find(name: str) -> object:
        if name.startswith(f"{missing}."):
            # As importlib does for what is below a package that is not there.
            raise ModuleNotFoundError(name=missing)
        return object()

    monkeypatch.setattr(rules, "find_spec", find)
    said = refused(ENDPOINT)
    assert "otel.endpoint" in said
    assert "pip install 'dandolo[otel]'" in said
    # Who does not use it needs nothing.
    parse(PROVIDER + "[otel]\nsample = 0.5\n", "test", {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[otel]\nendpoint = "127.0.0.1:4318"', "http:// or https://"),
        ('[otel]\nendpoint = "https://sesame@collector.example"', "credentials"),
        ('[otel]\nsecret_header = "x y"', "letters, digits and dashes"),
        ("[otel]\nsample = 1.5", "0 to 1"),
    ],
)
def test_what_cannot_be_used_is_refused(text: str, reason: str) -> None:
    said = refused(text)
    assert reason in said
    assert "sesame" not in said


def test_a_bundle_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("none")
    assert "holds no certificate" in refused(f'{ENDPOINT}ca = "{path}"\n')
