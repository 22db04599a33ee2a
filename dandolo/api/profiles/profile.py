"""What a profile can say about a provider, and how a request's target is built from it.

A profile is data: a base URL, the way a key is shown, the endpoints spoken, the headers that count limits,
and what the provider's own error codes mean. It knows nothing of accounts, regions or configuration; the
configuration may override any of it, and the layers above read it without asking which provider it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, get_args
from urllib.parse import quote

from dandolo.errors import RequestError

Endpoint = Literal[
    "chat",
    "completions",
    "embeddings",
    "moderations",
    "responses",
    "messages",
    "count_tokens",
    "images",
    "audio",
    "rerank",
    "models",
    "venice_image",
]
"""The client endpoints a provider may speak; a provider's entry in the configuration may widen its set."""

ENDPOINTS: frozenset[Endpoint] = frozenset(get_args(Endpoint))

Auth = Literal["bearer", "x-api-key", "api-key"]
Scope = Literal["request", "model", "account"]
IncludeUsage = Literal["yes", "no", "try"]

MODEL_CHARS_MAX = 256
"""A deployment name in a path; Azure allows 64, the rest is room for others who copy its paths."""


class Kind(StrEnum):
    """What a provider's failing answer means; the values are stable (they become metric labels)."""

    RATE_LIMIT = "rate_limit"
    QUOTA = "quota"
    """No money, or the key's own spend limit: the account is of no use until somebody acts."""
    AUTH = "auth"
    OVERLOADED = "overloaded"
    MODEL_OFFLINE = "model_offline"
    NOT_FOUND_MODEL = "not_found_model"
    CONTEXT_LENGTH = "context_length"
    MODERATION = "moderation"
    BAD_REQUEST = "bad_request"
    TOO_LARGE = "too_large"
    UNSUPPORTED_PARAM = "unsupported_param"
    TIMEOUT = "timeout"
    SERVER = "server"
    REDIRECT = "redirect"
    INVALID = "invalid"
    ERROR_BUDGET = "error_budget"
    """Too many failures in a short time: the provider blocks the whole account for a while (Venice)."""


@dataclass(frozen=True, slots=True)
class LimitHeaders:
    """The three headers (names in lower case) by which a provider reports one of its limits."""

    counts: Literal["requests", "tokens"]
    limit: bytes
    remaining: bytes
    reset: bytes


@dataclass(frozen=True, slots=True)
class TextRule:
    """A meaning that only the message's wording tells: `fragment` (lower case) in an answer of `status`.

    Status 0 stands for any. `scope` replaces the kind's usual scope when given.
    """

    status: int
    fragment: str
    kind: Kind
    scope: Scope | None = None


