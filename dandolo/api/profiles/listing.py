"""What a provider says of its models in `GET /models`, out of every form known, as facts in our units.

    {"data": [{"id"}]}                                       OpenAI and whoever copies it
    … "type", "model_spec": {"pricing": {"input": {"usd"}}}   Venice: numbers, USD per million tokens
    … "pricing": {"prompt", "completion"}, "architecture"    OpenRouter: strings, USD per token
    … "max_model_len"                                        vLLM
    … "max_context_length", "capabilities": {…}              Mistral
    … "context_window", "max_completion_tokens"              Groq
    {"data": [{"id", "display_name"}], "has_more"}           Anthropic, in pages
    [{"id", "type", "context_length"}]                       Together: a bare array

Forms are told apart by their fields, not by the provider's name: what stands in front of a provider may
speak its form. A number whose unit is not known is no fact: it becomes None, never a guess, and so does
anything negative, infinite or absurd. A row that makes no sense costs that row alone. Ids are data: whoever
shows or sends one treats it as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, TypeGuard

import msgspec

from dandolo.api.profiles.profile import Profile
from dandolo.config.schema import Capability
from dandolo.values import fit

LIST_BYTES_MAX = 8 * 1024 * 1024
"""OpenRouter's list of some 400 models is half a megabyte."""
MODELS_MAX = 5000
ALIASES_MAX = 32
"""Of one model (Mistral)."""
ID_CHARS_MAX = 256
PRICE_MAX = 1e6
"""USD per million tokens; the bound that configured prices have."""
TOKENS_MAX = 10**9
PER_MTOK = 1e6

ModelKind = Literal["text", "embedding", "image", "video", "speech", "transcription", "music", "moderation", "rerank"]
"""What a model makes: speech out of text, a transcription out of speech, …."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of one model at one provider; None is unknown, never "none".

    Prices are USD per million tokens, the usual ones: surcharges beyond a prompt's length or by the hour are not
    told here. `context_tokens` is the window, prompt and answer together; `capabilities` all that it can do beyond
    text. `offline`: listed, but not served now. `retires`: when it is to be taken away, as the provider writes it.
    """

    id: str
    input_usd_per_mtok: float | None = None
    output_usd_per_mtok: float | None = None
    cached_usd_per_mtok: float | None = None
    context_tokens: int | None = None
    output_tokens_max: int | None = None
    capabilities: frozenset[Capability] | None = None
    kind: ModelKind | None = None
    offline: bool = False
    retires: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """A provider's models by id. `complete` False: there are more than these (a further page, too many rows)."""

    models: Mapping[str, ModelFacts]
    complete: bool = True


def read(profile: Profile, body: bytes) -> Listing:
    """The models in `body`, a whole answer to `GET /models`; pure, and bounded by MODELS_MAX and LIST_BYTES_MAX.

    Raises ValueError saying what was observed and expected when it is no list of models at all, or holds rows of
    which none names a model.
    """
    if len(body) > LIST_BYTES_MAX:
        raise ValueError(f"observed a list of {len(body)} bytes, expected at most {LIST_BYTES_MAX}")
    rows, more = _rows(profile, body)
    models: dict[str, ModelFacts] = {}
    aliases: dict[str, str] = {}
    for raw in rows[:MODELS_MAX]:
        try:
            row = _row.decode(raw)
            facts = _facts(row)
        except (ValueError, RecursionError):
            continue
        if facts is not None:
            models.setdefault(facts.id, facts)
            for alias in row.aliases[:ALIASES_MAX] if isinstance(row.aliases, list) else ():
                if _is_id(alias):
                    aliases.setdefault(alias, facts.id)
    for alias, name in aliases.items():
        # A row of the alias's own says more.
        if alias not in models and len(models) < MODELS_MAX:
            models[alias] = replace(models[name], id=alias)
    if rows and not models:
        raise ValueError(
            f"observed {len(rows)} rows from {_called(profile)}, none of them an object with a printable id"
            f" of 1 to {ID_CHARS_MAX} characters"
        )
    return Listing(MappingProxyType(models), complete=not more and len(rows) <= MODELS_MAX)


class _Envelope(msgspec.Struct):
    data: list[msgspec.Raw]
    has_more: Any = None
    links: Any = None


