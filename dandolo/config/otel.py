"""The `[otel]` section: where traces and metrics go (see `config.schema`)."""

# ruff: noqa: RUF009 (the calls in the class bodies make fields, once, as `dataclasses.field` does)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dandolo.config import address, kinds
from dandolo.config.secret import Secret
from dandolo.config.spec import absent, key


@dataclass(frozen=True, slots=True, kw_only=True)
class Otel:
    endpoint: str | None = absent(
        address.base_url(),
        "collector's OTLP address over HTTP, without /v1/traces; left out: traceparent passes untouched",
        example='"http://127.0.0.1:4318"',
    )
    secret: Secret | None = absent(
        kinds.secret_reference(), "the collector's key, where it wants one", example='{ env = "OTEL_KEY" }'
    )
    secret_header: str = key(
        kinds.text(r"[A-Za-z0-9-]{1,64}", "1 to 64 letters, digits and dashes"),
        '"authorization"',
        "the header that carries it, as it is",
    )
    ca: Path | None = absent(kinds.readable_file("a PEM bundle"), "private CA bundle (PEM)", example='"/path/ca.pem"')
    sample: float = key(kinds.number(0, 1, "share"), "1.0", "of the traces that begin here; others follow their caller")
    metrics_interval: float = key(kinds.time_span("1s", "1h"), '"60s"', "between two exports of metrics")
    timeout: float = key(kinds.time_span("100ms", "1m"), '"10s"', "for one export, its repetitions included")
