"""The `[alerts]` section: receivers, and what is refused without being shown."""

from __future__ import annotations

import pytest

from dandolo.config import ConfigError, parse
from dandolo.config.alerts import SINKS_MAX, Alerts

PROVIDER = '[[providers]]\nname = "p"\nbase_url = "http://127.0.0.1:1/v1"\n'
ENVIRON = {"HOOK": "https://hooks.example/T0/B1/very-secret?api-version=1", "SECRET": "s" * 30}


def alerts(text: str) -> Alerts:
    return parse(PROVIDER + text, "test", ENVIRON).alerts


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        alerts(text)
    return str(caught.value)


def test_everything_has_a_default_and_nobody_is_told_but_the_log() -> None:
    default = alerts("")
    assert default == Alerts()
    assert (default.p95, default.error_rate, default.log) == (2.0, 0.05, True)
    assert default.webhooks == default.commands == ()


def test_receivers_are_read() -> None:
    read = alerts(
        '[[alerts.webhooks]]\nurl = { env = "HOOK" }\nsecret = { env = "SECRET" }\ntimeout = "2s"\n'
        '[[alerts.webhooks]]\nurl = "http://127.0.0.1:9/x?y=1"\n'
        '[[alerts.commands]]\nargv = ["/bin/echo", "one two", "one two", "$HOME"]\n'
    )
    first, second = read.webhooks
    assert first.url.reveal() == ENVIRON["HOOK"]
    assert first.shown == "https://hooks.example"
    assert "very-secret" not in repr(read)
    assert first.secret is not None
    assert (first.timeout, second.timeout, second.secret) == (2.0, 10.0, None)
    assert read.commands[0].argv == ("/bin/echo", "one two", "one two", "$HOME")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[[alerts.webhooks]]\nurl = "ftp://hooks.example/sesame"', "starts with http:// or https://"),
        ('[[alerts.webhooks]]\nurl = "https://u:sesame@hooks.example/"', "without user and password"),
        ('[[alerts.webhooks]]\nurl = "https://hooks.example/sesame#x"', "without"),
        ('[[alerts.webhooks]]\nurl = "https://hooks.example/?sesame\\r\\nX: y"', "plain ASCII"),
        ('[[alerts.webhooks]]\nurl = "https:///sesame"', "expected a host"),
        ('[[alerts.webhooks]]\ntimeout = "1s"', "url"),
        ("[[alerts.webhooks]]\nurl = 5", "expected a URL"),
        ('[[alerts.commands]]\nargv = ["sesame"]', "absolute path"),
        ("[[alerts.commands]]\nargv = []", "1 to 64 words"),
        ('[[alerts.commands]]\nargv = "/bin/sesame -x"', "array"),
        ('[[alerts.commands]]\nargv = ["/bin/x", "a\\u0000sesame"]', "control characters"),
        ("[alerts]\nerror_rate = 0", "above 0"),
        ("[alerts]\nsuccess_target = 1.0", "0.5 to 0.99999"),
        ("[[alerts.webhooks]]\nurl = 'http://h/'\n" * (SINKS_MAX + 1), f"at most {SINKS_MAX}"),
    ],
)
def test_what_cannot_be_used_is_refused_and_not_shown(text: str, reason: str) -> None:
    said = refused(text)
    assert reason in said
    assert "sesame" not in said