class _Row(msgspec.Struct):
    """The fields that are looked at; what else a row holds (descriptions, benchmarks) is skipped, not built."""

    id: Any = None
    type: Any = None
    model_spec: Any = None
    pricing: Any = None
    architecture: Any = None
    supported_parameters: Any = None
    top_provider: Any = None
    context_length: Any = None
    context_window: Any = None
    max_context_length: Any = None
    max_model_len: Any = None
    max_completion_tokens: Any = None
    active: Any = None
    expiration_date: Any = None
    deprecation: Any = None
    aliases: Any = None


_envelope = msgspec.json.Decoder(_Envelope)
_array = msgspec.json.Decoder(list[msgspec.Raw])
_row = msgspec.json.Decoder(_Row)


def _rows(profile: Profile, body: bytes) -> tuple[list[msgspec.Raw], bool]:
    """The rows, undecoded, and whether the provider says that there are more."""
    body = body.removeprefix(b"\xef\xbb\xbf")
    try:
        if body[:64].lstrip()[:1] == b"[":
            return _array.decode(body), False
        found = _envelope.decode(body)
    except (ValueError, RecursionError) as error:
        # msgspec's texts name places and types, never values.
        reason = fit(str(error) or type(error).__name__)
        raise ValueError(
            f'observed something else from {_called(profile)}: {reason}; expected {{"data": [{{"id": …}}]}}'
        ) from None
    following = found.links.get("next") if isinstance(found.links, dict) else None
    return found.data, found.has_more is True or bool(following)


def _called(profile: Profile) -> str:
    return f"a provider of profile {profile.name}"


def _facts(row: _Row) -> ModelFacts | None:
    name = row.id
    if not _is_id(name):
        return None
    if isinstance(row.model_spec, dict):
        return _venice(name, row, row.model_spec)
    if isinstance(row.architecture, dict) or isinstance(row.top_provider, dict):
        return _openrouter(name, row)
    prices = _token_prices(row.pricing)
    return ModelFacts(
        name,
        *prices,
        context_tokens=_first_tokens(row.context_length, row.max_model_len, row.max_context_length, row.context_window),
        output_tokens_max=_first_tokens(row.max_completion_tokens),
        kind=_KINDS.get(row.type) if isinstance(row.type, str) else None,
        # Groq's word; anything but a plain false is taken for yes.
        offline=row.active is False,
        retires=_date(row.deprecation),
    )


# -- Venice ----------------------------------------------------------------------------------------------------

_VENICE_CAPABILITIES: tuple[tuple[str, Capability], ...] = (
    ("supportsFunctionCalling", "tools"),
    ("supportsVision", "vision"),
    ("supportsAudioInput", "audio"),
    ("supportsVideoInput", "video"),
    ("supportsResponseSchema", "json_schema"),
    ("supportsReasoning", "reasoning"),
    ("supportsLogProbs", "logprobs"),
    ("supportsWebSearch", "web_search"),
)
_KINDS: dict[str, ModelKind] = {
    # Venice's
    "text": "text", "code": "text", "embedding": "embedding", "image": "image", "upscale": "image",
    "inpaint": "image", "tts": "speech", "asr": "transcription", "music": "music", "video": "video",
    # Together's
    "chat": "text", "language": "text", "moderation": "moderation", "rerank": "rerank",
}  # fmt: skip


def _venice(name: str, row: _Row, spec: dict[str, Any]) -> ModelFacts:
    kind = _KINDS.get(row.type) if isinstance(row.type, str) else None
    pricing = spec.get("pricing")
    # Of speech and the like `input` counts characters, not tokens.
    pricing = pricing if isinstance(pricing, dict) and kind in ("text", "embedding") else {}
    said = spec.get("capabilities")
    capabilities: frozenset[Capability] | None = None
    if kind == "embedding":
        capabilities = frozenset(("embeddings",))
    elif isinstance(said, dict):
        # A flag that is missing is one the model's row does not claim.
        capabilities = frozenset(word for flag, word in _VENICE_CAPABILITIES if said.get(flag) is True)
    deprecation = spec.get("deprecation")
    deprecation = deprecation if isinstance(deprecation, dict) else {}
    return ModelFacts(
        name,
        # `extended`, what a prompt beyond a threshold costs, is left out.
        _venice_price(pricing.get("input")),
        _venice_price(pricing.get("output")),
        _venice_price(pricing.get("cache_input")),
        context_tokens=_first_tokens(spec.get("availableContextTokens"), row.context_length),
        output_tokens_max=_first_tokens(spec.get("maxCompletionTokens")),
        capabilities=capabilities,
        kind=kind,
        offline=spec.get("offline") is True,
        retires=_date(deprecation.get("removesAt")) or _date(deprecation.get("date")),
    )


