"""The configuration as the program sees it: frozen, complete, in base units.

Sizes are bytes, durations are seconds (float), money is US dollars. The fields have the names of the
file's keys; each key's default, bound and description stand beside it and are written nowhere else.
Optional bounds are None where there is none: 0 never means "unlimited".
"""

# ruff: noqa: RUF009 (the calls in the class bodies make fields, once, as `dataclasses.field` does)

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from dandolo.config import address, fields, kinds
from dandolo.config.address import Listen
from dandolo.config.alerts import Alerts
from dandolo.config.objectives import Ledger, Slo
from dandolo.config.operators import AdminTls, PromptLog
from dandolo.config.otel import Otel
from dandolo.config.problem import Path as KeyPath
from dandolo.config.secret import Secret
from dandolo.config.spec import KeySpec, Kind, absent, computed, fed_by, key, required, section
from dandolo.config.stores import Cache, CacheMemory, CachePeers, CacheRedis, CacheSqlite, Level

__all__ = [
    "Account",
    "AdminTls",
    "Alerts",
    "Auto",
    "AutoModel",
    "Cache",
    "CacheMemory",
    "CachePeers",
    "CacheRedis",
    "CacheSqlite",
    "Capability",
    "Config",
    "Key",
    "Ledger",
    "Level",
    "Limits",
    "Listen",
    "LogFormat",
    "Model",
    "Otel",
    "Priority",
    "Probe",
    "Profile",
    "PromptLog",
    "Provider",
    "Role",
    "Routing",
    "Secret",
    "Server",
    "Slo",
    "Timeouts",
    "Tls",
    "UseCase",
    "Weights",
]  # fmt: skip

LogFormat = Literal["json", "logfmt", "text"]
Priority = Literal["high", "normal", "low"]
Profile = Literal["venice", "openrouter", "openai", "anthropic", "azure", "generic"]
Role = Literal["primary", "secondary", "overflow"]
Capability = Literal[
    "tools", "vision", "audio", "video", "files", "json_schema", "reasoning", "logprobs", "web_search", "embeddings",
]  # fmt: skip
"""What a model can take or do beyond text in and text out."""
UseCase = Literal["question", "code", "long_context", "multimodal", "tools"]