OPENAI_LIMITS: tuple[LimitHeaders, ...] = (
    LimitHeaders(
        "requests",
        b"x-ratelimit-limit-requests",
        b"x-ratelimit-remaining-requests",
        b"x-ratelimit-reset-requests",
    ),
    LimitHeaders("tokens", b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
)
"""OpenAI's names, which Venice, Azure and Groq copied; each writes its resets differently."""

PLAIN_LIMITS = LimitHeaders("requests", b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset")
"""The unqualified trio, taken to count requests (OpenRouter: on 429s only)."""


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """One provider's quirks.

    `base_url`      where its API lives, no slash at the end; None: the configuration must say
    `env_key`       the environment variable that customarily holds its key
    `auth`          how a key is shown (see `credential`)
    `headers`       header defaults (lower-case names), sent where the client's request has none such
    `dialects`      the client endpoints it speaks natively
    `include_usage` may `stream_options.include_usage` be injected: "yes"; "no" (usage comes anyway, or the
                    dialect has no such option); "try" (inject, and leave it out for good after a 400 or 422)
    `idle_s`        seconds an unused connection may be kept for reuse
    `limits`        the headers that report its limits; several of one kind: the tightest counts
    `limit_scope`   what one of its rate limits covers: the model on this account, or the whole account
    `codes`         its own error codes and types (lower case) where they say more than the status
    `texts`         meanings told by wording alone, looked at before `codes`
    `forbidden`     what a 403 means when nothing in it says
    `deployments`   Azure's paths: the model is in the path and `api-version` in the query
    `routes`        it chooses among providers itself, by `provider` objects and the suffixes `:nitro` and `:floor`
    `list_query`    what `GET /models` must be asked with ("?…") to name all models
    `answer_bound`  the request field that bounds a chat's answer in tokens
    `suffixes`      an id may carry a part after its last colon that steers the provider and stands in no list
    """

    name: str
    base_url: str | None = None
    env_key: str | None = None
    auth: Auth = "bearer"
    headers: Mapping[str, str] = field(default_factory=dict)
    dialects: frozenset[Endpoint] = frozenset()
    include_usage: IncludeUsage = "try"
    idle_s: float = 55.0
    limits: tuple[LimitHeaders, ...] = OPENAI_LIMITS
    limit_scope: Scope = "account"
    codes: Mapping[str, Kind] = field(default_factory=dict)
    texts: tuple[TextRule, ...] = ()
    forbidden: Kind = Kind.AUTH
    deployments: bool = False
    routes: bool = False
    list_query: str = ""
    suffixes: bool = False
    answer_bound: str = "max_tokens"

    def credential(self, key: str) -> tuple[bytes, bytes]:
        """The header (lower-case name, value) that shows `key`; the caller refuses control characters."""
        value = key.encode("latin-1", "replace")
        if self.auth == "bearer":
            return b"authorization", b"Bearer " + value
        return self.auth.encode(), value


# openai-python's AzureOpenAI puts the deployment into these paths and no other; /responses and the rest
# keep the model in the body.
_DEPLOYMENT_PATHS = frozenset(
    {
        "/completions",
        "/chat/completions",
        "/embeddings",
        "/audio/transcriptions",
        "/audio/translations",
        "/audio/speech",
        "/images/generations",
        "/images/edits",
    }
)

# RFC 3986 §3.3 and §3.4: pchar, "/" and "?", percent signs included since ids arrive encoded. The length
# bound is the request line's.
_TARGET = re.compile(r"/[A-Za-z0-9\-._~!$&'()*+,;=:@/?%]{1,2048}")
_UNSAFE_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SEPARATORS = re.compile(r"[/\\]")


def path(profile: Profile, endpoint_path: str, model: str | None = None, api_version: str | None = None) -> bytes:
    """The request target below the provider's base URL, such as `/chat/completions`.

    `endpoint_path` starts with one slash and may have a query. With Azure's paths the model becomes one
    percent-encoded segment of `/openai/deployments/{model}/…` and `api_version` (which the configuration
    must hold) goes into the query.

    Raises RequestError for a path or a model that could name anything but one resource below the base URL,
    and ValueError for a missing `api_version`.
    """
    bare, question, query = endpoint_path.partition("?")
    if (
        _TARGET.fullmatch(endpoint_path) is None
        or "//" in bare
        or any(_is_dots(segment) for segment in bare.replace("%2e", ".").replace("%2E", ".").split("/"))
    ):
        raise RequestError("the path is not one a provider may be asked for", status=404, code="not_found")
    if not profile.deployments:
        return endpoint_path.encode("ascii")
    if not api_version:
        raise ValueError(f"profile {profile.name}: api_version is missing")
    target = "/openai" + bare
    if bare in _DEPLOYMENT_PATHS:
        target = f"/openai/deployments/{_segment(model)}{bare}"
    target += "?api-version=" + quote(api_version, safe="-._~")
    return (target + "&" + query if question and query else target).encode("ascii")


def _segment(model: str | None) -> str:
    """`model` as one path segment.

    A slash is encoded, but some servers decode before they resolve dots (RFC 3986 §6.2.2.2 and §5.2.4 let
    them), so a name with a dot segment in it is refused instead.
    """
    if not model or len(model) > MODEL_CHARS_MAX or _UNSAFE_NAME.search(model):
        raise RequestError("model must be a name of 1 to 256 printable characters", param="model")
    if any(_is_dots(part) for part in _SEPARATORS.split(model)):
        raise RequestError("model is not the name of a deployment", status=404, code="model_not_found", param="model")
    return quote(model, safe="-._~")


def _is_dots(segment: str) -> bool:
    return segment in {".", ".."}