def _venice_price(value: Any) -> float | None:
    amount = value.get("usd") if isinstance(value, dict) else None
    return _price(amount, 1.0) if isinstance(amount, int | float) else None


# -- OpenRouter ------------------------------------------------------------------------------------------------

_MODALITIES: dict[str, Capability] = {"image": "vision", "audio": "audio", "video": "video", "file": "files"}
_PARAMETERS: dict[str, Capability] = {
    "tools": "tools", "structured_outputs": "json_schema", "reasoning": "reasoning",
    "include_reasoning": "reasoning", "logprobs": "logprobs", "web_search_options": "web_search",
}  # fmt: skip
_OUTPUTS: tuple[tuple[str, ModelKind], ...] = (
    ("text", "text"),
    ("embeddings", "embedding"),
    ("image", "image"),
    ("audio", "speech"),
    ("video", "video"),
    ("rerank", "rerank"),
)


def _openrouter(name: str, row: _Row) -> ModelFacts:
    architecture = row.architecture if isinstance(row.architecture, dict) else {}
    taken = _words(architecture.get("input_modalities"))
    given = _words(architecture.get("output_modalities"))
    parameters = _words(row.supported_parameters)
    kind = next((kind for word, kind in _OUTPUTS if word in given), None) if given is not None else None
    capabilities: frozenset[Capability] | None = None
    if taken is not None and parameters is not None:
        # Either half alone would deny what it does not speak of.
        capabilities = frozenset(
            [word for one, word in _MODALITIES.items() if one in taken]
            + [word for one, word in _PARAMETERS.items() if one in parameters]
            + (["embeddings"] if kind == "embedding" else [])
        )
    top = row.top_provider if isinstance(row.top_provider, dict) else {}
    return ModelFacts(
        name,
        *_token_prices(row.pricing),
        context_tokens=_first_tokens(row.context_length, top.get("context_length")),
        output_tokens_max=_first_tokens(top.get("max_completion_tokens")),
        capabilities=capabilities,
        kind=kind,
        retires=_date(row.expiration_date),
    )


def _token_prices(pricing: Any) -> tuple[float | None, float | None, float | None]:
    """Input, output and cached input out of OpenRouter's `pricing`, strings of USD per token.

    `overrides` (longer prompts, hours of the day), fees per request and the like are left out. Numbers are not
    taken: who writes numbers there means another unit as a rule.
    """
    if not isinstance(pricing, dict):
        return None, None, None
    said = [pricing.get(name) for name in ("prompt", "completion", "input_cache_read")]
    found = [_price(_number(one), PER_MTOK) if isinstance(one, str) else None for one in said]
    return found[0], found[1], found[2]


# -- values ----------------------------------------------------------------------------------------------------


def _is_id(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= ID_CHARS_MAX and value.isprintable()


def _words(value: Any) -> frozenset[str] | None:
    return frozenset(one for one in value if isinstance(one, str)) if isinstance(value, list) else None


def _number(text: str) -> float | None:
    if len(text) > 64:
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _price(value: float | None, factor: float) -> float | None:
    """A price per million tokens; None unless it is finite, not negative ("-1": it varies) and believable."""
    if value is None or isinstance(value, bool) or not 0 <= value <= PRICE_MAX:
        return None
    # 1.5e-07 USD a token are 0.15 a million, not 0.15000000000000002.
    price = round(float(value) * factor, 9)
    return price if price <= PRICE_MAX else None


def _first_tokens(*values: Any) -> int | None:
    """The first that is a believable number of tokens; 0 stands for "not told" wherever it was seen."""
    for value in values:
        if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= TOKENS_MAX:
            return int(value)
    return None


def _date(value: Any) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= 40 and value.isprintable() else None
