"""Tokens, cost and endings, read from bodies and events of every dialect. A reader: it never changes a byte.

One loose structure holds the fields of all dialects, so that one typed decode (about 1 µs a KiB) finds what
there is; providers that write something else there are read again without types, and what cannot be
understood is unknown, never guessed. Field names: OpenAI's and Anthropic's API references; Venice's
top-level `cost`; OpenRouter's `usage.cost`; Groq's `x_groq`; Moonshot's `choices[0].usage`.
"""

from __future__ import annotations

from typing import Any

import msgspec

COUNT_MAX = 2**48
COST_USD_MAX = 1e6
"""What one call cannot reach: a figure beyond it is a provider's mistake, and unknown."""


class Usage(msgspec.Struct, gc=False):
    """Tokens of one call. `cost_usd` is the provider's own figure, None when it gives none.

    `estimated` marks counts that are ours, because the answer was interrupted before the provider's came.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float | None = None
    estimated: bool = False


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None
    cost: float | None = None


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None
    usage: _Usage | None = None


class _Cost(msgspec.Struct, gc=False):
    usd: float | None = None


class _Groq(msgspec.Struct, gc=False):
    usage: _Usage | None = None


class _Nested(msgspec.Struct, gc=False):
    usage: _Usage | None = None
    id: str | None = None
    status: str | None = None
    stop_reason: str | None = None
    model: str | None = None


class Facts(msgspec.Struct, gc=False):
    """What one body or event says about itself (fields of several dialects side by side)."""

    usage: _Usage | None = None
    choices: list[_Choice] | None = None
    cost: _Cost | None = None
    x_groq: _Groq | None = None
    model: str | None = None
    type: str | None = None
    id: str | None = None
    status: str | None = None
    stop_reason: str | None = None
    response: _Nested | None = None
    message: _Nested | None = None
    delta: _Nested | str | None = None

    def counts(self) -> _Usage | None:
        """Wherever the dialect puts its counts."""
        if self.usage is not None:
            return self.usage
        if self.x_groq is not None and self.x_groq.usage is not None:
            return self.x_groq.usage
        for nested in (self.response, self.message):
            if nested is not None and nested.usage is not None:
                return nested.usage
        for choice in self.choices or ():
            if choice.usage is not None:
                return choice.usage
        return None

    def finish(self) -> str | None:
        """Why the answer ended, in the provider's word; None while it has not (an empty word counts as none)."""
        for choice in self.choices or ():
            if choice.finish_reason:
                return choice.finish_reason
        if self.stop_reason:
            return self.stop_reason
        if isinstance(self.delta, _Nested) and self.delta.stop_reason:
            return self.delta.stop_reason
        if self.type in ("response.completed", "response.incomplete", "response.failed"):
            return self.type[9:]
        if self.status in ("completed", "incomplete", "failed"):
            return self.status
        return None


_facts = msgspec.json.Decoder(Facts)
_any = msgspec.json.Decoder()


def facts(data: bytes) -> Facts | None:
    """Read one JSON body or one event's data; None when it is no JSON object."""
    try:
        return _facts.decode(data)
    except msgspec.ValidationError:
        return _loose(data)
    except (ValueError, RecursionError):
        return None


def of(found: Facts) -> Usage | None:
    """The counts of one whole answer, None when it has none."""
    counts = found.usage
    if counts is not None and found.cost is None and counts.cost is None and counts.cache_read_input_tokens is None:
        sent, received = counts.prompt_tokens, counts.completion_tokens
        if sent is not None and received is not None and 0 <= sent < COUNT_MAX and 0 <= received < COUNT_MAX:
            # OpenAI's form, which nearly everybody uses.
            usage = Usage(sent, received)
            details = counts.prompt_tokens_details
            if details is not None:
                usage.cached_tokens = _sane(details.cached_tokens)
            details = counts.completion_tokens_details
            if details is not None:
                usage.reasoning_tokens = _sane(details.reasoning_tokens)
            return usage
    usage = Usage()
    return usage if add(usage, found) else None


