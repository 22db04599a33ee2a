"""What concerns operators alone: how their listener is secured, and what they keep of what is said."""

# ruff: noqa: RUF009 (the calls in the class bodies make fields, once, as `dataclasses.field` does)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dandolo.config import kinds
from dandolo.config.spec import absent, key, required


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminTls:
    cert: Path = required(kinds.readable_file("a PEM certificate chain"), "certificate chain, leaf first (PEM)")
    key: Path = required(kinds.readable_file("a PEM private key"), "its private key (PEM, unencrypted)")
    client_ca: Path | None = absent(
        kinds.readable_file("a PEM bundle"),
        "who signs the certificates that callers must show, beside their key (PEM); left out: none is asked for",
        example='"/path/ca.pem"',
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLog:
    enabled: bool = key(
        kinds.flag(),
        "false",
        "keep what is asked and answered, in memory, for GET /admin/texts/ID; on from the next start, off by a reload",
    )
    text_bytes_max: int = key(
        kinds.byte_size("256B", "1MiB"), '"64KiB"', "of a question, and of an answer; what is beyond is left out"
    )
    bytes_max: int = key(
        kinds.byte_size("1MiB", "4GiB"), '"16MiB"', "memory of the control process for all; the oldest goes first"
    )
    retention: float = key(kinds.time_span("1m", "30d"), '"24h"', "how long one is kept at most")