_REGION = kinds.text(r"[a-z0-9-]{0,32}", "lower-case letters, digits and dashes, at most 32")


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """$STATE_DIRECTORY, else $XDG_STATE_HOME/dandolo, else ~/.local/state/dandolo. Creates nothing."""
    # systemd separates several StateDirectory= entries by colons.
    if given := environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(given)
    # The XDG specification: relative paths are to be ignored.
    if (state := environ.get("XDG_STATE_HOME", "")).startswith("/"):
        return Path(state, "dandolo")
    home = environ.get("HOME") or os.path.expanduser("~")
    return Path(home if home.startswith("/") else "/", ".local/state/dandolo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    cert: Path = required(kinds.readable_file("a PEM certificate chain"), "certificate chain, leaf first (PEM)")
    key: Path = required(kinds.readable_file("a PEM private key"), "its private key (PEM, unencrypted)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    listen: tuple[Listen, ...] = key(
        kinds.array(address.listen(), 64, least=1),
        '["127.0.0.1:8080"]',
        "where clients connect; sockets passed by systemd replace it",
    )
    admin: Listen = key(
        address.listen(), '"127.0.0.1:9180"', "metrics, dashboard, admin API; loopback unless a key is set"
    )
    admin_tls: AdminTls | None = absent(
        Kind("table", "cert, key and client_ca", section=AdminTls),
        "serve the admin listener by HTTPS; read again at a reload",
        example='{ cert = "/path/chain.pem", key = "/path/key.pem" }',
    )
    workers: int | Literal["auto"] = key(
        kinds.whole_or_word(1, 256, "auto"), "1", 'worker processes; "auto" is one per core'
    )
    region: str = key(_REGION, '""', "where this instance runs", example='"eu-west-1"')
    state_dir: Path = computed(
        "files that outlive a restart; left out: $STATE_DIRECTORY, else the user's state folder",
        lambda: default_state_dir(os.environ),
        kinds.folder(),
        default='"/var/lib/dandolo"',
    )
    drain_delay: float = key(
        kinds.time_span("0s", "10m"), '"5s"', "after SIGTERM: how long to go on accepting while /readyz fails"
    )
    drain_timeout: float = key(kinds.time_span("1s", "1h"), '"30s"', "after that: how long requests may finish")
    tls: Tls | None = absent(
        Kind("table", "cert and key", section=Tls),
        "serve HTTPS with this certificate",
        example='{ cert = "/path/chain.pem", key = "/path/key.pem" }',
    )
    proxy_protocol: bool = key(kinds.flag(), "false", "PROXY protocol v1 or v2 is required from trusted_proxies")
    cors_origins: tuple[str, ...] = key(
        kinds.array(address.origin(), 64), "[]", "browser origins that may call; none: browsers are refused"
    )
    forward_proxy: Secret | None = absent(
        address.secret_url("http", "https", unset_is_none=True),
        "HTTP proxy for calls to providers; an unset variable means none",
        example='{ env = "HTTPS_PROXY" }',
    )
    privacy: bool = key(kinds.flag(), "false", "keep nothing of what was asked and answered beyond the request")
    heartbeat: float = key(
        kinds.time_span("0s", "10m"), '"0s"', "comment on a stream silent this long; 0s: none; a comment ends failover"
    )
    annotate: bool = key(kinds.flag(), "false", "close streams with an event of provider, timings and cost")
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = key(
        kinds.array(address.network(), 256), "[]", "networks whose X-Forwarded-For and PROXY protocol are believed"
    )
    log_format: LogFormat = key(
        kinds.choice("json", "logfmt", "text"), '"json"', "form of both logs; left out, text on a terminal"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    request_line_bytes_max: int = key(kinds.byte_size("256B", "64KiB"), '"8KiB"', "request line; beyond: 414")
    header_bytes_max: int = key(
        kinds.byte_size("1KiB", "1MiB"), '"32KiB"', "header block with request line, trailers too; beyond: 431"
    )
    headers_max: int = key(kinds.whole(8, 1000), "100", "header fields of a request; beyond: 431")
    body_bytes_max: int = key(kinds.byte_size("1KiB", "1GiB"), '"32MiB"', "request body, decoded; beyond: 413")
    upload_bytes_max: int = key(
        kinds.byte_size("1KiB", "4GiB"), '"100MiB"', "body of images, audio and files; beyond: 413"
    )
    body_memory_max: int = key(
        kinds.byte_size("1MiB", "1TiB"), '"1GiB"', "request bodies held at one time by a process; beyond: 503"
    )
    connections_max: int = key(kinds.whole(1, 1_000_000), "10_000", "client connections of a process; beyond: 503")
    connections_per_ip_max: int = key(
        kinds.whole(1, 1_000_000), "2_048", "of one address (trusted proxies exempt); beyond: closed"
    )
    in_flight_max: int = key(kinds.whole(1, 1_000_000), "4_000", "requests at one time, queued ones too; beyond: 503")
    in_flight_per_key_max: int = key(kinds.whole(1, 1_000_000), "1_000", "of one key; beyond: 429")
    shared: bool = key(kinds.flag(), "false", "limits of keys hold over all hosts that share cache.redis, not for each")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    header_read: float = key(
        kinds.time_span("100ms", "10m"), '"10s"', "from a request's first byte to the end of its head"
    )
    body_idle: float = key(kinds.time_span("100ms", "1h"), '"15s"', "between two pieces of a request body")
    body_total: float = key(kinds.time_span("1s", "1h"), '"60s"', "for a request body")
    first_request: float = key(kinds.time_span("100ms", "10m"), '"10s"', "from connecting to the first byte")
    keep_alive_idle: float = key(
        kinds.time_span("1s", "1h"), '"75s"', "between requests; must exceed a balancer's idle timeout"
    )
    write_stall: float = key(kinds.time_span("1s", "1h"), '"30s"', "without a byte taken by the client")
    connect: float = key(kinds.time_span("50ms", "1m"), '"3s"', "to a provider, TLS included")
    first_byte: float = key(kinds.time_span("100ms", "1h"), '"600s"', "of a plain answer")
    first_byte_stream: float = key(kinds.time_span("100ms", "1h"), '"600s"', "of a stream")
    stream_idle: float = key(
        kinds.time_span("100ms", "1h"), '"300s"', "between payloads of a stream; keep-alive comments do not count"
    )
    total: float = key(kinds.time_span("1s", "1d"), '"600s"', "for a plain answer, retries included")
    stream_total: float = key(kinds.time_span("1s", "1d"), '"3600s"', "for a stream")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key that clients present. Only its digest is kept: compare with `hmac.compare_digest`."""

    name: str = required(kinds.name(), "how logs and metrics call it", example='"ci"')
    digest: bytes = fed_by(
        {
            "sha256": KeySpec(
                kinds.text(
                    "[0-9a-fA-F]{64}", "64 hexadecimal digits", hint=" (`dandolo keys create --print` shows them)"
                ),
                "SHA-256 of the key; `dandolo keys create --print` makes both",
                example='"' + "0" * 64 + '"',
            ),
            "key": KeySpec(
                kinds.secret_reference(), "the key itself, in place of sha256", example='{ env = "DANDOLO_KEY" }'
            ),
        },
        repr=False,
    )
    priority: Priority = key(kinds.choice("high", "normal", "low"), '"normal"', "class of its requests under load")
    rpm: int | None = absent(kinds.whole(1, 10**9, "requests per minute"), "rate; beyond: 429", example="600")
    tpm: int | None = absent(kinds.whole(1, 10**12, "tokens per minute"), "rate; beyond: 429", example="1_000_000")
    concurrent: int | None = absent(kinds.whole(1, 1_000_000), "requests at one time; beyond: 429", example="64")
    budget_usd_per_day: float | None = absent(
        kinds.number(0, 1e9, "USD", above=True), "spending; beyond: 402", example="10.0"
    )
    budget_usd_per_month: float | None = absent(
        kinds.number(0, 1e9, "USD", above=True), "spending; beyond: 402", example="200.0"
    )
    models: tuple[str, ...] = key(
        kinds.array(fields.model_pattern(), 256, least=1), '["*"]', "models it may use", example='["fast", "venice/*"]'
    )
    cache_scope: Literal["key", "shared"] = key(
        kinds.choice("key", "shared"), '"key"', "whose cached answers it sees, and who sees its own"
    )
    privacy: bool = key(kinds.flag(), "false", "privacy mode for this key")
    admin: bool = key(kinds.flag(), "false", "may see and change everything on the admin listener")
    slots_reserved: float = key(kinds.number(0, 1, "share"), "0.0", "share of every limit kept for this key")
    tags: Mapping[str, str] = key(fields.tags(), "{}", "labels for records and metrics", example='{ team = "web" }')


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One credential at a provider; `key` is None where the provider asks for none."""

    owner: str = key(kinds.name(), '"default"', "whose account it is, for logs and metrics", example='"alice"')
    key: Secret | None = absent(kinds.secret_reference(), "the provider's key", example='{ env = "VENICE_API_KEY_2" }')


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that a provider serves; prices are None where unknown, 0.0 where free."""

    id: str = required(fields.model_id(), "the provider's own id", example='"llama-3.3-70b"')
    input_usd_per_mtok: float | None = absent(
        kinds.number(0, 1e6, "USD per million tokens"), "price of the prompt", example="0.70"
    )
    output_usd_per_mtok: float | None = absent(
        kinds.number(0, 1e6, "USD per million tokens"), "price of the answer", example="2.80"
    )
    context_tokens: int | None = absent(
        kinds.whole(1, 10**9, "tokens"), "window: prompt and answer together", example="65_536"
    )
    output_tokens_max: int | None = absent(
        kinds.whole(1, 10**9, "tokens"), "the longest answer it gives", example="8_192"
    )
    capabilities: tuple[Capability, ...] | None = absent(
        kinds.array(kinds.choice(*get_args(Capability)), len(get_args(Capability))),
        "all it can do beyond text; left out: what its provider's list says, else taken to do anything",
        example='["tools", "vision"]',
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A health check that asks for one token."""

    model: str = required(fields.model_id(), "the model asked", example='"llama-3.3-70b"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A provider; `accounts` is never empty (a local server has one account without a key)."""

    name: str = required(kinds.name(), "how routes, logs and metrics call it", example='"venice"')
    profile: Profile = key(
        kinds.choice("venice", "openrouter", "openai", "anthropic", "azure", "generic"), '"generic"', "its dialect"
    )
    base_url: str = fed_by(
        {
            "base_url": KeySpec(
                address.base_url(),
                "left out: the profile's own; azure and generic need it",
                example='"https://api.venice.ai/api/v1"',
            )
        }
    )
    region: str = key(_REGION, '""', "where it serves from", example='"us-east-1"')
    role: Role = key(kinds.choice("primary", "secondary", "overflow"), '"primary"', "when it is asked")
    concurrency_max: int = key(
        kinds.whole(1, 10_000),
        "256",
        "requests at one time, an upper bound for each worker: the limit itself is learned",
    )
    headers: Mapping[str, str] = key(
        fields.headers(), "{}", "sent with every call", example='{ "X-Title" = "Dandolo" }', repr=False
    )
    forward_headers: tuple[str, ...] = key(
        kinds.array(fields.header_name(), fields.HEADERS_MAX), "[]", "client headers passed on beside the usual ones"
    )
    defaults: Mapping[str, Any] = key(
        fields.request_defaults(),
        "{}",
        "request fields merged where the caller is silent",
        example="{ venice_parameters = { include_venice_system_prompt = false } }",
        repr=False,
    )
    api_version: str | None = absent(
        kinds.text(r"[A-Za-z0-9._-]{1,64}", "letters, digits, dots, dashes, at most 64"),
        "api-version of azure",
        example='"2024-10-21"',
    )
    ca: Path | None = absent(kinds.readable_file("a PEM bundle"), "private CA bundle (PEM)", example='"/path/ca.pem"')
    stream_upstream: bool = key(kinds.flag(), "false", "ask for streams even where the client wants a plain answer")
    connect_private: bool = key(kinds.flag(), "false", "allow link-local and cloud metadata addresses")
    probe: Probe | None = absent(
        Kind("table", "model", section=Probe),
        "health checks ask this model for one token, which costs; left out: they ask for the list of models",
        example='{ model = "llama-3.3-70b" }',
    )
    http_idle: float = key(
        kinds.time_span("1s", "1h"), '"55s"', "how long an idle connection to it is kept (256 at most)"
    )
    http_max_age: float = key(kinds.time_span("10s", "1d"), '"10m"', "age at which a connection is replaced")
    accounts: tuple[Account, ...] = fed_by(
        {
            "key": KeySpec(
                kinds.secret_reference(),
                "its key; left out: none is sent; several: accounts",
                example='{ env = "VENICE_API_KEY" }',
            ),
            "accounts": KeySpec(
                Kind("tables", section=Account, many=True, fallback=()), "several credentials, in place of key"
            ),
        },
        default=(Account(),),
    )
    models: tuple[Model, ...] = section(
        Model, "left out: any model name is passed on, prices as its own list says", many=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Relative weights of the terms of a score: not all zero, any sum."""

    latency: float = key(kinds.number(0, 1000, "weight"), "0.4", "time to the first token, and speed")
    errors: float = key(kinds.number(0, 1000, "weight"), "0.3", "recent failures")
    load: float = key(kinds.number(0, 1000, "weight"), "0.2", "requests in flight against the limit")
    cost: float = key(kinds.number(0, 1000, "weight"), "0.1", "price")


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    weights: Weights = section(Weights, "what a provider's score is made of")
    breaker: bool = key(kinds.flag(), "true", "false: no breaker, no cool-down, no closing of accounts")
    attempts_max: int = key(kinds.whole(1, 10), "3", "calls to providers for one request")
    hedge: bool = key(kinds.flag(), "false", "ask a second provider when the first is slow")
    batch_window: float = key(
        kinds.time_span("0s", "50ms"),
        '"3ms"',
        "how long embedding calls wait for one another behind one under way; 0s: never",
    )
    probe_interval: float = key(kinds.time_span("1s", "1h"), '"30s"', "between active health checks")


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoModel:
    """A row of the table that `model: "auto"` chooses from; None where only what is known of the model counts."""

    name: str = required(fields.model_id(), "a name that clients may use", example='"fast"')
    quality: Mapping[str, float] = key(
        fields.qualities(), "{}", "how good it is at what; left out: 0.8", example="{ question = 0.8, code = 0.9 }"
    )
    context_tokens: int | None = absent(
        kinds.whole(1, 10**9, "tokens"), "window, where the provider's is not to count", example="65_536"
    )
    capabilities: tuple[str, ...] | None = absent(
        kinds.array(kinds.choice(*fields.CAPABILITIES), len(fields.CAPABILITIES)),
        "all it can do beside text",
        example='["tools", "vision"]',
    )
    latency: float | None = absent(
        kinds.time_span("1ms", "1h"), "wait to expect until something is measured", example='"800ms"'
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Auto:
    """`model: "auto"`: the bounds where a request states none, and the operator's table (empty: all known models)."""

    max_latency: float = key(kinds.time_span("1ms", "1h"), '"5s"', "expected wait for the first token, at most")
    max_cost_usd: float = key(kinds.number(0, 1e6, "USD"), "0.01", "expected cost of a request, at most")
    quality: float = key(kinds.number(0, 1, "quality"), "0.8", "at least")
    cost_weight: float = key(
        kinds.number(0, 1e6, "quality per USD"), "10.0", "what a dollar counts against quality; 0: nothing"
    )
    models: tuple[AutoModel, ...] = section(
        AutoModel, "left out: every alias and listed model, by what their names tell", many=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole, valid configuration.

    `models` maps an alias to its "provider/model id" targets, in order of preference. `source` names the
    file (or "environment"); `warnings` are sentences for the operator; `lines` tells where keys stood.
    """

    server: Server = section(Server, "this process")
    limits: Limits = section(Limits, "what one client, key or process may take")
    timeouts: Timeouts = section(Timeouts, "how long anything may wait")
    keys: tuple[Key, ...] = section(Key, "who may call; none at all: open access, on loopback only", many=True)
    providers: tuple[Provider, ...] = section(Provider, "whom to ask", many=True)
    models: Mapping[str, tuple[str, ...]] = key(
        fields.aliases(), "{}", "names clients may use beside providers' own ids"
    )
    routing: Routing = section(Routing, "which provider is asked")
    auto: Auto = section(Auto, 'which model answers `model: "auto"`')
    cache: Cache = section(Cache, "answers that are given again")
    ledger: Ledger = section(Ledger, "what was used and what it cost")
    prompt_log: PromptLog = section(PromptLog, "texts of requests, where an operator wants them")
    slo: tuple[Slo, ...] = section(
        Slo, "objectives; left out: chat P95 2 s, image P95 15 s, success 99.9 %, cache hits 70 %", many=True
    )
    otel: Otel = section(Otel, "traces and metrics for an OpenTelemetry collector")
    alerts: Alerts = section(Alerts, "what is too much, and who is told")
    source: str = ""
    warnings: tuple[str, ...] = ()
    lines: Mapping[KeyPath, int] = field(default_factory=lambda: MappingProxyType({}), repr=False, compare=False)
