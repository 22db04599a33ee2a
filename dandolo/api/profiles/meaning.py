"""What the dialects' common codes, types, statuses and wordings mean, and what follows from each meaning.

The tables are data for the judge of failing answers; a profile's own tables are asked before these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dandolo.api.profiles.profile import Kind, Scope, TextRule


@dataclass(frozen=True, slots=True)
class Meaning:
    """What follows from a kind.

    `status` is the HTTP status it has when an error inside a 200 names none; `message` is for the client
    when the provider said nothing fit to repeat, with {status} and {reason} filled in; `type` and `code` are
    the envelope's defaults.
    """

    status: int
    scope: Scope
    take_over: bool
    type: str
    code: str
    message: str


_LATER = "the provider answered {status} ({reason}); try again later"
_REFUSED = "the provider refused the request with {status} ({reason})"
_FAILED = "the provider failed with {status} ({reason})"

BY_KIND: Mapping[Kind, Meaning] = {
    Kind.RATE_LIMIT: Meaning(429, "account", True, "rate_limit_error", "rate_limit_exceeded", _LATER),
    Kind.ERROR_BUDGET: Meaning(429, "account", True, "rate_limit_error", "rate_limit_exceeded", _LATER),
    Kind.QUOTA: Meaning(
        402, "account", True, "insufficient_quota", "insufficient_quota", "the provider's account is used up"
    ),
    Kind.AUTH: Meaning(401, "account", True, "permission_error", "permission_denied", _REFUSED),
    Kind.OVERLOADED: Meaning(
        503, "model", True, "upstream_error", "upstream_overloaded", "the provider is overloaded ({status})"
    ),
    Kind.MODEL_OFFLINE: Meaning(
        503, "model", True, "upstream_error", "upstream_unavailable", "the model is not available ({status})"
    ),
    Kind.NOT_FOUND_MODEL: Meaning(
        404, "model", True, "invalid_request_error", "model_not_found", "the provider has no such model"
    ),
    Kind.CONTEXT_LENGTH: Meaning(400, "request", False, "invalid_request_error", "context_length_exceeded", _REFUSED),
    Kind.MODERATION: Meaning(403, "request", False, "invalid_request_error", "content_policy_violation", _REFUSED),
    Kind.BAD_REQUEST: Meaning(400, "request", False, "invalid_request_error", "bad_request", _REFUSED),
    Kind.TOO_LARGE: Meaning(413, "request", False, "invalid_request_error", "request_too_large", _REFUSED),
    Kind.UNSUPPORTED_PARAM: Meaning(400, "request", False, "invalid_request_error", "unsupported_parameter", _REFUSED),
    Kind.TIMEOUT: Meaning(
        504, "request", True, "timeout_error", "upstream_timeout", "the provider timed out ({status})"
    ),
    Kind.SERVER: Meaning(500, "request", True, "upstream_error", "upstream_error", _FAILED),
    Kind.REDIRECT: Meaning(
        302,
        "account",
        True,
        "upstream_error",
        "upstream_invalid_response",
        "the provider answered with a redirect ({status}), which is never followed: check its base_url",
    ),
    Kind.INVALID: Meaning(
        502,
        "request",
        True,
        "upstream_error",
        "upstream_invalid_response",
        "the provider's answer ({status}) could not be used",
    ),
}

_CLIENT_CAUSED = frozenset(
    {Kind.CONTEXT_LENGTH, Kind.MODERATION, Kind.BAD_REQUEST, Kind.TOO_LARGE, Kind.UNSUPPORTED_PARAM}
)
_ANY_4XX = _CLIENT_CAUSED | {
    Kind.RATE_LIMIT,
    Kind.QUOTA,
    Kind.AUTH,
    Kind.OVERLOADED,
    Kind.MODEL_OFFLINE,
    Kind.NOT_FOUND_MODEL,
    Kind.TIMEOUT,
}
_ANY_5XX = frozenset(
    {
        Kind.SERVER,
        Kind.OVERLOADED,
        Kind.MODEL_OFFLINE,
        Kind.TIMEOUT,
        Kind.RATE_LIMIT,
        Kind.QUOTA,
        Kind.CONTEXT_LENGTH,
    }
)
_AT_429 = frozenset({Kind.RATE_LIMIT, Kind.QUOTA, Kind.OVERLOADED, Kind.MODEL_OFFLINE, Kind.ERROR_BUDGET})

# Status → the kind it has by itself, and the kinds a body may make of it. A body may not turn a 401 into
# anything (its text must stay hidden), nor a 413 into something worth asking others for (Groq's 413 says
# rate_limit_exceeded).
_BY_STATUS: Mapping[int, tuple[Kind, frozenset[Kind]]] = {
    401: (Kind.AUTH, frozenset({Kind.AUTH})),
    402: (Kind.QUOTA, frozenset({Kind.QUOTA})),
    403: (Kind.AUTH, _ANY_4XX),
    404: (Kind.NOT_FOUND_MODEL, frozenset({Kind.NOT_FOUND_MODEL, Kind.BAD_REQUEST, Kind.MODERATION})),
    407: (Kind.AUTH, frozenset({Kind.AUTH})),
    408: (Kind.TIMEOUT, frozenset({Kind.TIMEOUT})),
    410: (Kind.NOT_FOUND_MODEL, frozenset({Kind.NOT_FOUND_MODEL, Kind.BAD_REQUEST})),
    413: (Kind.TOO_LARGE, frozenset({Kind.TOO_LARGE, Kind.CONTEXT_LENGTH})),
    # Ours to get right, never the caller's: they built no header and no connection of this request.
    421: (Kind.INVALID, frozenset()),
    424: (Kind.SERVER, _ANY_5XX),  # Hugging Face TGI: the generation failed
    425: (Kind.OVERLOADED, frozenset()),
    426: (Kind.INVALID, frozenset()),
    429: (Kind.RATE_LIMIT, _AT_429),
    431: (Kind.INVALID, frozenset()),
    451: (Kind.AUTH, _ANY_4XX),
    498: (Kind.OVERLOADED, frozenset()),  # Groq: flex tier at capacity
    499: (Kind.SERVER, frozenset()),
    503: (Kind.OVERLOADED, _ANY_5XX),
    504: (Kind.TIMEOUT, frozenset({Kind.TIMEOUT})),
    522: (Kind.TIMEOUT, frozenset()),  # Cloudflare: connection to the origin timed out
    524: (Kind.TIMEOUT, frozenset()),  # Cloudflare: the origin did not answer in time
    529: (Kind.OVERLOADED, frozenset({Kind.OVERLOADED, Kind.MODEL_OFFLINE})),  # Anthropic
}


def by_status(status: int) -> tuple[Kind, frozenset[Kind]]:
    """The kind a status means by itself, and the kinds the body may say it is instead."""
    found = _BY_STATUS.get(status)
    if found is not None:
        return found
    if 300 <= status < 400:
        return Kind.REDIRECT, frozenset()
    if 400 <= status < 500:
        return Kind.BAD_REQUEST, _ANY_4XX
    if 500 <= status < 600:
        return Kind.SERVER, _ANY_5XX
    return Kind.INVALID, frozenset()


def client_status(kind: Kind, status: int) -> int:
    """The status the client gets for `kind` when the provider answered `status`."""
    match kind:
        case Kind.RATE_LIMIT | Kind.ERROR_BUDGET:
            return 429
        case Kind.QUOTA:
            return status if status in (402, 403, 429) else 402
        case Kind.AUTH:
            # A 403 may be about the request; whatever else refuses a key is ours to mend.
            return status if status in (403, 451) else 502
        case Kind.OVERLOADED:
            return 429 if status == 429 else 503
        case Kind.MODEL_OFFLINE:
            return 503
        case Kind.NOT_FOUND_MODEL:
            return 410 if status == 410 else 404
        case Kind.TOO_LARGE:
            return 413
        case Kind.TIMEOUT:
            return 504
        case Kind.SERVER | Kind.REDIRECT | Kind.INVALID:
            return 502
        case _:
            return status if 400 <= status < 500 else 400


CODES: Mapping[str, Kind] = {
    "rate_limit_exceeded": Kind.RATE_LIMIT,
    "rate_limited": Kind.RATE_LIMIT,
    "rate_limit_error": Kind.RATE_LIMIT,
    "resource_exhausted": Kind.RATE_LIMIT,
    "too_many_requests": Kind.RATE_LIMIT,
    "insufficient_quota": Kind.QUOTA,
    "insufficient_balance": Kind.QUOTA,
    "billing_error": Kind.QUOTA,
    "billing_hard_limit_reached": Kind.QUOTA,
    "billing_not_active": Kind.QUOTA,
    "invalid_api_key": Kind.AUTH,
    "api_key_invalid": Kind.AUTH,
    "authentication_error": Kind.AUTH,
    "overloaded_error": Kind.OVERLOADED,
    "overloaded": Kind.OVERLOADED,
    "engine_overloaded": Kind.OVERLOADED,
    "engine_overloaded_error": Kind.OVERLOADED,
    "server_overloaded": Kind.OVERLOADED,
    "model_overloaded": Kind.OVERLOADED,
    "slow_down": Kind.OVERLOADED,
    "model_offline": Kind.MODEL_OFFLINE,
    "unavailable_error": Kind.MODEL_OFFLINE,
    "model_not_found": Kind.NOT_FOUND_MODEL,
    "model_not_available": Kind.NOT_FOUND_MODEL,
    "model_decommissioned": Kind.NOT_FOUND_MODEL,
    "deploymentnotfound": Kind.NOT_FOUND_MODEL,
    "context_length_exceeded": Kind.CONTEXT_LENGTH,
    "context_window_exceeded": Kind.CONTEXT_LENGTH,
    "exceed_context_size_error": Kind.CONTEXT_LENGTH,
    "string_above_max_length": Kind.CONTEXT_LENGTH,
    "content_filter": Kind.MODERATION,
    "content_policy_violation": Kind.MODERATION,
    "moderation_blocked": Kind.MODERATION,
    "responsibleaipolicyviolation": Kind.MODERATION,
    "data_inspection_failed": Kind.MODERATION,
    "unsupported_parameter": Kind.UNSUPPORTED_PARAM,
    "unknown_parameter": Kind.UNSUPPORTED_PARAM,
    "unsupported_value": Kind.UNSUPPORTED_PARAM,
    "extra_forbidden": Kind.UNSUPPORTED_PARAM,
    "request_too_large": Kind.TOO_LARGE,
    "timeout_error": Kind.TIMEOUT,
    "request_timeout": Kind.TIMEOUT,
    "previous_response_not_found": Kind.BAD_REQUEST,
    "image_not_found": Kind.BAD_REQUEST,
}
"""Codes and types that say more than a status does. `server_error`, `invalid_request_error` and their like
do not: they accompany everything."""

STATUS_OF: Mapping[str, int] = {
    "invalid_request": 400,
    "invalid_request_error": 400,
    "invalid_prompt": 400,
    "badrequesterror": 400,
    "validationerror": 422,
    "permission_error": 403,
    "permission_denied": 403,
    "not_found": 404,
    "not_found_error": 404,
    "notfounderror": 404,
    "server_error": 500,
    "api_error": 500,
    "internal_error": 500,
    "internalservererror": 500,
    "provider_unavailable": 502,
    "timeout": 504,
}
"""The status of an error inside a 200 that has only a general type."""

_CLIENTS = frozenset({400, 413, 422, 500})

SIZES = (
    TextRule(429, "request too large", Kind.RATE_LIMIT, "request"),
    TextRule(402, "fewer max_tokens", Kind.QUOTA, "request"),
)
"""Limits that this request alone is too large for (OpenAI and Groq: a minute's tokens; OpenRouter: what the credit left
would pay for): others may take it, and smaller ones go on to the same account."""

TEXTS: tuple[tuple[frozenset[int], re.Pattern[str], Kind], ...] = (
    (
        # OpenAI and vLLM, llama.cpp (twice), Venice, Ollama, TGI
        _CLIENTS,
        re.compile(
            r"maximum context|context (?:length|size|window)|prompt is too long"
            r"|exceeds? the (?:available )?context|too many tokens|must be <= \d{1,9} tokens"
        ),
        Kind.CONTEXT_LENGTH,
    ),
    (
        frozenset({403, 429}),
        re.compile(r"current quota|spend(?:ing)? limit|key limit exceeded"),
        Kind.QUOTA,
    ),
    (
        frozenset({400, 403, 429}),
        re.compile(r"insufficient (?:credit|balance|fund)|credit balance is too low|billing hard limit"),
        Kind.QUOTA,
    ),
    (
        frozenset({429, 500, 502, 503}),
        re.compile(r"overloaded|at capacity|over capacity|no capacity"),
        Kind.OVERLOADED,
    ),
    (
        frozenset({500, 503}),
        re.compile(r"loading model|currently loading|temporarily offline|model is (?:down|offline)"),
        Kind.MODEL_OFFLINE,
    ),
    (
        frozenset({400, 403, 422}),
        re.compile(r"content (?:policy|policies|filter|management)|moderat|flagged|guardrail|prompt injection"),
        Kind.MODERATION,
    ),
    (
        frozenset({400, 403, 422}),
        re.compile(r"model `?[^ ]{1,128}`? (?:does not exist|not found)|not a valid model|invalid model\b"),
        Kind.NOT_FOUND_MODEL,
    ),
    (
        frozenset({400, 422}),
        re.compile(
            r"extra inputs are not permitted|unrecognized (?:request argument|key)"
            r"|(?:unknown|unsupported) (?:parameter|field)"
            r"|not support [^.]{0,64}stream_options|stream_options[^.]{0,64}not support"
        ),
        Kind.UNSUPPORTED_PARAM,
    ),
    (frozenset({400}), re.compile(r"api key not valid|invalid api key|incorrect api key"), Kind.AUTH),
    (frozenset({400, 403}), re.compile(r"does not have access to model"), Kind.NOT_FOUND_MODEL),
)
"""Statuses, a pattern over the lower-cased message, and what it means; only where no code told."""
