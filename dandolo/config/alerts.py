"""The `[alerts]` section: what is too much, and who is told (see `config.schema`)."""

# ruff: noqa: RUF009 (the calls in the class bodies make fields, once, as `dataclasses.field` does)

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from dandolo.config import kinds, secret
from dandolo.config.address import split_url
from dandolo.config.problem import Unfit
from dandolo.config.secret import Secret
from dandolo.config.spec import At, Kind, absent, key, required, section
from dandolo.config.units import describe

SINKS_MAX: Final = 8
_QUERY = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/?-]{0,1000}", re.ASCII)


def _webhook_url() -> Kind:
    """A URL with or without a query, whole or as a secret: whoever knows a webhook's can write to it."""

    def check(url: str) -> None:
        address, _, query = url.partition("?")
        parts = split_url(address, ("http", "https"))
        if not _QUERY.fullmatch(query):
            raise Unfit("expected a query of plain ASCII after the ?, without a fragment (#)")
        if "@" in parts.netloc:
            raise Unfit("expected a URL without user and password: receivers tell us by the signature")

    def read(value: object, at: At) -> Secret:
        if isinstance(value, str):
            check(value)
            return Secret(value)
        if not isinstance(value, dict):
            raise Unfit(f"observed {describe(value)}, expected a URL such as https://hooks.example/T1")
        found = secret.resolve(value, at.reading.environ, at.reading.base)
        assert found is not None
        check(found.reveal())
        return found

    return Kind("URL or secret", "http:// or https://; no credentials", read, fallback=Secret("http://localhost"))


def _argument() -> Kind:
    return kinds.text(r"[^\x00-\x1f\x7f]{1,4096}", "1 to 4096 characters, no control characters")


def _argv() -> Kind:
    """A program and its arguments; repeated arguments are fine, which `kinds.array` would not have."""
    one = _argument().read
    assert one is not None

    def read(value: object, at: At) -> tuple[str, ...]:
        if not isinstance(value, list) or not 1 <= len(value) <= 64:
            raise Unfit('expected an array of 1 to 64 words: ["/path/to/program", "argument", …]')
        words = tuple(one(word, at) for word in value)
        if not words[0].startswith("/"):
            raise Unfit("the program must be an absolute path: nothing is looked up in PATH")
        return words

    return Kind("array of text", "1 to 64 words, the first an absolute path", read, fallback=("/bin/true",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """An HTTP receiver: each notice is a POST of JSON."""

    url: Secret = required(_webhook_url(), "where notices are posted", example='"https://hooks.example/dandolo"')
    secret: Secret | None = absent(
        kinds.secret_reference(), "signs each notice (HMAC-SHA256)", example='{ env = "DANDOLO_ALERT_SECRET" }'
    )
    timeout: float = key(kinds.time_span("100ms", "1m"), '"10s"', "for one attempt, connecting included")
    ca: Path | None = absent(kinds.readable_file("a PEM bundle"), "private CA bundle (PEM)", example='"/path/ca.pem"')

    @property
    def shown(self) -> str:
        """Scheme and host: all of the URL that may be said."""
        parts = urlsplit(self.url.reveal())
        return f"{parts.scheme}://{parts.netloc}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program that is run for each notice, with JSON on its standard input."""

    argv: tuple[str, ...] = required(
        _argv(), "program and arguments; no shell", example='["/usr/local/bin/notify", "dandolo"]'
    )
    timeout: float = key(kinds.time_span("100ms", "5m"), '"10s"', "then it is killed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Alerts:
    p95: float = key(kinds.time_span("1ms", "1h"), '"2s"', "p95 of text: to the first token of streams, else whole")
    p95_images: float = key(kinds.time_span("1ms", "1h"), '"15s"', "p95 of images")
    error_rate: float = key(kinds.number(0, 1, "share", above=True), "0.05", "failed requests")
    success_target: float = key(
        kinds.number(0.5, 0.99999, "share"), "0.999", "the rest is the error budget, whose burning is told"
    )
    budget_share: float = key(kinds.number(0, 1, "share", above=True), "0.8", "of a key's budget, used")
    window: float = key(kinds.time_span("30s", "1h"), '"5m"', "over which percentiles and shares are taken")
    samples_min: int = key(kinds.whole(1, 1_000_000, "requests"), "20", "fewer in a window prove nothing")
    hold: float = key(kinds.time_span("0s", "1h"), '"30s"', "how long a condition must last to be told")
    recover: float = key(kinds.time_span("1s", "1h"), '"2m"', "how long it must be gone to be over")
    log: bool = key(kinds.flag(), "true", "write notices to the log")
    webhooks: tuple[Webhook, ...] = section(Webhook, "told by HTTP; at most 8", many=True)
    commands: tuple[Command, ...] = section(Command, "told by a program; at most 8", many=True)