def add(into: Usage, found: Facts) -> bool:
    """Take over the counts in `found`; whether there were any.

    Counts only grow within one answer (`continuous_usage_stats` repeats them cumulatively, Anthropic sends
    input first and output later), so the larger of two is right in every dialect.
    """
    counts = found.usage or found.counts()
    if found.cost is not None and found.cost.usd is not None:
        _spent(into, found.cost.usd)
    if counts is None:
        return False
    sent = counts.prompt_tokens
    cached = counts.cache_read_input_tokens
    cache_read = 0 if cached is None else _sane(cached)
    if sent is None and counts.input_tokens is not None:
        # Anthropic's input_tokens leave the cached ones out; OpenAI's and Responses' include them.
        sent = _sane(counts.input_tokens) + cache_read + _sane(counts.cache_creation_input_tokens)
    if sent is not None and into.input_tokens < sent < COUNT_MAX:
        into.input_tokens = sent
    received = counts.completion_tokens if counts.completion_tokens is not None else counts.output_tokens
    if received is not None and into.output_tokens < received < COUNT_MAX:
        into.output_tokens = received
    for details in (counts.prompt_tokens_details, counts.input_tokens_details):
        if details is not None:
            into.cached_tokens = max(into.cached_tokens, _sane(details.cached_tokens))
    if into.cached_tokens < cache_read:
        into.cached_tokens = cache_read
    for details in (counts.completion_tokens_details, counts.output_tokens_details):
        if details is not None:
            into.reasoning_tokens = max(into.reasoning_tokens, _sane(details.reasoning_tokens))
    if counts.cost is not None:
        _spent(into, counts.cost)
    return sent is not None or received is not None or counts.cost is not None


def in_tail(tail: bytes) -> Usage | None:
    """Usage from the end of a JSON body too large to be gathered: the object after its last `"usage"`."""
    at = tail.rfind(b'"usage"')
    found = facts(b"{" + tail[at:].rstrip()) if at >= 0 else None
    counts = Usage()
    return counts if found is not None and add(counts, found) else None


def _sane(count: int | None) -> int:
    """A count that can be one; 0 for what is missing, negative or beyond any context (it would outgrow a ledger)."""
    return count if count is not None and 0 < count < COUNT_MAX else 0


def _spent(into: Usage, cost_usd: float) -> None:
    if 0.0 <= cost_usd < COST_USD_MAX:
        into.cost_usd = max(into.cost_usd or 0.0, cost_usd)


def estimate_tokens(text_bytes: int) -> int:
    """Tokens of so many bytes of text, at four bytes a token (OpenAI's rule of thumb for English)."""
    return (text_bytes + 3) // 4


def _loose(data: bytes) -> Facts | None:
    """The same facts from a body whose types are not the documented ones."""
    try:
        decoded = _any.decode(data)
    except (ValueError, RecursionError):
        return None
    return _facts_of(decoded) if isinstance(decoded, dict) else None


def _facts_of(value: dict[str, Any]) -> Facts:
    choices = value.get("choices")
    delta = value.get("delta")
    cost = _object(value.get("cost"))
    return Facts(
        usage=_usage_of(value.get("usage")),
        choices=[
            _Choice(_text(choice.get("finish_reason")), _usage_of(choice.get("usage")))
            for choice in choices
            if isinstance(choice, dict)
        ]
        if isinstance(choices, list)
        else None,
        cost=_Cost(_number(cost.get("usd"))),
        x_groq=_Groq(_usage_of(_object(value.get("x_groq")).get("usage"))),
        model=_text(value.get("model")),
        type=_text(value.get("type")),
        id=_text(value.get("id")),
        status=_text(value.get("status")),
        stop_reason=_text(value.get("stop_reason")),
        response=_nested_of(value.get("response")),
        message=_nested_of(value.get("message")),
        delta=_nested_of(delta),
    )


def _nested_of(value: Any) -> _Nested | None:
    if not isinstance(value, dict):
        return None
    return _Nested(
        _usage_of(value.get("usage")),
        _text(value.get("id")),
        _text(value.get("status")),
        _text(value.get("stop_reason")),
        _text(value.get("model")),
    )


def _usage_of(value: Any) -> _Usage | None:
    if not isinstance(value, dict):
        return None

    def details(name: str) -> _Details:
        inner = _object(value.get(name))
        return _Details(_count(inner.get("cached_tokens")), _count(inner.get("reasoning_tokens")))

    return _Usage(
        _count(value.get("prompt_tokens")),
        _count(value.get("completion_tokens")),
        _count(value.get("input_tokens")),
        _count(value.get("output_tokens")),
        _count(value.get("cache_read_input_tokens")),
        _count(value.get("cache_creation_input_tokens")),
        details("prompt_tokens_details"),
        details("completion_tokens_details"),
        details("input_tokens_details"),
        details("output_tokens_details"),
        _number(value.get("cost")),
    )


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and 0 <= number < 2**53 else None


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if value == value and abs(value) < 1e15 else None
